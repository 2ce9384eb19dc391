//! From protobuf to JSON values.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::wire::{BYTES, FIXED64, Reader, VARINT};
use super::{MAX_DEPTH, MAX_VALUES, ProtobufError};
use crate::canonical;
use crate::types::{AnyKind, Field, ObjectShape, Schema, Shape};

/// Reads the message of an object, without the envelope, into canonical form.
pub fn decode(bytes: &[u8], schema: &Schema) -> Result<Value, ProtobufError> {
    let mut value = Value::Object(Map::new());
    Decoder { values: 0, depth: 0 }.message(Reader::new(bytes), &mut value, schema)?;
    canonical::normalize(&mut value, schema);
    Ok(value)
}

struct Decoder {
    values: usize,
    depth: usize,
}

impl Decoder {
    /// Merges a message into an object, as protobuf does when a message comes in pieces.
    fn message(
        &mut self,
        reader: Reader<'_>,
        value: &mut Value,
        schema: &Schema,
    ) -> Result<(), ProtobufError> {
        let object = schema.object().ok_or_else(|| ProtobufError::NoForm(String::new()))?;
        if !value.is_object() {
            *value = Value::Object(Map::new());
        }
        match value.as_object_mut() {
            Some(map) => self.fields(reader, map, object, &[], schema),
            None => Ok(()),
        }
    }

    /// The fields of a message, or of a message embedded at `via`, which JSON flattens.
    fn fields(
        &mut self,
        mut reader: Reader<'_>,
        map: &mut Map<String, Value>,
        object: &ObjectShape,
        via: &[u32],
        schema: &Schema,
    ) -> Result<(), ProtobufError> {
        self.enter()?;
        while let Some((number, wire)) = reader.tag()? {
            let own = |field: &&Field| field.number == number && *field.via == *via;
            if let Some(field) = object.fields.iter().find(own) {
                let slot = map.entry(field.name.as_str()).or_insert(Value::Null);
                self.field(&mut reader, wire, slot, field, schema)?;
                continue;
            }
            let path: Vec<u32> = via.iter().copied().chain([number]).collect();
            if wire == BYTES && object.fields.iter().any(|field| field.via.starts_with(&path)) {
                self.fields(Reader::new(reader.bytes()?), map, object, &path, schema)?;
            } else {
                reader.skip(wire)?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn field(
        &mut self,
        reader: &mut Reader<'_>,
        wire: u8,
        slot: &mut Value,
        field: &Field,
        parent: &Schema,
    ) -> Result<(), ProtobufError> {
        self.value(reader, wire, slot, &field.schema, parent).map_err(|error| match error {
            ProtobufError::WireType { field: path, found } if path.is_empty() => {
                ProtobufError::WireType { field: field.name.to_string(), found }
            }
            other => other,
        })
    }

    fn value(
        &mut self,
        reader: &mut Reader<'_>,
        wire: u8,
        slot: &mut Value,
        schema: &Schema,
        parent: &Schema,
    ) -> Result<(), ProtobufError> {
        self.count()?;
        match &schema.shape {
            Shape::List(list) if list.wrapped => {
                *slot = Value::Array(self.wrapped(reader, wire, &list.item, parent)?);
            }
            Shape::List(list) => {
                if !slot.is_array() {
                    *slot = Value::Array(Vec::new());
                }
                if let Some(items) = slot.as_array_mut() {
                    self.items(reader, wire, items, &list.item, parent)?;
                }
            }
            Shape::Map(map) => {
                if !slot.is_object() {
                    *slot = Value::Object(Map::new());
                }
                if let Some(entries) = slot.as_object_mut() {
                    self.entry(message(reader, wire)?, entries, &map.value, parent)?;
                }
            }
            Shape::Object(_) => self.message(message(reader, wire)?, slot, schema)?,
            Shape::Any(kind) => *slot = self.any(message(reader, wire)?, *kind, parent)?,
            _ => *slot = scalar(reader, wire, schema)?,
        }
        Ok(())
    }

    /// One more item, or several packed ones.
    fn items(
        &mut self,
        reader: &mut Reader<'_>,
        wire: u8,
        items: &mut Vec<Value>,
        item: &Schema,
        parent: &Schema,
    ) -> Result<(), ProtobufError> {
        let expected = match item.shape {
            Shape::Bool | Shape::Int32 | Shape::Int64 | Shape::Uint32 | Shape::Uint64 => VARINT,
            Shape::Float64 => FIXED64,
            _ => BYTES,
        };
        if wire == BYTES && expected != BYTES {
            let mut packed = Reader::new(reader.bytes()?);
            while !packed.is_empty() {
                self.count()?;
                items.push(scalar(&mut packed, expected, item)?);
            }
            return Ok(());
        }
        let mut value = Value::Null;
        self.value(reader, wire, &mut value, item, parent)?;
        items.push(value);
        Ok(())
    }

    fn wrapped(
        &mut self,
        reader: &mut Reader<'_>,
        wire: u8,
        item: &Schema,
        parent: &Schema,
    ) -> Result<Vec<Value>, ProtobufError> {
        let mut inner = message(reader, wire)?;
        let mut items = Vec::new();
        while let Some((number, wire)) = inner.tag()? {
            match number {
                1 => self.items(&mut inner, wire, &mut items, item, parent)?,
                _ => inner.skip(wire)?,
            }
        }
        Ok(items)
    }

    fn entry(
        &mut self,
        mut reader: Reader<'_>,
        entries: &mut Map<String, Value>,
        schema: &Schema,
        parent: &Schema,
    ) -> Result<(), ProtobufError> {
        let mut key = String::new();
        let mut value = Value::Null;
        while let Some((number, wire)) = reader.tag()? {
            match (number, wire) {
                (1, BYTES) => reader.string()?.clone_into(&mut key),
                (2, _) => self.value(&mut reader, wire, &mut value, schema, parent)?,
                _ => reader.skip(wire)?,
            }
        }
        if value.is_null() {
            value = canonical::zero(schema);
        }
        entries.insert(key, value);
        Ok(())
    }

    fn any(
        &mut self,
        mut reader: Reader<'_>,
        kind: AnyKind,
        parent: &Schema,
    ) -> Result<Value, ProtobufError> {
        self.enter()?;
        let mut allows = Value::Bool(false);
        let mut single = Value::Null;
        let mut several = Vec::new();
        while let Some((number, wire)) = reader.tag()? {
            match (kind, number, wire) {
                (AnyKind::RawExtension | AnyKind::Json, 1, BYTES) => {
                    let raw = reader.bytes()?;
                    if !raw.is_empty() {
                        single = serde_json::from_slice(raw).map_err(ProtobufError::Json)?;
                    }
                }
                (AnyKind::SchemaOrBool, 1, VARINT) => allows = Value::Bool(reader.varint()? != 0),
                (AnyKind::SchemaOrBool, 2, BYTES)
                | (AnyKind::SchemaOrArray | AnyKind::SchemaOrStringArray, 1, BYTES) => {
                    self.count()?;
                    self.message(Reader::new(reader.bytes()?), &mut single, parent)?;
                }
                (AnyKind::SchemaOrArray, 2, BYTES) => {
                    self.count()?;
                    let mut value = Value::Null;
                    self.message(Reader::new(reader.bytes()?), &mut value, parent)?;
                    several.push(value);
                }
                (AnyKind::SchemaOrStringArray, 2, BYTES) => {
                    self.count()?;
                    several.push(Value::from(reader.string()?));
                }
                _ => reader.skip(wire)?,
            }
        }
        self.depth -= 1;
        Ok(match kind {
            AnyKind::SchemaOrBool if single.is_null() => allows,
            _ if !several.is_empty() => Value::Array(several),
            _ => single,
        })
    }

    fn enter(&mut self) -> Result<(), ProtobufError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(ProtobufError::TooDeep) } else { Ok(()) }
    }

    fn count(&mut self) -> Result<(), ProtobufError> {
        self.values += 1;
        if self.values > MAX_VALUES { Err(ProtobufError::TooManyValues) } else { Ok(()) }
    }
}

fn message<'a>(reader: &mut Reader<'a>, wire: u8) -> Result<Reader<'a>, ProtobufError> {
    expect(wire, BYTES)?;
    Ok(Reader::new(reader.bytes()?))
}

fn expect(wire: u8, expected: u8) -> Result<(), ProtobufError> {
    if wire == expected {
        return Ok(());
    }
    Err(ProtobufError::WireType { field: String::new(), found: wire })
}

fn scalar(reader: &mut Reader<'_>, wire: u8, schema: &Schema) -> Result<Value, ProtobufError> {
    expect(
        wire,
        match schema.shape {
            Shape::Bool | Shape::Int32 | Shape::Int64 | Shape::Uint32 | Shape::Uint64 => VARINT,
            Shape::Float64 => FIXED64,
            _ => BYTES,
        },
    )?;
    Ok(match schema.shape {
        Shape::Bool => Value::Bool(reader.varint()? != 0),
        Shape::Int32 => Value::from(low_half(reader.varint()?).cast_signed()),
        Shape::Int64 => Value::from(reader.varint()?.cast_signed()),
        Shape::Uint32 => Value::from(low_half(reader.varint()?)),
        Shape::Uint64 => Value::from(reader.varint()?),
        Shape::Float64 => number(f64::from_bits(reader.fixed64()?)),
        Shape::String => Value::from(reader.string()?),
        Shape::Bytes => Value::from(STANDARD.encode(reader.bytes()?)),
        Shape::Quantity => quantity(Reader::new(reader.bytes()?))?,
        Shape::IntOrString => int_or_string(Reader::new(reader.bytes()?))?,
        Shape::Time => time(reader.bytes()?, meta::time::format)?,
        Shape::MicroTime => time(reader.bytes()?, meta::time::format_micro)?,
        Shape::Duration => duration(Reader::new(reader.bytes()?))?,
        Shape::Any(_) | Shape::Object(_) | Shape::Map(_) | Shape::List(_) => Value::Null,
    })
}

/// As Go's decoder narrows: the low 32 bits.
fn low_half(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Integral doubles print without a fraction, as in Go.
fn number(value: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "integral and within 53 bits")]
        return Value::from(value as i64);
    }
    Value::from(value)
}

fn quantity(mut reader: Reader<'_>) -> Result<Value, ProtobufError> {
    let mut text = "";
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1, BYTES) => text = reader.string()?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(Value::from(if text.is_empty() { "0" } else { text }))
}

fn int_or_string(mut reader: Reader<'_>) -> Result<Value, ProtobufError> {
    let (mut kind, mut int, mut text) = (0, 0, "");
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1, VARINT) => kind = reader.varint()?,
            (2, VARINT) => int = low_half(reader.varint()?).cast_signed(),
            (3, BYTES) => text = reader.string()?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(if kind == 1 { Value::from(text) } else { Value::from(int) })
}

/// An empty message is Go's zero time, which is null in JSON.
fn time(bytes: &[u8], format: fn(jiff::Timestamp) -> String) -> Result<Value, ProtobufError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let mut reader = Reader::new(bytes);
    let (mut seconds, mut nanos) = (0, 0);
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1, VARINT) => seconds = reader.varint()?.cast_signed(),
            (2, VARINT) => nanos = low_half(reader.varint()?).cast_signed(),
            _ => reader.skip(wire)?,
        }
    }
    // RFC 3339 has four digits for the year.
    const YEARS: std::ops::Range<i64> = -62_135_596_800..253_402_300_800;
    if !YEARS.contains(&seconds) || !(0..1_000_000_000).contains(&nanos) {
        return Err(ProtobufError::Time);
    }
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|_| ProtobufError::Time)?;
    Ok(if meta::time::is_zero(time) { Value::Null } else { Value::from(format(time)) })
}

fn duration(mut reader: Reader<'_>) -> Result<Value, ProtobufError> {
    let mut nanos = 0;
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1, VARINT) => nanos = reader.varint()?.cast_signed(),
            _ => reader.skip(wire)?,
        }
    }
    Ok(Value::from(meta::time::GoDuration(nanos).to_string()))
}
