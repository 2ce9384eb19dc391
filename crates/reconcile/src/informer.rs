//! Shared informers: one list and watch per kind, a cache with indexes, and handlers told of every change.
//!
//! Objects in the cache are immutable and shared. Reads take a snapshot and hold no lock.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use kube::core::{ApiResource, DynamicObject};
use kube::{Client, Resource};
use meta::names::NamespacedName;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::SharedClock;
use crate::object::{controller_of, key_of, resource_version_of};
use crate::reflector::{self, Source};

const BY_NAMESPACE: &str = "namespace";
const BY_CONTROLLER: &str = "controller-uid";

/// What an informer can hold.
pub trait Object: Resource + DeserializeOwned + Clone + fmt::Debug + Send + Sync + 'static {}
impl<K: Resource + DeserializeOwned + Clone + fmt::Debug + Send + Sync + 'static> Object for K {}

/// The informers of a process. Clones share them: ask for the same kind twice and get the same informer.
#[derive(Clone)]
pub struct Informers {
    inner: Arc<Registry>,
}

/// The cache of one kind. Clones share it.
pub struct Informer<K> {
    inner: Arc<Inner<K>>,
}

/// A change in a cache. Re-lists show as the changes they brought.
#[derive(Debug, Clone)]
pub enum InformerEvent<K> {
    Added(Arc<K>),
    Updated { old: Arc<K>, new: Arc<K> },
    Deleted(Arc<K>),
}

/// Keeps a handler registered; dropping it ends that.
#[must_use = "dropping the subscription removes the handler"]
pub struct Subscription {
    cancel: Option<Box<dyn FnOnce() + Send + Sync>>,
}

struct Registry {
    client: Client,
    clock: SharedClock,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    informers: Mutex<HashMap<(TypeId, String), Entry>>,
}

struct Entry {
    informer: Box<dyn Any + Send + Sync>,
    stop: CancellationToken,
}

struct Inner<K> {
    state: RwLock<State<K>>,
    /// Locked for the length of a change, so that handlers see changes one by one and in order.
    handlers: Mutex<Handlers<K>>,
    synced: watch::Sender<bool>,
    resource_version: AtomicU64,
}

type Objects<K> = BTreeMap<Arc<NamespacedName>, Arc<K>>;
type Handler<K> = Arc<dyn Fn(&InformerEvent<K>) + Send + Sync>;
type IndexKeys<K> = Box<dyn Fn(&K) -> Vec<String> + Send + Sync>;

struct State<K> {
    objects: Objects<K>,
    indexes: HashMap<&'static str, Index<K>>,
}

struct Index<K> {
    keys: IndexKeys<K>,
    entries: BTreeMap<String, Objects<K>>,
}

struct Handlers<K> {
    next_id: u64,
    handlers: Vec<(u64, Handler<K>)>,
}

impl fmt::Debug for Informers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Informers").finish_non_exhaustive()
    }
}

impl Informers {
    /// Informers that read through `client` until `shutdown`.
    #[must_use]
    pub fn new(client: Client, clock: SharedClock, shutdown: CancellationToken) -> Self {
        let (tasks, informers) = (TaskTracker::new(), Mutex::default());
        Self { inner: Arc::new(Registry { client, clock, shutdown, tasks, informers }) }
    }

    /// The informer of a built-in kind, started if need be. Must be called within a tokio runtime.
    #[must_use]
    pub fn of<K: Object<DynamicType = ()>>(&self) -> Informer<K> {
        self.start(&(), "")
    }

    /// The informer of those objects of a built-in kind that match a field selector.
    #[must_use]
    pub fn selected<K: Object<DynamicType = ()>>(&self, field_selector: &str) -> Informer<K> {
        self.start(&(), field_selector)
    }

    /// The informer of any kind, as untyped objects.
    #[must_use]
    pub fn dynamic(&self, resource: &ApiResource) -> Informer<DynamicObject> {
        self.start(resource, "")
    }

    /// The informer of any kind, as a type of the caller's choice, for instance one that keeps metadata only.
    #[must_use]
    pub fn dynamic_as<K: Object<DynamicType = ApiResource>>(&self, resource: &ApiResource) -> Informer<K> {
        self.start(resource, "")
    }

    /// Stops an informer made by [`Informers::dynamic_as`] and forgets it; its handles keep what they hold.
    pub fn stop_dynamic<K: Object<DynamicType = ApiResource>>(&self, resource: &ApiResource) {
        let removed = self.entries().remove(&identity::<K>(resource, ""));
        if let Some(entry) = removed {
            entry.stop.cancel();
        }
    }

    /// Waits until every informer started so far has ended; call it after shutdown.
    pub async fn ended(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    fn start<K: Object>(&self, resource: &K::DynamicType, field_selector: &str) -> Informer<K> {
        let identity = identity::<K>(resource, field_selector);
        let mut entries = self.entries();
        if let Some(informer) = entries.get(&identity).and_then(|e| e.informer.downcast_ref::<Informer<K>>())
        {
            return informer.clone();
        }
        let informer = Informer::new();
        let stop = self.inner.shutdown.child_token();
        let source = Source {
            client: self.inner.client.clone(),
            path: K::url_path(resource, None),
            field_selector: field_selector.to_owned(),
        };
        let run = reflector::run(informer.clone(), source, self.inner.clock.clone(), stop.clone());
        self.inner.tasks.spawn(run);
        entries.insert(identity, Entry { informer: Box::new(informer.clone()), stop });
        informer
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<(TypeId, String), Entry>> {
        self.inner.informers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn identity<K: Object>(resource: &K::DynamicType, field_selector: &str) -> (TypeId, String) {
    (TypeId::of::<K>(), format!("{}?{field_selector}", K::url_path(resource, None)))
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<K> fmt::Debug for Informer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Informer")
            .field("synced", &*self.inner.synced.borrow())
            .field("objects", &self.inner.read().objects.len())
            .finish()
    }
}

impl<K: Object> Informer<K> {
    fn new() -> Self {
        let state = State { objects: BTreeMap::new(), indexes: HashMap::new() };
        Self {
            inner: Arc::new(Inner {
                state: RwLock::new(state),
                handlers: Mutex::new(Handlers { next_id: 0, handlers: Vec::new() }),
                synced: watch::Sender::new(false),
                resource_version: AtomicU64::new(0),
            }),
        }
    }

    /// A synced informer that holds `objects` and watches nothing, for tests of what reads caches.
    #[must_use]
    pub fn fixed(objects: impl IntoIterator<Item = K>) -> Self {
        let informer = Self::new();
        for object in objects {
            informer.apply(object);
        }
        informer.set_synced(0);
        informer
    }

    #[must_use]
    pub fn get(&self, key: &NamespacedName) -> Option<Arc<K>> {
        self.inner.read().objects.get(key).cloned()
    }

    /// All objects, by namespace and name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<K>> {
        self.inner.read().objects.values().cloned().collect()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.read().objects.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The objects of one namespace, by name.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.ensure_index(BY_NAMESPACE, |object| object.meta().namespace.iter().cloned().collect());
        self.by_index(BY_NAMESPACE, namespace)
    }

    /// The objects managed by the owner with this uid.
    #[must_use]
    pub fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.ensure_index(BY_CONTROLLER, |object| {
            controller_of(object.meta()).map(|owner| owner.uid.clone()).into_iter().collect()
        });
        self.by_index(BY_CONTROLLER, uid)
    }

    /// The objects for which the index function gave `value`; nothing if there is no such index.
    #[must_use]
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        let state = self.inner.read();
        let entries = state.indexes.get(index).and_then(|index| index.entries.get(value));
        entries.map(|objects| objects.values().cloned().collect()).unwrap_or_default()
    }

    /// Adds an index unless there is one of that name already.
    pub fn ensure_index(&self, name: &'static str, keys: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) {
        if self.inner.read().indexes.contains_key(name) {
            return;
        }
        let state = &mut *self.inner.write();
        if state.indexes.contains_key(name) {
            return;
        }
        let mut index = Index { keys: Box::new(keys), entries: BTreeMap::new() };
        for (key, object) in &state.objects {
            index.insert(key, object);
        }
        state.indexes.insert(name, index);
    }

    /// Calls `handler` for every object there is (as added), then for every change, in order.
    ///
    /// The handler runs on the informer's task: it must be quick, and may read caches and add to queues, but
    /// must not subscribe.
    pub fn subscribe(&self, handler: impl Fn(&InformerEvent<K>) + Send + Sync + 'static) -> Subscription {
        let mut handlers = self.inner.handlers();
        for object in self.list() {
            handler(&InformerEvent::Added(object));
        }
        let id = handlers.next_id;
        handlers.next_id += 1;
        handlers.handlers.push((id, Arc::new(handler)));
        drop(handlers);
        let inner: Weak<Inner<K>> = Arc::downgrade(&self.inner);
        let cancel = move || {
            if let Some(inner) = inner.upgrade() {
                inner.handlers().handlers.retain(|(other, _)| *other != id);
            }
        };
        Subscription { cancel: Some(Box::new(cancel)) }
    }

    /// True once the first list is in the cache and every handler has seen it.
    #[must_use]
    pub fn has_synced(&self) -> bool {
        *self.inner.synced.borrow()
    }

    /// Waits for [`Informer::has_synced`].
    pub async fn synced(&self) {
        let mut synced = self.inner.synced.subscribe();
        // The sender lives as long as self, so this cannot fail.
        if synced.wait_for(|synced| *synced).await.is_err() {
            unreachable!("the informer outlives the wait");
        }
    }

    /// The newest resource version the cache is known to contain.
    #[must_use]
    pub fn resource_version(&self) -> u64 {
        self.inner.resource_version.load(Ordering::Acquire)
    }

    pub(crate) fn set_synced(&self, resource_version: u64) {
        self.advance(resource_version);
        self.inner.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
    }

    pub(crate) fn advance(&self, resource_version: u64) {
        self.inner.resource_version.fetch_max(resource_version, Ordering::AcqRel);
    }

    /// Puts an object into the cache and tells the handlers, unless that very version is there.
    pub(crate) fn apply(&self, mut object: K) {
        object.meta_mut().managed_fields = None;
        let handlers = self.inner.handlers();
        let key = key_of(&object);
        let new = Arc::new(object);
        let old = {
            let mut state = self.inner.write();
            let same = |old: &Arc<K>| {
                old.meta().resource_version.is_some()
                    && old.meta().resource_version == new.meta().resource_version
                    && old.meta().uid == new.meta().uid
            };
            if state.objects.get(&key).is_some_and(same) {
                return;
            }
            state.insert(key, &new)
        };
        self.advance(resource_version_of(new.meta()));
        match old {
            None => handlers.call(&InformerEvent::Added(new)),
            // One object went and another of the same name came between two looks.
            Some(old) if old.meta().uid != new.meta().uid => {
                handlers.call(&InformerEvent::Deleted(old));
                handlers.call(&InformerEvent::Added(new));
            }
            Some(old) => handlers.call(&InformerEvent::Updated { old, new }),
        }
    }

    /// Takes an object out of the cache. `last` is its last state if the API server told it.
    pub(crate) fn remove(&self, key: &NamespacedName, last: Option<K>) {
        let handlers = self.inner.handlers();
        let Some(old) = self.inner.write().remove(key) else { return };
        let last = last.map_or(old, |mut last| {
            last.meta_mut().managed_fields = None;
            Arc::new(last)
        });
        self.advance(resource_version_of(last.meta()));
        handlers.call(&InformerEvent::Deleted(last));
    }

    pub(crate) fn keys(&self) -> Vec<Arc<NamespacedName>> {
        self.inner.read().objects.keys().cloned().collect()
    }
}

impl<K> Inner<K> {
    fn read(&self) -> RwLockReadGuard<'_, State<K>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<K>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn handlers(&self) -> MutexGuard<'_, Handlers<K>> {
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> State<K> {
    fn insert(&mut self, key: NamespacedName, new: &Arc<K>) -> Option<Arc<K>> {
        let (key, old) = match self.objects.remove_entry(&key) {
            Some((key, old)) => (key, Some(old)),
            None => (Arc::new(key), None),
        };
        for index in self.indexes.values_mut() {
            if let Some(old) = &old {
                index.remove(&key, old);
            }
            index.insert(&key, new);
        }
        self.objects.insert(key, Arc::clone(new));
        old
    }

    fn remove(&mut self, key: &NamespacedName) -> Option<Arc<K>> {
        let old = self.objects.remove(key)?;
        for index in self.indexes.values_mut() {
            index.remove(key, &old);
        }
        Some(old)
    }
}

impl<K> Index<K> {
    fn insert(&mut self, key: &Arc<NamespacedName>, object: &Arc<K>) {
        for value in (self.keys)(object) {
            self.entries.entry(value).or_default().insert(Arc::clone(key), Arc::clone(object));
        }
    }

    fn remove(&mut self, key: &NamespacedName, object: &K) {
        for value in (self.keys)(object) {
            let Some(objects) = self.entries.get_mut(&value) else { continue };
            objects.remove(key);
            if objects.is_empty() {
                self.entries.remove(&value);
            }
        }
    }
}

impl<K> Handlers<K> {
    fn call(&self, event: &InformerEvent<K>) {
        for (_, handler) in &self.handlers {
            handler(event);
        }
    }
}

impl<K> InformerEvent<K> {
    /// The newest state of the object; for a deletion, its last.
    #[must_use]
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Added(object) | Self::Updated { new: object, .. } | Self::Deleted(object) => object,
        }
    }

    /// The state before the change, if there was one.
    #[must_use]
    pub fn old(&self) -> Option<&Arc<K>> {
        match self {
            Self::Updated { old, .. } => Some(old),
            Self::Added(_) | Self::Deleted(_) => None,
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Subscription")
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(cancel) = self.cancel.take() {
            cancel();
        }
    }
}

#[cfg(test)]
mod tests;
