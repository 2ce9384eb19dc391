//! YAML to a JSON value, with the scalars of YAML 1.1 that upstream's parser knows.

use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, Error, Options};

use super::{DecodeError, MAX_DEPTH, Strictness};

/// The value (the last of a doubled key wins, as upstream has it) and what is wrong with its keys.
pub(super) fn parse(bytes: &[u8], strictness: Strictness) -> Result<(Value, Vec<String>), DecodeError> {
    let mut problems = Vec::new();
    if strictness != Strictness::Ignore {
        match load(bytes, DuplicateKeyPolicy::Error) {
            Ok(value) => return Ok((value, problems)),
            Err(Error::DuplicateMappingKey { key, location }) => problems.push(format!(
                "yaml: unmarshal errors:\n  line {}: key {} already set in map",
                location.line(),
                meta::field::go_quote(&key.unwrap_or_default())
            )),
            Err(error) => return Err(refuse(&error)),
        }
    }
    let value = load(bytes, DuplicateKeyPolicy::LastWins).map_err(|error| refuse(&error))?;
    Ok((value, problems))
}

fn load(bytes: &[u8], duplicate_keys: DuplicateKeyPolicy) -> Result<Value, Error> {
    let mut budget = serde_saphyr::Budget::default();
    budget.max_depth = MAX_DEPTH / 2;
    let mut options = Options::default();
    options.budget = Some(budget);
    options.duplicate_keys = duplicate_keys;
    options.legacy_octal_numbers = true;
    options.with_snippet = false;
    serde_saphyr::from_slice_with_options(bytes, options)
}

fn refuse(error: &Error) -> DecodeError {
    DecodeError::Syntax(format!("error converting YAML to JSON: yaml: {error}"))
}
