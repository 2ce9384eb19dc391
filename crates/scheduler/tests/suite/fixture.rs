//! Small clusters from a few words, and decisions as text.

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use scheduler::Config;
use scheduler::framework::{FitError, Framework};
use scheduler::node::NodeFacts;
use scheduler::pod::PodInfo;
use scheduler::preemption;
use scheduler::schedule::{Nominations, Scope, prepare, schedule};
use scheduler::snapshot::Snapshot;
use serde_json::{Value, json};

pub(crate) use crate::api::merge;

pub(crate) struct Cluster {
    pub(crate) snapshot: Snapshot,
    pub(crate) nominations: Nominations,
    pub(crate) framework: Framework,
    pub(crate) cursor: usize,
    pub(crate) rng: SmallRng,
}

pub(crate) fn pod(name: &str, over: Value) -> Arc<PodInfo> {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {"schedulerName": "default-scheduler", "containers": [{"name": "main", "image": "app:1"}]},
    });
    merge(&mut pod, &over);
    Arc::new(PodInfo::new(&serde_json::from_value(pod).expect("a pod")))
}

/// A pod that asks for some CPU.
pub(crate) fn pod_asking(name: &str, cpu: &str, over: Value) -> Arc<PodInfo> {
    let mut all =
        json!({"spec": {"containers": [{"name": "main", "resources": {"requests": {"cpu": cpu}}}]}});
    merge(&mut all, &over);
    pod(name, all)
}

/// What a pod's labels are, and its required affinity to pods labelled so, of one kind.
pub(crate) fn affinity(kind: &str, labels: Value, key: &str) -> Value {
    json!({"spec": {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": labels}, "topologyKey": key},
    ]}}}})
}

impl Cluster {
    /// Nodes of 4 CPUs and 10 pods, with their own changes.
    pub(crate) fn new(nodes: &[(&str, Value)]) -> Self {
        Self::with_config(&Config::default(), nodes)
    }

    pub(crate) fn with_config(config: &Config, nodes: &[(&str, Value)]) -> Self {
        let mut cluster = Self {
            snapshot: Snapshot::default(),
            nominations: Nominations::default(),
            framework: config.profiles[0].clone(),
            cursor: 0,
            rng: SmallRng::seed_from_u64(7),
        };
        for (name, over) in nodes {
            cluster.add_node(name, over);
        }
        cluster
    }

    pub(crate) fn add_node(&mut self, name: &str, over: &Value) {
        let mut node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}},
        });
        merge(&mut node, over);
        let node = serde_json::from_value(node).expect("a node");
        self.snapshot.set_node_facts(name, NodeFacts::new(&node));
    }

    pub(crate) fn place(&mut self, node: &str, pod: Arc<PodInfo>) {
        self.snapshot.place_pod(pod, node, false);
    }

    pub(crate) fn scope(&self) -> Scope<'_> {
        Scope { snapshot: &self.snapshot, framework: &self.framework, nominations: &self.nominations }
    }

    pub(crate) fn decide(&mut self, pod: &PodInfo) -> Result<String, Box<FitError>> {
        prepare(&mut self.snapshot, &self.framework, pod);
        let scope =
            Scope { snapshot: &self.snapshot, framework: &self.framework, nominations: &self.nominations };
        schedule(scope, pod, &mut self.cursor, &mut self.rng)
            .map(|choice| self.snapshot.node(choice.node).name.to_string())
    }

    /// The node, or the message, preemption included.
    pub(crate) fn outcome(&mut self, pod: &PodInfo) -> String {
        match self.decide(pod) {
            Ok(node) => node,
            Err(mut error) => {
                let preemption = self.framework.preemption.expect("a profile with preemption");
                let mut rng = SmallRng::seed_from_u64(7);
                match preemption.candidates(self.scope(), pod, &error, &mut rng) {
                    Ok(candidates) => {
                        let best = preemption::best(candidates).expect("a candidate");
                        let victims: Vec<&str> = best.victims.iter().map(|pod| pod.name.as_str()).collect();
                        format!("{} without {}", self.snapshot.node(best.node).name, victims.join(" "))
                    }
                    Err(none) => {
                        error.post_filter_message = Some(format!("preemption: {}", none.message));
                        error.to_string()
                    }
                }
            }
        }
    }
}
