//! Deletes pods from nodes with `NoExecute` taints they do not tolerate, or no longer.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use meta::names::NamespacedName;
use reconcile::events::EventRecorder;
use reconcile::{Action, Informer, ReconcileError, Reconciler, SharedClock, key_of};
use serde_json::json;

use super::nodelifecycle::{index_by_node, pods_on};
use crate::context::{Context, api};
use crate::node_fit::{self, tolerates};
use crate::pods::{self, name, whole_seconds};

struct TaintEviction {
    client: kube::Client,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    events: EventRecorder,
    clock: SharedClock,
}

pub(super) async fn run(context: Context) {
    let queue = context.queue("taint_eviction");
    let controller = Arc::new(TaintEviction {
        client: context.client.clone(),
        nodes: context.informer(),
        pods: context.informer(),
        events: context.recorder("taint-eviction-controller"),
        clock: context.clock.clone(),
    });
    index_by_node(&controller.pods);
    if !context.synced(&[&controller.nodes, &controller.pods]).await {
        return;
    }
    let _pods = controller.pods.subscribe({
        let (queue, nodes) = (queue.clone(), controller.nodes.clone());
        move |event| {
            let pod = event.object();
            let moved = event
                .old()
                .is_none_or(|old| pods::node_name(old) != pods::node_name(pod) || old.spec != pod.spec);
            let node = NamespacedName { namespace: String::new(), name: pods::node_name(pod).to_owned() };
            if moved && nodes.get(&node).is_some_and(|node| drives_away(&node)) {
                queue.add(key_of(&**pod));
            }
        }
    });
    let _nodes = controller.nodes.subscribe({
        let (queue, pods) = (queue.clone(), controller.pods.clone());
        move |event| {
            let new = event.object();
            let before = event.old().map(|old| no_execute(old)).unwrap_or_default();
            if no_execute(new) != before {
                pods_on(&pods, name(&new.metadata)).iter().for_each(|pod| queue.add(key_of(&**pod)));
            }
        }
    });
    context.run("taint_eviction", controller, queue, 8).await;
}

fn no_execute(node: &Node) -> Vec<&Taint> {
    node_fit::taints(node).iter().filter(|taint| taint.effect == "NoExecute").collect()
}

fn drives_away(node: &Node) -> bool {
    !no_execute(node).is_empty()
}

/// When the pod has to leave: `None` never, zero at once.
fn leaves_in(pod: &Pod, taints: &[&Taint], now: Timestamp) -> Option<Duration> {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut soonest: Option<SignedDuration> = None;
    for taint in taints {
        let mut tolerating = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
        tolerating.peek()?;
        let seconds = tolerating.filter_map(|toleration| toleration.toleration_seconds).min();
        if let Some(seconds) = seconds {
            let since = taint.time_added.as_ref().map_or(now, |time| time.0);
            let left = SignedDuration::from_secs(seconds.max(0)) - now.duration_since(since);
            soonest = Some(soonest.map_or(left, |soonest| soonest.min(left)));
        }
    }
    soonest.map(|left| Duration::try_from(left).unwrap_or(Duration::ZERO))
}

fn is_tolerated(pod: &Pod, taints: &[&Taint]) -> bool {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    taints.iter().all(|taint| tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

#[async_trait]
impl Reconciler for TaintEviction {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let Some(pod) = self.pods.get(key).filter(|pod| !pods::is_terminating(pod)) else {
            return Ok(Action::Done);
        };
        let node = NamespacedName { namespace: String::new(), name: pods::node_name(&pod).to_owned() };
        let Some(node) = self.nodes.get(&node) else { return Ok(Action::Done) };
        let taints = no_execute(&node);
        if taints.is_empty() {
            return Ok(Action::Done);
        }
        let wait = if is_tolerated(&pod, &taints) {
            leaves_in(&pod, &taints, self.clock.now())
        } else {
            Some(Duration::ZERO)
        };
        match wait {
            None => Ok(Action::Done),
            Some(wait) if !wait.is_zero() => Ok(Action::RequeueAfter(wait)),
            Some(_) => self.evict(&pod).await,
        }
    }
}

impl TaintEviction {
    async fn evict(&self, pod: &Pod) -> Result<Action, ReconcileError> {
        let (space, pod_name) = (pods::namespace(&pod.metadata), name(&pod.metadata));
        self.events.normal(
            pod,
            "TaintManagerEviction",
            "Evict",
            format!("Marking for deletion Pod {space}/{pod_name}"),
        );
        let pods = api::<Pod>(&self.client, space);
        let patch = json!({
            "metadata": {"uid": pod.metadata.uid},
            "status": {"conditions": [{
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint",
                "lastTransitionTime": whole_seconds(self.clock.now()),
            }]},
        });
        let marked = pods.patch_status(pod_name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let deleted = match marked {
            Ok(_) => {
                pods.delete(pod_name, &DeleteParams::default().preconditions(preconditions)).await.map(drop)
            }
            Err(error) => Err(error),
        };
        match deleted {
            Ok(()) => Ok(Action::Done),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                Ok(Action::Done)
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_pod_leaves_when_its_shortest_toleration_ends() {
        let now = "2026-01-01T00:01:40Z".parse().unwrap();
        let taint = |key: &str| -> Taint {
            serde_json::from_value(
                json!({"key": key, "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}),
            )
            .unwrap()
        };
        let (a, b) = (taint("a"), taint("b"));
        let pod = |tolerations: Value| -> Pod {
            serde_json::from_value(json!({"spec": {"containers": [], "tolerations": tolerations}})).unwrap()
        };
        let for_seconds = |key: &str, seconds: Option<i64>| json!({"key": key, "operator": "Exists", "tolerationSeconds": seconds});
        let table = [
            (pod(json!([])), false, None),
            (pod(json!([for_seconds("a", None), for_seconds("b", None)])), true, None),
            (pod(json!([for_seconds("a", Some(300)), for_seconds("b", Some(200))])), true, Some(100)),
            (pod(json!([for_seconds("a", Some(300)), for_seconds("b", Some(50))])), true, Some(0)),
            (pod(json!([for_seconds("a", Some(300))])), false, None),
        ];
        for (pod, tolerated, seconds) in table {
            assert_eq!(is_tolerated(&pod, &[&a, &b]), tolerated);
            assert_eq!(leaves_in(&pod, &[&a, &b], now), seconds.map(Duration::from_secs), "{pod:?}");
        }
    }
}
