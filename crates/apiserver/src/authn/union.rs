//! All authentication methods in upstream's order: front proxy, client certificate, bearer token, anonymous.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use http::request::Parts;

use super::request_header::RequestHeaderAuthenticator;
use super::x509::X509Authenticator;
use super::{
    ALL_AUTHENTICATED, ALL_UNAUTHENTICATED, ANONYMOUS, Authenticated, AuthenticationError, Authenticator,
    Clock, InProcessUser, Peer, TokenAuthenticator,
};
use crate::attributes::UserInfo;

/// A bearer token in a browser's WebSocket handshake, which cannot set `Authorization`.
const WEBSOCKET_TOKEN_PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// Who may come without credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Anonymous {
    Denied,
    Allowed,
    /// Only on these paths (`AuthenticationConfiguration.anonymous.conditions`).
    OnPaths(Vec<String>),
}

/// The server's whole authentication.
pub struct RequestAuthenticator {
    pub request_header: Option<RequestHeaderAuthenticator>,
    pub x509: Option<Arc<X509Authenticator>>,
    pub tokens: Option<Arc<dyn TokenAuthenticator>>,
    pub anonymous: Anonymous,
    pub clock: Clock,
}

/// Token authenticators asked in order; the first that knows the token wins.
#[derive(Default)]
pub struct TokenUnion(pub Vec<Arc<dyn TokenAuthenticator>>);

impl fmt::Debug for RequestAuthenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestAuthenticator").field("anonymous", &self.anonymous).finish_non_exhaustive()
    }
}

impl fmt::Debug for TokenUnion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TokenUnion").field(&self.0.len()).finish()
    }
}

#[async_trait]
impl TokenAuthenticator for TokenUnion {
    async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<Authenticated>, AuthenticationError> {
        let mut errors = Vec::new();
        for authenticator in &self.0 {
            match authenticator.authenticate_token(token, audiences).await {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) => errors.push(error.0),
            }
        }
        aggregate(errors).map_or(Ok(None), Err)
    }
}

#[async_trait]
impl Authenticator for RequestAuthenticator {
    async fn authenticate(
        &self,
        request: &Parts,
        peer: &Peer,
    ) -> Result<Option<Authenticated>, AuthenticationError> {
        if let Some(InProcessUser(user)) = request.extensions.get() {
            let user = UserInfo::clone(user);
            return Ok(Some(with_authenticated_group(Authenticated { user, audiences: Vec::new() })));
        }
        if let Some(found) = self.credentials(request, peer).await? {
            return Ok(Some(with_authenticated_group(found)));
        }
        let allowed = match &self.anonymous {
            Anonymous::Denied => false,
            Anonymous::Allowed => true,
            Anonymous::OnPaths(paths) => paths.iter().any(|path| path == request.uri.path()),
        };
        Ok(allowed.then(|| Authenticated {
            user: UserInfo::new(ANONYMOUS, &[ALL_UNAUTHENTICATED]),
            audiences: Vec::new(),
        }))
    }
}

impl RequestAuthenticator {
    async fn credentials(
        &self,
        request: &Parts,
        peer: &Peer,
    ) -> Result<Option<Authenticated>, AuthenticationError> {
        let mut errors = Vec::new();
        if !peer.certificates.is_empty() {
            let now = (self.clock)();
            if let Some(front_proxy) = &self.request_header {
                match front_proxy.authenticate(request, peer, now) {
                    Ok(None) => {}
                    Ok(found) => return Ok(found),
                    Err(error) => errors.push(error.0),
                }
            }
            if let Some(x509) = &self.x509 {
                match x509.authenticate_peer(peer, now) {
                    Ok(None) => {}
                    Ok(found) => return Ok(found),
                    Err(error) => errors.push(error.0),
                }
            }
        }
        if let Some(tokens) = &self.tokens
            && let Some(token) = bearer_token(&request.headers)
        {
            match tokens.authenticate_token(&token, &[]).await {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => errors.push("invalid bearer token".to_owned()),
                Err(error) => errors.push(error.0),
            }
        }
        aggregate(errors).map_or(Ok(None), Err)
    }
}

/// The token of `Authorization: Bearer`, or of a WebSocket subprotocol.
pub fn bearer_token(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()) {
        let mut words = value.trim().splitn(3, ' ');
        let scheme = words.next().unwrap_or_default();
        let token = words.next().unwrap_or_default();
        if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() {
            return Some(token.to_owned());
        }
    }
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|protocol| protocol.trim().strip_prefix(WEBSOCKET_TOKEN_PREFIX))
        .and_then(|encoded| URL_SAFE_NO_PAD.decode(encoded).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .filter(|token| !token.is_empty())
}

pub(crate) fn with_authenticated_group(mut found: Authenticated) -> Authenticated {
    let user = &mut found.user;
    if user.username != ANONYMOUS && !user.in_group(ALL_AUTHENTICATED) && !user.in_group(ALL_UNAUTHENTICATED)
    {
        user.groups.push(ALL_AUTHENTICATED.to_owned());
    }
    found
}

fn aggregate(mut errors: Vec<String>) -> Option<AuthenticationError> {
    match errors.len() {
        0 => None,
        1 => errors.pop().map(AuthenticationError),
        _ => Some(AuthenticationError(format!("[{}]", errors.join(", ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::static_tokens::StaticTokens;
    use crate::authn::system_clock;

    async fn check(
        headers: &[(&str, &str)],
        anonymous: Anonymous,
    ) -> Result<Option<(String, Vec<String>)>, String> {
        let tokens = StaticTokens::parse("secret,alice,1,dev").unwrap();
        let authenticator = RequestAuthenticator {
            request_header: None,
            x509: None,
            tokens: Some(Arc::new(TokenUnion(vec![Arc::new(tokens)]))),
            anonymous,
            clock: system_clock(),
        };
        let mut request = http::Request::builder().uri("/healthz");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let found = authenticator.authenticate(&parts, &Peer::default()).await.map_err(|error| error.0)?;
        Ok(found.map(|found| (found.user.username, found.user.groups)))
    }

    #[tokio::test]
    async fn tokens_are_users_and_bad_tokens_are_not_anonymous() {
        let alice = Ok(Some(("alice".to_owned(), vec!["dev".to_owned(), ALL_AUTHENTICATED.to_owned()])));
        let nobody = Ok(Some((ANONYMOUS.to_owned(), vec![ALL_UNAUTHENTICATED.to_owned()])));
        let bearer = [("Authorization", "bearer secret")];
        assert_eq!(check(&bearer, Anonymous::Allowed).await, alice);
        let websocket =
            [("Sec-WebSocket-Protocol", "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0")];
        assert_eq!(check(&websocket, Anonymous::Denied).await, alice);
        let wrong = [("Authorization", "Bearer wrong")];
        assert_eq!(check(&wrong, Anonymous::Allowed).await, Err("invalid bearer token".to_owned()));
        assert_eq!(check(&[], Anonymous::Allowed).await, nobody);
        assert_eq!(check(&[], Anonymous::Denied).await, Ok(None));
        assert_eq!(check(&[], Anonymous::OnPaths(vec!["/healthz".to_owned()])).await, nobody);
        assert_eq!(check(&[], Anonymous::OnPaths(vec!["/livez".to_owned()])).await, Ok(None));
    }
}
