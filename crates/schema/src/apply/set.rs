//! Sets of fields (`FieldsV1`).

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::element::Element;
use crate::types::Schema;

/// Fields of an object, as a tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Set {
    /// Sorted by element, none without content.
    pub(super) nodes: Vec<Node>,
}

/// One child and what is below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) element: Element,
    /// The child itself is in the set, not just something below it.
    pub(super) member: bool,
    pub(super) children: Set,
}

impl Node {
    fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }
}

impl Set {
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Parses the wire form; `None` when it is none.
    pub fn parse(value: &Value) -> Option<Self> {
        below_set(value.as_object()?)
    }

    /// The wire form.
    pub fn print(&self) -> Value {
        let mut object = Map::new();
        for node in &self.nodes {
            let mut below = match node.children.print() {
                Value::Object(below) => below,
                _ => Map::new(),
            };
            if node.member && !below.is_empty() {
                below.insert(".".to_owned(), Value::Object(Map::new()));
            }
            object.insert(node.element.print(), Value::Object(below));
        }
        Value::Object(object)
    }

    /// Adds one path.
    pub fn insert(&mut self, path: &[Element]) {
        let Some((first, rest)) = path.split_first() else { return };
        let at = match self.position(first) {
            Ok(at) => at,
            Err(at) => {
                let node = Node { element: first.clone(), member: false, children: Self::default() };
                self.nodes.insert(at, node);
                at
            }
        };
        if rest.is_empty() {
            self.nodes[at].member = true;
        } else {
            self.nodes[at].children.insert(rest);
        }
    }

    /// The set of these paths of plain fields.
    pub fn of_fields(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            let path: Vec<Element> = path.iter().map(|name| Element::Field((*name).to_owned())).collect();
            set.insert(&path);
        }
        set
    }

    pub fn has(&self, path: &[Element]) -> bool {
        match path {
            [] => false,
            [last] => self.node(last).is_some_and(|node| node.member),
            [first, rest @ ..] => self.node(first).is_some_and(|node| node.children.has(rest)),
        }
    }

    /// Every path, those that end here before those that go on.
    pub fn paths(&self) -> Vec<Vec<Element>> {
        let (mut paths, mut prefix) = (Vec::new(), Vec::new());
        self.collect_paths(&mut prefix, &mut paths);
        paths
    }

    fn collect_paths(&self, prefix: &mut Vec<Element>, paths: &mut Vec<Vec<Element>>) {
        for node in self.nodes.iter().filter(|node| node.member) {
            let mut path = prefix.clone();
            path.push(node.element.clone());
            paths.push(path);
        }
        for node in &self.nodes {
            prefix.push(node.element.clone());
            node.children.collect_paths(prefix, paths);
            prefix.pop();
        }
    }

    /// What is in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let pick = |a: Option<&Node>, b: Option<&Node>| match (a, b) {
            (Some(a), Some(b)) => Some(Node {
                element: a.element.clone(),
                member: a.member || b.member,
                children: a.children.union(&b.children),
            }),
            (one, None) | (None, one) => one.cloned(),
        };
        self.zip(other, pick)
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.zip(other, |a, b| {
            let (a, b) = (a?, b?);
            let children = a.children.intersection(&b.children);
            Some(Node { element: a.element.clone(), member: a.member && b.member, children })
        })
    }

    /// What is in this one but not in the other; children of what is in the other stay.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.zip(other, |a, b| {
            let a = a?;
            let Some(b) = b else { return Some(a.clone()) };
            let children = a.children.difference(&b.children);
            Some(Node { element: a.element.clone(), member: a.member && !b.member, children })
        })
    }

    /// What is in this one and not at or below anything in the other.
    #[must_use]
    pub fn recursive_difference(&self, other: &Self) -> Self {
        self.zip(other, |a, b| {
            let a = a?;
            match b {
                None => Some(a.clone()),
                Some(b) if b.member => None,
                Some(b) => Some(Node {
                    element: a.element.clone(),
                    member: a.member,
                    children: a.children.recursive_difference(&b.children),
                }),
            }
        })
    }

    /// Adds the declared fields on the way to every path: `spec` for `spec.replicas`.
    #[must_use]
    pub(super) fn with_named_fields(&self, schema: Option<&Schema>) -> Self {
        let nodes = self.nodes.iter().map(|node| {
            let (schema, named) = match &node.element {
                Element::Field(name) => super::typed::member_schema(schema, name),
                Element::Key(_) => (super::typed::item_schema(schema), false),
                _ => (None, false),
            };
            Node {
                element: node.element.clone(),
                member: node.member || (named && !node.children.is_empty()),
                children: node.children.with_named_fields(schema),
            }
        });
        Self { nodes: nodes.collect() }
    }

    pub(super) fn node(&self, element: &Element) -> Option<&Node> {
        self.position(element).ok().map(|at| &self.nodes[at])
    }

    /// [`Self::node`] of a field, without making an element of its name.
    pub(super) fn field_node(&self, name: &str) -> Option<&Node> {
        let order = |node: &Node| match &node.element {
            Element::Field(field) => field.as_str().cmp(name),
            _ => Ordering::Greater,
        };
        self.nodes.binary_search_by(order).ok().map(|at| &self.nodes[at])
    }

    fn position(&self, element: &Element) -> Result<usize, usize> {
        self.nodes.binary_search_by(|node| node.element.cmp(element))
    }

    /// Walks both in order; keeps what `pick` returns, unless it is empty.
    fn zip(&self, other: &Self, pick: impl Fn(Option<&Node>, Option<&Node>) -> Option<Node>) -> Self {
        let (mut left, mut right) = (self.nodes.iter().peekable(), other.nodes.iter().peekable());
        let mut nodes = Vec::new();
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => return Self { nodes },
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => a.element.cmp(&b.element),
            };
            let a = if order.is_le() { left.next() } else { None };
            let b = if order.is_ge() { right.next() } else { None };
            nodes.extend(pick(a, b).filter(|node| !node.is_empty()));
        }
    }
}

fn below_set(below: &Map<String, Value>) -> Option<Set> {
    let mut set = Set::default();
    for (key, value) in below.iter().filter(|(key, _)| *key != ".") {
        let element = Element::parse(key)?;
        let value = value.as_object()?;
        let member = value.is_empty() || value.contains_key(".");
        set.nodes.push(Node { element, member, children: below_set(value)? });
    }
    set.nodes.sort_by(|a, b| a.element.cmp(&b.element));
    Some(set)
}
