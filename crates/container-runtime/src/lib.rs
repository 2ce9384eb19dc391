//! Coracle's own container runtime: serves CRI v1 on a Unix socket.
//!
//! Images, sandboxes and containers of one state directory. Containers belong to small supervisors (one a pod, the
//! same binary run again) and live on when this runtime dies; it finds them again when it starts. It must never
//! touch a process, mount or control group it did not make. Start reading at [`run`], then `runtime`.

mod cgroup;
mod container;
mod error;
mod events;
mod image;
mod lifecycle;
mod machine;
mod network;
mod recovery;
mod runtime;
mod sandbox;
mod seccomp;
mod service;
mod spec;
mod stats;
mod streaming;
mod supervisor;
mod usage;
mod user;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use error::RuntimeError;
pub use image::{ImageError, ImageRecord, ImageStore, Progress};
pub use network::{HostPort, LoopbackNetwork, NetworkError, PodNetwork, PodNetworkRequest, PortProtocol};
pub use supervisor::client::SupervisorCommand;

/// How to run a runtime.
#[derive(Clone, Debug)]
pub struct Config {
    /// Everything it keeps.
    pub state_dir: PathBuf,
    /// Where it serves CRI.
    pub socket: PathBuf,
    /// The parent of the groups of pods that name none, with a slash in front.
    pub cgroup_root: String,
    /// Directories named after registries, with a `hosts.toml` each, as containerd has them.
    pub registry_config_dir: Option<PathBuf>,
    /// What becomes a pod's supervisor.
    pub supervisor: SupervisorCommand,
    /// The network of pods.
    pub network: Arc<dyn PodNetwork>,
    /// Where exec, attach and port-forward are served; a loopback address, port 0 for any.
    pub streaming_address: SocketAddr,
}

/// Serves CRI until told to stop. Containers go on.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), RuntimeError> {
    service::serve(config, shutdown).await
}

/// Ends everything a runtime that is not running left on the machine: supervisors, containers, control groups and
/// mounts. Images and records stay; they are files. Blocking.
pub fn reset(state_dir: &Path) -> Result<(), RuntimeError> {
    recovery::reset(state_dir)
}

/// What the binary does when started as a supervisor: `args` are those after [`SupervisorCommand::args`].
pub fn supervisor_main(args: &[String]) -> ! {
    std::process::exit(supervisor::main(args))
}
