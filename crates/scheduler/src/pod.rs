//! A pod as the scheduler sees it: everything its plugins ask, worked out once when the pod arrives.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use k8s_openapi::api::core::v1 as core;

use crate::labels::{Labels, NodeSelector, NodeSelectorTerm, Requirement, Selector};
use crate::node::Taint;
use crate::requests;
use crate::resources::Resources;

pub type Uid = Arc<str>;

/// Identity, labels and progress of a pod, beside the part of its spec that scheduling reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodInfo {
    pub uid: Uid,
    pub namespace: Arc<str>,
    pub name: String,
    pub labels: Labels,
    pub node_name: Option<String>,
    pub nominated_node_name: Option<String>,
    pub requests: Requests,
    pub gates: Vec<String>,
    pub claims: Vec<PodClaim>,
    /// Seconds since the epoch; younger pods are preempted first.
    pub start_time: Option<i64>,
    pub created: i64,
    pub terminating: bool,
    /// Succeeded or failed: it holds nothing on its node any more.
    pub finished: bool,
    /// A terminating pod that this scheduler or another one preempted.
    pub preempted: bool,
    /// What only matters while the pod waits for a node.
    pub pending: Option<Box<Pending>>,
    pub spec: Arc<PodSpec>,
}

/// What is needed to report on a pod without a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pending {
    pub resource_version: String,
    pub generation: Option<i64>,
    /// The reason and message of a `PodScheduled` condition that is false, and since when it is.
    pub reason: String,
    pub message: String,
    pub since: Option<k8s_openapi::jiff::Timestamp>,
}

/// What a pod asks of the node it is placed on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requests {
    pub total: Resources,
    /// As `total`, with a guess for containers that state nothing; used for scoring.
    pub non_zero_milli_cpu: i64,
    pub non_zero_memory: i64,
}

/// The part of the spec that the pods of one template share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodSpec {
    pub scheduler_name: String,
    pub priority: i32,
    pub never_preempts: bool,
    pub node_selector: Vec<(String, String)>,
    pub required_nodes: Option<NodeSelector>,
    pub preferred_nodes: Vec<(i64, NodeSelectorTerm)>,
    pub tolerations: Vec<Toleration>,
    pub host_ports: Vec<HostPort>,
    pub affinity: Vec<AffinityTerm>,
    pub anti_affinity: Vec<AffinityTerm>,
    /// Preferred terms; those of anti-affinity have a negative weight.
    pub preferred_pods: Vec<(i64, AffinityTerm)>,
    pub spread: Vec<SpreadConstraint>,
    pub images: Vec<String>,
    pub container_count: usize,
    pub volumes: Vec<Volume>,
    pub owner: Option<Owner>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toleration {
    pub key: String,
    /// Compares with a taint's value; absent for `Exists`.
    pub value: Option<TolerationValue>,
    pub effect: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TolerationValue {
    Equal(String),
    Gt(i64),
    Lt(i64),
    Never,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    pub protocol: String,
    /// Empty for every address.
    pub ip: String,
    pub port: i32,
}

/// Which pods a term means: in these namespaces, with these labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodFilter {
    pub namespaces: Vec<Arc<str>>,
    pub namespace_selector: Option<Selector>,
    pub selector: Selector,
}

impl PodFilter {
    /// `namespace_labels` are those of the pod's own namespace.
    pub fn matches(&self, pod: &PodInfo, namespace_labels: Option<&Labels>) -> bool {
        self.in_scope(&pod.namespace, namespace_labels) && self.selector.matches(&pod.labels)
    }

    pub fn in_scope(&self, namespace: &str, namespace_labels: Option<&Labels>) -> bool {
        self.namespaces.iter().any(|own| &**own == namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| {
                selector.is_everything() || namespace_labels.is_some_and(|labels| selector.matches(labels))
            })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AffinityTerm {
    pub filter: PodFilter,
    pub topology_key: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpreadConstraint {
    pub topology_key: Arc<str>,
    pub max_skew: i32,
    pub min_domains: i32,
    /// `DoNotSchedule`; otherwise the constraint only scores.
    pub hard: bool,
    pub selector: Selector,
    pub honor_affinity: bool,
    pub honor_taints: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Volume {
    Claim {
        name: String,
    },
    /// A claim made for the pod, named after the pod and the volume.
    Ephemeral {
        volume: String,
    },
    /// A disk of an old in-tree kind, which one node at a time may write.
    Disk {
        kind: DiskKind,
        id: String,
        read_only: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskKind {
    GcePersistentDisk,
    AwsElasticBlockStore,
    Iscsi,
    Rbd,
}

/// A device claim of the pod; without a claim name it is still to be made from its template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodClaim {
    pub name: String,
    pub claim: Option<String>,
}

impl PodInfo {
    pub fn new(pod: &core::Pod) -> Self {
        let meta = &pod.metadata;
        let namespace: Arc<str> = meta.namespace.as_deref().unwrap_or_default().into();
        let labels = Labels::from(meta.labels.as_ref());
        let empty = core::PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let status = pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        let text = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        Self {
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            name: meta.name.clone().unwrap_or_default(),
            node_name: text(&spec.node_name),
            nominated_node_name: status.and_then(|status| text(&status.nominated_node_name)),
            requests: requests::of_pod(spec, status),
            gates: spec.scheduling_gates.iter().flatten().map(|gate| gate.name.clone()).collect(),
            claims: claims(spec, status),
            start_time: status.and_then(|status| status.start_time.as_ref()).map(|time| time.0.as_second()),
            created: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            terminating: meta.deletion_timestamp.is_some(),
            finished: matches!(phase, Some("Succeeded" | "Failed")),
            preempted: status.is_some_and(|status| {
                status.conditions.iter().flatten().any(|condition| {
                    condition.type_ == "DisruptionTarget"
                        && condition.status == "True"
                        && condition.reason.as_deref() == Some("PreemptionByScheduler")
                })
            }),
            pending: text(&spec.node_name).is_none().then(|| Box::new(Pending::new(pod))),
            spec: Arc::new(PodSpec::new(pod, spec, &namespace, &labels)),
            namespace,
            labels,
        }
    }

    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The claims the pod's volumes use, by name.
    pub fn claim_names(&self) -> impl Iterator<Item = (String, bool)> {
        self.spec.volumes.iter().filter_map(|volume| match volume {
            Volume::Claim { name } => Some((name.clone(), false)),
            Volume::Ephemeral { volume } => Some((format!("{}-{volume}", self.name), true)),
            Volume::Disk { .. } => None,
        })
    }

    pub fn has_affinity(&self) -> bool {
        !(self.spec.affinity.is_empty()
            && self.spec.anti_affinity.is_empty()
            && self.spec.preferred_pods.is_empty())
    }
}

impl Pending {
    fn new(pod: &core::Pod) -> Self {
        let mut pending = Self {
            resource_version: pod.metadata.resource_version.clone().unwrap_or_default(),
            generation: pod.metadata.generation,
            ..Self::default()
        };
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        let own =
            conditions.into_iter().flatten().find(|own| own.type_ == "PodScheduled" && own.status == "False");
        if let Some(own) = own {
            pending.reason = own.reason.clone().unwrap_or_default();
            pending.message = own.message.clone().unwrap_or_default();
            pending.since = own.last_transition_time.as_ref().map(|time| time.0);
        }
        pending
    }
}

/// Specs of controllers' pods: those of one template are kept once.
#[derive(Debug, Default)]
pub struct SharedSpecs {
    by_owner: HashMap<String, Weak<PodSpec>>,
    prune_at: usize,
}

impl SharedSpecs {
    pub fn share(&mut self, pod: &mut PodInfo) {
        let Some(owner) = &pod.spec.owner else { return };
        if let Some(known) = self.by_owner.get(&owner.uid).and_then(Weak::upgrade) {
            if known == pod.spec {
                pod.spec = known;
            }
            return;
        }
        if self.by_owner.len() >= self.prune_at.max(1_024) {
            self.by_owner.retain(|_, spec| spec.strong_count() > 0);
            self.prune_at = 2 * self.by_owner.len();
        }
        self.by_owner.insert(owner.uid.clone(), Arc::downgrade(&pod.spec));
    }
}

impl PodSpec {
    fn new(pod: &core::Pod, spec: &core::PodSpec, namespace: &Arc<str>, labels: &Labels) -> Self {
        let node = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let together = spec.affinity.as_ref().and_then(|affinity| affinity.pod_affinity.as_ref());
        let apart = spec.affinity.as_ref().and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let terms = |list: Option<&Vec<core::PodAffinityTerm>>| -> Vec<AffinityTerm> {
            list.into_iter().flatten().map(|term| affinity_term(term, namespace)).collect()
        };
        let weighted = |list: Option<&Vec<core::WeightedPodAffinityTerm>>, sign: i64| {
            list.into_iter()
                .flatten()
                .map(|term| {
                    (sign * i64::from(term.weight), affinity_term(&term.pod_affinity_term, namespace))
                })
                .collect::<Vec<_>>()
        };
        let mut preferred_pods = weighted(
            together.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
            1,
        );
        preferred_pods.extend(weighted(
            apart.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
            -1,
        ));
        Self {
            scheduler_name: spec.scheduler_name.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            never_preempts: spec.preemption_policy.as_deref() == Some("Never"),
            node_selector: spec.node_selector.clone().into_iter().flatten().collect(),
            required_nodes: node
                .and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref())
                .map(NodeSelector::from_api),
            preferred_nodes: preferred_nodes(node),
            tolerations: spec.tolerations.iter().flatten().map(Toleration::from_api).collect(),
            host_ports: host_ports(spec),
            affinity: terms(
                together.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            anti_affinity: terms(
                apart.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred_pods,
            spread: spec
                .topology_spread_constraints
                .iter()
                .flatten()
                .map(|constraint| SpreadConstraint::from_api(constraint, labels))
                .collect(),
            images: images(spec),
            container_count: spec.containers.len() + spec.init_containers.as_ref().map_or(0, Vec::len),
            volumes: spec.volumes.iter().flatten().filter_map(volume).collect(),
            owner: owner(pod),
        }
    }
}

fn owner(pod: &core::Pod) -> Option<Owner> {
    let controller =
        pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    Some(Owner {
        api_version: controller.api_version.clone(),
        kind: controller.kind.clone(),
        name: controller.name.clone(),
        uid: controller.uid.clone(),
    })
}

pub fn preferred_nodes(node: Option<&core::NodeAffinity>) -> Vec<(i64, NodeSelectorTerm)> {
    node.and_then(|node| node.preferred_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .flatten()
        .map(|term| (i64::from(term.weight), NodeSelectorTerm::from_api(&term.preference)))
        .filter(|(weight, term)| *weight != 0 && !term.is_empty())
        .collect()
}

fn affinity_term(term: &core::PodAffinityTerm, own_namespace: &Arc<str>) -> AffinityTerm {
    let mut namespaces: Vec<Arc<str>> =
        term.namespaces.iter().flatten().map(|name| name.as_str().into()).collect();
    if namespaces.is_empty() && term.namespace_selector.is_none() {
        namespaces.push(Arc::clone(own_namespace));
    }
    namespaces.sort_unstable();
    namespaces.dedup();
    AffinityTerm {
        filter: PodFilter {
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().map(|own| Selector::from_api(Some(own))),
            selector: Selector::from_api(term.label_selector.as_ref()),
        },
        topology_key: term.topology_key.as_str().into(),
    }
}

impl SpreadConstraint {
    pub fn from_api(constraint: &core::TopologySpreadConstraint, labels: &Labels) -> Self {
        let mut selector = Selector::from_api(constraint.label_selector.as_ref());
        // The API server merges these into the selector (KEP-3243); older objects still carry them apart.
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = labels.get(key)
                && !selector.mentions(key)
                && !selector.is_nothing()
            {
                selector.push(Requirement::equals(key, value));
            }
        }
        Self {
            topology_key: constraint.topology_key.as_str().into(),
            max_skew: constraint.max_skew,
            min_domains: constraint.min_domains.unwrap_or(1),
            hard: constraint.when_unsatisfiable == "DoNotSchedule",
            selector,
            honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

impl Toleration {
    fn from_api(toleration: &core::Toleration) -> Self {
        let value = toleration.value.clone().unwrap_or_default();
        let number = || value.parse().ok();
        let value = match toleration.operator.as_deref() {
            Some("Exists") => None,
            Some("Gt") => Some(number().map_or(TolerationValue::Never, TolerationValue::Gt)),
            Some("Lt") => Some(number().map_or(TolerationValue::Never, TolerationValue::Lt)),
            None | Some("" | "Equal") => Some(TolerationValue::Equal(value)),
            Some(_) => Some(TolerationValue::Never),
        };
        Self {
            key: toleration.key.clone().unwrap_or_default(),
            value,
            effect: toleration.effect.clone().unwrap_or_default(),
        }
    }

    pub fn tolerates(&self, taint: &Taint) -> bool {
        if !self.effect.is_empty() && self.effect != taint.effect {
            return false;
        }
        if !self.key.is_empty() && self.key != taint.key {
            return false;
        }
        let own = &*taint.value;
        match &self.value {
            None => true,
            Some(TolerationValue::Equal(value)) => value == own,
            Some(TolerationValue::Gt(bound)) => own.parse::<i64>().is_ok_and(|value| value > *bound),
            Some(TolerationValue::Lt(bound)) => own.parse::<i64>().is_ok_and(|value| value < *bound),
            Some(TolerationValue::Never) => false,
        }
    }
}

fn host_ports(spec: &core::PodSpec) -> Vec<HostPort> {
    let restartable = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let mut ports: Vec<HostPort> = spec
        .containers
        .iter()
        .chain(restartable)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            let ip = port.host_ip.as_deref().filter(|ip| *ip != "0.0.0.0").unwrap_or_default();
            Some(HostPort {
                protocol: port.protocol.as_deref().filter(|p| !p.is_empty()).unwrap_or("TCP").to_owned(),
                ip: ip.to_owned(),
                port: number,
            })
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn images(spec: &core::PodSpec) -> Vec<String> {
    let init = spec.init_containers.iter().flatten();
    let image_volumes = spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref());
    init.chain(&spec.containers)
        .filter_map(|container| container.image.as_deref())
        .chain(image_volumes.filter_map(|image| image.reference.as_deref()))
        .map(normalized_image)
        .collect()
}

/// An image without tag or digest means `latest`.
pub fn normalized_image(name: &str) -> String {
    let after_registry = name.rsplit('/').next().unwrap_or(name);
    if after_registry.contains(':') { name.to_owned() } else { format!("{name}:latest") }
}

fn volume(volume: &core::Volume) -> Option<Volume> {
    let disk = |kind, id: &str, read_only: Option<bool>| {
        Some(Volume::Disk { kind, id: id.to_owned(), read_only: read_only.unwrap_or(false) })
    };
    if let Some(claim) = &volume.persistent_volume_claim {
        return Some(Volume::Claim { name: claim.claim_name.clone() });
    }
    if volume.ephemeral.is_some() {
        return Some(Volume::Ephemeral { volume: volume.name.clone() });
    }
    if let Some(own) = &volume.gce_persistent_disk {
        return disk(DiskKind::GcePersistentDisk, &own.pd_name, own.read_only);
    }
    if let Some(own) = &volume.aws_elastic_block_store {
        return disk(DiskKind::AwsElasticBlockStore, &own.volume_id, own.read_only);
    }
    if let Some(own) = &volume.iscsi {
        return disk(DiskKind::Iscsi, &own.iqn, own.read_only);
    }
    if let Some(own) = &volume.rbd {
        let pool = own.pool.as_deref().unwrap_or("rbd");
        let id = format!("{pool}/{}@{}", own.image, own.monitors.join(","));
        return disk(DiskKind::Rbd, &id, own.read_only);
    }
    None
}

fn claims(spec: &core::PodSpec, status: Option<&core::PodStatus>) -> Vec<PodClaim> {
    spec.resource_claims
        .iter()
        .flatten()
        .filter_map(|own| {
            let made = status
                .and_then(|status| status.resource_claim_statuses.as_ref())
                .into_iter()
                .flatten()
                .find(|status| status.name == own.name);
            // A status without a claim says that none is needed.
            if own.resource_claim_name.is_none()
                && made.is_some_and(|made| made.resource_claim_name.is_none())
            {
                return None;
            }
            let claim = own
                .resource_claim_name
                .clone()
                .or_else(|| made.and_then(|made| made.resource_claim_name.clone()));
            Some(PodClaim { name: own.name.clone(), claim })
        })
        .collect()
}
