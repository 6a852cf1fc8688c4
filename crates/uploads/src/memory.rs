//! Bytes in memory, for tests and for services that keep none.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::id::UploadId;
use crate::shell::{Bytes, Durability, Shell, ShellError};

/// A place for bytes in memory, with as much room as it is given.
#[derive(Debug, Clone)]
pub struct MemoryShell {
    /// The lock is held for one call.
    held: Arc<Mutex<Held>>,
}

#[derive(Debug)]
struct Held {
    room: u64,
    staged: BTreeMap<UploadId, Arc<Mutex<Vec<u8>>>>,
    files: BTreeMap<UploadId, Arc<Mutex<Vec<u8>>>>,
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
        let held = Held { room: bytes, staged: BTreeMap::new(), files: BTreeMap::new() };
        Self { held: Arc::new(Mutex::new(held)) }
    }

    /// Says how many bytes there is room for from now on, beside those that are there.
    pub fn set_room(&self, bytes: u64) {
        self.with(|held| held.room = bytes);
    }

    /// Returns how many uploads are staged.
    #[must_use]
    pub fn staged(&self) -> usize {
        self.with(|held| held.staged.len())
    }

    fn with<T>(&self, act: impl FnOnce(&mut Held) -> T) -> T {
        act(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn opened(&self, bytes: Option<&Arc<Mutex<Vec<u8>>>>) -> Result<MemoryBytes, ShellError> {
        let bytes = bytes.cloned().ok_or(ShellError::Missing)?;
        Ok(MemoryBytes { bytes, of: self.clone() })
    }
}

impl Shell for MemoryShell {
    type Bytes = MemoryBytes;

    fn create(&self, id: &UploadId) -> Result<(), ShellError> {
        self.with(|held| match held.staged.contains_key(id) || held.files.contains_key(id) {
            true => Err(ShellError::Taken),
            false => {
                held.staged.insert(*id, Arc::default());
                Ok(())
            }
        })
    }

    fn stage(&self, id: &UploadId) -> Result<MemoryBytes, ShellError> {
        let staged = self.with(|held| held.staged.get(id).cloned());
        self.opened(staged.as_ref())
    }

    fn publish(&self, id: &UploadId, _: Durability) -> Result<(), ShellError> {
        self.with(|held| match held.staged.remove(id) {
            Some(bytes) => {
                held.files.insert(*id, bytes);
                Ok(())
            }
            None if held.files.contains_key(id) => Ok(()),
            None => Err(ShellError::Missing),
        })
    }

    fn file(&self, id: &UploadId) -> Result<MemoryBytes, ShellError> {
        let file = self.with(|held| held.files.get(id).cloned());
        self.opened(file.as_ref())
    }

    fn discard(&self, id: &UploadId) -> Result<bool, ShellError> {
        Ok(self.with(|held| held.staged.remove(id).is_some()))
    }

    fn remove(&self, id: &UploadId) -> Result<bool, ShellError> {
        Ok(self.with(|held| held.files.remove(id).is_some()))
    }

    /// Nothing here knows when it was written: everything is old.
    fn staged_before(&self, _: u64) -> Result<Vec<UploadId>, ShellError> {
        Ok(self.with(|held| held.staged.keys().copied().collect()))
    }
}

/// Opened bytes in memory.
#[derive(Debug)]
pub struct MemoryBytes {
    bytes: Arc<Mutex<Vec<u8>>>,
    of: MemoryShell,
}

impl Bytes for MemoryBytes {
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<(), ShellError> {
        let mut held = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let at = usize::try_from(at).map_err(|_| ShellError::Full)?;
        let end = at.checked_add(bytes.len()).ok_or(ShellError::Full)?;
        let more = end.saturating_sub(held.len()) as u64;
        let room = self.of.with(|of| of.room.checked_sub(more).map(|left| of.room = left));
        room.ok_or(ShellError::Full)?;
        if held.len() < end {
            held.resize(end, 0);
        }
        held[at..end].copy_from_slice(bytes);
        Ok(())
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<usize, ShellError> {
        let held = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = usize::try_from(at).ok().and_then(|at| held.get(at..)).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn sync(&mut self) -> Result<(), ShellError> {
        Ok(())
    }
}
