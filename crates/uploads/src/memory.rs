//! Bytes in memory, for tests and for services that keep none.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::id::UploadId;
use crate::shell::{Bytes, Durability, Shell, ShellError};

/// A place for bytes in memory, with as much room as it is given. What is removed and cut off makes room again, once
/// nobody has it open.
#[derive(Debug, Clone)]
pub struct MemoryShell {
    /// The lock is held for one call.
    held: Arc<Mutex<Held>>,
    room: Room,
}

/// How many bytes may still come. The lock is held for one sum, and no other one is taken under it.
type Room = Arc<Mutex<u64>>;

#[derive(Debug, Default)]
struct Held {
    staged: BTreeMap<UploadId, Arc<Lying>>,
    files: BTreeMap<UploadId, Arc<Lying>>,
}

/// The bytes of one upload or file.
#[derive(Debug)]
struct Lying {
    /// The lock is held for one call.
    bytes: Mutex<Vec<u8>>,
    room: Room,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for MemoryShell {
    fn default() -> Self {
        Self::with_room(u64::MAX)
    }
}

impl MemoryShell {
    /// Makes a place with room for so many bytes.
    #[must_use]
    pub fn with_room(bytes: u64) -> Self {
        Self { held: Arc::default(), room: Arc::new(Mutex::new(bytes)) }
    }

    /// Says how many bytes there is room for from now on, beside those that are there.
    pub fn set_room(&self, bytes: u64) {
        *lock(&self.room) = bytes;
    }

    /// Returns how many uploads are staged.
    #[must_use]
    pub fn staged(&self) -> usize {
        lock(&self.held).staged.len()
    }
}

fn opened(bytes: Option<&Arc<Lying>>) -> Result<MemoryBytes, ShellError> {
    bytes.cloned().map(MemoryBytes).ok_or(ShellError::Missing)
}

impl Shell for MemoryShell {
    type Bytes = MemoryBytes;

    fn create(&self, id: &UploadId) -> Result<(), ShellError> {
        let mut held = lock(&self.held);
        if held.staged.contains_key(id) || held.files.contains_key(id) {
            return Err(ShellError::Taken);
        }
        let room = Arc::clone(&self.room);
        held.staged.insert(*id, Arc::new(Lying { bytes: Mutex::default(), room }));
        Ok(())
    }

    fn stage(&self, id: &UploadId) -> Result<MemoryBytes, ShellError> {
        opened(lock(&self.held).staged.get(id))
    }

    fn adopt(&self, from: &UploadId, into: &UploadId) -> Result<(), ShellError> {
        let mut held = lock(&self.held);
        if held.staged.contains_key(into) || held.files.contains_key(into) {
            return Err(ShellError::Taken);
        }
        let bytes = held.staged.remove(from).ok_or(ShellError::Missing)?;
        held.staged.insert(*into, bytes);
        Ok(())
    }

    fn publish(&self, id: &UploadId, _: Durability) -> Result<(), ShellError> {
        let mut held = lock(&self.held);
        if held.staged.contains_key(id) && held.files.contains_key(id) {
            return Err(ShellError::Taken);
        }
        match held.staged.remove(id) {
            Some(bytes) => {
                held.files.insert(*id, bytes);
                Ok(())
            }
            None if held.files.contains_key(id) => Ok(()),
            None => Err(ShellError::Missing),
        }
    }

    fn file(&self, id: &UploadId) -> Result<MemoryBytes, ShellError> {
        opened(lock(&self.held).files.get(id))
    }

    fn discard(&self, id: &UploadId) -> Result<bool, ShellError> {
        Ok(lock(&self.held).staged.remove(id).is_some())
    }

    fn remove(&self, id: &UploadId) -> Result<bool, ShellError> {
        Ok(lock(&self.held).files.remove(id).is_some())
    }

    /// Nothing here knows when it was written: everything is old.
    fn staged_before(&self, _: u64) -> Result<Vec<UploadId>, ShellError> {
        Ok(lock(&self.held).staged.keys().copied().collect())
    }

    /// Nothing here knows when it was written: everything is old.
    fn files_before(&self, shard: u8, _: u64) -> Result<Vec<UploadId>, ShellError> {
        let is_there = |id: &&UploadId| id.as_bytes()[0] == shard;
        Ok(lock(&self.held).files.keys().filter(is_there).copied().collect())
    }
}

impl Drop for Lying {
    fn drop(&mut self) {
        let len = self.bytes.get_mut().unwrap_or_else(PoisonError::into_inner).len();
        make_room(&self.room, len);
    }
}

fn make_room(room: &Room, bytes: usize) {
    let mut room = lock(room);
    *room = room.saturating_add(bytes as u64);
}

/// Opened bytes in memory.
#[derive(Debug)]
pub struct MemoryBytes(Arc<Lying>);

impl Bytes for MemoryBytes {
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<(), ShellError> {
        // Writing nothing makes nothing longer, as on a disk.
        if bytes.is_empty() {
            return Ok(());
        }
        let mut held = lock(&self.0.bytes);
        let at = usize::try_from(at).map_err(|_| ShellError::Full)?;
        let end = at.checked_add(bytes.len()).ok_or(ShellError::Full)?;
        if let Some(more) = end.checked_sub(held.len()) {
            held.try_reserve(more).map_err(|_| ShellError::Full)?;
            let mut room = lock(&self.0.room);
            *room = room.checked_sub(more as u64).ok_or(ShellError::Full)?;
            drop(room);
            held.resize(end, 0);
        }
        held[at..end].copy_from_slice(bytes);
        Ok(())
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<usize, ShellError> {
        let held = lock(&self.0.bytes);
        let rest = usize::try_from(at).ok().and_then(|at| held.get(at..)).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn set_len(&mut self, len: u64) -> Result<(), ShellError> {
        let mut held = lock(&self.0.bytes);
        let cut = usize::try_from(len).map_or(0, |len| held.len().saturating_sub(len));
        let left = held.len() - cut;
        held.truncate(left);
        make_room(&self.0.room, cut);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), ShellError> {
        Ok(())
    }
}
