//! `PodStatus` to the letter: phase, conditions and addresses.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, HostIP, PodCondition, PodIP, PodStatus};

use super::container_status::{View, seconds};
use super::memory::{Failure, Memory, Step};
use super::model::{ContainerKind, PodModel, RestartPolicy};
use super::observed::Observed;

/// What of the node shows in a pod's status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    pub(crate) ips: Vec<String>,
    /// The scheme of container ids: the runtime's name.
    pub(crate) runtime: String,
}

const OWNED_CONDITIONS: [&str; 7] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "PodResizePending",
    "PodResizeInProgress",
];

pub(crate) fn pod_status(
    model: &PodModel,
    observed: &Observed,
    memory: &Memory,
    old: &PodStatus,
    node: &NodeFacts,
    now: Timestamp,
) -> PodStatus {
    let view = View { model, observed, memory, old, runtime: &node.runtime };
    let init = view.statuses(&[ContainerKind::Init, ContainerKind::Sidecar]);
    let regular = view.statuses(&[ContainerKind::Regular]);
    let ephemeral = view.statuses(&[ContainerKind::Ephemeral]);
    let failure = memory.ending().and_then(|e| e.failure.as_ref());
    let mut phase = match failure {
        Some(_) => "Failed",
        None => phase(model, &init, &regular, memory.ending().is_some()),
    };
    // A pod is not over while one of its processes lives.
    let old_phase = old.phase.as_deref().unwrap_or("Pending");
    let held = is_terminal(phase) && !is_terminal(old_phase) && observed.any_alive();
    if held || is_terminal(old_phase) {
        phase = old_phase;
    }
    // Whatever was torn down will not run again, even if it never ran.
    if memory.teardown == Step::Done && !is_terminal(phase) {
        phase = "Failed";
    }
    let shown = failure.filter(|_| !held);
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        reason: shown.map(|f| f.reason.clone()).or_else(|| old.reason.clone().filter(|_| is_terminal(phase))),
        message: shown
            .map(|f| f.message.clone())
            .or_else(|| old.message.clone().filter(|_| is_terminal(phase))),
        qos_class: Some(old.qos_class.clone().unwrap_or_else(|| model.qos.as_str().to_owned())),
        start_time: old.start_time.clone().or_else(|| Some(seconds(now))),
        observed_generation: model.pod.metadata.generation,
        init_container_statuses: non_empty(init),
        container_statuses: non_empty(regular),
        ephemeral_container_statuses: non_empty(ephemeral),
        ..PodStatus::default()
    };
    add_addresses(model, observed, node, old, &mut status);
    keep_foreign(old, &mut status);
    status.conditions = Some(conditions(model, observed, old, &status, shown, now));
    status
}

/// Fields other components write.
fn keep_foreign(old: &PodStatus, status: &mut PodStatus) {
    status.nominated_node_name.clone_from(&old.nominated_node_name);
    status.resource_claim_statuses.clone_from(&old.resource_claim_statuses);
    status.extended_resource_claim_status.clone_from(&old.extended_resource_claim_status);
    status.node_allocatable_resource_claim_statuses.clone_from(&old.node_allocatable_resource_claim_statuses);
    status.allocated_resources.clone_from(&old.allocated_resources);
    status.resources.clone_from(&old.resources);
}

fn non_empty(list: Vec<ContainerStatus>) -> Option<Vec<ContainerStatus>> {
    Some(list).filter(|l| !l.is_empty())
}

pub(crate) fn is_terminal(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

fn add_addresses(
    model: &PodModel,
    observed: &Observed,
    node: &NodeFacts,
    old: &PodStatus,
    status: &mut PodStatus,
) {
    status.host_ip = node.ips.first().cloned();
    let host_ips: Vec<HostIP> = node.ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect();
    status.host_ips = Some(host_ips).filter(|ips| !ips.is_empty());
    let ips: Vec<String> = if model.host_network() {
        if observed.sandboxes.is_empty() { Vec::new() } else { node.ips.clone() }
    } else {
        observed.sandboxes.first().map(|s| s.ips.clone()).unwrap_or_default()
    };
    if ips.is_empty() {
        status.pod_ip.clone_from(&old.pod_ip);
        status.pod_ips.clone_from(&old.pod_ips);
        return;
    }
    status.pod_ip = ips.first().cloned();
    status.pod_ips = Some(ips.into_iter().map(|ip| PodIP { ip }).collect());
}

#[derive(Default)]
struct Counts {
    failed_init: usize,
    pending_init: usize,
    pending_sidecars: usize,
    waiting: usize,
    running: usize,
    stopped: usize,
    succeeded: usize,
}

fn phase(
    model: &PodModel,
    init: &[ContainerStatus],
    regular: &[ContainerStatus],
    ending: bool,
) -> &'static str {
    let counts = count(model, init, regular);
    let initialized = regular.iter().any(|s| {
        s.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some())
            || s.last_state.as_ref().is_some_and(|s| s.terminated.is_some())
    });
    if counts.failed_init > 0 && model.restart_policy == RestartPolicy::Never {
        return "Failed";
    }
    if !initialized && (counts.pending_init > 0 || counts.pending_sidecars > 0) {
        return "Pending";
    }
    if counts.waiting > 0 {
        return "Pending";
    }
    if counts.running > 0 {
        return "Running";
    }
    if counts.stopped == 0 {
        return "Pending";
    }
    match (ending, counts.stopped == counts.succeeded, model.restart_policy) {
        (true, true, _) => "Succeeded",
        (true, false, _) => "Failed",
        (false, _, RestartPolicy::Always) if will_any_restart(model, regular) => "Running",
        (false, true, _) => "Succeeded",
        (false, false, RestartPolicy::OnFailure) => "Running",
        (false, false, _) if will_any_restart(model, regular) => "Running",
        (false, false, _) => "Failed",
    }
}

fn will_any_restart(model: &PodModel, regular: &[ContainerStatus]) -> bool {
    regular.iter().any(|status| {
        let terminated = status.state.as_ref().and_then(|s| s.terminated.as_ref());
        let Some(terminated) = terminated else { return true };
        model
            .container(&status.name)
            .is_some_and(|c| c.restarts_after(terminated.exit_code, model.restart_policy))
    })
}

fn count(model: &PodModel, init: &[ContainerStatus], regular: &[ContainerStatus]) -> Counts {
    let mut counts = Counts::default();
    for status in init {
        let state = status.state.clone().unwrap_or_default();
        let sidecar = model.container(&status.name).is_some_and(|c| c.kind == ContainerKind::Sidecar);
        if sidecar {
            counts.pending_sidecars += usize::from(status.started != Some(true));
            continue;
        }
        let ended = state.terminated.or_else(|| status.last_state.clone().and_then(|s| s.terminated));
        match ended {
            Some(terminated) if state.running.is_none() => {
                counts.failed_init += usize::from(terminated.exit_code != 0);
                counts.pending_init += usize::from(terminated.exit_code != 0);
            }
            _ => counts.pending_init += 1,
        }
    }
    for status in regular {
        let state = status.state.clone().unwrap_or_default();
        let ended_before = status.last_state.as_ref().is_some_and(|s| s.terminated.is_some());
        if state.running.is_some() {
            counts.running += 1;
        } else if let Some(terminated) = state.terminated {
            counts.stopped += 1;
            counts.succeeded += usize::from(terminated.exit_code == 0);
        } else if ended_before {
            counts.stopped += 1;
        } else {
            counts.waiting += 1;
        }
    }
    counts
}

/// A condition's outcome before times and generations are added.
struct Outcome {
    status: bool,
    reason: &'static str,
    message: String,
}

impl Outcome {
    fn yes() -> Self {
        Self { status: true, reason: "", message: String::new() }
    }

    fn no(reason: &'static str, message: String) -> Self {
        Self { status: false, reason, message }
    }
}

fn conditions(
    model: &PodModel,
    observed: &Observed,
    old: &PodStatus,
    status: &PodStatus,
    failure: Option<&Failure>,
    now: Timestamp,
) -> Vec<PodCondition> {
    let phase = status.phase.as_deref().unwrap_or_default();
    let with_network = |ips: &[String]| model.host_network() || !ips.is_empty();
    let sandbox_ready = observed.ready_sandbox().is_some_and(|s| with_network(&s.ips)) && !is_terminal(phase);
    let containers_ready = containers_ready(model, status, phase);
    let ready = ready(model, old, phase, &containers_ready);
    let mut outcomes = vec![
        ("PodReadyToStartContainers", Outcome { status: sandbox_ready, ..Outcome::yes() }),
        ("Initialized", initialized(model, status, phase)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Outcome::yes()),
    ];
    if let Some(message) = failure.and_then(|f| f.disruption.clone()) {
        outcomes
            .push(("DisruptionTarget", Outcome { status: true, reason: "TerminationByKubelet", message }));
    }
    let mut result: Vec<PodCondition> = Vec::new();
    for (kind, outcome) in outcomes {
        let before = old.conditions.iter().flatten().find(|c| c.type_ == kind);
        result.push(condition(model, kind, outcome, before, now));
    }
    let foreign = old.conditions.iter().flatten();
    result
        .extend(foreign.filter(|c| !result.iter().any(|r| r.type_ == c.type_)).cloned().collect::<Vec<_>>());
    result
}

pub(crate) fn is_owned(kind: &str) -> bool {
    OWNED_CONDITIONS.contains(&kind) || kind == "DisruptionTarget"
}

fn condition(
    model: &PodModel,
    kind: &str,
    outcome: Outcome,
    before: Option<&PodCondition>,
    now: Timestamp,
) -> PodCondition {
    let status = if outcome.status { "True" } else { "False" };
    let unchanged = before.filter(|b| b.status == status);
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(outcome.reason.to_owned()).filter(|r| !r.is_empty()),
        message: Some(outcome.message).filter(|m| !m.is_empty()),
        last_probe_time: None,
        last_transition_time: unchanged
            .and_then(|b| b.last_transition_time.clone())
            .or_else(|| Some(seconds(now))),
        observed_generation: model.pod.metadata.generation,
    }
}

/// Names of containers for which `wanted` is false; those without a status at all apart.
fn split(
    model: &PodModel,
    kinds: &[ContainerKind],
    status: &PodStatus,
    wanted: impl Fn(&ContainerStatus, ContainerKind) -> bool,
) -> (Vec<String>, Vec<String>) {
    let lists = [&status.init_container_statuses, &status.container_statuses];
    let known: BTreeMap<&str, &ContainerStatus> =
        lists.into_iter().flatten().flatten().map(|s| (s.name.as_str(), s)).collect();
    let mut unknown = Vec::new();
    let mut missing = Vec::new();
    for container in model.of_kind(kinds) {
        match known.get(container.name()) {
            None => unknown.push(container.name().to_owned()),
            Some(status) if !wanted(status, container.kind) => missing.push(container.name().to_owned()),
            Some(_) => {}
        }
    }
    (unknown, missing)
}

fn describe(what: &str, unknown: &[String], missing: &[String]) -> String {
    let mut parts = Vec::new();
    if !unknown.is_empty() {
        parts.push(format!("containers with unknown status: [{}]", unknown.join(" ")));
    }
    if !missing.is_empty() {
        parts.push(format!("containers with {what} status: [{}]", missing.join(" ")));
    }
    parts.join(", ")
}

fn containers_ready(model: &PodModel, status: &PodStatus, phase: &str) -> Outcome {
    let kinds = [ContainerKind::Sidecar, ContainerKind::Regular];
    let (unknown, unready) = split(model, &kinds, status, |s, _| s.ready);
    match phase {
        "Succeeded" if unknown.is_empty() => Outcome::no("PodCompleted", String::new()),
        "Failed" => Outcome::no("PodFailed", String::new()),
        _ if unknown.is_empty() && unready.is_empty() => Outcome::yes(),
        _ => Outcome::no("ContainersNotReady", describe("unready", &unknown, &unready)),
    }
}

fn ready(model: &PodModel, old: &PodStatus, phase: &str, containers: &Outcome) -> Outcome {
    if !containers.status || is_terminal(phase) {
        return Outcome::no(containers.reason, containers.message.clone());
    }
    let mut messages = Vec::new();
    for gate in model.spec.readiness_gates.iter().flatten() {
        let name = &gate.condition_type;
        match old.conditions.iter().flatten().find(|c| &c.type_ == name) {
            None => {
                messages.push(format!(
                    "corresponding condition of pod readiness gate \"{name}\" does not exist."
                ));
            }
            Some(c) if c.status != "True" => {
                messages.push(format!(
                    "the status of pod readiness gate \"{name}\" is not \"True\", but {}",
                    c.status
                ));
            }
            Some(_) => {}
        }
    }
    if messages.is_empty() {
        Outcome::yes()
    } else {
        Outcome::no("ReadinessGatesNotReady", messages.join(", "))
    }
}

fn initialized(model: &PodModel, status: &PodStatus, phase: &str) -> Outcome {
    let has_run =
        |state: Option<&ContainerState>| state.is_some_and(|s| s.running.is_some() || s.terminated.is_some());
    let begun = status
        .container_statuses
        .iter()
        .flatten()
        .any(|s| has_run(s.state.as_ref()) || has_run(s.last_state.as_ref()));
    let kinds = [ContainerKind::Init, ContainerKind::Sidecar];
    let (unknown, incomplete) = split(model, &kinds, status, |s, kind| match kind {
        ContainerKind::Sidecar => s.started == Some(true) || begun,
        _ => s.ready || begun,
    });
    match phase {
        "Succeeded" if unknown.is_empty() => Outcome { reason: "PodCompleted", ..Outcome::yes() },
        _ if unknown.is_empty() && incomplete.is_empty() => Outcome::yes(),
        _ => Outcome::no("ContainersNotInitialized", describe("incomplete", &unknown, &incomplete)),
    }
}

#[cfg(test)]
mod tests;
