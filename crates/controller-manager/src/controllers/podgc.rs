//! Removes pods nobody else will: of nodes that are gone, terminating ones that were never bound, and the oldest finished
//! ones when there are too many.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use meta::names::NamespacedName;
use reconcile::{Informer, InformerEvent, SharedClock, chain};
use serde_json::json;
use tokio::sync::Notify;
use tracing::warn;

use crate::context::{Context, api};
use crate::node_fit;
use crate::pods::{self, created, is_terminal, is_terminating, name, node_name, whole_seconds};

/// A node must have been gone this long, since it may come back with its pods.
const QUARANTINE: Duration = Duration::from_secs(40);
const PERIOD: Duration = Duration::from_secs(20);

struct PodGc {
    client: kube::Client,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    threshold: usize,
    clock: SharedClock,
}

/// A pod to delete, and whether it is first marked as failed.
#[derive(Debug)]
struct Doomed {
    pod: Arc<Pod>,
    message: Option<String>,
}

pub(super) async fn run(context: Context) {
    let controller = PodGc {
        client: context.client.clone(),
        pods: context.informer(),
        nodes: context.informer(),
        threshold: context.config.terminated_pod_gc_threshold,
        clock: context.clock.clone(),
    };
    if !context.synced(&[&controller.pods, &controller.nodes]).await {
        return;
    }
    // Only a few changes can give this controller something to do; without them it sleeps.
    let changed = Arc::new(Notify::new());
    let _pods = controller.pods.subscribe({
        let (changed, nodes) = (Arc::clone(&changed), controller.nodes.clone());
        move |event| {
            let pod = event.object();
            let lost = !node_name(pod).is_empty() && nodes.get(&node_key(node_name(pod))).is_none();
            let concerns = is_terminal(pod) || is_terminating(pod) || lost;
            if concerns && !matches!(event, InformerEvent::Deleted(_)) {
                changed.notify_one();
            }
        }
    });
    let _nodes = controller.nodes.subscribe({
        let changed = Arc::clone(&changed);
        move |event| {
            let out_of_service = node_fit::taints(event.object()).iter().any(is_out_of_service);
            if out_of_service || matches!(event, InformerEvent::Deleted(_)) {
                changed.notify_one();
            }
        }
    });
    let mut missing = BTreeMap::new();
    loop {
        let waiting = controller.sweep(&mut missing).await;
        tokio::select! {
            () = context.shutdown.cancelled() => return,
            () = changed.notified() => {}
            () = context.clock.sleep(PERIOD), if waiting => {}
        }
        // Changes come in crowds.
        tokio::select! {
            () = context.shutdown.cancelled() => return,
            () = context.clock.sleep(Duration::from_secs(1)) => {}
        }
    }
}

fn node_key(node: &str) -> NamespacedName {
    NamespacedName { namespace: String::new(), name: node.to_owned() }
}

fn is_out_of_service(taint: &k8s_openapi::api::core::v1::Taint) -> bool {
    taint.key == "node.kubernetes.io/out-of-service"
}

impl PodGc {
    /// True if a node is missing whose pods must wait.
    async fn sweep(&self, missing: &mut BTreeMap<String, Duration>) -> bool {
        let pods = self.pods.list();
        self.note_missing(&pods, missing);
        let now = self.clock.monotonic();
        let mut gone: Vec<&str> = Vec::new();
        for (node, since) in missing.iter() {
            if now.saturating_sub(*since) >= QUARANTINE && self.is_really_gone(node).await {
                gone.push(node);
            }
        }
        let out_of_service = |node: &str| {
            let node = self.nodes.get(&node_key(node));
            node.is_some_and(|node| node_fit::taints(&node).iter().any(is_out_of_service))
        };
        for doomed in plan(&pods, &gone, out_of_service, self.threshold) {
            self.delete(&doomed).await;
        }
        !missing.is_empty()
    }

    fn note_missing(&self, pods: &[Arc<Pod>], missing: &mut BTreeMap<String, Duration>) {
        let now = self.clock.monotonic();
        let mut found = BTreeMap::new();
        for pod in pods {
            let node = node_name(pod);
            if !node.is_empty() && self.nodes.get(&node_key(node)).is_none() {
                let since = missing.get(node).copied().unwrap_or(now);
                found.insert(node.to_owned(), since);
            }
        }
        *missing = found;
    }

    async fn is_really_gone(&self, node: &str) -> bool {
        let nodes: Api<Node> = Api::all(self.client.clone());
        matches!(nodes.get_opt(node).await, Ok(None))
    }

    async fn delete(&self, doomed: &Doomed) {
        let pod = &doomed.pod;
        let pods = api::<Pod>(&self.client, pods::namespace(&pod.metadata));
        let mark = async {
            let Some(message) = doomed.message.as_ref().filter(|_| !is_terminal(pod)) else { return Ok(()) };
            let patch = json!({
                "metadata": {"uid": pod.metadata.uid},
                "status": {"phase": "Failed", "conditions": [{
                    "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": message,
                    "lastTransitionTime": whole_seconds(self.clock.now()),
                }]},
            });
            pods.patch_status(name(&pod.metadata), &PatchParams::default(), &Patch::Strategic(patch))
                .await
                .map(drop)
        };
        let delete = async {
            mark.await?;
            let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
            let parameters = DeleteParams::default().grace_period(0).preconditions(preconditions);
            pods.delete(name(&pod.metadata), &parameters).await.map(drop)
        };
        match delete.await {
            Ok(()) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => warn!(
                namespace = pods::namespace(&pod.metadata),
                name = name(&pod.metadata),
                error = %chain(&error),
                "pod not removed"
            ),
        }
    }
}

fn plan(
    pods: &[Arc<Pod>],
    gone_nodes: &[&str],
    out_of_service: impl Fn(&str) -> bool,
    threshold: usize,
) -> Vec<Doomed> {
    let mut doomed = Vec::new();
    let mut finished: Vec<&Arc<Pod>> = Vec::new();
    for pod in pods {
        let node = node_name(pod);
        if !node.is_empty() && gone_nodes.contains(&node) {
            let message = Some("PodGC: node no longer exists".to_owned());
            doomed.push(Doomed { pod: Arc::clone(pod), message });
        } else if is_terminating(pod) && node.is_empty() {
            doomed.push(Doomed { pod: Arc::clone(pod), message: None });
        } else if is_terminating(pod) && !pods::is_ready(pod) && out_of_service(node) {
            let message = Some("PodGC: node is out of service".to_owned());
            doomed.push(Doomed { pod: Arc::clone(pod), message });
        } else if is_terminal(pod) {
            finished.push(pod);
        }
    }
    if threshold > 0 && finished.len() > threshold {
        let excess = finished.len() - threshold;
        let evicted = |pod: &Pod| pod.status.as_ref().is_some_and(|s| s.reason.as_deref() == Some("Evicted"));
        finished.sort_by_key(|pod| (!evicted(pod), created(&pod.metadata), name(&pod.metadata)));
        let oldest = finished.into_iter().take(excess);
        doomed.extend(oldest.map(|pod| Doomed { pod: Arc::clone(pod), message: None }));
    }
    doomed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pods_that_nobody_else_removes_are_removed() {
        let pod = |name: &str, node: &str, phase: &str, going: bool| {
            let mut pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase}});
            if going {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            Arc::new(serde_json::from_value::<Pod>(pod).unwrap())
        };
        let pods = [
            pod("here", "a", "Running", false),
            pod("lost", "gone", "Running", false),
            pod("unbound", "", "Pending", true),
            pod("waiting", "", "Pending", false),
            pod("stuck", "down", "Running", true),
            pod("going", "a", "Running", true),
            pod("done1", "a", "Succeeded", false),
            pod("done2", "a", "Failed", false),
        ];
        let names = |threshold| -> Vec<String> {
            let doomed = plan(&pods, &["gone"], |node| node == "down", threshold);
            doomed.iter().map(|doomed| name(&doomed.pod.metadata).to_owned()).collect()
        };
        assert_eq!(names(0), ["lost", "unbound", "stuck"]);
        assert_eq!(names(1), ["lost", "unbound", "stuck", "done1"]);
    }
}
