//! Values seen through their schema: which fields they have, how two of them differ, and one without some fields.

use serde_json::{Map, Value};

use super::element::Element;
use super::set::{Node, Set};
use crate::types::{AnyKind, ListKind, ListShape, ObjectShape, Schema, Shape};

/// What fields that no schema declares look like: objects by field, all else as a whole.
static DEDUCED: Schema = Schema::of(Shape::Any(AnyKind::Unknown));

/// How ownership sees a value.
pub(super) enum View<'a> {
    /// As a whole.
    Leaf,
    /// By field or key.
    Object(Members<'a>),
    /// By item.
    List(&'a ListShape),
}

/// What is known about the members of an object.
#[derive(Clone, Copy)]
pub(super) enum Members<'a> {
    Fields(&'a ObjectShape),
    /// A map: every member alike.
    Each(&'a Schema),
}

impl<'a> Members<'a> {
    /// The schema of a member, and whether it is a declared field. `None` when the schema has no place for it.
    pub(super) fn get(self, name: &str) -> Option<(&'a Schema, bool)> {
        match self {
            Self::Each(schema) => Some((schema, false)),
            Self::Fields(shape) => match (shape.field(name), &shape.additional) {
                (Some(field), _) => Some((&field.schema, true)),
                (None, Some(schema)) => Some((schema, false)),
                (None, None) if shape.preserve_unknown || shape.embedded_resource => Some((&DEDUCED, false)),
                (None, None) => None,
            },
        }
    }

    fn get_or_deduced(self, name: &str) -> (&'a Schema, bool) {
        self.get(name).unwrap_or((&DEDUCED, false))
    }
}

/// `value` decides where a schema allows several shapes.
pub(super) fn view<'a>(schema: &'a Schema, value: &Value) -> View<'a> {
    match &schema.shape {
        Shape::Object(shape) if !shape.atomic => View::Object(Members::Fields(shape)),
        Shape::Map(map) if !map.atomic => View::Object(Members::Each(&map.value)),
        Shape::List(list) if !matches!(list.kind, ListKind::Atomic) => View::List(list),
        Shape::Any(AnyKind::Unknown) if value.is_object() => View::Object(Members::Each(&DEDUCED)),
        _ => View::Leaf,
    }
}

/// The schema of an object's member and whether it is declared, as far as one is known.
pub(super) fn member_schema<'a>(schema: Option<&'a Schema>, name: &str) -> (Option<&'a Schema>, bool) {
    let members = match schema.map(|schema| &schema.shape) {
        Some(Shape::Object(shape)) => Members::Fields(shape),
        Some(Shape::Map(map)) => Members::Each(&map.value),
        Some(Shape::Any(AnyKind::Unknown)) => Members::Each(&DEDUCED),
        _ => return (None, false),
    };
    members.get(name).map_or((None, false), |(schema, named)| (Some(schema), named))
}

/// The schema of a list's items, as far as one is known.
pub(super) fn item_schema(schema: Option<&Schema>) -> Option<&Schema> {
    match schema.map(|schema| &schema.shape) {
        Some(Shape::List(list)) => Some(&list.item),
        _ => None,
    }
}

/// What names an item of a set or keyed list; the error is upstream's text.
pub(crate) fn item_element(list: &ListShape, item: &Value) -> Result<Element, String> {
    let keys = match &list.kind {
        ListKind::Map(keys) => keys,
        _ => {
            return match item {
                Value::Object(_) => {
                    Err("associative list without keys has an element that's a map type".to_owned())
                }
                Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
                Value::Null => {
                    Err("associative list without keys has an element that's an explicit null".to_owned())
                }
                value => Ok(Element::Value(value.clone())),
            };
        }
    };
    let object = match item {
        Value::Object(object) => object,
        Value::Null => return Err("associative list with keys may not have a null element".to_owned()),
        _ => return Err("associative list with keys may not have non-map elements".to_owned()),
    };
    let mut fields = Vec::with_capacity(keys.len());
    for key in keys.iter() {
        let value = match object.get(&**key) {
            Some(value) => Some(value.clone()),
            None => {
                list.item.field(key).and_then(|field| serde_json::from_str(field.default.as_deref()?).ok())
            }
        };
        fields.extend(value.map(|value| (key.as_str().to_owned(), value)));
    }
    if fields.is_empty() && !keys.is_empty() {
        let keys: Vec<String> = keys.iter().map(|key| format!("\"{key}\"")).collect();
        return Err(format!(
            "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
            keys.join(" ")
        ));
    }
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(Element::Key(fields))
}

/// Whether a place itself is meant, and what below it.
#[derive(Default)]
pub(super) struct Entry {
    pub(super) member: bool,
    pub(super) children: Set,
}

impl Entry {
    const LEAF: Self = Self { member: true, children: Set { nodes: Vec::new() } };

    fn push(self, element: impl FnOnce() -> Element, nodes: &mut Vec<Node>) {
        if self.member || !self.children.is_empty() {
            nodes.push(Node { element: element(), member: self.member, children: self.children });
        }
    }
}

/// The fields that a value has.
pub(super) fn field_set(value: &Value, schema: &Schema) -> Set {
    entry_of(value, schema).children
}

fn entry_of(value: &Value, schema: &Schema) -> Entry {
    match (view(schema, value), value) {
        (View::Object(members), Value::Object(object)) => {
            let mut nodes = Vec::new();
            for (name, value) in object {
                let (schema, named) = members.get_or_deduced(name);
                let mut entry = entry_of(value, schema);
                let hollow = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                entry.member |= hollow || !named;
                entry.push(|| Element::Field(name.clone()), &mut nodes);
            }
            Entry { member: false, children: Set { nodes } }
        }
        (View::List(list), Value::Array(items)) => {
            let mut nodes = Vec::with_capacity(items.len());
            for group in grouped(list, items) {
                let children = match group.items[..] {
                    [item] => entry_of(item, &list.item).children,
                    // Doubles are owned as a whole.
                    _ => Set::default(),
                };
                nodes.push(Node { element: group.element, member: true, children });
            }
            Entry { member: false, children: Set { nodes } }
        }
        (View::Leaf, _) => Entry::LEAF,
        _ => Entry::default(),
    }
}

/// Items of a list that share an element.
struct Group<'a> {
    element: Element,
    items: Vec<&'a Value>,
}

/// The items of a list by element, in the order of elements. Items that have none are passed over: they have
/// been refused before.
fn grouped<'a>(list: &ListShape, items: &'a [Value]) -> Vec<Group<'a>> {
    let named = items.iter().filter_map(|item| Some((item_element(list, item).ok()?, item)));
    let mut named: Vec<(Element, &Value)> = named.collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    let mut groups: Vec<Group<'_>> = Vec::with_capacity(named.len());
    for (element, item) in named {
        match groups.last_mut().filter(|group| group.element == element) {
            Some(group) => group.items.push(item),
            None => groups.push(Group { element, items: vec![item] }),
        }
    }
    groups
}

/// How two values differ.
#[derive(Default)]
pub(super) struct Comparison {
    pub(super) added: Set,
    pub(super) modified: Set,
    pub(super) removed: Set,
}

#[derive(Default)]
struct Entries {
    added: Entry,
    modified: Entry,
    removed: Entry,
}

impl Comparison {
    pub(super) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    /// Without what is at or below `fields`.
    pub(super) fn without(self, fields: &Set) -> Self {
        if fields.is_empty() {
            return self;
        }
        Self {
            added: self.added.recursive_difference(fields),
            modified: self.modified.recursive_difference(fields),
            removed: self.removed.recursive_difference(fields),
        }
    }
}

/// What changed on the way from `old` to `new`.
pub(super) fn compare(old: &Value, new: &Value, schema: &Schema) -> Comparison {
    let entries = compare_entries(Some(old), Some(new), schema);
    Comparison {
        added: entries.added.children,
        modified: entries.modified.children,
        removed: entries.removed.children,
    }
}

fn compare_entries(old: Option<&Value>, new: Option<&Value>, schema: &Schema) -> Entries {
    let Some(shape_giver) = new.filter(|value| !value.is_null()).or(old).or(new) else {
        return Entries::default();
    };
    let deduced = matches!(schema.shape, Shape::Any(AnyKind::Unknown));
    if deduced && old.is_some_and(Value::is_object) != new.is_some_and(Value::is_object) {
        return compare_shapes(old, new, schema);
    }
    let mut entries = match view(schema, shape_giver) {
        View::Leaf => return compare_leaf(old, new),
        _ if is_hollow(old) && is_hollow(new) => return compare_leaf(old, new),
        View::Object(members) => compare_objects(old, new, members),
        View::List(list) => compare_lists(old, new, list),
    };
    entries.added.member |= old.is_none();
    entries.removed.member |= new.is_none();
    entries
}

/// A place where an object became something else or the reverse, and no schema says which is right.
fn compare_shapes(old: Option<&Value>, new: Option<&Value>, schema: &Schema) -> Entries {
    let children =
        |value: Option<&Value>| value.map(|value| entry_of(value, schema).children).unwrap_or_default();
    Entries {
        added: Entry { member: old.is_none(), children: children(new) },
        modified: Entry { member: old.is_some() && new.is_some(), children: Set::default() },
        removed: Entry { member: new.is_none(), children: children(old) },
    }
}

/// True for what is absent, null or empty.
fn is_hollow(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(object)) => object.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    }
}

fn compare_leaf(old: Option<&Value>, new: Option<&Value>) -> Entries {
    let mut entries = Entries::default();
    match (old, new) {
        (None, _) => entries.added = Entry::LEAF,
        (_, None) => entries.removed = Entry::LEAF,
        (old, new) if old != new => entries.modified = Entry::LEAF,
        _ => {}
    }
    entries
}

/// Collects the three kinds of difference of the members of one place.
#[derive(Default)]
struct Collector {
    added: Vec<Node>,
    modified: Vec<Node>,
    removed: Vec<Node>,
}

impl Collector {
    fn push(&mut self, entries: Entries, element: impl Fn() -> Element) {
        entries.added.push(&element, &mut self.added);
        entries.modified.push(&element, &mut self.modified);
        entries.removed.push(&element, &mut self.removed);
    }

    fn finish(self) -> Entries {
        let entry = |nodes| Entry { member: false, children: Set { nodes } };
        Entries { added: entry(self.added), modified: entry(self.modified), removed: entry(self.removed) }
    }
}

fn compare_objects(old: Option<&Value>, new: Option<&Value>, members: Members<'_>) -> Entries {
    let mut old = old.and_then(Value::as_object).into_iter().flatten().peekable();
    let mut new = new.and_then(Value::as_object).into_iter().flatten().peekable();
    let mut collector = Collector::default();
    loop {
        let name = match (old.peek(), new.peek()) {
            (None, None) => return collector.finish(),
            (Some((name, _)), None) | (None, Some((name, _))) => *name,
            (Some((a, _)), Some((b, _))) => (*a).min(*b),
        };
        let before = old.next_if(|(key, _)| *key == name).map(|(_, value)| value);
        let after = new.next_if(|(key, _)| *key == name).map(|(_, value)| value);
        let (schema, _) = members.get_or_deduced(name);
        collector.push(compare_entries(before, after, schema), || Element::Field(name.clone()));
    }
}

fn compare_lists(old: Option<&Value>, new: Option<&Value>, list: &ListShape) -> Entries {
    let (mut old, mut new) =
        (groups_of(list, old).into_iter().peekable(), groups_of(list, new).into_iter().peekable());
    let mut collector = Collector::default();
    loop {
        let element = match (old.peek(), new.peek()) {
            (None, None) => return collector.finish(),
            (Some(group), None) | (None, Some(group)) => group.element.clone(),
            (Some(a), Some(b)) => (&a.element).min(&b.element).clone(),
        };
        let before =
            old.next_if(|group| group.element == element).map(|group| group.items).unwrap_or_default();
        let after =
            new.next_if(|group| group.element == element).map(|group| group.items).unwrap_or_default();
        collector.push(compare_items(&before, &after, &list.item), || element.clone());
    }
}

fn groups_of<'a>(list: &ListShape, value: Option<&'a Value>) -> Vec<Group<'a>> {
    match value {
        Some(Value::Array(items)) => grouped(list, items),
        _ => Vec::new(),
    }
}

/// Compares the items of one element. Doubles count as one value.
fn compare_items(before: &[&Value], after: &[&Value], schema: &Schema) -> Entries {
    match (before, after) {
        ([] | [_], [] | [_]) => compare_entries(before.first().copied(), after.first().copied(), schema),
        ([_, _, ..], [_, _, ..]) => {
            let modified = Entry { member: before != after, children: Set::default() };
            Entries { modified, ..Entries::default() }
        }
        ([_, _, ..], after) => {
            let mut entries = compare_entries(None, after.first().copied(), schema);
            entries.removed.member = true;
            entries
        }
        (before, _) => {
            let mut entries = compare_entries(before.first().copied(), None, schema);
            entries.added.member = true;
            entries
        }
    }
}

/// The value without the fields and items of `set`. What loses everything becomes null.
pub(super) fn remove(value: Value, set: &Set, schema: &Schema) -> Value {
    match (view(schema, &value), value) {
        (View::Object(members), Value::Object(object)) => {
            let mut kept = Map::new();
            for (name, value) in object {
                match set.field_node(&name) {
                    None => drop(kept.insert(name, value)),
                    Some(node) if node.member => {}
                    Some(node) => {
                        let value = remove(value, &node.children, members.get_or_deduced(&name).0);
                        kept.insert(name, value);
                    }
                }
            }
            if kept.is_empty() { Value::Null } else { Value::Object(kept) }
        }
        (View::List(list), Value::Array(items)) => {
            let mut kept = Vec::with_capacity(items.len());
            for item in items {
                let node = item_element(list, &item).ok().and_then(|element| set.node(&element));
                match node {
                    None => kept.push(item),
                    Some(node) if node.member => {}
                    Some(node) => kept.push(remove(item, &node.children, &list.item)),
                }
            }
            if kept.is_empty() { Value::Null } else { Value::Array(kept) }
        }
        (View::Leaf, Value::Object(_) | Value::Array(_)) | (_, Value::Null) => Value::Null,
        (_, scalar) => scalar,
    }
}
