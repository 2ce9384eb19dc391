//! The node as the cluster sees it: registration, status, lease.

pub(crate) mod facts;
pub(crate) mod lease;
pub(crate) mod machine;
pub(crate) mod register;
pub(crate) mod status;

/// The version this kubelet reports.
pub(crate) const VERSION: &str = "v1.36.0+coracle";
