use futures::future::join_all;

use super::{PATIENCE, collect, delete, describe_all, events, put, set, watch, write};
use crate::{Event, KeyRange, Store};

pub async fn a_watch_delivers_changes_in_order(store: &dyn Store) {
    let mut watch = watch(store, KeyRange::prefix(""), 0).await;
    set(store, "a", "1").await;
    set(store, "a", "2").await;
    write(store, vec![delete("a")]).await;
    set(store, "a", "3").await;
    let seen = collect(&mut *watch, 4).await;
    assert_eq!(describe_all(&seen), ["+a=1@2", "+a=2@3<1", "-a@4<2", "+a=3@5"]);
    let created: Vec<_> = seen
        .iter()
        .filter_map(|event| match event {
            Event::Put { current, .. } => Some(current.create_revision),
            Event::Delete { .. } => None,
        })
        .collect();
    assert_eq!(created, [2, 2, 5]);
}

pub async fn a_watch_starts_in_the_past(store: &dyn Store) {
    for value in ["1", "2", "3"] {
        set(store, "a", value).await;
    }
    let mut watch = watch(store, KeyRange::key("a"), 3).await;
    assert_eq!(describe_all(&collect(&mut *watch, 2).await), ["+a=2@3<1", "+a=3@4<2"]);
    set(store, "a", "4").await;
    assert_eq!(describe_all(&collect(&mut *watch, 1).await), ["+a=4@5<3"]);
}

pub async fn a_watch_starts_in_the_future(store: &dyn Store) {
    let mut watch = watch(store, KeyRange::key("a"), 4).await;
    for value in ["1", "2", "3"] {
        set(store, "a", value).await;
    }
    assert_eq!(describe_all(&collect(&mut *watch, 1).await), ["+a=3@4<2"]);
}

pub async fn a_watch_keeps_a_revision_whole(store: &dyn Store) {
    const KEYS: usize = 100;
    let mut live = watch(store, KeyRange::prefix("k"), 0).await;
    let puts = (0..KEYS).map(|number| put(&format!("k{number:03}"), "v")).collect();
    let revision = write(store, puts).await.revision;
    let mut past = watch(store, KeyRange::prefix("k"), revision).await;
    for watch in [&mut live, &mut past] {
        let batch = events(&mut **watch).await.expect("the watch goes on");
        assert_eq!(batch.len(), KEYS);
    }
}

pub async fn a_watch_is_bounded_by_its_range(store: &dyn Store) {
    let mut prefix = watch(store, KeyRange::prefix("b/"), 0).await;
    let mut one = watch(store, KeyRange::key("b/1"), 0).await;
    write(store, ["a", "b", "b/1", "b/2", "b0", "c"].map(|key| put(key, "v")).to_vec()).await;
    set(store, "end", "v").await;
    set(store, "b/1", "end").await;
    assert_eq!(describe_all(&collect(&mut *prefix, 3).await), ["+b/1=v@2", "+b/2=v@2", "+b/1=end@4<v"]);
    assert_eq!(describe_all(&collect(&mut *one, 2).await), ["+b/1=v@2", "+b/1=end@4<v"]);
}

pub async fn a_quiet_watch_tells_its_progress(store: &dyn Store) {
    let mut watch = watch(store, KeyRange::prefix("quiet/"), 0).await;
    let revision = set(store, "loud", "1").await;
    let told = async {
        loop {
            store.request_progress().await.expect("progress can be asked for");
            let batch = watch.next().await.expect("the watch goes on");
            assert!(batch.events.is_empty(), "{batch:?}");
            if batch.revision >= revision {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("progress is told in time");
    let revision = set(store, "quiet/a", "1").await;
    let seen = collect(&mut *watch, 1).await;
    assert_eq!(describe_all(&seen), [format!("+quiet/a=1@{revision}")]);
}

/// More than any buffer on the way holds, while nobody reads.
pub async fn a_slow_watch_misses_nothing(store: &dyn Store) {
    const ROUNDS: usize = 60;
    const KEYS: usize = 100;
    let mut watch = watch(store, KeyRange::prefix("k/"), 0).await;
    for round in 0..ROUNDS {
        let puts = (0..KEYS).map(|key| put(&format!("k/{key}"), &round.to_string())).collect();
        write(store, puts).await;
    }
    let seen = collect(&mut *watch, ROUNDS * KEYS).await;
    assert_eq!(seen.len(), ROUNDS * KEYS);
    let revisions = seen.iter().filter_map(|event| match event {
        Event::Put { current, .. } => Some(current.mod_revision),
        Event::Delete { .. } => None,
    });
    assert!(revisions.is_sorted(), "revisions go up");
}

pub async fn many_watches_see_the_same(store: &dyn Store) {
    const WATCHES: usize = 100;
    const WRITES: usize = 50;
    let mut watches = join_all((0..WATCHES).map(|_| watch(store, KeyRange::prefix("k"), 0))).await;
    let write = async {
        for number in 0..WRITES {
            set(store, "k", &number.to_string()).await;
        }
    };
    let read = join_all(
        watches.iter_mut().map(|watch| async { describe_all(&collect(&mut **watch, WRITES).await) }),
    );
    let ((), seen) = tokio::join!(write, read);
    assert_eq!(seen[0].len(), WRITES);
    assert!(seen.iter().all(|other| *other == seen[0]));
}
