//! Pods that want to be, or not to be, in the same domain as other pods.

use std::sync::Arc;

use crate::events::ClusterEvent;
use crate::framework::{Checks, Filter, MAX_NODE_SCORE, Plugin, Point, Rejection, Score, Verdict};
use crate::index::{Group, NodeCounts, TermKind, for_each_term};
use crate::node::{NodeIdx, NodeInfo};
use crate::pod::{AffinityTerm, PodInfo};
use crate::snapshot::Snapshot;
use crate::topology::Domains;

const NAME: &str = "InterPodAffinity";

#[derive(Debug)]
pub struct InterPodAffinity {
    /// What an existing pod's required affinity for the pod is worth in scores.
    pub hard_pod_affinity_weight: i64,
    pub ignore_preferred_terms_of_existing_pods: bool,
}

impl Default for InterPodAffinity {
    fn default() -> Self {
        Self { hard_pod_affinity_weight: 1, ignore_preferred_terms_of_existing_pods: false }
    }
}

/// A number for each domain of one topology key.
#[derive(Debug, Clone)]
struct DomainCounts {
    key: Arc<str>,
    domains: Arc<Domains>,
    counts: Vec<i64>,
}

impl DomainCounts {
    fn new(snapshot: &Snapshot, key: &Arc<str>) -> Self {
        let domains = snapshot.domains(key);
        Self { key: Arc::clone(key), counts: domains.table(0), domains }
    }

    fn add_all(&mut self, nodes: &NodeCounts, weight: i64) {
        for (node, count) in nodes {
            self.add(*node, weight.saturating_mul(i64::from(*count)));
        }
    }

    fn add(&mut self, node: NodeIdx, change: i64) {
        let domain = self.domains.of(node);
        if domain != 0 {
            self.counts[domain as usize] += change;
        }
    }

    /// The number of the node's domain; none when it has no such label.
    fn of(&self, node: NodeIdx) -> Option<i64> {
        let domain = self.domains.of(node);
        (domain != 0).then(|| self.counts[domain as usize])
    }
}

/// The counts of a key among the lists, made when it is not there yet.
fn by_key<'a>(list: &'a mut Vec<DomainCounts>, snapshot: &Snapshot, key: &Arc<str>) -> &'a mut DomainCounts {
    let at = list.iter().position(|own| own.key == *key).unwrap_or_else(|| {
        list.push(DomainCounts::new(snapshot, key));
        list.len() - 1
    });
    &mut list[at]
}

/// Pods that match every required affinity term.
fn affinity_group(pod: &PodInfo) -> Group {
    let filters = pod.spec.affinity.iter().map(|term| term.filter.clone()).collect();
    Group { filters, skip_terminating: false }
}

fn term_group(term: &AffinityTerm) -> Group {
    Group { filters: vec![term.filter.clone()], skip_terminating: false }
}

#[derive(Clone)]
struct Affinity<'s> {
    snapshot: &'s Snapshot,
    pod: &'s PodInfo,
    /// How many pods that match all affinity terms are in each domain, by term.
    affinity: Vec<DomainCounts>,
    /// How many pods that match the anti-affinity term are in each domain, by term.
    anti_affinity: Vec<DomainCounts>,
    /// How many pods with anti-affinity to this pod are in each domain, by topology key.
    existing: Vec<DomainCounts>,
    matches_itself: bool,
}

impl Affinity<'_> {
    fn update(&mut self, other: &PodInfo, node: &NodeInfo, change: i64) {
        let own_labels = self.snapshot.namespace_labels(&self.pod.namespace);
        for term in &other.spec.anti_affinity {
            if term.filter.matches(self.pod, own_labels) {
                by_key(&mut self.existing, self.snapshot, &term.topology_key).add(node.idx, change);
            }
        }
        let labels = self.snapshot.namespace_labels(&other.namespace);
        let terms = &self.pod.spec.affinity;
        if !terms.is_empty() && terms.iter().all(|term| term.filter.matches(other, labels)) {
            self.affinity.iter_mut().for_each(|counts| counts.add(node.idx, change));
        }
        for (term, counts) in self.pod.spec.anti_affinity.iter().zip(&mut self.anti_affinity) {
            if term.filter.matches(other, labels) {
                counts.add(node.idx, change);
            }
        }
    }

    /// Required affinity holds on a node when each term's domain has a matching pod; or when no such pod
    /// is anywhere and the pod itself is one, so that the first of a group can start.
    fn affinity_holds(&self, node: &NodeInfo) -> bool {
        let mut found = true;
        for counts in &self.affinity {
            match counts.of(node.idx) {
                None => return false,
                Some(count) => found &= count > 0,
            }
        }
        found || (self.matches_itself && self.affinity.iter().all(|own| own.counts.iter().all(|n| *n == 0)))
    }
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score]
    }

    fn prepare(&self, snapshot: &mut Snapshot, pod: &PodInfo) {
        let labels = snapshot.namespace_labels(&pod.namespace).cloned();
        let mut keys: Vec<Arc<str>> = Vec::new();
        snapshot.index().for_each_matching_term(pod, labels.as_ref(), |term, _, _| {
            if !keys.contains(&term.topology_key) {
                keys.push(Arc::clone(&term.topology_key));
            }
        });
        for_each_term(pod, |term, _| keys.push(Arc::clone(&term.topology_key)));
        for key in keys {
            snapshot.prepare_topology(&key);
        }
        if !pod.spec.affinity.is_empty() {
            snapshot.prepare_group(&affinity_group(pod));
        }
        let preferred = pod.spec.preferred_pods.iter().map(|(_, term)| term);
        for term in pod.spec.anti_affinity.iter().chain(preferred) {
            snapshot.prepare_group(&term_group(term));
        }
    }

    fn pre_filter<'s>(&'s self, snapshot: &'s Snapshot, pod: &'s PodInfo) -> Result<Checks<'s>, Rejection> {
        let labels = snapshot.namespace_labels(&pod.namespace);
        let mut existing: Vec<DomainCounts> = Vec::new();
        snapshot.index().for_each_matching_term(pod, labels, |term, kind, nodes| {
            if kind == TermKind::RequiredAntiAffinity {
                by_key(&mut existing, snapshot, &term.topology_key).add_all(nodes, 1);
            }
        });
        let spec = &pod.spec;
        if existing.is_empty() && spec.affinity.is_empty() && spec.anti_affinity.is_empty() {
            return Checks::skip();
        }
        let counts = |term: &AffinityTerm, group: &Group| {
            let mut counts = DomainCounts::new(snapshot, &term.topology_key);
            if let Some(nodes) = snapshot.index().group(group) {
                counts.add_all(nodes, 1);
            }
            counts
        };
        let all_terms = affinity_group(pod);
        Checks::with(Affinity {
            snapshot,
            pod,
            affinity: spec.affinity.iter().map(|term| counts(term, &all_terms)).collect(),
            anti_affinity: spec.anti_affinity.iter().map(|term| counts(term, &term_group(term))).collect(),
            existing,
            matches_itself: spec.affinity.iter().all(|term| term.filter.matches(pod, labels)),
        })
    }

    fn pre_score<'s>(
        &'s self,
        snapshot: &'s Snapshot,
        pod: &'s PodInfo,
        _feasible: &[NodeIdx],
    ) -> Option<Box<dyn Score + 's>> {
        let mut scores: Vec<DomainCounts> = Vec::new();
        for (weight, term) in &pod.spec.preferred_pods {
            let counts = by_key(&mut scores, snapshot, &term.topology_key);
            if let Some(nodes) = snapshot.index().group(&term_group(term)) {
                counts.add_all(nodes, *weight);
            }
        }
        if !(pod.spec.preferred_pods.is_empty() && self.ignore_preferred_terms_of_existing_pods) {
            let labels = snapshot.namespace_labels(&pod.namespace);
            snapshot.index().for_each_matching_term(pod, labels, |term, kind, nodes| {
                let weight = match kind {
                    TermKind::RequiredAntiAffinity => 0,
                    TermKind::RequiredAffinity => self.hard_pod_affinity_weight,
                    TermKind::Preferred(weight) => weight,
                };
                if weight != 0 {
                    by_key(&mut scores, snapshot, &term.topology_key).add_all(nodes, weight);
                }
            });
        }
        scores.retain(|own| own.counts.iter().any(|count| *count != 0));
        if scores.is_empty() {
            return None;
        }
        Some(Box::new(DomainScores(scores)))
    }

    fn queueing_hint(&self, snapshot: &Snapshot, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::Node { change, .. } => change.added || change.labels,
            ClusterEvent::PodAssigned(other) => {
                let labels = snapshot.namespace_labels(&other.namespace);
                pod.spec.affinity.iter().any(|term| term.filter.matches(other, labels))
            }
            ClusterEvent::PodReleased(other) => {
                let labels = snapshot.namespace_labels(&other.namespace);
                let own = snapshot.namespace_labels(&pod.namespace);
                pod.spec.anti_affinity.iter().any(|term| term.filter.matches(other, labels))
                    || pod.spec.affinity.iter().any(|term| term.filter.matches(other, labels))
                    || other.spec.anti_affinity.iter().any(|term| term.filter.matches(pod, own))
            }
            ClusterEvent::Namespace(_) => true,
            _ => false,
        }
    }
}

impl<'s> Filter<'s> for Affinity<'s> {
    fn filter(&self, node: &NodeInfo) -> Verdict {
        if !self.affinity_holds(node) {
            return Err(Rejection::unresolvable(NAME, "node(s) didn't match pod affinity rules"));
        }
        let crowded = |list: &[DomainCounts]| list.iter().any(|own| own.of(node.idx).is_some_and(|n| n > 0));
        if crowded(&self.anti_affinity) {
            return Err(Rejection::unschedulable(NAME, "node(s) didn't match pod anti-affinity rules"));
        }
        if crowded(&self.existing) {
            return Err(Rejection::unschedulable(
                NAME,
                "node(s) didn't satisfy existing pods anti-affinity rules",
            ));
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

struct DomainScores(Vec<DomainCounts>);

impl Score for DomainScores {
    fn score(&self, node: &NodeInfo) -> i64 {
        self.0.iter().filter_map(|own| own.of(node.idx)).sum()
    }

    #[expect(clippy::cast_possible_truncation, reason = "between 0 and 100")]
    fn normalize(&self, scores: &mut [i64]) {
        let least = scores.iter().copied().min().unwrap_or(0);
        let most = scores.iter().copied().max().unwrap_or(0);
        for score in scores {
            *score = if most > least {
                (MAX_NODE_SCORE as f64 * ((*score - least) as f64 / (most - least) as f64)) as i64
            } else {
                0
            };
        }
    }
}
