//! `meta.k8s.io/v1 Table`: what kubectl prints.

use serde_json::{Map, Value, json};

use super::render::{Renderer, metadata_only};

/// The rows of these objects. Columns are left out after the first event of a watch.
pub(super) fn table(
    renderer: &Renderer,
    objects: Vec<Value>,
    list_meta: Map<String, Value>,
    with_columns: bool,
) -> Value {
    let target = &renderer.target;
    let columns: Vec<Value> = target
        .version()
        .columns
        .iter()
        .map(|column| {
            json!({
                "name": &*column.name, "type": &*column.r#type, "format": &*column.format,
                "description": "", "priority": column.priority,
            })
        })
        .collect();
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let cells = kinds::printers::cells(target.spec(), target.version(), &object, renderer.now);
            let mut row = json!({ "cells": cells });
            let conditions = kinds::printers::conditions(target.spec(), &object);
            if !conditions.is_empty() {
                row["conditions"] = conditions.into();
            }
            match renderer.include_object.as_str() {
                "None" => {}
                "Object" => row["object"] = object,
                _ => row["object"] = metadata_only(object),
            }
            row
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_meta,
        "columnDefinitions": if with_columns { Value::Array(columns) } else { Value::Null },
        "rows": rows,
    })
}
