//! Who asks, and whether they may: client certificates, else TokenReview; then SubjectAccessReview.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use rustls::pki_types::CertificateDer;
use tracing::warn;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::answer::{Answer, text};
use crate::context::Context;

/// How long an answer of the API server is believed, and how many are kept.
const ALLOWED_FOR: Duration = Duration::from_secs(120);
const DENIED_FOR: Duration = Duration::from_secs(30);
const MAX_CACHED: usize = 1024;

/// The other end of a connection, by its verified certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Peer(Option<User>);

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct User {
    name: String,
    uid: String,
    groups: Vec<String>,
}

pub(super) struct Auth {
    pub(super) context: Arc<Context>,
    /// The read-only port: everyone may read what it serves.
    pub(super) read_only: bool,
    tokens: Cache<String, User>,
    decisions: Cache<(User, String, String), ()>,
}

/// Remembers answers for a while; a full cache forgets everything, which only costs asking again.
struct Cache<K, V>(Mutex<HashMap<K, (Duration, Option<V>)>>);

impl<K: std::hash::Hash + Eq, V: Clone> Cache<K, V> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn get(&self, key: &K, now: Duration) -> Option<Option<V>> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(key).filter(|(until, _)| *until > now).map(|(_, value)| value.clone())
    }

    fn set(&self, key: K, value: Option<V>, now: Duration) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= MAX_CACHED {
            entries.clear();
        }
        let until = now + if value.is_some() { ALLOWED_FOR } else { DENIED_FOR };
        entries.insert(key, (until, value));
    }
}

impl Peer {
    pub(super) fn from_certificates(chain: Option<&[CertificateDer<'_>]>) -> Self {
        let user = chain.and_then(|chain| chain.first()).and_then(|certificate| {
            let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
            let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().ok().map(str::to_owned);
            Some(User {
                name: parsed.subject().iter_common_name().next().and_then(text)?,
                uid: String::new(),
                groups: parsed.subject().iter_organization().filter_map(text).collect(),
            })
        });
        Self(user)
    }
}

impl Auth {
    pub(super) fn delegated(context: Arc<Context>) -> Self {
        Self { context, read_only: false, tokens: Cache::new(), decisions: Cache::new() }
    }

    pub(super) fn read_only(context: Arc<Context>) -> Self {
        Self { context, read_only: true, tokens: Cache::new(), decisions: Cache::new() }
    }

    /// Nothing when the request may go on.
    pub(super) async fn refuse(
        &self,
        peer: &Peer,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Option<Answer> {
        if self.read_only {
            return None;
        }
        let Some(mut user) = self.authenticate(peer, headers).await else {
            return Some(text(StatusCode::UNAUTHORIZED, "Unauthorized"));
        };
        let group =
            if user.name == "system:anonymous" { "system:unauthenticated" } else { "system:authenticated" };
        user.groups.push(group.to_owned());
        if self.context.config.kubelet.authorization.mode == "AlwaysAllow" {
            return None;
        }
        let verb = verb(method);
        for subresource in subresources(path) {
            if self.is_allowed(&user, verb, subresource).await {
                return None;
            }
        }
        let subresource = subresources(path)[0];
        let message = format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{subresource}])",
            user.name
        );
        Some(text(StatusCode::FORBIDDEN, message))
    }

    async fn authenticate(&self, peer: &Peer, headers: &HeaderMap) -> Option<User> {
        if let Some(user) = &peer.0 {
            return Some(user.clone());
        }
        let authentication = &self.context.config.kubelet.authentication;
        let bearer = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        if let Some(token) = bearer.and_then(|v| v.strip_prefix("Bearer ")) {
            return if authentication.webhook.enabled { self.review(token.trim()).await } else { None };
        }
        let anonymous = User { name: "system:anonymous".to_owned(), ..User::default() };
        authentication.anonymous.enabled.then_some(anonymous)
    }

    async fn review(&self, token: &str) -> Option<User> {
        let now = self.context.clock.monotonic();
        if let Some(known) = self.tokens.get(&token.to_owned(), now) {
            return known;
        }
        let api = self.context.api.cluster::<TokenReview>().ok()?;
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: None },
            ..TokenReview::default()
        };
        let user = match api.create(&PostParams::default(), &review).await {
            Ok(answer) => {
                let status = answer.status.unwrap_or_default();
                status.user.filter(|_| status.authenticated == Some(true)).map(user)
            }
            Err(error) => {
                warn!(error = %reconcile::chain(&error), "token not reviewed");
                return None;
            }
        };
        self.tokens.set(token.to_owned(), user.clone(), now);
        user
    }

    async fn is_allowed(&self, user: &User, verb: &str, subresource: &str) -> bool {
        let now = self.context.clock.monotonic();
        let key = (user.clone(), verb.to_owned(), subresource.to_owned());
        if let Some(known) = self.decisions.get(&key, now) {
            return known.is_some();
        }
        let Ok(api) = self.context.api.cluster::<SubjectAccessReview>() else { return false };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()).filter(|u| !u.is_empty()),
                groups: Some(user.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(self.context.config.node_name.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        match api.create(&PostParams::default(), &review).await {
            Ok(answer) => {
                let allowed = answer.status.is_some_and(|s| s.allowed);
                self.decisions.set(key, allowed.then_some(()), now);
                allowed
            }
            Err(error) => {
                warn!(error = %reconcile::chain(&error), "access not reviewed");
                false
            }
        }
    }
}

fn user(info: UserInfo) -> User {
    User {
        name: info.username.unwrap_or_default(),
        uid: info.uid.unwrap_or_default(),
        groups: info.groups.unwrap_or_default(),
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// The subresources of `nodes` any of which opens a path, the narrowest first.
fn subresources(path: &str) -> &'static [&'static str] {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    match first {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "spec" => &["spec"],
        "checkpoint" => &["checkpoint"],
        "healthz" => &["healthz", "proxy"],
        "pods" | "runningpods" => &["pods", "proxy"],
        "configz" => &["configz", "proxy"],
        _ => &["proxy"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_the_node_subresource_that_opens_them() {
        for (path, expected) in [
            ("/stats/summary", "stats"),
            ("/metrics/cadvisor", "metrics"),
            ("/pods", "pods proxy"),
            ("/exec/ns/p/c", "proxy"),
            ("/containerLogs/ns/p/c", "proxy"),
            ("/healthz", "healthz proxy"),
        ] {
            assert_eq!(subresources(path).join(" "), expected, "{path}");
        }
    }
}
