//! Makes the claims of volumes that live and die with their pod.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::PostParams;
use meta::names::NamespacedName;
use reconcile::events::EventRecorder;
use reconcile::object::controller_of;
use reconcile::{Action, Informer, ReconcileError, Reconciler, chain};

use crate::context::{Context, api};
use crate::enqueue;
use crate::pods::{self, name};

struct EphemeralVolumes {
    client: kube::Client,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    events: EventRecorder,
}

pub(in crate::controllers) async fn run(context: Context) {
    let queue = context.queue("ephemeral_volume");
    let controller = Arc::new(EphemeralVolumes {
        client: context.client.clone(),
        pods: context.informer(),
        claims: context.informer(),
        events: context.recorder("ephemeral_volume"),
    });
    let _pods = enqueue::related(&controller.pods, &queue, |pod: &Pod| {
        if claims(pod).is_empty() { Vec::new() } else { vec![pods::key(&pod.metadata)] }
    });
    let _claims = enqueue::controller(&controller.claims, &queue, "Pod");
    if context.synced(&[&controller.pods, &controller.claims]).await {
        context.run("ephemeral_volume", controller, queue, context.config.workers).await;
    }
}

/// The claims the pod's volumes are to have.
fn claims(pod: &Pod) -> Vec<PersistentVolumeClaim> {
    if !pods::is_active(pod) {
        return Vec::new();
    }
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let claim = |volume: &k8s_openapi::api::core::v1::Volume| {
        let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
        let from = template.metadata.clone().unwrap_or_default();
        let owner = pod.controller_owner_ref(&())?;
        let owner = k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
            block_owner_deletion: Some(true),
            ..owner
        };
        Some(PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(format!("{}-{}", name(&pod.metadata), volume.name)),
                namespace: pod.metadata.namespace.clone(),
                labels: from.labels,
                annotations: from.annotations,
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(template.spec.clone()),
            status: None,
        })
    };
    volumes.filter_map(claim).collect()
}

#[async_trait]
impl Reconciler for EphemeralVolumes {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let Some(pod) = self.pods.get(key) else { return Ok(Action::Done) };
        for claim in claims(&pod) {
            if let Some(existing) = self.claims.get(&pods::key(&claim.metadata)) {
                let ours = controller_of(&existing.metadata)
                    .is_some_and(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref());
                if !ours {
                    let claim_name = name(&claim.metadata);
                    let message = format!(
                        "PVC {}/{claim_name} was not created for pod {}/{} (pod is not owner)",
                        key.namespace, key.namespace, key.name
                    );
                    return Err(ReconcileError::failed(message));
                }
                continue;
            }
            let api = api::<PersistentVolumeClaim>(&self.client, &key.namespace);
            match api.create(&PostParams::default(), &claim).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.is_already_exists() => return Ok(Action::Requeue),
                Err(error) => {
                    let note = format!("ephemeral volume: {}", chain(&error));
                    self.events.warning(&*pod, "FailedBinding", "Create", note);
                    return Err(error.into());
                }
            }
        }
        Ok(Action::Done)
    }
}
