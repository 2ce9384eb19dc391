//! Deletes bootstrap tokens whose time is up.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Preconditions};
use meta::names::NamespacedName;
use reconcile::{Action, Informer, ReconcileError, Reconciler, SharedClock};

use crate::context::{Context, api};
use crate::enqueue;

struct TokenCleaner {
    client: kube::Client,
    secrets: Informer<Secret>,
    clock: SharedClock,
}

pub(super) async fn run(context: Context) {
    let queue = context.queue("token_cleaner");
    let controller = Arc::new(TokenCleaner {
        client: context.client.clone(),
        secrets: context.informers.selected("type=bootstrap.kubernetes.io/token"),
        clock: context.clock.clone(),
    });
    let _secrets = enqueue::itself(&controller.secrets, &queue);
    if context.synced(&[&controller.secrets]).await {
        context.run("token_cleaner", controller, queue, 1).await;
    }
}

/// When the token ends; `None` never. A time that cannot be read has passed, so that no token outlives a typing error.
fn expiry(secret: &Secret) -> Option<Timestamp> {
    let text = secret.data.as_ref()?.get("expiration")?;
    let text = std::str::from_utf8(&text.0).unwrap_or_default();
    Some(text.parse().unwrap_or(Timestamp::UNIX_EPOCH))
}

#[async_trait]
impl Reconciler for TokenCleaner {
    type Key = NamespacedName;

    async fn reconcile(&self, key: &NamespacedName) -> Result<Action, ReconcileError> {
        let Some(secret) = self.secrets.get(key).filter(|_| key.namespace == "kube-system") else {
            return Ok(Action::Done);
        };
        let Some(expiry) = expiry(&secret) else { return Ok(Action::Done) };
        let left = Duration::try_from(expiry.duration_since(self.clock.now())).unwrap_or_default();
        if !left.is_zero() {
            return Ok(Action::RequeueAfter(left));
        }
        let preconditions = Preconditions {
            uid: secret.metadata.uid.clone(),
            resource_version: secret.metadata.resource_version.clone(),
        };
        let secrets = api::<Secret>(&self.client, &key.namespace);
        match secrets.delete(&key.name, &DeleteParams::default().preconditions(preconditions)).await {
            Ok(_) => Ok(Action::Done),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                Ok(Action::Done)
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_end_when_they_say_and_unreadable_ones_at_once() {
        let secret = |base64: &str| -> Secret {
            serde_json::from_value(json!({"data": {"expiration": base64}})).unwrap()
        };
        let end = expiry(&secret("MjAyNi0wMS0wMVQwMDowMDowMFo=")).unwrap();
        assert_eq!(end.to_string(), "2026-01-01T00:00:00Z");
        assert_eq!(expiry(&secret("c29vbg==")), Some(Timestamp::UNIX_EPOCH));
        assert_eq!(expiry(&Secret::default()), None);
    }
}
