//! Which nodes want a daemon pod, what to make and delete, and the status.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
    Toleration,
};

use crate::controllers::deployment::scaled;
use crate::node_fit;
use crate::pods::{self, created, label, name};

pub(super) const HASH_LABEL: &str = "controller-revision-hash";

#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Names of nodes.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Deleted because they failed or, against their purpose, finished: they come back with back-off.
    pub(super) finished: Vec<Arc<Pod>>,
    pub(super) status: DaemonSetStatus,
}

struct View<'a> {
    hash: &'a str,
    min_ready: i32,
    max_surge: i32,
    max_unavailable: i32,
    rolling: bool,
    now: Timestamp,
    nodes: Vec<NodeView<'a>>,
}

struct NodeView<'a> {
    node: &'a Node,
    should_run: bool,
    should_continue: bool,
    pods: Vec<&'a Arc<Pod>>,
}

/// `acts` is false when the cache is behind our own writes: then only the status is planned.
pub(super) fn plan(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    owned: &[Arc<Pod>],
    hash: &str,
    acts: bool,
    now: Timestamp,
) -> Plan {
    let mut by_node: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in owned {
        by_node.entry(target_node(pod)).or_default().push(pod);
    }
    let spec = daemon_spec(set);
    let views: Vec<NodeView<'_>> = nodes
        .iter()
        .map(|node| {
            let (should_run, should_continue) = fit(&spec, node);
            let pods = by_node.remove(name(&node.metadata)).unwrap_or_default();
            NodeView { node, should_run, should_continue, pods }
        })
        .collect();
    let view = View::new(set, hash, views, now);
    let mut plan = Plan { status: view.status(set), ..Plan::default() };
    if acts && set.metadata.deletion_timestamp.is_none() {
        view.manage(&mut plan);
        // Pods for nodes that are gone would wait for ever.
        let lost = by_node.into_values().flatten();
        let unbound = |pod: &&Arc<Pod>| pods::node_name(pod).is_empty() && !pods::is_terminating(pod);
        plan.delete.extend(lost.filter(unbound).cloned());
        if view.rolling && plan.create.is_empty() && plan.delete.is_empty() && plan.finished.is_empty() {
            view.roll(&mut plan);
        }
    }
    plan
}

/// The spec of the set's pods, with the tolerations every daemon has.
pub(super) fn daemon_spec(set: &DaemonSet) -> PodSpec {
    let template = set.spec.as_ref().and_then(|spec| spec.template.spec.clone());
    let mut spec = template.unwrap_or_default();
    let mut wanted = vec![
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
        ("node.kubernetes.io/memory-pressure", "NoSchedule"),
        ("node.kubernetes.io/pid-pressure", "NoSchedule"),
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ];
    if spec.host_network == Some(true) {
        wanted.push(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in wanted {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
    spec
}

/// The scheduler is to bind the pod to this node and no other.
pub(super) fn pin_to(spec: &mut PodSpec, node: &str) {
    let requirement = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let node_affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    let required: &mut NodeSelector =
        node_affinity.required_during_scheduling_ignored_during_execution.get_or_insert_default();
    if required.node_selector_terms.is_empty() {
        required.node_selector_terms.push(NodeSelectorTerm::default());
    }
    for term in &mut required.node_selector_terms {
        term.match_fields = Some(vec![requirement.clone()]);
    }
}

/// Whether a pod should run on the node, and whether one that is there may stay.
pub(super) fn fit(spec: &PodSpec, node: &Node) -> (bool, bool) {
    if !node_fit::selects(spec, node) {
        return (false, false);
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let untolerated =
        |effects: &[&str]| node_fit::untolerated(tolerations, node_fit::taints(node), effects).is_some();
    (!untolerated(&["NoSchedule", "NoExecute"]), !untolerated(&["NoExecute"]))
}

/// The node a pod is bound to, or is to be bound to.
fn target_node(pod: &Pod) -> &str {
    let bound = pods::node_name(pod);
    if !bound.is_empty() {
        return bound;
    }
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref());
    let required =
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let fields = required.into_iter().flat_map(|required| &required.node_selector_terms);
    let mut fields = fields.flat_map(|term| term.match_fields.iter().flatten());
    let named = fields.find(|field| field.key == "metadata.name" && field.operator == "In");
    named.and_then(|field| field.values.as_ref()?.first()).map(String::as_str).unwrap_or_default()
}

impl<'a> View<'a> {
    fn new(set: &DaemonSet, hash: &'a str, nodes: Vec<NodeView<'a>>, now: Timestamp) -> Self {
        let spec = set.spec.clone().unwrap_or_default();
        let strategy = spec.update_strategy.unwrap_or_default();
        let rolling = strategy.type_.as_deref() != Some("OnDelete");
        let update = strategy.rolling_update.unwrap_or_default();
        let wanted = i32::try_from(nodes.iter().filter(|node| node.should_run).count()).unwrap_or(i32::MAX);
        let max_surge = update.max_surge.map_or(0, |value| scaled(&value, wanted, true));
        let most = update.max_unavailable.map_or(1, |value| scaled(&value, wanted, true));
        // With neither, nothing could ever be updated.
        let max_unavailable = if max_surge == 0 { most.max(1) } else { most };
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        Self { hash, min_ready, max_surge, max_unavailable, rolling, now, nodes }
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        label(&pod.metadata, HASH_LABEL) == Some(self.hash)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        pods::is_available(pod, self.min_ready, self.now)
    }

    /// One pod on every node that wants one, none elsewhere.
    fn manage(&self, plan: &mut Plan) {
        for node in &self.nodes {
            let live = || node.pods.iter().filter(|pod| !pods::is_terminating(pod)).copied();
            if !node.should_continue {
                plan.delete.extend(live().cloned());
                continue;
            }
            let (finished, running): (Vec<_>, Vec<_>) = live().partition(|pod| pods::is_terminal(pod));
            let any_finished = !finished.is_empty();
            plan.finished.extend(finished.into_iter().cloned());
            // A pod that is going holds its place until it is gone.
            let going = node.pods.iter().any(|pod| pods::is_terminating(pod));
            if running.is_empty() {
                if node.should_run && !any_finished && !going {
                    plan.create.push(name(&node.node.metadata).to_owned());
                }
                continue;
            }
            self.thin_out(running, plan);
        }
    }

    /// Deletes what is too much on one node. While surging, an old pod stays until a new one is available.
    fn thin_out(&self, running: Vec<&Arc<Pod>>, plan: &mut Plan) {
        let surging = self.rolling && self.max_surge > 0;
        let (mut new, mut old): (Vec<_>, Vec<_>) = if surging {
            running.into_iter().partition(|pod| self.is_updated(pod))
        } else {
            (running, Vec::new())
        };
        for pods in [&mut new, &mut old] {
            let rank =
                |pod: &Pod| (!pods::is_ready(pod), created(&pod.metadata), name(&pod.metadata).to_owned());
            pods.sort_by_key(|pod| rank(pod));
            plan.delete.extend(pods.drain(1.min(pods.len())..).cloned());
        }
        if let (Some(new), Some(old)) = (new.first(), old.first())
            && (self.is_available(new) || !self.is_available(old) && pods::is_ready(new))
        {
            plan.delete.push(Arc::clone(old));
        }
    }

    /// Replaces outdated pods, as many at a time as the strategy allows.
    fn roll(&self, plan: &mut Plan) {
        let (mut unavailable, mut surging) = (0, 0);
        let (mut free, mut candidates): (Vec<&NodeView<'_>>, Vec<&NodeView<'_>>) = (Vec::new(), Vec::new());
        for node in self.nodes.iter().filter(|node| node.should_run) {
            let new = node.pods.iter().find(|pod| self.is_updated(pod));
            let old = node.pods.iter().find(|pod| !self.is_updated(pod));
            match (new, old) {
                (Some(new), None) => {
                    unavailable += i32::from(!self.is_available(new) || pods::is_terminating(new))
                }
                (Some(_), Some(_)) => surging += 1,
                (None, None) => unavailable += 1,
                (None, Some(old)) if pods::is_terminating(old) => unavailable += 1,
                // What does not work can be replaced at no cost.
                (None, Some(old)) if !self.is_available(old) => {
                    unavailable += 1;
                    free.push(node);
                }
                (None, Some(_)) => candidates.push(node),
            }
        }
        let budget =
            if self.max_surge > 0 { self.max_surge - surging } else { self.max_unavailable - unavailable };
        let chosen = candidates.into_iter().take(usize::try_from(budget).unwrap_or(0));
        for node in free.into_iter().chain(chosen) {
            if self.max_surge > 0 {
                plan.create.push(name(&node.node.metadata).to_owned());
            } else {
                plan.delete.extend(node.pods.iter().map(|pod| Arc::clone(pod)));
            }
        }
    }

    fn status(&self, set: &DaemonSet) -> DaemonSetStatus {
        let old = set.status.clone().unwrap_or_default();
        let (mut desired, mut current, mut misscheduled) = (0, 0, 0);
        let (mut ready, mut available, mut updated) = (0, 0, 0);
        for node in &self.nodes {
            let scheduled = !node.pods.is_empty();
            if !node.should_run {
                misscheduled += i32::from(scheduled);
                continue;
            }
            desired += 1;
            current += i32::from(scheduled);
            let ready_pod = node.pods.iter().any(|pod| pods::is_ready(pod));
            let available_pod = node.pods.iter().any(|pod| self.is_available(pod));
            ready += i32::from(ready_pod);
            available += i32::from(available_pod);
            updated += i32::from(node.pods.iter().any(|pod| self.is_updated(pod)));
        }
        DaemonSetStatus {
            observed_generation: set.metadata.generation,
            desired_number_scheduled: desired,
            current_number_scheduled: current,
            number_misscheduled: misscheduled,
            number_ready: ready,
            number_available: Some(available),
            number_unavailable: Some(desired - available),
            updated_number_scheduled: Some(updated),
            collision_count: old.collision_count,
            conditions: old.conditions,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(strategy: Value) -> DaemonSet {
        let spec =
            json!({"updateStrategy": strategy, "template": {"spec": {"nodeSelector": {"role": "worker"}}}});
        serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": spec})).unwrap()
    }

    /// Nodes as `name:letters`: `w`orker, `s` a NoSchedule and `e` a NoExecute taint.
    fn nodes(text: &str) -> Vec<Arc<Node>> {
        let node = |word: &str| {
            let (name, letters) = word.split_once(':').unwrap();
            let taint = |letter, effect: &str| {
                letters.contains(letter).then(|| json!({"key": "k", "effect": effect}))
            };
            let taints: Vec<Value> =
                [taint('s', "NoSchedule"), taint('e', "NoExecute")].into_iter().flatten().collect();
            let role = if letters.contains('w') { "worker" } else { "other" };
            let node =
                json!({"metadata": {"name": name, "labels": {"role": role}}, "spec": {"taints": taints}});
            Arc::new(serde_json::from_value(node).unwrap())
        };
        text.split_whitespace().map(node).collect()
    }

    /// Pods as `node:letters`: `r`eady, `f`ailed, `t`erminating, `2` for the new revision.
    fn pods(text: &str) -> Vec<Arc<Pod>> {
        let pod = |(n, word): (usize, &str)| {
            let (node, letters) = word.split_once(':').unwrap();
            let ready = if letters.contains('r') { "True" } else { "False" };
            let mut pod = json!({
                "metadata": {"name": format!("{node}{n}"), "labels": {HASH_LABEL: if letters.contains('2') { "new" } else { "old" }}},
                "spec": {"nodeName": node},
                "status": {"phase": if letters.contains('f') { "Failed" } else { "Running" }, "conditions": [{"type": "Ready", "status": ready}]},
            });
            if letters.contains('t') {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        text.split_whitespace().enumerate().map(pod).collect()
    }

    fn check(strategy: Value, on: &str, there: &str, hash: &str) -> String {
        let plan = plan(&set(strategy), &nodes(on), &pods(there), hash, true, Timestamp::UNIX_EPOCH);
        let mut steps: Vec<String> = plan.create.iter().map(|node| format!("+{node}")).collect();
        steps.extend(plan.delete.iter().chain(&plan.finished).map(|pod| format!("-{}", name(&pod.metadata))));
        steps.sort();
        steps.join(" ")
    }

    #[test]
    fn every_fitting_node_gets_one_pod() {
        let table = [
            ("a:w b:w c:x", "", "+a +b"),
            ("a:w b:ws c:we", "", "+a"),
            ("a:ws b:we", "a:r b:r", "-b1"),
            ("a:w", "a:r a:r", "-a1"),
            ("a:w", "a:f", "-a0"),
            ("a:w", "a:rt", ""),
            ("a:x", "a:r", "-a0"),
        ];
        for (on, there, expected) in table {
            assert_eq!(check(json!({}), on, there, "old"), expected, "{on} with {there}");
        }
    }

    #[test]
    fn a_rolling_update_keeps_to_its_budget() {
        let unavailable = |most: Value| json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": most, "maxSurge": 0}});
        let surge = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}});
        let table = [
            (unavailable(json!(1)), "a:r b:r c:r", "-a0"),
            (unavailable(json!(1)), "a:r2 b:r c:r", "-b1"),
            (unavailable(json!(1)), "a:2 b:r c:r", ""),
            (unavailable(json!(1)), "a:rt b:r c:r", ""),
            (unavailable(json!(1)), "a: b:r c:r", "-a0"),
            (unavailable(json!("60%")), "a:r b:r c:r", "-a0 -b1"),
            (surge.clone(), "a:r b:r c:r", "+a"),
            (surge.clone(), "a:r a:2 b:r c:r", ""),
            (surge, "a:r a:r2 b:r c:r", "-a0"),
            (json!({"type": "OnDelete"}), "a:r b:r c:r", ""),
        ];
        for (strategy, there, expected) in table {
            assert_eq!(
                check(strategy.clone(), "a:w b:w c:w", there, "new"),
                expected,
                "{strategy} with {there}"
            );
        }
    }

    #[test]
    fn a_pinned_pod_counts_for_its_node_before_it_is_bound() {
        let mut pod = Pod::default();
        pin_to(pod.spec.get_or_insert_default(), "a");
        assert_eq!(target_node(&pod), "a");
        let plan = plan(&set(json!({})), &nodes("a:w"), &[Arc::new(pod)], "old", true, Timestamp::UNIX_EPOCH);
        assert!(plan.create.is_empty());
        assert_eq!((plan.status.desired_number_scheduled, plan.status.current_number_scheduled), (1, 1));
    }
}
