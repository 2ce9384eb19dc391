//! A node as the scheduler sees it, with what the pods on it hold.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;

use crate::labels::Labels;
use crate::pod::{HostPort, PodInfo, normalized_image};
use crate::resources::{self, Resources};

pub const HOSTNAME_KEY: &str = "kubernetes.io/hostname";
pub const ZONE_KEY: &str = "topology.kubernetes.io/zone";
pub const REGION_KEY: &str = "topology.kubernetes.io/region";
pub const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// The place of a node in the snapshot; reused after the node is gone.
pub type NodeIdx = u32;

/// What a node itself says. Heartbeats leave it unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    pub labels: Labels,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    pub allowed_pods: i64,
    pub images: Vec<(String, i64)>,
    pub uid: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
}

impl Taint {
    /// Whether the taint keeps new pods away.
    pub fn repels(&self) -> bool {
        self.effect == "NoSchedule" || self.effect == "NoExecute"
    }
}

impl NodeFacts {
    pub fn new(node: &core::Node) -> Self {
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        let images = status.and_then(|status| status.images.as_ref());
        Self {
            labels: Labels::from(node.metadata.labels.as_ref()),
            taints: spec
                .and_then(|spec| spec.taints.as_ref())
                .into_iter()
                .flatten()
                .map(|taint| Taint {
                    key: taint.key.clone(),
                    value: taint.value.clone().unwrap_or_default(),
                    effect: taint.effect.clone(),
                })
                .collect(),
            unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
            allocatable: Resources::from_list(allocatable),
            allowed_pods: allocatable
                .and_then(|list| list.get(resources::PODS))
                .map_or(0, |quantity| resources::value(&quantity.0)),
            images: images
                .into_iter()
                .flatten()
                .flat_map(|image| {
                    let size = image.size_bytes.unwrap_or(0);
                    image.names.iter().flatten().map(move |name| (normalized_image(name), size))
                })
                .collect(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
        }
    }
}

#[derive(Debug, Clone)]
pub struct NodeInfo {
    pub idx: NodeIdx,
    pub name: Arc<str>,
    /// Empty while only pods speak of the node.
    pub facts: Arc<NodeFacts>,
    pub present: bool,
    pub pods: Vec<Arc<PodInfo>>,
    pub requested: Resources,
    pub non_zero_milli_cpu: i64,
    pub non_zero_memory: i64,
    pub ports: HashMap<HostPort, u32>,
}

impl NodeInfo {
    pub fn new(idx: NodeIdx, name: Arc<str>) -> Self {
        Self {
            idx,
            name,
            facts: Arc::default(),
            present: false,
            pods: Vec::new(),
            requested: Resources::default(),
            non_zero_milli_cpu: 0,
            non_zero_memory: 0,
            ports: HashMap::new(),
        }
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.facts.labels.get(key)
    }

    pub fn add_pod(&mut self, pod: &Arc<PodInfo>) {
        self.requested.add(&pod.requests.total);
        self.non_zero_milli_cpu = self.non_zero_milli_cpu.saturating_add(pod.requests.non_zero_milli_cpu);
        self.non_zero_memory = self.non_zero_memory.saturating_add(pod.requests.non_zero_memory);
        for port in &pod.spec.host_ports {
            *self.ports.entry(port.clone()).or_default() += 1;
        }
        self.pods.push(Arc::clone(pod));
    }

    /// Takes a pod off by its uid; gives it back as it was counted.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let at = self.pods.iter().position(|pod| &*pod.uid == uid)?;
        let pod = self.pods.swap_remove(at);
        self.requested.sub(&pod.requests.total);
        self.non_zero_milli_cpu = self.non_zero_milli_cpu.saturating_sub(pod.requests.non_zero_milli_cpu);
        self.non_zero_memory = self.non_zero_memory.saturating_sub(pod.requests.non_zero_memory);
        for port in &pod.spec.host_ports {
            if let Some(count) = self.ports.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    self.ports.remove(port);
                }
            }
        }
        Some(pod)
    }

    /// Whether the port is taken: a port on every address conflicts with the same port on any.
    pub fn port_conflicts(&self, wanted: &HostPort) -> bool {
        self.ports.keys().any(|used| {
            used.port == wanted.port
                && used.protocol == wanted.protocol
                && (used.ip == wanted.ip || used.ip.is_empty() || wanted.ip.is_empty())
        })
    }

    pub fn zone(&self) -> (&str, &str) {
        (self.label(REGION_KEY).unwrap_or_default(), self.label(ZONE_KEY).unwrap_or_default())
    }
}
