use std::path::PathBuf;

use crate::config::ConfigError;

/// Why a kubelet could not start or had to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KubeletError {
    #[error("bad configuration")]
    Config(#[from] ConfigError),
    #[error("cannot reach the container runtime")]
    Runtime(#[from] cri::CriError),
    #[error("running with swap on is not supported, please disable swap or set --fail-swap-on flag to false")]
    SwapOn,
    #[error("cannot set up the cgroups")]
    Cgroups {
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot serve on {address}")]
    Serve {
        address: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
