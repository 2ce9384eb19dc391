//! What the scheduler writes: bindings, what must precede them, conditions, and the end of victims.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Binding, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use meta::names::NamespacedName;
use reconcile::{Informer, SharedClock};
use serde_json::json;

use crate::devices::HeldClaim;
use crate::pod::{PodInfo, Uid};
use crate::storage::{self, PreBind};

/// Keeps a claim with devices from being deleted under its users.
const CLAIM_FINALIZER: &str = "resource.kubernetes.io/delete-protection";

#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error(transparent)]
    Request(#[from] kube::Error),
    #[error("timed out waiting for the condition")]
    Timeout,
}

impl WriteError {
    fn is_not_found(&self) -> bool {
        matches!(self, Self::Request(kube::Error::Api(status)) if status.code == 404)
    }
}

/// Carries out what was decided. Cheap to clone: each write runs as a task of its own.
#[derive(Clone)]
pub(crate) struct Writer {
    pub(crate) client: Client,
    pub(crate) clock: SharedClock,
    pub(crate) claims: Informer<PersistentVolumeClaim>,
    /// Counts changes of claims, for those who wait for one.
    pub(crate) claim_changes: tokio::sync::watch::Receiver<u64>,
}

/// What a pod without a node is told.
#[derive(Debug, Clone)]
pub(crate) struct Condition {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// When set, the nomination changes to this; empty ends it.
    pub(crate) nominated_node: Option<String>,
}

impl Writer {
    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Does what must precede the binding, then binds.
    pub(crate) async fn bind(
        &self,
        pod: &PodInfo,
        node: &str,
        steps: Vec<PreBind>,
    ) -> Result<(), WriteError> {
        for step in steps {
            self.pre_bind(step).await?;
        }
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(pod.name.clone()),
                namespace: Some(pod.namespace.to_string()),
                uid: Some(pod.uid.to_string()),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let pods = self.pods(&pod.namespace);
        // The answer is a Status, of which nothing is needed.
        let _: serde_json::Value =
            pods.create_subresource("binding", &pod.name, &PostParams::default(), &binding).await?;
        Ok(())
    }

    async fn pre_bind(&self, step: PreBind) -> Result<(), WriteError> {
        match step {
            PreBind::BindVolume { volume, claim } => {
                let api: Api<PersistentVolume> = Api::all(self.client.clone());
                let name = volume.metadata.name.as_deref().unwrap_or_default();
                let patch = json!({
                    "metadata": {
                        "resourceVersion": volume.metadata.resource_version,
                        "annotations": {storage::BOUND_BY_CONTROLLER: "yes"},
                    },
                    "spec": {"claimRef": claim},
                });
                api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
                Ok(())
            }
            PreBind::Provision { claim, node } => {
                let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
                let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
                let name = claim.metadata.name.as_deref().unwrap_or_default();
                let patch = json!({
                    "metadata": {
                        "resourceVersion": claim.metadata.resource_version,
                        "annotations": {storage::SELECTED_NODE: &*node},
                    },
                });
                api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
                Ok(())
            }
            PreBind::ReserveClaim { held, pod_name, pod_uid } => {
                self.reserve_claim(&held, &pod_name, &pod_uid).await
            }
            PreBind::AwaitClaims { namespace, names, timeout } => {
                self.await_claims(&namespace, &names, timeout).await
            }
        }
    }

    /// Protects the claim from deletion first, then writes down what it has and who uses it.
    async fn reserve_claim(&self, held: &HeldClaim, pod: &str, uid: &str) -> Result<(), WriteError> {
        let claim = &held.claim;
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let api: Api<ResourceClaim> = Api::namespaced(self.client.clone(), namespace);
        let mut version = claim.metadata.resource_version.clone();
        let mut finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
        if held.allocation.is_some() && !finalizers.iter().any(|own| own == CLAIM_FINALIZER) {
            finalizers.push(CLAIM_FINALIZER.to_owned());
            let patch = json!({"metadata": {"resourceVersion": version, "finalizers": finalizers}});
            let written = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            version = written.metadata.resource_version;
        }
        let mut consumers =
            claim.status.as_ref().and_then(|status| status.reserved_for.clone()).unwrap_or_default();
        consumers.push(ResourceClaimConsumerReference {
            api_group: None,
            name: pod.to_owned(),
            resource: "pods".to_owned(),
            uid: uid.to_owned(),
        });
        let mut status = json!({"reservedFor": consumers});
        if let Some(allocation) = &held.allocation {
            status["allocation"] = json!(allocation);
        }
        let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    async fn await_claims(
        &self,
        namespace: &str,
        names: &[String],
        timeout: Duration,
    ) -> Result<(), WriteError> {
        let mut changes = self.claim_changes.clone();
        let bound = |name: &String| {
            let key = NamespacedName { namespace: namespace.to_owned(), name: name.clone() };
            self.claims.get(&key).is_some_and(|claim| storage::is_bound(&claim))
        };
        let all_bound = async {
            while !names.iter().all(bound) {
                if changes.changed().await.is_err() {
                    return Err(WriteError::Timeout);
                }
            }
            Ok(())
        };
        tokio::select! {
            done = all_bound => done,
            () = self.clock.sleep(timeout) => Err(WriteError::Timeout),
        }
    }

    /// Says on the pod why it has no node.
    pub(crate) async fn report(&self, pod: &PodInfo, condition: &Condition) -> Result<(), WriteError> {
        let pending = pod.pending.as_deref();
        let same =
            pending.is_some_and(|own| own.reason == condition.reason && own.message == condition.message);
        let nominated = condition.nominated_node.as_deref();
        if same && nominated.is_none_or(|node| node == pod.nominated_node_name.as_deref().unwrap_or_default())
        {
            return Ok(());
        }
        let since = pending.and_then(|own| own.since).unwrap_or_else(|| self.clock.now());
        let mut status = json!({"conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": condition.reason,
            "message": condition.message,
            "lastProbeTime": null,
            "lastTransitionTime": Time(whole_seconds(since)),
            "observedGeneration": pending.and_then(|own| own.generation),
        }]});
        if let Some(node) = nominated {
            status["nominatedNodeName"] = if node.is_empty() { serde_json::Value::Null } else { node.into() };
        }
        self.patch_status(pod, status).await
    }

    /// Ends the nomination of a pod that a more important one has overtaken.
    pub(crate) async fn clear_nomination(&self, pod: &PodInfo) -> Result<(), WriteError> {
        self.patch_status(pod, json!({"nominatedNodeName": null})).await
    }

    async fn patch_status(&self, pod: &PodInfo, status: serde_json::Value) -> Result<(), WriteError> {
        let patch = Patch::Strategic(json!({"metadata": {"uid": &*pod.uid}, "status": status}));
        self.pods(&pod.namespace).patch_status(&pod.name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Marks and deletes a pod that makes room for another. One that is gone already is no error.
    pub(crate) async fn evict(&self, victim: &PodInfo, scheduler_name: &str) -> Result<(), WriteError> {
        let condition = json!({"conditions": [{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": format!("{scheduler_name}: preempting to accommodate a higher priority pod"),
            "lastProbeTime": null,
            "lastTransitionTime": Time(whole_seconds(self.clock.now())),
        }]});
        match self.patch_status(victim, condition).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        }
        let preconditions = Preconditions { uid: Some(victim.uid.to_string()), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match self.pods(&victim.namespace).delete(&victim.name, &parameters).await.map_err(WriteError::from) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// What a finished write was for.
#[derive(Debug)]
pub(crate) enum Outcome {
    Bound { pod: Arc<PodInfo>, node: Arc<str>, result: Result<(), WriteError> },
    Evicted { preemptor: Uid, victim: Arc<PodInfo>, result: Result<(), WriteError> },
    Reported { pod: Arc<PodInfo>, result: Result<(), WriteError> },
}
