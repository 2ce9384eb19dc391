//! Sets of fields (`FieldsV1`).

use std::cmp::Ordering;
use std::iter::Peekable;

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
    pub fn union(self, other: Self) -> Self {
        if self.is_empty() || other.is_empty() {
            return if self.is_empty() { other } else { self };
        }
        let mut nodes = Vec::with_capacity(self.nodes.len() + other.nodes.len());
        let (mut left, mut right) = (self.nodes.into_iter().peekable(), other.nodes.into_iter().peekable());
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => return Self { nodes },
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => a.element.cmp(&b.element),
            };
            match order {
                Ordering::Less => nodes.extend(left.next()),
                Ordering::Greater => nodes.extend(right.next()),
                Ordering::Equal => nodes.extend(left.next().zip(right.next()).map(|(a, b)| Node {
                    element: a.element,
                    member: a.member || b.member,
                    children: a.children.union(b.children),
                })),
            }
        }
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut right = other.nodes.iter().peekable();
        let nodes = self.nodes.iter().filter_map(|a| {
            let b = advance(&mut right, &a.element)?;
            let children = a.children.intersection(&b.children);
            let node = Node { element: a.element.clone(), member: a.member && b.member, children };
            (!node.is_empty()).then_some(node)
        });
        Self { nodes: nodes.collect() }
    }

    /// What is in this one but not in the other; children of what is in the other stay.
    #[must_use]
    pub fn difference(mut self, other: &Self) -> Self {
        let mut right = other.nodes.iter().peekable();
        self.nodes.retain_mut(|a| {
            if let Some(b) = advance(&mut right, &a.element) {
                a.member &= !b.member;
                a.children = std::mem::take(&mut a.children).difference(&b.children);
            }
            !a.is_empty()
        });
        self
    }

    /// What is in this one and not at or below anything in the other.
    #[must_use]
    pub fn recursive_difference(mut self, other: &Self) -> Self {
        let mut right = other.nodes.iter().peekable();
        self.nodes.retain_mut(|a| match advance(&mut right, &a.element) {
            None => true,
            Some(b) if b.member => false,
            Some(b) => {
                a.children = std::mem::take(&mut a.children).recursive_difference(&b.children);
                !a.is_empty()
            }
        });
        self
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
}

/// The node of that element, with all before it passed over.
fn advance<'a>(nodes: &mut Peekable<std::slice::Iter<'a, Node>>, element: &Element) -> Option<&'a Node> {
    while nodes.next_if(|node| node.element < *element).is_some() {}
    nodes.next_if(|node| node.element == *element)
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
