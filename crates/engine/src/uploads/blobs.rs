//! The port to where the bytes of uploads lie.

use driftline_uploads::{Digest, RunningHash, UploadId};
use futures_util::future::BoxFuture;
use thiserror::Error;

use super::rows::UploadRow;

/// Why bytes were not written or read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BlobError {
    /// There is no room left.
    #[error("no space is left where the bytes lie")]
    Full,
    /// There is no such upload or file.
    #[error("there are no such bytes")]
    Missing,
    /// More or fewer bytes came than the part has.
    #[error("the part has another length")]
    Length,
    /// The bytes have another digest than the announced one.
    #[error("the bytes have another digest")]
    Mismatch,
    /// Something lies there already.
    #[error("other bytes lie there")]
    Taken,
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// The answer of a place for bytes.
pub type BlobAnswer<'a, T> = BoxFuture<'a, Result<T, BlobError>>;

/// A part of an upload that is to be written.
#[derive(Debug, Clone)]
pub struct PartPlace {
    /// The upload.
    pub id: UploadId,
    /// What the place of the bytes calls the upload.
    pub staged: Option<Box<str>>,
    /// The chunk; none: the end of a stream.
    pub index: Option<u64>,
    /// Where the part begins in the file.
    pub at: u64,
    /// Where it ends; that of a stream at the latest.
    pub end: u64,
    /// The hash of the file up to the part's beginning, if it is known.
    pub running: Option<RunningHash>,
    /// The digest that a chunk has to have.
    pub digest: Option<Digest>,
    /// What becomes of the bytes.
    pub purpose: Purpose,
}

/// What becomes of the bytes of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// They are written.
    Write,
    /// They are there already: they are compared by their digest and dropped.
    Compare,
}

/// What was written of a part.
#[derive(Debug, Clone)]
pub struct PartWritten {
    /// Where it ends in the file.
    pub end: u64,
    /// The hash of the file up to there, if it is known.
    pub running: Option<RunningHash>,
    /// What the place of the bytes calls the chunk.
    pub tag: Option<Box<str>>,
}

/// Writes one part.
///
/// A call that was dropped before it ended leaves the part of no use; what was settled before is safe.
pub trait PartSink: Send {
    /// Takes the next bytes. It may return before they are written, and then tells of a fault later.
    fn write<'a>(&'a mut self, bytes: &'a [u8]) -> BlobAnswer<'a, ()>;

    /// Makes everything that was taken as durable as promised; a chunk has to be whole and as announced. Of a stream
    /// more may be written then.
    fn settle(&mut self) -> BlobAnswer<'_, PartWritten>;

    /// Waits until nothing is being written any more, for good or ill. Before that nobody else may write there.
    fn stop(&mut self) -> BoxFuture<'_, ()>;
}

/// A place for the bytes of uploads and files.
pub trait Blobs: Send + Sync + 'static {
    /// Returns how long chunks are, unless a file needs longer ones.
    fn chunk_bytes(&self) -> u64;

    /// Tells whether streams can be written, and not only chunks.
    fn takes_streams(&self) -> bool;

    /// Makes the staging place of a new upload; gives the name that it has for it.
    fn create(&self, id: UploadId) -> BlobAnswer<'_, Option<Box<str>>>;

    /// Begins to write a part.
    fn begin(&self, place: PartPlace) -> BlobAnswer<'_, Box<dyn PartSink>>;

    /// Cuts off what is staged of a stream behind a length: it came and does not count. It takes no room then. A place that
    /// takes no streams has none of it.
    fn cut(&self, id: UploadId, len: u64) -> BlobAnswer<'_, ()>;

    /// Makes one upload of the bytes of others, of so many of each and in their order. They are put together in the staging
    /// place of an attempt, of which there was none before, so that an attempt which comes late hits nothing, and become the
    /// upload's all at once, unless it has them already. Doing it again comes to the same.
    fn join(&self, into: UploadId, attempt: UploadId, parts: Vec<(UploadId, u64)>) -> BlobAnswer<'_, ()>;

    /// Puts the whole together and hashes what was not hashed yet; it is no file before it is published. What lies behind
    /// its end is cut off. `tags` are the names of the chunks in their order.
    fn assemble(&self, row: &UploadRow, tags: Vec<Box<str>>) -> BlobAnswer<'_, Digest>;

    /// Tells which of these chunks do not have their digest where they lie. A place that watches over them itself has none.
    fn damaged(&self, row: &UploadRow, chunks: Vec<(u64, Digest)>) -> BlobAnswer<'_, Vec<u64>>;

    /// Makes a file of what was assembled, durably. Doing it again does nothing.
    fn publish(&self, id: UploadId) -> BlobAnswer<'_, ()>;

    /// Tells how many bytes one read had best ask for.
    fn read_bytes(&self) -> usize {
        64 << 10
    }

    /// Reads bytes of what was assembled or published, at most so many from a place on; fewer only at the end.
    fn read(&self, id: UploadId, at: u64, bytes: usize) -> BlobAnswer<'_, Vec<u8>>;

    /// Removes what is staged.
    fn discard(&self, id: UploadId, staged: Option<Box<str>>) -> BlobAnswer<'_, ()>;

    /// Removes a file.
    fn remove(&self, id: UploadId) -> BlobAnswer<'_, ()>;

    /// Lists what is staged and was last written before a time in Unix milliseconds, with the names that the place has
    /// for it.
    fn staged_before(&self, before_ms: u64) -> BlobAnswer<'_, Vec<(UploadId, Option<Box<str>>)>>;

    /// Lists the files that were last written before a time in Unix milliseconds and whose names begin with a byte.
    fn files_before(&self, shard: u8, before_ms: u64) -> BlobAnswer<'_, Vec<UploadId>>;
}
