//! When leases end. A deadline is kept in memory only: after a restart every lease starts afresh, as in etcd.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use store::{LeaseId, StoreError};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Leases that end in one transaction.
const EXPIRE_AT_ONCE: usize = 1_000;
/// Wait after leases could not be ended, because the disk is full for example.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    leases: HashMap<LeaseId, Deadline>,
    order: BTreeSet<(Instant, LeaseId)>,
}

#[derive(Debug, Clone, Copy)]
struct Deadline {
    ttl_seconds: i64,
    at: Instant,
}

impl Deadlines {
    pub(crate) fn insert(&self, id: LeaseId, ttl_seconds: i64) {
        let at = Instant::now() + duration(ttl_seconds);
        self.lock().set(id, Deadline { ttl_seconds, at });
        self.changed.notify_one();
    }

    pub(crate) fn remove(&self, id: LeaseId) {
        self.lock().unset(id);
    }

    /// Starts the time of a lease afresh and answers how long that is.
    pub(crate) fn renew(&self, id: LeaseId) -> Result<i64, StoreError> {
        let mut inner = self.lock();
        let ttl_seconds = inner.leases.get(&id).ok_or(StoreError::LeaseNotFound(id))?.ttl_seconds;
        // Later than before: whoever waits for the earlier time looks again then.
        inner.set(id, Deadline { ttl_seconds, at: Instant::now() + duration(ttl_seconds) });
        Ok(ttl_seconds)
    }

    pub(crate) fn remaining(&self, id: LeaseId) -> Option<Duration> {
        let at = self.lock().leases.get(&id)?.at;
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// Waits until leases are over, and answers them with how long they lasted. They cannot be renewed any more.
    pub(crate) async fn due(&self) -> Vec<(LeaseId, i64)> {
        loop {
            let next = self.lock().order.first().map(|(at, _)| *at);
            let Some(next) = next else {
                self.changed.notified().await;
                continue;
            };
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.changed.notified() => continue,
            }
            let due = self.lock().take_due(Instant::now());
            if !due.is_empty() {
                return due;
            }
        }
    }

    /// Tries again later to end leases that were due.
    pub(crate) fn postpone(&self, due: &[(LeaseId, i64)]) {
        let at = Instant::now() + RETRY;
        let mut inner = self.lock();
        for (id, ttl_seconds) in due {
            inner.set(*id, Deadline { ttl_seconds: *ttl_seconds, at });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn set(&mut self, id: LeaseId, deadline: Deadline) {
        self.unset(id);
        self.leases.insert(id, deadline);
        self.order.insert((deadline.at, id));
    }

    fn unset(&mut self, id: LeaseId) -> Option<Deadline> {
        let deadline = self.leases.remove(&id)?;
        self.order.remove(&(deadline.at, id));
        Some(deadline)
    }

    fn take_due(&mut self, now: Instant) -> Vec<(LeaseId, i64)> {
        let over = self.order.iter().take_while(|(at, _)| *at <= now).take(EXPIRE_AT_ONCE);
        let ids: Vec<_> = over.map(|(_, id)| *id).collect();
        ids.into_iter().filter_map(|id| Some((id, self.unset(id)?.ttl_seconds))).collect()
    }
}

/// Ten years are for ever, and can still be added to any time.
fn duration(ttl_seconds: i64) -> Duration {
    const LONGEST_SECONDS: u64 = 10 * 366 * 24 * 3_600;
    Duration::from_secs(u64::try_from(ttl_seconds).unwrap_or(0).clamp(1, LONGEST_SECONDS))
}
