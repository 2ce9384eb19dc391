//! The registry as its own parts see it: without keeping it alive.

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use meta::names::GroupResource;
use serde_json::Value;

use super::Registry;
use crate::objects::{Objects, Writer};
use crate::status::ApiError;

/// Admission plugins live in the registry and work on it. Once it is gone there is nothing to read.
#[derive(Debug, Clone)]
pub struct Handle(Weak<Registry>);

impl Handle {
    pub fn new(registry: &Arc<Registry>) -> Self {
        Self(Arc::downgrade(registry))
    }

    fn registry(&self) -> Result<Arc<Registry>, ApiError> {
        self.0.upgrade().ok_or_else(|| ApiError::service_unavailable("the server is shutting down"))
    }
}

impl Objects for Handle {
    fn get(&self, resource: &GroupResource, namespace: &str, name: &str) -> Option<Arc<Value>> {
        Objects::get(&*self.0.upgrade()?, resource, namespace, name)
    }

    fn list(&self, resource: &GroupResource, namespace: Option<&str>) -> Vec<Arc<Value>> {
        self.0.upgrade().map(|registry| Objects::list(&*registry, resource, namespace)).unwrap_or_default()
    }

    fn list_by_field(
        &self,
        resource: &GroupResource,
        namespace: Option<&str>,
        path: &[&str],
        value: &str,
    ) -> Vec<Arc<Value>> {
        let registry = self.0.upgrade();
        registry.map(|registry| registry.list_by_field(resource, namespace, path, value)).unwrap_or_default()
    }

    fn version(&self, resource: &GroupResource) -> u64 {
        self.0.upgrade().map_or(0, |registry| registry.version(resource))
    }
}

#[async_trait]
impl Writer for Handle {
    async fn create(&self, resource: &GroupResource, object: Value) -> Result<Value, ApiError> {
        Writer::create(&*self.registry()?, resource, object).await
    }

    async fn update(&self, resource: &GroupResource, object: Value) -> Result<Value, ApiError> {
        Writer::update(&*self.registry()?, resource, object).await
    }

    async fn update_status(&self, resource: &GroupResource, object: Value) -> Result<Value, ApiError> {
        self.registry()?.update_status(resource, object).await
    }

    async fn delete(&self, resource: &GroupResource, namespace: &str, name: &str) -> Result<(), ApiError> {
        Writer::delete(&*self.registry()?, resource, namespace, name).await
    }
}
