//! `DefaultTolerationSeconds`: pods stay five minutes on a node that is not ready or not reachable.

use std::sync::Arc;

use async_trait::async_trait;
use meta::names::GroupResource;
use serde_json::{Value, json};

use super::{creates_or_updates, is, list_mut};
use crate::admission::chain::{ChainError, Context};
use crate::admission::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::objects::ObjectExt as _;
use crate::status::ApiError;

const SECONDS: i64 = 300;
const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

struct DefaultTolerationSeconds;

pub(super) fn build(_context: &Context) -> Result<Arc<dyn AdmissionPlugin>, ChainError> {
    Ok(Arc::new(DefaultTolerationSeconds))
}

#[async_trait]
impl AdmissionPlugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, operation: Operation, resource: &GroupResource, subresource: &str) -> bool {
        creates_or_updates(operation) && is(("", "pods"), resource, subresource)
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let own = request.object.at(&["spec", "tolerations"]).and_then(Value::as_array);
        let own = own.map(Vec::as_slice).unwrap_or_default();
        let missing: Vec<&str> = TAINTS
            .into_iter()
            .filter(|taint| !own.iter().any(|toleration| covers(toleration, taint)))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let tolerations = list_mut(&mut request.object, &["spec", "tolerations"]);
        for key in missing {
            let effect = "NoExecute";
            tolerations.push(
                json!({"key": key, "operator": "Exists", "effect": effect, "tolerationSeconds": SECONDS}),
            );
        }
        Ok(())
    }
}

fn covers(toleration: &Value, taint: &str) -> bool {
    let (key, effect) = (toleration.str_at(&["key"]), toleration.str_at(&["effect"]));
    (key.is_empty() || key == taint) && (effect.is_empty() || effect == "NoExecute")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{context, create};
    use super::*;

    #[tokio::test]
    async fn missing_tolerations_are_added() {
        for (own, expected) in [
            (json!([]), vec![TAINTS[0], TAINTS[1]]),
            (json!([{"key": TAINTS[0], "effect": "NoExecute"}]), vec![TAINTS[0], TAINTS[1]]),
            (json!([{"operator": "Exists"}]), vec![""]),
            (json!([{"operator": "Exists", "effect": "NoSchedule"}]), vec!["", TAINTS[0], TAINTS[1]]),
        ] {
            let pod = json!({"spec": {"tolerations": own}});
            let pod = create(&context(&[]), "DefaultTolerationSeconds", "pods", pod).await.unwrap();
            let keys: Vec<&str> =
                pod["spec"]["tolerations"].as_array().unwrap().iter().map(|t| t.str_at(&["key"])).collect();
            assert_eq!(keys, expected);
        }
    }
}
