//! Authentication: who a request comes from. Each method is an [`Authenticator`]; the server asks them in order.

pub mod bootstrap_token;
pub mod impersonation;
pub mod request_header;
pub mod service_account;
pub mod static_tokens;
pub mod token_cache;
pub mod union;
pub mod x509;

use std::sync::Arc;

use async_trait::async_trait;
use http::request::Parts;
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;

use crate::attributes::UserInfo;

/// Where time comes from; tests pass their own.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Groups and names that authentication gives out and authorization knows.
pub const ANONYMOUS: &str = "system:anonymous";
pub const ALL_AUTHENTICATED: &str = "system:authenticated";
pub const ALL_UNAUTHENTICATED: &str = "system:unauthenticated";
pub const PRIVILEGED_GROUP: &str = "system:masters";
pub const NODES_GROUP: &str = "system:nodes";
pub const NODE_USER_PREFIX: &str = "system:node:";
pub const SERVICE_ACCOUNT_USER_PREFIX: &str = "system:serviceaccount:";
pub const ALL_SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
/// Key in `UserInfo.extra` that names the credential itself.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// The wall clock.
pub fn system_clock() -> Clock {
    Arc::new(Timestamp::now)
}

/// What the transport knows about the peer; a request extension.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    pub address: Option<std::net::SocketAddr>,
    /// The client's chain, leaf first; not yet verified against any authority.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Shared by all requests of one connection, so that its chain is verified once.
    pub verified: x509::VerifiedPeer,
}

/// A request whose sender is already known, because it never left the process; a request extension that only
/// the in-process transport sets.
#[derive(Debug, Clone)]
pub struct InProcessUser(pub std::sync::Arc<UserInfo>);

/// A successful authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authenticated {
    pub user: UserInfo,
    /// Audiences of the token that are valid here; empty when the method has none.
    pub audiences: Vec<String>,
}

/// The credentials were of this method's form and are not good. The answer to the client is 401 in every case;
/// the text is for the log and for `TokenReview.status.error`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AuthenticationError(pub String);

/// One way to say who one is.
#[async_trait]
pub trait Authenticator: Send + Sync {
    /// `Ok(None)`: no credentials of this kind here, ask the next one.
    async fn authenticate(
        &self,
        request: &Parts,
        peer: &Peer,
    ) -> Result<Option<Authenticated>, AuthenticationError>;
}

/// Tells whom a bearer token stands for; what `Authorization: Bearer` and `TokenReview` share.
#[async_trait]
pub trait TokenAuthenticator: Send + Sync {
    /// `audiences` empty asks for the server's own audiences.
    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<Authenticated>, AuthenticationError>;
}

/// The name `system:node:<name>` of a member of `system:nodes` stands for; `Some("")` if it is a node's user
/// without a name.
pub fn node_identity(user: &UserInfo) -> Option<&str> {
    let name = user.username.strip_prefix(NODE_USER_PREFIX)?;
    user.in_group(NODES_GROUP).then_some(name)
}

/// Namespace and name of a service account's user.
pub fn service_account_identity(username: &str) -> Option<(&str, &str)> {
    let (namespace, name) = username.strip_prefix(SERVICE_ACCOUNT_USER_PREFIX)?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

/// The groups every service account of a namespace is in.
pub fn service_account_groups(namespace: &str) -> Vec<String> {
    vec![ALL_SERVICE_ACCOUNTS.to_owned(), format!("{ALL_SERVICE_ACCOUNTS}:{namespace}")]
}
