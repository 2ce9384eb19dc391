//! Keeps the books of pod disruption budgets, by which evictions are granted.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PostParams;
use kube::core::{ApiResource, Selector};
use kube::{Api, discovery};
use meta::names::NamespacedName;
use reconcile::events::EventRecorder;
use reconcile::object::controller_of;
use reconcile::{Action, Informer, InformerEvent, ReconcileError, Reconciler, SharedClock, chain};

use self::plan::{counted, needs_scales, plan};
use crate::context::{Context, api};
use crate::pods::{self, key, name};
use crate::{claims, enqueue, hash};

struct Disruption {
    client: kube::Client,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    controllers: Informer<ReplicationController>,
    stateful_sets: Informer<StatefulSet>,
    events: EventRecorder,
    clock: SharedClock,
}

pub(super) async fn run(context: Context) {
    let queue = context.queue("disruption");
    let controller = Arc::new(Disruption {
        client: context.client.clone(),
        budgets: context.informer(),
        pods: context.informer(),
        deployments: context.informer(),
        replica_sets: context.informer(),
        controllers: context.informer(),
        stateful_sets: context.informer(),
        events: context.recorder("controllermanager"),
        clock: context.clock.clone(),
    });
    let _budgets = enqueue::itself(&controller.budgets, &queue);
    let _pods = controller.pods.subscribe({
        let (queue, budgets) = (queue.clone(), controller.budgets.clone());
        move |event| {
            if let InformerEvent::Updated { old, new } = event {
                let seen = |pod: &Pod| (pods::is_ready(pod), pods::is_terminating(pod));
                if seen(old) == seen(new) && old.metadata.labels == new.metadata.labels {
                    return;
                }
            }
            for pod in event.old().into_iter().chain([event.object()]) {
                for budget in budgets.in_namespace(pods::namespace(&pod.metadata)) {
                    if selector(&budget).is_some_and(|selector| claims::matches(&selector, &pod.metadata)) {
                        queue.add(key(&budget.metadata));
                    }
                }
            }
        }
    });
    let informers: [&dyn crate::context::Synced; 6] = [
        &controller.budgets,
        &controller.pods,
        &controller.deployments,
        &controller.replica_sets,
        &controller.controllers,
        &controller.stateful_sets,
    ];
    if context.synced(&informers).await {
        context.run("disruption", controller, queue, 1).await;
    }
}

/// Unlike elsewhere an empty selector selects all pods, and none selects none.
fn selector(budget: &PodDisruptionBudget) -> Option<Selector> {
    budget.spec.as_ref()?.selector.clone()?.try_into().ok()
}

#[async_trait]
impl Reconciler for Disruption {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let Some(budget) = self.budgets.get(key) else { return Ok(Action::Done) };
        let pods: Vec<Arc<Pod>> = match selector(&budget) {
            None => Vec::new(),
            Some(selector) => {
                let pods = self.pods.in_namespace(&key.namespace).into_iter();
                let live = pods.filter(|pod| !pods::is_terminal(pod));
                live.filter(|pod| claims::matches(&selector, &pod.metadata)).collect()
            }
        };
        if pods.is_empty() {
            self.events.normal(&*budget, "NoPods", "Calculate", "No matching pods found");
        }
        let expected =
            if needs_scales(&budget) { self.expected(key, &pods).await } else { Ok(counted(&pods)) };
        if let Err(message) = &expected {
            let note = format!("Failed to calculate the number of expected pods: {message}");
            self.events.warning(&*budget, "CalculateExpectedPodCountFailed", "Calculate", note);
        }
        let outcome = plan(&budget, &pods, expected, self.clock.now());
        if !hash::same_status(budget.status.as_ref(), &outcome.status) {
            let updated = PodDisruptionBudget { status: Some(outcome.status), ..(*budget).clone() };
            let budgets = api::<PodDisruptionBudget>(&self.client, &key.namespace);
            match budgets.replace_status(&key.name, &PostParams::default(), &updated).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(outcome.look_again.map_or(Action::Done, Action::RequeueAfter))
    }
}

impl Disruption {
    /// How many pods the controllers of these pods want together.
    async fn expected(&self, key: &NamespacedName, pods: &[Arc<Pod>]) -> Result<i32, String> {
        let mut scales: BTreeMap<String, i32> = BTreeMap::new();
        for pod in pods {
            let owner = controller_of(&pod.metadata)
                .ok_or_else(|| format!("found no controllers for pod {:?}", name(&pod.metadata)))?;
            if !scales.contains_key(&owner.uid) {
                let (uid, scale) = self.scale_of(&key.namespace, owner).await?;
                scales.insert(owner.uid.clone(), 0);
                scales.insert(uid, scale);
            }
        }
        Ok(scales.values().sum())
    }

    /// The uid and the size of what decides the number of an owner's pods.
    async fn scale_of(&self, namespace: &str, owner: &OwnerReference) -> Result<(String, i32), String> {
        let at = NamespacedName { namespace: namespace.to_owned(), name: owner.name.clone() };
        let size = |replicas: Option<i32>| replicas.unwrap_or(1);
        let cached = match owner.kind.as_str() {
            "ReplicaSet" => {
                let set = self.replica_sets.get(&at);
                let parent = set.as_ref().and_then(|set| enqueue::controller_key(&**set, "Deployment"));
                match parent.and_then(|parent| self.deployments.get(&parent)) {
                    Some(deployment) => Some((
                        pods::uid(&deployment.metadata).to_owned(),
                        size(deployment.spec.as_ref().and_then(|spec| spec.replicas)),
                    )),
                    None => set.map(|set| {
                        (owner.uid.clone(), size(set.spec.as_ref().and_then(|spec| spec.replicas)))
                    }),
                }
            }
            "StatefulSet" => self
                .stateful_sets
                .get(&at)
                .map(|set| (owner.uid.clone(), size(set.spec.as_ref().and_then(|spec| spec.replicas)))),
            "ReplicationController" => self
                .controllers
                .get(&at)
                .map(|rc| (owner.uid.clone(), size(rc.spec.as_ref().and_then(|spec| spec.replicas)))),
            _ => None,
        };
        match cached {
            Some(found) => Ok(found),
            None => self.scale_subresource(namespace, owner).await,
        }
    }

    /// Custom controllers tell their size by the scale subresource.
    async fn scale_subresource(
        &self,
        namespace: &str,
        owner: &OwnerReference,
    ) -> Result<(String, i32), String> {
        let (group, version) = owner.api_version.rsplit_once('/').unwrap_or(("", &owner.api_version));
        let gvk = kube::core::GroupVersionKind::gvk(group, version, &owner.kind);
        let found =
            discovery::pinned_kind(&self.client, &gvk).await.map_err(|error| chain(&error).to_string())?;
        let resource: ApiResource = found.0;
        let objects: Api<kube::core::DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &resource);
        let scale = objects.get_scale(&owner.name).await;
        let scale = scale
            .map_err(|error| format!("{} does not implement the scale subresource: {error}", owner.kind))?;
        let replicas = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
        Ok((owner.uid.clone(), replicas))
    }
}
