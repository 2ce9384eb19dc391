//! All live objects of one resource, their recent history, and the watchers that wait for more.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use imbl::OrdMap;
use meta::names::GroupResource;
use store::{Event, KeyValue, Revision};
use tokio::sync::watch;
use tracing::error;

use super::head::{FieldPaths, Stored};
use super::watcher::{NarrowQueue, Topic, Watcher};

/// History younger than this is kept, unless it outgrows [`HISTORY_BYTES`].
const HISTORY_AGE: Duration = Duration::from_secs(600);
/// Bytes of superseded states that one resource may hold back.
const HISTORY_BYTES: usize = 64 << 20;
/// History younger than this is kept whatever it weighs: a client between list and watch needs it.
const HISTORY_MIN_AGE: Duration = Duration::from_secs(10);
/// What a change costs beside its value, for the byte count.
const CHANGE_OVERHEAD: usize = 256;

/// A consistent view of all objects of a resource, by `namespace/name` or `name`.
pub type Snapshot = OrdMap<Bytes, Arc<Stored>>;

/// One change to one object.
#[derive(Debug)]
pub struct Change {
    pub revision: Revision,
    /// The new state; for a delete the last state, known by the delete's revision.
    pub object: Arc<Stored>,
    /// The state before; `None` if the object did not exist.
    pub previous: Option<Arc<Stored>>,
    pub deleted: bool,
    at: Instant,
    /// The object in protobuf, made by the first watcher that wants it.
    pub protobuf: OnceLock<Bytes>,
}

/// The asked-for revision is older than what is kept. Carries the oldest that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    pub oldest: Revision,
}

/// See the module's text.
#[derive(Debug)]
pub struct ResourceMirror {
    resource: GroupResource,
    prefix: String,
    paths: FieldPaths,
    state: Mutex<State>,
    /// Sequence number of the next change; wakes the watchers that scan the whole history.
    wake: watch::Sender<u64>,
    version: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    objects: Snapshot,
    /// Revision of the newest change.
    revision: Revision,
    history: VecDeque<Arc<Change>>,
    /// Sequence number of `history[0]`.
    first: u64,
    /// Every change after this revision is in `history`.
    complete_after: Revision,
    history_bytes: usize,
    narrow: HashMap<Topic, Vec<Weak<NarrowQueue>>>,
    closed: bool,
}

impl ResourceMirror {
    pub(super) fn new(resource: GroupResource, prefix: String, paths: FieldPaths) -> Self {
        Self {
            resource,
            prefix,
            paths,
            state: Mutex::default(),
            wake: watch::Sender::new(0),
            version: AtomicU64::new(1),
        }
    }

    pub fn resource(&self) -> &GroupResource {
        &self.resource
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The selectable fields, in the order of [`Stored::field`].
    pub fn paths(&self) -> &FieldPaths {
        &self.paths
    }

    pub(super) fn owns(&self, key: &[u8]) -> bool {
        key.starts_with(self.prefix.as_bytes())
    }

    /// Changes whenever any object does.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Stored>> {
        let state = self.state();
        if namespace.is_empty() {
            return state.objects.get(name.as_bytes()).cloned();
        }
        state.objects.get(format!("{namespace}/{name}").as_bytes()).cloned()
    }

    /// How many objects there are.
    pub fn count(&self) -> usize {
        self.state().objects.len()
    }

    /// All objects as of now, and the revision of the newest change among them.
    pub fn snapshot(&self) -> (Snapshot, Revision) {
        let state = self.state();
        (state.objects.clone(), state.revision)
    }

    /// All objects as they were at `revision`, by undoing what came later.
    pub fn snapshot_at(&self, revision: Revision) -> Result<Snapshot, Gone> {
        let (mut objects, undo) = {
            let state = self.state();
            if revision < state.complete_after {
                return Err(Gone { oldest: state.complete_after });
            }
            let later = state.history.iter().rev().take_while(|change| change.revision > revision);
            (state.objects.clone(), later.cloned().collect::<Vec<_>>())
        };
        for change in undo {
            match &change.previous {
                Some(previous) => objects.insert(change.object.key(), Arc::clone(previous)),
                None => objects.remove(&change.object.key()),
            };
        }
        Ok(objects)
    }

    /// A watcher of every change after `revision`. With a topic it sees only changes that can concern the topic.
    pub fn watch(self: &Arc<Self>, revision: Revision, topic: Option<Topic>) -> Result<Watcher, Gone> {
        let mut state = self.state();
        if revision < state.complete_after {
            return Err(Gone { oldest: state.complete_after });
        }
        let skip = state.history.partition_point(|change| change.revision <= revision);
        let Some(topic) = topic else {
            let next = state.first + skip as u64;
            return Ok(Watcher::scanning(Arc::clone(self), next, self.wake.subscribe()));
        };
        let queue = Arc::new(NarrowQueue::default());
        for change in state.history.iter().skip(skip).filter(|change| topic.concerns(change)) {
            queue.push(change);
        }
        state.narrow.entry(topic.clone()).or_default().push(Arc::downgrade(&queue));
        Ok(Watcher::narrow(Arc::clone(self), topic, queue))
    }

    /// Appends to `out` up to `limit` changes from sequence number `next` on; answers the next number, or `None`
    /// if the watcher is too slow or the resource is gone.
    pub(super) fn read(&self, next: u64, limit: usize, out: &mut Vec<Arc<Change>>) -> Option<u64> {
        let state = self.state();
        let skip = usize::try_from(next.checked_sub(state.first)?).ok()?;
        if state.closed && skip >= state.history.len() {
            return None;
        }
        let before = out.len();
        out.extend(state.history.iter().skip(skip).take(limit).cloned());
        Some(next + (out.len() - before) as u64)
    }

    pub(super) fn forget(&self, topic: &Topic, queue: &Arc<NarrowQueue>) {
        let mut state = self.state();
        if let Some(queues) = state.narrow.get_mut(topic) {
            queues.retain(|own| own.strong_count() > 0 && own.as_ptr() != Arc::as_ptr(queue));
            if queues.is_empty() {
                state.narrow.remove(topic);
            }
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Takes an object from the first reading of the store.
    pub(super) fn load(&self, item: Arc<KeyValue>) {
        let Some(object) = self.parse(&item) else { return };
        let mut state = self.state();
        let key = object.key();
        if state.objects.get(&key).is_some_and(|own| own.revision() >= object.revision()) {
            return;
        }
        state.objects.insert(key, Arc::new(object));
    }

    /// Ends the first reading, which stands at `revision`: history begins here.
    pub(super) fn begin(&self, revision: Revision) {
        let mut state = self.state();
        state.revision = state.revision.max(revision);
        state.complete_after = state.complete_after.max(revision);
    }

    pub(super) fn apply(&self, event: Event) {
        match event {
            Event::Put { current, .. } => {
                if let Some(object) = self.parse(&current) {
                    self.put(Arc::new(object));
                }
            }
            Event::Delete { key, revision, .. } => self.delete(&key.slice(self.prefix.len()..), revision),
        }
    }

    fn put(&self, object: Arc<Stored>) {
        let mut state = self.state();
        if object.revision() <= state.revision {
            return;
        }
        let previous = state.objects.insert(object.key(), Arc::clone(&object));
        self.record(&mut state, object, previous, false);
    }

    fn delete(&self, key: &Bytes, revision: Revision) {
        let mut state = self.state();
        if revision <= state.revision {
            return;
        }
        let Some(previous) = state.objects.remove(key) else { return };
        let object = Arc::new(previous.deleted_at(revision));
        self.record(&mut state, object, Some(previous), true);
    }

    fn record(&self, state: &mut State, object: Arc<Stored>, previous: Option<Arc<Stored>>, deleted: bool) {
        let now = Instant::now();
        let change = Arc::new(Change {
            revision: object.revision(),
            object,
            previous,
            deleted,
            at: now,
            protobuf: OnceLock::new(),
        });
        state.revision = change.revision;
        state.history_bytes += change.object.size() + CHANGE_OVERHEAD;
        state.notify(&change);
        state.history.push_back(change);
        state.trim(now);
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// Replaces everything after history was lost; publishes the difference as changes at `revision`.
    pub(super) fn replace(&self, items: Vec<Arc<KeyValue>>, revision: Revision) {
        let mut fresh: Vec<Arc<Stored>> =
            items.iter().filter_map(|item| self.parse(item)).map(Arc::new).collect();
        let present: std::collections::HashSet<Bytes> = fresh.iter().map(|object| object.key()).collect();
        let lost: Vec<Bytes> =
            self.state().objects.keys().filter(|key| !present.contains(*key)).cloned().collect();
        fresh.sort_by_key(|object| object.revision());
        for object in fresh {
            self.put(object);
        }
        for key in lost {
            self.delete(&key, revision);
        }
    }

    /// Wakes the watchers that scan, once a batch is applied.
    pub(super) fn wake(&self) {
        let next = {
            let state = self.state();
            state.first + state.history.len() as u64
        };
        self.wake.send_replace(next);
    }

    /// Ends all watches.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        for queue in state.narrow.values().flatten().filter_map(Weak::upgrade) {
            queue.wake();
        }
        drop(state);
        self.wake.send_modify(|_| {});
    }

    fn parse(&self, item: &Arc<KeyValue>) -> Option<Stored> {
        let object = Stored::new(Arc::clone(item), self.prefix.len(), &self.paths);
        if object.is_none() {
            error!(key = %String::from_utf8_lossy(&item.key), "stored object cannot be read, it is not served");
        }
        object
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic happens under this lock")
    }
}

impl State {
    fn notify(&mut self, change: &Arc<Change>) {
        if self.narrow.is_empty() {
            return;
        }
        for topic in Topic::of(change) {
            if let Some(queues) = self.narrow.get(&topic) {
                for queue in queues.iter().filter_map(Weak::upgrade) {
                    queue.push(change);
                }
            }
        }
    }

    fn trim(&mut self, now: Instant) {
        while let Some(oldest) = self.history.front() {
            let age = now.duration_since(oldest.at);
            let heavy = self.history_bytes > HISTORY_BYTES && age > HISTORY_MIN_AGE;
            if age <= HISTORY_AGE && !heavy {
                return;
            }
            self.complete_after = oldest.revision;
            self.history_bytes -= oldest.object.size() + CHANGE_OVERHEAD;
            self.history.pop_front();
            self.first += 1;
        }
    }
}
