//! What the kubelet is told: `KubeletConfiguration` files, then flags over them.

mod duration;
mod file;
mod flags;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

pub(crate) use duration::parse_duration;
pub use file::KubeletConfiguration;

/// Everything one kubelet runs by.
#[derive(Debug, Clone)]
pub struct Config {
    pub kubelet: KubeletConfiguration,
    pub node_name: String,
    pub root_dir: PathBuf,
    pub cert_dir: PathBuf,
    /// For the caller, who makes the client from it.
    pub kubeconfig: Option<PathBuf>,
    pub bootstrap_kubeconfig: Option<PathBuf>,
    pub node_ips: Vec<IpAddr>,
    pub node_labels: BTreeMap<String, String>,
    pub provider_id: String,
    /// Flags that upstream knows and that change nothing here.
    pub ignored_flags: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    #[error("unknown flag: --{name}")]
    UnknownFlag { name: String },
    #[error("flag needs an argument: --{name}")]
    MissingValue { name: String },
    #[error("invalid argument {value:?} for --{name}: {reason}")]
    InvalidValue { name: String, value: String, reason: String },
    #[error("unexpected argument {argument:?}")]
    UnexpectedArgument { argument: String },
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot parse {}: {message}", path.display())]
    Parse { path: PathBuf, message: String },
    #[error("cannot decode the kubelet configuration")]
    Decode {
        #[source]
        source: serde_json::Error,
    },
    #[error("cannot find out the host name")]
    Hostname {
        #[source]
        source: std::io::Error,
    },
}

impl Config {
    /// Reads upstream's command line (without the program's name) and the files it names.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, ConfigError> {
        flags::parse(arguments)
    }

    /// The defaults, for a node of this name that keeps its state under `root_dir`.
    pub fn new(node_name: impl Into<String>, root_dir: impl Into<PathBuf>) -> Self {
        let root_dir = root_dir.into();
        Self {
            kubelet: KubeletConfiguration::default(),
            node_name: node_name.into(),
            cert_dir: root_dir.join("pki"),
            root_dir,
            kubeconfig: None,
            bootstrap_kubeconfig: None,
            node_ips: Vec::new(),
            node_labels: BTreeMap::new(),
            provider_id: String::new(),
            ignored_flags: Vec::new(),
        }
    }
}
