//! One pod: what it is, what is seen of it, what to do next, and the worker that does it.

pub(crate) mod admission;
pub(crate) mod apply;
pub(crate) mod backoff;
pub(crate) mod container_status;
pub(crate) mod handle;
mod last_words;
pub(crate) mod manager;
pub(crate) mod memory;
pub(crate) mod model;
pub(crate) mod observed;
pub(crate) mod operations;
pub(crate) mod plan;
pub(crate) mod resources;
pub(crate) mod sink;
pub(crate) mod status;
pub(crate) mod status_patch;
pub(crate) mod worker;
