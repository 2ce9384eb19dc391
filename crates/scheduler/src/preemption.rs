//! `DefaultPreemption`: which pods of lower priority must go, and from which node, so that a pod fits.

use std::sync::Arc;

use rand::{Rng, RngExt};

use crate::framework::{Code, FitError, Rejection};
use crate::node::{NodeIdx, NodeInfo};
use crate::pod::PodInfo;
use crate::schedule::{Filters, Scope, check_with_nominated, pre_filter};
use crate::snapshot::Snapshot;

/// The plugin's arguments: how many nodes are tried.
#[derive(Debug, Clone, Copy)]
pub struct Preemption {
    pub min_candidate_nodes_percentage: usize,
    pub min_candidate_nodes_absolute: usize,
}

impl Default for Preemption {
    fn default() -> Self {
        Self { min_candidate_nodes_percentage: 10, min_candidate_nodes_absolute: 100 }
    }
}

/// A node, and the pods that would have to leave it, most important first.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub node: NodeIdx,
    pub victims: Vec<Arc<PodInfo>>,
    pub violations: usize,
}

/// Why preemption does not help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoPreemption {
    pub message: String,
    /// The pod waits for nothing any more: its nomination ends.
    pub clear_nomination: bool,
}

impl Preemption {
    /// The candidates for making room, in the order they were found; never empty.
    pub fn candidates(
        &self,
        scope: Scope<'_>,
        pod: &PodInfo,
        failure: &FitError,
        rng: &mut impl Rng,
    ) -> Result<Vec<Candidate>, NoPreemption> {
        if let Some(message) = not_eligible(scope, pod, failure) {
            return Err(NoPreemption { message: message.to_owned(), clear_nomination: false });
        }
        let nodes = potential_nodes(scope.snapshot, failure);
        let mut error = FitError { all_nodes: failure.all_nodes, ..FitError::default() };
        error.absent = Some(Rejection::unresolvable("", "Preemption is not helpful for scheduling"));
        let found = self.dry_run(scope, pod, &nodes, &mut error, rng);
        if found.is_empty() {
            return Err(NoPreemption { message: error.to_string(), clear_nomination: true });
        }
        Ok(found)
    }

    fn dry_run(
        &self,
        scope: Scope<'_>,
        pod: &PodInfo,
        nodes: &[NodeIdx],
        error: &mut FitError,
        rng: &mut impl Rng,
    ) -> Vec<Candidate> {
        if nodes.is_empty() {
            return Vec::new();
        }
        let enough = (nodes.len() * self.min_candidate_nodes_percentage / 100)
            .max(self.min_candidate_nodes_absolute)
            .min(nodes.len());
        let Ok(prepared) = pre_filter(scope, pod) else { return Vec::new() };
        let offset = rng.random_range(0..nodes.len());
        let mut harmless = Vec::new();
        let mut harmful = Vec::new();
        for idx in nodes[offset..].iter().chain(&nodes[..offset]) {
            match select_victims(scope, &prepared.filters, pod, scope.snapshot.node(*idx)) {
                Ok(candidate) if candidate.violations == 0 => harmless.push(candidate),
                Ok(candidate) => harmful.push(candidate),
                Err(rejection) => error.reject(*idx, rejection),
            }
            if !harmless.is_empty() && harmless.len() + harmful.len() >= enough {
                break;
            }
        }
        harmless.extend(harmful);
        harmless
    }
}

/// Says why the pod may not preempt at all.
fn not_eligible(scope: Scope<'_>, pod: &PodInfo, failure: &FitError) -> Option<&'static str> {
    if pod.spec.never_preempts {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let name = scope.nominations.node_of(&pod.uid).or(pod.nominated_node_name.as_deref())?;
    let node = scope.snapshot.node_named(name)?;
    let hopeless = failure
        .nodes
        .iter()
        .any(|(idx, own)| *idx == node.idx && own.code == Code::UnschedulableAndUnresolvable);
    let leaving = |other: &Arc<PodInfo>| {
        other.terminating && other.preempted && other.spec.priority < pod.spec.priority
    };
    (!hopeless && node.pods.iter().any(leaving))
        .then_some("not eligible due to a terminating pod on the nominated node.")
}

/// The nodes that failed in a way that taking pods off may change.
fn potential_nodes(snapshot: &Snapshot, failure: &FitError) -> Vec<NodeIdx> {
    let absent_can_do = failure.absent.as_ref().is_some_and(|absent| absent.code == Code::Unschedulable);
    if absent_can_do && failure.nodes.is_empty() {
        return snapshot.node_order().to_vec();
    }
    let listed = failure.nodes.iter().filter(|(_, own)| own.code == Code::Unschedulable);
    listed.map(|(idx, _)| *idx).collect()
}

/// Whether `a` should be kept rather than `b`: by priority, then by who has run for longer.
fn importance(a: &PodInfo, b: &PodInfo) -> std::cmp::Ordering {
    let started = |pod: &PodInfo| pod.start_time.unwrap_or(i64::MAX);
    b.spec.priority.cmp(&a.spec.priority).then_with(|| started(a).cmp(&started(b)))
}

/// Takes all pods of lower priority off the node, then puts back as many as can stay, the most important
/// first, and first of all those whose loss would break a disruption budget.
fn select_victims(
    scope: Scope<'_>,
    filters: &Filters<'_>,
    pod: &PodInfo,
    node: &NodeInfo,
) -> Result<Candidate, Rejection> {
    let mut filters: Filters<'_> = filters.iter().map(|filter| filter.clone_box()).collect();
    let mut trial = node.clone();
    let mut lower: Vec<Arc<PodInfo>> =
        node.pods.iter().filter(|other| other.spec.priority < pod.spec.priority).cloned().collect();
    if lower.is_empty() {
        return Err(Rejection::unresolvable("", "No preemption victims found for incoming pod"));
    }
    for other in &lower {
        trial.remove_pod(&other.uid);
        filters.iter_mut().for_each(|filter| filter.remove_pod(other, node));
    }
    check_with_nominated(&filters, scope, &trial, pod)?;
    lower.sort_by(|a, b| importance(a, b));
    let (violating, rest) = scope.snapshot.budgets.split(lower);
    let mut victims = Vec::new();
    let mut violations = 0;
    let budgeted = violating.len();
    for (at, other) in violating.into_iter().chain(rest).enumerate() {
        trial.add_pod(&other);
        filters.iter_mut().for_each(|filter| filter.add_pod(&other, node));
        if check_with_nominated(&filters, scope, &trial, pod).is_err() {
            trial.remove_pod(&other.uid);
            filters.iter_mut().for_each(|filter| filter.remove_pod(&other, node));
            violations += usize::from(at < budgeted);
            victims.push(other);
        }
    }
    victims.sort_by(|a, b| importance(a, b));
    Ok(Candidate { node: node.idx, victims, violations })
}

/// The candidate that does the least harm: fewest broken budgets, then the lowest greatest priority, the
/// lowest sum of priorities, the fewest victims, the shortest-running most important victims.
pub fn best(candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.into_iter().reduce(|best, other| if harm(&other) < harm(&best) { other } else { best })
}

fn harm(candidate: &Candidate) -> (usize, i32, i64, usize, i64) {
    let victims = &candidate.victims;
    let greatest = victims.first().map_or(i32::MIN, |pod| pod.spec.priority);
    // Offset so that more victims never make a smaller sum, negative priorities included.
    let sum = victims.iter().map(|pod| i64::from(pod.spec.priority) + i64::from(i32::MAX) + 1).sum();
    let earliest = victims
        .iter()
        .filter(|pod| pod.spec.priority == greatest)
        .map(|pod| pod.start_time.unwrap_or(i64::MAX))
        .min()
        .unwrap_or(i64::MAX);
    (candidate.violations, greatest, sum, victims.len(), earliest.saturating_neg())
}
