//! The downward API: fields of the pod and resources of its containers as text.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ObjectFieldSelector, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pod::model::PodModel;
use crate::quantity;

/// What of the node and the sandbox the downward API can show.
#[derive(Debug, Clone, Default)]
pub(crate) struct PodFacts {
    pub(crate) node_name: String,
    pub(crate) host_ips: Vec<String>,
    pub(crate) pod_ips: Vec<String>,
    pub(crate) allocatable: BTreeMap<String, Quantity>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FieldError {
    #[error("unsupported fieldPath: {path}")]
    Unsupported { path: String },
    #[error("unsupported container resource : {resource}")]
    UnsupportedResource { resource: String },
    #[error("container {name} not found")]
    NoContainer { name: String },
}

pub(crate) fn field(
    model: &PodModel,
    facts: &PodFacts,
    selector: &ObjectFieldSelector,
) -> Result<String, FieldError> {
    let path = selector.field_path.as_str();
    let metadata = &model.pod.metadata;
    let text = |value: &Option<String>| Ok(value.clone().unwrap_or_default());
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => metadata.labels.as_ref(),
            "metadata.annotations" => metadata.annotations.as_ref(),
            _ => return Err(FieldError::Unsupported { path: path.to_owned() }),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    match path {
        "metadata.name" => Ok(model.name.clone()),
        "metadata.namespace" => Ok(model.namespace.clone()),
        "metadata.uid" => Ok(model.uid.clone()),
        "metadata.labels" => Ok(lines(metadata.labels.as_ref())),
        "metadata.annotations" => Ok(lines(metadata.annotations.as_ref())),
        "spec.nodeName" => Ok(facts.node_name.clone()),
        "spec.serviceAccountName" => text(&model.spec.service_account_name),
        "status.hostIP" => Ok(facts.host_ips.first().cloned().unwrap_or_default()),
        "status.hostIPs" => Ok(facts.host_ips.join(",")),
        "status.podIP" => Ok(facts.pod_ips.first().cloned().unwrap_or_default()),
        "status.podIPs" => Ok(facts.pod_ips.join(",")),
        _ => Err(FieldError::Unsupported { path: path.to_owned() }),
    }
}

/// `metadata.labels['key']` as its two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// A whole map, one quoted pair a line, each line ended.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={}", quoted(v))).collect();
    lines.join("\n")
}

/// A Go string literal.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A container's request or limit; a missing limit is what the node has.
pub(crate) fn resource(
    model: &PodModel,
    facts: &PodFacts,
    default_container: &str,
    selector: &ResourceFieldSelector,
) -> Result<String, FieldError> {
    let name = selector.container_name.as_deref().filter(|n| !n.is_empty()).unwrap_or(default_container);
    let container = model.container(name).ok_or_else(|| FieldError::NoContainer { name: name.to_owned() })?;
    let unsupported = || FieldError::UnsupportedResource { resource: selector.resource.clone() };
    let (side, resource) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let resources = container.spec.resources.clone().unwrap_or_default();
    let declared = match side {
        "limits" => {
            resources.limits.as_ref().and_then(|l| l.get(resource)).filter(|q| quantity::milli_value(q) > 0)
        }
        "requests" => {
            let limits = resources.limits.as_ref().and_then(|l| l.get(resource));
            resources.requests.as_ref().and_then(|l| l.get(resource)).or(limits)
        }
        _ => return Err(unsupported()),
    };
    if !matches!(resource, "cpu" | "memory" | "ephemeral-storage") && !resource.starts_with("hugepages-") {
        return Err(unsupported());
    }
    let fallback = facts.allocatable.get(resource).filter(|_| side == "limits");
    let zero = Quantity("0".to_owned());
    let value = declared.or(fallback).unwrap_or(&zero);
    let one = Quantity("1".to_owned());
    let divisor = selector.divisor.as_ref().filter(|d| quantity::milli_value(d) > 0).unwrap_or(&one);
    Ok(quantity::divided(value, divisor).to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use serde_json::json;

    #[test]
    fn fields_and_resources_are_shown_as_upstream_shows_them() {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "1", "b": "x\"y"}},
            "spec": {"serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"requests": {"cpu": "250m"}, "limits": {"memory": "64Mi"}}}]},
        });
        let model = PodModel::new(Arc::new(serde_json::from_value(pod).unwrap()));
        let facts = PodFacts {
            node_name: "node".into(),
            host_ips: vec!["10.0.0.1".into()],
            pod_ips: vec!["10.1.0.2".into(), "fd00::2".into()],
            allocatable: [("cpu".to_owned(), Quantity("2".into()))].into(),
        };
        for (path, expected) in [
            ("metadata.name", Some("p")),
            ("metadata.labels['a']", Some("1")),
            ("metadata.labels['none']", Some("")),
            ("metadata.labels", Some("a=\"1\"\nb=\"x\\\"y\"")),
            ("spec.serviceAccountName", Some("sa")),
            ("status.podIPs", Some("10.1.0.2,fd00::2")),
            ("status.hostIP", Some("10.0.0.1")),
            ("spec.other", None),
        ] {
            let selector = ObjectFieldSelector { api_version: None, field_path: path.into() };
            assert_eq!(field(&model, &facts, &selector).ok().as_deref(), expected, "{path}");
        }
        for (name, divisor, expected) in [
            ("requests.cpu", "1m", "250"),
            ("requests.cpu", "0", "1"),
            ("limits.cpu", "1", "2"),
            ("limits.memory", "1Mi", "64"),
            ("requests.memory", "1Mi", "64"),
        ] {
            let divisor = Some(Quantity(divisor.into()));
            let selector = ResourceFieldSelector { container_name: None, divisor, resource: name.into() };
            assert_eq!(resource(&model, &facts, "c", &selector).unwrap(), expected, "{name}");
        }
    }
}
