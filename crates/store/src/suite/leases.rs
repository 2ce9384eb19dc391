use std::time::{Duration, Instant};

use super::{PATIENCE, collect, describe_all, get, put, set, watch, write};
use crate::{Compare, CompareOperator, CompareTarget, KeyRange, LeaseId, Op, Store, StoreError, Txn};

fn put_leased(key: &str, lease: LeaseId) -> Op {
    Op::Put { key: key.to_owned().into(), value: "v".into(), lease }
}

pub async fn a_revoked_lease_takes_its_keys(store: &dyn Store) {
    let lease = store.lease_grant(0, 600).await.expect("a lease is granted");
    write(store, vec![put_leased("a", lease), put_leased("b", lease), put("c", "v")]).await;
    assert_eq!(get(store, "a").await.map(|item| item.lease), Some(lease));
    let compare =
        Compare { key: "a".into(), target: CompareTarget::Lease(lease), operator: CompareOperator::Equal };
    let compared = store.txn(Txn { compares: vec![compare], ..Txn::default() }).await;
    assert!(compared.expect("the transaction runs").succeeded);
    let mut watch = watch(store, KeyRange::prefix(""), 0).await;
    store.lease_revoke(lease).await.expect("the lease is revoked");
    assert_eq!(describe_all(&collect(&mut *watch, 2).await), ["-a@3<v", "-b@3<v"]);
    assert_eq!(get(store, "a").await, None);
    assert!(get(store, "c").await.is_some());
    let again = store.lease_revoke(lease).await;
    assert!(matches!(again, Err(StoreError::LeaseNotFound(id)) if id == lease), "{again:?}");
}

pub async fn a_lease_that_is_over_takes_its_keys(store: &dyn Store) {
    let mut watch = watch(store, KeyRange::key("a"), 0).await;
    let lease = store.lease_grant(0, 1).await.expect("a lease is granted");
    write(store, vec![put_leased("a", lease)]).await;
    let seen = collect(&mut *watch, 2).await;
    assert_eq!(describe_all(&seen), ["+a=v@2", "-a@3<v"]);
    let gone = store.lease_keep_alive(lease).await;
    assert!(matches!(gone, Err(StoreError::LeaseNotFound(_))), "{gone:?}");
}

pub async fn a_lease_that_is_renewed_lasts(store: &dyn Store) {
    let lease = store.lease_grant(0, 2).await.expect("a lease is granted");
    let other = store.lease_grant(0, 2).await.expect("a lease is granted");
    write(store, vec![put_leased("kept", lease), put_leased("lost", other)]).await;
    let begin = Instant::now();
    while get(store, "lost").await.is_some() {
        assert!(begin.elapsed() < PATIENCE, "a lease that is not renewed ends");
        store.lease_keep_alive(lease).await.expect("the lease is renewed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(begin.elapsed() >= Duration::from_millis(1_500), "a lease lasts as long as was said");
    assert!(get(store, "kept").await.is_some());
}

pub async fn a_key_can_change_its_lease(store: &dyn Store) {
    let first = store.lease_grant(0, 600).await.expect("a lease is granted");
    let second = store.lease_grant(0, 600).await.expect("a lease is granted");
    write(store, vec![put_leased("a", first), put_leased("b", first)]).await;
    write(store, vec![put_leased("a", second)]).await;
    set(store, "b", "w").await;
    store.lease_revoke(first).await.expect("the lease is revoked");
    assert!(get(store, "a").await.is_some());
    assert!(get(store, "b").await.is_some());
    store.lease_revoke(second).await.expect("the lease is revoked");
    assert_eq!(get(store, "a").await, None);
    assert!(get(store, "b").await.is_some());
}

pub async fn leases_are_known_by_id(store: &dyn Store) {
    assert_eq!(store.lease_grant(77, 600).await.expect("a lease is granted"), 77);
    let taken = store.lease_grant(77, 600).await;
    assert!(matches!(taken, Err(StoreError::LeaseExists(77))), "{taken:?}");
    assert_eq!(store.lease_keep_alive(77).await.expect("the lease is renewed"), 600);
    let unknown =
        store.txn(Txn { success: vec![put("a", "1"), put_leased("b", 78)], ..Txn::default() }).await;
    assert!(matches!(unknown, Err(StoreError::LeaseNotFound(_))), "{unknown:?}");
    assert_eq!(get(store, "a").await, None, "a refused transaction does nothing");
    let unknown = store.lease_keep_alive(78).await;
    assert!(matches!(unknown, Err(StoreError::LeaseNotFound(78))), "{unknown:?}");
}
