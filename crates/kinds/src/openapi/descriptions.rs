//! Upstream's descriptions of types and fields, packed by the build script.

use std::collections::BTreeMap;
use std::io::Read as _;

use flate2::read::DeflateDecoder;
use serde_json::{Value, json};

static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions"));

/// Definition name to field name to description; the empty field is the type itself.
pub(super) struct Descriptions(BTreeMap<String, BTreeMap<String, String>>);

impl Descriptions {
    /// Unpacked for one document only: documents are made rarely, and the texts are large.
    pub(super) fn unpack() -> Self {
        let mut text = String::new();
        let read = DeflateDecoder::new(PACKED).read_to_string(&mut text);
        let parsed = read.ok().and_then(|_| serde_json::from_str(&text).ok());
        Self(parsed.expect("the build script packed well-formed descriptions"))
    }

    /// Adds what is known of a definition. A reference cannot have siblings in v3, so it moves into `allOf`.
    pub(super) fn add(&self, name: &str, definition: &mut Value, wrap: bool) {
        let Some(texts) = self.0.get(name) else { return };
        for (field, text) in texts {
            let schema = match field.as_str() {
                "" => Some(&mut *definition),
                field => definition.get_mut("properties").and_then(|properties| properties.get_mut(field)),
            };
            let Some(schema) = schema else { continue };
            if wrap && let Some(reference) = schema.get("$ref").cloned() {
                *schema = json!({"allOf": [{"$ref": reference}]});
            }
            if let Some(schema) = schema.as_object_mut() {
                schema.insert("description".to_owned(), json!(text));
            }
        }
    }
}
