//! `Priority`: a pod's priority is that of its class; there is one default class.

use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;
use serde_json::Value;

use super::{creates_or_updates, is};
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

const GROUP: &str = "scheduling.k8s.io";
const DEFAULT_POLICY: &str = "PreemptLowerPriority";

struct Priority(Context);

pub(super) fn build(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(Priority(context.clone())))
}

#[async_trait]
impl AdmissionPlugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        creates_or_updates(operation)
            && (is(("", "pods"), resource, subresource)
                || is((GROUP, "priorityclasses"), resource, subresource))
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.resource.resource != "pods" {
            return Ok(());
        }
        if request.operation == Operation::Update {
            keep_computed(request);
            return Ok(());
        }
        let name = request.object.str_at(&["spec", "priorityClassName"]).to_owned();
        let class =
            if name.is_empty() { self.default_class() } else { self.class(request, &name).map(Some)? };
        let value =
            class.as_ref().and_then(|class| class.get("value")).and_then(Value::as_i64).unwrap_or_default();
        let policy = class.as_ref().map(|class| class.str_at(&["preemptionPolicy"])).unwrap_or_default();
        let policy = if policy.is_empty() { DEFAULT_POLICY } else { policy };
        let spec = &mut request.object["spec"];
        let given = spec.get("priority").and_then(Value::as_i64).filter(|given| *given != value);
        let given_policy = spec.str_at(&["preemptionPolicy"]);
        if let Some(given) = given {
            return Err(request.forbidden(&format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
            )));
        }
        if !given_policy.is_empty() && given_policy != policy {
            let why = format!(
                "the string value of PreemptionPolicy ({given_policy}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            );
            return Err(request.forbidden(&why));
        }
        if let Some(class) = class.as_ref().filter(|_| name.is_empty()) {
            spec["priorityClassName"] = class.name().into();
        }
        spec["priority"] = value.into();
        spec["preemptionPolicy"] = policy.into();
        Ok(())
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.resource.resource == "pods"
            || request.object.get("globalDefault") != Some(&Value::Bool(true))
        {
            return Ok(());
        }
        match self.default_class() {
            Some(class) if class.name() != request.object.name() => Err(request.forbidden(&format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                class.name()
            ))),
            _ => Ok(()),
        }
    }
}

impl Priority {
    fn class(&self, request: &AdmissionRequest, name: &str) -> Result<Arc<Value>, ApiError> {
        let classes = GroupResource::new(GROUP, "priorityclasses");
        self.0
            .objects
            .get(&classes, "", name)
            .ok_or_else(|| request.forbidden(&format!("no PriorityClass with name {name} was found")))
    }

    /// Should there be several after all, the lowest.
    fn default_class(&self) -> Option<Arc<Value>> {
        let classes = self.0.objects.list(&GroupResource::new(GROUP, "priorityclasses"), None);
        classes
            .into_iter()
            .filter(|class| class.get("globalDefault") == Some(&Value::Bool(true)))
            .min_by_key(|class| class.get("value").and_then(Value::as_i64).unwrap_or_default())
    }
}

/// A client that leaves out what was computed at creation does not mean to remove it.
fn keep_computed(request: &mut AdmissionRequest) {
    for field in ["priority", "preemptionPolicy"] {
        let missing = request.object["spec"].get(field).is_none_or(Value::is_null);
        if let Some(old) = request.old_object.at(&["spec", field]).filter(|_| missing) {
            request.object["spec"][field] = old.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{context, create};
    use super::*;

    fn classes(default: bool) -> Context {
        let class = |name: &str, value: i64, default: bool| {
            (
                "priorityclasses.scheduling.k8s.io",
                json!({"metadata": {"name": name}, "value": value, "globalDefault": default}),
            )
        };
        context(&[class("high", 1000, false), class("usual", 10, default)])
    }

    async fn check(default: bool, spec: Value) -> Result<(i64, String), String> {
        let pod = json!({"metadata": {"name": "p"}, "spec": spec});
        let pod = create(&classes(default), "Priority", "pods", pod).await?;
        Ok((pod["spec"]["priority"].as_i64().unwrap(), pod.str_at(&["spec", "priorityClassName"]).to_owned()))
    }

    #[tokio::test]
    async fn priority_comes_from_the_class() {
        assert_eq!(check(false, json!({"priorityClassName": "high"})).await, Ok((1000, "high".to_owned())));
        assert_eq!(check(false, json!({})).await, Ok((0, String::new())));
        assert_eq!(check(true, json!({})).await, Ok((10, "usual".to_owned())));
        assert_eq!(
            check(false, json!({"priorityClassName": "gone"})).await.unwrap_err(),
            r#"pods "p" is forbidden: no PriorityClass with name gone was found"#
        );
        assert_eq!(
            check(false, json!({"priorityClassName": "high", "priority": 5})).await.unwrap_err(),
            r#"pods "p" is forbidden: the integer value of priority (5) must not be provided in pod spec; priority admission controller computed 1000 from the given PriorityClass name"#
        );
    }

    #[tokio::test]
    async fn there_is_one_default() {
        let second = json!({"metadata": {"name": "other"}, "value": 5, "globalDefault": true});
        assert_eq!(
            create(&classes(true), "Priority", "priorityclasses.scheduling.k8s.io", second)
                .await
                .unwrap_err(),
            r#"priorityclasses.scheduling.k8s.io "other" is forbidden: PriorityClass usual is already marked as default. Only one default can exist"#
        );
    }
}
