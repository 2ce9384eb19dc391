//! The JSON paths of custom resources' columns: fields, indexes, wildcards and filters on a field.

use serde_json::Value;

/// How many values a path may lead to on the way.
const MAX_VALUES: usize = 10_000;

/// The first value a path leads to; `None` when it leads nowhere or is malformed.
pub(super) fn first<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    let path = path.trim().trim_start_matches('{').trim_end_matches('}');
    let mut found = vec![value];
    let mut rest = path.strip_prefix('$').unwrap_or(path);
    while !rest.is_empty() {
        let (step, after) = step(rest)?;
        found = found.into_iter().flat_map(|value| step.apply(value)).take(MAX_VALUES).collect();
        rest = after;
    }
    found.first().copied()
}

#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    Field(String),
    Index(i64),
    All,
    /// A field below the item, an operator, a literal.
    Filter(&'a str, &'a str, String),
}

impl Step<'_> {
    fn apply<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        match (self, value) {
            (Self::Field(name), Value::Object(map)) => map.get(name).into_iter().collect(),
            (Self::All, Value::Object(map)) => map.values().collect(),
            (Self::All, Value::Array(items)) => items.iter().collect(),
            (Self::Index(index), Value::Array(items)) => {
                let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
                let index = if *index < 0 { length + index } else { *index };
                usize::try_from(index).ok().and_then(|index| items.get(index)).into_iter().collect()
            }
            (Self::Filter(path, operator, literal), Value::Array(items)) => {
                items.iter().filter(|item| holds(item, path, operator, literal)).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn holds(item: &Value, path: &str, operator: &str, literal: &str) -> bool {
    let Some(value) = first(item, path) else { return false };
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match (operator, text.parse::<f64>(), literal.parse::<f64>()) {
        ("", ..) => true,
        ("==", ..) => text == literal,
        ("!=", ..) => text != literal,
        ("<", Ok(value), Ok(literal)) => value < literal,
        (">", Ok(value), Ok(literal)) => value > literal,
        ("<=", Ok(value), Ok(literal)) => value <= literal,
        (">=", Ok(value), Ok(literal)) => value >= literal,
        _ => false,
    }
}

/// The first step of a path and what follows it.
fn step(path: &str) -> Option<(Step<'_>, &str)> {
    if let Some(rest) = path.strip_prefix('[') {
        let end = closing_bracket(rest)?;
        return Some((bracket(rest[..end].trim())?, &rest[end + 1..]));
    }
    let rest = path.strip_prefix('.').unwrap_or(path);
    if let Some(rest) = rest.strip_prefix('*') {
        return Some((Step::All, rest));
    }
    let mut name = String::new();
    let mut letters = rest.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => name.push(letters.next()?.1),
            '.' | '[' => return (!name.is_empty()).then(|| (Step::Field(name), &rest[at..])),
            _ => name.push(letter),
        }
    }
    (!name.is_empty()).then_some((Step::Field(name), ""))
}

/// Where the bracket ends, quotes aside.
fn closing_bracket(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, letter) in text.char_indices() {
        match (quote, letter) {
            (Some(open), letter) if open == letter => quote = None,
            (None, '\'' | '"') => quote = Some(letter),
            (None, ']') => return Some(at),
            _ => {}
        }
    }
    None
}

fn bracket(inner: &str) -> Option<Step<'_>> {
    if inner == "*" {
        return Some(Step::All);
    }
    if let Some(filter) = inner.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        let filter = filter.trim().strip_prefix('@')?;
        for operator in ["==", "!=", "<=", ">=", "<", ">"] {
            if let Some((path, literal)) = filter.split_once(operator) {
                return Some(Step::Filter(path.trim(), operator, unquote(literal.trim()).to_owned()));
            }
        }
        return Some(Step::Filter(filter.trim(), "", String::new()));
    }
    match inner.parse() {
        Ok(index) => Some(Step::Index(index)),
        Err(_) if unquote(inner) != inner => Some(Step::Field(unquote(inner).to_owned())),
        Err(_) => None,
    }
}

fn unquote(text: &str) -> &str {
    let inner = |quote: char| text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    inner('\'').or_else(|| inner('"')).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_to_values() {
        let object = json!({
            "metadata": {"labels": {"app.kubernetes.io/name": "web"}},
            "spec": {"replicas": 3, "ports": [{"n": 1}, {"n": 2}]},
            "status": {"conditions": [{"type": "A", "status": "False"}, {"type": "Ready", "status": "True"}]},
        });
        let cases = [
            (".spec.replicas", Some(json!(3))),
            ("$.spec.replicas", Some(json!(3))),
            ("{.spec.replicas}", Some(json!(3))),
            (".spec.ports[1].n", Some(json!(2))),
            (".spec.ports[-1].n", Some(json!(2))),
            (".spec.ports[*].n", Some(json!(1))),
            (".metadata.labels['app.kubernetes.io/name']", Some(json!("web"))),
            (".metadata.labels.app\\.kubernetes\\.io/name", Some(json!("web"))),
            (".status.conditions[?(@.type==\"Ready\")].status", Some(json!("True"))),
            (".status.conditions[?(@.type == 'None')].status", None),
            (".spec.ports[?(@.n > 1)].n", Some(json!(2))),
            (".spec.absent.below", None),
            (".spec.ports[7].n", None),
            (".spec.ports[", None),
            ("..", None),
            ("", Some(object.clone())),
        ];
        for (path, expected) in cases {
            assert_eq!(first(&object, path), expected.as_ref(), "{path}");
        }
    }
}
