//! Which slices a service is to have, changing as few as possible.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::claims::owner_reference;
use crate::pods::{self, label};
use crate::service_pods::{self, HEADLESS_LABEL};

pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// `--max-endpoints-per-slice`.
const MAX_ENDPOINTS: usize = 100;

/// Name, protocol, number, application protocol.
type Port = (String, String, Option<i32>, Option<String>);
/// What makes slices differ: family and ports.
type Group = (&'static str, Vec<Port>);

#[derive(Debug)]
pub(super) enum Step {
    Create(Box<EndpointSlice>),
    Update(Box<EndpointSlice>),
    Delete(Box<EndpointSlice>),
}

pub(super) fn zone(node: &Node) -> Option<String> {
    label(&node.metadata, "topology.kubernetes.io/zone").map(str::to_owned)
}

/// The endpoints there should be; every family of the service has a group, if only an empty one.
pub(super) fn desired(
    service: &Service,
    pods: &[Arc<Pod>],
    zone_of: impl Fn(&str) -> Option<String>,
) -> BTreeMap<Group, Vec<Endpoint>> {
    let mut groups: BTreeMap<Group, Vec<Endpoint>> = BTreeMap::new();
    for family in families(service) {
        let mut any = false;
        for pod in pods.iter().filter(|pod| !pods::is_terminal(pod)) {
            let of_family = |address: &String| family_of(address) == Some(family);
            let Some(address) = service_pods::addresses(pod).into_iter().find(of_family) else { continue };
            let endpoint = endpoint(service, pod, address, &zone_of);
            groups.entry((family, ports(service, pod))).or_default().push(endpoint);
            any = true;
        }
        if !any {
            groups.insert((family, Vec::new()), Vec::new());
        }
    }
    groups
}

pub(super) fn plan(
    service: &Service,
    mut desired: BTreeMap<Group, Vec<Endpoint>>,
    existing: &[Arc<EndpointSlice>],
    now: Timestamp,
) -> Vec<Step> {
    let mut by_group: BTreeMap<Group, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in existing {
        by_group.entry(group_of(slice)).or_default().push(slice);
    }
    let mut steps = Vec::new();
    for (group, endpoints) in &mut desired {
        let slices = by_group.remove(group).unwrap_or_default();
        plan_group(service, group, std::mem::take(endpoints), &slices, now, &mut steps);
    }
    let leftover = by_group.into_values().flatten();
    steps.extend(leftover.map(|slice| Step::Delete(Box::new(slice.clone()))));
    steps
}

fn plan_group(
    service: &Service,
    group: &Group,
    endpoints: Vec<Endpoint>,
    slices: &[&EndpointSlice],
    now: Timestamp,
    steps: &mut Vec<Step>,
) {
    let mut missing: BTreeMap<(String, String), Endpoint> =
        endpoints.into_iter().map(|endpoint| (identity(&endpoint), endpoint)).collect();
    // First every endpoint stays where it is.
    let mut kept: Vec<(&EndpointSlice, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let stay = slice.endpoints.iter().flatten().filter_map(|old| missing.remove(&identity(old)));
        let stay: Vec<Endpoint> = stay.take(MAX_ENDPOINTS).collect();
        kept.push((slice, stay));
    }
    // Then new ones fill slices that change anyway, then those that have room.
    let mut missing = missing.into_values();
    for changed_only in [true, false] {
        for (slice, endpoints) in &mut kept {
            if changed_only && slice.endpoints.as_ref().unwrap_or(&Vec::new()) == endpoints {
                continue;
            }
            endpoints.extend(missing.by_ref().take(MAX_ENDPOINTS.saturating_sub(endpoints.len())));
        }
    }
    let missing: Vec<Endpoint> = missing.collect();
    let mut survivors = kept.iter().filter(|(_, endpoints)| !endpoints.is_empty()).count() + missing.len();
    for (slice, endpoints) in kept {
        // One slice stays, though empty, so that consumers see that there are no endpoints.
        if endpoints.is_empty() && survivors > 0 {
            steps.push(Step::Delete(Box::new(slice.clone())));
            continue;
        }
        survivors += 1;
        let mut wanted = build(service, group, endpoints);
        wanted.metadata.name = slice.metadata.name.clone();
        wanted.metadata.generate_name = slice.metadata.generate_name.clone();
        wanted.metadata.uid = slice.metadata.uid.clone();
        wanted.metadata.resource_version = slice.metadata.resource_version.clone();
        wanted.metadata.annotations = slice.metadata.annotations.clone();
        if !same(slice, &wanted) {
            stamp(&mut wanted, now);
            steps.push(Step::Update(Box::new(wanted)));
        }
    }
    let mut chunks: Vec<Vec<Endpoint>> = missing.chunks(MAX_ENDPOINTS).map(<[Endpoint]>::to_vec).collect();
    if chunks.is_empty() && survivors == 0 {
        chunks.push(Vec::new());
    }
    for endpoints in chunks {
        let mut slice = build(service, group, endpoints);
        stamp(&mut slice, now);
        steps.push(Step::Create(Box::new(slice)));
    }
}

fn same(old: &EndpointSlice, new: &EndpointSlice) -> bool {
    old.endpoints.as_deref().unwrap_or_default() == new.endpoints.as_deref().unwrap_or_default()
        && old.metadata.labels == new.metadata.labels
        && old.metadata.owner_references == new.metadata.owner_references
}

fn stamp(slice: &mut EndpointSlice, now: Timestamp) {
    let time = pods::whole_seconds(now).0.to_string();
    slice.metadata.annotations.get_or_insert_default().insert(TRIGGER_TIME.to_owned(), time);
}

fn build(service: &Service, (family, ports): &Group, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS_LABEL);
    if service_pods::is_headless(service) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), pods::name(&service.metadata).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let port = |(name, protocol, number, app_protocol): &Port| EndpointPort {
        name: Some(name.clone()),
        protocol: Some(protocol.clone()),
        port: *number,
        app_protocol: app_protocol.clone(),
    };
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", pods::name(&service.metadata))),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: owner_reference(service).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        address_type: (*family).to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports.iter().map(port).collect()),
    }
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    address: String,
    zone_of: &impl Fn(&str) -> Option<String>,
) -> Endpoint {
    let (serving, terminating) = (pods::is_ready(pod), pods::is_terminating(pod));
    let ready = service_pods::publishes_not_ready(service) || (serving && !terminating);
    let node_name = Some(pods::node_name(pod).to_owned()).filter(|node| !node.is_empty());
    let zone = node_name.as_deref().and_then(zone_of);
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hints: hints(service, ready, zone.as_deref(), node_name.as_deref()),
        hostname: service_pods::hostname(pod, service),
        node_name,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        zone,
        ..Endpoint::default()
    }
}

/// Where traffic for the endpoint should come from, by `spec.trafficDistribution` (KEP-4444, KEP-3015).
fn hints(service: &Service, ready: bool, zone: Option<&str>, node: Option<&str>) -> Option<EndpointHints> {
    let distribution = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let zones = |zone: &str| vec![ForZone { name: zone.to_owned() }];
    let nodes = |node: &str| vec![ForNode { name: node.to_owned() }];
    match distribution {
        _ if !ready => None,
        "PreferClose" | "PreferSameZone" => {
            zone.map(|zone| EndpointHints { for_zones: Some(zones(zone)), for_nodes: None })
        }
        "PreferSameNode" => {
            node.map(|node| EndpointHints { for_zones: zone.map(zones), for_nodes: Some(nodes(node)) })
        }
        _ => None,
    }
}

fn families(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.as_ref();
    let listed = spec.and_then(|spec| spec.ip_families.as_ref()).filter(|families| !families.is_empty());
    let known = |family: &String| if family == "IPv6" { "IPv6" } else { "IPv4" };
    if let Some(families) = listed {
        return families.iter().map(known).collect();
    }
    let address = spec.and_then(|spec| spec.cluster_ip.as_ref());
    vec![address.and_then(|address| family_of(address.as_str())).unwrap_or("IPv4")]
}

fn family_of(address: &str) -> Option<&'static str> {
    match address.parse().ok()? {
        IpAddr::V4(_) => Some("IPv4"),
        IpAddr::V6(_) => Some("IPv6"),
    }
}

fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let mut ports: Vec<Port> = ports
        .filter_map(|port| {
            let number = service_pods::target_port(pod, port)?;
            let name = port.name.clone().unwrap_or_default();
            Some((name, service_pods::protocol(port).to_owned(), Some(number), port.app_protocol.clone()))
        })
        .collect();
    ports.sort();
    ports
}

fn group_of(slice: &EndpointSlice) -> Group {
    let family = match slice.address_type.as_str() {
        "IPv6" => "IPv6",
        "IPv4" => "IPv4",
        _ => "FQDN",
    };
    let port = |port: &EndpointPort| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        (port.name.clone().unwrap_or_default(), protocol, port.port, port.app_protocol.clone())
    };
    let mut ports: Vec<Port> = slice.ports.iter().flatten().map(port).collect();
    ports.sort();
    (family, ports)
}

fn identity(endpoint: &Endpoint) -> (String, String) {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
    (endpoint.addresses.first().cloned().unwrap_or_default(), uid.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        let metadata = json!({"name": "web", "namespace": "default", "uid": "s", "labels": {"a": "b"}});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    fn pod(n: usize, status: Value) -> Arc<Pod> {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let mut pod = json!({
            "metadata": {"name": format!("p{n}"), "namespace": "default", "uid": format!("u{n}")},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080 + n % 2}]}]},
            "status": {"phase": "Running", "podIP": format!("10.0.{}.{}", n / 250, n % 250 + 1), "conditions": ready},
        });
        for (key, value) in status.as_object().unwrap() {
            pod[key.as_str()] = value.clone();
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    /// Carries out the steps and says what they were: `+` create, `~` update, `-` delete, with the endpoints' count.
    fn apply(service: &Service, pods: &[Arc<Pod>], slices: &mut Vec<Arc<EndpointSlice>>) -> String {
        let groups = desired(service, pods, |node| (node == "n1").then(|| "z1".to_owned()));
        let mut log: Vec<String> = Vec::new();
        for step in plan(service, groups, slices, Timestamp::UNIX_EPOCH) {
            let count = |slice: &EndpointSlice| slice.endpoints.iter().flatten().count();
            match step {
                Step::Create(mut slice) => {
                    log.push(format!("+{}", count(&slice)));
                    slice.metadata.name = Some(format!("web-{}-{}", slices.len(), log.len()));
                    slices.push(Arc::new(*slice));
                }
                Step::Update(slice) => {
                    log.push(format!("~{}", count(&slice)));
                    let at = slices.iter().position(|old| old.metadata.name == slice.metadata.name).unwrap();
                    slices[at] = Arc::new(*slice);
                }
                Step::Delete(slice) => {
                    log.push(format!("-{}", count(&slice)));
                    slices.retain(|old| old.metadata.name != slice.metadata.name);
                }
            }
        }
        log.sort();
        log.join(" ")
    }

    #[test]
    fn slices_are_filled_kept_and_removed() {
        let service = service(json!({"ports": [{"port": 80}], "ipFamilies": ["IPv4"]}));
        let pods: Vec<Arc<Pod>> = (0..150).map(|n| pod(n, json!({}))).collect();
        let mut slices = Vec::new();
        assert_eq!(apply(&service, &[], &mut slices), "+0", "an empty slice says there is nothing");
        assert_eq!(apply(&service, &pods[..1], &mut slices), "+1 -0");
        assert_eq!(apply(&service, &pods[..120], &mut slices), "+20 ~100");
        assert_eq!(apply(&service, &pods[..120], &mut slices), "");
        assert_eq!(apply(&service, &pods[..121], &mut slices), "~21");
        assert_eq!(apply(&service, &pods[..2], &mut slices), "-21 ~2");
        assert_eq!(apply(&service, &[], &mut slices), "+0 -2");
    }

    #[test]
    fn pods_with_other_numbers_for_a_named_port_get_slices_of_their_own() {
        let service = service(json!({"ports": [{"name": "w", "port": 80, "targetPort": "http"}]}));
        let mut slices = Vec::new();
        let pods: Vec<Arc<Pod>> = (0..3).map(|n| pod(n, json!({}))).collect();
        assert_eq!(apply(&service, &pods, &mut slices), "+1 +2");
        let numbers: Vec<_> = slices.iter().map(|slice| slice.ports.as_ref().unwrap()[0].port).collect();
        assert_eq!(numbers, [Some(8080), Some(8081)]);
    }

    #[test]
    fn conditions_follow_the_pod() {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let going =
            json!({"metadata": {"name": "p", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let unready = json!({"status": {"phase": "Running", "podIP": "10.0.0.1"}});
        let done = json!({"status": {"phase": "Succeeded", "podIP": "10.0.0.1", "conditions": ready}});
        let table = [
            (false, json!({}), vec![(true, true, false)]),
            (false, going, vec![(false, true, true)]),
            (false, unready.clone(), vec![(false, false, false)]),
            (true, unready, vec![(true, false, false)]),
            (true, done, vec![]),
            (false, json!({"status": {"phase": "Pending"}}), vec![]),
        ];
        for (publish, status, expected) in table {
            let service = service(json!({"publishNotReadyAddresses": publish}));
            let groups = desired(&service, &[pod(0, status.clone())], |_| None);
            let conditions = |endpoint: &Endpoint| {
                let conditions = endpoint.conditions.clone().unwrap();
                (conditions.ready.unwrap(), conditions.serving.unwrap(), conditions.terminating.unwrap())
            };
            let found: Vec<_> = groups.values().flatten().map(conditions).collect();
            assert_eq!(found, expected, "{status}");
        }
    }

    #[test]
    fn a_port_without_a_name_has_the_empty_name() {
        let service = service(
            json!({"clusterIP": "None", "ports": [{"port": 80}], "trafficDistribution": "PreferClose"}),
        );
        let mut slices = Vec::new();
        apply(&service, &[pod(0, json!({}))], &mut slices);
        let slice = serde_json::to_value(&*slices[0]).unwrap();
        assert_eq!(slice["ports"], json!([{"name": "", "port": 80, "protocol": "TCP"}]));
        assert_eq!(
            slice["metadata"]["labels"],
            json!({"a": "b", SERVICE_NAME: "web", MANAGED_BY: MANAGER, HEADLESS_LABEL: ""})
        );
        assert_eq!(slice["endpoints"][0]["hints"], json!({"forZones": [{"name": "z1"}]}));
    }
}
