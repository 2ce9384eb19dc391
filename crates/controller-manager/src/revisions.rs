//! Histories of pod templates: `ControllerRevision`s of daemon sets and stateful sets.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::Client;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use reconcile::ReconcileError;
use serde_json::{Value, json};

use crate::claims::{Namespaced, owner_reference};
use crate::context::api;
use crate::hash;
use crate::pods::{created, name, namespace};

/// What a revision is made from.
pub(crate) struct Source<'a, O> {
    pub(crate) owner: &'a O,
    pub(crate) template: &'a PodTemplateSpec,
    /// The label of the revision that carries the hash.
    pub(crate) hash_label: &'static str,
    pub(crate) collisions: Option<i32>,
}

/// The history after a look, oldest first, with the revision of the current template.
pub(crate) struct History {
    pub(crate) revisions: Vec<Arc<ControllerRevision>>,
    pub(crate) update: Arc<ControllerRevision>,
    /// A new hash was in use for other data; count it in the status and look again.
    pub(crate) collided: bool,
}

/// The data of a template's revision, in the form upstream keeps it: a patch that replaces the template.
pub(crate) fn data(template: &PodTemplateSpec) -> Value {
    let mut template = hash::canonical(template);
    if let Some(members) = template.as_object_mut() {
        members.insert("$patch".to_owned(), json!("replace"));
    }
    json!({"spec": {"template": template}})
}

/// The template of a revision.
pub(crate) fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    serde_json::from_value(revision.data.as_ref()?.0.get("spec")?.get("template")?.clone()).ok()
}

pub(crate) fn sort(revisions: &mut [Arc<ControllerRevision>]) {
    revisions.sort_by(|a, b| {
        let key = |r: &ControllerRevision| (r.revision, created(&r.metadata), name(&r.metadata).to_owned());
        key(a).cmp(&key(b))
    });
}

/// Finds or makes the revision of the template, and gives it the highest number.
pub(crate) async fn ensure<O: Namespaced>(
    client: &Client,
    source: &Source<'_, O>,
    mut revisions: Vec<Arc<ControllerRevision>>,
) -> Result<History, ReconcileError> {
    sort(&mut revisions);
    let wanted = data(source.template);
    let next = revisions.last().map_or(0, |revision| revision.revision) + 1;
    let same = |revision: &Arc<ControllerRevision>| {
        revision.data.as_ref().is_some_and(|data| hash::canonical(&data.0) == hash::canonical(&wanted))
    };
    let Some(at) = revisions.iter().rposition(same) else {
        return create(client, source, wanted, next, revisions).await;
    };
    if at + 1 == revisions.len() {
        let update = Arc::clone(&revisions[at]);
        return Ok(History { revisions, update, collided: false });
    }
    // The template went back to an earlier one.
    let old = revisions.remove(at);
    let patch = Patch::Merge(
        json!({"revision": next, "metadata": {"resourceVersion": old.metadata.resource_version}}),
    );
    let api = api::<ControllerRevision>(client, namespace(source.owner.meta()));
    let update = Arc::new(api.patch(name(&old.metadata), &PatchParams::default(), &patch).await?);
    revisions.push(Arc::clone(&update));
    Ok(History { revisions, update, collided: false })
}

async fn create<O: Namespaced>(
    client: &Client,
    source: &Source<'_, O>,
    wanted: Value,
    number: i64,
    mut revisions: Vec<Arc<ControllerRevision>>,
) -> Result<History, ReconcileError> {
    let owner = source.owner.meta();
    let hash = hash::revision_hash(&wanted, source.collisions);
    let mut labels =
        source.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    labels.insert(source.hash_label.to_owned(), hash.clone());
    let revision = ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", name(owner))),
            namespace: owner.namespace.clone(),
            labels: Some(labels),
            owner_references: owner_reference(source.owner).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(wanted)),
        revision: number,
    };
    let api = api::<ControllerRevision>(client, namespace(owner));
    let (update, collided) = match api.create(&PostParams::default(), &revision).await {
        Ok(made) => (made, false),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let existing = api.get(name(&revision.metadata)).await?;
            let ours = hash::canonical(&existing.data.as_ref().map(|data| &data.0))
                == hash::canonical(&revision.data.as_ref().map(|data| &data.0));
            (existing, !ours)
        }
        Err(error) => return Err(error.into()),
    };
    let update = Arc::new(update);
    revisions.push(Arc::clone(&update));
    Ok(History { revisions, update, collided })
}

/// The oldest revisions beyond `limit` that are not in use.
pub(crate) fn excess(
    revisions: &[Arc<ControllerRevision>],
    limit: i32,
    is_used: impl Fn(&ControllerRevision) -> bool,
) -> Vec<Arc<ControllerRevision>> {
    let unused: Vec<&Arc<ControllerRevision>> =
        revisions.iter().filter(|revision| !is_used(revision)).collect();
    let excess = unused.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    unused.into_iter().take(excess).cloned().collect()
}

pub(crate) async fn delete(
    client: &Client,
    doomed: &[Arc<ControllerRevision>],
) -> Result<(), ReconcileError> {
    for revision in doomed {
        let api = api::<ControllerRevision>(client, namespace(&revision.metadata));
        match api.delete(name(&revision.metadata), &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
