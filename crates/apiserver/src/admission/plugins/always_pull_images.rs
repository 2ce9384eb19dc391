//! `AlwaysPullImages`: no pod runs an image it has no right to pull because it happens to be on the node.

use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;
use serde_json::Value;

use super::{CONTAINER_LISTS, creates_or_updates, each_container_mut};
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::authz::pod_references::list;
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

struct AlwaysPullImages;

pub(super) fn build(_context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(AlwaysPullImages))
}

#[async_trait]
impl AdmissionPlugin for AlwaysPullImages {
    fn name(&self) -> &'static str {
        "AlwaysPullImages"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        creates_or_updates(operation)
            && resource.group.is_empty()
            && resource.resource == "pods"
            && matches!(subresource, "" | "ephemeralcontainers")
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if brings_no_image(request) {
            return Ok(());
        }
        each_container_mut(&mut request.object, |container| container["imagePullPolicy"] = "Always".into());
        if let Some(volumes) = request.object.pointer_mut("/spec/volumes").and_then(Value::as_array_mut) {
            for volume in volumes {
                if let Some(image) = volume.get_mut("image").and_then(Value::as_object_mut) {
                    image.insert("pullPolicy".to_owned(), "Always".into());
                }
            }
        }
        Ok(())
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if brings_no_image(request) {
            return Ok(());
        }
        for field in CONTAINER_LISTS {
            for (index, container) in list(&request.object, &["spec", field]).iter().enumerate() {
                let policy = container.str_at(&["imagePullPolicy"]);
                if policy != "Always" {
                    return Err(request.forbidden(&format!(
                        "spec.{field}[{index}].imagePullPolicy: Unsupported value: {policy:?}: supported values: \"Always\""
                    )));
                }
            }
        }
        Ok(())
    }
}

/// An update that uses the images it used before need not be changed: much of a pod cannot be.
fn brings_no_image(request: &AdmissionRequest) -> bool {
    let images = |pod: &Value| -> Vec<String> {
        let containers = CONTAINER_LISTS.iter().flat_map(|field| list(pod, &["spec", field]));
        let volumes = list(pod, &["spec", "volumes"]).iter();
        let of_containers = containers.map(|container| container.str_at(&["image"]).to_owned());
        of_containers.chain(volumes.map(|volume| volume.str_at(&["image", "reference"]).to_owned())).collect()
    };
    if request.operation != Operation::Update {
        return false;
    }
    let old = images(&request.old_object);
    images(&request.object).iter().all(|image| old.contains(image))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{context, create};

    #[tokio::test]
    async fn every_container_pulls() {
        let pod = json!({"spec": {"initContainers": [{}], "containers": [{"imagePullPolicy": "Never"}]}});
        let pod = create(&context(&[]), "AlwaysPullImages", "pods", pod).await.unwrap();
        for field in ["initContainers", "containers"] {
            assert_eq!(pod["spec"][field][0]["imagePullPolicy"], "Always");
        }
    }
}
