//! Keeps several long-running tasks alive: one that fails or panics is restarted with back-off, alone.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::backoff::Backoff;
use crate::clock::SharedClock;
use crate::controller::panic_text;

const RESTART: Backoff = Backoff { base: Duration::from_millis(200), max: Duration::from_secs(60) };
/// A task that ran this long starts its back-off afresh.
const HEALTHY: Duration = Duration::from_secs(300);

/// Owns tasks until they end. Dropping it aborts them.
pub struct Supervisor {
    clock: SharedClock,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("tasks", &self.tasks.len()).finish_non_exhaustive()
    }
}

impl Supervisor {
    #[must_use]
    pub fn new(clock: SharedClock, shutdown: CancellationToken) -> Self {
        Self { clock, shutdown, tasks: JoinSet::new() }
    }

    /// Runs what `start` makes, again and again until shutdown. Each run gets a token of its own.
    pub fn spawn<F, Fut>(&mut self, name: &'static str, start: F)
    where
        F: Fn(CancellationToken) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (clock, shutdown) = (self.clock.clone(), self.shutdown.clone());
        self.tasks.spawn(async move {
            let mut failures = 0;
            while !shutdown.is_cancelled() {
                let began = clock.monotonic();
                // Dropping the run's token on the way out also ends what a panicking run left behind.
                let token = shutdown.child_token();
                let guard = token.clone().drop_guard();
                let ended = AssertUnwindSafe(start(token)).catch_unwind().await;
                drop(guard);
                if shutdown.is_cancelled() {
                    return;
                }
                if clock.monotonic().saturating_sub(began) > HEALTHY {
                    failures = 0;
                }
                let delay = RESTART.delay(failures);
                failures = failures.saturating_add(1);
                let panic = ended.as_ref().err().map(|panic| panic_text(panic.as_ref()));
                error!(task = name, panic, restart_in = ?delay, "task ended unexpectedly");
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = clock.sleep(delay) => {}
                }
            }
        });
    }

    /// Waits until shutdown and until every task has ended.
    pub async fn run(mut self) {
        self.shutdown.cancelled().await;
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::clock::RealClock;

    #[tokio::test]
    async fn a_task_that_panics_is_started_again() {
        let shutdown = CancellationToken::new();
        let mut supervisor = Supervisor::new(RealClock::shared(), shutdown.clone());
        let runs = Arc::new(AtomicU32::new(0));
        supervisor.spawn("flaky", {
            let (runs, shutdown) = (Arc::clone(&runs), shutdown.clone());
            move |_| {
                let run = runs.fetch_add(1, Ordering::SeqCst);
                let shutdown = shutdown.clone();
                async move {
                    assert!(run > 0, "first run fails");
                    shutdown.cancel();
                }
            }
        });
        tokio::time::timeout(Duration::from_secs(30), supervisor.run()).await.unwrap();
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }
}
