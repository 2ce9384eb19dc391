//! Startup, liveness and readiness probes: one task per probe of a running container.

mod check;
mod grpc;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;
use reconcile::events::EventType::Warning;
use tokio::task::{AbortHandle, JoinSet};

use crate::context::Context;
use crate::pod::handle::PodHandle;
use crate::pod::model::{ContainerModel, PodModel};
use check::Verdict;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

/// A probe's settled verdict on one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProbeReport {
    pub(crate) kind: ProbeKind,
    pub(crate) container: String,
    pub(crate) id: String,
    pub(crate) passed: bool,
}

/// The running probes of one pod.
#[derive(Debug, Default)]
pub(crate) struct Probers {
    tasks: JoinSet<()>,
    running: HashMap<(String, ProbeKind), AbortHandle>,
}

/// What one probe task needs.
pub(crate) struct Target {
    pub(crate) context: Arc<Context>,
    pub(crate) handle: Arc<PodHandle>,
    pub(crate) model: Arc<PodModel>,
    pub(crate) container: ContainerModel,
    pub(crate) id: String,
    pub(crate) pod_ip: String,
    /// The container runs for this long already.
    pub(crate) age: Duration,
}

impl ProbeKind {
    pub(crate) fn of(self, container: &ContainerModel) -> Option<&Probe> {
        match self {
            Self::Startup => container.spec.startup_probe.as_ref(),
            Self::Liveness => container.spec.liveness_probe.as_ref(),
            Self::Readiness => container.spec.readiness_probe.as_ref(),
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

impl Probers {
    pub(crate) fn is_running(&self, id: &str, kind: ProbeKind) -> bool {
        self.running.contains_key(&(id.to_owned(), kind))
    }

    pub(crate) fn start(&mut self, kind: ProbeKind, target: Target) {
        while self.tasks.try_join_next().is_some() {}
        let key = (target.id.clone(), kind);
        let task = self.tasks.spawn(run(kind, target));
        self.running.insert(key, task);
    }

    /// Ends the probes for which `keep` is false.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str, ProbeKind) -> bool) {
        self.running.retain(|(id, kind), task| {
            let kept = keep(id, *kind);
            if !kept {
                task.abort();
            }
            kept
        });
    }
}

/// Namespace, pod, container, probe type, result.
type CountKey = (String, String, String, &'static str, &'static str);

/// How often each probe has run, by result.
#[derive(Debug, Default)]
pub(crate) struct ProbeCounts(Mutex<BTreeMap<CountKey, u64>>);

impl ProbeCounts {
    pub(crate) fn all(&self) -> BTreeMap<CountKey, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, target: &Target, kind: ProbeKind, verdict: &Verdict) {
        let result = match verdict {
            Verdict::Passed => "successful",
            Verdict::Failed(_) => "failed",
            Verdict::Unknown(_) => "unknown",
        };
        let (model, container) = (&target.model, target.container.name().to_owned());
        let key = (model.namespace.clone(), model.name.clone(), container, kind.as_str(), result);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
    }

    pub(crate) fn forget(&self, namespace: &str, pod: &str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.retain(|(n, p, ..), _| n != namespace || p != pod);
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    let given = value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0);
    Duration::from_secs(given.unwrap_or(default))
}

/// Counts verdicts until as many of one sort have come in a row as the probe asks for.
#[derive(Debug, Default)]
struct Streak {
    passed: bool,
    length: i32,
}

impl Streak {
    fn add(&mut self, passed: bool) -> i32 {
        self.length = if passed == self.passed { self.length.saturating_add(1) } else { 1 };
        self.passed = passed;
        self.length
    }
}

async fn run(kind: ProbeKind, target: Target) {
    let Some(probe) = kind.of(&target.container).cloned() else { return };
    let period = seconds(probe.period_seconds, 10);
    let timeout = seconds(probe.timeout_seconds, 1);
    let success = probe.success_threshold.unwrap_or(1).max(1);
    let failure = probe.failure_threshold.unwrap_or(3).max(1);
    let initial = Duration::from_secs(u64::try_from(probe.initial_delay_seconds.unwrap_or(0)).unwrap_or(0));
    tokio::time::sleep(initial.saturating_sub(target.age)).await;
    let mut streak = Streak::default();
    let mut reported = None;
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let verdict = check::probe(&target, &probe, timeout).await;
        target.context.probe_counts.add(&target, kind, &verdict);
        let passed = match &verdict {
            Verdict::Passed => true,
            Verdict::Failed(message) => {
                let note = format!("{} probe failed: {message}", kind.as_str());
                target.context.recorder.container(
                    &target.model,
                    &target.container,
                    Warning,
                    "Unhealthy",
                    note,
                );
                false
            }
            // The probe itself broke; that says nothing about the container.
            Verdict::Unknown(message) => {
                let note =
                    format!("{} probe errored and resulted in unknown state: {message}", kind.as_str());
                target.context.recorder.container(
                    &target.model,
                    &target.container,
                    Warning,
                    "Unhealthy",
                    note,
                );
                continue;
            }
        };
        let length = streak.add(passed);
        let settled = length >= if passed { success } else { failure };
        if settled && reported != Some(passed) {
            reported = Some(passed);
            let report = ProbeReport {
                kind,
                container: target.container.name().to_owned(),
                id: target.id.clone(),
                passed,
            };
            target.handle.tell(|inbox| inbox.probes.push(report));
        }
        if settled && (kind == ProbeKind::Startup || (kind == ProbeKind::Liveness && !passed)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streaks_start_over_when_the_verdict_changes() {
        let mut streak = Streak::default();
        let lengths: Vec<i32> = [false, false, true, true, false].iter().map(|p| streak.add(*p)).collect();
        assert_eq!(lengths, [1, 2, 1, 2, 1]);
    }
}
