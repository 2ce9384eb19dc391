//! Namespaces, priority classes, and what describes the API server itself to the cluster.

use std::net::IpAddr;

use meta::names::GroupResource;
use serde_json::{Value, json};

use super::{BootstrapObject, BootstrapOptions};

const NAMESPACES: [&str; 4] = ["kube-system", "default", "kube-public", "kube-node-lease"];

const PRIORITY_CLASSES: [(&str, i64, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];

/// Namespaces first: other objects stand in them.
pub(super) fn namespaces() -> Vec<BootstrapObject> {
    let namespace = |name: &str| {
        json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            "spec": {"finalizers": ["kubernetes"]},
            "status": {"phase": "Active"},
        })
    };
    NAMESPACES.iter().map(|name| (GroupResource::new("", "namespaces"), namespace(name))).collect()
}

pub(super) fn objects(options: &BootstrapOptions) -> Vec<BootstrapObject> {
    let mut objects: Vec<BootstrapObject> = PRIORITY_CLASSES
        .iter()
        .map(|(name, value, description)| {
            let class = json!({
                "apiVersion": "scheduling.k8s.io/v1",
                "kind": "PriorityClass",
                "metadata": {"name": name},
                "value": value,
                "description": description,
                "preemptionPolicy": "PreemptLowerPriority",
            });
            (GroupResource::new("scheduling.k8s.io", "priorityclasses"), class)
        })
        .collect();
    objects.push((GroupResource::new("", "configmaps"), authentication(options)));
    objects.push((GroupResource::new("networking.k8s.io", "servicecidrs"), service_cidr(options)));
    objects.push((GroupResource::new("", "services"), service(options)));
    objects.push((GroupResource::new("", "endpoints"), endpoints(options)));
    objects.push((GroupResource::new("discovery.k8s.io", "endpointslices"), endpoint_slice(options)));
    objects
}

/// Where extension API servers learn whom to trust.
fn authentication(options: &BootstrapOptions) -> Value {
    let mut data = json!({});
    if let Some(bundle) = &options.client_ca {
        data["client-ca-file"] = bundle.as_str().into();
    }
    if let Some((bundle, headers)) = &options.request_header {
        // Each value is itself a JSON list.
        let list = |names: &[String]| Value::from(json!(names).to_string());
        data["requestheader-client-ca-file"] = bundle.as_str().into();
        data["requestheader-allowed-names"] = list(&headers.allowed_names);
        data["requestheader-username-headers"] = list(&headers.username_headers);
        data["requestheader-uid-headers"] = list(&headers.uid_headers);
        data["requestheader-group-headers"] = list(&headers.group_headers);
        data["requestheader-extra-headers-prefix"] = list(&headers.extra_prefixes);
    }
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"namespace": "kube-system", "name": "extension-apiserver-authentication"},
        "data": data,
    })
}

fn service_cidr(options: &BootstrapOptions) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": options.service_cidrs},
        "status": {"conditions": [{
            "type": "Ready",
            "status": "True",
            "reason": "",
            "message": "Kubernetes default Service CIDR is ready",
            "lastTransitionTime": meta::time::format(options.now),
        }]},
    })
}

fn service(options: &BootstrapOptions) -> Value {
    let ip = options.service_ip.to_string();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "namespace": "default",
            "name": "kubernetes",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ipFamilies": [family(options.service_ip)],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": options.port}],
            "sessionAffinity": "None",
            "type": "ClusterIP",
        },
        "status": {"loadBalancer": {}},
    })
}

fn endpoints(options: &BootstrapOptions) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "namespace": "default",
            "name": "kubernetes",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": [{"ip": options.advertise_address.to_string()}],
            "ports": [{"name": "https", "port": options.port, "protocol": "TCP"}],
        }],
    })
}

fn endpoint_slice(options: &BootstrapOptions) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "default",
            "name": "kubernetes",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": family(options.advertise_address),
        "endpoints": [{
            "addresses": [options.advertise_address.to_string()],
            "conditions": {"ready": true},
        }],
        "ports": [{"name": "https", "port": options.port, "protocol": "TCP"}],
    })
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}
