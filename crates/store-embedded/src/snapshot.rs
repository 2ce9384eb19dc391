//! A whole state in one file: what the log is cut down to, and what a backup is.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::OpenError;
use crate::journal::salt;
use crate::record::{self, Frame, SnapshotRecord};
use crate::state::State;

const MAGIC: [u8; 8] = *b"CORASNP1";
const FRAME_BYTES: usize = 256 << 10;
/// Written without a sync in between, lest the log's own sync waits for all of a snapshot.
const SYNC_BYTES: usize = 4 << 20;

/// Writes `state` to `path`, which is there whole or not at all. Ends early, with `Interrupted`, once `stop` is set.
pub(crate) fn write(path: &Path, state: &State, stop: &AtomicBool) -> io::Result<()> {
    let temporary = temporary(path);
    let result = write_temporary(&temporary, state, stop).and_then(|()| {
        fs::rename(&temporary, path)?;
        sync_parent(path)
    });
    if result.is_err()
        && let Err(error) = fs::remove_file(&temporary)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %temporary.display(), %error, "unfinished snapshot not removed");
    }
    result
}

/// Reads a whole snapshot.
pub(crate) fn read(path: &Path) -> Result<State, OpenError> {
    let corrupt = |detail| OpenError::Corrupt { path: path.to_owned(), detail };
    let read_error = |source| OpenError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(read_error)?;
    let mut left = file.metadata().map_err(read_error)?.len();
    let mut reader = BufReader::new(file);
    let Some(salt) = crate::journal::read_header(&mut reader, MAGIC, &mut left).map_err(read_error)? else {
        return Err(corrupt("not a snapshot"));
    };
    let mut loader = Loader { state: State::empty(), items: 0, headed: false, ended: false };
    // What comes after the end is not ours: etcd's clients append padding and a checksum to a backup.
    while !loader.ended {
        let (frame, size) = record::read_frame(&mut reader, salt, left).map_err(read_error)?;
        left -= size;
        match frame {
            Frame::Payload(payload) => {
                for entry in record::decode_snapshot(&payload).map_err(corrupt)? {
                    loader.load(entry).map_err(corrupt)?;
                }
            }
            Frame::Torn => return Err(corrupt("a checksum does not match")),
            Frame::End => break,
        }
    }
    if loader.ended { Ok(loader.state) } else { Err(corrupt("the end is missing")) }
}

/// The name a snapshot has until it is whole.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

fn write_temporary(path: &Path, state: &State, stop: &AtomicBool) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let salt = salt();
    let mut writer = Writer { file, salt, frame: Vec::new(), unsynced: 0 };
    writer.file.write_all(&record::file_header(MAGIC, salt))?;
    record::begin_frame(&mut writer.frame);
    record::encode_head(&mut writer.frame, state.revision, state.last_lease);
    for (id, lease) in &state.leases {
        record::encode_grant(&mut writer.frame, *id, lease.ttl_seconds, false);
        writer.flush_full()?;
    }
    let mut items = 0;
    for item in state.keys.values() {
        record::encode_item(&mut writer.frame, item);
        items += 1;
        writer.flush_full()?;
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
    }
    record::encode_end(&mut writer.frame, items);
    writer.flush()?;
    writer.file.sync_all()
}

pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

struct Writer {
    file: File,
    salt: u64,
    frame: Vec<u8>,
    unsynced: usize,
}

impl Writer {
    fn flush_full(&mut self) -> io::Result<()> {
        if self.frame.len() < FRAME_BYTES { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> io::Result<()> {
        record::seal_frame(&mut self.frame, self.salt)?;
        self.file.write_all(&self.frame)?;
        self.unsynced += self.frame.len();
        if self.unsynced >= SYNC_BYTES {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        record::begin_frame(&mut self.frame);
        Ok(())
    }
}

struct Loader {
    state: State,
    items: u64,
    headed: bool,
    ended: bool,
}

impl Loader {
    fn load(&mut self, entry: SnapshotRecord) -> Result<(), &'static str> {
        if self.ended {
            return Err("entries after the end");
        }
        if !self.headed && !matches!(entry, SnapshotRecord::Head { .. }) {
            return Err("the head is missing");
        }
        match entry {
            SnapshotRecord::Head { revision, last_lease } => {
                self.headed = true;
                self.state.revision = revision;
                self.state.last_lease = last_lease;
            }
            SnapshotRecord::Lease { id, ttl_seconds } => self.state.insert_lease(id, ttl_seconds, false),
            SnapshotRecord::Item(item) => {
                self.items += 1;
                self.state.restore(item);
            }
            SnapshotRecord::End { items } if items == self.items => self.ended = true,
            SnapshotRecord::End { .. } => return Err("keys are missing"),
        }
        Ok(())
    }
}
