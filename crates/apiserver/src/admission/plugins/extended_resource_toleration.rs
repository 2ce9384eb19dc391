//! `ExtendedResourceToleration`: a pod that asks for an extended resource tolerates the taint of the nodes that are
//! kept for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;
use serde_json::{Value, json};

use super::{creates_or_updates, is, tolerations};
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::authz::pod_references::list;
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

struct ExtendedResourceToleration;

pub(super) fn build(_context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(ExtendedResourceToleration))
}

#[async_trait]
impl AdmissionPlugin for ExtendedResourceToleration {
    fn name(&self) -> &'static str {
        "ExtendedResourceToleration"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        creates_or_updates(operation) && is(("", "pods"), resource, subresource)
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let mut resources = BTreeSet::new();
        for field in ["initContainers", "containers"] {
            for container in list(&request.object, &["spec", field]) {
                let requests = container.at(&["resources", "requests"]).and_then(Value::as_object);
                resources.extend(
                    requests.into_iter().flat_map(|map| map.keys()).filter(|name| is_extended(name)).cloned(),
                );
            }
        }
        for key in resources {
            tolerations::add(
                &mut request.object,
                json!({"key": key, "operator": "Exists", "effect": "NoSchedule"}),
            );
        }
        Ok(())
    }
}

/// A resource that a device plugin or an administrator advertises.
pub(super) fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| {
        domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io") && !name.starts_with("requests.")
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{context, create};
    use super::*;

    #[tokio::test]
    async fn only_extended_resources_are_tolerated() {
        let container = json!({"resources": {"requests": {"cpu": "1", "example.com/gpu": "2"}}});
        let pod = json!({"spec": {"containers": [container]}});
        let pod = create(&context(&[]), "ExtendedResourceToleration", "pods", pod).await.unwrap();
        let expected = json!([{"key": "example.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]);
        assert_eq!(pod["spec"]["tolerations"], expected);
    }
}
