//! Host ports belong to one pod a node.

use crate::events::ClusterEvent;
use crate::framework::{Checks, Filter, Plugin, Point, Rejection, Verdict};
use crate::node::NodeInfo;
use crate::pod::{HostPort, PodInfo};
use crate::snapshot::Snapshot;

const NAME: &str = "NodePorts";

#[derive(Debug)]
pub struct NodePorts;

#[derive(Clone)]
struct Ports<'s>(&'s [HostPort]);

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn pre_filter<'s>(&'s self, _snapshot: &'s Snapshot, pod: &'s PodInfo) -> Result<Checks<'s>, Rejection> {
        if pod.spec.host_ports.is_empty() {
            Checks::skip()
        } else {
            Checks::with(Ports(&pod.spec.host_ports))
        }
    }

    fn queueing_hint(&self, _snapshot: &Snapshot, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::Node { change, .. } => change.added,
            ClusterEvent::PodReleased(gone) => gone
                .spec
                .host_ports
                .iter()
                .any(|port| pod.spec.host_ports.iter().any(|own| own.port == port.port)),
            _ => false,
        }
    }
}

impl<'s> Filter<'s> for Ports<'s> {
    fn filter(&self, node: &NodeInfo) -> Verdict {
        if self.0.iter().any(|port| node.port_conflicts(port)) {
            return Err(Rejection::unschedulable(
                NAME,
                "node(s) didn't have free ports for the requested pod ports",
            ));
        }
        Ok(())
    }

    fn clone_box(&self) -> Box<dyn Filter<'s> + 's> {
        Box::new(self.clone())
    }
}
