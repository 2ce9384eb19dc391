//! Pods with names, order and claims of their own.

mod identity;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, PostParams, Preconditions};
use meta::names::NamespacedName;
use reconcile::events::EventRecorder;
use reconcile::expectations::Expectations;
use reconcile::object::resource_version_of;
use reconcile::{Action, Informer, ReconcileError, Reconciler, SharedClock, chain};

use self::plan::{Step, Why, plan};
use crate::context::{Context, api};
use crate::pods::{self, name, uid};
use crate::revisions::{self, History, Source};
use crate::{claims, enqueue, hash};

const HASH_LABEL: &str = "controller.kubernetes.io/hash";

struct StatefulSets {
    client: kube::Client,
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    revisions: Informer<ControllerRevision>,
    expectations: Expectations<NamespacedName>,
    events: EventRecorder,
    clock: SharedClock,
}

pub(super) async fn run(context: Context) {
    let queue = context.queue("statefulset");
    let controller = Arc::new(StatefulSets {
        client: context.client.clone(),
        sets: context.informer(),
        pods: context.informer(),
        claims: context.informer(),
        revisions: context.informer(),
        expectations: Expectations::new(context.clock.clone()),
        events: context.recorder("statefulset-controller"),
        clock: context.clock.clone(),
    });
    let _sets = enqueue::itself(&controller.sets, &queue);
    let sets = controller.sets.clone();
    let _pods = enqueue::related(&controller.pods, &queue, move |pod: &Pod| {
        if reconcile::object::controller_of(&pod.metadata).is_some() {
            return enqueue::controller_key(pod, "StatefulSet").into_iter().collect();
        }
        let candidates = sets.in_namespace(pods::namespace(&pod.metadata)).into_iter();
        let adopts =
            |set: &Arc<StatefulSet>| selector(set).is_some_and(|s| claims::matches(&s, &pod.metadata));
        candidates.filter(adopts).map(|set| pods::key(&set.metadata)).collect()
    });
    let _revisions = enqueue::controller(&controller.revisions, &queue, "StatefulSet");
    let informers: [&dyn crate::context::Synced; 4] =
        [&controller.sets, &controller.pods, &controller.claims, &controller.revisions];
    if context.synced(&informers).await {
        context.run("statefulset", controller, queue, context.config.workers).await;
    }
}

fn selector(set: &StatefulSet) -> Option<kube::core::Selector> {
    claims::selector(set.spec.as_ref().map(|spec| &spec.selector))
}

#[async_trait]
impl Reconciler for StatefulSets {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let Some(set) = self.sets.get(key) else {
            self.expectations.forget(key);
            return Ok(Action::Done);
        };
        let (Some(selector), Some(spec)) = (selector(&set), set.spec.as_ref()) else {
            return Ok(Action::Done);
        };
        let member = |pod: &Pod| identity::ordinal(&key.name, name(&pod.metadata)).is_some();
        let claims = claims::plan(&set.metadata, &selector, &self.pods, member);
        let is_live = |deleted: &str| {
            claims.owned.iter().any(|pod| uid(&pod.metadata) == deleted && !pods::is_terminating(pod))
        };
        if !self.expectations.satisfied(key, self.pods.resource_version(), is_live) {
            return Ok(Action::RequeueAfter(Duration::from_millis(20)));
        }
        let owned = claims::execute(&self.client, &*set, claims, None).await?;
        let revision_claims = claims::plan(&set.metadata, &selector, &self.revisions, |_| true);
        let known = claims::execute(&self.client, &*set, revision_claims, None).await?;
        let status = set.status.clone().unwrap_or_default();
        let source = Source {
            owner: &*set,
            template: &spec.template,
            hash_label: HASH_LABEL,
            collisions: status.collision_count,
        };
        let history = revisions::ensure(&self.client, &source, known).await?;
        if history.collided {
            return self.count_collision(&set).await;
        }
        let wanted = status.current_revision.unwrap_or_default();
        let current = history.revisions.iter().find(|revision| name(&revision.metadata) == wanted);
        let current = Arc::clone(current.unwrap_or(&history.update));
        let (current_name, update_name) = (name(&current.metadata), name(&history.update.metadata));
        let plan = plan(&set, &owned, current_name, update_name, self.clock.now());
        let (steps, look_again) = (plan.steps, plan.look_again);
        let outcome = self.carry_out(key, &set, steps, &current, &history.update).await;
        self.write_status(&set, plan.status).await?;
        outcome?;
        self.truncate(&set, &history, &owned, current_name).await?;
        Ok(look_again.map_or(Action::Done, Action::RequeueAfter))
    }
}

impl StatefulSets {
    async fn carry_out(
        &self,
        key: &NamespacedName,
        set: &StatefulSet,
        steps: Vec<Step>,
        current: &ControllerRevision,
        update: &ControllerRevision,
    ) -> Result<(), ReconcileError> {
        for step in steps {
            match step {
                Step::Create { ordinal, updated } => {
                    let revision = if updated { update } else { current };
                    self.create(key, set, ordinal, revision).await?;
                }
                Step::Delete { pod, why } => self.delete(key, set, &pod, why).await?,
            }
        }
        Ok(())
    }

    async fn create(
        &self,
        key: &NamespacedName,
        set: &StatefulSet,
        ordinal: i32,
        revision: &ControllerRevision,
    ) -> Result<(), ReconcileError> {
        let template = revisions::template(revision);
        let pod =
            template.and_then(|template| identity::pod(set, &template, ordinal, name(&revision.metadata)));
        let Some(pod) = pod else {
            return Err(ReconcileError::Terminal("the revision has no template".to_owned()));
        };
        let pod_name = identity::pod_name(set, ordinal);
        let made = match self.make_claims(set, ordinal, &pod_name).await {
            Ok(()) => api::<Pod>(&self.client, &key.namespace).create(&PostParams::default(), &pod).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(created) => {
                self.expectations.wrote(key, resource_version_of(&created.metadata));
                let note = format!("create Pod {pod_name} in StatefulSet {} successful", key.name);
                self.events.normal(set, "SuccessfulCreate", "Create", note);
                Ok(())
            }
            // The cache does not show it yet, or another's pod has the name: its change will wake us.
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            Err(error) => {
                let note = format!(
                    "create Pod {pod_name} in StatefulSet {} failed error: {}",
                    key.name,
                    chain(&error)
                );
                self.events.warning(set, "FailedCreate", "Create", note);
                Err(error.into())
            }
        }
    }

    async fn make_claims(&self, set: &StatefulSet, ordinal: i32, pod: &str) -> Result<(), kube::Error> {
        for claim in identity::claims(set, ordinal) {
            let (key, name) = (pods::key(&claim.metadata), name(&claim.metadata).to_owned());
            if self.claims.get(&key).is_some() {
                continue;
            }
            let claims = api::<PersistentVolumeClaim>(&self.client, &key.namespace);
            match claims.create(&PostParams::default(), &claim).await {
                Ok(_) => {
                    let set_name = pods::name(&set.metadata);
                    let note = format!("create Claim {name} Pod {pod} in StatefulSet {set_name} success");
                    self.events.normal(set, "SuccessfulCreate", "Create", note);
                }
                Err(kube::Error::Api(status)) if status.is_already_exists() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn delete(
        &self,
        key: &NamespacedName,
        set: &StatefulSet,
        pod: &Pod,
        why: Why,
    ) -> Result<(), ReconcileError> {
        let pod_name = name(&pod.metadata);
        if why == Why::ScaledDown {
            self.hand_claims_to(set, pod).await?;
        }
        if why == Why::Finished {
            let note =
                format!("StatefulSet {}/{} is recreating failed Pod {pod_name}", key.namespace, key.name);
            self.events.warning(set, "RecreatingFailedPod", "Delete", note);
        }
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let parameters = DeleteParams::default().preconditions(preconditions);
        match api::<Pod>(&self.client, &key.namespace).delete(pod_name, &parameters).await {
            Ok(_) => {
                self.expectations.deleted(key, uid(&pod.metadata));
                let note = format!("delete Pod {pod_name} in StatefulSet {} successful", key.name);
                self.events.normal(set, "SuccessfulDelete", "Delete", note);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
            Err(error) => {
                let note = format!(
                    "delete Pod {pod_name} in StatefulSet {} failed error: {}",
                    key.name,
                    chain(&error)
                );
                self.events.warning(set, "FailedDelete", "Delete", note);
                Err(error.into())
            }
        }
    }

    /// By the retention policy, the claims of a pod that is scaled away go with it.
    async fn hand_claims_to(&self, set: &StatefulSet, pod: &Pod) -> Result<(), ReconcileError> {
        let ordinal = identity::ordinal(pods::name(&set.metadata), name(&pod.metadata));
        let owner = identity::claim_owner(set, Some(pod)).filter(|owner| owner.kind == "Pod");
        let (Some(ordinal), Some(owner)) = (ordinal, owner) else { return Ok(()) };
        for claim in identity::claims(set, ordinal) {
            let Some(existing) = self.claims.get(&pods::key(&claim.metadata)) else { continue };
            let mut handed = (*existing).clone();
            handed.metadata.owner_references = Some(vec![owner.clone()]);
            let claims = api::<PersistentVolumeClaim>(&self.client, pods::namespace(&set.metadata));
            claims.replace(name(&existing.metadata), &PostParams::default(), &handed).await?;
        }
        Ok(())
    }

    async fn write_status(
        &self,
        set: &StatefulSet,
        status: k8s_openapi::api::apps::v1::StatefulSetStatus,
    ) -> Result<(), ReconcileError> {
        if hash::same_status(set.status.as_ref(), &status) {
            return Ok(());
        }
        let updated = StatefulSet { status: Some(status), ..set.clone() };
        let sets = api::<StatefulSet>(&self.client, pods::namespace(&set.metadata));
        match sets.replace_status(name(&set.metadata), &PostParams::default(), &updated).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn count_collision(&self, set: &StatefulSet) -> Result<Action, ReconcileError> {
        let mut status = set.status.clone().unwrap_or_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        self.write_status(set, status).await?;
        Ok(Action::Requeue)
    }

    async fn truncate(
        &self,
        set: &StatefulSet,
        history: &History,
        owned: &[Arc<Pod>],
        current: &str,
    ) -> Result<(), ReconcileError> {
        let limit = set.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
        let is_used = |revision: &ControllerRevision| {
            let name = name(&revision.metadata);
            name == current
                || name == pods::name(&history.update.metadata)
                || owned.iter().any(|pod| pods::label(&pod.metadata, identity::REVISION) == Some(name))
        };
        let doomed = revisions::excess(&history.revisions, limit, is_used);
        revisions::delete(&self.client, &doomed).await
    }
}
