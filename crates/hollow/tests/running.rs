//! Hollow nodes against an API: what they write, and when.

#[path = "../../scheduler/tests/suite/api.rs"]
#[expect(dead_code, reason = "the scheduler's tests ask more of it")]
mod api;

use std::time::Duration;

use api::{Api, State, merge};
use hollow::{Options, POWER_ANNOTATION};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const PODS: &str = "/api/v1/pods";
const NODES: &str = "/api/v1/nodes";

fn pod(name: &str, node: &str, over: &Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "app"}]},
        "status": {"phase": "Pending"},
    });
    merge(&mut pod, over);
    pod
}

fn phase<'a>(state: &'a State, name: &str) -> &'a str {
    state.pod(name)["status"]["phase"].as_str().unwrap_or("gone")
}

fn start(options: Options) -> (Api, CancellationToken, tokio::task::JoinHandle<()>) {
    let (api, shutdown) = (Api::new(), CancellationToken::new());
    let task = tokio::spawn(hollow::run(2, api.client(), options, shutdown.clone()));
    (api, shutdown, task)
}

#[tokio::test]
async fn nodes_register_and_their_pods_run_complete_and_go() {
    let options = Options { run_time: Duration::ZERO, zones: 2, ..Options::default() };
    let (api, shutdown, task) = start(options);
    api.until("registered with leases", |state| {
        ["hollow-0", "hollow-1"].iter().all(|name| {
            let node = state.get(NODES, name).unwrap_or(&Value::Null);
            let ready = &node["status"]["conditions"][3];
            let lease = state.get("/apis/coordination.k8s.io/v1/leases", name);
            ready["type"] == "Ready"
                && ready["status"] == "True"
                && lease.is_some_and(|lease| lease["spec"]["holderIdentity"] == *name)
        })
    })
    .await;
    for (name, node) in [("a", "hollow-0"), ("b", "hollow-0"), ("c", "hollow-1"), ("other", "elsewhere")] {
        api.put(PODS, &pod(name, node, &json!({})));
    }
    api.put(PODS, &pod("job", "hollow-1", &json!({"spec": {"restartPolicy": "Never"}})));
    api.until("running, and the job done", |state| {
        ["a", "b", "c"].iter().all(|name| phase(state, name) == "Running")
            && phase(state, "job") == "Succeeded"
    })
    .await;
    api.change(|state| {
        let ip = |name: &str| state.pod(name)["status"]["podIP"].clone();
        assert!(ip("a") != ip("b") && ip("b") != ip("c") && ip("a") != ip("c"));
        assert_eq!(phase(state, "other"), "Pending");
    });
    let leaving =
        json!({"metadata": {"deletionTimestamp": "2024-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30}});
    api.put(
        PODS,
        &pod("a", "hollow-0", &json!({"metadata": leaving["metadata"], "status": {"phase": "Running"}})),
    );
    api.until("gone", |state| phase(state, "a") == "gone").await;
    shutdown.cancel();
    task.await.expect("the nodes end");
}

#[tokio::test]
async fn a_node_without_power_does_nothing_until_it_is_back() {
    let (api, shutdown, task) = start(Options::default());
    api.until("registered", |state| {
        state.get(NODES, "hollow-0").is_some() && state.get(NODES, "hollow-1").is_some()
    })
    .await;
    let power =
        |power: &str| json!({"metadata": {"name": "hollow-0", "annotations": {POWER_ANNOTATION: power}}});
    api.put(NODES, &power("off"));
    api.put(PODS, &pod("frozen", "hollow-0", &json!({})));
    api.put(PODS, &pod("live", "hollow-1", &json!({})));
    api.until("the other runs", |state| phase(state, "live") == "Running").await;
    api.change(|state| assert_eq!(phase(state, "frozen"), "Pending"));
    api.put(NODES, &power("on"));
    api.until("thawed", |state| phase(state, "frozen") == "Running").await;
    shutdown.cancel();
    task.await.expect("the nodes end");
}
