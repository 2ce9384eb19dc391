//! `NamespaceLifecycle`, `NamespaceExists` and `NamespaceAutoProvision`: objects live in namespaces that exist and
//! are not being deleted.

use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;
use serde_json::json;

use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];
const NAMESPACES: GroupResource = GroupResource {
    group: std::borrow::Cow::Borrowed(""),
    resource: std::borrow::Cow::Borrowed("namespaces"),
};

struct Lifecycle(Context);

struct Exists(Context);

struct AutoProvision(Context);

pub(super) fn lifecycle(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(Lifecycle(context.clone())))
}

pub(super) fn exists(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(Exists(context.clone())))
}

pub(super) fn auto_provision(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(AutoProvision(context.clone())))
}

#[async_trait]
impl AdmissionPlugin for Lifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, _subresource: &str) -> bool {
        // Only deletions of namespaces themselves are of interest.
        operation != Operation::Connect && (operation != Operation::Delete || *resource == NAMESPACES)
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.group_resource() == NAMESPACES {
            if request.operation == Operation::Delete && IMMORTAL.contains(&request.name.as_str()) {
                return Err(ApiError::forbidden(
                    &NAMESPACES,
                    &request.name,
                    "this namespace may not be deleted",
                ));
            }
            return Ok(());
        }
        if !is_inside(request) {
            return Ok(());
        }
        let namespace = request.namespace.as_str();
        let Some(live) = self.0.objects.get(&NAMESPACES, "", namespace) else {
            return Err(ApiError::not_found(&NAMESPACES, namespace));
        };
        if request.operation == Operation::Create && live.str_at(&["status", "phase"]) == "Terminating" {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            let message = format!("namespace {namespace} is being terminated");
            return Err(request.forbidden(&why).with_cause(
                "NamespaceTerminating",
                &message,
                "metadata.namespace",
            ));
        }
        Ok(())
    }
}

#[async_trait]
impl AdmissionPlugin for Exists {
    fn name(&self) -> &'static str {
        "NamespaceExists"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, _subresource: &str) -> bool {
        operation != Operation::Connect && *resource != NAMESPACES
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if is_inside(request) && self.0.objects.get(&NAMESPACES, "", &request.namespace).is_none() {
            return Err(ApiError::not_found(&NAMESPACES, &request.namespace));
        }
        Ok(())
    }
}

#[async_trait]
impl AdmissionPlugin for AutoProvision {
    fn name(&self) -> &'static str {
        "NamespaceAutoProvision"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, _subresource: &str) -> bool {
        operation == Operation::Create && *resource != NAMESPACES
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let namespace = request.namespace.as_str();
        if request.dry_run || !is_inside(request) || self.0.objects.get(&NAMESPACES, "", namespace).is_some()
        {
            return Ok(());
        }
        let object = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": namespace, "labels": {"kubernetes.io/metadata.name": namespace}},
            "spec": {"finalizers": ["kubernetes"]},
            "status": {"phase": "Active"},
        });
        match self.0.writer.create(&NAMESPACES, object).await {
            Err(error) if error.reason() == "AlreadyExists" => Ok(()),
            result => result.map(|_| ()),
        }
    }
}

/// Whether the request is about an object in a namespace; access reviews are questions, not objects.
fn is_inside(request: &AdmissionRequest) -> bool {
    let is_review = request.resource.group == "authorization.k8s.io"
        && request.resource.resource == "localsubjectaccessreviews";
    !request.namespace.is_empty() && !is_review
}

#[cfg(test)]
mod tests {
    use super::super::tests::{context, context_of, create, request, run};
    use super::*;
    use crate::objects::Objects as _;
    use crate::testing::FakeObjects;

    #[tokio::test]
    async fn objects_need_a_live_namespace() {
        let context = context(&[
            ("namespaces", json!({"metadata": {"name": "live"}, "status": {"phase": "Active"}})),
            ("namespaces", json!({"metadata": {"name": "dying"}, "status": {"phase": "Terminating"}})),
        ]);
        for (namespace, refusal) in [
            ("live", None),
            ("gone", Some("namespaces \"gone\" not found")),
            (
                "dying",
                Some(
                    "configmaps \"c\" is forbidden: unable to create new content in namespace dying because it is being terminated",
                ),
            ),
        ] {
            let object = json!({"metadata": {"namespace": namespace, "name": "c"}});
            let result = create(&context, "NamespaceLifecycle", "configmaps", object).await;
            assert_eq!(result.err().as_deref(), refusal);
        }
    }

    #[tokio::test]
    async fn system_namespaces_stay() {
        let context = context(&[]);
        let old = |name: &str| json!({"metadata": {"name": name}});
        let mut delete =
            request(Operation::Delete, "namespaces", serde_json::Value::Null, old("kube-system"));
        assert_eq!(
            run(&context, "NamespaceLifecycle", &mut delete).await.unwrap_err(),
            "namespaces \"kube-system\" is forbidden: this namespace may not be deleted"
        );
        let mut delete = request(Operation::Delete, "namespaces", serde_json::Value::Null, old("mine"));
        assert_eq!(run(&context, "NamespaceLifecycle", &mut delete).await, Ok(()));
    }

    #[tokio::test]
    async fn missing_namespaces_are_made_or_refused_on_request() {
        let store = FakeObjects::with(&[]);
        let context = context_of(&store);
        let object = || json!({"metadata": {"namespace": "new", "name": "c"}});
        assert_eq!(
            create(&context, "NamespaceExists", "configmaps", object()).await.unwrap_err(),
            "namespaces \"new\" not found"
        );
        create(&context, "NamespaceAutoProvision", "configmaps", object()).await.unwrap();
        assert!(store.get(&NAMESPACES, "", "new").is_some());
    }
}
