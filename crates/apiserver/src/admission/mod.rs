//! Admission: plugins that change or refuse a write after it is authorized and before it is stored.
//!
//! Plugins run in upstream's order: all `admit` calls first, then (after validation) all `validate` calls.

pub mod chain;
pub mod plugins;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use meta::names::{GroupResource, GroupVersionKind, GroupVersionResource};
use serde_json::Value;

use crate::attributes::UserInfo;
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

/// What a request does to an object, in admission's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// A write on its way through admission.
#[derive(Debug)]
pub struct AdmissionRequest {
    pub operation: Operation,
    /// Kind and resource of the request; `object` is in this version.
    pub kind: GroupVersionKind,
    pub resource: GroupVersionResource,
    /// Empty for the resource itself.
    pub subresource: String,
    pub namespace: String,
    /// Empty when the server will choose it from `generateName`.
    pub name: String,
    pub user: Arc<UserInfo>,
    pub dry_run: bool,
    /// `CreateOptions`, `UpdateOptions`, `PatchOptions` or `DeleteOptions` of the request.
    pub options: Value,
    /// The new object; `Null` on delete. Plugins edit it in `admit` only.
    pub object: Value,
    /// The stored object on update and delete; `Null` on create.
    pub old_object: Arc<Value>,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
    pub audit_annotations: BTreeMap<String, String>,
}

/// One admission plugin.
#[async_trait]
pub trait AdmissionPlugin: Send + Sync {
    /// Upstream's name, as in `--enable-admission-plugins`.
    fn name(&self) -> &'static str;

    /// Cheap first test; most plugins care about one resource.
    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool;

    /// May change `request.object`.
    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        std::convert::identity(request);
        Ok(())
    }

    /// May only refuse.
    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        std::convert::identity(request);
        Ok(())
    }
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

impl AdmissionRequest {
    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(self.resource.group.clone(), self.resource.resource.clone())
    }

    /// The refusal of a plugin: `pods "x" is forbidden: why`. A name that is not chosen yet is shown by its
    /// beginning.
    pub fn forbidden(&self, why: &str) -> ApiError {
        ApiError::forbidden(&self.group_resource(), self.display_name(), why)
    }

    pub fn display_name(&self) -> &str {
        let of_object = [self.object.meta_str("name"), self.object.meta_str("generateName")];
        let names = [self.name.as_str()].into_iter().chain(of_object);
        names.into_iter().find(|name| !name.is_empty()).unwrap_or("Unknown")
    }
}
