//! Sockets, TLS and HTTP/1.1 and HTTP/2 connections, until the server stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::authn::Peer;
use crate::server::Server;

/// A client must finish its TLS handshake and its request head within this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(32);
/// HTTP/2 windows: the protocol's 64 KiB starves watches that share a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const MAX_STREAMS: u32 = 1_000;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why a listener cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read the serving certificate")]
    Pem(#[source] rustls_pki_types::pem::Error),
    #[error("the serving certificate is not usable")]
    Rustls(#[from] rustls::Error),
}

/// TLS for serving: `certificate` and `key` are PEM. Client certificates are asked for, not required; whether
/// they are good is authentication's business, so that a bad one gets 401 and not a broken connection.
pub fn tls_config(certificate: &[u8], key: &[u8]) -> Result<Arc<ServerConfig>, TlsError> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(certificate).collect::<Result<_, _>>().map_err(TlsError::Pem)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(TlsError::Pem)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(any_client::AnyClient::new(&provider));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves until `shutdown`, then lets running requests finish for at most `drain`.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    server: Arc<Server>,
    drain: Duration,
    shutdown: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, address)) => {
                let connection = Connection {
                    acceptor: acceptor.clone(),
                    server: Arc::clone(&server),
                    shutdown: shutdown.clone(),
                };
                connections.spawn(connection.run(stream, address));
            }
            Err(error) => {
                // Out of descriptors, usually: others must close first.
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let finished = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(drain, finished).await.is_err() {
        debug!("connections outlived the drain period");
    }
}

struct Connection {
    acceptor: TlsAcceptor,
    server: Arc<Server>,
    shutdown: CancellationToken,
}

impl Connection {
    async fn run(self, stream: TcpStream, address: SocketAddr) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "no TCP_NODELAY");
        }
        let handshake = tokio::time::timeout(HEAD_TIMEOUT, self.acceptor.accept(stream));
        let stream = match handshake.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(%address, %error, "TLS handshake failed"),
            Err(_) => return debug!(%address, "TLS handshake timed out"),
        };
        let certificates = stream
            .get_ref()
            .1
            .peer_certificates()
            .map(|chain| chain.iter().map(|own| own.clone().into_owned()).collect())
            .unwrap_or_default();
        let peer = Peer { address: Some(address), certificates, ..Peer::default() };
        let server = Arc::clone(&self.server);
        let service = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
            let server = Arc::clone(&server);
            request.extensions_mut().insert(peer.clone());
            async move { Ok::<_, std::convert::Infallible>(server.handle(request).await) }
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(Some(Duration::from_secs(30)));
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            debug!(%address, %error, "connection ended");
        }
    }
}

/// Takes any client certificate; see [`tls_config`].
mod any_client {
    use std::sync::Arc;

    use rustls::client::danger::HandshakeSignatureValid;
    use rustls::crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    };
    use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
    use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
    use rustls_pki_types::{CertificateDer, UnixTime};

    #[derive(Debug)]
    pub(super) struct AnyClient(WebPkiSupportedAlgorithms);

    impl AnyClient {
        pub(super) fn new(provider: &Arc<CryptoProvider>) -> Self {
            Self(provider.signature_verification_algorithms)
        }
    }

    impl ClientCertVerifier for AnyClient {
        fn client_auth_mandatory(&self) -> bool {
            false
        }
        fn root_hint_subjects(&self) -> &[DistinguishedName] {
            &[]
        }
        fn verify_client_cert(
            &self,
            _leaf: &CertificateDer<'_>,
            _intermediates: &[CertificateDer<'_>],
            _now: UnixTime,
        ) -> Result<ClientCertVerified, Error> {
            Ok(ClientCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, certificate, signature, &self.0)
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signature, &self.0)
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.supported_schemes()
        }
    }
}
