//! `PodTopologyLabels`: a pod that is bound to a node learns the node's zone and region.

use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;
use serde_json::Value;

use super::map_mut;
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

const LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

struct PodTopologyLabels(Context);

pub(super) fn build(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(PodTopologyLabels(context.clone())))
}

#[async_trait]
impl AdmissionPlugin for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        operation == Operation::Create
            && resource.group.is_empty()
            && match &*resource.resource {
                "pods" => matches!(subresource, "" | "binding"),
                "bindings" => subresource.is_empty(),
                _ => false,
            }
    }

    /// Labels of a Binding are put on the pod it binds.
    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let is_pod = request.resource.resource == "pods" && request.subresource.is_empty();
        let path: &[&str] = if is_pod { &["spec", "nodeName"] } else { &["target", "name"] };
        let kind = request.object.str_at(&["target", "kind"]);
        let name = request.object.str_at(path);
        if name.is_empty() || (!is_pod && !kind.is_empty() && kind != "Node") {
            return Ok(());
        }
        // A node that is not there yet has no labels to give.
        let Some(node) = self.0.objects.get(&GroupResource::new("", "nodes"), "", name) else {
            return Ok(());
        };
        for key in LABELS {
            if let Some(value) = node.labels().and_then(|labels| labels.get(key)).and_then(Value::as_str) {
                map_mut(&mut request.object, &["metadata", "labels"]).insert(key.to_owned(), value.into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{context, create};
    use super::*;

    #[tokio::test]
    async fn bindings_carry_the_nodes_zone() {
        let labels = json!({LABELS[0]: "z1", "other": "x"});
        let context = context(&[("nodes", json!({"metadata": {"name": "n", "labels": labels}}))]);
        let binding =
            json!({"metadata": {"name": "p", "namespace": "a"}, "target": {"kind": "Node", "name": "n"}});
        let binding = create(&context, "PodTopologyLabels", "pods/binding", binding).await.unwrap();
        assert_eq!(binding["metadata"]["labels"], json!({LABELS[0]: "z1"}));
    }
}
