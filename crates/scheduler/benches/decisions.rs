//! Decisions a second on one thread, on 5,000 nodes. Budgets: 5,000 plain, 1,000 with affinity and spread,
//! with 50,000 pods in place; and the cost must not grow with their number.

use std::sync::Arc;
use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use scheduler::Config;
use scheduler::node::NodeFacts;
use scheduler::pod::PodInfo;
use scheduler::schedule::{Nominations, Scope, prepare, schedule};
use scheduler::snapshot::Snapshot;
use serde_json::{Value, json};

const NODES: usize = 5_000;
const APPS: usize = 1_000;
const ZONES: usize = 10;

fn cluster(pods: usize) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for at in 0..NODES {
        let name = format!("node-{at}");
        let node = json!({
            "metadata": {"labels": {
                "kubernetes.io/hostname": name,
                "topology.kubernetes.io/zone": format!("zone-{}", at % ZONES),
            }},
            "status": {"allocatable": {"cpu": "32", "memory": "128Gi", "pods": "110"}},
        });
        let node = serde_json::from_value(node).expect("a node");
        snapshot.set_node_facts(&name, NodeFacts::new(&node));
    }
    for at in 0..pods {
        let app = at % APPS;
        let pod =
            pod(&format!("old-{at}"), app, if app.is_multiple_of(2) { demanding(app) } else { json!({}) });
        snapshot.place_pod(pod, &format!("node-{}", (at * 7) % NODES), false);
    }
    snapshot
}

fn pod(name: &str, app: usize, mut spec: Value) -> Arc<PodInfo> {
    spec["containers"] = json!([{
        "name": "main", "image": "app:1", "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
    }]);
    let labels = json!({"app": format!("app-{app}"), "pod-template-hash": "5d4f8c7b9"});
    let pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": labels},
        "spec": spec,
    });
    Arc::new(PodInfo::new(&serde_json::from_value(pod).expect("a pod")))
}

/// Apart from its own kind on nodes, near its own kind in zones, and spread over both.
fn demanding(app: usize) -> Value {
    let own = json!({"matchLabels": {"app": format!("app-{app}")}});
    let zone = "topology.kubernetes.io/zone";
    let host = "kubernetes.io/hostname";
    json!({
        "affinity": {
            "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"labelSelector": own, "topologyKey": host}]},
            "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 10, "podAffinityTerm": {"labelSelector": own, "topologyKey": zone}}]},
        },
        "topologySpreadConstraints": [
            {"topologyKey": zone, "maxSkew": 5, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": own},
            {"topologyKey": host, "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": own},
        ],
    })
}

fn run(pods: usize, decisions: usize, spec: impl Fn(usize) -> Value) -> f64 {
    let mut snapshot = cluster(pods);
    let framework = Config::default().profiles.remove(0);
    let nominations = Nominations::default();
    let mut rng = SmallRng::seed_from_u64(1);
    let mut cursor = 0;
    let waiting: Vec<_> =
        (0..decisions).map(|at| pod(&format!("new-{at}"), at % APPS, spec(at % APPS))).collect();
    let start = Instant::now();
    for pod in waiting {
        prepare(&mut snapshot, &framework, &pod);
        let scope = Scope { snapshot: &snapshot, framework: &framework, nominations: &nominations };
        let choice = schedule(scope, &pod, &mut cursor, &mut rng).expect("there is room");
        let node = Arc::clone(&snapshot.node(choice.node).name);
        snapshot.place_pod(pod, &node, true);
    }
    decisions as f64 / start.elapsed().as_secs_f64()
}

#[expect(clippy::print_stdout, reason = "the result is for a person to read")]
fn main() {
    for pods in [5_000, 50_000] {
        println!("{pods} pods in place, plain: {:.0} decisions/s", run(pods, 5_000, |_| json!({})));
        println!("{pods} pods in place, demanding: {:.0} decisions/s", run(pods, 3_000, demanding));
    }
}
