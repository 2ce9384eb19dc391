//! Room on the node: the fit filter, its three scoring strategies, and balanced allocation.

use crate::events::ClusterEvent;
use crate::framework::{
    Checks, Code, Filter, MAX_NODE_SCORE, Plugin, Point, Reason, Rejection, Score, Verdict,
};
use crate::node::{NodeIdx, NodeInfo};
use crate::pod::{PodInfo, Requests};
use crate::resources::{CPU, MEMORY, Resources};
use crate::snapshot::Snapshot;

const NAME: &str = "NodeResourcesFit";

/// Resources with their weights.
pub(super) type Weights = Vec<(String, i64)>;

/// How `NodeResourcesFit` scores.
#[derive(Debug, Clone)]
pub enum ScoringStrategy {
    LeastAllocated,
    MostAllocated,
    /// Points of utilization (0 to 100) and score (0 to 100), ascending.
    RequestedToCapacityRatio(Vec<(i64, i64)>),
}

#[derive(Debug)]
pub struct Fit {
    pub ignored_resources: Vec<String>,
    pub ignored_groups: Vec<String>,
    pub strategy: ScoringStrategy,
    pub weights: Weights,
}

#[derive(Debug)]
pub struct BalancedAllocation {
    pub weights: Weights,
}

pub fn default_weights() -> Weights {
    vec![(CPU.to_owned(), 1), (MEMORY.to_owned(), 1)]
}

impl Default for Fit {
    fn default() -> Self {
        Self {
            ignored_resources: Vec::new(),
            ignored_groups: Vec::new(),
            strategy: ScoringStrategy::LeastAllocated,
            weights: default_weights(),
        }
    }
}

impl Default for BalancedAllocation {
    fn default() -> Self {
        Self { weights: default_weights() }
    }
}

struct Fits<'s> {
    fit: &'s Fit,
    requests: &'s Requests,
}

impl Fit {
    fn ignores(&self, resource: &str) -> bool {
        let Some((group, _)) = resource.split_once('/') else { return false };
        group != "kubernetes.io"
            && !group.ends_with(".kubernetes.io")
            && (self.ignored_resources.iter().any(|own| own == resource)
                || self.ignored_groups.iter().any(|own| own == group))
    }

    /// What the node lacks, and whether even an empty node would.
    fn lacks(&self, requests: &Resources, node: &NodeInfo) -> (Vec<Reason>, bool) {
        let mut reasons: Vec<Reason> = Vec::new();
        let mut never = false;
        let count = i64::try_from(node.pods.len()).unwrap_or(i64::MAX);
        if count.saturating_add(1) > node.facts.allowed_pods {
            reasons.push("Too many pods".into());
        }
        let allocatable = &node.facts.allocatable;
        let used = &node.requested;
        let mut check = |asked: i64, used: i64, has: i64, reason: &dyn Fn() -> Reason| {
            if asked > 0 && asked > has.saturating_sub(used) {
                reasons.push(reason());
                never |= asked > has;
            }
        };
        check(requests.milli_cpu, used.milli_cpu, allocatable.milli_cpu, &|| "Insufficient cpu".into());
        check(requests.memory, used.memory, allocatable.memory, &|| "Insufficient memory".into());
        check(requests.ephemeral_storage, used.ephemeral_storage, allocatable.ephemeral_storage, &|| {
            "Insufficient ephemeral-storage".into()
        });
        for (name, asked) in &requests.scalars {
            if !self.ignores(name) {
                check(*asked, used.get(name), allocatable.get(name), &|| {
                    format!("Insufficient {name}").into()
                });
            }
        }
        (reasons, never)
    }
}

impl Plugin for Fit {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score]
    }

    fn pre_filter<'s>(&'s self, _snapshot: &'s Snapshot, pod: &'s PodInfo) -> Result<Checks<'s>, Rejection> {
        Checks::with(Fits { fit: self, requests: &pod.requests })
    }

    fn pre_score<'s>(
        &'s self,
        _snapshot: &'s Snapshot,
        pod: &'s PodInfo,
        _feasible: &[NodeIdx],
    ) -> Option<Box<dyn Score + 's>> {
        Some(Box::new(FitScore { fit: self, requests: &pod.requests }))
    }

    fn queueing_hint(&self, _snapshot: &Snapshot, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::Node { node, change } => {
                (change.added || change.allocatable) && self.lacks(&pod.requests.total, node).0.is_empty()
            }
            // Any pod gives back at least its place among the node's pods.
            ClusterEvent::PodReleased(_) => true,
            _ => false,
        }
    }
}

impl<'s> Filter<'s> for Fits<'s> {
    fn filter(&self, node: &NodeInfo) -> Verdict {
        let (reasons, never) = self.fit.lacks(&self.requests.total, node);
        if reasons.is_empty() {
            return Ok(());
        }
        let code = if never { Code::UnschedulableAndUnresolvable } else { Code::Unschedulable };
        Err(Rejection { code, plugin: NAME, reasons })
    }

    fn clone_box(&self) -> Box<dyn Filter<'s> + 's> {
        Box::new(Fits { fit: self.fit, requests: self.requests })
    }
}

struct FitScore<'s> {
    fit: &'s Fit,
    requests: &'s Requests,
}

struct BalancedScore<'s> {
    weights: &'s Weights,
    requests: &'s Requests,
}

/// What would be requested of the node with the pod on it, and what the node has. `guessed` counts
/// containers without requests by a guess. Nothing for extended resources the pod does not ask for.
fn amounts(resource: &str, node: &NodeInfo, pod: &Requests, guessed: bool) -> Option<(i64, i64)> {
    let allocatable = &node.facts.allocatable;
    let (used, asked, has) = match (resource, guessed) {
        (CPU, true) => (node.non_zero_milli_cpu, pod.non_zero_milli_cpu, allocatable.milli_cpu),
        (MEMORY, true) => (node.non_zero_memory, pod.non_zero_memory, allocatable.memory),
        _ => {
            let asked = pod.total.get(resource);
            if asked == 0 && !matches!(resource, CPU | MEMORY | "ephemeral-storage") {
                return None;
            }
            (node.requested.get(resource), asked, allocatable.get(resource))
        }
    };
    (has > 0).then_some((used.saturating_add(asked), has))
}

impl Score for FitScore<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let mut sum = 0_i64;
        let mut weights = 0_i64;
        for (resource, weight) in &self.fit.weights {
            let Some((requested, has)) = amounts(resource, node, self.requests, true) else { continue };
            let score = match &self.fit.strategy {
                ScoringStrategy::LeastAllocated if requested > has => 0,
                ScoringStrategy::LeastAllocated => percent(has - requested, has),
                ScoringStrategy::MostAllocated => percent(requested.min(has), has),
                ScoringStrategy::RequestedToCapacityRatio(shape) => {
                    let score = interpolate(shape, percent(requested.min(has), has));
                    if score <= 0 {
                        continue;
                    }
                    score
                }
            };
            sum = sum.saturating_add(score.saturating_mul(*weight));
            weights = weights.saturating_add(*weight);
        }
        match &self.fit.strategy {
            _ if weights == 0 => 0,
            ScoringStrategy::RequestedToCapacityRatio(_) => (sum + weights / 2) / weights,
            _ => sum / weights,
        }
    }
}

fn percent(part: i64, whole: i64) -> i64 {
    i64::try_from(i128::from(part) * i128::from(MAX_NODE_SCORE) / i128::from(whole)).unwrap_or(MAX_NODE_SCORE)
}

/// The value of a broken line at `x`.
fn interpolate(shape: &[(i64, i64)], x: i64) -> i64 {
    let mut previous: Option<(i64, i64)> = None;
    for (at, score) in shape {
        if x <= *at {
            return match previous {
                None => *score,
                Some((before, from)) => from + (score - from) * (x - before) / (at - before).max(1),
            };
        }
        previous = Some((*at, *score));
    }
    previous.map_or(0, |(_, score)| score)
}

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreScore, Point::Score]
    }

    fn pre_score<'s>(
        &'s self,
        _snapshot: &'s Snapshot,
        pod: &'s PodInfo,
        _feasible: &[NodeIdx],
    ) -> Option<Box<dyn Score + 's>> {
        // A pod that asks for nothing would pull all its like to one node.
        if self.weights.iter().all(|(resource, _)| pod.requests.total.get(resource) == 0) {
            return None;
        }
        Some(Box::new(BalancedScore { weights: &self.weights, requests: &pod.requests }))
    }
}

impl Score for BalancedScore<'_> {
    #[expect(clippy::cast_possible_truncation, reason = "between 0 and 100")]
    fn score(&self, node: &NodeInfo) -> i64 {
        let fraction = |resource: &str| {
            amounts(resource, node, self.requests, false)
                .map(|(requested, has)| (requested as f64 / has as f64).min(1.0))
        };
        // Mean and deviation without a list: there may be any number of resources.
        let (mut count, mut sum, mut squares) = (0.0_f64, 0.0, 0.0);
        let (mut first, mut last) = (0.0_f64, 0.0);
        for own in self.weights.iter().filter_map(|(resource, _)| fraction(resource)) {
            if count == 0.0 {
                first = own;
            }
            last = own;
            count += 1.0;
            sum += own;
            squares += own * own;
        }
        let deviation = if count < 2.0 {
            0.0
        } else if count == 2.0 {
            ((first - last) / 2.0).abs()
        } else {
            (squares / count - (sum / count) * (sum / count)).max(0.0).sqrt()
        };
        ((1.0 - deviation) * MAX_NODE_SCORE as f64) as i64
    }
}
