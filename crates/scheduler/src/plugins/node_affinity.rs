//! Node selectors and node affinity, the pod's own and the profile's.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as core;

use crate::events::ClusterEvent;
use crate::framework::{Checks, Filter, Plugin, Point, Rejection, Score, Verdict, normalize_by_max};
use crate::labels::{NodeSelector, NodeSelectorTerm};
use crate::node::{NodeIdx, NodeInfo};
use crate::pod::{PodInfo, preferred_nodes};
use crate::snapshot::Snapshot;

const NAME: &str = "NodeAffinity";

/// `addedAffinity` is asked of every pod of the profile.
#[derive(Debug, Default)]
pub struct NodeAffinity {
    added_required: Option<NodeSelector>,
    added_preferred: Vec<(i64, NodeSelectorTerm)>,
}

#[derive(Clone)]
struct Affinity<'s> {
    added: Option<&'s NodeSelector>,
    pod: &'s PodInfo,
}

struct Preferred<'s>(Vec<&'s (i64, NodeSelectorTerm)>);

impl NodeAffinity {
    pub fn new(added: Option<&core::NodeAffinity>) -> Self {
        let required =
            added.and_then(|added| added.required_during_scheduling_ignored_during_execution.as_ref());
        Self { added_required: required.map(NodeSelector::from_api), added_preferred: preferred_nodes(added) }
    }
}

/// Whether the node has what the pod's node selector and required node affinity ask for.
pub fn required_nodes_match(pod: &PodInfo, node: &NodeInfo) -> bool {
    let labels = &node.facts.labels;
    pod.spec.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        && pod.spec.required_nodes.as_ref().is_none_or(|required| required.matches(&node.name, labels))
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score]
    }

    fn pre_filter<'s>(&'s self, snapshot: &'s Snapshot, pod: &'s PodInfo) -> Result<Checks<'s>, Rejection> {
        let unlimited = pod.spec.node_selector.is_empty() && pod.spec.required_nodes.is_none();
        if unlimited && self.added_required.is_none() {
            return Checks::skip();
        }
        let mut checks = Checks::with(Affinity { added: self.added_required.as_ref(), pod })?;
        if let Some(names) = named_nodes(pod) {
            let Some(names) = names else {
                return Err(Rejection::unresolvable(NAME, "pod affinity terms conflict"));
            };
            let nodes = names.iter().filter_map(|name| snapshot.node_named(name)).map(|node| node.idx);
            checks.nodes = Some(nodes.collect());
        }
        Ok(checks)
    }

    fn pre_score<'s>(
        &'s self,
        _snapshot: &'s Snapshot,
        pod: &'s PodInfo,
        _feasible: &[NodeIdx],
    ) -> Option<Box<dyn Score + 's>> {
        let terms: Vec<_> = self.added_preferred.iter().chain(&pod.spec.preferred_nodes).collect();
        if terms.is_empty() {
            return None;
        }
        Some(Box::new(Preferred(terms)))
    }

    fn queueing_hint(&self, _snapshot: &Snapshot, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        matches!(event, ClusterEvent::Node { node, change }
            if (change.added || change.labels)
                && required_nodes_match(pod, node)
                && self.added_required.as_ref().is_none_or(|own| own.matches(&node.name, &node.facts.labels)))
    }
}

/// The nodes a pod names, if all of its terms name some: `Some(None)` when they contradict each other.
fn named_nodes(pod: &PodInfo) -> Option<Option<BTreeSet<&str>>> {
    let terms = &pod.spec.required_nodes.as_ref()?.0;
    let mut all = BTreeSet::new();
    for term in terms {
        all.extend(term.node_names()?);
    }
    if terms.is_empty() {
        return None;
    }
    Some((!all.is_empty()).then_some(all))
}

impl<'s> Filter<'s> for Affinity<'s> {
    fn filter(&self, node: &NodeInfo) -> Verdict {
        if self.added.is_some_and(|added| !added.matches(&node.name, &node.facts.labels)) {
            return Err(Rejection::unresolvable(
                NAME,
                "node(s) didn't match scheduler-enforced node affinity",
            ));
        }
        if required_nodes_match(self.pod, node) {
            return Ok(());
        }
        Err(Rejection::unresolvable(NAME, "node(s) didn't match Pod's node affinity/selector"))
    }

    fn clone_box(&self) -> Box<dyn Filter<'s> + 's> {
        Box::new(self.clone())
    }
}

impl Score for Preferred<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let matching = self.0.iter().filter(|(_, term)| term.matches(&node.name, &node.facts.labels));
        matching.map(|(weight, _)| weight).sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize_by_max(scores, false);
    }
}
