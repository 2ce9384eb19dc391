//! Writes the endpoint slices of services that select pods.

mod plan;

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams};
use meta::names::NamespacedName;
use reconcile::events::EventRecorder;
use reconcile::expectations::Expectations;
use reconcile::object::resource_version_of;
use reconcile::{Action, Informer, InformerEvent, ReconcileError, Reconciler, SharedClock, chain};

use self::plan::{MANAGED_BY, MANAGER, SERVICE_NAME, Step, desired, plan};
use crate::context::{Context, api};
use crate::pods::{self, label, name};
use crate::{claims, enqueue, service_pods};

struct EndpointSlices {
    client: kube::Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    expectations: Expectations<NamespacedName>,
    events: EventRecorder,
    clock: SharedClock,
}

const BY_SERVICE: &str = "service";

pub(super) async fn run(context: Context) {
    let queue = context.queue("endpoint_slice");
    let controller = Arc::new(EndpointSlices {
        client: context.client.clone(),
        services: context.informer(),
        pods: context.informer(),
        nodes: context.informer(),
        slices: context.informer(),
        expectations: Expectations::new(context.clock.clone()),
        events: context.recorder("endpoint-slice-controller"),
        clock: context.clock.clone(),
    });
    controller.slices.ensure_index(BY_SERVICE, |slice: &EndpointSlice| {
        service_of(slice).map(|key| key.to_string()).into_iter().collect()
    });
    let _services = enqueue::itself(&controller.services, &queue);
    let _pods = service_pods::enqueue_services(&controller.pods, &controller.services, &queue);
    let _slices = enqueue::related(&controller.slices, &queue, |slice: &EndpointSlice| {
        let ours = label(&slice.metadata, MANAGED_BY) == Some(MANAGER);
        service_of(slice).filter(|_| ours).into_iter().collect()
    });
    // A node's zone is copied into its pods' endpoints.
    let _nodes = controller.nodes.subscribe({
        let (queue, services) = (queue.clone(), controller.services.clone());
        move |event| {
            let InformerEvent::Updated { old, new } = event else { return };
            if plan::zone(old) != plan::zone(new) {
                services.list().iter().for_each(|service| queue.add(pods::key(&service.metadata)));
            }
        }
    });
    let informers: [&dyn crate::context::Synced; 4] =
        [&controller.services, &controller.pods, &controller.nodes, &controller.slices];
    if context.synced(&informers).await {
        context.run("endpoint_slice", controller, queue, context.config.workers).await;
    }
}

fn service_of(slice: &EndpointSlice) -> Option<NamespacedName> {
    let name = label(&slice.metadata, SERVICE_NAME)?.to_owned();
    Some(NamespacedName { namespace: pods::namespace(&slice.metadata).to_owned(), name })
}

#[async_trait]
impl Reconciler for EndpointSlices {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        // Slices of a service that is gone are garbage.
        let Some(service) = self.services.get(key) else {
            self.expectations.forget(key);
            return Ok(Action::Done);
        };
        let Some(selector) = service_pods::selector(&service) else { return Ok(Action::Done) };
        let existing: Vec<Arc<EndpointSlice>> = self
            .slices
            .by_index(BY_SERVICE, &key.to_string())
            .into_iter()
            .filter(|slice| label(&slice.metadata, MANAGED_BY) == Some(MANAGER))
            .collect();
        let version = self.slices.resource_version();
        let is_live = |uid: &str| existing.iter().any(|slice| pods::uid(&slice.metadata) == uid);
        if !self.expectations.satisfied(key, version, is_live) {
            return Ok(Action::RequeueAfter(std::time::Duration::from_millis(20)));
        }
        let pods = self.pods.in_namespace(&key.namespace).into_iter();
        let pods: Vec<Arc<Pod>> = pods.filter(|pod| claims::matches(&selector, &pod.metadata)).collect();
        let zone_of = |node: &str| {
            let key = NamespacedName { namespace: String::new(), name: node.to_owned() };
            self.nodes.get(&key).and_then(|node| plan::zone(&node))
        };
        let desired = desired(&service, &pods, zone_of);
        for step in plan(&service, desired, &existing, self.clock.now()) {
            self.carry_out(key, &service, step).await?;
        }
        Ok(Action::Done)
    }
}

impl EndpointSlices {
    async fn carry_out(
        &self,
        key: &NamespacedName,
        service: &Service,
        step: Step,
    ) -> Result<(), ReconcileError> {
        let slices = api::<EndpointSlice>(&self.client, &key.namespace);
        let (what, result) = match step {
            Step::Create(slice) => ("Create", slices.create(&PostParams::default(), &slice).await),
            Step::Update(slice) => {
                ("Update", slices.replace(name(&slice.metadata), &PostParams::default(), &slice).await)
            }
            Step::Delete(slice) => {
                return match slices.delete(name(&slice.metadata), &DeleteParams::default()).await {
                    Ok(_) => {
                        self.expectations.deleted(key, pods::uid(&slice.metadata));
                        Ok(())
                    }
                    Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                    Err(error) => Err(error.into()),
                };
            }
        };
        match result {
            Ok(written) => {
                self.expectations.wrote(key, resource_version_of(&written.metadata));
                Ok(())
            }
            // The namespace or the slice went meanwhile.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_forbidden() => Ok(()),
            Err(error) => {
                if !matches!(&error, kube::Error::Api(status) if status.is_conflict()) {
                    let note = format!(
                        "Error updating Endpoint Slices for Service {}/{}: {}",
                        key.namespace,
                        key.name,
                        chain(&error)
                    );
                    self.events.warning(service, "FailedToUpdateEndpointSlices", what, note);
                }
                Err(error.into())
            }
        }
    }
}
