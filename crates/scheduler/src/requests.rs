//! What a pod asks of its node: containers, sidecars, init containers, overhead, pod-level resources
//! (KEP-753, KEP-2837) and, for pods being resized, what they still hold (KEP-1287).

use k8s_openapi::api::core::v1 as core;

use crate::pod::Requests;
use crate::resources::{self, CPU, DEFAULT_MEMORY, DEFAULT_MILLI_CPU, MEMORY, Resources};

/// The requests of a pod, exact and with the guesses used for scoring.
pub(crate) fn of_pod(spec: &core::PodSpec, status: Option<&core::PodStatus>) -> Requests {
    let total = sum(spec, status, false);
    let guessed = sum(spec, status, true);
    Requests { total, non_zero_milli_cpu: guessed.milli_cpu, non_zero_memory: guessed.memory }
}

fn sum(spec: &core::PodSpec, status: Option<&core::PodStatus>, guess: bool) -> Resources {
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&of_container(container, status, guess));
    }
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let own = of_container(container, status, guess);
        if container.restart_policy.as_deref() == Some("Always") {
            running.add(&own);
            sidecars.add(&own);
            starting.max(&sidecars);
        } else {
            let mut peak = sidecars.clone();
            peak.add(&own);
            starting.max(&peak);
        }
    }
    running.max(&starting);
    if let Some(pod_level) = spec.resources.as_ref().and_then(|own| own.requests.as_ref()) {
        for (name, quantity) in pod_level {
            if name == CPU || name == MEMORY || name.starts_with("hugepages-") {
                running.set(name, quantity);
            }
        }
    }
    running.add(&Resources::from_list(spec.overhead.as_ref()));
    running
}

fn of_container(container: &core::Container, status: Option<&core::PodStatus>, guess: bool) -> Resources {
    let requests = container.resources.as_ref().and_then(|own| own.requests.as_ref());
    let mut own = Resources::from_list(requests);
    if let Some(held) = held(container, status) {
        let infeasible = status.is_some_and(resize_is_infeasible);
        if infeasible {
            own = held;
        } else {
            own.max(&held);
        }
    }
    if guess {
        let missing = |name: &str| requests.is_none_or(|list| !list.contains_key(name));
        if missing(resources::CPU) {
            own.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if missing(resources::MEMORY) {
            own.memory = DEFAULT_MEMORY;
        }
    }
    own
}

/// What the container holds on its node at the moment, by the kubelet's word.
fn held(container: &core::Container, status: Option<&core::PodStatus>) -> Option<Resources> {
    let status = status?;
    let own = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .flatten()
        .find(|own| own.name == container.name)?;
    let actual = own.resources.as_ref().and_then(|own| own.requests.as_ref());
    if actual.is_none() && own.allocated_resources.is_none() {
        return None;
    }
    let mut held = Resources::from_list(actual);
    held.max(&Resources::from_list(own.allocated_resources.as_ref()));
    Some(held)
}

fn resize_is_infeasible(status: &core::PodStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| {
        condition.type_ == "PodResizePending" && condition.reason.as_deref() == Some("Infeasible")
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    fn check(spec: serde_json::Value, milli_cpu: i64, memory: i64, guessed_cpu: i64) {
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).expect("a pod");
        let own = of_pod(&pod.spec.expect("a spec"), None);
        assert_eq!(
            (own.total.milli_cpu, own.total.memory, own.non_zero_milli_cpu),
            (milli_cpu, memory, guessed_cpu)
        );
    }

    fn container(name: &str, cpu: &str) -> serde_json::Value {
        json!({"name": name, "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn init_containers_count_by_their_peak_and_sidecars_add_up() {
        let mut sidecar = container("s", "200m");
        sidecar["restartPolicy"] = "Always".into();
        check(json!({"containers": [container("a", "1"), container("b", "500m")]}), 1_500, 0, 1_500);
        check(
            json!({"initContainers": [container("i", "2")], "containers": [container("a", "1")]}),
            2_000,
            0,
            2_000,
        );
        check(
            json!({"initContainers": [sidecar, container("i", "2")], "containers": [container("a", "1")]}),
            2_200,
            0,
            2_200,
        );
    }

    #[test]
    fn containers_without_requests_count_as_a_guess_in_scores_only() {
        check(json!({"containers": [{"name": "a"}, container("b", "1")]}), 1_000, 0, 1_100);
    }

    #[test]
    fn pod_level_requests_replace_the_sum_and_overhead_comes_on_top() {
        check(
            json!({
                "containers": [container("a", "1")],
                "resources": {"requests": {"cpu": "3", "memory": "64"}},
                "overhead": {"cpu": "10m", "memory": "6"},
            }),
            3_010,
            70,
            3_010,
        );
    }
}
