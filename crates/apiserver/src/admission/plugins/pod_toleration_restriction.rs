//! `PodTolerationRestriction`: a namespace gives its pods tolerations, and bounds those they bring.

use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;
use serde_json::{Value, json};

use super::{creates_or_updates, is, list_mut, tolerations};
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::authz::pod_references::list;
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

const DEFAULTS: &str = "scheduler.alpha.kubernetes.io/defaultTolerations";
const WHITELIST: &str = "scheduler.alpha.kubernetes.io/tolerationsWhitelist";

struct PodTolerationRestriction(Context);

pub(super) fn build(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(PodTolerationRestriction(context.clone())))
}

#[async_trait]
impl AdmissionPlugin for PodTolerationRestriction {
    fn name(&self) -> &'static str {
        "PodTolerationRestriction"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        creates_or_updates(operation) && is(("", "pods"), resource, subresource)
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let given = self.of_namespace(request, DEFAULTS, "default")?.unwrap_or_default();
        if request.operation == Operation::Create && !given.is_empty() {
            let own = list(&request.object, &["spec", "tolerations"]).to_vec();
            for toleration in &given {
                let conflict = own.iter().any(|own| contradicts(own, toleration));
                if conflict {
                    return Err(request.forbidden("namespace tolerations and pod tolerations conflict"));
                }
            }
            let merged = list_mut(&mut request.object, &["spec", "tolerations"]);
            for toleration in given {
                if !merged.iter().any(|own| tolerations::is_superset(own, &toleration)) {
                    merged.push(toleration);
                }
            }
        }
        // A pod with guaranteed resources is not the first to go when memory gets short.
        if is_burstable_or_better(&request.object) {
            let key = "node.kubernetes.io/memory-pressure";
            tolerations::add(
                &mut request.object,
                json!({"key": key, "operator": "Exists", "effect": "NoSchedule"}),
            );
        }
        Ok(())
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let allowed = match self.of_namespace(request, WHITELIST, "whitelist")? {
            Some(allowed) if !allowed.is_empty() => allowed,
            _ => return Ok(()),
        };
        let own = list(&request.object, &["spec", "tolerations"]);
        let system = |toleration: &Value| toleration.str_at(&["key"]).starts_with("node.kubernetes.io/");
        let fine = own
            .iter()
            .all(|own| system(own) || allowed.iter().any(|allowed| tolerations::is_superset(allowed, own)));
        if fine {
            return Ok(());
        }
        Err(request.forbidden("pod tolerations (possibly merged with namespace default tolerations) conflict with its namespace whitelist"))
    }
}

impl PodTolerationRestriction {
    /// The namespace's annotation, or what the configuration says for all.
    fn of_namespace(
        &self,
        request: &AdmissionRequest,
        annotation: &str,
        field: &str,
    ) -> Result<Option<Vec<Value>>, ApiError> {
        let namespaces = GroupResource::new("", "namespaces");
        let namespace = self
            .0
            .objects
            .get(&namespaces, "", &request.namespace)
            .ok_or_else(|| ApiError::not_found(&namespaces, &request.namespace))?;
        if let Some(text) = namespace.annotation(annotation).filter(|text| !text.is_empty()) {
            return serde_json::from_str(text).map(Some).map_err(ApiError::internal);
        }
        let configuration = self.0.configuration.get("PodTolerationRestriction");
        Ok(configuration.and_then(|value| value.get(field)).and_then(Value::as_array).cloned())
    }
}

/// The same taint, tolerated differently.
fn contradicts(a: &Value, b: &Value) -> bool {
    let same = |field: &str| a.str_at(&[field]) == b.str_at(&[field]);
    same("key")
        && same("effect")
        && (!same("value") || !same("operator") || a.get("tolerationSeconds") != b.get("tolerationSeconds"))
}

fn is_burstable_or_better(pod: &Value) -> bool {
    list(pod, &["spec", "containers"]).iter().any(|container| {
        ["requests", "limits"].iter().any(|field| {
            let amounts = container.at(&["resources", field]).and_then(Value::as_object);
            amounts.is_some_and(|amounts| amounts.contains_key("cpu") || amounts.contains_key("memory"))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{context, create};
    use super::*;

    async fn check(annotations: Value, own: Value) -> Result<Value, String> {
        let context =
            context(&[("namespaces", json!({"metadata": {"name": "a", "annotations": annotations}}))]);
        let pod = json!({"metadata": {"namespace": "a", "name": "p"}, "spec": {"tolerations": own}});
        create(&context, "PodTolerationRestriction", "pods", pod)
            .await
            .map(|pod| pod["spec"]["tolerations"].clone())
    }

    #[tokio::test]
    async fn namespaces_give_and_bound_tolerations() {
        let gpu = json!({"key": "gpu", "operator": "Exists", "effect": "NoSchedule"});
        let given = json!({DEFAULTS: json!([gpu]).to_string()});
        assert_eq!(check(given.clone(), json!([])).await, Ok(json!([gpu])));
        let other = json!([{"key": "gpu", "operator": "Equal", "value": "x", "effect": "NoSchedule"}]);
        assert_eq!(
            check(given, other).await.unwrap_err(),
            "pods \"p\" is forbidden: namespace tolerations and pod tolerations conflict"
        );
        let bounded = json!({WHITELIST: json!([gpu]).to_string()});
        assert_eq!(check(bounded.clone(), json!([gpu])).await, Ok(json!([gpu])));
        assert!(check(bounded, json!([{"key": "other", "operator": "Exists"}])).await.is_err());
    }
}
