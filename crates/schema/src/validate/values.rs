//! Checks of single strings and numbers.

use serde_json::{Number, Value};

use crate::types::Validation;

/// What is wrong with a string.
pub(super) enum StringProblem {
    TooLong(u64),
    /// The end of upstream's sentence.
    Other(String),
}

/// The JSON schema type of a value.
pub(super) fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Length first, then pattern: upstream stops at the first.
pub(super) fn string_problem(text: &str, validation: &Validation) -> Option<StringProblem> {
    let length = || text.chars().count() as u64;
    if let Some(max) = validation.max_length
        && length() > max
    {
        return Some(StringProblem::TooLong(max));
    }
    if let Some(min) = validation.min_length
        && length() < min
    {
        return Some(StringProblem::Other(format!("should be at least {min} chars long")));
    }
    let pattern = validation.pattern.as_deref()?;
    match validation.regex.get_or_init(|| super::pattern::compile(pattern).ok()) {
        Some(regex) if regex.is_match(text) => None,
        _ => Some(StringProblem::Other(format!("should match '{pattern}'"))),
    }
}

/// Bounds and factors, in upstream's order.
pub(super) fn number_problems(number: &Number, validation: &Validation) -> Vec<String> {
    let mut problems = Vec::new();
    let float = number.as_f64().unwrap_or_default();
    let whole = !number.is_f64();
    if let Some(factor) = validation.multiple_of
        && !is_multiple(float, factor, whole)
    {
        problems.push(format!("should be a multiple of {}", bound(factor, whole)));
    }
    if let Some(max) = validation.maximum {
        let limit = if whole { max.trunc() } else { max };
        if float > limit || validation.exclusive_maximum && float >= limit {
            let or_equal = if validation.exclusive_maximum { "" } else { " or equal to" };
            problems.push(format!("should be less than{or_equal} {}", bound(max, whole)));
        }
    }
    if let Some(min) = validation.minimum {
        let limit = if whole { min.trunc() } else { min };
        if float < limit || validation.exclusive_minimum && float <= limit {
            let or_equal = if validation.exclusive_minimum { "" } else { " or equal to" };
            problems.push(format!("should be greater than{or_equal} {}", bound(min, whole)));
        }
    }
    problems
}

fn is_multiple(number: f64, factor: f64, whole: bool) -> bool {
    let factor = if whole { factor.trunc() } else { factor };
    if factor <= 0.0 {
        return false;
    }
    let quotient = number / factor;
    (quotient - quotient.round()).abs() < 1e-9 * quotient.abs().max(1.0)
}

/// Integers are compared with the whole part of a bound, and told so.
fn bound(bound: f64, whole: bool) -> String {
    let bound = if whole { bound.trunc() } else { bound };
    if bound == 0.0 || (1e-4..1e21).contains(&bound.abs()) {
        return bound.to_string();
    }
    let text = format!("{bound:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
        None => text,
    }
}
