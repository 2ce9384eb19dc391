//! The runtime's state and the lookups in it. What it does is in `lifecycle`, what it serves in `service`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cri::v1::ContainerEventResponse;
use jiff::Timestamp;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cgroup::Hierarchies;
use crate::container::Container;
use crate::error::RuntimeError;
use crate::image::{ImageStore, Puller};
use crate::machine::{self, Layout};
use crate::sandbox::Sandbox;
use crate::spec::Machine;
use crate::streaming::Tokens;
use crate::{Config, events};

/// One runtime.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) config: Config,
    pub(crate) layout: Layout,
    pub(crate) images: Arc<ImageStore>,
    pub(crate) puller: Puller,
    pub(crate) cgroups: Hierarchies,
    pub(crate) machine: Machine,
    pub(crate) events: broadcast::Sender<ContainerEventResponse>,
    pub(crate) streaming: Tokens,
    /// Tasks that follow sandboxes.
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    sandboxes: BTreeMap<String, Arc<Sandbox>>,
    containers: BTreeMap<String, Arc<Container>>,
    /// Names of sandboxes and containers that are being made.
    reserved: BTreeSet<String>,
}

/// A name nobody else can take while this lives.
#[derive(Debug)]
pub(crate) struct Reservation<'a> {
    runtime: &'a Runtime,
    name: String,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.runtime.lock().reserved.remove(&self.name);
    }
}

impl Runtime {
    /// Opens a state directory. Blocking.
    pub(crate) fn open(
        config: Config,
        streaming: Tokens,
        shutdown: CancellationToken,
    ) -> Result<Self, RuntimeError> {
        for directory in ["sandboxes", "containers"] {
            let path = config.state_dir.join(directory);
            fs::create_dir_all(&path).map_err(RuntimeError::file("create", &path))?;
        }
        let root = &config.state_dir;
        let root = root.canonicalize().map_err(RuntimeError::file("find", root))?;
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        fs::set_permissions(&root, permissions).map_err(RuntimeError::file("protect", &root))?;
        let layout = Layout { root };
        machine::make_private_mount(&layout.mounts())?;
        let cgroups = Hierarchies::detect()?;
        let machine = machine::detect(&cgroups)?;
        let images = Arc::new(ImageStore::open(&layout.root)?);
        let puller = Puller::new(Arc::clone(&images), config.registry_config_dir.clone());
        Ok(Self {
            layout,
            images,
            puller,
            cgroups,
            machine,
            events: broadcast::Sender::new(events::BUFFER),
            streaming,
            tasks: TaskTracker::new(),
            shutdown,
            tables: Mutex::default(),
            config,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sandbox with this id, or with the only id that begins so.
    pub(crate) fn find_sandbox(&self, id: &str) -> Result<Arc<Sandbox>, RuntimeError> {
        find(&self.lock().sandboxes, id, "sandbox")
    }

    /// The container with this id, or with the only id that begins so.
    pub(crate) fn find_container(&self, id: &str) -> Result<Arc<Container>, RuntimeError> {
        find(&self.lock().containers, id, "container")
    }

    pub(crate) fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.lock().sandboxes.values().cloned().collect()
    }

    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        self.lock().containers.values().cloned().collect()
    }

    pub(crate) fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let mut containers = self.containers();
        containers.retain(|container| container.sandbox() == sandbox);
        containers
    }

    pub(crate) fn insert_sandbox(&self, id: String, sandbox: Arc<Sandbox>) {
        self.lock().sandboxes.insert(id, sandbox);
    }

    pub(crate) fn insert_container(&self, id: String, container: Arc<Container>) {
        self.lock().containers.insert(id, container);
    }

    pub(crate) fn forget_sandbox(&self, id: &str) {
        self.lock().sandboxes.remove(id);
    }

    pub(crate) fn forget_container(&self, id: &str) {
        self.lock().containers.remove(id);
    }

    /// Takes a name while something of that name is made.
    pub(crate) fn reserve(&self, name: String) -> Result<Reservation<'_>, RuntimeError> {
        if !self.lock().reserved.insert(name.clone()) {
            return Err(RuntimeError::AlreadyExists { message: format!("name {name:?} is reserved") });
        }
        Ok(Reservation { runtime: self, name })
    }

    /// Layers that containers stand on.
    pub(crate) fn layers_in_use(&self) -> BTreeSet<String> {
        let layers = |container: &Arc<Container>| {
            let record = container.record();
            record.image_mounts.into_iter().flatten().chain(record.layers)
        };
        self.containers().iter().flat_map(layers).collect()
    }
}

fn find<T>(table: &BTreeMap<String, Arc<T>>, id: &str, kind: &'static str) -> Result<Arc<T>, RuntimeError> {
    let not_found = || RuntimeError::NotFound { kind, id: id.to_owned() };
    if let Some(found) = table.get(id) {
        return Ok(Arc::clone(found));
    }
    if id.is_empty() {
        return Err(not_found());
    }
    let mut matches = table.range(id.to_owned()..).take_while(|(key, _)| key.starts_with(id));
    match (matches.next(), matches.next()) {
        (Some((_, found)), None) => Ok(Arc::clone(found)),
        _ => Err(not_found()),
    }
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// Reads a file of ours.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, RuntimeError> {
    let text = fs::read(path).map_err(RuntimeError::file("read", path))?;
    serde_json::from_slice(&text).map_err(|source| RuntimeError::Damaged { path: path.to_owned(), source })
}
