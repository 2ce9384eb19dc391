//! Rolls out pod templates through replica sets.

mod plan;
mod progress;
mod replica_sets;
mod rolling;

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, Preconditions};
use meta::names::NamespacedName;
use reconcile::events::EventRecorder;
use reconcile::expectations::Expectations;
use reconcile::object::{controller_of, resource_version_of};
use reconcile::{Action, Informer, ReconcileError, Reconciler, SharedClock};

use self::plan::{Plan, Step, plan};
pub(super) use self::rolling::scaled;
use crate::context::{Context, api};
use crate::pods::{self, key, name, uid};
use crate::{claims, enqueue, hash};

struct DeploymentController {
    client: kube::Client,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    expectations: Expectations<NamespacedName>,
    events: EventRecorder,
    clock: SharedClock,
}

pub(super) async fn run(context: Context) {
    let queue = context.queue("deployment");
    let controller = Arc::new(DeploymentController {
        client: context.client.clone(),
        deployments: context.informer(),
        replica_sets: context.informer(),
        pods: context.informer(),
        expectations: Expectations::new(context.clock.clone()),
        events: context.recorder("deployment-controller"),
        clock: context.clock.clone(),
    });
    let _deployments = enqueue::itself(&controller.deployments, &queue);
    let deployments = controller.deployments.clone();
    let _replica_sets = enqueue::related(&controller.replica_sets, &queue, move |set: &ReplicaSet| {
        if controller_of(&set.metadata).is_some() {
            return enqueue::controller_key(set, "Deployment").into_iter().collect();
        }
        let candidates = deployments.in_namespace(pods::namespace(&set.metadata)).into_iter();
        let adopts = |deployment: &Arc<Deployment>| {
            selector_of(deployment).is_some_and(|selector| claims::matches(&selector, &set.metadata))
        };
        candidates.filter(adopts).map(|deployment| key(&deployment.metadata)).collect()
    });
    // A recreating rollout waits for the last old pod to go.
    let _pods = controller.pods.subscribe({
        let (queue, sets, deployments) =
            (queue.clone(), controller.replica_sets.clone(), controller.deployments.clone());
        move |event| {
            let reconcile::InformerEvent::Deleted(pod) = event else { return };
            let Some(set) = enqueue::controller_key(&**pod, "ReplicaSet").and_then(|key| sets.get(&key))
            else {
                return;
            };
            let Some(key) = enqueue::controller_key(&*set, "Deployment") else { return };
            if deployments.get(&key).is_some_and(|deployment| plan::is_recreate(&deployment)) {
                queue.add(key);
            }
        }
    });
    if context.synced(&[&controller.deployments, &controller.replica_sets, &controller.pods]).await {
        context.run("deployment", controller, queue, context.config.workers).await;
    }
}

fn selector_of(deployment: &Deployment) -> Option<kube::core::Selector> {
    claims::selector(deployment.spec.as_ref().map(|spec| &spec.selector))
}

#[async_trait]
impl Reconciler for DeploymentController {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let Some(deployment) = self.deployments.get(key) else {
            self.expectations.forget(key);
            return Ok(Action::Done);
        };
        let Some(selector) = selector_of(&deployment) else {
            let note = "This deployment is selecting all pods. A non-empty selector is required.";
            self.events.warning(&*deployment, "SelectingAll", "Select", note);
            return self.observe(&deployment).await;
        };
        // Replica sets written by this controller but not in its cache yet would be made twice.
        if !self.expectations.satisfied(key, self.replica_sets.resource_version(), |_| false) {
            return Ok(Action::RequeueAfter(std::time::Duration::from_millis(5)));
        }
        let claims = claims::plan(&deployment.metadata, &selector, &self.replica_sets, |_| true);
        let sets = claims::execute(&self.client, &*deployment, claims, None).await?;
        let old_pods_run = |set: &ReplicaSet| {
            let mut pods = self.pods.controlled_by(uid(&set.metadata)).into_iter();
            pods.any(|pod| !pods::is_terminal(&pod))
        };
        let plan = plan(&deployment, &sets, old_pods_run, self.clock.now());
        self.execute(key, &deployment, plan).await
    }
}

impl DeploymentController {
    async fn execute(
        &self,
        key: &NamespacedName,
        deployment: &Deployment,
        plan: Plan,
    ) -> Result<Action, ReconcileError> {
        let mut deployment = deployment.clone();
        for step in plan.steps {
            match step {
                Step::Create(set) => self.create(key, &deployment, *set).await?,
                Step::Update { set, note } => {
                    let sets = api::<ReplicaSet>(&self.client, &key.namespace);
                    let updated = sets.replace(name(&set.metadata), &PostParams::default(), &set).await?;
                    self.expectations.wrote(key, resource_version_of(&updated.metadata));
                    if let Some(note) = note {
                        self.events.normal(&deployment, "ScalingReplicaSet", "Scale", note);
                    }
                }
                Step::Delete(set) => self.delete(&set).await?,
                Step::Annotate(annotations) => {
                    let mut wanted = deployment.clone();
                    wanted.metadata.annotations = Some(annotations);
                    let deployments = api::<Deployment>(&self.client, &key.namespace);
                    deployment = deployments.replace(&key.name, &PostParams::default(), &wanted).await?;
                }
            }
        }
        if let Some(status) = plan.status {
            deployment.status = Some(status);
            self.write_status(key, &deployment).await?;
        }
        Ok(plan.look_again.map_or(Action::Done, Action::RequeueAfter))
    }

    async fn create(
        &self,
        key: &NamespacedName,
        deployment: &Deployment,
        set: ReplicaSet,
    ) -> Result<(), ReconcileError> {
        let sets = api::<ReplicaSet>(&self.client, &key.namespace);
        match sets.create(&PostParams::default(), &set).await {
            Ok(created) => {
                self.expectations.wrote(key, resource_version_of(&created.metadata));
                let replicas = replica_sets::replicas(&created);
                if replicas > 0 {
                    let name = name(&created.metadata);
                    let note = format!("Scaled up replica set {name} from 0 to {replicas}");
                    self.events.normal(deployment, "ScalingReplicaSet", "Scale", note);
                }
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                self.collide(key, deployment, &set).await
            }
            Err(error) => {
                let note = format!("Failed to create new replica set {:?}: {error}", name(&set.metadata));
                self.events.warning(deployment, "ReplicaSetCreateError", "Create", note.clone());
                if let Some(failed) = progress::creation_failed(deployment, &note, self.clock.now()) {
                    self.write_status(key, &failed).await?;
                }
                Err(error.into())
            }
        }
    }

    /// The name is taken: by our own earlier write that the cache does not show yet, or by another template of
    /// the same hash.
    async fn collide(
        &self,
        key: &NamespacedName,
        deployment: &Deployment,
        set: &ReplicaSet,
    ) -> Result<(), ReconcileError> {
        let sets = api::<ReplicaSet>(&self.client, &key.namespace);
        let Some(existing) = sets.get_opt(name(&set.metadata)).await? else {
            return Err(ReconcileError::failed("the replica set vanished while it was in the way"));
        };
        let ours =
            controller_of(&existing.metadata).is_some_and(|owner| owner.uid == uid(&deployment.metadata));
        let template = |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.template.clone());
        if ours && hash::canonical(&template(&existing)) == hash::canonical(&template(set)) {
            self.expectations.wrote(key, resource_version_of(&existing.metadata));
            return Ok(());
        }
        let mut counted = deployment.clone();
        let status = counted.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        self.write_status(key, &counted).await?;
        Err(ReconcileError::failed("the hash of the template collides with another's"))
    }

    async fn delete(&self, set: &ReplicaSet) -> Result<(), ReconcileError> {
        let sets = api::<ReplicaSet>(&self.client, pods::namespace(&set.metadata));
        let preconditions = Preconditions {
            uid: set.metadata.uid.clone(),
            resource_version: set.metadata.resource_version.clone(),
        };
        match sets.delete(name(&set.metadata), &DeleteParams::background().preconditions(preconditions)).await
        {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Notes the generation of a deployment that cannot be worked on.
    async fn observe(&self, deployment: &Deployment) -> Result<Action, ReconcileError> {
        let observed = deployment.status.as_ref().and_then(|status| status.observed_generation);
        if observed.unwrap_or(0) < deployment.metadata.generation.unwrap_or(0) {
            let mut seen = deployment.clone();
            seen.status.get_or_insert_default().observed_generation = deployment.metadata.generation;
            self.write_status(&key(&deployment.metadata), &seen).await?;
        }
        Ok(Action::Done)
    }

    async fn write_status(
        &self,
        key: &NamespacedName,
        deployment: &Deployment,
    ) -> Result<(), ReconcileError> {
        let deployments = api::<Deployment>(&self.client, &key.namespace);
        match deployments.replace_status(&key.name, &PostParams::default(), deployment).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
