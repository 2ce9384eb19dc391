//! Which objects a controller owns: adoption of orphans that match its selector, release of owned ones that no
//! longer do. Ownership is by uid, and the owner is looked at live before anything is adopted.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams};
use kube::core::{Selector, SelectorExt};
use kube::{Api, Client, Resource};
use reconcile::informer::Object;
use reconcile::object::controller_of;
use reconcile::{Informer, ReconcileError};
use serde_json::json;

use crate::pods::{name, namespace, uid};

const ORPHANS: &str = "orphans";

/// A namespaced built-in kind.
pub(crate) trait Namespaced:
    Object + Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
{
}
impl<K> Namespaced for K where
    K: Object + Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
{
}

/// What is to be done about the objects around an owner.
#[derive(Debug)]
pub(crate) struct Claims<K> {
    pub(crate) owned: Vec<Arc<K>>,
    pub(crate) adopt: Vec<Arc<K>>,
    pub(crate) release: Vec<Arc<K>>,
}

/// A selector that is invalid or empty matches nothing.
pub(crate) fn selector(selector: Option<&LabelSelector>) -> Option<Selector> {
    let selector: Selector = selector?.clone().try_into().ok()?;
    (!selector.selects_all()).then_some(selector)
}

pub(crate) fn matches(selector: &Selector, metadata: &ObjectMeta) -> bool {
    match &metadata.labels {
        Some(labels) => selector.matches(labels),
        None => selector.matches(&BTreeMap::new()),
    }
}

/// The objects of the owner's namespace without a controller.
pub(crate) fn orphans<K: Object>(objects: &Informer<K>, namespace: &str) -> Vec<Arc<K>> {
    objects.ensure_index(ORPHANS, |object| {
        let meta = object.meta();
        let orphan = controller_of(meta).is_none();
        meta.namespace.iter().filter(|_| orphan).cloned().collect()
    });
    objects.by_index(ORPHANS, namespace)
}

/// Decides by the cache. An owner that is being deleted neither adopts nor releases.
pub(crate) fn plan<K: Object>(
    owner: &ObjectMeta,
    selector: &Selector,
    objects: &Informer<K>,
    adoptable: impl Fn(&K) -> bool,
) -> Claims<K> {
    let mut claims = Claims { owned: Vec::new(), adopt: Vec::new(), release: Vec::new() };
    let deleting = owner.deletion_timestamp.is_some();
    for object in objects.controlled_by(uid(owner)) {
        if matches(selector, object.meta()) {
            claims.owned.push(object);
        } else if !deleting {
            claims.release.push(object);
        }
    }
    if !deleting {
        claims.adopt = orphans(objects, namespace(owner))
            .into_iter()
            .filter(|object| object.meta().deletion_timestamp.is_none())
            .filter(|object| matches(selector, object.meta()) && adoptable(object))
            .collect();
    }
    claims
}

/// Carries out the claims and returns all that is owned then.
pub(crate) async fn execute<O: Namespaced, K: Namespaced>(
    client: &Client,
    owner: &O,
    claims: Claims<K>,
    finalizer: Option<&str>,
) -> Result<Vec<Arc<K>>, ReconcileError> {
    let Claims { mut owned, adopt, release } = claims;
    let objects: Api<K> = Api::namespaced(client.clone(), namespace(owner.meta()));
    for object in release {
        disown(&objects, object.meta(), uid(owner.meta()), finalizer).await?;
    }
    if adopt.is_empty() {
        return Ok(owned);
    }
    if !may_adopt(client, owner).await? {
        return Err(ReconcileError::failed("the owner is gone or going, so it cannot adopt"));
    }
    let Some(reference) = owner_reference(owner) else { return Ok(owned) };
    for object in adopt {
        let mut metadata = json!({"uid": uid(object.meta()), "ownerReferences": [&reference]});
        if let Some(finalizer) = finalizer {
            metadata["finalizers"] = json!([finalizer]);
        }
        let patch = Patch::Strategic(json!({"metadata": metadata}));
        match objects.patch(name(object.meta()), &PatchParams::default(), &patch).await {
            Ok(adopted) => owned.push(Arc::new(adopted)),
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(owned)
}

/// The reference by which `owner` controls what it makes.
pub(crate) fn owner_reference<O: Resource<DynamicType = ()>>(owner: &O) -> Option<OwnerReference> {
    let reference = owner.controller_owner_ref(&())?;
    Some(OwnerReference { block_owner_deletion: Some(true), ..reference })
}

/// Takes the owner's reference off an object.
async fn disown<K: Namespaced>(
    objects: &Api<K>,
    object: &ObjectMeta,
    owner_uid: &str,
    finalizer: Option<&str>,
) -> Result<(), ReconcileError> {
    let mut metadata = json!({
        "uid": uid(object),
        "ownerReferences": [{"$patch": "delete", "uid": owner_uid}],
    });
    if let Some(finalizer) = finalizer {
        metadata["$deleteFromPrimitiveList/finalizers"] = json!([finalizer]);
    }
    match objects
        .patch(name(object), &PatchParams::default(), &Patch::Strategic(json!({"metadata": metadata})))
        .await
    {
        Ok(_) => Ok(()),
        // Gone, or another of the same name by now.
        Err(kube::Error::Api(status)) if status.is_not_found() || status.code == 422 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn may_adopt<O: Namespaced>(client: &Client, owner: &O) -> Result<bool, kube::Error> {
    let owners: Api<O> = Api::namespaced(client.clone(), namespace(owner.meta()));
    let fresh = owners.get_opt(name(owner.meta())).await?;
    Ok(fresh.is_some_and(|fresh| {
        fresh.meta().uid == owner.meta().uid && fresh.meta().deletion_timestamp.is_none()
    }))
}
