//! What is done about one object of the graph, after a live look at it and at its owners.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use reconcile::{Action, ReconcileError};
use serde_json::{Value, json};

use super::graph::{FOREGROUND, Identity, ORPHAN, Work};
use super::{Collector, lock};
use crate::discovery::Owned;

/// The live state of an object's owners.
#[derive(Debug, Default)]
struct Owners {
    /// They exist and stay.
    solid: bool,
    /// The uids of those that do not exist.
    dangling: BTreeSet<String>,
    /// The uids of those that wait for this object to go.
    waiting: BTreeSet<String>,
}

impl Collector {
    pub(super) async fn attempt_to_delete(&self, uid: &Arc<str>) -> Result<Action, ReconcileError> {
        let Some((identity, is_virtual, deleting, waits)) = self.look(uid) else { return Ok(Action::Done) };
        if deleting && !waits {
            return Ok(Action::Done);
        }
        let Some(api) = self.api_of(&identity)? else {
            // Its resource is not served, so it does not exist.
            self.vanish(uid);
            return Ok(Action::Done);
        };
        let live =
            api.get_opt(&identity.name).await?.filter(|live| live.metadata.uid.as_deref() == Some(&**uid));
        let Some(live) = live else {
            self.vanish(uid);
            return Ok(Action::Done);
        };
        if is_virtual {
            // It exists; its watch will tell the rest, unless it is of a resource that is not watched.
            let work = lock(&self.graph).observe(|| identity.clone(), &live.metadata);
            work.into_iter().for_each(|work| self.queue.add(work));
        }
        if waits {
            return self.let_go_if_unblocked(uid, &api, &live).await;
        }
        let references = live.metadata.owner_references.clone().unwrap_or_default();
        if references.is_empty() || live.metadata.deletion_timestamp.is_some() {
            return Ok(Action::Done);
        }
        let owners = self.look_at_owners(&identity, &references).await?;
        self.decide(uid, &api, &live, &references, owners).await
    }

    async fn decide(
        &self,
        uid: &Arc<str>,
        api: &Api<Owned>,
        live: &Owned,
        references: &[OwnerReference],
        owners: Owners,
    ) -> Result<Action, ReconcileError> {
        if owners.solid {
            let stale: BTreeSet<&String> = owners.dangling.iter().chain(&owners.waiting).collect();
            if !stale.is_empty() {
                let kept: Vec<_> = references.iter().filter(|owner| !stale.contains(&owner.uid)).collect();
                patch(api, live, json!({"ownerReferences": kept})).await?;
            }
            return Ok(Action::Done);
        }
        let dependents = self.dependents(uid);
        if !owners.waiting.is_empty() && !dependents.is_empty() {
            // A circle in which each waits for the other would never go.
            let circular = dependents
                .iter()
                .any(|uid| lock(&self.graph).get(uid).is_some_and(|node| node.waits_for_dependents));
            if circular {
                let freed: Vec<OwnerReference> = references
                    .iter()
                    .map(|owner| OwnerReference { block_owner_deletion: Some(false), ..owner.clone() })
                    .collect();
                patch(api, live, json!({"ownerReferences": freed})).await?;
            }
            return delete(api, live, PropagationPolicy::Foreground).await;
        }
        let finalizers = live.metadata.finalizers.as_deref().unwrap_or_default();
        let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
        let policy = match () {
            () if has(ORPHAN) => PropagationPolicy::Orphan,
            () if has(FOREGROUND) => PropagationPolicy::Foreground,
            () => PropagationPolicy::Background,
        };
        delete(api, live, policy).await
    }

    /// Ends a foreground deletion when nothing blocks it any more, else sees that what blocks it goes.
    async fn let_go_if_unblocked(
        &self,
        uid: &Arc<str>,
        api: &Api<Owned>,
        live: &Owned,
    ) -> Result<Action, ReconcileError> {
        let blocking = lock(&self.graph).blocking_dependents(uid);
        if blocking.is_empty() {
            drop_finalizer(api, live, FOREGROUND).await?;
            return Ok(Action::Done);
        }
        for dependent in blocking {
            let deleting = lock(&self.graph).get(&dependent).is_some_and(|node| node.deleting);
            if !deleting {
                self.queue.add(Work::Delete(dependent));
            }
        }
        Ok(Action::Done)
    }

    /// Takes the owner off all its dependents, and only then lets it go.
    pub(super) async fn attempt_to_orphan(&self, uid: &Arc<str>) -> Result<Action, ReconcileError> {
        let Some((identity, ..)) = self.look(uid) else { return Ok(Action::Done) };
        let Some(api) = self.api_of(&identity)? else { return Ok(Action::Done) };
        let live =
            api.get_opt(&identity.name).await?.filter(|live| live.metadata.uid.as_deref() == Some(&**uid));
        let Some(live) = live else {
            self.vanish(uid);
            return Ok(Action::Done);
        };
        for dependent in self.dependents(uid) {
            self.orphan(uid, &dependent).await?;
        }
        drop_finalizer(&api, &live, ORPHAN).await?;
        Ok(Action::Done)
    }

    async fn orphan(&self, owner: &str, dependent: &str) -> Result<(), ReconcileError> {
        let Some((identity, ..)) = self.look(dependent) else { return Ok(()) };
        let Some(api) = self.api_of(&identity)? else { return Ok(()) };
        let live = api.get_opt(&identity.name).await?;
        let Some(live) = live.filter(|live| live.metadata.uid.as_deref() == Some(dependent)) else {
            return Ok(());
        };
        let references = live.metadata.owner_references.clone().unwrap_or_default();
        let kept: Vec<_> = references.iter().filter(|reference| reference.uid != owner).collect();
        if kept.len() == references.len() {
            return Ok(());
        }
        patch(&api, &live, json!({"ownerReferences": kept})).await
    }

    async fn look_at_owners(
        &self,
        identity: &Identity,
        references: &[OwnerReference],
    ) -> Result<Owners, ReconcileError> {
        let mut owners = Owners::default();
        for reference in references {
            let group = reference.api_version.rsplit_once('/').map_or("", |(group, _)| group);
            let owner = Identity {
                group: Arc::from(group),
                kind: Arc::from(reference.kind.as_str()),
                namespace: Arc::clone(&identity.namespace),
                name: Arc::from(reference.name.as_str()),
            };
            let live = match self.api_of(&owner)? {
                // A cluster-scoped object cannot be owned from within a namespace.
                Some(api) => api.get_opt(&owner.name).await?,
                None => None,
            };
            match live.filter(|live| live.metadata.uid.as_deref() == Some(&reference.uid)) {
                None => {
                    owners.dangling.insert(reference.uid.clone());
                }
                Some(live) if waits_for_dependents(&live) => {
                    owners.waiting.insert(reference.uid.clone());
                }
                Some(_) => owners.solid = true,
            }
        }
        Ok(owners)
    }

    fn look(&self, uid: &str) -> Option<(Identity, bool, bool, bool)> {
        let graph = lock(&self.graph);
        let node = graph.get(uid)?;
        Some((node.identity.clone(), node.is_virtual, node.deleting, node.waits_for_dependents))
    }

    fn dependents(&self, uid: &str) -> Vec<Arc<str>> {
        let graph = lock(&self.graph);
        graph.get(uid).map(|node| node.dependents.iter().cloned().collect()).unwrap_or_default()
    }

    fn vanish(&self, uid: &str) {
        let work = lock(&self.graph).forget(uid);
        work.into_iter().for_each(|work| self.queue.add(work));
    }

    /// `None` if the object cannot exist: its resource is namespaced and it names no namespace. An error if the
    /// resource is not known, for discovery may be behind.
    fn api_of(&self, identity: &Identity) -> Result<Option<Api<Owned>>, ReconcileError> {
        let resources = self.resources();
        let found =
            resources.get(&(identity.group.to_string(), identity.kind.to_string())).ok_or_else(|| {
                ReconcileError::failed(format!(
                    "no resource is known for {} in {:?}",
                    identity.kind, identity.group
                ))
            })?;
        if found.namespaced && identity.namespace.is_empty() {
            return Ok(None);
        }
        Ok(Some(found.api(&self.client, &identity.namespace)))
    }
}

fn waits_for_dependents(live: &Owned) -> bool {
    let mut finalizers = live.metadata.finalizers.iter().flatten();
    live.metadata.deletion_timestamp.is_some() && finalizers.any(|finalizer| finalizer == FOREGROUND)
}

async fn drop_finalizer(api: &Api<Owned>, live: &Owned, name: &str) -> Result<(), ReconcileError> {
    let finalizers = live.metadata.finalizers.as_deref().unwrap_or_default();
    if !finalizers.iter().any(|finalizer| finalizer == name) {
        return Ok(());
    }
    let kept: Vec<_> = finalizers.iter().filter(|finalizer| *finalizer != name).collect();
    patch(api, live, json!({"finalizers": kept})).await
}

/// Changes metadata of exactly the object that was looked at.
async fn patch(api: &Api<Owned>, live: &Owned, mut metadata: Value) -> Result<(), ReconcileError> {
    metadata["uid"] = json!(live.metadata.uid);
    metadata["resourceVersion"] = json!(live.metadata.resource_version);
    let name = live.metadata.name.as_deref().unwrap_or_default();
    match api.patch(name, &PatchParams::default(), &Patch::Merge(json!({"metadata": metadata}))).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Deletes exactly the version that was looked at; if it changed, it is looked at again.
async fn delete(api: &Api<Owned>, live: &Owned, policy: PropagationPolicy) -> Result<Action, ReconcileError> {
    let name = live.metadata.name.as_deref().unwrap_or_default();
    let parameters = DeleteParams {
        propagation_policy: Some(policy),
        preconditions: Some(Preconditions {
            uid: live.metadata.uid.clone(),
            resource_version: live.metadata.resource_version.clone(),
        }),
        ..DeleteParams::default()
    };
    match api.delete(name, &parameters).await {
        Ok(_) => Ok(Action::Done),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Action::Done),
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Action::Requeue),
        Err(error) => Err(error.into()),
    }
}
