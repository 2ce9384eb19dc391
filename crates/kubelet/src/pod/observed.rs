//! What the runtime holds for one pod, in our own words.

use std::cmp::Reverse;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerUser, LinuxContainerUser};

use crate::container::labels;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContainerPhase {
    Created,
    Running,
    Exited,
    Unknown,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ContainerObs {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) sandbox_id: String,
    /// The restart count, carried in an annotation: the runtime's own counter dies with the sandbox.
    pub(crate) attempt: i32,
    pub(crate) phase: ContainerPhase,
    pub(crate) created_at: Timestamp,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Option<Timestamp>,
    pub(crate) exit_code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) image: String,
    pub(crate) image_id: String,
    pub(crate) hash: String,
    pub(crate) log_path: String,
    pub(crate) user: Option<ContainerUser>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SandboxObs {
    pub(crate) id: String,
    pub(crate) attempt: u32,
    pub(crate) ready: bool,
    pub(crate) created_at: Timestamp,
    pub(crate) ips: Vec<String>,
}

/// Newest first in both lists.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Observed {
    pub(crate) sandboxes: Vec<SandboxObs>,
    pub(crate) containers: Vec<ContainerObs>,
}

impl Observed {
    pub(crate) fn new(mut sandboxes: Vec<SandboxObs>, mut containers: Vec<ContainerObs>) -> Self {
        sandboxes.sort_by_key(|s| Reverse((s.created_at, s.attempt)));
        containers.sort_by_key(|c| Reverse((c.attempt, c.created_at)));
        Self { sandboxes, containers }
    }

    /// The sandbox the pod lives in, if it is up.
    pub(crate) fn ready_sandbox(&self) -> Option<&SandboxObs> {
        self.sandboxes.first().filter(|s| s.ready)
    }

    pub(crate) fn latest(&self, name: &str) -> Option<&ContainerObs> {
        self.containers.iter().find(|c| c.name == name)
    }

    pub(crate) fn previous(&self, name: &str) -> Option<&ContainerObs> {
        self.containers.iter().filter(|c| c.name == name).nth(1)
    }

    pub(crate) fn container(&self, id: &str) -> Option<&ContainerObs> {
        self.containers.iter().find(|c| c.id == id)
    }

    /// Containers that hold a process, or may.
    pub(crate) fn alive(&self) -> impl Iterator<Item = &ContainerObs> {
        self.containers.iter().filter(|c| c.is_alive())
    }

    pub(crate) fn any_alive(&self) -> bool {
        self.alive().next().is_some()
    }
}

impl ContainerObs {
    pub(crate) fn is_alive(&self) -> bool {
        matches!(self.phase, ContainerPhase::Running | ContainerPhase::Unknown)
    }

    pub(crate) fn from_cri(status: cri::v1::ContainerStatus, sandbox_id: &str) -> Self {
        let phase = match cri::v1::ContainerState::try_from(status.state) {
            Ok(cri::v1::ContainerState::ContainerCreated) => ContainerPhase::Created,
            Ok(cri::v1::ContainerState::ContainerRunning) => ContainerPhase::Running,
            Ok(cri::v1::ContainerState::ContainerExited) => ContainerPhase::Exited,
            _ => ContainerPhase::Unknown,
        };
        let annotation = |name: &str| status.annotations.get(name).cloned().unwrap_or_default();
        let metadata = status.metadata.unwrap_or_default();
        let attempt = annotation(labels::RESTART_COUNT).parse().ok();
        let image = status.image.unwrap_or_default();
        let named = [image.user_specified_image, image.image].into_iter().find(|i| !i.is_empty());
        Self {
            attempt: attempt.unwrap_or_else(|| i32::try_from(metadata.attempt).unwrap_or(i32::MAX)),
            name: status.labels.get(labels::CONTAINER_NAME).cloned().unwrap_or(metadata.name),
            hash: annotation(labels::HASH),
            sandbox_id: sandbox_id.to_owned(),
            phase,
            created_at: from_nanos(status.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
            started_at: from_nanos(status.started_at),
            finished_at: from_nanos(status.finished_at),
            exit_code: status.exit_code,
            reason: status.reason,
            message: status.message,
            image: named.unwrap_or_default(),
            image_id: if status.image_ref.is_empty() { status.image_id } else { status.image_ref },
            log_path: status.log_path,
            user: status.user.and_then(|u| u.linux).map(|user| ContainerUser {
                linux: Some(LinuxContainerUser {
                    uid: user.uid,
                    gid: user.gid,
                    supplemental_groups: Some(user.supplemental_groups).filter(|g| !g.is_empty()),
                }),
            }),
            id: status.id,
        }
    }
}

impl SandboxObs {
    pub(crate) fn from_cri(status: cri::v1::PodSandboxStatus) -> Self {
        let network = status.network.unwrap_or_default();
        let mut ips = vec![network.ip];
        ips.extend(network.additional_ips.into_iter().map(|ip| ip.ip));
        ips.retain(|ip| !ip.is_empty());
        Self {
            id: status.id,
            attempt: status.metadata.map_or(0, |m| m.attempt),
            ready: status.state == cri::v1::PodSandboxState::SandboxReady as i32,
            created_at: from_nanos(status.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
            ips,
        }
    }
}

/// CRI writes "never" as zero, and Go's zero time as a large negative number.
pub(crate) fn from_nanos(nanos: i64) -> Option<Timestamp> {
    if nanos <= 0 { None } else { Timestamp::from_nanosecond(i128::from(nanos)).ok() }
}
