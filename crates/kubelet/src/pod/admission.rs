//! Whether the node takes a pod at all: the scheduler's view may be old, and static pods pass no scheduler.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PodSpec, Taint, Toleration};

use super::memory::Failure;
use super::model::PodModel;
use super::resources::{amount, pod_requests};
use crate::node::facts::NodeState;

/// `others` are the pods that already hold resources here.
pub(crate) fn admit(model: &PodModel, others: &[&PodModel], node: &NodeState) -> Result<(), Failure> {
    let reject = |reason: &str, message: String| {
        Err(Failure {
            reason: reason.to_owned(),
            message: format!("Pod was rejected: {message}"),
            disruption: None,
        })
    };
    if model.spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS".to_owned();
        return reject("PodOSNotSupported", message);
    }
    if let Some((resource, requested, used, capacity)) = lacking(model, others, node) {
        let reason = if resource == "pods" { "OutOfpods".to_owned() } else { format!("OutOf{resource}") };
        let message = format!(
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        return reject(&reason, message);
    }
    if !model.is_static() && !selects(&model.spec, &node.labels) {
        return reject(
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".to_owned(),
        );
    }
    if ports_conflict(model, others) {
        let message =
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        return reject("NodePorts", message.to_owned());
    }
    let tolerations = model.spec.tolerations.as_deref().unwrap_or_default();
    let untolerated = node
        .taints
        .iter()
        .find(|taint| taint.effect == "NoExecute" && !tolerations.iter().any(|t| tolerates(t, taint)));
    match untolerated {
        Some(_) if !model.is_static() => reject(
            "TaintToleration",
            "Predicate TaintToleration failed: node(s) had untolerated taint(s)".to_owned(),
        ),
        _ => Ok(()),
    }
}

fn lacking(model: &PodModel, others: &[&PodModel], node: &NodeState) -> Option<(String, i64, i64, i64)> {
    let mut used: BTreeMap<String, i64> = BTreeMap::new();
    for other in others {
        for (name, value) in pod_requests(&other.spec) {
            *used.entry(name).or_default() += value;
        }
    }
    let capacity = |name: &str| node.allocatable.get(name).map(|q| amount(name, q));
    let pods = i64::try_from(others.len()).unwrap_or(i64::MAX);
    let max = capacity("pods").unwrap_or(i64::MAX);
    if pods >= max {
        return Some(("pods".to_owned(), 1, pods, max));
    }
    pod_requests(&model.spec).into_iter().find_map(|(name, requested)| {
        let used = used.get(&name).copied().unwrap_or(0);
        let capacity = capacity(&name).unwrap_or(0);
        (requested > 0 && requested + used > capacity).then_some((name, requested, used, capacity))
    })
}

fn selects(spec: &PodSpec, labels: &BTreeMap<String, String>) -> bool {
    spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
}

fn ports_conflict(model: &PodModel, others: &[&PodModel]) -> bool {
    let wanted = host_ports(model);
    others.iter().any(|other| {
        host_ports(other).iter().any(|(ip, protocol, port)| {
            wanted.iter().any(|(ip2, protocol2, port2)| {
                port == port2 && protocol == protocol2 && (ip == ip2 || ip == "0.0.0.0" || ip2 == "0.0.0.0")
            })
        })
    })
}

fn host_ports(model: &PodModel) -> Vec<(String, String, i32)> {
    let ports = model.spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let host_port = port.host_port.filter(|p| *p > 0)?;
            let ip = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
            Some((ip, port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), host_port))
        })
        .collect()
}

pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    let effect_fits = effect.is_empty() || effect == taint.effect;
    let key_fits = key.is_empty() || key == taint.key;
    let value_fits = match toleration.operator.as_deref() {
        Some("Exists") => true,
        _ => text(&toleration.value) == text(&taint.value) && !key.is_empty(),
    };
    effect_fits && key_fits && value_fits
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use serde_json::{Value, json};

    fn model(spec: Value) -> PodModel {
        PodModel::new(Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap(),
        ))
    }

    #[test]
    fn pods_that_do_not_fit_are_rejected_with_the_reason() {
        let quantity = |text: &str| Quantity(text.to_owned());
        let node = NodeState {
            allocatable: [("cpu".to_owned(), quantity("2")), ("pods".to_owned(), quantity("2"))].into(),
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            taints: vec![Taint { key: "t".into(), effect: "NoExecute".into(), ..Taint::default() }],
            ..NodeState::default()
        };
        let tolerate = json!([{"operator": "Exists"}]);
        let port = json!([{"containerPort": 1, "hostPort": 80}]);
        let other = model(json!({"containers": [
            {"name": "o", "ports": port, "resources": {"requests": {"cpu": "1"}}}]}));
        for (mut spec, reason) in [
            (json!({"containers": [{"name": "c"}]}), None),
            (
                json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1500m"}}}]}),
                Some("OutOfcpu"),
            ),
            (
                json!({"containers": [{"name": "c", "resources": {"requests": {"x/y": "1"}}}]}),
                Some("OutOfx/y"),
            ),
            (json!({"containers": [{"name": "c", "ports": port}]}), Some("NodePorts")),
            (json!({"nodeSelector": {"zone": "b"}, "containers": [{"name": "c"}]}), Some("NodeAffinity")),
            (json!({"os": {"name": "windows"}, "containers": [{"name": "c"}]}), Some("PodOSNotSupported")),
            (json!({"tolerations": [], "containers": [{"name": "c"}]}), Some("TaintToleration")),
        ] {
            if spec.get("tolerations").is_none() {
                spec["tolerations"] = tolerate.clone();
            }
            let failure = admit(&model(spec.clone()), &[&other], &node).err();
            assert_eq!(failure.map(|f| f.reason).as_deref(), reason, "{spec}");
        }
        let full = admit(&model(json!({"containers": []})), &[&other, &other], &node).unwrap_err();
        assert_eq!(
            full.message,
            "Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: 2, capacity: 2"
        );
    }
}
