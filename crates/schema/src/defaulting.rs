//! Defaults that a type declares. Those that upstream computes in code belong to the API server's strategies.

use serde_json::{Map, Value};

use crate::types::{ObjectShape, Schema, Shape};

/// Fills in declared defaults, as far as objects are present.
pub fn apply(value: &mut Value, schema: &Schema) {
    if schema.is_custom() { apply_custom(value, schema) } else { apply_builtin(value, schema) }
}

/// Go's generated defaulting: what is missing or zero outside a pointer gets the default.
fn apply_builtin(value: &mut Value, schema: &Schema) {
    match (value, &schema.shape) {
        (Value::Object(object), Shape::Object(shape)) => apply_fields(object, shape),
        (Value::Object(object), Shape::Map(map)) if may_default(&map.value) => {
            object.values_mut().for_each(|value| apply_builtin(value, &map.value));
        }
        (Value::Array(items), Shape::List(list)) if may_default(&list.item) => {
            items.iter_mut().for_each(|item| apply_builtin(item, &list.item));
        }
        _ => {}
    }
}

fn apply_fields(object: &mut Map<String, Value>, shape: &ObjectShape) {
    for field in shape.fields.iter().filter(|field| field.default.is_some()) {
        let unset = match object.get(&*field.name) {
            None | Some(Value::Null) => true,
            Some(value) => !field.pointer && *value == crate::canonical::zero(&field.schema),
        };
        if unset && let Some(default) = parse(field.default.as_deref()) {
            object.insert(field.name.as_str().to_owned(), default);
        }
    }
    for (name, value) in object.iter_mut() {
        if (value.is_object() || value.is_array())
            && let Some(field) = shape.field(name)
            && may_default(&field.schema)
        {
            apply_builtin(value, &field.schema);
        }
    }
}

fn may_default(schema: &Schema) -> bool {
    matches!(schema.shape, Shape::Object(_) | Shape::Map(_) | Shape::List(_))
}

/// Structural defaulting: null in a place that may not be null is absent, and what is absent gets the default.
fn apply_custom(value: &mut Value, schema: &Schema) {
    match (value, &schema.shape) {
        (Value::Object(object), Shape::Object(shape)) if shape.name.is_empty() => {
            for field in shape.fields.iter() {
                let unset = match object.get(&*field.name) {
                    None => true,
                    Some(value) => value.is_null() && !field.schema.nullable,
                };
                if !unset {
                    continue;
                }
                match parse(field.default.as_deref()) {
                    Some(default) => drop(object.insert(field.name.as_str().to_owned(), default)),
                    None => drop(object.remove(&*field.name)),
                }
            }
            for (name, value) in object.iter_mut() {
                match (shape.field(name), &shape.additional) {
                    (Some(field), _) => apply_custom(value, &field.schema),
                    (None, Some(schema)) => apply_custom(value, schema),
                    (None, None) => {}
                }
            }
            if let Some(schema) = &shape.additional {
                let nullable = schema.nullable || matches!(schema.shape, Shape::Any(_));
                object.retain(|name, value| nullable || !value.is_null() || shape.field(name).is_some());
            }
        }
        (Value::Object(object), Shape::Map(map)) => {
            let nullable = map.value.nullable || matches!(map.value.shape, Shape::Any(_));
            object.retain(|_, value| nullable || !value.is_null());
            object.values_mut().for_each(|value| apply_custom(value, &map.value));
        }
        (Value::Array(items), Shape::List(list)) => {
            items.iter_mut().for_each(|item| apply_custom(item, &list.item));
        }
        _ => {}
    }
}

/// The default's JSON text as a value. Texts are checked when the schema is made.
fn parse(text: Option<&str>) -> Option<Value> {
    let text = text?;
    if let Some(plain) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'))
        && !plain.contains('\\')
    {
        return Some(Value::String(plain.to_owned()));
    }
    serde_json::from_str(text).ok()
}
