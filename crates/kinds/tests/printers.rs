//! Rows of the server-side table, kind by kind.

use jiff::Timestamp;
use kinds::printers::{cells, conditions, scale_cells, scale_columns};
use kinds::spec::{Column, KindSpec};
use kinds::{builtin, find};
use schema::types::{Schema, Shape, Text};
use serde_json::{Value, json};

fn now() -> Timestamp {
    "2030-01-01T12:00:00Z".parse().expect("a time")
}

/// Adds a name and an age of an hour.
fn named(mut object: Value) -> Value {
    object["metadata"]["name"] = json!("x");
    object["metadata"]["creationTimestamp"] = json!("2030-01-01T09:00:00Z");
    object
}

fn check(group: &str, resource: &str, object: Value, expected: Value) {
    let spec = find(group, resource).expect(resource);
    let row = cells(spec, &spec.versions[0], &named(object), now());
    assert_eq!(Value::from(row), expected, "{group}/{resource}");
}

fn pod(spec: Value, status: Value) -> Value {
    json!({"spec": spec, "status": status})
}

/// Checks ready, status and restarts.
fn check_pod(object: Value, ready: &str, status: &str, restarts: &str) {
    let spec = find("", "pods").expect("pods");
    let row = cells(spec, &spec.versions[0], &named(object.clone()), now());
    assert_eq!(row[1..4], [json!(ready), json!(status), json!(restarts)], "{object}");
}

fn full(schema: &Schema, depth: usize) -> Value {
    match &schema.shape {
        Shape::Bool => json!(true),
        Shape::Int32 | Shape::Int64 => json!(1),
        Shape::String | Shape::Bytes | Shape::IntOrString => json!("a"),
        Shape::Quantity => json!("1"),
        Shape::Time => json!("2030-01-01T11:00:00Z"),
        Shape::MicroTime => json!("2030-01-01T11:00:00.000000Z"),
        Shape::Object(object) if depth > 0 => Value::Object(
            object
                .fields
                .iter()
                .map(|field| (field.name.to_string(), full(&field.schema, depth - 1)))
                .collect(),
        ),
        Shape::Map(map) => json!({"k": full(&map.value, depth)}),
        Shape::List(list) => json!([full(&list.item, depth)]),
        _ => Value::Null,
    }
}

#[test]
fn every_kind_has_a_cell_for_each_column() {
    for spec in builtin() {
        for version in spec.versions.iter() {
            for object in
                [full(&version.schema, 8), json!({}), json!({"spec": 1, "status": [], "metadata": ""})]
            {
                let row = cells(spec, version, &object, now());
                assert_eq!(row.len(), version.columns.len(), "{}/{}", spec.group, spec.resource);
            }
        }
    }
    assert_eq!(scale_cells(&json!({}), now()).len(), scale_columns().len());
}

#[test]
fn pods_show_what_their_containers_do() {
    let one = json!({"containers": [{"name": "c"}]});
    let container = |state: Value| json!([{"name": "c", "restartCount": 2, "ready": true, "state": state}]);
    let status = |phase: &str, state: Value| json!({"phase": phase, "containerStatuses": container(state)});
    check_pod(pod(one.clone(), json!({"phase": "Pending"})), "0/1", "Pending", "0");
    check_pod(pod(one.clone(), status("Running", json!({"running": {}}))), "1/1", "Running", "2");
    let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    check_pod(pod(one.clone(), status("Running", waiting)), "0/1", "CrashLoopBackOff", "2");
    let exited = json!({"terminated": {"exitCode": 3}});
    check_pod(pod(one.clone(), status("Failed", exited)), "0/1", "ExitCode:3", "2");
    let killed = json!({"terminated": {"signal": 9}});
    check_pod(pod(one.clone(), status("Failed", killed)), "0/1", "Signal:9", "2");
    let mut evicted = pod(one.clone(), json!({"phase": "Failed", "reason": "Evicted"}));
    check_pod(evicted.clone(), "0/1", "Evicted", "0");
    evicted["metadata"] = json!({"deletionTimestamp": "2030-01-01T11:00:00Z"});
    check_pod(evicted.clone(), "0/1", "Evicted", "0");
    evicted["status"] = json!({"phase": "Running"});
    check_pod(evicted, "0/1", "Terminating", "0");
    let gated = json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]);
    check_pod(pod(one, json!({"phase": "Pending", "conditions": gated})), "0/1", "SchedulingGated", "0");
}

#[test]
fn init_containers_and_sidecars_count() {
    let spec = json!({
        "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
        "containers": [{"name": "c"}],
    });
    let last = json!({"terminated": {"finishedAt": "2030-01-01T11:58:00Z"}});
    let status = |first: Value| {
        json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "restartCount": 1, "state": first, "lastState": last},
            {"name": "s", "restartCount": 4, "started": true, "ready": true, "state": {"running": {}}},
        ]})
    };
    let check_first = |state: Value, ready: &str, shown: &str, restarts: &str| {
        check_pod(pod(spec.clone(), status(state)), ready, shown, restarts);
    };
    check_first(json!({"running": {}}), "0/2", "Init:0/2", "1 (2m ago)");
    check_first(json!({"waiting": {"reason": "PodInitializing"}}), "0/2", "Init:0/2", "1 (2m ago)");
    check_first(json!({"waiting": {"reason": "ErrImagePull"}}), "0/2", "Init:ErrImagePull", "1 (2m ago)");
    check_first(json!({"terminated": {"exitCode": 1}}), "0/2", "Init:ExitCode:1", "1 (2m ago)");
    check_first(json!({"terminated": {"exitCode": 0}}), "1/2", "Pending", "4");
}

#[test]
fn ended_pods_are_marked() {
    let spec = find("", "pods").expect("pods");
    assert_eq!(conditions(spec, &json!({"status": {"phase": "Succeeded"}}))[0]["type"], "Completed");
    assert!(conditions(spec, &json!({"status": {"phase": "Running"}})).is_empty());
}

#[test]
fn core_rows() {
    let service = json!({"spec": {"type": "LoadBalancer", "clusterIPs": ["10.0.0.1"], "selector": {"b": "2", "a": "1"},
        "externalIPs": ["9.9.9.9"], "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "5.5.5.5"}, {"hostname": "lb"}]}}});
    let expected = json!([
        "x",
        "LoadBalancer",
        "10.0.0.1",
        "5.5.5.5,lb,9.9.9.9",
        "80:30080/TCP,53/UDP",
        "3h",
        "a=1,b=2"
    ]);
    check("", "services", service, expected);
    let node = json!({"metadata": {"labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""}},
        "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
        "addresses": [{"type": "InternalIP", "address": "10.0.0.2"}],
        "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Linux", "kernelVersion": "6", "containerRuntimeVersion": "c://1"}}});
    let expected = json!([
        "x",
        "Ready,SchedulingDisabled",
        "control-plane,worker",
        "3h",
        "v1.36.0",
        "10.0.0.2",
        "<none>",
        "Linux",
        "6",
        "c://1"
    ]);
    check("", "nodes", node, expected);
    let endpoints = json!({"subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "fd00::1"}], "ports": [{"port": 1}, {"port": 2}]}]});
    check("", "endpoints", endpoints, json!(["x", "1.1.1.1:1,[fd00::1]:1,1.1.1.1:2 + 1 more...", "3h"]));
    let claim = json!({"spec": {"volumeName": "v", "storageClassName": "fast", "volumeMode": "Block"},
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany", "ReadWriteOnce"]}});
    check(
        "",
        "persistentvolumeclaims",
        claim,
        json!(["x", "Bound", "v", "1Gi", "RWO,ROX", "fast", "<unset>", "3h", "Block"]),
    );
    let quota = json!({"status": {"hard": {"limits.cpu": "2", "pods": "10"}, "used": {"pods": "3"}}});
    check("", "resourcequotas", quota, json!(["x", "pods: 3/10", "limits.cpu: 0/2", "3h"]));
    check("", "limitranges", json!({}), json!(["x", "2030-01-01T09:00:00Z"]));
}

#[test]
fn events_read_alike_in_both_groups() {
    let old = json!({"type": "Normal", "reason": "R", "message": " m ", "count": 3, "involvedObject": {"kind": "Pod", "name": "p"},
        "source": {"component": "kubelet", "host": "n"}, "firstTimestamp": "2030-01-01T11:00:00Z", "lastTimestamp": "2030-01-01T11:59:00Z"});
    let expected = json!(["60s", "Normal", "R", "pod/p", "", "kubelet, n", "m", "60m", 3, "x"]);
    check("", "events", old, expected);
    let new = json!({"type": "Normal", "reason": "R", "note": "m", "regarding": {"kind": "Pod", "name": "p"},
        "eventTime": "2030-01-01T11:00:00.000000Z", "reportingController": "c",
        "series": {"count": 5, "lastObservedTime": "2030-01-01T11:59:30.000000Z"}});
    check(
        "events.k8s.io",
        "events",
        new,
        json!(["30s", "Normal", "R", "pod/p", "", "c", "m", "60m", 5, "x"]),
    );
}

#[test]
fn workload_rows() {
    let template =
        json!({"spec": {"containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "i:2"}]}});
    let selector = json!({"matchLabels": {"b": "1"}, "matchExpressions": [
        {"key": "a", "operator": "In", "values": ["z", "y"]}, {"key": "c", "operator": "DoesNotExist"}]});
    let deployment = json!({"spec": {"replicas": 3, "template": template, "selector": selector},
        "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1}});
    check(
        "apps",
        "deployments",
        deployment,
        json!(["x", "2/3", 3, 1, "3h", "a,b", "i:1,i:2", "a in (y,z),b=1,!c"]),
    );
    let job = |status: Value| json!({"spec": {"completions": 2, "parallelism": 1, "template": template}, "status": status});
    let done = json!({"succeeded": 2, "startTime": "2030-01-01T11:00:00Z", "completionTime": "2030-01-01T11:00:45Z",
        "conditions": [{"type": "Complete", "status": "True"}]});
    check(
        "batch",
        "jobs",
        job(done),
        json!(["x", "Complete", "2/2", "45s", "3h", "a,b", "i:1,i:2", "<none>"]),
    );
    let running = json!({"startTime": "2030-01-01T11:59:00Z"});
    check(
        "batch",
        "jobs",
        job(running),
        json!(["x", "Running", "0/2", "60s", "3h", "a,b", "i:1,i:2", "<none>"]),
    );
    let autoscaler = json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 9, "metrics": [
        {"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}},
        {"type": "Pods", "pods": {"target": {"averageValue": "1k"}}},
        {"type": "External", "external": {"target": {"value": "5"}}}]},
        "status": {"currentReplicas": 2, "currentMetrics": [{"resource": {"current": {"averageUtilization": 7}}}]}});
    let expected =
        json!(["x", "Deployment/d", "cpu: 7%/80%, <unknown>/1k + 1 more...", "<unset>", 9, 2, "3h"]);
    check("autoscaling", "horizontalpodautoscalers", autoscaler, expected);
}

#[test]
fn rows_of_the_other_groups() {
    let ingress =
        json!({"spec": {"ingressClassName": "n", "tls": [{}], "rules": [{"host": "a"}, {"host": "b"}, {}]}});
    check("networking.k8s.io", "ingresses", ingress, json!(["x", "n", "a,b", "", "80, 443", "3h"]));
    let address = json!({"spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "kubernetes"}}});
    check("networking.k8s.io", "ipaddresses", address, json!(["x", "services/default/kubernetes"]));
    check(
        "discovery.k8s.io",
        "endpointslices",
        json!({"addressType": "IPv4"}),
        json!(["x", "IPv4", "<unset>", "<unset>", "3h"]),
    );
    let class = json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "p"});
    check(
        "storage.k8s.io",
        "storageclasses",
        class,
        json!(["x (default)", "p", "Delete", "Immediate", false, "3h"]),
    );
    let claim = json!({"status": {"allocation": {}, "reservedFor": [{}]}});
    check("resource.k8s.io", "resourceclaims", claim, json!(["x", "allocated,reserved", "3h"]));
    let request = json!({"spec": {"signerName": "s", "username": "u", "expirationSeconds": 3600},
        "status": {"certificate": "AA==", "conditions": [{"type": "Approved", "status": "True"}]}});
    let expected = json!(["x", "3h", "s", "u", "60m", "Approved,Issued"]);
    check("certificates.k8s.io", "certificatesigningrequests", request, expected);
    let service = json!({"spec": {"service": {"namespace": "n", "name": "s"}},
        "status": {"conditions": [{"type": "Available", "status": "False", "reason": "MissingEndpoints"}]}});
    check(
        "apiregistration.k8s.io",
        "apiservices",
        service,
        json!(["x", "n/s", "False (MissingEndpoints)", "3h"]),
    );
    let binding = json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"},
        {"kind": "User", "name": "v"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}]});
    check(
        "rbac.authorization.k8s.io",
        "rolebindings",
        binding,
        json!(["x", "Role/r", "3h", "u, v", "", "n/s"]),
    );
}

#[test]
fn custom_columns_follow_their_paths() {
    let pods = find("", "pods").expect("pods");
    let column = |name: &'static str, r#type: &'static str, path: &'static str| Column {
        name: Text::Static(name),
        r#type: Text::Static(r#type),
        format: Text::EMPTY,
        priority: 0,
        path: Text::Static(path),
    };
    let mut version = pods.versions[0].clone();
    version.columns = [
        Column { format: Text::Static("name"), ..column("Name", "string", "") },
        column("Replicas", "integer", ".spec.replicas"),
        column("Ready", "string", ".status.conditions[?(@.type==\"Ready\")].status"),
        column("Since", "date", ".status.since"),
        column("Absent", "string", ".status.absent"),
        column("Age", "date", ".metadata.creationTimestamp"),
    ]
    .into_iter()
    .collect();
    let spec =
        KindSpec { group: Text::Static("example.com"), resource: Text::Static("foos"), ..pods.clone() };
    let object = named(json!({"spec": {"replicas": 3},
        "status": {"since": "never", "conditions": [{"type": "Ready", "status": "True"}]}}));
    let row = cells(&spec, &version, &object, now());
    assert_eq!(Value::from(row), json!(["x", 3, "True", "<invalid>", null, "3h"]));
}
