//! The contract of cluster state, in etcd's model: one revision for the whole store, compare-and-swap
//! transactions, ordered ranges, watches from a revision, leases and compaction. Backends implement [`Store`]
//! and pass the one suite of tests. Start reading at [`Store`].

#[cfg(feature = "suite")]
pub mod suite;

use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

/// A position in the store's single history. The first write has revision 2, as in etcd (an empty store is at 1).
pub type Revision = u64;
/// A lease; 0 is none.
pub type LeaseId = i64;

/// A live key with its history counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    /// Writes since creation; 1 for a new key.
    pub version: u64,
    pub lease: LeaseId,
}

/// A half-open or unbounded range of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    pub start: Bytes,
    pub end: Bound<Bytes>,
}

/// A precondition on one key. An absent key has create revision, mod revision and version 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    pub key: Bytes,
    pub target: CompareTarget,
    pub operator: CompareOperator,
}

/// What a precondition looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompareTarget {
    ModRevision(Revision),
    CreateRevision(Revision),
    Version(u64),
    Value(Bytes),
    Lease(LeaseId),
}

/// How a precondition compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompareOperator {
    Equal,
    NotEqual,
    Greater,
    Less,
}

/// One operation of a transaction. All writes of a transaction share one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Put { key: Bytes, value: Bytes, lease: LeaseId },
    Delete { range: KeyRange },
    Get { range: KeyRange, limit: usize },
}

/// If all of `compares` hold, `success` runs, else `failure`. No branch may put one key twice, or put and delete it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub success: Vec<Op>,
    pub failure: Vec<Op>,
}

/// The answer of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnResult {
    pub succeeded: bool,
    /// The store's revision after the transaction; for writes, the revision they got.
    pub revision: Revision,
    pub results: Vec<OpResult>,
}

/// The answer of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpResult {
    Put { previous: Option<Arc<KeyValue>> },
    Delete { deleted: Vec<Arc<KeyValue>> },
    Get { items: Vec<Arc<KeyValue>>, more: bool, count: u64 },
}

/// The answer of a range read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeResult {
    /// Ascending by key.
    pub items: Vec<Arc<KeyValue>>,
    /// Keys remain in the range beyond `limit`.
    pub more: bool,
    /// Keys in the whole range, whatever the limit.
    pub count: u64,
    /// The store's revision at the read.
    pub revision: Revision,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Put {
        current: Arc<KeyValue>,
        previous: Option<Arc<KeyValue>>,
    },
    /// `revision` is that of the delete.
    Delete {
        key: Bytes,
        revision: Revision,
        previous: Option<Arc<KeyValue>>,
    },
}

/// All changes of one or more whole revisions, in order; never part of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchBatch {
    /// Everything up to here has been delivered. A batch without events is a progress notice.
    pub revision: Revision,
    pub events: Vec<Event>,
}

/// A running watch. Dropping it ends the watch.
#[async_trait]
pub trait Watch: Send {
    /// The next batch. `Err(Compacted)` and `Err(Lagged)` end the watch: list again. Cancel safe: a dropped call
    /// loses nothing.
    async fn next(&mut self) -> Result<WatchBatch, StoreError>;
}

/// Cluster state.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Runs a transaction and answers when it is durable.
    async fn txn(&self, txn: Txn) -> Result<TxnResult, StoreError>;

    /// Reads a range at `revision`, or (at 0) a linearizable read of now. `limit` 0 is no limit.
    async fn range(
        &self,
        range: KeyRange,
        revision: Revision,
        limit: usize,
    ) -> Result<RangeResult, StoreError>;

    /// Delivers every change of `range` from `start` on, `start` included; 0 is from now on.
    async fn watch(&self, range: KeyRange, start: Revision) -> Result<Box<dyn Watch>, StoreError>;

    /// Asks every running watch for a batch (empty, if there is nothing to tell) at or after the revision that is
    /// newest now. Quiet watches advance by this only.
    async fn request_progress(&self) -> Result<(), StoreError>;

    /// The newest revision, read linearizably (embedded: the last published one).
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// Forgets history before `revision`. Live keys stay.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;

    /// Grants a lease. `id` 0 lets the store choose.
    async fn lease_grant(&self, id: LeaseId, ttl_seconds: i64) -> Result<LeaseId, StoreError>;

    /// Renews a lease and answers its TTL in seconds.
    async fn lease_keep_alive(&self, id: LeaseId) -> Result<i64, StoreError>;

    /// Ends a lease and deletes its keys.
    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError>;
}

/// What can go wrong with cluster state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error("revision {requested} is compacted, oldest is {oldest}")]
    Compacted { requested: Revision, oldest: Revision },
    #[error("revision {requested} is in the future, newest is {newest}")]
    Future { requested: Revision, newest: Revision },
    #[error("watcher fell behind")]
    Lagged,
    #[error("lease {0} not found")]
    LeaseNotFound(LeaseId),
    #[error("lease {0} already exists")]
    LeaseExists(LeaseId),
    #[error("value of {size} bytes is over the limit of {limit}")]
    TooLarge { size: usize, limit: usize },
    /// The write may or may not have happened.
    #[error("the store did not answer in time")]
    Timeout,
    #[error("invalid transaction: {0}")]
    InvalidTxn(&'static str),
    #[error("no space left for cluster state")]
    NoSpace,
    #[error("the store is not available")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the store is damaged: {0}")]
    Corrupt(String),
    #[error("the store is shut down")]
    Closed,
}

impl KeyRange {
    /// Exactly one key.
    pub fn key(key: impl Into<Bytes>) -> Self {
        let start: Bytes = key.into();
        Self { end: Bound::Included(start.clone()), start }
    }

    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start: Bytes = prefix.into();
        let mut end = start.to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return Self { start, end: Bound::Excluded(end.into()) };
            }
        }
        Self { start, end: Bound::Unbounded }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..]
            && match &self.end {
                Bound::Included(end) => key <= &end[..],
                Bound::Excluded(end) => key < &end[..],
                Bound::Unbounded => true,
            }
    }
}

impl Compare {
    /// The key does not exist.
    pub fn absent(key: impl Into<Bytes>) -> Self {
        Self::mod_revision(key, 0)
    }

    /// The key was last written at `revision`.
    pub fn mod_revision(key: impl Into<Bytes>, revision: Revision) -> Self {
        Self {
            key: key.into(),
            target: CompareTarget::ModRevision(revision),
            operator: CompareOperator::Equal,
        }
    }
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Timeout | Self::NoSpace | Self::Unavailable(_))
    }
}
