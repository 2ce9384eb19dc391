//! Writes the `Endpoints` of services that select pods: the form that older clients read.

mod plan;

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use kube::api::{DeleteParams, PostParams, Preconditions};
use meta::names::NamespacedName;
use reconcile::{Action, Informer, InformerEvent, ReconcileError, Reconciler, key_of};

use crate::context::{Context, api};
use crate::{claims, enqueue, service_pods};

struct EndpointsController {
    client: kube::Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
}

pub(super) async fn run(context: Context) {
    let queue = context.queue("endpoint");
    let controller = Arc::new(EndpointsController {
        client: context.client.clone(),
        services: context.informer(),
        pods: context.informer(),
        endpoints: context.informer(),
    });
    let _services = enqueue::itself(&controller.services, &queue);
    let _pods = service_pods::enqueue_services(&controller.pods, &controller.services, &queue);
    let _endpoints = controller.endpoints.subscribe({
        let queue = queue.clone();
        move |event| match event {
            InformerEvent::Deleted(endpoints) => queue.add(key_of(&**endpoints)),
            // What we wrote before may belong to a service that went meanwhile.
            InformerEvent::Added(endpoints) if plan::is_managed(endpoints) => queue.add(key_of(&**endpoints)),
            InformerEvent::Added(_) | InformerEvent::Updated { .. } => {}
        }
    });
    if context.synced(&[&controller.services, &controller.pods, &controller.endpoints]).await {
        context.run("endpoint", controller, queue, context.config.workers).await;
    }
}

#[async_trait]
impl Reconciler for EndpointsController {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let existing = self.endpoints.get(key);
        let api = api::<Endpoints>(&self.client, &key.namespace);
        let Some(service) = self.services.get(key) else {
            let Some(existing) = existing else { return Ok(Action::Done) };
            let preconditions = Preconditions { uid: existing.metadata.uid.clone(), resource_version: None };
            return match api.delete(&key.name, &DeleteParams::default().preconditions(preconditions)).await {
                Ok(_) => Ok(Action::Done),
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                    Ok(Action::Done)
                }
                Err(error) => Err(error.into()),
            };
        };
        let Some(selector) = service_pods::selector(&service) else { return Ok(Action::Done) };
        let pods = self.pods.in_namespace(&key.namespace).into_iter();
        let pods: Vec<Arc<Pod>> = pods.filter(|pod| claims::matches(&selector, &pod.metadata)).collect();
        let Some(wanted) = plan::plan(&service, &pods, existing.as_deref()) else { return Ok(Action::Done) };
        let written = match existing {
            None => api.create(&PostParams::default(), &wanted).await,
            Some(_) => api.replace(&key.name, &PostParams::default(), &wanted).await,
        };
        match written {
            Ok(_) => Ok(Action::Done),
            // The namespace is going, or we wrote this already and the cache does not show it yet.
            Err(kube::Error::Api(status)) if status.is_forbidden() || status.is_not_found() => {
                Ok(Action::Done)
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(Action::Requeue),
            Err(error) => Err(error.into()),
        }
    }
}
