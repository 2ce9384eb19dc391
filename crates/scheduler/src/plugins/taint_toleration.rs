//! Taints keep pods away that do not tolerate them, or make their nodes less liked.

use crate::events::ClusterEvent;
use crate::framework::{Checks, Filter, Plugin, Point, Rejection, Score, Verdict, normalize_by_max};
use crate::node::{NodeIdx, NodeInfo, Taint};
use crate::pod::{PodInfo, Toleration};
use crate::snapshot::Snapshot;

const NAME: &str = "TaintToleration";

#[derive(Debug)]
pub struct TaintToleration;

#[derive(Clone)]
struct Taints<'s>(&'s [Toleration]);

struct PreferNoSchedule<'s>(Vec<&'s Toleration>);

/// Whether the pod may be put on a node with these taints.
pub(super) fn tolerates_all(tolerations: &[Toleration], taints: &[Taint]) -> bool {
    taints
        .iter()
        .filter(|taint| taint.repels())
        .all(|taint| tolerations.iter().any(|toleration| toleration.tolerates(taint)))
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Filter, Point::PreScore, Point::Score]
    }

    fn pre_filter<'s>(&'s self, _snapshot: &'s Snapshot, pod: &'s PodInfo) -> Result<Checks<'s>, Rejection> {
        Checks::with(Taints(&pod.spec.tolerations))
    }

    fn pre_score<'s>(
        &'s self,
        _snapshot: &'s Snapshot,
        pod: &'s PodInfo,
        _feasible: &[NodeIdx],
    ) -> Option<Box<dyn Score + 's>> {
        let soft = |toleration: &&Toleration| {
            toleration.effect.is_empty() || toleration.effect == "PreferNoSchedule"
        };
        Some(Box::new(PreferNoSchedule(pod.spec.tolerations.iter().filter(soft).collect())))
    }

    fn queueing_hint(&self, _snapshot: &Snapshot, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        matches!(event, ClusterEvent::Node { node, change }
            if (change.added || change.taints) && tolerates_all(&pod.spec.tolerations, &node.facts.taints))
    }
}

impl<'s> Filter<'s> for Taints<'s> {
    fn filter(&self, node: &NodeInfo) -> Verdict {
        if tolerates_all(self.0, &node.facts.taints) {
            return Ok(());
        }
        Err(Rejection::unresolvable(NAME, "node(s) had untolerated taint(s)"))
    }

    fn clone_box(&self) -> Box<dyn Filter<'s> + 's> {
        Box::new(self.clone())
    }
}

impl Score for PreferNoSchedule<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let intolerable = node
            .facts
            .taints
            .iter()
            .filter(|taint| taint.effect == "PreferNoSchedule")
            .filter(|taint| !self.0.iter().any(|toleration| toleration.tolerates(taint)))
            .count();
        i64::try_from(intolerable).unwrap_or(i64::MAX)
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize_by_max(scores, true);
    }
}
