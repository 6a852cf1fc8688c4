//! The port to the rows of uploads, and what is asked of it.

use driftline_idempotency::Fingerprint;
use driftline_model::{KindName, RecordId, TenantId, TenantNo};
use driftline_uploads::{Digest, RunningHash, State, Upload, UploadId};

use crate::log::Answer;

/// A stored upload. Once it is done, it is the file that became of it.
#[derive(Debug, Clone)]
pub struct UploadRow {
    /// Its name, and the file's.
    pub id: UploadId,
    /// The tenant.
    pub tenant: TenantNo,
    /// The tenant's name. It is not written: the number leads to it.
    pub tenant_id: TenantId,
    /// The user who opened it.
    pub owner: Box<str>,
    /// What decides on it.
    pub upload: Upload,
    /// The bytes that it takes of its tenant's quota: the file's size where that is known, else what was reserved for it, and
    /// at least what came.
    pub reserved: u64,
    /// What the file is called.
    pub file_name: Box<str>,
    /// What the file is said to be.
    pub content_type: Box<str>,
    /// What else the client told, as it told it.
    pub metadata: Option<Box<str>>,
    /// The digest that the client announced.
    pub announced: Option<Digest>,
    /// The digest of the whole file, once it was checked.
    pub digest: Option<Digest>,
    /// The hash of the file as far as it came in order; none: from the beginning.
    pub running: Option<RunningHash>,
    /// What the place of the bytes calls the upload, if it has a name for it.
    pub staged: Option<Box<str>>,
    /// The record that it belongs to.
    pub record: Option<(KindName, RecordId)>,
    /// What it is in a concatenation.
    pub joining: Joining,
    /// Why it could not be finalized the last time.
    pub fault: Option<Box<str>>,
    /// When its state or its bytes changed last, in Unix milliseconds.
    pub changed_ms: u64,
}

/// What stands as the fault of a part that went with the file that was made of it.
const JOINED: &str = "it went with the file that was made of it";

impl UploadRow {
    /// Tells whether it is a part that went with the file that was made of it, and was not given up otherwise.
    #[must_use]
    pub fn was_joined(&self) -> bool {
        self.joining == Joining::Part
            && self.upload.state == State::Cancelled
            && self.fault.as_deref() == Some(JOINED)
    }
}

/// What an upload is in a concatenation, as tus 1.0 has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Joining {
    /// Nothing: it is a file of its own.
    #[default]
    Alone,
    /// A part of a file.
    Part,
    /// Made of parts.
    Whole,
}

/// What a user and a tenant may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadCaps {
    /// Uploads of one user that are open or being finalized.
    pub open_max: u64,
    /// Bytes that uploads and files of the tenant may take.
    pub quota_bytes: u64,
}

/// The key of a request that opens an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadOnce {
    /// The user or the device that made the key.
    pub owner: Box<str>,
    /// The key.
    pub key: Box<str>,
    /// Tells the request from another one.
    pub fingerprint: Fingerprint,
    /// Milliseconds for which it is remembered which upload was opened.
    pub window_ms: u64,
}

/// What came of opening an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadOpened {
    /// It is open.
    Opened,
    /// The same request opened this one before.
    Before(UploadId),
    /// The key was used for another request.
    Reused,
    /// The user has as many open uploads as may be.
    TooMany,
    /// The tenant's quota has no room for it; so many bytes are left.
    NoRoom {
        /// How many.
        left_bytes: u64,
    },
}

/// A chunk whose bytes are safe.
#[derive(Debug, Clone)]
pub struct ChunkReceipt {
    /// The upload.
    pub id: UploadId,
    /// The chunk.
    pub index: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Its digest.
    pub digest: Digest,
    /// What the place of the bytes calls it, if it has a name for it.
    pub tag: Option<Box<str>>,
    /// The hash of the file up to the chunk's end, if it came in order.
    pub running: Option<RunningHash>,
    /// Who wrote it, under the right to write this chunk.
    pub holder: u64,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// When the upload goes from now on, in Unix milliseconds.
    pub expires_ms: u64,
}

/// A chunk that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkThere {
    /// The chunk.
    pub index: u64,
    /// Its digest.
    pub digest: Digest,
    /// What the place of the bytes calls it, if it has a name for it.
    pub tag: Option<Box<str>>,
}

/// More of a stream whose bytes are safe.
#[derive(Debug, Clone)]
pub struct StreamReceipt {
    /// The upload.
    pub id: UploadId,
    /// Where it ended before.
    pub from: u64,
    /// Where it ends now.
    pub to: u64,
    /// The file's size, where that is settled by now.
    pub size: Option<u64>,
    /// The hash of the file up to its end, if it is known.
    pub running: Option<RunningHash>,
    /// Who wrote it, under the right to write at the end of the stream.
    pub holder: u64,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// When the upload goes from now on, in Unix milliseconds.
    pub expires_ms: u64,
    /// Bytes that uploads and files of the tenant may take.
    pub quota_bytes: u64,
}

/// What came of writing a receipt down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is written down. So many bytes of the upload are there now.
    Kept {
        /// How many.
        received: u64,
    },
    /// Nothing was written: the upload is not open any more, or there is none.
    NotOpen(Option<State>),
    /// Nothing was written: the chunk was received before, or the stream goes on elsewhere.
    Overtaken,
    /// Nothing was written: the right to write there is not, or not any more, the one's who wrote it.
    Lost,
    /// Nothing was written: the tenant's quota has no room.
    NoRoom,
}

/// How an upload comes into another state.
#[derive(Debug, Clone)]
pub struct UploadTurn {
    /// The upload.
    pub id: UploadId,
    /// The state that it has to be in.
    pub from: State,
    /// The state that it comes into.
    pub to: State,
    /// Whether every byte has to be there.
    pub whole: bool,
    /// Whether the upload's time has to be over at the time of the turn.
    pub overdue: bool,
    /// The digest of the file, where it was checked.
    pub digest: Option<Digest>,
    /// Why it could not be finalized.
    pub fault: Option<Box<str>>,
    /// Who has to have the right to finalize; none: nobody has to.
    pub holder: Option<u64>,
    /// Chunks that turned out not to be what was received, with their bytes: they count as missing from now on, and of the
    /// file's hash nothing is known.
    pub missing: Vec<(u64, u64)>,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
}

impl UploadTurn {
    /// Says that the upload goes with the file that was made of it.
    #[must_use]
    pub(crate) fn joined(self) -> Self {
        Self { fault: Some(JOINED.into()), ..self }
    }
}

/// A name for the right to write at one place of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseKey {
    /// The upload.
    pub id: UploadId,
    /// A chunk, or the end of a stream, or finalizing.
    pub slot: LeaseSlot,
}

/// What a lease is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LeaseSlot {
    /// One chunk.
    Chunk(u64),
    /// The end of a stream.
    Stream,
    /// Finalizing.
    Finalize,
}

/// What came of asking for a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leased {
    /// It is the caller's.
    Held,
    /// It is the caller's, and was somebody else's who did not give it back before it ended: bytes of theirs may still come.
    TakenOver,
    /// Somebody else has it until then, in Unix milliseconds, and knows from now on if it was asked to let go.
    Busy {
        /// Until when.
        until_ms: u64,
    },
}

/// What came of holding on to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// It is still the caller's.
    Held,
    /// It is still the caller's, and somebody else waits for it.
    Wanted,
    /// It is not the caller's any more: nothing may be written.
    Lost,
}

/// What uploads and files take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UploadUsage {
    /// Uploads that are open or being finalized.
    pub open: u64,
    /// Bytes that are reserved by them or taken by files.
    pub bytes: u64,
}

/// The port to the rows of uploads.
///
/// Dropping a returned future gives up the answer, never half of the work. Numbers above 2^53 - 1 do not come.
pub trait UploadRows: Send + Sync {
    /// Opens an upload within what its user and its tenant may have, reserves its bytes of the quota and, with `once`,
    /// remembers which upload the key opened, all in one transaction.
    fn open_upload(
        &self,
        row: UploadRow,
        caps: UploadCaps,
        once: Option<UploadOnce>,
    ) -> Answer<'_, UploadOpened>;

    /// Reads an upload, of whichever tenant.
    fn upload(&self, id: UploadId) -> Answer<'_, Option<UploadRow>>;

    /// Reads the digest of a chunk that was received.
    fn chunk(&self, id: UploadId, index: u64) -> Answer<'_, Option<Digest>>;

    /// Lists the chunks that were received, in the order of their places. Of an upload that is not under way any more there
    /// are none.
    fn chunks(&self, id: UploadId) -> Answer<'_, Vec<ChunkThere>>;

    /// Writes down that a chunk was received, if the upload is open, the chunk is not there, and whoever wrote it has the
    /// right to it: a right that ended and that nobody took is still theirs. The stored hash is replaced only by one that
    /// goes farther.
    fn keep_chunk(&self, receipt: ChunkReceipt) -> Answer<'_, Kept>;

    /// Writes down how far a stream came, if the upload is open and ended where the receipt says it did, and whoever wrote
    /// it has the right to it, as with a chunk. What comes beyond the reserved bytes is reserved.
    fn keep_stream(&self, receipt: StreamReceipt) -> Answer<'_, Kept>;

    /// Reserves bytes for an open upload whose size is not known yet, so many in all, if its tenant's quota has room; tells
    /// whether it has them. What is reserved already stays.
    fn reserve_upload(&self, id: UploadId, bytes: u64, quota_bytes: u64) -> Answer<'_, bool>;

    /// Gives back what an open upload, whose size is not known yet, has reserved beyond the bytes that are there.
    fn release_upload(&self, id: UploadId) -> Answer<'_, ()>;

    /// Brings an upload into another state; tells whether it was in the one that it had to be in. An upload that is done,
    /// given up or expires forgets its chunks; one that is given up or expires gives back what it had reserved.
    fn turn_upload(&self, turn: UploadTurn) -> Answer<'_, bool>;

    /// Tells whether only those on this node are ever given a right.
    fn is_alone(&self) -> bool;

    /// Takes the right to write at a place until a time, unless somebody else has it. `holder` tells callers apart.
    /// `evict` asks whoever has it to let go.
    fn lease(
        &self,
        key: LeaseKey,
        holder: u64,
        now_ms: u64,
        until_ms: u64,
        evict: bool,
    ) -> Answer<'_, Leased>;

    /// Holds on to a right until a later time.
    fn renew(&self, key: LeaseKey, holder: u64, now_ms: u64, until_ms: u64) -> Answer<'_, Renewed>;

    /// Gives a right back; it does nothing when somebody else has it. Where bytes of somebody who had it before may still
    /// come, they may afterwards: whoever takes it next has taken it over, too.
    fn release(&self, key: LeaseKey, holder: u64) -> Answer<'_, ()>;

    /// Lists open uploads whose time was over before a time in Unix milliseconds, those that wait longest first.
    fn overdue_uploads(&self, now_ms: u64, rows: usize) -> Answer<'_, Vec<UploadRow>>;

    /// Lists uploads that are to be finalized and were changed last before a time in Unix milliseconds: those that began to
    /// be, and open streams of which all bytes are there, unless they are parts.
    fn unfinished_uploads(&self, before_ms: u64, rows: usize) -> Answer<'_, Vec<UploadRow>>;

    /// Tells in which states these uploads are; those that there are not are left out.
    fn upload_states(&self, ids: Vec<UploadId>) -> Answer<'_, Vec<(UploadId, State)>>;

    /// Lists uploads that were done and of which nobody was told, oldest first.
    fn untold_uploads(&self, rows: usize) -> Answer<'_, Vec<UploadRow>>;

    /// Takes down that somebody was told that an upload is done.
    fn upload_told(&self, id: UploadId) -> Answer<'_, ()>;

    /// Lists uploads that were given up or expired and of which it was not taken down that what the place of their bytes has
    /// staged was discarded, the last ones first. An upload that the place has no name for is none of them.
    fn undiscarded_uploads(&self, rows: usize) -> Answer<'_, Vec<UploadRow>>;

    /// Takes down that what was staged of an upload that was given up or expired was discarded: the place has no name for it
    /// any more.
    fn upload_discarded(&self, id: UploadId) -> Answer<'_, ()>;

    /// Removes a file's row and gives its bytes back to the quota; tells whether there was one.
    fn remove_file_row(&self, id: UploadId) -> Answer<'_, bool>;

    /// Forgets uploads that were given up or expired before a time in Unix milliseconds, and rights that ended before it;
    /// gives the number of the uploads. Those of which something is still to be discarded are forgotten only when they ended
    /// before another time.
    fn forget_uploads(&self, before_ms: u64, undiscarded_before_ms: u64) -> Answer<'_, u64>;

    /// Adds up what the uploads and files of all tenants take.
    fn upload_usage(&self) -> Answer<'_, UploadUsage>;
}
