//! One HTTP request for a probe or hook: short, unverified TLS, redirects only within the host.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

const MAX_BODY_BYTES: usize = 1 << 20;
const MAX_REDIRECTS: usize = 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpCheck {
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
pub(crate) struct HttpAnswer {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
}

impl HttpCheck {
    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        let slash = if self.path.starts_with('/') { "" } else { "/" };
        format!("{scheme}://{}{slash}{}", self.authority(), self.path)
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The last answer after following redirects that stay on this host.
    pub(crate) async fn get(&self, agent: &str, timeout: Duration) -> Result<HttpAnswer, String> {
        let url = self.url();
        let failed = |error: String| format!("Get \"{url}\": {error}");
        match tokio::time::timeout(timeout, self.follow(agent)).await {
            Ok(answer) => answer.map_err(failed),
            Err(_) => Err(failed(
                "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned(),
            )),
        }
    }

    async fn follow(&self, agent: &str) -> Result<HttpAnswer, String> {
        let mut next = self.clone();
        for _ in 0..=MAX_REDIRECTS {
            let (answer, location) = next.once(agent).await?;
            let Some(location) = location.filter(|_| answer.status.is_redirection()) else {
                return Ok(answer);
            };
            let Some(target) = next.redirected(&location) else { return Ok(answer) };
            next = target;
        }
        Err(format!("stopped after {MAX_REDIRECTS} redirects"))
    }

    /// Where a redirect leads, if that is this host.
    fn redirected(&self, location: &str) -> Option<Self> {
        let uri: Uri = location.parse().ok()?;
        let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        let tls = uri.scheme_str().map_or(self.tls, |s| s == "https");
        let host = uri.host().unwrap_or(&self.host).trim_matches(['[', ']']);
        if host != self.host {
            return None;
        }
        let default = if uri.scheme_str().is_some() { if tls { 443 } else { 80 } } else { self.port };
        let port = uri.port_u16().unwrap_or(default);
        Some(Self { tls, path, port, ..self.clone() })
    }

    async fn once(&self, agent: &str) -> Result<(HttpAnswer, Option<String>), String> {
        let text = |e: &(dyn std::error::Error + 'static)| crate::api::chain(e);
        let address = self.authority();
        let stream = TcpStream::connect(&address).await.map_err(|e| format!("dial tcp {address}: {e}"))?;
        let request = self.request(agent)?;
        if self.tls {
            let name = ServerName::try_from(self.host.clone()).map_err(|e| text(&e))?;
            let stream =
                TlsConnector::from(unverified()).connect(name, stream).await.map_err(|e| text(&e))?;
            send(TokioIo::new(stream), request).await
        } else {
            send(TokioIo::new(stream), request).await
        }
    }

    fn request(&self, agent: &str) -> Result<Request<Empty<Bytes>>, String> {
        let slash = if self.path.starts_with('/') { "" } else { "/" };
        let mut builder = Request::get(format!("{slash}{}", self.path));
        let headers = builder.headers_mut().ok_or("invalid path")?;
        for (name, value) in &self.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|e| e.to_string())?;
            headers.append(name, HeaderValue::from_str(value).map_err(|e| e.to_string())?);
        }
        let mut default = |name: HeaderName, value: &str| {
            if let (false, Ok(value)) = (headers.contains_key(&name), HeaderValue::from_str(value)) {
                headers.insert(name, value);
            }
        };
        default(http::header::HOST, &self.authority());
        default(http::header::USER_AGENT, agent);
        default(http::header::ACCEPT, "*/*");
        default(http::header::CONNECTION, "close");
        builder.body(Empty::new()).map_err(|e| e.to_string())
    }
}

async fn send<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<(HttpAnswer, Option<String>), String>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let text = |e: hyper::Error| crate::api::chain(&e);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(text)?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(text)?;
        let status = response.status();
        let location = response.headers().get(http::header::LOCATION);
        let location = location.and_then(|l| l.to_str().ok()).map(str::to_owned);
        let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
        // A body over the limit is cut off upstream too: only its beginning is ever shown.
        let body = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned()).unwrap_or_default();
        Ok((HttpAnswer { status, body }, location))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = connection => match ended {
            Err(error) => Err(text(error)),
            Ok(()) => exchange.await,
        },
    }
}

/// Probes accept any certificate: they ask whether something answers, not who.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

fn unverified() -> Arc<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the ring provider supports the default protocol versions");
    Arc::new(
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
            .with_no_client_auth(),
    )
}

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Answers `/a` with a redirect to `/b`, `/out` with one to another host, and the rest by its path.
    async fn serve(listener: tokio::net::TcpListener) {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let mut buffer = [0; 1024];
            let read = stream.read(&mut buffer).await.unwrap();
            let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
            let head = match text.split(' ').nth(1).unwrap() {
                "/a" => "302 Found\r\nLocation: /b".to_owned(),
                "/out" => "302 Found\r\nLocation: http://example.invalid/".to_owned(),
                path => format!("{} X", path.trim_matches('/').parse::<u16>().unwrap_or(500)),
            };
            let answer = format!("HTTP/1.1 {head}\r\nContent-Length: 2\r\n\r\nok");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn redirects_are_followed_within_the_host() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(serve(listener));
        for (path, status) in [("/200", 200), ("/404", 404), ("/a", 500), ("/out", 302)] {
            let check = HttpCheck {
                tls: false,
                host: "127.0.0.1".into(),
                port,
                path: path.into(),
                headers: Vec::new(),
            };
            let answer = check.get("kube-probe/1.36", Duration::from_secs(5)).await.unwrap();
            assert_eq!(answer.status.as_u16(), status, "{path}");
        }
        server.abort();
    }
}
