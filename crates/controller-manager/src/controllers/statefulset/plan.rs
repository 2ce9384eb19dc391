//! One look at a stateful set: which pod to make, which to delete, and the status. One step at a time unless parallel.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::identity::{self, REVISION};
use crate::controllers::deployment::scaled;
use crate::pods::{self, label, name};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// An ordinal, at the current revision or at the one being rolled out.
    Create { ordinal: i32, updated: bool },
    /// A pod that is in the way: finished, condemned or outdated.
    Delete { pod: Arc<Pod>, why: Why },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Finished,
    ScaledDown,
    Outdated,
}

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) status: StatefulSetStatus,
    pub(super) look_again: Option<Duration>,
}

struct View<'a> {
    set: &'a StatefulSet,
    /// By ordinal, `None` where the pod is missing.
    replicas: BTreeMap<i32, Option<&'a Arc<Pod>>>,
    /// Highest ordinal first.
    condemned: Vec<&'a Arc<Pod>>,
    min_ready: i32,
    now: Timestamp,
}

/// `current` and `update` are names of revisions.
pub(super) fn plan(
    set: &StatefulSet,
    owned: &[Arc<Pod>],
    current: &str,
    update: &str,
    now: Timestamp,
) -> Plan {
    let spec = set.spec.clone().unwrap_or_default();
    let start = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0);
    let desired = spec.replicas.unwrap_or(1);
    let mut view = View {
        set,
        replicas: (start..start.saturating_add(desired)).map(|ordinal| (ordinal, None)).collect(),
        condemned: Vec::new(),
        min_ready: spec.min_ready_seconds.unwrap_or(0),
        now,
    };
    for pod in owned {
        let Some(ordinal) = identity::ordinal(name(&set.metadata), name(&pod.metadata)) else { continue };
        match view.replicas.get_mut(&ordinal) {
            Some(slot) => *slot = Some(pod),
            None => view.condemned.push(pod),
        }
    }
    let number = |pod: &Pod| identity::ordinal(name(&set.metadata), name(&pod.metadata));
    view.condemned.sort_by_key(|pod| std::cmp::Reverse(number(pod)));
    let status = view.status(owned, current, update);
    let parallel = spec.pod_management_policy.as_deref() == Some("Parallel");
    let mut steps = Vec::new();
    if set.metadata.deletion_timestamp.is_none() {
        let settled = view.fill(parallel, &status, &mut steps) && view.shrink(parallel, &mut steps);
        if settled {
            view.update(update, &mut steps);
        }
    }
    Plan { steps, status, look_again: view.look_again(owned) }
}

impl View<'_> {
    fn rolling(&self) -> Option<(i32, i32)> {
        let strategy = self.set.spec.as_ref()?.update_strategy.clone().unwrap_or_default();
        if strategy.type_.as_deref() == Some("OnDelete") {
            return None;
        }
        let rolling = strategy.rolling_update.unwrap_or_default();
        let replicas = i32::try_from(self.replicas.len()).unwrap_or(i32::MAX);
        let most = rolling.max_unavailable.map_or(1, |value| scaled(&value, replicas, true).max(1));
        Some((rolling.partition.unwrap_or(0), most))
    }

    fn is_available(&self, pod: &Pod) -> bool {
        is_running_and_ready(pod) && pods::is_available(pod, self.min_ready, self.now)
    }

    /// Makes what is missing and replaces what has finished; true if every replica is as far as the next step needs.
    fn fill(&self, parallel: bool, status: &StatefulSetStatus, steps: &mut Vec<Step>) -> bool {
        for (&ordinal, slot) in &self.replicas {
            let ready_to_go_on = match slot {
                None => {
                    steps.push(Step::Create { ordinal, updated: self.is_made_updated(ordinal, status) });
                    false
                }
                Some(pod) if pods::is_terminating(pod) => false,
                Some(pod) if pods::is_terminal(pod) => {
                    steps.push(Step::Delete { pod: Arc::clone(pod), why: Why::Finished });
                    false
                }
                Some(pod) => self.is_available(pod),
            };
            if !ready_to_go_on && !parallel {
                return false;
            }
        }
        steps.is_empty() || parallel
    }

    /// New pods below the partition come at the current revision.
    fn is_made_updated(&self, ordinal: i32, status: &StatefulSetStatus) -> bool {
        let start = self.replicas.keys().next().copied().unwrap_or(0);
        let strategy = self.set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        match (self.rolling(), rolling) {
            (None, _) => true,
            (Some(_), None) => ordinal >= start + status.current_replicas.unwrap_or(0),
            (Some((partition, _)), Some(_)) => ordinal >= start + partition,
        }
    }

    /// Deletes what is beyond the size, highest first; true if nothing is left to wait for.
    fn shrink(&self, parallel: bool, steps: &mut Vec<Step>) -> bool {
        let first_unhealthy =
            self.condemned.iter().rfind(|pod| !self.is_available(pod) || pods::is_terminating(pod));
        for pod in &self.condemned {
            if pods::is_terminating(pod) {
                if parallel {
                    continue;
                }
                return false;
            }
            let is_first_unhealthy = first_unhealthy.is_some_and(|first| Arc::ptr_eq(first, pod));
            if !parallel && !self.is_available(pod) && !is_first_unhealthy {
                return false;
            }
            steps.push(Step::Delete { pod: Arc::clone(pod), why: Why::ScaledDown });
            if !parallel {
                return false;
            }
        }
        true
    }

    /// Deletes outdated pods, highest ordinal first, so that they come again at the new revision.
    fn update(&self, update: &str, steps: &mut Vec<Step>) {
        let Some((partition, most)) = self.rolling() else { return };
        let start = self.replicas.keys().next().copied().unwrap_or(0);
        let is_healthy = |pod: &Pod| self.is_available(pod) && !pods::is_terminating(pod);
        let down = self.replicas.values().filter(|slot| !slot.is_some_and(|pod| is_healthy(pod))).count();
        let mut budget = most - i32::try_from(down).unwrap_or(i32::MAX);
        for (_, slot) in self.replicas.iter().rev().take_while(|(ordinal, _)| **ordinal >= start + partition)
        {
            let Some(pod) = slot else { return };
            let outdated = label(&pod.metadata, REVISION) != Some(update);
            if outdated && !pods::is_terminating(pod) {
                // A pod that is down already costs nothing.
                if is_healthy(pod) {
                    if budget <= 0 {
                        return;
                    }
                    budget -= 1;
                }
                steps.push(Step::Delete { pod: Arc::clone(pod), why: Why::Outdated });
                if most == 1 {
                    return;
                }
            } else if most == 1 && !is_healthy(pod) {
                return;
            }
        }
    }

    fn status(&self, owned: &[Arc<Pod>], current: &str, update: &str) -> StatefulSetStatus {
        let old = self.set.status.clone().unwrap_or_default();
        let is_created = |pod: &&Arc<Pod>| !pods::phase(pod).is_empty();
        let count = |is: &dyn Fn(&Pod) -> bool| -> i32 {
            let pods = owned.iter().filter(is_created).filter(|pod| is(pod));
            i32::try_from(pods.count()).unwrap_or(i32::MAX)
        };
        let at = |pod: &Pod, revision: &str| {
            !pods::is_terminating(pod) && label(&pod.metadata, REVISION) == Some(revision)
        };
        let mut status = StatefulSetStatus {
            observed_generation: self.set.metadata.generation,
            replicas: count(&|_| true),
            ready_replicas: Some(count(&is_running_and_ready)),
            available_replicas: Some(count(&|pod| self.is_available(pod))),
            current_replicas: Some(count(&|pod| at(pod, current))),
            updated_replicas: Some(count(&|pod| at(pod, update))),
            current_revision: Some(current.to_owned()),
            update_revision: Some(update.to_owned()),
            collision_count: old.collision_count,
            conditions: old.conditions,
        };
        let desired = i32::try_from(self.replicas.len()).unwrap_or(i32::MAX);
        let complete = [Some(status.replicas), status.ready_replicas, status.updated_replicas];
        if self.rolling().is_some() && complete.iter().all(|count| *count == Some(desired)) {
            status.current_replicas = status.updated_replicas;
            status.current_revision.clone_from(&status.update_revision);
        }
        status
    }

    /// When a ready pod becomes available by time alone.
    fn look_again(&self, owned: &[Arc<Pod>]) -> Option<Duration> {
        let waits = owned.iter().filter_map(|pod| pods::available_in(pod, self.min_ready, self.now));
        waits.filter(|wait| !wait.is_zero()).min()
    }
}

fn is_running_and_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(spec: Value) -> StatefulSet {
        serde_json::from_value(json!({"metadata": {"name": "web", "generation": 1}, "spec": spec})).unwrap()
    }

    /// Pods as `ordinal:letters`: `r`eady or `p`ending or `f`ailed, `t`erminating, `2` for the new revision.
    fn pods(text: &str) -> Vec<Arc<Pod>> {
        let pod = |word: &str| {
            let (ordinal, letters) = word.split_once(':').unwrap();
            let has = |letter| letters.contains(letter);
            let phase = if has('f') {
                "Failed"
            } else if has('p') {
                "Pending"
            } else {
                "Running"
            };
            let ready = if has('r') { "True" } else { "False" };
            let mut pod = json!({
                "metadata": {"name": format!("web-{ordinal}"), "labels": {REVISION: if has('2') { "new" } else { "old" }}},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
            });
            if has('t') {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        text.split_whitespace().map(pod).collect()
    }

    fn check(spec: Value, text: &str, update: &str) -> String {
        let plan = plan(&set(spec), &pods(text), "old", update, Timestamp::UNIX_EPOCH);
        let step = |step: &Step| match step {
            Step::Create { ordinal, updated } => {
                format!("+{ordinal}{}", if *updated { "new" } else { "old" })
            }
            Step::Delete { pod, .. } => format!("-{}", name(&pod.metadata).trim_start_matches("web-")),
        };
        plan.steps.iter().map(step).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn one_pod_a_step_in_order() {
        let three = || json!({"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 0}}});
        let table = [
            ("", "+0new"),
            ("0:p", ""),
            ("0:r", "+1new"),
            ("0:r 1:rt", ""),
            ("0:r 1:f", "-1"),
            ("0:r 1:r 2:r", ""),
            ("0:r 1:r 2:r 3:r 4:r", "-4"),
            ("0:r 1:r 2:r 3:r 4:rt", ""),
            ("0:r 1:p 2:r 3:r", ""),
        ];
        for (text, expected) in table {
            assert_eq!(check(three(), text, "old"), expected, "{text}");
        }
    }

    #[test]
    fn an_update_goes_down_from_the_top_and_waits_for_each() {
        let three = |partition: i32| json!({"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": partition}}});
        let table = [
            (0, "0:r 1:r 2:r", "-2"),
            (0, "0:r 1:r 2:rt", ""),
            (0, "0:r 1:r", "+2new"),
            (0, "0:r 1:r 2:p2", ""),
            (0, "0:r 1:r 2:r2", "-1"),
            (2, "0:r 1:r 2:r2", ""),
            (2, "0:r 2:r2", "+1old"),
            (0, "0:r2 1:r2 2:r2", ""),
        ];
        for (partition, text, expected) in table {
            assert_eq!(check(three(partition), text, "new"), expected, "{text}");
        }
    }

    #[test]
    fn parallel_sets_and_larger_budgets_take_several_steps() {
        let parallel = json!({"replicas": 3, "podManagementPolicy": "Parallel", "updateStrategy": {"rollingUpdate": {"partition": 0}}});
        assert_eq!(check(parallel.clone(), "1:p", "old"), "+0new +2new");
        assert_eq!(check(parallel, "0:r 1:r 2:r 3:r 4:p", "old"), "-4 -3");
        let two = json!({"replicas": 4, "updateStrategy": {"rollingUpdate": {"maxUnavailable": 2}}});
        assert_eq!(check(two.clone(), "0:r 1:r 2:r 3:r", "new"), "-3 -2");
        assert_eq!(
            check(json!({"replicas": 2, "updateStrategy": {"type": "OnDelete"}}), "0:r 1:r", "new"),
            ""
        );
        assert_eq!(
            check(
                json!({"replicas": 2, "ordinals": {"start": 5}, "updateStrategy": {"rollingUpdate": {"partition": 0}}}),
                "0:r",
                "new"
            ),
            "+5new"
        );
    }

    #[test]
    fn the_current_revision_follows_when_all_are_updated() {
        let set = set(json!({"replicas": 2}));
        let status = |text| plan(&set, &pods(text), "old", "new", Timestamp::UNIX_EPOCH).status;
        let half = status("0:r 1:r2");
        assert_eq!(
            (half.current_replicas, half.updated_replicas, half.current_revision.as_deref()),
            (Some(1), Some(1), Some("old"))
        );
        let whole = status("0:r2 1:r2");
        assert_eq!((whole.current_replicas, whole.current_revision.as_deref()), (Some(2), Some("new")));
        assert_eq!(status("0:r 1:rt").replicas, 2, "terminating pods count");
    }
}
