//! Chunks: any order, several at a time, each written once.

use driftline_protocol::{ErrorCode, Fault};
use driftline_uploads::{Digest, Meeting, RunningHash, UploadId, meet};

use super::{Engine, LEASE_MS, Receiving, UploadRight, busy, lost, refused};
use crate::ports::{Observer, Store};
use crate::service::unavailable;
use crate::uploads::{
    BlobError, ChunkReceipt, Kept, LeaseKey, LeaseSlot, Leased, PartPlace, PartSink, Purpose, Renewed,
    UploadRow,
};

/// A chunk that comes.
pub struct ChunkUpload {
    row: UploadRow,
    index: u64,
    bytes: u64,
    digest: Digest,
    meeting: Meeting,
    sink: Box<dyn PartSink>,
    held: Option<Held>,
    /// It ends when nothing is being written any more.
    receiving: Receiving,
}

/// A right to write that is held.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub(super) key: LeaseKey,
    pub(super) holder: u64,
    pub(super) renewed_ms: u64,
}

impl std::fmt::Debug for ChunkUpload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkUpload")
            .field("id", &self.row.id)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

/// A chunk that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkKept {
    /// The chunk.
    pub index: u64,
    /// Bytes of the upload that are there.
    pub bytes_received: u64,
    /// Chunks of the upload that are there, as far as their bytes tell.
    pub received: u64,
    /// Chunks of the upload.
    pub total_chunks: u64,
}

impl<S: Store, O: Observer> Engine<S, O> {
    /// Begins to receive a chunk. `told_bytes` is how many bytes the client says it has, and `holder` tells this attempt
    /// from all others.
    ///
    /// What it gives has to be finished or given up, by [`Engine::finish_chunk`] or [`Engine::give_up_chunk`]; it runs in
    /// a task of its own, which no client can end.
    ///
    /// # Errors
    /// `NOT_FOUND` also for a chunk that there is not, `UPLOAD_GONE`, `VALIDATION_ERROR` for another length,
    /// `IDEMPOTENCY_IN_PROGRESS` while the upload is finalized or somebody else sends the chunk, `CHUNK_CONFLICT` when
    /// another one was received, `STORE_UNAVAILABLE`.
    pub async fn begin_chunk(
        &self,
        right: UploadRight<'_>,
        (id, index): (UploadId, u64),
        told_bytes: Option<u64>,
        digest: Digest,
        (now_ms, holder): (u64, u64),
    ) -> Result<ChunkUpload, Fault> {
        let row = self.upload(right, id).await?;
        let (at, bytes) = row.upload.admit_chunk(index, told_bytes, now_ms).map_err(refused)?;
        let key = LeaseKey { id, slot: LeaseSlot::Chunk(index) };
        // Its bytes are still on their way, whether or not its right has ended: who only comes to look takes nothing away.
        if self.taken()?.writers.is_writing(id, key.slot) {
            return Err(busy("this chunk is being received on another connection"));
        }
        let rows = self.upload_rows();
        let leased = rows.lease(key, holder, now_ms, now_ms + LEASE_MS, false).await;
        let taken_over = match leased.map_err(|error| unavailable(&error))? {
            Leased::Held => false,
            Leased::TakenOver => true,
            Leased::Busy { .. } => return Err(busy("this chunk is being received on another connection")),
        };
        let held = Held { key, holder, renewed_ms: now_ms };
        let row = UploadRow { running: known_hash(&row, taken_over), ..row };
        let begun = self.begin_part(row, index, (at, bytes), digest, held).await;
        if begun.is_err() {
            self.let_go(held).await;
        }
        begun
    }

    async fn begin_part(
        &self,
        row: UploadRow,
        index: u64,
        (at, bytes): (u64, u64),
        digest: Digest,
        held: Held,
    ) -> Result<ChunkUpload, Fault> {
        let known = self.upload_rows().chunk(row.id, index).await.map_err(|error| unavailable(&error))?;
        let meeting = meet(known, digest);
        if meeting == Meeting::Other {
            return Err(conflict(index));
        }
        let purpose = if meeting == Meeting::New { Purpose::Write } else { Purpose::Compare };
        let uploads = self.taken()?;
        let (receiving, _) = uploads.receive(&row, Some(&held).filter(|_| purpose == Purpose::Write))?;
        let place = PartPlace {
            id: row.id,
            staged: row.staged.clone(),
            index: Some(index),
            at,
            end: at + bytes,
            running: row.running.clone(),
            digest: Some(digest),
            purpose,
        };
        let sink = match uploads.blobs.begin(place).await {
            Ok(sink) => sink,
            Err(error) => return Err(self.no_place(row.id, &error, held.renewed_ms).await),
        };
        // What is only compared may be compared by several.
        let held = match purpose {
            Purpose::Write => Some(held),
            Purpose::Compare => {
                self.let_go(held).await;
                None
            }
        };
        Ok(ChunkUpload { row, index, bytes, digest, meeting, sink, held, receiving })
    }

    /// Tells why there is no place for bytes: the upload may have become a file, or have been ended, since its row was read.
    pub(super) async fn no_place(&self, id: UploadId, error: &BlobError, now_ms: u64) -> Fault {
        if *error != BlobError::Missing {
            return lost(error);
        }
        match self.upload(UploadRight::Secret, id).await {
            Ok(row) => row.upload.require_open(now_ms).map_or_else(refused, |()| lost(error)),
            Err(fault) => fault,
        }
    }

    /// Takes the next bytes of a chunk.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` for more bytes than the chunk has, `STORAGE_FULL`, `STORE_UNAVAILABLE`,
    /// `IDEMPOTENCY_IN_PROGRESS` when the right to write was lost. The chunk is to be given up then.
    pub async fn write_chunk(&self, chunk: &mut ChunkUpload, bytes: &[u8], now_ms: u64) -> Result<(), Fault> {
        self.hold_chunk(chunk, now_ms).await?;
        let written = chunk.sink.write(bytes).await;
        let place = (chunk.row.id, chunk.index, chunk.bytes);
        match written {
            Ok(()) => Ok(()),
            Err(error) => Err(self.of_chunk(place, &error, now_ms).await),
        }
    }

    /// Holds on to the right to write a chunk while nothing comes.
    ///
    /// # Errors
    /// `IDEMPOTENCY_IN_PROGRESS` when the right was lost, `STORE_UNAVAILABLE`.
    pub async fn hold_chunk(&self, chunk: &mut ChunkUpload, now_ms: u64) -> Result<(), Fault> {
        let Some(held) = &mut chunk.held else { return Ok(()) };
        match self.hold(held, now_ms).await? {
            Renewed::Held | Renewed::Wanted => Ok(()),
            Renewed::Lost => Err(busy("somebody else writes this chunk by now")),
        }
    }

    /// Tells what is wrong with a chunk of an upload, its number and its bytes.
    async fn of_chunk(
        &self,
        (id, index, bytes): (UploadId, u64, u64),
        error: &BlobError,
        now_ms: u64,
    ) -> Fault {
        if *error == BlobError::Length {
            let message = format!("the chunk {index} has {bytes} bytes");
            return Fault::new(ErrorCode::ValidationError, message);
        }
        self.no_place(id, error, now_ms).await
    }

    /// Receives a chunk whose bytes all came: they are made durable, and then it is written down.
    ///
    /// # Errors
    /// `DIGEST_MISMATCH` and `VALIDATION_ERROR` for other bytes than announced, and what [`Engine::begin_chunk`] and
    /// [`Engine::write_chunk`] are refused for.
    pub async fn finish_chunk(&self, mut chunk: ChunkUpload, now_ms: u64) -> Result<ChunkKept, Fault> {
        let finished = self.settle_chunk(&mut chunk, now_ms).await;
        self.give_up_chunk(chunk).await;
        finished
    }

    /// Gives a chunk up; what came of it counts for nothing.
    pub async fn give_up_chunk(&self, mut chunk: ChunkUpload) {
        chunk.sink.stop().await;
        drop(chunk.receiving);
        if let Some(held) = chunk.held.take() {
            self.let_go(held).await;
        }
    }

    async fn settle_chunk(&self, chunk: &mut ChunkUpload, now_ms: u64) -> Result<ChunkKept, Fault> {
        let written = match chunk.sink.settle().await {
            Ok(written) => written,
            Err(error) => {
                let place = (chunk.row.id, chunk.index, chunk.bytes);
                return Err(self.of_chunk(place, &error, now_ms).await);
            }
        };
        if chunk.meeting == Meeting::Same {
            return Ok(self.told_of(chunk, chunk.row.upload.received));
        }
        let receipt = ChunkReceipt {
            id: chunk.row.id,
            index: chunk.index,
            bytes: chunk.bytes,
            digest: chunk.digest,
            tag: written.tag,
            running: written.running,
            holder: chunk.held.map_or(0, |held| held.holder),
            at_ms: now_ms,
            expires_ms: self.taken()?.rules.expiry.expires_ms(chunk.row.upload.opened_ms, now_ms),
        };
        let kept = self.upload_rows().keep_chunk(receipt).await.map_err(|error| unavailable(&error))?;
        match kept {
            Kept::Kept { received } => {
                self.observer.upload_bytes(chunk.bytes);
                self.tell_progress(&chunk.row, received, now_ms);
                Ok(self.told_of(chunk, received))
            }
            Kept::NotOpen(Some(driftline_uploads::State::Finalizing)) => {
                Err(busy("the upload is being finalized"))
            }
            Kept::NotOpen(_) => Err(Fault::new(ErrorCode::UploadGone, "the upload was ended meanwhile")),
            // Somebody received it meanwhile: the same one, or another.
            Kept::Overtaken => {
                let known = self.upload_rows().chunk(chunk.row.id, chunk.index).await;
                match meet(known.map_err(|error| unavailable(&error))?, chunk.digest) {
                    Meeting::Same => Ok(self.told_of(chunk, chunk.row.upload.received)),
                    _ => Err(conflict(chunk.index)),
                }
            }
            Kept::Lost => Err(busy("somebody else writes this chunk by now")),
            Kept::NoRoom => Err(Fault::new(ErrorCode::QuotaExceeded, "the tenant's quota is used up")),
        }
    }

    fn told_of(&self, chunk: &ChunkUpload, bytes_received: u64) -> ChunkKept {
        let (size, total_chunks, chunk_bytes) = match chunk.row.upload.form {
            driftline_uploads::Form::Chunks(plan) => (plan.size(), plan.chunks(), plan.chunk_bytes()),
            driftline_uploads::Form::Stream { .. } => (0, 0, 1),
        };
        // Every chunk but the last is as long as the others, so that the bytes tell how many there are.
        let received =
            if bytes_received == size { total_chunks } else { bytes_received.div_ceil(chunk_bytes) };
        ChunkKept { index: chunk.index, bytes_received, received, total_chunks }
    }

    /// Holds on to a right for longer, once a quarter of its time is over.
    pub(super) async fn hold(&self, held: &mut Held, now_ms: u64) -> Result<Renewed, Fault> {
        if now_ms < held.renewed_ms + LEASE_MS / 4 {
            return Ok(Renewed::Held);
        }
        let renewed = self.upload_rows().renew(held.key, held.holder, now_ms, now_ms + LEASE_MS).await;
        held.renewed_ms = now_ms;
        renewed.map_err(|error| unavailable(&error))
    }

    pub(super) async fn let_go(&self, held: Held) {
        // Where it fails, the right ends by itself.
        let _ = self.upload_rows().release(held.key, held.holder).await;
    }
}

/// Returns the hash of a file that goes on with what is written next. A file of which nothing was hashed is hashed from its
/// beginning. Where the last bytes of somebody whose right ended may still come, what lies there is hashed, and not what came:
/// when the file is finalized.
pub(super) fn known_hash(row: &UploadRow, taken_over: bool) -> Option<RunningHash> {
    if taken_over { None } else { Some(row.running.clone().unwrap_or_default()) }
}

fn conflict(index: u64) -> Fault {
    Fault::new(ErrorCode::ChunkConflict, format!("another chunk {index} was received before"))
}
