//! The HTTP server behind the URLs.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::spdy_session::{FORWARD_PROTOCOL, PROCESS_PROTOCOL};
use super::{StreamRequest, spdy_session, websocket};
use crate::error::{RuntimeError, chain};
use crate::runtime::Runtime;

/// Opens the address streams are served on.
pub(crate) async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), RuntimeError> {
    if !address.ip().is_loopback() {
        return Err(RuntimeError::invalid(format!("streams are served on loopback only, not on {address}")));
    }
    let failed = |source| RuntimeError::file("listen on", address.to_string())(source);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Serves streams until told to stop.
pub(crate) async fn serve(runtime: Arc<Runtime>, listener: TcpListener, shutdown: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        // A connection that broke before it began, or too many open files for now.
        let Ok((stream, _)) = accepted else { continue };
        let (runtime, shutdown) = (Arc::clone(&runtime), shutdown.clone());
        let tracker = runtime.tasks.clone();
        tracker.spawn(async move {
            // Small frames go both ways and wait for each other.
            drop(stream.set_nodelay(true));
            let service = service_fn(|request| answer(Arc::clone(&runtime), request));
            let connection =
                http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
            tokio::select! {
                result = connection => if let Err(error) = result {
                    debug!(error = %chain(&error), "a stream's connection broke");
                },
                () = shutdown.cancelled() => {}
            }
        });
    }
}

async fn answer(
    runtime: Arc<Runtime>,
    mut request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let token = request.uri().path().rsplit('/').next().unwrap_or_default();
    let Some(wanted) = runtime.streaming.redeem(token) else {
        return Ok(plain(StatusCode::NOT_FOUND, "no such stream"));
    };
    let Some(upgrade) = Upgrade::wanted(request.headers(), &wanted) else {
        return Ok(plain(StatusCode::BAD_REQUEST, "unable to upgrade: no protocol in common"));
    };
    let response = upgrade.response();
    let on_upgrade = hyper::upgrade::on(&mut request);
    let tracker = runtime.tasks.clone();
    tracker.spawn(serve_upgraded(runtime, wanted, upgrade, on_upgrade));
    Ok(response)
}

async fn serve_upgraded(
    runtime: Arc<Runtime>,
    wanted: StreamRequest,
    upgrade: Upgrade,
    on_upgrade: OnUpgrade,
) {
    let shutdown = runtime.shutdown.clone();
    let work = async {
        let io = match on_upgrade.await {
            Ok(upgraded) => TokioIo::new(upgraded),
            Err(error) => return debug!(error = %chain(&error), "a client did not upgrade"),
        };
        match upgrade {
            Upgrade::WebSocket { .. } => {
                let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
                websocket::serve(runtime, wanted, socket).await;
            }
            Upgrade::Spdy { .. } => spdy_session::serve(runtime, wanted, io).await,
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.cancelled() => {}
    }
}

/// The protocol of Kubernetes' streams, where SPDY carries them.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// What a client and this server have in common.
enum Upgrade {
    WebSocket { accept: String, protocol: &'static str },
    Spdy { protocol: &'static str },
}

impl Upgrade {
    fn wanted(headers: &HeaderMap, request: &StreamRequest) -> Option<Self> {
        let upgrade = headers.get(header::UPGRADE)?.to_str().ok()?.to_lowercase();
        let offered = |name: HeaderName| -> Vec<&str> {
            let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
            values.flat_map(|value| value.split(',')).map(str::trim).collect()
        };
        match upgrade.as_str() {
            "websocket" => {
                let offered = offered(header::SEC_WEBSOCKET_PROTOCOL);
                let protocol =
                    websocket::PROTOCOLS.into_iter().find(|protocol| offered.contains(protocol))?;
                let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
                Some(Self::WebSocket { accept: derive_accept_key(key.as_bytes()), protocol })
            }
            "spdy/3.1" => {
                let protocol = match request {
                    StreamRequest::PortForward { .. } => FORWARD_PROTOCOL,
                    _ => PROCESS_PROTOCOL,
                };
                offered(STREAM_PROTOCOL).contains(&protocol).then_some(Self::Spdy { protocol })
            }
            _ => None,
        }
    }

    fn response(&self) -> Response<Full<Bytes>> {
        let mut response = plain(StatusCode::SWITCHING_PROTOCOLS, "");
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        match self {
            Self::WebSocket { accept, protocol } => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
                if let Ok(accept) = accept.parse() {
                    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
                }
            }
            Self::Spdy { protocol } => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
                headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
            }
        }
        response
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}
