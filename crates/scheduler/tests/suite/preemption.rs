//! Who has to go so that a more important pod fits.

use crate::fixture::{Cluster, affinity, merge, pod, pod_asking};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};

fn priority(value: i32) -> Value {
    json!({"spec": {"priority": value}})
}

fn ranked(name: &str, cpu: &str, value: i32, over: Value) -> std::sync::Arc<scheduler::pod::PodInfo> {
    let mut all = priority(value);
    merge(&mut all, &over);
    pod_asking(name, cpu, all)
}

fn check(placed: &[(&str, &str, &str, i32)], wanted: &str, expected: &str) {
    let mut cluster = Cluster::new(&[("a", json!({})), ("b", json!({}))]);
    for (node, name, cpu, value) in placed {
        cluster.place(node, ranked(name, cpu, *value, json!({})));
    }
    assert_eq!(cluster.outcome(&ranked("p", wanted, 100, json!({}))), expected, "{placed:?}");
}

#[test]
fn as_few_and_as_unimportant_pods_as_possible_leave() {
    // Everything that can stay, stays: the most important first.
    check(&[("a", "x", "2", 10), ("a", "y", "2", 20), ("b", "z", "4", 200)], "2", "a without x");
    // The node whose most important victim is the least important.
    check(&[("a", "x", "4", 20), ("b", "y", "4", 10)], "4", "b without y");
    // Then the smaller sum of priorities, then the fewer victims.
    check(&[("a", "x", "2", 10), ("a", "y", "2", 10), ("b", "z", "4", 10)], "4", "b without z");
    // Pods of the same priority stay.
    check(
        &[("a", "x", "4", 100), ("b", "y", "4", 100)],
        "1",
        "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: 2 No preemption victims \
         found for incoming pod.",
    );
    // Even with all of them gone there is no room.
    check(
        &[("a", "x", "1", 10), ("a", "y", "3", 100), ("b", "z", "4", 100)],
        "2",
        "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: 1 Insufficient cpu, 1 No \
         preemption victims found for incoming pod.",
    );
}

#[test]
fn the_younger_of_equal_victims_leaves() {
    let mut cluster = Cluster::new(&[("a", json!({}))]);
    let started = |time: &str| json!({"status": {"startTime": time}});
    cluster.place("a", ranked("old", "2", 10, started("2024-01-01T00:00:00Z")));
    cluster.place("a", ranked("young", "2", 10, started("2024-01-02T00:00:00Z")));
    assert_eq!(cluster.outcome(&ranked("p", "2", 100, json!({}))), "a without young");
}

#[test]
fn disruption_budgets_are_broken_last() {
    let mut cluster = Cluster::new(&[("a", json!({})), ("b", json!({}))]);
    let guarded = json!({"metadata": {"labels": {"app": "db"}}});
    cluster.place("a", ranked("guarded", "4", 1, guarded.clone()));
    cluster.place("b", ranked("free", "4", 50, json!({})));
    let preemptor = ranked("p", "4", 100, json!({}));
    assert_eq!(cluster.outcome(&preemptor), "a without guarded");
    let budget = |allowed: i32| -> PodDisruptionBudget {
        serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": "db"}}},
            "status": {"disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1},
        }))
        .expect("a budget")
    };
    cluster.snapshot.budgets.set("default", "db", Some(&budget(0)));
    assert_eq!(cluster.outcome(&preemptor), "b without free");
    cluster.snapshot.budgets.set("default", "db", Some(&budget(1)));
    assert_eq!(cluster.outcome(&preemptor), "a without guarded");
    // On one node, the guarded pod is put back first although the other is more important.
    let mut cluster = Cluster::new(&[("a", json!({}))]);
    cluster.snapshot.budgets.set("default", "db", Some(&budget(0)));
    cluster.place("a", ranked("guarded", "2", 1, guarded));
    cluster.place("a", ranked("free", "2", 50, json!({})));
    assert_eq!(cluster.outcome(&ranked("p", "2", 100, json!({}))), "a without free");
}

#[test]
fn ports_affinity_and_places_are_freed_as_well_as_cpu() {
    let port =
        json!({"spec": {"containers": [{"name": "main", "ports": [{"containerPort": 80, "hostPort": 80}]}]}});
    let apart = affinity("podAntiAffinity", json!({"app": "web"}), "kubernetes.io/hostname");
    let web = json!({"metadata": {"labels": {"app": "web"}}});
    for (held, wanted) in [(port.clone(), port), (web, apart)] {
        let mut cluster = Cluster::new(&[("a", json!({}))]);
        cluster.place("a", pod("bystander", priority(1)));
        let mut victim = priority(1);
        merge(&mut victim, &held);
        cluster.place("a", pod("victim", victim));
        let mut preemptor = priority(100);
        merge(&mut preemptor, &wanted);
        assert_eq!(cluster.outcome(&pod("p", preemptor)), "a without victim");
    }
    let mut cluster = Cluster::new(&[("a", json!({"status": {"allocatable": {"pods": "1"}}}))]);
    cluster.place("a", pod("victim", priority(1)));
    assert_eq!(cluster.outcome(&pod("p", priority(2))), "a without victim");
}

#[test]
fn a_pod_that_must_not_preempt_says_so() {
    let mut cluster = Cluster::new(&[("a", json!({}))]);
    cluster.place("a", ranked("x", "4", 1, json!({})));
    let polite = ranked("p", "4", 100, json!({"spec": {"preemptionPolicy": "Never"}}));
    assert_eq!(
        cluster.outcome(&polite),
        "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never."
    );
}

#[test]
fn one_preemption_at_a_time_and_its_room_is_kept() {
    let mut cluster = Cluster::new(&[("a", json!({}))]);
    let leaving = json!({
        "metadata": {"deletionTimestamp": "2024-01-01T00:00:00Z"},
        "status": {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]},
    });
    cluster.place("a", ranked("x", "2", 1, leaving));
    cluster.place("a", ranked("y", "2", 1, json!({})));
    let preemptor = ranked("p", "2", 100, json!({}));
    cluster.nominations.set(&preemptor, "a");
    assert_eq!(
        cluster.outcome(&preemptor),
        "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to a terminating pod on the \
         nominated node."
    );
    cluster.snapshot.remove_pod("uid-x");
    assert!(cluster.decide(&ranked("lesser", "2", 50, json!({}))).is_err(), "the room is promised");
    assert_eq!(cluster.decide(&ranked("greater", "2", 200, json!({}))).expect("a node"), "a");
    assert_eq!(cluster.decide(&preemptor).expect("a node"), "a");
}

#[test]
fn priorities_at_the_ends_of_their_range_do_not_overflow() {
    let mut cluster = Cluster::new(&[("a", json!({})), ("b", json!({}))]);
    for (node, name) in [("a", "a1"), ("a", "a2"), ("b", "b1")] {
        let cpu = if node == "a" { "2" } else { "4" };
        cluster.place(node, ranked(name, cpu, i32::MIN, json!({})));
    }
    assert_eq!(cluster.outcome(&ranked("p", "4", i32::MAX, json!({}))), "b without b1");
}
