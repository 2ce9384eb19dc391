//! Binds claims to volumes, and does with released volumes what their policy says.
//!
//! Claims whose class waits for a consumer are bound when the scheduler has chosen a node; claims that need a volume
//! made are left, marked, to the provisioner named in their class.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus,
    PersistentVolumeStatus,
};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Api;
use kube::api::PostParams;
use meta::names::NamespacedName;
use reconcile::events::EventRecorder;
use reconcile::{Action, Informer, ReconcileError, Reconciler, SharedClock};

use super::matching::{capacity, class_of_claim, find, refers_to};
use crate::context::{Context, api};
use crate::enqueue;
use crate::pods::{self, annotation, name, whole_seconds};

const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const OLD_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

struct Binder {
    client: kube::Client,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    events: EventRecorder,
    clock: SharedClock,
}

/// Volumes have no namespace and so share the queue with claims.
pub(in crate::controllers) async fn run(context: Context) {
    let queue = context.queue("volumes");
    let controller = Arc::new(Binder {
        client: context.client.clone(),
        claims: context.informer(),
        volumes: context.informer(),
        classes: context.informer(),
        events: context.recorder("persistentvolume-controller"),
        clock: context.clock.clone(),
    });
    let _claims = enqueue::related(&controller.claims, &queue, |claim: &PersistentVolumeClaim| {
        let volume =
            claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
        let volume = volume.map(|name| NamespacedName { namespace: String::new(), name });
        [Some(pods::key(&claim.metadata)), volume].into_iter().flatten().collect()
    });
    // A volume that comes or becomes free may serve any claim that waits.
    let claims = controller.claims.clone();
    let _volumes = enqueue::related(&controller.volumes, &queue, move |volume: &PersistentVolume| {
        let mut keys = vec![pods::key(&volume.metadata)];
        match volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
            Some(reference) => keys.push(NamespacedName {
                namespace: reference.namespace.clone().unwrap_or_default(),
                name: reference.name.clone().unwrap_or_default(),
            }),
            None => {
                let waiting = claims.list().into_iter().filter(|claim| !is_bound(claim));
                keys.extend(waiting.map(|claim| pods::key(&claim.metadata)));
            }
        }
        keys
    });
    let claims = controller.claims.clone();
    let _classes = enqueue::related(&controller.classes, &queue, move |class: &StorageClass| {
        let waits = |claim: &Arc<PersistentVolumeClaim>| {
            !is_bound(claim) && class_of_claim(claim) == name(&class.metadata)
        };
        claims.list().into_iter().filter(waits).map(|claim| pods::key(&claim.metadata)).collect()
    });
    if context.synced(&[&controller.claims, &controller.volumes, &controller.classes]).await {
        // One worker: two claims must not take one volume.
        context.run("persistentvolume-binder", controller, queue, 1).await;
    }
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
}

#[async_trait]
impl Reconciler for Binder {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        if key.namespace.is_empty() {
            return match self.volumes.get(key) {
                Some(volume) => self.look_at_volume(&volume).await,
                None => Ok(Action::Done),
            };
        }
        match self.claims.get(key) {
            Some(claim) => self.look_at_claim(&claim).await,
            None => Ok(Action::Done),
        }
    }
}

impl Binder {
    async fn look_at_claim(&self, claim: &PersistentVolumeClaim) -> Result<Action, ReconcileError> {
        let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
        if wanted.is_empty() {
            return self.look_for_volume(claim).await;
        }
        let key = NamespacedName { namespace: String::new(), name: wanted.to_owned() };
        let completed = annotation(&claim.metadata, BIND_COMPLETED).is_some();
        let Some(volume) = self.volumes.get(&key) else {
            if completed && is_bound(claim) {
                return self
                    .lose(
                        claim,
                        "ClaimLost",
                        "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
                    )
                    .await;
            }
            return self.set_claim_phase(claim, "Pending", None).await;
        };
        match volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
            None => self.bind(claim, &volume).await,
            Some(reference) if refers_to(reference, claim) => self.bind(claim, &volume).await,
            Some(_) if completed => {
                self.lose(
                    claim,
                    "ClaimMisbound",
                    "Two claims are bound to the same volume, this one is bound incorrectly",
                )
                .await
            }
            Some(_) => self.set_claim_phase(claim, "Pending", None).await,
        }
    }

    async fn look_for_volume(&self, claim: &PersistentVolumeClaim) -> Result<Action, ReconcileError> {
        let class_key = NamespacedName { namespace: String::new(), name: class_of_claim(claim).to_owned() };
        let class = self.classes.get(&class_key);
        let waits =
            class.as_ref().is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
        let chosen = annotation(&claim.metadata, SELECTED_NODE).is_some();
        let volumes = self.volumes.list();
        if waits && !chosen {
            // A volume may be set aside for the claim all the same.
            let reserved = volumes.iter().find(|volume| {
                volume
                    .spec
                    .as_ref()
                    .and_then(|spec| spec.claim_ref.as_ref())
                    .is_some_and(|r| refers_to(r, claim))
            });
            if let Some(volume) = reserved {
                return self.bind(claim, volume).await;
            }
            let note = "waiting for first consumer to be created before binding";
            self.events.normal(claim, "WaitForFirstConsumer", "Bind", note);
            return self.set_claim_phase(claim, "Pending", None).await;
        }
        if !waits && let Some(volume) = find(claim, &volumes) {
            return self.bind(claim, &volume).await;
        }
        match class.filter(|class| class.provisioner != "kubernetes.io/no-provisioner") {
            Some(class) => self.ask_provisioner(claim, &class).await,
            None => {
                let note = "no persistent volumes available for this claim and no storage class is set";
                self.events.normal(claim, "FailedBinding", "Bind", note);
                self.set_claim_phase(claim, "Pending", None).await
            }
        }
    }

    /// Marks the claim for the provisioner of its class, which watches for that.
    async fn ask_provisioner(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
    ) -> Result<Action, ReconcileError> {
        let mut marked = claim.clone();
        let annotations = marked.metadata.annotations.get_or_insert_default();
        for key in [PROVISIONER, OLD_PROVISIONER] {
            annotations.insert(key.to_owned(), class.provisioner.clone());
        }
        if marked.metadata.annotations != claim.metadata.annotations {
            let claims = api::<PersistentVolumeClaim>(&self.client, pods::namespace(&claim.metadata));
            marked = claims.replace(name(&claim.metadata), &PostParams::default(), &marked).await?;
        }
        let note = format!(
            "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.",
            class.provisioner
        );
        self.events.normal(claim, "ExternalProvisioning", "Provision", note);
        self.set_claim_phase(&marked, "Pending", None).await
    }

    /// Volume first, then claim: a crash between leaves a volume set aside for the claim.
    async fn bind(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<Action, ReconcileError> {
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let mut bound = volume.clone();
        let spec = bound.spec.get_or_insert_default();
        let by_user = spec.claim_ref.is_some();
        let reference = kube::Resource::object_ref(claim, &());
        let complete = |r: &ObjectReference| r.uid == claim.metadata.uid && refers_to(r, claim);
        if !spec.claim_ref.as_ref().is_some_and(complete) {
            spec.claim_ref = Some(ObjectReference {
                resource_version: claim.metadata.resource_version.clone(),
                ..reference
            });
            if !by_user {
                let annotations = bound.metadata.annotations.get_or_insert_default();
                annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
            }
            bound = volumes.replace(name(&volume.metadata), &PostParams::default(), &bound).await?;
        }
        self.set_volume_phase(&bound, "Bound", None).await?;
        let mut taken = claim.clone();
        let spec = taken.spec.get_or_insert_default();
        let annotations = taken.metadata.annotations.get_or_insert_default();
        if spec.volume_name.as_deref() != Some(name(&bound.metadata)) {
            spec.volume_name = bound.metadata.name.clone();
            annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
        }
        annotations.insert(BIND_COMPLETED.to_owned(), "yes".to_owned());
        if taken.spec != claim.spec || taken.metadata.annotations != claim.metadata.annotations {
            let claims = api::<PersistentVolumeClaim>(&self.client, pods::namespace(&claim.metadata));
            taken = claims.replace(name(&claim.metadata), &PostParams::default(), &taken).await?;
        }
        self.set_claim_phase(&taken, "Bound", Some(&bound)).await
    }

    async fn lose(
        &self,
        claim: &PersistentVolumeClaim,
        reason: &'static str,
        note: &str,
    ) -> Result<Action, ReconcileError> {
        self.events.warning(claim, reason, "Bind", note);
        self.set_claim_phase(claim, "Lost", None).await
    }

    async fn look_at_volume(&self, volume: &PersistentVolume) -> Result<Action, ReconcileError> {
        let Some(reference) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else {
            return self.set_volume_phase(volume, "Available", None).await;
        };
        if reference.uid.as_ref().is_none_or(String::is_empty) {
            // Set aside for a claim that may come.
            return self.set_volume_phase(volume, "Available", None).await;
        }
        let key = NamespacedName {
            namespace: reference.namespace.clone().unwrap_or_default(),
            name: reference.name.clone().unwrap_or_default(),
        };
        let same = |claim: &Option<String>| *claim == reference.uid;
        if self.claims.get(&key).is_some_and(|claim| same(&claim.metadata.uid)) {
            return Ok(Action::Done);
        }
        // The cache may be behind: data is at stake.
        let live = api::<PersistentVolumeClaim>(&self.client, &key.namespace).get_opt(&key.name).await?;
        if live.is_some_and(|claim| same(&claim.metadata.uid)) {
            return Ok(Action::Requeue);
        }
        self.release(volume).await
    }

    /// The claim is gone: keep the data, or leave it to the provisioner or the plugin that made the volume to delete it.
    async fn release(&self, volume: &PersistentVolume) -> Result<Action, ReconcileError> {
        let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        let external = annotation(&volume.metadata, PROVISIONED_BY).is_some()
            || volume.spec.as_ref().is_some_and(|spec| spec.csi.is_some());
        match policy {
            Some("Delete") if !external => {
                let message = "no deletable volume plugin matched";
                self.events.warning(volume, "VolumeFailedDelete", "Delete", message);
                self.set_volume_phase(volume, "Failed", Some(message)).await
            }
            _ => self.set_volume_phase(volume, "Released", None).await,
        }
    }

    async fn set_claim_phase(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<Action, ReconcileError> {
        let mut status: PersistentVolumeClaimStatus = claim.status.clone().unwrap_or_default();
        status.phase = Some(phase.to_owned());
        if let Some(spec) = volume.and_then(|volume| volume.spec.as_ref()) {
            status.access_modes.clone_from(&spec.access_modes);
            if volume.and_then(capacity).is_some() && !is_bound(claim) {
                status.capacity.clone_from(&spec.capacity);
            }
        } else if phase != "Bound" {
            status.access_modes = None;
            status.capacity = None;
        }
        if claim.status.as_ref() == Some(&status) {
            return Ok(Action::Done);
        }
        let updated = PersistentVolumeClaim { status: Some(status), ..claim.clone() };
        let claims = api::<PersistentVolumeClaim>(&self.client, pods::namespace(&claim.metadata));
        claims.replace_status(name(&claim.metadata), &PostParams::default(), &updated).await?;
        Ok(Action::Done)
    }

    async fn set_volume_phase(
        &self,
        volume: &PersistentVolume,
        phase: &str,
        message: Option<&str>,
    ) -> Result<Action, ReconcileError> {
        let old = volume.status.as_ref();
        let same = old.and_then(|status| status.phase.as_deref()) == Some(phase)
            && old.and_then(|status| status.message.as_deref()) == message;
        if same {
            return Ok(Action::Done);
        }
        let status = PersistentVolumeStatus {
            phase: Some(phase.to_owned()),
            message: message.map(str::to_owned),
            last_phase_transition_time: Some(whole_seconds(self.clock.now())),
            reason: None,
        };
        let updated = PersistentVolume { status: Some(status), ..volume.clone() };
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        volumes.replace_status(name(&volume.metadata), &PostParams::default(), &updated).await?;
        Ok(Action::Done)
    }
}
