//! Planned actions become operations, and their outcomes become memory.

use jiff::Timestamp;
use reconcile::events::EventType::Warning;
use tracing::{debug, info, warn};

use super::backoff::MAXIMUM;
use super::memory::{ImageState, Operation, Step, Waiting};
use super::model::ContainerKind;
use super::observed::ContainerPhase;
use super::operations::Outcome;
use super::plan::PodAction;
use super::sink::Sent;
use super::worker::{RETRY, Worker};
use crate::api::{ApiError, chain};

impl Worker {
    pub(super) fn execute(&mut self, action: PodAction, now: Timestamp) {
        let job = self.job();
        match action {
            PodAction::SetUpVolumes => {
                self.memory.volumes = Step::Running;
                self.tasks.spawn(job.set_up_volumes());
            }
            PodAction::CreateSandbox { attempt, stop } => {
                self.memory.sandbox = Step::Running;
                self.tasks.spawn(job.create_sandbox(attempt, stop));
            }
            PodAction::PullImage { container } => {
                let Some(model) = self.model.container(&container).cloned() else { return };
                self.memory.container_mut(&container).operation = Some(Operation::Pulling);
                self.tasks.spawn(job.pull_image(model));
            }
            PodAction::StartContainer { container, attempt, after } => {
                let Some(model) = self.model.container(&container).cloned() else { return };
                let memory = self.memory.container_mut(&container);
                let ImageState::Present(image) = memory.image.clone() else { return };
                memory.operation = Some(Operation::Starting);
                let floor = self.known_restarts(&container);
                self.tasks.spawn(job.start_container(model, image, attempt.max(floor), after));
            }
            PodAction::RunPostStart { container, id } => {
                let Some(model) = self.model.container(&container).cloned() else { return };
                self.memory.container_mut(&container).operation = Some(Operation::Hooking);
                self.tasks.spawn(job.post_start(model, id));
            }
            PodAction::KillContainer { container, id, grace, message } => {
                let ending = self.memory.ending().is_some();
                let memory = self.memory.container_mut(&container);
                if memory.killed.as_ref() == Some(&id) {
                    return;
                }
                memory.operation = Some(Operation::Killing);
                memory.killed = Some(id.clone());
                self.tasks.spawn(job.kill_container(container, id, grace, message, ending));
            }
            PodAction::RemoveContainer { id } => {
                self.tasks.spawn(job.remove_container(id));
            }
            PodAction::SetWaiting { container, waiting } => self.set_waiting(&container, waiting),
            PodAction::TearDown => {
                self.memory.teardown = Step::Running;
                self.tasks.spawn(job.tear_down());
            }
            PodAction::WakeAt(at) => self.wake_at(at.max(now)),
        }
    }

    /// The count goes on where the API last saw it, even if the runtime has lost its containers.
    fn known_restarts(&self, container: &str) -> i32 {
        let lists = [&self.known.init_container_statuses, &self.known.container_statuses];
        let known = lists.into_iter().flatten().flatten().find(|s| s.name == container);
        let ran = |s: &k8s_openapi::api::core::v1::ContainerStatus| {
            s.container_id.is_some() && self.observed.latest(container).is_none()
        };
        known.filter(|s| ran(s)).map_or(0, |s| s.restart_count + 1)
    }

    fn set_waiting(&mut self, name: &str, waiting: Waiting) {
        if let Some(container) = self.model.container(name)
            && matches!(waiting.reason.as_str(), "CrashLoopBackOff" | "ImagePullBackOff")
        {
            let note = match waiting.reason.as_str() {
                "CrashLoopBackOff" => {
                    format!("Back-off restarting failed container {name} in pod {}", self.model.formatted())
                }
                _ => waiting.message.clone(),
            };
            self.context.recorder.container(&self.model, container, Warning, "BackOff", note);
        }
        self.memory.container_mut(name).waiting = Some(waiting);
    }

    pub(super) fn apply(&mut self, outcome: Outcome) {
        let now = self.context.clock.now();
        match outcome {
            Outcome::Volumes(Ok(volumes)) => {
                self.volumes = volumes.into();
                self.memory.volumes = Step::Done;
            }
            Outcome::Volumes(Err(error)) => {
                debug!(pod = self.model.name, error = %chain(&error), "volumes not ready");
                self.memory.volumes = Step::Failed { until: now + RETRY };
            }
            Outcome::Refreshed(result) => self.refreshed(result, now),
            Outcome::Sandbox(result) => {
                self.mark_stale();
                self.memory.sandbox = match result {
                    Ok(()) => Step::Done,
                    Err(_) => Step::Failed { until: now + RETRY },
                };
            }
            Outcome::Pulled { container, result } => self.pulled(&container, result, now),
            Outcome::Started { container, after, result } => self.started(&container, after, result, now),
            Outcome::Hooked { container, id, result } => self.hooked(&container, id, result),
            Outcome::Killed { container, id, result } => {
                self.mark_stale();
                let memory = self.memory.container_mut(&container);
                if memory.killed.as_ref() == Some(&id) {
                    memory.operation = None;
                    if result.is_err() {
                        memory.killed = None;
                    }
                }
            }
            Outcome::Resized { container, result } => self.resized(&container, result),
            Outcome::Removed => self.mark_stale(),
            Outcome::TornDown(result) => {
                self.mark_stale();
                self.memory.teardown = match result {
                    Ok(()) => Step::Done,
                    Err(error) => {
                        warn!(pod = self.model.name, error, "pod not torn down");
                        self.context.recorder.pod(
                            &self.model,
                            Warning,
                            "FailedKillPod",
                            format!("error killing pod: {error}"),
                        );
                        Step::Failed { until: now + RETRY }
                    }
                };
            }
            Outcome::StatusSent(sent) => self.status_sent(sent, now),
            Outcome::Deleted(result) => self.deleted(result, now),
        }
    }

    fn refreshed(
        &mut self,
        result: Result<crate::volumes::PodVolumes, crate::volumes::VolumeError>,
        now: Timestamp,
    ) {
        self.refresh = match result {
            Ok(volumes) => {
                self.volumes = volumes.into();
                Step::Done
            }
            Err(error) => {
                warn!(pod = self.model.name, error = %chain(&error), "volumes not refreshed");
                let mut volumes = (*self.volumes).clone();
                volumes.renew_at = volumes.renew_at.map(|at| at.max(now + RETRY));
                self.volumes = volumes.into();
                Step::Failed { until: now + RETRY }
            }
        };
    }

    fn pulled(&mut self, container: &str, result: Result<String, Waiting>, now: Timestamp) {
        let ending = self.memory.ending().is_some();
        let memory = self.memory.container_mut(container);
        if memory.operation == Some(Operation::Pulling) {
            memory.operation = None;
        }
        if ending {
            return;
        }
        match result {
            Ok(image) => memory.image = ImageState::Present(image),
            Err(failure) => {
                memory.image_backoff.advance(now, now, MAXIMUM);
                let until = now + memory.image_backoff.delay();
                memory.waiting = Some(failure.clone());
                memory.image = ImageState::Failed { at: now, until, failure };
            }
        }
    }

    fn started(&mut self, name: &str, after: Option<Timestamp>, result: Result<(), Waiting>, now: Timestamp) {
        self.mark_stale();
        let maximum = self.context.longest_restart_delay();
        let memory = self.memory.container_mut(name);
        memory.operation = None;
        memory.image = ImageState::Unknown;
        memory.image_backoff = Default::default();
        memory.kill = None;
        if let Some(after) = after {
            memory.crash.advance(after, now, maximum);
        }
        match result {
            Ok(()) => {
                memory.waiting = None;
                memory.retry_at = None;
                memory.resources = None;
                info!(
                    namespace = self.model.namespace,
                    name = self.model.name,
                    container = name,
                    "container started"
                );
            }
            Err(failure) => {
                memory.waiting = Some(failure);
                memory.retry_at = Some(now + RETRY);
            }
        }
    }

    fn hooked(&mut self, name: &str, id: String, result: Result<(), String>) {
        let memory = self.memory.container_mut(name);
        if memory.operation == Some(Operation::Hooking) {
            memory.operation = None;
        }
        match result {
            Ok(()) => memory.hooked = Some(id),
            Err(_) => {
                memory.hooked = Some(id.clone());
                let message = format!("FailedPostStartHook: container {name} will be killed");
                memory.kill = Some(super::memory::KillRequest { id, message, grace: None });
            }
        }
    }

    fn status_sent(&mut self, sent: Sent, now: Timestamp) {
        self.sending = match sent {
            Sent::Stored(status, version) => {
                self.known = *status;
                self.known_version = version.unwrap_or(self.known_version);
                Step::Idle
            }
            // The source will say so too; until then there is nobody to tell.
            Sent::Gone => Step::Failed { until: now + RETRY },
            Sent::Failed(error) => {
                warn!(pod = self.model.name, error = %chain(&error), "pod status not sent");
                Step::Failed { until: now + RETRY }
            }
        };
    }

    fn deleted(&mut self, result: Result<(), ApiError>, now: Timestamp) {
        self.deleting = match result {
            Ok(()) => Step::Done,
            Err(error) => {
                warn!(pod = self.model.name, error = %chain(&error), "ended pod not deleted");
                Step::Failed { until: now + RETRY }
            }
        };
    }

    /// Starts writing new resources to running containers whose spec changed.
    pub(super) fn resize_changed(&mut self) {
        let running: Vec<(String, String)> = self
            .observed
            .containers
            .iter()
            .filter(|c| c.phase == ContainerPhase::Running)
            .map(|c| (c.name.clone(), c.id.clone()))
            .collect();
        for (name, id) in running {
            let Some(container) = self.model.container(&name).cloned() else { continue };
            let mut wanted = container.spec.resources.clone().unwrap_or_default();
            wanted.claims = None;
            let before = self.previous_resources(&name);
            if container.kind == ContainerKind::Ephemeral || before.as_ref().is_none_or(|b| *b == wanted) {
                continue;
            }
            let memory = self.memory.container_mut(&name);
            if memory.operation.is_none() {
                memory.operation = Some(Operation::Resizing);
                memory.resources = before;
                self.tasks.spawn(self.job().resize(container, id));
            }
        }
    }

    /// What the container runs with, as the API was last told.
    fn previous_resources(&self, name: &str) -> Option<k8s_openapi::api::core::v1::ResourceRequirements> {
        let lists = [&self.known.init_container_statuses, &self.known.container_statuses];
        lists.into_iter().flatten().flatten().find(|s| s.name == name)?.resources.clone()
    }

    fn resized(&mut self, name: &str, result: Result<(), String>) {
        let memory = self.memory.container_mut(name);
        if memory.operation == Some(Operation::Resizing) {
            memory.operation = None;
        }
        match result {
            Ok(()) => memory.resources = None,
            Err(error) => warn!(pod = self.model.name, container = name, error, "container not resized"),
        }
    }
}
