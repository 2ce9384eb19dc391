//! Claims, volumes and what else decides where a pod's storage can be; with the choices already made for
//! pods on their way to a node laid over what the API says.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};

use crate::devices::HeldClaim;
use crate::labels::{Labels, NodeSelector, Selector};
use crate::node::NodeInfo;
use crate::pod::{PodInfo, Uid};
use crate::resources;

pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
const WAIT_FOR_FIRST_CONSUMER: &str = "WaitForFirstConsumer";

/// Something to write, and to wait for, before a pod is bound.
#[derive(Debug, Clone)]
pub enum PreBind {
    /// Give this volume to the claim.
    BindVolume { volume: Arc<PersistentVolume>, claim: ObjectReference },
    /// Have a volume made for the claim, where this node can reach it.
    Provision { claim: Arc<PersistentVolumeClaim>, node: Arc<str> },
    /// Give the claim its devices, if they are new, and the pod its place among the claim's consumers.
    ReserveClaim { held: Box<HeldClaim>, pod_name: String, pod_uid: String },
    /// Wait until the claims are bound.
    AwaitClaims { namespace: String, names: Vec<String>, timeout: std::time::Duration },
}

/// What is to be done for one claim that waits for its first consumer.
#[derive(Debug, Clone)]
pub enum ClaimPlan {
    Bind { claim: Arc<PersistentVolumeClaim>, volume: Arc<PersistentVolume> },
    Provision { claim: Arc<PersistentVolumeClaim> },
}

/// Why a node cannot have a claim's volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoVolume {
    NothingToBind,
    NotEnoughSpace,
}

#[derive(Debug, Default)]
pub struct Storage {
    claims: HashMap<String, Arc<PersistentVolumeClaim>>,
    volumes: HashMap<String, Arc<PersistentVolume>>,
    classes: HashMap<String, Arc<StorageClass>>,
    csi_nodes: HashMap<String, Arc<CSINode>>,
    drivers: HashMap<String, Arc<CSIDriver>>,
    capacities: HashMap<String, Arc<CSIStorageCapacity>>,
    attachments: HashMap<String, Arc<VolumeAttachment>>,
    /// Pods on nodes that use a claim.
    users: HashMap<String, usize>,
    /// Volumes promised to claims of pods that are being bound.
    promised: HashMap<String, String>,
    plans: HashMap<Uid, Vec<ClaimPlan>>,
}

fn put<T>(map: &mut HashMap<String, Arc<T>>, key: String, value: Option<Arc<T>>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

impl Storage {
    pub fn set_claim(&mut self, key: String, claim: Option<Arc<PersistentVolumeClaim>>) {
        put(&mut self.claims, key, claim);
    }

    pub fn set_volume(&mut self, name: String, volume: Option<Arc<PersistentVolume>>) {
        put(&mut self.volumes, name, volume);
    }

    pub fn set_class(&mut self, name: String, class: Option<Arc<StorageClass>>) {
        put(&mut self.classes, name, class);
    }

    pub fn set_csi_node(&mut self, name: String, node: Option<Arc<CSINode>>) {
        put(&mut self.csi_nodes, name, node);
    }

    pub fn set_driver(&mut self, name: String, driver: Option<Arc<CSIDriver>>) {
        put(&mut self.drivers, name, driver);
    }

    pub fn set_capacity(&mut self, key: String, capacity: Option<Arc<CSIStorageCapacity>>) {
        put(&mut self.capacities, key, capacity);
    }

    pub fn set_attachment(&mut self, name: String, attachment: Option<Arc<VolumeAttachment>>) {
        put(&mut self.attachments, name, attachment);
    }

    pub fn claim(&self, namespace: &str, name: &str) -> Option<&Arc<PersistentVolumeClaim>> {
        self.claims.get(&format!("{namespace}/{name}"))
    }

    pub fn volume(&self, name: &str) -> Option<&Arc<PersistentVolume>> {
        self.volumes.get(name)
    }

    pub fn class_of(&self, claim: &PersistentVolumeClaim) -> Option<&Arc<StorageClass>> {
        self.classes.get(class_name(claim))
    }

    pub fn csi_node(&self, name: &str) -> Option<&Arc<CSINode>> {
        self.csi_nodes.get(name)
    }

    pub fn attachments(&self) -> impl Iterator<Item = &Arc<VolumeAttachment>> {
        self.attachments.values()
    }

    /// Whether a pod on some node uses the claim.
    pub fn claim_users(&self, namespace: &str, name: &str) -> usize {
        self.users.get(&format!("{namespace}/{name}")).copied().unwrap_or(0)
    }

    pub fn add_pod(&mut self, pod: &PodInfo) {
        for (name, _) in pod.claim_names() {
            *self.users.entry(format!("{}/{name}", pod.namespace)).or_default() += 1;
        }
    }

    pub fn remove_pod(&mut self, pod: &PodInfo) {
        for (name, _) in pod.claim_names() {
            let key = format!("{}/{name}", pod.namespace);
            if let Some(count) = self.users.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.users.remove(&key);
                }
            }
        }
    }

    /// Whether the claim's volume is chosen only once a pod that uses it is placed.
    pub fn waits_for_consumer(&self, claim: &PersistentVolumeClaim) -> bool {
        self.class_of(claim)
            .is_some_and(|class| class.volume_binding_mode.as_deref() == Some(WAIT_FOR_FIRST_CONSUMER))
    }

    /// How the claims would get their volumes on the node.
    pub fn plan(
        &self,
        claims: &[Arc<PersistentVolumeClaim>],
        node: &NodeInfo,
    ) -> Result<Vec<ClaimPlan>, NoVolume> {
        let mut plans = Vec::with_capacity(claims.len());
        let mut taken: Vec<&str> = Vec::new();
        for claim in claims {
            let selected = annotation(claim, SELECTED_NODE);
            if let Some(selected) = selected {
                if *selected != *node.name {
                    return Err(NoVolume::NothingToBind);
                }
                plans.push(ClaimPlan::Provision { claim: Arc::clone(claim) });
                continue;
            }
            if let Some(volume) = self.smallest_match(claim, node, &taken) {
                taken.push(volume.metadata.name.as_deref().unwrap_or_default());
                plans.push(ClaimPlan::Bind { claim: Arc::clone(claim), volume: Arc::clone(volume) });
                continue;
            }
            self.can_provision(claim, node)?;
            plans.push(ClaimPlan::Provision { claim: Arc::clone(claim) });
        }
        Ok(plans)
    }

    fn smallest_match(
        &self,
        claim: &PersistentVolumeClaim,
        node: &NodeInfo,
        taken: &[&str],
    ) -> Option<&Arc<PersistentVolume>> {
        let fitting = self.volumes.values().filter(|volume| {
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            !taken.contains(&name)
                && self.promised.get(name).is_none_or(|own| *own == key(claim))
                && volume_suits(volume, claim)
                && volume_reaches(volume, node)
        });
        fitting.min_by_key(|volume| (!is_for(volume, claim), capacity(volume), volume.metadata.name.clone()))
    }

    fn can_provision(&self, claim: &PersistentVolumeClaim, node: &NodeInfo) -> Result<(), NoVolume> {
        let class = self.class_of(claim).ok_or(NoVolume::NothingToBind)?;
        if class.provisioner.is_empty() || class.provisioner == NO_PROVISIONER {
            return Err(NoVolume::NothingToBind);
        }
        let topologies = class.allowed_topologies.iter().flatten();
        let reachable = |term: &k8s_openapi::api::core::v1::TopologySelectorTerm| {
            term.match_label_expressions.iter().flatten().all(|expression| {
                node.label(&expression.key)
                    .is_some_and(|own| expression.values.iter().any(|value| value == own))
            })
        };
        if class.allowed_topologies.as_ref().is_some_and(|list| !list.is_empty())
            && !topologies.clone().any(reachable)
        {
            return Err(NoVolume::NothingToBind);
        }
        let tracked = self
            .drivers
            .get(&class.provisioner)
            .and_then(|driver| driver.spec.storage_capacity)
            .unwrap_or(false);
        if tracked && !self.has_capacity(class, requested(claim), node) {
            return Err(NoVolume::NotEnoughSpace);
        }
        Ok(())
    }

    fn has_capacity(&self, class: &StorageClass, size: i64, node: &NodeInfo) -> bool {
        let name = class.metadata.name.as_deref().unwrap_or_default();
        self.capacities.values().filter(|own| own.storage_class_name == name).any(|own| {
            let limit = own.maximum_volume_size.as_ref().or(own.capacity.as_ref());
            limit.is_some_and(|limit| resources::value(&limit.0) >= size)
                && own
                    .node_topology
                    .as_ref()
                    .is_some_and(|topology| Selector::from_api(Some(topology)).matches(&node.facts.labels))
        })
    }

    /// Holds the planned volumes for a pod on its way.
    pub fn hold(&mut self, pod: &PodInfo, plans: Vec<ClaimPlan>) {
        for plan in &plans {
            if let ClaimPlan::Bind { claim, volume } = plan {
                let name = volume.metadata.name.clone().unwrap_or_default();
                self.promised.insert(name, key(claim));
            }
        }
        self.plans.insert(Arc::clone(&pod.uid), plans);
    }

    pub fn release(&mut self, uid: &str) {
        for plan in self.plans.remove(uid).into_iter().flatten() {
            if let ClaimPlan::Bind { volume, .. } = plan {
                self.promised.remove(volume.metadata.name.as_deref().unwrap_or_default());
            }
        }
    }

    pub fn plans_of(&self, uid: &str) -> &[ClaimPlan] {
        self.plans.get(uid).map_or(&[], Vec::as_slice)
    }
}

pub fn key(claim: &PersistentVolumeClaim) -> String {
    let meta = &claim.metadata;
    format!("{}/{}", meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

pub fn annotation<'a>(claim: &'a PersistentVolumeClaim, name: &str) -> Option<&'a String> {
    claim.metadata.annotations.as_ref()?.get(name).filter(|value| !value.is_empty())
}

/// The volume the claim names, if it names one.
pub fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())
}

/// Whether the claim has its volume for good.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    volume_name(claim).is_some() && annotation(claim, BIND_COMPLETED).is_some()
}

fn class_name(claim: &PersistentVolumeClaim) -> &str {
    if let Some(name) = annotation(claim, BETA_CLASS) {
        return name;
    }
    claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default()
}

pub fn requested(claim: &PersistentVolumeClaim) -> i64 {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let quantity = resources.and_then(|own| own.requests.as_ref()).and_then(|own| own.get("storage"));
    quantity.map_or(0, |quantity| resources::value(&quantity.0))
}

fn capacity(volume: &PersistentVolume) -> i64 {
    let list = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
    list.and_then(|own| own.get("storage")).map_or(0, |quantity| resources::value(&quantity.0))
}

/// Whether the volume is already set aside for the claim.
fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()).is_some_and(|own| {
        own.name == claim.metadata.name
            && own.namespace == claim.metadata.namespace
            && own.uid.as_ref().is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_ref())
    })
}

fn volume_suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(spec), Some(wanted)) = (&volume.spec, &claim.spec) else { return false };
    if volume.metadata.deletion_timestamp.is_some() || capacity(volume) < requested(claim) {
        return false;
    }
    let block = |mode: &Option<String>| mode.as_deref() == Some("Block");
    if block(&spec.volume_mode) != block(&wanted.volume_mode) {
        return false;
    }
    let class_matches = spec.volume_attributes_class_name.as_deref().unwrap_or_default()
        == wanted.volume_attributes_class_name.as_deref().unwrap_or_default();
    if is_for(volume, claim) {
        return class_matches;
    }
    let available = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Available");
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    available
        && spec.claim_ref.is_none()
        && class_matches
        && spec.storage_class_name.as_deref().unwrap_or_default() == class_name(claim)
        && wanted.access_modes.iter().flatten().all(|mode| modes.contains(mode))
        && wanted.selector.as_ref().is_none_or(|selector| {
            Selector::from_api(Some(selector)).matches(&Labels::from(volume.metadata.labels.as_ref()))
        })
}

/// Whether the volume can be used on the node.
pub fn volume_reaches(volume: &PersistentVolume, node: &NodeInfo) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    affinity
        .and_then(|affinity| affinity.required.as_ref())
        .is_none_or(|required| NodeSelector::from_api(required).matches(&node.name, &node.facts.labels))
}
