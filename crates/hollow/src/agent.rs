//! The one task that is the kubelet of every hollow node.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use meta::names::NamespacedName;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use reconcile::clock::RealClock;
use reconcile::{Informer, Informers, SharedClock, chain, key_of};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::node::{self, LEASE_NAMESPACE};
use crate::status::{self, Addresses, Life};
use crate::timers::Timers;
use crate::{Options, POWER_ANNOTATION, RUN_SECONDS_ANNOTATION};

/// Requests under way at most.
const MAX_WRITES: usize = 128;
const RETRY: Duration = Duration::from_secs(1);
/// Node objects are written anew this often even when nothing changed, as upstream does.
const STATUS_INTERVAL: Duration = Duration::from_secs(300);

/// Runs `count` hollow nodes with informers of their own until shutdown.
pub async fn run(count: u32, client: Client, options: Options, shutdown: CancellationToken) {
    let clock = RealClock::shared();
    let informers = Informers::new(client.clone(), Arc::clone(&clock), shutdown.clone());
    run_with(count, client, options, &informers, clock, shutdown).await;
}

/// Runs `count` hollow nodes on shared informers until shutdown.
pub async fn run_with(
    count: u32,
    client: Client,
    options: Options,
    informers: &Informers,
    clock: SharedClock,
    shutdown: CancellationToken,
) {
    let inbox = Arc::new(Inbox::default());
    let (nodes, pods) = (informers.of::<Node>(), informers.of::<Pod>());
    let names: HashMap<String, u32> = (0..count).map(|index| (node::name(&options, index), index)).collect();
    let own = Arc::new(names.clone());
    let (seen, filter) = (Arc::clone(&inbox), Arc::clone(&own));
    let _nodes = nodes.subscribe(move |event| {
        let key = key_of(&**event.object());
        if filter.contains_key(&key.name) {
            seen.push(Seen::Node(key));
        }
    });
    let seen = Arc::clone(&inbox);
    let _pods = pods.subscribe(move |event| {
        if node_of(event.object()).is_some_and(|node| own.contains_key(node)) {
            seen.push(Seen::Pod(key_of(&**event.object())));
        }
    });
    let agent = Agent {
        rng: SmallRng::seed_from_u64(options.seed),
        hollow: (0..count).map(|_| Hollow::default()).collect(),
        pods_here: HashMap::new(),
        timers: Timers::default(),
        writes: JoinSet::new(),
        names,
        options,
        client,
        clock,
        inbox,
        nodes,
        pods,
    };
    agent.run(shutdown).await;
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// Changed objects, each once however often it changed.
#[derive(Debug, Default)]
struct Inbox {
    pending: Mutex<HashSet<Seen>>,
    notify: Notify,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Seen {
    Node(NamespacedName),
    Pod(NamespacedName),
}

impl Inbox {
    fn push(&self, seen: Seen) {
        if self.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(seen) {
            self.notify.notify_one();
        }
    }

    fn take(&self) -> HashSet<Seen> {
        std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One hollow node.
#[derive(Debug, Default)]
struct Hollow {
    /// Of the node object; none while there is none.
    uid: Option<String>,
    /// It registered once: when its object is deleted, it is not made again.
    registered: bool,
    off: bool,
    beating: bool,
    used_ips: HashSet<u8>,
    next_ip: u8,
}

/// A pod on one of the nodes.
#[derive(Debug)]
struct Here {
    uid: String,
    node: u32,
    ip: Option<u8>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starting,
    Running,
    Stopping,
    Ended,
}

#[derive(Debug)]
enum Due {
    Register(u32),
    Heartbeat(u32),
    Status(u32),
    Look(NamespacedName),
    Become(NamespacedName, String, Life),
    Delete(NamespacedName, String),
}

/// A finished write: what to do when it failed, and the error.
type Outcome = Result<Done, (Due, kube::Error)>;

#[derive(Debug)]
enum Done {
    Registered(u32),
    Other,
}

struct Agent {
    options: Options,
    client: Client,
    clock: SharedClock,
    inbox: Arc<Inbox>,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    names: HashMap<String, u32>,
    hollow: Vec<Hollow>,
    pods_here: HashMap<NamespacedName, Here>,
    timers: Timers<Due>,
    rng: SmallRng,
    writes: JoinSet<Outcome>,
}

impl Agent {
    async fn run(mut self, shutdown: CancellationToken) {
        let synced = async {
            self.nodes.synced().await;
            self.pods.synced().await;
        };
        if shutdown.run_until_cancelled(synced).await.is_none() {
            return;
        }
        info!(nodes = self.hollow.len(), "hollow nodes started");
        let now = self.clock.monotonic();
        let existing: HashSet<String> = self.nodes.list().iter().map(|node| key_of(&**node).name).collect();
        for (name, index) in &self.names {
            if !existing.contains(name) {
                self.timers.push(now, Due::Register(*index));
            }
        }
        while !shutdown.is_cancelled() {
            for seen in self.inbox.take() {
                match seen {
                    Seen::Node(key) => self.look_at_node(&key),
                    Seen::Pod(key) => self.look_at_pod(&key),
                }
            }
            let now = self.clock.monotonic();
            while self.writes.len() < MAX_WRITES
                && let Some(due) = self.timers.pop(now)
            {
                self.act(due);
            }
            let next = if self.writes.len() < MAX_WRITES { self.timers.next() } else { None };
            let timer = sleep_until(Arc::clone(&self.clock), next);
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.inbox.notify.notified() => {}
                Some(outcome) = self.writes.join_next() => self.finish(outcome),
                () = timer => {}
            }
        }
        self.writes.shutdown().await;
    }

    fn finish(&mut self, outcome: Result<Outcome, tokio::task::JoinError>) {
        match outcome {
            Ok(Ok(Done::Registered(index))) => {
                if let Some(hollow) = self.hollow.get_mut(index as usize) {
                    hollow.registered = true;
                }
            }
            Ok(Ok(Done::Other)) => {}
            Ok(Err((due, error))) => {
                debug!(due = ?due, error = %chain(&error), "a hollow node's request failed");
                // Gone is gone; anything else is tried again after another look.
                if !matches!(&error, kube::Error::Api(status) if status.code == 404) {
                    let again = match due {
                        Due::Become(key, ..) | Due::Delete(key, _) => Due::Look(key),
                        other => other,
                    };
                    self.timers.push(self.clock.monotonic() + RETRY, again);
                }
            }
            Err(error) => debug!(error = %chain(&error), "a hollow node's request ended early"),
        }
    }

    fn look_at_node(&mut self, key: &NamespacedName) {
        let Some(index) = self.names.get(&key.name).copied() else { return };
        let object = self.nodes.get(key);
        let now = self.clock.monotonic();
        let Some(hollow) = self.hollow.get_mut(index as usize) else { return };
        let Some(object) = object else {
            // Deleted: it stays away, like a kubelet that is not restarted.
            hollow.uid = None;
            self.pods_here.retain(|_, pod| pod.node != index);
            return;
        };
        hollow.registered = true;
        hollow.uid = object.metadata.uid.clone();
        let power = object.metadata.annotations.as_ref().and_then(|own| own.get(POWER_ANNOTATION));
        let was_off = std::mem::replace(&mut hollow.off, power.is_some_and(|power| power == "off"));
        if !hollow.off && !hollow.beating {
            hollow.beating = true;
            // Spread the beats of all nodes over the interval.
            self.timers.push(now, Due::Heartbeat(index));
            let share = f64::from(index) / self.names.len().max(1) as f64;
            self.timers.push(now + STATUS_INTERVAL.mul_f64(1.0 + share), Due::Status(index));
        }
        if was_off && !hollow.off {
            self.timers.push(now, Due::Status(index));
            for pod in self.pods.list() {
                if node_of(&pod) == Some(&*key.name) {
                    self.timers.push(now, Due::Look(key_of(&*pod)));
                }
            }
        }
    }

    fn look_at_pod(&mut self, key: &NamespacedName) {
        let pod = self.pods.get(key);
        let uid = pod.as_ref().and_then(|pod| pod.metadata.uid.clone());
        if self.pods_here.get(key).is_some_and(|own| Some(&own.uid) != uid.as_ref()) {
            self.forget(key);
        }
        let (Some(pod), Some(uid)) = (pod, uid) else { return };
        let Some(index) = node_of(&pod).and_then(|node| self.names.get(node)).copied() else { return };
        if !self.hollow.get(index as usize).is_some_and(|node| node.uid.is_some() && !node.off) {
            self.timers_for_absent_node(index, key);
            return;
        }
        let now = self.clock.monotonic();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
        let here = self.pods_here.entry(key.clone()).or_insert_with(|| Here {
            uid: uid.clone(),
            node: index,
            ip: taken_over(&pod, index),
            stage: arrival(phase),
        });
        if pod.metadata.deletion_timestamp.is_some() {
            if here.stage != Stage::Stopping {
                here.stage = Stage::Stopping;
                let grace =
                    u64::try_from(pod.metadata.deletion_grace_period_seconds.unwrap_or(0)).unwrap_or(0);
                let wait = self.options.stop_latency.min(Duration::from_secs(grace));
                self.timers.push(now + wait, Due::Delete(key.clone(), uid));
            }
            return;
        }
        if let (Some(ip), Some(node)) = (here.ip, self.hollow.get_mut(index as usize)) {
            node.used_ips.insert(ip);
        }
        if phase == "Pending" && here.stage != Stage::Starting {
            here.stage = Stage::Starting;
            let fails = self.rng.random::<f64>() < self.options.failure_rate;
            let life = if fails { Life::Failed } else { Life::Running };
            self.timers.push(now + self.options.startup_latency, Due::Become(key.clone(), uid, life));
        } else if phase == "Running" && here.stage == Stage::Starting {
            here.stage = Stage::Running;
            if let Some(run_time) = run_time(&pod, self.options.run_time) {
                self.timers.push(now + run_time, Due::Become(key.clone(), uid, Life::Succeeded));
            }
        } else if phase == "Running" && here.stage == Stage::Running && status::became_ready(&pod) {
            self.timers.push(now, Due::Become(key.clone(), uid, Life::Running));
        }
    }

    /// A pod of a node that is off, or whose object is not seen yet, waits; nothing is done for it.
    fn timers_for_absent_node(&mut self, index: u32, key: &NamespacedName) {
        let waits =
            self.hollow.get(index as usize).is_some_and(|node| node.uid.is_none() && !node.registered);
        if waits {
            self.timers.push(self.clock.monotonic() + RETRY, Due::Look(key.clone()));
        }
    }

    fn forget(&mut self, key: &NamespacedName) {
        let Some(pod) = self.pods_here.remove(key) else { return };
        if let (Some(ip), Some(node)) = (pod.ip, self.hollow.get_mut(pod.node as usize)) {
            node.used_ips.remove(&ip);
        }
    }

    fn act(&mut self, due: Due) {
        match due {
            Due::Register(index) => self.register(index),
            Due::Heartbeat(index) => self.heartbeat(index),
            Due::Status(index) => self.write_node_status(index),
            Due::Look(key) => {
                let phase = self.pods.get(&key).and_then(|pod| pod.status.as_ref()?.phase.clone());
                if let Some(pod) = self.pods_here.get_mut(&key) {
                    pod.stage = arrival(phase.as_deref().unwrap_or("Pending"));
                }
                self.look_at_pod(&key);
            }
            Due::Become(key, uid, life) => self.become_(key, uid, life),
            Due::Delete(key, uid) => self.delete(key, uid),
        }
    }

    fn register(&mut self, index: u32) {
        let now = self.clock.now();
        let Ok(object) = node::node(&self.options, index, now) else { return };
        let api: Api<Node> = Api::all(self.client.clone());
        self.writes.spawn(async move {
            match api.create(&PostParams::default(), &object).await {
                Ok(_) => Ok(Done::Registered(index)),
                // It was there all along: the watch will show it.
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(Done::Registered(index)),
                Err(error) => Err((Due::Register(index), error)),
            }
        });
    }

    fn heartbeat(&mut self, index: u32) {
        let Some(hollow) = self.hollow.get_mut(index as usize) else { return };
        let Some(uid) = hollow.uid.clone().filter(|_| !hollow.off) else {
            hollow.beating = false;
            return;
        };
        let interval = self.options.heartbeat_interval;
        // A little early at random, so that the beats of many nodes drift apart.
        let wait = interval.mul_f64(1.0 - 0.05 * self.rng.random::<f64>());
        self.timers.push(self.clock.monotonic() + wait, Due::Heartbeat(index));
        let (name, now) = (node::name(&self.options, index), self.clock.now());
        let api: Api<Lease> = Api::namespaced(self.client.clone(), LEASE_NAMESPACE);
        self.writes.spawn(async move {
            let patch = Patch::Merge(node::renewal(now));
            let result = match api.patch(&name, &PatchParams::default(), &patch).await {
                Err(kube::Error::Api(status)) if status.code == 404 => match node::lease(&name, &uid, now) {
                    Ok(lease) => api.create(&PostParams::default(), &lease).await.map(|_| ()),
                    Err(error) => Err(kube::Error::SerdeError(error)),
                },
                other => other.map(|_| ()),
            };
            if let Err(error) = result {
                // The next beat is due anyway.
                debug!(node = %name, error = %chain(&error), "lease not renewed");
            }
            Ok(Done::Other)
        });
    }

    fn write_node_status(&mut self, index: u32) {
        let Some(hollow) = self.hollow.get(index as usize) else { return };
        if hollow.uid.is_none() || hollow.off {
            return;
        }
        let name = node::name(&self.options, index);
        let mut status = node::status(&self.options, index, self.clock.now());
        // What others changed stays: extended resources are patched into the capacity.
        for field in ["capacity", "allocatable", "addresses", "nodeInfo", "daemonEndpoints"] {
            status.as_object_mut().and_then(|status| status.remove(field));
        }
        let api: Api<Node> = Api::all(self.client.clone());
        self.timers.push(self.clock.monotonic() + STATUS_INTERVAL, Due::Status(index));
        self.writes.spawn(async move {
            let patch = Patch::Strategic(serde_json::json!({"status": status}));
            if let Err(error) = api.patch_status(&name, &PatchParams::default(), &patch).await {
                debug!(node = %name, error = %chain(&error), "node status not written");
            }
            Ok(Done::Other)
        });
    }

    fn become_(&mut self, key: NamespacedName, uid: String, life: Life) {
        let Some(pod) = self.pods.get(&key) else { return };
        let Some(here) = self.pods_here.get_mut(&key) else { return };
        let Some(hollow) = self.hollow.get_mut(here.node as usize) else { return };
        if here.uid != uid || hollow.off || here.stage == Stage::Stopping {
            return;
        }
        let host = node::host_ip(here.node);
        let on_host = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
        if !on_host && here.ip.is_none() {
            here.ip = Some(hollow.take_ip());
        }
        let own = here.ip.map_or(host, |ip| node::pod_ip(here.node, ip));
        if life != Life::Running {
            here.stage = Stage::Ended;
        }
        let patch = status::status(&pod, life, Addresses { host, pod: own }, self.clock.now());
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        self.writes.spawn(async move {
            match api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => Ok(Done::Other),
                Err(error) => Err((Due::Become(key, uid, life), error)),
            }
        });
    }

    fn delete(&mut self, key: NamespacedName, uid: String) {
        let Some(here) = self.pods_here.get(&key) else { return };
        let off = self.hollow.get(here.node as usize).is_none_or(|node| node.off);
        if off || here.uid != uid {
            return;
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: None };
        let parameters =
            DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }.grace_period(0);
        self.writes.spawn(async move {
            match api.delete(&key.name, &parameters).await {
                Ok(_) => Ok(Done::Other),
                Err(error) => Err((Due::Delete(key, uid), error)),
            }
        });
    }
}

impl Hollow {
    /// The next free address; with all of them in use, they begin to repeat.
    fn take_ip(&mut self) -> u8 {
        for _ in 0..=u8::MAX {
            self.next_ip = if self.next_ip >= 254 { 1 } else { self.next_ip + 1 };
            if self.used_ips.insert(self.next_ip) {
                break;
            }
        }
        self.next_ip
    }
}

/// Where a pod stands that is met in this phase: one that runs already is taken over as it is.
fn arrival(phase: &str) -> Stage {
    if phase == "Pending" { Stage::Ended } else { Stage::Starting }
}

/// The address a pod has from before, as a number on its node.
fn taken_over(pod: &Pod, index: u32) -> Option<u8> {
    let ip: Ipv4Addr = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
    let number = ip.octets()[3];
    (node::pod_ip(index, number) == ip).then_some(number)
}

/// How long a pod runs until it succeeds; none for one that runs for ever.
fn run_time(pod: &Pod, default: Duration) -> Option<Duration> {
    let annotation = pod.metadata.annotations.as_ref().and_then(|own| own.get(RUN_SECONDS_ANNOTATION));
    if let Some(seconds) = annotation.and_then(|text| text.parse::<f64>().ok()) {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    (!status::runs_for_ever(pod)).then_some(default)
}

async fn sleep_until(clock: SharedClock, at: Option<Duration>) {
    match at {
        Some(at) => clock.sleep(at.saturating_sub(clock.monotonic())).await,
        None => std::future::pending().await,
    }
}
