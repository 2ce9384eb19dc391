//! Cells of the server-side table, as upstream's printers compute them.

mod cluster;
mod core;
mod duration;
mod jsonpath;
mod network;
mod pod;
mod storage;
mod workloads;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::spec::{Column, KindSpec, VersionSpec};
use crate::table::column;

pub use duration::human_duration;

/// The cells of an object's row, wide columns included, one for each of the version's columns.
pub fn cells(spec: &KindSpec, version: &VersionSpec, object: &Value, now: Timestamp) -> Vec<Value> {
    let printer = Printer { object, now };
    let cells = match (&*spec.group, &*spec.resource) {
        ("", resource) => printer.core(resource),
        ("apps" | "batch" | "autoscaling" | "policy", resource) => printer.workloads(resource),
        ("networking.k8s.io" | "discovery.k8s.io", resource) => printer.network(resource),
        ("storage.k8s.io" | "resource.k8s.io", resource) => printer.storage(resource),
        ("events.k8s.io", "events") => Some(printer.event(true)),
        (_, resource) => printer.cluster(resource),
    };
    let computed = version.columns.iter().all(|column| column.path.is_empty());
    match cells {
        Some(cells) if computed => cells,
        _ => version.columns.iter().map(|column| printer.column(column)).collect(),
    }
}

/// What the table says about a row beside its cells: a pod that has ended is `Completed`.
pub fn conditions(spec: &KindSpec, object: &Value) -> Vec<Value> {
    if !spec.group.is_empty() || *spec.resource != *"pods" {
        return Vec::new();
    }
    let message = match object["status"]["phase"].as_str() {
        Some("Succeeded") => "The pod has completed successfully.",
        Some("Failed") => "The pod failed.",
        _ => return Vec::new(),
    };
    let reason = &object["status"]["phase"];
    vec![json!({"type": "Completed", "status": "True", "reason": reason, "message": message})]
}

/// The columns of a `Scale`.
pub fn scale_columns() -> &'static [Column] {
    static COLUMNS: [Column; 4] = [
        column("Name", "string", "", 0),
        column("Desired", "integer", "", 0),
        column("Available", "integer", "", 0),
        column("Age", "string", "", 0),
    ];
    &COLUMNS
}

/// The cells of a `Scale`.
pub fn scale_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let printer = Printer { object, now };
    let replicas = |part: &Value| json!(int(&part["replicas"]));
    vec![printer.name(), replicas(printer.spec()), replicas(printer.status()), printer.age()]
}

/// One object, seen at one moment.
struct Printer<'a> {
    object: &'a Value,
    now: Timestamp,
}

impl<'a> Printer<'a> {
    fn name(&self) -> Value {
        self.object["metadata"]["name"].clone()
    }

    fn age(&self) -> Value {
        json!(self.since(&self.object["metadata"]["creationTimestamp"]))
    }

    fn deleting(&self) -> bool {
        self.object["metadata"]["deletionTimestamp"].is_string()
    }

    /// How long ago a time was.
    fn since(&self, time: &Value) -> String {
        match parse_time(time) {
            Some(time) => human_duration(self.now.duration_since(time)),
            None => "<unknown>".to_owned(),
        }
    }

    fn spec(&self) -> &'a Value {
        &self.object["spec"]
    }

    fn status(&self) -> &'a Value {
        &self.object["status"]
    }

    /// A column that names what it shows; name and creation time stand for columns that name nothing.
    fn column(&self, column: &Column) -> Value {
        if !column.path.is_empty() {
            return self.custom(column);
        }
        match &*column.r#type {
            _ if *column.format == *"name" => self.name(),
            "date" => self.object["metadata"]["creationTimestamp"].clone(),
            _ if *column.name == *"Age" => self.age(),
            _ => Value::Null,
        }
    }

    fn custom(&self, column: &Column) -> Value {
        let Some(value) = jsonpath::first(self.object, &column.path) else { return Value::Null };
        match (&*column.r#type, value) {
            ("integer", Value::Number(number)) => {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "an integer column cuts the fraction, as upstream"
                )]
                let whole = number.as_i64().or_else(|| number.as_f64().map(|number| number as i64));
                json!(whole)
            }
            ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) | ("string", Value::String(_)) => {
                value.clone()
            }
            ("string", Value::Null) | ("date", Value::Null) => Value::Null,
            ("string", other) => json!(other.to_string()),
            ("date", Value::String(_)) if parse_time(value).is_none() => json!("<invalid>"),
            ("date", Value::String(_)) => json!(self.since(value)),
            _ => Value::Null,
        }
    }
}

fn parse_time(time: &Value) -> Option<Timestamp> {
    let text = time.as_str()?;
    meta::time::parse(text).ok().filter(|time| !meta::time::is_zero(*time))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The text, or this when it is empty.
fn text_or<'a>(value: &'a Value, otherwise: &'a str) -> &'a str {
    Some(text(value)).filter(|text| !text.is_empty()).unwrap_or(otherwise)
}

fn int(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// How many entries a list or map has.
fn count(value: &Value) -> usize {
    value.as_array().map(Vec::len).or_else(|| value.as_object().map(serde_json::Map::len)).unwrap_or_default()
}

/// An `IntOrString`, or this when there is none.
fn int_or_string(value: &Value, otherwise: &str) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => otherwise.to_owned(),
    }
}

fn joined<'a>(values: impl Iterator<Item = &'a str>, separator: &str) -> String {
    values.collect::<Vec<_>>().join(separator)
}

/// At most `max` of the texts, and how many more there are.
fn with_more(texts: &[String], max: usize, separator: &str) -> String {
    let shown = texts[..texts.len().min(max)].join(separator);
    match texts.len().saturating_sub(max) {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

/// The status of a condition, if it is there.
fn condition<'a>(conditions: &'a Value, kind: &str) -> Option<&'a Value> {
    items(conditions).iter().find(|condition| condition["type"] == kind)
}

fn is_true(conditions: &Value, kind: &str) -> bool {
    condition(conditions, kind).is_some_and(|condition| condition["status"] == "True")
}

/// Labels as `a=b,c=d`.
fn labels(labels: &Value) -> String {
    let labels: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", text(value)))
        .collect();
    if labels.is_empty() { "<none>".to_owned() } else { labels.join(",") }
}

/// A label selector as `a=b,c in (d,e)`, by key.
fn selector(selector: &Value) -> String {
    let mut terms: Vec<(&str, String)> = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        terms.push((key, format!("{key}={}", text(value))));
    }
    for requirement in items(&selector["matchExpressions"]) {
        let key = text(&requirement["key"]);
        let mut values: Vec<&str> = items(&requirement["values"]).iter().map(text).collect();
        values.sort_unstable();
        let values = values.join(",");
        terms.push((
            key,
            match text(&requirement["operator"]) {
                "In" => format!("{key} in ({values})"),
                "NotIn" => format!("{key} notin ({values})"),
                "Exists" => key.to_owned(),
                "DoesNotExist" => format!("!{key}"),
                _ => return "<error>".to_owned(),
            },
        ));
    }
    terms.sort_by_key(|(key, _)| *key);
    if terms.is_empty() {
        return "<none>".to_owned();
    }
    terms.into_iter().map(|(_, term)| term).collect::<Vec<_>>().join(",")
}

/// Names and images of a pod template's containers.
fn containers(template: &Value) -> [Value; 2] {
    let containers = items(&template["spec"]["containers"]);
    ["name", "image"]
        .map(|field| json!(joined(containers.iter().map(|container| text(&container[field])), ",")))
}
