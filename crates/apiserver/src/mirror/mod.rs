//! The one read path: all live objects in memory, fed by the store's change stream.
//!
//! GET, LIST and WATCH are answered from here and never touch disk or network. Start reading at [`Mirror`],
//! then [`resource::ResourceMirror`].

pub mod head;
pub mod resource;
pub mod watcher;

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use meta::names::GroupResource;
use store::{Event, KeyRange, Revision, Store, StoreError, WatchBatch};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use self::head::FieldPaths;
use self::resource::ResourceMirror;
use crate::objects::storage_prefix;

/// Every key of the API server's begins with this.
pub const ROOT: &str = "/registry/";
/// How long a read waits for the mirror to reach the revision it needs, as upstream.
const CATCH_UP: Duration = Duration::from_secs(3);
/// Keys per page when the mirror is first filled.
const LOAD_PAGE: usize = 10_000;
const RETRY: Duration = Duration::from_millis(200);

/// All live objects, by resource.
#[derive(Debug)]
pub struct Mirror {
    /// By storage prefix (`/registry/core/pods/`), so that a key finds its resource without parsing.
    resources: RwLock<HashMap<String, Arc<ResourceMirror>>>,
    applied: watch::Sender<Revision>,
}

impl Mirror {
    /// An empty mirror; call [`Self::load`] and then [`Self::run`].
    pub fn new() -> Arc<Self> {
        Arc::new(Self { resources: RwLock::default(), applied: watch::Sender::new(0) })
    }

    /// Makes a resource known. For resources that appear later (custom resources), call [`Self::fill`] next.
    pub fn add(&self, resource: &GroupResource, paths: FieldPaths) -> Arc<ResourceMirror> {
        let prefix = storage_prefix(resource);
        let mut resources = self.resources.write().expect("no panic happens under this lock");
        let entry = resources
            .entry(prefix.clone())
            .or_insert_with(|| Arc::new(ResourceMirror::new(resource.clone(), prefix, paths)));
        Arc::clone(entry)
    }

    /// Forgets a resource; its watchers end.
    pub fn remove(&self, resource: &GroupResource) {
        let mut resources = self.resources.write().expect("no panic happens under this lock");
        if let Some(mirror) = resources.remove(&storage_prefix(resource)) {
            mirror.close();
        }
    }

    pub fn resource(&self, resource: &GroupResource) -> Option<Arc<ResourceMirror>> {
        let resources = self.resources.read().expect("no panic happens under this lock");
        resources.get(&storage_prefix(resource)).cloned()
    }

    /// Everything up to here is visible.
    pub fn revision(&self) -> Revision {
        *self.applied.borrow()
    }

    /// Waits until `revision` is visible; false after three seconds.
    pub async fn reached(&self, revision: Revision) -> bool {
        if self.revision() >= revision {
            return true;
        }
        let mut applied = self.applied.subscribe();
        let wait = applied.wait_for(|applied| *applied >= revision);
        matches!(tokio::time::timeout(CATCH_UP, wait).await, Ok(Ok(_)))
    }

    /// Reads the whole store once. Returns the revision it stands at.
    pub async fn load(&self, store: &dyn Store) -> Result<Revision, StoreError> {
        let revision = self.load_range(store, KeyRange::prefix(ROOT)).await?;
        for mirror in self.resources.read().expect("no panic happens under this lock").values() {
            mirror.begin(revision);
        }
        self.applied.send_replace(revision);
        Ok(revision)
    }

    /// Reads the objects of one resource added after [`Self::load`]. Changes that arrive meanwhile win by revision.
    pub async fn fill(&self, store: &dyn Store, resource: &GroupResource) -> Result<(), StoreError> {
        let revision = self.load_range(store, KeyRange::prefix(storage_prefix(resource))).await?;
        if let Some(mirror) = self.resource(resource) {
            mirror.begin(revision);
        }
        Ok(())
    }

    async fn load_range(&self, store: &dyn Store, mut range: KeyRange) -> Result<Revision, StoreError> {
        let mut at = 0;
        loop {
            let page = store.range(range.clone(), at, LOAD_PAGE).await?;
            at = page.revision.max(at);
            for item in &page.items {
                if let Some(mirror) = self.owner(&item.key) {
                    mirror.load(Arc::clone(item));
                }
            }
            match page.items.last() {
                Some(last) if page.more => {
                    let mut next = last.key.to_vec();
                    next.push(0);
                    range.start = next.into();
                }
                _ => return Ok(at),
            }
        }
    }

    /// Follows the store until `shutdown`. A broken stream is resumed where it ended; if history is gone
    /// meanwhile, the mirror is read anew and the difference is published as changes.
    pub async fn run(self: Arc<Self>, store: Arc<dyn Store>, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.follow(store) => {}
        }
        for mirror in self.resources.read().expect("no panic happens under this lock").values() {
            mirror.close();
        }
    }

    async fn follow(&self, store: Arc<dyn Store>) {
        loop {
            let from = self.revision() + 1;
            match self.follow_from(store.as_ref(), from).await {
                StoreError::Closed => return,
                StoreError::Compacted { .. } | StoreError::Lagged => {
                    warn!(revision = from, "change stream lost its place, reading the store again");
                    if let Err(error) = self.reload(store.as_ref()).await {
                        error!(%error, "cannot read the store again");
                        tokio::time::sleep(RETRY).await;
                    }
                }
                error => {
                    warn!(%error, "change stream broke, resuming");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn follow_from(&self, store: &dyn Store, from: Revision) -> StoreError {
        let mut changes = match store.watch(KeyRange::prefix(ROOT), from).await {
            Ok(changes) => changes,
            Err(error) => return error,
        };
        loop {
            match changes.next().await {
                Ok(batch) => self.apply(batch),
                Err(error) => return error,
            }
        }
    }

    /// Publishes a batch to its resources, then its revision to waiting readers and writers.
    fn apply(&self, batch: WatchBatch) {
        let mut touched: Vec<Arc<ResourceMirror>> = Vec::new();
        for event in batch.events {
            let key = match &event {
                Event::Put { current, .. } => &current.key,
                Event::Delete { key, .. } => key,
            };
            let known = touched.iter().position(|mirror| mirror.owns(key));
            let mirror = match known {
                Some(index) => &touched[index],
                None => match self.owner(key) {
                    Some(mirror) => {
                        touched.push(mirror);
                        touched.last().expect("pushed just above")
                    }
                    None => continue,
                },
            };
            mirror.apply(event);
        }
        self.applied.send_if_modified(|applied| {
            let newer = batch.revision > *applied;
            *applied = (*applied).max(batch.revision);
            newer
        });
        for mirror in touched {
            mirror.wake();
        }
    }

    async fn reload(&self, store: &dyn Store) -> Result<(), StoreError> {
        let mirrors: Vec<_> =
            self.resources.read().expect("no panic happens under this lock").values().cloned().collect();
        let revision = store.revision().await?;
        for mirror in mirrors {
            let range = KeyRange::prefix(mirror.prefix().to_owned());
            let page = store.range(range, revision, 0).await?;
            mirror.replace(page.items, revision);
            mirror.wake();
        }
        self.applied.send_replace(revision);
        Ok(())
    }

    fn owner(&self, key: &[u8]) -> Option<Arc<ResourceMirror>> {
        // "/registry/<group>/<resource>/": the fourth slash ends the prefix.
        let end = memchr::memchr_iter(b'/', key).nth(3)? + 1;
        let prefix = std::str::from_utf8(&key[..end]).ok()?;
        self.resources.read().expect("no panic happens under this lock").get(prefix).cloned()
    }
}
