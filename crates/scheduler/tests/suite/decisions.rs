//! Which node a pod goes to, and what it is told when there is none.

use std::collections::BTreeMap;

use crate::fixture::{Cluster, affinity, merge, pod, pod_asking};
use scheduler::Config;
use scheduler::labels::Labels;
use serde_json::{Value, json};

const ZONE: &str = "topology.kubernetes.io/zone";

fn zone(name: &str) -> Value {
    json!({"metadata": {"labels": {ZONE: name}}})
}

fn labelled(labels: Value) -> Value {
    json!({"metadata": {"labels": labels}})
}

fn both(mut a: Value, b: &Value) -> Value {
    merge(&mut a, b);
    a
}

#[test]
fn every_reason_is_counted_and_preemption_adds_its_own() {
    let mut cluster = Cluster::new(&[
        ("a", json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}})),
        ("b", json!({"status": {"allocatable": {"cpu": "1"}}})),
        ("c", json!({"spec": {"unschedulable": true}})),
    ]);
    assert_eq!(
        cluster.outcome(&pod_asking("p", "2", json!({}))),
        "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s), 1 node(s) were \
         unschedulable. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
    );
}

#[test]
fn a_full_node_is_told_from_one_that_could_never_do() {
    let mut cluster =
        Cluster::new(&[("a", json!({})), ("b", json!({"status": {"allocatable": {"pods": "1"}}}))]);
    cluster.place("a", pod_asking("x", "3", json!({})));
    cluster.place("b", pod("y", json!({})));
    assert_eq!(
        cluster.outcome(&pod_asking("p", "2", json!({}))),
        "0/2 nodes are available: 1 Insufficient cpu, 1 Too many pods. preemption: 0/2 nodes are available: \
         2 No preemption victims found for incoming pod."
    );
}

#[test]
fn node_selectors_affinity_names_and_ports_keep_pods_away() {
    let mut cluster = Cluster::new(&[
        ("a", labelled(json!({"disk": "ssd", "cores": "8"}))),
        ("b", labelled(json!({"disk": "hdd"}))),
    ]);
    let affinity = |expression: Value| {
        json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [expression]}}}}})
    };
    let needs = |key: &str, operator: &str, values: Value| {
        affinity(json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]}))
    };
    let port =
        json!({"spec": {"containers": [{"name": "main", "ports": [{"containerPort": 80, "hostPort": 80}]}]}});
    cluster.place("a", pod("web", port.clone()));
    let nowhere = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector. preemption: 0/2 \
                   nodes are available: 2 Preemption is not helpful for scheduling.";
    let named = |name: &str| {
        affinity(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}))
    };
    for (over, expected) in [
        (json!({"spec": {"nodeSelector": {"disk": "ssd"}}}), "a"),
        (needs("disk", "NotIn", json!(["ssd"])), "b"),
        (needs("cores", "Gt", json!(["4"])), "a"),
        (needs("cores", "Gt", json!(["8"])), nowhere),
        (affinity(json!({})), nowhere),
        (named("b"), "b"),
        (
            named("gone"),
            "0/2 nodes are available: 2 node(s) didn't satisfy plugin(s) [NodeAffinity]. preemption: 0/2 nodes are \
             available: 2 Preemption is not helpful for scheduling.",
        ),
        (port, "b"),
    ] {
        assert_eq!(cluster.outcome(&pod("p", over.clone())), expected, "{over}");
    }
}

#[test]
fn equal_nodes_share_pods_evenly() {
    let mut cluster = Cluster::new(&[("a", json!({})), ("b", json!({})), ("c", json!({}))]);
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for at in 0..300 {
        let node = cluster.decide(&pod(&format!("p{at}"), json!({}))).expect("a node");
        *counts.entry(node).or_default() += 1;
    }
    assert!(counts.len() == 3 && counts.values().all(|count| (70..=130).contains(count)), "{counts:?}");
}

#[test]
fn assumed_pods_count_as_if_they_were_bound() {
    let mut cluster = Cluster::new(&[("a", json!({})), ("b", json!({}))]);
    let mut seen = BTreeMap::new();
    for at in 0..3 {
        let pod = pod_asking(&format!("p{at}"), "3", json!({}));
        let outcome = cluster.decide(&pod);
        if let Ok(node) = &outcome {
            cluster.snapshot.place_pod(pod, node, true);
        }
        *seen.entry(outcome.unwrap_or_else(|error| error.to_string())).or_insert(0) += 1;
    }
    let expected = BTreeMap::from([
        ("a".to_owned(), 1),
        ("b".to_owned(), 1),
        ("0/2 nodes are available: 2 Insufficient cpu.".to_owned(), 1),
    ]);
    assert_eq!(seen, expected);
}

#[test]
fn the_emptier_node_is_liked_better_and_the_fuller_one_by_bin_packing() {
    let packing = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nprofiles:\n- \
                   pluginConfig:\n  - name: NodeResourcesFit\n    args:\n      scoringStrategy:\n        type: MostAllocated\n";
    let packing = Config::from_yaml(packing).expect("a valid configuration");
    for (config, expected) in [(Config::default(), "b"), (packing, "a")] {
        let mut cluster = Cluster::with_config(&config, &[("a", json!({})), ("b", json!({}))]);
        let memory = json!({"spec": {"containers": [{"name": "main", "resources": {"requests": {"cpu": "1", "memory": "2Gi"}}}]}});
        cluster.place("a", pod("x", memory.clone()));
        assert_eq!(cluster.outcome(&pod("p", memory)), expected);
    }
}

#[test]
fn preferred_affinity_taints_and_images_decide_between_equal_nodes() {
    let image = json!([{"names": ["app:1"], "sizeBytes": 900_000_000}]);
    let soft = json!({"spec": {"taints": [{"key": "k", "value": "", "effect": "PreferNoSchedule"}]}});
    let preferred = json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}]}}}});
    for (node, over) in
        [(json!({"status": {"images": image}}), json!({})), (labelled(json!({"disk": "ssd"})), preferred)]
    {
        let mut cluster = Cluster::new(&[("a", json!({})), ("b", node), ("c", json!({}))]);
        assert_eq!(cluster.outcome(&pod("p", over)), "b");
    }
    let mut cluster = Cluster::new(&[("a", soft.clone()), ("b", json!({})), ("c", soft)]);
    assert_eq!(cluster.outcome(&pod("p", json!({}))), "b");
}

fn spread(key: &str, max_skew: i32, when: &str, extra: &Value) -> Value {
    let mut constraint = json!({
        "topologyKey": key, "maxSkew": max_skew, "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"app": "web"}},
    });
    merge(&mut constraint, extra);
    both(labelled(json!({"app": "web"})), &json!({"spec": {"topologySpreadConstraints": [constraint]}}))
}

#[test]
fn hard_topology_spread_holds_the_skew() {
    let web = labelled(json!({"app": "web"}));
    let mut cluster = Cluster::new(&[("a", zone("1")), ("b", zone("1")), ("c", zone("2")), ("d", json!({}))]);
    cluster.place("a", pod("x", web.clone()));
    let hard = |extra: Value| spread(ZONE, 1, "DoNotSchedule", &extra);
    assert_eq!(cluster.outcome(&pod("p", hard(json!({})))), "c");
    assert_eq!(
        cluster.outcome(&pod("p", hard(json!({"minDomains": 3})))),
        "c",
        "a domain with nothing in it may have one pod"
    );
    cluster.place("c", pod("y", web.clone()));
    assert_eq!(
        cluster.outcome(&pod("p", hard(json!({"minDomains": 3})))),
        "0/4 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label), \
         3 node(s) didn't match pod topology spread constraints. preemption: 0/4 nodes are available: 1 Preemption \
         is not helpful for scheduling, 3 No preemption victims found for incoming pod."
    );
    let leaving = both(web, &json!({"metadata": {"deletionTimestamp": "2024-01-01T00:00:00Z"}}));
    cluster.place("a", pod("x", leaving));
    assert_ne!(cluster.outcome(&pod("p", hard(json!({})))), "c", "a pod on its way out does not count");
}

#[test]
fn nodes_that_the_pod_cannot_use_do_not_count_for_spread_unless_asked_to() {
    let out = both(zone("2"), &json!({"metadata": {"labels": {"pool": "other"}}}));
    let mut cluster = Cluster::new(&[
        ("a", both(zone("1"), &json!({"metadata": {"labels": {"pool": "own"}}}))),
        ("b", out),
    ]);
    cluster.place("a", pod("x", labelled(json!({"app": "web"}))));
    let picky = json!({"spec": {"nodeSelector": {"pool": "own"}}});
    let honor = both(spread(ZONE, 1, "DoNotSchedule", &json!({})), &picky);
    assert_eq!(cluster.outcome(&pod("p", honor)), "a");
    let ignore = both(spread(ZONE, 1, "DoNotSchedule", &json!({"nodeAffinityPolicy": "Ignore"})), &picky);
    assert!(cluster.outcome(&pod("p", ignore)).starts_with("0/2 nodes"));
}

#[test]
fn pods_of_a_service_spread_by_default() {
    let mut cluster = Cluster::new(&[("a", zone("1")), ("b", zone("1")), ("c", zone("2"))]);
    let web = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    cluster.snapshot.workloads.set_service("default", "web", Some(&web));
    for (at, node) in ["a", "b"].into_iter().enumerate() {
        cluster.place(node, pod(&format!("x{at}"), labelled(json!({"app": "web"}))));
    }
    // Without the service the other pods' requests would not tell c apart enough: make it the fullest.
    cluster.place("c", pod("y", json!({})));
    assert_eq!(cluster.outcome(&pod("p", labelled(json!({"app": "web"})))), "c");
}

#[test]
fn affinity_to_ones_own_kind_lets_the_first_pod_start() {
    let mut cluster = Cluster::new(&[("a", zone("1")), ("b", zone("2")), ("c", zone("2"))]);
    let own = both(labelled(json!({"app": "db"})), &affinity("podAffinity", json!({"app": "db"}), ZONE));
    assert!(cluster.decide(&pod("first", own.clone())).is_ok());
    let other = affinity("podAffinity", json!({"app": "db"}), ZONE);
    assert_eq!(
        cluster.decide(&pod("other", other.clone())).map_err(|error| error.to_string()),
        Err("0/3 nodes are available: 3 node(s) didn't match pod affinity rules.".to_owned())
    );
    cluster.place("a", pod("first", own.clone()));
    assert_eq!(cluster.decide(&pod("second", own)).expect("a node"), "a");
    assert_eq!(cluster.decide(&pod("other", other)).expect("a node"), "a");
}

#[test]
fn anti_affinity_holds_both_ways_and_ends_when_the_pod_leaves() {
    let mut cluster = Cluster::new(&[("a", zone("1")), ("b", zone("2"))]);
    let loner = affinity("podAntiAffinity", json!({"app": "web"}), ZONE);
    let web = labelled(json!({"app": "web"}));
    cluster.place("a", pod("loner", loner.clone()));
    assert_eq!(cluster.decide(&pod("w", web.clone())).expect("a node"), "b");
    cluster.place("b", pod("w", web.clone()));
    let told = |cluster: &mut Cluster, over: &Value| {
        cluster.decide(&pod("p", over.clone())).map_err(|error| error.to_string())
    };
    cluster.place("b", pod("loner2", loner.clone()));
    assert_eq!(
        told(&mut cluster, &web),
        Err("0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules.".to_owned())
    );
    assert_eq!(told(&mut cluster, &loner), Ok("a".to_owned()));
    cluster.place("a", pod("w2", web.clone()));
    assert_eq!(
        told(&mut cluster, &loner),
        Err("0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules.".to_owned())
    );
    cluster.snapshot.remove_pod("uid-w");
    assert_eq!(told(&mut cluster, &loner), Ok("b".to_owned()));
}

#[test]
fn affinity_looks_into_other_namespaces_by_name_and_by_label() {
    let mut cluster = Cluster::new(&[("a", zone("1")), ("b", zone("2"))]);
    let elsewhere = both(labelled(json!({"app": "db"})), &json!({"metadata": {"namespace": "data"}}));
    cluster.place("b", pod("db", elsewhere));
    let term = |extra: &Value| {
        let mut term = json!({"labelSelector": {"matchLabels": {"app": "db"}}, "topologyKey": ZONE});
        merge(&mut term, extra);
        json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}})
    };
    let by_label = term(&json!({"namespaceSelector": {"matchLabels": {"team": "x"}}}));
    assert!(cluster.decide(&pod("p", term(&json!({})))).is_err());
    assert_eq!(cluster.decide(&pod("p", term(&json!({"namespaces": ["data"]})))).expect("a node"), "b");
    assert_eq!(cluster.decide(&pod("p", term(&json!({"namespaceSelector": {}})))).expect("a node"), "b");
    assert!(cluster.decide(&pod("p", by_label.clone())).is_err());
    let team = BTreeMap::from([("team".to_owned(), "x".to_owned())]);
    cluster.snapshot.set_namespace("data", Some(Labels::from(Some(&team))));
    assert_eq!(cluster.decide(&pod("p", by_label)).expect("a node"), "b");
}

#[test]
fn preferred_affinity_of_either_side_scores() {
    let preferred = |kind: &str| {
        json!({"spec": {"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100,
            "podAffinityTerm": {"labelSelector": {"matchLabels": {"app": "db"}}, "topologyKey": ZONE}}]}}}})
    };
    let db = labelled(json!({"app": "db"}));
    let nodes = [("a", zone("1")), ("b", zone("2"))];
    let mut cluster = Cluster::new(&nodes);
    cluster.place("b", pod("db", db.clone()));
    cluster.place("a", pod("filler", json!({})));
    assert_eq!(cluster.outcome(&pod("p", preferred("podAffinity"))), "b");
    assert_eq!(cluster.outcome(&pod("p", preferred("podAntiAffinity"))), "a");
    let mut cluster = Cluster::new(&nodes);
    cluster.place("b", pod("fan", preferred("podAffinity")));
    cluster.place("a", pod("filler", json!({})));
    assert_eq!(cluster.outcome(&pod("p", db)), "b");
}

#[test]
fn a_node_that_is_removed_or_relabelled_is_seen_so_at_once() {
    let mut cluster = Cluster::new(&[("a", zone("1")), ("b", zone("2"))]);
    let loner =
        both(labelled(json!({"app": "web"})), &affinity("podAntiAffinity", json!({"app": "web"}), ZONE));
    cluster.place("a", pod("x", loner.clone()));
    assert_eq!(cluster.decide(&pod("p", loner.clone())).expect("a node"), "b");
    cluster.add_node("b", &zone("1"));
    assert!(cluster.decide(&pod("p", loner.clone())).is_err());
    cluster.snapshot.remove_node("a");
    assert_eq!(cluster.decide(&pod("p", loner.clone())).expect("a node"), "b");
    cluster.add_node("a", &zone("1"));
    assert!(cluster.decide(&pod("p", loner)).is_err(), "the pod was on the node all along");
}
