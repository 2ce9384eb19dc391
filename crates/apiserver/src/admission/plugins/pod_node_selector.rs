//! `PodNodeSelector`: a namespace says on which nodes its pods may run.

use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;
use serde_json::{Map, Value};

use super::{creates_or_updates, is, map_mut};
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

const ANNOTATION: &str = "scheduler.alpha.kubernetes.io/node-selector";
const CLUSTER_DEFAULT: &str = "clusterDefaultNodeSelector";

struct PodNodeSelector {
    context: Context,
    /// By namespace, the labels its pods may ask for; and the default of the cluster.
    configuration: Map<String, Value>,
}

pub(super) fn build(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    let configuration = context.configuration.get("PodNodeSelector");
    let configuration = configuration
        .and_then(|value| value.get("podNodeSelectorPluginConfig"))
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    Ok(Arc::new(PodNodeSelector { context: context.clone(), configuration }))
}

#[async_trait]
impl AdmissionPlugin for PodNodeSelector {
    fn name(&self) -> &'static str {
        "PodNodeSelector"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        creates_or_updates(operation) && is(("", "pods"), resource, subresource)
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.operation == Operation::Update {
            return Ok(());
        }
        let wanted = self.of_namespace(request)?;
        if conflicts(&wanted, &request.object) {
            return Err(
                request.forbidden("pod node label selector conflicts with its namespace node label selector")
            );
        }
        if !wanted.is_empty() {
            map_mut(&mut request.object, &["spec", "nodeSelector"]).extend(wanted);
        }
        Ok(())
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let wanted = self.of_namespace(request)?;
        if conflicts(&wanted, &request.object) {
            return Err(
                request.forbidden("pod node label selector conflicts with its namespace node label selector")
            );
        }
        let Some(allowed) = self.configuration.get(&request.namespace).and_then(Value::as_str) else {
            return Ok(());
        };
        let allowed = parse(allowed).map_err(ApiError::internal)?;
        let own = request.object.at(&["spec", "nodeSelector"]).and_then(Value::as_object);
        // Nothing in the list means that nothing is forbidden.
        if allowed.is_empty() || own.into_iter().flatten().all(|(key, value)| allowed.get(key) == Some(value))
        {
            return Ok(());
        }
        Err(request.forbidden("pod node label selector labels conflict with its namespace whitelist"))
    }
}

impl PodNodeSelector {
    fn of_namespace(&self, request: &AdmissionRequest) -> Result<Map<String, Value>, ApiError> {
        let namespaces = GroupResource::new("", "namespaces");
        let namespace = self
            .context
            .objects
            .get(&namespaces, "", &request.namespace)
            .ok_or_else(|| ApiError::not_found(&namespaces, &request.namespace))?;
        let default = || self.configuration.get(CLUSTER_DEFAULT).and_then(Value::as_str);
        parse(namespace.annotation(ANNOTATION).or_else(default).unwrap_or_default())
            .map_err(ApiError::internal)
    }
}

fn conflicts(wanted: &Map<String, Value>, pod: &Value) -> bool {
    let own = pod.at(&["spec", "nodeSelector"]).and_then(Value::as_object);
    own.into_iter().flatten().any(|(key, value)| wanted.get(key).is_some_and(|wanted| wanted != value))
}

/// `a=b,c=d`.
fn parse(text: &str) -> Result<Map<String, Value>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("invalid selector {part:?}"))?;
            Ok((key.trim().to_owned(), Value::from(value.trim_start_matches('=').trim())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{context, create};
    use super::*;

    #[tokio::test]
    async fn the_namespaces_selector_is_merged() {
        let namespace = json!({"metadata": {"name": "a", "annotations": {ANNOTATION: "zone=x, disk=ssd"}}});
        let context = context(&[("namespaces", namespace)]);
        let pod = |selector: Value| json!({"metadata": {"namespace": "a", "name": "p"}, "spec": {"nodeSelector": selector}});
        let merged = create(&context, "PodNodeSelector", "pods", pod(json!({"own": "y"}))).await.unwrap();
        assert_eq!(merged["spec"]["nodeSelector"], json!({"own": "y", "zone": "x", "disk": "ssd"}));
        assert_eq!(
            create(&context, "PodNodeSelector", "pods", pod(json!({"zone": "z"}))).await.unwrap_err(),
            "pods \"p\" is forbidden: pod node label selector conflicts with its namespace node label selector"
        );
    }

    #[tokio::test]
    async fn the_whitelist_bounds_what_pods_ask_for() {
        let mut context = context(&[("namespaces", json!({"metadata": {"name": "a"}}))]);
        let configuration = json!({"podNodeSelectorPluginConfig": {"a": "zone=x"}});
        context.configuration.insert("PodNodeSelector".to_owned(), configuration);
        for (zone, allowed) in [("x", true), ("y", false)] {
            let pod = json!({"metadata": {"namespace": "a"}, "spec": {"nodeSelector": {"zone": zone}}});
            assert_eq!(create(&context, "PodNodeSelector", "pods", pod).await.is_ok(), allowed);
        }
    }
}
