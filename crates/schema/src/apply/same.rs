//! Whether a write would change anything worth a new revision.

use serde_json::{Map, Value};

use crate::types::{Schema, Shape};

/// True when two canonical objects differ in nothing but the times of `metadata.managedFields`, and in empty lists
/// that are stored as null. Upstream does not write such an update.
pub fn changes_nothing(old: &Value, new: &Value, schema: &Schema) -> bool {
    if old == new {
        return true;
    }
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return false };
    members(old, new, |name, old, new| {
        let schema = schema.field(name).map(|field| &*field.schema).filter(|_| !schema.is_custom());
        if name != "metadata" {
            return same(old, new, schema);
        }
        let (Some(Value::Object(old)), Some(Value::Object(new))) = (old, new) else { return old == new };
        members(old, new, |name, old, new| match name {
            "managedFields" => same_books(old, new),
            name => same(old, new, schema.and_then(|schema| schema.field(name)).map(|field| &*field.schema)),
        })
    })
}

/// True when `check` holds for every member of either.
fn members(
    old: &Map<String, Value>,
    new: &Map<String, Value>,
    check: impl Fn(&str, Option<&Value>, Option<&Value>) -> bool,
) -> bool {
    let added = new.keys().filter(|name| !old.contains_key(*name));
    old.keys().chain(added).all(|name| check(name, old.get(name), new.get(name)))
}

fn same(old: Option<&Value>, new: Option<&Value>, schema: Option<&Schema>) -> bool {
    if old == new {
        return true;
    }
    let is_hollow = |value: Option<&Value>| match value {
        None | Some(Value::Null) => true,
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(object)) => object.is_empty(),
        Some(_) => false,
    };
    match (schema.map(|schema| &schema.shape), old, new) {
        (Some(Shape::Object(shape)), Some(Value::Object(old)), Some(Value::Object(new)))
            if !shape.name.is_empty() =>
        {
            members(old, new, |name, old, new| same(old, new, shape.field(name).map(|field| &*field.schema)))
        }
        // A list or map that is a field of a built-in object; elsewhere callers pass no schema.
        (Some(Shape::List(_) | Shape::Map(_)), old, new) if is_hollow(old) && is_hollow(new) => true,
        (Some(Shape::List(list)), Some(Value::Array(old)), Some(Value::Array(new))) => {
            let item = list.item.object().filter(|shape| !shape.name.is_empty()).map(|_| &*list.item);
            old.len() == new.len() && old.iter().zip(new).all(|(old, new)| same(Some(old), Some(new), item))
        }
        _ => false,
    }
}

/// Entries alike but for their times.
fn same_books(old: Option<&Value>, new: Option<&Value>) -> bool {
    let (Some(Value::Array(old)), Some(Value::Array(new))) = (old, new) else { return old == new };
    let alike = |old: &Value, new: &Value| match (old.as_object(), new.as_object()) {
        (Some(old), Some(new)) => members(old, new, |name, old, new| name == "time" || old == new),
        _ => old == new,
    };
    old.len() == new.len() && old.iter().zip(new).all(|(old, new)| alike(old, new))
}
