//! What can be said of a database without a store on it.

use std::path::Path;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::BigInt;
use driftline_model::Hlc;

use super::SqliteStore;
use super::check::{Contents, contents, damage, history};
use super::lock::Lock;
use super::open::{OpenError, connect, file_error};
use super::restore::is_cut_short;
use super::side::{Marks, Unread, places};

/// What the side file of a database says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SideFile {
    /// The database is where it was.
    Fits,
    /// There is none: an older database would not be noticed. The next start makes one.
    Absent,
    /// It is not readable: the same.
    Damaged(String),
    /// The database is an older one: so many tenants will begin a new epoch at the next start.
    Ahead(usize),
}

/// The state of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Diagnosis {
    /// Whether a store has it open, in this process or another.
    pub in_use: bool,
    /// Whether a restore was cut short, which the next start finishes.
    pub restoring: bool,
    /// Migrations that the next start runs.
    pub pending: Vec<String>,
    /// Migrations of a newer program, on which this one must not start.
    pub newer: Vec<String>,
    /// What a quick check of the pages found.
    pub damage: Vec<String>,
    /// What the side file says.
    pub side: SideFile,
    /// The highest clock that is stored, in Unix milliseconds.
    pub hlc_ms: u64,
    /// What is in it; the bytes are those of the file without its log.
    pub contents: Contents,
}

impl SqliteStore {
    /// Looks at a database that exists, beside a server that may have it open, with the settings that a store runs on.
    ///
    /// Nothing is migrated and nothing is made but the log that belongs to an open database. The quick check reads every
    /// page.
    ///
    /// # Errors
    /// The file is absent, does not open, or does not take the settings.
    pub fn diagnose(file: &Path) -> Result<Diagnosis, OpenError> {
        let at_file = |error: &dyn std::fmt::Display| file_error(file, error);
        let bytes = file.metadata().map_err(|error| at_file(&error))?.len();
        let in_use = matches!(Lock::take(file), Err(OpenError::InUse { .. }));
        let mut connection = connect(file)?;
        let history = history(&mut connection).map_err(|finding| at_file(&finding))?;
        let damage = damage(&mut connection, "quick_check");
        // What cannot be read of a damaged file is told as damage already.
        let whole = damage.is_empty();
        let found = match contents(&mut connection) {
            Err(error) if whole => return Err(at_file(&error)),
            found => found.unwrap_or_default(),
        };
        let side = match side(file, &mut connection) {
            Err(error) if whole => return Err(at_file(&error)),
            side => side.unwrap_or(SideFile::Fits),
        };
        let hlc = match highest_clock(&mut connection) {
            Err(error) if whole => return Err(at_file(&error)),
            hlc => hlc.unwrap_or(Hlc::ZERO),
        };
        Ok(Diagnosis {
            in_use,
            restoring: is_cut_short(file),
            pending: history.pending,
            newer: history.newer,
            damage,
            side,
            hlc_ms: hlc.millis(),
            contents: Contents { bytes, ..found },
        })
    }
}

fn side(file: &Path, connection: &mut SqliteConnection) -> QueryResult<SideFile> {
    let marks = match Marks::load(file) {
        Ok(marks) => marks,
        Err(Unread::Absent) => return Ok(SideFile::Absent),
        Err(Unread::Damaged(reason)) => return Ok(SideFile::Damaged(reason)),
    };
    let behind = places(connection)?.iter().filter(|place| marks.is_ahead_of(place)).count();
    Ok(if behind == 0 { SideFile::Fits } else { SideFile::Ahead(behind) })
}

#[derive(QueryableByName)]
struct Highest {
    #[diesel(sql_type = BigInt)]
    hlc: i64,
}

fn highest_clock(connection: &mut SqliteConnection) -> QueryResult<Hlc> {
    let highest: Highest =
        sql_query("SELECT coalesce(max(hlc), 0) AS hlc FROM stream_head").get_result(connection)?;
    Ok(Hlc::from_bits(u64::try_from(highest.hlc).unwrap_or(0)))
}
