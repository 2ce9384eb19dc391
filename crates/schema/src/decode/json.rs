//! JSON bytes to a value, in one pass along the schema.

use serde_json::{Map, Value};

use super::path::Path;
use super::scalar::{self, Raw};
use super::scan::{Scanner, SyntaxError, Token};
use super::{DecodeError, Decoded, Findings, MAX_DEPTH, Strictness};
use crate::types::{Field, ListShape, MapShape, ObjectShape, Schema, Shape};

pub(super) fn decode(bytes: &[u8], schema: &Schema, strictness: Strictness) -> Result<Decoded, DecodeError> {
    let findings = Findings::new(strictness, Vec::new());
    let mut decoder = Decoder { scanner: Scanner::new(bytes), findings, depth: 0 };
    let value = decoder.value(schema, schema.is_custom(), &Path::ROOT)?;
    decoder.scanner.end()?;
    decoder.findings.finish(value.unwrap_or_default())
}

pub(super) fn decode_any(bytes: &[u8], strictness: Strictness) -> Result<Decoded, DecodeError> {
    let findings = Findings::new(strictness, Vec::new());
    let mut decoder = Decoder { scanner: Scanner::new(bytes), findings, depth: 0 };
    let value = decoder.any(strictness != Strictness::Ignore, &Path::ROOT)?;
    decoder.scanner.end()?;
    decoder.findings.finish(value)
}

pub(super) fn type_meta(bytes: &[u8]) -> Result<(String, String), DecodeError> {
    let findings = Findings::new(Strictness::Ignore, Vec::new());
    let mut decoder = Decoder { scanner: Scanner::new(bytes), findings, depth: 0 };
    let (mut api_version, mut kind) = (String::new(), String::new());
    let token = decoder.scanner.peek()?;
    if token != Token::Object {
        decoder.skip()?;
        let error = Path::ROOT.type_error(found(token), "struct { APIVersion string; Kind string }");
        return if token == Token::Null { Ok((api_version, kind)) } else { Err(DecodeError::Type(error)) };
    }
    decoder.scanner.open();
    let mut first = true;
    while let Some(key) = decoder.scanner.next_key(first)? {
        first = false;
        let slot = match &*key {
            "apiVersion" => &mut api_version,
            "kind" => &mut kind,
            _ => {
                decoder.skip()?;
                continue;
            }
        };
        match decoder.scanner.peek()? {
            Token::String => *slot = decoder.scanner.string()?.into_owned(),
            Token::Null => decoder.scanner.null()?,
            token => {
                decoder.skip()?;
                let path = Path::ROOT.field("", &key).type_error(found(token), "string");
                return Err(DecodeError::Type(path));
            }
        }
    }
    decoder.scanner.end()?;
    Ok((api_version, kind))
}

struct Decoder<'a> {
    scanner: Scanner<'a>,
    findings: Findings,
    depth: usize,
}

type Result2<T> = Result<T, SyntaxError>;

impl From<SyntaxError> for DecodeError {
    fn from(error: SyntaxError) -> Self {
        Self::Syntax(error.0)
    }
}

fn found(token: Token) -> &'static str {
    match token {
        Token::Null => "null",
        Token::Bool => "bool",
        Token::Number => "number",
        Token::String => "string",
        Token::Array => "array",
        Token::Object => "object",
    }
}

impl Decoder<'_> {
    /// A value, `None` when nothing is to be kept: null in a built-in kind, or a wrong type, which is noted.
    fn value(&mut self, schema: &Schema, custom: bool, path: &Path<'_>) -> Result2<Option<Value>> {
        let token = self.scanner.peek()?;
        match (token, &schema.shape) {
            (Token::Object, Shape::Object(object)) => self.object(object, custom, path).map(Some),
            (Token::Object, Shape::Map(map)) => self.map(map, custom, path).map(Some),
            (Token::Array, Shape::List(list)) => self.list(list, custom, path).map(Some),
            (_, Shape::Any(_)) => {
                let value = self.any(custom, path)?;
                Ok((custom || !value.is_null()).then_some(value))
            }
            _ if custom => self.any(true, path).map(Some),
            (Token::Null, _) => self.scanner.null().map(|()| None),
            (Token::Array | Token::Object, _) => {
                self.skip()?;
                self.findings.fail(match schema.shape {
                    Shape::Quantity => meta::quantity::QuantityError::Format.to_string(),
                    _ => path.type_error(found(token), &scalar::go_type(schema)),
                });
                Ok(None)
            }
            _ => {
                let raw = self.raw(token)?;
                match scalar::canonical(raw, schema, path) {
                    Ok(Value::Null) => Ok(None),
                    Ok(value) => Ok(Some(value)),
                    Err(error) => {
                        self.findings.fail(error);
                        Ok(None)
                    }
                }
            }
        }
    }

    fn raw(&mut self, token: Token) -> Result2<Raw<'_>> {
        Ok(match token {
            Token::Bool => Raw::Bool(self.scanner.bool()?),
            Token::Number => Raw::Number(self.scanner.number()?.into()),
            _ => Raw::String(self.scanner.string()?),
        })
    }

    fn object(&mut self, object: &ObjectShape, custom: bool, path: &Path<'_>) -> Result2<Value> {
        self.descend()?;
        let custom = custom && object.name.is_empty();
        let mut out = Map::new();
        let mut seen = Seen::default();
        let (mut hint, mut first) = (0, true);
        while let Some(key) = self.scanner.next_key(first)? {
            first = false;
            if let Some(index) = find(&object.fields, &key, hint) {
                hint = index + 1;
                let field = &object.fields[index];
                let path = path.field(&object.name, &field.name);
                if seen.again(index) {
                    self.findings.duplicate(&path);
                }
                if let Some(value) = self.value(&field.schema, custom, &path)? {
                    out.insert(key.into_owned(), value);
                }
                continue;
            }
            let path = path.key(&key);
            let kept = match &object.additional {
                Some(schema) => self.value(schema, custom, &path)?,
                None if object.preserve_unknown || is_type_meta(object, &key) => {
                    Some(self.any(custom, &path)?)
                }
                None => {
                    self.findings.unknown(&path, custom);
                    if custom {
                        // Duplicates inside are duplicates all the same.
                        self.any(true, &path)?;
                    } else {
                        self.skip()?;
                    }
                    None
                }
            };
            if let Some(value) = kept
                && out.insert(key.clone().into_owned(), value).is_some()
            {
                self.findings.duplicate(&path);
            }
        }
        self.depth -= 1;
        Ok(Value::Object(out))
    }

    fn map(&mut self, map: &MapShape, custom: bool, path: &Path<'_>) -> Result2<Value> {
        self.descend()?;
        let mut out = Map::new();
        let mut first = true;
        while let Some(key) = self.scanner.next_key(first)? {
            first = false;
            let path = path.key(&key);
            let value = match self.value(&map.value, custom, &path)? {
                Some(value) => value,
                None => crate::canonical::zero(&map.value),
            };
            if out.contains_key(&*key) {
                self.findings.duplicate(&path);
            }
            out.insert(key.into_owned(), value);
        }
        self.depth -= 1;
        Ok(Value::Object(out))
    }

    fn list(&mut self, list: &ListShape, custom: bool, path: &Path<'_>) -> Result2<Value> {
        self.descend()?;
        let mut out = Vec::new();
        while self.scanner.next_element(out.is_empty())? {
            let path = path.index(out.len());
            let value = match self.value(&list.item, custom, &path)? {
                Some(value) => value,
                None => crate::canonical::zero(&list.item),
            };
            out.push(value);
        }
        self.depth -= 1;
        Ok(Value::Array(out))
    }

    /// Any JSON, kept as it is; `strict` looks for duplicate keys.
    fn any(&mut self, strict: bool, path: &Path<'_>) -> Result2<Value> {
        let token = self.scanner.peek()?;
        match token {
            Token::Null => self.scanner.null().map(|()| Value::Null),
            Token::Bool => self.scanner.bool().map(Value::Bool),
            Token::String => self.scanner.string().map(|text| Value::String(text.into_owned())),
            Token::Number => {
                let text = self.scanner.number()?;
                if let Some(number) = scalar::number(text) {
                    return Ok(number);
                }
                self.findings.fail(path.type_error(&format!("number {text}"), "float64"));
                Ok(Value::Null)
            }
            Token::Array => {
                self.descend()?;
                let mut out = Vec::new();
                while self.scanner.next_element(out.is_empty())? {
                    let value = self.any(strict, &path.index(out.len()))?;
                    out.push(value);
                }
                self.depth -= 1;
                Ok(Value::Array(out))
            }
            Token::Object => {
                self.descend()?;
                let mut out = Map::new();
                let mut first = true;
                while let Some(key) = self.scanner.next_key(first)? {
                    first = false;
                    let path = path.key(&key);
                    let value = self.any(strict, &path)?;
                    if strict && out.contains_key(&*key) {
                        self.findings.duplicate(&path);
                    }
                    out.insert(key.into_owned(), value);
                }
                self.depth -= 1;
                Ok(Value::Object(out))
            }
        }
    }

    /// Passes over a value.
    fn skip(&mut self) -> Result2<()> {
        match self.scanner.peek()? {
            Token::Null => self.scanner.null(),
            Token::Bool => self.scanner.bool().map(|_| ()),
            Token::Number => self.scanner.number().map(|_| ()),
            Token::String => self.scanner.string().map(|_| ()),
            Token::Array => {
                self.descend()?;
                let mut first = true;
                while self.scanner.next_element(first)? {
                    first = false;
                    self.skip()?;
                }
                self.depth -= 1;
                Ok(())
            }
            Token::Object => {
                self.descend()?;
                let mut first = true;
                while self.scanner.next_key(first)?.is_some() {
                    first = false;
                    self.skip()?;
                }
                self.depth -= 1;
                Ok(())
            }
        }
    }

    /// Enters an array or object.
    fn descend(&mut self) -> Result2<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(SyntaxError("exceeded max depth".to_owned()));
        }
        self.scanner.open();
        Ok(())
    }
}

/// Embedded resources have a type, whatever their schema says.
fn is_type_meta(object: &ObjectShape, key: &str) -> bool {
    object.embedded_resource && matches!(key, "apiVersion" | "kind" | "metadata")
}

/// The field of that name; writers keep to the schema's order, so the search starts where the last one ended.
pub(super) fn find(fields: &[Field], name: &str, hint: usize) -> Option<usize> {
    let hint = hint.min(fields.len());
    let position = |part: &[Field]| part.iter().position(|field| &*field.name == name);
    position(&fields[hint..]).map(|index| index + hint).or_else(|| position(&fields[..hint]))
}

/// Which fields have been there.
#[derive(Default)]
struct Seen {
    low: u128,
    high: Vec<usize>,
}

impl Seen {
    fn again(&mut self, index: usize) -> bool {
        if index < 128 {
            let bit = 1 << index;
            let again = self.low & bit != 0;
            self.low |= bit;
            return again;
        }
        let again = self.high.contains(&index);
        self.high.push(index);
        again
    }
}
