//! Putting a backup in the place of a database.
//!
//! The copy is made, checked, migrated and given new epochs under a name of its own. Then it is renamed to
//! `<database>-restoring`: from here on the restore is decided, and whoever opens the database next goes on with it. The
//! replaced database and its log move away before its successor comes, so that at no moment a log stands beside a database
//! that it does not belong to.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::Integer;
use driftline_engine::Random;
use thiserror::Error;

use super::SqliteStore;
use super::check::{Contents, Report, check};
use super::files::{beside, folder, remove, rename, sync, sync_folder};
use super::lock::Lock;
use super::open::{OpenError, connect, run_migrations};
use super::seal::unseal;
use super::side::{Marks, begin_epochs, places, rewrite};

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restored {
    /// What is in the database now.
    pub contents: Contents,
    /// Where the replaced database is; nothing if there was none.
    pub replaced: Option<PathBuf>,
    /// Migrations that the backup went through.
    pub migrated: Vec<String>,
}

/// Why a backup was not put in place.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The database could not be taken hold of, for example because a server runs on it.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// The backup is the database itself.
    #[error("{0} is the database itself")]
    Same(PathBuf),
    /// The backup is not whole.
    #[error("{file} is not whole: {first}", first = report.findings.first().map_or(String::new(), ToString::to_string))]
    NotWhole {
        /// The backup.
        file: PathBuf,
        /// What a check found.
        report: Box<Report>,
    },
    /// A file could not be read or written.
    #[error("cannot put {file} in place: {reason}")]
    Files {
        /// The backup.
        file: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

const STAGED: &str = "-restore-partial";
const DECIDED: &str = "-restoring";
const REPLACED: &str = ".replaced-";

impl SqliteStore {
    /// Puts a backup in the place of a database that nobody has open, and begins a new epoch for every tenant.
    ///
    /// The backup is copied and stays as it is. It is checked as by [`SqliteStore::check`], and migrated if it is of an
    /// older schema. The replaced database is kept beside the new one, with its log, as `<database>.replaced-<number>`.
    /// A call that is killed leaves the database as it was, or is finished by the next opening.
    ///
    /// # Errors
    /// [`RestoreError`]. The database is as it was then, unless a file could not be moved: the next opening goes on.
    pub fn restore(backup: &Path, file: &Path, random: &dyn Random) -> Result<Restored, RestoreError> {
        let _lock = Lock::take(file)?;
        let at_files = |error: &dyn std::fmt::Display| RestoreError::Files {
            file: backup.to_owned(),
            reason: error.to_string(),
        };
        finish(file).map_err(|error| at_files(&error))?;
        if let (Ok(one), Ok(other)) = (backup.canonicalize(), file.canonicalize())
            && one == other
        {
            return Err(RestoreError::Same(backup.to_owned()));
        }
        let staged = beside(file, STAGED);
        let done = stage(backup, &staged, file, random);
        let (contents, migrated) = match done {
            Ok(done) => done,
            Err(error) => {
                // Nothing of the attempt is needed; what cannot be removed is removed by the next one.
                let _ = remove_all(&staged);
                return Err(error);
            }
        };
        rename(&staged, &beside(file, DECIDED)).map_err(|error| at_files(&error))?;
        let replaced = finish(file).map_err(|error| at_files(&error))?;
        if let Err(reason) = keep_marks(file) {
            tracing::warn!(%reason, "the side file cannot be written: an older database would not be noticed");
        }
        Ok(Restored { contents, replaced, migrated })
    }
}

/// Makes the database that is going to be: checked, migrated, in new epochs, whole in its one file and on the disk.
fn stage(
    backup: &Path,
    staged: &Path,
    database: &Path,
    random: &dyn Random,
) -> Result<(Contents, Vec<String>), RestoreError> {
    let at_files = |error: &dyn std::fmt::Display| RestoreError::Files {
        file: backup.to_owned(),
        reason: error.to_string(),
    };
    let not_whole =
        |report: Report| RestoreError::NotWhole { file: backup.to_owned(), report: Box::new(report) };
    // A log beside the backup is a finding, which only a look at the backup itself shows.
    if beside(backup, "-wal").metadata().is_ok_and(|log| log.len() > 0) {
        return Err(not_whole(SqliteStore::check(backup)));
    }
    remove_all(staged).map_err(|error| at_files(&error))?;
    copy(backup, staged, database).map_err(|error| at_files(&error))?;
    let report = SqliteStore::check(staged);
    if !report.findings.is_empty() {
        return Err(not_whole(report));
    }
    let mut connection = connect(staged)?;
    unseal(&mut connection).map_err(|error| at_files(&error))?;
    let migrated = run_migrations(staged, &mut connection)?;
    if !migrated.is_empty() {
        let report = check(&mut connection);
        if !report.findings.is_empty() {
            return Err(not_whole(report));
        }
    }
    let marks = Marks::load(database).unwrap_or_default();
    let begun = places(&mut connection)
        .and_then(|places| begin_epochs(&mut connection, &marks, places.iter(), random));
    begun.map_err(|error| at_files(&error))?;
    fold_log(connection, staged).map_err(|error| at_files(&error))?;
    let bytes = staged.metadata().map_err(|error| at_files(&error))?.len();
    Ok((Contents { bytes, ..report.contents }, migrated))
}

/// Copies bytes, under the rights of the database that is there.
fn copy(backup: &Path, staged: &Path, database: &Path) -> io::Result<()> {
    let mut file = File::create(staged)?;
    // Whoever could not read the one before, or the backup, cannot read this one.
    let like = database.metadata().or_else(|_| backup.metadata())?;
    file.set_permissions(like.permissions())?;
    io::copy(&mut File::open(backup)?, &mut file)?;
    Ok(())
}

#[derive(QueryableByName)]
struct Checkpoint {
    #[diesel(sql_type = Integer)]
    busy: i32,
}

/// Closes a database so that its one file is all of it.
fn fold_log(mut connection: SqliteConnection, file: &Path) -> Result<(), String> {
    let folded: QueryResult<Checkpoint> =
        sql_query("PRAGMA wal_checkpoint(TRUNCATE)").get_result(&mut connection);
    if folded.map_err(|error| error.to_string())?.busy != 0 {
        return Err("somebody has the copy open".into());
    }
    // The copy is opened by its next owner with a log again; until then it needs none.
    connection.batch_execute("PRAGMA journal_mode = DELETE").map_err(|error| error.to_string())?;
    drop(connection);
    sync(file).map_err(|error| error.to_string())
}

fn remove_all(file: &Path) -> io::Result<()> {
    remove(file)?;
    ["-wal", "-shm", "-journal"].iter().try_for_each(|suffix| remove(&beside(file, suffix)))
}

/// Tells whether a restore was decided and not finished.
pub(super) fn is_cut_short(database: &Path) -> bool {
    beside(database, DECIDED).exists()
}

/// Finishes a restore that was decided, from wherever it stopped; tells where the replaced database is. Whoever calls it
/// holds the lock.
pub(super) fn finish(database: &Path) -> io::Result<Option<PathBuf>> {
    let decided = beside(database, DECIDED);
    if !decided.exists() {
        return Ok(None);
    }
    let (log, index) = (beside(database, "-wal"), beside(database, "-shm"));
    let last = last_number(database)?;
    let mut replaced = None;
    if database.exists() {
        let away = away(database, last + 1);
        rename(database, &away)?;
        replaced = Some(away);
    }
    if log.exists() {
        // Without a database, the one that it belongs to went the last time, under the last number.
        let away = replaced.clone().unwrap_or_else(|| away(database, last.max(1)));
        rename(&log, &beside(&away, "-wal"))?;
    }
    // The index of the log is made anew from the log.
    remove(&index)?;
    sync_folder(database)?;
    rename(&decided, database)?;
    Ok(replaced)
}

/// The name of a replaced database.
fn away(database: &Path, number: u64) -> PathBuf {
    beside(database, &format!("{REPLACED}{number}"))
}

/// The highest number that a replaced database has, or the log of one; 0 without any.
fn last_number(database: &Path) -> io::Result<u64> {
    let own = database.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut last = 0;
    for entry in folder(database).read_dir()? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        let number = name.strip_prefix(&own).and_then(|rest| rest.strip_prefix(REPLACED));
        let number = number.map(|rest| rest.strip_suffix("-wal").unwrap_or(rest));
        last = last.max(number.and_then(|number| number.parse().ok()).unwrap_or(0));
    }
    Ok(last)
}

/// Remembers the epochs that begin now and those that ended, so that a file of either is known to be old later.
fn keep_marks(database: &Path) -> Result<(), String> {
    let mut connection = super::check::open_unchanging(database)?;
    let places = places(&mut connection).map_err(|error| error.to_string())?;
    let marks = Marks::load(database).unwrap_or_default();
    rewrite(database, marks, &places).map_err(|error| error.to_string())
}
