//! The row of a pod: its phase, unless its containers have more to say.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Printer, int, is_true, items, parse_time, text, text_or};

/// How often containers restarted, and when last.
#[derive(Debug, Clone, Copy, Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += int(&status["restartCount"]);
        self.last = self.last.max(parse_time(&status["lastState"]["terminated"]["finishedAt"]));
    }
}

/// What the containers' statuses come to.
struct Summary {
    reason: String,
    ready: usize,
    restarts: Restarts,
}

impl Printer<'_> {
    pub(super) fn pod(&self) -> Vec<Value> {
        let (spec, status) = (self.spec(), self.status());
        let sidecars =
            items(&spec["initContainers"]).iter().filter(|container| is_sidecar(container)).count();
        let total = items(&spec["containers"]).len() + sidecars;
        let Summary { mut reason, ready, restarts } = self.summary();
        if self.deleting() {
            if status["reason"] == "NodeLost" {
                reason = "Unknown".to_owned();
            } else if !matches!(text(&status["phase"]), "Succeeded" | "Failed") {
                reason = "Terminating".to_owned();
            }
        }
        let restarts = match restarts.last {
            Some(last) if restarts.count != 0 => {
                format!("{} ({} ago)", restarts.count, super::human_duration(self.now.duration_since(last)))
            }
            _ => restarts.count.to_string(),
        };
        let gates = items(&spec["readinessGates"]);
        let met =
            gates.iter().filter(|gate| is_true(&status["conditions"], text(&gate["conditionType"]))).count();
        let gates = if gates.is_empty() { "<none>".to_owned() } else { format!("{met}/{}", gates.len()) };
        vec![
            self.name(),
            json!(format!("{ready}/{total}")),
            json!(reason),
            json!(restarts),
            self.age(),
            json!(text_or(&status["podIPs"][0]["ip"], "<none>")),
            json!(text_or(&spec["nodeName"], "<none>")),
            json!(text_or(&status["nominatedNodeName"], "<none>")),
            json!(gates),
        ]
    }

    fn summary(&self) -> Summary {
        let (spec, status) = (self.spec(), self.status());
        let conditions = &status["conditions"];
        let mut reason = text_or(&status["reason"], text(&status["phase"])).to_owned();
        let gated = |condition: &&Value| {
            condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated"
        };
        if items(conditions).iter().find(gated).is_some() {
            reason = "SchedulingGated".to_owned();
        }
        let (mut all, mut sidecars) = (Restarts::default(), Restarts::default());
        let mut ready = 0;
        let mut initializing = None;
        let init = items(&spec["initContainers"]);
        for (index, container) in items(&status["initContainerStatuses"]).iter().enumerate() {
            let own = init.iter().find(|own| own["name"] == container["name"]);
            let sidecar = own.is_some_and(is_sidecar);
            all.add(container);
            if sidecar {
                sidecars.add(container);
            }
            if sidecar && container["started"] == true && !ended_well(container) {
                ready += usize::from(container["ready"] == true);
                continue;
            }
            if let Some(state) = init_reason(container, index, init.len()) {
                initializing = Some(state);
                break;
            }
        }
        let initialized = is_true(conditions, "Initialized");
        if let Some(state) = &initializing {
            reason.clone_from(state);
        }
        if initializing.is_some() && !initialized {
            return Summary { reason, ready, restarts: all };
        }
        let mut restarts = sidecars;
        let mut running = false;
        for container in items(&status["containerStatuses"]).iter().rev() {
            restarts.add(container);
            if let Some(state) = container_reason(container) {
                reason = state;
            } else if container["ready"] == true && container["state"]["running"].is_object() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            reason = if is_true(conditions, "Ready") { "Running" } else { "NotReady" }.to_owned();
        }
        Summary { reason, ready, restarts }
    }
}

fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

fn ended_well(status: &Value) -> bool {
    let terminated = &status["state"]["terminated"];
    terminated.is_object() && int(&terminated["exitCode"]) == 0
}

/// Why an init container holds the pod up; `None` when it does not.
fn init_reason(status: &Value, index: usize, total: usize) -> Option<String> {
    if ended_well(status) {
        return None;
    }
    let terminated = &status["state"]["terminated"];
    if terminated.is_object() {
        return Some(format!("Init:{}", exit_reason(terminated)));
    }
    Some(match text(&status["state"]["waiting"]["reason"]) {
        "" | "PodInitializing" => format!("Init:{index}/{total}"),
        reason => format!("Init:{reason}"),
    })
}

/// Why a container does not run.
fn container_reason(status: &Value) -> Option<String> {
    let waiting = text(&status["state"]["waiting"]["reason"]);
    if !waiting.is_empty() {
        return Some(waiting.to_owned());
    }
    let terminated = &status["state"]["terminated"];
    terminated.is_object().then(|| exit_reason(terminated))
}

fn exit_reason(terminated: &Value) -> String {
    match (text(&terminated["reason"]), int(&terminated["signal"])) {
        ("", 0) => format!("ExitCode:{}", int(&terminated["exitCode"])),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}
