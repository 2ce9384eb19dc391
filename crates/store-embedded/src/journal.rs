//! The data directory: a snapshot, and the log of what came after it.
//!
//! `log-N` holds the batches after `snapshot-N`; there is no `snapshot-0`. Every batch is one frame, written and
//! synced before the next one. When the log outgrows what it describes, a new log is begun, a snapshot of the state
//! at that point is written beside it, and what the snapshot covers is removed: the directory stays within a few
//! times the live data. Only the last frame of the last log can be torn; damage anywhere else is reported, not cut.

use std::collections::hash_map::RandomState;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::hash::BuildHasher;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::OpenError;
use crate::record::{self, FILE_HEADER_BYTES, Frame};
use crate::snapshot;
use crate::state::State;

const MAGIC: [u8; 8] = *b"CORALOG1";
/// A log shorter than this is never replaced by a snapshot.
const MIN_LOG_BYTES: u64 = 8 << 20;

#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    fsync: bool,
    /// Held as long as the directory is in use.
    _lock: DirLock,
    log: Log,
    /// Bytes of the log at which a snapshot is due.
    snapshot_at: u64,
    snapshot: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

/// The right to use a data directory.
#[derive(Debug)]
struct DirLock(File);

#[derive(Debug)]
struct Log {
    file: File,
    number: u64,
    salt: u64,
    /// Where the next frame begins.
    length: u64,
    /// A failed write may have left bytes after `length`.
    dirty: bool,
}

/// What the names in the directory say.
#[derive(Debug, Default)]
struct Listing {
    snapshots: Vec<u64>,
    logs: Vec<u64>,
    unfinished: Vec<PathBuf>,
}

impl Journal {
    /// Locks and reads a data directory, and makes it if there is none.
    pub(crate) fn open(dir: &Path, fsync: bool) -> Result<(Self, State), OpenError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
        let lock = DirLock::acquire(dir)?;
        let listing = Listing::read(dir).map_err(at(dir))?;
        let base = listing.snapshots.last().copied().unwrap_or(0);
        let mut state = match listing.snapshots.last() {
            Some(number) => snapshot::read(&snapshot_path(dir, *number))?,
            None => State::empty(),
        };
        let logs: Vec<u64> = listing.logs.iter().copied().filter(|number| *number >= base).collect();
        let mut last = None;
        for (number, expected) in logs.iter().copied().zip(base..) {
            if number != expected {
                let path = log_path(dir, expected);
                return Err(OpenError::Corrupt { path, detail: "the log is missing" });
            }
            let is_last = Some(&number) == logs.last();
            last = replay(&log_path(dir, number), number, is_last, &mut state)?;
        }
        let number = logs.last().copied().unwrap_or(base);
        let log = match last {
            Some(log) => log,
            None => Log::create(dir, number).map_err(at(&log_path(dir, number)))?,
        };
        remove_covered(dir, &listing, base);
        let mut journal = Self {
            dir: dir.to_owned(),
            fsync,
            _lock: lock,
            log,
            snapshot_at: 0,
            snapshot: None,
            stop: Arc::default(),
        };
        journal.snapshot_at = snapshot_due(&state);
        Ok((journal, state))
    }

    /// Makes a frame durable. After an error the log is as it was before.
    pub(crate) fn append(&mut self, frame: &mut [u8]) -> io::Result<()> {
        self.log.heal()?;
        record::seal_frame(frame, self.log.salt)?;
        let written = self
            .log
            .file
            .write_all_at(frame, self.log.length)
            .and_then(|()| if self.fsync { self.log.file.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            self.log.dirty = true;
            if let Err(error) = self.log.heal() {
                tracing::error!(path = %self.dir.display(), %error, "failed write not taken back yet");
            }
            return Err(error);
        }
        self.log.length += frame.len() as u64;
        Ok(())
    }

    /// Begins a snapshot of `state`, which is all that was appended, if one is due.
    pub(crate) fn snapshot_if_due(&mut self, state: &State) {
        if self.log.length < self.snapshot_at
            || self.snapshot.as_ref().is_some_and(|thread| !thread.is_finished())
        {
            return;
        }
        if let Err(error) = self.begin_snapshot(state) {
            // The old log goes on; try again when it has grown.
            self.snapshot_at = self.log.length + MIN_LOG_BYTES;
            tracing::warn!(path = %self.dir.display(), %error, "snapshot not begun");
        }
    }

    fn begin_snapshot(&mut self, state: &State) -> io::Result<()> {
        let number = self.log.number + 1;
        let log = Log::create(&self.dir, number)?;
        let (dir, state, stop) = (self.dir.clone(), state.clone(), Arc::clone(&self.stop));
        self.snapshot_at = snapshot_due(&state);
        self.log = log;
        let thread =
            thread::Builder::new().name("store-snapshot".into()).spawn(move || {
                match snapshot::write(&snapshot_path(&dir, number), &state, &stop) {
                    Ok(()) => match Listing::read(&dir) {
                        Ok(listing) => remove_covered(&dir, &listing, number),
                        Err(error) => tracing::warn!(path = %dir.display(), %error, "old logs not removed"),
                    },
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => tracing::warn!(path = %dir.display(), %error, "snapshot not written"),
                }
            })?;
        self.snapshot = Some(thread);
        Ok(())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.snapshot.take()
            && thread.join().is_err()
        {
            tracing::error!(path = %self.dir.display(), "the snapshot thread panicked");
        }
    }
}

impl Log {
    fn create(dir: &Path, number: u64) -> io::Result<Self> {
        let path = log_path(dir, number);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        let salt = salt();
        let created = (&file)
            .write_all(&record::file_header(MAGIC, salt))
            .and_then(|()| file.sync_all())
            .and_then(|()| snapshot::sync_parent(&path));
        if let Err(error) = created {
            fs::remove_file(&path)?;
            return Err(error);
        }
        Ok(Self { file, number, salt, length: FILE_HEADER_BYTES as u64, dirty: false })
    }

    /// Cuts off what a failed write may have left: it must not come back after a crash.
    fn heal(&mut self) -> io::Result<()> {
        if self.dirty {
            self.file.set_len(self.length)?;
            self.file.sync_all()?;
            self.dirty = false;
        }
        Ok(())
    }
}

impl Listing {
    fn read(dir: &Path) -> io::Result<Self> {
        let mut listing = Self::default();
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Some(number) = name.strip_prefix("snapshot-").and_then(parse_number) {
                listing.snapshots.push(number);
            } else if let Some(number) = name.strip_prefix("log-").and_then(parse_number) {
                listing.logs.push(number);
            } else if name.starts_with("snapshot-") && name.ends_with(".tmp") {
                listing.unfinished.push(dir.join(name));
            }
        }
        listing.snapshots.sort_unstable();
        listing.logs.sort_unstable();
        Ok(listing)
    }

    fn is_empty(&self) -> bool {
        self.snapshots.is_empty() && self.logs.is_empty()
    }
}

/// Puts a backup into an empty data directory.
pub(crate) fn restore(backup: &Path, dir: &Path) -> Result<(), OpenError> {
    let state = snapshot::read(backup)?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
    let _lock = DirLock::acquire(dir)?;
    if !Listing::read(dir).map_err(at(dir))?.is_empty() {
        return Err(OpenError::NotEmpty { path: dir.to_owned() });
    }
    let path = snapshot_path(dir, 1);
    snapshot::write(&path, &state, &AtomicBool::new(false)).map_err(at(&path))
}

/// Bytes of all files of the store.
pub(crate) fn size_on_disk(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        match entry?.metadata() {
            Ok(metadata) => bytes += metadata.len(),
            // A snapshot was finished, and what it covers removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// A number no other file has, as far as chance goes.
pub(crate) fn salt() -> u64 {
    RandomState::new().hash_one(0)
}

/// Reads the header of a file and answers its salt.
pub(crate) fn read_header(reader: &mut impl Read, magic: [u8; 8], left: &mut u64) -> io::Result<Option<u64>> {
    let mut header = [0; FILE_HEADER_BYTES];
    if *left < FILE_HEADER_BYTES as u64 {
        return Ok(None);
    }
    reader.read_exact(&mut header)?;
    *left -= FILE_HEADER_BYTES as u64;
    Ok(record::parse_file_header(magic, &header))
}

/// Repeats a log. `None` if the last log holds nothing, not even its header: it is to be made anew.
fn replay(path: &Path, number: u64, is_last: bool, state: &mut State) -> Result<Option<Log>, OpenError> {
    let corrupt = |detail| OpenError::Corrupt { path: path.to_owned(), detail };
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(at(path))?;
    let mut left = file.metadata().map_err(at(path))?.len();
    let mut length = FILE_HEADER_BYTES as u64;
    let mut reader = BufReader::with_capacity(256 << 10, &file);
    let Some(salt) = read_header(&mut reader, MAGIC, &mut left).map_err(at(path))? else {
        // Frames follow only after the header is durable.
        return if is_last && left <= length { Ok(None) } else { Err(corrupt("not a log")) };
    };
    loop {
        let (frame, size) = record::read_frame(&mut reader, salt, left).map_err(at(path))?;
        match frame {
            Frame::Payload(payload) => {
                for record in record::decode_records(&payload).map_err(corrupt)? {
                    state.replay(record).map_err(corrupt)?;
                }
                length += size;
                left -= size;
            }
            Frame::End => break,
            Frame::Torn if is_last => {
                cut_tail(path, &file, length, salt)?;
                break;
            }
            Frame::Torn => return Err(corrupt("a checksum does not match")),
        }
    }
    Ok(Some(Log { file, number, salt, length, dirty: false }))
}

/// Removes an unfinished frame at the end, unless something whole comes after it: then it is damage, and what was
/// acknowledged would be lost.
fn cut_tail(path: &Path, file: &File, length: u64, salt: u64) -> Result<(), OpenError> {
    let size = file.metadata().map_err(at(path))?.len();
    let mut tail = vec![0; usize::try_from(size - length).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut tail, length).map_err(at(path))?;
    if record::contains_frame(&tail, salt) {
        return Err(OpenError::Corrupt { path: path.to_owned(), detail: "damage before the end of the log" });
    }
    tracing::warn!(path = %path.display(), bytes = tail.len(), "unfinished write cut off the log");
    file.set_len(length).and_then(|()| file.sync_all()).map_err(at(path))
}

impl DirLock {
    fn acquire(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join("lock");
        let mut options = OpenOptions::new();
        let file =
            options.write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(at(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: dir.to_owned() }),
            Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
        }
    }
}

impl Drop for DirLock {
    /// Closing is not enough: a child that is just being made holds a copy until it runs its program.
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "data directory not unlocked");
        }
    }
}

/// Removes what `snapshot-N` made superfluous. What stays behind is removed the next time.
fn remove_covered(dir: &Path, listing: &Listing, number: u64) {
    let snapshots =
        listing.snapshots.iter().filter(|other| **other < number).map(|other| snapshot_path(dir, *other));
    let logs = listing.logs.iter().filter(|other| **other < number).map(|other| log_path(dir, *other));
    for path in snapshots.chain(logs).chain(listing.unfinished.iter().cloned()) {
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "superfluous file not removed");
        }
    }
}

fn snapshot_due(state: &State) -> u64 {
    state.live_bytes.max(MIN_LOG_BYTES)
}

fn log_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("log-{number:012}"))
}

fn snapshot_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("snapshot-{number:012}"))
}

fn parse_number(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { path, source }
}
