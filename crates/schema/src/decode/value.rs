//! A parsed value to canonical types, in place.

use serde_json::{Map, Value};

use super::path::Path;
use super::scalar::{self, Raw};
use super::{DecodeError, Decoded, Findings, MAX_DEPTH, Strictness};
use crate::types::{ListShape, MapShape, ObjectShape, Schema, Shape};

pub(super) fn decode(
    mut value: Value,
    schema: &Schema,
    strictness: Strictness,
    problems: Vec<String>,
) -> Result<Decoded, DecodeError> {
    let mut walk = Walk { findings: Findings::new(strictness, problems), depth: 0 };
    let kept = walk.value(&mut value, schema, schema.is_custom(), &Path::ROOT)?;
    walk.findings.finish(if kept { value } else { Value::Null })
}

pub(super) fn prune(mut value: Value, schema: &Schema) -> Result<Decoded, DecodeError> {
    let mut walk = Walk { findings: Findings::new(Strictness::Warn, Vec::new()), depth: 0 };
    walk.value(&mut value, schema, true, &Path::ROOT)?;
    walk.findings.finish(value)
}

struct Walk {
    findings: Findings,
    depth: usize,
}

impl Walk {
    /// False when nothing is to be kept.
    fn value(
        &mut self,
        value: &mut Value,
        schema: &Schema,
        custom: bool,
        path: &Path<'_>,
    ) -> Result<bool, DecodeError> {
        match (&mut *value, &schema.shape) {
            (Value::Object(object), Shape::Object(shape)) => self.object(object, shape, custom, path),
            (Value::Object(object), Shape::Map(shape)) => self.map(object, shape, custom, path),
            (Value::Array(items), Shape::List(shape)) => self.list(items, shape, custom, path),
            (value, Shape::Any(_)) => Ok(custom || !value.is_null()),
            _ if custom => Ok(true),
            (Value::Null, _) => Ok(false),
            (Value::Bool(_), Shape::Bool) | (Value::String(_), Shape::String) => Ok(true),
            (Value::Array(_) | Value::Object(_), _) => {
                let found = if value.is_array() { "array" } else { "object" };
                self.findings.fail(match schema.shape {
                    Shape::Quantity => meta::quantity::QuantityError::Format.to_string(),
                    _ => path.type_error(found, &scalar::go_type(schema)),
                });
                Ok(false)
            }
            (value, _) => {
                let raw = match std::mem::take(value) {
                    Value::Bool(value) => Raw::Bool(value),
                    Value::String(text) => Raw::String(text.into()),
                    number => Raw::Number(number.to_string().into()),
                };
                match scalar::canonical(raw, schema, path) {
                    Ok(canonical) => *value = canonical,
                    Err(error) => self.findings.fail(error),
                }
                Ok(!value.is_null())
            }
        }
    }

    fn object(
        &mut self,
        object: &mut Map<String, Value>,
        shape: &ObjectShape,
        custom: bool,
        path: &Path<'_>,
    ) -> Result<bool, DecodeError> {
        self.descend()?;
        let custom = custom && shape.name.is_empty();
        let mut failed = None;
        object.retain(|key, value| {
            let kept = match (shape.field(key), &shape.additional) {
                (Some(field), _) => {
                    self.value(value, &field.schema, custom, &path.field(&shape.name, &field.name))
                }
                (None, Some(schema)) => self.value(value, schema, custom, &path.key(key)),
                (None, None) if shape.preserve_unknown || is_type_meta(shape, key) => Ok(true),
                (None, None) => {
                    self.findings.unknown(&path.key(key), custom);
                    Ok(false)
                }
            };
            kept.unwrap_or_else(|error| {
                failed.get_or_insert(error);
                false
            })
        });
        self.depth -= 1;
        failed.map_or(Ok(true), Err)
    }

    fn map(
        &mut self,
        object: &mut Map<String, Value>,
        shape: &MapShape,
        custom: bool,
        path: &Path<'_>,
    ) -> Result<bool, DecodeError> {
        self.descend()?;
        for (key, value) in object.iter_mut() {
            if !self.value(value, &shape.value, custom, &path.key(key))? {
                *value = crate::canonical::zero(&shape.value);
            }
        }
        self.depth -= 1;
        Ok(true)
    }

    fn list(
        &mut self,
        items: &mut [Value],
        shape: &ListShape,
        custom: bool,
        path: &Path<'_>,
    ) -> Result<bool, DecodeError> {
        self.descend()?;
        for (index, value) in items.iter_mut().enumerate() {
            if !self.value(value, &shape.item, custom, &path.index(index))? {
                *value = crate::canonical::zero(&shape.item);
            }
        }
        self.depth -= 1;
        Ok(true)
    }

    fn descend(&mut self) -> Result<(), DecodeError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(DecodeError::Syntax("exceeded max depth".to_owned()));
        }
        Ok(())
    }
}

fn is_type_meta(object: &ObjectShape, key: &str) -> bool {
    object.embedded_resource && matches!(key, "apiVersion" | "kind" | "metadata")
}
