//! Three members with TLS, each of which dies under load; and an etcd that is not there.

use std::sync::Arc;
use std::time::Duration;

use store::{Compare, Event, KeyRange, Op, Revision, Store, StoreError, Txn};
use store_etcd::{ConnectError, EtcdOptions, EtcdStore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cluster::Cluster;

const WRITERS: usize = 6;
const WRITES: u64 = 120;
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_die_and_nothing_is_lost() {
    let mut cluster = Cluster::start(3, true).await;
    let store = Arc::new(cluster.store().await);
    let mut watch = store.watch(KeyRange::prefix("counter-"), 0).await.expect("the watch starts");
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            for number in 1..=WRITES {
                count(&store, &format!("counter-{writer}"), number).await;
            }
        });
    }
    let total = WRITERS * usize::try_from(WRITES).expect("few writes");
    let mut seen: Vec<(Revision, String)> = Vec::new();
    let mut killed = 0;
    while seen.len() < total {
        let batch = timeout(PATIENCE, watch.next()).await.expect("the watch delivers in time");
        for event in batch.expect("the watch goes on").events {
            let Event::Put { current, .. } = event else { panic!("nothing is deleted: {event:?}") };
            seen.push((current.mod_revision, format!("{:?}={:?}", current.key, current.value)));
        }
        if killed < 3 && seen.len() > (killed + 1) * total / 5 {
            if killed > 0 {
                cluster.restart(killed - 1);
            }
            cluster.kill(killed);
            killed += 1;
        }
    }
    timeout(PATIENCE, writers.join_all()).await.expect("the writers end in time");
    assert!(seen.is_sorted_by(|one, other| one.0 < other.0), "each revision is seen once, in order");
    assert_eq!(seen.len(), total, "each write is seen once");
    for writer in 0..WRITERS {
        let found =
            store.range(KeyRange::key(format!("counter-{writer}")), 0, 0).await.expect("etcd is read");
        assert_eq!(
            (found.items[0].version, &found.items[0].value[..]),
            (WRITES, WRITES.to_string().as_bytes())
        );
    }
}

/// Sets a counter to the next number, and does so once, whatever happens to the answers.
async fn count(store: &EtcdStore, key: &str, number: u64) {
    loop {
        let found = match store.range(KeyRange::key(key.to_owned()), 0, 0).await {
            Ok(found) => found,
            Err(error) if error.is_retriable() => continue,
            Err(error) => panic!("{error:?}"),
        };
        let item = found.items.first();
        if item.is_some_and(|item| item.version == number) {
            return;
        }
        let txn = Txn {
            compares: vec![Compare::mod_revision(key.to_owned(), item.map_or(0, |item| item.mod_revision))],
            success: vec![Op::Put { key: key.to_owned().into(), value: number.to_string().into(), lease: 0 }],
            failure: vec![],
        };
        match store.txn(txn).await {
            Ok(result) if result.succeeded => return,
            Ok(_) => {}
            Err(error) => assert!(error.is_retriable(), "{error:?}"),
        }
    }
}

#[tokio::test]
async fn a_range_longer_than_a_page_is_of_one_revision() {
    const KEYS: usize = 12_000;
    let cluster = Cluster::start(1, false).await;
    let store = cluster.store().await;
    for chunk in (0..KEYS).collect::<Vec<_>>().chunks(120) {
        let put =
            |number: &usize| Op::Put { key: format!("k{number:06}").into(), value: "v".into(), lease: 0 };
        let txn = Txn { success: chunk.iter().map(put).collect(), ..Txn::default() };
        store.txn(txn).await.expect("the write succeeds");
    }
    for (limit, expected) in [(0, KEYS), (7_000, 7_000), (5_000, 5_000), (3, 3), (KEYS, KEYS)] {
        let found = store.range(KeyRange::prefix("k"), 0, limit).await.expect("the range is read");
        assert_eq!((found.items.len(), found.count), (expected, KEYS as u64));
        assert_eq!(found.more, expected < KEYS);
        assert!(found.items.is_sorted_by(|one, other| one.key < other.key));
    }
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_unavailable() {
    let options = EtcdOptions { endpoints: vec!["http://127.0.0.1:1".to_owned()], ..EtcdOptions::default() };
    let store = EtcdStore::connect(options).await.expect("nothing is tried yet");
    let error = store.revision().await.expect_err("nobody answers");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert!(error.is_retriable());
    let put = Op::Put { key: "a".into(), value: "1".into(), lease: 0 };
    let error = store.txn(Txn { success: vec![put], ..Txn::default() }).await.expect_err("nobody answers");
    assert!(
        matches!(error, StoreError::Unavailable(_)),
        "a write that was never sent did not happen: {error:?}"
    );
}

#[tokio::test]
async fn wrong_options_are_refused() {
    let missing = EtcdOptions { ca_file: Some("/no/such/file".into()), ..EtcdOptions::default() };
    let error = EtcdStore::connect(missing).await.expect_err("the file is not there");
    assert!(matches!(error, ConnectError::ReadFile { .. }), "{error:?}");
    let half = EtcdOptions { cert_file: Some("/no/such/file".into()), ..EtcdOptions::default() };
    let error = EtcdStore::connect(half).await.expect_err("the key is not there");
    assert!(matches!(error, ConnectError::HalfIdentity), "{error:?}");
    let error = EtcdStore::connect(EtcdOptions::default()).await.expect_err("there is no server");
    assert!(matches!(error, ConnectError::Options(_)), "{error:?}");
}
