//! `containerStatuses` from what the runtime holds and the worker remembers.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::memory::{Memory, Operation};
use super::model::{ContainerKind, ContainerModel, PodModel};
use super::observed::{ContainerObs, ContainerPhase, Observed};

/// The inputs of one status.
pub(crate) struct View<'a> {
    pub(crate) model: &'a PodModel,
    pub(crate) observed: &'a Observed,
    pub(crate) memory: &'a Memory,
    pub(crate) old: &'a PodStatus,
    pub(crate) runtime: &'a str,
}

impl View<'_> {
    pub(crate) fn statuses(&self, kinds: &[ContainerKind]) -> Vec<ContainerStatus> {
        self.model.of_kind(kinds).map(|container| self.status(container)).collect()
    }

    fn status(&self, container: &ContainerModel) -> ContainerStatus {
        let name = container.name();
        let seen = self.observed.latest(name);
        let old = self.old_status(name);
        let mut status = match seen {
            Some(seen) => self.of_runtime(container, seen),
            None => self.without_runtime(container, old),
        };
        let running = seen.filter(|c| c.phase == ContainerPhase::Running);
        let started = running.is_some_and(|c| self.is_started(container, c));
        match container.kind {
            ContainerKind::Init => {
                status.started = Some(started);
                status.ready = exit_code(&status) == Some(0);
            }
            ContainerKind::Sidecar | ContainerKind::Regular => {
                status.started = Some(started);
                status.ready = started && running.is_some_and(|c| self.is_ready(container, c));
            }
            ContainerKind::Ephemeral => {}
        }
        if status.state.as_ref().is_none_or(|s| s.running.is_none()) {
            status.started = status.started.map(|_| false);
            status.ready &= container.kind == ContainerKind::Init;
        }
        status
    }

    fn is_started(&self, container: &ContainerModel, seen: &ContainerObs) -> bool {
        container.spec.startup_probe.is_none()
            || self.memory.containers.get(&seen.name).and_then(|m| m.started.as_ref()) == Some(&seen.id)
    }

    fn is_ready(&self, container: &ContainerModel, seen: &ContainerObs) -> bool {
        container.spec.readiness_probe.is_none()
            || self.memory.containers.get(&seen.name).and_then(|m| m.ready.as_ref()) == Some(&seen.id)
    }

    fn old_status(&self, name: &str) -> Option<&ContainerStatus> {
        let lists = [
            &self.old.init_container_statuses,
            &self.old.container_statuses,
            &self.old.ephemeral_container_statuses,
        ];
        lists.into_iter().flatten().flatten().find(|s| s.name == name)
    }

    fn default_waiting(&self, container: &ContainerModel) -> ContainerStateWaiting {
        let has_init = self.model.of_kind(&[ContainerKind::Init, ContainerKind::Sidecar]).next().is_some();
        let initializing = has_init
            && (container.kind != ContainerKind::Regular || self.observed.latest(container.name()).is_none());
        let reason = if initializing { "PodInitializing" } else { "ContainerCreating" };
        ContainerStateWaiting { reason: Some(reason.to_owned()), message: None }
    }

    fn waiting(&self, container: &ContainerModel) -> Option<ContainerStateWaiting> {
        let waiting = self.memory.containers.get(container.name())?.waiting.as_ref()?;
        let message = Some(waiting.message.clone()).filter(|m| !m.is_empty());
        Some(ContainerStateWaiting { reason: Some(waiting.reason.clone()), message })
    }

    /// The runtime holds nothing: not begun, or lost.
    fn without_runtime(&self, container: &ContainerModel, old: Option<&ContainerStatus>) -> ContainerStatus {
        let mut status = ContainerStatus {
            name: container.name().to_owned(),
            image: container.spec.image.clone().unwrap_or_default(),
            restart_count: old.map_or(0, |o| o.restart_count),
            last_state: old.and_then(|o| o.last_state.clone()).or_else(|| Some(ContainerState::default())),
            ..ContainerStatus::default()
        };
        let terminated = old.and_then(|o| o.state.as_ref()).and_then(|s| s.terminated.clone());
        let was_running = old.and_then(|o| o.state.as_ref()).is_some_and(|s| s.running.is_some());
        let ending = self.memory.ending().is_some();
        if let (Some(terminated), Some(old)) = (terminated, old) {
            status.image_id.clone_from(&old.image_id);
            status.container_id.clone_from(&old.container_id);
            status.state = Some(ContainerState { terminated: Some(terminated), ..Default::default() });
        } else if was_running {
            let lost = lost_container(ending);
            let state = ContainerState { terminated: Some(lost), ..Default::default() };
            if ending {
                status.state = Some(state);
            } else {
                status.last_state = Some(state);
                status.restart_count += 1;
            }
        }
        if status.state.is_none() {
            let waiting = self.waiting(container).unwrap_or_else(|| self.default_waiting(container));
            status.state = Some(ContainerState { waiting: Some(waiting), ..Default::default() });
        }
        status
    }

    fn of_runtime(&self, container: &ContainerModel, seen: &ContainerObs) -> ContainerStatus {
        let previous = self.observed.previous(&seen.name);
        let old = self.old_status(&seen.name);
        let mut last = previous.map(terminated).or_else(|| old_termination(old, seen));
        let id = format!("{}://{}", self.runtime, seen.id);
        let mut status = ContainerStatus {
            name: seen.name.clone(),
            image: seen.image.clone(),
            image_id: seen.image_id.clone(),
            container_id: Some(id),
            restart_count: seen.attempt,
            ..ContainerStatus::default()
        };
        let state = match seen.phase {
            ContainerPhase::Running if self.hook_pending(container, seen) => {
                waiting_state(self.default_waiting(container))
            }
            ContainerPhase::Running => running_state(seen),
            ContainerPhase::Created => {
                let reason = self.waiting(container).unwrap_or_else(|| self.default_waiting(container));
                waiting_state(reason)
            }
            ContainerPhase::Exited => {
                match self.waiting(container).filter(|_| self.will_restart(container, seen)) {
                    Some(waiting) => {
                        last = Some(terminated(seen));
                        waiting_state(waiting)
                    }
                    None => terminated(seen),
                }
            }
            ContainerPhase::Unknown => {
                ContainerState { terminated: Some(lost_container(true)), ..Default::default() }
            }
        };
        status.state = Some(state);
        status.last_state = last.or_else(|| Some(ContainerState::default()));
        if seen.phase == ContainerPhase::Running {
            self.add_resources(container, &mut status);
        }
        status.user = seen.user.clone().filter(|_| seen.phase == ContainerPhase::Running);
        status.volume_mounts = volume_mounts(container);
        status
    }

    fn hook_pending(&self, container: &ContainerModel, seen: &ContainerObs) -> bool {
        let has_hook = container.spec.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some());
        let memory = self.memory.containers.get(&seen.name);
        has_hook
            && memory.and_then(|m| m.hooked.as_ref()) != Some(&seen.id)
            && memory.is_none_or(|m| matches!(m.operation, None | Some(Operation::Hooking)))
    }

    fn will_restart(&self, container: &ContainerModel, seen: &ContainerObs) -> bool {
        self.memory.ending().is_none() && container.restarts_after(seen.exit_code, self.model.restart_policy)
    }

    fn add_resources(&self, container: &ContainerModel, status: &mut ContainerStatus) {
        let actual = self.memory.containers.get(container.name()).and_then(|m| m.resources.as_ref());
        let Some(resources) = actual.or(container.spec.resources.as_ref()) else {
            status.resources = Some(Default::default());
            return;
        };
        let mut shown = resources.clone();
        shown.claims = None;
        status.allocated_resources = container.spec.resources.as_ref().and_then(|r| r.requests.clone());
        status.resources = Some(shown);
    }
}

fn exit_code(status: &ContainerStatus) -> Option<i32> {
    status.state.as_ref()?.terminated.as_ref().map(|t| t.exit_code)
}

fn waiting_state(waiting: ContainerStateWaiting) -> ContainerState {
    ContainerState { waiting: Some(waiting), ..Default::default() }
}

fn running_state(seen: &ContainerObs) -> ContainerState {
    let started_at = Some(seconds(seen.started_at.unwrap_or(seen.created_at)));
    ContainerState { running: Some(ContainerStateRunning { started_at }), ..Default::default() }
}

fn terminated(seen: &ContainerObs) -> ContainerState {
    let reason = match (seen.reason.as_str(), seen.exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: seen.exit_code,
            reason: Some(reason.to_owned()),
            message: Some(seen.message.clone()).filter(|m| !m.is_empty()),
            started_at: seen.started_at.map(seconds),
            finished_at: seen.finished_at.map(seconds),
            container_id: Some(seen.id.clone()),
            signal: None,
        }),
        ..Default::default()
    }
}

/// The last termination the API knows, when the runtime no longer holds that container.
fn old_termination(old: Option<&ContainerStatus>, seen: &ContainerObs) -> Option<ContainerState> {
    let old = old?;
    let current = old.state.as_ref().filter(|s| s.terminated.is_some() && old.restart_count < seen.attempt);
    current.or(old.last_state.as_ref()).cloned().filter(|s| s.terminated.is_some())
}

fn lost_container(at_end: bool) -> ContainerStateTerminated {
    let when = if at_end { "terminated" } else { "deleted" };
    ContainerStateTerminated {
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".to_owned()),
        message: Some(format!("The container could not be located when the pod was {when}")),
        ..Default::default()
    }
}

fn volume_mounts(container: &ContainerModel) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.spec.volume_mounts.iter().flatten().map(|mount| {
        let read_only = mount.read_only == Some(true);
        let wanted = mount.recursive_read_only.as_deref().unwrap_or("Disabled");
        let recursive = if wanted == "Disabled" { "Disabled" } else { "Enabled" };
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: read_only.then_some(true),
            recursive_read_only: read_only.then(|| recursive.to_owned()),
            ..Default::default()
        }
    });
    Some(mounts.collect::<Vec<_>>()).filter(|m| !m.is_empty())
}

/// API times hold whole seconds.
pub(crate) fn seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}
