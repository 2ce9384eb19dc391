//! `AlwaysAdmit` and `AlwaysDeny`.

use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;

use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::status::ApiError;

struct AlwaysAdmit;

struct AlwaysDeny;

pub(super) fn admit(_context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(AlwaysAdmit))
}

pub(super) fn deny(_context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(AlwaysDeny))
}

impl AdmissionPlugin for AlwaysAdmit {
    fn name(&self) -> &'static str {
        "AlwaysAdmit"
    }

    fn handles(&self, _operation: Operation, _resource: &GroupResource, _subresource: &str) -> bool {
        false
    }
}

#[async_trait]
impl AdmissionPlugin for AlwaysDeny {
    fn name(&self) -> &'static str {
        "AlwaysDeny"
    }

    fn handles(&self, _operation: Operation, _resource: &GroupResource, _subresource: &str) -> bool {
        true
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        Err(request.forbidden("admission control is denying all modifications"))
    }
}
