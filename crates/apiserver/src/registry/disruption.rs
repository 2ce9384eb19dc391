//! Disruption budgets at the moment of an eviction.

use meta::names::GroupResource;
use meta::selector::LabelSelector;
use serde_json::{Value, json};

use super::Registry;
use super::write::Write;
use crate::objects::{ObjectExt, Objects};
use crate::status::ApiError;

/// More disrupted pods than this on record, and the budget's controller must catch up first.
const MAX_DISRUPTED_PODS: usize = 2_000;

/// Takes one disruption from the pod's budget, or says why there is none.
pub(super) async fn take_allowance(registry: &Registry, write: &Write, pod: &Value) -> Result<(), ApiError> {
    let resource = GroupResource::new("policy", "poddisruptionbudgets");
    let budgets = Objects::list(registry, &resource, Some(&write.namespace));
    let matching: Vec<_> = budgets
        .into_iter()
        .filter(|budget| {
            let selector = budget.at(&["spec", "selector"]).cloned().unwrap_or_default();
            let selector = LabelSelector::from_value(&selector).ok().flatten();
            selector.is_some_and(|selector| selector.matches_labels(pod.labels()))
        })
        .collect();
    let budget = match matching.as_slice() {
        [] => return Ok(()),
        [budget] => budget,
        _ => {
            return Err(ApiError::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let name = budget.name().to_owned();
    if ready(pod).is_some_and(|ready| !ready) && allows_unhealthy(budget) {
        return Ok(());
    }
    let Some(target) = registry.catalog().find("policy", "v1", "poddisruptionbudgets") else { return Ok(()) };
    let budget_write = Write {
        target,
        subresource: "status".to_owned(),
        name: name.clone(),
        manager: "kube-apiserver".to_owned(),
        ..write.clone()
    };
    let pod_name = pod.name().to_owned();
    let now = registry.now();
    let spend = move |budget: &Value| spent(budget, &name, &pod_name, now);
    registry.change(&budget_write, spend).await.map(|_| ())
}

fn spent(budget: &Value, name: &str, pod: &str, now: jiff::Timestamp) -> Result<Value, ApiError> {
    let number = |path: &[&str]| budget.at(path).and_then(Value::as_i64).unwrap_or(0);
    if number(&["status", "observedGeneration"]) < number(&["metadata", "generation"]) {
        return Err(refused(
            format!("The disruption budget {name} is still being processed by the server."),
            10,
        ));
    }
    let allowed = number(&["status", "disruptionsAllowed"]);
    if allowed <= 0 {
        let error = refused(String::new(), 0);
        let text = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number(&["status", "desiredHealthy"]),
            number(&["status", "currentHealthy"])
        );
        return Err(error.with_cause("DisruptionBudget", &text, ""));
    }
    let disrupted = budget.at(&["status", "disruptedPods"]).and_then(Value::as_object);
    if disrupted.is_some_and(|pods| pods.len() > MAX_DISRUPTED_PODS) {
        return Err(ApiError::forbidden(
            &GroupResource::new("policy", "poddisruptionbudgets"),
            name,
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        ));
    }
    let mut budget = budget.clone();
    budget["status"]["disruptionsAllowed"] = json!(allowed - 1);
    budget["status"]["disruptedPods"][pod] = meta::time::format(now).into();
    Ok(budget)
}

fn refused(message: String, retry_after_seconds: i32) -> ApiError {
    let message = if message.is_empty() {
        "Cannot evict pod as it would violate the pod's disruption budget.".to_owned()
    } else {
        format!("Cannot evict pod as it would violate the pod's disruption budget. {message}")
    };
    ApiError::too_many_requests(message, retry_after_seconds)
}

fn ready(pod: &Value) -> Option<bool> {
    let conditions = pod.at(&["status", "conditions"])?.as_array()?;
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready")?;
    Some(ready["status"] == "True")
}

/// `IfHealthyBudget` (the default) frees unready pods while the application is healthy; `AlwaysAllow` always.
fn allows_unhealthy(budget: &Value) -> bool {
    let number = |field| budget.at(&["status", field]).and_then(Value::as_i64).unwrap_or(0);
    budget.str_at(&["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow"
        || (number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0)
}
