//! The whole scheduler against an API: what it writes, and when.

use std::time::Duration;

use scheduler::Config;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::fixture::merge;

const PODS: &str = "/api/v1/pods";
const NODES: &str = "/api/v1/nodes";
const CLAIMS: &str = "/api/v1/persistentvolumeclaims";

struct Running {
    api: Api,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(prepare: impl FnOnce(&Api)) -> Self {
        let api = Api::new();
        prepare(&api);
        let mut config = Config::default();
        config.leader_election.leader_elect = false;
        config.initial_backoff = Duration::from_millis(20);
        config.identity = "test".to_owned();
        let shutdown = CancellationToken::new();
        let (client, token) = (api.client(), shutdown.clone());
        let task = tokio::spawn(async move {
            scheduler::run(config, client, token).await.expect("no election, nothing to lose");
        });
        Self { api, shutdown, task }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.expect("the scheduler ends");
    }
}

fn node(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "10"}}})
}

fn pod(name: &str, cpu: &str, over: &Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {
            "schedulerName": "default-scheduler",
            "containers": [{"name": "main", "resources": {"requests": {"cpu": cpu}}}],
        },
        "status": {"phase": "Pending"},
    });
    merge(&mut pod, over);
    pod
}

fn condition(pod: &Value) -> (&str, &str) {
    let own = &pod["status"]["conditions"][0];
    (own["reason"].as_str().unwrap_or_default(), own["message"].as_str().unwrap_or_default())
}

#[tokio::test]
async fn pods_are_bound_once_each_and_never_beyond_the_room_there_is() {
    let running = Running::start(|api| {
        api.put(NODES, &node("a", "2"));
        api.put(NODES, &node("b", "2"));
        for at in 0..4 {
            api.put(PODS, &pod(&format!("p{at}"), "1", &json!({})));
        }
        api.put(PODS, &pod("elsewhere", "1", &json!({"spec": {"schedulerName": "another"}})));
    });
    running.api.until("all bound", |state| state.bindings.len() == 4).await;
    running.api.put(PODS, &pod("late", "1", &json!({})));
    let told = "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: 2 No preemption \
                victims found for incoming pod.";
    running.api.until("told why not", |state| condition(state.pod("late")) == ("Unschedulable", told)).await;
    running.api.until("in an event too", |state| state.notes("late", "FailedScheduling") == [told]).await;
    running
        .api
        .until("bindings announced", |state| {
            (0..4).all(|at| {
                let name = format!("p{at}");
                let node = state.pod(&name)["spec"]["nodeName"].as_str().unwrap_or_default();
                state.notes(&name, "Scheduled") == [format!("Successfully assigned default/{name} to {node}")]
            })
        })
        .await;
    running.api.put(NODES, &node("c", "1"));
    running.api.until("room at last", |state| state.pod("late")["spec"]["nodeName"] == "c").await;
    running.api.change(|state| {
        let mut names = state.bindings.clone();
        names.sort();
        assert_eq!(names, ["late", "p0", "p1", "p2", "p3"]);
    });
    running.stop().await;
}

#[tokio::test]
async fn a_failed_binding_gives_the_room_back_and_is_tried_again() {
    let running = Running::start(|api| {
        api.change(|state| state.failing_bindings = 2);
        api.put(NODES, &node("a", "1"));
        api.put(PODS, &pod("p", "1", &json!({})));
    });
    running.api.until("bound in the end", |state| state.bindings == ["p"]).await;
    running.stop().await;
}

#[tokio::test]
async fn a_gated_pod_waits_for_its_gates() {
    let gate = json!({"spec": {"schedulingGates": [{"name": "g"}]}});
    let running = Running::start(|api| {
        api.put(NODES, &node("a", "2"));
        api.put(PODS, &pod("gated", "1", &gate));
        api.put(PODS, &pod("free", "1", &json!({})));
    });
    running.api.until("the free one is bound", |state| !state.bindings.is_empty()).await;
    running.api.put(PODS, &pod("gated", "1", &json!({"spec": {"schedulingGates": []}})));
    running.api.until("the gated one too", |state| state.bindings == ["free", "gated"]).await;
    running.stop().await;
}

#[tokio::test]
async fn a_more_important_pod_takes_the_place_of_a_lesser_one() {
    let running = Running::start(|api| {
        api.put(NODES, &node("a", "1"));
        api.put(PODS, &pod("lesser", "1", &json!({"spec": {"nodeName": "a", "priority": 1}})));
        api.put(PODS, &pod("greater", "1", &json!({"spec": {"priority": 10}})));
    });
    running.api.until("bound in its place", |state| state.bindings == ["greater"]).await;
    running
        .api
        .until("announced", |state| {
            state.pod("lesser").is_null()
                && state.notes("lesser", "Preempted") == ["Preempted by pod uid-greater on node a"]
                && state.pod("greater")["status"]["nominatedNodeName"] == "a"
        })
        .await;
    running.stop().await;
}

#[tokio::test]
async fn a_claim_that_waits_for_its_consumer_is_provisioned_where_the_pod_goes() {
    let claim = json!({
        "metadata": {"name": "data", "namespace": "default", "uid": "uid-data"},
        "spec": {
            "storageClassName": "local", "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    });
    let running = Running::start(|api| {
        api.put(NODES, &node("a", "1"));
        api.put(
            "/apis/storage.k8s.io/v1/storageclasses",
            &json!({"metadata": {"name": "local"}, "provisioner": "example.com/local",
                "volumeBindingMode": "WaitForFirstConsumer"}),
        );
        let volumes = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
        api.put(PODS, &pod("p", "1", &json!({"spec": {"volumes": volumes}})));
    });
    let missing = "0/1 nodes are available: persistentvolumeclaim \"data\" not found. preemption: 0/1 nodes are \
                   available: 1 Preemption is not helpful for scheduling.";
    running.api.until("told what is missing", |state| condition(state.pod("p")).1 == missing).await;
    running.api.put(CLAIMS, &claim);
    let selected = "volume.kubernetes.io/selected-node";
    let chosen = |state: &crate::api::State| {
        state.get(CLAIMS, "data").is_some_and(|claim| claim["metadata"]["annotations"][selected] == "a")
    };
    running.api.until("the node is chosen", chosen).await;
    running.api.change(|state| assert!(state.bindings.is_empty(), "not before there is a volume"));
    running.api.put("/api/v1/persistentvolumes", &json!({"metadata": {"name": "v"}, "spec": {}}));
    running.api.put(
        CLAIMS,
        &json!({
            "metadata": {"name": "data", "namespace": "default",
                "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            "spec": {"volumeName": "v"},
        }),
    );
    running.api.until("bound", |state| state.bindings == ["p"]).await;
    running.stop().await;
}
