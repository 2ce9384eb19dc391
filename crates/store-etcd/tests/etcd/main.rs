//! The store against real etcd servers.

mod cluster;
mod members;
mod suite;
