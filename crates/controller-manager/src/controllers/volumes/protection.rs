//! Keeps claims that pods use, and volumes that claims are bound to, until they are used no more.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Resource};
use meta::names::NamespacedName;
use reconcile::informer::Object;
use reconcile::{Action, Informer, ReconcileError, Reconciler};
use serde::Serialize;

use crate::context::{Context, api};
use crate::enqueue;
use crate::pods::{self, name};

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
const BY_CLAIM: &str = "claim";

struct ClaimProtection {
    client: kube::Client,
    claims: Informer<PersistentVolumeClaim>,
    pods: Informer<Pod>,
}

struct VolumeProtection {
    client: kube::Client,
    volumes: Informer<PersistentVolume>,
}

pub(in crate::controllers) async fn run_for_claims(context: Context) {
    let queue = context.queue("pvcprotection");
    let controller = Arc::new(ClaimProtection {
        client: context.client.clone(),
        claims: context.informer(),
        pods: context.informer(),
    });
    controller
        .pods
        .ensure_index(BY_CLAIM, |pod: &Pod| claims_of(pod).into_iter().map(|key| key.to_string()).collect());
    let _claims = enqueue::itself(&controller.claims, &queue);
    let _pods = enqueue::related(&controller.pods, &queue, |pod: &Pod| {
        let over = pods::is_terminal(pod) || pods::is_terminating(pod);
        if over { claims_of(pod) } else { Vec::new() }
    });
    if context.synced(&[&controller.claims, &controller.pods]).await {
        context.run("pvcprotection", controller, queue, 1).await;
    }
}

pub(in crate::controllers) async fn run_for_volumes(context: Context) {
    let queue = context.queue("pvprotection");
    let controller =
        Arc::new(VolumeProtection { client: context.client.clone(), volumes: context.informer() });
    let _volumes = enqueue::itself(&controller.volumes, &queue);
    if context.synced(&[&controller.volumes]).await {
        context.run("pvprotection", controller, queue, 1).await;
    }
}

/// The claims a pod names, and those made for it.
fn claims_of(pod: &Pod) -> Vec<NamespacedName> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let names = volumes.filter_map(|volume| {
        let named = volume.persistent_volume_claim.as_ref().map(|source| source.claim_name.clone());
        named
            .or_else(|| volume.ephemeral.as_ref().map(|_| format!("{}-{}", name(&pod.metadata), volume.name)))
    });
    let namespace = pods::namespace(&pod.metadata);
    names.map(|name| NamespacedName { namespace: namespace.to_owned(), name }).collect()
}

/// The finalizers to write, if the protection has to change.
fn plan(meta: &ObjectMeta, finalizer: &str, in_use: bool) -> Option<Vec<String>> {
    let mut finalizers = meta.finalizers.clone().unwrap_or_default();
    let has = finalizers.iter().any(|other| other == finalizer);
    match (meta.deletion_timestamp.is_some(), has) {
        (true, true) if !in_use => finalizers.retain(|other| other != finalizer),
        (false, false) => finalizers.push(finalizer.to_owned()),
        _ => return None,
    }
    Some(finalizers)
}

/// Writes the object as the cache has it, with other finalizers.
async fn write<K>(api: Api<K>, object: &K, finalizers: Vec<String>) -> Result<Action, ReconcileError>
where
    K: Object + Resource<DynamicType = ()> + Serialize,
{
    let mut changed = object.clone();
    changed.meta_mut().finalizers = Some(finalizers);
    match api.replace(name(object.meta()), &PostParams::default(), &changed).await {
        Ok(_) => Ok(Action::Done),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Action::Done),
        Err(error) => Err(error.into()),
    }
}

#[async_trait]
impl Reconciler for ClaimProtection {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let Some(claim) = self.claims.get(key) else { return Ok(Action::Done) };
        let uses = |pod: &Pod| !pods::node_name(pod).is_empty() && !pods::is_terminal(pod);
        let in_use = self.pods.by_index(BY_CLAIM, &key.to_string()).iter().any(|pod| uses(pod));
        let Some(finalizers) = plan(&claim.metadata, CLAIM_FINALIZER, in_use) else {
            return Ok(Action::Done);
        };
        let lets_go = claim.metadata.deletion_timestamp.is_some();
        if lets_go && self.is_used_live(key).await? {
            return Ok(Action::Requeue);
        }
        write(api::<PersistentVolumeClaim>(&self.client, &key.namespace), &*claim, finalizers).await
    }
}

impl ClaimProtection {
    /// The cache of pods may be behind, and a claim that is let go is gone.
    async fn is_used_live(&self, key: &NamespacedName) -> Result<bool, kube::Error> {
        let pods = api::<Pod>(&self.client, &key.namespace).list(&kube::api::ListParams::default()).await?;
        let uses = |pod: &Pod| {
            !pods::node_name(pod).is_empty() && !pods::is_terminal(pod) && claims_of(pod).contains(key)
        };
        Ok(pods.items.iter().any(uses))
    }
}

#[async_trait]
impl Reconciler for VolumeProtection {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let Some(volume) = self.volumes.get(key) else { return Ok(Action::Done) };
        let bound = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        let Some(finalizers) = plan(&volume.metadata, VOLUME_FINALIZER, bound) else {
            return Ok(Action::Done);
        };
        write(Api::<PersistentVolume>::all(self.client.clone()), &*volume, finalizers).await
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn protection_is_added_early_and_taken_off_late() {
        let meta = |finalizers: &[&str], deleting: bool| ObjectMeta {
            finalizers: Some(finalizers.iter().map(|text| (*text).to_owned()).collect()),
            deletion_timestamp: deleting.then_some(Time(jiff::Timestamp::UNIX_EPOCH)),
            ..ObjectMeta::default()
        };
        let table = [
            (meta(&["other"], false), false, Some(vec!["other", "f"])),
            (meta(&["f"], false), false, None),
            (meta(&["f", "other"], true), false, Some(vec!["other"])),
            (meta(&["f"], true), true, None),
            (meta(&[], true), false, None),
        ];
        for (meta, in_use, expected) in table {
            let expected = expected.map(|list| list.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(plan(&meta, "f", in_use), expected, "{meta:?} {in_use}");
        }
    }
}
