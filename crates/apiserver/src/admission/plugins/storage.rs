//! `DefaultStorageClass`, `StorageObjectInUseProtection` and `PersistentVolumeClaimResize`.

use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;
use meta::quantity::Quantity;
use serde_json::Value;

use super::{is, list_mut};
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

const STORAGE: &str = "storage.k8s.io";
const BETA_CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

struct DefaultStorageClass(Context);

struct InUseProtection;

struct Resize(Context);

pub(super) fn default_class(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(DefaultStorageClass(context.clone())))
}

pub(super) fn in_use_protection(_context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(InUseProtection))
}

pub(super) fn resize(context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(Resize(context.clone())))
}

#[async_trait]
impl AdmissionPlugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        operation == Operation::Create && is(("", "persistentvolumeclaims"), resource, subresource)
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        // An empty name is an answer too: no class.
        if request.object.at(&["spec", "storageClassName"]).is_some_and(Value::is_string)
            || request.object.annotation(BETA_CLASS_ANNOTATION).is_some()
        {
            return Ok(());
        }
        let classes = self.0.objects.list(&GroupResource::new(STORAGE, "storageclasses"), None);
        if let Some(class) = newest_default(&classes, "storageclass") {
            request.object["spec"]["storageClassName"] = class.name().into();
        }
        Ok(())
    }
}

/// The object marked as default by `<what>.kubernetes.io/is-default-class`; of several the newest, then the first
/// by name.
pub(super) fn newest_default<'a>(objects: &'a [Arc<Value>], what: &str) -> Option<&'a Value> {
    let keys = [
        format!("{what}.kubernetes.io/is-default-class"),
        format!("{what}.beta.kubernetes.io/is-default-class"),
    ];
    let is_default = |object: &Value| keys.iter().any(|key| object.annotation(key) == Some("true"));
    let mut defaults: Vec<&Value> =
        objects.iter().map(Arc::as_ref).filter(|object| is_default(object)).collect();
    defaults.sort_by(|a, b| {
        let newer = b.meta_str("creationTimestamp").cmp(a.meta_str("creationTimestamp"));
        newer.then_with(|| a.name().cmp(b.name()))
    });
    defaults.first().copied()
}

#[async_trait]
impl AdmissionPlugin for InUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        operation == Operation::Create && subresource.is_empty() && finalizer(resource).is_some()
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let Some(finalizer) = finalizer(&request.group_resource()) else { return Ok(()) };
        let finalizers = list_mut(&mut request.object, &["metadata", "finalizers"]);
        if !finalizers.iter().any(|known| known == finalizer) {
            finalizers.push(finalizer.into());
        }
        Ok(())
    }
}

fn finalizer(resource: &GroupResource) -> Option<&'static str> {
    match (&*resource.group, &*resource.resource) {
        ("", "persistentvolumeclaims") => Some("kubernetes.io/pvc-protection"),
        ("", "persistentvolumes") => Some("kubernetes.io/pv-protection"),
        (STORAGE, "volumeattributesclasses") => Some("kubernetes.io/vac-protection"),
        _ => None,
    }
}

#[async_trait]
impl AdmissionPlugin for Resize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        operation == Operation::Update && is(("", "persistentvolumeclaims"), resource, subresource)
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let old = request.old_object.clone();
        if size(&request.object) <= size(&old) {
            return Ok(());
        }
        if old.str_at(&["status", "phase"]) != "Bound" {
            return Err(request.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let own = request.object.annotation(BETA_CLASS_ANNOTATION);
        let name = own.unwrap_or_else(|| request.object.str_at(&["spec", "storageClassName"]));
        let class = self.0.objects.get(&GroupResource::new(STORAGE, "storageclasses"), "", name);
        let expands = class
            .is_some_and(|class| class.get("allowVolumeExpansion").and_then(Value::as_bool) == Some(true));
        if expands {
            return Ok(());
        }
        Err(request.forbidden(
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
        ))
    }
}

fn size(claim: &Value) -> Quantity {
    claim
        .str_at(&["spec", "resources", "requests", "storage"])
        .parse()
        .unwrap_or_else(|_| Quantity::default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{context, create, request, run};
    use super::*;

    fn classes() -> Context {
        let class = |name: &str, created: &str, default: &str, expands: bool| {
            (
                "storageclasses.storage.k8s.io",
                json!({
                    "metadata": {"name": name, "creationTimestamp": created,
                                 "annotations": {"storageclass.kubernetes.io/is-default-class": default}},
                    "allowVolumeExpansion": expands,
                }),
            )
        };
        context(&[
            class("old", "2020-01-01T00:00:00Z", "true", false),
            class("new", "2021-01-01T00:00:00Z", "true", true),
            class("newest", "2022-01-01T00:00:00Z", "false", true),
        ])
    }

    #[tokio::test]
    async fn claims_get_the_newest_default_class() {
        for (spec, expected) in [
            (json!({}), "new"),
            (json!({"storageClassName": ""}), ""),
            (json!({"storageClassName": "x"}), "x"),
        ] {
            let claim = json!({"metadata": {"name": "c"}, "spec": spec});
            let claim =
                create(&classes(), "DefaultStorageClass", "persistentvolumeclaims", claim).await.unwrap();
            assert_eq!(claim["spec"]["storageClassName"], expected);
        }
    }

    #[tokio::test]
    async fn claims_and_volumes_are_protected() {
        let claim = json!({"metadata": {"name": "c", "finalizers": ["x"]}});
        let claim = create(&context(&[]), "StorageObjectInUseProtection", "persistentvolumeclaims", claim)
            .await
            .unwrap();
        assert_eq!(claim["metadata"]["finalizers"], json!(["x", "kubernetes.io/pvc-protection"]));
    }

    #[tokio::test]
    async fn only_bound_claims_of_expandable_classes_grow() {
        let claim = |size: &str, class: &str, phase: &str| {
            json!({
                "metadata": {"name": "c"}, "status": {"phase": phase},
                "spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}},
            })
        };
        for (old, new, allowed) in [
            (claim("1Gi", "new", "Bound"), claim("2Gi", "new", "Bound"), true),
            (claim("1Gi", "old", "Bound"), claim("1024Mi", "old", "Bound"), true),
            (claim("1Gi", "old", "Bound"), claim("2Gi", "old", "Bound"), false),
            (claim("1Gi", "new", "Pending"), claim("2Gi", "new", "Pending"), false),
        ] {
            let mut request = request(Operation::Update, "persistentvolumeclaims", new, old);
            assert_eq!(run(&classes(), "PersistentVolumeClaimResize", &mut request).await.is_ok(), allowed);
        }
    }
}
