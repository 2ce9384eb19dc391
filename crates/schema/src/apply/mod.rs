//! Server-side apply and the ownership of fields (`metadata.managedFields`).
//!
//! [`update`] keeps the books on create, update and patch; [`apply`] merges an applied configuration into the
//! live object, by what its manager owned before and what others own. Start reading there.

mod element;
mod managed;
mod merge;
mod reconcile;
mod same;
mod set;
mod typed;
mod validate;

use std::borrow::Cow;
use std::sync::LazyLock;

use jiff::Timestamp;
use serde_json::Value;

pub use element::Element;
pub use same::changes_nothing;
pub use set::Set;
pub(crate) use typed::item_element;

use crate::canonical;
use crate::decode::{self, Strictness};
use crate::types::{Ptr, Schema};
use managed::{Entry, Managed, Manager};
use typed::Comparison;

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What a request says about itself.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The schema in the request's version.
    pub schema: &'a Schema,
    /// The request's version, `apps/v1`. Objects passed in are in this version.
    pub api_version: &'a str,
    pub kind: &'a str,
    /// The field manager's name.
    pub manager: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    pub now: Timestamp,
    /// Fields this request cannot change (`status` on the object, `spec` on its status).
    pub reset_fields: &'a Set,
    pub converter: &'a dyn Converter,
}

/// Gives objects in other versions, for entries written in those.
pub trait Converter {
    /// The object, whose `apiVersion` says what it is in, in another version, with that version's schema. `None`
    /// when that version is served no more.
    fn convert(&self, object: &Value, api_version: &str) -> Option<(Value, Ptr<Schema>)>;
}

/// For kinds with a single version.
#[derive(Debug, Clone, Copy)]
pub struct OneVersion;

impl Converter for OneVersion {
    fn convert(&self, _: &Value, _: &str) -> Option<(Value, Ptr<Schema>)> {
        None
    }
}

/// Why a configuration was not applied; `Display` is upstream's text.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// 400
    #[error("{0}")]
    BadRequest(String),
    /// 409 with a cause `FieldManagerConflict` each.
    #[error("{}", conflict_message(.0))]
    Conflict(Vec<Conflict>),
    /// 500
    #[error("{0}")]
    Internal(String),
}

/// A field that another manager owns with another value.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflict {
    /// `"kubectl-client-side-apply" using apps/v1`
    pub manager: String,
    /// `.spec.replicas`
    pub field: String,
    path: Vec<Element>,
}

impl Conflict {
    /// The message of its cause.
    pub fn message(&self) -> String {
        format!("conflict with {}", self.manager)
    }
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("manager", &self.manager).finish_non_exhaustive()
    }
}

/// Records in `new` who owns what after a create (`live` absent), update or patch. Both objects are canonical.
pub fn update(live: Option<&Value>, new: &mut Value, context: &Context<'_>) {
    let reset = context.subresource.is_empty() && Managed::is_reset(new);
    let from_live = || live.and_then(|live| Managed::of(live).ok()).unwrap_or_default();
    let managed = if reset {
        Managed::default()
    } else if context.subresource.is_empty() {
        Managed::of(new).ok().filter(|managed| !managed.entries.is_empty()).unwrap_or_else(from_live)
    } else {
        from_live()
    };
    take_managed_fields(new);
    // An object that nobody kept books on does not get any by an update.
    if live.is_some() && managed.entries.is_empty() {
        return;
    }
    record(live, new, managed, context).write(new);
}

/// The books after a change from `live` to `new`.
fn record(live: Option<&Value>, new: &Value, managed: Managed, context: &Context<'_>) -> Managed {
    let live = live.map_or_else(|| Cow::Owned(canonical::zero(context.schema)), Cow::Borrowed);
    let mut managed = reconcile_all(managed, &live, context);
    let manager = Manager::new(context.manager, false, context.api_version, context.subresource);
    let comparison = typed::compare(&live, new, context.schema).without(context.reset_fields);
    take_from_others(&mut managed, None, &live, new, &comparison, context);
    let set = comparison.modified.union(comparison.added).difference(&STRIPPED);
    if !set.is_empty() {
        let previous = managed.remove(&manager).map(|entry| entry.set).unwrap_or_default();
        managed.entries.push(Entry {
            manager,
            api_version: context.api_version.to_owned(),
            time: managed::stamp(context.now),
            set: set.union(previous),
        });
    }
    managed.cap();
    managed
}

/// Applies a configuration. `live` is canonical and in the request's version, `config` as it was sent.
///
/// Gives the new object, canonical but not defaulted.
pub fn apply(
    live: Option<&Value>,
    config: &Value,
    force: bool,
    context: &Context<'_>,
) -> Result<Value, ApplyError> {
    check_type(config, context)?;
    if config.pointer("/metadata/managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(ApplyError::BadRequest("metadata.managedFields must be nil".to_owned()));
    }
    let empty = canonical::zero(context.schema);
    let object = live.unwrap_or(&empty);
    let mut managed = Managed::of(object)
        .map_err(|error| ApplyError::Internal(format!("failed to decode managed fields: {error}")))?;
    let mut object = object.clone();
    take_managed_fields(&mut object);
    if managed.entries.is_empty() && live.is_some() {
        let before = Context { manager: "before-first-apply", ..*context };
        managed = record(None, &object, managed, &before);
    }
    validate::check(config, context.schema).map_err(|error| {
        let name = |field: &str| {
            let name = config.pointer(field).and_then(Value::as_str);
            name.unwrap_or_default().to_owned()
        };
        ApplyError::Internal(format!(
            "failed to create typed patch object ({}/{}; {}): {error}",
            name("/metadata/namespace"),
            name("/metadata/name"),
            type_text(context.api_version, context.kind)
        ))
    })?;
    let (mut new, managed) = match apply_once(&object, config, managed.clone(), force, context) {
        Err(ApplyError::Conflict(conflicts)) if context.manager == "kubectl" => {
            let conflicts = conflicts_after_migration(conflicts, &object, context);
            if !conflicts.is_empty() {
                return Err(ApplyError::Conflict(conflicts));
            }
            apply_once(&object, config, managed, true, context)?
        }
        other => other?,
    };
    if context.manager == "kubectl" {
        refresh_last_applied(&mut new, config);
    }
    managed.write(&mut new);
    let mut decoded = decode::value(new, context.schema, Strictness::Ignore)
        .map_err(|error| ApplyError::Internal(error.to_string()))?
        .value;
    canonical::normalize(&mut decoded, context.schema);
    Ok(decoded)
}

fn check_type(config: &Value, context: &Context<'_>) -> Result<(), ApplyError> {
    let text = |name: &str| config.get(name).and_then(Value::as_str).unwrap_or_default();
    if text("apiVersion") == context.api_version && text("kind") == context.kind {
        return Ok(());
    }
    let found = type_text(text("apiVersion"), text("kind"));
    Err(ApplyError::BadRequest(format!("invalid object type: {found}")))
}

/// `apps/v1, Kind=Deployment`, `/v1, Kind=Pod`
fn type_text(api_version: &str, kind: &str) -> String {
    let slash = if api_version.contains('/') { "" } else { "/" };
    format!("{slash}{api_version}, Kind={kind}")
}

fn apply_once(
    live: &Value,
    config: &Value,
    managed: Managed,
    force: bool,
    context: &Context<'_>,
) -> Result<(Value, Managed), ApplyError> {
    let mut managed = reconcile_all(managed, live, context);
    let merged = merge::merge(Some(live), Some(config), context.schema).unwrap_or_default();
    let manager = Manager::new(context.manager, true, context.api_version, context.subresource);
    let last = managed.remove(&manager);
    let set = typed::field_set(config, context.schema).recursive_difference(context.reset_fields);
    managed.entries.push(Entry {
        manager: manager.clone(),
        api_version: context.api_version.to_owned(),
        time: last.as_ref().and_then(|last| last.time.clone()),
        set,
    });
    let new = match &last {
        Some(last) if !last.set.is_empty() => prune(merged, &managed, last, context),
        _ => merged,
    };
    let comparison = typed::compare(live, &new, context.schema).without(context.reset_fields);
    let conflicts = take_from_others(&mut managed, Some(&manager), live, &new, &comparison, context);
    if !force && !conflicts.is_empty() {
        return Err(ApplyError::Conflict(conflicts));
    }
    let changed = *live != new;
    for entry in managed.entries.iter_mut().filter(|entry| entry.manager == manager) {
        entry.set = std::mem::take(&mut entry.set).difference(&STRIPPED);
        if changed {
            entry.time = managed::stamp(context.now);
        }
    }
    managed.entries.retain(|entry| !entry.set.is_empty());
    Ok((new, managed))
}

/// Takes what changed away from everyone but `own`; says what that took from whom.
fn take_from_others(
    managed: &mut Managed,
    own: Option<&Manager>,
    live: &Value,
    new: &Value,
    comparison: &Comparison,
    context: &Context<'_>,
) -> Vec<Conflict> {
    let mut conflicts: Vec<(Manager, Vec<Vec<Element>>)> = Vec::new();
    managed.entries.retain_mut(|entry| {
        if own == Some(&entry.manager) {
            return true;
        }
        let other;
        let comparison = if entry.api_version == context.api_version {
            comparison
        } else {
            let old = context.converter.convert(live, &entry.api_version);
            let new = context.converter.convert(new, &entry.api_version);
            let (Some((old, schema)), Some((new, _))) = (old, new) else { return false };
            other = typed::compare(&old, &new, &schema).without(context.reset_fields);
            &other
        };
        if comparison.is_empty() {
            return !entry.set.is_empty();
        }
        let lost = entry.set.intersection(&comparison.modified);
        let lost = lost.union(entry.set.intersection(&comparison.added));
        let mut set = std::mem::take(&mut entry.set);
        if !lost.is_empty() {
            conflicts.push((entry.manager.clone(), lost.paths()));
            set = set.difference(&lost);
        }
        entry.set = set.difference(&comparison.removed);
        !entry.set.is_empty()
    });
    conflicts.sort_by(|a, b| a.0.cmp(&b.0));
    let conflicts = conflicts.into_iter().flat_map(|(manager, paths)| {
        paths.into_iter().map(move |path| Conflict {
            manager: manager.describe(),
            field: path.iter().map(Element::to_string).collect(),
            path,
        })
    });
    conflicts.collect()
}

/// Removes what the manager applied last time, does not apply now, and nobody else owns.
fn prune(merged: Value, managed: &Managed, last: &Entry, context: &Context<'_>) -> Value {
    let (base, schema) = match to_version(&merged, &last.api_version, context) {
        Some(converted) => converted,
        None => return merged,
    };
    let last_set = last.set.with_named_fields(Some(&schema));
    let mut pruned = typed::remove(base.clone(), &last_set, &schema);
    let mut versions: Vec<&str> = managed.entries.iter().map(|entry| entry.api_version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    // The pruned version first: what is missing there might not convert.
    versions.sort_by_key(|version| *version != last.api_version);
    let mut at_version = last.api_version.as_str();
    for version in versions {
        let owned = managed.entries.iter().filter(|entry| entry.api_version == version);
        let owned = owned.fold(Set::default(), |all, entry| all.union(entry.set.clone()));
        let converted = if version == at_version {
            Some((base.clone(), pruned.clone(), schema.clone()))
        } else {
            let full = to_version(&merged, version, context);
            let cut = convert_between(&pruned, at_version, version, context);
            full.zip(cut).map(|((full, schema), (cut, _))| (full, cut, schema))
        };
        let Some((full, cut, schema)) = converted else { continue };
        let named = |value: &Value| typed::field_set(value, &schema).with_named_fields(Some(&schema));
        let kept = named(&cut).union(owned.with_named_fields(Some(&schema)));
        pruned = typed::remove(full.clone(), &named(&full).difference(&kept), &schema);
        at_version = version;
    }
    // What went without having been the manager's comes back.
    let Some((pruned, _)) = convert_between(&pruned, at_version, &last.api_version, context) else {
        return merged;
    };
    let named = |value: &Value| typed::field_set(value, &schema).with_named_fields(Some(&schema));
    let gone = named(&base).difference(&named(&pruned)).intersection(&last_set);
    let result = typed::remove(base, &gone, &schema);
    match convert_between(&result, &last.api_version, context.api_version, context) {
        Some((result, _)) => result,
        None => merged,
    }
}

fn to_version(object: &Value, version: &str, context: &Context<'_>) -> Option<(Value, Ptr<Schema>)> {
    convert_between(object, context.api_version, version, context)
}

fn convert_between(
    object: &Value,
    from: &str,
    to: &str,
    context: &Context<'_>,
) -> Option<(Value, Ptr<Schema>)> {
    if from != to {
        // Pruning leaves null where everything went.
        let mut object = object.clone();
        crate::patch::discard_nulls(&mut object);
        return context.converter.convert(&object, to);
    }
    if to == context.api_version {
        return Some((object.clone(), Ptr::Shared(context.schema.clone().into())));
    }
    context.converter.convert(object, to)
}

/// Every entry in the terms of today's schema.
fn reconcile_all(managed: Managed, live: &Value, context: &Context<'_>) -> Managed {
    let entries = managed.entries.into_iter().map(|mut entry| {
        if entry.api_version == context.api_version {
            entry.set = reconcile::reconcile(entry.set, context.schema);
        } else if let Some((_, schema)) = context.converter.convert(live, &entry.api_version) {
            entry.set = reconcile::reconcile(entry.set, &schema);
        }
        entry
    });
    Managed { entries: entries.collect() }
}

/// Conflicts over fields whose values kubectl applied itself, client side, are none.
fn conflicts_after_migration(conflicts: Vec<Conflict>, live: &Value, context: &Context<'_>) -> Vec<Conflict> {
    match owned_by_last_applied(live, context) {
        Some(allowed) => conflicts.into_iter().filter(|conflict| !allowed.has(&conflict.path)).collect(),
        None => conflicts,
    }
}

/// The fields of the last client-side applied configuration that still have its values.
fn owned_by_last_applied(live: &Value, context: &Context<'_>) -> Option<Set> {
    let text = live.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str()?;
    let last = decode::any_json(text.as_bytes()).ok()?;
    if last.get("apiVersion")?.as_str()? != context.api_version
        || validate::check(&last, context.schema).is_err()
    {
        return None;
    }
    let comparison = typed::compare(&last, live, context.schema);
    let set = typed::field_set(&last, context.schema);
    Some(set.difference(&comparison.modified).difference(&comparison.added).difference(&comparison.removed))
}

/// Keeps the client-side annotation, where there is one, in step with what kubectl applies.
fn refresh_last_applied(new: &mut Value, config: &Value) {
    let Some(annotation) = new
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut)
        .and_then(|annotations| annotations.get_mut(LAST_APPLIED))
        .filter(|annotation| annotation.as_str().is_some_and(|text| !text.is_empty()))
    else {
        return;
    };
    let mut config = config.clone();
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut)
        && let Some(Value::Object(annotations)) = metadata.get_mut("annotations")
    {
        annotations.remove(LAST_APPLIED);
        if annotations.is_empty() {
            metadata.remove("annotations");
        }
    }
    let mut text = Vec::new();
    canonical::write_any(&config, &mut text);
    text.push(b'\n');
    *annotation = Value::String(String::from_utf8_lossy(&text).into_owned());
}

fn take_managed_fields(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
}

/// Fields that nobody owns.
static STRIPPED: LazyLock<Set> = LazyLock::new(|| {
    Set::of_fields(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
});

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!("Apply failed with 1 conflict: {}: {}", only.message(), only.field);
    }
    let mut lines = Vec::new();
    let mut manager = "";
    for conflict in conflicts {
        if conflict.manager != manager {
            manager = &conflict.manager;
            lines.push(format!("conflicts with {manager}:"));
        }
        lines.push(format!("- {}", conflict.field));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}
