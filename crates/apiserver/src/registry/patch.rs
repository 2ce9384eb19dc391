//! `patch`: a change described by its difference.

use std::sync::Arc;

use schema::decode::{self, Strictness};
use schema::patch::PatchError;
use serde_json::Value;

use super::render::in_version;
use super::write::{Write, Written};
use super::{Registry, managed, stored_kind};
use crate::objects::ObjectExt;
use crate::status::ApiError;

/// How a patch is written, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchType {
    pub fn of(content_type: &str) -> Option<Self> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            "application/apply-patch+yaml" => Some(Self::Apply),
            _ => None,
        }
    }
}

impl Registry {
    /// Patches by difference (everything but server-side apply).
    pub async fn patch(
        &self,
        write: &Write,
        patch_type: PatchType,
        patch: Value,
    ) -> Result<Written, ApiError> {
        let strictness = strictness(&write.options.field_validation)?;
        let mut warnings: Vec<String> = Vec::new();
        let found = Arc::new(std::sync::Mutex::new(Vec::new()));
        let problems = Arc::clone(&found);
        let inner = write.clone();
        let mut written = self
            .change(write, move |current: &Value| {
                let current = in_version(&inner.target, current.clone())?;
                let patched = patched(&inner, patch_type, current, patch.clone())?;
                let decoded = decode::value(patched, inner.target.schema(), strictness)
                    .map_err(|error| decode_refusal(&inner, &error))?;
                *problems.lock().expect("no panic happens under this lock") = decoded.problems;
                inner.to_storage(decoded.value)
            })
            .await?;
        warnings.append(&mut found.lock().expect("no panic happens under this lock"));
        warnings.append(&mut written.warnings);
        written.warnings = warnings;
        Ok(written)
    }
}

impl Registry {
    /// Server-side apply: `config` is what the manager wants to be so.
    pub async fn apply(&self, mut write: Write, config: Value) -> Result<Written, ApiError> {
        check_config(&write, &config)?;
        write.applied = true;
        let problems = managed::check(&write, &config, strictness(&write.options.field_validation)?)?;
        let mut written = loop {
            if stored_kind(&write.target)?.get(&write.namespace, &write.name).is_some() {
                let change = |current: &Value| {
                    let live = in_version(&write.target, current.clone())?;
                    let object = managed::apply(&write, Some(&live), &config, self.now())?;
                    write.to_storage(object)
                };
                match self.change(&write, change).await {
                    Err(error) if error.code() == 404 => continue,
                    answer => break answer?,
                }
            }
            if !write.subresource.is_empty() {
                return Err(ApiError::not_found(write.target.name(), &write.name));
            }
            let object = managed::apply(&write, None, &config, self.now())?;
            match self.create(&write, object).await {
                Err(error) if error.reason() == "AlreadyExists" => {}
                answer => break answer?,
            }
        };
        written.warnings.splice(0..0, problems);
        Ok(written)
    }
}

/// What an applied configuration must say about itself.
fn check_config(write: &Write, config: &Value) -> Result<(), ApiError> {
    if write.options.field_manager.is_empty() {
        let message = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
        return Err(ApiError::new(422, "Invalid", message, None));
    }
    let name = config.name();
    if !name.is_empty() && name != write.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            write.name
        )));
    }
    super::create::check_namespace(write, config)
}

/// `fieldValidation` of a request; upstream's default is Warn.
pub fn strictness(field_validation: &str) -> Result<Strictness, ApiError> {
    match field_validation {
        "Strict" => Ok(Strictness::Strict),
        "" | "Warn" => Ok(Strictness::Warn),
        "Ignore" => Ok(Strictness::Ignore),
        other => Err(ApiError::new(
            422,
            "Invalid",
            format!(
                "CreateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Invalid value: \"{other}\": must be one of \"\", \"Ignore\", \"Warn\", \"Strict\""
            ),
            None,
        )),
    }
}

fn patched(write: &Write, patch_type: PatchType, mut object: Value, patch: Value) -> Result<Value, ApiError> {
    let (name, namespace) = (object.name().to_owned(), object.namespace().to_owned());
    match patch_type {
        PatchType::Json => schema::patch::json_patch(&mut object, patch),
        PatchType::Merge => schema::patch::merge_patch(&mut object, patch),
        PatchType::Strategic => schema::patch::strategic(&mut object, patch, write.target.schema()),
        PatchType::Apply => return Err(ApiError::internal("apply is not a difference")),
    }
    .map_err(|error| patch_refusal(&error))?;
    if object.name() != name || object.namespace() != namespace {
        return Err(ApiError::bad_request("the name of the object does not match the name on the URL"));
    }
    Ok(object)
}

fn patch_refusal(error: &PatchError) -> ApiError {
    let (code, reason) = match error {
        PatchError::BadRequest(_) => (400, "BadRequest"),
        PatchError::TooLarge(_) | PatchError::CopyTooLarge(_) => (413, "RequestEntityTooLarge"),
        PatchError::Unprocessable(_) => (422, "Invalid"),
        _ => return ApiError::internal(error),
    };
    let message = if code == 422 {
        format!("the server rejected our request due to an error in our request: {error}")
    } else {
        error.to_string()
    };
    ApiError::new(code, reason, message, None)
}

fn decode_refusal(write: &Write, error: &decode::DecodeError) -> ApiError {
    match error {
        decode::DecodeError::Strict(_) => ApiError::bad_request(format!("{error}")),
        error => {
            let kind = &write.target.spec().kind;
            ApiError::bad_request(format!(
                "{kind} in version \"{}\" cannot be handled as a {kind}: {error}",
                write.target.version().version
            ))
        }
    }
}
