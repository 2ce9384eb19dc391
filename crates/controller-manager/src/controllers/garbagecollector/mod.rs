//! Deletes what has lost its owners, for every kind there is, custom ones included.
//!
//! The graph of owners comes from watching the metadata of all resources and may lag. Nothing is deleted by
//! it alone: the object and its owners are looked at live, by uid, first.

mod collect;
mod graph;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::core::ApiResource;
use reconcile::{
    Action, Informer, InformerEvent, Informers, Queue, ReconcileError, Reconciler, Subscription, chain,
};
use tokio::sync::Notify;
use tracing::warn;

use self::graph::{Graph, Identity, Work};
use crate::context::Context;
use crate::discovery::{self, Discovered, Owned};

const WORKERS: usize = 20;
/// Resources are discovered again this long after the last change of what is served.
const SETTLE: Duration = Duration::from_millis(300);
const RETRY: Duration = Duration::from_secs(5);

struct Collector {
    client: kube::Client,
    graph: Arc<Mutex<Graph>>,
    /// By group and kind.
    resources: Mutex<BTreeMap<(String, String), Discovered>>,
    queue: Queue<Work>,
}

/// The watches of one run.
struct Monitors {
    informers: Informers,
    running: BTreeMap<(String, String), (ApiResource, Informer<Owned>, Subscription)>,
}

pub(super) async fn run(context: Context) {
    let queue = context.queue("garbage_collector");
    let collector = Arc::new(Collector {
        client: context.client.clone(),
        graph: Arc::default(),
        resources: Mutex::default(),
        queue: queue.clone(),
    });
    let changed = Arc::new(Notify::new());
    let definitions: Informer<CustomResourceDefinition> = context.informer();
    let services: Informer<APIService> = context.informer();
    let _definitions = definitions.subscribe({
        let changed = Arc::clone(&changed);
        move |_| changed.notify_one()
    });
    let _services = services.subscribe({
        let changed = Arc::clone(&changed);
        move |_| changed.notify_one()
    });
    let mut monitors = Monitors { informers: context.informers.clone(), running: BTreeMap::new() };
    let follow = async {
        loop {
            let complete = collector.refresh(&mut monitors).await;
            if complete {
                changed.notified().await;
                context.clock.sleep(SETTLE).await;
            } else {
                tokio::select! {
                    () = changed.notified() => context.clock.sleep(SETTLE).await,
                    () = context.clock.sleep(RETRY) => {}
                }
            }
        }
    };
    let work = context.run("garbage_collector", Arc::clone(&collector), queue, WORKERS);
    tokio::select! {
        () = context.shutdown.cancelled() => {}
        () = follow => {}
        () = work => {}
    }
}

impl Collector {
    /// Starts and stops watches to fit what is served now; true if all of it is known.
    async fn refresh(&self, monitors: &mut Monitors) -> bool {
        let found = match discovery::discover(&self.client).await {
            Ok(found) => found,
            Err(error) => {
                warn!(error = %chain(&error), "resources not discovered");
                return false;
            }
        };
        for (group, error) in &found.failures {
            warn!(group, error = %chain(error), "group not discovered");
        }
        let mut served = BTreeMap::new();
        for resource in found.resources {
            served.insert((resource.resource.group.clone(), resource.resource.plural.clone()), resource);
        }
        let watched: Vec<&Discovered> = served.values().filter(|resource| is_watched(resource)).collect();
        {
            let mut resources = self.resources();
            // A group that failed to answer just now keeps what is known of it.
            if found.failures.is_empty() {
                resources.clear();
            }
            for resource in served.values() {
                let key = (resource.resource.group.clone(), resource.resource.kind.clone());
                resources.insert(key, resource.clone());
            }
        }
        if found.failures.is_empty() {
            let gone: Vec<_> =
                monitors.running.keys().filter(|key| !served.contains_key(*key)).cloned().collect();
            for key in gone {
                self.stop(monitors, &key);
            }
        }
        for resource in watched {
            self.start(monitors, resource);
        }
        found.failures.is_empty()
    }

    fn start(&self, monitors: &mut Monitors, found: &Discovered) {
        let key = (found.resource.group.clone(), found.resource.plural.clone());
        if let Some((running, _, _)) = monitors.running.get(&key) {
            if *running == found.resource {
                return;
            }
            self.stop(monitors, &key);
        }
        let informer = monitors.informers.dynamic_as::<Owned>(&found.resource);
        let (graph, queue) = (Arc::clone(&self.graph), self.queue.clone());
        let (group, kind): (Arc<str>, Arc<str>) =
            (Arc::from(found.resource.group.as_str()), Arc::from(found.resource.kind.as_str()));
        let subscription = informer.subscribe(move |event| {
            let meta = &event.object().metadata;
            let work = match event {
                InformerEvent::Deleted(_) => lock(&graph).forget(meta.uid.as_deref().unwrap_or_default()),
                InformerEvent::Added(_) | InformerEvent::Updated { .. } => {
                    let identity = || Identity {
                        group: Arc::clone(&group),
                        kind: Arc::clone(&kind),
                        namespace: Arc::from(meta.namespace.as_deref().unwrap_or_default()),
                        name: Arc::from(meta.name.as_deref().unwrap_or_default()),
                    };
                    lock(&graph).observe(identity, meta)
                }
            };
            work.into_iter().for_each(|work| queue.add(work));
        });
        monitors.running.insert(key, (found.resource.clone(), informer, subscription));
    }

    /// A resource that is no longer served has no objects.
    fn stop(&self, monitors: &mut Monitors, key: &(String, String)) {
        let Some((resource, informer, subscription)) = monitors.running.remove(key) else { return };
        monitors.informers.stop_dynamic::<Owned>(&resource);
        drop(subscription);
        for object in informer.list() {
            let work = lock(&self.graph).forget(object.metadata.uid.as_deref().unwrap_or_default());
            work.into_iter().for_each(|work| self.queue.add(work));
        }
    }

    fn resources(&self) -> MutexGuard<'_, BTreeMap<(String, String), Discovered>> {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(graph: &Mutex<Graph>) -> MutexGuard<'_, Graph> {
    graph.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Events have no owners and there are many.
fn is_watched(found: &Discovered) -> bool {
    let is_event =
        found.resource.plural == "events" && matches!(found.resource.group.as_str(), "" | "events.k8s.io");
    !is_event && ["list", "watch", "delete"].iter().all(|verb| found.can(verb))
}

#[async_trait]
impl Reconciler for Collector {
    type Key = Work;

    async fn reconcile(&self, work: &Work) -> Result<Action, ReconcileError> {
        match work {
            Work::Delete(uid) => self.attempt_to_delete(uid).await,
            Work::Orphan(uid) => self.attempt_to_orphan(uid).await,
        }
    }
}
