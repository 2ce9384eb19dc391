//! The Kubernetes API server: one pipeline for every kind, from bytes to the store and back.
//!
//! It is the only crate (with `etcd`) that sees the store; everything else reaches cluster state through the
//! service it builds. It must never special-case a kind outside `registry::kinds`. Start reading at
//! [`server`], then [`registry`], [`mirror`], [`authn`], [`authz`] and [`admission`].

pub mod admission;
pub mod assembly;
pub mod attributes;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod connect;
pub mod extensions;
pub mod front;
pub mod mirror;
pub mod objects;
pub mod openapi;
pub mod pki;
pub mod registry;
pub mod server;
pub mod status;
#[cfg(test)]
mod testing;
pub mod tokens;
