//! Label and field selectors: parse, print, match.

mod field;
mod parser;

use std::fmt;

use serde_json::Value;

pub use field::{FieldRequirement, FieldSelector};

use crate::content;
use crate::field::{FieldError, FieldErrorKind, FieldPath, go_quote};

/// All of its requirements must hold. Without requirements it matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelSelector {
    pub requirements: Vec<Requirement>,
}

/// One condition on a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted, without doubles.
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// Why a selector was refused; `Display` is upstream's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub(crate) String);

impl LabelSelector {
    /// Parses the text form: `app=web,tier in (a,b),!canary`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        parser::parse(text)
    }

    /// Every key must have its value.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let requirement = |(key, value): (&str, &str)| Requirement {
            key: key.to_owned(),
            operator: Operator::Equals,
            values: vec![value.to_owned()],
        };
        let mut requirements: Vec<Requirement> = labels.into_iter().map(requirement).collect();
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements }
    }

    /// Reads a `LabelSelector` object (`matchLabels`, `matchExpressions`). `None`, which matches nothing, when
    /// the value is null.
    pub fn from_value(value: &Value) -> Result<Option<Self>, SelectorError> {
        let Some(object) = value.as_object() else { return Ok(None) };
        let mut requirements = Vec::new();
        for (key, value) in object.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement::new(key.clone(), Operator::Equals, vec![value])?);
        }
        for expression in object.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or_default();
            let operator = match text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    let message = format!("{} is not a valid label selector operator", go_quote(other));
                    return Err(SelectorError(message));
                }
            };
            let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.filter_map(|value| value.as_str().map(str::to_owned)).collect();
            requirements.push(Requirement::new(text("key").to_owned(), operator, values)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Some(Self { requirements }))
    }

    /// True when it restricts nothing.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// `lookup` gives the value of a label.
    pub fn matches<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(lookup(&requirement.key)))
    }

    /// Matches the `metadata.labels` map of an object, which may be absent.
    pub fn matches_labels(&self, labels: Option<&serde_json::Map<String, Value>>) -> bool {
        self.matches(|key| labels?.get(key)?.as_str())
    }

    /// The value a label must have, when the selector names just one.
    pub fn required_value(&self, key: &str) -> Option<&str> {
        self.requirements.iter().find_map(|requirement| {
            let exact =
                matches!(requirement.operator, Operator::In | Operator::Equals | Operator::DoubleEquals);
            match &requirement.values[..] {
                [value] if exact && requirement.key == key => Some(value.as_str()),
                _ => None,
            }
        })
    }
}

impl Requirement {
    /// Checks key and values as upstream does; the error is its text.
    pub fn new(key: String, operator: Operator, mut values: Vec<String>) -> Result<Self, SelectorError> {
        let mut errors = Vec::new();
        let key_errors = content::label_key(&key);
        if !key_errors.is_empty() {
            errors.push(FieldError::invalid(&FieldPath::root("key"), key.as_str(), key_errors.join("; ")));
        }
        let path = FieldPath::root("values");
        let count_error = match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                Some("for 'in', 'notin' operators, values set can't be empty")
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                Some("exact-match compatibility requires one single value")
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                Some("values set must be empty for exists and does not exist")
            }
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
                Some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
            _ => None,
        };
        if let Some(detail) = count_error {
            errors.push(FieldError::new(&path, FieldErrorKind::Invalid, values.clone().into(), detail));
        }
        for (index, value) in values.iter().enumerate() {
            let numeric = matches!(operator, Operator::GreaterThan | Operator::LessThan);
            if numeric && value.parse::<i64>().is_err() {
                let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.push(FieldError::invalid(&path.index(index), value.as_str(), detail));
            }
        }
        for (index, value) in values.iter().enumerate() {
            let value_errors = content::label_value(value);
            if !value_errors.is_empty() {
                let path = path.index(index).key(&key);
                errors.push(FieldError::invalid(&path, value.as_str(), value_errors.join("; ")));
            }
        }
        if !errors.is_empty() {
            return Err(SelectorError(aggregate(&errors)));
        }
        values.sort();
        values.dedup();
        Ok(Self { key, operator, values })
    }

    /// `value` is the label's value, if the object has it.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|known| known == value);
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => value.is_some_and(listed),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let bound = self.values.first().and_then(|bound| bound.parse::<i64>().ok());
                match (value.and_then(|value| value.parse::<i64>().ok()), bound) {
                    (Some(value), Some(bound)) if self.operator == Operator::GreaterThan => value > bound,
                    (Some(value), Some(bound)) => value < bound,
                    _ => false,
                }
            }
        }
    }
}

/// Several errors as upstream joins them: one bare, more in brackets.
fn aggregate(errors: &[FieldError]) -> String {
    match errors {
        [only] => only.to_string(),
        errors => {
            let mut texts: Vec<String> = Vec::new();
            for error in errors {
                let text = error.to_string();
                if !texts.contains(&text) {
                    texts.push(text);
                }
            }
            if texts.len() == 1 { texts.remove(0) } else { format!("[{}]", texts.join(", ")) }
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn label_selectors_parse_and_print() {
        for (input, printed) in [
            ("", ""),
            ("a=b", "a=b"),
            ("a == b , c!=d", "a==b,c!=d"),
            ("x in (b,a),y,z notin (),!w", "!w,x in (a,b),y,z notin ()"),
            ("in in (in, notin)", "in in (in,notin)"),
            ("a in (,b,)", "a in (,b)"),
            ("a=,b", "a=,b"),
            ("n>1,n<5", "n>1,n<5"),
            ("a,", ""),
        ] {
            match LabelSelector::parse(input) {
                Ok(selector) => assert_eq!(selector.to_string(), printed, "{input}"),
                Err(error) => assert_eq!(error.to_string(), "found '', expected: identifier after ','"),
            }
        }
    }

    #[test]
    fn bad_label_selectors_get_upstreams_errors() {
        for (input, error) in [
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("=a", "found '=', expected: !, identifier, or 'end of string'"),
            ("a=b=c", "found '=', expected: ',' or 'end of string'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a in (b=", "unable to parse requirement: found '=', expected: ',' or ')'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            (
                "a>b",
                "unable to parse requirement: values[0]: Invalid value: \"b\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ] {
            assert_eq!(
                LabelSelector::parse(input).map_err(|e| e.to_string()),
                Err(error.to_owned()),
                "{input}"
            );
        }
        let error = LabelSelector::parse("-a=b").unwrap_err().to_string();
        assert!(
            error.starts_with("unable to parse requirement: <nil>: Invalid value: \"-a\": name part"),
            "{error}"
        );
        let error = LabelSelector::parse("a=-b").unwrap_err().to_string();
        assert!(
            error.starts_with("unable to parse requirement: values[0][a]: Invalid value: \"-b\": a valid"),
            "{error}"
        );
    }

    #[test]
    fn label_selectors_match() {
        let labels = json!({"app": "web", "n": "3"});
        let labels = labels.as_object();
        for (input, expected) in [
            ("app=web", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (a,web)", true),
            ("app notin (web)", false),
            ("other notin (web)", true),
            ("app,!other", true),
            ("n>2,n<4", true),
            ("app>2", false),
        ] {
            assert_eq!(LabelSelector::parse(input).unwrap().matches_labels(labels), expected, "{input}");
        }
        assert!(LabelSelector::default().matches_labels(None));
    }

    #[test]
    fn selector_objects_become_requirements() {
        let value = json!({
            "matchLabels": {"b": "1"},
            "matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["x", "y"]}],
        });
        let selector = LabelSelector::from_value(&value).unwrap().unwrap();
        assert_eq!(selector.to_string(), "a notin (x,y),b=1");
        assert_eq!(selector.required_value("b"), Some("1"));
        let value = json!({"matchExpressions": [{"key": "a", "operator": "Is"}]});
        assert_eq!(
            LabelSelector::from_value(&value).unwrap_err().to_string(),
            "\"Is\" is not a valid label selector operator"
        );
        assert_eq!(LabelSelector::from_value(&Value::Null), Ok(None));
    }

    #[test]
    fn field_selectors_parse_and_match() {
        let selector = FieldSelector::parse("metadata.name=a,status.phase!=Running").unwrap();
        assert_eq!(selector.to_string(), "metadata.name=a,status.phase!=Running");
        assert!(selector.matches(|path| if path == "metadata.name" { "a" } else { "Pending" }));
        assert!(!selector.matches(|path| if path == "metadata.name" { "a" } else { "Running" }));
        assert_eq!(selector.required_value("metadata.name"), Some("a"));
        assert_eq!(FieldSelector::parse("a=b\\,c").unwrap().requirements[0].value, "b,c");
        for (input, error) in [
            ("a", "invalid selector: 'a'; can't understand 'a'"),
            ("a=b\\x", "invalid field selector: invalid escape sequence: \\x"),
            ("a=b=c", "invalid field selector: unescaped character in value: ="),
        ] {
            assert_eq!(FieldSelector::parse(input).map_err(|e| e.to_string()), Err(error.to_owned()));
        }
    }
}
