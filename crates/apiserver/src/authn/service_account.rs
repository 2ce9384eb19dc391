//! Service account tokens: signature, validity, audience, and that everything a token is bound to still lives.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use meta::names::GroupResource;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Authenticated, AuthenticationError, CREDENTIAL_ID, Clock, SERVICE_ACCOUNT_USER_PREFIX,
    TokenAuthenticator, service_account_groups,
};
use crate::attributes::UserInfo;
use crate::objects::{ObjectExt as _, Objects};
use crate::tokens::{BoundRef, Claims, PrivateClaims, TokenConfig};

/// The issuer of tokens kept in Secrets, as clusters before 1.24 made them.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// How long a token outlives the deletion of what it is bound to, so that a pod can still say goodbye.
const DELETION_GRACE: SignedDuration = SignedDuration::from_secs(60);

/// Verifies bound tokens of this cluster's issuers, and legacy ones.
pub struct ServiceAccountTokens {
    config: Arc<TokenConfig>,
    objects: Arc<dyn Objects>,
    clock: Clock,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

#[derive(Deserialize)]
struct LegacyClaims {
    #[serde(default)]
    sub: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/service-account.name")]
    account: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: String,
    #[serde(default, rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
}

impl fmt::Debug for ServiceAccountTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAccountTokens").field("config", &self.config).finish_non_exhaustive()
    }
}

impl ServiceAccountTokens {
    pub fn new(config: Arc<TokenConfig>, objects: Arc<dyn Objects>, clock: Clock) -> Self {
        Self { config, objects, clock }
    }

    fn authenticate(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<Authenticated>, AuthenticationError> {
        let Some((signed, signature)) = token.rsplit_once('.') else { return Ok(None) };
        let Some((header, payload)) = signed.split_once('.') else { return Ok(None) };
        let Some(payload) = decode(payload) else { return Ok(None) };
        // A token of somebody else's making is for another authenticator.
        let Ok(claims) = serde_json::from_slice::<Claims>(&payload) else { return Ok(None) };
        let legacy = claims.iss == LEGACY_ISSUER;
        if !legacy && !self.config.issuers.contains(&claims.iss) {
            return Ok(None);
        }
        let header: Header = decode(header)
            .and_then(|header| serde_json::from_slice(&header).ok())
            .ok_or_else(|| refused("malformed token header"))?;
        let keys = &self.config.public_keys;
        let named = keys.iter().any(|key| key.id() == header.kid);
        let verified = keys
            .iter()
            .filter(|key| !named || key.id() == header.kid)
            .any(|key| key.verify(signed, signature, &header.alg));
        if !verified {
            return Err(refused("invalid token signature"));
        }
        if legacy {
            let claims = serde_json::from_slice(&payload).map_err(|_| refused("malformed token claims"))?;
            return self.check_legacy(token, &claims, audiences).map(Some);
        }
        self.check_bound(claims, audiences).map(Some)
    }

    fn check_bound(
        &self,
        claims: Claims,
        audiences: &[String],
    ) -> Result<Authenticated, AuthenticationError> {
        let wanted = if audiences.is_empty() { &self.config.api_audiences } else { audiences };
        let valid_for: Vec<String> =
            claims.aud.iter().filter(|audience| wanted.contains(audience)).cloned().collect();
        if valid_for.is_empty() {
            return Err(refused(format!(
                "token audiences [{}] is invalid for the target audiences [{}]",
                quoted(&claims.aud),
                quoted(wanted)
            )));
        }
        let now = (self.clock)();
        if claims.nbf.is_some_and(|from| now.as_second() < from) {
            return Err(refused("service account token is not valid yet"));
        }
        if claims.exp.is_none_or(|until| now.as_second() > until) {
            return Err(refused("service account token has expired"));
        }
        let Some(private) = claims.private else {
            return Err(refused("token has no kubernetes.io claim"));
        };
        self.check_live(&private, now)?;
        Ok(Authenticated { user: user_of(&private, &claims.jti), audiences: valid_for })
    }

    /// Every object the token names must be the one it was issued for.
    fn check_live(&self, claims: &PrivateClaims, now: Timestamp) -> Result<(), AuthenticationError> {
        let namespace = claims.namespace.as_str();
        self.live("serviceaccounts", "service account", namespace, &claims.serviceaccount, now)?;
        if let Some(secret) = &claims.secret {
            self.live("secrets", "secret", namespace, secret, now)?;
        }
        if let Some(pod) = &claims.pod {
            self.live("pods", "pod", namespace, pod, now)?;
        } else if let Some(node) = &claims.node {
            // With a pod, the node is information only: the pod is what the token is bound to.
            self.live("nodes", "node", "", node, now)?;
        }
        Ok(())
    }

    fn live(
        &self,
        resource: &'static str,
        what: &str,
        namespace: &str,
        bound: &BoundRef,
        now: Timestamp,
    ) -> Result<(), AuthenticationError> {
        let Some(object) = self.objects.get(&GroupResource::new("", resource), namespace, &bound.name) else {
            return Err(refused(format!("{what} {:?} not found", bound.name)));
        };
        if deleted_before(&object, now - DELETION_GRACE) {
            return Err(refused(format!("{what} has been deleted")));
        }
        if object.uid() != bound.uid {
            return Err(refused(format!(
                "{what} UID ({}) does not match claim ({})",
                object.uid(),
                bound.uid
            )));
        }
        Ok(())
    }

    fn check_legacy(
        &self,
        token: &str,
        claims: &LegacyClaims,
        audiences: &[String],
    ) -> Result<Authenticated, AuthenticationError> {
        let valid_for = &self.config.api_audiences;
        if !audiences.is_empty() && !audiences.iter().any(|audience| valid_for.contains(audience)) {
            return Err(refused("legacy token is not valid for the target audiences"));
        }
        let subject = format!("{SERVICE_ACCOUNT_USER_PREFIX}{}:{}", claims.namespace, claims.account);
        if claims.sub != subject || claims.uid.is_empty() || claims.secret.is_empty() {
            return Err(refused("token claims do not agree"));
        }
        let now = (self.clock)();
        let account = BoundRef { name: claims.account.clone(), uid: claims.uid.clone() };
        self.live("serviceaccounts", "service account", &claims.namespace, &account, now)?;
        let secrets = GroupResource::new("", "secrets");
        let secret = self
            .objects
            .get(&secrets, &claims.namespace, &claims.secret)
            .filter(|secret| !secret.is_terminating())
            .ok_or_else(|| refused("token has been invalidated"))?;
        let stored = STANDARD.decode(secret.str_at(&["data", "token"])).unwrap_or_default();
        if stored != token.as_bytes() {
            return Err(refused("token does not match server's copy"));
        }
        let user = UserInfo {
            username: subject,
            uid: claims.uid.clone(),
            groups: service_account_groups(&claims.namespace),
            ..UserInfo::default()
        };
        Ok(Authenticated { user, audiences: valid_for.clone() })
    }
}

#[async_trait]
impl TokenAuthenticator for ServiceAccountTokens {
    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<Authenticated>, AuthenticationError> {
        self.authenticate(token, audiences)
    }
}

fn user_of(claims: &PrivateClaims, jti: &str) -> UserInfo {
    const PREFIX: &str = "authentication.kubernetes.io";
    let mut user = UserInfo {
        username: format!("{SERVICE_ACCOUNT_USER_PREFIX}{}:{}", claims.namespace, claims.serviceaccount.name),
        uid: claims.serviceaccount.uid.clone(),
        groups: service_account_groups(&claims.namespace),
        ..UserInfo::default()
    };
    if !jti.is_empty() {
        user.extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("JTI={jti}")]);
    }
    for (what, bound) in [("pod", &claims.pod), ("node", &claims.node)] {
        let Some(bound) = bound else { continue };
        user.extra.insert(format!("{PREFIX}/{what}-name"), vec![bound.name.clone()]);
        if !bound.uid.is_empty() {
            user.extra.insert(format!("{PREFIX}/{what}-uid"), vec![bound.uid.clone()]);
        }
    }
    user
}

fn deleted_before(object: &Value, time: Timestamp) -> bool {
    object.meta_str("deletionTimestamp").parse::<Timestamp>().is_ok_and(|deleted| deleted < time)
}

fn decode(part: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part).ok()
}

fn quoted(list: &[String]) -> String {
    list.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(" ")
}

fn refused(why: impl Into<String>) -> AuthenticationError {
    AuthenticationError(why.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::FakeObjects;
    use crate::tokens::keys::{PublicKey, SigningKey};
    use crate::tokens::{self, issue};

    const NOW: i64 = 1_800_000_000;

    struct Setup {
        objects: Arc<FakeObjects>,
        config: Arc<TokenConfig>,
    }

    impl Setup {
        fn new() -> Self {
            let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
            let config = TokenConfig {
                issuers: vec!["https://kubernetes.default.svc".to_owned()],
                api_audiences: vec!["https://kubernetes.default.svc".to_owned()],
                jwks_uri: "https://127.0.0.1:6443/openid/v1/jwks".to_owned(),
                signing_key: Some(Arc::new(SigningKey::from_pem(pem.as_bytes()).unwrap())),
                public_keys: PublicKey::all_from_pem(pem.as_bytes())
                    .unwrap()
                    .into_iter()
                    .map(Arc::new)
                    .collect(),
                max_expiration: None,
                extend_expiration: true,
            };
            let objects = FakeObjects::with(&[
                ("serviceaccounts", json!({"metadata": {"namespace": "a", "name": "robot", "uid": "u1"}})),
                (
                    "pods",
                    json!({"metadata": {"namespace": "a", "name": "p", "uid": "p1"},
                           "spec": {"serviceAccountName": "robot", "nodeName": "n"}}),
                ),
                ("nodes", json!({"metadata": {"name": "n", "uid": "n1"}})),
            ]);
            Self { objects, config: Arc::new(config) }
        }

        fn issue(&self, spec: Value) -> Result<Value, crate::status::ApiError> {
            let now = Timestamp::from_second(NOW).unwrap();
            issue(&self.config, self.objects.as_ref(), "a", "robot", json!({"spec": spec}), now)
        }

        async fn authenticate(
            &self,
            token: &str,
            audiences: &[&str],
            at: i64,
        ) -> Result<Option<Authenticated>, String> {
            let clock: Clock = Arc::new(move || Timestamp::from_second(at).unwrap());
            let tokens = ServiceAccountTokens::new(self.config.clone(), self.objects.clone(), clock);
            let audiences: Vec<String> = audiences.iter().map(|&a| a.to_owned()).collect();
            tokens.authenticate_token(token, &audiences).await.map_err(|error| error.0)
        }
    }

    fn token(issued: &Value) -> String {
        issued.str_at(&["status", "token"]).to_owned()
    }

    #[tokio::test]
    async fn a_bound_token_names_its_account_pod_and_node() {
        let setup = Setup::new();
        let bound = json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p"}});
        let issued = setup.issue(bound).unwrap();
        assert_eq!(issued.str_at(&["status", "expirationTimestamp"]), "2027-01-15T09:00:00Z");
        let found = setup.authenticate(&token(&issued), &[], NOW).await.unwrap().unwrap();
        assert_eq!(found.user.username, "system:serviceaccount:a:robot");
        assert_eq!(found.user.uid, "u1");
        assert_eq!(found.user.groups, ["system:serviceaccounts", "system:serviceaccounts:a"]);
        assert_eq!(found.user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
        assert_eq!(found.user.extra["authentication.kubernetes.io/node-uid"], ["n1"]);
        assert!(found.user.extra[CREDENTIAL_ID][0].starts_with("JTI="));
    }

    #[tokio::test]
    async fn tokens_die_with_what_they_are_bound_to() {
        let setup = Setup::new();
        let bound = json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p1"}});
        let issued = token(&setup.issue(bound).unwrap());
        setup.objects.put("pods", json!({"metadata": {"namespace": "a", "name": "p", "uid": "p2"}}));
        let error = setup.authenticate(&issued, &[], NOW).await.unwrap_err();
        assert_eq!(error, "pod UID (p2) does not match claim (p1)");
        setup.objects.remove("pods", "a", "p");
        assert!(setup.authenticate(&issued, &[], NOW).await.is_err());
        let plain = token(&setup.issue(json!({})).unwrap());
        assert!(setup.authenticate(&plain, &[], NOW).await.is_ok());
        setup.objects.remove("serviceaccounts", "a", "robot");
        assert!(setup.authenticate(&plain, &[], NOW).await.is_err());
    }

    #[tokio::test]
    async fn time_audience_and_signature_are_checked() {
        let setup = Setup::new();
        let issued = token(&setup.issue(json!({"expirationSeconds": 600})).unwrap());
        assert!(setup.authenticate(&issued, &[], NOW + 600).await.is_ok());
        let late = setup.authenticate(&issued, &[], NOW + 601).await.unwrap_err();
        assert_eq!(late, "service account token has expired");
        assert!(setup.authenticate(&issued, &[], NOW - 1).await.is_err());
        assert!(setup.authenticate(&issued, &["vault"], NOW).await.is_err());
        let vault = token(&setup.issue(json!({"audiences": ["vault"]})).unwrap());
        assert!(setup.authenticate(&vault, &[], NOW).await.is_err());
        let found = setup.authenticate(&vault, &["vault", "other"], NOW).await.unwrap().unwrap();
        assert_eq!(found.audiences, ["vault"]);
        let foreign = Setup::new();
        assert_eq!(foreign.authenticate(&issued, &[], NOW).await.unwrap_err(), "invalid token signature");
        assert_eq!(setup.authenticate("not.a.token", &[], NOW).await, Ok(None));
    }

    #[test]
    fn requests_are_validated() {
        let setup = Setup::new();
        let short = setup.issue(json!({"expirationSeconds": 10})).unwrap_err();
        assert_eq!(
            short.to_string(),
            "TokenRequest.authentication.k8s.io \"robot\" is invalid: spec.expirationSeconds: Invalid value: 10: may not specify a duration less than 10 minutes"
        );
        let of = |kind: &str, name: &str, uid: &str| {
            let reference = json!({"apiVersion": "v1", "kind": kind, "name": name, "uid": uid});
            setup.issue(json!({"boundObjectRef": reference})).unwrap_err()
        };
        assert_eq!(of("Pod", "absent", "").code(), 404);
        assert_eq!(of("Pod", "p", "other").code(), 409);
        assert_eq!(of("ConfigMap", "x", "").code(), 400);
    }

    #[test]
    fn documents_publish_the_keys() {
        let setup = Setup::new();
        let keys = tokens::key_set(&setup.config);
        assert_eq!(keys["keys"][0]["alg"], "ES256");
        let document = tokens::discovery_document(&setup.config);
        assert_eq!(document["id_token_signing_alg_values_supported"], json!(["ES256"]));
    }
}
