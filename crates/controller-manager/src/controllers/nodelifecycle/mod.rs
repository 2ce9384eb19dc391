//! Watches over nodes: silent ones become `Unknown`, are tainted, and their pods are marked not ready.

mod plan;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::Api;
use kube::api::{Patch, PatchParams};
use meta::names::NamespacedName;
use reconcile::events::EventRecorder;
use reconcile::{Informer, ReconcileError, SharedClock, chain};
use serde_json::json;
use tokio::sync::Notify;
use tracing::{debug, warn};

use self::plan::{Heard, ZoneState};
use crate::config::Config;
use crate::context::{Context, api};
use crate::pods::{self, name, whole_seconds};

const BY_NODE: &str = "node";

struct NodeLifecycle {
    client: kube::Client,
    config: Arc<Config>,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    heard: Mutex<BTreeMap<String, Heard>>,
    /// By zone: nodes that may be tainted now, and when that was reckoned.
    budgets: Mutex<BTreeMap<String, (f64, Duration)>>,
    events: EventRecorder,
    clock: SharedClock,
}

pub(super) async fn run(context: Context) {
    let controller = NodeLifecycle {
        client: context.client.clone(),
        config: Arc::clone(&context.config),
        nodes: context.informer(),
        leases: context.informer(),
        pods: context.informer(),
        heard: Mutex::default(),
        budgets: Mutex::default(),
        events: context.recorder("node-controller"),
        clock: context.clock.clone(),
    };
    index_by_node(&controller.pods);
    if !context.synced(&[&controller.nodes, &controller.leases, &controller.pods]).await {
        return;
    }
    // Conditions and cordons show at once; silence shows at the next look.
    let changed = Arc::new(Notify::new());
    let _nodes = controller.nodes.subscribe({
        let changed = Arc::clone(&changed);
        move |event| {
            let differs = event.old().is_none_or(|old| {
                let new = event.object();
                plan::no_schedule_taints(new).is_some() || plan::ready_status(old) != plan::ready_status(new)
            });
            if differs {
                changed.notify_one();
            }
        }
    });
    loop {
        controller.look_at_all().await;
        // Without nodes there is nothing to time.
        let idle = controller.nodes.is_empty();
        tokio::select! {
            () = context.shutdown.cancelled() => return,
            () = changed.notified() => {}
            () = context.clock.sleep(context.config.node_monitor_period), if !idle => {}
        }
    }
}

/// Lets pods be found by the node they are bound to.
pub(super) fn index_by_node(pods: &Informer<Pod>) {
    pods.ensure_index(BY_NODE, |pod: &Pod| {
        Some(pods::node_name(pod).to_owned()).filter(|node| !node.is_empty()).into_iter().collect()
    });
}

pub(super) fn pods_on(pods: &Informer<Pod>, node: &str) -> Vec<Arc<Pod>> {
    pods.by_index(BY_NODE, node)
}

impl NodeLifecycle {
    async fn look_at_all(&self) {
        let nodes = self.nodes.list();
        self.forget_gone(&nodes);
        let zones = plan::zones(nodes.iter().map(Arc::as_ref), &self.config);
        let all_down =
            !zones.is_empty() && zones.values().all(|(state, _)| *state == ZoneState::FullDisruption);
        for node in &nodes {
            let (state, size) = zones.get(&plan::zone(node)).copied().unwrap_or((ZoneState::Normal, 1));
            let rate = plan::rate(state, size, all_down && nodes.len() > 1, &self.config);
            if let Err(error) = self.look_at(node, rate).await {
                if error.is_conflict() {
                    debug!(node = name(&node.metadata), "node changed meanwhile");
                } else {
                    warn!(node = name(&node.metadata), error = %chain(&error), "node not updated");
                }
            }
        }
    }

    async fn look_at(&self, node: &Node, rate: f64) -> Result<(), ReconcileError> {
        let silence = self.silence(node);
        let now = self.clock.now();
        let mut current = node.clone();
        if let Some(conditions) = plan::silent_conditions(node, silence, &self.config, now) {
            let patch = json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "status": {"conditions": conditions},
            });
            let nodes: Api<Node> = Api::all(self.client.clone());
            current = nodes
                .patch_status(name(&node.metadata), &PatchParams::default(), &Patch::Strategic(patch))
                .await?;
        }
        if plan::ready_status(&current) != "True" && plan::condition(&current, "Ready").is_some() {
            self.mark_pods_not_ready(&current).await;
        }
        if let Some(taints) = plan::no_schedule_taints(&current) {
            current = self.write_taints(&current, taints).await?;
        }
        let key = plan::no_execute_key(&current);
        let Some(taints) = plan::no_execute_taints(&current, key, now) else { return Ok(()) };
        let only_swaps = current
            .spec
            .iter()
            .flat_map(|spec| spec.taints.iter().flatten())
            .any(|taint| taint.effect == "NoExecute" && taint.key.starts_with("node.kubernetes.io/"));
        if key.is_some() && !only_swaps && !self.take_budget(&plan::zone(&current), rate) {
            return Ok(());
        }
        self.write_taints(&current, taints).await.map(drop)
    }

    /// How long nothing has been heard of the node, by our own clock.
    fn silence(&self, node: &Node) -> Duration {
        let key =
            NamespacedName { namespace: "kube-node-lease".to_owned(), name: name(&node.metadata).to_owned() };
        let lease =
            self.leases.get(&key).and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref().map(|t| t.0));
        let beat =
            plan::condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.as_ref().map(|t| t.0));
        let signature = (beat, lease);
        let now = self.clock.monotonic();
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || {
            // What never spoke has been silent since it was made.
            let never = signature == (None, None);
            let silence =
                if never { plan::silent_since_creation(node, self.clock.now()) } else { Duration::ZERO };
            Heard { at: now.saturating_sub(silence), signature }
        };
        let last = heard.entry(name(&node.metadata).to_owned()).or_insert_with(fresh);
        if last.signature != signature {
            *last = Heard { at: now, signature };
        }
        now.saturating_sub(last.at)
    }

    fn forget_gone(&self, nodes: &[Arc<Node>]) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.len() > nodes.len() {
            let names: std::collections::BTreeSet<&str> =
                nodes.iter().map(|node| name(&node.metadata)).collect();
            heard.retain(|node, _| names.contains(node.as_str()));
        }
    }

    /// One node at a time and zone, as fast as the zone's state allows.
    fn take_budget(&self, zone: &str, rate: f64) -> bool {
        let now = self.clock.monotonic();
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        let (tokens, since) = budgets.entry(zone.to_owned()).or_insert((1.0, now));
        *tokens = (*tokens + now.saturating_sub(*since).as_secs_f64() * rate).min(1.0);
        *since = now;
        let allowed = rate > 0.0 && *tokens >= 1.0;
        if allowed {
            *tokens -= 1.0;
        }
        allowed
    }

    async fn write_taints(&self, node: &Node, taints: Vec<Taint>) -> Result<Node, ReconcileError> {
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": taints},
        });
        let nodes: Api<Node> = Api::all(self.client.clone());
        Ok(nodes.patch(name(&node.metadata), &PatchParams::default(), &Patch::Merge(patch)).await?)
    }

    /// A node that is not ready cannot have ready pods: services must not send to them.
    async fn mark_pods_not_ready(&self, node: &Node) {
        for pod in pods_on(&self.pods, name(&node.metadata)) {
            if !pods::is_ready(&pod) {
                continue;
            }
            let time = whole_seconds(self.clock.now());
            let patch = json!({
                "metadata": {"uid": pod.metadata.uid},
                "status": {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": time}]},
            });
            let pods = api::<Pod>(&self.client, pods::namespace(&pod.metadata));
            match pods
                .patch_status(name(&pod.metadata), &PatchParams::default(), &Patch::Strategic(patch))
                .await
            {
                Ok(_) => self.events.warning(&*pod, "NodeNotReady", "MarkNotReady", "Node is not ready"),
                Err(error) => debug!(pod = name(&pod.metadata), error = %chain(&error), "pod not marked"),
            }
        }
    }
}
