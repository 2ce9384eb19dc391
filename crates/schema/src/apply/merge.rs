//! Lays an applied configuration over the live object.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::element::Element;
use super::typed::{View, item_element, view};
use crate::types::{ListShape, Schema};

/// The live object with the configuration's values; the configuration wins.
pub(super) fn merge(live: Option<&Value>, config: Option<&Value>, schema: &Schema) -> Option<Value> {
    let (Some(old), Some(new)) = (live, config) else { return live.or(config).cloned() };
    match (view(schema, new), old, new) {
        (View::Object(members), Value::Object(old), Value::Object(new))
            if !(old.is_empty() && new.is_empty()) =>
        {
            let mut out = Map::new();
            for (name, value) in old {
                if !new.contains_key(name) {
                    out.insert(name.clone(), value.clone());
                }
            }
            for (name, value) in new {
                let merged = match (old.get(name), members.get(name)) {
                    (Some(before), Some((schema, _))) => merge(Some(before), Some(value), schema),
                    _ => Some(value.clone()),
                };
                out.extend(merged.map(|value| (name.clone(), value)));
            }
            Some(Value::Object(out))
        }
        (View::List(list), Value::Array(old), Value::Array(new)) if !(old.is_empty() && new.is_empty()) => {
            Some(Value::Array(merge_lists(old, new, list)))
        }
        // An emptied configuration owns none of what the live object has.
        (View::Object(_), Value::Object(_), Value::Null) | (View::List(_), Value::Array(_), Value::Null) => {
            Some(old.clone())
        }
        _ => Some(new.clone()),
    }
}

/// Items keep the live order where both agree on it; the configuration's new items come after the item they
/// follow there.
fn merge_lists(old: &[Value], new: &[Value], list: &ListShape) -> Vec<Value> {
    let old_items = elements(old, list);
    let new_items = elements(new, list);
    let in_new: BTreeMap<&Element, &Value> =
        new_items.iter().map(|(element, item)| (element, *item)).collect();
    let mut in_old: BTreeMap<&Element, Option<&Value>> = BTreeMap::new();
    for (element, item) in &old_items {
        // Doubles of the live list are not merged with: the configuration replaces them.
        in_old.entry(element).and_modify(|known| *known = None).or_insert(Some(item));
    }
    let mut shared =
        new_items.iter().map(|(element, _)| element).filter(|element| in_old.contains_key(element));
    let mut next_shared = shared.next();
    let mut done: BTreeMap<&Element, ()> = BTreeMap::new();
    let (mut left, mut right) = (0, 0);
    let mut out = Vec::with_capacity(old.len().max(new.len()));
    let merged = |element: &Element, item: &Value| {
        merge(in_old.get(element).copied().flatten(), Some(item), &list.item)
    };
    while left < old_items.len() || right < new_items.len() {
        if let (Some((a, _)), Some((b, item))) = (old_items.get(left), new_items.get(right)) {
            if a == b {
                done.insert(b, ());
                out.extend(merged(b, item));
                left += 1;
                right += 1;
                next_shared = shared.next();
                continue;
            }
            if in_new.contains_key(a) && next_shared.is_some_and(|next| next != a) {
                left += 1;
                continue;
            }
        }
        if let Some((element, item)) = old_items.get(left) {
            if !in_new.contains_key(element) {
                out.push((*item).clone());
                left += 1;
                continue;
            }
            if done.contains_key(element) {
                left += 1;
            }
        }
        if let Some((element, item)) = new_items.get(right) {
            done.insert(element, ());
            out.extend(merged(element, item));
            right += 1;
            if next_shared == Some(element) {
                next_shared = shared.next();
            }
        }
    }
    out
}

fn elements<'a>(items: &'a [Value], list: &ListShape) -> Vec<(Element, &'a Value)> {
    items.iter().filter_map(|item| Some((item_element(list, item).ok()?, item))).collect()
}
