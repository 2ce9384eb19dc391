//! Keeps pods off cordoned nodes, unless they tolerate it.

use crate::events::ClusterEvent;
use crate::framework::{Checks, Filter, Plugin, Point, Rejection, Verdict};
use crate::node::{NodeInfo, Taint, UNSCHEDULABLE_TAINT};
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;

const NAME: &str = "NodeUnschedulable";

#[derive(Debug)]
pub struct NodeUnschedulable;

#[derive(Clone)]
struct Cordon;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Filter]
    }

    fn pre_filter<'s>(&'s self, _snapshot: &'s Snapshot, pod: &'s PodInfo) -> Result<Checks<'s>, Rejection> {
        if tolerates(pod) { Checks::skip() } else { Checks::with(Cordon) }
    }

    fn queueing_hint(&self, _snapshot: &Snapshot, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        matches!(event, ClusterEvent::Node { node, change }
            if (change.added || change.taints) && (!node.facts.unschedulable || tolerates(pod)))
    }
}

fn tolerates(pod: &PodInfo) -> bool {
    if pod.spec.tolerations.is_empty() {
        return false;
    }
    let taint =
        Taint { key: UNSCHEDULABLE_TAINT.to_owned(), value: String::new(), effect: "NoSchedule".to_owned() };
    pod.spec.tolerations.iter().any(|toleration| toleration.tolerates(&taint))
}

impl<'s> Filter<'s> for Cordon {
    fn filter(&self, node: &NodeInfo) -> Verdict {
        if node.facts.unschedulable {
            return Err(Rejection::unresolvable(NAME, "node(s) were unschedulable"));
        }
        Ok(())
    }

    fn clone_box(&self) -> Box<dyn Filter<'s> + 's> {
        Box::new(self.clone())
    }
}
