//! Strategic merge patch: lists merge by key where the schema says so, and directives steer the rest.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::{PatchError, describe, discard_nulls};
use crate::go_text;
use crate::types::{PatchStrategy, Schema, Shape};

pub(super) const DIRECTIVE: &str = "$patch";
pub(super) const RETAIN_KEYS: &str = "$retainKeys";
pub(super) const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList";
pub(super) const ELEMENT_ORDER: &str = "$setElementOrder";

pub(super) type Object = Map<String, Value>;
pub(super) type Result<T> = std::result::Result<T, PatchError>;

/// What a patch is merged into.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Target {
    /// An object: directives are obeyed and gone.
    Document,
    /// Another patch: directives and nulls stay for when that is applied.
    Patch,
}

/// Applies a strategic merge patch to an object of a built-in kind.
pub fn strategic(document: &mut Value, patch: Value, schema: &Schema) -> Result<()> {
    if schema.is_custom() {
        return Err(bad_request("strategic merge patch format is not supported"));
    }
    match (std::mem::take(document), patch) {
        (Value::Object(original), Value::Object(patch)) => {
            *document = Value::Object(merge_object(original, patch, schema, Target::Document)?);
            Ok(())
        }
        _ => Err(bad_request("invalid JSON document")),
    }
}

/// How one field merges.
pub(super) struct FieldMeta<'a> {
    pub(super) schema: &'a Schema,
    pub(super) strategy: PatchStrategy,
    pub(super) merge_key: &'a str,
}

pub(super) fn lookup<'a>(schema: &'a Schema, key: &str) -> Result<FieldMeta<'a>> {
    match &schema.shape {
        Shape::Object(object) => match object.field(key) {
            Some(field) => Ok(FieldMeta {
                schema: &field.schema,
                strategy: field.patch,
                merge_key: &field.patch_merge_key,
            }),
            None => {
                let name = object.name.rsplit('.').next().unwrap_or_default();
                Err(PatchError::Internal(format!(
                    "unable to find api field in struct {name} for the json field {}",
                    meta::field::go_quote(key)
                )))
            }
        },
        Shape::Map(map) => Ok(FieldMeta { schema: &map.value, strategy: PatchStrategy::NONE, merge_key: "" }),
        _ => Ok(FieldMeta { schema, strategy: PatchStrategy::NONE, merge_key: "" }),
    }
}

pub(super) fn item_schema(schema: &Schema) -> &Schema {
    match &schema.shape {
        Shape::List(list) => &list.item,
        _ => schema,
    }
}

pub(super) fn merge_object(
    mut original: Object,
    mut patch: Object,
    schema: &Schema,
    target: Target,
) -> Result<Object> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            _ => Err(bad_directive(&directive, &patch)),
        };
    }
    retain_keys(&mut original, &mut patch, target)?;
    merge_ordered_lists(&mut original, &mut patch, schema, target)?;
    for (key, mut value) in patch {
        let deletes = strip_prefix(&key, DELETE_PRIMITIVES, "invalid patch format of primitive list")?;
        let deletes_from_list = deletes.is_some();
        if deletes_from_list && target == Target::Patch {
            original.insert(key, value);
            continue;
        }
        let key = match deletes {
            Some(key) => key.to_owned(),
            None => key,
        };
        if value.is_null() {
            match target {
                Target::Document => drop(original.remove(&key)),
                Target::Patch => drop(original.insert(key, value)),
            }
            continue;
        }
        let current = original.get_mut(&key).filter(|current| same_type(current, &value));
        let Some(current) = current else {
            if !deletes_from_list {
                if target == Target::Document {
                    discard_nulls(&mut value);
                }
                put_without_directives(&mut original, key, value);
            }
            continue;
        };
        match (std::mem::take(current), value) {
            (Value::Object(inner), Value::Object(patch)) => {
                let meta = lookup(schema, &key)?;
                *current = Value::Object(if meta.strategy.replace {
                    patch
                } else {
                    merge_object(inner, patch, meta.schema, target)?
                });
            }
            (Value::Array(items), Value::Array(patch)) => {
                let meta = lookup(schema, &key)?;
                *current = Value::Array(merge_list(items, patch, &meta, deletes_from_list, target)?);
            }
            (_, value) => *current = value,
        }
    }
    Ok(original)
}

/// `$retainKeys`: members of the object that it does not name go.
fn retain_keys(original: &mut Object, patch: &mut Object, target: Target) -> Result<()> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    if target == Target::Patch {
        original.insert(RETAIN_KEYS.to_owned(), keys);
        return Ok(());
    }
    let malformed = || bad_request("invalid patch format of retainKeys");
    let keys = keys.as_array().ok_or_else(malformed)?;
    let named = |name: &str| keys.iter().any(|key| key.as_str() == Some(name));
    for (name, value) in patch.iter() {
        let parallel = name.starts_with(DELETE_PRIMITIVES) || name.starts_with(ELEMENT_ORDER);
        if !value.is_null() && !parallel && !named(name) {
            return Err(malformed());
        }
    }
    original.retain(|name, _| named(name));
    Ok(())
}

/// `$setElementOrder/x`: merges the list it belongs to, then puts the items in that order, with items that only
/// the server has where they were.
fn merge_ordered_lists(
    original: &mut Object,
    patch: &mut Object,
    schema: &Schema,
    target: Target,
) -> Result<()> {
    let directives: Vec<String> =
        patch.keys().filter(|key| key.starts_with(ELEMENT_ORDER)).cloned().collect();
    for directive in directives {
        let order = patch.remove(&directive).unwrap_or_default();
        let malformed = "invalid patch format of setElementOrder list";
        if target == Target::Patch
            && original.insert(directive.clone(), order.clone()).is_some_and(|old| old != order)
        {
            return Err(bad_request(malformed));
        }
        let order = list_of(order)?;
        let key = strip_prefix(&directive, ELEMENT_ORDER, malformed)?.unwrap_or_default();
        let current = original.remove(key).map(list_of).transpose()?;
        let patched = patch.remove(key).map(list_of).transpose()?;
        let meta = lookup(schema, key)?;
        let meta = FieldMeta { schema: item_schema(meta.schema), ..meta };
        check_order(patched.as_deref().unwrap_or_default(), &order, meta.merge_key)?;
        let server_order = current.clone().unwrap_or_default();
        let merged = match (current, patched) {
            (None, None) => continue,
            (Some(current), None) => current,
            (None, Some(patched)) => match without_directives(Value::Array(patched)) {
                Some(Value::Array(items)) => items,
                _ => continue,
            },
            (Some(current), Some(patched)) if meta.strategy.merge => {
                merge_items(current, patched, &meta, target)?
            }
            (Some(_), Some(patched)) => patched,
        };
        let items = order_items(merged, &order, &server_order, meta.merge_key)?;
        original.insert(key.to_owned(), Value::Array(items));
    }
    Ok(())
}

/// Every item of the patch must stand in the order list, in the same sequence.
fn check_order(patch: &[Value], order: &[Value], merge_key: &str) -> Result<()> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut order_left = order.iter();
    for item in patch {
        if item.get(DIRECTIVE).is_some() {
            continue;
        }
        let wanted = key_of(item, merge_key)?;
        let mut found = false;
        for candidate in order_left.by_ref() {
            if key_of(candidate, merge_key)? == wanted {
                found = true;
                break;
            }
        }
        if !found {
            return Err(PatchError::Internal(format!(
                "The order in patch list:\n{}\n doesn't match {ELEMENT_ORDER} list:\n{}\n",
                go_text::plain_list(patch),
                go_text::plain_list(order)
            )));
        }
    }
    Ok(())
}

fn merge_list(
    current: Vec<Value>,
    patch: Vec<Value>,
    meta: &FieldMeta<'_>,
    deletes: bool,
    target: Target,
) -> Result<Vec<Value>> {
    if deletes {
        element_kind(&current, &patch)?;
        let gone: HashSet<String> = patch.iter().map(Value::to_string).collect();
        return Ok(current.into_iter().filter(|item| !gone.contains(&item.to_string())).collect());
    }
    if !meta.strategy.merge {
        return Ok(patch);
    }
    let meta = FieldMeta { schema: item_schema(meta.schema), ..*meta };
    merge_items(current, patch, &meta, target)
}

/// Merges a list whose strategy is merge. `meta.schema` is the items'.
fn merge_items(
    current: Vec<Value>,
    patch: Vec<Value>,
    meta: &FieldMeta<'_>,
    target: Target,
) -> Result<Vec<Value>> {
    if current.is_empty() && patch.is_empty() {
        return Ok(current);
    }
    if element_kind(&current, &patch)? != "object" {
        let server_order = current.clone();
        let mut known = HashSet::new();
        let both = current.into_iter().chain(patch.iter().cloned());
        let merged = both.filter(|item| known.insert(item.to_string())).collect();
        return order_items(merged, &patch, &server_order, "");
    }
    let key = meta.merge_key;
    if key.is_empty() {
        let name = meta.schema.object().map(|object| object.name.rsplit('.').next().unwrap_or_default());
        let name = name.unwrap_or_default();
        return Err(PatchError::Internal(format!("cannot merge lists without merge key for {name}")));
    }
    let (mut current, patch) = apply_list_directives(current, patch, key)?;
    let server_order: Vec<Value> = current.iter().map(|item| key_stub(item, key)).collect();
    let patch_order: Vec<Value> = patch.iter().map(|item| key_stub(item, key)).collect();
    let mut places = Places::of(&current, key);
    for item in patch {
        let found = places.find(&item)?;
        match (found.and_then(|at| current.get_mut(at)), item) {
            (Some(slot), Value::Object(patch)) => {
                if let Value::Object(object) = std::mem::take(slot) {
                    *slot = Value::Object(merge_object(object, patch, meta.schema, target)?);
                }
            }
            (_, item) => {
                places.push(&item);
                current.push(item);
            }
        }
    }
    order_items(current, &patch_order, &server_order, key)
}

/// `$patch` items of a list: `delete` removes what has the same key, `replace` keeps nothing of the old list.
fn apply_list_directives(
    mut current: Vec<Value>,
    patch: Vec<Value>,
    key: &str,
) -> Result<(Vec<Value>, Vec<Value>)> {
    let (mut plain, mut replace) = (Vec::with_capacity(patch.len()), false);
    let mut gone = HashSet::new();
    for item in patch {
        let Some(directive) = item.get(DIRECTIVE) else {
            plain.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => drop(gone.insert(key_of(&item, key)?.to_string())),
            Some("replace") => replace = true,
            Some("merge") => {
                let message = "merging lists cannot yet be specified in the patch";
                return Err(PatchError::Internal(message.to_owned()));
            }
            _ => return Err(bad_directive(directive, item.as_object().unwrap_or(&Object::new()))),
        }
    }
    if !gone.is_empty() {
        current.retain(|item| item.get(key).is_none_or(|value| !gone.contains(&value.to_string())));
    }
    Ok(if replace { (plain, Vec::new()) } else { (current, plain) })
}

/// Items named by `order` in its sequence, the server's others among them where the server had them. Items that only
/// say what to delete come last of their kind.
pub(super) fn order_items(
    items: Vec<Value>,
    order: &[Value],
    server_order: &[Value],
    key: &str,
) -> Result<Vec<Value>> {
    let (order, server_order) = (Places::of(order, key), Places::of(server_order, key));
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for item in items {
        let deletes = item.get(DIRECTIVE).is_some_and(|directive| directive == "delete");
        let last = |at: usize| if deletes { usize::MAX } else { at };
        match order.find(&item)? {
            Some(at) => named.push((last(at), item)),
            None => others.push((last(server_order.find(&item)?.unwrap_or(usize::MAX)), item)),
        }
    }
    named.sort_by_key(|(at, _)| *at);
    others.sort_by_key(|(at, _)| *at);
    let mut out = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().map(|(_, item)| item).peekable();
    for (_, item) in named {
        let at = server_order.find(&item)?;
        while let (Some(at), Some(other)) = (at, others.peek()) {
            if server_order.find(other)?.is_none_or(|before| before >= at) {
                break;
            }
            out.extend(others.next());
        }
        out.push(item);
    }
    out.extend(others);
    Ok(out)
}

/// Where the items of a list are, by merge key; the first of doubles counts.
struct Places<'a> {
    key: &'a str,
    places: HashMap<String, usize>,
    length: usize,
}

impl<'a> Places<'a> {
    fn of(items: &[Value], key: &'a str) -> Self {
        let mut places = Self { key, places: HashMap::with_capacity(items.len()), length: 0 };
        items.iter().for_each(|item| places.push(item));
        places
    }

    fn push(&mut self, item: &Value) {
        if let Ok(key) = key_of(item, self.key) {
            self.places.entry(key.to_string()).or_insert(self.length);
        }
        self.length += 1;
    }

    fn find(&self, item: &Value) -> Result<Option<usize>> {
        if self.places.is_empty() {
            return key_of(item, self.key).map(|_| None);
        }
        Ok(self.places.get(&key_of(item, self.key)?.to_string()).copied())
    }
}

/// The merge key's value, or the item itself in a list of scalars.
pub(super) fn key_of<'a>(item: &'a Value, key: &str) -> Result<&'a Value> {
    if key.is_empty() {
        return Ok(item);
    }
    let Some(object) = item.as_object() else {
        return Err(PatchError::Internal(format!("expected a map, but received a {}", go_kind(item))));
    };
    object.get(key).ok_or_else(|| {
        PatchError::Internal(format!(
            "map: {} does not contain declared merge key: {key}",
            go_text::plain_map(object)
        ))
    })
}

/// Just the merge key of an item, enough to find it by.
fn key_stub(item: &Value, key: &str) -> Value {
    let mut stub = Object::new();
    if let Some(value) = item.get(key) {
        stub.insert(key.to_owned(), value.clone());
    }
    Value::Object(stub)
}

/// What the items are; they must all be alike, and no lists.
pub(super) fn element_kind(current: &[Value], patch: &[Value]) -> Result<&'static str> {
    let mut kinds = current.iter().chain(patch).map(describe);
    let first = kinds.next().unwrap_or("object");
    if let Some(other) = kinds.find(|kind| *kind != first) {
        return Err(PatchError::Internal(format!("list element types are not identical: {first}, {other}")));
    }
    if first == "array" {
        return Err(PatchError::Unprocessable("lists of lists are not supported".to_owned()));
    }
    Ok(first)
}

fn same_type(a: &Value, b: &Value) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}

fn put_without_directives(object: &mut Object, key: String, value: Value) {
    match without_directives(value) {
        Some(value) => drop(object.insert(key, value)),
        None => drop(object.remove(&key)),
    }
}

/// The value without objects that are directives; `None` when it is one itself.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(object) if object.contains_key(DIRECTIVE) => None,
        Value::Object(object) => {
            let kept = object.into_iter().filter_map(|(key, value)| Some((key, without_directives(value)?)));
            Some(Value::Object(kept.collect()))
        }
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_directives).collect())),
        value => Some(value),
    }
}

fn list_of(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(PatchError::Internal(format!("expected a slice, but received a {}", go_kind(&other)))),
    }
}

/// `$directive/field` to `field`; `None` for other keys.
fn strip_prefix<'a>(key: &'a str, directive: &str, malformed: &str) -> Result<Option<&'a str>> {
    match key.strip_prefix(directive) {
        None => Ok(None),
        Some(rest) => rest.strip_prefix('/').map(Some).ok_or_else(|| bad_request(malformed)),
    }
}

fn bad_request(message: &str) -> PatchError {
    PatchError::BadRequest(message.to_owned())
}

fn bad_directive(directive: &Value, patch: &Object) -> PatchError {
    let mut map = patch.clone();
    map.insert(DIRECTIVE.to_owned(), directive.clone());
    PatchError::Internal(format!(
        "unknown patch type: {} in map: {}",
        go_text::plain(directive),
        go_text::plain_map(&map)
    ))
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nil",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    }
}
