//! `coracle up`: the whole cluster in one process.

pub(crate) mod components;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use apiserver::assembly::{AdmissionOptions, ApiServer, Config};
use apiserver::authn::request_header::RequestHeaderOptions;
use apiserver::authn::union::Anonymous;
use apiserver::extensions::Version;
use apiserver::front::listen;
use apiserver::pki::{Pki, PkiOptions};
use apiserver::tokens::TokenConfig;
use clap::Args;
use components::{Clients, ControllerOptions, NodeOptions};
use reconcile::clock::RealClock;
use reconcile::supervisor::Supervisor;
use store_embedded::{EmbeddedStore, Options};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long running requests may take when the server stops.
const DRAIN: Duration = Duration::from_secs(5);
const NODE_RESTRICTION: &str = "NodeRestriction";

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Where the cluster keeps its state, certificates and images.
    #[arg(long, default_value = "/var/lib/coracle")]
    data_dir: PathBuf,
    /// The port of the API server; 0 lets the system choose.
    #[arg(long, default_value_t = 6443)]
    secure_port: u16,
    /// The address the API server listens on.
    #[arg(long, default_value = "127.0.0.1")]
    bind_address: IpAddr,
    /// Write a kubeconfig for the administrator here.
    #[arg(long)]
    write_kubeconfig: Option<PathBuf>,
    /// Run no node: no containers, no network, no root needed.
    #[arg(long)]
    no_node: bool,
    /// The name of this process's node; the host's name if not given.
    #[arg(long)]
    node_name: Option<String>,
    /// The node's address; that of the default route if not given.
    #[arg(long)]
    node_ip: Option<IpAddr>,
    /// A CRI runtime to use instead of the built-in one, such as unix:///run/containerd/containerd.sock.
    #[arg(long, default_value = "")]
    container_runtime_endpoint: String,
    /// The port of the kubelet; 0 lets the system choose.
    #[arg(long, default_value_t = 10_250)]
    kubelet_port: u16,
    /// The cgroup under which pods run.
    #[arg(long, default_value = "/")]
    cgroup_root: String,
    /// Addresses of services.
    #[arg(long, default_value = "10.96.0.0/12")]
    service_cidr: String,
    /// Admission plugins to run beside the default ones.
    #[arg(long, value_delimiter = ',')]
    enable_admission_plugins: Vec<String>,
    /// Admission plugins not to run.
    #[arg(long, value_delimiter = ',')]
    disable_admission_plugins: Vec<String>,
    /// Do not wait for the disk; for clusters that may be thrown away.
    #[arg(long)]
    unsafe_no_fsync: bool,
}

impl Up {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let started = Instant::now();
        tracing_subscriber::fmt()
            .with_env_filter(
                tracing_subscriber::EnvFilter::try_from_env("CORACLE_LOG")
                    .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
            )
            .with_writer(std::io::stderr)
            .init();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(self.serve(started))
    }

    async fn serve(self, started: Instant) -> anyhow::Result<()> {
        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let store = EmbeddedStore::open(
            self.data_dir.join("state"),
            Options { fsync: !self.unsafe_no_fsync, ..Options::default() },
        )
        .with_context(|| format!("cannot open cluster state in {}", self.data_dir.display()))?;
        let listener = TcpListener::bind((self.bind_address, self.secure_port))
            .await
            .with_context(|| format!("cannot listen on {}:{}", self.bind_address, self.secure_port))?;
        let port = listener.local_addr()?.port();
        let service_ip = first_service_ip(&self.service_cidr)?;
        let now = jiff::Timestamp::now();
        let pki = Pki::ensure(
            &PkiOptions {
                directory: self.data_dir.join("pki"),
                service_ip,
                cluster_domain: "cluster.local".to_owned(),
                server_names: vec![self.bind_address.to_string(), "127.0.0.1".to_owned()],
            },
            now,
        )?;
        let advertise = if self.bind_address.is_unspecified() {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            self.bind_address
        };
        let url = format!("https://{advertise}:{port}");
        let config = self.config(&pki, Arc::new(store), service_ip, advertise, port);
        let api = ApiServer::start(config, &tasks, &shutdown).await?;
        let tls =
            listen::tls_config(pki.apiserver.certificate_pem.as_bytes(), pki.apiserver.key_pem.as_bytes())?;
        let serving = listen::serve(listener, tls, Arc::clone(api.server()), DRAIN, shutdown.child_token());
        let serving = tokio::spawn(serving);
        let admin = pki.client("admin", "kubernetes-admin", Some("system:masters"), now)?;
        let kubeconfig = pki.kubeconfig(&url, "coracle", "kubernetes-admin", &admin);
        write_private(&self.data_dir.join("admin.conf"), &kubeconfig)?;
        if let Some(path) = &self.write_kubeconfig {
            write_private(path, &kubeconfig)?;
        }
        api.ready().await;
        let mut supervisor = Supervisor::new(RealClock::shared(), shutdown.clone());
        let clients = Clients(api.clone());
        let controllers = ControllerOptions {
            root_ca: pki.authority.certificate_pem().to_owned(),
            pki_dir: self.data_dir.join("pki"),
            service_cidr: self.service_cidr.clone(),
        };
        components::control_plane(&mut supervisor, &clients, &controllers, &shutdown)?;
        if !self.no_node {
            components::node(&mut supervisor, &clients, &self.node_options(&pki, now)?)?;
        }
        let components = tokio::spawn(supervisor.run());
        super::say(&format!("coracle is ready at {url} after {} ms", started.elapsed().as_millis()));
        wait_for_signal().await?;
        shutdown.cancel();
        components.await?;
        serving.await?;
        tasks.close();
        tokio::time::timeout(DRAIN, tasks.wait()).await.ok();
        Ok(())
    }

    /// Kubelets are restricted to their nodes, as kubeadm has it.
    fn admission(&self) -> AdmissionOptions {
        let mut enabled = self.enable_admission_plugins.clone();
        let disabled = self.disable_admission_plugins.clone();
        let own = |plugin: &str| enabled.iter().chain(&disabled).any(|name| name == plugin);
        let restrict_nodes = !own(NODE_RESTRICTION);
        enabled.extend(restrict_nodes.then(|| NODE_RESTRICTION.to_owned()));
        AdmissionOptions { enabled, disabled, ..AdmissionOptions::default() }
    }

    fn node_options(&self, pki: &Pki, now: jiff::Timestamp) -> anyhow::Result<NodeOptions> {
        let name = match &self.node_name {
            Some(name) => name.clone(),
            None => std::fs::read_to_string("/proc/sys/kernel/hostname")
                .context("cannot find out the host's name")?
                .trim()
                .to_lowercase(),
        };
        let address = self.node_ip.unwrap_or_else(own_address);
        pki.serving("kubelet", &format!("system:node:{name}"), &[name.clone(), address.to_string()], now)?;
        let directory = self.data_dir.join("pki");
        Ok(NodeOptions {
            name,
            address,
            data_dir: self.data_dir.clone(),
            runtime_endpoint: self.container_runtime_endpoint.clone(),
            kubelet_port: self.kubelet_port,
            cgroup_root: self.cgroup_root.clone(),
            client_ca: directory.join("ca.crt"),
            serving: (directory.join("kubelet.crt"), directory.join("kubelet.key")),
        })
    }

    fn config(
        &self,
        pki: &Pki,
        store: Arc<EmbeddedStore>,
        service_ip: IpAddr,
        advertise: IpAddr,
        port: u16,
    ) -> Config {
        let issuer = "https://kubernetes.default.svc.cluster.local".to_owned();
        Config {
            store,
            shared_store: false,
            client_ca: Some(pki.authority.certificate_pem().to_owned()),
            request_header: Some((
                pki.front_proxy_authority.certificate_pem().to_owned(),
                RequestHeaderOptions::default(),
            )),
            tokens: TokenConfig {
                api_audiences: vec![issuer.clone()],
                jwks_uri: format!("https://{advertise}:{port}/openid/v1/jwks"),
                issuers: vec![issuer],
                public_keys: vec![Arc::new(pki.service_account_key.public().clone())],
                signing_key: Some(Arc::new(pki.service_account_key.clone())),
                max_expiration: None,
                extend_expiration: true,
            },
            static_tokens: None,
            anonymous: Anonymous::Allowed,
            authorization_modes: vec!["Node".to_owned(), "RBAC".to_owned()],
            admission: self.admission(),
            kubelet_client: Some((
                pki.kubelet_client.certificate_pem.clone(),
                pki.kubelet_client.key_pem.clone(),
            )),
            kubelet_ca: Some(pki.authority.certificate_pem().to_owned()),
            service_ip,
            service_cidrs: vec![self.service_cidr.clone()],
            advertise_address: advertise,
            port,
            version: version(),
        }
    }
}

fn version() -> Version {
    Version { major: "1", minor: "36", git_version: format!("v1.36.0+coracle-{}", env!("CARGO_PKG_VERSION")) }
}

/// The address that packets to elsewhere would leave from; loopback without a route. Nothing is sent.
fn own_address() -> IpAddr {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let Ok(socket) = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) else { return loopback };
    if socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).is_err() {
        return loopback;
    }
    socket.local_addr().map_or(loopback, |own| own.ip())
}

/// The first address of the range, which is the API server's own service.
fn first_service_ip(cidr: &str) -> anyhow::Result<IpAddr> {
    let (base, _) = cidr.split_once('/').context("--service-cidr must be address/bits")?;
    Ok(match base.parse::<IpAddr>().context("--service-cidr")? {
        IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from_bits(base.to_bits() + 1)),
        IpAddr::V6(base) => IpAddr::V6(std::net::Ipv6Addr::from_bits(base.to_bits() + 1)),
    })
}

/// Writes a file that only its owner may read, whole or not at all.
fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let draft = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .with_context(|| format!("cannot write {}", draft.display()))?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&draft, path).with_context(|| format!("cannot write {}", path.display()))
}

async fn wait_for_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
