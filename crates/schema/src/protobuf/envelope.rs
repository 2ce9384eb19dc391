//! What upstream puts around the messages of objects: the `runtime.Unknown` envelope with its magic number,
//! lists made of items already encoded, and the frames of a watch.

use serde_json::Value;

use super::wire::{BYTES, Reader, put_bytes, put_tag, put_varint, varint_length};
use super::{ProtobufError, decode, encode};
use crate::types::Schema;

const MAGIC: &[u8] = b"k8s\0";

/// An object as it came: what it says it is, and its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub raw: &'a [u8],
    pub content_encoding: &'a str,
    pub content_type: &'a str,
}

/// Appends an envelope around a message.
pub fn envelope_encode(api_version: &str, kind: &str, raw: &[u8], out: &mut Vec<u8>) {
    envelope_start(api_version, kind, raw.len(), out);
    out.extend_from_slice(raw);
    envelope_end(out);
}

/// Reads the envelope around a message.
pub fn envelope_decode(bytes: &[u8]) -> Result<Envelope<'_>, ProtobufError> {
    let body = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::NoEnvelope)?;
    let mut envelope =
        Envelope { api_version: "", kind: "", raw: &[], content_encoding: "", content_type: "" };
    let mut reader = Reader::new(body);
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1, BYTES) => {
                let mut meta = Reader::new(reader.bytes()?);
                while let Some((number, wire)) = meta.tag()? {
                    match (number, wire) {
                        (1, BYTES) => envelope.api_version = meta.string()?,
                        (2, BYTES) => envelope.kind = meta.string()?,
                        _ => meta.skip(wire)?,
                    }
                }
            }
            (2, BYTES) => envelope.raw = reader.bytes()?,
            (3, BYTES) => envelope.content_encoding = reader.string()?,
            (4, BYTES) => envelope.content_type = reader.string()?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(envelope)
}

/// Appends an object with its envelope; the object names its own version and kind.
pub fn object_encode(value: &Value, schema: &Schema, out: &mut Vec<u8>) -> Result<(), ProtobufError> {
    let text = |name: &str| value[name].as_str().unwrap_or_default();
    let mut raw = Vec::new();
    encode(value, schema, &mut raw)?;
    envelope_encode(text("apiVersion"), text("kind"), &raw, out);
    Ok(())
}

impl Envelope<'_> {
    /// The object inside, with the version and kind that the envelope names.
    pub fn object(&self, schema: &Schema) -> Result<Value, ProtobufError> {
        let mut value = decode(self.raw, schema)?;
        for (name, text) in [("apiVersion", self.api_version), ("kind", self.kind)] {
            if !text.is_empty() {
                value[name] = Value::from(text);
            }
        }
        Ok(value)
    }
}

/// Appends a list with its envelope. `metadata` is the message of its `ListMeta`, `items` those of its objects.
pub fn list_encode<'a>(
    api_version: &str,
    kind: &str,
    metadata: &[u8],
    items: impl Iterator<Item = &'a [u8]> + Clone,
    out: &mut Vec<u8>,
) {
    let framed = |bytes: &[u8]| 1 + varint_length(bytes.len() as u64) + bytes.len();
    let length = framed(metadata) + items.clone().map(framed).sum::<usize>();
    out.reserve(length + 64);
    envelope_start(api_version, kind, length, out);
    put_bytes(1, metadata, out);
    items.for_each(|item| put_bytes(2, item, out));
    envelope_end(out);
}

/// Appends one frame of a watch. `object` is an object with its envelope.
pub fn watch_frame_encode(r#type: &str, object: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    put_bytes(1, r#type.as_bytes(), out);
    put_tag(2, BYTES, out);
    put_varint((1 + varint_length(object.len() as u64) + object.len()) as u64, out);
    put_bytes(1, object, out);
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// One frame of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchFrame<'a> {
    pub r#type: &'a str,
    /// An object with its envelope.
    pub object: &'a [u8],
    /// How many bytes the frame took.
    pub length: usize,
}

/// Reads the first frame of a watch; `None` while it is not there in full.
pub fn watch_frame_decode(bytes: &[u8]) -> Result<Option<WatchFrame<'_>>, ProtobufError> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    let Some(body) = rest.get(..length) else { return Ok(None) };
    let mut frame = WatchFrame { r#type: "", object: &[], length: length + 4 };
    let mut reader = Reader::new(body);
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1, BYTES) => frame.r#type = reader.string()?,
            (2, BYTES) => {
                let mut raw = Reader::new(reader.bytes()?);
                while let Some((number, wire)) = raw.tag()? {
                    match (number, wire) {
                        (1, BYTES) => frame.object = raw.bytes()?,
                        _ => raw.skip(wire)?,
                    }
                }
            }
            _ => reader.skip(wire)?,
        }
    }
    Ok(Some(frame))
}

fn envelope_start(api_version: &str, kind: &str, raw: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(MAGIC);
    let mut meta = Vec::with_capacity(api_version.len() + kind.len() + 4);
    put_bytes(1, api_version.as_bytes(), &mut meta);
    put_bytes(2, kind.as_bytes(), &mut meta);
    put_bytes(1, &meta, out);
    put_tag(2, BYTES, out);
    put_varint(raw as u64, out);
}

/// Upstream writes content encoding and type even though it leaves them empty.
fn envelope_end(out: &mut Vec<u8>) {
    put_bytes(3, b"", out);
    put_bytes(4, b"", out);
}
