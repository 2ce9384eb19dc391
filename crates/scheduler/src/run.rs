//! The task that owns the snapshot and the queue: takes in changes, decides, hands out writes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use meta::names::NamespacedName;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use reconcile::clock::RealClock;
use reconcile::events::{EventBroadcaster, EventRecorder, EventType, Note};
use reconcile::leader::{LeaderConfig, LeaderElector, LeaseLost};
use reconcile::{Informers, SharedClock, chain};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::binder::{Condition, Outcome, WriteError, Writer};
use crate::config::Config;
use crate::events::ClusterEvent;
use crate::framework::{FitError, Framework};
use crate::inbox::{Inbox, Kind};
use crate::node::NodeIdx;
use crate::pod::{PodInfo, SharedSpecs, Uid};
use crate::preemption::{self, Candidate};
use crate::queue::{Queue, QueuedPod};
use crate::schedule::{self, Nominations, Scope};
use crate::snapshot::Snapshot;
use crate::watch::Watches;

/// Changes taken in, and pods decided on, before other tasks get a turn.
const MAX_CHANGES_A_TURN: usize = 256;
const MAX_DECISIONS_A_TURN: usize = 32;
/// Longest note an event may carry.
const MAX_NOTE: usize = 1_024;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchedulerError {
    #[error("leaderelection lost")]
    LeaseLost,
}

impl From<LeaseLost> for SchedulerError {
    fn from(_: LeaseLost) -> Self {
        Self::LeaseLost
    }
}

/// Runs a scheduler with informers of its own until shutdown, once it leads if the configuration asks for that.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), SchedulerError> {
    let clock = RealClock::shared();
    if !config.leader_election.leader_elect {
        let informers = Informers::new(client.clone(), Arc::clone(&clock), shutdown.clone());
        run_with(config, client, &informers, clock, shutdown).await;
        return Ok(());
    }
    let election = &config.leader_election;
    let leader = LeaderConfig {
        lease_duration: election.lease_duration,
        renew_deadline: election.renew_deadline,
        retry_period: election.retry_period,
        ..LeaderConfig::new(&election.resource_namespace, &election.resource_name, &config.identity)
    };
    let elector = LeaderElector::new(client.clone(), Arc::clone(&clock), leader);
    let lead = |leading: CancellationToken| async move {
        let informers = Informers::new(client.clone(), Arc::clone(&clock), leading.clone());
        run_with(config, client, &informers, clock, leading).await;
    };
    Ok(elector.run(shutdown, lead).await?)
}

/// Runs a scheduler on shared informers until shutdown.
pub async fn run_with(
    config: Config,
    client: Client,
    informers: &Informers,
    clock: SharedClock,
    shutdown: CancellationToken,
) {
    let inbox = Arc::new(Inbox::default());
    let watches = Watches::start(informers, &inbox);
    let broadcaster = EventBroadcaster::new(client.clone(), Arc::clone(&clock), &config.identity);
    let (claim_changes, changes) = tokio::sync::watch::channel(0);
    let writer = Writer { client, clock, claims: watches.claims.clone(), claim_changes: changes };
    let profiles: HashMap<String, Profile> = config
        .profiles
        .iter()
        .map(|framework| {
            // One name for each profile of the process: events want it for as long as it runs.
            let name: &'static str = Box::leak(framework.profile.clone().into_boxed_str());
            let events = broadcaster.recorder(name);
            (framework.profile.clone(), Profile { framework: Arc::new(framework.clone()), events, cursor: 0 })
        })
        .collect();
    let scheduler = Scheduler {
        snapshot: Snapshot::default(),
        queue: Queue::new(config.initial_backoff, config.max_backoff),
        nominations: Nominations::default(),
        profiles,
        known: HashMap::new(),
        specs: SharedSpecs::default(),
        evicting: HashMap::new(),
        rng: SmallRng::seed_from_u64(config.seed),
        writes: JoinSet::new(),
        max_writes: config.max_bindings,
        claim_changes,
        inbox,
        watches,
        writer,
    };
    tokio::join!(scheduler.run(shutdown.clone()), broadcaster.run(shutdown));
}

struct Profile {
    framework: Arc<Framework>,
    events: EventRecorder,
    cursor: usize,
}

pub(crate) struct Scheduler {
    pub(crate) snapshot: Snapshot,
    pub(crate) queue: Queue,
    pub(crate) nominations: Nominations,
    profiles: HashMap<String, Profile>,
    /// The pod last seen under each name: a name may be taken over by another pod.
    pub(crate) known: HashMap<NamespacedName, Uid>,
    pub(crate) specs: SharedSpecs,
    /// How many victims of a preemptor are still being deleted.
    evicting: HashMap<Uid, usize>,
    rng: SmallRng,
    writes: JoinSet<Outcome>,
    max_writes: usize,
    pub(crate) claim_changes: tokio::sync::watch::Sender<u64>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) watches: Watches,
    writer: Writer,
}

impl Scheduler {
    async fn run(mut self, shutdown: CancellationToken) {
        if shutdown.run_until_cancelled(self.watches.synced()).await.is_none() {
            return;
        }
        // No decision before everything that is already there is counted.
        while !self.inbox.is_empty() {
            for key in self.inbox.take(MAX_CHANGES_A_TURN) {
                self.take_in(&key);
            }
            tokio::task::yield_now().await;
        }
        info!("scheduler started");
        while !shutdown.is_cancelled() {
            for key in self.inbox.take(MAX_CHANGES_A_TURN) {
                self.take_in(&key);
            }
            while let Some(outcome) = self.writes.try_join_next() {
                self.finish(outcome);
            }
            self.decide();
            if !self.inbox.is_empty() || self.can_decide() {
                tokio::task::yield_now().await;
                continue;
            }
            let deadline = if self.has_room() { self.queue.next_deadline() } else { None };
            let deadline = sleep_until(Arc::clone(&self.writer.clock), deadline);
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.inbox.changed() => {}
                Some(outcome) = self.writes.join_next() => self.finish(outcome),
                () = deadline => {}
            }
        }
        // What was decided is written, so that no binding is cut in half.
        while self.writes.join_next().await.is_some() {}
    }

    pub(crate) fn now(&self) -> Duration {
        self.writer.clock.monotonic()
    }

    fn has_room(&self) -> bool {
        self.writes.len() < self.max_writes
    }

    fn can_decide(&self) -> bool {
        self.has_room() && self.queue.active_len() > 0
    }

    fn decide(&mut self) {
        for _ in 0..MAX_DECISIONS_A_TURN {
            if !self.has_room() {
                return;
            }
            let Some(queued) = self.queue.pop(self.now()) else { return };
            self.decide_one(&queued);
        }
    }

    pub(crate) fn framework_of(&self, pod: &PodInfo) -> Option<Arc<Framework>> {
        self.profiles.get(&pod.spec.scheduler_name).map(|profile| Arc::clone(&profile.framework))
    }

    fn decide_one(&mut self, queued: &QueuedPod) {
        let pod = &queued.pod;
        let Some(framework) = self.framework_of(pod) else {
            self.queue.remove(&pod.uid);
            return;
        };
        schedule::prepare(&mut self.snapshot, &framework, pod);
        let Some(profile) = self.profiles.get_mut(&pod.spec.scheduler_name) else { return };
        let scope = Scope { snapshot: &self.snapshot, framework: &framework, nominations: &self.nominations };
        if self.snapshot.node_order().is_empty() {
            let message = "no nodes available to schedule pods".to_owned();
            return self.no_node(pod, message, FitError::default(), None);
        }
        match schedule::schedule(scope, pod, &mut profile.cursor, &mut self.rng) {
            Ok(choice) => self.place(&framework, pod, choice.node),
            Err(error) => self.failed(&framework, pod, *error),
        }
    }

    /// Assumes the pod on its node and starts binding it.
    fn place(&mut self, framework: &Framework, pod: &Arc<PodInfo>, node: NodeIdx) {
        for plugin in &framework.reserves {
            if let Err(rejection) = plugin.reserve(&mut self.snapshot, pod, node) {
                self.unreserve(framework, pod);
                let all_nodes = self.snapshot.node_order().len();
                let mut error = FitError { all_nodes, ..FitError::default() };
                error.pre_filter_message = Some(rejection.message());
                error.plugins.insert(rejection.plugin);
                return self.no_node(pod, error.to_string(), error, None);
            }
        }
        let steps = framework
            .reserves
            .iter()
            .flat_map(|plugin| plugin.pre_bind(&self.snapshot, pod, node))
            .collect::<Vec<_>>();
        let name = Arc::clone(&self.snapshot.node(node).name);
        debug!(namespace = %pod.namespace, name = %pod.name, node = %name, "node found");
        self.snapshot.place_pod(Arc::clone(pod), &name, true);
        self.nominations.remove(&pod.uid);
        let (writer, pod) = (self.writer.clone(), Arc::clone(pod));
        self.writes.spawn(async move {
            let result = writer.bind(&pod, &name, steps).await;
            Outcome::Bound { pod, node: name, result }
        });
    }

    fn unreserve(&mut self, framework: &Framework, pod: &PodInfo) {
        for plugin in &framework.reserves {
            plugin.unreserve(&mut self.snapshot, pod);
        }
    }

    /// No node will do: perhaps one will when others leave it.
    fn failed(&mut self, framework: &Framework, pod: &Arc<PodInfo>, mut error: FitError) {
        let mut nominated = None;
        if let Some(preemption) = &framework.preemption {
            let scope = Scope { snapshot: &self.snapshot, framework, nominations: &self.nominations };
            let found = if self.evicting.contains_key(&pod.uid) {
                None
            } else {
                Some(preemption.candidates(scope, pod, &error, &mut self.rng))
            };
            match found {
                Some(Ok(candidates)) => {
                    if let Some(best) = preemption::best(candidates) {
                        nominated = Some(self.snapshot.node(best.node).name.to_string());
                        self.evict(pod, best);
                    }
                }
                Some(Err(none)) => {
                    error.post_filter_message = Some(format!("preemption: {}", none.message));
                    if none.clear_nomination && self.nominations.node_of(&pod.uid).is_some() {
                        nominated = Some(String::new());
                    }
                }
                // Victims of this very pod are on their way out: wait for them.
                None => {}
            }
        }
        self.no_node(pod, error.to_string(), error, nominated);
    }

    /// Puts the pod back and says why. `nominated` is a new nomination, or empty for the end of one.
    fn no_node(&mut self, pod: &Arc<PodInfo>, message: String, error: FitError, nominated: Option<String>) {
        match nominated.as_deref() {
            Some("") => self.nominations.remove(&pod.uid),
            Some(node) => self.nominations.set(pod, node),
            None => {}
        }
        let now = self.now();
        self.queue.unschedulable(&pod.uid, error.plugins, now);
        self.event(pod, None, EventType::Warning, "FailedScheduling", "Scheduling", &message);
        self.report(pod, Condition { reason: "Unschedulable", message, nominated_node: nominated });
    }

    fn report(&mut self, pod: &Arc<PodInfo>, condition: Condition) {
        let (writer, pod) = (self.writer.clone(), Arc::clone(pod));
        self.writes.spawn(async move {
            let result = writer.report(&pod, &condition).await;
            Outcome::Reported { pod, result }
        });
    }

    /// Sends the victims away, and ends the nominations of lesser pods to the same node.
    fn evict(&mut self, pod: &Arc<PodInfo>, candidate: Candidate) {
        let node = Arc::clone(&self.snapshot.node(candidate.node).name);
        info!(namespace = %pod.namespace, name = %pod.name, node = %node, victims = candidate.victims.len(), "preempting");
        let lesser: Vec<Arc<PodInfo>> = self
            .nominations
            .on_node(&node)
            .filter(|other| other.spec.priority < pod.spec.priority)
            .cloned()
            .collect();
        for other in lesser {
            self.nominations.remove(&other.uid);
            let writer = self.writer.clone();
            self.writes.spawn(async move {
                let result = writer.clear_nomination(&other).await;
                Outcome::Reported { pod: other, result }
            });
        }
        self.evicting.insert(Arc::clone(&pod.uid), candidate.victims.len());
        for victim in candidate.victims {
            let note = format!("Preempted by pod {} on node {node}", pod.uid);
            self.event(&victim, Some(pod), EventType::Normal, "Preempted", "Preempting", &note);
            // Known to be leaving before the API says so: nobody must be preempted twice for one pod.
            let leaving = PodInfo { terminating: true, preempted: true, ..(*victim).clone() };
            self.snapshot.place_pod(Arc::new(leaving), &node, self.snapshot.is_assumed(&victim.uid));
            let (writer, preemptor) = (self.writer.clone(), Arc::clone(&pod.uid));
            let scheduler_name = pod.spec.scheduler_name.clone();
            self.writes.spawn(async move {
                let result = writer.evict(&victim, &scheduler_name).await;
                Outcome::Evicted { preemptor, victim, result }
            });
        }
    }

    fn finish(&mut self, outcome: Result<Outcome, tokio::task::JoinError>) {
        match outcome {
            Ok(Outcome::Bound { pod, node, result }) => self.bound(&pod, &node, result),
            Ok(Outcome::Evicted { preemptor, victim, result }) => self.evicted(&preemptor, &victim, result),
            Ok(Outcome::Reported { pod, result }) => {
                if let Err(error) = result {
                    // The next attempt reports again; meanwhile the pod may well be gone.
                    debug!(namespace = %pod.namespace, name = %pod.name, error = %chain(&error), "status not written");
                }
            }
            Err(error) => warn!(error = %chain(&error), "a write ended early"),
        }
    }

    fn bound(&mut self, pod: &Arc<PodInfo>, node: &str, result: Result<(), WriteError>) {
        let Some(framework) = self.framework_of(pod) else { return };
        let Err(error) = result else {
            self.snapshot.storage.release(&pod.uid);
            self.snapshot.devices.settle(&pod.uid);
            self.queue.remove(&pod.uid);
            let note = format!("Successfully assigned {} to {node}", pod.key());
            return self.event(pod, None, EventType::Normal, "Scheduled", "Binding", &note);
        };
        self.unreserve(&framework, pod);
        warn!(namespace = %pod.namespace, name = %pod.name, node, error = %chain(&error), "pod not bound");
        if self.snapshot.is_assumed(&pod.uid) {
            self.snapshot.remove_pod(&pod.uid);
            self.on_event(ClusterEvent::PodReleased(pod));
        }
        if self.queue.get(&pod.uid).is_none() {
            return;
        }
        let now = self.now();
        self.queue.retry(&pod.uid, now);
        let message = format!("binding rejected: {}", chain(&error));
        self.event(pod, None, EventType::Warning, "FailedScheduling", "Scheduling", &message);
        self.report(pod, Condition { reason: "SchedulerError", message, nominated_node: None });
    }

    fn evicted(&mut self, preemptor: &Uid, victim: &Arc<PodInfo>, result: Result<(), WriteError>) {
        if let Some(left) = self.evicting.get_mut(preemptor) {
            *left -= 1;
            if *left == 0 {
                self.evicting.remove(preemptor);
            }
        }
        let Err(error) = result else { return };
        warn!(namespace = %victim.namespace, name = %victim.name, error = %chain(&error), "victim not deleted");
        // Look at the victim as it really is, and let the preemptor try again.
        let name = NamespacedName { namespace: victim.namespace.to_string(), name: victim.name.clone() };
        self.inbox.push((Kind::Pod, name));
        let now = self.now();
        self.queue.retry(preemptor, now);
    }

    /// Tries pods again that the event may help.
    pub(crate) fn on_event(&mut self, event: ClusterEvent<'_>) {
        let now = self.now();
        let (snapshot, profiles) = (&self.snapshot, &self.profiles);
        self.queue.on_event(now, |queued| {
            let Some(profile) = profiles.get(&queued.pod.spec.scheduler_name) else { return false };
            helps(&profile.framework, snapshot, queued, &event)
        });
    }

    fn event(
        &self,
        pod: &PodInfo,
        related: Option<&PodInfo>,
        event_type: EventType,
        reason: &'static str,
        action: &'static str,
        note: &str,
    ) {
        let name = &related.unwrap_or(pod).spec.scheduler_name;
        let Some(profile) = self.profiles.get(name) else { return };
        let mut note = note.to_owned();
        if note.len() > MAX_NOTE {
            let mut end = MAX_NOTE - 3;
            while !note.is_char_boundary(end) {
                end -= 1;
            }
            note.truncate(end);
            note.push_str("...");
        }
        let (regarding, related) = (reference(pod), related.map(reference));
        profile.events.record(Note { regarding, related, event_type, reason, action, note });
    }
}

async fn sleep_until(clock: SharedClock, deadline: Option<Duration>) {
    match deadline {
        Some(deadline) => clock.sleep(deadline.saturating_sub(clock.monotonic())).await,
        None => std::future::pending().await,
    }
}

/// Whether the event may make a pod schedulable that found no node.
fn helps(framework: &Framework, snapshot: &Snapshot, queued: &QueuedPod, event: &ClusterEvent<'_>) -> bool {
    queued.plugins.is_empty()
        || framework.all.iter().any(|plugin| {
            queued.plugins.contains(plugin.name()) && plugin.queueing_hint(snapshot, &queued.pod, event)
        })
}

fn reference(pod: &PodInfo) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(pod.name.clone()),
        namespace: Some(pod.namespace.to_string()),
        uid: Some(pod.uid.to_string()),
        resource_version: pod.pending.as_ref().map(|pending| pending.resource_version.clone()),
        field_path: None,
    }
}
