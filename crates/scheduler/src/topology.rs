//! Topology domains as small numbers: for each topology key in use, the domain every node is in.

use std::collections::HashMap;
use std::sync::Arc;

use crate::node::{NodeIdx, NodeInfo};

/// Keys kept at most; the one unused for longest makes room.
const MAX_KEYS: usize = 64;

/// A domain of some topology key; 0 stands for nodes without the label.
pub type Domain = u32;

/// The domains of one topology key.
#[derive(Debug, Clone, Default)]
pub struct Domains {
    ids: HashMap<Box<str>, Domain>,
    of_node: Vec<Domain>,
}

impl Domains {
    fn build<'a>(key: &str, nodes: impl Iterator<Item = &'a NodeInfo>) -> Self {
        let mut domains = Self::default();
        for node in nodes {
            domains.set(node.idx, node.label(key).filter(|_| node.present));
        }
        domains
    }

    fn set(&mut self, node: NodeIdx, value: Option<&str>) {
        let next = Domain::try_from(self.ids.len() + 1).unwrap_or(Domain::MAX);
        let domain = match value {
            None => 0,
            Some(value) => match self.ids.get(value) {
                Some(domain) => *domain,
                None => *self.ids.entry(value.into()).or_insert(next),
            },
        };
        let at = node as usize;
        if self.of_node.len() <= at {
            self.of_node.resize(at + 1, 0);
        }
        self.of_node[at] = domain;
    }

    /// The domain of a node, 0 without one.
    pub fn of(&self, node: NodeIdx) -> Domain {
        self.of_node.get(node as usize).copied().unwrap_or(0)
    }

    /// A table with a place for every domain, 0 included.
    pub fn table<T: Clone>(&self, value: T) -> Vec<T> {
        vec![value; self.ids.len() + 1]
    }
}

#[derive(Debug, Default)]
pub struct Topology {
    keys: HashMap<Arc<str>, (Arc<Domains>, u64)>,
    clock: u64,
}

impl Topology {
    /// Makes sure a key's domains are kept.
    pub fn prepare<'a>(&mut self, key: &Arc<str>, nodes: impl Iterator<Item = &'a NodeInfo>) {
        self.clock += 1;
        if let Some((_, used)) = self.keys.get_mut(key) {
            *used = self.clock;
            return;
        }
        if self.keys.len() >= MAX_KEYS {
            let oldest = self.keys.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| Arc::clone(key));
            if let Some(oldest) = oldest {
                self.keys.remove(&oldest);
            }
        }
        self.keys.insert(Arc::clone(key), (Arc::new(Domains::build(key, nodes)), self.clock));
    }

    /// The domains of a key, worked out afresh when they are not kept.
    pub fn domains<'a>(&self, key: &str, nodes: impl Iterator<Item = &'a NodeInfo>) -> Arc<Domains> {
        match self.keys.get(key) {
            Some((domains, _)) => Arc::clone(domains),
            None => Arc::new(Domains::build(key, nodes)),
        }
    }

    pub fn node_changed(&mut self, node: &NodeInfo) {
        for (key, (domains, _)) in &mut self.keys {
            Arc::make_mut(domains).set(node.idx, node.label(key).filter(|_| node.present));
        }
        // Values of nodes long gone must not pile up: such a key is built again when next asked for.
        self.keys.retain(|_, (domains, _)| domains.ids.len() <= 2 * domains.of_node.len() + 64);
    }
}
