//! Copies `Endpoints` that people write by hand, for services without a selector, into endpoint slices.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use kube::api::{DeleteParams, PostParams};
use meta::names::NamespacedName;
use reconcile::{Action, Informer, ReconcileError, Reconciler};

use crate::context::{Context, api};
use crate::enqueue;
use crate::pods::{self, label, name};
use crate::service_pods;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Addresses of one subset that are mirrored.
const MAX_PER_SUBSET: usize = 1_000;
const MAX_PER_SLICE: usize = 100;

struct Mirroring {
    client: kube::Client,
    endpoints: Informer<Endpoints>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
}

pub(super) async fn run(context: Context) {
    let queue = context.queue("endpoint_slice_mirroring");
    let controller = Arc::new(Mirroring {
        client: context.client.clone(),
        endpoints: context.informer(),
        services: context.informer(),
        slices: context.informer(),
    });
    let _endpoints = enqueue::itself(&controller.endpoints, &queue);
    let _services = enqueue::itself(&controller.services, &queue);
    let _slices = enqueue::related(&controller.slices, &queue, |slice: &EndpointSlice| {
        let ours = label(&slice.metadata, MANAGED_BY) == Some(MANAGER);
        let service = label(&slice.metadata, SERVICE_NAME).filter(|_| ours);
        let namespace = pods::namespace(&slice.metadata).to_owned();
        service.map(|name| NamespacedName { namespace, name: name.to_owned() }).into_iter().collect()
    });
    if context.synced(&[&controller.endpoints, &controller.services, &controller.slices]).await {
        context.run("endpoint_slice_mirroring", controller, queue, context.config.workers).await;
    }
}

fn is_mirrored(endpoints: &Endpoints, service: &Service) -> bool {
    let skips = label(&endpoints.metadata, SKIP) == Some("true");
    let leads = pods::annotation(&endpoints.metadata, LEADER).is_some();
    let external = service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("ExternalName"));
    !skips && !leads && !external && service_pods::selector(service).is_none()
}

/// The slices the endpoints are to have, without names.
fn desired(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let mut slices = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let mut families: BTreeMap<&str, Vec<Endpoint>> = BTreeMap::new();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(not_ready).take(MAX_PER_SUBSET) {
            let family = match address.ip.parse() {
                Ok(IpAddr::V4(_)) => "IPv4",
                Ok(IpAddr::V6(_)) => "IPv6",
                Err(_) => continue,
            };
            families.entry(family).or_default().push(endpoint(address, ready));
        }
        for (family, list) in families {
            for chunk in list.chunks(MAX_PER_SLICE) {
                slices.push(slice(endpoints, subset, family, chunk.to_vec()));
            }
        }
    }
    slices
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), serving: None, terminating: None }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn slice(endpoints: &Endpoints, subset: &EndpointSubset, family: &str, list: Vec<Endpoint>) -> EndpointSlice {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name(&endpoints.metadata).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    annotations.remove("endpoints.kubernetes.io/last-change-trigger-time");
    let owner = endpoints.controller_owner_ref(&());
    let owner = owner.map(|owner| OwnerReference { block_owner_deletion: Some(true), ..owner });
    let port = |port: &k8s_openapi::api::core::v1::EndpointPort| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol.clone(),
    };
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(&endpoints.metadata))),
            namespace: endpoints.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: (!annotations.is_empty()).then_some(annotations),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(list),
        ports: Some(subset.ports.iter().flatten().map(port).collect()),
    }
}

fn same(old: &EndpointSlice, new: &EndpointSlice) -> bool {
    old.address_type == new.address_type
        && old.endpoints.as_deref().unwrap_or_default() == new.endpoints.as_deref().unwrap_or_default()
        && old.ports.as_deref().unwrap_or_default() == new.ports.as_deref().unwrap_or_default()
        && old.metadata.labels == new.metadata.labels
        && old.metadata.annotations == new.metadata.annotations
}

#[async_trait]
impl Reconciler for Mirroring {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let ours = |slice: &Arc<EndpointSlice>| {
            label(&slice.metadata, MANAGED_BY) == Some(MANAGER)
                && label(&slice.metadata, SERVICE_NAME) == Some(&key.name)
        };
        let mut existing: Vec<Arc<EndpointSlice>> =
            self.slices.in_namespace(&key.namespace).into_iter().filter(ours).collect();
        let mirrored = match (self.endpoints.get(key), self.services.get(key)) {
            (Some(endpoints), Some(service)) if is_mirrored(&endpoints, &service) => Some(endpoints),
            _ => None,
        };
        let mut missing = Vec::new();
        for wanted in mirrored.map(|endpoints| desired(&endpoints)).unwrap_or_default() {
            match existing.iter().position(|old| same(old, &wanted)) {
                Some(at) => drop(existing.swap_remove(at)),
                None => missing.push(wanted),
            }
        }
        let slices = api::<EndpointSlice>(&self.client, &key.namespace);
        for mut wanted in missing {
            let family = wanted.address_type.clone();
            let written = match existing.iter().position(|old| old.address_type == family) {
                None => slices.create(&PostParams::default(), &wanted).await,
                Some(at) => {
                    let old = existing.swap_remove(at);
                    wanted.metadata.name.clone_from(&old.metadata.name);
                    wanted.metadata.resource_version.clone_from(&old.metadata.resource_version);
                    slices.replace(name(&old.metadata), &PostParams::default(), &wanted).await
                }
            };
            match written {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => return Ok(Action::Done),
                Err(error) => return Err(error.into()),
            }
        }
        for stale in existing {
            match slices.delete(name(&stale.metadata), &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn subsets_become_slices_by_family_and_size() {
        let many: Vec<_> = (0..150).map(|n| json!({"ip": format!("10.0.0.{n}")})).collect();
        let endpoints: Endpoints = serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "d", "uid": "u", "labels": {"a": "b"}},
            "subsets": [
                {"addresses": many, "ports": [{"port": 5432}]},
                {"addresses": [{"ip": "fd00::1"}], "notReadyAddresses": [{"ip": "10.1.0.1"}], "ports": [{"name": "x", "port": 1}]},
            ],
        }))
        .unwrap();
        let slices = desired(&endpoints);
        let shape: Vec<_> = slices
            .iter()
            .map(|slice| {
                (
                    slice.address_type.as_str(),
                    slice.endpoints.as_ref().unwrap().len(),
                    slice.ports.as_ref().unwrap()[0].port,
                )
            })
            .collect();
        assert_eq!(
            shape,
            [("IPv4", 100, Some(5432)), ("IPv4", 50, Some(5432)), ("IPv4", 1, Some(1)), ("IPv6", 1, Some(1))]
        );
        assert_eq!(slices[2].endpoints.as_ref().unwrap()[0].conditions.as_ref().unwrap().ready, Some(false));
        assert_eq!(slices[0].metadata.labels.as_ref().unwrap()[MANAGED_BY], MANAGER);
    }

    #[test]
    fn only_services_without_selector_are_mirrored() {
        let service = |spec| serde_json::from_value::<Service>(json!({"spec": spec})).unwrap();
        let plain = Endpoints::default();
        assert!(is_mirrored(&plain, &service(json!({}))));
        assert!(!is_mirrored(&plain, &service(json!({"selector": {"a": "b"}}))));
        let mut skipped = Endpoints::default();
        skipped.metadata.labels = Some([(SKIP.to_owned(), "true".to_owned())].into());
        assert!(!is_mirrored(&skipped, &service(json!({}))));
    }
}
