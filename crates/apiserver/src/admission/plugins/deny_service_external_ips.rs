//! `DenyServiceExternalIPs`: nobody adds external addresses to a Service.

use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;

use super::{creates_or_updates, is};
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::authz::pod_references::list;
use crate::status::ApiError;

struct DenyServiceExternalIps;

pub(super) fn build(_context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(DenyServiceExternalIps))
}

#[async_trait]
impl AdmissionPlugin for DenyServiceExternalIps {
    fn name(&self) -> &'static str {
        "DenyServiceExternalIPs"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        creates_or_updates(operation) && is(("", "services"), resource, subresource)
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        const PATH: [&str; 2] = ["spec", "externalIPs"];
        let old = list(&request.old_object, &PATH);
        if list(&request.object, &PATH).iter().all(|address| old.contains(address)) {
            return Ok(());
        }
        Err(request.forbidden("Use of external IPs is denied by admission control"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::{context, request, run};
    use super::*;

    #[tokio::test]
    async fn addresses_may_go_but_not_come() {
        let service =
            |addresses: Value| json!({"metadata": {"name": "s"}, "spec": {"externalIPs": addresses}});
        for (old, new, allowed) in [
            (Value::Null, service(json!([])), true),
            (Value::Null, service(json!(["192.0.2.1"])), false),
            (service(json!(["192.0.2.1", "192.0.2.2"])), service(json!(["192.0.2.2"])), true),
            (service(json!(["192.0.2.1"])), service(json!(["192.0.2.2"])), false),
        ] {
            let operation = if old.is_null() { Operation::Create } else { Operation::Update };
            let mut request = request(operation, "services", new, old);
            assert_eq!(run(&context(&[]), "DenyServiceExternalIPs", &mut request).await.is_ok(), allowed);
        }
    }
}
