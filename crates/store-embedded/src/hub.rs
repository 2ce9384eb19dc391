//! What readers see: the published state, the recent history, and the watchers that follow it.
//!
//! A commit is one shared object. Publishing puts a reference to it into the inbox of each watcher it concerns, and
//! wakes that watcher once per batch. An inbox that is full is emptied and its watcher reads the history instead,
//! as does one that starts in the past; only a watcher that falls behind the history is refused.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use store::{Event, KeyRange, RangeResult, Revision, StoreError, Watch, WatchBatch};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::state::{Commit, EMPTY_REVISION, State, size};

/// Commits that may wait in one watcher's inbox.
const INBOX_COMMITS: usize = 4_096;
/// Events after which a batch for a watcher ends.
const BATCH_EVENTS: usize = 1_024;
/// Commits of the history looked at while the lock is held.
const CATCH_UP_COMMITS: usize = 4_096;

/// How long history is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retention {
    pub(crate) age: Duration,
    pub(crate) bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Hub {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// Ascending, without gaps, up to the state's revision.
    history: VecDeque<Past>,
    history_bytes: u64,
    retention: Retention,
    /// The oldest revision that can be read.
    compacted: Revision,
    watchers: Vec<Arc<Slot>>,
    closed: bool,
}

#[derive(Debug)]
struct Past {
    commit: Arc<Commit>,
    at: Instant,
    bytes: u64,
}

#[derive(Debug)]
struct Slot {
    range: KeyRange,
    inbox: Mutex<Inbox>,
    notify: Notify,
}

#[derive(Debug)]
struct Inbox {
    queue: VecDeque<Arc<Commit>>,
    /// Everything up to here was taken out, or is of no concern.
    cursor: Revision,
    /// The history is to be read after the cursor before the queue counts.
    behind: bool,
    /// A promise to tell the watcher that it has seen everything up to here.
    progress: Option<Revision>,
    closed: bool,
}

/// What a look into an inbox finds.
enum Taken {
    Batch(WatchBatch),
    Behind,
    Nothing,
    Closed,
}

impl Hub {
    pub(crate) fn new(state: State, retention: Retention) -> Self {
        let inner = Inner {
            compacted: state.revision,
            state,
            history: VecDeque::new(),
            history_bytes: 0,
            retention,
            watchers: Vec::new(),
            closed: false,
        };
        Self { inner: Mutex::new(inner) }
    }

    pub(crate) fn state(&self) -> State {
        self.lock().state.clone()
    }

    pub(crate) fn revision(&self) -> Revision {
        self.lock().state.revision
    }

    /// The oldest revision that can be read.
    pub(crate) fn compacted(&self) -> Revision {
        self.lock().compacted
    }

    /// Makes `state` what readers see, and tells the watchers how it came about.
    pub(crate) fn publish(&self, state: State, commits: Vec<Commit>) {
        let at = Instant::now();
        let mut woken = Vec::new();
        let mut inner = self.lock();
        inner.state = state;
        for commit in commits {
            let commit = Arc::new(commit);
            inner.deliver(&commit, &mut woken);
            inner.remember(commit, at);
        }
        let forgotten = inner.forget_old(at);
        drop(inner);
        // Memory is given back and watchers are woken with the lock free.
        drop(forgotten);
        woken.iter().for_each(|slot| slot.notify.notify_one());
    }

    pub(crate) fn range(
        &self,
        range: &KeyRange,
        revision: Revision,
        limit: usize,
    ) -> Result<RangeResult, StoreError> {
        let inner = self.lock();
        let newest = inner.state.revision;
        if revision == 0 || revision == newest {
            let state = inner.state.clone();
            drop(inner);
            return Ok(state.range(range, limit));
        }
        inner.check_readable(revision)?;
        let mut state = inner.state.clone();
        let undone: Vec<Arc<Commit>> = inner
            .history
            .iter()
            .rev()
            .map(|past| Arc::clone(&past.commit))
            .take_while(|c| c.revision > revision)
            .collect();
        drop(inner);
        for commit in undone {
            commit.events.iter().rev().for_each(|event| undo(&mut state, event));
        }
        Ok(RangeResult { revision: newest, ..state.range(range, limit) })
    }

    pub(crate) fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let mut inner = self.lock();
        if revision > inner.state.revision {
            return Err(StoreError::Future { requested: revision, newest: inner.state.revision });
        }
        if revision <= inner.compacted {
            return Err(StoreError::Compacted { requested: revision, oldest: inner.compacted });
        }
        let mut forgotten = Vec::new();
        while inner.history.front().is_some_and(|past| past.commit.revision < revision) {
            forgotten.extend(inner.forget_first());
        }
        inner.compacted = revision;
        Ok(())
    }

    pub(crate) fn watch(self: &Arc<Self>, range: KeyRange, start: Revision) -> Result<Watcher, StoreError> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(StoreError::Closed);
        }
        let newest = inner.state.revision;
        // Nothing happened at the revision of an empty store, so that there it is no matter of history.
        let cursor = if start == 0 { newest } else { (start - 1).max(EMPTY_REVISION) };
        if cursor < newest {
            inner.check_followed(cursor + 1)?;
        }
        let inbox =
            Inbox { queue: VecDeque::new(), cursor, behind: cursor < newest, progress: None, closed: false };
        let slot = Arc::new(Slot { range, inbox: Mutex::new(inbox), notify: Notify::new() });
        inner.watchers.push(Arc::clone(&slot));
        drop(inner);
        Ok(Watcher { hub: Arc::clone(self), slot })
    }

    pub(crate) fn request_progress(&self) {
        let inner = self.lock();
        let (revision, watchers) = (inner.state.revision, inner.watchers.clone());
        for slot in &watchers {
            lock(&slot.inbox).progress = Some(revision);
        }
        drop(inner);
        watchers.iter().for_each(|slot| slot.notify.notify_one());
    }

    /// Ends all watches, once they have delivered what they hold.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        let watchers = std::mem::take(&mut inner.watchers);
        drop(inner);
        for slot in watchers {
            lock(&slot.inbox).closed = true;
            slot.notify.notify_one();
        }
    }

    /// The next of the history for a watcher that is behind; `None` if there was nothing for it.
    fn catch_up(&self, slot: &Slot) -> Result<Option<WatchBatch>, StoreError> {
        let inner = self.lock();
        let mut inbox = lock(&slot.inbox);
        let first = inner.first_followed();
        if inbox.cursor + 1 < first {
            return Err(StoreError::Lagged);
        }
        let skipped = usize::try_from(inbox.cursor + 1 - first).unwrap_or(usize::MAX);
        let mut events = Vec::new();
        for past in inner.history.iter().skip(skipped).take(CATCH_UP_COMMITS) {
            pick(&past.commit, &slot.range, &mut events);
            inbox.cursor = past.commit.revision;
            if events.len() >= BATCH_EVENTS {
                break;
            }
        }
        if inbox.cursor >= inner.state.revision {
            inbox.behind = false;
        }
        Ok((!events.is_empty()).then(|| WatchBatch { revision: inbox.cursor, events }))
    }

    fn forget(&self, slot: &Arc<Slot>) {
        self.lock().watchers.retain(|other| !Arc::ptr_eq(other, slot));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Inner {
    fn check_readable(&self, revision: Revision) -> Result<(), StoreError> {
        if revision > self.state.revision {
            return Err(StoreError::Future { requested: revision, newest: self.state.revision });
        }
        if revision < self.compacted {
            return Err(StoreError::Compacted { requested: revision, oldest: self.compacted });
        }
        Ok(())
    }

    fn check_followed(&self, start: Revision) -> Result<(), StoreError> {
        let oldest = self.first_followed();
        if start < oldest { Err(StoreError::Compacted { requested: start, oldest }) } else { Ok(()) }
    }

    /// The oldest revision whose events are still there.
    fn first_followed(&self) -> Revision {
        self.history.front().map_or(self.state.revision + 1, |past| past.commit.revision)
    }

    fn deliver(&self, commit: &Arc<Commit>, woken: &mut Vec<Arc<Slot>>) {
        for slot in &self.watchers {
            if commit.events.iter().any(|event| slot.range.contains(event_key(event)))
                && lock(&slot.inbox).push(commit)
            {
                woken.push(Arc::clone(slot));
            }
        }
    }

    fn remember(&mut self, commit: Arc<Commit>, at: Instant) {
        let bytes = commit.events.iter().map(event_bytes).sum();
        self.history_bytes += bytes;
        self.history.push_back(Past { commit, at, bytes });
    }

    /// Takes what is too old or too much out of the history.
    fn forget_old(&mut self, now: Instant) -> Vec<Past> {
        let mut forgotten = Vec::new();
        while let Some(first) = self.history.front()
            && (self.history_bytes > self.retention.bytes
                || now.saturating_duration_since(first.at) > self.retention.age)
        {
            let Some(first) = self.forget_first() else { break };
            self.compacted = self.compacted.max(first.commit.revision);
            forgotten.push(first);
        }
        forgotten
    }

    fn forget_first(&mut self) -> Option<Past> {
        let first = self.history.pop_front()?;
        self.history_bytes -= first.bytes;
        Some(first)
    }
}

impl Slot {
    fn take(&self) -> Taken {
        let mut inbox = lock(&self.inbox);
        if inbox.behind {
            return Taken::Behind;
        }
        let mut events = Vec::new();
        while events.len() < BATCH_EVENTS
            && let Some(commit) = inbox.queue.pop_front()
        {
            inbox.cursor = commit.revision;
            pick(&commit, &self.range, &mut events);
        }
        if !events.is_empty() {
            return Taken::Batch(WatchBatch { revision: inbox.cursor, events });
        }
        if let Some(promised) = inbox.progress.take() {
            inbox.cursor = inbox.cursor.max(promised);
            return Taken::Batch(WatchBatch { revision: inbox.cursor, events });
        }
        if inbox.closed { Taken::Closed } else { Taken::Nothing }
    }
}

impl Inbox {
    /// Whether the watcher is to be woken for it.
    fn push(&mut self, commit: &Arc<Commit>) -> bool {
        if self.behind || commit.revision <= self.cursor {
            return false;
        }
        if self.queue.len() >= INBOX_COMMITS {
            self.overflow();
            return false;
        }
        self.queue.push_back(Arc::clone(commit));
        self.queue.len() == 1
    }

    fn overflow(&mut self) {
        if let Some(first) = self.queue.front() {
            // What came before it was of no concern.
            self.cursor = self.cursor.max(first.revision - 1);
        }
        self.queue = VecDeque::new();
        self.behind = true;
    }
}

/// A watch of the embedded store.
#[derive(Debug)]
pub(crate) struct Watcher {
    hub: Arc<Hub>,
    slot: Arc<Slot>,
}

#[async_trait]
impl Watch for Watcher {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            match self.slot.take() {
                Taken::Batch(batch) => return Ok(batch),
                Taken::Behind => {
                    if let Some(batch) = self.hub.catch_up(&self.slot)? {
                        return Ok(batch);
                    }
                }
                Taken::Nothing => self.slot.notify.notified().await,
                Taken::Closed => return Err(StoreError::Closed),
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.hub.forget(&self.slot);
    }
}

/// A panic elsewhere leaves these locks with whole data: nothing under them can fail half way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pick(commit: &Commit, range: &KeyRange, events: &mut Vec<Event>) {
    events.extend(commit.events.iter().filter(|event| range.contains(event_key(event))).cloned());
}

fn event_key(event: &Event) -> &[u8] {
    match event {
        Event::Put { current, .. } => &current.key,
        Event::Delete { key, .. } => key,
    }
}

/// What an event keeps in memory beside the state: every dead value is the previous one of exactly one event.
fn event_bytes(event: &Event) -> u64 {
    const ENTRY_BYTES: u64 = 256;
    let (Event::Put { previous, .. } | Event::Delete { previous, .. }) = event;
    ENTRY_BYTES + previous.as_ref().map_or(0, |previous| size(previous))
}

fn undo(state: &mut State, event: &Event) {
    let (key, previous) = match event {
        Event::Put { current, previous } => (&current.key, previous),
        Event::Delete { key, previous, .. } => (key, previous),
    };
    match previous {
        Some(previous) => drop(state.keys.insert(key.clone(), Arc::clone(previous))),
        None => drop(state.keys.remove(&key[..])),
    }
}
