//! Listeners, and the services behind them.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::routing::get;
use etcd_client::proto::{PbClusterServer, PbKvServer, PbLeaseServer, PbMaintenanceServer, PbWatchServer};
use store_embedded::{EmbeddedStore, OpenError, Options};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::API_VERSION;
use crate::auth::AuthDisabled;
use crate::flags::Flags;
use crate::member::Member;

/// Requests may be a little larger than what the store takes, to be refused by it.
const REQUEST_BYTES: usize = 4 << 20;
/// A client with many watches has many streams.
const STREAMS_PER_CONNECTION: u32 = 100_000;
/// How long clients may take to finish what they began.
const DRAIN: Duration = Duration::from_secs(2);
const WINDOW_BYTES: u32 = 1 << 20;

/// Why etcd's API cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EtcdError {
    #[error("cannot open the store")]
    Open(#[from] OpenError),
    #[error("{0} is not a URL to listen on: http or https, a host and a port")]
    Url(String),
    #[error("https needs --cert-file and --key-file, and --client-cert-auth needs --trusted-ca-file")]
    TlsFiles,
    #[error("cannot read {}", path.display())]
    ReadFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot listen on {url}")]
    Listen {
        url: String,
        #[source]
        source: io::Error,
    },
    #[error("the server failed")]
    Serve(#[source] tonic::transport::Error),
}

/// A store that listens.
#[derive(Debug)]
pub struct Server {
    member: Member,
    store: Arc<EmbeddedStore>,
    listeners: Vec<Listener>,
}

#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    tls: Option<ServerTlsConfig>,
    services: Services,
}

/// What a listener answers.
#[derive(Debug, Clone, Copy)]
enum Services {
    All,
    /// Nothing of the store's content: such a listener may be open where the store is not.
    Health,
}

/// Serves until `shutdown`.
pub async fn run(flags: Flags, shutdown: CancellationToken) -> Result<(), EtcdError> {
    Server::bind(flags).await?.serve(shutdown).await
}

impl Server {
    /// Opens the store and the ports.
    pub async fn bind(flags: Flags) -> Result<Self, EtcdError> {
        flags.log_ignored();
        let mut listeners = Vec::new();
        for url in &flags.listen_client_urls {
            listeners.push(Listener::bind(url, &flags, Services::All).await?);
        }
        for url in &flags.listen_metrics_urls {
            listeners.push(Listener::bind(url, &flags, Services::Health).await?);
        }
        let options = Options {
            fsync: !flags.unsafe_no_fsync,
            max_txn_bytes: flags.max_request_bytes,
            ..Options::default()
        };
        let store = Arc::new(EmbeddedStore::open(&flags.data_dir, options)?);
        let member = Member::new(
            Arc::clone(&store),
            flags.name,
            flags.advertise_client_urls,
            flags.initial_advertise_peer_urls,
        );
        Ok(Self { member, store, listeners })
    }

    /// Where it listens: for clients first, then for health.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.listeners.iter().map(|listener| listener.socket.local_addr()).collect()
    }

    /// Serves until `shutdown`, and closes the store.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), EtcdError> {
        let mut servers = JoinSet::new();
        let stop = shutdown.child_token();
        for Listener { socket, tls, services } in self.listeners {
            let mut server = tonic::transport::Server::builder()
                .accept_http1(true)
                .tcp_nodelay(true)
                .max_concurrent_streams(STREAMS_PER_CONNECTION)
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES);
            if let Some(tls) = tls {
                server = server.tls_config(tls).map_err(EtcdError::Serve)?;
            }
            let server = server.add_routes(routes(&self.member, services));
            let stop = stop.clone().cancelled_owned();
            servers.spawn(server.serve_with_incoming_shutdown(TcpListenerStream::new(socket), stop));
        }
        // Watches end with the store; a server waits for its last stream.
        stop.cancelled().await;
        let closed = self.store.close().await;
        if let Err(error) = closed {
            tracing::error!(%error, "the store did not close");
        }
        let mut result = Ok(());
        let drain = async {
            while let Some(ended) = servers.join_next().await {
                match ended {
                    Ok(served) => {
                        result = std::mem::replace(&mut result, Ok(())).and(served.map_err(EtcdError::Serve))
                    }
                    Err(error) => tracing::error!(%error, "a listener ended early"),
                }
            }
        };
        if timeout(DRAIN, drain).await.is_err() {
            tracing::debug!("clients are left behind");
        }
        result
    }
}

impl Listener {
    async fn bind(url: &str, flags: &Flags, services: Services) -> Result<Self, EtcdError> {
        let (host, tls) = parse_url(url)?;
        let tls = if tls { Some(tls_config(flags)?) } else { None };
        let socket = TcpListener::bind(host)
            .await
            .map_err(|source| EtcdError::Listen { url: url.to_owned(), source })?;
        Ok(Self { socket, tls, services })
    }
}

fn routes(member: &Member, services: Services) -> Routes {
    let grpc = match services {
        Services::All => {
            Routes::new(PbKvServer::new(member.clone()).max_decoding_message_size(REQUEST_BYTES))
                .add_service(PbWatchServer::new(member.clone()))
                .add_service(PbLeaseServer::new(member.clone()))
                .add_service(PbMaintenanceServer::new(member.clone()))
                .add_service(PbClusterServer::new(member.clone()))
                .add_service(AuthDisabled)
        }
        Services::Health => Routes::default(),
    };
    let version = serde_json::json!({ "etcdserver": API_VERSION, "etcdcluster": API_VERSION }).to_string();
    let mut router = grpc.into_axum_router().route("/version", get(|| async { version }));
    router = router.route("/health", get(|| async { r#"{"health":"true","reason":""}"# }));
    for probe in ["/livez", "/readyz"] {
        router = router.route(probe, get(|| async { "ok" }));
    }
    router.into()
}

/// The host and port of a URL, and whether it is TLS.
fn parse_url(url: &str) -> Result<(&str, bool), EtcdError> {
    let wrong = || EtcdError::Url(url.to_owned());
    let (scheme, host) = url.split_once("://").ok_or_else(wrong)?;
    let host = host.trim_end_matches('/');
    match (scheme, host.rsplit_once(':')) {
        ("http", Some(_)) => Ok((host, false)),
        ("https", Some(_)) => Ok((host, true)),
        _ => Err(wrong()),
    }
}

fn tls_config(flags: &Flags) -> Result<ServerTlsConfig, EtcdError> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|source| EtcdError::ReadFile { path: path.clone(), source })
    };
    let (Some(cert), Some(key)) = (&flags.cert_file, &flags.key_file) else {
        return Err(EtcdError::TlsFiles);
    };
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(read(cert)?, read(key)?));
    match (&flags.trusted_ca_file, flags.client_cert_auth) {
        (Some(ca), required) => {
            Ok(tls.client_ca_root(Certificate::from_pem(read(ca)?)).client_auth_optional(!required))
        }
        (None, false) => Ok(tls),
        (None, true) => Err(EtcdError::TlsFiles),
    }
}
