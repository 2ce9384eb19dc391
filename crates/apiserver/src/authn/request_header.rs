//! A front proxy (the aggregator of another API server) says in headers whom it already authenticated, and proves
//! itself with a client certificate of its own authority.

use http::HeaderMap;
use http::request::Parts;
use jiff::Timestamp;

use super::x509::{X509Authenticator, common_name};
use super::{Authenticated, AuthenticationError, Peer};
use crate::attributes::UserInfo;

/// The `--requestheader-*` flags.
#[derive(Debug)]
pub struct RequestHeaderAuthenticator {
    authority: X509Authenticator,
    options: RequestHeaderOptions,
}

/// Header names, tried in order, and who may send them.
#[derive(Debug, Clone)]
pub struct RequestHeaderOptions {
    /// Common names allowed; empty allows any certificate of the authority.
    pub allowed_names: Vec<String>,
    pub username_headers: Vec<String>,
    pub uid_headers: Vec<String>,
    pub group_headers: Vec<String>,
    pub extra_prefixes: Vec<String>,
}

impl Default for RequestHeaderOptions {
    fn default() -> Self {
        Self {
            allowed_names: vec!["front-proxy-client".to_owned()],
            username_headers: vec!["X-Remote-User".to_owned()],
            uid_headers: vec!["X-Remote-Uid".to_owned()],
            group_headers: vec!["X-Remote-Group".to_owned()],
            extra_prefixes: vec!["X-Remote-Extra-".to_owned()],
        }
    }
}

impl RequestHeaderAuthenticator {
    pub fn new(authority: X509Authenticator, options: RequestHeaderOptions) -> Self {
        Self { authority, options }
    }

    pub fn options(&self) -> &RequestHeaderOptions {
        &self.options
    }

    /// `Ok(None)` unless there is a certificate and a user header.
    pub fn authenticate(
        &self,
        request: &Parts,
        peer: &Peer,
        now: Timestamp,
    ) -> Result<Option<Authenticated>, AuthenticationError> {
        let headers = &request.headers;
        let Some(username) = first(headers, &self.options.username_headers) else { return Ok(None) };
        let Some(leaf) = peer.certificates.first() else { return Ok(None) };
        self.authority.verify(&peer.certificates, now)?;
        let name = common_name(leaf)?;
        let allowed = &self.options.allowed_names;
        if !allowed.is_empty() && !allowed.contains(&name) {
            return Err(AuthenticationError(format!("subject with cn={name} is not in the allowed list")));
        }
        let mut user = UserInfo {
            username,
            uid: first(headers, &self.options.uid_headers).unwrap_or_default(),
            groups: self.options.group_headers.iter().flat_map(|name| all(headers, name)).collect(),
            ..UserInfo::default()
        };
        for prefix in &self.options.extra_prefixes {
            for (key, values) in extras(headers, prefix) {
                user.extra.entry(key).or_default().extend(values);
            }
        }
        Ok(Some(Authenticated { user, audiences: Vec::new() }))
    }
}

/// Headers `<prefix><key>`: the key in lower case and unescaped, with all its values.
pub(super) fn extras(headers: &HeaderMap, prefix: &str) -> Vec<(String, Vec<String>)> {
    let prefix = prefix.to_ascii_lowercase();
    headers
        .keys()
        .filter_map(|name| {
            let key = name.as_str().strip_prefix(&prefix)?;
            Some((unescape(key).to_lowercase(), all(headers, name.as_str())))
        })
        .collect()
}

pub(super) fn all(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok().map(str::to_owned)).collect()
}

fn first(headers: &HeaderMap, names: &[String]) -> Option<String> {
    names.iter().find_map(|name| {
        let value = headers.get(name)?.to_str().ok()?;
        (!value.is_empty()).then(|| value.to_owned())
    })
}

/// Percent decoding; text that is not well formed stays as it is.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let Some(decoded) = tail.get(..2).and_then(|pair| hex::decode(pair).ok()) else {
            return text.to_owned();
        };
        bytes.extend(decoded);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;

    use super::*;
    use crate::pki::{Authority, Usage};

    fn check(common_name: &str, headers: &[(&str, &str)]) -> Result<Option<UserInfo>, String> {
        let now = Timestamp::now();
        let authority = Authority::new("front-proxy-ca", now).unwrap();
        let issued = authority.issue(common_name, None, &[], Usage::Client, now).unwrap();
        let leaf = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
        let trust = X509Authenticator::new(authority.certificate_pem().as_bytes()).unwrap();
        let authenticator = RequestHeaderAuthenticator::new(trust, RequestHeaderOptions::default());
        let mut request = http::Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let peer = Peer { certificates: vec![leaf], ..Peer::default() };
        match authenticator.authenticate(&parts, &peer, now) {
            Ok(found) => Ok(found.map(|found| found.user)),
            Err(error) => Err(error.0),
        }
    }

    #[test]
    fn only_the_proxy_may_speak_for_others() {
        let headers = [
            ("X-Remote-User", "alice"),
            ("X-Remote-Group", "dev"),
            ("X-Remote-Group", "ops"),
            ("X-Remote-Extra-Acme.com%2FScope", "a"),
        ];
        let user = check("front-proxy-client", &headers).unwrap().unwrap();
        assert_eq!(
            (user.username.as_str(), user.groups.as_slice()),
            ("alice", &["dev".to_owned(), "ops".to_owned()][..])
        );
        assert_eq!(user.extra["acme.com/scope"], ["a"]);
        assert_eq!(
            check("mallory", &headers).unwrap_err(),
            "subject with cn=mallory is not in the allowed list"
        );
        assert_eq!(check("front-proxy-client", &[]), Ok(None));
    }
}
