//! Scheduler, controllers, runtime and kubelet, each as its own user, each restarted alone when it fails.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use apiserver::assembly::ApiServer;
use apiserver::attributes::UserInfo;
use container_runtime::{LoopbackNetwork, SupervisorCommand};
use kube::Client;
use reconcile::Informers;
use reconcile::clock::RealClock;
use reconcile::queue::QueueMetrics;
use reconcile::supervisor::Supervisor;
use tokio_util::sync::CancellationToken;
use tracing::error;

const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
/// The subcommand under which the runtime starts a pod's supervisor.
pub(crate) const SUPERVISOR: &str = "container-supervisor";

/// What a node of this process is made of.
#[derive(Debug, Clone)]
pub(super) struct NodeOptions {
    pub name: String,
    pub address: IpAddr,
    pub data_dir: PathBuf,
    /// Empty for Coracle's own runtime.
    pub runtime_endpoint: String,
    pub kubelet_port: u16,
    pub cgroup_root: String,
    pub client_ca: PathBuf,
    pub serving: (PathBuf, PathBuf),
}

/// What the control plane's controllers sign and publish.
#[derive(Debug, Clone)]
pub(super) struct ControllerOptions {
    pub root_ca: String,
    pub pki_dir: PathBuf,
    pub service_cidr: String,
}

/// Makes the clients of components: in this process, each under its own name.
#[derive(Debug, Clone)]
pub(super) struct Clients(pub ApiServer);

impl Clients {
    /// A client that acts as `username`, with the groups that belong to such a name.
    pub(super) fn of(&self, username: &str) -> anyhow::Result<Client> {
        let service =
            self.0.in_process(UserInfo { groups: groups(username), ..UserInfo::new(username, &[]) });
        Ok(client::in_process(service, (), username.rsplit(':').next().unwrap_or(username))?)
    }
}

fn groups(username: &str) -> Vec<String> {
    if let Some(account) = username.strip_prefix(SERVICE_ACCOUNT) {
        let namespace = account.split(':').next().unwrap_or_default();
        return vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    }
    if username.starts_with("system:node:") { vec!["system:nodes".to_owned()] } else { Vec::new() }
}

/// Starts the scheduler and the controllers.
pub(super) fn control_plane(
    supervisor: &mut Supervisor,
    clients: &Clients,
    options: &ControllerOptions,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let scheduler = clients.of("system:kube-scheduler")?;
    supervisor.spawn("kube-scheduler", move |shutdown| {
        let (client, mut config) = (scheduler.clone(), scheduler::Config::default());
        config.leader_election.leader_elect = false;
        async move {
            if let Err(error) = scheduler::run(config, client, shutdown).await {
                error!(%error, "scheduler failed");
            }
        }
    });
    let mut config = controller_manager::Config {
        root_ca: Some(options.root_ca.clone()),
        service_cidrs: vec![options.service_cidr.clone()],
        ..controller_manager::Config::default()
    };
    config.cluster_signing = Some(controller_manager::config::SigningFiles {
        certificate: options.pki_dir.join("ca.crt"),
        key: options.pki_dir.join("ca.key"),
    });
    let manager = clients.of("system:kube-controller-manager")?;
    let (clients, shutdown) = (clients.clone(), shutdown.clone());
    let fallback = manager.clone();
    supervisor.spawn("kube-controller-manager", move |stop| {
        let clock = RealClock::shared();
        let shared = controller_manager::Shared {
            informers: Informers::new(manager.clone(), clock.clone(), shutdown.child_token()),
            clock,
            metrics: QueueMetrics::default(),
            host: "coracle".to_owned(),
        };
        let (clients, fallback) = (clients.clone(), fallback.clone());
        let client_for = move |username: &str| clients.of(username).unwrap_or_else(|_| fallback.clone());
        controller_manager::run(config.clone(), shared, client_for, stop)
    });
    Ok(())
}

/// Starts the runtime (unless another one is named) and the kubelet.
pub(super) fn node(
    supervisor: &mut Supervisor,
    clients: &Clients,
    options: &NodeOptions,
) -> anyhow::Result<()> {
    let mut endpoint = options.runtime_endpoint.clone();
    if endpoint.is_empty() {
        let socket = options.data_dir.join("runtime.sock");
        endpoint = format!("unix://{}", socket.display());
        let config = runtime_config(options, socket)?;
        supervisor.spawn("container-runtime", move |shutdown| {
            let config = config.clone();
            async move {
                if let Err(error) = container_runtime::run(config, shutdown).await {
                    error!(%error, "container runtime failed");
                }
            }
        });
    }
    let config = kubelet_config(options, endpoint);
    let client = clients.of(&format!("system:node:{}", options.name))?;
    supervisor.spawn("kubelet", move |shutdown| {
        let (config, client) = (config.clone(), client.clone());
        async move {
            if let Err(error) = kubelet::run(config, Some(client), shutdown).await {
                error!(%error, "kubelet failed");
            }
        }
    });
    Ok(())
}

fn runtime_config(options: &NodeOptions, socket: PathBuf) -> anyhow::Result<container_runtime::Config> {
    Ok(container_runtime::Config {
        state_dir: images_dir(&options.data_dir),
        socket,
        cgroup_root: format!("/{}", options.cgroup_root.trim_matches('/')),
        registry_config_dir: None,
        supervisor: SupervisorCommand {
            program: std::env::current_exe().context("cannot find this program's own file")?,
            args: vec![OsString::from(SUPERVISOR)],
        },
        network: Arc::new(LoopbackNetwork),
        streaming_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    })
}

/// Where the runtime of a data directory keeps images and containers.
pub(crate) fn images_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("containers")
}

fn kubelet_config(options: &NodeOptions, endpoint: String) -> kubelet::Config {
    let mut config = kubelet::Config::new(options.name.clone(), options.data_dir.join("kubelet"));
    config.node_ips = vec![options.address];
    config.kubelet.container_runtime_endpoint = endpoint;
    config.kubelet.port = options.kubelet_port;
    config.kubelet.cgroup_root = format!("/{}", options.cgroup_root.trim_matches('/'));
    config.kubelet.pod_logs_dir = options.data_dir.join("logs/pods");
    config.kubelet.static_pod_path = Some(options.data_dir.join("manifests"));
    config.kubelet.fail_swap_on = false;
    config.kubelet.authentication.x509.client_ca_file = Some(options.client_ca.clone());
    config.kubelet.tls_cert_file = Some(options.serving.0.clone());
    config.kubelet.tls_private_key_file = Some(options.serving.1.clone());
    config
}
