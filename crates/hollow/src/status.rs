//! What becomes of a pod on a hollow node, as the status its kubelet would write.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::node::seconds;

/// Where a pod's containers have come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Running,
    Succeeded,
    /// Failed at the start: for good, or waiting to be restarted.
    Failed,
}

/// The addresses a pod has while it runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) host: Ipv4Addr,
    pub(crate) pod: Ipv4Addr,
}

/// Whether the pod's containers are restarted for ever.
pub(crate) fn runs_for_ever(pod: &Pod) -> bool {
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    !matches!(policy, Some("Never" | "OnFailure"))
}

/// The status to write, as a merge patch.
pub(crate) fn status(pod: &Pod, life: Life, addresses: Addresses, now: Timestamp) -> Value {
    let phase = match life {
        Life::Running => "Running",
        Life::Succeeded => "Succeeded",
        Life::Failed if restarts(pod) => "Running",
        Life::Failed => "Failed",
    };
    let started =
        pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map_or(now, |time| time.0);
    let spec = pod.spec.as_ref();
    let main: Vec<Value> = spec
        .into_iter()
        .flat_map(|spec| &spec.containers)
        .map(|container| container_status(container, pod, life, started, now))
        .collect();
    let init: Vec<Value> = spec
        .and_then(|spec| spec.init_containers.as_ref())
        .into_iter()
        .flatten()
        .map(|container| {
            let sidecar = container.restart_policy.as_deref() == Some("Always");
            let life = if sidecar && life == Life::Running { Life::Running } else { Life::Succeeded };
            container_status(container, pod, life, started, now)
        })
        .collect();
    let mut status = json!({
        "phase": phase,
        "conditions": conditions(pod, life, now),
        "hostIP": addresses.host.to_string(),
        "hostIPs": [{"ip": addresses.host.to_string()}],
        "podIP": addresses.pod.to_string(),
        "podIPs": [{"ip": addresses.pod.to_string()}],
        "startTime": seconds(started),
        "containerStatuses": main,
        "observedGeneration": pod.metadata.generation,
    });
    if !init.is_empty() {
        status["initContainerStatuses"] = init.into();
    }
    json!({"metadata": {"uid": pod.metadata.uid}, "status": status})
}

fn restarts(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) != Some("Never")
}

fn conditions(pod: &Pod, life: Life, now: Timestamp) -> Vec<Value> {
    let ready = life == Life::Running;
    let reason = match life {
        Life::Running => None,
        Life::Succeeded => Some("PodCompleted"),
        Life::Failed => Some("ContainersNotReady"),
    };
    let own = [
        ("PodReadyToStartContainers", ready || life == Life::Failed, None),
        ("Initialized", true, reason.filter(|_| life == Life::Succeeded)),
        ("Ready", ready && gates_are_open(pod), reason),
        ("ContainersReady", ready, reason),
    ];
    let existing = || pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut all: Vec<Value> = own
        .iter()
        .map(|(kind, is_true, reason)| {
            let status = if *is_true { "True" } else { "False" };
            let since = existing()
                .find(|own| own.type_ == *kind && own.status == status)
                .and_then(|own| own.last_transition_time.as_ref())
                .map_or(now, |time| time.0);
            let mut condition =
                json!({"type": kind, "status": status, "lastTransitionTime": seconds(since), "lastProbeTime": null});
            if let Some(reason) = reason {
                condition["reason"] = (*reason).into();
            }
            condition
        })
        .collect();
    let others = existing().filter(|condition| own.iter().all(|(kind, ..)| *kind != condition.type_));
    all.extend(others.filter_map(|condition| serde_json::to_value(condition).ok()));
    all
}

/// Whether the last of the pod's readiness gates has opened since its status was written.
pub(crate) fn became_ready(pod: &Pod) -> bool {
    let gated = pod.spec.as_ref().is_some_and(|spec| spec.readiness_gates.is_some());
    let is = |kind: &str, status: &str| {
        let mut conditions = pod.status.iter().flat_map(|own| own.conditions.iter().flatten());
        conditions.any(|own| own.type_ == kind && own.status == status)
    };
    gated && is("ContainersReady", "True") && is("Ready", "False") && gates_are_open(pod)
}

fn gates_are_open(pod: &Pod) -> bool {
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let conditions = || pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    gates
        .into_iter()
        .all(|gate| conditions().any(|own| own.type_ == gate.condition_type && own.status == "True"))
}

fn container_status(
    container: &Container,
    pod: &Pod,
    life: Life,
    started: Timestamp,
    now: Timestamp,
) -> Value {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let id = format!("hollow://{uid}-{}", container.name);
    let ended = |code: i32, reason: &str| {
        json!({"terminated": {
            "exitCode": code, "reason": reason, "containerID": id,
            "startedAt": seconds(started), "finishedAt": seconds(now),
        }})
    };
    let restarts = restarts(pod);
    let (state, last, count) = match life {
        Life::Running => (json!({"running": {"startedAt": seconds(now)}}), json!({}), 0),
        Life::Succeeded => (ended(0, "Completed"), json!({}), 0),
        Life::Failed if restarts => {
            let message = format!("back-off 10s restarting failed container={}", container.name);
            (json!({"waiting": {"reason": "CrashLoopBackOff", "message": message}}), ended(1, "Error"), 1)
        }
        Life::Failed => (ended(1, "Error"), json!({}), 0),
    };
    json!({
        "name": container.name,
        "image": container.image.as_deref().unwrap_or_default(),
        "imageID": format!("hollow://{}", container.image.as_deref().unwrap_or_default()),
        "containerID": id,
        "ready": life == Life::Running,
        "started": life == Life::Running,
        "restartCount": count,
        "state": state,
        "lastState": last,
        "resources": container.resources,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: &str, life: Life, phase: &str, ready: &str, state: &str) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u", "generation": 3},
            "spec": {"restartPolicy": policy, "containers": [{"name": "main", "image": "app"}]},
            "status": {"conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"},
            ]},
        }))
        .expect("a pod");
        let addresses = Addresses { host: Ipv4Addr::new(198, 18, 0, 1), pod: Ipv4Addr::new(100, 64, 0, 1) };
        let written = status(&pod, life, addresses, Timestamp::from_second(1_800_000_000).expect("a time"));
        let status = &written["status"];
        assert_eq!(status["phase"], phase);
        assert_eq!(status["observedGeneration"], 3);
        let conditions = status["conditions"].as_array().expect("a list");
        let condition = |kind: &str| conditions.iter().find(|own| own["type"] == kind).expect(kind);
        assert_eq!(condition("Ready")["status"], ready);
        assert_eq!(condition("Ready")["lastTransitionTime"] == "2024-01-01T00:00:00Z", ready == "True");
        assert_eq!(condition("PodScheduled")["status"], "True", "others' conditions stay");
        let container = &status["containerStatuses"][0];
        assert!(container["state"].get(state).is_some(), "{container}");
        serde_json::from_value::<Pod>(written).expect("a valid status");
    }

    #[test]
    fn the_phase_follows_from_what_happened_and_the_restart_policy() {
        check("Always", Life::Running, "Running", "True", "running");
        check("Never", Life::Succeeded, "Succeeded", "False", "terminated");
        check("Never", Life::Failed, "Failed", "False", "terminated");
        check("Always", Life::Failed, "Running", "False", "waiting");
    }
}
