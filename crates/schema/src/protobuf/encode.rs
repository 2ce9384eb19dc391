//! From JSON values to protobuf.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::wire::{FIXED64, VARINT, put_bytes, put_message, put_tag, put_varint};
use super::{MAX_DEPTH, ProtobufError, wire_fields};
use crate::types::{AnyKind, Field, ListShape, ObjectShape, Schema, Shape};

/// Appends the message of a canonical object, without the envelope.
pub fn encode(value: &Value, schema: &Schema, out: &mut Vec<u8>) -> Result<(), ProtobufError> {
    let object = schema.object().ok_or_else(|| ProtobufError::NoForm(String::new()))?;
    Encoder { out, depth: 0 }.object(value.as_object().unwrap_or(&Map::new()), object, schema)
}

struct Encoder<'a> {
    out: &'a mut Vec<u8>,
    depth: usize,
}

impl Encoder<'_> {
    /// `schema` is the schema of `object`: CRD schemas refer to the one they stand in.
    fn object(
        &mut self,
        value: &Map<String, Value>,
        object: &ObjectShape,
        schema: &Schema,
    ) -> Result<(), ProtobufError> {
        if object.fields.iter().all(|field| field.via.is_empty()) {
            return wire_fields(object).try_for_each(|field| self.field(value, field, schema));
        }
        let fields: Vec<&Field> = wire_fields(object).collect();
        self.nested(value, &fields, 0, schema)
    }

    /// Fields at one level of embedded messages; those of one embedded message stand together.
    fn nested(
        &mut self,
        value: &Map<String, Value>,
        fields: &[&Field],
        level: usize,
        schema: &Schema,
    ) -> Result<(), ProtobufError> {
        let mut rest = fields;
        while let Some(field) = rest.first() {
            let Some(number) = field.via.get(level).copied() else {
                self.field(value, field, schema)?;
                rest = &rest[1..];
                continue;
            };
            let together = rest.iter().take_while(|field| field.via.get(level) == Some(&number)).count();
            let (embedded, after) = rest.split_at(together);
            self.message(number, |encoder| encoder.nested(value, embedded, level + 1, schema))?;
            rest = after;
        }
        Ok(())
    }

    fn field(
        &mut self,
        object: &Map<String, Value>,
        field: &Field,
        parent: &Schema,
    ) -> Result<(), ProtobufError> {
        match object.get(&*field.name) {
            Some(value) if !value.is_null() => self.value(field.number, value, &field.schema, parent),
            _ if field.pointer => Ok(()),
            _ => self.zero(field.number, &field.schema),
        }
        .map_err(|error| match error {
            ProtobufError::NoForm(path) if path.is_empty() => ProtobufError::NoForm(field.name.to_string()),
            ProtobufError::NoForm(path) => ProtobufError::NoForm(format!("{}.{path}", field.name)),
            other => other,
        })
    }

    fn message(
        &mut self,
        number: u32,
        body: impl FnOnce(&mut Encoder<'_>) -> Result<(), ProtobufError>,
    ) -> Result<(), ProtobufError> {
        let depth = self.depth + 1;
        if depth > MAX_DEPTH {
            return Err(ProtobufError::TooDeep);
        }
        put_message(number, self.out, |out| body(&mut Encoder { out, depth }))
    }

    fn varint(&mut self, number: u32, value: u64) -> Result<(), ProtobufError> {
        put_tag(number, VARINT, self.out);
        put_varint(value, self.out);
        Ok(())
    }

    fn bytes(&mut self, number: u32, bytes: &[u8]) -> Result<(), ProtobufError> {
        put_bytes(number, bytes, self.out);
        Ok(())
    }

    fn double(&mut self, number: u32, value: f64) -> Result<(), ProtobufError> {
        put_tag(number, FIXED64, self.out);
        self.out.extend_from_slice(&value.to_le_bytes());
        Ok(())
    }

    /// What a Go field that is no pointer writes when it was never set.
    fn zero(&mut self, number: u32, schema: &Schema) -> Result<(), ProtobufError> {
        match &schema.shape {
            Shape::Bool | Shape::Int32 | Shape::Int64 | Shape::Uint32 | Shape::Uint64 => {
                self.varint(number, 0)
            }
            Shape::Float64 => self.double(number, 0.0),
            Shape::String => self.bytes(number, b""),
            Shape::Quantity => self.message(number, |encoder| encoder.bytes(1, b"0")),
            Shape::IntOrString => self.int_or_string(number, 0, 0, ""),
            Shape::Time | Shape::MicroTime | Shape::Any(AnyKind::RawExtension | AnyKind::Json) => {
                self.bytes(number, b"")
            }
            Shape::Duration => self.message(number, |encoder| encoder.varint(1, 0)),
            Shape::Object(object) => {
                self.message(number, |encoder| encoder.object(&Map::new(), object, schema))
            }
            Shape::Bytes | Shape::Any(_) | Shape::Map(_) | Shape::List(_) => Ok(()),
        }
    }

    fn value(
        &mut self,
        number: u32,
        value: &Value,
        schema: &Schema,
        parent: &Schema,
    ) -> Result<(), ProtobufError> {
        let no_form = || ProtobufError::NoForm(String::new());
        match &schema.shape {
            Shape::Bool => self.varint(number, u64::from(value.as_bool().ok_or_else(no_form)?)),
            Shape::Int32 | Shape::Int64 => {
                self.varint(number, value.as_i64().ok_or_else(no_form)?.cast_unsigned())
            }
            Shape::Uint32 | Shape::Uint64 => self.varint(number, value.as_u64().ok_or_else(no_form)?),
            Shape::Float64 => self.double(number, value.as_f64().ok_or_else(no_form)?),
            Shape::String => self.bytes(number, value.as_str().ok_or_else(no_form)?.as_bytes()),
            Shape::Bytes => {
                let bytes = value.as_str().and_then(|text| STANDARD.decode(text).ok());
                self.bytes(number, &bytes.ok_or_else(no_form)?)
            }
            Shape::Quantity => {
                let text = value.as_str().ok_or_else(no_form)?;
                self.message(number, |encoder| encoder.bytes(1, text.as_bytes()))
            }
            Shape::IntOrString => match (value.as_i64(), value.as_str()) {
                (Some(int), _) => self.int_or_string(number, 0, int, ""),
                (None, Some(text)) => self.int_or_string(number, 1, 0, text),
                (None, None) => Err(no_form()),
            },
            Shape::Time => self.time(number, value, meta::time::parse),
            Shape::MicroTime => self.time(number, value, meta::time::parse_micro),
            Shape::Duration => {
                let text = value.as_str().ok_or_else(no_form)?;
                let duration = meta::time::parse_duration(text).map_err(|_| no_form())?;
                self.message(number, |encoder| encoder.varint(1, duration.0.cast_unsigned()))
            }
            Shape::Any(kind) => self.any(number, value, *kind, parent),
            Shape::Object(object) => {
                let value = value.as_object().ok_or_else(no_form)?;
                self.message(number, |encoder| encoder.object(value, object, schema))
            }
            Shape::Map(map) => {
                for (key, value) in value.as_object().ok_or_else(no_form)? {
                    self.message(number, |encoder| {
                        encoder.bytes(1, key.as_bytes())?;
                        encoder.item(2, value, &map.value, parent)
                    })?;
                }
                Ok(())
            }
            Shape::List(list) => self.list(number, value, list, parent),
        }
    }

    /// An item of a list or map: never a pointer, so null is its zero.
    fn item(
        &mut self,
        number: u32,
        value: &Value,
        schema: &Schema,
        parent: &Schema,
    ) -> Result<(), ProtobufError> {
        match (value, &schema.shape) {
            (Value::Null, Shape::List(list)) if list.wrapped => self.bytes(number, b""),
            (Value::Null, Shape::Any(AnyKind::SchemaOrStringArray)) => self.bytes(number, b""),
            (Value::Null, Shape::Bytes) => Ok(()),
            (Value::Null, _) => self.zero(number, schema),
            _ => self.value(number, value, schema, parent),
        }
    }

    fn list(
        &mut self,
        number: u32,
        value: &Value,
        list: &ListShape,
        parent: &Schema,
    ) -> Result<(), ProtobufError> {
        let items = value.as_array().ok_or_else(|| ProtobufError::NoForm(String::new()))?;
        if list.wrapped {
            return self.message(number, |encoder| {
                items.iter().try_for_each(|item| encoder.item(1, item, &list.item, parent))
            });
        }
        items.iter().try_for_each(|item| self.item(number, item, &list.item, parent))
    }

    fn int_or_string(&mut self, number: u32, kind: u64, int: i64, text: &str) -> Result<(), ProtobufError> {
        self.message(number, |encoder| {
            encoder.varint(1, kind)?;
            encoder.varint(2, int.cast_unsigned())?;
            encoder.bytes(3, text.as_bytes())
        })
    }

    fn time(
        &mut self,
        number: u32,
        value: &Value,
        parse: fn(&str) -> Result<jiff::Timestamp, meta::time::TimeError>,
    ) -> Result<(), ProtobufError> {
        let time = value.as_str().and_then(|text| parse(text).ok()).ok_or(ProtobufError::Time)?;
        if meta::time::is_zero(time) {
            return self.bytes(number, b"");
        }
        // Times before 1970 count back from the second above; protobuf counts up from the one below.
        let (mut seconds, mut nanos) = (time.as_second(), i64::from(time.subsec_nanosecond()));
        if nanos < 0 {
            (seconds, nanos) = (seconds - 1, nanos + 1_000_000_000);
        }
        self.message(number, |encoder| {
            encoder.varint(1, seconds.cast_unsigned())?;
            encoder.varint(2, nanos.cast_unsigned())
        })
    }

    fn any(
        &mut self,
        number: u32,
        value: &Value,
        kind: AnyKind,
        parent: &Schema,
    ) -> Result<(), ProtobufError> {
        let props = |encoder: &mut Encoder<'_>, number| encoder.value(number, value, parent, parent);
        match (kind, value) {
            (AnyKind::RawExtension | AnyKind::Json, _) => {
                let raw = serde_json::to_vec(value).map_err(ProtobufError::Json)?;
                self.message(number, |encoder| encoder.bytes(1, &raw))
            }
            (AnyKind::Unknown, _) => Ok(()),
            (AnyKind::SchemaOrBool, Value::Bool(allows)) => {
                self.message(number, |encoder| encoder.varint(1, u64::from(*allows)))
            }
            (AnyKind::SchemaOrBool, _) => self.message(number, |encoder| {
                encoder.varint(1, 1)?;
                props(encoder, 2)
            }),
            (AnyKind::SchemaOrArray | AnyKind::SchemaOrStringArray, Value::Array(items)) => {
                let text = Schema::of(Shape::String);
                let item = if kind == AnyKind::SchemaOrArray { parent } else { &text };
                self.message(number, |encoder| {
                    items.iter().try_for_each(|value| encoder.item(2, value, item, parent))
                })
            }
            (AnyKind::SchemaOrArray | AnyKind::SchemaOrStringArray, _) => {
                self.message(number, |encoder| props(encoder, 1))
            }
        }
    }
}
