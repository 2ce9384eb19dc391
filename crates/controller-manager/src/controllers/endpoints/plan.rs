//! The `Endpoints` a service is to have.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::pods;
use crate::service_pods::{self, HEADLESS_LABEL};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// More addresses than this are left out.
const CAPACITY: usize = 1_000;

type Ports = Vec<(String, String, i32, Option<String>)>;
type Addresses = Vec<EndpointAddress>;

pub(super) fn is_managed(endpoints: &Endpoints) -> bool {
    pods::label(&endpoints.metadata, MANAGED_BY) == Some(MANAGER)
}

/// The object to write, or `None` if it is so already.
pub(super) fn plan(service: &Service, pods: &[Arc<Pod>], existing: Option<&Endpoints>) -> Option<Endpoints> {
    let mut groups = group(service, pods);
    let total: usize = groups.values().map(|(ready, not_ready)| ready.len() + not_ready.len()).sum();
    if total > CAPACITY {
        truncate(&mut groups);
    }
    let subsets: Vec<EndpointSubset> = groups.into_iter().map(subset).collect();
    let subsets = (!subsets.is_empty()).then_some(subsets);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS_LABEL);
    if service_pods::is_headless(service) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = existing.and_then(|old| old.metadata.annotations.clone()).unwrap_or_default();
    if total > CAPACITY {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    let annotations = (!annotations.is_empty()).then_some(annotations);
    let metadata = ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        labels: Some(labels),
        annotations,
        resource_version: existing.and_then(|old| old.metadata.resource_version.clone()),
        uid: existing.and_then(|old| old.metadata.uid.clone()),
        ..ObjectMeta::default()
    };
    let same = existing.is_some_and(|old| {
        old.metadata.labels == metadata.labels
            && old.metadata.annotations == metadata.annotations
            && old.subsets.as_deref().unwrap_or_default() == subsets.as_deref().unwrap_or_default()
    });
    (!same).then_some(Endpoints { metadata, subsets })
}

/// Ready and other addresses by the ports their pods give.
fn group(service: &Service, pods: &[Arc<Pod>]) -> BTreeMap<Ports, (Addresses, Addresses)> {
    let tolerate = service_pods::publishes_not_ready(service);
    let mut groups: BTreeMap<Ports, (Addresses, Addresses)> = BTreeMap::new();
    for pod in pods {
        if pods::is_terminal(pod) || (pods::is_terminating(pod) && !tolerate) {
            continue;
        }
        let Some(address) = address(service, pod) else { continue };
        let Some(ports) = ports(service, pod) else { continue };
        let (ready, not_ready) = groups.entry(ports).or_default();
        if tolerate || pods::is_ready(pod) { ready.push(address) } else { not_ready.push(address) }
    }
    for (ready, not_ready) in groups.values_mut() {
        for addresses in [ready, not_ready] {
            addresses.sort_by(|a, b| a.ip.cmp(&b.ip));
        }
    }
    groups
}

/// `None` when the service has ports and the pod none of them.
fn ports(service: &Service, pod: &Pod) -> Option<Ports> {
    let declared = service.spec.as_ref()?.ports.as_deref().unwrap_or_default();
    let mut ports = Ports::new();
    for port in declared {
        if let Some(number) = service_pods::target_port(pod, port) {
            let name = port.name.clone().unwrap_or_default();
            ports.push((name, service_pods::protocol(port).to_owned(), number, port.app_protocol.clone()));
        }
    }
    (declared.is_empty() || !ports.is_empty()).then_some(ports)
}

fn address(service: &Service, pod: &Pod) -> Option<EndpointAddress> {
    let families = service.spec.as_ref()?.ip_families.as_deref().unwrap_or_default();
    let wants_v6 = families.first().is_some_and(|family| family == "IPv6");
    let of_family = |ip: &String| ip.parse().is_ok_and(|ip: IpAddr| ip.is_ipv6() == wants_v6);
    let ip = service_pods::addresses(pod).into_iter().find(of_family)?;
    Some(EndpointAddress {
        ip,
        hostname: service_pods::hostname(pod, service),
        node_name: Some(pods::node_name(pod).to_owned()).filter(|node| !node.is_empty()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
    })
}

/// Keeps ready addresses rather than others.
fn truncate(groups: &mut BTreeMap<Ports, (Addresses, Addresses)>) {
    let mut left = CAPACITY;
    for (ready, _) in groups.values_mut() {
        ready.truncate(left);
        left -= ready.len();
    }
    for (_, not_ready) in groups.values_mut() {
        not_ready.truncate(left);
        left -= not_ready.len();
    }
    groups.retain(|_, (ready, not_ready)| !ready.is_empty() || !not_ready.is_empty());
}

fn subset((ports, (ready, not_ready)): (Ports, (Addresses, Addresses))) -> EndpointSubset {
    let port = |(name, protocol, port, app_protocol): (String, String, i32, Option<String>)| EndpointPort {
        name: Some(name).filter(|name| !name.is_empty()),
        port,
        protocol: Some(protocol),
        app_protocol,
    };
    let ports: Vec<EndpointPort> = ports.into_iter().map(port).collect();
    EndpointSubset {
        addresses: (!ready.is_empty()).then_some(ready),
        not_ready_addresses: (!not_ready.is_empty()).then_some(not_ready),
        ports: (!ports.is_empty()).then_some(ports),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(ip: &str, ready: bool, port: i32) -> Arc<Pod> {
        let ready = if ready { "True" } else { "False" };
        let pod = json!({
            "metadata": {"name": "p", "namespace": "default"},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": ready}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn addresses_are_grouped_by_ports_and_readiness() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"ports": [{"name": "w", "port": 80, "targetPort": "http"}]},
        }))
        .unwrap();
        let pods = [
            pod("10.0.0.2", true, 1),
            pod("10.0.0.1", true, 1),
            pod("10.0.0.3", false, 1),
            pod("10.0.0.4", true, 2),
        ];
        let endpoints = plan(&service, &pods, None).unwrap();
        let ips = |addresses: &Option<Addresses>| {
            addresses.iter().flatten().map(|address| address.ip.clone()).collect::<Vec<_>>().join(",")
        };
        let subsets: Vec<_> = endpoints
            .subsets
            .iter()
            .flatten()
            .map(|s| (ips(&s.addresses), ips(&s.not_ready_addresses), s.ports.as_ref().unwrap()[0].port))
            .collect();
        assert_eq!(
            subsets,
            [
                ("10.0.0.1,10.0.0.2".to_owned(), "10.0.0.3".to_owned(), 1),
                ("10.0.0.4".to_owned(), String::new(), 2)
            ]
        );
        assert!(plan(&service, &pods, Some(&endpoints)).is_none());
        assert!(is_managed(&endpoints));
    }

    #[test]
    fn more_than_a_thousand_addresses_are_truncated_not_ready_ones_first() {
        let service = Service { spec: Some(Default::default()), ..Service::default() };
        let pods: Vec<Arc<Pod>> =
            (0..1_100).map(|n| pod(&format!("10.0.{}.{}", n / 200, n % 200), n >= 200, 1)).collect();
        let endpoints = plan(&service, &pods, None).unwrap();
        let subset = &endpoints.subsets.unwrap()[0];
        assert_eq!(
            (subset.addresses.as_ref().unwrap().len(), subset.not_ready_addresses.as_ref().unwrap().len()),
            (900, 100)
        );
        assert_eq!(endpoints.metadata.annotations.unwrap()[OVER_CAPACITY], "truncated");
    }
}
