//! Where the bytes lie: the port, and the writer of one part.

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::hash::{Digest, RunningHash};
use crate::id::UploadId;
use crate::plan::Plan;

/// Why bytes were not written or read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ShellError {
    /// There is no room left.
    #[error("no space is left where the bytes lie")]
    Full,
    /// There is no such upload or file.
    #[error("there are no such bytes")]
    Missing,
    /// Something lies there already.
    #[error("other bytes lie there")]
    Taken,
    /// Anything else: what was asked for, and the system's word.
    #[error("{0}")]
    Failed(String),
}

/// What "received" promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// The bytes are on the disk.
    #[default]
    Fsync,
    /// The system has them: they outlive the program, not the machine.
    Os,
}

/// A place for bytes. Calls may block.
///
/// An upload has one staging place, into which its bytes are written where they will stay; publishing makes a file of it
/// without copying.
pub trait Shell: Send + Sync + 'static {
    /// The opened bytes of an upload or a file.
    type Bytes: Bytes;

    /// Makes the staging place of a new upload.
    ///
    /// # Errors
    /// [`ShellError::Taken`] when there is one.
    fn create(&self, id: &UploadId) -> Result<(), ShellError>;

    /// Opens a staging place for writing and reading.
    ///
    /// # Errors
    /// [`ShellError::Missing`] when there is none.
    fn stage(&self, id: &UploadId) -> Result<Self::Bytes, ShellError>;

    /// Gives what is staged of one upload to another one, durably, of which nothing is staged and that is no file.
    ///
    /// # Errors
    /// [`ShellError::Taken`] when something is there: both stay. [`ShellError::Missing`] when nothing is staged.
    fn adopt(&self, from: &UploadId, into: &UploadId) -> Result<(), ShellError>;

    /// Makes a file of what is staged, durably, and never in the place of another one. Doing it again does nothing.
    ///
    /// # Errors
    /// [`ShellError::Missing`] when there is neither.
    fn publish(&self, id: &UploadId, durability: Durability) -> Result<(), ShellError>;

    /// Opens a file for reading.
    ///
    /// # Errors
    /// [`ShellError::Missing`] when there is none.
    fn file(&self, id: &UploadId) -> Result<Self::Bytes, ShellError>;

    /// Removes what is staged; tells whether there was something.
    ///
    /// # Errors
    /// [`ShellError::Failed`].
    fn discard(&self, id: &UploadId) -> Result<bool, ShellError>;

    /// Removes a file; tells whether there was one.
    ///
    /// # Errors
    /// [`ShellError::Failed`].
    fn remove(&self, id: &UploadId) -> Result<bool, ShellError>;

    /// Lists what is staged and was last written before a time in Unix milliseconds.
    ///
    /// # Errors
    /// [`ShellError::Failed`].
    fn staged_before(&self, before_ms: u64) -> Result<Vec<UploadId>, ShellError>;

    /// Lists the files whose ids begin with a byte and whose bytes were last written before a time in Unix milliseconds.
    /// All files are listed by 256 calls.
    ///
    /// # Errors
    /// [`ShellError::Failed`].
    fn files_before(&self, shard: u8, before_ms: u64) -> Result<Vec<UploadId>, ShellError>;
}

/// Opened bytes.
pub trait Bytes: Send + 'static {
    /// Writes bytes at a place, all of them.
    ///
    /// # Errors
    /// [`ShellError`] says why not; some may be written.
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<(), ShellError>;

    /// Reads bytes from a place on; gives how many were read, and fewer than there is room for only at the end.
    ///
    /// # Errors
    /// [`ShellError`] says why not.
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<usize, ShellError>;

    /// Cuts off what lies behind a length. Bytes that end before it stay as they are.
    ///
    /// # Errors
    /// [`ShellError`] says why not.
    fn set_len(&mut self, len: u64) -> Result<(), ShellError>;

    /// Waits until what was written or cut is on the disk. After an error these bytes are to be opened and written again.
    ///
    /// # Errors
    /// [`ShellError`] says why not.
    fn sync(&mut self) -> Result<(), ShellError>;
}

/// Writes one part of an upload while hashing it.
#[derive(Debug)]
pub struct PartWriter<B> {
    bytes: B,
    at: u64,
    /// Where the part ends.
    end: u64,
    digest: Option<Sha256>,
    running: Option<RunningHash>,
}

/// Why a part was not written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PartError {
    /// More bytes come than the part has.
    #[error("more bytes come than the part has")]
    TooLong,
    /// The bytes could not be written.
    #[error(transparent)]
    Shell(#[from] ShellError),
}

impl<B: Bytes> PartWriter<B> {
    /// Begins a part from one place of the upload to another. `running` goes on if it ends where the part begins.
    pub fn new(bytes: B, at: u64, end: u64, running: Option<RunningHash>) -> Self {
        let running = running.filter(|running| running.through() == at);
        Self { bytes, at, end, digest: None, running }
    }

    /// Hashes the part for itself, too.
    #[must_use]
    pub fn with_digest(self) -> Self {
        Self { digest: Some(Sha256::new()), ..self }
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// [`PartError`] says why not; then none of them are hashed. What is not acknowledged is written again by whoever
    /// sends it again.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), PartError> {
        let end = self.at.checked_add(bytes.len() as u64).filter(|end| *end <= self.end);
        let end = end.ok_or(PartError::TooLong)?;
        self.bytes.write_at(self.at, bytes)?;
        self.at = end;
        if let Some(digest) = &mut self.digest {
            digest.update(bytes);
        }
        if let Some(running) = &mut self.running {
            running.update(bytes);
        }
        Ok(())
    }

    /// Makes what was written as durable as promised. More may be written.
    ///
    /// # Errors
    /// [`ShellError`] says why it is not.
    pub fn settle(&mut self, durability: Durability) -> Result<(), ShellError> {
        if durability == Durability::Fsync { self.bytes.sync() } else { Ok(()) }
    }

    /// Returns where the next byte comes.
    #[must_use]
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// Returns the digest of what was written of the part, if it is hashed for itself.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest.clone().map(|digest| Digest::of(digest.finalize().into()))
    }

    /// Returns the hash of the file up to what was written, if it was known up to the part's beginning.
    #[must_use]
    pub const fn running(&self) -> Option<&RunningHash> {
        self.running.as_ref()
    }
}

/// Bytes that are read at once to hash them.
const STEP: usize = 128 << 10;

/// Hashes the rest of a file behind what is hashed already, up to its size. Where more is hashed than the file has, it is
/// hashed from its beginning.
///
/// # Errors
/// [`ShellError::Missing`] when it is shorter, and whatever reading fails with.
pub fn hash_rest(bytes: &impl Bytes, running: RunningHash, size: u64) -> Result<Digest, ShellError> {
    let mut running = if running.through() > size { RunningHash::default() } else { running };
    let (at, left) = (running.through(), size - running.through());
    if read_steps(bytes, (at, left), &mut step_for(left), |step| running.update(step))? {
        Ok(running.digest())
    } else {
        Err(ShellError::Missing)
    }
}

/// Reads chunks again; gives the indexes of those whose bytes do not have their digest, in the order in which they were
/// asked for. A chunk that is not wholly there is among them, and so is one that the plan does not have.
///
/// ```
/// use std::num::NonZeroU64;
///
/// use driftline_uploads::{Bytes as _, Digest, MemoryShell, Plan, Shell as _, UploadId, rehash};
///
/// let (shell, id) = (MemoryShell::default(), UploadId::of([7; 16]));
/// shell.create(&id)?;
/// let mut bytes = shell.stage(&id)?;
/// bytes.write_at(0, b"01234x6789")?;
/// let plan = Plan::new(10, NonZeroU64::new(4).expect("four"));
/// let digests = [b"0123", b"4567"].map(|chunk| Digest::hash(chunk));
/// assert_eq!(rehash(&bytes, &plan, (0..).zip(digests))?, [1]);
/// # Ok::<(), driftline_uploads::ShellError>(())
/// ```
///
/// # Errors
/// Whatever reading fails with.
pub fn rehash(
    bytes: &impl Bytes,
    plan: &Plan,
    digests: impl Iterator<Item = (u64, Digest)>,
) -> Result<Vec<u64>, ShellError> {
    let mut wrong = Vec::new();
    let mut room = step_for(plan.chunk_bytes());
    for (index, digest) in digests {
        let is_right = match plan.chunk(index) {
            Some(place) => {
                let mut hasher = Sha256::new();
                let is_whole = read_steps(bytes, place, &mut room, |step| hasher.update(step))?;
                is_whole && Digest::of(hasher.finalize().into()) == digest
            }
            None => false,
        };
        if !is_right {
            wrong.push(index);
        }
    }
    Ok(wrong)
}

/// Makes room for what is read at once of so many bytes.
fn step_for(bytes: u64) -> Vec<u8> {
    vec![0; usize::try_from(bytes).unwrap_or(STEP).min(STEP)]
}

/// Reads from a place on so many bytes, step by step; tells whether all of them are there.
fn read_steps(
    bytes: &impl Bytes,
    (mut at, mut left): (u64, u64),
    room: &mut [u8],
    mut take: impl FnMut(&[u8]),
) -> Result<bool, ShellError> {
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(room.len()).min(room.len());
        let len = bytes.read_at(at, &mut room[..most])?;
        if len == 0 {
            return Ok(false);
        }
        take(&room[..len]);
        (at, left) = (at + len as u64, left - len as u64);
    }
    Ok(true)
}
