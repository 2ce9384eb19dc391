//! The bytes of the log: records, and the checksummed frames they travel in.
//!
//! A file is a header (magic, salt, checksum) and frames: magic, length, checksum, payload. The checksum covers the
//! file's salt, so that neither a value that looks like a frame nor an old block of the disk can pass for one.
//! Numbers are little endian.

use std::io::{self, Read};

use bytes::Bytes;
use store::{Event, KeyValue, LeaseId, Revision};

pub(crate) const FILE_HEADER_BYTES: usize = 20;
const FRAME_HEADER_BYTES: usize = 12;
const FRAME_MAGIC: u32 = 0xc0ac_1e01;

const TXN: u8 = 1;
const GRANT: u8 = 2;
const REVOKE: u8 = 3;
const ITEM: u8 = 4;
const HEAD: u8 = 5;
const END: u8 = 6;

const PUT: u8 = 1;
const DELETE: u8 = 2;

/// One change of the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Txn { revision: Revision, changes: Vec<Change> },
    Grant { id: LeaseId, ttl_seconds: i64, chosen: bool },
    Revoke { id: LeaseId },
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Put { key: Bytes, value: Bytes, lease: LeaseId },
    Delete { key: Bytes },
}

/// One entry of a snapshot: a head, then leases, then items, then the end with their number.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SnapshotRecord {
    Head { revision: Revision, last_lease: LeaseId },
    Lease { id: LeaseId, ttl_seconds: i64 },
    Item(KeyValue),
    End { items: u64 },
}

/// What the next bytes of a file are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Payload(Vec<u8>),
    End,
    /// Not a whole frame with a right checksum.
    Torn,
}

pub(crate) fn encode_txn(out: &mut Vec<u8>, revision: Revision, events: &[Event]) {
    out.push(TXN);
    put_u64(out, revision);
    put_u64(out, events.len() as u64);
    for event in events {
        match event {
            Event::Put { current, .. } => {
                out.push(PUT);
                put_i64(out, current.lease);
                put_bytes(out, &current.key);
                put_bytes(out, &current.value);
            }
            Event::Delete { key, .. } => {
                out.push(DELETE);
                put_bytes(out, key);
            }
        }
    }
}

pub(crate) fn encode_grant(out: &mut Vec<u8>, id: LeaseId, ttl_seconds: i64, chosen: bool) {
    out.push(GRANT);
    put_i64(out, id);
    put_i64(out, ttl_seconds);
    out.push(u8::from(chosen));
}

pub(crate) fn encode_revoke(out: &mut Vec<u8>, id: LeaseId) {
    out.push(REVOKE);
    put_i64(out, id);
}

pub(crate) fn encode_head(out: &mut Vec<u8>, revision: Revision, last_lease: LeaseId) {
    out.push(HEAD);
    put_u64(out, revision);
    put_i64(out, last_lease);
}

pub(crate) fn encode_item(out: &mut Vec<u8>, item: &KeyValue) {
    out.push(ITEM);
    put_bytes(out, &item.key);
    put_bytes(out, &item.value);
    put_u64(out, item.create_revision);
    put_u64(out, item.mod_revision);
    put_u64(out, item.version);
    put_i64(out, item.lease);
}

pub(crate) fn encode_end(out: &mut Vec<u8>, items: u64) {
    out.push(END);
    put_u64(out, items);
}

/// The records of a frame of the log.
pub(crate) fn decode_records(payload: &[u8]) -> Result<Vec<Record>, &'static str> {
    let mut input = Input(payload);
    let mut records = Vec::new();
    while !input.0.is_empty() {
        records.push(input.record()?);
    }
    Ok(records)
}

/// The entries of a frame of a snapshot.
pub(crate) fn decode_snapshot(payload: &[u8]) -> Result<Vec<SnapshotRecord>, &'static str> {
    let mut input = Input(payload);
    let mut records = Vec::new();
    while !input.0.is_empty() {
        records.push(input.snapshot_record()?);
    }
    Ok(records)
}

/// The first bytes of a file.
pub(crate) fn file_header(magic: [u8; 8], salt: u64) -> [u8; FILE_HEADER_BYTES] {
    let mut header = [0; FILE_HEADER_BYTES];
    header[..8].copy_from_slice(&magic);
    header[8..16].copy_from_slice(&salt.to_le_bytes());
    let sum = crc32fast::hash(&header[..16]);
    header[16..].copy_from_slice(&sum.to_le_bytes());
    header
}

/// The salt of a file, if its first bytes are a right header.
pub(crate) fn parse_file_header(magic: [u8; 8], header: &[u8]) -> Option<u64> {
    let salt = u64::from_le_bytes(header.get(8..16)?.try_into().ok()?);
    (header.get(..FILE_HEADER_BYTES)? == file_header(magic, salt)).then_some(salt)
}

/// Makes `buffer` ready for a payload to be appended.
pub(crate) fn begin_frame(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.resize(FRAME_HEADER_BYTES, 0);
}

/// Whether nothing was appended since `begin_frame`.
pub(crate) fn frame_is_empty(buffer: &[u8]) -> bool {
    buffer.len() <= FRAME_HEADER_BYTES
}

/// Fills in the header of a frame.
pub(crate) fn seal_frame(buffer: &mut [u8], salt: u64) -> io::Result<()> {
    let length = u32::try_from(buffer.len() - FRAME_HEADER_BYTES)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a frame is over 4 GiB"))?;
    let sum = checksum(salt, length, &buffer[FRAME_HEADER_BYTES..]);
    buffer[..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
    buffer[4..8].copy_from_slice(&length.to_le_bytes());
    buffer[8..12].copy_from_slice(&sum.to_le_bytes());
    Ok(())
}

/// Reads the next frame. `left` is what the file still holds: a length that is damaged must not be believed.
pub(crate) fn read_frame(reader: &mut impl Read, salt: u64, left: u64) -> io::Result<(Frame, u64)> {
    if left == 0 {
        return Ok((Frame::End, 0));
    }
    let mut header = [0; FRAME_HEADER_BYTES];
    if left < FRAME_HEADER_BYTES as u64 {
        return Ok((Frame::Torn, 0));
    }
    reader.read_exact(&mut header)?;
    let [magic, length, sum] = header_fields(&header);
    let size = FRAME_HEADER_BYTES as u64 + u64::from(length);
    if magic != FRAME_MAGIC || size > left {
        return Ok((Frame::Torn, 0));
    }
    let mut payload = vec![0; length as usize];
    reader.read_exact(&mut payload)?;
    if checksum(salt, length, &payload) == sum {
        Ok((Frame::Payload(payload), size))
    } else {
        Ok((Frame::Torn, 0))
    }
}

/// Whether a whole frame begins anywhere in `bytes`.
pub(crate) fn contains_frame(bytes: &[u8], salt: u64) -> bool {
    let magic = FRAME_MAGIC.to_le_bytes();
    bytes.windows(FRAME_HEADER_BYTES).enumerate().filter(|(_, window)| window.starts_with(&magic)).any(
        |(start, header)| {
            let [_, length, sum] = header_fields(header);
            let payload = start + FRAME_HEADER_BYTES;
            bytes
                .get(payload..payload.saturating_add(length as usize))
                .is_some_and(|payload| checksum(salt, length, payload) == sum)
        },
    )
}

fn header_fields(header: &[u8]) -> [u32; 3] {
    let mut input = Input(header);
    // A header is always long enough; zero is no magic.
    [(); 3].map(|()| input.take::<4>().map_or(0, u32::from_le_bytes))
}

fn checksum(salt: u64, length: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(&length.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_i64(out: &mut Vec<u8>, number: i64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// What is left to decode.
struct Input<'a>(&'a [u8]);

const SHORT: &str = "a record ends early";

impl Input<'_> {
    fn record(&mut self) -> Result<Record, &'static str> {
        match self.u8()? {
            TXN => {
                let revision = self.u64()?;
                let count = self.u64()?;
                let changes = (0..count).map(|_| self.change()).collect::<Result<_, _>>()?;
                Ok(Record::Txn { revision, changes })
            }
            GRANT => Ok(Record::Grant { id: self.i64()?, ttl_seconds: self.i64()?, chosen: self.u8()? != 0 }),
            REVOKE => Ok(Record::Revoke { id: self.i64()? }),
            _ => Err("a record of unknown kind"),
        }
    }

    fn change(&mut self) -> Result<Change, &'static str> {
        match self.u8()? {
            PUT => {
                let lease = self.i64()?;
                Ok(Change::Put { key: self.bytes()?, value: self.bytes()?, lease })
            }
            DELETE => Ok(Change::Delete { key: self.bytes()? }),
            _ => Err("a change of unknown kind"),
        }
    }

    fn snapshot_record(&mut self) -> Result<SnapshotRecord, &'static str> {
        match self.u8()? {
            HEAD => Ok(SnapshotRecord::Head { revision: self.u64()?, last_lease: self.i64()? }),
            GRANT => {
                let (id, ttl_seconds) = (self.i64()?, self.i64()?);
                self.u8()?;
                Ok(SnapshotRecord::Lease { id, ttl_seconds })
            }
            ITEM => Ok(SnapshotRecord::Item(KeyValue {
                key: self.bytes()?,
                value: self.bytes()?,
                create_revision: self.u64()?,
                mod_revision: self.u64()?,
                version: self.u64()?,
                lease: self.i64()?,
            })),
            END => Ok(SnapshotRecord::End { items: self.u64()? }),
            _ => Err("a snapshot entry of unknown kind"),
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, &'static str> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u64(&mut self) -> Result<u64, &'static str> {
        self.take().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Result<i64, &'static str> {
        self.take().map(i64::from_le_bytes)
    }

    /// Copies: a key must not keep its whole frame in memory.
    fn bytes(&mut self) -> Result<Bytes, &'static str> {
        let length = usize::try_from(self.u64()?).map_err(|_| SHORT)?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(SHORT)?;
        self.0 = rest;
        Ok(Bytes::copy_from_slice(taken))
    }
}
