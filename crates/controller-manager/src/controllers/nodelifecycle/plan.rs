//! What silence of a node means: its conditions, its taints, and how fast whole zones may be tainted.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};

use crate::config::Config;
use crate::node_fit::taints;
use crate::pods::{created, label, whole_seconds};

const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Conditions that a silent node can no longer vouch for.
const CONDITIONS: &[&str] = &["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Condition, the status that taints, and the key of the taint.
const NO_SCHEDULE: &[(&str, &str, &str)] = &[
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];

/// When the node was last heard, by our own clock.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Heard {
    pub(super) at: Duration,
    /// The heartbeat and lease times seen then.
    pub(super) signature: (Option<Timestamp>, Option<Timestamp>),
}

/// How sick a zone is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ZoneState {
    Normal,
    PartialDisruption,
    FullDisruption,
}

pub(super) fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

pub(super) fn ready_status(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |condition| &condition.status)
}

/// The conditions of a node that has been silent for `silence`, if they have to change.
pub(super) fn silent_conditions(
    node: &Node,
    silence: Duration,
    config: &Config,
    now: Timestamp,
) -> Option<Vec<NodeCondition>> {
    let never_reported = condition(node, "Ready").is_none();
    let grace =
        if never_reported { config.node_startup_grace_period } else { config.node_monitor_grace_period };
    if silence <= grace {
        return None;
    }
    let mut conditions =
        node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let time = whole_seconds(now);
    let mut changed = false;
    for type_ in CONDITIONS {
        match conditions.iter_mut().find(|condition| condition.type_ == *type_) {
            None => {
                changed = true;
                conditions.push(NodeCondition {
                    type_: (*type_).to_owned(),
                    status: "Unknown".to_owned(),
                    reason: Some("NodeStatusNeverUpdated".to_owned()),
                    message: Some("Kubelet never posted node status.".to_owned()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(time.clone()),
                });
            }
            Some(condition) if condition.status != "Unknown" => {
                changed = true;
                condition.status = "Unknown".to_owned();
                condition.reason = Some("NodeStatusUnknown".to_owned());
                condition.message = Some("Kubelet stopped posting node status.".to_owned());
                condition.last_transition_time = Some(time.clone());
            }
            Some(_) => {}
        }
    }
    changed.then_some(conditions)
}

/// Taints that keep pods away, as the node's conditions demand; `None` if they are so already.
pub(super) fn no_schedule_taints(node: &Node) -> Option<Vec<Taint>> {
    let managed = |taint: &Taint| {
        taint.effect == "NoSchedule"
            && (taint.key == UNSCHEDULABLE || NO_SCHEDULE.iter().any(|(_, _, key)| taint.key == *key))
    };
    let mut wanted: Vec<&str> = NO_SCHEDULE
        .iter()
        .filter(|(type_, status, _)| {
            condition(node, type_).is_some_and(|condition| condition.status == *status)
        })
        .map(|(_, _, key)| *key)
        .collect();
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push(UNSCHEDULABLE);
    }
    let old = taints(node);
    let same = old.iter().filter(|taint| managed(taint)).count() == wanted.len()
        && wanted.iter().all(|key| old.iter().any(|taint| managed(taint) && taint.key == *key));
    if same {
        return None;
    }
    let kept = old.iter().filter(|taint| !managed(taint) || wanted.contains(&taint.key.as_str())).cloned();
    let mut taints: Vec<Taint> = kept.collect();
    for key in wanted {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == "NoSchedule") {
            taints.push(Taint { key: key.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() });
        }
    }
    Some(taints)
}

/// The taint that drives pods off an unready node, by its `Ready` condition.
pub(super) fn no_execute_key(node: &Node) -> Option<&'static str> {
    match ready_status(node) {
        "True" => None,
        "False" => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    }
}

/// The node's taints with only `key` of the two that drive pods off; `None` if they are so already.
pub(super) fn no_execute_taints(node: &Node, key: Option<&str>, now: Timestamp) -> Option<Vec<Taint>> {
    let managed =
        |taint: &Taint| taint.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&taint.key.as_str());
    let old = taints(node);
    let present: Vec<&str> =
        old.iter().filter(|taint| managed(taint)).map(|taint| taint.key.as_str()).collect();
    if present == key.into_iter().collect::<Vec<_>>() {
        return None;
    }
    let kept = old.iter().filter(|taint| !managed(taint) || Some(taint.key.as_str()) == key).cloned();
    let mut taints: Vec<Taint> = kept.collect();
    if let Some(key) = key.filter(|key| !present.contains(key)) {
        taints.push(Taint {
            key: key.to_owned(),
            effect: "NoExecute".to_owned(),
            time_added: Some(whole_seconds(now)),
            value: None,
        });
    }
    Some(taints)
}

pub(super) fn zone(node: &Node) -> String {
    let part = |key: &str, old: &str| label(&node.metadata, key).or_else(|| label(&node.metadata, old));
    let region = part("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region");
    let zone = part("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone");
    format!("{}:{}", region.unwrap_or_default(), zone.unwrap_or_default())
}

/// The state of each zone, from how many of its nodes are ready.
pub(super) fn zones<'a>(
    nodes: impl IntoIterator<Item = &'a Node>,
    config: &Config,
) -> BTreeMap<String, (ZoneState, usize)> {
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for node in nodes {
        let (ready, unready) = counts.entry(zone(node)).or_default();
        *if ready_status(node) == "True" { ready } else { unready } += 1;
    }
    let state = |(ready, unready): (usize, usize)| {
        let share = |count: usize, total: usize| count * 1_000 / total.max(1);
        let threshold = config.unhealthy_zone_threshold * 1_000.0;
        let sick =
            u32::try_from(share(unready, ready + unready)).is_ok_and(|sick| f64::from(sick) >= threshold);
        match () {
            () if ready == 0 && unready > 0 => ZoneState::FullDisruption,
            () if unready > 2 && sick => ZoneState::PartialDisruption,
            () => ZoneState::Normal,
        }
    };
    counts.into_iter().map(|(zone, count)| (zone, (state(count), count.0 + count.1))).collect()
}

/// Nodes a second that may be tainted in a zone, when `all_down` says that no zone is well.
pub(super) fn rate(state: ZoneState, size: usize, all_down: bool, config: &Config) -> f64 {
    match state {
        // Nothing is ready anywhere: more likely it is us who are cut off.
        _ if all_down => 0.0,
        ZoneState::Normal | ZoneState::FullDisruption => config.node_eviction_rate,
        ZoneState::PartialDisruption if size > config.large_cluster_size_threshold => {
            config.secondary_node_eviction_rate
        }
        ZoneState::PartialDisruption => 0.0,
    }
}

/// When a node that was never heard began to be silent.
pub(super) fn silent_since_creation(node: &Node, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(created(&node.metadata))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(ready: &str, more: Value) -> Node {
        let mut node = json!({
            "metadata": {"name": "n", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        });
        for (key, value) in more.as_object().unwrap() {
            node[key.as_str()] = value.clone();
        }
        serde_json::from_value(node).unwrap()
    }

    fn keys(taints: Option<Vec<Taint>>) -> String {
        let text = |taint: &Taint| {
            format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect)
        };
        taints.map_or("same".to_owned(), |taints| taints.iter().map(text).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_silent_node_is_unknown_after_its_grace() {
        let (config, now) = (Config::default(), "2026-01-01T00:02:00Z".parse().unwrap());
        let at = |node: &Node, seconds| silent_conditions(node, Duration::from_secs(seconds), &config, now);
        assert!(at(&node("True", json!({})), 40).is_none());
        let conditions = at(&node("True", json!({})), 41).unwrap();
        assert!(conditions.iter().all(|condition| condition.status == "Unknown") && conditions.len() == 4);
        assert_eq!(conditions[0].reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(conditions[1].reason.as_deref(), Some("NodeStatusNeverUpdated"));
        let fresh = node("True", json!({"status": {}}));
        assert!(at(&fresh, 60).is_none(), "a node that starts has longer");
        assert!(at(&fresh, 61).is_some());
    }

    #[test]
    fn taints_follow_conditions_and_leave_others_alone() {
        let own = json!({"taints": [{"key": "mine", "effect": "NoSchedule"}]});
        let cordoned = json!({"spec": {"unschedulable": true}});
        let stale = json!({"spec": {"taints": [{"key": UNREACHABLE, "effect": "NoSchedule"}, {"key": NOT_READY, "effect": "NoExecute"}]}});
        let table = [
            (node("True", json!({})), "same", "same"),
            (node("False", json!({})), "not-ready:NoSchedule", "not-ready:NoExecute"),
            (
                node("Unknown", json!({"spec": own})),
                "mine:NoSchedule unreachable:NoSchedule",
                "mine:NoSchedule unreachable:NoExecute",
            ),
            (node("True", cordoned), "unschedulable:NoSchedule", "same"),
            (node("True", stale.clone()), "not-ready:NoExecute", "unreachable:NoSchedule"),
            (node("Unknown", stale), "same", "unreachable:NoSchedule unreachable:NoExecute"),
        ];
        for (node, schedule, execute) in table {
            assert_eq!(keys(no_schedule_taints(&node)), schedule);
            assert_eq!(keys(no_execute_taints(&node, no_execute_key(&node), Timestamp::UNIX_EPOCH)), execute);
        }
    }

    #[test]
    fn zones_in_trouble_are_tainted_slowly_or_not_at_all() {
        let config = Config::default();
        let state = |ready: usize, unready: usize| {
            let nodes: Vec<Node> = (0..ready + unready)
                .map(|n| node(if n < ready { "True" } else { "Unknown" }, json!({})))
                .collect();
            zones(&nodes, &config)[":"]
        };
        assert_eq!(state(8, 2), (ZoneState::Normal, 10));
        assert_eq!(state(1, 2).0, ZoneState::Normal, "two are too few to tell");
        assert_eq!(state(4, 6).0, ZoneState::PartialDisruption);
        assert_eq!(state(0, 3).0, ZoneState::FullDisruption);
        assert_eq!(rate(ZoneState::PartialDisruption, 10, false, &config), 0.0);
        assert_eq!(rate(ZoneState::PartialDisruption, 100, false, &config), 0.01);
        assert_eq!(rate(ZoneState::FullDisruption, 3, false, &config), 0.1);
        assert_eq!(rate(ZoneState::FullDisruption, 3, true, &config), 0.0);
    }
}
