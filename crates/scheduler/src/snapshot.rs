//! Everything a decision looks at: nodes, the pods on them (bound or assumed), and the indexes over both.
//!
//! One task owns the snapshot and feeds it from the watches between decisions, so it is changed in place
//! and never copied; a decision borrows it unchanged.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;

use crate::devices::Devices;
use crate::index::{Group, NodeCounts, PodIndex};
use crate::labels::Labels;
use crate::node::{NodeFacts, NodeIdx, NodeInfo};
use crate::pod::{PodInfo, Uid};
use crate::storage::Storage;
use crate::topology::{Domains, Topology};
use crate::workloads::{DisruptionBudgets, Workloads};

#[derive(Debug, Default)]
pub struct Snapshot {
    nodes: Vec<NodeInfo>,
    by_name: HashMap<Arc<str>, NodeIdx>,
    free: Vec<NodeIdx>,
    order: Vec<NodeIdx>,
    order_is_stale: bool,
    pods: HashMap<Uid, Placed>,
    namespaces: HashMap<Arc<str>, Namespace>,
    index: PodIndex,
    topology: Topology,
    images: HashMap<String, u32>,
    pub workloads: Workloads,
    pub budgets: DisruptionBudgets,
    pub storage: Storage,
    pub devices: Devices,
}

#[derive(Debug)]
struct Placed {
    pod: Arc<PodInfo>,
    node: NodeIdx,
    assumed: bool,
}

#[derive(Debug, Default)]
struct Namespace {
    labels: Option<Labels>,
    pods: HashMap<Uid, NodeIdx>,
}

/// What changed about a node; decides which waiting pods are looked at again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeChange {
    pub added: bool,
    pub allocatable: bool,
    pub labels: bool,
    pub taints: bool,
}

impl NodeChange {
    pub fn any(self) -> bool {
        self.added || self.allocatable || self.labels || self.taints
    }
}

impl Snapshot {
    /// The nodes that exist, spread over zones, as of the last preparation for a decision.
    pub fn node_order(&self) -> &[NodeIdx] {
        &self.order
    }

    pub fn node(&self, idx: NodeIdx) -> &NodeInfo {
        &self.nodes[idx as usize]
    }

    pub fn node_named(&self, name: &str) -> Option<&NodeInfo> {
        self.by_name.get(name).map(|idx| self.node(*idx)).filter(|node| node.present)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.order.iter().map(|idx| self.node(*idx))
    }

    /// One more than the greatest node index in use.
    pub fn node_slots(&self) -> usize {
        self.nodes.len()
    }

    pub fn pod(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.pods.get(uid).map(|placed| &placed.pod)
    }

    pub fn pod_node(&self, uid: &str) -> Option<&NodeInfo> {
        self.pods.get(uid).map(|placed| self.node(placed.node))
    }

    pub fn is_assumed(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|placed| placed.assumed)
    }

    pub fn pod_count(&self) -> usize {
        self.pods.len()
    }

    pub fn namespace_labels(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)?.labels.as_ref()
    }

    /// How many nodes have an image.
    pub fn nodes_with_image(&self, image: &str) -> u32 {
        self.images.get(image).copied().unwrap_or(0)
    }

    pub fn index(&self) -> &PodIndex {
        &self.index
    }

    pub fn domains(&self, key: &str) -> Arc<Domains> {
        self.topology.domains(key, self.nodes.iter())
    }

    /// Takes in a node as the API has it now.
    pub fn set_node(&mut self, node: &core::Node) -> NodeChange {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        self.set_node_facts(name, NodeFacts::new(node))
    }

    pub fn set_node_facts(&mut self, name: &str, facts: NodeFacts) -> NodeChange {
        let idx = self.slot(name);
        let known = &self.nodes[idx as usize];
        let old = Arc::clone(&known.facts);
        let change = NodeChange {
            added: !known.present,
            allocatable: old.allocatable != facts.allocatable || old.allowed_pods != facts.allowed_pods,
            labels: old.labels != facts.labels,
            taints: old.taints != facts.taints || old.unschedulable != facts.unschedulable,
        };
        if known.present && *old == facts {
            return change;
        }
        self.order_is_stale |= change.added || change.labels;
        self.count_images(&old, -1);
        self.count_images(&facts, 1);
        let node = &mut self.nodes[idx as usize];
        node.facts = Arc::new(facts);
        node.present = true;
        if change.added || change.labels {
            self.topology.node_changed(&self.nodes[idx as usize]);
        }
        change
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(idx) = self.by_name.get(name).copied() else { return };
        let node = &mut self.nodes[idx as usize];
        node.present = false;
        let old = std::mem::take(&mut node.facts);
        self.count_images(&old, -1);
        self.topology.node_changed(&self.nodes[idx as usize]);
        self.release(idx);
        self.order_is_stale = true;
    }

    fn count_images(&mut self, facts: &NodeFacts, change: i32) {
        for (image, _) in &facts.images {
            let count = self.images.entry(image.clone()).or_default();
            *count = count.saturating_add_signed(change);
            if *count == 0 {
                self.images.remove(image);
            }
        }
    }

    fn slot(&mut self, name: &str) -> NodeIdx {
        if let Some(idx) = self.by_name.get(name) {
            return *idx;
        }
        let name: Arc<str> = name.into();
        let idx = match self.free.pop() {
            Some(idx) => {
                self.nodes[idx as usize] = NodeInfo::new(idx, Arc::clone(&name));
                idx
            }
            None => {
                let idx = NodeIdx::try_from(self.nodes.len()).unwrap_or(NodeIdx::MAX);
                self.nodes.push(NodeInfo::new(idx, Arc::clone(&name)));
                idx
            }
        };
        self.by_name.insert(name, idx);
        idx
    }

    /// Gives up a place that neither a node nor a pod uses any more.
    fn release(&mut self, idx: NodeIdx) {
        let node = &self.nodes[idx as usize];
        if !node.present && node.pods.is_empty() && self.by_name.remove(&node.name).is_some() {
            self.free.push(idx);
        }
    }

    /// Brings the order of nodes up to date: once before a decision, however many nodes came and went.
    pub(crate) fn refresh_order(&mut self) {
        if !std::mem::take(&mut self.order_is_stale) {
            return;
        }
        let mut zones: BTreeMap<(&str, &str), Vec<NodeIdx>> = BTreeMap::new();
        for node in self.nodes.iter().filter(|node| node.present) {
            zones.entry(node.zone()).or_default().push(node.idx);
        }
        let longest = zones.values().map(Vec::len).max().unwrap_or(0);
        self.order = (0..longest)
            .flat_map(|at| zones.values().filter_map(move |zone| zone.get(at).copied()))
            .collect();
    }

    /// Puts a pod on a node: as the API says it is, or (`assumed`) as it is about to be.
    /// A pod known already is counted anew.
    pub fn place_pod(&mut self, pod: Arc<PodInfo>, node_name: &str, assumed: bool) {
        if let Some(placed) = self.pods.get_mut(&pod.uid) {
            if *placed.pod == *pod && &*self.nodes[placed.node as usize].name == node_name {
                placed.assumed = assumed;
                return;
            }
            let uid = Arc::clone(&pod.uid);
            self.remove_pod(&uid);
        }
        let idx = self.slot(node_name);
        self.nodes[idx as usize].add_pod(&pod);
        let namespace = self.namespaces.entry(Arc::clone(&pod.namespace)).or_default();
        namespace.pods.insert(Arc::clone(&pod.uid), idx);
        self.index.add_pod(&pod, idx, namespace.labels.as_ref());
        self.storage.add_pod(&pod);
        self.pods.insert(Arc::clone(&pod.uid), Placed { pod, node: idx, assumed });
    }

    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let placed = self.pods.remove(uid)?;
        self.nodes[placed.node as usize].remove_pod(uid);
        if let Some(namespace) = self.namespaces.get_mut(&placed.pod.namespace) {
            namespace.pods.remove(uid);
            self.index.remove_pod(&placed.pod, placed.node, namespace.labels.as_ref());
            if namespace.pods.is_empty() && namespace.labels.is_none() {
                self.namespaces.remove(&placed.pod.namespace);
            }
        }
        self.storage.remove_pod(&placed.pod);
        self.release(placed.node);
        Some(placed.pod)
    }

    /// Takes in a namespace's labels; true when they changed.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) -> bool {
        let namespace = self.namespaces.entry(name.into()).or_default();
        if namespace.labels == labels {
            return false;
        }
        namespace.labels = labels;
        if namespace.pods.is_empty() && namespace.labels.is_none() {
            self.namespaces.remove(name);
        }
        self.index.namespaces_changed();
        true
    }

    /// Makes sure the pods of a group are counted by node.
    pub fn prepare_group(&mut self, group: &Group) {
        if self.index.touch(group) {
            return;
        }
        let mut nodes = NodeCounts::new();
        for (name, namespace) in &self.namespaces {
            let labels = namespace.labels.as_ref();
            if !group.filters.iter().all(|filter| filter.in_scope(name, labels)) {
                continue;
            }
            for (uid, node) in &namespace.pods {
                if self.pods.get(uid).is_some_and(|placed| group.matches(&placed.pod, labels)) {
                    *nodes.entry(*node).or_default() += 1;
                }
            }
        }
        self.index.insert_group(group.clone(), nodes);
    }

    pub fn prepare_topology(&mut self, key: &Arc<str>) {
        self.topology.prepare(key, self.nodes.iter());
    }
}
