//! Spreads pods over topology domains: hard constraints filter, soft ones score.

use std::sync::Arc;

use super::node_affinity::required_nodes_match;
use super::taint_toleration::tolerates_all;
use crate::events::ClusterEvent;
use crate::framework::{Checks, Filter, MAX_NODE_SCORE, Plugin, Point, Rejection, Score, Verdict};
use crate::index::Group;
use crate::node::{HOSTNAME_KEY, NodeIdx, NodeInfo, ZONE_KEY};
use crate::pod::{PodFilter, PodInfo, SpreadConstraint};
use crate::snapshot::Snapshot;
use crate::topology::Domains;

const NAME: &str = "PodTopologySpread";
const MISSING_LABEL: &str = "node(s) didn't match pod topology spread constraints (missing required label)";
const SKEWED: &str = "node(s) didn't match pod topology spread constraints";

/// What a node without all the topology labels scores before normalization.
const IGNORED: i64 = -1;

/// Default constraints apply to pods that a service or a controller selects and that have none of their own.
#[derive(Debug)]
pub struct PodTopologySpread {
    defaults: Vec<SpreadConstraint>,
    /// Upstream's own defaults; then nodes need not have all the labels.
    system_defaults: bool,
}

impl PodTopologySpread {
    pub fn with_system_defaults() -> Self {
        let soft = |key: &str, max_skew| SpreadConstraint {
            topology_key: key.into(),
            max_skew,
            min_domains: 1,
            hard: false,
            selector: crate::labels::Selector::everything(),
            honor_affinity: true,
            honor_taints: false,
        };
        Self { defaults: vec![soft(HOSTNAME_KEY, 3), soft(ZONE_KEY, 5)], system_defaults: true }
    }

    pub fn with_defaults(defaults: Vec<SpreadConstraint>) -> Self {
        Self { defaults, system_defaults: false }
    }

    /// The constraints that hold for the pod, of its own or by default.
    fn constraints(&self, snapshot: &Snapshot, pod: &PodInfo) -> Vec<SpreadConstraint> {
        if !pod.spec.spread.is_empty() {
            return pod.spec.spread.clone();
        }
        if self.defaults.is_empty() {
            return Vec::new();
        }
        let Some(selector) = snapshot.workloads.default_selector(pod) else { return Vec::new() };
        let mut constraints = self.defaults.clone();
        for constraint in &mut constraints {
            constraint.selector = selector.clone();
        }
        constraints
    }
}

fn group(pod: &PodInfo, constraint: &SpreadConstraint) -> Group {
    Group {
        filters: vec![PodFilter {
            namespaces: vec![Arc::clone(&pod.namespace)],
            namespace_selector: None,
            selector: constraint.selector.clone(),
        }],
        skip_terminating: true,
    }
}

/// Whether the node's pods count for the constraint (KEP-3094).
fn included(constraint: &SpreadConstraint, pod: &PodInfo, node: &NodeInfo) -> bool {
    (!constraint.honor_affinity || required_nodes_match(pod, node))
        && (!constraint.honor_taints || tolerates_all(&pod.spec.tolerations, &node.facts.taints))
}

/// The number of pods in each domain of one constraint; absent where no eligible node is in the domain.
#[derive(Debug, Clone)]
struct Spread {
    constraint: SpreadConstraint,
    domains: Arc<Domains>,
    counts: Vec<Option<i64>>,
    domain_count: i64,
    least: i64,
    self_match: i64,
}

#[derive(Clone)]
struct Spreads<'s> {
    pod: &'s PodInfo,
    all: Vec<Spread>,
}

impl Spread {
    fn update_least(&mut self) {
        self.least = self.counts.iter().flatten().copied().min().unwrap_or(i64::from(i32::MAX));
        if self.domain_count < i64::from(self.constraint.min_domains) {
            self.least = 0;
        }
    }
}

impl Spreads<'_> {
    fn has_all_labels(&self, node: &NodeInfo) -> bool {
        self.all.iter().all(|spread| spread.domains.of(node.idx) != 0)
    }

    fn count(&mut self, snapshot: &Snapshot) {
        let pod = self.pod;
        let simple = pod.spec.node_selector.is_empty() && pod.spec.required_nodes.is_none();
        let eligible: Vec<bool> = (0..snapshot.node_slots()).map(|_| false).collect();
        for at in 0..self.all.len() {
            let mut eligible = eligible.clone();
            for node in snapshot.nodes().filter(|node| self.has_all_labels(node)) {
                let constraint = &self.all[at].constraint;
                eligible[node.idx as usize] =
                    (simple && !constraint.honor_taints) || included(constraint, pod, node);
            }
            let spread = &mut self.all[at];
            for node in snapshot.nodes().filter(|node| eligible[node.idx as usize]) {
                spread.counts[spread.domains.of(node.idx) as usize].get_or_insert(0);
            }
            for (node, count) in snapshot.index().group(&group(pod, &spread.constraint)).into_iter().flatten()
            {
                if eligible.get(*node as usize).copied().unwrap_or(false)
                    && let Some(sum) = &mut spread.counts[spread.domains.of(*node) as usize]
                {
                    *sum += i64::from(*count);
                }
            }
            spread.domain_count = i64::try_from(spread.counts.iter().flatten().count()).unwrap_or(i64::MAX);
            spread.update_least();
        }
    }

    fn update(&mut self, other: &PodInfo, node: &NodeInfo, change: i64) {
        if other.namespace != self.pod.namespace || other.terminating || !self.has_all_labels(node) {
            return;
        }
        for spread in &mut self.all {
            if spread.constraint.selector.matches(&other.labels)
                && included(&spread.constraint, self.pod, node)
            {
                let domain = spread.domains.of(node.idx) as usize;
                *spread.counts[domain].get_or_insert(0) += change;
                spread.update_least();
            }
        }
    }
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score]
    }

    fn prepare(&self, snapshot: &mut Snapshot, pod: &PodInfo) {
        for constraint in self.constraints(snapshot, pod) {
            snapshot.prepare_topology(&constraint.topology_key);
            snapshot.prepare_group(&group(pod, &constraint));
        }
    }

    fn pre_filter<'s>(&'s self, snapshot: &'s Snapshot, pod: &'s PodInfo) -> Result<Checks<'s>, Rejection> {
        let mut constraints = self.constraints(snapshot, pod);
        constraints.retain(|constraint| constraint.hard);
        if constraints.is_empty() {
            return Checks::skip();
        }
        let all = constraints
            .into_iter()
            .map(|constraint| {
                let domains = snapshot.domains(&constraint.topology_key);
                Spread {
                    self_match: i64::from(constraint.selector.matches(&pod.labels)),
                    counts: domains.table(None),
                    constraint,
                    domains,
                    domain_count: 0,
                    least: 0,
                }
            })
            .collect();
        let mut spreads = Spreads { pod, all };
        spreads.count(snapshot);
        Checks::with(spreads)
    }

    fn pre_score<'s>(
        &'s self,
        snapshot: &'s Snapshot,
        pod: &'s PodInfo,
        feasible: &[NodeIdx],
    ) -> Option<Box<dyn Score + 's>> {
        let mut constraints = self.constraints(snapshot, pod);
        constraints.retain(|constraint| !constraint.hard);
        if constraints.is_empty() {
            return None;
        }
        let require_all = !pod.spec.spread.is_empty() || !self.system_defaults;
        Some(Box::new(SoftSpreads::new(snapshot, pod, constraints, feasible, require_all)))
    }

    fn queueing_hint(&self, _snapshot: &Snapshot, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::Node { change, .. } => change.added || change.labels || change.taints,
            ClusterEvent::PodAssigned(other) | ClusterEvent::PodReleased(other) => {
                other.namespace == pod.namespace
                    && (pod.spec.spread.is_empty()
                        || pod.spec.spread.iter().any(|own| own.selector.matches(&other.labels)))
            }
            _ => false,
        }
    }
}

impl<'s> Filter<'s> for Spreads<'s> {
    fn filter(&self, node: &NodeInfo) -> Verdict {
        for spread in &self.all {
            let domain = spread.domains.of(node.idx);
            if domain == 0 {
                return Err(Rejection::unresolvable(NAME, MISSING_LABEL));
            }
            let count = spread.counts[domain as usize].unwrap_or(0);
            if count + spread.self_match - spread.least > i64::from(spread.constraint.max_skew) {
                return Err(Rejection::unschedulable(NAME, SKEWED));
            }
        }
        Ok(())
    }

    fn add_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.update(pod, node, 1);
    }

    fn remove_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.update(pod, node, -1);
    }

    fn clone_box(&self) -> Box<dyn Filter<'s> + 's> {
        Box::new(self.clone())
    }
}

/// The counts that soft constraints score by.
struct SoftSpreads {
    all: Vec<SoftSpread>,
    require_all: bool,
}

struct SoftSpread {
    domains: Arc<Domains>,
    /// Pods in each domain, or on each node when the domain is the node.
    counts: Vec<i64>,
    by_node: bool,
    max_skew: i32,
    weight: f64,
}

impl SoftSpreads {
    fn new(
        snapshot: &Snapshot,
        pod: &PodInfo,
        constraints: Vec<SpreadConstraint>,
        feasible: &[NodeIdx],
        require_all: bool,
    ) -> Self {
        let domains: Vec<_> =
            constraints.iter().map(|constraint| snapshot.domains(&constraint.topology_key)).collect();
        let scored = |idx: NodeIdx| !require_all || domains.iter().all(|domains| domains.of(idx) != 0);
        let scored_count = feasible.iter().filter(|idx| scored(**idx)).count();
        let simple = pod.spec.node_selector.is_empty() && pod.spec.required_nodes.is_none();
        let all = constraints
            .iter()
            .zip(&domains)
            .map(|(constraint, own)| {
                let by_node = &*constraint.topology_key == HOSTNAME_KEY;
                let counts = snapshot.index().group(&group(pod, constraint)).into_iter().flatten();
                let mut sums = if by_node { vec![0; snapshot.node_slots()] } else { own.table(0) };
                for (node, count) in counts {
                    let info = snapshot.node(*node);
                    let at = if by_node { *node } else { own.of(*node) } as usize;
                    let counted = by_node
                        || (info.present
                            && scored(*node)
                            && ((simple && !constraint.honor_taints) || included(constraint, pod, info)));
                    if counted && let Some(sum) = sums.get_mut(at) {
                        *sum += i64::from(*count);
                    }
                }
                let size = if by_node {
                    scored_count
                } else {
                    let mut seen = own.table(false);
                    feasible.iter().filter(|idx| scored(**idx)).for_each(|idx| {
                        seen[own.of(*idx) as usize] = true;
                    });
                    seen.into_iter().filter(|seen| *seen).count()
                };
                SoftSpread {
                    domains: Arc::clone(own),
                    counts: sums,
                    by_node,
                    max_skew: constraint.max_skew,
                    weight: ((size + 2) as f64).ln(),
                }
            })
            .collect();
        Self { all, require_all }
    }
}

impl Score for SoftSpreads {
    #[expect(clippy::cast_possible_truncation, reason = "counts of pods times a small weight")]
    fn score(&self, node: &NodeInfo) -> i64 {
        let mut score = 0.0;
        for spread in &self.all {
            let domain = spread.domains.of(node.idx);
            if domain == 0 {
                if self.require_all {
                    return IGNORED;
                }
                continue;
            }
            let at = if spread.by_node { node.idx } else { domain } as usize;
            let count = spread.counts.get(at).copied().unwrap_or(0);
            score += count as f64 * spread.weight + f64::from(spread.max_skew - 1);
        }
        f64::round(score) as i64
    }

    fn normalize(&self, scores: &mut [i64]) {
        let counted = || scores.iter().copied().filter(|score| *score != IGNORED);
        let least = counted().min().unwrap_or(0);
        let most = counted().max().unwrap_or(0);
        for score in scores {
            *score = match (*score, most) {
                (IGNORED, _) => 0,
                (_, 0) => MAX_NODE_SCORE,
                (own, most) => MAX_NODE_SCORE * (most + least - own) / most,
            };
        }
    }
}
