//! Streams: bytes that go on where the last ones ended.

use driftline_protocol::{ErrorCode, Fault};
use driftline_uploads::{Refused, RunningHash, State, UploadId};
use futures_channel::oneshot;

use super::chunk::{Held, known_hash};
use super::{Engine, LEASE_MS, Receiving, UploadRight, busy, lost, refused};
use crate::ports::{Observer, Store};
use crate::service::unavailable;
use crate::uploads::{
    Kept, LeaseKey, LeaseSlot, Leased, PartPlace, PartSink, Purpose, Renewed, StreamReceipt, UploadRow,
};

/// Bytes after which a stream is made durable in the middle of a request, so that a crash loses no more.
const CHECKPOINT_BYTES: u64 = 8 << 20;

/// A stream that goes on.
pub struct StreamUpload {
    row: UploadRow,
    sink: Box<dyn PartSink>,
    held: Held,
    /// The size of the file, where it is known by now.
    size: Option<u64>,
    /// Where it ends, as far as that is written down.
    kept: u64,
    /// Where it ends with what came.
    end: u64,
    /// What came before it is judged is not written down.
    checked: bool,
    /// Bytes that are reserved for it of its tenant's quota.
    reserved: u64,
    /// Whether all that came is written down.
    settled: bool,
    /// Whether the store may have more of the stream than is known here.
    in_doubt: bool,
    /// Tells that another request wants the stream.
    wanted: Option<oneshot::Receiver<()>>,
    /// It ends when nothing is being written any more.
    receiving: Receiving,
}

impl std::fmt::Debug for StreamUpload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamUpload")
            .field("id", &self.row.id)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl StreamUpload {
    /// Takes out what ends when another request on this node wants the stream.
    pub fn wanted(&mut self) -> Option<oneshot::Receiver<()>> {
        self.wanted.take()
    }

    /// Returns the upload as it was when the stream went on.
    pub fn row(&self) -> &UploadRow {
        &self.row
    }
}

/// What came of going on with a stream.
#[derive(Debug)]
pub enum Streaming {
    /// It goes on.
    Begun(Box<StreamUpload>),
    /// Another request is at it, and was asked to let go: ask again soon.
    Busy,
}

impl<S: Store, O: Observer> Engine<S, O> {
    /// Begins to go on with a stream at an offset. `told_bytes` is how many bytes the client says will come, `size` the
    /// file's size if the client tells it now, and `holder` tells this attempt from all others. With `checked` nothing is
    /// written down before the stream is finished. A request that is at the stream already is asked to let go of it.
    ///
    /// What it gives has to be finished or given up, by [`Engine::finish_stream`] or [`Engine::give_up_stream`]; it runs
    /// in a task of its own, which no client can end.
    ///
    /// # Errors
    /// `NOT_FOUND`, `UPLOAD_GONE`, `OFFSET_MISMATCH`, `MESSAGE_TOO_LARGE`, `VALIDATION_ERROR` for another size than
    /// before, `STORE_UNAVAILABLE`.
    pub async fn begin_stream(
        &self,
        right: UploadRight<'_>,
        (id, offset): (UploadId, u64),
        (told_bytes, size): (Option<u64>, Option<u64>),
        checked: bool,
        (now_ms, holder): (u64, u64),
    ) -> Result<Streaming, Fault> {
        let Some((held, taken_over)) = self.lease_stream(id, (now_ms, holder)).await? else {
            return Ok(Streaming::Busy);
        };
        let wanted = (told_bytes, size);
        let begun = self.stream_on(right, (id, offset), wanted, (checked, taken_over), (now_ms, held)).await;
        if begun.is_err() {
            self.let_go(held).await;
        }
        begun.map(|stream| Streaming::Begun(Box::new(stream)))
    }

    /// Takes the right to go on with a stream, with whether somebody else's had ended; asks whoever has it to let go.
    async fn lease_stream(
        &self,
        id: UploadId,
        (now_ms, holder): (u64, u64),
    ) -> Result<Option<(Held, bool)>, Fault> {
        let writers = &self.taken()?.writers;
        // Its bytes are still on their way, whether or not its right has ended: who only comes to look takes nothing away.
        if writers.is_writing(id, LeaseSlot::Stream) {
            writers.ask(id, LeaseSlot::Stream);
            return Ok(None);
        }
        let key = LeaseKey { id, slot: LeaseSlot::Stream };
        let leased = self.upload_rows().lease(key, holder, now_ms, now_ms + LEASE_MS, true).await;
        let held = Held { key, holder, renewed_ms: now_ms };
        Ok(match leased.map_err(|error| unavailable(&error))? {
            Leased::Held => Some((held, false)),
            Leased::TakenOver => Some((held, true)),
            Leased::Busy { .. } => None,
        })
    }

    async fn stream_on(
        &self,
        right: UploadRight<'_>,
        (id, offset): (UploadId, u64),
        (told_bytes, size): (Option<u64>, Option<u64>),
        (checked, taken_over): (bool, bool),
        (now_ms, held): (u64, Held),
    ) -> Result<StreamUpload, Fault> {
        let uploads = self.taken()?;
        let mut row = self.upload(right, id).await?;
        if let Some(size) = size {
            if size > uploads.rules.size_max {
                let message = format!("a file may have {} bytes", uploads.rules.size_max);
                return Err(Fault::new(ErrorCode::MessageTooLarge, message));
            }
            row.upload.settle_size(size).map_err(refused)?;
        }
        let left = row.upload.admit_append(offset, told_bytes, now_ms).map_err(refused)?;
        let end = offset + left.unwrap_or(uploads.rules.size_max - offset.min(uploads.rules.size_max));
        let place = PartPlace {
            id,
            staged: row.staged.clone(),
            index: None,
            at: offset,
            end,
            running: known_hash(&row, taken_over),
            digest: None,
            // Of a finished upload nothing can come any more.
            purpose: if left == Some(0) { Purpose::Compare } else { Purpose::Write },
        };
        let (receiving, wanted) = uploads.receive(&row, Some(&held))?;
        let sink = match uploads.blobs.begin(place).await {
            Ok(sink) => sink,
            Err(error) => return Err(self.no_place(id, &error, now_ms).await),
        };
        let (size, reserved) = (row.upload.form.size(), row.reserved);
        Ok(StreamUpload {
            row,
            sink,
            held,
            size,
            kept: offset,
            end: offset,
            checked,
            reserved,
            settled: true,
            in_doubt: false,
            wanted: Some(wanted),
            receiving,
        })
    }

    /// Takes the next bytes of a stream.
    ///
    /// # Errors
    /// `MESSAGE_TOO_LARGE`, `STORAGE_FULL`, `QUOTA_EXCEEDED`, `STORE_UNAVAILABLE`, `IDEMPOTENCY_IN_PROGRESS` when another
    /// request has, or wants, the stream.
    pub async fn write_stream(
        &self,
        stream: &mut StreamUpload,
        bytes: &[u8],
        now_ms: u64,
    ) -> Result<(), Fault> {
        self.hold_stream(stream, now_ms).await?;
        stream.settled = false;
        let end = stream.end + bytes.len() as u64;
        if end > stream.reserved {
            self.reserve(stream, end).await?;
        }
        stream.sink.write(bytes).await.map_err(|error| match error {
            crate::uploads::BlobError::Length => too_long(),
            other => lost(&other),
        })?;
        stream.end = end;
        if !stream.checked && stream.end - stream.kept >= CHECKPOINT_BYTES {
            self.keep(stream, now_ms).await?;
        }
        Ok(())
    }

    /// Reserves what a stream takes before it is written: its size where that is known by now, else a step more.
    async fn reserve(&self, stream: &mut StreamUpload, end: u64) -> Result<(), Fault> {
        let quota_bytes = self.taken()?.rules.of(&stream.row.tenant_id).quota_bytes;
        let steps = match stream.size {
            Some(size) => [size.max(end); 2],
            None => [end + CHECKPOINT_BYTES, end],
        };
        for bytes in steps {
            let reserved = self.upload_rows().reserve_upload(stream.row.id, bytes, quota_bytes).await;
            if reserved.map_err(|error| unavailable(&error))? {
                stream.reserved = bytes;
                return Ok(());
            }
        }
        // An upload that was ended meanwhile reserves nothing either.
        let row = self.upload(UploadRight::Secret, stream.row.id).await?;
        if row.upload.state != State::Open {
            return Err(refused(Refused::Gone(row.upload.state)));
        }
        self.observer.quota_refused();
        Err(no_room())
    }

    /// Holds on to the right to write while nothing comes.
    ///
    /// # Errors
    /// `IDEMPOTENCY_IN_PROGRESS` when another request has, or wants, the stream, `STORE_UNAVAILABLE`.
    pub async fn hold_stream(&self, stream: &mut StreamUpload, now_ms: u64) -> Result<(), Fault> {
        match self.hold(&mut stream.held, now_ms).await? {
            Renewed::Held => Ok(()),
            Renewed::Wanted | Renewed::Lost => Err(busy("another request goes on with the upload")),
        }
    }

    /// Makes durable what came and writes it down; gives where the stream ends, and its upload's state.
    ///
    /// # Errors
    /// As [`Engine::write_stream`].
    pub async fn finish_stream(&self, mut stream: StreamUpload, now_ms: u64) -> Result<UploadRow, Fault> {
        let kept = self.keep(&mut stream, now_ms).await;
        let mut row = stream.row.clone();
        row.upload.received = stream.kept;
        row.upload.expires_ms = self.taken()?.rules.expiry.expires_ms(row.upload.opened_ms, now_ms);
        self.give_up_stream(stream).await;
        kept.map(|running| UploadRow { running, ..row })
    }

    /// Gives a stream up; what came since the last checkpoint counts for nothing, and takes no room.
    pub async fn give_up_stream(&self, mut stream: StreamUpload) {
        stream.sink.stop().await;
        if !stream.settled {
            // What the store may have kept stays.
            self.drop_unkept(stream.row.id, (!stream.in_doubt).then_some(stream.kept)).await;
        }
        drop(stream.receiving);
        self.let_go(stream.held).await;
    }

    /// Takes back what came and was not kept, from the disk and from the quota: whoever comes next may need the room. Where that
    /// fails, the next bytes of the upload come into its place, or the upload ends.
    ///
    /// Other nodes may have been given the right to write there by now, and cutting takes nobody's word for it: where there
    /// are any, what came stays, in its place and on the quota. On this node the place is given to nobody meanwhile.
    async fn drop_unkept(&self, id: UploadId, kept: Option<u64>) {
        if !self.upload_rows().is_alone() {
            return;
        }
        if let (Some(kept), Ok(uploads)) = (kept, self.taken()) {
            let _ = uploads.blobs.cut(id, kept).await;
        }
        let _ = self.upload_rows().release_upload(id).await;
    }

    /// Waits for no other request to be at a stream; tells whether that is so. Whoever is at it is asked to let go.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn quiet_stream(&self, id: UploadId, (now_ms, holder): (u64, u64)) -> Result<bool, Fault> {
        match self.lease_stream(id, (now_ms, holder)).await? {
            None => Ok(false),
            Some((held, _)) => {
                self.let_go(held).await;
                Ok(true)
            }
        }
    }

    async fn keep(&self, stream: &mut StreamUpload, now_ms: u64) -> Result<Option<RunningHash>, Fault> {
        let written = stream.sink.settle().await.map_err(|error| lost(&error))?;
        let uploads = self.taken()?;
        let receipt = StreamReceipt {
            id: stream.row.id,
            from: stream.kept,
            to: stream.end,
            size: stream.size,
            running: written.running.clone(),
            holder: stream.held.holder,
            at_ms: now_ms,
            expires_ms: uploads.rules.expiry.expires_ms(stream.row.upload.opened_ms, now_ms),
            quota_bytes: uploads.rules.of(&stream.row.tenant_id).quota_bytes,
        };
        let kept = self.upload_rows().keep_stream(receipt).await;
        // Once in doubt it stays so: a receipt after one that got no answer may be overtaken by that one.
        stream.in_doubt |= !matches!(kept, Ok(Kept::Kept { .. } | Kept::NoRoom));
        match kept.map_err(|error| unavailable(&error))? {
            Kept::Kept { received } => {
                self.observer.upload_bytes(stream.end - stream.kept);
                (stream.kept, stream.settled) = (received, true);
                self.tell_progress(&stream.row, received, now_ms);
                Ok(written.running)
            }
            // Nothing more came for a stream that is at its end.
            Kept::NotOpen(Some(_)) if stream.end == stream.kept => Ok(written.running),
            Kept::NotOpen(_) => Err(Fault::new(ErrorCode::UploadGone, "the upload was ended meanwhile")),
            Kept::Overtaken | Kept::Lost => Err(busy("another request goes on with the upload")),
            Kept::NoRoom => {
                self.observer.quota_refused();
                Err(no_room())
            }
        }
    }
}

fn no_room() -> Fault {
    Fault::new(ErrorCode::QuotaExceeded, "the tenant's quota has no room for more")
}

fn too_long() -> Fault {
    Fault::new(ErrorCode::MessageTooLarge, "more bytes come than the file has")
}
