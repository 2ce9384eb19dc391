//! Registers the node and keeps its status true: sent when something changed, and every five minutes anyway.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher::{Config as WatchConfig, Event};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tracing::{info, warn};

use super::facts::NodeState;
use super::machine::Machine;
use super::status::{Pressure, StatusInputs, differs, node_status};
use crate::api::{ApiError, chain};
use crate::context::Context;
use crate::runtime;

const ATTACH_ANNOTATION: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
/// How often to look while the runtime is not ready, and when it is.
const LOOK_SOON: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_secs(10);

pub(crate) struct Registrar {
    pub(crate) context: Arc<Context>,
    pub(crate) machine: Machine,
    /// Woken by pulls, pressure and changes of the node object.
    pub(crate) changed: Arc<Notify>,
    pub(crate) pressure: tokio::sync::watch::Receiver<Pressure>,
    pub(crate) port: u16,
}

impl std::fmt::Debug for Registrar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registrar").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Registrar {
    pub(crate) async fn run(mut self) {
        let mut known = self.register().await;
        let mut sent_at = self.context.clock.monotonic();
        let mut was_ready = None;
        loop {
            let (status, ready) = self.status(&known).await;
            let due = self.context.config.kubelet.node_status_report_frequency;
            let overdue = self.context.clock.monotonic().saturating_sub(sent_at) >= due;
            if overdue || differs(&known, &status) {
                match self.send(&known, &status).await {
                    Ok(stored) => {
                        known = stored;
                        sent_at = self.context.clock.monotonic();
                    }
                    Err(error) if error.is_not_found() => known = self.register().await,
                    Err(error) => warn!(error = %chain(&error), "node status not sent"),
                }
            }
            self.tell_readiness(&mut was_ready, ready);
            let look = if ready { LOOK } else { LOOK_SOON };
            tokio::select! {
                () = self.context.clock.sleep(look) => {}
                () = self.changed.notified() => {}
                Ok(()) = self.pressure.changed() => {}
            }
        }
    }

    fn tell_readiness(&self, was: &mut Option<bool>, ready: bool) {
        if *was == Some(ready) {
            return;
        }
        let name = &self.context.config.node_name;
        let reason = if ready { "NodeReady" } else { "NodeNotReady" };
        let note = format!("Node {name} status is now: {reason}");
        self.context.recorder.node(reconcile::events::EventType::Normal, reason, note);
        info!(node = name, ready, "node readiness");
        *was = Some(ready);
    }

    /// Tries until the API server has the node; returns the status it holds.
    async fn register(&self) -> NodeStatus {
        let mut delay = LOOK_SOON;
        loop {
            match self.register_once().await {
                Ok(node) => {
                    let mut state = (*self.context.node()).clone();
                    state.uid = node.metadata.uid.unwrap_or_default();
                    self.context.set_node(state);
                    info!(node = self.context.config.node_name, "node registered");
                    return node.status.unwrap_or_default();
                }
                Err(error) => warn!(error = %chain(&error), "node not registered"),
            }
            self.context.clock.sleep(delay).await;
            delay = (delay * 2).min(Duration::from_secs(7));
        }
    }

    async fn register_once(&self) -> Result<Node, ApiError> {
        let api = self.context.api.cluster::<Node>()?;
        let name = &self.context.config.node_name;
        if let Some(found) = api.get_opt(name).await.map_err(|e| ApiError::call("get", "node", e))? {
            return self.bring_up_to_date(found).await;
        }
        if !self.context.config.kubelet.register_node {
            return Err(ApiError::NotFound { kind: "node", name: name.clone() });
        }
        let (status, _) = self.status(&NodeStatus::default()).await;
        let state = self.context.node();
        let annotations = [(ATTACH_ANNOTATION.to_owned(), "true".to_owned())];
        let mut node = Node {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(state.labels.clone()),
                annotations: Some(annotations.into()),
                ..ObjectMeta::default()
            },
            status: Some(status),
            ..Node::default()
        };
        let spec = node.spec.get_or_insert_default();
        spec.taints =
            Some(self.context.config.kubelet.register_with_taints.clone()).filter(|t| !t.is_empty());
        spec.provider_id = Some(self.context.config.provider_id.clone()).filter(|p| !p.is_empty());
        spec.pod_cidr = Some(state.pod_cidr.clone()).filter(|c| !c.is_empty());
        spec.pod_cidrs = spec.pod_cidr.clone().map(|cidr| vec![cidr]);
        api.create(&PostParams::default(), &node).await.map_err(|e| ApiError::call("create", "node", e))
    }

    /// A node left by an earlier life keeps its spec and gets the labels this one starts with.
    async fn bring_up_to_date(&self, found: Node) -> Result<Node, ApiError> {
        let wanted = &self.context.node().labels;
        let have = found.metadata.labels.clone().unwrap_or_default();
        if wanted.iter().all(|(key, value)| have.get(key) == Some(value)) {
            return Ok(found);
        }
        let patch = json!({"metadata": {"labels": wanted}});
        let api = self.context.api.cluster::<Node>()?;
        let name = &self.context.config.node_name;
        let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map_err(|e| ApiError::call("patch", "node", e))
    }

    async fn status(&self, old: &NodeStatus) -> (NodeStatus, bool) {
        let context = &self.context;
        let (not_ready, handlers) = match context.runtime.status().await {
            Ok(answer) => (unready(&answer), answer),
            Err(error) => (
                Some(format!("container runtime is down: {}", runtime::message(&error))),
                cri::v1::StatusResponse::default(),
            ),
        };
        // Without its list the node only shows no images.
        let images = context.runtime.list_images().await.unwrap_or_default();
        let node = context.node();
        let pressure = *self.pressure.borrow();
        let inputs = StatusInputs {
            config: &context.config,
            machine: &self.machine,
            node: &node,
            runtime: format!("{}://{}", context.runtime.name, context.runtime.version),
            not_ready,
            pressure,
            images: &images,
            handlers: &handlers,
            port: self.port,
        };
        let ready = inputs.not_ready.is_none();
        (node_status(&inputs, old, context.clock.now()), ready)
    }

    /// Only fields that changed; conditions merge by type, so other writers' stay.
    async fn send(&self, old: &NodeStatus, new: &NodeStatus) -> Result<NodeStatus, ApiError> {
        let to_map = |status: &NodeStatus| match serde_json::to_value(status) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        };
        let (old, new) = (to_map(old), to_map(new));
        let changed: Map<String, Value> =
            new.into_iter().filter(|(key, value)| old.get(key) != Some(value)).collect();
        let api = self.context.api.cluster::<Node>()?;
        let patch = Patch::Strategic(json!({ "status": changed }));
        let stored = api.patch_status(&self.context.config.node_name, &PatchParams::default(), &patch).await;
        Ok(stored.map_err(|e| ApiError::call("patch", "node status", e))?.status.unwrap_or_default())
    }
}

/// The first condition of the runtime that stands in the way of pods.
fn unready(status: &cri::v1::StatusResponse) -> Option<String> {
    let conditions = status.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let bad = conditions
        .iter()
        .find(|c| matches!(c.r#type.as_str(), "RuntimeReady" | "NetworkReady") && !c.status)?;
    let what = if bad.r#type == "NetworkReady" {
        "container runtime network not ready"
    } else {
        "container runtime not ready"
    };
    Some(format!("{what}: {}=false reason:{} message:{}", bad.r#type, bad.reason, bad.message))
}

/// Follows the node object: labels and taints for admission, the pod range for the runtime.
pub(crate) async fn follow(context: Arc<Context>, changed: Arc<Notify>) {
    let Ok(api) = context.api.cluster::<Node>() else { return };
    let config = WatchConfig::default().fields(&format!("metadata.name={}", context.config.node_name));
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(node) | Event::InitApply(node)) => learn(&context, &node).await,
            Ok(Event::Delete(_)) => changed.notify_one(),
            Ok(_) => {}
            Err(error) => warn!(error = %reconcile::chain(&error), "node watch interrupted"),
        }
    }
}

async fn learn(context: &Context, node: &Node) {
    let spec = node.spec.clone().unwrap_or_default();
    let mut state: NodeState = (*context.node()).clone();
    state.labels = node.metadata.labels.clone().unwrap_or_default();
    state.taints = spec.taints.unwrap_or_default();
    state.uid = node.metadata.uid.clone().unwrap_or_default();
    if let Some(status) = &node.status {
        for (name, quantity) in status.allocatable.iter().flatten().filter(|(name, _)| name.contains('/')) {
            state.allocatable.insert(name.clone(), quantity.clone());
        }
    }
    let cidr =
        spec.pod_cidrs.filter(|c| !c.is_empty()).map(|c| c.join(",")).or(spec.pod_cidr).unwrap_or_default();
    let new_cidr = !cidr.is_empty() && cidr != state.pod_cidr;
    state.pod_cidr.clone_from(&cidr);
    context.set_node(state);
    if new_cidr && let Err(error) = context.runtime.update_pod_cidr(&cidr).await {
        warn!(cidr, error = %reconcile::chain(&error), "runtime not told of the pod range");
    }
}
