//! What the informers saw change, as keys: each waits once however often it changes, so the inbox is never
//! larger than the cluster, and what is read is always the newest.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use meta::names::NamespacedName;
use tokio::sync::Notify;

/// The kinds the scheduler watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Pod,
    Node,
    Namespace,
    Service,
    ReplicationController,
    ReplicaSet,
    StatefulSet,
    Budget,
    Claim,
    Volume,
    Class,
    CsiNode,
    CsiDriver,
    Capacity,
    Attachment,
    ResourceClaim,
    ResourceSlice,
    DeviceClass,
}

pub(crate) type Key = (Kind, NamespacedName);

#[derive(Debug, Default)]
pub(crate) struct Inbox {
    pending: Mutex<Pending>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    order: VecDeque<Key>,
    known: HashSet<Key>,
}

impl Inbox {
    pub(crate) fn push(&self, key: Key) {
        let mut pending = self.lock();
        if pending.known.insert(key.clone()) {
            pending.order.push_back(key);
            drop(pending);
            self.notify.notify_one();
        }
    }

    /// Takes up to `count` keys, oldest first.
    pub(crate) fn take(&self, count: usize) -> Vec<Key> {
        let mut pending = self.lock();
        let count = count.min(pending.order.len());
        let keys: Vec<Key> = pending.order.drain(..count).collect();
        for key in &keys {
            pending.known.remove(key);
        }
        keys
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().order.is_empty()
    }

    /// Ends when something was pushed since the last time.
    pub(crate) async fn changed(&self) {
        self.notify.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
