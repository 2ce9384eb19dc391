//! Scalars in canonical form, whichever form they arrive in.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Number, Value};

use super::path::Path;
use crate::types::{Schema, Shape};

/// A scalar as it came.
pub(super) enum Raw<'a> {
    Bool(bool),
    /// The number's text.
    Number(Cow<'a, str>),
    String(Cow<'a, str>),
}

impl Raw<'_> {
    fn found(&self) -> &'static str {
        match self {
            Self::Bool(_) => "bool",
            Self::Number(_) => "number",
            Self::String(_) => "string",
        }
    }
}

/// The canonical value of a built-in kind's scalar; the error is upstream's text.
pub(super) fn canonical(raw: Raw<'_>, schema: &Schema, path: &Path<'_>) -> Result<Value, String> {
    match (&schema.shape, raw) {
        (Shape::Bool, Raw::Bool(value)) => Ok(Value::Bool(value)),
        (Shape::String, Raw::String(text)) => Ok(Value::String(text.into_owned())),
        (Shape::Int32 | Shape::IntOrString, Raw::Number(text)) => match text.parse::<i32>() {
            Ok(number) => Ok(number.into()),
            Err(_) => Err(path.type_error(&format!("number {text}"), "int32")),
        },
        (Shape::Int64, Raw::Number(text)) => match text.parse::<i64>() {
            Ok(number) => Ok(number.into()),
            Err(_) => Err(path.type_error(&format!("number {text}"), "int64")),
        },
        (Shape::Uint32, Raw::Number(text)) => match text.parse::<u32>() {
            Ok(number) => Ok(number.into()),
            Err(_) => Err(path.type_error(&format!("number {text}"), "uint32")),
        },
        (Shape::Uint64, Raw::Number(text)) => match text.parse::<u64>() {
            Ok(number) => Ok(number.into()),
            Err(_) => Err(path.type_error(&format!("number {text}"), "uint64")),
        },
        (Shape::Float64, Raw::Number(text)) => {
            number(&text).ok_or_else(|| path.type_error(&format!("number {text}"), "float64"))
        }
        (Shape::IntOrString, Raw::String(text)) => Ok(Value::String(text.into_owned())),
        (Shape::Quantity, Raw::String(text)) => quantity(text),
        (Shape::Quantity, Raw::Number(text)) => quantity(text),
        (Shape::Quantity, Raw::Bool(value)) => quantity(Cow::Owned(value.to_string())),
        (Shape::Bytes, Raw::String(text)) => bytes(text),
        (Shape::Time, Raw::String(text)) => time(text, false),
        (Shape::MicroTime, Raw::String(text)) => time(text, true),
        (Shape::Duration, Raw::String(text)) => match meta::time::parse_duration(&text) {
            Ok(duration) => Ok(Value::String(duration.to_string())),
            Err(error) => Err(error.to_string()),
        },
        (_, raw) => Err(path.type_error(raw.found(), &go_type(schema))),
    }
}

/// A JSON number as Go keeps it: integers as integers, a whole float as the integer it prints as. `None` when it
/// is beyond a float.
pub(super) fn number(text: &str) -> Option<Value> {
    if let Ok(number) = text.parse::<i64>() {
        return Some(number.into());
    }
    let float: f64 = text.parse().ok()?;
    // Beyond 2^53 the printed digits are the float's shortest ones, which the writer knows to make.
    if float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0 {
        #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
        return Some((float as i64).into());
    }
    Number::from_f64(float).map(Value::Number)
}

fn quantity(text: Cow<'_, str>) -> Result<Value, String> {
    match meta::quantity::canonicalize(text.trim()) {
        Ok(Some(canonical)) => Ok(Value::String(canonical)),
        Ok(None) => {
            let trimmed = text.trim().len() == text.len();
            Ok(Value::String(if trimmed { text.into_owned() } else { text.trim().to_owned() }))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// The zero time is null, as Go prints it.
fn time(text: Cow<'_, str>, micro: bool) -> Result<Value, String> {
    if meta::time::is_canonical(&text, micro) {
        return Ok(Value::String(text.into_owned()));
    }
    let parsed = if micro { meta::time::parse_micro(&text) } else { meta::time::parse(&text) };
    match parsed {
        Ok(time) if meta::time::is_zero(time) => Ok(Value::Null),
        Ok(time) if micro => Ok(Value::String(meta::time::format_micro(time))),
        Ok(time) => Ok(Value::String(meta::time::format(time))),
        Err(error) => Err(error.to_string()),
    }
}

fn bytes(text: Cow<'_, str>) -> Result<Value, String> {
    if is_canonical_base64(text.as_bytes()) {
        return Ok(Value::String(text.into_owned()));
    }
    let compact: Vec<u8> = text.bytes().filter(|b| !matches!(b, b'\r' | b'\n')).collect();
    let lenient = base64::engine::GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
    let engine = base64::engine::GeneralPurpose::new(&base64::alphabet::STANDARD, lenient);
    match engine.decode(&compact) {
        Ok(data) => Ok(Value::String(STANDARD.encode(data))),
        Err(_) => Err(format!("illegal base64 data at input byte {}", illegal_offset(text.as_bytes()))),
    }
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/'
}

/// True for padded standard base64 that encodes back to itself.
fn is_canonical_base64(text: &[u8]) -> bool {
    if !text.len().is_multiple_of(4) {
        return false;
    }
    let body = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    // Bits that the padding cuts off must be zero; the letters for which they are.
    let clean = |byte: &u8| match text.len() - body.len() {
        2 => b"AQgw".contains(byte),
        1 => b"AEIMQUYcgkosw048".contains(byte),
        _ => true,
    };
    body.iter().all(|byte| is_base64(*byte)) && body.last().is_none_or(clean)
}

/// Where Go's decoder gives up.
fn illegal_offset(text: &[u8]) -> usize {
    let mut used = 0;
    for (index, byte) in text.iter().enumerate() {
        match byte {
            b'\r' | b'\n' => {}
            byte if is_base64(*byte) => used += 1,
            b'=' if used % 4 == 2 && text.get(index + 1) == Some(&b'=') => return index + 2,
            b'=' if used % 4 == 3 => return index + 1,
            _ => return index,
        }
    }
    text.len() - used % 4
}

/// The Go type that upstream's errors name.
pub(super) fn go_type(schema: &Schema) -> String {
    match &schema.shape {
        Shape::Bool => "bool".to_owned(),
        Shape::Int32 | Shape::IntOrString => "int32".to_owned(),
        Shape::Int64 => "int64".to_owned(),
        Shape::Uint32 => "uint32".to_owned(),
        Shape::Uint64 => "uint64".to_owned(),
        Shape::Float64 => "float64".to_owned(),
        Shape::String | Shape::Time | Shape::MicroTime | Shape::Duration => "string".to_owned(),
        Shape::Bytes => "[]uint8".to_owned(),
        Shape::Quantity => "resource.Quantity".to_owned(),
        Shape::Any(_) => "interface {}".to_owned(),
        Shape::Object(object) => {
            let mut parts = object.name.rsplit('.');
            match (parts.next(), parts.next()) {
                (Some(kind), Some(package)) => format!("{package}.{kind}"),
                _ => "map[string]interface {}".to_owned(),
            }
        }
        Shape::Map(map) => format!("map[string]{}", go_type(&map.value)),
        Shape::List(list) => format!("[]{}", go_type(&list.item)),
    }
}
