//! Live objects as the server's own parts see them, and accessors on objects in their JSON form.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use meta::names::GroupResource;
use serde_json::{Map, Value};

use crate::status::ApiError;

/// Read access to live objects for authentication, authorization and admission. Answers come from memory.
pub trait Objects: Send + Sync {
    /// The object in its stored version, `resourceVersion` set.
    fn get(&self, resource: &GroupResource, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// All objects of a resource, in one namespace or (`None`) everywhere, in key order.
    fn list(&self, resource: &GroupResource, namespace: Option<&str>) -> Vec<Arc<Value>>;

    /// Objects whose field at `path` is `value`. A store with an index on the field answers from it.
    fn list_by_field(
        &self,
        resource: &GroupResource,
        namespace: Option<&str>,
        path: &[&str],
        value: &str,
    ) -> Vec<Arc<Value>> {
        let mut objects = self.list(resource, namespace);
        objects.retain(|object| object.str_at(path) == value);
        objects
    }

    /// A number that changes whenever any object of the resource does; what compiled caches are keyed by.
    fn version(&self, resource: &GroupResource) -> u64;
}

/// Writes by the server itself (bootstrap objects, allocated addresses): they skip authentication and
/// authorization, not validation.
#[async_trait]
pub trait Writer: Send + Sync {
    async fn create(&self, resource: &GroupResource, object: Value) -> Result<Value, ApiError>;
    /// `object.metadata.resourceVersion`, when set, must match.
    async fn update(&self, resource: &GroupResource, object: Value) -> Result<Value, ApiError>;
    /// Writes `object.status` only, where a resource has the subresource.
    async fn update_status(&self, resource: &GroupResource, object: Value) -> Result<Value, ApiError> {
        self.update(resource, object).await
    }
    async fn delete(&self, resource: &GroupResource, namespace: &str, name: &str) -> Result<(), ApiError>;
}

/// Accessors on an object in its JSON form. Missing or mistyped fields read as empty.
pub trait ObjectExt {
    fn metadata(&self) -> Option<&Map<String, Value>>;
    /// Makes `metadata` an object if it is missing.
    fn metadata_mut(&mut self) -> &mut Map<String, Value>;
    fn meta_str(&self, field: &str) -> &str;
    fn name(&self) -> &str {
        self.meta_str("name")
    }
    fn namespace(&self) -> &str {
        self.meta_str("namespace")
    }
    fn uid(&self) -> &str {
        self.meta_str("uid")
    }
    fn resource_version(&self) -> &str {
        self.meta_str("resourceVersion")
    }
    fn labels(&self) -> Option<&Map<String, Value>>;
    fn annotation(&self, key: &str) -> Option<&str>;
    /// A nested string by path; empty if absent.
    fn str_at(&self, path: &[&str]) -> &str;
    fn at(&self, path: &[&str]) -> Option<&Value>;
    fn is_terminating(&self) -> bool {
        !self.meta_str("deletionTimestamp").is_empty()
    }
}

impl ObjectExt for Value {
    fn metadata(&self) -> Option<&Map<String, Value>> {
        self.get("metadata")?.as_object()
    }

    fn metadata_mut(&mut self) -> &mut Map<String, Value> {
        if !self.is_object() {
            *self = Value::Object(Map::new());
        }
        let metadata = &mut self["metadata"];
        if !metadata.is_object() {
            *metadata = Value::Object(Map::new());
        }
        metadata.as_object_mut().expect("made an object just above")
    }

    fn meta_str(&self, field: &str) -> &str {
        self.metadata().and_then(|metadata| metadata.get(field)).and_then(Value::as_str).unwrap_or_default()
    }

    fn labels(&self) -> Option<&Map<String, Value>> {
        self.metadata()?.get("labels")?.as_object()
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata()?.get("annotations")?.get(key)?.as_str()
    }

    fn str_at(&self, path: &[&str]) -> &str {
        self.at(path).and_then(Value::as_str).unwrap_or_default()
    }

    fn at(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(self, |value, &field| value.get(field))
    }
}

/// The key of an object in the store: `/registry/<group or core>/<resource>/[<namespace>/]<name>`.
pub fn storage_key(resource: &GroupResource, namespace: &str, name: &str) -> Bytes {
    let mut key = storage_prefix(resource);
    if !namespace.is_empty() {
        key.push_str(namespace);
        key.push('/');
    }
    key.push_str(name);
    key.into()
}

/// The prefix of all keys of a resource, trailing slash included.
pub fn storage_prefix(resource: &GroupResource) -> String {
    let group = if resource.group.is_empty() { "core" } else { &resource.group };
    format!("/registry/{group}/{}/", resource.resource)
}
