//! The objects a hollow node is made of.

use std::net::Ipv4Addr;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::Options;

/// Leases of nodes live here.
pub(crate) const LEASE_NAMESPACE: &str = "kube-node-lease";
/// How long a lease holds; upstream's default.
const LEASE_SECONDS: i32 = 40;

/// The address of the node itself, from the range set aside for benchmarks.
pub(crate) fn host_ip(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + index % (1 << 17))
}

/// The address of a node's pod, from the shared range 100.64.0.0/10: 256 for each of 16,384 nodes.
pub(crate) fn pod_ip(index: u32, pod: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + ((index % (1 << 14)) << 8) + u32::from(pod))
}

pub(crate) fn name(options: &Options, index: u32) -> String {
    format!("{}{index}", options.name_prefix)
}

pub(crate) fn node(options: &Options, index: u32, now: Timestamp) -> Result<Node, serde_json::Error> {
    let name = name(options, index);
    let mut labels = json!({
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
    });
    if options.zones > 0 {
        let zone = index as usize % options.zones;
        labels["topology.kubernetes.io/zone"] = format!("zone-{zone}").into();
        labels["topology.kubernetes.io/region"] = "hollow".into();
    }
    for (key, value) in &options.labels {
        labels[key] = value.as_str().into();
    }
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"providerID": format!("hollow://{name}")},
        "status": status(options, index, now),
    }))
}

/// What the node reports of itself.
pub(crate) fn status(options: &Options, index: u32, now: Timestamp) -> Value {
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": seconds(now), "lastTransitionTime": seconds(now),
        })
    };
    json!({
        "capacity": options.capacity,
        "allocatable": options.capacity,
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        ],
        "addresses": [
            {"type": "InternalIP", "address": host_ip(index).to_string()},
            {"type": "Hostname", "address": name(options, index)},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "nodeInfo": {
            "architecture": "amd64", "operatingSystem": "linux", "osImage": "hollow", "kernelVersion": "hollow",
            "containerRuntimeVersion": "hollow://1", "kubeletVersion": "v1.36.0+coracle",
            "kubeProxyVersion": "", "machineID": "", "systemUUID": "", "bootID": "",
        },
    })
}

pub(crate) fn lease(node: &str, uid: &str, now: Timestamp) -> Result<Lease, serde_json::Error> {
    serde_json::from_value(json!({
        "metadata": {
            "name": node,
            "namespace": LEASE_NAMESPACE,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}],
        },
        "spec": {"holderIdentity": node, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": micro(now)},
    }))
}

pub(crate) fn renewal(now: Timestamp) -> Value {
    json!({"spec": {"renewTime": micro(now)}})
}

pub(crate) fn seconds(time: Timestamp) -> String {
    meta::time::format(time)
}

fn micro(time: Timestamp) -> String {
    meta::time::format_micro(time)
}
