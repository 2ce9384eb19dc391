//! A watcher's place in a resource's history.
//!
//! Watchers of everything share the history and keep a position in it. Watchers of a narrow part (one object, one
//! namespace, one node's pods) have a queue of their own, so that a thousand kubelets do not each look at every pod.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::resource::{Change, ResourceMirror};

/// A narrow watcher this far behind is closed; its client lists again.
const NARROW_QUEUE_CHANGES: usize = 8_192;

/// A part of a resource that a watcher can subscribe to alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// One object, by `namespace/name` or `name`.
    Object(Bytes),
    Namespace(Box<str>),
    /// Objects whose selectable field (by index) has this value.
    Field(usize, Box<str>),
}

/// Changes waiting for one narrow watcher.
#[derive(Debug, Default)]
pub struct NarrowQueue {
    changes: Mutex<VecDeque<Arc<Change>>>,
    overrun: AtomicBool,
    ready: Notify,
}

/// See the module's text.
#[derive(Debug)]
pub struct Watcher {
    mirror: Arc<ResourceMirror>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Scanning { next: u64, wake: watch::Receiver<u64> },
    Narrow { topic: Topic, queue: Arc<NarrowQueue> },
}

/// The watcher fell behind, or the resource went away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    TooSlow,
    Closed,
}

impl Topic {
    /// Every topic a change belongs to, in its old state and its new.
    pub(super) fn of(change: &Change) -> Vec<Self> {
        let object = &change.object;
        let mut topics = vec![Self::Object(object.key())];
        if !object.namespace().is_empty() {
            topics.push(Self::Namespace(object.namespace().into()));
        }
        let mut index = 0;
        while let Some(value) = object.field_at(index) {
            if !value.is_empty() {
                topics.push(Self::Field(index, value.into()));
            }
            let before = change.previous.as_ref().map_or("", |previous| previous.field(index));
            if !before.is_empty() && before != value {
                topics.push(Self::Field(index, before.into()));
            }
            index += 1;
        }
        topics
    }

    pub(super) fn concerns(&self, change: &Change) -> bool {
        let states = || std::iter::once(&change.object).chain(change.previous.as_ref());
        match self {
            Self::Object(key) => change.object.key() == key,
            Self::Namespace(namespace) => change.object.namespace() == &**namespace,
            Self::Field(index, value) => states().any(|state| state.field(*index) == &**value),
        }
    }
}

impl NarrowQueue {
    pub(super) fn push(&self, change: &Arc<Change>) {
        let mut changes = self.changes.lock().expect("no panic happens under this lock");
        if changes.len() < NARROW_QUEUE_CHANGES {
            changes.push_back(Arc::clone(change));
        } else {
            self.overrun.store(true, Ordering::Release);
        }
        drop(changes);
        self.ready.notify_one();
    }

    pub(super) fn wake(&self) {
        self.ready.notify_one();
    }
}

impl Watcher {
    pub(super) fn scanning(mirror: Arc<ResourceMirror>, next: u64, wake: watch::Receiver<u64>) -> Self {
        Self { mirror, place: Place::Scanning { next, wake } }
    }

    pub(super) fn narrow(mirror: Arc<ResourceMirror>, topic: Topic, queue: Arc<NarrowQueue>) -> Self {
        Self { mirror, place: Place::Narrow { topic, queue } }
    }

    /// Moves up to `limit` waiting changes to `out`, oldest first.
    pub fn take(&mut self, limit: usize, out: &mut Vec<Arc<Change>>) -> Result<(), Ended> {
        match &mut self.place {
            Place::Scanning { next, wake } => {
                wake.mark_unchanged();
                let closed = if self.mirror.is_closed() { Ended::Closed } else { Ended::TooSlow };
                *next = self.mirror.read(*next, limit, out).ok_or(closed)?;
            }
            Place::Narrow { queue, .. } => {
                let mut changes = queue.changes.lock().expect("no panic happens under this lock");
                let count = limit.min(changes.len());
                out.extend(changes.drain(..count));
                drop(changes);
                if count == 0 && queue.overrun.load(Ordering::Acquire) {
                    return Err(Ended::TooSlow);
                }
                if count == 0 && self.mirror.is_closed() {
                    return Err(Ended::Closed);
                }
            }
        }
        Ok(())
    }

    /// Returns when [`Self::take`] may have something new. Cancel safe.
    pub async fn changed(&mut self) {
        match &mut self.place {
            // The sender lives in the mirror that this watcher holds.
            Place::Scanning { wake, .. } => drop(wake.changed().await),
            Place::Narrow { queue, .. } => queue.ready.notified().await,
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Place::Narrow { topic, queue } = &self.place {
            self.mirror.forget(topic, queue);
        }
    }
}
