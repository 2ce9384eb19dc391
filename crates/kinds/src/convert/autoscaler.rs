//! Autoscalers: version 1 knows one processor target; all else travels in annotations, as upstream has it.

use serde_json::{Map, Value, json};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// A field of version 1 and where version 2 has it.
type Names = [(&'static str, &'static [&'static str])];

/// By source: what is wanted.
const TARGETS: [(&str, &Names); 5] = [
    (
        "object",
        &[
            ("target", &["describedObject"]),
            ("metricName", &["metric", "name"]),
            ("selector", &["metric", "selector"]),
            ("targetValue", &["target", "value"]),
            ("averageValue", &["target", "averageValue"]),
        ],
    ),
    (
        "pods",
        &[
            ("metricName", &["metric", "name"]),
            ("selector", &["metric", "selector"]),
            ("targetAverageValue", &["target", "averageValue"]),
        ],
    ),
    (
        "resource",
        &[
            ("name", &["name"]),
            ("targetAverageUtilization", &["target", "averageUtilization"]),
            ("targetAverageValue", &["target", "averageValue"]),
        ],
    ),
    (
        "containerResource",
        &[
            ("name", &["name"]),
            ("container", &["container"]),
            ("targetAverageUtilization", &["target", "averageUtilization"]),
            ("targetAverageValue", &["target", "averageValue"]),
        ],
    ),
    (
        "external",
        &[
            ("metricName", &["metric", "name"]),
            ("metricSelector", &["metric", "selector"]),
            ("targetValue", &["target", "value"]),
            ("targetAverageValue", &["target", "averageValue"]),
        ],
    ),
];

/// By source: what is observed.
const OBSERVED: [(&str, &Names); 5] = [
    (
        "object",
        &[
            ("target", &["describedObject"]),
            ("metricName", &["metric", "name"]),
            ("selector", &["metric", "selector"]),
            ("currentValue", &["current", "value"]),
            ("averageValue", &["current", "averageValue"]),
        ],
    ),
    (
        "pods",
        &[
            ("metricName", &["metric", "name"]),
            ("selector", &["metric", "selector"]),
            ("currentAverageValue", &["current", "averageValue"]),
        ],
    ),
    (
        "resource",
        &[
            ("name", &["name"]),
            ("currentAverageUtilization", &["current", "averageUtilization"]),
            ("currentAverageValue", &["current", "averageValue"]),
        ],
    ),
    (
        "containerResource",
        &[
            ("name", &["name"]),
            ("container", &["container"]),
            ("currentAverageUtilization", &["current", "averageUtilization"]),
            ("currentAverageValue", &["current", "averageValue"]),
        ],
    ),
    (
        "external",
        &[
            ("metricName", &["metric", "name"]),
            ("metricSelector", &["metric", "selector"]),
            ("currentValue", &["current", "value"]),
            ("currentAverageValue", &["current", "averageValue"]),
        ],
    ),
];

pub(super) fn to_v1(object: &mut Map<String, Value>) {
    for name in [METRICS, CURRENT_METRICS, CONDITIONS, BEHAVIOR] {
        take_annotation(object, name);
    }
    let mut annotations = Vec::new();
    if let Some(spec) = part(object, "spec") {
        let mut others = Vec::new();
        for metric in list(spec.remove("metrics")) {
            match processor_target(&metric) {
                Some(target) => drop(spec.insert("targetCPUUtilizationPercentage".to_owned(), target)),
                None => others.push(metric_to_v1(&metric, &TARGETS)),
            }
        }
        annotations.push((METRICS, others));
        annotations.extend(spec.remove("behavior").map(|behavior| (BEHAVIOR, vec![behavior])));
    }
    if let Some(status) = part(object, "status") {
        let current = list(status.remove("currentMetrics"));
        for metric in &current {
            let utilization = &metric["resource"]["current"]["averageUtilization"];
            if metric["resource"]["name"] == "cpu" && utilization.is_number() {
                status.insert("currentCPUUtilizationPercentage".to_owned(), utilization.clone());
            }
        }
        annotations
            .push((CURRENT_METRICS, current.iter().map(|metric| metric_to_v1(metric, &OBSERVED)).collect()));
        annotations.push((CONDITIONS, list(status.remove("conditions"))));
    }
    annotations.retain(|(_, values)| !values.is_empty());
    if annotations.is_empty() {
        return;
    }
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    let Some(metadata) = metadata.as_object_mut() else { return };
    let held = metadata.entry("annotations").or_insert_with(|| json!({}));
    let Some(held) = held.as_object_mut() else { return };
    for (name, mut values) in annotations {
        let value = if name == BEHAVIOR { values.remove(0) } else { Value::Array(values) };
        held.insert(name.to_owned(), Value::from(value.to_string()));
    }
}

pub(super) fn to_v2(object: &mut Map<String, Value>) {
    let mut metrics = lists(take_annotation(object, METRICS), &TARGETS);
    let behavior = take_annotation(object, BEHAVIOR).filter(Value::is_object);
    let mut current = lists(take_annotation(object, CURRENT_METRICS), &OBSERVED);
    let conditions = list(take_annotation(object, CONDITIONS));
    if let Some(spec) = part(object, "spec") {
        if let Some(target) = spec.remove("targetCPUUtilizationPercentage").filter(Value::is_number) {
            let target = json!({"type": "Utilization", "averageUtilization": target});
            metrics.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
        }
        if !metrics.is_empty() {
            spec.insert("metrics".to_owned(), Value::Array(metrics));
        }
        spec.extend(behavior.map(|behavior| ("behavior".to_owned(), behavior)));
    }
    if let Some(status) = part(object, "status") {
        let observed = status.remove("currentCPUUtilizationPercentage").filter(Value::is_number);
        if let Some(observed) = observed.filter(|_| current.is_empty()) {
            let observed = json!({"name": "cpu", "current": {"averageUtilization": observed}});
            current.push(json!({"type": "Resource", "resource": observed}));
        }
        for (name, values) in [("currentMetrics", current), ("conditions", conditions)] {
            if !values.is_empty() {
                status.insert(name.to_owned(), Value::Array(values));
            }
        }
    }
}

/// The target of a metric that version 1 can say.
fn processor_target(metric: &Value) -> Option<Value> {
    let resource = &metric["resource"];
    let target = &resource["target"]["averageUtilization"];
    (resource["name"] == "cpu" && target.is_number()).then(|| target.clone())
}

fn metric_to_v1(metric: &Value, names: &[(&str, &Names)]) -> Value {
    let mut result = json!({"type": metric["type"]});
    for (source, fields) in names {
        if !metric[source].is_object() {
            continue;
        }
        let found = fields.iter().filter_map(|(old, path)| {
            let value = path.iter().fold(&metric[source], |value, step| &value[step]);
            (!value.is_null()).then(|| ((*old).to_owned(), value.clone()))
        });
        result[source] = Value::Object(found.collect());
    }
    result
}

fn metric_to_v2(metric: &Value, names: &[(&str, &Names)]) -> Value {
    let mut result = json!({"type": metric["type"]});
    for (source, fields) in names {
        let old = &metric[source];
        if !old.is_object() {
            continue;
        }
        let mut new = json!({});
        for (name, path) in *fields {
            if !old[name].is_null() {
                let slot = path.iter().fold(&mut new, |value, step| &mut value[step]);
                *slot = old[name].clone();
            }
        }
        if let Some(target) = new.get_mut("target") {
            let kind = ["averageUtilization", "averageValue", "value"]
                .into_iter()
                .find(|kind| !target[kind].is_null());
            target["type"] = match kind {
                Some("averageUtilization") => json!("Utilization"),
                Some("averageValue") => json!("AverageValue"),
                _ => json!("Value"),
            };
            // Version 1 always has a value, a zero where only the average counts.
            if kind == Some("averageValue")
                && let Some(target) = target.as_object_mut()
            {
                target.remove("value");
            }
        }
        result[source] = new;
    }
    result
}

fn lists(value: Option<Value>, names: &[(&str, &Names)]) -> Vec<Value> {
    list(value).iter().map(|metric| metric_to_v2(metric, names)).collect()
}

fn list(value: Option<Value>) -> Vec<Value> {
    match value {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

fn part<'a>(object: &'a mut Map<String, Value>, name: &str) -> Option<&'a mut Map<String, Value>> {
    object.get_mut(name)?.as_object_mut()
}

/// Removes an annotation; the JSON it held, if it was any.
fn take_annotation(object: &mut Map<String, Value>, name: &str) -> Option<Value> {
    let metadata = part(object, "metadata")?;
    let annotations = part(metadata, "annotations")?;
    let text = annotations.remove(name)?;
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
    serde_json::from_str(text.as_str()?).ok()
}
