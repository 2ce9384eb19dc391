//! How many pods of a budget may be evicted now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::controllers::deployment::scaled;
use crate::pods::{self, name, whole_seconds};

/// An eviction whose pod has not gone by then did not happen.
const EVICTION_TIMEOUT: SignedDuration = SignedDuration::from_secs(120);

pub(super) struct Outcome {
    pub(super) status: PodDisruptionBudgetStatus,
    pub(super) look_again: Option<Duration>,
}

/// True if `expected` has to count what the pods' controllers want, not the pods.
pub(super) fn needs_scales(budget: &PodDisruptionBudget) -> bool {
    let Some(spec) = &budget.spec else { return false };
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

/// `expected` is what the controllers of the pods want together; an error when that cannot be told.
pub(super) fn plan(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: Result<i32, String>,
    now: Timestamp,
) -> Outcome {
    let old = budget.status.clone().unwrap_or_default();
    let mut status =
        PodDisruptionBudgetStatus { observed_generation: budget.metadata.generation, ..old.clone() };
    let expected = match expected {
        Ok(expected) => expected,
        Err(message) => {
            status.disruptions_allowed = Some(0);
            set_condition(&mut status, budget, "False", "SyncFailed", &message, now);
            return Outcome { status, look_again: None };
        }
    };
    let desired = desired_healthy(budget, expected);
    let (disrupted, look_again) = still_disrupted(&old, pods, now);
    let healthy = pods.iter().filter(|pod| {
        pods::is_ready(pod) && !pods::is_terminating(pod) && !disrupted.contains_key(name(&pod.metadata))
    });
    let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
    status.current_healthy = Some(healthy);
    status.desired_healthy = Some(desired);
    status.expected_pods = Some(expected);
    let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    status.disruptions_allowed = Some(allowed);
    status.disrupted_pods = (!disrupted.is_empty()).then_some(disrupted);
    if allowed > 0 {
        set_condition(&mut status, budget, "True", "SufficientPods", "", now);
    } else {
        set_condition(&mut status, budget, "False", "InsufficientPods", "", now);
    }
    Outcome { status, look_again }
}

/// The number of pods a budget is reckoned from, when it is just that of its pods.
pub(super) fn counted(pods: &[Arc<Pod>]) -> i32 {
    i32::try_from(pods.len()).unwrap_or(i32::MAX)
}

fn desired_healthy(budget: &PodDisruptionBudget, expected: i32) -> i32 {
    let Some(spec) = &budget.spec else { return 0 };
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => (expected - scaled(most, expected, true)).max(0),
        (None, Some(least)) => scaled(least, expected, true),
        (None, None) => 0,
    }
}

/// Evictions that were granted and whose pods have not gone yet.
fn still_disrupted(
    old: &PodDisruptionBudgetStatus,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Option<Duration>) {
    let mut left: Option<Duration> = None;
    let mut disrupted = BTreeMap::new();
    for (pod, time) in old.disrupted_pods.iter().flatten() {
        let exists = pods.iter().any(|other| name(&other.metadata) == pod && !pods::is_terminating(other));
        let remaining = EVICTION_TIMEOUT - now.duration_since(time.0);
        if exists && remaining.is_positive() {
            let remaining = Duration::try_from(remaining).unwrap_or_default();
            left = Some(left.map_or(remaining, |left| left.min(remaining)));
            disrupted.insert(pod.clone(), time.clone());
        }
    }
    (disrupted, left)
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    budget: &PodDisruptionBudget,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter().find(|condition| condition.type_ == "DisruptionAllowed");
    let since = old.filter(|old| old.status == value).map(|old| old.last_transition_time.clone());
    let new = Condition {
        type_: "DisruptionAllowed".to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: budget.metadata.generation,
        last_transition_time: since.unwrap_or_else(|| whole_seconds(now)),
    };
    conditions.retain(|condition| condition.type_ != new.type_);
    conditions.push(new);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn budget(spec: Value) -> PodDisruptionBudget {
        serde_json::from_value(json!({"metadata": {"generation": 2}, "spec": spec})).unwrap()
    }

    /// `r`eady, `u`nready and `t`erminating pods, named by their place.
    fn pods(letters: &str) -> Vec<Arc<Pod>> {
        let pod = |(n, letter): (usize, char)| {
            let ready = if letter == 'u' { "False" } else { "True" };
            let mut pod = json!({"metadata": {"name": n.to_string()}, "status": {"conditions": [{"type": "Ready", "status": ready}]}});
            if letter == 't' {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        letters.chars().enumerate().map(pod).collect()
    }

    #[test]
    fn disruptions_are_what_healthy_pods_exceed_the_need_by() {
        let table = [
            (json!({"minAvailable": 2}), "rrr", 3, (1, 2)),
            (json!({"minAvailable": 2}), "rru", 3, (0, 2)),
            (json!({"minAvailable": 2}), "rrt", 3, (0, 2)),
            (json!({"minAvailable": "50%"}), "rrr", 3, (1, 2)),
            (json!({"maxUnavailable": 1}), "rrr", 3, (1, 2)),
            (json!({"maxUnavailable": "30%"}), "rrr", 3, (1, 2)),
            (json!({"maxUnavailable": 5}), "rr", 2, (2, 0)),
            (json!({"minAvailable": 0}), "", 0, (0, 0)),
        ];
        for (spec, letters, expected, (allowed, desired)) in table {
            let status =
                plan(&budget(spec.clone()), &pods(letters), Ok(expected), Timestamp::UNIX_EPOCH).status;
            assert_eq!(
                (status.disruptions_allowed, status.desired_healthy),
                (Some(allowed), Some(desired)),
                "{spec} {letters}"
            );
        }
    }

    #[test]
    fn a_granted_eviction_counts_until_its_pod_is_gone_or_it_timed_out() {
        let mut budget = budget(json!({"minAvailable": 1}));
        let time = Time("2026-01-01T00:00:00Z".parse().unwrap());
        let status = budget.status.get_or_insert_default();
        status.disrupted_pods = Some([("0".to_owned(), time.clone()), ("9".to_owned(), time)].into());
        let soon = plan(&budget, &pods("rr"), Ok(2), "2026-01-01T00:00:20Z".parse().unwrap());
        assert_eq!(
            (soon.status.disruptions_allowed, soon.look_again),
            (Some(0), Some(Duration::from_secs(100)))
        );
        assert_eq!(soon.status.disrupted_pods.unwrap().len(), 1, "a pod that is gone is forgotten");
        let late = plan(&budget, &pods("rr"), Ok(2), "2026-01-01T00:02:01Z".parse().unwrap());
        assert_eq!((late.status.disruptions_allowed, late.look_again), (Some(1), None));
    }

    #[test]
    fn what_cannot_be_reckoned_allows_nothing() {
        let status = plan(
            &budget(json!({"maxUnavailable": 1})),
            &pods("rr"),
            Err("no".to_owned()),
            Timestamp::UNIX_EPOCH,
        )
        .status;
        assert_eq!(status.disruptions_allowed, Some(0));
        assert_eq!(status.conditions.unwrap()[0].reason, "SyncFailed");
    }
}
