//! The few facts about a stored object that lists and watches need without parsing it.

use std::sync::Arc;
use std::sync::OnceLock;

use bytes::Bytes;
use schema::types::Text;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use store::{KeyValue, Revision};

use crate::objects::ObjectExt;

/// The field paths that field selectors of a resource may name, beyond name and namespace.
#[derive(Debug, Clone, Default)]
pub struct FieldPaths(pub Arc<[Text]>);

/// A live or deleted object: its stored bytes and what was read off them once.
#[derive(Debug)]
pub struct Stored {
    kv: Arc<KeyValue>,
    /// The revision this state is known by: that of the write, or of the delete that ended it.
    revision: Revision,
    prefix_len: u32,
    /// Where `,"resourceVersion":"N"` belongs in the bytes.
    version_at: u32,
    /// `key\0value\n` a label.
    labels: Box<str>,
    /// Values of the selectable fields, in the order of [`FieldPaths`].
    fields: Box<[Box<str>]>,
    /// Parsed on first use by the server's own parts (namespaces, roles ...).
    parsed: OnceLock<Arc<Value>>,
}

impl Stored {
    /// Reads the head of a stored value. `None` if the bytes are not an object with a uid.
    pub fn new(kv: Arc<KeyValue>, prefix_len: usize, paths: &FieldPaths) -> Option<Self> {
        let mut head = Head { fields: vec![Box::default(); paths.0.len()].into(), ..Head::default() };
        let wanted: Vec<Wanted<'_>> =
            paths.0.iter().enumerate().map(|(index, path)| (index, path.as_str())).collect();
        let mut deserializer = serde_json::Deserializer::from_slice(&kv.value);
        Root { head: &mut head, base: kv.value.as_ptr() as usize, wanted }
            .deserialize(&mut deserializer)
            .ok()?;
        Some(Self {
            revision: kv.mod_revision,
            prefix_len: u32::try_from(prefix_len).ok()?,
            version_at: u32::try_from(head.version_at?).ok()?,
            labels: head.labels.into(),
            fields: head.fields,
            parsed: OnceLock::new(),
            kv,
        })
    }

    /// The same state, known by the revision of the delete that ended it.
    pub fn deleted_at(&self, revision: Revision) -> Self {
        Self {
            kv: Arc::clone(&self.kv),
            revision,
            prefix_len: self.prefix_len,
            version_at: self.version_at,
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            parsed: OnceLock::new(),
        }
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The revision of the last write, which preconditions compare.
    pub fn mod_revision(&self) -> Revision {
        self.kv.mod_revision
    }

    pub fn create_revision(&self) -> Revision {
        self.kv.create_revision
    }

    /// `namespace/name`, or `name`.
    pub fn key(&self) -> Bytes {
        self.kv.key.slice(self.prefix_len as usize..)
    }

    pub fn store_key(&self) -> &Bytes {
        &self.kv.key
    }

    fn path(&self) -> &str {
        std::str::from_utf8(&self.kv.key[self.prefix_len as usize..]).unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        let path = self.path();
        path.rsplit_once('/').map_or(path, |(_, name)| name)
    }

    pub fn namespace(&self) -> &str {
        self.path().split_once('/').map_or("", |(namespace, _)| namespace)
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels().find(|(own, _)| *own == key).map(|(_, value)| value)
    }

    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.labels.split_terminator('\n').filter_map(|pair| pair.split_once('\0'))
    }

    /// The value of the selectable field at this index of [`FieldPaths`].
    pub fn field(&self, index: usize) -> &str {
        self.fields.get(index).map_or("", |value| value)
    }

    /// As [`Self::field`]; `None` beyond the last selectable field.
    pub fn field_at(&self, index: usize) -> Option<&str> {
        self.fields.get(index).map(|value| &**value)
    }

    /// The bytes around the place of `,"resourceVersion":"N"`.
    pub fn parts(&self) -> (&[u8], &[u8]) {
        self.kv.value.split_at(self.version_at as usize)
    }

    /// Bytes of the stored value.
    pub fn size(&self) -> usize {
        self.kv.value.len()
    }

    /// Appends the object as JSON in its stored version, `resourceVersion` in its place. `skip` bytes of the
    /// beginning are left out.
    pub fn write_json(&self, skip: usize, out: &mut Vec<u8>) {
        let (before, after) = self.parts();
        let mut digits = itoa::Buffer::new();
        out.reserve(self.size() + 48);
        out.extend_from_slice(&before[skip.min(before.len())..]);
        out.extend_from_slice(b",\"resourceVersion\":\"");
        out.extend_from_slice(digits.format(self.revision).as_bytes());
        out.push(b'"');
        out.extend_from_slice(after);
    }

    /// The object parsed, `resourceVersion` set.
    pub fn to_value(&self) -> Value {
        let mut value: Value = serde_json::from_slice(&self.kv.value).unwrap_or_default();
        let metadata = value.metadata_mut();
        metadata.insert("resourceVersion".to_owned(), Value::String(self.revision.to_string()));
        value
    }

    /// The object parsed and kept parsed: for the few objects that the server itself asks for again and again.
    pub fn parsed(&self) -> Arc<Value> {
        Arc::clone(self.parsed.get_or_init(|| Arc::new(self.to_value())))
    }
}

#[derive(Default)]
struct Head {
    version_at: Option<usize>,
    labels: String,
    fields: Box<[Box<str>]>,
}

/// A selectable field and what is left of its path.
type Wanted<'p> = (usize, &'p str);

/// Visits the top of an object: metadata, and whatever leads to a selectable field.
struct Root<'h, 'p> {
    head: &'h mut Head,
    base: usize,
    wanted: Vec<Wanted<'p>>,
}

impl<'de> DeserializeSeed<'de> for Root<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Root<'_, '_> {
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            if key == "metadata" {
                map.next_value_seed(Metadata { head: self.head, base: self.base })?;
                continue;
            }
            let below = narrow(&self.wanted, &key);
            if below.is_empty() {
                map.next_value::<IgnoredAny>()?;
            } else {
                map.next_value_seed(Below { head: self.head, wanted: below })?;
            }
        }
        Ok(())
    }
}

struct Metadata<'h> {
    head: &'h mut Head,
    base: usize,
}

impl<'de> DeserializeSeed<'de> for Metadata<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Metadata<'_> {
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("object metadata")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            match &*key {
                "uid" => {
                    // Borrowed from the input, so its address is its place; the quote follows it.
                    let uid = map.next_value::<&'de str>()?;
                    self.head.version_at = Some(uid.as_ptr() as usize - self.base + uid.len() + 1);
                }
                "labels" => {
                    let labels = map.next_value::<Option<LabelMap<'de>>>()?;
                    for (key, value) in labels.map(|labels| labels.0).unwrap_or_default() {
                        self.head.labels.push_str(&key);
                        self.head.labels.push('\0');
                        self.head.labels.push_str(&value);
                        self.head.labels.push('\n');
                    }
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

struct LabelMap<'de>(Vec<(std::borrow::Cow<'de, str>, std::borrow::Cow<'de, str>)>);

impl<'de> serde::Deserialize<'de> for LabelMap<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Labels;
        impl<'de> Visitor<'de> for Labels {
            type Value = LabelMap<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("labels")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut labels = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    labels.push(entry);
                }
                Ok(LabelMap(labels))
            }
        }
        deserializer.deserialize_map(Labels)
    }
}

/// Follows selectable field paths below the top level.
struct Below<'h, 'p> {
    head: &'h mut Head,
    wanted: Vec<Wanted<'p>>,
}

impl<'de> DeserializeSeed<'de> for Below<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Below<'_, '_> {
    fn found(&mut self, text: &str) {
        for (index, rest) in &self.wanted {
            if rest.is_empty() {
                self.head.fields[*index] = text.into();
            }
        }
    }
}

impl<'de> Visitor<'de> for Below<'_, '_> {
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }
    fn visit_bool<E>(mut self, value: bool) -> Result<(), E> {
        self.found(if value { "true" } else { "false" });
        Ok(())
    }
    fn visit_i64<E>(mut self, value: i64) -> Result<(), E> {
        self.found(&value.to_string());
        Ok(())
    }
    fn visit_u64<E>(mut self, value: u64) -> Result<(), E> {
        self.found(&value.to_string());
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(mut self, value: &str) -> Result<(), E> {
        self.found(value);
        Ok(())
    }
    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let below = narrow(&self.wanted, &key);
            if below.is_empty() {
                map.next_value::<IgnoredAny>()?;
            } else {
                map.next_value_seed(Below { head: self.head, wanted: below })?;
            }
        }
        Ok(())
    }
}

/// The paths that go on below `key`.
fn narrow<'p>(wanted: &[Wanted<'p>], key: &str) -> Vec<Wanted<'p>> {
    wanted
        .iter()
        .filter_map(|(index, path)| {
            let rest = path.strip_prefix(key)?;
            let rest = if rest.is_empty() { rest } else { rest.strip_prefix('.')? };
            Some((*index, rest))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(json: &str, paths: &[&'static str]) -> Stored {
        let kv = KeyValue {
            key: Bytes::from_static(b"/registry/core/pods/default/web"),
            value: Bytes::from(json.to_owned()),
            create_revision: 7,
            mod_revision: 9,
            version: 2,
            lease: 0,
        };
        let paths = FieldPaths(paths.iter().map(|path| Text::Static(path)).collect());
        Stored::new(Arc::new(kv), "/registry/core/pods/".len(), &paths).expect("a valid object")
    }

    #[test]
    fn resource_version_is_written_after_the_uid() {
        let object =
            stored(r#"{"kind":"Pod","metadata":{"name":"web","uid":"u-1","labels":{"a":"b"}}}"#, &[]);
        let mut out = Vec::new();
        object.write_json(0, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"kind":"Pod","metadata":{"name":"web","uid":"u-1","resourceVersion":"9","labels":{"a":"b"}}}"#
        );
        assert_eq!((object.namespace(), object.name()), ("default", "web"));
    }

    #[test]
    fn labels_and_selectable_fields_are_read_off() {
        let object = stored(
            r#"{"metadata":{"uid":"u","labels":{"a":"1","b":""}},"spec":{"nodeName":"n1","x":[1]},"status":{"phase":"Running"}}"#,
            &["spec.nodeName", "status.phase", "status.podIP"],
        );
        assert_eq!((object.label("a"), object.label("b"), object.label("c")), (Some("1"), Some(""), None));
        assert_eq!((object.field(0), object.field(1), object.field(2)), ("n1", "Running", ""));
    }
}
