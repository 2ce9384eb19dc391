//! When a waiting pod gets its turn.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::fixture::pod;
use scheduler::pod::PodInfo;
use scheduler::queue::Queue;
use serde_json::json;

const FIT: &str = "NodeResourcesFit";

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn queue() -> Queue {
    Queue::new(at(1), at(10))
}

fn ranked(name: &str, priority: i32) -> Arc<PodInfo> {
    pod(name, json!({"spec": {"priority": priority}}))
}

fn pop(queue: &mut Queue, now: u64) -> Option<String> {
    queue.pop(at(now)).map(|queued| queued.pod.name.clone())
}

fn fail(queue: &mut Queue, name: &str, now: u64) {
    queue.unschedulable(&format!("uid-{name}"), BTreeSet::from([FIT]), at(now));
}

#[test]
fn the_most_important_comes_first_then_who_waits_longest() {
    let mut queue = queue();
    queue.add(ranked("low", 1), false, at(0));
    queue.add(ranked("late", 5), false, at(2));
    queue.add(ranked("early", 5), false, at(1));
    let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue, 3)).collect();
    assert_eq!(order, ["early", "late", "low"]);
}

#[test]
fn an_unschedulable_pod_waits_for_an_event_that_helps_it() {
    let mut queue = queue();
    queue.add(ranked("p", 0), false, at(0));
    assert_eq!(pop(&mut queue, 0).as_deref(), Some("p"));
    fail(&mut queue, "p", 0);
    assert_eq!(pop(&mut queue, 100), None);
    queue.on_event(at(100), |queued| !queued.plugins.contains(FIT));
    assert_eq!(pop(&mut queue, 100), None);
    queue.on_event(at(100), |queued| queued.plugins.contains(FIT));
    assert_eq!(pop(&mut queue, 100).as_deref(), Some("p"));
}

#[test]
fn backoff_doubles_up_to_its_limit() {
    let mut queue = queue();
    queue.add(ranked("p", 0), false, at(0));
    let mut now = 0;
    for expected in [1, 2, 4, 8, 10, 10] {
        assert_eq!(pop(&mut queue, now).as_deref(), Some("p"));
        fail(&mut queue, "p", now);
        queue.on_event(at(now), |_| true);
        assert_eq!(queue.next_deadline(), Some(at(now + expected)));
        assert_eq!(pop(&mut queue, now + expected - 1), None);
        now += expected;
    }
}

#[test]
fn an_event_during_the_attempt_is_not_missed() {
    let mut queue = queue();
    queue.add(ranked("p", 0), false, at(0));
    assert_eq!(pop(&mut queue, 0).as_deref(), Some("p"));
    queue.on_event(at(0), |_| false);
    fail(&mut queue, "p", 0);
    assert_eq!(pop(&mut queue, 1).as_deref(), Some("p"));
}

#[test]
fn a_pod_that_no_event_releases_is_tried_again_after_five_minutes() {
    let mut queue = queue();
    queue.add(ranked("p", 0), false, at(0));
    pop(&mut queue, 0);
    fail(&mut queue, "p", 0);
    assert_eq!(queue.next_deadline(), Some(at(300)));
    assert_eq!(pop(&mut queue, 299), None);
    assert_eq!(pop(&mut queue, 300).as_deref(), Some("p"));
}

#[test]
fn a_gated_pod_enters_when_its_gates_are_gone() {
    let mut queue = queue();
    queue.add(ranked("p", 0), true, at(0));
    queue.on_event(at(1), |_| true);
    assert_eq!(pop(&mut queue, 1), None);
    assert_eq!(queue.next_deadline(), None, "nothing to wake up for");
    queue.update(ranked("p", 0), false, true, at(2));
    assert_eq!(pop(&mut queue, 2).as_deref(), Some("p"));
}

#[test]
fn a_changed_pod_is_tried_again_and_an_unchanged_one_is_not() {
    for (changed, expected) in [(true, Some("p")), (false, None)] {
        let mut queue = queue();
        queue.add(ranked("p", 0), false, at(0));
        pop(&mut queue, 0);
        fail(&mut queue, "p", 0);
        queue.update(ranked("p", 0), false, changed, at(20));
        assert_eq!(pop(&mut queue, 20).as_deref(), expected);
    }
}

#[test]
fn a_removed_pod_is_gone_from_every_list() {
    for seconds in [0, 1] {
        let mut queue = queue();
        queue.add(ranked("p", 0), false, at(0));
        if seconds > 0 {
            pop(&mut queue, 0);
            queue.retry("uid-p", at(0));
        }
        assert!(queue.remove("uid-p").is_some());
        assert_eq!((pop(&mut queue, 500), queue.len()), (None, 0));
    }
}
