//! Field ownership (`metadata.managedFields`): the books of every write, and server-side apply.

use jiff::Timestamp;
use schema::apply::{self, ApplyError, Context, Converter, Set};
use schema::decode::{self, Strictness};
use schema::types::{Ptr, Schema};
use serde_json::Value;

use super::catalog::Target;
use super::render::in_version;
use super::write::Write;
use crate::objects::ObjectExt;
use crate::status::ApiError;

/// Shows an object in any served version of its kind.
struct Versions<'a>(&'a Target);

impl Converter for Versions<'_> {
    fn convert(&self, object: &Value, api_version: &str) -> Option<(Value, Ptr<Schema>)> {
        let spec = self.0.spec();
        let version_of = |text: &str| {
            let (group, version) = text.rsplit_once('/').unwrap_or(("", text));
            spec.version(version).filter(|_| *spec.group == *group)
        };
        let to = version_of(api_version)?;
        let converted = self.0.resource.strategy.convert(object.clone(), api_version).ok()?;
        Some((converted, to.schema.clone()))
    }
}

/// Fields that a write cannot change, which it therefore does not come to own.
fn reset_fields(write: &Write) -> Set {
    let has_status = write.target.subresource("status").is_some();
    match write.subresource.as_str() {
        "status" => Set::of_fields(&[&["spec"], &["data"], &["metadata", "labels"]]),
        "" if has_status && write.target.resource.strategy.splits_status() => Set::of_fields(&[&["status"]]),
        _ => Set::default(),
    }
}

fn with_context<T>(write: &Write, now: Timestamp, run: impl FnOnce(&Context<'_>) -> T) -> T {
    run(&Context {
        schema: write.target.schema(),
        api_version: &write.target.api_version(),
        kind: &write.target.spec().kind,
        manager: &write.manager,
        subresource: &write.subresource,
        now,
        reset_fields: &reset_fields(write),
        converter: &Versions(&write.target),
    })
}

/// Records who owns what after a create, update or patch. Objects are in the storage version.
pub(super) fn on_write(
    write: &Write,
    object: &mut Value,
    old: Option<&Value>,
    now: Timestamp,
) -> Result<(), ApiError> {
    if write.applied {
        return Ok(());
    }
    with_context(write, now, |context| {
        if write.target.is_storage_version() {
            apply::update(old, object, context);
            return Ok(());
        }
        let before = old.map(|old| in_version(&write.target, old.clone())).transpose()?;
        let mut after = in_version(&write.target, object.clone())?;
        apply::update(before.as_ref(), &mut after, context);
        take_books(object, &after);
        Ok(())
    })
}

/// The object (in the request's version) that applying `config` makes of `live`.
pub(super) fn apply(
    write: &Write,
    live: Option<&Value>,
    config: &Value,
    now: Timestamp,
) -> Result<Value, ApiError> {
    let force = write.options.force.unwrap_or(false);
    with_context(write, now, |context| apply::apply(live, config, force, context)).map_err(refusal)
}

/// Unknown and duplicate fields of an applied configuration.
pub(super) fn check(write: &Write, config: &Value, strictness: Strictness) -> Result<Vec<String>, ApiError> {
    match decode::value(config.clone(), write.target.schema(), strictness) {
        Ok(decoded) => Ok(decoded.problems),
        Err(decode::DecodeError::Strict(problems)) => {
            Err(ApiError::bad_request(format!("strict decoding error: {}", problems.join(", "))))
        }
        // Whatever else is wrong, apply says in its own words.
        Err(_) => Ok(Vec::new()),
    }
}

fn take_books(object: &mut Value, from: &Value) {
    match from.at(&["metadata", "managedFields"]) {
        Some(fields) => object.metadata_mut().insert("managedFields".to_owned(), fields.clone()),
        None => object.metadata_mut().remove("managedFields"),
    };
}

fn refusal(error: ApplyError) -> ApiError {
    match &error {
        ApplyError::Conflict(conflicts) => {
            let refused = ApiError::new(409, "Conflict", error.to_string(), None);
            conflicts.iter().fold(refused, |refused, conflict| {
                refused.with_cause("FieldManagerConflict", &conflict.message(), &conflict.field)
            })
        }
        ApplyError::BadRequest(_) => ApiError::bad_request(error.to_string()),
        _ => ApiError::internal(error),
    }
}
