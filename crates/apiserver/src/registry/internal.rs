//! Writes by the server itself.

use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;
use serde_json::Value;

use super::Registry;
use super::delete::Preconditions;
use super::write::{Outcome, Write};
use crate::attributes::UserInfo;
use crate::front::options::Options;
use crate::objects::{ObjectExt, Writer};
use crate::status::ApiError;

const USER: &str = "system:apiserver";
const MANAGER: &str = "kube-apiserver";

impl Registry {
    fn internal(&self, resource: &GroupResource, namespace: &str, name: &str) -> Result<Write, ApiError> {
        let catalog = self.catalog();
        let found = catalog.get(resource).ok_or_else(ApiError::path_not_found)?;
        Ok(Write {
            target: found.in_storage_version(),
            subresource: String::new(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            user: Arc::new(UserInfo::new(USER, &["system:masters"])),
            options: Options::default(),
            manager: MANAGER.to_owned(),
            applied: false,
        })
    }

    fn decoded(write: &Write, object: Value) -> Result<Value, ApiError> {
        let schema = write.target.storage_schema();
        let decoded = schema::decode::value(object, schema, schema::decode::Strictness::Ignore);
        decoded.map(|decoded| decoded.value).map_err(ApiError::internal)
    }
}

#[async_trait]
impl Writer for Registry {
    async fn create(&self, resource: &GroupResource, object: Value) -> Result<Value, ApiError> {
        let write = self.internal(resource, object.namespace(), "")?;
        let object = Self::decoded(&write, object)?;
        Registry::create(self, &write, object).await.map(|written| value_of(written.object))
    }

    async fn update(&self, resource: &GroupResource, object: Value) -> Result<Value, ApiError> {
        let write = self.internal(resource, object.namespace(), object.name())?;
        let object = Self::decoded(&write, object)?;
        Registry::update(self, &write, object).await.map(|written| value_of(written.object))
    }

    async fn update_status(&self, resource: &GroupResource, object: Value) -> Result<Value, ApiError> {
        let write = self.internal(resource, object.namespace(), object.name())?;
        let object = Self::decoded(&write, object)?;
        let write = Write { subresource: "status".to_owned(), ..write };
        Registry::update(self, &write, object).await.map(|written| value_of(written.object))
    }

    async fn delete(&self, resource: &GroupResource, namespace: &str, name: &str) -> Result<(), ApiError> {
        let write = self.internal(resource, namespace, name)?;
        Registry::delete(self, &write, &Preconditions::default()).await.map(|_| ())
    }
}

fn value_of(outcome: Outcome) -> Value {
    match outcome {
        Outcome::Stored(object) => object.to_value(),
        Outcome::Value(object) => object,
    }
}
