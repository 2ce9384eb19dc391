//! A pod that names its node goes nowhere else.

use crate::events::ClusterEvent;
use crate::framework::{Checks, Filter, Plugin, Point, Rejection, Verdict};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;

const NAME: &str = "NodeName";

#[derive(Debug)]
pub struct NodeName;

#[derive(Clone)]
struct Named<'s>(&'s str);

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Filter]
    }

    fn pre_filter<'s>(&'s self, _snapshot: &'s Snapshot, pod: &'s PodInfo) -> Result<Checks<'s>, Rejection> {
        match &pod.node_name {
            None => Checks::skip(),
            Some(name) => Checks::with(Named(name)),
        }
    }

    fn queueing_hint(&self, _snapshot: &Snapshot, _pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        matches!(event, ClusterEvent::Node { change, .. } if change.added)
    }
}

impl<'s> Filter<'s> for Named<'s> {
    fn filter(&self, node: &NodeInfo) -> Verdict {
        if &*node.name == self.0 {
            return Ok(());
        }
        Err(Rejection::unresolvable(NAME, "node(s) didn't match the requested node name"))
    }

    fn clone_box(&self) -> Box<dyn Filter<'s> + 's> {
        Box::new(self.clone())
    }
}
