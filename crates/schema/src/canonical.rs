//! The form in which Go's encoder leaves an object: which fields are written when empty, in what order, and how
//! strings and numbers are spelled.

mod writer;

use serde_json::{Map, Value};

pub use writer::{to_vec, write, write_any};

use crate::types::{AnyKind, Field, ObjectShape, Omit, Schema, Shape};

/// Leaves out what Go leaves out and adds what Go always writes. Expects a decoded value.
///
/// Custom resources keep what they have; only their metadata is a built-in type.
pub fn normalize(value: &mut Value, schema: &Schema) {
    match (value, &schema.shape) {
        (Value::Object(object), Shape::Object(shape)) if shape.name.is_empty() => {
            for field in shape.fields.iter() {
                if holds_builtin(&field.schema)
                    && let Some(value) = object.get_mut(&*field.name)
                {
                    normalize(value, &field.schema);
                }
            }
        }
        (Value::Object(object), Shape::Object(shape)) => normalize_object(object, shape),
        (Value::Object(object), Shape::Map(map)) if is_compound(&map.value) => {
            object.values_mut().for_each(|value| normalize(value, &map.value));
        }
        (Value::Array(items), Shape::List(list)) if is_compound(&list.item) => {
            items.iter_mut().for_each(|item| normalize(item, &list.item));
        }
        _ => {}
    }
}

/// What Go writes for a value that was never set, outside a pointer.
pub fn zero(schema: &Schema) -> Value {
    match &schema.shape {
        Shape::Bool => Value::Bool(false),
        Shape::Int32 | Shape::Int64 | Shape::Uint32 | Shape::Uint64 | Shape::Float64 | Shape::IntOrString => {
            Value::from(0)
        }
        Shape::String => Value::String(String::new()),
        Shape::Quantity => Value::from("0"),
        Shape::Duration => Value::from("0s"),
        Shape::Object(shape) => {
            let mut object = Map::new();
            normalize_object(&mut object, shape);
            Value::Object(object)
        }
        Shape::Bytes | Shape::Time | Shape::MicroTime | Shape::Any(_) | Shape::Map(_) | Shape::List(_) => {
            Value::Null
        }
    }
}

fn normalize_object(object: &mut Map<String, Value>, shape: &ObjectShape) {
    let mut kept = object.len();
    for (name, value) in object.iter_mut() {
        let Some(field) = shape.field(name) else { continue };
        if is_compound(&field.schema) {
            normalize(value, &field.schema);
        }
        if is_left_out(value, field) {
            *value = Value::Null;
            kept -= 1;
        }
    }
    // Nulls are the fields to leave out; those that are written as null come back below.
    if kept < object.len() || object.values().any(Value::is_null) {
        object.retain(|_, value| !value.is_null());
    }
    for field in shape.fields.iter().filter(|field| is_always_written(field)) {
        if !object.contains_key(&*field.name) {
            let value = if field.pointer { Value::Null } else { zero(&field.schema) };
            object.insert(field.name.as_str().to_owned(), value);
        }
    }
}

/// True for a value in a place where Go writes nothing, or null.
fn is_left_out(value: &Value, field: &Field) -> bool {
    if field.pointer {
        return value.is_null();
    }
    match (field.omit, &field.schema.shape) {
        (Omit::Zero, _) => is_zero(value, &field.schema),
        // A client's empty list says that ownership starts over: whoever keeps the books wants to see it.
        (Omit::Empty, Shape::List(_)) if &*field.name == "managedFields" => value.is_null(),
        (Omit::Never, _) => value.is_null(),
        (Omit::Empty, _) if is_struct(&field.schema) => value.is_null(),
        (Omit::Empty, _) => is_empty(value),
    }
}

/// True when Go writes the field whatever its value.
fn is_always_written(field: &Field) -> bool {
    match field.omit {
        Omit::Never => true,
        Omit::Empty => !field.pointer && is_struct(&field.schema),
        Omit::Zero => false,
    }
}

/// True for Go structs, which `omitempty` never leaves out.
fn is_struct(schema: &Schema) -> bool {
    matches!(
        schema.shape,
        Shape::Object(_)
            | Shape::Time
            | Shape::MicroTime
            | Shape::Quantity
            | Shape::IntOrString
            | Shape::Duration
            | Shape::Any(AnyKind::RawExtension)
    )
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(object) => object.is_empty(),
    }
}

/// True for a value whose every part is unset.
fn is_zero(value: &Value, schema: &Schema) -> bool {
    match (value, &schema.shape) {
        (Value::Object(object), Shape::Object(shape)) => object.iter().all(|(name, value)| {
            shape.field(name).is_none_or(|field| match field.pointer {
                true => value.is_null(),
                false => is_zero(value, &field.schema),
            })
        }),
        (Value::String(text), Shape::Quantity) => text == "0",
        (Value::String(text), Shape::Duration) => text == "0s",
        _ => is_empty(value),
    }
}

/// True when there may be something to normalize inside.
fn is_compound(schema: &Schema) -> bool {
    matches!(schema.shape, Shape::Object(_) | Shape::Map(_) | Shape::List(_))
}

/// True when a custom resource's schema leads to a built-in type here (`metadata`).
fn holds_builtin(schema: &Schema) -> bool {
    match &schema.shape {
        Shape::Object(shape) => {
            !shape.name.is_empty() || shape.fields.iter().any(|f| holds_builtin(&f.schema))
        }
        Shape::List(list) => holds_builtin(&list.item),
        Shape::Map(map) => holds_builtin(&map.value),
        _ => false,
    }
}
