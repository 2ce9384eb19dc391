//! JSON as Go's encoder spells it.

use serde_json::{Map, Number, Value};

use crate::types::{Field, Omit, Schema, Shape};

/// Writes a canonical value: fields of built-in kinds in the order of their type, everything else by key.
pub fn write(value: &Value, schema: &Schema, out: &mut Vec<u8>) {
    match (value, &schema.shape) {
        (Value::Object(object), Shape::Object(shape)) if !shape.name.is_empty() => {
            out.push(b'{');
            let start = out.len();
            for field in shape.fields.iter() {
                if let Some(value) = object.get(&*field.name) {
                    let empty = is_empty_list(value, field);
                    if empty && field.omit != Omit::Never {
                        continue;
                    }
                    if out.len() > start {
                        out.push(b',');
                    }
                    out.push(b'"');
                    out.extend_from_slice(field.name.as_bytes());
                    out.extend_from_slice(b"\":");
                    if empty {
                        out.extend_from_slice(b"null");
                    } else {
                        write(value, &field.schema, out);
                    }
                }
            }
            out.push(b'}');
        }
        (Value::Object(object), Shape::Map(map)) => {
            write_members(object, out, |value, out| write(value, &map.value, out));
        }
        (Value::Array(items), Shape::List(list)) => {
            write_items(items, out, |item, out| write(item, &list.item, out));
        }
        _ => write_any(value, out),
    }
}

/// Lists and maps of built-in kinds go through protobuf upstream, which knows no empty ones.
fn is_empty_list(value: &Value, field: &Field) -> bool {
    match (value, &field.schema.shape) {
        (Value::Array(items), Shape::List(_)) => items.is_empty(),
        (Value::Object(object), Shape::Map(_)) => object.is_empty(),
        _ => false,
    }
}

/// [`write`] into a new buffer.
pub fn to_vec(value: &Value, schema: &Schema) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    write(value, schema, &mut out);
    out
}

/// Writes any value, keys sorted.
pub fn write_any(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => write_number(number, out),
        Value::String(text) => write_string(text, out),
        Value::Array(items) => write_items(items, out, write_any),
        Value::Object(object) => write_members(object, out, write_any),
    }
}

fn write_items(items: &[Value], out: &mut Vec<u8>, each: impl Fn(&Value, &mut Vec<u8>)) {
    out.push(b'[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        each(item, out);
    }
    out.push(b']');
}

fn write_members(object: &Map<String, Value>, out: &mut Vec<u8>, each: impl Fn(&Value, &mut Vec<u8>)) {
    out.push(b'{');
    for (index, (key, value)) in object.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_string(key, out);
        out.push(b':');
        each(value, out);
    }
    out.push(b'}');
}

/// Floats print plainly between 1e-6 and 1e21, with an exponent outside.
fn write_number(number: &Number, out: &mut Vec<u8>) {
    if let Some(number) = number.as_i64() {
        out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    } else if let Some(number) = number.as_u64() {
        out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    } else if let Some(float) = number.as_f64() {
        // Adding zero makes minus zero plain.
        let float = float + 0.0;
        let plain = float == 0.0 || (1e-6..1e21).contains(&float.abs());
        let text = if plain { format!("{float}") } else { format!("{float:e}") };
        match text.split_once('e') {
            Some((digits, exponent)) if !exponent.starts_with('-') => {
                out.extend_from_slice(format!("{digits}e+{exponent}").as_bytes());
            }
            _ => out.extend_from_slice(text.as_bytes()),
        }
    }
}

/// Escapes what Go escapes: quotes, controls, and `<`, `>`, `&` and the line separators for HTML's sake.
fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut start = 0;
    for (index, &byte) in bytes.iter().enumerate() {
        if !ESCAPED[usize::from(byte)] {
            continue;
        }
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0x08 => b"\\b",
            0x0c => b"\\f",
            0xe2 => match bytes.get(index + 1..index + 3) {
                Some([0x80, 0xa8]) => b"\\u2028",
                Some([0x80, 0xa9]) => b"\\u2029",
                _ => continue,
            },
            byte => {
                out.extend_from_slice(&bytes[start..index]);
                out.extend_from_slice(format!("\\u{byte:04x}").as_bytes());
                start = index + 1;
                continue;
            }
        };
        out.extend_from_slice(&bytes[start..index]);
        out.extend_from_slice(escape);
        start = if byte == 0xe2 { index + 3 } else { index + 1 };
    }
    out.extend_from_slice(&bytes[start..]);
    out.push(b'"');
}

/// Bytes that need a closer look.
const ESCAPED: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = true;
        byte += 1;
    }
    table[b'"' as usize] = true;
    table[b'\\' as usize] = true;
    table[b'<' as usize] = true;
    table[b'>' as usize] = true;
    table[b'&' as usize] = true;
    table[0xe2] = true;
    table
};
