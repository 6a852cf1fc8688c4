//! One chunk on its way: it is held until it is whole and as announced, and then it is put.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use driftline_engine::{BlobAnswer, BlobError, PartPlace, PartSink, PartWritten, Purpose};
use driftline_uploads::{Digest, RunningHash};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use object_store::{PutPayload, PutPayloadMut};
use tokio::time::{Sleep, sleep};

use super::Bucket;
use super::memory::{Room, UNIT_BYTES};

/// How long a chunk may be on its way, beside the time for its bytes.
const COMING: Duration = Duration::from_secs(60);

/// How fast its bytes come at least: so many a second are waited for, over the whole of it.
const SLOWEST_BYTES_PER_SECOND: u64 = 8 << 10;

/// A chunk that comes.
pub(super) struct Chunk {
    place: PartPlace,
    index: usize,
    bucket: Arc<Bucket>,
    /// What came, if it is to be put; nothing once that was begun, or given up.
    held: Option<(PutPayloadMut, Room)>,
    /// Bytes that may still come.
    left: u64,
    hash: RunningHash,
    /// The hash of the file, if the chunk begins where it ends.
    running: Option<RunningHash>,
    /// Ends when it has to be there.
    late: Pin<Box<Sleep>>,
}

impl Chunk {
    /// Begins a chunk; what is put takes some room.
    pub(super) fn new(place: PartPlace, index: usize, bucket: Arc<Bucket>, room: Room) -> Self {
        let blocks = || PutPayloadMut::new().with_block_size(UNIT_BYTES);
        let held = (place.purpose == Purpose::Write).then(|| (blocks(), room));
        let running = place.running.clone().filter(|running| held.is_some() && running.through() == place.at);
        let left = place.end.saturating_sub(place.at);
        let late = Box::pin(sleep(coming(left)));
        Self { place, index, bucket, held, left, hash: RunningHash::default(), running, late }
    }

    async fn take(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let left = self.left.checked_sub(bytes.len() as u64).ok_or(BlobError::Length)?;
        if self.late.as_mut().now_or_never().is_some() {
            return Err(BlobError::Failed("the chunk came too slowly".into()));
        }
        match &mut self.held {
            Some((held, room)) => {
                room.hold((held.content_length() + bytes.len()) as u64).await?;
                held.extend_from_slice(bytes);
            }
            None if self.place.purpose == Purpose::Write => return Err(given_up()),
            None => {}
        }
        self.left = left;
        self.hash.update(bytes);
        if let Some(running) = &mut self.running {
            running.update(bytes);
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
        // The room is held until the bytes are there.
        let (bytes, _room) = self.held.take().ok_or_else(given_up)?;
        let staged = self.place.staged.as_deref();
        self.bucket.put_part(self.place.id, staged, self.index, PutPayload::from(bytes)).await
    }
}

/// Returns how long so many bytes may be on their way.
fn coming(bytes: u64) -> Duration {
    COMING + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND)
}

fn given_up() -> BlobError {
    BlobError::Failed("the chunk was given up".into())
}

impl PartSink for Chunk {
    fn write<'a>(&'a mut self, bytes: &'a [u8]) -> BlobAnswer<'a, ()> {
        self.take(bytes).boxed()
    }

    fn settle(&mut self) -> BlobAnswer<'_, PartWritten> {
        self.settled().boxed()
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        // Nothing is written but while it is settled.
        self.held = None;
        std::future::ready(()).boxed()
    }
}

#[cfg(test)]
mod tests {
    use driftline_uploads::UploadId;

    use super::super::S3Options;
    use super::super::memory::Memory;
    use super::*;

    #[tokio::test]
    async fn a_chunk_that_comes_too_slowly_is_refused() {
        let bucket = Bucket::open(&S3Options::new("files", "eu-central-1", "AKID", "a secret"));
        let place = PartPlace {
            id: UploadId::of([1; 16]),
            staged: None,
            index: Some(0),
            at: 0,
            end: 8 << 20,
            running: None,
            digest: None,
            purpose: Purpose::Write,
        };
        let memory = Arc::new(Memory::new(8 << 20, 8 << 20, Duration::ZERO));
        let bucket = Arc::new(bucket.expect("the options are right"));
        let mut chunk = Chunk::new(place, 0, bucket, Room::new(&memory));
        assert_eq!(chunk.write(b"x").await, Ok(()));
        chunk.late = Box::pin(sleep(Duration::ZERO));
        chunk.late.as_mut().await;
        assert_eq!(chunk.write(b"x").await, Err(BlobError::Failed("the chunk came too slowly".into())));
        assert_eq!(coming(8 << 20), Duration::from_secs(60 + 1024));
    }
}
