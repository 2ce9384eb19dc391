//! `DefaultIngressClass`: an Ingress that names no class gets the default one.

use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;
use serde_json::Value;

use super::is;
use super::storage::newest_default;
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

const GROUP: &str = "networking.k8s.io";

struct DefaultIngressClass(Context);

pub(super) fn build(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(DefaultIngressClass(context.clone())))
}

#[async_trait]
impl AdmissionPlugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        operation == Operation::Create && is((GROUP, "ingresses"), resource, subresource)
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.object.at(&["spec", "ingressClassName"]).is_some_and(Value::is_string)
            || request.object.annotation("kubernetes.io/ingress.class").is_some()
        {
            return Ok(());
        }
        let classes = self.0.objects.list(&GroupResource::new(GROUP, "ingressclasses"), None);
        if let Some(class) = newest_default(&classes, "ingressclass") {
            request.object["spec"]["ingressClassName"] = class.name().into();
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
    async fn the_default_class_is_filled_in() {
        let class = json!({"metadata": {"name": "web", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}}});
        let context = context(&[("ingressclasses.networking.k8s.io", class)]);
        for (ingress, expected) in [
            (json!({"spec": {}}), json!("web")),
            (json!({"spec": {"ingressClassName": "own"}}), json!("own")),
            (
                json!({"metadata": {"annotations": {"kubernetes.io/ingress.class": "x"}}, "spec": {}}),
                Value::Null,
            ),
        ] {
            let ingress = create(&context, "DefaultIngressClass", "ingresses.networking.k8s.io", ingress)
                .await
                .unwrap();
            assert_eq!(ingress["spec"]["ingressClassName"], expected);
        }
    }
}
