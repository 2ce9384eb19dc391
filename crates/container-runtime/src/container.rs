//! What is known of one container, in memory and on disk.

use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cri::v1::{
    ContainerConfig, ContainerResources, ContainerState, ContainerStatus, ContainerUser, ImageSpec,
    LinuxContainerResources, LinuxContainerUser,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::error::RuntimeError;
use crate::supervisor::protocol::Exit;
use crate::user::User;

/// The name of the file with it, in the container's directory.
pub(crate) const FILE: &str = "container.json";

/// The exit code of a container that never ran, as upstream reports it.
const START_ERROR_CODE: i32 = 128;

/// The exit code of a container whose end nobody saw.
const UNKNOWN_CODE: i32 = 255;

/// What is kept on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    pub(crate) sandbox: String,
    pub(crate) config: ContainerConfig,
    pub(crate) image_id: String,
    /// The name it was pulled by, with its digest, where it has one.
    pub(crate) image_ref: String,
    /// The layers of its image, lowest first.
    pub(crate) layers: Vec<String>,
    /// The layers of each image it mounts.
    pub(crate) image_mounts: Vec<Vec<String>>,
    pub(crate) created_at: i64,
    pub(crate) cgroup: String,
    pub(crate) user: User,
    pub(crate) log_path: String,
    pub(crate) stop_signal: i32,
    /// The last limits it was given.
    pub(crate) resources: Option<LinuxContainerResources>,
    pub(crate) phase: Phase,
}

/// Where in its life a container is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    Created,
    Starting,
    Running { pid: i32, started_at: i64 },
    Exited { started_at: i64, finished_at: i64, code: i32, reason: String, message: String },
}

impl Phase {
    pub(crate) fn ended(started_at: i64, exit: &Exit) -> Self {
        let reason = match (exit.code, exit.oom_killed) {
            (0, _) => "Completed",
            (_, true) => "OOMKilled",
            _ => "Error",
        };
        Self::Exited {
            started_at,
            finished_at: exit.finished_at,
            code: exit.code,
            reason: reason.to_owned(),
            message: String::new(),
        }
    }

    pub(crate) fn start_failed(finished_at: i64, message: String) -> Self {
        Self::Exited {
            started_at: 0,
            finished_at,
            code: START_ERROR_CODE,
            reason: "StartError".to_owned(),
            message,
        }
    }

    pub(crate) fn unknown(started_at: i64, finished_at: i64) -> Self {
        Self::Exited {
            started_at,
            finished_at,
            code: UNKNOWN_CODE,
            reason: "Unknown".to_owned(),
            message: "the pod's supervisor died".to_owned(),
        }
    }

    pub(crate) fn is_exited(&self) -> bool {
        matches!(self, Self::Exited { .. })
    }

    fn state(&self) -> ContainerState {
        match self {
            Self::Created | Self::Starting => ContainerState::ContainerCreated,
            Self::Running { .. } => ContainerState::ContainerRunning,
            Self::Exited { .. } => ContainerState::ContainerExited,
        }
    }
}

/// One container.
#[derive(Debug)]
pub(crate) struct Container {
    record: Mutex<ContainerRecord>,
    phase: watch::Sender<Phase>,
}

impl Container {
    pub(crate) fn new(record: ContainerRecord) -> Self {
        let phase = watch::Sender::new(record.phase.clone());
        Self { record: Mutex::new(record), phase }
    }

    pub(crate) fn record(&self) -> ContainerRecord {
        self.lock().clone()
    }

    pub(crate) fn id(&self) -> String {
        self.lock().id.clone()
    }

    pub(crate) fn sandbox(&self) -> String {
        self.lock().sandbox.clone()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Moves to a phase if `allowed` says so of the present one, and keeps that. Answers whether it did.
    pub(crate) fn advance(
        &self,
        directory: &Path,
        phase: Phase,
        allowed: impl FnOnce(&Phase) -> bool,
    ) -> Result<bool, RuntimeError> {
        let mut record = self.lock();
        if !allowed(&record.phase) {
            return Ok(false);
        }
        record.phase = phase.clone();
        let written = write_json(&directory.join(FILE), &*record);
        drop(record);
        self.phase.send_replace(phase);
        written.map(|()| true)
    }

    pub(crate) fn set_resources(
        &self,
        directory: &Path,
        resources: LinuxContainerResources,
    ) -> Result<(), RuntimeError> {
        let mut record = self.lock();
        record.resources = Some(resources);
        write_json(&directory.join(FILE), &*record)
    }

    fn lock(&self) -> MutexGuard<'_, ContainerRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ContainerRecord {
    fn image(&self) -> ImageSpec {
        self.config.image.clone().unwrap_or_default()
    }

    pub(crate) fn summary(&self) -> cri::v1::Container {
        cri::v1::Container {
            id: self.id.clone(),
            pod_sandbox_id: self.sandbox.clone(),
            metadata: self.config.metadata.clone(),
            image: Some(self.image()),
            image_ref: self.image_id.clone(),
            state: self.phase.state().into(),
            created_at: self.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            image_id: self.image_id.clone(),
        }
    }

    pub(crate) fn status(&self) -> ContainerStatus {
        let mut status = ContainerStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.phase.state().into(),
            created_at: self.created_at,
            image: Some(self.image()),
            image_ref: self.image_ref.clone(),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            mounts: self.config.mounts.clone(),
            log_path: self.log_path.clone(),
            image_id: self.image_id.clone(),
            resources: self
                .resources
                .clone()
                .map(|linux| ContainerResources { linux: Some(linux), windows: None }),
            user: Some(ContainerUser {
                linux: Some(LinuxContainerUser {
                    uid: self.user.uid.into(),
                    gid: self.user.gid.into(),
                    supplemental_groups: self.user.groups.iter().map(|&group| group.into()).collect(),
                }),
            }),
            ..ContainerStatus::default()
        };
        match &self.phase {
            Phase::Created | Phase::Starting => {}
            Phase::Running { started_at, .. } => status.started_at = *started_at,
            Phase::Exited { started_at, finished_at, code, reason, message } => {
                status.started_at = *started_at;
                status.finished_at = *finished_at;
                status.exit_code = *code;
                status.reason.clone_from(reason);
                status.message.clone_from(message);
            }
        }
        status
    }
}

/// Writes a file whole or not at all.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), RuntimeError> {
    let damaged = |source| RuntimeError::Damaged { path: path.to_owned(), source };
    let text = serde_json::to_vec(value).map_err(damaged)?;
    let new = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&text)?;
        drop(file);
        std::fs::rename(&new, path)
    };
    write().map_err(RuntimeError::file("write", path))
}
