use super::{delete, get, keys, put, set, write};
use crate::{KeyRange, Store, StoreError};

pub async fn an_empty_store_has_nothing(store: &dyn Store) {
    let found = store.range(KeyRange::prefix(""), 0, 0).await.expect("the range is read");
    assert_eq!((found.items.len(), found.count, found.more), (0, 0, false));
    assert_eq!(found.revision, 1);
    assert_eq!(store.revision().await.expect("there is a revision"), 1);
}

pub async fn a_put_can_be_read_back(store: &dyn Store) {
    let revision = set(store, "a", "1").await;
    assert_eq!(revision, 2, "the first write has revision 2");
    let item = get(store, "a").await.expect("the key is there");
    assert_eq!((&item.key[..], &item.value[..]), (&b"a"[..], &b"1"[..]));
    assert_eq!((item.create_revision, item.mod_revision, item.version, item.lease), (2, 2, 1, 0));
    assert_eq!(store.revision().await.expect("there is a revision"), 2);
    assert_eq!(get(store, "b").await, None);
}

pub async fn versions_count_writes_since_creation(store: &dyn Store) {
    for value in ["1", "2", "3"] {
        set(store, "a", value).await;
    }
    let item = get(store, "a").await.expect("the key is there");
    assert_eq!((item.create_revision, item.mod_revision, item.version), (2, 4, 3));
    write(store, vec![delete("a")]).await;
    assert_eq!(get(store, "a").await, None);
    set(store, "a", "4").await;
    let item = get(store, "a").await.expect("the key is there again");
    assert_eq!((item.create_revision, item.mod_revision, item.version), (6, 6, 1));
}

pub async fn a_range_is_ordered_and_bounded(store: &dyn Store) {
    write(store, ["c", "a", "b/2", "b/1", "b", "b0"].map(|key| put(key, key)).to_vec()).await;
    let all = store.range(KeyRange::prefix(""), 0, 0).await.expect("the range is read");
    assert_eq!(keys(&all.items), [&b"a"[..], b"b", b"b/1", b"b/2", b"b0", b"c"]);
    let prefix = store.range(KeyRange::prefix("b/"), 0, 0).await.expect("the range is read");
    assert_eq!(keys(&prefix.items), [b"b/1", b"b/2"]);
    let page = store.range(KeyRange::prefix("b"), 0, 2).await.expect("the range is read");
    assert_eq!(keys(&page.items), [&b"b"[..], b"b/1"]);
    assert_eq!((page.count, page.more), (4, true));
    let rest = store.range(KeyRange::prefix("b"), 0, 4).await.expect("the range is read");
    assert_eq!((rest.items.len(), rest.count, rest.more), (4, 4, false));
    let one = store.range(KeyRange::key("b"), 0, 0).await.expect("the range is read");
    assert_eq!(keys(&one.items), [b"b"]);
}

pub async fn a_range_reads_older_revisions(store: &dyn Store) {
    set(store, "a", "1").await;
    set(store, "b", "1").await;
    set(store, "a", "2").await;
    write(store, vec![delete("b")]).await;
    let read = async |revision| {
        let found = store.range(KeyRange::prefix(""), revision, 0).await.expect("the range is read");
        assert_eq!(found.revision, 5, "the answer tells the newest revision");
        let items = found.items.iter().map(|item| {
            format!("{}={}", String::from_utf8_lossy(&item.key), String::from_utf8_lossy(&item.value))
        });
        items.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(read(2).await, "a=1");
    assert_eq!(read(3).await, "a=1 b=1");
    assert_eq!(read(4).await, "a=2 b=1");
    assert_eq!(read(5).await, "a=2");
    let future = store.range(KeyRange::prefix(""), 6, 0).await;
    assert!(matches!(future, Err(StoreError::Future { requested: 6, .. })), "{future:?}");
}

pub async fn compaction_forgets_what_was_before(store: &dyn Store) {
    for value in ["1", "2", "3", "4"] {
        set(store, "a", value).await;
    }
    store.compact(4).await.expect("the store compacts");
    let old = store.range(KeyRange::key("a"), 3, 0).await;
    assert!(matches!(old, Err(StoreError::Compacted { requested: 3, .. })), "{old:?}");
    for (revision, value) in [(4, "3"), (5, "4"), (0, "4")] {
        let found = store.range(KeyRange::key("a"), revision, 0).await.expect("newer revisions stay");
        assert_eq!(found.items.first().map(|item| &item.value[..]), Some(value.as_bytes()));
    }
    let again = store.compact(4).await;
    assert!(matches!(again, Err(StoreError::Compacted { .. })), "{again:?}");
    let future = store.compact(9).await;
    assert!(matches!(future, Err(StoreError::Future { .. })), "{future:?}");
    let error = match store.watch(KeyRange::key("a"), 3).await {
        Ok(mut watch) => watch.next().await.expect_err("the watch is refused"),
        Err(error) => error,
    };
    assert!(matches!(error, StoreError::Compacted { requested: 3, .. }), "{error:?}");
    let mut watch = super::watch(store, KeyRange::key("a"), 4).await;
    assert_eq!(super::collect(&mut *watch, 2).await.len(), 2);
}
