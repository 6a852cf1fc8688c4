//! The memory that chunks take while they come.

use std::sync::Arc;
use std::time::Duration;

use driftline_engine::BlobError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bytes that are taken at once: whoever has sent fewer has taken so many.
pub(super) const UNIT_BYTES: usize = 64 << 10;

const UNIT: u64 = UNIT_BYTES as u64;

/// Memory for all chunks together. A chunk takes it as its bytes come, so that whoever sends slowly keeps no more of it
/// than was sent.
///
/// Half chunks could wait for each other's memory for ever. So the last of it, a chunk's worth, is for one chunk at a
/// time, which then needs to wait for nobody; and who finds none in time is refused. A chunk that is longer than others,
/// as those of a very large file are, takes what it has more beyond the bound: at most one at a time does.
#[derive(Debug)]
pub(super) struct Memory {
    shared: Arc<Semaphore>,
    last: Arc<Semaphore>,
    wait: Duration,
}

impl Memory {
    /// Shares so many bytes among chunks of such a length; memory is waited for no longer than told.
    pub(super) fn new(bytes: u64, chunk_bytes: u64, wait: Duration) -> Self {
        let units = bytes.saturating_sub(chunk_bytes) / UNIT;
        let units = usize::try_from(units).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { shared: Arc::new(Semaphore::new(units)), last: Arc::new(Semaphore::new(1)), wait }
    }
}

/// What one chunk has taken.
#[derive(Debug)]
pub(super) struct Room {
    memory: Arc<Memory>,
    /// Units of what is shared.
    taken: Option<OwnedSemaphorePermit>,
    /// The right to the last of it.
    last: Option<OwnedSemaphorePermit>,
}

impl Room {
    pub(super) fn new(memory: &Arc<Memory>) -> Self {
        Self { memory: Arc::clone(memory), taken: None, last: None }
    }

    /// Takes what is missing to hold so many bytes.
    ///
    /// Dropping the future takes nothing.
    pub(super) async fn hold(&mut self, bytes: u64) -> Result<(), BlobError> {
        let taken = self.taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let missing = units.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
        if missing == 0 || self.last.is_some() {
            return Ok(());
        }
        let shared = Arc::clone(&self.memory.shared).acquire_many_owned(missing);
        let last = Arc::clone(&self.memory.last).acquire_owned();
        let found = async {
            tokio::select! {
                biased;
                more = shared => match (&mut self.taken, more.ok()?) {
                    (Some(taken), more) => taken.merge(more),
                    (none, more) => *none = Some(more),
                },
                last = last => self.last = Some(last.ok()?),
            }
            Some(())
        };
        let found = tokio::time::timeout(self.memory.wait, found).await;
        found.ok().flatten().ok_or_else(|| BlobError::Failed("too many chunks come at once".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 4 * UNIT;

    /// Room for two chunks.
    fn memory() -> Arc<Memory> {
        Arc::new(Memory::new(2 * CHUNK, CHUNK, Duration::from_millis(20)))
    }

    fn full() -> Result<(), BlobError> {
        Err(BlobError::Failed("too many chunks come at once".into()))
    }

    #[tokio::test]
    async fn who_sends_slowly_holds_what_was_sent() {
        let memory = memory();
        let mut slow: Vec<_> = (0..4).map(|_| Room::new(&memory)).collect();
        for room in &mut slow {
            assert_eq!(room.hold(1).await, Ok(()));
            assert_eq!(room.hold(UNIT).await, Ok(()), "it has that already");
        }
        let mut quick = Room::new(&memory);
        for bytes in [1, UNIT + 1, CHUNK] {
            assert_eq!(quick.hold(bytes).await, Ok(()), "the last of it is left");
        }
        assert_eq!(slow[0].hold(CHUNK).await, full());
        drop(quick);
        assert_eq!(slow[0].hold(CHUNK).await, Ok(()));
        assert_eq!(slow[1].hold(CHUNK).await, full());
    }

    #[tokio::test]
    async fn half_chunks_that_wait_for_each_other_come_to_an_end() {
        let memory = Arc::new(Memory::new(3 * CHUNK, CHUNK, Duration::from_secs(60)));
        let coming = (0..20).map(|_| {
            let memory = Arc::clone(&memory);
            tokio::spawn(async move {
                let mut room = Room::new(&memory);
                for units in 1..=4 {
                    room.hold(units * UNIT).await?;
                    tokio::task::yield_now().await;
                }
                Ok::<(), BlobError>(())
            })
        });
        for chunk in coming.collect::<Vec<_>>() {
            assert_eq!(chunk.await.expect("it ends"), Ok(()));
        }
        assert_eq!((memory.shared.available_permits(), memory.last.available_permits()), (8, 1));
    }

    #[tokio::test]
    async fn a_long_chunk_comes_alone() {
        let memory = memory();
        let (mut long, mut other) = (Room::new(&memory), Room::new(&memory));
        assert_eq!(long.hold(100 * CHUNK).await, Ok(()));
        assert_eq!(other.hold(100 * CHUNK).await, full());
        assert_eq!(other.hold(CHUNK).await, Ok(()), "what is shared is still there");
    }
}
