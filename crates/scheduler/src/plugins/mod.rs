//! The built-in plugins, one file each, and the order they run in by default.

mod dynamic_resources;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources;
mod node_unschedulable;
mod pod_topology_spread;
mod scheduling_gates;
mod taint_toleration;
mod volumes;

pub use dynamic_resources::DynamicResources;
pub use image_locality::ImageLocality;
pub use inter_pod_affinity::InterPodAffinity;
pub use node_affinity::{NodeAffinity, required_nodes_match};
pub use node_name::NodeName;
pub use node_ports::NodePorts;
pub use node_resources::{BalancedAllocation, Fit, ScoringStrategy, default_weights};
pub use node_unschedulable::NodeUnschedulable;
pub use pod_topology_spread::PodTopologySpread;
pub use scheduling_gates::SchedulingGates;
pub use taint_toleration::TaintToleration;
pub use volumes::{NodeVolumeLimits, VolumeBinding, VolumeRestrictions, VolumeZone};

use crate::framework::{Plugin, Point};

pub const PRIORITY_SORT: &str = "PrioritySort";
pub const DEFAULT_PREEMPTION: &str = "DefaultPreemption";
pub const DEFAULT_BINDER: &str = "DefaultBinder";

/// Plugins that a configuration may name and that the scheduler itself carries out.
#[derive(Debug)]
pub struct BuiltIn {
    pub name: &'static str,
    pub points: &'static [Point],
}

impl Plugin for BuiltIn {
    fn name(&self) -> &'static str {
        self.name
    }

    fn points(&self) -> &'static [Point] {
        self.points
    }
}

/// Every plugin with its default weight, in the order they run.
pub const DEFAULT_PLUGINS: [(&str, i64); 19] = [
    ("SchedulingGates", 0),
    (PRIORITY_SORT, 0),
    ("NodeUnschedulable", 0),
    ("NodeName", 0),
    ("TaintToleration", 3),
    ("NodeAffinity", 2),
    ("NodePorts", 0),
    ("NodeResourcesFit", 1),
    ("VolumeRestrictions", 0),
    ("NodeVolumeLimits", 0),
    ("VolumeBinding", 0),
    ("VolumeZone", 0),
    ("PodTopologySpread", 2),
    ("InterPodAffinity", 2),
    ("DynamicResources", 2),
    (DEFAULT_PREEMPTION, 0),
    ("NodeResourcesBalancedAllocation", 1),
    ("ImageLocality", 1),
    (DEFAULT_BINDER, 0),
];
