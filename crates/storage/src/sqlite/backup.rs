//! A consistent copy of a database that is in use.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::Text;
use thiserror::Error;

use super::SqliteStore;
use super::check::{Contents, Finding, contents, history, open_unchanging};
use super::files::{beside, remove, sync, sync_folder, uri};
use super::restore::is_cut_short;
use super::seal::seal;

/// Why no backup was made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BackupError {
    /// There is something under the target's name, and it stays.
    #[error("{0} exists already and is not overwritten")]
    Exists(PathBuf),
    /// The database could not be opened or read.
    #[error("cannot read {file}: {reason}")]
    Source {
        /// The database.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The copy could not be written.
    #[error("cannot write {file}: {reason}")]
    Target {
        /// The copy.
        file: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

impl SqliteStore {
    /// Copies a database, of one moment, to a file that does not exist yet; tells what is in the copy.
    ///
    /// Others may have the database open and write meanwhile: the copy is made in one read transaction, which makes no
    /// writer wait. While it lasts the write-ahead log grows by what is written. The copy is written and synced under
    /// another name beside the target (`<target>.partial-<process id>`) and gets its own at the end, so that a call that
    /// is killed at any moment leaves nothing or everything under the target's name.
    ///
    /// The copy carries a sum of its bytes, which [`SqliteStore::check`] and [`SqliteStore::restore`] compare.
    ///
    /// The function blocks for as long as the copying takes. A second call with the same target may run at the same
    /// time; one of them fails.
    ///
    /// # Errors
    /// [`BackupError`] says which of the two files is at fault.
    pub fn backup(file: &Path, target: &Path) -> Result<Contents, BackupError> {
        if target.symlink_metadata().is_ok() {
            return Err(BackupError::Exists(target.to_owned()));
        }
        let partial = beside(target, &format!(".partial-{}", std::process::id()));
        let made = copy(file, &partial).and_then(|contents| {
            publish(&partial, target)?;
            Ok(contents)
        });
        // Under its own name the copy is there, or there is none.
        let removed = remove(&partial);
        let contents = made?;
        removed.and_then(|()| sync_folder(target)).map_err(|error| at_target(target, &error))?;
        Ok(contents)
    }
}

fn at_source(file: &Path, error: &dyn std::fmt::Display) -> BackupError {
    BackupError::Source { file: file.to_owned(), reason: error.to_string() }
}

fn at_target(target: &Path, error: &dyn std::fmt::Display) -> BackupError {
    BackupError::Target { file: target.to_owned(), reason: error.to_string() }
}

/// Writes a copy and syncs it.
fn copy(file: &Path, partial: &Path) -> Result<Contents, BackupError> {
    // A path that is not absolute could be read as a URI.
    let absolute = std::path::absolute(partial).map_err(|error| at_target(partial, &error))?;
    let into = absolute.to_str().ok_or_else(|| at_target(partial, &"the path is not UTF-8"))?;
    // What a killed process of the same number left.
    remove(&absolute).map_err(|error| at_target(partial, &error))?;
    if is_cut_short(file) {
        return Err(at_source(file, &"a restore was cut short; the next start of the server finishes it"));
    }
    let mut connection = open_existing(file)?;
    let history = history(&mut connection).map_err(|finding: Finding| at_source(file, &finding))?;
    if let Some(newer) = history.newer.into_iter().next() {
        return Err(at_source(file, &Finding::Newer(newer)));
    }
    make(file, &absolute).map_err(|error| at_target(partial, &error))?;
    let vacuum = sql_query("VACUUM INTO ?").bind::<Text, _>(into);
    vacuum.execute(&mut connection).map_err(|error| at_target(partial, &error))?;
    drop(connection);

    let finished = seal(&absolute).and_then(|()| sync(&absolute));
    finished.map_err(|error| at_target(partial, &error))?;
    let mut copied = open_unchanging(&absolute).map_err(|error| at_target(partial, &error))?;
    let found = contents(&mut copied).map_err(|error| at_target(partial, &error))?;
    let bytes = absolute.metadata().map_err(|error| at_target(partial, &error))?.len();
    Ok(Contents { bytes, ..found })
}

/// Opens a database that is there, to read it beside its writer.
fn open_existing(file: &Path) -> Result<SqliteConnection, BackupError> {
    // Whoever closes a database last folds its log in, which one that may only read could not.
    let url = uri(file, "mode=rw").map_err(|error| at_source(file, &error))?;
    let mut connection = SqliteConnection::establish(&url).map_err(|error| at_source(file, &error))?;
    let settings = "PRAGMA busy_timeout = 5000; PRAGMA synchronous = FULL";
    diesel::connection::SimpleConnection::batch_execute(&mut connection, settings)
        .map_err(|error| at_source(file, &error))?;
    Ok(connection)
}

/// Makes the empty file that the copy is written to. Those who may read the database may read it, and nobody else.
fn make(file: &Path, copy: &Path) -> io::Result<()> {
    File::create_new(copy)?.set_permissions(file.metadata()?.permissions())
}

/// Gives the copy its name, unless something has it by now.
fn publish(partial: &Path, target: &Path) -> Result<(), BackupError> {
    match fs::hard_link(partial, target) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(BackupError::Exists(target.to_owned()))
        }
        // A file system without links.
        Err(_) if target.symlink_metadata().is_err() => {
            fs::rename(partial, target).map_err(|error| at_target(target, &error))
        }
        Err(_) => Err(BackupError::Exists(target.to_owned())),
    }
}
