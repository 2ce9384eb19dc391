//! Wiring: builds what the parts share, starts them, and waits for the end.

use std::fs;
use std::sync::{Arc, RwLock};

use kube::Client;
use reconcile::SharedClock;
use reconcile::clock::RealClock;
use reconcile::events::{EventBroadcaster, EventRecorder};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::Api;
use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::container::dns::{self, ClusterDns};
use crate::container::security::SeccompRules;
use crate::context::Context;
use crate::error::KubeletError;
use crate::images::Images;
use crate::node::facts::NodeState;
use crate::node::machine::Machine;
use crate::node::register::{Registrar, follow};
use crate::node::{lease, status::Pressure};
use crate::objects::ObjectWatches;
use crate::pod::handle::PodTable;
use crate::pod::manager::Manager;
use crate::recorder::Recorder;
use crate::runtime::Runtime;
use crate::sources::{self, Source};
use crate::volumes::Volumes;
use crate::{housekeeping, runtime_events, server};

const EVENT_SOURCE: &str = "kubelet";
const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// Runs a kubelet until `shutdown`. Pods keep running when it ends. Without a client only static pods run.
pub async fn run(
    config: Config,
    client: Option<Client>,
    shutdown: CancellationToken,
) -> Result<(), KubeletError> {
    let clock = RealClock::shared();
    let machine = prepare(&config)?;
    let broadcaster = client.clone().map(|c| EventBroadcaster::new(c, clock.clone(), &config.node_name));
    let recorder = match &broadcaster {
        Some(broadcaster) => broadcaster.recorder(EVENT_SOURCE),
        None => EventRecorder::discarding(),
    };
    let changed = Arc::new(Notify::new());
    let context = Arc::new(build(config, client, clock, &machine, recorder, changed.clone()).await?);
    let (pressure_sender, pressure) = watch::channel(Pressure::default());
    let mut tasks = JoinSet::new();
    let stop = shutdown.child_token();
    let _stop_all = stop.clone().drop_guard();
    let port = server::start(&context, &mut tasks, stop.clone()).await?;
    if let Some(broadcaster) = broadcaster {
        let stop = stop.clone();
        tasks.spawn(async move { broadcaster.run(stop).await });
    }
    let updates = start_sources(&context, &mut tasks, &stop);
    let manager = Manager::new(context.clone(), updates.0, updates.1);
    tasks.spawn(manager.run(stop.clone()));
    until(&mut tasks, &stop, runtime_events::run(context.clone()));
    until(&mut tasks, &stop, housekeeping::run(context.clone(), pressure_sender));
    if context.api.client().is_some() {
        let registrar =
            Registrar { context: context.clone(), machine, changed: changed.clone(), pressure, port };
        until(&mut tasks, &stop, registrar.run());
        until(&mut tasks, &stop, lease::run(context.clone()));
        until(&mut tasks, &stop, follow(context.clone(), changed));
    }
    let config = &context.config.kubelet;
    context.recorder.node(reconcile::events::EventType::Normal, "Starting", "Starting kubelet.");
    info!(
        node = context.config.node_name,
        runtime = config.container_runtime_endpoint,
        port,
        "kubelet started"
    );
    shutdown.cancelled().await;
    while tasks.join_next().await.is_some() {}
    if let Some(cgroups) = &context.cgroups {
        cgroups.remove_root();
    }
    Ok(())
}

fn until(tasks: &mut JoinSet<()>, stop: &CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    let stop = stop.clone();
    tasks.spawn(async move {
        // Nothing is lost when it is cut off: what it did is in the API or the runtime.
        stop.run_until_cancelled(work).await;
    });
}

fn prepare(config: &Config) -> Result<Machine, KubeletError> {
    if !config.ignored_flags.is_empty() {
        info!(flags = config.ignored_flags.join(","), "flags without effect");
    }
    let unused: Vec<&str> = config.kubelet.unused.keys().map(String::as_str).collect();
    if !unused.is_empty() {
        warn!(fields = unused.join(","), "configuration fields without effect");
    }
    for path in [&config.root_dir.join("pods"), &config.kubelet.pod_logs_dir] {
        fs::create_dir_all(path).map_err(|source| KubeletError::Write { path: path.clone(), source })?;
    }
    let machine = Machine::read(&config.root_dir, &config.node_ips);
    if config.kubelet.fail_swap_on && machine.swap_bytes > 0 {
        return Err(KubeletError::SwapOn);
    }
    Ok(machine)
}

async fn build(
    config: Config,
    client: Option<Client>,
    clock: SharedClock,
    machine: &Machine,
    events: EventRecorder,
    changed: Arc<Notify>,
) -> Result<Context, KubeletError> {
    let kubelet = &config.kubelet;
    let runtime =
        Runtime::connect(&kubelet.container_runtime_endpoint, &kubelet.image_service_endpoint).await?;
    let cgroups = kubelet.cgroups_per_qos.then(|| Cgroups::detect(&kubelet.cgroup_root)).transpose();
    let cgroups = cgroups.map_err(|e| KubeletError::Cgroups { source: e.into() })?;
    let api = Api::new(client);
    let recorder = Recorder::new(events, &config.node_name);
    let parallel = match (kubelet.serialize_image_pulls, kubelet.max_parallel_image_pulls) {
        (_, Some(limit)) => limit,
        (Some(true), None) => 1,
        // Upstream serializes by default for the sake of old Docker storage drivers.
        (_, None) => usize::MAX,
    };
    let host = fs::read_to_string(&kubelet.resolv_conf).unwrap_or_default();
    Ok(Context {
        volumes: Volumes::new(&config.root_dir, api.clone()),
        images: Images::new(runtime.clone(), api.clone(), recorder.clone(), parallel, changed),
        seccomp: SeccompRules {
            root: config.root_dir.join("seccomp").display().to_string(),
            default_profile: kubelet.seccomp_default,
        },
        cluster_dns: ClusterDns {
            servers: kubelet.cluster_dns.clone(),
            domain: kubelet.cluster_domain.clone(),
            host: dns::parse(&host),
        },
        lowest_oom_score: lowest_oom_score(),
        node: RwLock::new(Arc::new(NodeState::new(&config, machine))),
        objects: ObjectWatches::default(),
        pods: PodTable::default(),
        rates: Default::default(),
        probe_counts: Default::default(),
        config,
        runtime,
        api,
        clock,
        cgroups,
        recorder,
    })
}

/// Without CAP_SYS_RESOURCE nobody may go below the score this process has.
fn lowest_oom_score() -> i64 {
    const LOWEST: i64 = -1000;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    if effective & CAP_SYS_RESOURCE != 0 {
        return LOWEST;
    }
    let own = fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse().ok());
    let lowest = own.unwrap_or(0);
    info!(lowest, "no CAP_SYS_RESOURCE: OOM scores are clamped");
    lowest
}

type Updates = (mpsc::Receiver<sources::SourceUpdate>, Vec<Source>);

fn start_sources(context: &Arc<Context>, tasks: &mut JoinSet<()>, stop: &CancellationToken) -> Updates {
    let (sender, receiver) = mpsc::channel(sources::UPDATES);
    let name = &context.config.node_name;
    let kubelet = &context.config.kubelet;
    let mut started = Vec::new();
    if let Some(client) = context.api.client() {
        started.push(Source::Api);
        until(tasks, stop, sources::api::run(client.clone(), name.clone(), sender.clone()));
    }
    if let Some(path) = &kubelet.static_pod_path {
        started.push(Source::File);
        let every = kubelet.file_check_frequency;
        until(tasks, stop, sources::file::run(path.clone(), name.clone(), every, sender.clone()));
    }
    if let Some(url) = &kubelet.static_pod_url {
        started.push(Source::Http);
        let every = kubelet.http_check_frequency;
        until(tasks, stop, sources::http::run(url.clone(), name.clone(), every, sender));
    }
    (receiver, started)
}
