//! The verbs, written once for every kind.
//!
//! A request has been authenticated, authorized and resolved to a [`catalog::Target`] when it gets here. Reads
//! come from the mirror, writes go to the store and are answered when the mirror shows them. Start reading at
//! [`Registry`], then `create.rs`, `update.rs`, `delete.rs`, `list.rs` and `watch.rs`.

pub mod catalog;
mod create;
pub mod delete;
mod disruption;
pub mod handle;
mod internal;
pub mod kinds;
pub mod list;
mod managed;
mod metadata;
pub mod patch;
pub mod render;
pub mod selection;
pub mod strategy;
pub(crate) mod subresources;
mod table;
mod update;
pub mod watch;
mod wire;
pub mod write;

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use bytes::Bytes;
use jiff::Timestamp;
use meta::names::GroupResource;
use serde_json::Value;
use store::{Revision, Store, StoreError};

use self::catalog::{Catalog, Resource, Target};
use crate::admission::chain::Chain;
use crate::mirror::Mirror;
use crate::mirror::head::Stored;
use crate::objects::{ObjectExt as _, Objects};
use crate::status::ApiError;

/// Where the registry learns the time; injected so that a test or a simulation owns it.
pub type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// See the module's text.
pub struct Registry {
    store: Arc<dyn Store>,
    mirror: Arc<Mirror>,
    catalog: ArcSwap<Catalog>,
    /// Set once, when the parts it needs are there: it reads and writes through this registry.
    admission: OnceLock<Chain>,
    now: Now,
    /// Others write to the store too: a consistent read must ask it for its revision.
    shared_store: bool,
}

impl Registry {
    pub fn new(
        store: Arc<dyn Store>,
        mirror: Arc<Mirror>,
        catalog: Catalog,
        now: Now,
        shared_store: bool,
    ) -> Self {
        Self {
            store,
            mirror,
            catalog: ArcSwap::from_pointee(catalog),
            admission: OnceLock::new(),
            now,
            shared_store,
        }
    }

    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.load_full()
    }

    /// Puts admission in place; what was there stays.
    pub fn set_admission(&self, chain: Chain) {
        self.admission.get_or_init(|| chain);
    }

    /// Swaps in a changed catalog (custom resources come and go).
    pub fn set_catalog(&self, catalog: Catalog) {
        self.catalog.store(Arc::new(catalog));
    }

    pub fn mirror(&self) -> &Arc<Mirror> {
        &self.mirror
    }

    pub fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// One object. Unless an old state will do (`resourceVersion=0`), every write acknowledged before is seen.
    pub async fn get(
        &self,
        target: &Target,
        namespace: &str,
        name: &str,
        resource_version: &str,
    ) -> Result<Arc<Stored>, ApiError> {
        self.freshen(resource_version).await?;
        let mirror = stored_kind(target)?;
        mirror.get(namespace, name).ok_or_else(|| ApiError::not_found(target.name(), name))
    }

    /// Makes the mirror at least as new as the request wants: now if it says nothing, at `N` if it says so.
    async fn freshen(&self, resource_version: &str) -> Result<(), ApiError> {
        match parse_version(resource_version)? {
            None if self.shared_store => {
                let revision = self.store.revision().await.map_err(store_error)?;
                self.reach(revision).await
            }
            None | Some(0) => Ok(()),
            Some(revision) => self.reach(revision).await,
        }
    }

    async fn reach(&self, revision: Revision) -> Result<(), ApiError> {
        if self.mirror.revision() < revision && self.shared_store {
            self.store.request_progress().await.map_err(store_error)?;
        }
        if self.mirror.reached(revision).await {
            return Ok(());
        }
        Err(ApiError::too_large_resource_version(revision, self.mirror.revision()))
    }
}

impl Objects for Registry {
    fn get(&self, resource: &GroupResource, namespace: &str, name: &str) -> Option<Arc<Value>> {
        Some(self.mirror.resource(resource)?.get(namespace, name)?.parsed())
    }

    fn list(&self, resource: &GroupResource, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let Some(mirror) = self.mirror.resource(resource) else { return Vec::new() };
        let (objects, _) = mirror.snapshot();
        let Some(namespace) = namespace else {
            return objects.values().map(|object| object.parsed()).collect();
        };
        let prefix = Bytes::from(format!("{namespace}/"));
        let within = objects.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
        within.map(|(_, object)| object.parsed()).collect()
    }

    fn list_by_field(
        &self,
        resource: &GroupResource,
        namespace: Option<&str>,
        path: &[&str],
        value: &str,
    ) -> Vec<Arc<Value>> {
        let Some(mirror) = self.mirror.resource(resource) else { return Vec::new() };
        let name = path.join(".");
        let Some(index) = mirror.paths().0.iter().position(|known| **known == *name) else {
            let mut objects = Objects::list(self, resource, namespace);
            objects.retain(|object| object.str_at(path) == value);
            return objects;
        };
        let (objects, _) = mirror.snapshot();
        let within = objects.values().filter(|object| namespace.is_none_or(|own| object.namespace() == own));
        within.filter(|object| object.field(index) == value).map(|object| object.parsed()).collect()
    }

    fn version(&self, resource: &GroupResource) -> u64 {
        self.mirror.resource(resource).map_or(0, |mirror| mirror.version())
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("shared_store", &self.shared_store).finish_non_exhaustive()
    }
}

/// The mirror of a kind that is stored.
fn stored_kind(target: &Target) -> Result<&Arc<crate::mirror::resource::ResourceMirror>, ApiError> {
    let mirror = target.resource.mirror.as_ref();
    mirror.ok_or_else(ApiError::method_not_allowed)
}

/// Parses `resourceVersion`; `None` when it is unset.
fn parse_version(text: &str) -> Result<Option<Revision>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        let message = format!(
            "resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax"
        );
        ApiError::new(500, "", message, None)
    })
}

/// What a failing store looks like to a client.
pub(crate) fn store_error(error: StoreError) -> ApiError {
    tracing::error!(%error, "store");
    match error {
        StoreError::Timeout => ApiError::timeout("request did not complete within the allowed duration"),
        StoreError::TooLarge { limit, .. } => ApiError::request_too_large(limit),
        StoreError::NoSpace => ApiError::internal("no space left for cluster state"),
        error if error.is_retriable() => {
            ApiError::service_unavailable("the cluster state store is not available")
        }
        error => ApiError::internal(error),
    }
}

impl Resource {
    /// Bytes to skip so that a list item has no kind and apiVersion.
    pub(crate) fn item_skip(&self, target: &Target) -> usize {
        // The brace stays: one byte less, and it is written by the caller.
        if self.custom { 0 } else { target.json_prefix().len() }
    }
}
