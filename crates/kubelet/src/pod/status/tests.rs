use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::pod::memory::{Ending, Mode, Waiting};
use crate::pod::observed::{ContainerObs, ContainerPhase, SandboxObs};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// `name phase [exit]`, as `c run` or `c exit 1`.
fn observed(containers: &[&str]) -> Observed {
    let seen = containers.iter().map(|text| {
        let words: Vec<&str> = text.split(' ').collect();
        ContainerObs {
            id: format!("{}-id", words[0]),
            name: words[0].to_owned(),
            sandbox_id: "s".to_owned(),
            attempt: 2,
            phase: if words[1] == "run" { ContainerPhase::Running } else { ContainerPhase::Exited },
            created_at: at(0),
            started_at: Some(at(1)),
            finished_at: Some(at(10)),
            exit_code: words.get(2).and_then(|c| c.parse().ok()).unwrap_or(0),
            reason: String::new(),
            message: String::new(),
            image: "img".to_owned(),
            image_id: "sha".to_owned(),
            hash: String::new(),
            log_path: String::new(),
            user: None,
        }
    });
    let ips = vec!["10.0.0.2".to_owned()];
    let sandbox = SandboxObs { id: "s".into(), attempt: 0, ready: true, created_at: at(0), ips };
    Observed::new(vec![sandbox], seen.collect())
}

fn status(spec: &Value, containers: &[&str], memory: &Memory, old: &PodStatus) -> PodStatus {
    let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 3}, "spec": spec});
    let model = PodModel::new(Arc::new(serde_json::from_value(pod).unwrap()));
    let node = NodeFacts { ips: vec!["192.0.2.1".into()], runtime: "r".into() };
    pod_status(&model, &observed(containers), memory, old, &node, at(100))
}

fn conditions(status: &PodStatus) -> String {
    let shown = status.conditions.iter().flatten().map(|c| {
        let reason = c.reason.as_deref().map(|r| format!("({r})")).unwrap_or_default();
        format!("{}={}{reason}", c.type_, c.status)
    });
    shown.collect::<Vec<_>>().join(" ")
}

#[test]
fn phases_follow_containers_and_policy() {
    let two = json!([{"name": "a"}, {"name": "b"}]);
    for (policy, containers, phase) in [
        ("Always", &[][..], "Pending"),
        ("Always", &["a run"], "Pending"),
        ("Always", &["a run", "b run"], "Running"),
        ("Always", &["a run", "b exit 1"], "Running"),
        ("Always", &["a exit 0", "b exit 0"], "Running"),
        ("OnFailure", &["a exit 0", "b exit 0"], "Succeeded"),
        ("OnFailure", &["a exit 0", "b exit 1"], "Running"),
        ("Never", &["a exit 0", "b exit 0"], "Succeeded"),
        ("Never", &["a exit 0", "b exit 1"], "Failed"),
        ("Never", &["a run", "b exit 1"], "Running"),
    ] {
        let spec = json!({"restartPolicy": policy, "containers": two});
        let got = status(&spec, containers, &Memory::default(), &PodStatus::default());
        assert_eq!(got.phase.as_deref(), Some(phase), "{policy} {containers:?}");
    }
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    for (policy, phase) in [("Never", "Failed"), ("Always", "Pending")] {
        let spec = json!({"restartPolicy": policy, "initContainers": [{"name": "i"}], "containers": [{"name": "c"}]});
        let got = status(&spec, &["i exit 1"], &Memory::default(), &PodStatus::default());
        assert_eq!(got.phase.as_deref(), Some(phase));
    }
}

#[test]
fn conditions_have_upstreams_reasons() {
    let plain = json!({"restartPolicy": "Never", "containers": [{"name": "c"}]});
    let gated = json!({"containers": [{"name": "c"}], "readinessGates": [{"conditionType": "g"}]});
    for (spec, containers, expected) in [
        (
            &plain,
            &["c run"][..],
            "PodReadyToStartContainers=True Initialized=True Ready=True ContainersReady=True PodScheduled=True",
        ),
        (
            &plain,
            &["c exit 0"],
            "PodReadyToStartContainers=False Initialized=True(PodCompleted) Ready=False(PodCompleted) \
             ContainersReady=False(PodCompleted) PodScheduled=True",
        ),
        (
            &plain,
            &["c exit 1"],
            "PodReadyToStartContainers=False Initialized=True Ready=False(PodFailed) ContainersReady=False(PodFailed) \
             PodScheduled=True",
        ),
        (
            &gated,
            &["c run"],
            "PodReadyToStartContainers=True Initialized=True Ready=False(ReadinessGatesNotReady) ContainersReady=True \
             PodScheduled=True",
        ),
    ] {
        let got = status(spec, containers, &Memory::default(), &PodStatus::default());
        assert_eq!(conditions(&got), expected);
    }
}

#[test]
fn a_restart_shows_no_waiting_until_it_is_held_back() {
    let spec = json!({"containers": [{"name": "c"}]});
    let mut memory = Memory::default();
    let shown = |memory: &Memory| {
        let status = status(&spec, &["c exit 1"], memory, &PodStatus::default());
        let container = status.container_statuses.unwrap().remove(0);
        let reason = |s: Option<ContainerState>| {
            let s = s.unwrap_or_default();
            s.waiting.and_then(|w| w.reason).or(s.terminated.and_then(|t| t.reason)).unwrap_or_default()
        };
        assert_eq!((container.restart_count, container.container_id.as_deref()), (2, Some("r://c-id")));
        (reason(container.state), reason(container.last_state))
    };
    assert_eq!(shown(&memory), ("Error".to_owned(), String::new()));
    let waiting = Waiting { reason: "CrashLoopBackOff".into(), message: "m".into() };
    memory.container_mut("c").waiting = Some(waiting);
    assert_eq!(shown(&memory), ("CrashLoopBackOff".to_owned(), "Error".to_owned()));
}

#[test]
fn an_eviction_fails_the_pod_only_when_its_processes_have_ended() {
    let spec = json!({"containers": [{"name": "c"}]});
    let failure = Failure { reason: "Evicted".into(), message: "low".into(), disruption: Some("low".into()) };
    let memory = Memory {
        mode: Mode::End(Ending { since: at(0), grace: Duration::ZERO, failure: Some(failure) }),
        ..Memory::default()
    };
    let old = PodStatus { phase: Some("Running".into()), ..PodStatus::default() };
    let alive = status(&spec, &["c run"], &memory, &old);
    assert_eq!((alive.phase.as_deref(), alive.reason), (Some("Running"), None));
    let ended = status(&spec, &["c exit 137"], &memory, &old);
    assert_eq!((ended.phase.as_deref(), ended.reason.as_deref()), (Some("Failed"), Some("Evicted")));
    assert!(conditions(&ended).contains("DisruptionTarget=True(TerminationByKubelet)"));
}

#[test]
fn times_generations_and_foreign_conditions_are_kept() {
    let spec = json!({"containers": [{"name": "c"}]});
    let first = status(&spec, &["c run"], &Memory::default(), &PodStatus::default());
    let mut old = first.clone();
    for condition in old.conditions.iter_mut().flatten() {
        condition.last_transition_time = Some(seconds(at(5)));
    }
    let foreign = PodCondition { type_: "mine".into(), status: "True".into(), ..PodCondition::default() };
    old.conditions.get_or_insert_default().push(foreign.clone());
    let again = status(&spec, &["c run"], &Memory::default(), &old);
    let all = again.conditions.unwrap();
    assert!(all.iter().filter(|c| c.type_ != "mine").all(|c| c.last_transition_time == Some(seconds(at(5)))));
    assert!(
        all.contains(&foreign) && all.iter().all(|c| c.type_ == "mine" || c.observed_generation == Some(3))
    );
    assert_eq!((again.start_time, again.observed_generation), (first.start_time, Some(3)));
    assert_eq!((again.pod_ip.as_deref(), again.host_ip.as_deref()), (Some("10.0.0.2"), Some("192.0.2.1")));
}
