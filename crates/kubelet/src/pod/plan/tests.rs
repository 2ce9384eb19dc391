use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::pod::memory::{Ending, KillRequest};
use crate::pod::observed::SandboxObs;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn model(spec: Value) -> PodModel {
    let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec});
    PodModel::new(Arc::new(serde_json::from_value(pod).unwrap()))
}

/// `name phase [exit]`, phases as in `c run`, `c exit 1`; all in sandbox `s`, attempt by order of appearance.
fn observed(containers: &[&str]) -> Observed {
    let mut seen = Vec::new();
    for (index, text) in containers.iter().enumerate() {
        let words: Vec<&str> = text.split(' ').collect();
        let earlier = containers[..index].iter().filter(|c| c.split(' ').next() == Some(words[0])).count();
        seen.push(ContainerObs {
            id: format!("{}-{earlier}", words[0]),
            name: words[0].to_owned(),
            sandbox_id: "s".to_owned(),
            attempt: i32::try_from(earlier).unwrap(),
            phase: match words[1] {
                "run" => ContainerPhase::Running,
                "exit" => ContainerPhase::Exited,
                _ => ContainerPhase::Created,
            },
            created_at: at(0),
            started_at: Some(at(0)),
            finished_at: Some(at(10)),
            exit_code: words.get(2).and_then(|c| c.parse().ok()).unwrap_or(0),
            reason: String::new(),
            message: String::new(),
            image: String::new(),
            image_id: String::new(),
            hash: String::new(),
            log_path: String::new(),
            user: None,
        });
    }
    let sandbox = SandboxObs { id: "s".into(), attempt: 0, ready: true, created_at: at(0), ips: vec![] };
    Observed::new(vec![sandbox], seen)
}

fn ready(names: &[&str]) -> Memory {
    let mut memory = Memory { volumes: Step::Done, sandbox: Step::Done, ..Memory::default() };
    for name in names {
        memory.container_mut(name).image = ImageState::Present("i".into());
    }
    memory
}

fn shown(actions: Vec<PodAction>) -> String {
    let words: Vec<String> = actions
        .into_iter()
        .map(|action| match action {
            PodAction::SetUpVolumes => "volumes".to_owned(),
            PodAction::CreateSandbox { attempt, .. } => format!("sandbox#{attempt}"),
            PodAction::PullImage { container } => format!("pull:{container}"),
            PodAction::StartContainer { container, attempt, .. } => format!("start:{container}#{attempt}"),
            PodAction::RunPostStart { container, .. } => format!("hook:{container}"),
            PodAction::KillContainer { container, grace, .. } => {
                format!("kill:{container}/{}", grace.as_secs())
            }
            PodAction::RemoveContainer { id } => format!("remove:{id}"),
            PodAction::SetWaiting { container, waiting } => format!("wait:{container}={}", waiting.reason),
            PodAction::TearDown => "teardown".to_owned(),
            PodAction::WakeAt(time) => format!("wake@{}", time.as_second()),
        })
        .collect();
    words.join(" ")
}

fn check(spec: &Value, containers: &[&str], memory: &Memory, now: i64, expected: &str) {
    let actions = plan_pod(&model(spec.clone()), &observed(containers), memory, at(now));
    assert_eq!(shown(actions), expected, "{containers:?} of {spec}");
}

#[test]
fn a_new_pod_gets_volumes_then_a_sandbox_then_containers() {
    let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    let model = model(spec.clone());
    let plan = |memory: &Memory| shown(plan_pod(&model, &Observed::default(), memory, at(0)));
    assert_eq!(plan(&Memory::default()), "volumes");
    let mut memory = Memory { volumes: Step::Done, ..Memory::default() };
    assert_eq!(plan(&memory), "pull:a pull:b sandbox#0");
    memory.sandbox = Step::Failed { until: at(5) };
    memory.container_mut("a").image = ImageState::Present("i".into());
    assert_eq!(plan(&memory), "pull:b wake@5");
    check(&spec, &[], &ready(&["a", "b"]), 0, "start:a#0 start:b#0");
}

#[test]
fn restarts_follow_the_policy() {
    for (policy, code, expected) in [
        ("Always", 0, "start:c#1"),
        ("Always", 1, "start:c#1"),
        ("OnFailure", 0, ""),
        ("OnFailure", 1, "start:c#1"),
        ("Never", 1, ""),
    ] {
        let spec = json!({"restartPolicy": policy, "containers": [{"name": "c"}]});
        check(&spec, &[&format!("c exit {code}")], &ready(&["c"]), 20, expected);
    }
}

#[test]
fn containers_and_rules_may_have_their_own_policy() {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let container = json!({"name": "c", "restartPolicy": "Never", "restartPolicyRules": rules});
    let spec = json!({"restartPolicy": "Always", "containers": [container]});
    check(&spec, &["c exit 42"], &ready(&["c"]), 20, "start:c#1");
    check(&spec, &["c exit 1"], &ready(&["c"]), 20, "");
}

#[test]
fn a_crash_is_waited_out_and_said() {
    let spec = json!({"containers": [{"name": "c"}]});
    let mut memory = ready(&["c"]);
    memory.container_mut("c").crash.advance(at(9), at(9), crate::pod::backoff::MAXIMUM);
    check(&spec, &["c exit 1"], &memory, 12, "wait:c=CrashLoopBackOff wake@20");
    check(&spec, &["c exit 1"], &memory, 20, "start:c#1");
}

#[test]
fn failed_pulls_show_themselves_and_then_the_wait() {
    let spec = json!({"containers": [{"name": "c", "image": "x"}]});
    let mut memory = ready(&[]);
    let failure = Waiting { reason: "ErrImagePull".into(), message: "m".into() };
    memory.container_mut("c").image = ImageState::Failed { at: at(0), until: at(10), failure };
    check(&spec, &[], &memory, 1, "wake@2");
    check(&spec, &[], &memory, 3, "wait:c=ImagePullBackOff wake@10");
    check(&spec, &[], &memory, 10, "pull:c");
}

#[test]
fn init_containers_run_one_by_one_and_sidecars_stay() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "c"}],
        "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}, {"name": "j"}]});
    let memory = ready(&["i", "s", "j", "c"]);
    let mut started = memory.clone();
    started.container_mut("s").started = Some("s-0".into());
    for (containers, memory, expected) in [
        (&[][..], &memory, "start:i#0"),
        (&["i run"], &memory, ""),
        (&["i exit 0"], &memory, "start:s#0"),
        (&["i exit 1"], &memory, ""),
        (&["i exit 0", "s run"], &memory, ""),
        (&["i exit 0", "s run"], &started, "start:j#0"),
        (&["i exit 0", "s run", "j exit 0"], &started, "start:c#0"),
        (&["i exit 0", "s exit 1", "j exit 0", "c run"], &started, "start:s#1"),
    ] {
        check(&spec, containers, memory, 20, expected);
    }
}

#[test]
fn hooks_hold_back_the_next_container() {
    let hook = json!({"postStart": {"exec": {"command": ["x"]}}});
    let spec = json!({"containers": [{"name": "a", "lifecycle": hook}, {"name": "b"}]});
    let mut memory = ready(&["b"]);
    check(&spec, &["a run"], &memory, 0, "hook:a start:b#0");
    memory.container_mut("a").operation = Some(Operation::Hooking);
    check(&spec, &["a run"], &memory, 0, "");
}

#[test]
fn failed_probes_kill_with_their_own_grace() {
    let spec = json!({"terminationGracePeriodSeconds": 7, "containers": [{"name": "c"}]});
    let mut memory = ready(&[]);
    for (grace, expected) in [(None, "kill:c/7"), (Some(Duration::from_secs(1)), "kill:c/1")] {
        memory.container_mut("c").kill = Some(KillRequest { id: "c-0".into(), message: "m".into(), grace });
        check(&spec, &["c run"], &memory, 0, expected);
    }
}

#[test]
fn the_end_takes_regular_containers_first_and_tears_down_last() {
    let spec = json!({"containers": [{"name": "c"}], "initContainers": [
        {"name": "s", "restartPolicy": "Always"}, {"name": "t", "restartPolicy": "Always"}]});
    let mut memory = ready(&[]);
    memory.mode = Mode::End(Ending { since: at(0), grace: Duration::from_secs(30), failure: None });
    for (containers, now, expected) in [
        (&["s run", "t run", "c run"][..], 0, "kill:c/30"),
        (&["s run", "t run", "c exit 0"], 10, "kill:t/20"),
        (&["s run", "t exit 0", "c exit 0"], 40, "kill:s/0"),
        (&["s exit 0", "t exit 0", "c exit 0"], 40, "teardown"),
    ] {
        check(&spec, containers, &memory, now, expected);
    }
    memory.container_mut("c").operation = Some(Operation::Killing);
    check(&spec, &["c exit 0"], &memory, 1, "");
}

#[test]
fn only_one_dead_container_is_kept_beside_the_present_one() {
    let spec = json!({"containers": [{"name": "c"}]});
    check(&spec, &["c exit 1", "c exit 1", "c run"], &ready(&[]), 0, "remove:c-0");
    let mut memory = ready(&["c"]);
    memory.container_mut("c").operation = Some(Operation::Starting);
    check(&spec, &["c exit 1", "c exit 1", "c exit 1"], &memory, 20, "remove:c-0");
}

#[test]
fn a_dead_sandbox_is_replaced_unless_nothing_will_run_in_it() {
    for (policy, code, expected) in
        [("Always", 0, "pull:c sandbox#1"), ("Never", 0, ""), ("OnFailure", 0, "")]
    {
        let model = model(json!({"restartPolicy": policy, "containers": [{"name": "c"}]}));
        let mut observed = observed(&[&format!("c exit {code}")]);
        observed.sandboxes[0].ready = false;
        let memory = Memory { volumes: Step::Done, ..Memory::default() };
        assert_eq!(shown(plan_pod(&model, &observed, &memory, at(20))), expected, "{policy}");
    }
}
