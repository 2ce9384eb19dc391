use bytes::Bytes;
use futures::future::join_all;

use super::{delete, get, keys, previous, put, set, write};
use crate::{Compare, CompareOperator, CompareTarget, KeyRange, Op, OpResult, Store, StoreError, Txn};

pub async fn every_compare_compares(store: &dyn Store) {
    use CompareOperator::{Equal, Greater, Less, NotEqual};
    use CompareTarget::{CreateRevision, Lease, ModRevision, Value, Version};
    set(store, "a", "m").await;
    set(store, "a", "m").await;
    let value = |text: &'static str| Value(Bytes::from_static(text.as_bytes()));
    // Key "a" has create revision 2, mod revision 3, version 2, no lease and the value "m"; "z" is not there.
    let table = [
        ("a", ModRevision(3), [true, false, false, false]),
        ("a", ModRevision(2), [false, true, true, false]),
        ("a", ModRevision(4), [false, true, false, true]),
        ("a", CreateRevision(2), [true, false, false, false]),
        ("a", CreateRevision(1), [false, true, true, false]),
        ("a", Version(2), [true, false, false, false]),
        ("a", Version(3), [false, true, false, true]),
        ("a", Lease(0), [true, false, false, false]),
        ("a", value("m"), [true, false, false, false]),
        ("a", value("l"), [false, true, true, false]),
        ("a", value("n"), [false, true, false, true]),
        ("z", ModRevision(0), [true, false, false, false]),
        ("z", Version(0), [true, false, false, false]),
        ("z", CreateRevision(1), [false, true, false, true]),
        ("z", value(""), [false, false, false, false]),
    ];
    for (key, target, expected) in table {
        for (operator, expected) in [Equal, NotEqual, Greater, Less].into_iter().zip(expected) {
            let compare = Compare { key: key.into(), target: target.clone(), operator };
            let txn = Txn { compares: vec![compare.clone()], ..Txn::default() };
            let result = store.txn(txn).await.expect("the transaction runs");
            assert_eq!(result.succeeded, expected, "{compare:?}");
        }
    }
}

pub async fn a_failed_compare_runs_the_other_branch(store: &dyn Store) {
    let create = |value: &'static str| Txn {
        compares: vec![Compare::absent("a")],
        success: vec![put("a", value)],
        failure: vec![Op::Get { range: KeyRange::key("a"), limit: 0 }],
    };
    let first = store.txn(create("1")).await.expect("the transaction runs");
    assert!(first.succeeded);
    assert_eq!(previous(&first), None);
    let second = store.txn(create("2")).await.expect("the transaction runs");
    assert!(!second.succeeded);
    assert_eq!(second.revision, first.revision, "a read spends no revision");
    match &second.results[..] {
        [OpResult::Get { items, count: 1, more: false }] => assert_eq!(items[0].value, "1"),
        other => panic!("{other:?}"),
    }
    let update = Txn {
        compares: vec![Compare::mod_revision("a", first.revision), Compare::absent("b")],
        success: vec![put("a", "2")],
        failure: vec![],
    };
    let third = store.txn(update.clone()).await.expect("the transaction runs");
    assert!(third.succeeded);
    assert_eq!(previous(&third).map(|item| &item.value[..]), Some(&b"1"[..]));
    assert!(!store.txn(update).await.expect("the transaction runs").succeeded, "a stale update is refused");
}

pub async fn writes_of_a_transaction_share_a_revision(store: &dyn Store) {
    set(store, "c", "0").await;
    let result = write(store, vec![put("a", "1"), put("b", "1"), delete("c")]).await;
    assert_eq!(result.revision, 3);
    assert_eq!(result.results.len(), 3);
    for key in ["a", "b"] {
        let item = get(store, key).await.expect("the key is there");
        assert_eq!((item.create_revision, item.mod_revision), (3, 3));
    }
    assert_eq!(get(store, "c").await, None);
}

pub async fn a_delete_answers_what_it_deleted(store: &dyn Store) {
    write(store, ["a", "b/1", "b/2", "c"].map(|key| put(key, "v")).to_vec()).await;
    let result = write(store, vec![Op::Delete { range: KeyRange::prefix("b/") }]).await;
    match &result.results[..] {
        [OpResult::Delete { deleted }] => assert_eq!(keys(deleted), [b"b/1", b"b/2"]),
        other => panic!("{other:?}"),
    }
    let left = store.range(KeyRange::prefix(""), 0, 0).await.expect("the range is read");
    assert_eq!(keys(&left.items), [b"a", b"c"]);
}

pub async fn a_delete_of_nothing_spends_no_revision(store: &dyn Store) {
    let before = set(store, "a", "1").await;
    let result = write(store, vec![delete("b")]).await;
    assert_eq!(result.revision, before);
    assert_eq!(result.results, [OpResult::Delete { deleted: vec![] }]);
    assert_eq!(set(store, "a", "2").await, before + 1);
}

pub async fn a_read_in_a_transaction_sees_earlier_writes(store: &dyn Store) {
    set(store, "b", "1").await;
    let get = || Op::Get { range: KeyRange::prefix(""), limit: 0 };
    let result = write(store, vec![get(), put("a", "1"), get(), delete("b"), get()]).await;
    let seen: Vec<_> = result
        .results
        .iter()
        .filter_map(|result| match result {
            OpResult::Get { items, .. } => Some(keys(items)),
            _ => None,
        })
        .collect();
    assert_eq!(seen, [vec![&b"b"[..]], vec![b"a", b"b"], vec![b"a"]]);
}

pub async fn a_key_is_written_once_in_a_transaction(store: &dyn Store) {
    let range = Op::Delete { range: KeyRange::prefix("a") };
    for ops in [
        vec![put("a", "1"), put("a", "2")],
        vec![put("a/1", "1"), range.clone()],
        vec![range, put("a/1", "1")],
    ] {
        let result = store.txn(Txn { success: ops, ..Txn::default() }).await;
        assert!(matches!(result, Err(StoreError::InvalidTxn(_))), "{result:?}");
    }
    assert_eq!(get(store, "a").await, None);
    assert_eq!(set(store, "b", "1").await, 2, "a refused transaction spends no revision");
}

pub async fn concurrent_writers_lose_no_update(store: &dyn Store) {
    const WRITERS: u64 = 16;
    const INCREMENTS: u64 = 10;
    set(store, "counter", "0").await;
    join_all((0..WRITERS).map(|_| async {
        for _ in 0..INCREMENTS {
            while !increment(store).await {}
        }
    }))
    .await;
    let item = get(store, "counter").await.expect("the counter is there");
    assert_eq!(item.value, (WRITERS * INCREMENTS).to_string());
    assert_eq!(item.version, WRITERS * INCREMENTS + 1);
    assert_eq!(item.mod_revision, WRITERS * INCREMENTS + 2, "one revision for each write");
}

async fn increment(store: &dyn Store) -> bool {
    let item = get(store, "counter").await.expect("the counter is there");
    let count: u64 = String::from_utf8_lossy(&item.value).parse().expect("the counter counts");
    let txn = Txn {
        compares: vec![Compare::mod_revision("counter", item.mod_revision)],
        success: vec![put("counter", &(count + 1).to_string())],
        failure: vec![],
    };
    store.txn(txn).await.expect("the transaction runs").succeeded
}
