//! Flags by etcd's names, listeners, and the services behind them.

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
use crate::member::Member;

/// Requests may be a little larger than what the store takes, to be refused by it.
const REQUEST_BYTES: usize = 4 << 20;
/// A client with many watches has many streams.
const STREAMS_PER_CONNECTION: u32 = 100_000;
/// How long clients may take to finish what they began.
const DRAIN: Duration = Duration::from_secs(2);
const WINDOW_BYTES: u32 = 1 << 20;

/// The flags of `coracle etcd`.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "etcd", about = "Serve the embedded store through etcd's API")]
pub struct Flags {
    #[arg(long, default_value = "default")]
    pub name: String,
    #[arg(long, default_value = "default.etcd")]
    pub data_dir: PathBuf,
    #[arg(long, value_delimiter = ',', default_value = "http://localhost:2379")]
    pub listen_client_urls: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "http://localhost:2379")]
    pub advertise_client_urls: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "http://localhost:2380")]
    pub initial_advertise_peer_urls: Vec<String>,
    #[arg(long)]
    pub cert_file: Option<PathBuf>,
    #[arg(long)]
    pub key_file: Option<PathBuf>,
    #[arg(long)]
    pub trusted_ca_file: Option<PathBuf>,
    /// Refuse clients without a certificate of the trusted CA.
    #[arg(long)]
    pub client_cert_auth: bool,
    /// Do not wait for the disk: a crash of the machine loses data.
    #[arg(long)]
    pub unsafe_no_fsync: bool,
    #[arg(long, default_value_t = 3 << 19)]
    pub max_request_bytes: usize,
}

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
    listeners: Vec<(TcpListener, Option<ServerTlsConfig>)>,
}

/// Serves until `shutdown`.
pub async fn run(flags: Flags, shutdown: CancellationToken) -> Result<(), EtcdError> {
    Server::bind(flags).await?.serve(shutdown).await
}

impl Server {
    /// Opens the store and the ports.
    pub async fn bind(flags: Flags) -> Result<Self, EtcdError> {
        let mut listeners = Vec::new();
        for url in &flags.listen_client_urls {
            let (host, tls) = parse_url(url)?;
            let tls = if tls { Some(tls_config(&flags)?) } else { None };
            let listener = TcpListener::bind(host)
                .await
                .map_err(|source| EtcdError::Listen { url: url.clone(), source })?;
            listeners.push((listener, tls));
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

    /// Where clients can connect.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.listeners.iter().map(|(listener, _)| listener.local_addr()).collect()
    }

    /// Serves until `shutdown`, and closes the store.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), EtcdError> {
        let mut servers = JoinSet::new();
        let stop = shutdown.child_token();
        for (listener, tls) in self.listeners {
            let mut server = tonic::transport::Server::builder()
                .accept_http1(true)
                .tcp_nodelay(true)
                .max_concurrent_streams(STREAMS_PER_CONNECTION)
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES);
            if let Some(tls) = tls {
                server = server.tls_config(tls).map_err(EtcdError::Serve)?;
            }
            let server = server.add_routes(routes(&self.member));
            let stop = stop.clone().cancelled_owned();
            servers.spawn(server.serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop));
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

fn routes(member: &Member) -> Routes {
    let grpc = Routes::new(PbKvServer::new(member.clone()).max_decoding_message_size(REQUEST_BYTES))
        .add_service(PbWatchServer::new(member.clone()))
        .add_service(PbLeaseServer::new(member.clone()))
        .add_service(PbMaintenanceServer::new(member.clone()))
        .add_service(PbClusterServer::new(member.clone()))
        .add_service(AuthDisabled);
    let version = serde_json::json!({ "etcdserver": API_VERSION, "etcdcluster": API_VERSION }).to_string();
    grpc.into_axum_router()
        .route("/health", get(|| async { r#"{"health":"true","reason":""}"# }))
        .route("/version", get(|| async { version }))
        .into()
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
