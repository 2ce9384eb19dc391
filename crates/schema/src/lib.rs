//! One `Schema` drives everything that depends on the shape of an object: decoding, strict checks, defaults,
//! pruning, patches, server-side apply, protobuf and tables. Built-in kinds bring committed tables, custom
//! resources build the same structure at run time. No I/O. Start reading at [`types`].

pub mod apply;
pub mod canonical;
pub mod crd;
pub mod decode;
pub mod defaulting;
mod go_text;
pub mod patch;
pub mod protobuf;
pub mod types;
pub mod validate;
