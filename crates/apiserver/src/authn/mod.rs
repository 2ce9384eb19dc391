//! Authentication: who a request comes from. Each method is an [`Authenticator`]; the server asks them in order.

use async_trait::async_trait;
use http::request::Parts;
use rustls_pki_types::CertificateDer;

use crate::attributes::UserInfo;

/// What the transport knows about the peer; a request extension.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    pub address: Option<std::net::SocketAddr>,
    /// The client's chain, leaf first; not yet verified against any authority.
    pub certificates: Vec<CertificateDer<'static>>,
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
