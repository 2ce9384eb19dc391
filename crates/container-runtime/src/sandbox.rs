//! What is known of one sandbox, in memory and on disk.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cri::v1::{
    LinuxPodSandboxStatus, Namespace, NamespaceMode, NamespaceOption, PodIp, PodSandbox, PodSandboxConfig,
    PodSandboxNetworkStatus, PodSandboxState, PodSandboxStatus,
};
use serde::{Deserialize, Serialize};

use crate::container::write_json;
use crate::error::RuntimeError;
use crate::supervisor::client::SupervisorClient;

/// The name of the file with it, in the sandbox's directory.
pub(crate) const FILE: &str = "sandbox.json";

/// The socket of the supervisor, in the sandbox's directory.
pub(crate) const SOCKET: &str = "supervisor.sock";

/// What is kept on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) id: String,
    pub(crate) config: PodSandboxConfig,
    pub(crate) runtime_handler: String,
    pub(crate) created_at: i64,
    /// The parent group of its containers.
    pub(crate) cgroup: String,
    /// The group is the runtime's own to remove.
    pub(crate) owns_cgroup: bool,
    pub(crate) live: SandboxLive,
}

/// What changes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SandboxLive {
    pub(crate) ready: bool,
    pub(crate) ips: Vec<String>,
    /// The network provider was asked for a network.
    pub(crate) has_network: bool,
    pub(crate) supervisor: i32,
    /// The process in all of the pod's namespaces.
    pub(crate) holder: i32,
}

/// One sandbox.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) client: SupervisorClient,
    record: Mutex<SandboxRecord>,
    /// Held while it is stopped or removed.
    pub(crate) stopping: tokio::sync::Mutex<()>,
}

impl Sandbox {
    pub(crate) fn new(record: SandboxRecord, directory: &Path) -> Self {
        let client = SupervisorClient::new(directory.to_owned(), SOCKET.into());
        Self { client, record: Mutex::new(record), stopping: tokio::sync::Mutex::new(()) }
    }

    pub(crate) fn record(&self) -> SandboxRecord {
        self.lock().clone()
    }

    pub(crate) fn id(&self) -> String {
        self.lock().id.clone()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.lock().live.ready
    }

    /// Changes what changes, and keeps it.
    pub(crate) fn update(
        &self,
        directory: &Path,
        change: impl FnOnce(&mut SandboxLive),
    ) -> Result<(), RuntimeError> {
        let mut record = self.lock();
        change(&mut record.live);
        write_json(&directory.join(FILE), &*record)
    }

    fn lock(&self) -> MutexGuard<'_, SandboxRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SandboxRecord {
    pub(crate) fn namespace_options(&self) -> NamespaceOption {
        let linux = self.config.linux.as_ref();
        let security = linux.and_then(|linux| linux.security_context.as_ref());
        security.and_then(|security| security.namespace_options.clone()).unwrap_or_default()
    }

    pub(crate) fn uses_host_network(&self) -> bool {
        self.namespace_options().network() == NamespaceMode::Node
    }

    fn state(&self) -> PodSandboxState {
        match self.live.ready {
            true => PodSandboxState::SandboxReady,
            false => PodSandboxState::SandboxNotready,
        }
    }

    pub(crate) fn summary(&self) -> PodSandbox {
        PodSandbox {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state().into(),
            created_at: self.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.runtime_handler.clone(),
        }
    }

    pub(crate) fn status(&self) -> PodSandboxStatus {
        let network = match (self.uses_host_network(), self.live.ips.split_first()) {
            (false, Some((ip, rest))) => PodSandboxNetworkStatus {
                ip: ip.clone(),
                additional_ips: rest.iter().map(|ip| PodIp { ip: ip.clone() }).collect(),
            },
            _ => PodSandboxNetworkStatus::default(),
        };
        PodSandboxStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state().into(),
            created_at: self.created_at,
            network: Some(network),
            linux: Some(LinuxPodSandboxStatus {
                namespaces: Some(Namespace { options: Some(self.namespace_options()) }),
            }),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.runtime_handler.clone(),
        }
    }
}
