//! Refuses what cannot be applied: undeclared fields, wrong types, doubled items.

use std::collections::BTreeSet;

use serde_json::Value;

use super::typed::{Members, View, item_element, view};
use crate::go_text;
use crate::types::{AnyKind, ListShape, Schema, Shape};

/// Upstream's text of what is wrong with an applied configuration, if anything is.
pub(super) fn check(value: &Value, schema: &Schema) -> Result<(), String> {
    let mut errors = Vec::new();
    walk(value, schema, "", &mut errors);
    match &errors[..] {
        [] => Ok(()),
        [only] => Err(only.clone()),
        more => Err(format!("errors:\n  {}", more.join("\n  "))),
    }
}

fn walk(value: &Value, schema: &Schema, path: &str, errors: &mut Vec<String>) {
    let mut refuse = |message: String| {
        errors.push(if path.is_empty() { message } else { format!("{path}: {message}") });
    };
    if value.is_null() {
        return;
    }
    match (&schema.shape, value) {
        (Shape::Object(shape), Value::Object(_)) => walk_object(value, Members::Fields(shape), path, errors),
        (Shape::Map(map), Value::Object(_)) => walk_object(value, Members::Each(&map.value), path, errors),
        (Shape::List(list), Value::Array(items)) => walk_list(items, list, schema, path, errors),
        (Shape::Object(_) | Shape::Map(_), other) => {
            refuse(format!("expected map, got &{{{}}}", go_text::plain(other)));
        }
        (Shape::List(_), other) => refuse(format!("expected list, got &{{{}}}", go_text::plain(other))),
        (Shape::Bool, Value::Bool(_)) | (Shape::Any(_), _) => {}
        (Shape::Bool, other) => refuse(format!("expected boolean, got &{{{}}}", go_text::plain(other))),
        (Shape::String | Shape::Bytes | Shape::Duration, Value::String(_)) => {}
        (Shape::String | Shape::Bytes | Shape::Duration, other) => refuse(format!(
            "expected string, got &value.valueUnstructured{{Value:{}}}",
            go_text::syntax(other)
        )),
        (shape, Value::Array(_) | Value::Object(_)) if !is_numeric(shape) => {
            refuse(format!("expected any scalar, got &{{{}}}", go_text::plain(value)));
        }
        (shape, other) if is_numeric(shape) && !other.is_number() => {
            refuse(format!("expected numeric (int or float), got {}", go_text::type_name(other)));
        }
        _ => {}
    }
}

fn is_numeric(shape: &Shape) -> bool {
    matches!(shape, Shape::Int32 | Shape::Int64 | Shape::Uint32 | Shape::Uint64 | Shape::Float64)
}

/// An undeclared field ends the look at its object, as upstream has it.
fn walk_object(value: &Value, members: Members<'_>, path: &str, errors: &mut Vec<String>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match members.get(name) {
            Some((schema, _)) => walk(value, schema, &path, errors),
            None => {
                errors.push(format!("{path}: field not declared in schema"));
                return;
            }
        }
    }
}

fn walk_list(items: &[Value], list: &ListShape, schema: &Schema, path: &str, errors: &mut Vec<String>) {
    let keyed = matches!(view(schema, &Value::Null), View::List(_));
    let mut seen = BTreeSet::new();
    for (index, item) in items.iter().enumerate() {
        if !keyed {
            walk(item, &list.item, &format!("{path}[{index}]"), errors);
            continue;
        }
        let element = match item_element(list, item) {
            Ok(element) => element,
            Err(error) => {
                errors.push(format!("{path}: element {index}: {error}"));
                return;
            }
        };
        if seen.contains(&element) {
            errors.push(format!("{path}: duplicate entries for key {element}"));
        }
        walk(item, &list.item, &format!("{path}{element}"), errors);
        seen.insert(element);
    }
}

/// True when nothing is known about the shape of values here.
pub(super) fn is_untyped(schema: &Schema) -> bool {
    matches!(schema.shape, Shape::Any(AnyKind::Unknown))
}
