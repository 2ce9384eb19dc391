//! The scheduler: finds a node for every pod that has none.
//!
//! The decision is pure ([`schedule::schedule`]): a [`snapshot::Snapshot`], a pod and a seeded generator in,
//! a node or the reasons against every node out. One task ([`run`]) owns the snapshot and the
//! [`queue::Queue`], feeds both from shared informers, decides, and hands what must be written to short
//! tasks of its own. It reaches the cluster through the API server only, and never edits an object it was
//! given.
//!
//! Start reading at [`schedule`], then [`framework`] and the [`plugins`].

mod binder;
pub mod config;
pub mod devices;
pub mod events;
pub mod framework;
mod inbox;
pub mod index;
mod intake;
pub mod labels;
pub mod node;
pub mod plugins;
pub mod pod;
pub mod preemption;
pub mod queue;
mod requests;
pub mod resources;
mod run;
pub mod schedule;
pub mod snapshot;
pub mod storage;
pub mod topology;
mod watch;
pub mod workloads;

pub use config::{Config, ConfigError};
pub use run::{SchedulerError, run, run_with};
