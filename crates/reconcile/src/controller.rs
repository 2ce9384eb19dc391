//! The controller loop: workers take keys from a queue and reconcile them. A panic costs one attempt.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::object::chain;
use crate::queue::Queue;

/// Brings one object's state towards what is declared.
#[async_trait]
pub trait Reconciler: Send + Sync + 'static {
    type Key: Clone + Eq + Hash + fmt::Debug + Send + Sync + 'static;

    /// Looks at the caches and acts. Must be safe to run twice, and must not trust why it was called.
    async fn reconcile(&self, key: &Self::Key) -> Result<Action, ReconcileError>;
}

/// What is to happen next with the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing until something changes.
    Done,
    /// Look again after this long.
    RequeueAfter(Duration),
    /// Look again after the key's back-off, although nothing failed.
    Requeue,
}

/// Why a reconcile did not finish.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReconcileError {
    #[error("request failed")]
    Request(#[from] kube::Error),
    /// Retried with back-off.
    #[error("{message}")]
    Failed {
        message: String,
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// Trying again cannot help until the object changes.
    #[error("{0}")]
    Terminal(String),
}

/// A reconciler, its queue and its workers.
#[derive(Debug)]
pub struct Controller<R: Reconciler> {
    pub name: &'static str,
    pub reconciler: Arc<R>,
    pub queue: Queue<R::Key>,
    pub workers: usize,
}

impl ReconcileError {
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), source: None }
    }

    #[must_use]
    pub fn is_retriable(&self) -> bool {
        !matches!(self, Self::Terminal(_))
    }

    /// True for answers that ordinary concurrency brings: the caches will show what happened.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Request(kube::Error::Api(status)) if status.is_conflict())
    }
}

impl<R: Reconciler> Controller<R> {
    /// Works until `shutdown`; reconciles under way are finished first.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut workers = JoinSet::new();
        for _ in 0..self.workers.max(1) {
            let (reconciler, queue) = (Arc::clone(&self.reconciler), self.queue.clone());
            workers.spawn(work(self.name, reconciler, queue, shutdown.clone()));
        }
        shutdown.cancelled().await;
        self.queue.close();
        while let Some(ended) = workers.join_next().await {
            if let Err(error) = ended {
                error!(controller = self.name, error = %error, "worker did not end cleanly");
            }
        }
    }
}

async fn work<R: Reconciler>(
    name: &'static str,
    reconciler: Arc<R>,
    queue: Queue<R::Key>,
    shutdown: CancellationToken,
) {
    loop {
        let key = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            key = queue.next() => key,
        };
        let Some(key) = key else { return };
        let outcome = AssertUnwindSafe(reconciler.reconcile(&key)).catch_unwind().await;
        match outcome {
            Ok(Ok(action)) => settle(&queue, &key, action),
            Ok(Err(error)) => fail(name, &queue, &key, &error),
            Err(panic) => {
                error!(controller = name, key = ?key, panic = panic_text(panic.as_ref()), "reconcile panicked");
                queue.add_rate_limited(key.clone());
            }
        }
        queue.done(&key);
    }
}

fn settle<K: Clone + Eq + Hash>(queue: &Queue<K>, key: &K, action: Action) {
    match action {
        Action::Done => queue.forget(key),
        Action::RequeueAfter(delay) => {
            queue.forget(key);
            queue.add_after(key.clone(), delay);
        }
        Action::Requeue => queue.add_rate_limited(key.clone()),
    }
}

fn fail<K: Clone + Eq + Hash + fmt::Debug>(
    name: &'static str,
    queue: &Queue<K>,
    key: &K,
    error: &ReconcileError,
) {
    if !error.is_retriable() {
        debug!(controller = name, key = ?key, error = %chain(error), "not retried");
        queue.forget(key);
        return;
    }
    if error.is_conflict() {
        debug!(controller = name, key = ?key, error = %chain(error), "conflict");
    } else {
        warn!(controller = name, key = ?key, error = %chain(error), "reconcile failed");
    }
    queue.add_rate_limited(key.clone());
}

pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::clock::RealClock;
    use crate::queue::QueueMetrics;

    struct Flaky {
        calls: AtomicU32,
        shutdown: CancellationToken,
    }

    #[async_trait]
    impl Reconciler for Flaky {
        type Key = &'static str;

        async fn reconcile(&self, _: &Self::Key) -> Result<Action, ReconcileError> {
            match self.calls.fetch_add(1, Ordering::SeqCst) {
                0 => panic!("broken invariant"),
                1 => Err(ReconcileError::failed("not yet")),
                2 => Ok(Action::Requeue),
                _ => {
                    self.shutdown.cancel();
                    Ok(Action::Done)
                }
            }
        }
    }

    #[tokio::test]
    async fn a_key_survives_a_panic_and_an_error() {
        let shutdown = CancellationToken::new();
        let reconciler = Arc::new(Flaky { calls: AtomicU32::new(0), shutdown: shutdown.clone() });
        let queue = Queue::new("flaky", RealClock::shared(), &QueueMetrics::default());
        queue.add("a");
        let controller = Controller { name: "flaky", reconciler: Arc::clone(&reconciler), queue, workers: 2 };
        tokio::time::timeout(Duration::from_secs(30), controller.run(shutdown)).await.unwrap();
        assert_eq!(reconciler.calls.load(Ordering::SeqCst), 4);
    }
}
