//! Pods.

use meta::field::{FieldError, FieldPath};
use serde_json::{Value, json};

use super::pod_template;
use crate::objects::ObjectExt;
use crate::registry::strategy::{Generation, Strategy, WriteContext};

#[derive(Debug)]
pub(super) struct PodStrategy;

impl Strategy for PodStrategy {
    fn default(&self, pod: &mut Value) {
        pod_template::default_pod_spec(&mut pod["spec"]);
    }

    fn prepare_for_create(&self, _cx: &WriteContext<'_>, pod: &mut Value) {
        pod["status"] = json!({ "phase": "Pending", "qosClass": qos_class(pod) });
    }

    fn prepare_for_update(&self, cx: &WriteContext<'_>, pod: &mut Value, old: &Value) {
        if cx.subresource == "status" && pod.str_at(&["status", "qosClass"]).is_empty() {
            pod["status"]["qosClass"] = old.str_at(&["status", "qosClass"]).into();
        }
    }

    fn validate(&self, _cx: &WriteContext<'_>, pod: &Value) -> Vec<FieldError> {
        pod_template::validate_spec(&pod["spec"], &FieldPath::root("spec"))
    }

    /// A pod's spec was valid when it came; status writes need not look at it again.
    fn validate_update(&self, cx: &WriteContext<'_>, pod: &Value, old: &Value) -> Vec<FieldError> {
        if pod.get("spec") == old.get("spec") { Vec::new() } else { self.validate(cx, pod) }
    }

    fn generation(&self) -> Generation {
        Generation::Spec
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    /// Pods that run on a node get the time they ask for; pods that never ran, or ran to their end, none.
    fn grace_period_seconds(&self, pod: &Value, requested: Option<i64>) -> Option<i64> {
        let own = pod.at(&["spec", "terminationGracePeriodSeconds"]).and_then(Value::as_i64);
        let period = requested.or(own).unwrap_or(30);
        let unscheduled = pod.str_at(&["spec", "nodeName"]).is_empty();
        let finished = matches!(pod.str_at(&["status", "phase"]), "Failed" | "Succeeded");
        Some(if unscheduled || finished { 0 } else { period.max(if period < 0 { 1 } else { 0 }) })
    }
}

/// Guaranteed if every container limits cpu and memory to its requests, BestEffort if none asks for any.
pub(super) fn qos_class(pod: &Value) -> &'static str {
    let lists = ["containers", "initContainers"];
    let containers =
        lists.iter().filter_map(|list| pod.at(&["spec", list])?.as_array()).flatten().collect::<Vec<_>>();
    let quantity = |container: &Value, part: &str, name: &str| {
        let text = container.at(&["resources", part, name])?.as_str()?;
        let parsed: meta::quantity::Quantity = text.parse().ok()?;
        (!parsed.is_zero()).then_some(parsed)
    };
    let names = ["cpu", "memory"];
    let asks = containers.iter().any(|container| {
        names
            .iter()
            .any(|name| ["requests", "limits"].iter().any(|part| quantity(container, part, name).is_some()))
    });
    if !asks {
        return "BestEffort";
    }
    let guaranteed = containers.iter().all(|container| {
        names.iter().all(|name| {
            let limit = quantity(container, "limits", name);
            limit.is_some() && limit == quantity(container, "requests", name)
        })
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}
