//! The embedded store behind etcd's v3 API, as one member that is its own leader: for `etcdctl`, for backups, and for
//! API servers that expect etcd. It must never answer what the store does not: no clustering, no users. Start
//! reading at [`run`].

mod auth;
mod cluster;
mod convert;
mod flags;
mod kv;
mod lease;
mod maintenance;
mod member;
mod server;
mod watch;

pub use crate::flags::{Flags, Ignored};
pub use crate::server::{EtcdError, Server, run};

/// The version of etcd whose API this is.
const API_VERSION: &str = "3.5.21";
