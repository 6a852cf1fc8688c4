//! One process, and within it one store, has a database file open to write.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::open::OpenError;

/// Holds a database file for one store, as long as it lives.
///
/// It is an advisory lock of the operating system on `driftline.lock` beside `driftline.db`. The system lets it go with
/// the process, however that ends. The lock file stays: who removed it could let two in, one on the old file and one on
/// the new.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

/// Closing the file alone may not let the lock go at once: a process that this one has just started holds the same file until
/// it runs its program.
impl Drop for Lock {
    fn drop(&mut self) {
        // Where it fails, closing does it.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

impl Lock {
    /// Takes the lock, or tells that somebody has it.
    pub(super) fn take(database: &Path) -> Result<Self, OpenError> {
        // By whichever name it is reached, it is one file.
        let path = database.canonicalize().unwrap_or_else(|_| database.to_owned()).with_extension("lock");
        let failed = |error: &io::Error| OpenError::File {
            file: database.to_owned(),
            reason: format!("its lock {} cannot be taken: {error}", path.display()),
        };
        let opened = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = opened.map_err(|error| failed(&error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { file }),
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
                Err(OpenError::InUse { file: database.to_owned() })
            }
            Err(error) => Err(failed(&error.into())),
        }
    }
}
