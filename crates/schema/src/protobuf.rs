//! The protobuf form of objects, driven by [`Schema`]: bodies in [`encode()`] and [`decode()`], what upstream wraps
//! around them in [`envelope`].
//!
//! Upstream's generated code writes fields by number; a field that is no Go pointer is written even when it is
//! zero, lists and maps only when they have items. Unknown fields are skipped.

mod decode;
mod encode;
pub mod envelope;
pub mod wire;

pub use decode::decode;
pub use encode::encode;

use crate::types::{Field, ObjectShape};

/// How deep messages may nest. The deepest of upstream's types are CRD schemas.
const MAX_DEPTH: usize = 128;

/// How many values one body may hold: two bytes on the wire can become a whole empty object in memory.
const MAX_VALUES: usize = 2_000_000;

/// Why bytes are not the object they should be, or a value has no protobuf form.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtobufError {
    #[error("unexpected end of protobuf data")]
    Truncated,
    #[error("protobuf varint is longer than 64 bits")]
    Overflow,
    #[error("protobuf field number {0} is not allowed")]
    FieldNumber(u64),
    #[error("protobuf field {field} has wire type {found}")]
    WireType { field: String, found: u8 },
    #[error("protobuf string is not UTF-8")]
    Utf8,
    #[error("protobuf messages nest deeper than {MAX_DEPTH}")]
    TooDeep,
    #[error("protobuf data holds more than {MAX_VALUES} values")]
    TooManyValues,
    #[error("protobuf time is out of range")]
    Time,
    #[error("embedded JSON is malformed")]
    Json(#[source] serde_json::Error),
    #[error("field {0} has no protobuf form")]
    NoForm(String),
    #[error("data is not a kubernetes protobuf object")]
    NoEnvelope,
}

/// The fields that protobuf carries, in the order of the encoding.
fn wire_fields(object: &ObjectShape) -> impl Iterator<Item = &Field> {
    let ordered = object.wire_order.iter().filter_map(|index| object.fields.get(usize::from(*index)));
    let plain = object.fields.iter().take(if object.wire_order.is_empty() { usize::MAX } else { 0 });
    ordered.chain(plain).filter(|field| field.number != 0)
}
