//! Field paths and field errors, in the form upstream prints them (`k8s.io/apimachinery` field package).

use std::fmt;

use serde_json::Value;

/// A path into an object: `spec.containers[0].env[name=A]`. Cheap to extend, printed only on error.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldPath(String);

/// What is wrong with a field; decides the cause's reason and the first words of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
}

/// One refused field. `Display` is upstream's text, as it stands in `Status.message`.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    pub path: FieldPath,
    pub kind: FieldErrorKind,
    /// The refused value; not printed for `Required`, `Forbidden`, `Internal`, `TooLong` and `TooMany`.
    pub value: Value,
    pub detail: String,
}

impl FieldPath {
    pub fn root(name: &str) -> Self {
        Self(name.to_owned())
    }

    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(name.to_owned()) } else { Self(format!("{}.{name}", self.0)) }
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FieldErrorKind {
    /// The cause's `reason` on the wire.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }
}

impl FieldError {
    pub fn new(path: &FieldPath, kind: FieldErrorKind, value: Value, detail: impl Into<String>) -> Self {
        Self { path: path.clone(), kind, value, detail: detail.into() }
    }

    pub fn required(path: &FieldPath, detail: impl Into<String>) -> Self {
        Self::new(path, FieldErrorKind::Required, Value::Null, detail)
    }

    pub fn invalid(path: &FieldPath, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(path, FieldErrorKind::Invalid, value.into(), detail)
    }

    pub fn forbidden(path: &FieldPath, detail: impl Into<String>) -> Self {
        Self::new(path, FieldErrorKind::Forbidden, Value::Null, detail)
    }

    pub fn duplicate(path: &FieldPath, value: impl Into<Value>) -> Self {
        Self::new(path, FieldErrorKind::Duplicate, value.into(), "")
    }

    pub fn not_found(path: &FieldPath, value: impl Into<Value>) -> Self {
        Self::new(path, FieldErrorKind::NotFound, value.into(), "")
    }

    /// `supported` is printed quoted and in the given order, as upstream sorts it at the call site.
    pub fn not_supported(path: &FieldPath, value: impl Into<Value>, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| format!("\"{s}\"")).collect();
        let detail =
            if list.is_empty() { String::new() } else { format!("supported values: {}", list.join(", ")) };
        Self::new(path, FieldErrorKind::NotSupported, value.into(), detail)
    }

    pub fn too_long(path: &FieldPath, max: usize) -> Self {
        Self::new(path, FieldErrorKind::TooLong, Value::Null, format!("may not be more than {max} bytes"))
    }

    pub fn too_many(path: &FieldPath, actual: usize, max: usize) -> Self {
        Self::new(
            path,
            FieldErrorKind::TooMany,
            Value::from(actual),
            format!("must have at most {max} item{}", if max == 1 { "" } else { "s" }),
        )
    }

    /// The message without the path, as it stands in `Status.details.causes[].message`.
    pub fn body(&self) -> String {
        use FieldErrorKind::{Forbidden, Internal, Required, TooLong};
        let mut text = self.kind.text().to_owned();
        if !matches!(self.kind, Required | Forbidden | TooLong | Internal) {
            text.push_str(": ");
            match &self.value {
                Value::String(s) => text.push_str(&go_quote(s)),
                other => text.push_str(&other.to_string()),
            }
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// Quotes as Go's `%q` does for the characters that occur in object fields.
pub fn go_quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_print_as_upstream_prints_them() {
        let path = FieldPath::root("spec").child("containers").index(0).child("image");
        assert_eq!(FieldError::required(&path, "").to_string(), "spec.containers[0].image: Required value");
        assert_eq!(
            FieldError::invalid(&path, "A b", "must be lower case").to_string(),
            "spec.containers[0].image: Invalid value: \"A b\": must be lower case"
        );
        assert_eq!(
            FieldError::not_supported(&path, "x", &["a", "b"]).to_string(),
            "spec.containers[0].image: Unsupported value: \"x\": supported values: \"a\", \"b\""
        );
    }
}
