//! What a pod worker knows beside the runtime's own state: running operations, failures, probe results.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::backoff::Backoff;

/// Whether the pod is to run or to end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Mode {
    #[default]
    Run,
    End(Ending),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) since: Timestamp,
    pub(crate) grace: Duration,
    /// Forces the phase to Failed with this reason and message: eviction, deadline, rejection.
    pub(crate) failure: Option<Failure>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    pub(crate) message: String,
    /// The `DisruptionTarget` condition's message, when the kubelet ends the pod for the node's sake.
    pub(crate) disruption: Option<String>,
}

/// One thing done once per pod, with retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Step {
    #[default]
    Idle,
    Running,
    Done,
    Failed {
        until: Timestamp,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Pulling,
    Starting,
    Hooking,
    Killing,
    Resizing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) reason: String,
    pub(crate) message: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum ImageState {
    #[default]
    Unknown,
    /// Ready to be used for the next start; holds the runtime's reference.
    Present(String),
    Failed {
        at: Timestamp,
        until: Timestamp,
        failure: Waiting,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KillRequest {
    pub(crate) id: String,
    pub(crate) message: String,
    /// A probe may set its own grace period.
    pub(crate) grace: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct ContainerMemory {
    pub(crate) operation: Option<Operation>,
    pub(crate) image: ImageState,
    pub(crate) image_backoff: Backoff,
    /// Why the container does not run, where that is more than "not yet".
    pub(crate) waiting: Option<Waiting>,
    /// A failed create or start is tried again then.
    pub(crate) retry_at: Option<Timestamp>,
    pub(crate) crash: Backoff,
    pub(crate) kill: Option<KillRequest>,
    /// Container ids for which the step was passed.
    pub(crate) hooked: Option<String>,
    pub(crate) started: Option<String>,
    pub(crate) ready: Option<String>,
    /// Killed once already, so that it is not done twice.
    pub(crate) killed: Option<String>,
    /// The resources last written to the running container, as JSON of the requirements.
    pub(crate) resources: Option<k8s_openapi::api::core::v1::ResourceRequirements>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Memory {
    pub(crate) mode: Mode,
    pub(crate) volumes: Step,
    pub(crate) sandbox: Step,
    pub(crate) teardown: Step,
    pub(crate) containers: BTreeMap<String, ContainerMemory>,
}

impl Memory {
    pub(crate) fn container(&self, name: &str) -> ContainerMemory {
        self.containers.get(name).cloned().unwrap_or_default()
    }

    pub(crate) fn container_mut(&mut self, name: &str) -> &mut ContainerMemory {
        self.containers.entry(name.to_owned()).or_default()
    }

    pub(crate) fn ending(&self) -> Option<&Ending> {
        match &self.mode {
            Mode::Run => None,
            Mode::End(ending) => Some(ending),
        }
    }

    /// Nothing is being done to any container right now.
    pub(crate) fn is_quiet(&self) -> bool {
        self.sandbox != Step::Running
            && self.volumes != Step::Running
            && self.containers.values().all(|c| c.operation.is_none())
    }
}

impl Step {
    /// Whether to do it now; if later, when.
    pub(crate) fn due(self, now: Timestamp) -> Result<(), Option<Timestamp>> {
        match self {
            Self::Idle => Ok(()),
            Self::Failed { until } if until <= now => Ok(()),
            Self::Failed { until } => Err(Some(until)),
            Self::Running | Self::Done => Err(None),
        }
    }
}
