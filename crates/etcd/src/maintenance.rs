//! The Maintenance service.

use std::fs::File;
use std::io::{self, Read};
use std::pin::Pin;

use etcd_client::proto::{
    PbAlarmRequest, PbAlarmResponse, PbDefragmentRequest, PbDefragmentResponse, PbDowngradeRequest,
    PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest, PbHashResponse,
    PbMaintenanceService, PbMoveLeaderRequest, PbMoveLeaderResponse, PbSnapshotRequest, PbSnapshotResponse,
    PbStatusRequest, PbStatusResponse,
};
use sha2::{Digest, Sha256};
use store::{KeyRange, Revision, Store};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use crate::API_VERSION;
use crate::convert::{signed, status, unsigned};
use crate::member::{Member, TERM};

const CHUNK_BYTES: usize = 64 << 10;
/// Chunks of a snapshot that wait for the client.
const CHUNKS_AHEAD: usize = 4;
/// Clients look for the checksum by the length: it is what is left over whole blocks.
const BLOCK_BYTES: u64 = 512;

impl Member {
    /// A checksum of all keys at a revision: the same in any store with the same history.
    async fn checksum(&self, revision: Revision) -> Result<(u32, Revision), Status> {
        let all =
            self.store().range(KeyRange::prefix(""), revision, 0).await.map_err(|error| status(&error))?;
        let mut hasher = crc32fast::Hasher::new();
        for item in &all.items {
            for part in [&item.key, &item.value] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
            for number in [item.create_revision, item.mod_revision, item.version] {
                hasher.update(&number.to_le_bytes());
            }
        }
        Ok((hasher.finalize(), all.revision))
    }
}

#[async_trait]
impl PbMaintenanceService for Member {
    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<PbSnapshotResponse, Status>> + Send>>;

    /// There are none: a store that cannot write says so to each write.
    async fn alarm(&self, _: Request<PbAlarmRequest>) -> Result<Response<PbAlarmResponse>, Status> {
        Ok(Response::new(PbAlarmResponse { header: self.header_now(), alarms: Vec::new() }))
    }

    async fn status(&self, _: Request<PbStatusRequest>) -> Result<Response<PbStatusResponse>, Status> {
        let size = self.store().size().map_err(|error| Status::unavailable(error.to_string()))?;
        let revision = self.store().newest();
        Ok(Response::new(PbStatusResponse {
            header: self.header(revision),
            version: API_VERSION.to_owned(),
            db_size: signed(size),
            db_size_in_use: signed(self.store().live_bytes()),
            leader: self.id(),
            raft_index: revision,
            raft_applied_index: revision,
            raft_term: TERM,
            ..PbStatusResponse::default()
        }))
    }

    /// The store keeps itself small.
    async fn defragment(
        &self,
        _: Request<PbDefragmentRequest>,
    ) -> Result<Response<PbDefragmentResponse>, Status> {
        Ok(Response::new(PbDefragmentResponse { header: self.header_now() }))
    }

    async fn hash(&self, _: Request<PbHashRequest>) -> Result<Response<PbHashResponse>, Status> {
        let (hash, revision) = self.checksum(0).await?;
        Ok(Response::new(PbHashResponse { header: self.header(revision), hash }))
    }

    async fn hash_kv(&self, request: Request<PbHashKvRequest>) -> Result<Response<PbHashKvResponse>, Status> {
        let wanted = unsigned(request.into_inner().revision);
        let (hash, newest) = self.checksum(wanted).await?;
        let hash_revision = signed(if wanted == 0 { newest } else { wanted });
        let compact_revision = signed(self.store().compacted());
        Ok(Response::new(PbHashKvResponse {
            header: self.header(newest),
            hash,
            compact_revision,
            hash_revision,
        }))
    }

    async fn snapshot(
        &self,
        _: Request<PbSnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let unavailable = |error: io::Error| Status::unavailable(error.to_string());
        let dir = tempfile::tempdir().map_err(unavailable)?;
        let path = dir.path().join("snapshot");
        let revision =
            self.store().backup(&path).await.map_err(|error| Status::unavailable(error.to_string()))?;
        let file = File::open(&path).map_err(unavailable)?;
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let member = self.clone();
        // Ends with the file, or when the client is gone.
        tokio::task::spawn_blocking(move || {
            let sent = send_file(file, dir, |blob, remaining_bytes| {
                let header = member.header(revision);
                let version = API_VERSION.to_owned();
                sender
                    .blocking_send(Ok(PbSnapshotResponse { header, remaining_bytes, blob, version }))
                    .is_ok()
            });
            if let Err(error) = sent
                && sender.blocking_send(Err(unavailable(error))).is_err()
            {
                tracing::debug!("the client of a snapshot is gone");
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(chunks))))
    }

    async fn move_leader(
        &self,
        _: Request<PbMoveLeaderRequest>,
    ) -> Result<Response<PbMoveLeaderResponse>, Status> {
        Err(Status::failed_precondition("etcdserver: bad leader transferee"))
    }

    async fn downgrade(
        &self,
        _: Request<PbDowngradeRequest>,
    ) -> Result<Response<PbDowngradeResponse>, Status> {
        Err(Status::unimplemented("the store has one format"))
    }
}

/// Sends a file, zeros up to a whole block, and the checksum of both. `_dir` holds the file.
fn send_file(mut file: File, _dir: TempDir, mut send: impl FnMut(Vec<u8>, u64) -> bool) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut padding = length.next_multiple_of(BLOCK_BYTES) - length;
    let checksum_bytes = Sha256::output_size() as u64;
    let mut left = length + padding + checksum_bytes;
    let mut hasher = Sha256::new();
    while left > checksum_bytes {
        let mut chunk = vec![0; CHUNK_BYTES];
        let read = file.read(&mut chunk)?;
        chunk.truncate(read);
        if read == 0 {
            chunk = vec![0; usize::try_from(padding).unwrap_or(0)];
            padding = 0;
            if chunk.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        hasher.update(&chunk);
        left -= chunk.len() as u64;
        if !send(chunk, left) {
            return Ok(());
        }
    }
    send(hasher.finalize().to_vec(), 0);
    Ok(())
}
