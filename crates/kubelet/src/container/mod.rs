//! A container as the runtime is asked for it: environment, mounts, security, resources, sandbox.

pub(crate) mod config;
pub(crate) mod dns;
pub(crate) mod env;
pub(crate) mod field_ref;
pub(crate) mod hosts;
pub(crate) mod labels;
pub(crate) mod sandbox;
pub(crate) mod security;
