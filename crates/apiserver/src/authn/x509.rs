//! Client certificates: the common name is the user, the organizations are the groups.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Authenticated, AuthenticationError, CREDENTIAL_ID, Peer};
use crate::attributes::UserInfo;

/// Kubernetes' attribute type for a user's uid in a certificate's subject.
const UID_OID: &str = "1.3.6.1.4.1.57683.2";

/// Why a bundle of authorities cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    #[error("the bundle is not PEM")]
    Pem(#[source] rustls_pki_types::pem::Error),
    #[error("the bundle holds a certificate that is no authority")]
    Certificate(#[source] rustls::Error),
    #[error("the bundle holds no usable authority")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

/// Verifies client chains against a bundle of authorities that can be replaced while serving.
pub struct X509Authenticator {
    trust: ArcSwap<Trust>,
    generations: AtomicU64,
}

struct Trust {
    verifier: Arc<dyn ClientCertVerifier>,
    generation: u64,
}

/// The outcome of verifying a connection's chain, kept with the connection.
#[derive(Clone, Default)]
pub struct VerifiedPeer(Arc<ArcSwapOption<Verified>>);

struct Verified {
    generation: u64,
    until: Timestamp,
    outcome: Result<Option<Authenticated>, String>,
}

impl fmt::Debug for X509Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Authenticator").finish_non_exhaustive()
    }
}

impl fmt::Debug for VerifiedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VerifiedPeer").field(&self.0.load().is_some()).finish()
    }
}

impl X509Authenticator {
    /// `bundle` is PEM with one or more authorities.
    pub fn new(bundle: &[u8]) -> Result<Self, BundleError> {
        let trust = Trust { verifier: verifier(bundle)?, generation: 0 };
        Ok(Self { trust: ArcSwap::from_pointee(trust), generations: AtomicU64::new(1) })
    }

    /// Replaces the authorities; connections verified before are verified again at their next request.
    pub fn reload(&self, bundle: &[u8]) -> Result<(), BundleError> {
        let verifier = verifier(bundle)?;
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        self.trust.store(Arc::new(Trust { verifier, generation }));
        Ok(())
    }

    /// Whom the peer's chain stands for; `Ok(None)` without a chain. Verifies once a connection.
    pub fn authenticate_peer(
        &self,
        peer: &Peer,
        now: Timestamp,
    ) -> Result<Option<Authenticated>, AuthenticationError> {
        if peer.certificates.is_empty() {
            return Ok(None);
        }
        let generation = self.trust.load().generation;
        if let Some(known) = peer.verified.0.load().as_deref()
            && known.generation == generation
            && now < known.until
        {
            return known.outcome.clone().map_err(AuthenticationError);
        }
        let outcome = self.authenticate_chain(&peer.certificates, now).map_err(|error| error.0);
        let until = not_after(&peer.certificates[0]).unwrap_or(Timestamp::MAX);
        let until = if outcome.is_err() && until < now { Timestamp::MAX } else { until };
        peer.verified.0.store(Some(Arc::new(Verified { generation, until, outcome: outcome.clone() })));
        outcome.map_err(AuthenticationError)
    }

    /// Verifies the chain: signatures, validity at `now`, and that it is meant for clients.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'static>],
        now: Timestamp,
    ) -> Result<(), AuthenticationError> {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(AuthenticationError("no certificate".to_owned()));
        };
        let seconds = u64::try_from(now.as_second()).unwrap_or_default();
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        self.trust
            .load()
            .verifier
            .verify_client_cert(leaf, intermediates, time)
            .map(|_| ())
            .map_err(|error| AuthenticationError(format!("verifying certificate: {error}")))
    }

    fn authenticate_chain(
        &self,
        chain: &[CertificateDer<'static>],
        now: Timestamp,
    ) -> Result<Option<Authenticated>, AuthenticationError> {
        self.verify(chain, now)?;
        let user = user_of(&chain[0])?;
        Ok(user.map(|user| Authenticated { user, audiences: Vec::new() }))
    }
}

/// The common name of a certificate; empty if it has none.
pub fn common_name(certificate: &CertificateDer<'_>) -> Result<String, AuthenticationError> {
    let parsed = parse(certificate)?;
    Ok(parsed
        .subject()
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok())
        .unwrap_or_default()
        .to_owned())
}

fn user_of(certificate: &CertificateDer<'_>) -> Result<Option<UserInfo>, AuthenticationError> {
    let username = common_name(certificate)?;
    if username.is_empty() {
        return Ok(None);
    }
    let parsed = parse(certificate)?;
    let groups = parsed
        .subject()
        .iter_organization()
        .filter_map(|organization| organization.as_str().ok().map(str::to_owned))
        .collect();
    let uid = parsed
        .subject()
        .iter_attributes()
        .find(|attribute| attribute.attr_type().to_id_string() == UID_OID)
        .and_then(|attribute| attribute.as_str().ok())
        .unwrap_or_default()
        .to_owned();
    let mut user = UserInfo { username, uid, groups, ..UserInfo::default() };
    let digest = hex::encode(Sha256::digest(certificate.as_ref()));
    user.extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={digest}")]);
    Ok(Some(user))
}

fn not_after(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let parsed = parse(certificate).ok()?;
    Timestamp::from_second(parsed.validity().not_after.timestamp()).ok()
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, AuthenticationError> {
    X509Certificate::from_der(certificate)
        .map(|(_, parsed)| parsed)
        .map_err(|error| AuthenticationError(format!("parsing certificate: {error}")))
}

fn verifier(bundle: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, BundleError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        roots.add(certificate.map_err(BundleError::Pem)?).map_err(BundleError::Certificate)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(BundleError::Verifier)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Authority, Usage};

    fn peer(authority: &Authority, common_name: &str, organization: Option<&str>, usage: Usage) -> Peer {
        let issued = authority.issue(common_name, organization, &[], usage, Timestamp::now()).unwrap();
        let certificates = vec![CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap()];
        Peer { certificates, ..Peer::default() }
    }

    #[test]
    fn common_name_is_the_user_and_organization_the_group() {
        let authority = Authority::new("kubernetes", Timestamp::now()).unwrap();
        let authenticator = X509Authenticator::new(authority.certificate_pem().as_bytes()).unwrap();
        let peer = peer(&authority, "alice", Some("dev"), Usage::Client);
        let user = authenticator.authenticate_peer(&peer, Timestamp::now()).unwrap().expect("a user").user;
        assert_eq!(user.username, "alice");
        assert_eq!(user.groups, ["dev"]);
        assert!(user.extra[CREDENTIAL_ID][0].starts_with("X509SHA256="));
    }

    #[test]
    fn foreign_expired_and_server_certificates_are_refused() {
        let authority = Authority::new("kubernetes", Timestamp::now()).unwrap();
        let other = Authority::new("kubernetes", Timestamp::now()).unwrap();
        let authenticator = X509Authenticator::new(authority.certificate_pem().as_bytes()).unwrap();
        let now = Timestamp::now();
        let foreign = peer(&other, "alice", None, Usage::Client);
        assert!(authenticator.authenticate_peer(&foreign, now).is_err());
        let server = peer(&authority, "alice", None, Usage::Server);
        assert!(authenticator.authenticate_peer(&server, now).is_err());
        let good = peer(&authority, "alice", None, Usage::Client);
        assert!(authenticator.authenticate_peer(&good, now).unwrap().is_some());
        let later = now + jiff::SignedDuration::from_hours(24 * 500);
        assert!(authenticator.authenticate_peer(&good, later).is_err(), "kept past its validity");
    }

    #[test]
    fn new_authorities_take_effect_on_open_connections() {
        let authority = Authority::new("kubernetes", Timestamp::now()).unwrap();
        let other = Authority::new("kubernetes", Timestamp::now()).unwrap();
        let authenticator = X509Authenticator::new(authority.certificate_pem().as_bytes()).unwrap();
        let peer = peer(&authority, "alice", None, Usage::Client);
        assert!(authenticator.authenticate_peer(&peer, Timestamp::now()).unwrap().is_some());
        authenticator.reload(other.certificate_pem().as_bytes()).unwrap();
        assert!(authenticator.authenticate_peer(&peer, Timestamp::now()).is_err());
    }
}
