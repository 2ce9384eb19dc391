//! What survives: restarts, torn and damaged files, kill -9, a full disk, backups, churn.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use store::{KeyRange, Op, Revision, Store, StoreError, Txn};
use store_embedded::{EmbeddedStore, OpenError, Options};
use tempfile::{TempDir, tempdir};
use tokio::task::JoinSet;

fn open(dir: &Path) -> EmbeddedStore {
    EmbeddedStore::open(dir, Options::default()).expect("the store opens")
}

async fn put(store: &EmbeddedStore, key: &str, value: impl Into<Bytes>) -> Result<Revision, StoreError> {
    let op = Op::Put { key: key.to_owned().into(), value: value.into(), lease: 0 };
    Ok(store.txn(Txn { success: vec![op], ..Txn::default() }).await?.revision)
}

/// Keys, values and counters of everything, as text.
async fn dump(store: &EmbeddedStore) -> Vec<String> {
    let all = store.range(KeyRange::prefix(""), 0, 0).await.expect("the store is read");
    let item = |item: &Arc<store::KeyValue>| {
        let (key, value) = (String::from_utf8_lossy(&item.key), String::from_utf8_lossy(&item.value));
        let store::KeyValue { create_revision, mod_revision, version, lease, .. } = **item;
        format!("{key}={value} {create_revision}/{mod_revision}/{version}/{lease}")
    };
    all.items.iter().map(item).collect()
}

fn only_log(dir: &Path) -> PathBuf {
    dir.join("log-000000000000")
}

fn copy_with_log(log: &[u8]) -> TempDir {
    let copy = tempdir().expect("a temporary directory");
    fs::write(only_log(copy.path()), log).expect("the log is copied");
    copy
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let dir = tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let lease = store.lease_grant(0, 600).await.expect("a lease is granted");
    for value in ["1", "2"] {
        put(&store, "a", value).await.expect("the write succeeds");
    }
    let leased = Op::Put { key: "b".into(), value: "1".into(), lease };
    let gone = Op::Delete { range: KeyRange::key("a") };
    store.txn(Txn { success: vec![leased, gone], ..Txn::default() }).await.expect("the write succeeds");
    let (before, revision) = (dump(&store).await, store.revision().await.expect("there is a revision"));
    drop(store);

    let store = open(dir.path());
    assert_eq!(dump(&store).await, before);
    assert_eq!(store.revision().await.expect("there is a revision"), revision);
    let past = store.watch(KeyRange::prefix(""), revision).await.err();
    assert!(
        matches!(past, Some(StoreError::Compacted { .. })),
        "history does not outlive the process: {past:?}"
    );
    let status = store.lease(lease).expect("the lease is still there");
    assert_eq!((status.ttl_seconds, status.keys), (600, vec![Bytes::from("b")]));
    assert_ne!(store.lease_grant(0, 600).await.expect("a lease is granted"), lease);
    assert_eq!(put(&store, "c", "1").await.expect("the write succeeds"), revision + 1);
    store.lease_revoke(lease).await.expect("the lease is revoked");
    drop(store);
    assert_eq!(dump(&open(dir.path())).await.len(), 1);
}

#[tokio::test]
async fn a_lease_ends_after_a_restart_too() {
    let dir = tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let lease = store.lease_grant(0, 1).await.expect("a lease is granted");
    let leased = Op::Put { key: "a".into(), value: "1".into(), lease };
    store.txn(Txn { success: vec![leased], ..Txn::default() }).await.expect("the write succeeds");
    drop(store);
    let store = open(dir.path());
    let mut watch = store.watch(KeyRange::key("a"), 0).await.expect("the watch starts");
    let ended = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
    assert_eq!(ended.expect("the lease ends").expect("the watch goes on").events.len(), 1);
}

#[tokio::test]
async fn a_log_cut_anywhere_keeps_whole_transactions() {
    let dir = tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let mut states = vec![dump(&store).await];
    for number in 0..6 {
        let ops =
            ["a", "b"].map(|key| Op::Put { key: key.into(), value: number.to_string().into(), lease: 0 });
        store.txn(Txn { success: ops.to_vec(), ..Txn::default() }).await.expect("the write succeeds");
        states.push(dump(&store).await);
    }
    drop(store);
    let log = fs::read(only_log(dir.path())).expect("the log is read");
    let mut last = 0;
    for length in 0..=log.len() {
        let copy = copy_with_log(&log[..length]);
        let store = open(copy.path());
        let found = dump(&store).await;
        let which = states.iter().position(|state| *state == found).expect("whole transactions are left");
        assert!(which >= last, "more bytes hold no less");
        last = which;
        let revision = put(&store, "new", "1").await.expect("the write succeeds");
        assert_eq!(revision, which as u64 + 2);
        drop(store);
        assert_eq!(dump(&open(copy.path())).await.len(), found.len() + 1, "the cut log can be written on");
    }
    assert_eq!(last, states.len() - 1);
}

#[tokio::test]
async fn damage_before_the_end_is_reported() {
    let dir = tempdir().expect("a temporary directory");
    let store = open(dir.path());
    for number in 0..3 {
        put(&store, "a", number.to_string()).await.expect("the write succeeds");
    }
    drop(store);
    let log = fs::read(only_log(dir.path())).expect("the log is read");
    let frame = (log.len() - 20) / 3;
    for position in (0..20 + 2 * frame).step_by(3) {
        let mut damaged = log.clone();
        damaged[position] ^= 0x40;
        let copy = copy_with_log(&damaged);
        let result = EmbeddedStore::open(copy.path(), Options::default());
        assert!(matches!(result, Err(OpenError::Corrupt { .. })), "byte {position}: {result:?}");
        assert_eq!(fs::read(only_log(copy.path())).expect("the log is read"), damaged, "nothing is changed");
    }
}

#[tokio::test]
async fn a_data_directory_has_one_user() {
    let dir = tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let second = EmbeddedStore::open(dir.path(), Options::default());
    assert!(matches!(&second, Err(OpenError::Locked { .. })), "{second:?}");
    store.close().await.expect("the store closes");
    let closed = put(&store, "a", "1").await;
    assert!(matches!(closed, Err(StoreError::Closed)), "{closed:?}");
    open(dir.path());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_one_moment_of_a_busy_store() {
    let dir = tempdir().expect("a temporary directory");
    let store = Arc::new(open(&dir.path().join("data")));
    let busy = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            for number in 0..u64::MAX {
                put(&store, &format!("key-{}", number % 50), number.to_string())
                    .await
                    .expect("the write succeeds");
            }
        }
    });
    let backup = dir.path().join("backup");
    while store.revision().await.expect("there is a revision") < 100 {
        tokio::task::yield_now().await;
    }
    let revision = store.backup(&backup).await.expect("the backup is written");
    let expected = store.range(KeyRange::prefix(""), revision, 0).await.expect("the past is read").items;
    busy.abort();
    assert!(busy.await.is_err_and(|error| error.is_cancelled()));
    drop(store);

    let occupied = EmbeddedStore::restore(&backup, dir.path().join("data"));
    assert!(matches!(occupied, Err(OpenError::NotEmpty { .. })), "{occupied:?}");
    let target = dir.path().join("restored");
    EmbeddedStore::restore(&backup, &target).expect("the backup is restored");
    let restored = open(&target);
    let found = restored.range(KeyRange::prefix(""), 0, 0).await.expect("the store is read");
    assert_eq!((found.revision, found.items), (revision, expected));

    let bytes = fs::read(&backup).expect("the backup is read");
    for (name, damaged) in [("short", bytes[..bytes.len() - 30].to_vec()), ("empty", vec![])] {
        let path = dir.path().join(name);
        fs::write(&path, damaged).expect("the file is written");
        let result = EmbeddedStore::restore(&path, dir.path().join("other"));
        assert!(matches!(result, Err(OpenError::Corrupt { .. })), "{name}: {result:?}");
    }
}

#[tokio::test]
async fn the_disk_stays_bounded_under_churn() {
    const VALUE_BYTES: usize = 128 << 10;
    const WRITES: u64 = 600;
    let dir = tempdir().expect("a temporary directory");
    let store = EmbeddedStore::open(dir.path(), Options { fsync: false, ..Options::default() })
        .expect("the store opens");
    let mut most = 0;
    for number in 0..WRITES {
        let value = vec![u8::try_from(number % 251).expect("a byte"); VALUE_BYTES];
        put(&store, &format!("key-{}", number % 8), value).await.expect("the write succeeds");
        most = most.max(store.size().expect("the size is known"));
    }
    // 1 MiB is live, 75 MiB are written; two logs may stand while a snapshot is made.
    assert!(most < 30 << 20, "{most} bytes");
    let before = dump(&store).await;
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.revision().await.expect("there is a revision"), WRITES + 1);
    assert_eq!(dump(&store).await, before);
}

#[tokio::test]
async fn history_is_bounded_by_bytes_and_age() {
    let by_bytes = Options { history_bytes: 10_000, ..Options::default() };
    let by_age = Options { history_age: Duration::ZERO, ..Options::default() };
    for options in [by_bytes, by_age] {
        let store = EmbeddedStore::in_memory_with(&options);
        let mut slow = store.watch(KeyRange::prefix(""), 1).await.expect("the watch starts");
        for number in 0..10_000 {
            put(&store, "a", number.to_string()).await.expect("the write succeeds");
        }
        let old = store.range(KeyRange::key("a"), 100, 0).await;
        assert!(matches!(old, Err(StoreError::Compacted { .. })), "{old:?}");
        let lagged = slow.next().await;
        assert!(matches!(lagged, Err(StoreError::Lagged)), "{lagged:?}");
        assert!(store.range(KeyRange::key("a"), store.compacted(), 0).await.is_ok());
    }
}

#[tokio::test]
async fn a_transaction_over_the_limit_is_refused() {
    let store = EmbeddedStore::in_memory_with(&Options { max_txn_bytes: 100, ..Options::default() });
    let result = put(&store, "a", vec![0; 100]).await;
    assert!(matches!(result, Err(StoreError::TooLarge { size: 101, limit: 100 })), "{result:?}");
    put(&store, "a", vec![0; 99]).await.expect("the write succeeds");
}

/// Runs this test again in a process of its own, with `variable` set.
fn again(test: &str, variable: &str, dir: &Path) -> Vec<String> {
    let program = std::env::current_exe().expect("this test has a file");
    let program = program.to_str().expect("its name is text").to_owned();
    let dir = dir.to_str().expect("the directory's name is text");
    let setting = format!("{variable}={dir}");
    ["env", &setting, &program, "--exact", test, "--nocapture"].map(str::to_owned).to_vec()
}

const CRASH_WRITERS: usize = 8;
const CRASH_KEYS: u64 = 4;

/// A child writes and says what was acknowledged; it is killed at some point, and what it said must be there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_a_kill() {
    if let Some(dir) = std::env::var_os("COT_STORE_CRASH") {
        return write_until_killed(Path::new(&dir)).await;
    }
    let dir = tempdir().expect("a temporary directory");
    let mut acknowledged: BTreeMap<String, u64> = BTreeMap::new();
    let mut newest = 0;
    for round in 0..6 {
        let command = again("acknowledged_writes_survive_a_kill", "COT_STORE_CRASH", dir.path());
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the child starts");
        let output = BufReader::new(child.stdout.take().expect("the child's output is a pipe"));
        let mut lines = 0;
        for line in output.lines().map_while(Result::ok) {
            // A line the kill cut short is no acknowledgement.
            let words: Vec<_> = line.split(' ').collect();
            let [key, number, revision, "ok"] = words[..] else { continue };
            acknowledged.insert(key.to_owned(), number.parse().expect("a number"));
            newest = newest.max(revision.parse().expect("a revision"));
            lines += 1;
            if lines == 60 + round * 97 {
                child.kill().expect("the child is killed");
            }
        }
        child.wait().expect("the child ended");
        let store = open(dir.path());
        assert!(store.revision().await.expect("there is a revision") >= newest, "no revision is lost");
        for (key, number) in &acknowledged {
            let found = store.range(KeyRange::key(key.clone()), 0, 0).await.expect("the store is read");
            let value = &found.items.first().expect("an acknowledged key is there").value;
            let found: u64 = String::from_utf8_lossy(&value[..20]).trim().parse().expect("a number");
            assert!(found >= *number, "{key}: {number} was acknowledged, {found} is there");
            assert_eq!(*value, crash_value(found), "no half write");
        }
    }
    assert_eq!(acknowledged.len(), CRASH_WRITERS * usize::try_from(CRASH_KEYS).expect("few keys"));
}

async fn write_until_killed(dir: &Path) {
    let store = Arc::new(open(dir));
    let mut writers = JoinSet::new();
    for writer in 0..CRASH_WRITERS {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            let begin = store.revision().await.expect("there is a revision");
            for number in begin * 1_000.. {
                let key = format!("{writer}/{}", number % CRASH_KEYS);
                let revision = put(&store, &key, crash_value(number)).await.expect("the write succeeds");
                let mut out = std::io::stdout().lock();
                writeln!(out, "{key} {number} {revision} ok").expect("the parent listens");
            }
        });
    }
    writers.join_all().await;
}

/// Large enough for several snapshots in a round.
fn crash_value(number: u64) -> Bytes {
    let line = format!("{number:>19}\n");
    line.repeat(3_000).into()
}

/// A file system of 8 MiB, mounted where only this child sees it.
#[tokio::test]
async fn a_full_disk_refuses_writes_and_heals() {
    if let Some(dir) = std::env::var_os("COT_STORE_FULL") {
        return fill_and_heal(Path::new(&dir)).await;
    }
    let dir = tempdir().expect("a temporary directory");
    let path = dir.path().to_str().expect("the directory's name is text").to_owned();
    let script = r#"mount -t tmpfs -o size=8m cot-store "$0" && exec "$@""#;
    let status = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, &path])
        .args(again("a_full_disk_refuses_writes_and_heals", "COT_STORE_FULL", dir.path()))
        .stdout(Stdio::null())
        .status()
        .expect("unshare runs");
    assert!(status.success(), "{status}");
}

async fn fill_and_heal(dir: &Path) {
    const VALUE_BYTES: usize = 100_000;
    let data = dir.join("data");
    let ballast = dir.join("ballast");
    let file = OpenOptions::new().write(true).create_new(true).open(&ballast).expect("the ballast is made");
    file.write_all_at(&vec![1; 4 << 20], 0).expect("the ballast is written");
    drop(file);
    let store = open(&data);
    let mut watch = store.watch(KeyRange::prefix(""), 0).await.expect("the watch starts");
    let mut revision = 1;
    let error = loop {
        match put(&store, "a", vec![7; VALUE_BYTES]).await {
            Ok(next) => revision = next,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::NoSpace), "{error:?}");
    assert!(error.is_retriable());
    assert!(revision > 10);
    for _ in 0..3 {
        let again = put(&store, "a", vec![8; VALUE_BYTES]).await;
        assert!(matches!(again, Err(StoreError::NoSpace)), "{again:?}");
    }
    let found = store.range(KeyRange::key("a"), 0, 0).await.expect("the store is read");
    assert_eq!(
        (found.revision, found.items[0].mod_revision),
        (revision, revision),
        "a refused write leaves no trace"
    );
    fs::remove_file(&ballast).expect("the ballast is thrown off");
    assert_eq!(put(&store, "b", "after").await.expect("the store has healed"), revision + 1);
    let mut seen = 0;
    while seen < revision {
        seen += watch.next().await.expect("the watch goes on").events.len() as u64;
    }
    assert_eq!(seen, revision, "watches saw what was acknowledged, and nothing else");
    let before = dump(&store).await;
    drop(store);
    assert_eq!(dump(&open(&data)).await, before);
}
