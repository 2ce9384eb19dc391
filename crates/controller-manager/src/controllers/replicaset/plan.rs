//! How many pods to make or delete, which ones, and what the status is.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use reconcile::Action;

use super::kinds::{Counts, Failure, Replicated};
use crate::pods;

/// Pods created or deleted in one go, as upstream; the rest follows when the cache shows these.
const BURST: usize = 500;

#[derive(Debug)]
pub(super) enum Scale {
    Keep,
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

pub(super) fn plan_scale(
    desired: i32,
    owned: &[Arc<Pod>],
    related_per_node: impl FnOnce() -> BTreeMap<String, usize>,
    now: Timestamp,
) -> Scale {
    let desired = usize::try_from(desired).unwrap_or(0);
    let active: Vec<&Arc<Pod>> = owned.iter().filter(|pod| pods::is_active(pod)).collect();
    if active.len() < desired {
        return Scale::Create((desired - active.len()).min(BURST));
    }
    let excess = (active.len() - desired).min(BURST);
    match excess {
        0 => Scale::Keep,
        _ if desired == 0 => Scale::Delete(active.into_iter().take(excess).cloned().collect()),
        _ => {
            let per_node = related_per_node();
            let doubled = |pod: &Pod| per_node.get(pods::node_name(pod)).copied().unwrap_or(0);
            let mut ranked: Vec<(usize, &Arc<Pod>)> =
                active.into_iter().map(|pod| (doubled(pod), pod)).collect();
            ranked.sort_by(|a, b| pods::deletion_order((a.1, a.0), (b.1, b.0), now));
            Scale::Delete(ranked.into_iter().take(excess).map(|(_, pod)| Arc::clone(pod)).collect())
        }
    }
}

/// The owner with its status as it should be, unless it is so already.
pub(super) fn plan_status<K: Replicated>(
    owner: &K,
    owned: &[Arc<Pod>],
    failure: Option<&str>,
    now: Timestamp,
) -> Option<K> {
    let old = owner.counts();
    let mut new = Counts { observed_generation: owner.meta().generation, ..Counts::default() };
    let labels = owner.template().and_then(|template| template.metadata.as_ref()?.labels.as_ref());
    let mut terminating = 0;
    for pod in owned {
        if pods::is_terminating(pod) && !pods::is_terminal(pod) {
            terminating += 1;
        }
        if !pods::is_active(pod) {
            continue;
        }
        new.replicas += 1;
        let has = |(key, value): (&String, &String)| pods::label(&pod.metadata, key) == Some(value.as_str());
        new.fully_labeled += i32::from(labels.into_iter().flatten().all(has));
        new.ready += i32::from(pods::is_ready(pod));
        new.available += i32::from(pods::is_available(pod, owner.min_ready_seconds(), now));
    }
    new.terminating = (K::KIND == "ReplicaSet").then_some(terminating);
    let reason = if new.replicas > owner.replicas() { "FailedDelete" } else { "FailedCreate" };
    new.failure = match (&old.failure, failure) {
        (_, None) => None,
        (Some(old), Some(_)) => Some(old.clone()),
        (None, Some(message)) => Some(Failure {
            reason: reason.to_owned(),
            message: message.to_owned(),
            since: Some(pods::whole_seconds(now)),
        }),
    };
    (old != new).then(|| owner.with_counts(new))
}

/// When the next ready pod becomes available by time alone.
pub(super) fn next_look(owned: &[Arc<Pod>], min_ready_seconds: i32, now: Timestamp) -> Action {
    if min_ready_seconds <= 0 {
        return Action::Done;
    }
    let waits = owned.iter().filter_map(|pod| pods::available_in(pod, min_ready_seconds, now));
    waits.filter(|wait| !wait.is_zero()).min().map_or(Action::Done, Action::RequeueAfter)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::json;

    use super::*;

    const NOW: &str = "2026-01-01T01:00:00Z";

    /// Pods by letter: `r`eady, `p`ending, `s`ucceeded, `f`ailed, `t`erminating, `n`ew (ready just now).
    fn pods(letters: &str) -> Vec<Arc<Pod>> {
        let pod = |(n, letter): (usize, char)| {
            let since = if letter == 'n' { NOW } else { "2026-01-01T00:00:00Z" };
            let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": since}]);
            let value = match letter {
                'r' | 'n' => json!({"status": {"phase": "Running", "conditions": ready}}),
                'p' => json!({"status": {"phase": "Pending"}}),
                's' => json!({"status": {"phase": "Succeeded"}}),
                'f' => json!({"status": {"phase": "Failed"}}),
                _ => json!({"metadata": {"deletionTimestamp": NOW}, "status": {"phase": "Running"}}),
            };
            let mut pod: Pod = serde_json::from_value(value).unwrap();
            pod.metadata.name = Some(format!("{letter}{n}"));
            pod.metadata.labels = Some([("app".to_owned(), "a".to_owned())].into());
            Arc::new(pod)
        };
        letters.chars().enumerate().map(pod).collect()
    }

    fn scale(desired: i32, letters: &str) -> String {
        match plan_scale(desired, &pods(letters), BTreeMap::new, NOW.parse().unwrap()) {
            Scale::Keep => "keep".to_owned(),
            Scale::Create(count) => format!("create {count}"),
            Scale::Delete(pods) => {
                let names: Vec<_> = pods.iter().map(|pod| pods::name(&pod.metadata)).collect();
                format!("delete {}", names.join(" "))
            }
        }
    }

    #[test]
    fn only_active_pods_count() {
        let table = [
            (3, "rrr", "keep"),
            (3, "rsf", "create 2"),
            (2, "rrt", "keep"),
            (0, "rp", "delete r0 p1"),
            (2, "rpr", "delete p1"),
            (1, "rnp", "delete p2 n1"),
            (0, "", "keep"),
            (-1, "", "keep"),
            (6_000, "", "create 500"),
        ];
        for (desired, letters, expected) in table {
            assert_eq!(scale(desired, letters), expected, "{desired} of {letters}");
        }
    }

    fn replica_set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "a", "generation": 4},
            "spec": {"replicas": replicas, "minReadySeconds": 60, "selector": {"matchLabels": {"app": "a"}},
                     "template": {"metadata": {"labels": {"app": "a"}}}},
        }))
        .unwrap()
    }

    #[test]
    fn the_status_counts_and_is_written_only_when_it_changed() {
        let now = NOW.parse().unwrap();
        let owner = replica_set(3);
        let updated = plan_status(&owner, &pods("rnpts"), None, now).unwrap();
        let status = updated.status.as_ref().unwrap();
        assert_eq!(
            (status.replicas, status.ready_replicas, status.available_replicas, status.terminating_replicas),
            (3, Some(2), Some(1), Some(1))
        );
        assert_eq!((status.fully_labeled_replicas, status.observed_generation), (Some(3), Some(4)));
        assert!(plan_status(&updated, &pods("rnpts"), None, now).is_none());
        assert_eq!(
            next_look(&pods("rnp"), 60, now),
            Action::RequeueAfter(std::time::Duration::from_secs(60))
        );
    }

    #[test]
    fn a_failure_to_create_becomes_a_condition_and_goes_when_it_is_over() {
        let now = NOW.parse().unwrap();
        let failed = plan_status(&replica_set(1), &[], Some("quota"), now).unwrap();
        let condition = &failed.status.as_ref().unwrap().conditions.as_ref().unwrap()[0];
        assert_eq!(condition.reason.as_deref(), Some("FailedCreate"));
        assert!(plan_status(&failed, &[], Some("quota, again"), now).is_none());
        let over = plan_status(&failed, &[], None, now).unwrap();
        assert!(over.status.unwrap().conditions.is_none());
    }
}
