//! The kubelet's own API: TLS on port 10250, authenticated and authorized by the API server; and, where asked for,
//! the old read-only port without either.

mod answer;
mod auth;
mod logs;
mod metrics;
mod route;
mod stats;
mod stream;
mod tls;

use std::convert::Infallible;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::context::Context;
use crate::error::KubeletError;
use auth::{Auth, Peer};
pub(crate) use stats::{Rates, pod_memory};

/// Connections served at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 1024;

/// Starts the servers and returns the port of the main one.
pub(crate) async fn start(
    context: &Arc<Context>,
    tasks: &mut JoinSet<()>,
    stop: CancellationToken,
) -> Result<u16, KubeletError> {
    let kubelet = &context.config.kubelet;
    if kubelet.read_only_port > 0 {
        let listener = bind(&kubelet.address, kubelet.read_only_port).await?;
        tasks.spawn(serve(listener, None, Arc::new(Auth::read_only(context.clone())), stop.clone()));
    }
    if !kubelet.enable_server {
        return Ok(kubelet.port);
    }
    let listener = bind(&kubelet.address, kubelet.port).await?;
    let port = listener.local_addr().map_or(kubelet.port, |a| a.port());
    let failed = |source: tls::TlsError| KubeletError::Serve {
        address: format!("{}:{port}", kubelet.address),
        source: source.into(),
    };
    let tls = tls::server_config(&context.config, &context.node().ips).map_err(failed)?;
    let auth = Arc::new(Auth::delegated(context.clone()));
    tasks.spawn(serve(listener, Some(TlsAcceptor::from(tls)), auth, stop));
    Ok(port)
}

async fn bind(address: &str, port: u16) -> Result<TcpListener, KubeletError> {
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let address = format!("{host}:{port}");
    let failed =
        |source: std::io::Error| KubeletError::Serve { address: address.clone(), source: source.into() };
    TcpListener::bind(&address).await.map_err(failed)
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, auth: Arc<Auth>, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!(%error, "connection not accepted");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let (tls, auth) = (tls.clone(), auth.clone());
        connections.spawn(async move {
            connection(stream, tls, auth).await;
            drop(slot);
        });
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, auth: Arc<Auth>) {
    stream.set_nodelay(true).ok();
    let Some(tls) = tls else {
        return http(TokioIo::new(stream), Peer::default(), auth).await;
    };
    match tls.accept(stream).await {
        Ok(stream) => {
            let peer = Peer::from_certificates(stream.get_ref().1.peer_certificates());
            http(TokioIo::new(stream), peer, auth).await;
        }
        Err(error) => debug!(%error, "TLS handshake failed"),
    }
}

async fn http<S>(stream: S, peer: Peer, auth: Arc<Auth>)
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let peer = Arc::new(peer);
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (peer, auth) = (peer.clone(), auth.clone());
        async move { Ok::<_, Infallible>(route::answer(request, &peer, &auth).await) }
    });
    let served = Builder::new(TokioExecutor::new()).serve_connection_with_upgrades(stream, service).await;
    if let Err(error) = served {
        debug!(%error, "connection ended badly");
    }
}
