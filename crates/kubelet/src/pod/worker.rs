//! One task per pod: hears news, looks, decides, acts, reports. It never waits for an operation: those run beside
//! it and their outcomes are news like any other.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use reconcile::object::resource_version_of;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::handle::{Inbox, PodHandle, PodView};
use super::memory::{Ending, Failure, KillRequest, Memory, Mode, Step};
use super::model::{ContainerKind, PodModel};
use super::observed::{ContainerPhase, Observed};
use super::operations::{Job, Outcome};
use super::plan::{PodAction, plan_pod};
use super::status::{is_terminal, pod_status};
use super::{last_words, sink};
use crate::context::Context;
use crate::probes::{ProbeKind, Probers, Target};
use crate::volumes::{ObjectReference, PodVolumes, references};

/// After this the same thing is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(5);
const STATUS_RETRY: Duration = Duration::from_secs(1);

pub(crate) struct Worker {
    pub(super) context: Arc<Context>,
    pub(super) handle: Arc<PodHandle>,
    pub(super) model: Arc<PodModel>,
    pub(super) observed: Arc<Observed>,
    pub(super) memory: Memory,
    pub(super) volumes: Arc<PodVolumes>,
    pub(super) refresh: Step,
    pub(super) tasks: JoinSet<Outcome>,
    probers: Probers,
    /// What containers left in their termination files, by container id.
    last_words: HashMap<String, String>,
    looked: bool,
    stale: bool,
    pub(super) removed: bool,
    mirror: Option<Arc<Pod>>,
    pub(super) status: Option<PodStatus>,
    /// As the server last had it.
    pub(super) known: PodStatus,
    pub(super) known_version: u64,
    pub(super) sending: Step,
    pub(super) deleting: Step,
    wake: Option<Timestamp>,
    objects: BTreeSet<ObjectReference>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("pod", &self.model.formatted()).finish_non_exhaustive()
    }
}

impl Worker {
    /// A rejected pod only reports that it failed.
    pub(crate) fn new(
        context: Arc<Context>,
        handle: Arc<PodHandle>,
        pod: Arc<Pod>,
        rejection: Option<Failure>,
    ) -> Self {
        let model = Arc::new(PodModel::new(pod));
        let known = model.pod.status.clone().unwrap_or_default();
        let known_version = resource_version_of(&model.pod.metadata);
        let mut memory = Memory::default();
        if let Some(failure) = rejection {
            let since = context.clock.now();
            memory.mode = Mode::End(Ending { since, grace: Duration::ZERO, failure: Some(failure) });
        }
        Self {
            objects: BTreeSet::new(),
            context,
            handle,
            model,
            observed: Arc::default(),
            memory,
            volumes: Arc::default(),
            refresh: Step::Idle,
            tasks: JoinSet::new(),
            probers: Probers::default(),
            last_words: HashMap::new(),
            looked: false,
            stale: true,
            removed: false,
            mirror: None,
            status: None,
            known_version,
            known,
            sending: Step::Idle,
            deleting: Step::Idle,
            wake: None,
        }
    }

    /// Ends when the pod is gone from its source and from the runtime, or at shutdown, which leaves it running.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let inbox = self.handle.take();
            self.read(inbox);
            if self.stale && !self.look().await {
                self.wake = Some(self.context.clock.now() + STATUS_RETRY);
            } else {
                self.decide();
                if self.is_over() {
                    self.job().purge().await;
                    return;
                }
            }
            let sleep = self
                .wake
                .take()
                .map(|at| at.duration_since(self.context.clock.now()).max(jiff::SignedDuration::ZERO));
            let sleep = sleep.map(|d| self.context.clock.sleep(d.unsigned_abs()));
            let sleeping = async {
                match sleep {
                    Some(sleep) => sleep.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.handle.notified() => {}
                Some(outcome) = self.tasks.join_next(), if !self.tasks.is_empty() => match outcome {
                    Ok(outcome) => self.apply(outcome),
                    Err(error) => warn!(pod = self.model.name, %error, "pod operation ended badly"),
                },
                () = sleeping => {}
            }
        }
    }

    pub(super) fn job(&self) -> Job {
        Job {
            context: self.context.clone(),
            model: self.model.clone(),
            observed: self.observed.clone(),
            volumes: self.volumes.clone(),
        }
    }

    fn read(&mut self, inbox: Inbox) {
        if let Some(pod) = inbox.pod {
            self.update(pod);
        }
        if let Some(mirror) = inbox.mirror {
            if let Some(mirror) = &mirror
                && self.mirror.as_ref().is_none_or(|m| m.metadata.uid != mirror.metadata.uid)
            {
                self.known = mirror.status.clone().unwrap_or_default();
                self.known_version = resource_version_of(&mirror.metadata);
            }
            self.mirror = mirror;
        }
        self.removed |= inbox.removed;
        self.stale |= inbox.runtime_changed;
        if inbox.objects_changed && self.memory.volumes == Step::Done {
            self.refresh = Step::Idle;
            self.refresh_volumes();
        }
        for report in inbox.probes {
            self.hear(&report);
        }
        if let Some((failure, grace)) = inbox.eviction {
            self.end(grace, Some(failure));
        }
    }

    fn update(&mut self, pod: Arc<Pod>) {
        let downward_changed = self.model.pod.metadata.labels != pod.metadata.labels
            || self.model.pod.metadata.annotations != pod.metadata.annotations;
        // The watch may lag behind the answers to our own writes.
        let version = resource_version_of(&pod.metadata);
        if let Some(status) = pod.status.as_ref().filter(|_| version >= self.known_version) {
            self.known = status.clone();
            self.known_version = version;
        }
        self.model = Arc::new(PodModel::new(pod));
        if downward_changed && self.memory.volumes == Step::Done {
            self.refresh = Step::Idle;
            self.refresh_volumes();
        }
        self.resize_changed();
    }

    pub(super) fn refresh_volumes(&mut self) {
        if self.refresh != Step::Running && self.memory.ending().is_none() {
            self.refresh = Step::Running;
            self.tasks.spawn(self.job().refresh_volumes());
        }
    }

    /// Reads the pod's sandboxes and containers from the runtime.
    async fn look(&mut self) -> bool {
        match self.context.runtime.observe(&self.model.uid).await {
            Ok(mut observed) => {
                self.stale = false;
                self.looked = true;
                self.add_last_words(&mut observed);
                if observed.ready_sandbox().is_none() && self.memory.sandbox == Step::Done {
                    self.memory.sandbox = Step::Idle;
                }
                self.observed = Arc::new(observed);
                true
            }
            Err(error) => {
                warn!(pod = self.model.name, error = %reconcile::chain(&error), "pod state unknown");
                false
            }
        }
    }

    fn add_last_words(&mut self, observed: &mut Observed) {
        let directory = self.context.volumes.pod_directory(&self.model.uid);
        for seen in observed.containers.iter_mut().filter(|c| c.phase == ContainerPhase::Exited) {
            let Some(container) = self.model.container(&seen.name) else { continue };
            let words = self.last_words.entry(seen.id.clone()).or_insert_with(|| {
                last_words::read(&directory, container, seen)
                    .or_else(|| last_words::known(&self.known, seen))
                    .unwrap_or_default()
            });
            if !words.is_empty() {
                seen.message.clone_from(words);
            }
        }
        self.last_words.retain(|id, _| observed.containers.iter().any(|c| c.id == *id));
    }

    fn decide(&mut self) {
        let now = self.context.clock.now();
        self.check_ending(now);
        self.run_probes(now);
        let mut status = self.fresh_status(now);
        if self.memory.mode == Mode::Run && self.ends_by_itself(&status) {
            // Sidecars and the sandbox go when the pod has nothing left to do.
            let grace = Duration::from_secs(u64::try_from(self.model.grace_period_seconds()).unwrap_or(0));
            self.memory.mode = Mode::End(Ending { since: now, grace, failure: None });
            self.probers.retain(|_, kind| kind == ProbeKind::Readiness);
            status = self.fresh_status(now);
        }
        let actions = plan_pod(&self.model, &self.observed, &self.memory, now);
        let waits = actions.iter().any(|a| matches!(a, PodAction::SetWaiting { .. }));
        for action in actions {
            self.execute(action, now);
        }
        if waits {
            status = self.fresh_status(now);
        }
        self.report(status, now);
        if let Some(renew_at) = self.volumes.renew_at.filter(|_| self.memory.ending().is_none()) {
            if renew_at <= now && self.refresh != Step::Running {
                self.refresh_volumes();
            } else {
                self.wake_at(renew_at);
            }
        }
    }

    fn fresh_status(&self, now: Timestamp) -> PodStatus {
        let facts = self.context.status_facts();
        pod_status(&self.model, &self.observed, &self.memory, &self.known, &facts, now)
    }

    fn ends_by_itself(&self, status: &PodStatus) -> bool {
        if is_terminal(self.known.phase.as_deref().unwrap_or_default()) {
            return true;
        }
        let without_sidecars = status.phase.as_deref().is_some_and(is_terminal);
        without_sidecars || self.has_finished()
    }

    /// All regular containers ended for good, though a sidecar still holds the phase.
    fn has_finished(&self) -> bool {
        let mut any = false;
        let failed_init = self.model.of_kind(&[ContainerKind::Init]).any(|container| {
            self.observed.latest(container.name()).is_some_and(|c| {
                c.phase == ContainerPhase::Exited
                    && c.exit_code != 0
                    && !container.restarts_after(c.exit_code, self.model.restart_policy)
            })
        });
        if failed_init {
            return true;
        }
        let regular = self.model.of_kind(&[ContainerKind::Regular]);
        for container in regular {
            let ended = self.observed.latest(container.name()).is_some_and(|c| {
                c.phase == ContainerPhase::Exited
                    && !container.restarts_after(c.exit_code, self.model.restart_policy)
            });
            if !ended {
                return false;
            }
            any = true;
        }
        any
    }

    /// Deletion, removal from the source, and the active deadline end a pod.
    fn check_ending(&mut self, now: Timestamp) {
        let least = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0).max(1));
        if self.model.pod.metadata.deletion_timestamp.is_some() || self.removed {
            self.end(least(self.model.grace_period_seconds()), None);
        }
        let deadline = self.model.spec.active_deadline_seconds;
        let started = self.known.start_time.as_ref().map(|t| t.0);
        if let (Some(seconds), Some(started), Mode::Run) = (deadline, started, &self.memory.mode) {
            let until = started + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            if until <= now {
                let failure = Failure {
                    reason: "DeadlineExceeded".to_owned(),
                    message: "Pod was active on the node longer than the specified deadline".to_owned(),
                    disruption: None,
                };
                let reason = "DeadlineExceeded";
                self.context.recorder.pod(
                    &self.model,
                    reconcile::events::EventType::Normal,
                    reason,
                    failure.message.clone(),
                );
                self.end(least(self.model.grace_period_seconds()), Some(failure));
            } else {
                self.wake_at(until);
            }
        }
    }

    /// Begins the end, or shortens one that has begun.
    pub(super) fn end(&mut self, grace: Duration, failure: Option<Failure>) {
        let now = self.context.clock.now();
        match &mut self.memory.mode {
            Mode::Run => {
                self.memory.mode = Mode::End(Ending { since: now, grace, failure });
                self.forget_pulls();
            }
            Mode::End(ending) => {
                let left = ending.grace.saturating_sub(now.duration_since(ending.since).unsigned_abs());
                if grace < left {
                    ending.since = now;
                    ending.grace = grace;
                    for container in self.memory.containers.values_mut() {
                        container.killed = None;
                        // A kill with the longer grace is still running; a second one only hurries it.
                        if container.operation == Some(super::memory::Operation::Killing) {
                            container.operation = None;
                        }
                    }
                }
            }
        }
    }

    /// A pull that still runs no longer matters: its outcome is dropped when it comes.
    fn forget_pulls(&mut self) {
        for container in self.memory.containers.values_mut() {
            if container.operation == Some(super::memory::Operation::Pulling) {
                container.operation = None;
            }
        }
    }

    pub(super) fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    fn report(&mut self, status: PodStatus, now: Timestamp) {
        let changed = self.status.as_ref() != Some(&status);
        self.status = Some(status.clone());
        self.handle.publish(PodView {
            model: self.model.clone(),
            observed: self.observed.clone(),
            status: Arc::new(status.clone()),
            volumes: self.volumes.clone(),
            ending: self.memory.ending().is_some(),
            ended: self.memory.teardown == Step::Done,
        });
        let wanted = if self.memory.ending().is_some() { BTreeSet::new() } else { references(&self.model) };
        if wanted != self.objects {
            self.context.watch_objects(&self.model.uid, &wanted);
            self.objects = wanted;
        }
        if self.removed && !self.model.is_static() {
            return;
        }
        let Some(identity) = sink::identity(&self.model, self.mirror.as_deref()) else { return };
        match self.sending.due(now) {
            Ok(()) => {}
            Err(Some(until)) if !changed => return self.wake_at(until),
            Err(Some(_)) => {}
            Err(None) => return,
        }
        if sink::differs(&self.known, &status) {
            self.sending = Step::Running;
            let send = sink::send(self.context.api.clone(), identity, self.known.clone(), status);
            self.tasks.spawn(async move { Outcome::StatusSent(send.await) });
        } else if self.model.pod.metadata.deletion_timestamp.is_some() && self.memory.teardown == Step::Done {
            match self.deleting.due(now) {
                Ok(()) => {
                    self.deleting = Step::Running;
                    let delete = sink::delete(self.context.api.clone(), identity);
                    self.tasks.spawn(async move { Outcome::Deleted(delete.await) });
                }
                Err(Some(until)) => self.wake_at(until),
                Err(None) => {}
            }
        }
    }

    fn is_over(&self) -> bool {
        self.removed && self.memory.teardown == Step::Done
    }

    fn hear(&mut self, report: &crate::probes::ProbeReport) {
        let running = self.observed.container(&report.id).is_some_and(|c| c.phase == ContainerPhase::Running);
        if !running {
            return;
        }
        let grace =
            self.model.container(&report.container).and_then(|c| report.kind.of(c)).and_then(|probe| {
                probe
                    .termination_grace_period_seconds
                    .and_then(|s| u64::try_from(s).ok())
                    .map(Duration::from_secs)
            });
        let memory = self.memory.container_mut(&report.container);
        let id = report.id.clone();
        match (report.kind, report.passed) {
            (ProbeKind::Readiness, true) => memory.ready = Some(id),
            (ProbeKind::Readiness, false) => memory.ready = None,
            (ProbeKind::Startup, true) => memory.started = Some(id),
            (ProbeKind::Liveness, true) => {}
            (ProbeKind::Startup | ProbeKind::Liveness, false) => {
                let kind = report.kind.as_str().to_lowercase();
                let message =
                    format!("Container {} failed {kind} probe, will be restarted", report.container);
                memory.kill = Some(KillRequest { id, message, grace });
            }
        }
    }

    fn run_probes(&mut self, now: Timestamp) {
        let ending = self.memory.ending().is_some();
        let observed = self.observed.clone();
        self.probers.retain(|id, kind| {
            let running = observed.container(id).is_some_and(|c| c.phase == ContainerPhase::Running);
            running && (!ending || kind == ProbeKind::Readiness)
        });
        if ending || !self.looked {
            return;
        }
        for seen in observed.containers.iter().filter(|c| c.phase == ContainerPhase::Running) {
            let Some(container) = self.model.container(&seen.name).cloned() else { continue };
            if container.spec.startup_probe.is_none() {
                let hooked = container.spec.lifecycle.as_ref().is_none_or(|l| l.post_start.is_none())
                    || self.memory.container(&seen.name).hooked.as_ref() == Some(&seen.id);
                if hooked {
                    self.memory.container_mut(&seen.name).started = Some(seen.id.clone());
                }
            }
            let started = self.memory.container(&seen.name).started.as_ref() == Some(&seen.id);
            let kinds: &[ProbeKind] =
                if started { &[ProbeKind::Liveness, ProbeKind::Readiness] } else { &[ProbeKind::Startup] };
            for kind in kinds.iter().filter(|k| k.of(&container).is_some()) {
                if self.probers.is_running(&seen.id, *kind) {
                    continue;
                }
                let facts = self.context.pod_facts(self.model.host_network(), &observed);
                self.probers.start(
                    *kind,
                    Target {
                        context: self.context.clone(),
                        handle: self.handle.clone(),
                        model: self.model.clone(),
                        container: container.clone(),
                        id: seen.id.clone(),
                        pod_ip: facts.pod_ips.into_iter().next().unwrap_or_default(),
                        age: now.duration_since(seen.started_at.unwrap_or(now)).unsigned_abs(),
                    },
                );
            }
        }
    }

    pub(super) fn mark_stale(&mut self) {
        self.stale = true;
    }
}
