//! Bytes and foreign values become values in canonical types, with every unknown and duplicate field found.
//!
//! One pass, driven by the schema: what the schema does not know is left out and reported, scalars take the form
//! in which Go would print them. Objects of built-in kinds are checked for types as Go's decoder does it; custom
//! resources (objects without a name) keep what they have for the validator to judge.

mod json;
pub(crate) mod path;
mod scalar;
mod scan;
mod value;
mod yaml;

use serde_json::Value;

use crate::types::Schema;

/// Deeper nesting is refused: every walk over a value may recurse.
pub const MAX_DEPTH: usize = 512;
/// Upstream stops collecting problems here.
const MAX_PROBLEMS: usize = 100;

/// What to do about unknown and duplicate fields (`fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Refuse.
    Strict,
    /// Report in [`Decoded::problems`].
    Warn,
    /// Say nothing.
    Ignore,
}

/// A decoded object.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// `unknown field "spec.foo"`, `duplicate field "spec.bar"`, in upstream's order.
    pub problems: Vec<String>,
}

/// Why there is no object; `Display` is upstream's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Not JSON or YAML at all.
    #[error("{0}")]
    Syntax(String),
    /// A value of the wrong type, or one that does not parse.
    #[error("{0}")]
    Type(String),
    /// Unknown or duplicate fields under [`Strictness::Strict`].
    #[error("strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
}

/// Decodes JSON.
pub fn json(bytes: &[u8], schema: &Schema, strictness: Strictness) -> Result<Decoded, DecodeError> {
    json::decode(bytes, schema, strictness)
}

/// Decodes YAML; JSON is YAML too.
pub fn yaml(bytes: &[u8], schema: &Schema, strictness: Strictness) -> Result<Decoded, DecodeError> {
    let (tree, duplicates) = yaml::parse(bytes, strictness)?;
    value::decode(tree, schema, strictness, duplicates)
}

/// Brings an already parsed value (after a patch, say) into canonical types.
pub fn value(value: Value, schema: &Schema, strictness: Strictness) -> Result<Decoded, DecodeError> {
    value::decode(value, schema, strictness, Vec::new())
}

/// Drops what the schema of a custom resource, or of a part of one, does not know; the problems name it.
pub fn prune(value: Value, schema: &Schema) -> Result<Decoded, DecodeError> {
    value::prune(value, schema)
}

/// Parses any JSON, integers kept, nesting bounded.
pub fn any_json(bytes: &[u8]) -> Result<Value, DecodeError> {
    json::decode_any(bytes, Strictness::Ignore).map(|decoded| decoded.value)
}

/// Parses any YAML into a JSON value.
pub fn any_yaml(bytes: &[u8]) -> Result<Value, DecodeError> {
    yaml::parse(bytes, Strictness::Ignore).map(|(value, _)| value)
}

/// Parses the JSON of a patch; doubled fields are refused or reported as for objects.
pub fn patch_json(bytes: &[u8], strictness: Strictness) -> Result<Decoded, DecodeError> {
    json::decode_any(bytes, strictness)
}

/// Parses the YAML of a patch; doubled fields are refused or reported as for objects.
pub fn patch_yaml(bytes: &[u8], strictness: Strictness) -> Result<Decoded, DecodeError> {
    let (value, problems) = yaml::parse(bytes, strictness)?;
    Findings::new(strictness, problems).finish(value)
}

/// `apiVersion` and `kind` of a JSON document, empty when they are not there.
pub fn type_meta(bytes: &[u8]) -> Result<(String, String), DecodeError> {
    json::type_meta(bytes)
}

/// What a walk finds besides the value.
struct Findings {
    strictness: Strictness,
    problems: Vec<String>,
    /// Unknown fields of custom resources; upstream finds them in a pass of its own.
    pruned: Vec<String>,
    /// Upstream reports the first wrong type only.
    error: Option<String>,
}

impl Findings {
    fn new(strictness: Strictness, problems: Vec<String>) -> Self {
        Self { strictness, problems, pruned: Vec::new(), error: None }
    }

    fn fail(&mut self, error: String) {
        self.error.get_or_insert(error);
    }

    fn unknown(&mut self, path: &path::Path<'_>, custom: bool) {
        if self.strictness == Strictness::Ignore {
            return;
        }
        let problem = path.problem("unknown field");
        if custom {
            self.pruned.push(problem);
        } else if self.problems.len() < MAX_PROBLEMS && !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn duplicate(&mut self, path: &path::Path<'_>) {
        if self.strictness == Strictness::Ignore || self.problems.len() >= MAX_PROBLEMS {
            return;
        }
        let problem = path.problem("duplicate field");
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn finish(mut self, value: Value) -> Result<Decoded, DecodeError> {
        if let Some(error) = self.error {
            return Err(DecodeError::Type(error));
        }
        self.pruned.sort();
        self.pruned.dedup();
        self.problems.append(&mut self.pruned);
        if self.strictness == Strictness::Strict && !self.problems.is_empty() {
            return Err(DecodeError::Strict(self.problems));
        }
        Ok(Decoded { value, problems: self.problems })
    }
}
