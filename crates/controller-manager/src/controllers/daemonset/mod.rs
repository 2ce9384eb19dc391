//! A pod on every node that fits.

mod plan;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, PostParams, Preconditions};
use meta::names::NamespacedName;
use reconcile::backoff::Backoff;
use reconcile::events::EventRecorder;
use reconcile::expectations::Expectations;
use reconcile::object::resource_version_of;
use reconcile::{Action, Informer, InformerEvent, ReconcileError, Reconciler, SharedClock, chain};

use self::plan::{HASH_LABEL, Plan, daemon_spec, pin_to, plan};
use crate::context::{Context, api};
use crate::pods::{self, PodName, key, label, name, uid};
use crate::revisions::{self, Source};
use crate::{bulk, claims, enqueue, hash, node_fit};

/// Pods created or deleted in one go, as upstream.
const BURST: usize = 250;
/// How fast failed pods of one node are replaced.
const FAILED: Backoff = Backoff { base: Duration::from_secs(1), max: Duration::from_secs(900) };

struct DaemonSets {
    client: kube::Client,
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    revisions: Informer<ControllerRevision>,
    expectations: Expectations<NamespacedName>,
    /// By set and node: how often its pod failed, and when next it may be replaced.
    failures: Mutex<BTreeMap<(NamespacedName, String), (u32, Duration)>>,
    events: EventRecorder,
    clock: SharedClock,
}

pub(super) async fn run(context: Context) {
    let queue = context.queue("daemonset");
    let controller = Arc::new(DaemonSets {
        client: context.client.clone(),
        sets: context.informer(),
        pods: context.informer(),
        nodes: context.informer(),
        revisions: context.informer(),
        expectations: Expectations::new(context.clock.clone()),
        failures: Mutex::default(),
        events: context.recorder("daemonset-controller"),
        clock: context.clock.clone(),
    });
    let _sets = enqueue::itself(&controller.sets, &queue);
    let sets = controller.sets.clone();
    let _pods = enqueue::related(&controller.pods, &queue, move |pod: &Pod| {
        if reconcile::object::controller_of(&pod.metadata).is_some() {
            return enqueue::controller_key(pod, "DaemonSet").into_iter().collect();
        }
        let candidates = sets.in_namespace(pods::namespace(&pod.metadata)).into_iter();
        let adopts = |set: &Arc<DaemonSet>| selector(set).is_some_and(|s| claims::matches(&s, &pod.metadata));
        candidates.filter(adopts).map(|set| key(&set.metadata)).collect()
    });
    let _nodes = controller.nodes.subscribe({
        let (queue, sets) = (queue.clone(), controller.sets.clone());
        move |event| {
            if matters(event) {
                sets.list().iter().for_each(|set| queue.add(key(&set.metadata)));
            }
        }
    });
    let informers: [&dyn crate::context::Synced; 4] =
        [&controller.sets, &controller.pods, &controller.nodes, &controller.revisions];
    if context.synced(&informers).await {
        context.run("daemonset", controller, queue, context.config.workers).await;
    }
}

/// Heartbeats of nodes are no reason to look at every daemon set.
fn matters(event: &InformerEvent<Node>) -> bool {
    match event {
        InformerEvent::Updated { old, new } => {
            old.metadata.labels != new.metadata.labels || node_fit::taints(old) != node_fit::taints(new)
        }
        InformerEvent::Added(_) | InformerEvent::Deleted(_) => true,
    }
}

fn selector(set: &DaemonSet) -> Option<kube::core::Selector> {
    claims::selector(set.spec.as_ref().map(|spec| &spec.selector))
}

#[async_trait]
impl Reconciler for DaemonSets {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let Some(set) = self.sets.get(key) else {
            self.expectations.forget(key);
            self.forget_failures(key);
            return Ok(Action::Done);
        };
        let (Some(selector), Some(spec)) = (selector(&set), set.spec.as_ref()) else {
            let note = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.events.warning(&*set, "SelectingAll", "Select", note);
            return Ok(Action::Done);
        };
        let revision_claims = claims::plan(&set.metadata, &selector, &self.revisions, |_| true);
        let known = claims::execute(&self.client, &*set, revision_claims, None).await?;
        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let source = Source { owner: &*set, template: &spec.template, hash_label: HASH_LABEL, collisions };
        let history = revisions::ensure(&self.client, &source, known).await?;
        if history.collided {
            let mut status = set.status.clone().unwrap_or_default();
            status.collision_count = Some(collisions.unwrap_or(0) + 1);
            self.write_status(&set, status).await?;
            return Ok(Action::Requeue);
        }
        let hash = label(&history.update.metadata, HASH_LABEL).unwrap_or_default();
        let pod_claims = claims::plan(&set.metadata, &selector, &self.pods, |_| true);
        let acts = self.expectations.satisfied(key, self.pods.resource_version(), |deleted| {
            pod_claims.owned.iter().any(|pod| uid(&pod.metadata) == deleted && !pods::is_terminating(pod))
        });
        let owned = claims::execute(&self.client, &*set, pod_claims, None).await?;
        let plan = plan(&set, &self.nodes.list(), &owned, hash, acts, self.clock.now());
        let status = plan.status.clone();
        let outcome = self.carry_out(key, &set, hash, plan).await;
        self.write_status(&set, status).await?;
        let wait = outcome?;
        let limit = spec.revision_history_limit.unwrap_or(10);
        let is_used = |revision: &ControllerRevision| {
            let hash = label(&revision.metadata, HASH_LABEL);
            name(&revision.metadata) == name(&history.update.metadata)
                || owned.iter().any(|pod| label(&pod.metadata, HASH_LABEL) == hash)
        };
        revisions::delete(&self.client, &revisions::excess(&history.revisions, limit, is_used)).await?;
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        let soon = owned.iter().filter_map(|pod| pods::available_in(pod, min_ready, self.clock.now()));
        let next = soon.filter(|wait| !wait.is_zero()).chain(wait).min();
        Ok(next.map_or(Action::Done, Action::RequeueAfter))
    }
}

impl DaemonSets {
    /// Returns when a failed pod that was left alone may be replaced.
    async fn carry_out(
        &self,
        key: &NamespacedName,
        set: &DaemonSet,
        hash: &str,
        plan: Plan,
    ) -> Result<Option<Duration>, ReconcileError> {
        let (replaceable, wait) = self.hold_back(key, set, plan.finished);
        let doomed = plan.delete.into_iter().chain(replaceable).take(BURST);
        let (_, error) = bulk::concurrently(doomed.map(|pod| self.delete(key, set, pod))).await;
        if let Some(error) = error {
            return Err(error.into());
        }
        let nodes: Vec<String> = plan.create.into_iter().take(BURST).collect();
        let (_, error) = bulk::slow_start(nodes.len(), |n| self.create(key, set, hash, &nodes[n])).await;
        error.map_or(Ok(wait), |error| Err(error.into()))
    }

    /// Of the finished pods those whose nodes are not backing off.
    fn hold_back(
        &self,
        key: &NamespacedName,
        set: &DaemonSet,
        finished: Vec<Arc<Pod>>,
    ) -> (Vec<Arc<Pod>>, Option<Duration>) {
        let now = self.clock.monotonic();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wait: Option<Duration> = None;
        let replaceable = finished.into_iter().filter(|pod| {
            let node = pods::node_name(pod);
            let (count, next) = failures.entry((key.clone(), node.to_owned())).or_insert((0, Duration::ZERO));
            if *next > now {
                let left = *next - now;
                wait = Some(wait.map_or(left, |wait| wait.min(left)));
                return false;
            }
            *next = now + FAILED.delay(*count);
            *count += 1;
            let (reason, what) = match pods::phase(pod) {
                "Succeeded" => ("SucceededDaemonPod", "succeeded"),
                _ => ("FailedDaemonPod", "failed"),
            };
            let name = name(&pod.metadata);
            let note = format!(
                "Found {what} daemon pod {}/{name} on node {node}, will try to kill it",
                key.namespace
            );
            self.events.warning(set, reason, "Delete", note);
            true
        });
        (replaceable.collect(), wait)
    }

    fn forget_failures(&self, key: &NamespacedName) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|(set, _), _| set != key);
    }

    async fn create(
        &self,
        key: &NamespacedName,
        set: &DaemonSet,
        hash: &str,
        node: &str,
    ) -> Result<(), kube::Error> {
        let (Some(spec), Some(owner)) = (set.spec.as_ref(), claims::owner_reference(set)) else {
            return Ok(());
        };
        let prefix = PodName::Prefix(format!("{}-", key.name));
        let mut pod = pods::from_template(&spec.template, &key.namespace, owner, prefix);
        let mut pod_spec = daemon_spec(set);
        pin_to(&mut pod_spec, node);
        pod.spec = Some(pod_spec);
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
        if let Some(generation) = pods::annotation(&set.metadata, "deprecated.daemonset.template.generation")
        {
            labels.insert("pod-template-generation".to_owned(), generation.to_owned());
        }
        match api::<Pod>(&self.client, &key.namespace).create(&PostParams::default(), &pod).await {
            Ok(created) => {
                self.expectations.wrote(key, resource_version_of(&created.metadata));
                let note = format!("Created pod: {}", name(&created.metadata));
                self.events.normal(set, "SuccessfulCreate", "Create", note);
                Ok(())
            }
            Err(error) => {
                self.events.warning(
                    set,
                    "FailedCreate",
                    "Create",
                    format!("Error creating: {}", chain(&error)),
                );
                Err(error)
            }
        }
    }

    async fn delete(&self, key: &NamespacedName, set: &DaemonSet, pod: Arc<Pod>) -> Result<(), kube::Error> {
        let pod_name = name(&pod.metadata);
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let parameters = DeleteParams::default().preconditions(preconditions);
        match api::<Pod>(&self.client, &key.namespace).delete(pod_name, &parameters).await {
            Ok(_) => {
                self.expectations.deleted(key, uid(&pod.metadata));
                self.events.normal(set, "SuccessfulDelete", "Delete", format!("Deleted pod: {pod_name}"));
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
            Err(error) => {
                self.events.warning(
                    set,
                    "FailedDelete",
                    "Delete",
                    format!("Error deleting: {}", chain(&error)),
                );
                Err(error)
            }
        }
    }

    async fn write_status(&self, set: &DaemonSet, status: DaemonSetStatus) -> Result<(), ReconcileError> {
        if hash::same_status(set.status.as_ref(), &status) {
            return Ok(());
        }
        let updated = DaemonSet { status: Some(status), ..set.clone() };
        let sets = api::<DaemonSet>(&self.client, pods::namespace(&set.metadata));
        match sets.replace_status(name(&set.metadata), &PostParams::default(), &updated).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
