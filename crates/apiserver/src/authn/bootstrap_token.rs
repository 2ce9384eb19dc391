//! Bootstrap tokens: `<id>.<secret>`, kept as Secrets of type `bootstrap.kubernetes.io/token` in `kube-system`,
//! with which a new node asks for its certificate.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use meta::names::GroupResource;
use serde_json::Value;

use super::{Authenticated, AuthenticationError, Clock, TokenAuthenticator};
use crate::attributes::UserInfo;
use crate::objects::{ObjectExt as _, Objects};

const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";

/// Looks bootstrap tokens up among the live Secrets.
pub struct BootstrapTokens {
    objects: Arc<dyn Objects>,
    clock: Clock,
    secrets: GroupResource,
}

impl fmt::Debug for BootstrapTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootstrapTokens").finish_non_exhaustive()
    }
}

impl BootstrapTokens {
    pub fn new(objects: Arc<dyn Objects>, clock: Clock) -> Self {
        Self { objects, clock, secrets: GroupResource::new("", "secrets") }
    }

    fn lookup(&self, id: &str, secret: &str) -> Option<Authenticated> {
        let object = self.objects.get(&self.secrets, "kube-system", &format!("bootstrap-token-{id}"))?;
        let usable = !object.is_terminating()
            && object.str_at(&["type"]) == SECRET_TYPE
            && same(&data(&object, "token-secret"), secret)
            && data(&object, "token-id") == id
            && data(&object, "usage-bootstrap-authentication") == "true"
            && !self.is_expired(&object);
        if !usable {
            return None;
        }
        let mut groups = vec![GROUP.to_owned()];
        let extra = data(&object, "auth-extra-groups");
        for group in extra.split(',').map(str::trim).filter(|group| !group.is_empty()) {
            if !is_bootstrap_group(group) {
                return None;
            }
            groups.push(group.to_owned());
        }
        groups.sort();
        groups.dedup();
        let user = UserInfo { username: format!("system:bootstrap:{id}"), groups, ..UserInfo::default() };
        Some(Authenticated { user, audiences: Vec::new() })
    }

    fn is_expired(&self, secret: &Value) -> bool {
        let expiration = data(secret, "expiration");
        !expiration.is_empty()
            && expiration.parse::<Timestamp>().map_or(true, |expiration| expiration <= (self.clock)())
    }
}

#[async_trait]
impl TokenAuthenticator for BootstrapTokens {
    async fn authenticate_token(
        &self,
        token: &str,
        _audiences: &[String],
    ) -> Result<Option<Authenticated>, AuthenticationError> {
        let Some((id, secret)) = token.split_once('.') else { return Ok(None) };
        let lower = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if id.len() != 6 || secret.len() != 16 || !lower(id) || !lower(secret) {
            return Ok(None);
        }
        Ok(self.lookup(id, secret))
    }
}

fn data(secret: &Value, key: &str) -> String {
    let bytes = STANDARD.decode(secret.str_at(&["data", key])).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

/// Compares in a time that does not depend on where the texts differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differing, (x, y)| differing | (x ^ y)) == 0
}

fn is_bootstrap_group(group: &str) -> bool {
    group.strip_prefix("system:bootstrappers:").is_some_and(|rest| {
        rest.len() <= 256
            && rest.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b':' | b'-'))
            && rest.bytes().last().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::FakeObjects;

    async fn check(changes: &[(&str, &str)], token: &str) -> Option<UserInfo> {
        let mut data = json!({
            "token-id": STANDARD.encode("abcdef"),
            "token-secret": STANDARD.encode("0123456789abcdef"),
            "usage-bootstrap-authentication": STANDARD.encode("true"),
        });
        for (key, value) in changes {
            data[*key] = STANDARD.encode(value).into();
        }
        let objects = FakeObjects::with(&[(
            "secrets",
            json!({"metadata": {"namespace": "kube-system", "name": "bootstrap-token-abcdef"}, "type": SECRET_TYPE, "data": data}),
        )]);
        let clock: Clock = Arc::new(|| "2026-01-01T00:00:00Z".parse().unwrap());
        let tokens = BootstrapTokens::new(objects, clock);
        tokens.authenticate_token(token, &[]).await.unwrap().map(|found| found.user)
    }

    #[tokio::test]
    async fn good_tokens_are_bootstrappers_and_others_are_nobody() {
        let good = "abcdef.0123456789abcdef";
        let user = check(&[("auth-extra-groups", "system:bootstrappers:worker")], good).await.unwrap();
        assert_eq!(user.username, "system:bootstrap:abcdef");
        assert_eq!(user.groups, ["system:bootstrappers", "system:bootstrappers:worker"]);
        assert!(check(&[("expiration", "2027-01-01T00:00:00Z")], good).await.is_some());
        assert_eq!(check(&[], "abcdef.0123456789abcdee").await, None);
        assert_eq!(check(&[("expiration", "2025-01-01T00:00:00Z")], good).await, None);
        assert_eq!(check(&[("usage-bootstrap-authentication", "no")], good).await, None);
        assert_eq!(check(&[("auth-extra-groups", "system:masters")], good).await, None);
    }
}
