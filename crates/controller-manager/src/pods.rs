//! What controllers ask about pods.

use std::cmp::Ordering;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use meta::names::NamespacedName;

pub(crate) const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub(crate) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Neither finished nor going.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_terminating(pod)
}

pub(crate) fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// Since when the pod is ready.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|condition| condition.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// How long until a ready pod counts as available: zero when it does, `None` when it is not ready.
pub(crate) fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    if !is_ready(pod) {
        return None;
    }
    if min_ready_seconds <= 0 {
        return Some(Duration::ZERO);
    }
    let since = ready_since(pod)?;
    let left = SignedDuration::from_secs(min_ready_seconds.into()) - now.duration_since(since);
    Some(Duration::try_from(left).unwrap_or(Duration::ZERO))
}

pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    available_in(pod, min_ready_seconds, now) == Some(Duration::ZERO)
}

pub(crate) fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

pub(crate) fn uid(metadata: &ObjectMeta) -> &str {
    metadata.uid.as_deref().unwrap_or_default()
}

pub(crate) fn name(metadata: &ObjectMeta) -> &str {
    metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn namespace(metadata: &ObjectMeta) -> &str {
    metadata.namespace.as_deref().unwrap_or_default()
}

pub(crate) fn key(metadata: &ObjectMeta) -> NamespacedName {
    NamespacedName { namespace: namespace(metadata).to_owned(), name: name(metadata).to_owned() }
}

pub(crate) fn created(metadata: &ObjectMeta) -> Timestamp {
    metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

pub(crate) fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

pub(crate) fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(name).map(String::as_str)
}

/// The same instant as the API will show it.
pub(crate) fn whole_seconds(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// A pod made from a template. `name` is its whole name, or what the API server is to complete.
pub(crate) fn from_template(
    template: &PodTemplateSpec,
    namespace: &str,
    owner: OwnerReference,
    name: PodName,
) -> Pod {
    let from = template.metadata.clone().unwrap_or_default();
    let (name, generate_name) = match name {
        PodName::Exact(name) => (Some(name), None),
        PodName::Prefix(prefix) => (None, Some(prefix)),
    };
    let metadata = ObjectMeta {
        name,
        generate_name,
        namespace: Some(namespace.to_owned()),
        labels: from.labels,
        annotations: from.annotations,
        finalizers: from.finalizers,
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    Pod { metadata, spec: template.spec.clone(), status: None }
}

pub(crate) enum PodName {
    Exact(String),
    Prefix(String),
}

/// Orders pods so that those to delete first come first. `doubled` says how many related pods share the
/// pod's node.
pub(crate) fn deletion_order(a: (&Pod, usize), b: (&Pod, usize), now: Timestamp) -> Ordering {
    let ((a, a_doubled), (b, b_doubled)) = (a, b);
    let assigned = |pod: &Pod| !node_name(pod).is_empty();
    let phase_rank = |pod: &Pod| match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let restarts = |pod: &Pod| {
        let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        statuses.map(|status| status.restart_count).max().unwrap_or(0)
    };
    let older_ready = || match (ready_since(a), ready_since(b)) {
        (Some(a_since), Some(b_since)) => age_rank(now, a_since).cmp(&age_rank(now, b_since)),
        (a_since, b_since) => a_since.is_some().cmp(&b_since.is_some()),
    };
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| b_doubled.cmp(&a_doubled))
        .then_with(older_ready)
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| age_rank(now, created(&a.metadata)).cmp(&age_rank(now, created(&b.metadata))))
        .then_with(|| uid(&a.metadata).cmp(uid(&b.metadata)))
}

fn deletion_cost(pod: &Pod) -> i32 {
    annotation(&pod.metadata, DELETION_COST).and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

/// Ages that differ by less than a factor of two count as equal, so that scaling down hits pods evenly (KEP-2185).
fn age_rank(now: Timestamp, since: Timestamp) -> u32 {
    let seconds = u64::try_from(now.duration_since(since).as_secs()).unwrap_or(0);
    seconds.checked_ilog2().map_or(0, |log| log + 1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn pods_that_do_least_are_deleted_first() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let ready =
            json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let pods = [
            ("unassigned", json!({"metadata": {"name": "unassigned"}, "status": {"phase": "Pending"}}), 0),
            (
                "pending",
                json!({"metadata": {"name": "pending"}, "spec": {"nodeName": "n"}, "status": {"phase": "Pending"}}),
                0,
            ),
            (
                "unready",
                json!({"metadata": {"name": "unready"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}}),
                0,
            ),
            (
                "cheap",
                json!({"metadata": {"name": "cheap", "annotations": {DELETION_COST: "-5"}}, "spec": {"nodeName": "n"}, "status": {"phase": "Running", "conditions": ready}}),
                0,
            ),
            (
                "doubled",
                json!({"metadata": {"name": "doubled"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running", "conditions": ready}}),
                3,
            ),
            (
                "alone",
                json!({"metadata": {"name": "alone"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running", "conditions": ready}}),
                1,
            ),
        ];
        let mut order: Vec<(Pod, usize)> =
            pods.iter().rev().map(|(_, value, doubled)| (pod(value.clone()), *doubled)).collect();
        order.sort_by(|a, b| deletion_order((&a.0, a.1), (&b.0, b.1), now));
        let names: Vec<&str> = order.iter().map(|(pod, _)| name(&pod.metadata)).collect();
        assert_eq!(names, ["unassigned", "pending", "unready", "cheap", "doubled", "alone"]);
    }

    #[test]
    fn a_ready_pod_is_available_after_min_ready_seconds() {
        let ready = pod(json!({"metadata": {}, "status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}));
        let at = |second: i64| -> Timestamp {
            "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(second)
        };
        assert_eq!(available_in(&ready, 0, at(0)), Some(Duration::ZERO));
        assert_eq!(available_in(&ready, 10, at(4)), Some(Duration::from_secs(6)));
        assert!(is_available(&ready, 10, at(10)));
        assert_eq!(available_in(&Pod::default(), 0, at(0)), None);
    }
}
