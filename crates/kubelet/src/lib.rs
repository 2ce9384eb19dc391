//! The kubelet: runs the pods of one node through a container runtime (CRI v1) and reports on them.
//!
//! It reaches the cluster through `kube::Client` alone, and must never delete a pod from the API but for the last
//! delete of one that has ended. Start reading at `pod::worker`; the decisions are in `pod::plan` and `pod::status`.

mod api;
mod cgroups;
mod config;
mod container;
mod context;
mod error;
mod hooks;
mod housekeeping;
mod http_check;
mod images;
mod logs;
mod mirror;
mod node;
mod objects;
mod pod;
mod probes;
mod quantity;
mod recorder;
mod run;
mod runtime;
mod runtime_events;
mod server;
mod sources;
mod volumes;

pub use config::{Config, ConfigError, KubeletConfiguration};
pub use error::KubeletError;
pub use run::run;
