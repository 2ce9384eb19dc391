//! `TaintNodesByCondition`: a new node takes no pods until it is known to be ready.

use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;
use serde_json::json;

use super::{is, list_mut};
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

struct TaintNodesByCondition;

pub(super) fn build(_context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(TaintNodesByCondition))
}

#[async_trait]
impl AdmissionPlugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        operation == Operation::Create && is(("", "nodes"), resource, subresource)
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let taints = list_mut(&mut request.object, &["spec", "taints"]);
        let known = taints
            .iter()
            .any(|taint| taint.str_at(&["key"]) == NOT_READY && taint.str_at(&["effect"]) == "NoSchedule");
        if !known {
            taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{context, create};
    use super::*;

    #[tokio::test]
    async fn new_nodes_are_tainted_once() {
        let taints = json!([{"key": NOT_READY, "effect": "NoSchedule"}]);
        for spec in [json!({}), json!({"taints": taints})] {
            let node = json!({"metadata": {"name": "n"}, "spec": spec});
            let node = create(&context(&[]), "TaintNodesByCondition", "nodes", node).await.unwrap();
            assert_eq!(node["spec"]["taints"], taints);
        }
    }
}
