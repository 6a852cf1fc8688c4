//! One chunk on its way: it is held until it is whole and as announced, and then it is put.

use std::sync::Arc;

use driftline_engine::{BlobAnswer, BlobError, PartPlace, PartSink, PartWritten, Purpose};
use driftline_uploads::{Digest, RunningHash};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use object_store::PutPayload;
use tokio::sync::OwnedSemaphorePermit;

use super::Bucket;

/// A chunk that comes.
pub(super) struct Chunk {
    place: PartPlace,
    index: usize,
    bucket: Arc<Bucket>,
    /// What came, if it is to be put; nothing once that was begun, or given up.
    bytes: Option<Vec<u8>>,
    /// Bytes that may still come.
    left: u64,
    hash: RunningHash,
    /// The hash of the file, if the chunk begins where it ends.
    running: Option<RunningHash>,
    /// The memory that the bytes may take.
    room: Option<OwnedSemaphorePermit>,
}

impl Chunk {
    /// Begins a chunk; what is put takes some room.
    pub(super) fn new(
        place: PartPlace,
        index: usize,
        bucket: Arc<Bucket>,
        room: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let bytes = (place.purpose == Purpose::Write).then(Vec::new);
        let running =
            place.running.clone().filter(|running| bytes.is_some() && running.through() == place.at);
        let left = place.end.saturating_sub(place.at);
        Self { place, index, bucket, bytes, left, hash: RunningHash::default(), running, room }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(BlobError::Length)?;
        self.hash.update(bytes);
        if let Some(running) = &mut self.running {
            running.update(bytes);
        }
        match &mut self.bytes {
            Some(held) => held.extend_from_slice(bytes),
            None if self.place.purpose == Purpose::Write => return Err(given_up()),
            None => {}
        }
        Ok(())
    }

    async fn settled(&mut self) -> Result<PartWritten, BlobError> {
        if self.left > 0 {
            return Err(BlobError::Length);
        }
        let is_announced = |wanted: Digest| wanted == self.hash.digest();
        if !self.place.digest.is_none_or(is_announced) {
            return Err(BlobError::Mismatch);
        }
        let tag = match self.place.purpose {
            Purpose::Write => Some(self.put().await?),
            Purpose::Compare => None,
        };
        Ok(PartWritten { end: self.place.end, running: self.running.clone(), tag })
    }

    async fn put(&mut self) -> Result<Box<str>, BlobError> {
        let bytes = self.bytes.take().ok_or_else(given_up)?;
        let staged = self.place.staged.as_deref();
        let put = self.bucket.put_part(self.place.id, staged, self.index, PutPayload::from(bytes)).await;
        self.room = None;
        put
    }
}

fn given_up() -> BlobError {
    BlobError::Failed("the chunk was given up".into())
}

impl PartSink for Chunk {
    fn write<'a>(&'a mut self, bytes: &'a [u8]) -> BlobAnswer<'a, ()> {
        std::future::ready(self.take(bytes)).boxed()
    }

    fn settle(&mut self) -> BlobAnswer<'_, PartWritten> {
        self.settled().boxed()
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        // Nothing is written but while it is settled.
        (self.bytes, self.room) = (None, None);
        std::future::ready(()).boxed()
    }
}
