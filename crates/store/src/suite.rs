//! What every backend promises, as tests: `store_suite!(name, factory)` in a backend's tests runs them all. The
//! factory is an async function that answers a [`Fixture`] with an empty store of its own.

mod history;
mod leases;
mod reads;
mod txns;
mod watches;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use self::history::*;
pub use self::leases::*;
pub use self::reads::*;
pub use self::txns::*;
pub use self::watches::*;
use crate::{Event, KeyRange, KeyValue, Op, OpResult, Revision, Store, StoreError, Txn, TxnResult, Watch};

/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A store, and what has to live as long.
pub trait Fixture: Send + Sync {
    fn store(&self) -> Arc<dyn Store>;
}

/// Makes one test of each promise.
#[macro_export]
macro_rules! store_suite {
    ($name:ident, $factory:expr) => {
        mod $name {
            use super::*;
            $crate::store_suite!(@tests $factory;
                an_empty_store_has_nothing,
                a_put_can_be_read_back,
                versions_count_writes_since_creation,
                a_range_is_ordered_and_bounded,
                a_range_reads_older_revisions,
                compaction_forgets_what_was_before,
                every_compare_compares,
                a_failed_compare_runs_the_other_branch,
                writes_of_a_transaction_share_a_revision,
                a_delete_answers_what_it_deleted,
                a_delete_of_nothing_spends_no_revision,
                a_read_in_a_transaction_sees_earlier_writes,
                a_key_is_written_once_in_a_transaction,
                concurrent_writers_lose_no_update,
                a_watch_delivers_changes_in_order,
                a_watch_starts_in_the_past,
                a_watch_starts_in_the_future,
                a_watch_keeps_a_revision_whole,
                a_watch_is_bounded_by_its_range,
                a_quiet_watch_tells_its_progress,
                a_slow_watch_misses_nothing,
                many_watches_see_the_same,
                a_revoked_lease_takes_its_keys,
                a_lease_that_is_over_takes_its_keys,
                a_lease_that_is_renewed_lasts,
                a_key_can_change_its_lease,
                leases_are_known_by_id,
                histories_agree_with_the_model,
            );
        }
    };
    (@tests $factory:expr; $($test:ident,)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                $crate::suite::run($factory, |store| async move { $crate::suite::$test(&*store).await }).await;
            }
        )+
    };
}

/// Runs one test against a new store.
pub async fn run<F, M, R, T>(make: M, test: impl FnOnce(Arc<dyn Store>) -> T)
where
    F: Fixture,
    M: FnOnce() -> R,
    R: Future<Output = F>,
    T: Future<Output = ()>,
{
    let fixture = make().await;
    test(fixture.store()).await;
}

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.to_owned().into(), value: value.to_owned().into(), lease: 0 }
}

fn delete(key: &str) -> Op {
    Op::Delete { range: KeyRange::key(key.to_owned()) }
}

async fn write(store: &dyn Store, ops: Vec<Op>) -> TxnResult {
    store.txn(Txn { success: ops, ..Txn::default() }).await.expect("the transaction runs")
}

async fn set(store: &dyn Store, key: &str, value: &str) -> Revision {
    write(store, vec![put(key, value)]).await.revision
}

async fn get(store: &dyn Store, key: &str) -> Option<Arc<KeyValue>> {
    let found = store.range(KeyRange::key(key.to_owned()), 0, 0).await.expect("the range is read");
    found.items.into_iter().next()
}

async fn watch(store: &dyn Store, range: KeyRange, start: Revision) -> Box<dyn Watch> {
    store.watch(range, start).await.expect("the watch starts")
}

/// The next events of a watch, progress notices left out.
async fn events(watch: &mut dyn Watch) -> Result<Vec<Event>, StoreError> {
    loop {
        let next = tokio::time::timeout(PATIENCE, watch.next()).await.expect("the watch delivers in time")?;
        if !next.events.is_empty() {
            return Ok(next.events);
        }
    }
}

/// At least `count` events of a watch.
async fn collect(watch: &mut dyn Watch, count: usize) -> Vec<Event> {
    let mut collected = Vec::new();
    while collected.len() < count {
        collected.extend(events(watch).await.expect("the watch goes on"));
    }
    collected
}

/// `+key=value@revision` or `-key@revision`, with `<previous value`.
fn describe(event: &Event) -> String {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let was = |previous: &Option<Arc<KeyValue>>| {
        previous.as_ref().map_or(String::new(), |previous| format!("<{}", text(&previous.value)))
    };
    match event {
        Event::Put { current, previous } => {
            format!(
                "+{}={}@{}{}",
                text(&current.key),
                text(&current.value),
                current.mod_revision,
                was(previous)
            )
        }
        Event::Delete { key, revision, previous } => format!("-{}@{revision}{}", text(key), was(previous)),
    }
}

fn describe_all(events: &[Event]) -> Vec<String> {
    events.iter().map(describe).collect()
}

fn keys(items: &[Arc<KeyValue>]) -> Vec<&[u8]> {
    items.iter().map(|item| &item.key[..]).collect()
}

fn previous(result: &TxnResult) -> Option<&Arc<KeyValue>> {
    match result.results.first() {
        Some(OpResult::Put { previous }) => previous.as_ref(),
        other => panic!("not the answer of a put: {other:?}"),
    }
}
