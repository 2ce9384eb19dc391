//! Which devices the claims of a pod get, and where.

use std::sync::Arc;

use scheduler::pod::PodInfo;
use serde_json::{Value, json};

use crate::fixture::{Cluster, pod};

const DRIVER: &str = "gpu.example.com";

fn device(name: &str, model: &str, memory: &str, extra: Value) -> Value {
    let mut device = json!({
        "name": name,
        "attributes": {"model": {"string": model}, "numa": {"int": 1}},
        "capacity": {"memory": {"value": memory}},
    });
    crate::fixture::merge(&mut device, &extra);
    device
}

fn slice(cluster: &mut Cluster, node: &str, devices: Value, count: i64) {
    let slice = json!({
        "metadata": {"name": format!("slice-{node}")},
        "spec": {
            "driver": DRIVER, "nodeName": node, "devices": devices,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": count},
        },
    });
    let slice = serde_json::from_value(slice).expect("a slice");
    cluster.snapshot.devices.set_slice(format!("slice-{node}"), Some(Arc::new(slice)));
}

fn claim(cluster: &mut Cluster, name: &str, devices: Value) -> Arc<PodInfo> {
    let claim = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {"devices": devices},
    });
    let claim = serde_json::from_value(claim).expect("a claim");
    cluster.snapshot.devices.set_claim(format!("default/{name}"), Some(Arc::new(claim)));
    pod(
        &format!("pod-{name}"),
        json!({"spec": {"resourceClaims": [{"name": "gpu", "resourceClaimName": name}]}}),
    )
}

/// One request, for a class of every device of the driver.
fn request(over: Value) -> Value {
    let mut own = json!({"deviceClassName": "gpu"});
    crate::fixture::merge(&mut own, &over);
    json!({"requests": [{"name": "main", "exactly": own}]})
}

fn selecting(expression: &str) -> Value {
    request(json!({"selectors": [{"cel": {"expression": expression}}]}))
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new(&[("a", json!({})), ("b", json!({}))]);
    let expression = format!("device.driver == '{DRIVER}'");
    let class =
        json!({"metadata": {"name": "gpu"}, "spec": {"selectors": [{"cel": {"expression": expression}}]}});
    let class = serde_json::from_value(class).expect("a class");
    cluster.snapshot.devices.set_class("gpu".to_owned(), Some(Arc::new(class)));
    slice(&mut cluster, "a", json!([device("a0", "x", "8Gi", json!({}))]), 1);
    slice(
        &mut cluster,
        "b",
        json!([device("b0", "y", "16Gi", json!({})), device("b1", "y", "16Gi", json!({}))]),
        1,
    );
    cluster
}

/// Decides and holds what was found; the node and the devices, or the message.
fn outcome(cluster: &mut Cluster, pod: &PodInfo) -> String {
    let node = match cluster.decide(pod) {
        Ok(node) => node,
        Err(error) => return error.to_string(),
    };
    let idx = cluster.snapshot.node_named(&node).expect("the node").idx;
    for plugin in cluster.framework.reserves.clone() {
        plugin.reserve(&mut cluster.snapshot, pod, idx).expect("what fits can be held");
    }
    let held = cluster.snapshot.devices.held_by(&pod.uid).iter();
    let results =
        held.filter_map(|own| own.allocation.as_ref()?.devices.as_ref()?.results.as_ref()).flatten();
    let names: Vec<String> = results.map(|result| format!("{}={}", result.request, result.device)).collect();
    format!("{node} {}", names.join(" "))
}

#[test]
fn a_claim_gets_a_device_that_its_selectors_choose_and_nobody_else_has() {
    let mut cluster = cluster();
    let model = selecting(&format!("device.attributes['{DRIVER}'].model == 'x'"));
    let first = claim(&mut cluster, "first", model.clone());
    assert_eq!(outcome(&mut cluster, &first), "a main=a0");
    let second = claim(&mut cluster, "second", model);
    assert_eq!(outcome(&mut cluster, &second), "0/2 nodes are available: 2 cannot allocate all claims.");
    for plugin in cluster.framework.reserves.clone() {
        plugin.unreserve(&mut cluster.snapshot, &first);
    }
    assert_eq!(outcome(&mut cluster, &second), "a main=a0");
}

#[test]
fn selectors_compare_capacities_and_failing_ones_choose_nothing() {
    let memory = format!("device.capacity['{DRIVER}'].memory.compareTo(quantity('10Gi')) >= 0");
    let none = "0/2 nodes are available: 2 cannot allocate all claims.";
    for (expression, expected) in [
        (memory.as_str(), "b main=b0"),
        ("device.attributes['gpu.example.com'].numa == 2", none),
        ("device.attributes['gpu.example.com'].missing == 'x'", none),
        ("not an expression", none),
    ] {
        let mut cluster = cluster();
        let pod = claim(&mut cluster, "c", selecting(expression));
        assert_eq!(outcome(&mut cluster, &pod), expected, "{expression}");
    }
}

#[test]
fn counts_alternatives_and_constraints_choose_the_node() {
    let apart = json!({
        "requests": [
            {"name": "one", "exactly": {"deviceClassName": "gpu"}},
            {"name": "two", "exactly": {"deviceClassName": "gpu"}},
        ],
        "constraints": [{"matchAttribute": "gpu.example.com/model"}],
    });
    let alternatives = json!({"requests": [{"name": "main", "firstAvailable": [
        {"name": "three", "deviceClassName": "gpu", "count": 3},
        {"name": "two", "deviceClassName": "gpu", "count": 2},
    ]}]});
    for (devices, expected) in [
        (request(json!({"count": 2})), "b main=b0 main=b1"),
        (request(json!({"count": 3})), "0/2 nodes are available: 2 cannot allocate all claims."),
        (alternatives, "b main/two=b0 main/two=b1"),
        (apart, "b one=b0 two=b1"),
    ] {
        let mut cluster = cluster();
        let pod = claim(&mut cluster, "c", devices.clone());
        assert_eq!(outcome(&mut cluster, &pod), expected, "{devices}");
    }
}

#[test]
fn tainted_devices_and_incomplete_pools_are_left_alone() {
    let taint = json!({"taints": [{"key": "broken", "effect": "NoSchedule"}]});
    let none = "0/2 nodes are available: 2 cannot allocate all claims.";
    let tolerant = request(json!({"tolerations": [{"key": "broken", "operator": "Exists"}]}));
    for (devices, count, expected) in
        [(request(json!({})), 1, none), (tolerant.clone(), 1, "a main=a0"), (tolerant, 2, none)]
    {
        let mut cluster = cluster();
        slice(&mut cluster, "a", json!([device("a0", "x", "8Gi", taint.clone())]), count);
        slice(&mut cluster, "b", json!([]), 1);
        let pod = claim(&mut cluster, "c", devices);
        assert_eq!(outcome(&mut cluster, &pod), expected);
    }
}

#[test]
fn a_pod_is_told_what_its_claim_lacks() {
    let mut cluster = cluster();
    let unknown = claim(
        &mut cluster,
        "c",
        json!({"requests": [{"name": "main", "exactly": {"deviceClassName": "tpu"}}]}),
    );
    assert_eq!(
        outcome(&mut cluster, &unknown),
        "0/2 nodes are available: request main: device class tpu does not exist."
    );
    let orphan =
        pod("p", json!({"spec": {"resourceClaims": [{"name": "gpu", "resourceClaimName": "gone"}]}}));
    assert_eq!(
        outcome(&mut cluster, &orphan),
        "0/2 nodes are available: resourceclaim.resource.k8s.io \"gone\" not found."
    );
}
