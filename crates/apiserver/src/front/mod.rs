//! Where bytes come in: sockets, TLS, HTTP, paths, content negotiation and response bodies.

pub mod body;
pub(crate) mod decode;
pub mod listen;
pub mod negotiate;
pub mod options;
pub mod path;
