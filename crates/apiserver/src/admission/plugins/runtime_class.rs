//! `RuntimeClass`: a pod pays its runtime's overhead and goes where the runtime is.

use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;
use meta::quantity::Quantity;
use serde_json::{Map, Value};

use super::{is, list_mut, map_mut};
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::authz::pod_references::list;
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

struct RuntimeClass(Context);

pub(super) fn build(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(RuntimeClass(context.clone())))
}

#[async_trait]
impl AdmissionPlugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        operation == Operation::Create && is(("", "pods"), resource, subresource)
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let Some(class) = self.class(request)? else { return Ok(()) };
        set_overhead(&class, request)?;
        if let Some(selector) = class.at(&["scheduling", "nodeSelector"]).and_then(Value::as_object) {
            let own = map_mut(&mut request.object, &["spec", "nodeSelector"]);
            for (key, value) in selector {
                if let Some(known) = own.get(key).filter(|known| *known != value) {
                    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                    let why = format!(
                        "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                        text(value),
                        text(known)
                    );
                    return Err(request.forbidden(&why));
                }
                own.insert(key.clone(), value.clone());
            }
        }
        let tolerations = list(&class, &["scheduling", "tolerations"]);
        if !tolerations.is_empty() {
            let own = list_mut(&mut request.object, &["spec", "tolerations"]);
            for toleration in tolerations {
                if !own.contains(toleration) {
                    own.push(toleration.clone());
                }
            }
        }
        Ok(())
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let class = self.class(request)?;
        let has_overhead = overhead(&request.object, &["spec", "overhead"]).is_some();
        let defined =
            class.as_ref().is_some_and(|class| overhead(class, &["overhead", "podFixed"]).is_some());
        if has_overhead && !defined {
            let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
            return Err(request.forbidden(why));
        }
        Ok(())
    }
}

impl RuntimeClass {
    fn class(&self, request: &AdmissionRequest) -> Result<Option<Arc<Value>>, ApiError> {
        let name = request.object.str_at(&["spec", "runtimeClassName"]);
        if name.is_empty() {
            return Ok(None);
        }
        let classes = GroupResource::new("node.k8s.io", "runtimeclasses");
        match self.0.objects.get(&classes, "", name) {
            Some(class) => Ok(Some(class)),
            None => Err(request.forbidden(&format!("pod rejected: RuntimeClass {name:?} not found"))),
        }
    }
}

fn set_overhead(class: &Value, request: &mut AdmissionRequest) -> Result<(), ApiError> {
    let Some(defined) = overhead(class, &["overhead", "podFixed"]) else { return Ok(()) };
    if let Some(own) = overhead(&request.object, &["spec", "overhead"])
        && !same_quantities(own, defined)
    {
        let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
        return Err(request.forbidden(why));
    }
    request.object["spec"]["overhead"] = Value::Object(defined.clone());
    Ok(())
}

fn overhead<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Map<String, Value>> {
    object.at(path).and_then(Value::as_object).filter(|map| !map.is_empty())
}

fn same_quantities(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    let quantity = |value: &Value| value.as_str().and_then(|text| text.parse::<Quantity>().ok());
    a.len() == b.len() && a.iter().all(|(name, value)| b.get(name).map(quantity) == Some(quantity(value)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{context, create};
    use super::*;

    async fn check(spec: Value) -> Result<Value, String> {
        let class = json!({
            "metadata": {"name": "vm"}, "handler": "vm",
            "overhead": {"podFixed": {"cpu": "500m"}},
            "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]},
        });
        let context = context(&[("runtimeclasses.node.k8s.io", class)]);
        let pod = json!({"metadata": {"name": "p"}, "spec": spec});
        create(&context, "RuntimeClass", "pods", pod).await.map(|mut pod| pod["spec"].take())
    }

    #[tokio::test]
    async fn overhead_and_scheduling_come_from_the_class() {
        let spec = check(json!({"runtimeClassName": "vm"})).await.unwrap();
        assert_eq!(spec["overhead"], json!({"cpu": "500m"}));
        assert_eq!(spec["nodeSelector"], json!({"vm": "yes"}));
        assert_eq!(spec["tolerations"], json!([{"key": "vm", "operator": "Exists"}]));
        assert!(check(json!({"runtimeClassName": "vm", "overhead": {"cpu": "0.5"}})).await.is_ok());
        for (spec, why) in [
            (json!({"runtimeClassName": "gone"}), "pod rejected: RuntimeClass \"gone\" not found"),
            (
                json!({"runtimeClassName": "vm", "overhead": {"cpu": "1"}}),
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
            ),
            (
                json!({"overhead": {"cpu": "1"}}),
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            ),
            (
                json!({"runtimeClassName": "vm", "nodeSelector": {"vm": "no"}}),
                "conflict: runtimeClass.scheduling.nodeSelector[vm] = yes; pod.spec.nodeSelector[vm] = no",
            ),
        ] {
            assert_eq!(check(spec).await.unwrap_err(), format!("pods \"p\" is forbidden: {why}"));
        }
    }
}
