//! The controller manager: every built-in controller, each started by its upstream name, each acting as its own
//! service account.
//!
//! It must never reach cluster state but through the API server. Start reading at [`run`] and at the table in
//! [`controllers`]; each controller is a pure plan and a small executor.

mod bulk;
mod claims;
pub mod config;
mod context;
pub mod controllers;
mod discovery;
mod enqueue;
mod hash;
mod manager;
mod node_fit;
mod pods;
mod revisions;
mod service_pods;

pub use config::Config;
pub use context::ClientFor;
pub use manager::{Shared, run};
