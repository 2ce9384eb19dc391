//! What every controller is given.

use std::fmt;
use std::sync::Arc;

use kube::{Api, Client, Resource};
use reconcile::events::{EventBroadcaster, EventRecorder};
use reconcile::informer::Object;
use reconcile::queue::QueueMetrics;
use reconcile::{Controller, Informer, Informers, Queue, Reconciler, SharedClock};
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// Makes the client of a user, for instance of `system:serviceaccount:kube-system:deployment-controller`.
pub type ClientFor = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// The surroundings of one run of one controller.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) config: Arc<Config>,
    /// Acts as the controller's own service account.
    pub(crate) client: Client,
    pub(crate) informers: Informers,
    pub(crate) clock: SharedClock,
    pub(crate) metrics: QueueMetrics,
    pub(crate) events: Arc<EventBroadcaster>,
    pub(crate) shutdown: CancellationToken,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Context {
    pub(crate) fn informer<K: Object<DynamicType = ()>>(&self) -> Informer<K> {
        self.informers.of()
    }

    pub(crate) fn queue<K: Clone + Eq + std::hash::Hash>(&self, name: &str) -> Queue<K> {
        Queue::new(name, self.clock.clone(), &self.metrics)
    }

    pub(crate) fn recorder(&self, controller: &'static str) -> EventRecorder {
        self.events.recorder(controller)
    }

    /// Runs the reconciler until shutdown.
    pub(crate) async fn run<R: Reconciler>(
        &self,
        name: &'static str,
        reconciler: Arc<R>,
        queue: Queue<R::Key>,
        workers: usize,
    ) {
        Controller { name, reconciler, queue, workers }.run(self.shutdown.clone()).await;
    }

    /// Waits until every one of these informers is filled; false at shutdown.
    pub(crate) async fn synced(&self, informers: &[&dyn Synced]) -> bool {
        for informer in informers {
            if self.shutdown.run_until_cancelled(informer.wait()).await.is_none() {
                return false;
            }
        }
        true
    }
}

/// An informer of any kind, as something to wait for.
pub(crate) trait Synced: Send + Sync {
    fn wait(&self) -> futures::future::BoxFuture<'_, ()>;
}

impl<K: Object> Synced for Informer<K> {
    fn wait(&self) -> futures::future::BoxFuture<'_, ()> {
        Box::pin(self.synced())
    }
}

/// The API of a built-in namespaced kind in one namespace.
pub(crate) fn api<K>(client: &Client, namespace: &str) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), namespace)
}
