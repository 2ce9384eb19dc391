//! Kinds whose objects would promise what this server does not do yet. They are refused, not stored and ignored.

use meta::field::{FieldError, FieldPath};
use serde_json::Value;

use crate::registry::strategy::{Generation, Strategy, WriteContext};

/// Refuses every object, and says what is missing.
#[derive(Debug)]
pub(super) struct UnservedStrategy(pub &'static str);

impl Strategy for UnservedStrategy {
    fn validate(&self, _cx: &WriteContext<'_>, _object: &Value) -> Vec<FieldError> {
        let detail = format!("{} are not supported by this version of Coracle", self.0);
        vec![FieldError::forbidden(&FieldPath::root("spec"), detail)]
    }

    fn generation(&self) -> Generation {
        Generation::Spec
    }
}
