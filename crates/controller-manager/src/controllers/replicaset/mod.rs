//! Keeps as many pods as declared. One code for `ReplicaSet` and `ReplicationController`.

mod kinds;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use kube::api::{DeleteParams, PostParams, Preconditions};
use meta::names::NamespacedName;
use reconcile::events::EventRecorder;
use reconcile::expectations::Expectations;
use reconcile::object::resource_version_of;
use reconcile::{Action, Informer, Queue, ReconcileError, Reconciler, SharedClock, chain};

use self::kinds::Replicated;
use self::plan::{Scale, plan_scale, plan_status};
use crate::context::{Context, api};
use crate::pods::{self, PodName, name, namespace, uid};
use crate::{bulk, claims, enqueue};

/// Status-only changes of a large set are gathered for this long, so that 5,000 pods that become ready one by one do
/// not cost 5,000 recounts of 5,000 pods.
const GATHER: Duration = Duration::from_millis(50);
const LARGE: usize = 200;

struct ReplicaController<K> {
    client: kube::Client,
    owners: Informer<K>,
    pods: Informer<Pod>,
    queue: Queue<NamespacedName>,
    expectations: Expectations<NamespacedName>,
    events: EventRecorder,
    clock: SharedClock,
}

pub(super) async fn run_replica_sets(context: Context) {
    run::<ReplicaSet>(context, "replicaset", "replicaset-controller").await;
}

pub(super) async fn run_replication_controllers(context: Context) {
    run::<ReplicationController>(context, "replicationmanager", "replication-controller").await;
}

async fn run<K: Replicated>(context: Context, name: &'static str, component: &'static str) {
    let queue = context.queue(name);
    let controller = Arc::new(ReplicaController::<K> {
        client: context.client.clone(),
        owners: context.informer(),
        pods: context.informer(),
        queue: queue.clone(),
        expectations: Expectations::new(context.clock.clone()),
        events: context.recorder(component),
        clock: context.clock.clone(),
    });
    let _owners = enqueue::itself(&controller.owners, &queue);
    let _pods = controller.pods.subscribe({
        let (queue, owners) = (queue.clone(), controller.owners.clone());
        move |event| {
            for pod in event.old().into_iter().chain([event.object()]) {
                for key in owners_of(&owners, pod) {
                    queue.add(key);
                }
            }
        }
    });
    if context.synced(&[&controller.owners, &controller.pods]).await {
        context.run(name, controller, queue, context.config.workers).await;
    }
}

/// The pod's controller, or for an orphan all that may adopt it.
fn owners_of<K: Replicated>(owners: &Informer<K>, pod: &Pod) -> Vec<NamespacedName> {
    if reconcile::object::controller_of(&pod.metadata).is_some() {
        return enqueue::controller_key(pod, K::KIND).into_iter().collect();
    }
    let candidates = owners.in_namespace(namespace(&pod.metadata)).into_iter();
    candidates
        .filter(|owner| owner.selector().is_some_and(|selector| claims::matches(&selector, &pod.metadata)))
        .map(|owner| pods::key(owner.meta()))
        .collect()
}

#[async_trait]
impl<K: Replicated> Reconciler for ReplicaController<K> {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let Some(owner) = self.owners.get(key) else {
            self.expectations.forget(key);
            return Ok(Action::Done);
        };
        let Some(selector) = owner.selector() else { return Ok(Action::Done) };
        let claims = claims::plan(owner.meta(), &selector, &self.pods, pods::is_active);
        let caught_up = self.expectations.satisfied(key, self.pods.resource_version(), |deleted| {
            claims.owned.iter().any(|pod| uid(&pod.metadata) == deleted && !pods::is_terminating(pod))
        });
        let owned = claims::execute(&self.client, &*owner, claims, None).await?;
        let (mut failure, mut scaled) = (None, false);
        if caught_up && owner.meta().deletion_timestamp.is_none() {
            let related = || self.related_pods_per_node(&owner);
            let scale = plan_scale(owner.replicas(), &owned, related, self.clock.now());
            scaled = !matches!(scale, Scale::Keep);
            failure = self.scale(key, &owner, scale).await.err();
        }
        self.update_status(&owner, &owned, failure.as_ref()).await?;
        if let Some(error) = failure {
            return Err(error);
        }
        if owned.len() > LARGE && !scaled {
            // More changes are surely coming while the set grows; look once at all of them.
            self.clock.sleep(GATHER).await;
        }
        Ok(plan::next_look(&owned, owner.min_ready_seconds(), self.clock.now()))
    }
}

impl<K: Replicated> ReplicaController<K> {
    async fn scale(&self, key: &NamespacedName, owner: &K, scale: Scale) -> Result<(), ReconcileError> {
        match scale {
            Scale::Keep => Ok(()),
            Scale::Create(count) => self.create(key, owner, count).await,
            Scale::Delete(pods) => self.delete(key, owner, pods).await,
        }
    }

    async fn create(&self, key: &NamespacedName, owner: &K, count: usize) -> Result<(), ReconcileError> {
        let (Some(template), Some(reference)) = (owner.template(), claims::owner_reference(owner)) else {
            return Err(ReconcileError::Terminal("it has no pod template".to_owned()));
        };
        let pods = api::<Pod>(&self.client, &key.namespace);
        let name = PodName::Prefix(format!("{}-", key.name));
        let pod = pods::from_template(template, &key.namespace, reference, name);
        let (_, error) = bulk::slow_start(count, |_| async {
            let created = pods.create(&PostParams::default(), &pod).await?;
            self.expectations.wrote(key, resource_version_of(&created.metadata));
            let note = format!("Created pod: {}", pods::name(&created.metadata));
            self.events.normal(owner, "SuccessfulCreate", "Create", note);
            Ok::<_, kube::Error>(())
        })
        .await;
        let Some(error) = error else { return Ok(()) };
        if is_namespace_terminating(&error) {
            return Ok(());
        }
        self.events.warning(owner, "FailedCreate", "Create", format!("Error creating: {}", text(&error)));
        Err(error.into())
    }

    async fn delete(
        &self,
        key: &NamespacedName,
        owner: &K,
        doomed: Vec<Arc<Pod>>,
    ) -> Result<(), ReconcileError> {
        let (_, error) =
            bulk::concurrently(doomed.into_iter().map(|pod| self.delete_one(key, owner, pod))).await;
        error.map_or(Ok(()), |error| Err(error.into()))
    }

    async fn delete_one(&self, key: &NamespacedName, owner: &K, pod: Arc<Pod>) -> Result<(), kube::Error> {
        let name = name(&pod.metadata);
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let parameters = DeleteParams::default().preconditions(preconditions);
        match api::<Pod>(&self.client, &key.namespace).delete(name, &parameters).await {
            Ok(_) => {
                self.expectations.deleted(key, uid(&pod.metadata));
                self.events.normal(owner, "SuccessfulDelete", "Delete", format!("Deleted pod: {name}"));
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
            Err(error) => {
                let note = format!("Error deleting: {}", text(&error));
                self.events.warning(owner, "FailedDelete", "Delete", note);
                Err(error)
            }
        }
    }

    async fn update_status(
        &self,
        owner: &K,
        owned: &[Arc<Pod>],
        failure: Option<&ReconcileError>,
    ) -> Result<(), ReconcileError> {
        let failure = failure.map(|error| chain(error).to_string());
        let Some(updated) = plan_status(owner, owned, failure.as_deref(), self.clock.now()) else {
            return Ok(());
        };
        let owners = api::<K>(&self.client, namespace(owner.meta()));
        match owners.replace_status(name(owner.meta()), &PostParams::default(), &updated).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            // The cache is behind our own last write: look again when it has caught up.
            Err(kube::Error::Api(status)) if status.is_conflict() => {
                self.queue.add_after(pods::key(owner.meta()), Duration::from_millis(10));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The nodes of the active pods of all sets that have the same controller as this one.
    fn related_pods_per_node(&self, owner: &K) -> std::collections::BTreeMap<String, usize> {
        let mut per_node = std::collections::BTreeMap::new();
        let siblings = match reconcile::object::controller_of(owner.meta()) {
            Some(controller) => self.owners.controlled_by(&controller.uid),
            None => self.owners.get(&pods::key(owner.meta())).into_iter().collect(),
        };
        for sibling in siblings {
            for pod in self.pods.controlled_by(uid(sibling.meta())) {
                if pods::is_active(&pod) {
                    *per_node.entry(pods::node_name(&pod).to_owned()).or_insert(0) += 1;
                }
            }
        }
        per_node
    }
}

/// What the API server said, without our own words around it.
fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => chain(other).to_string(),
    }
}

fn is_namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    status
        .details
        .iter()
        .flat_map(|details| &details.causes)
        .any(|cause| cause.reason == "NamespaceTerminating")
}
