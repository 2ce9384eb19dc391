//! `LimitPodHardAntiAffinityTopology`: a pod keeps others off its node, not off a whole zone.

use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;

use super::{creates_or_updates, is};
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::authz::pod_references::list;
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

const HOSTNAME: &str = "kubernetes.io/hostname";

struct LimitPodHardAntiAffinityTopology;

pub(super) fn build(_context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(LimitPodHardAntiAffinityTopology))
}

#[async_trait]
impl AdmissionPlugin for LimitPodHardAntiAffinityTopology {
    fn name(&self) -> &'static str {
        "LimitPodHardAntiAffinityTopology"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        creates_or_updates(operation) && is(("", "pods"), resource, subresource)
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        const PATH: [&str; 4] =
            ["spec", "affinity", "podAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution"];
        for term in list(&request.object, &PATH) {
            let key = term.str_at(&["topologyKey"]);
            if key != HOSTNAME {
                return Err(request.forbidden(&format!(
                    "affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {key} but only key {HOSTNAME} is allowed"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{context, create};
    use super::*;

    #[tokio::test]
    async fn only_the_hostname_is_allowed() {
        for (key, allowed) in [(HOSTNAME, true), ("topology.kubernetes.io/zone", false)] {
            let terms = json!({"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": key}]});
            let pod = json!({"spec": {"affinity": {"podAntiAffinity": terms}}});
            let result = create(&context(&[]), "LimitPodHardAntiAffinityTopology", "pods", pod).await;
            assert_eq!(result.is_ok(), allowed);
        }
    }
}
