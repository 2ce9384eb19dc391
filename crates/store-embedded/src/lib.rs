//! Cluster state in this process: a log and snapshots on disk for durability, an index and recent history in
//! memory for everything else. Reads never touch the disk. Start reading at [`EmbeddedStore`]; `committer` is the
//! way of a write, `hub` that of a read, `journal` is the disk.
//!
//! It must never answer a write that is not durable, give out a revision twice, or show part of a revision.

mod committer;
mod hub;
mod journal;
mod lease;
mod record;
mod snapshot;
mod state;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use store::{KeyRange, LeaseId, RangeResult, Revision, Store, StoreError, Txn, TxnResult, Watch};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::committer::{Committer, Writer};
use crate::hub::{Hub, Retention};
use crate::journal::Journal;
use crate::lease::Deadlines;
use crate::state::{Answer, Command, State};

/// The longest a lease may last, as in etcd.
const MAX_LEASE_SECONDS: i64 = 9_000_000_000;
/// What a command without a value adds to the log.
const SMALL_COMMAND_BYTES: usize = 64;

/// How an embedded store behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Wait for the disk before a write is answered. Without it a crash of the machine loses what came last, and may
    /// damage the log: for clusters that may be thrown away.
    pub fsync: bool,
    /// Keys and values of one transaction.
    pub max_txn_bytes: usize,
    /// How long changes can be watched and read afterwards...
    pub history_age: Duration,
    /// ...unless the dead values it keeps are more than this.
    pub history_bytes: u64,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    #[error("the data directory {} is in use by another process", path.display())]
    Locked { path: PathBuf },
    #[error("the data directory {} is not empty", path.display())]
    NotEmpty { path: PathBuf },
    #[error("{} is damaged: {detail}", path.display())]
    Corrupt { path: PathBuf, detail: &'static str },
    #[error("cannot use {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the store is opened outside of a runtime")]
    NoRuntime,
}

/// A lease and what hangs on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseStatus {
    pub id: LeaseId,
    pub ttl_seconds: i64,
    pub remaining: Duration,
    pub keys: Vec<Bytes>,
}

/// Cluster state of one process. Dropping it finishes what was begun and frees the data directory.
#[derive(Debug)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    expiry: OnceLock<AbortHandle>,
    dir: Option<PathBuf>,
    max_txn_bytes: usize,
}

/// What the task that ends leases needs as well.
#[derive(Debug)]
struct Shared {
    hub: Arc<Hub>,
    deadlines: Arc<Deadlines>,
    committer: Committer,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fsync: true,
            max_txn_bytes: 3 << 19,
            history_age: Duration::from_secs(600),
            history_bytes: 256 << 20,
        }
    }
}

impl EmbeddedStore {
    /// Opens a data directory, and makes it if there is none. To be called inside a runtime. Reads the directory
    /// before it returns.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self, OpenError> {
        let dir = dir.as_ref();
        let runtime = Handle::try_current().map_err(|_| OpenError::NoRuntime)?;
        let (journal, state) = Journal::open(dir, options.fsync)?;
        let has_leases = !state.leases.is_empty();
        let store = Self::new(state, &options, Some(dir.to_owned()), |writer| {
            Committer::thread(writer.with_journal(journal))
        });
        let store = store.map_err(|source| OpenError::Io { path: dir.to_owned(), source })?;
        if has_leases {
            store.expire_leases(&runtime);
        }
        Ok(store)
    }

    /// A store that is gone with the process.
    pub fn in_memory() -> Self {
        Self::in_memory_with(&Options::default())
    }

    /// As [`EmbeddedStore::in_memory`], with limits other than the defaults.
    pub fn in_memory_with(options: &Options) -> Self {
        match Self::new(State::empty(), options, None, |writer| {
            Ok::<_, std::convert::Infallible>(Committer::inline(writer))
        }) {
            Ok(store) => store,
            Err(never) => match never {},
        }
    }

    /// Makes a data directory from a backup. The directory must not hold a store.
    pub fn restore(backup: impl AsRef<Path>, dir: impl AsRef<Path>) -> Result<(), OpenError> {
        journal::restore(backup.as_ref(), dir.as_ref())
    }

    /// Writes everything there is at one revision into one file, while work goes on, and answers that revision.
    pub async fn backup(&self, path: impl AsRef<Path>) -> Result<Revision, OpenError> {
        let path = path.as_ref().to_owned();
        let state = self.shared.hub.state();
        let revision = state.revision;
        let target = path.clone();
        let written =
            tokio::task::spawn_blocking(move || snapshot::write(&target, &state, &AtomicBool::new(false)))
                .await;
        match written.map_err(io::Error::other) {
            Ok(Ok(())) => Ok(revision),
            Ok(Err(source)) | Err(source) => Err(OpenError::Io { path, source }),
        }
    }

    /// Bytes of the data directory; of keys and values if there is none.
    pub fn size(&self) -> io::Result<u64> {
        match &self.dir {
            Some(dir) => journal::size_on_disk(dir),
            None => Ok(self.live_bytes()),
        }
    }

    /// Bytes of all keys and values.
    pub fn live_bytes(&self) -> u64 {
        self.shared.hub.state().live_bytes
    }

    /// The newest revision.
    pub fn newest(&self) -> Revision {
        self.shared.hub.revision()
    }

    /// The oldest revision that can still be read.
    pub fn compacted(&self) -> Revision {
        self.shared.hub.compacted()
    }

    /// The leases there are, by id.
    pub fn leases(&self) -> Vec<LeaseId> {
        self.shared.hub.state().leases.keys().copied().collect()
    }

    /// One lease.
    pub fn lease(&self, id: LeaseId) -> Option<LeaseStatus> {
        let state = self.shared.hub.state();
        let lease = state.leases.get(&id)?;
        Some(LeaseStatus {
            id,
            ttl_seconds: lease.ttl_seconds,
            remaining: self.shared.deadlines.remaining(id)?,
            keys: lease.keys.iter().cloned().collect(),
        })
    }

    /// Finishes what was begun, ends all watches and frees the data directory. Later calls fail with
    /// [`StoreError::Closed`].
    pub async fn close(&self) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || shared.committer.close())
            .await
            .map_err(|error| StoreError::Unavailable(error.into()))
    }

    fn new<E>(
        state: State,
        options: &Options,
        dir: Option<PathBuf>,
        committer: impl FnOnce(Writer) -> Result<Committer, E>,
    ) -> Result<Self, E> {
        let retention = Retention { age: options.history_age, bytes: options.history_bytes };
        let hub = Arc::new(Hub::new(state.clone(), retention));
        let deadlines = Arc::new(Deadlines::default());
        for (id, lease) in &state.leases {
            deadlines.insert(*id, lease.ttl_seconds);
        }
        let committer = committer(Writer::new(state, Arc::clone(&hub), Arc::clone(&deadlines)))?;
        let shared = Arc::new(Shared { hub, deadlines, committer });
        Ok(Self { shared, expiry: OnceLock::new(), dir, max_txn_bytes: options.max_txn_bytes })
    }

    fn expire_leases(&self, runtime: &Handle) {
        self.expiry.get_or_init(|| {
            let shared = Arc::clone(&self.shared);
            runtime.spawn(async move { shared.expire_leases().await }).abort_handle()
        });
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        if let Some(expiry) = self.expiry.get() {
            expiry.abort();
        }
        self.shared.committer.close();
    }
}

impl Shared {
    async fn expire_leases(&self) {
        loop {
            let due = self.deadlines.due().await;
            let ids = due.iter().map(|(id, _)| *id).collect();
            match self.committer.run(Command::Expire { ids }, SMALL_COMMAND_BYTES).await {
                Ok(_) => {}
                Err(StoreError::Closed) => return,
                // The committer logs what is wrong with the disk.
                Err(_) => self.deadlines.postpone(&due),
            }
        }
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn txn(&self, txn: Txn) -> Result<TxnResult, StoreError> {
        if !state::writes(&txn) {
            return Ok(self.shared.hub.state().read(&txn));
        }
        let size = state::weight(&txn);
        if size > self.max_txn_bytes {
            return Err(StoreError::TooLarge { size, limit: self.max_txn_bytes });
        }
        match self.shared.committer.run(Command::Txn(txn), size).await? {
            Answer::Txn(result) => Ok(result),
            other => Err(unexpected(&other)),
        }
    }

    async fn range(
        &self,
        range: KeyRange,
        revision: Revision,
        limit: usize,
    ) -> Result<RangeResult, StoreError> {
        self.shared.hub.range(&range, revision, limit)
    }

    async fn watch(&self, range: KeyRange, start: Revision) -> Result<Box<dyn Watch>, StoreError> {
        Ok(Box::new(self.shared.hub.watch(range, start)?))
    }

    async fn request_progress(&self) -> Result<(), StoreError> {
        self.shared.hub.request_progress();
        Ok(())
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.shared.hub.revision())
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.shared.hub.compact(revision)
    }

    async fn lease_grant(&self, id: LeaseId, ttl_seconds: i64) -> Result<LeaseId, StoreError> {
        self.expire_leases(&Handle::current());
        let ttl_seconds = ttl_seconds.clamp(1, MAX_LEASE_SECONDS);
        match self.shared.committer.run(Command::Grant { id, ttl_seconds }, SMALL_COMMAND_BYTES).await? {
            Answer::Granted { id, .. } => Ok(id),
            other => Err(unexpected(&other)),
        }
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<i64, StoreError> {
        self.shared.deadlines.renew(id)
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        self.shared.committer.run(Command::Revoke { id }, SMALL_COMMAND_BYTES).await.map(drop)
    }
}

/// The committer answers a command by its own kind; anything else is a broken invariant.
fn unexpected(answer: &Answer) -> StoreError {
    StoreError::Corrupt(format!("the committer answered {answer:?}"))
}
