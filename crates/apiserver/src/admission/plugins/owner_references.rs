//! `OwnerReferencesPermissionEnforcement`: an object's owners decide when it goes, so only who may delete it sets
//! them, and only who may set an owner's finalizers blocks that owner's deletion.

use std::sync::Arc;

use async_trait::async_trait;
use meta::names::{GroupResource, GroupVersion};
use serde_json::Value;

use super::creates_or_updates;
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::attributes::Attributes;
use crate::authz::pod_references::list;
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

struct OwnerReferences(Context);

pub(super) fn build(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(OwnerReferences(context.clone())))
}

#[async_trait]
impl AdmissionPlugin for OwnerReferences {
    fn name(&self) -> &'static str {
        "OwnerReferencesPermissionEnforcement"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        // Status of pods is written by nodes, and keeps the owners.
        creates_or_updates(operation)
            && !(resource.group.is_empty() && resource.resource == "pods" && subresource == "status")
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let new = list(&request.object, &["metadata", "ownerReferences"]).to_vec();
        let old = list(&request.old_object, &["metadata", "ownerReferences"]).to_vec();
        if new == old {
            return Ok(());
        }
        if request.operation == Operation::Update {
            let delete = Attributes {
                verb: "delete".to_owned(),
                api_group: request.resource.group.to_string(),
                api_version: request.resource.version.to_string(),
                resource: request.resource.resource.to_string(),
                namespace: request.namespace.clone(),
                name: request.name.clone(),
                ..ask(request)
            };
            self.demand(request, delete, "cannot set an ownerRef on a resource you can't delete").await?;
        }
        let blocks = |reference: &Value| reference.get("blockOwnerDeletion") == Some(&Value::Bool(true));
        let newly = new.iter().filter(|reference| {
            let before = old.iter().find(|known| known.str_at(&["uid"]) == reference.str_at(&["uid"]));
            blocks(reference) && !before.is_some_and(&blocks)
        });
        for reference in newly {
            let why = "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on";
            let update = self.finalizers_of(request, reference).ok_or_else(|| {
                request.forbidden("cannot set blockOwnerDeletion in this case because cannot find RESTMapping for the owner")
            })?;
            self.demand(request, update, why).await?;
        }
        Ok(())
    }
}

impl OwnerReferences {
    async fn demand(
        &self,
        request: &AdmissionRequest,
        attributes: Attributes,
        why: &str,
    ) -> Result<(), ApiError> {
        let decision = self.0.authorizer.authorize(&attributes).await;
        if decision.is_allowed() {
            return Ok(());
        }
        Err(request.forbidden(&format!("{why}: {}, <nil>", decision.reason())))
    }

    /// The question whether the user may set the finalizers of the owner.
    fn finalizers_of(&self, request: &AdmissionRequest, reference: &Value) -> Option<Attributes> {
        let version = GroupVersion::parse(reference.str_at(&["apiVersion"]))?;
        let kind = reference.str_at(&["kind"]);
        let (resource, namespaced) = self.resource_of(&version.group, kind)?;
        Some(Attributes {
            verb: "update".to_owned(),
            api_group: version.group.to_string(),
            api_version: version.version.to_string(),
            resource,
            subresource: "finalizers".to_owned(),
            namespace: if namespaced { request.namespace.clone() } else { String::new() },
            name: reference.str_at(&["name"]).to_owned(),
            ..ask(request)
        })
    }

    fn resource_of(&self, group: &str, kind: &str) -> Option<(String, bool)> {
        if let Some(spec) = kinds::find_kind(group, kind) {
            return Some((spec.resource.to_string(), spec.namespaced));
        }
        let definitions = GroupResource::new("apiextensions.k8s.io", "customresourcedefinitions");
        let definitions = self.0.objects.list(&definitions, None);
        let definition = definitions.iter().find(|definition| {
            definition.str_at(&["spec", "group"]) == group
                && definition.str_at(&["spec", "names", "kind"]) == kind
        })?;
        let plural = definition.str_at(&["spec", "names", "plural"]).to_owned();
        Some((plural, definition.str_at(&["spec", "scope"]) == "Namespaced"))
    }
}

fn ask(request: &AdmissionRequest) -> Attributes {
    Attributes { user: request.user.clone(), resource_request: true, ..Attributes::default() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{context, request, run};
    use super::*;
    use crate::authz::union::AlwaysDeny;

    #[tokio::test]
    async fn owners_need_permission() {
        let with =
            |owners: Value| json!({"metadata": {"namespace": "a", "name": "c", "ownerReferences": owners}});
        let owner = |blocks: bool| json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "uid": "u", "blockOwnerDeletion": blocks}]);
        let denied = Context { authorizer: Arc::new(AlwaysDeny), ..context(&[]) };
        let plugin = "OwnerReferencesPermissionEnforcement";
        for (new, old, refused) in [
            (with(owner(false)), Value::Null, false),
            (with(owner(true)), Value::Null, true),
            (with(owner(false)), with(json!([])), true),
            (with(owner(true)), with(owner(true)), false),
        ] {
            let operation = if old.is_null() { Operation::Create } else { Operation::Update };
            let mut ask = request(operation, "configmaps", new, old);
            assert_eq!(run(&denied, plugin, &mut ask).await.is_err(), refused);
            assert_eq!(run(&context(&[]), plugin, &mut ask).await, Ok(()));
        }
    }
}
