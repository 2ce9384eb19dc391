//! Makes patches: the way from one object to another, and the three-way patches of `kubectl apply`.

use std::cmp::Ordering;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::PatchError;
use super::strategic::{
    DELETE_PRIMITIVES, DIRECTIVE, ELEMENT_ORDER, FieldMeta, Object, RETAIN_KEYS, Result, Target,
    element_kind, item_schema, key_of, lookup, merge_object, order_items,
};
use crate::go_text;
use crate::types::Schema;

/// The strategic merge patch that makes `modified` of `original`.
pub fn create_two_way(original: &Value, modified: &Value, schema: &Schema) -> Result<Value> {
    let options = Options { deletions: true, changes: true, retain_keys: false };
    diff_objects(object(original)?, object(modified)?, schema, options).map(Value::Object)
}

/// The strategic merge patch of `kubectl apply`: what `modified` changes in or adds to `current`, and what it
/// dropped since `original`, the configuration applied before.
pub fn create_three_way(
    original: &Value,
    modified: &Value,
    current: &Value,
    schema: &Schema,
) -> Result<Value> {
    let changes = Options { deletions: false, changes: true, retain_keys: false };
    let deletions = Options { deletions: true, changes: false, retain_keys: false };
    let delta = diff_objects(object(current)?, object(modified)?, schema, changes)?;
    let deleted = diff_objects(object(original)?, object(modified)?, schema, deletions)?;
    merge_object(deleted, delta, schema, Target::Patch).map(Value::Object)
}

/// The merge patch (RFC 7386) that makes `modified` of `original`.
pub fn create_merge(original: &Value, modified: &Value) -> Value {
    match (original, modified) {
        (Value::Object(original), Value::Object(modified)) => {
            Value::Object(merge_diff(original, modified, true, true))
        }
        (_, modified) => modified.clone(),
    }
}

/// [`create_three_way`] for kinds without merge keys: a merge patch.
pub fn create_three_way_merge(original: &Value, modified: &Value, current: &Value) -> Result<Value> {
    let (original, modified, current) = (object(original)?, object(modified)?, object(current)?);
    let mut patch = Value::Object(merge_diff(original, modified, true, false));
    overlay(&mut patch, Value::Object(merge_diff(current, modified, false, true)));
    Ok(patch)
}

/// What a difference is to hold.
#[derive(Clone, Copy)]
struct Options {
    deletions: bool,
    changes: bool,
    /// The object is one whose `$retainKeys` must be said.
    retain_keys: bool,
}

fn object(value: &Value) -> Result<&Object> {
    static EMPTY: LazyLock<Object> = LazyLock::new(Map::new);
    match value {
        Value::Object(object) => Ok(object),
        Value::Null => Ok(&EMPTY),
        _ => Err(PatchError::BadRequest("invalid JSON document".to_owned())),
    }
}

fn merge_diff(original: &Object, modified: &Object, deletions: bool, changes: bool) -> Object {
    let mut patch = Object::new();
    for (key, value) in modified {
        match (original.get(key), value) {
            (Some(before), value) if before == value => {}
            (Some(Value::Object(before)), Value::Object(after)) => {
                let inner = merge_diff(before, after, deletions, changes);
                if !inner.is_empty() {
                    patch.insert(key.clone(), Value::Object(inner));
                }
            }
            _ if changes => drop(patch.insert(key.clone(), value.clone())),
            _ => {}
        }
    }
    let gone = original.keys().filter(|key| deletions && !modified.contains_key(*key));
    patch.extend(gone.map(|key| (key.clone(), Value::Null)));
    patch
}

/// Lays one merge patch over another; nulls stay.
fn overlay(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                overlay(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

fn diff_objects(original: &Object, modified: &Object, schema: &Schema, options: Options) -> Result<Object> {
    let mut patch = Object::new();
    for (key, after) in modified {
        match (original.get(key), after) {
            (Some(Value::Object(before)), Value::Object(after)) => {
                diff_members(key, before, after, schema, options, &mut patch)?;
            }
            (Some(Value::Array(before)), Value::Array(after)) => {
                diff_list(key, before, after, schema, options, &mut patch)?;
            }
            (before, after) if options.changes && before != Some(after) => {
                patch.insert(key.clone(), after.clone());
            }
            _ => {}
        }
    }
    let gone = original.keys().filter(|key| !modified.contains_key(*key));
    if options.deletions {
        patch.extend(gone.map(|key| (key.clone(), Value::Null)));
    }
    if options.retain_keys {
        let kept: Vec<&String> = modified.iter().filter(|(_, v)| !v.is_null()).map(|(key, _)| key).collect();
        let more_before = original.iter().any(|(key, value)| !value.is_null() && !modified.contains_key(key));
        if !kept.is_empty() && (!patch.is_empty() || more_before) {
            patch.insert(RETAIN_KEYS.to_owned(), kept.into_iter().map(String::as_str).collect());
        }
    }
    Ok(patch)
}

fn diff_members(
    key: &str,
    before: &Object,
    after: &Object,
    schema: &Schema,
    options: Options,
    patch: &mut Object,
) -> Result<()> {
    if before == after {
        return Ok(());
    }
    let meta = lookup(schema, key)?;
    if meta.strategy.replace {
        if options.changes {
            patch.insert(key.to_owned(), Value::Object(after.clone()));
        }
        return Ok(());
    }
    let options = Options { retain_keys: meta.strategy.retain_keys, ..options };
    let inner = diff_objects(before, after, meta.schema, options)?;
    if !inner.is_empty() {
        patch.insert(key.to_owned(), Value::Object(inner));
    }
    Ok(())
}

fn diff_list(
    key: &str,
    before: &[Value],
    after: &[Value],
    schema: &Schema,
    options: Options,
    patch: &mut Object,
) -> Result<()> {
    if before == after {
        return Ok(());
    }
    let meta = lookup(schema, key)?;
    if !meta.strategy.merge {
        if options.changes {
            patch.insert(key.to_owned(), after.to_vec().into());
        }
        return Ok(());
    }
    if before.is_empty() {
        if options.changes {
            patch.insert(key.to_owned(), after.to_vec().into());
        }
        return Ok(());
    }
    let meta = FieldMeta { schema: item_schema(meta.schema), ..meta };
    let options = Options { retain_keys: meta.strategy.retain_keys, ..options };
    if element_kind(before, after)? == "object" {
        return diff_keyed(key, before, after, &meta, options, patch);
    }
    let added: Vec<Value> = after.iter().filter(|item| !before.contains(item)).cloned().collect();
    let mut deleted: Vec<Value> = before.iter().filter(|item| !after.contains(item)).cloned().collect();
    deleted.sort_by(by_text);
    deleted.dedup();
    let says_deletions = options.deletions && !deleted.is_empty();
    if options.changes && !added.is_empty() {
        patch.insert(key.to_owned(), added.into());
    }
    if says_deletions {
        patch.insert(format!("{DELETE_PRIMITIVES}/{key}"), deleted.into());
    }
    if (says_deletions || options.changes) && !after.is_empty() {
        patch.insert(format!("{ELEMENT_ORDER}/{key}"), after.to_vec().into());
    }
    Ok(())
}

fn by_text(a: &Value, b: &Value) -> Ordering {
    go_text::plain(a).cmp(&go_text::plain(b))
}

/// Lists of objects that merge by key.
fn diff_keyed(
    key: &str,
    before: &[Value],
    after: &[Value],
    meta: &FieldMeta<'_>,
    options: Options,
    patch: &mut Object,
) -> Result<()> {
    let merge_key = meta.merge_key;
    let keys = |items: &[Value]| -> Result<Vec<Value>> {
        items.iter().map(|item| key_of(item, merge_key).cloned()).collect()
    };
    let (keys_before, keys_after) = (keys(before)?, keys(after)?);
    let with_key = |value: &Value| Object::from_iter([(merge_key.to_owned(), value.clone())]);
    let mut items = Vec::new();
    for (item, item_key) in after.iter().zip(&keys_after) {
        let old = keys_before.iter().position(|known| known == item_key).map(|at| &before[at]);
        match (old, item) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                let mut inner = diff_objects(old, new, meta.schema, options)?;
                if !inner.is_empty() {
                    inner.extend(with_key(item_key));
                    items.push(Value::Object(inner));
                }
            }
            _ if options.changes => items.push(item.clone()),
            _ => {}
        }
    }
    let order: Vec<Value> = keys_after.iter().map(|value| Value::Object(with_key(value))).collect();
    let mut items = order_items(items, &order, &[], merge_key)?;
    if options.deletions {
        let mut gone: Vec<&Value> = keys_before.iter().filter(|known| !keys_after.contains(known)).collect();
        gone.sort_by(|a, b| by_text(a, b));
        items.extend(gone.into_iter().map(|value| {
            let mut item = with_key(value);
            item.insert(DIRECTIVE.to_owned(), Value::from("delete"));
            Value::Object(item)
        }));
    }
    let reordered = options.changes && keys_before != keys_after;
    if (!items.is_empty() || reordered) && !order.is_empty() {
        patch.insert(format!("{ELEMENT_ORDER}/{key}"), order.into());
    }
    if !items.is_empty() {
        patch.insert(key.to_owned(), items.into());
    }
    Ok(())
}
