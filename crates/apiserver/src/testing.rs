//! In-memory stand-ins for the server's own stores, for unit tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use meta::names::GroupResource;
use serde_json::Value;

use crate::objects::{ObjectExt as _, Objects, Writer};
use crate::status::ApiError;

type Key = (GroupResource, String, String);

/// A store of a few objects: every write makes a new version, a stale update is a conflict.
#[derive(Default)]
pub(crate) struct FakeObjects {
    state: Mutex<(u64, BTreeMap<Key, Arc<Value>>)>,
}

impl FakeObjects {
    /// Resources are written `pods` or `deployments.apps`.
    pub(crate) fn with(objects: &[(&str, Value)]) -> Arc<Self> {
        let store = Self::default();
        for (resource, object) in objects {
            store.put(resource, object.clone());
        }
        Arc::new(store)
    }

    pub(crate) fn put(&self, resource: &str, object: Value) {
        self.store(&parse(resource), object);
    }

    pub(crate) fn remove(&self, resource: &str, namespace: &str, name: &str) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        state.1.remove(&(parse(resource), namespace.to_owned(), name.to_owned()));
    }

    pub(crate) fn writes(&self) -> u64 {
        self.state.lock().unwrap().0
    }

    fn store(&self, resource: &GroupResource, mut object: Value) -> Value {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        let revision = state.0;
        object.metadata_mut().insert("resourceVersion".to_owned(), revision.to_string().into());
        let key = (resource.clone(), object.namespace().to_owned(), object.name().to_owned());
        state.1.insert(key, Arc::new(object.clone()));
        object
    }
}

impl Objects for FakeObjects {
    fn get(&self, resource: &GroupResource, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = (resource.clone(), namespace.to_owned(), name.to_owned());
        self.state.lock().unwrap().1.get(&key).cloned()
    }

    fn list(&self, resource: &GroupResource, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let state = self.state.lock().unwrap();
        state
            .1
            .iter()
            .filter(|((of, within, _), _)| of == resource && namespace.is_none_or(|n| n == within))
            .map(|(_, object)| object.clone())
            .collect()
    }

    fn version(&self, _resource: &GroupResource) -> u64 {
        self.state.lock().unwrap().0
    }
}

#[async_trait]
impl Writer for FakeObjects {
    async fn create(&self, resource: &GroupResource, object: Value) -> Result<Value, ApiError> {
        if self.get(resource, object.namespace(), object.name()).is_some() {
            return Err(ApiError::already_exists(resource, object.name()));
        }
        Ok(self.store(resource, object))
    }

    async fn update(&self, resource: &GroupResource, object: Value) -> Result<Value, ApiError> {
        let Some(old) = self.get(resource, object.namespace(), object.name()) else {
            return Err(ApiError::not_found(resource, object.name()));
        };
        if !object.resource_version().is_empty() && object.resource_version() != old.resource_version() {
            return Err(ApiError::stale(resource, object.name()));
        }
        Ok(self.store(resource, object))
    }

    async fn delete(&self, resource: &GroupResource, namespace: &str, name: &str) -> Result<(), ApiError> {
        if self.get(resource, namespace, name).is_none() {
            return Err(ApiError::not_found(resource, name));
        }
        self.remove(&resource.to_string(), namespace, name);
        Ok(())
    }
}

fn parse(resource: &str) -> GroupResource {
    match resource.split_once('.') {
        Some((resource, group)) => GroupResource::new(group.to_owned(), resource.to_owned()),
        None => GroupResource::new("", resource.to_owned()),
    }
}
