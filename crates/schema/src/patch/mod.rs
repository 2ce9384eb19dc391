//! The three patch formats a server must merge itself: JSON patch, merge patch, strategic merge patch.
//! Their results are foreign values again: run [`crate::decode::value`] over them.

mod diff;
mod strategic;

use json_patch::PatchOperation;
use serde_json::{Map, Value};

pub use diff::{create_merge, create_three_way, create_three_way_merge, create_two_way};
pub use strategic::strategic;

/// Upstream refuses longer JSON patches.
pub const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;

/// How much `copy` operations may add to an object, as upstream's server has it.
pub const MAX_JSON_PATCH_COPY_BYTES: usize = 3 << 20;

/// Why a patch was not applied; `Display` is upstream's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatchError {
    /// The patch is malformed (400 `BadRequest`).
    #[error("{0}")]
    BadRequest(String),
    /// Too many operations (413).
    #[error("The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}, got {0}")]
    TooLarge(usize),
    /// `copy` makes the object too large (413).
    #[error(
        "Unable to complete the copy, the accumulated size increase of copy is {0}, exceeding the limit \
         {MAX_JSON_PATCH_COPY_BYTES}"
    )]
    CopyTooLarge(usize),
    /// The patch does not fit the object (422).
    #[error("{0}")]
    Unprocessable(String),
    /// What upstream answers with 500.
    #[error("{0}")]
    Internal(String),
}

/// Applies a JSON patch (RFC 6902). On error the document is in an undefined state.
pub fn json_patch(document: &mut Value, patch: Value) -> Result<(), PatchError> {
    let operations = match patch {
        Value::Array(operations) => operations,
        other => {
            let found = describe(&other);
            let message = format!("json: cannot unmarshal {found} into Go value of type jsonpatch.Patch");
            return Err(PatchError::BadRequest(message));
        }
    };
    if operations.len() > MAX_JSON_PATCH_OPERATIONS {
        return Err(PatchError::TooLarge(operations.len()));
    }
    let mut copied = 0;
    for operation in operations {
        let operation: PatchOperation = serde_json::from_value(operation)
            .map_err(|error| PatchError::Unprocessable(format!("invalid operation: {error}")))?;
        // Upstream lets a test for null pass where there is nothing.
        if let PatchOperation::Test(test) = &operation
            && test.value.is_null()
            && document.pointer(test.path.as_str()).is_none()
        {
            continue;
        }
        if let PatchOperation::Copy(copy) = &operation {
            copied += document.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len());
            if copied > MAX_JSON_PATCH_COPY_BYTES {
                return Err(PatchError::CopyTooLarge(copied));
            }
        }
        json_patch::patch_unsafe(document, std::slice::from_ref(&operation))
            .map_err(|error| PatchError::Unprocessable(error.to_string()))?;
    }
    Ok(())
}

/// Applies a merge patch (RFC 7386).
pub fn merge_patch(document: &mut Value, patch: Value) -> Result<(), PatchError> {
    match patch {
        Value::Object(patch) => {
            merge(document, patch);
            Ok(())
        }
        other => {
            let found = describe(&other);
            let message =
                format!("json: cannot unmarshal {found} into Go value of type map[string]interface {{}}");
            Err(PatchError::BadRequest(message))
        }
    }
}

fn merge(document: &mut Value, patch: Map<String, Value>) {
    if !document.is_object() {
        *document = Value::Object(Map::new());
    }
    let Value::Object(object) = document else { return };
    for (key, value) in patch {
        match value {
            Value::Null => drop(object.remove(&key)),
            Value::Object(patch) => match object.get_mut(&key) {
                Some(inner) => merge(inner, patch),
                None => {
                    let mut inner = Value::Null;
                    merge(&mut inner, patch);
                    object.insert(key, inner);
                }
            },
            mut value => {
                discard_nulls(&mut value);
                object.insert(key, value);
            }
        }
    }
}

/// Removes null members at any depth; null items of lists stay.
pub(crate) fn discard_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(discard_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(discard_nulls),
        _ => {}
    }
}

/// Go's word for a JSON value.
fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
