//! The decision what to do for a pod next: from what is wanted, seen and remembered, and nothing else.

use std::time::Duration;

use jiff::Timestamp;

use super::backoff::go_duration;
use super::memory::{ContainerMemory, ImageState, Memory, Mode, Operation, Step, Waiting};
use super::model::{ContainerKind, ContainerModel, PodModel, RestartPolicy};
use super::observed::{ContainerObs, ContainerPhase, Observed};

/// How long a failed pull shows its own reason before it shows that it is being waited out.
const PULL_FAILURE_SHOWN: Duration = Duration::from_secs(2);
/// Dead containers kept per name, for `kubectl logs --previous` and `lastState`.
const DEAD_CONTAINERS_KEPT: usize = 1;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PodAction {
    SetUpVolumes,
    CreateSandbox {
        attempt: u32,
        stop: Vec<String>,
    },
    /// Makes the image ready by the pull policy; also for images that are there.
    PullImage {
        container: String,
    },
    StartContainer {
        container: String,
        attempt: i32,
        after: Option<Timestamp>,
    },
    RunPostStart {
        container: String,
        id: String,
    },
    KillContainer {
        container: String,
        id: String,
        grace: Duration,
        message: String,
    },
    RemoveContainer {
        id: String,
    },
    SetWaiting {
        container: String,
        waiting: Waiting,
    },
    /// Everything has stopped: release sandbox, volumes and cgroup.
    TearDown,
    WakeAt(Timestamp),
}

/// Whether the containers before this one let it start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    Closed,
}

struct Planner<'a> {
    model: &'a PodModel,
    observed: &'a Observed,
    memory: &'a Memory,
    now: Timestamp,
    actions: Vec<PodAction>,
}

pub(crate) fn plan_pod(
    model: &PodModel,
    observed: &Observed,
    memory: &Memory,
    now: Timestamp,
) -> Vec<PodAction> {
    let mut planner = Planner { model, observed, memory, now, actions: Vec::new() };
    match &memory.mode {
        Mode::Run => planner.run(),
        Mode::End(ending) => planner.end(ending.since, ending.grace),
    }
    planner.actions
}

impl<'a> Planner<'a> {
    fn run(&mut self) {
        match self.memory.volumes.due(self.now) {
            Ok(()) => return self.actions.push(PodAction::SetUpVolumes),
            Err(Some(until)) => return self.actions.push(PodAction::WakeAt(until)),
            Err(None) if self.memory.volumes == Step::Running => return,
            Err(None) => {}
        }
        if self.observed.ready_sandbox().is_none() {
            return self.replace_sandbox();
        }
        self.kill_unwanted();
        if self.run_init_containers() == Gate::Open {
            self.run_regular_containers();
        }
        self.remove_dead();
    }

    /// The sandbox is missing or dead: whatever still runs in it ends first.
    fn replace_sandbox(&mut self) {
        let newest = self.observed.sandboxes.first();
        if !self.wants_sandbox() {
            return;
        }
        if self.observed.any_alive() {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            for container in self.observed.alive() {
                self.kill(container, Duration::from_secs(self.spec_grace()), message);
            }
            return;
        }
        for container in
            self.model.of_kind(&[ContainerKind::Init, ContainerKind::Sidecar, ContainerKind::Regular])
        {
            self.prepare_image(container);
            if container.kind == ContainerKind::Init {
                break;
            }
        }
        match self.memory.sandbox.due(self.now) {
            Ok(()) => self.actions.push(PodAction::CreateSandbox {
                attempt: newest.map_or(0, |s| s.attempt + 1),
                stop: self.observed.sandboxes.iter().map(|s| s.id.clone()).collect(),
            }),
            Err(Some(until)) => self.actions.push(PodAction::WakeAt(until)),
            // Done, but gone since: the worker resets the step when it sees the sandbox die.
            Err(None) => {}
        }
    }

    /// A pod whose containers will not run again needs no new sandbox.
    fn wants_sandbox(&self) -> bool {
        if self.observed.containers.is_empty() {
            return true;
        }
        self.model.of_kind(&[ContainerKind::Regular]).any(|container| {
            match self.observed.latest(container.name()) {
                None => self.model.restart_policy != RestartPolicy::Never,
                Some(seen) if seen.phase == ContainerPhase::Exited => {
                    container.restarts_after(seen.exit_code, self.model.restart_policy)
                }
                Some(_) => self.model.restart_policy != RestartPolicy::Never,
            }
        })
    }

    fn kill_unwanted(&mut self) {
        for seen in self.observed.alive() {
            let Some(container) = self.model.container(&seen.name) else { continue };
            let memory = self.memory.container(&seen.name);
            if let Some(request) = memory.kill.as_ref().filter(|k| k.id == seen.id) {
                let grace = request.grace.unwrap_or(Duration::from_secs(self.spec_grace()));
                self.kill(seen, grace, &request.message);
            } else if container.kind != ContainerKind::Ephemeral
                && !seen.hash.is_empty()
                && seen.hash != crate::container::labels::hash(&container.spec)
            {
                let message = format!("Container {} definition changed, will be restarted", seen.name);
                self.kill(seen, Duration::from_secs(self.spec_grace()), &message);
            }
        }
    }

    fn spec_grace(&self) -> u64 {
        u64::try_from(self.model.spec.termination_grace_period_seconds.unwrap_or(30)).unwrap_or(0)
    }

    /// Init containers one after the other; sidecars stay and let the next one go when they have started.
    fn run_init_containers(&mut self) -> Gate {
        let initialized = self.has_initialized();
        for container in self.model.of_kind(&[ContainerKind::Init, ContainerKind::Sidecar]) {
            let seen = self.in_sandbox(container.name());
            let passed = match (container.kind, seen) {
                (ContainerKind::Init, _) if initialized => true,
                (ContainerKind::Init, Some(seen)) if seen.phase == ContainerPhase::Exited => {
                    if seen.exit_code != 0
                        && container.restarts_after(seen.exit_code, self.model.restart_policy)
                    {
                        self.start(container, Gate::Open);
                    }
                    seen.exit_code == 0
                }
                (_, Some(seen)) if seen.phase == ContainerPhase::Running => {
                    self.run_hook(container, seen);
                    container.kind == ContainerKind::Sidecar && self.has_started(seen)
                }
                (_, Some(seen)) if seen.phase == ContainerPhase::Unknown => false,
                _ => {
                    self.start(container, Gate::Open);
                    false
                }
            };
            if !passed && !initialized {
                return Gate::Closed;
            }
        }
        Gate::Open
    }

    fn run_regular_containers(&mut self) {
        let mut gate = Gate::Open;
        for container in self.model.of_kind(&[ContainerKind::Regular, ContainerKind::Ephemeral]) {
            let busy = self.memory.container(container.name()).operation.is_some();
            match self.in_sandbox(container.name()).or_else(|| self.finished(container)) {
                Some(seen) if seen.is_alive() => self.run_hook(container, seen),
                Some(seen) if seen.phase == ContainerPhase::Exited => {
                    if container.restarts_after(seen.exit_code, self.model.restart_policy) {
                        self.start(container, gate);
                    }
                }
                _ => self.start(container, gate),
            }
            if busy && container.kind == ContainerKind::Regular {
                gate = Gate::Closed;
            }
        }
    }

    /// A container that ended in an earlier sandbox and is not to run again.
    fn finished(&self, container: &ContainerModel) -> Option<&'a ContainerObs> {
        self.observed.latest(container.name()).filter(|seen| {
            seen.phase == ContainerPhase::Exited
                && !container.restarts_after(seen.exit_code, self.model.restart_policy)
        })
    }

    fn in_sandbox(&self, name: &str) -> Option<&'a ContainerObs> {
        let sandbox = self.observed.ready_sandbox()?;
        self.observed.latest(name).filter(|c| c.sandbox_id == sandbox.id)
    }

    fn has_initialized(&self) -> bool {
        self.model.of_kind(&[ContainerKind::Regular]).any(|c| self.in_sandbox(c.name()).is_some())
    }

    fn has_started(&self, seen: &ContainerObs) -> bool {
        self.memory.container(&seen.name).started.as_ref() == Some(&seen.id)
    }

    fn run_hook(&mut self, container: &ContainerModel, seen: &ContainerObs) {
        let memory = self.memory.container(&seen.name);
        let has_hook = container.spec.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some());
        if has_hook && memory.operation.is_none() && memory.hooked.as_ref() != Some(&seen.id) {
            self.actions.push(PodAction::RunPostStart { container: seen.name.clone(), id: seen.id.clone() });
        }
    }

    /// Moves a container that does not run one step nearer to it.
    fn start(&mut self, container: &ContainerModel, gate: Gate) {
        let name = container.name();
        let memory = self.memory.container(name);
        if memory.operation.is_some() {
            return;
        }
        let exited = self.observed.latest(name).filter(|c| c.phase == ContainerPhase::Exited);
        let after = exited.and_then(|seen| seen.finished_at.or(Some(seen.created_at)));
        if let Some(until) = after.and_then(|after| memory.crash.blocks_until(after, self.now)) {
            let message = format!(
                "back-off {} restarting failed container={name} pod={}",
                go_duration(memory.crash.delay()),
                self.model.formatted()
            );
            self.wait(name, &memory, "CrashLoopBackOff", message);
            return self.actions.push(PodAction::WakeAt(until));
        }
        if let Some(until) = memory.retry_at.filter(|until| *until > self.now) {
            return self.actions.push(PodAction::WakeAt(until));
        }
        if matches!(memory.image, ImageState::Present(_)) {
            if gate == Gate::Open {
                let attempt = self.observed.latest(name).map_or(0, |c| c.attempt + 1);
                self.actions.push(PodAction::StartContainer { container: name.to_owned(), attempt, after });
            }
            return;
        }
        self.prepare_image(container);
    }

    fn prepare_image(&mut self, container: &ContainerModel) {
        let name = container.name();
        let memory = self.memory.container(name);
        if memory.operation.is_some() {
            return;
        }
        match &memory.image {
            ImageState::Present(_) => {}
            ImageState::Failed { at, until, failure } if *until > self.now => {
                let shown_until = *at + PULL_FAILURE_SHOWN;
                let pull_failed = matches!(failure.reason.as_str(), "ErrImagePull" | "RegistryUnavailable");
                if pull_failed && self.now < shown_until {
                    return self.actions.push(PodAction::WakeAt(shown_until));
                }
                if pull_failed {
                    let image = container.spec.image.as_deref().unwrap_or_default();
                    let cause = format!("{}: {}", failure.reason, failure.message);
                    let message = format!("Back-off pulling image \"{image}\": {cause}");
                    self.wait(name, &memory, "ImagePullBackOff", message);
                }
                self.actions.push(PodAction::WakeAt(*until));
            }
            ImageState::Failed { .. } | ImageState::Unknown => {
                self.actions.push(PodAction::PullImage { container: name.to_owned() });
            }
        }
    }

    fn wait(&mut self, name: &str, memory: &ContainerMemory, reason: &str, message: String) {
        let waiting = Waiting { reason: reason.to_owned(), message };
        if memory.waiting.as_ref() != Some(&waiting) {
            self.actions.push(PodAction::SetWaiting { container: name.to_owned(), waiting });
        }
    }

    fn kill(&mut self, seen: &ContainerObs, grace: Duration, message: &str) {
        let memory = self.memory.container(&seen.name);
        if matches!(memory.operation, Some(Operation::Killing | Operation::Starting)) {
            return;
        }
        self.actions.push(PodAction::KillContainer {
            container: seen.name.clone(),
            id: seen.id.clone(),
            grace,
            message: message.to_owned(),
        });
    }

    /// Regular containers end first, then sidecars in reverse order, all within one grace period.
    fn end(&mut self, since: Timestamp, grace: Duration) {
        let used = self.now.duration_since(since).unsigned_abs();
        let left = grace.saturating_sub(used);
        let sidecar = |seen: &ContainerObs| {
            let position = self.model.containers.iter().position(|c| c.spec.name == seen.name)?;
            (self.model.containers[position].kind == ContainerKind::Sidecar).then_some(position)
        };
        let last_sidecar = self.observed.alive().filter_map(sidecar).max();
        let regular_alive = self.observed.alive().any(|seen| sidecar(seen).is_none());
        let mut doomed = Vec::new();
        for seen in self.observed.alive() {
            let turn = match sidecar(seen) {
                None => true,
                position => !regular_alive && position == last_sidecar,
            };
            if turn {
                doomed.push(seen.clone());
            }
        }
        for seen in &doomed {
            self.kill(seen, left, &format!("Stopping container {}", seen.name));
        }
        if doomed.is_empty() && !self.observed.any_alive() && self.memory.is_quiet() {
            match self.memory.teardown.due(self.now) {
                Ok(()) => self.actions.push(PodAction::TearDown),
                Err(Some(until)) => self.actions.push(PodAction::WakeAt(until)),
                Err(None) => {}
            }
        }
    }

    fn remove_dead(&mut self) {
        for container in &self.model.containers {
            let dead = self
                .observed
                .containers
                .iter()
                .filter(|c| c.name == container.spec.name && c.phase == ContainerPhase::Exited)
                .skip(DEAD_CONTAINERS_KEPT + usize::from(self.is_latest_dead(container.name())));
            let ids: Vec<String> = dead.map(|c| c.id.clone()).collect();
            self.actions.extend(ids.into_iter().map(|id| PodAction::RemoveContainer { id }));
        }
    }

    fn is_latest_dead(&self, name: &str) -> bool {
        self.observed.latest(name).is_some_and(|c| c.phase == ContainerPhase::Exited)
    }
}

#[cfg(test)]
mod tests;
