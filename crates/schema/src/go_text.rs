//! Values as Go's formatting verbs print them in error messages.

use serde_json::{Map, Value};

/// `%v`
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => plain_list(items),
        Value::Object(object) => plain_map(object),
        other => other.to_string(),
    }
}

pub(crate) fn plain_list(items: &[Value]) -> String {
    let items: Vec<String> = items.iter().map(plain).collect();
    format!("[{}]", items.join(" "))
}

pub(crate) fn plain_map(object: &Map<String, Value>) -> String {
    let members: Vec<String> = object.iter().map(|(key, value)| format!("{key}:{}", plain(value))).collect();
    format!("map[{}]", members.join(" "))
}

/// `%#v` of a scalar, `%v` of the rest.
pub(crate) fn syntax(value: &Value) -> String {
    match value {
        Value::String(text) => meta::field::go_quote(text),
        other => plain(other),
    }
}

/// `%T`
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}
