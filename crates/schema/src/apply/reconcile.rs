//! Owned fields after a schema turned from granular to atomic.

use super::element::Element;
use super::set::{Node, Set};
use super::typed::{item_schema, member_schema};
use super::validate::is_untyped;
use crate::types::{ListKind, Schema, Shape};

/// The set in the terms of the schema: who owned part of what is atomic now owns all of it.
pub(super) fn reconcile(set: Set, schema: &Schema) -> Set {
    Set { nodes: set.nodes.into_iter().map(|node| reconcile_node(node, schema)).collect() }
}

fn reconcile_node(node: Node, parent: &Schema) -> Node {
    let schema = match &node.element {
        Element::Field(name) => member_schema(Some(parent), name).0,
        _ => item_schema(Some(parent)),
    };
    let Some(schema) = schema.filter(|schema| !is_untyped(schema)) else { return node };
    let atomic = match &schema.shape {
        Shape::Object(shape) => shape.atomic,
        Shape::Map(map) => map.atomic,
        Shape::List(list) => matches!(list.kind, ListKind::Atomic),
        _ => return node,
    };
    if !atomic {
        return Node { children: reconcile(node.children, schema), ..node };
    }
    if node.children.is_empty() {
        return node;
    }
    Node { member: true, children: Set::default(), element: node.element }
}
