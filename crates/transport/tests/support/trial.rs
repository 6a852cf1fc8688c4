//! Bytes in memory whose calls a test can count, fail and hold up.

use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use driftline_uploads::{Bytes, Durability, MemoryShell, Shell, ShellError, UploadId};

/// A place for bytes in memory. Every clone is the same place.
#[derive(Clone, Default)]
pub struct TrialShell {
    held: MemoryShell,
    trial: Arc<Trial>,
}

#[derive(Default)]
struct Trial {
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Default)]
struct Now {
    /// Calls that change something, so far.
    calls: u64,
    /// How many of them still succeed; none: all.
    left: Option<u64>,
    /// Calls that read bytes, so far.
    reads: u64,
    /// Writing these bytes waits.
    slow: Option<Vec<u8>>,
    /// Whether only the first one waits.
    first: bool,
    waiting: usize,
}

impl Trial {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call, unless nothing works any more.
    fn call(&self) -> Result<(), ShellError> {
        let mut now = self.now();
        match &mut now.left {
            Some(0) => return Err(ShellError::Failed("the disk is gone".into())),
            Some(left) => *left -= 1,
            None => {}
        }
        now.calls += 1;
        Ok(())
    }

    fn wait(&self, bytes: &[u8]) {
        let mut now = self.now();
        if now.slow.as_deref() != Some(bytes) || (now.first && now.waiting > 0) {
            return;
        }
        now.waiting += 1;
        while now.slow.is_some() {
            now = self.changed.wait(now).unwrap_or_else(PoisonError::into_inner);
        }
        now.waiting -= 1;
    }
}

impl TrialShell {
    /// Lets so many calls that change something succeed, and then none until it is mended.
    pub fn fail_after(&self, calls: u64) {
        self.trial.now().left = Some(calls);
    }

    /// Lets all calls succeed again; tells whether any failed.
    pub fn mend(&self) -> bool {
        self.trial.now().left.take() == Some(0)
    }

    /// Returns how many calls have changed something.
    pub fn calls(&self) -> u64 {
        self.trial.now().calls
    }

    /// Returns how many calls have read bytes.
    pub fn reads(&self) -> u64 {
        self.trial.now().reads
    }

    /// Holds whoever writes exactly these bytes at once.
    pub fn hold(&self, bytes: &[u8]) {
        let mut now = self.trial.now();
        (now.slow, now.first) = (Some(bytes.to_vec()), false);
    }

    /// Holds the first one who writes exactly these bytes at once, and nobody else.
    pub fn hold_first(&self, bytes: &[u8]) {
        self.hold(bytes);
        self.trial.now().first = true;
    }

    /// Returns how many are held.
    pub fn waiting(&self) -> usize {
        self.trial.now().waiting
    }

    /// Lets go of whoever is held.
    pub fn release(&self) {
        self.trial.now().slow = None;
        self.trial.changed.notify_all();
    }

    /// Damages staged bytes.
    pub fn damage(&self, id: &str, at: u64) {
        let mut bytes = self.held.stage(&id.parse().expect("an upload")).expect("it is staged");
        bytes.write_at(at, b"!").expect("there is room");
    }
}

impl Deref for TrialShell {
    type Target = MemoryShell;

    fn deref(&self) -> &MemoryShell {
        &self.held
    }
}

impl Shell for TrialShell {
    type Bytes = TrialBytes;

    fn create(&self, id: &UploadId) -> Result<(), ShellError> {
        self.trial.call()?;
        self.held.create(id)
    }

    fn stage(&self, id: &UploadId) -> Result<TrialBytes, ShellError> {
        Ok(TrialBytes { held: Box::new(self.held.stage(id)?), trial: Arc::clone(&self.trial) })
    }

    fn adopt(&self, from: &UploadId, into: &UploadId) -> Result<(), ShellError> {
        self.trial.call()?;
        self.held.adopt(from, into)
    }

    fn publish(&self, id: &UploadId, durability: Durability) -> Result<(), ShellError> {
        self.trial.call()?;
        self.held.publish(id, durability)
    }

    fn file(&self, id: &UploadId) -> Result<TrialBytes, ShellError> {
        Ok(TrialBytes { held: Box::new(self.held.file(id)?), trial: Arc::clone(&self.trial) })
    }

    fn discard(&self, id: &UploadId) -> Result<bool, ShellError> {
        self.trial.call()?;
        self.held.discard(id)
    }

    fn remove(&self, id: &UploadId) -> Result<bool, ShellError> {
        self.trial.call()?;
        self.held.remove(id)
    }

    fn staged_before(&self, before_ms: u64) -> Result<Vec<UploadId>, ShellError> {
        self.held.staged_before(before_ms)
    }

    fn files_before(&self, shard: u8, before_ms: u64) -> Result<Vec<UploadId>, ShellError> {
        self.held.files_before(shard, before_ms)
    }
}

/// Opened bytes.
pub struct TrialBytes {
    held: Box<<MemoryShell as Shell>::Bytes>,
    trial: Arc<Trial>,
}

impl Bytes for TrialBytes {
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<(), ShellError> {
        self.trial.wait(bytes);
        self.trial.call()?;
        self.held.write_at(at, bytes)
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<usize, ShellError> {
        self.trial.now().reads += 1;
        self.held.read_at(at, buffer)
    }

    fn sync(&mut self) -> Result<(), ShellError> {
        self.trial.call()?;
        self.held.sync()
    }

    fn set_len(&mut self, len: u64) -> Result<(), ShellError> {
        self.trial.call()?;
        self.held.set_len(len)
    }
}
