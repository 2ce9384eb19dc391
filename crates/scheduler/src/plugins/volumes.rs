//! Storage: exclusive disks and claims, limits of attached volumes, binding, and zones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};

use crate::events::{ClusterEvent, StorageEvent};
use crate::framework::{Checks, Filter, Plugin, Point, Rejection, Verdict};
use crate::node::{NodeIdx, NodeInfo, REGION_KEY, ZONE_KEY};
use crate::pod::{DiskKind, PodInfo, Volume};
use crate::snapshot::Snapshot;
use crate::storage::{self, ClaimPlan, NoVolume, PreBind, Storage};

const RESTRICTIONS: &str = "VolumeRestrictions";
const LIMITS: &str = "NodeVolumeLimits";
const BINDING: &str = "VolumeBinding";
const ZONE: &str = "VolumeZone";

const ONE_POD_ONLY: &str = "ReadWriteOncePod";
const ZONE_LABELS: [&str; 4] = [
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    ZONE_KEY,
    REGION_KEY,
];

/// Old in-tree disks that one node may write, and claims that one pod may use.
#[derive(Debug)]
pub struct VolumeRestrictions;

#[derive(Clone)]
struct Restrictions<'s> {
    pod: &'s PodInfo,
    /// Claims for one pod only, with how many pods use them now.
    exclusive: Vec<(String, i64)>,
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        RESTRICTIONS
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn pre_filter<'s>(&'s self, snapshot: &'s Snapshot, pod: &'s PodInfo) -> Result<Checks<'s>, Rejection> {
        if pod.spec.volumes.is_empty() {
            return Checks::skip();
        }
        let mut exclusive = Vec::new();
        for (name, _) in pod.claim_names() {
            let claim = snapshot.storage.claim(&pod.namespace, &name);
            let modes = claim.and_then(|claim| claim.spec.as_ref()?.access_modes.as_ref());
            if modes.is_some_and(|modes| modes.iter().any(|mode| mode == ONE_POD_ONLY)) {
                let users = snapshot.storage.claim_users(&pod.namespace, &name);
                exclusive.push((name, i64::try_from(users).unwrap_or(i64::MAX)));
            }
        }
        let disks = pod.spec.volumes.iter().any(|volume| matches!(volume, Volume::Disk { .. }));
        if !disks && exclusive.is_empty() {
            Checks::skip()
        } else {
            Checks::with(Restrictions { pod, exclusive })
        }
    }

    fn queueing_hint(&self, _snapshot: &Snapshot, _pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::Node { change, .. } => change.added,
            ClusterEvent::PodReleased(gone) => !gone.spec.volumes.is_empty(),
            ClusterEvent::Storage(event) => *event == StorageEvent::Claim,
            _ => false,
        }
    }
}

impl Restrictions<'_> {
    fn update(&mut self, other: &PodInfo, change: i64) {
        if other.namespace != self.pod.namespace {
            return;
        }
        for (name, _) in other.claim_names() {
            for (_, users) in self.exclusive.iter_mut().filter(|(own, _)| *own == name) {
                *users += change;
            }
        }
    }
}

fn disks_conflict(a: &Volume, b: &Volume) -> bool {
    let (
        Volume::Disk { kind, id, read_only },
        Volume::Disk { kind: other_kind, id: other_id, read_only: other_read_only },
    ) = (a, b)
    else {
        return false;
    };
    kind == other_kind
        && id == other_id
        && (*kind == DiskKind::AwsElasticBlockStore || !(*read_only && *other_read_only))
}

impl<'s> Filter<'s> for Restrictions<'s> {
    fn filter(&self, node: &NodeInfo) -> Verdict {
        let theirs = || node.pods.iter().flat_map(|other| &other.spec.volumes);
        if self.pod.spec.volumes.iter().any(|own| theirs().any(|other| disks_conflict(own, other))) {
            return Err(Rejection::unschedulable(RESTRICTIONS, "node(s) had no available disk"));
        }
        if self.exclusive.iter().any(|(_, users)| *users > 0) {
            let reason = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
            return Err(Rejection::unschedulable(RESTRICTIONS, reason));
        }
        Ok(())
    }

    fn add_pod(&mut self, pod: &PodInfo, _node: &NodeInfo) {
        self.update(pod, 1);
    }

    fn remove_pod(&mut self, pod: &PodInfo, _node: &NodeInfo) {
        self.update(pod, -1);
    }

    fn clone_box(&self) -> Box<dyn Filter<'s> + 's> {
        Box::new(self.clone())
    }
}

/// How many volumes of a CSI driver a node can have attached.
#[derive(Debug)]
pub struct NodeVolumeLimits;

#[derive(Clone)]
struct Limits<'s> {
    storage: &'s Storage,
    /// The pod's volumes as (driver, volume).
    volumes: BTreeSet<(String, String)>,
}

/// The driver and identity of a claim's CSI volume, existing or to be made.
fn csi_volume(storage: &Storage, namespace: &str, name: &str) -> Option<(String, String)> {
    let claim = storage.claim(namespace, name)?;
    match storage::volume_name(claim).and_then(|volume| storage.volume(volume)) {
        Some(volume) => {
            let csi = volume.spec.as_ref()?.csi.as_ref()?;
            Some((csi.driver.clone(), csi.volume_handle.clone()))
        }
        None => {
            let class = storage.class_of(claim)?;
            (class.provisioner != "kubernetes.io/no-provisioner")
                .then(|| (class.provisioner.clone(), format!("{}/{namespace}/{name}", class.provisioner)))
        }
    }
}

fn csi_volumes(storage: &Storage, pod: &PodInfo) -> BTreeSet<(String, String)> {
    pod.claim_names().filter_map(|(name, _)| csi_volume(storage, &pod.namespace, &name)).collect()
}

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        LIMITS
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn pre_filter<'s>(&'s self, snapshot: &'s Snapshot, pod: &'s PodInfo) -> Result<Checks<'s>, Rejection> {
        let volumes = csi_volumes(&snapshot.storage, pod);
        if volumes.is_empty() {
            return Checks::skip();
        }
        Checks::with(Limits { storage: &snapshot.storage, volumes })
    }

    fn queueing_hint(&self, _snapshot: &Snapshot, _pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::Node { change, .. } => change.added,
            ClusterEvent::PodReleased(gone) => gone.claim_names().next().is_some(),
            ClusterEvent::Storage(event) => {
                matches!(event, StorageEvent::CsiNode | StorageEvent::Claim | StorageEvent::Attachment)
            }
            _ => false,
        }
    }
}

impl<'s> Filter<'s> for Limits<'s> {
    fn filter(&self, node: &NodeInfo) -> Verdict {
        let Some(csi_node) = self.storage.csi_node(&node.name) else { return Ok(()) };
        let limits: BTreeMap<&str, i32> = csi_node
            .spec
            .drivers
            .iter()
            .filter_map(|driver| Some((driver.name.as_str(), driver.allocatable.as_ref()?.count?)))
            .collect();
        if limits.is_empty() {
            return Ok(());
        }
        let mut attached: BTreeSet<(String, String)> =
            node.pods.iter().flat_map(|pod| csi_volumes(self.storage, pod)).collect();
        for own in self.storage.attachments().filter(|own| own.spec.node_name == *node.name) {
            let volume = own.spec.source.persistent_volume_name.as_deref();
            let csi = volume
                .and_then(|name| self.storage.volume(name))
                .and_then(|volume: &Arc<PersistentVolume>| volume.spec.as_ref()?.csi.as_ref());
            attached.extend(csi.map(|csi| (csi.driver.clone(), csi.volume_handle.clone())));
        }
        for (driver, limit) in limits {
            let of_driver = |volumes: &BTreeSet<(String, String)>| {
                volumes.iter().filter(|(own, _)| own == driver).count()
            };
            let new = self.volumes.difference(&attached).filter(|(own, _)| own == driver).count();
            if new > 0 && of_driver(&attached) + new > usize::try_from(limit).unwrap_or(0) {
                return Err(Rejection::unschedulable(LIMITS, "node(s) exceed max volume count"));
            }
        }
        Ok(())
    }

    fn clone_box(&self) -> Box<dyn Filter<'s> + 's> {
        Box::new(self.clone())
    }
}

/// Finds volumes for claims that wait for their first consumer, and keeps pods where theirs are.
#[derive(Debug)]
pub struct VolumeBinding {
    pub timeout: Duration,
}

#[derive(Clone)]
struct Binding<'s> {
    storage: &'s Storage,
    bound: Vec<Arc<PersistentVolumeClaim>>,
    waiting: Vec<Arc<PersistentVolumeClaim>>,
}

impl VolumeBinding {
    fn claims<'s>(storage: &'s Storage, pod: &PodInfo) -> Result<Binding<'s>, Rejection> {
        let refuse = |reason: String| Err(Rejection::unresolvable(BINDING, reason));
        let mut binding = Binding { storage, bound: Vec::new(), waiting: Vec::new() };
        let mut immediate = false;
        for (name, ephemeral) in pod.claim_names() {
            let Some(claim) = storage.claim(&pod.namespace, &name) else {
                return refuse(match ephemeral {
                    true => format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""
                    ),
                    false => format!("persistentvolumeclaim \"{name}\" not found"),
                });
            };
            if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
                let volume = storage::volume_name(claim).unwrap_or_default();
                return refuse(format!(
                    "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
                ));
            }
            if claim.metadata.deletion_timestamp.is_some() {
                return refuse(format!("persistentvolumeclaim \"{name}\" is being deleted"));
            }
            let owned = claim.metadata.owner_references.iter().flatten().any(|owner| *owner.uid == *pod.uid);
            if ephemeral && !owned {
                let key = storage::key(claim);
                return refuse(format!("PVC {key} was not created for pod {} (pod is not owner)", pod.key()));
            }
            if storage::is_bound(claim) {
                binding.bound.push(Arc::clone(claim));
            } else if storage::volume_name(claim).is_none() && storage.waits_for_consumer(claim) {
                binding.waiting.push(Arc::clone(claim));
            } else {
                immediate = true;
            }
        }
        if immediate {
            return refuse("pod has unbound immediate PersistentVolumeClaims".to_owned());
        }
        binding.waiting.sort_by_key(|claim| storage::requested(claim));
        Ok(binding)
    }
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        BINDING
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::Reserve, Point::PreBind]
    }

    fn pre_filter<'s>(&'s self, snapshot: &'s Snapshot, pod: &'s PodInfo) -> Result<Checks<'s>, Rejection> {
        if pod.claim_names().next().is_none() {
            return Checks::skip();
        }
        Checks::with(Self::claims(&snapshot.storage, pod)?)
    }

    fn reserve(&self, snapshot: &mut Snapshot, pod: &PodInfo, node: NodeIdx) -> Verdict {
        if pod.claim_names().next().is_none() {
            return Ok(());
        }
        let waiting = Self::claims(&snapshot.storage, pod)?.waiting;
        let plans = snapshot.storage.plan(&waiting, snapshot.node(node)).map_err(no_volume)?;
        snapshot.storage.hold(pod, plans);
        Ok(())
    }

    fn unreserve(&self, snapshot: &mut Snapshot, pod: &PodInfo) {
        snapshot.storage.release(&pod.uid);
    }

    fn pre_bind(&self, snapshot: &Snapshot, pod: &PodInfo, node: NodeIdx) -> Vec<PreBind> {
        let plans = snapshot.storage.plans_of(&pod.uid);
        if plans.is_empty() {
            return Vec::new();
        }
        let node = Arc::clone(&snapshot.node(node).name);
        let mut names = Vec::new();
        let mut steps = Vec::new();
        for plan in plans {
            let (ClaimPlan::Bind { claim, .. } | ClaimPlan::Provision { claim }) = plan;
            names.push(claim.metadata.name.clone().unwrap_or_default());
            steps.push(match plan {
                ClaimPlan::Bind { claim, volume } => {
                    PreBind::BindVolume { volume: Arc::clone(volume), claim: reference(claim) }
                }
                ClaimPlan::Provision { claim } => {
                    PreBind::Provision { claim: Arc::clone(claim), node: Arc::clone(&node) }
                }
            });
        }
        steps.push(PreBind::AwaitClaims {
            namespace: pod.namespace.to_string(),
            names,
            timeout: self.timeout,
        });
        steps
    }

    fn queueing_hint(&self, _snapshot: &Snapshot, _pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::Node { change, .. } => change.added || change.labels,
            ClusterEvent::Storage(event) => *event != StorageEvent::Attachment,
            _ => false,
        }
    }
}

fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        name: claim.metadata.name.clone(),
        namespace: claim.metadata.namespace.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        uid: claim.metadata.uid.clone(),
        field_path: None,
    }
}

fn no_volume(why: NoVolume) -> Rejection {
    Rejection::unschedulable(
        BINDING,
        match why {
            NoVolume::NothingToBind => "node(s) didn't find available persistent volumes to bind",
            NoVolume::NotEnoughSpace => "node(s) did not have enough free storage",
        },
    )
}

impl<'s> Filter<'s> for Binding<'s> {
    fn filter(&self, node: &NodeInfo) -> Verdict {
        for claim in &self.bound {
            let Some(volume) = storage::volume_name(claim).and_then(|name| self.storage.volume(name)) else {
                let reason = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
                return Err(Rejection::unresolvable(BINDING, reason));
            };
            if !storage::volume_reaches(volume, node) {
                let reason = "node(s) didn't match PersistentVolume's node affinity";
                return Err(Rejection::unresolvable(BINDING, reason));
            }
        }
        self.storage.plan(&self.waiting, node).map(|_| ()).map_err(no_volume)
    }

    fn clone_box(&self) -> Box<dyn Filter<'s> + 's> {
        Box::new(self.clone())
    }
}

/// Volumes labelled with a zone are used there only.
#[derive(Debug)]
pub struct VolumeZone;

#[derive(Clone)]
struct Zones(Vec<(&'static str, BTreeSet<String>)>);

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        ZONE
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn pre_filter<'s>(&'s self, snapshot: &'s Snapshot, pod: &'s PodInfo) -> Result<Checks<'s>, Rejection> {
        let mut zones = Vec::new();
        for (name, _) in pod.claim_names() {
            let claim = snapshot.storage.claim(&pod.namespace, &name);
            let volume = claim.and_then(|claim| snapshot.storage.volume(storage::volume_name(claim)?));
            let labels = volume.and_then(|volume| volume.metadata.labels.as_ref());
            for key in ZONE_LABELS {
                if let Some(value) = labels.and_then(|labels| labels.get(key)) {
                    zones.push((key, value.split("__").map(str::to_owned).collect()));
                }
            }
        }
        if zones.is_empty() { Checks::skip() } else { Checks::with(Zones(zones)) }
    }

    fn queueing_hint(&self, _snapshot: &Snapshot, _pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        match event {
            ClusterEvent::Node { change, .. } => change.added || change.labels,
            ClusterEvent::Storage(event) => {
                matches!(event, StorageEvent::Claim | StorageEvent::Volume | StorageEvent::Class)
            }
            _ => false,
        }
    }
}

impl<'s> Filter<'s> for Zones {
    fn filter(&self, node: &NodeInfo) -> Verdict {
        // Nodes of clusters without zones carry none of the labels and take any volume.
        if ZONE_LABELS.iter().all(|key| node.label(key).is_none()) {
            return Ok(());
        }
        let reachable = |(key, zones): &(&'static str, BTreeSet<String>)| {
            let modern = match *key {
                "failure-domain.beta.kubernetes.io/zone" => ZONE_KEY,
                "failure-domain.beta.kubernetes.io/region" => REGION_KEY,
                key => key,
            };
            node.label(key).or_else(|| node.label(modern)).is_some_and(|own| zones.contains(own))
        };
        if self.0.iter().all(reachable) {
            return Ok(());
        }
        Err(Rejection::unresolvable(ZONE, "node(s) had no available volume zone"))
    }

    fn clone_box(&self) -> Box<dyn Filter<'s> + 's> {
        Box::new(self.clone())
    }
}
