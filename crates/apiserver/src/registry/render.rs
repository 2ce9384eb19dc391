//! Stored objects become answers: bytes copied where the client wants what is stored, converted where not.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use schema::canonical;
use schema::types::Schema;
use serde_json::{Map, Value, json};

use super::catalog::Target;
use super::list::Page;
use crate::front::negotiate::{Accepted, Encoding, Form};
use crate::mirror::head::Stored;
use crate::objects::ObjectExt;
use crate::status::ApiError;

/// Bytes of a list that are made at a time.
const CHUNK: usize = 128 << 10;

/// How answers of one request are written.
#[derive(Debug, Clone)]
pub struct Renderer {
    pub target: Target,
    pub accepted: Accepted,
    /// `includeObject` of a table: `None`, `Metadata` (the default) or `Object`.
    pub include_object: String,
    pub now: Timestamp,
}

impl Renderer {
    /// The stored bytes are the answer.
    fn is_verbatim(&self) -> bool {
        self.accepted == Accepted::default() && self.target.is_storage_version()
    }

    /// The object in the requested version, `resourceVersion` set.
    pub fn value(&self, object: &Stored) -> Result<Value, ApiError> {
        in_version(&self.target, object.to_value())
    }

    /// One object as the client wants it.
    pub fn object(&self, object: &Stored) -> Result<Bytes, ApiError> {
        let mut out = Vec::new();
        if self.is_verbatim() {
            object.write_json(0, &mut out);
            return Ok(out.into());
        }
        self.finish(self.value(object)?)
    }

    /// An object that is not stored (dry runs, reviews).
    pub fn unstored(&self, value: Value) -> Result<Bytes, ApiError> {
        self.finish(in_version(&self.target, value)?)
    }

    fn finish(&self, value: Value) -> Result<Bytes, ApiError> {
        match self.accepted.form {
            Form::Object => encode(&value, self.target.schema(), self.accepted.encoding),
            Form::Metadata => encode_plain(&metadata_only(value), self.accepted.encoding),
            Form::Table => {
                let list = Map::from_iter([(
                    "resourceVersion".to_owned(),
                    Value::String(value.resource_version().to_owned()),
                )]);
                encode_plain(&self.table(vec![value], list, true), self.accepted.encoding)
            }
        }
    }

    /// Appends one object of a watch.
    pub fn event_object(&self, object: &Stored, first: bool, out: &mut Vec<u8>) -> Result<(), ApiError> {
        if self.is_verbatim() {
            object.write_json(0, out);
            return Ok(());
        }
        let value = self.value(object)?;
        match self.accepted.form {
            Form::Object => canonical::write(&value, self.target.schema(), out),
            Form::Metadata => write_json(&metadata_only(value), out),
            Form::Table => write_json(&self.table(vec![value], Map::new(), first), out),
        }
        Ok(())
    }

    /// A page of a list, made in chunks where it can be.
    pub fn list(&self, page: Page) -> Result<ListBody, ApiError> {
        let mut list_meta = Map::new();
        list_meta.insert("resourceVersion".to_owned(), page.revision.to_string().into());
        if !page.continue_token.is_empty() {
            list_meta.insert("continue".to_owned(), page.continue_token.into());
        }
        if let Some(remaining) = page.remaining {
            list_meta.insert("remainingItemCount".to_owned(), remaining.into());
        }
        if self.is_verbatim() {
            return Ok(ListBody::Chunks(self.chunks(page.items, &list_meta)));
        }
        let values: Vec<Value> =
            page.items.iter().map(|object| self.value(object)).collect::<Result<_, _>>()?;
        let list = match self.accepted.form {
            Form::Object => return self.object_list(values, &list_meta).map(ListBody::Whole),
            Form::Metadata => json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": list_meta,
                "items": values.into_iter().map(metadata_only).collect::<Vec<_>>(),
            }),
            Form::Table => self.table(values, list_meta, true),
        };
        encode_plain(&list, self.accepted.encoding).map(ListBody::Whole)
    }

    fn list_head(&self, list_meta: &Map<String, Value>) -> Vec<u8> {
        let mut head = format!(
            r#"{{"kind":"{}","apiVersion":"{}","metadata":"#,
            self.target.spec().list_kind,
            self.target.api_version()
        )
        .into_bytes();
        // Upstream's order of fields, which a map would sort.
        head.push(b'{');
        for field in ["resourceVersion", "continue", "remainingItemCount"] {
            if let Some(value) = list_meta.get(field) {
                if head.last() != Some(&b'{') {
                    head.push(b',');
                }
                head.extend_from_slice(format!("\"{field}\":{value}").as_bytes());
            }
        }
        head.extend_from_slice(b"},\"items\":[");
        head
    }

    fn chunks(&self, items: Vec<Arc<Stored>>, list_meta: &Map<String, Value>) -> Chunks {
        let skip = self.target.resource.item_skip(&self.target);
        Chunks { buffer: self.list_head(list_meta), items: items.into_iter(), skip, first: true, done: false }
    }

    fn object_list(&self, values: Vec<Value>, list_meta: &Map<String, Value>) -> Result<Bytes, ApiError> {
        if self.accepted.encoding == Encoding::Json {
            let mut out = self.list_head(list_meta);
            for (index, mut value) in values.into_iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                self.strip_type(&mut value);
                canonical::write(&value, self.target.schema(), &mut out);
            }
            out.extend_from_slice(b"]}");
            return Ok(out.into());
        }
        let list = json!({
            "kind": &*self.target.spec().list_kind,
            "apiVersion": self.target.api_version(),
            "metadata": list_meta,
            "items": values.into_iter().map(|mut value| { self.strip_type(&mut value); value }).collect::<Vec<_>>(),
        });
        match self.accepted.encoding {
            Encoding::Protobuf => super::wire::protobuf_list(&self.target, &list),
            Encoding::Yaml | Encoding::Json => super::wire::yaml(&list),
        }
    }

    /// Items of typed lists carry no kind and apiVersion; those of custom resources do.
    fn strip_type(&self, value: &mut Value) {
        if let Value::Object(object) = value
            && !self.target.resource.custom
        {
            object.remove("kind");
            object.remove("apiVersion");
        }
    }

    fn table(&self, values: Vec<Value>, list_meta: Map<String, Value>, with_columns: bool) -> Value {
        super::table::table(self, values, list_meta, with_columns)
    }
}

/// A list's body.
pub enum ListBody {
    Whole(Bytes),
    Chunks(Chunks),
}

/// Makes the bytes of a list as the connection takes them.
pub struct Chunks {
    buffer: Vec<u8>,
    items: std::vec::IntoIter<Arc<Stored>>,
    skip: usize,
    first: bool,
    done: bool,
}

impl Iterator for Chunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        while self.buffer.len() < CHUNK {
            let Some(object) = self.items.next() else {
                self.buffer.extend_from_slice(b"]}");
                self.done = true;
                break;
            };
            if !self.first {
                self.buffer.push(b',');
            }
            self.first = false;
            if self.skip > 0 {
                self.buffer.push(b'{');
            }
            object.write_json(self.skip, &mut self.buffer);
        }
        Some(std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK + (CHUNK >> 2))).into())
    }
}

/// Converts a value in the storage version to the target's.
pub fn in_version(target: &Target, value: Value) -> Result<Value, ApiError> {
    if target.is_storage_version() {
        return Ok(value);
    }
    let mut value = target.resource.strategy.convert(value, &target.api_version())?;
    canonical::normalize(&mut value, target.schema());
    Ok(value)
}

/// `PartialObjectMetadata` of an object.
pub fn metadata_only(mut value: Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": value.get_mut("metadata").map(Value::take).unwrap_or_default(),
    })
}

pub(super) fn encode(value: &Value, schema: &Schema, encoding: Encoding) -> Result<Bytes, ApiError> {
    match encoding {
        Encoding::Json => {
            let mut out = Vec::new();
            canonical::write(value, schema, &mut out);
            Ok(out.into())
        }
        Encoding::Yaml => super::wire::yaml(value),
        Encoding::Protobuf => super::wire::protobuf(value, schema),
    }
}

/// Objects of `meta/v1`, whose schema is found by kind.
pub fn encode_plain(value: &Value, encoding: Encoding) -> Result<Bytes, ApiError> {
    match encoding {
        Encoding::Json => {
            let mut out = Vec::new();
            write_json(value, &mut out);
            Ok(out.into())
        }
        Encoding::Yaml => super::wire::yaml(value),
        Encoding::Protobuf => super::wire::protobuf_meta(value),
    }
}

fn write_json(value: &Value, out: &mut Vec<u8>) {
    // Serializing a value into memory cannot fail.
    if let Err(error) = serde_json::to_writer(out, value) {
        tracing::error!(%error, "a value did not serialize");
    }
}

impl std::fmt::Debug for ListBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ListBody")
    }
}

impl std::fmt::Debug for Chunks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chunks").field("left", &self.items.len()).finish_non_exhaustive()
    }
}
