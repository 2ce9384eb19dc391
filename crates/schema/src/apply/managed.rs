//! `metadata.managedFields`: who owns what.

use std::cmp::Ordering;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::set::Set;

/// More update entries than this are merged, oldest first.
const MAX_UPDATE_MANAGERS: usize = 10;
const ANCIENT_CHANGES: &str = "ancient-changes";

/// The entries of an object.
#[derive(Debug, Clone, Default)]
pub(super) struct Managed {
    pub(super) entries: Vec<Entry>,
}

/// What one manager owns.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) manager: Manager,
    /// The version in which `set` names fields.
    pub(super) api_version: String,
    /// Canonical RFC 3339.
    pub(super) time: Option<String>,
    pub(super) set: Set,
}

/// What tells managers apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Manager {
    pub(super) name: String,
    pub(super) applied: bool,
    /// Empty for appliers, who stay the same over versions.
    pub(super) api_version: String,
    pub(super) subresource: String,
}

impl Manager {
    pub(super) fn new(name: &str, applied: bool, api_version: &str, subresource: &str) -> Self {
        Self {
            name: if name.is_empty() { "unknown" } else { name }.to_owned(),
            applied,
            api_version: if applied { "" } else { api_version }.to_owned(),
            subresource: subresource.to_owned(),
        }
    }

    /// The form in conflict messages.
    pub(super) fn describe(&self) -> String {
        let mut text = meta::field::go_quote(&self.name);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {}", meta::field::go_quote(&self.subresource)));
        }
        if !self.applied {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

impl Managed {
    /// Reads `metadata.managedFields` of an object; the error is upstream's text.
    pub(super) fn of(object: &Value) -> Result<Self, String> {
        let list = object.pointer("/metadata/managedFields").and_then(Value::as_array);
        let mut managed = Self::default();
        for (index, entry) in list.into_iter().flatten().enumerate() {
            let entry = parse_entry(entry, index)?;
            managed.entries.retain(|known| known.manager != entry.manager);
            managed.entries.push(entry);
        }
        Ok(managed)
    }

    /// True when a client asks to start over: an empty list, or one empty entry.
    pub(super) fn is_reset(object: &Value) -> bool {
        match object.pointer("/metadata/managedFields").and_then(Value::as_array).map(Vec::as_slice) {
            Some([]) => true,
            Some([entry]) => entry.as_object().is_some_and(Map::is_empty),
            _ => false,
        }
    }

    pub(super) fn get(&self, manager: &Manager) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.manager == *manager)
    }

    pub(super) fn remove(&mut self, manager: &Manager) -> Option<Entry> {
        let at = self.entries.iter().position(|entry| entry.manager == *manager)?;
        Some(self.entries.remove(at))
    }

    /// Merges the oldest update entries of one version until there are few enough.
    pub(super) fn cap(&mut self) {
        let mut updaters: Vec<Manager> =
            self.by_age().filter(|entry| !entry.manager.applied).map(|entry| entry.manager.clone()).collect();
        let mut count = updaters.len();
        let mut firsts: Vec<(String, Manager)> = Vec::new();
        for manager in updaters.drain(..) {
            if count <= MAX_UPDATE_MANAGERS {
                return;
            }
            let version = manager.api_version.clone();
            let Some(at) = firsts.iter().position(|(known, _)| *known == version) else {
                firsts.push((version, manager));
                continue;
            };
            let bucket = Manager::new(ANCIENT_CHANGES, false, &version, "");
            if self.get(&bucket).is_none()
                && let Some(first) = self.remove(&firsts[at].1)
            {
                self.entries.push(Entry { manager: bucket.clone(), ..first });
            }
            if manager != bucket
                && let Some(merged) = self.remove(&manager)
                && let Some(entry) = self.entries.iter_mut().find(|entry| entry.manager == bucket)
            {
                entry.set = std::mem::take(&mut entry.set).union(merged.set);
                // The time of what was merged in is the more recent one.
                entry.time = merged.time;
                count -= 1;
            }
        }
    }

    fn by_age(&self) -> impl Iterator<Item = &Entry> {
        let mut entries: Vec<&Entry> = self.entries.iter().collect();
        entries.sort_by(|a, b| a.time.cmp(&b.time).then_with(|| a.manager.cmp(&b.manager)));
        entries.into_iter()
    }

    /// Writes the entries into an object.
    pub(super) fn write(mut self, object: &mut Value) {
        self.entries.sort_by(wire_order);
        let entries: Vec<Value> = self.entries.into_iter().map(print_entry).collect();
        let Some(object) = object.as_object_mut() else { return };
        let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
        if !metadata.is_object() {
            *metadata = Value::Object(Map::new());
        }
        if let Some(metadata) = metadata.as_object_mut() {
            if entries.is_empty() {
                metadata.remove("managedFields");
            } else {
                metadata.insert("managedFields".to_owned(), Value::Array(entries));
            }
        }
    }
}

fn wire_order(a: &Entry, b: &Entry) -> Ordering {
    // Apply stands before Update.
    b.manager
        .applied
        .cmp(&a.manager.applied)
        .then_with(|| a.time.cmp(&b.time))
        .then_with(|| a.manager.name.cmp(&b.manager.name))
        .then_with(|| a.api_version.cmp(&b.api_version))
        .then_with(|| a.manager.subresource.cmp(&b.manager.subresource))
}

fn parse_entry(entry: &Value, index: usize) -> Result<Entry, String> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
    let applied = match text("operation") {
        "Apply" => true,
        "Update" => false,
        _ => return Err("operation must be `Apply` or `Update`".to_owned()),
    };
    let api_version = text("apiVersion");
    if api_version.is_empty() {
        return Err("apiVersion must not be empty".to_owned());
    }
    match text("fieldsType") {
        "FieldsV1" => {}
        "" => return Err(format!("missing fieldsType in managed fields entry {index}")),
        other => {
            let other = meta::field::go_quote(other);
            return Err(format!("invalid fieldsType {other} in managed fields entry {index}"));
        }
    }
    let set = match entry.get("fieldsV1") {
        None | Some(Value::Null) => Set::default(),
        Some(fields) => Set::parse(fields).ok_or("error decoding set: invalid FieldsV1")?,
    };
    let manager = Manager {
        name: text("manager").to_owned(),
        applied,
        api_version: if applied { String::new() } else { api_version.to_owned() },
        subresource: text("subresource").to_owned(),
    };
    let time = entry.get("time").and_then(Value::as_str).map(str::to_owned);
    Ok(Entry { manager, api_version: api_version.to_owned(), time, set })
}

fn print_entry(entry: Entry) -> Value {
    let mut out = Map::new();
    let mut put = |name: &str, value: String| {
        if !value.is_empty() {
            out.insert(name.to_owned(), Value::String(value));
        }
    };
    put("manager", entry.manager.name);
    put("operation", if entry.manager.applied { "Apply" } else { "Update" }.to_owned());
    put("apiVersion", entry.api_version);
    put("time", entry.time.unwrap_or_default());
    put("fieldsType", "FieldsV1".to_owned());
    put("subresource", entry.manager.subresource);
    out.insert("fieldsV1".to_owned(), entry.set.print());
    Value::Object(out)
}

/// The time of a change, as entries carry it.
pub(super) fn stamp(now: Timestamp) -> Option<String> {
    Some(meta::time::format(now))
}
