//! Cluster state in etcd 3.4 or later. Reads are linearizable; what did not reach etcd is sent again, to another
//! member; a write whose fate is unknown is `Timeout` and never sent twice. Start reading at [`EtcdStore`].
//!
//! Progress of a quiet watch is made by writing a marker key into its range and deleting it: etcd's own progress
//! request is answered ahead of pending events before 3.4.25 and 3.5.8. Readers do not see markers.

mod convert;
mod error;
mod keys;
mod watch;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Certificate, Client, CompactionOptions, ConnectOptions, GetOptions, Identity, KvClient, LeaseClient,
    LeaseGrantOptions, TlsOptions, TxnOp, WatchClient,
};
use store::{KeyRange, LeaseId, RangeResult, Revision, Store, StoreError, Txn, TxnResult, Watch};
use tokio::time::{Instant, sleep, timeout_at};

use crate::convert::signed;
use crate::error::{Failure, Subject, classify};
use crate::keys::Prefix;
use crate::watch::EtcdWatch;

/// After this a call is given up.
const PATIENCE: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(2);
/// How soon a member that went silent is noticed.
const PING: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_millis(500);
/// Keys of one page of a range: etcd reads a page with its lock held.
const PAGE_KEYS: usize = 5_000;
/// Operations in a transaction that etcd takes by default.
const TXN_OPS: usize = 128;

/// Where etcd is and how to speak to it, in the terms of the API server's flags.
#[derive(Debug, Clone, Default)]
pub struct EtcdOptions {
    /// `--etcd-servers`: URLs, `https` for TLS.
    pub endpoints: Vec<String>,
    /// `--etcd-cafile`
    pub ca_file: Option<PathBuf>,
    /// `--etcd-certfile`
    pub cert_file: Option<PathBuf>,
    /// `--etcd-keyfile`
    pub key_file: Option<PathBuf>,
    /// What every key begins with in etcd, in front of what the store's user calls it.
    pub prefix: String,
}

/// Why etcd cannot even be tried.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    #[error("cannot read {}", path.display())]
    ReadFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("a client certificate needs a key, and a key a certificate")]
    HalfIdentity,
    #[error("the options for etcd are wrong")]
    Options(#[source] Box<etcd_client::Error>),
}

/// Cluster state in etcd.
pub struct EtcdStore {
    kv: KvClient,
    watch: WatchClient,
    lease: LeaseClient,
    prefix: Prefix,
    markers: Arc<Markers>,
}

/// The marker keys of the watches that run, and how many use each.
#[derive(Debug, Default)]
pub(crate) struct Markers(Mutex<BTreeMap<Vec<u8>, usize>>);

impl EtcdStore {
    /// Prepares to speak to etcd. Whether etcd is there is seen by the first call.
    pub async fn connect(options: EtcdOptions) -> Result<Self, ConnectError> {
        let tls = tls_options(&options)?;
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_keep_alive(PING, PING)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some(tls) = tls {
            connect = connect.with_tls(tls);
        }
        let client = Client::connect(&options.endpoints, Some(connect))
            .await
            .map_err(|error| ConnectError::Options(Box::new(error)))?;
        Ok(Self {
            kv: client.kv_client().max_decoding_message_size(usize::MAX),
            watch: client.watch_client().max_decoding_message_size(usize::MAX),
            lease: client.lease_client(),
            prefix: Prefix::new(options.prefix),
            markers: Arc::default(),
        })
    }

    /// One page of a range at one revision.
    async fn page(
        &self,
        start: &[u8],
        end: &[u8],
        revision: Revision,
        limit: usize,
    ) -> Result<etcd_client::GetResponse, StoreError> {
        let options = GetOptions::new()
            .with_range(end)
            .with_revision(signed(revision))
            .with_limit(signed(limit as u64));
        let subject = Subject { revision, ..Subject::default() };
        repeat(subject, || {
            let (mut kv, options) = (self.kv.clone(), options.clone());
            async move { kv.get(start, Some(options)).await }
        })
        .await
    }

    async fn run(
        &self,
        txn: etcd_client::Txn,
        subject: Subject,
    ) -> Result<etcd_client::TxnResponse, StoreError> {
        once(subject, || {
            let (mut kv, txn) = (self.kv.clone(), txn.clone());
            async move { kv.txn(txn).await }
        })
        .await
    }
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("EtcdStore").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn txn(&self, txn: Txn) -> Result<TxnResult, StoreError> {
        let subject = Subject { bytes: bytes(&txn), lease: lease(&txn), ..Subject::default() };
        let reads = txn.success.iter().chain(&txn.failure).all(|op| matches!(op, store::Op::Get { .. }));
        let txn = convert::txn(&self.prefix, txn);
        let response = if reads {
            repeat(subject, || {
                let (mut kv, txn) = (self.kv.clone(), txn.clone());
                async move { kv.txn(txn).await }
            })
            .await?
        } else {
            self.run(txn, subject).await?
        };
        Ok(convert::txn_result(&self.prefix, &response))
    }

    async fn range(
        &self,
        range: KeyRange,
        revision: Revision,
        limit: usize,
    ) -> Result<RangeResult, StoreError> {
        let (mut start, end) = self.prefix.range(&range);
        let left = |found: usize| if limit == 0 { usize::MAX } else { limit - found };
        let first = self.page(&start, &end, revision, left(0).min(PAGE_KEYS)).await?;
        let newest = convert::header_revision(first.header());
        let at = if revision == 0 { newest } else { revision };
        let mut last_key = first.kvs().last().map(|item| item.key().to_vec());
        let (mut items, mut more, count) = convert::items(&self.prefix, first);
        while more
            && (limit == 0 || items.len() < limit)
            && let Some(last) = last_key
        {
            start = keys::after(last);
            let page = self.page(&start, &end, at, left(items.len()).min(PAGE_KEYS)).await?;
            last_key = page.kvs().last().map(|item| item.key().to_vec());
            let (found, left, _) = convert::items(&self.prefix, page);
            items.extend(found);
            more = left;
        }
        Ok(RangeResult { items, more, count, revision: newest })
    }

    async fn watch(&self, range: KeyRange, start: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let start = if start == 0 { self.revision().await? + 1 } else { start };
        let (client, prefix) = (self.watch.clone(), self.prefix.clone());
        Ok(Box::new(EtcdWatch::new(client, prefix, range, Arc::clone(&self.markers), start)))
    }

    async fn request_progress(&self) -> Result<(), StoreError> {
        for keys in self.markers.keys().chunks(TXN_OPS) {
            let puts: Vec<_> = keys.iter().map(|key| TxnOp::put(key.clone(), "", None)).collect();
            let deletes: Vec<_> = keys.iter().map(|key| TxnOp::delete(key.clone(), None)).collect();
            for ops in [puts, deletes] {
                self.run(etcd_client::Txn::new().and_then(ops), Subject::default()).await?;
            }
        }
        Ok(())
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        let response = repeat(Subject::default(), || {
            let mut kv = self.kv.clone();
            // Any key will do, the header is what counts.
            async move { kv.get("\0", Some(GetOptions::new().with_count_only())).await }
        })
        .await?;
        Ok(convert::header_revision(response.header()))
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let subject = Subject { revision, ..Subject::default() };
        once(subject, || {
            let mut kv = self.kv.clone();
            async move { kv.compact(signed(revision), Some(CompactionOptions::new())).await }
        })
        .await
        .map(drop)
    }

    async fn lease_grant(&self, id: LeaseId, ttl_seconds: i64) -> Result<LeaseId, StoreError> {
        let subject = Subject { lease: id, ..Subject::default() };
        let granted = once(subject, || {
            let mut lease = self.lease.clone();
            async move { lease.grant(ttl_seconds, Some(LeaseGrantOptions::new().with_id(id))).await }
        })
        .await?;
        Ok(granted.id())
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<i64, StoreError> {
        let subject = Subject { lease: id, ..Subject::default() };
        repeat(subject, || {
            let mut lease = self.lease.clone();
            async move {
                let (mut keeper, mut answers) = lease.keep_alive(id).await?;
                keeper.keep_alive().await?;
                let answer = answers.message().await?.map_or(0, |answer| answer.ttl());
                if answer > 0 {
                    Ok(answer)
                } else {
                    Err(etcd_client::Error::LeaseKeepAliveError(String::new()))
                }
            }
        })
        .await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        let subject = Subject { lease: id, ..Subject::default() };
        once(subject, || {
            let mut lease = self.lease.clone();
            async move { lease.revoke(id).await }
        })
        .await
        .map(drop)
    }
}

impl Markers {
    fn add(&self, key: Vec<u8>) {
        *self.lock().entry(key).or_default() += 1;
    }

    fn remove(&self, key: &[u8]) {
        let mut markers = self.lock();
        if let Some(users) = markers.get_mut(key) {
            *users -= 1;
            if *users == 0 {
                markers.remove(key);
            }
        }
    }

    fn keys(&self) -> Vec<Vec<u8>> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that may be made twice.
async fn repeat<T, F>(subject: Subject, call: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, etcd_client::Error>>,
{
    attempt(subject, true, call).await
}

/// A call that etcd must see once at most.
async fn once<T, F>(subject: Subject, call: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, etcd_client::Error>>,
{
    attempt(subject, false, call).await
}

async fn attempt<T, F>(
    subject: Subject,
    repeatable: bool,
    mut call: impl FnMut() -> F,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, etcd_client::Error>>,
{
    let deadline = Instant::now() + PATIENCE;
    let mut wait = FIRST_RETRY;
    loop {
        let Ok(result) = timeout_at(deadline, call()).await else { return Err(StoreError::Timeout) };
        let error = match result.map_err(|error| classify(error, subject)) {
            Ok(answer) => return Ok(answer),
            Err(Failure::Refused(error)) => return Err(error),
            Err(Failure::Unknown(error)) if !repeatable => {
                tracing::warn!(%error, "a write to etcd was not answered");
                return Err(StoreError::Timeout);
            }
            Err(Failure::NotDone(error) | Failure::Unknown(error)) => error,
        };
        if Instant::now() + wait >= deadline {
            return Err(StoreError::Unavailable(Box::new(error)));
        }
        sleep(wait).await;
        wait = (wait * 2).min(LAST_RETRY);
    }
}

fn bytes(txn: &Txn) -> usize {
    let size =
        |op: &store::Op| if let store::Op::Put { key, value, .. } = op { key.len() + value.len() } else { 0 };
    txn.success.iter().chain(&txn.failure).map(size).sum()
}

/// The lease a transaction uses, to be named if etcd does not know it.
fn lease(txn: &Txn) -> LeaseId {
    let lease = |op: &store::Op| if let store::Op::Put { lease, .. } = op { *lease } else { 0 };
    txn.success.iter().chain(&txn.failure).map(lease).find(|lease| *lease != 0).unwrap_or(0)
}

fn tls_options(options: &EtcdOptions) -> Result<Option<TlsOptions>, ConnectError> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|source| ConnectError::ReadFile { path: path.clone(), source })
    };
    let identity = match (&options.cert_file, &options.key_file) {
        (Some(cert), Some(key)) => Some(Identity::from_pem(read(cert)?, read(key)?)),
        (None, None) => None,
        _ => return Err(ConnectError::HalfIdentity),
    };
    if options.ca_file.is_none() && identity.is_none() {
        return Ok(None);
    }
    let mut tls = TlsOptions::new();
    if let Some(ca) = &options.ca_file {
        tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
    }
    Ok(Some(match identity {
        Some(identity) => tls.identity(identity),
        None => tls,
    }))
}
