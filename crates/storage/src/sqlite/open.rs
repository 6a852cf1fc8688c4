//! Opening the file: settings, migrations, threads.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Binary, Integer, Text};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use driftline_engine::{Clock, Listeners, Random};
use thiserror::Error;

use super::lock::Lock;
use super::log::{self, Watch};
use super::readers::Readers;
use super::seal::unseal;
use super::side::{self, Side};
use super::writer::Writer;
use super::{Shared, SqliteStore, names, registry, restore, sums};
use crate::names::Names;

pub(super) const MIGRATIONS: EmbeddedMigrations = embed_migrations!("../../migrations/sqlite");

/// Jobs that may wait for the writer.
const QUEUE: usize = 8192;

/// Called when the disk can no longer be trusted; it should end the process.
pub type Fatal = Box<dyn Fn(&str) + Send>;

/// How a store is opened.
pub struct SqliteOptions {
    /// The database file; its folder exists.
    pub file: PathBuf,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Randomness for epochs and secrets.
    pub random: Arc<dyn Random>,
    /// Who is told of commits.
    pub listeners: Arc<dyn Listeners>,
    /// What to do when a commit fails.
    pub fatal: Fatal,
    /// Milliseconds that a device's clock may run ahead.
    pub skew_ms_max: u64,
    /// Bytes that a record's fields may have.
    pub record_bytes: usize,
    /// Threads that read.
    pub readers: usize,
    /// Claims that have columns of their own in the outbox, which are added when they are missing: names of
    /// `[a-z_][a-z0-9_]*` that are none of the table's own.
    pub outbox_claims: Vec<Box<str>>,
}

impl std::fmt::Debug for SqliteOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteOptions").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Why a store could not be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file could not be opened or read.
    #[error("cannot open {file}: {reason}")]
    File {
        /// The file.
        file: PathBuf,
        /// What the database said.
        reason: String,
    },
    /// A migration failed.
    #[error("a migration of {file} failed: {reason}")]
    Migration {
        /// The file.
        file: PathBuf,
        /// What failed.
        reason: String,
    },
    /// A setting did not take, so that durability is not what was promised.
    #[error("{file} does not take the setting {setting}")]
    Setting {
        /// The file.
        file: PathBuf,
        /// The setting.
        setting: &'static str,
    },
    /// Somebody else has the file open to write.
    #[error("{file} is in use: a server runs on this data folder, or a restore")]
    InUse {
        /// The file.
        file: PathBuf,
    },
    /// A claim cannot have a column of its own in the outbox.
    #[error(
        "the outbox can have no column for the claim {claim:?}: names are [a-z_][a-z0-9_]*, once, and none of its own"
    )]
    Claim {
        /// The claim.
        claim: Box<str>,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

#[derive(QueryableByName)]
struct Secret {
    #[diesel(sql_type = Binary)]
    value: Vec<u8>,
}

#[derive(QueryableByName)]
struct Setting {
    #[diesel(sql_type = Text)]
    journal_mode: String,
}

#[derive(QueryableByName)]
struct Synchronous {
    #[diesel(sql_type = Integer)]
    synchronous: i32,
}

impl SqliteStore {
    /// Opens or creates the file, migrates it and starts the threads.
    ///
    /// One store at a time has a file open: numbers, names and heads are held in memory. A tenant that is behind what the
    /// side file (`<file>-marks`) says begins a new epoch, because somebody has put an older file in place.
    ///
    /// # Errors
    /// [`OpenError`] names the file and what is wrong with it.
    pub fn open(options: SqliteOptions) -> Result<Self, OpenError> {
        let file = options.file.clone();
        if file.as_os_str() == ":memory:" {
            return Err(OpenError::Setting { file, setting: "journal_mode = WAL" });
        }
        log::check_claims(&options.outbox_claims).map_err(|claim| OpenError::Claim { claim })?;
        let lock = Lock::take(&file)?;
        restore::finish(&file).map_err(|error| file_error(&file, &error))?;
        let mut connection = Self::migrated(&file)?;
        // A backup that was put in place by hand has one.
        unseal(&mut connection).map_err(|error| file_error(&file, &error))?;
        let cursor_secret = secret(&mut connection, &options)?;
        let names = Arc::new(Names::default());
        names::load(&names, &mut connection).map_err(|error| file_error(&file, &error))?;
        sums::make(&mut connection, &names).map_err(|error| file_error(&file, &error))?;
        log::add_claims(&mut connection, &options.outbox_claims)
            .map_err(|error| file_error(&file, &error))?;
        registry::disconnect_all(&mut connection).map_err(|error| file_error(&file, &error))?;
        let marks = side::compare(&file, &mut connection, &*options.random);
        let marks = marks.map_err(|error| file_error(&file, &error))?;
        let heads = Arc::default();
        let limits = (options.skew_ms_max, options.record_bytes);
        let writer = Writer::new(
            connection,
            (Arc::clone(&names), Arc::clone(&heads)),
            options.clock,
            options.random,
            options.listeners,
            options.fatal,
            limits,
        );
        let readers = Readers::start(&file, options.readers)?;
        let side = Side::start(&file, marks)?;
        let watch = Watch::start(&file)?;
        let (jobs, queue) = mpsc::sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("driftline-writer".into());
        let writer = thread.spawn(move || writer.run(&queue)).map_err(OpenError::Thread)?;
        let shared = Shared {
            jobs: Some(jobs),
            readers,
            names,
            heads,
            waiting_bytes: Arc::default(),
            cursor_secret,
            tenants: Mutex::default(),
            devices: Mutex::default(),
            writer: Some(writer),
            side: Some(side),
            watch,
            receipts: Arc::default(),
            held: Arc::default(),
            outbox_claims: options.outbox_claims.into(),
            _lock: lock,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Brings the file to the newest schema and closes it again; gives the names of the migrations that ran.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn migrate(file: &Path) -> Result<Vec<String>, OpenError> {
        if restore::is_cut_short(file) {
            let _lock = Lock::take(file)?;
            restore::finish(file).map_err(|error| file_error(file, &error))?;
        }
        let mut connection = connect(file)?;
        run_migrations(file, &mut connection)
    }

    fn migrated(file: &Path) -> Result<SqliteConnection, OpenError> {
        let mut connection = connect(file)?;
        run_migrations(file, &mut connection)?;
        Ok(connection)
    }
}

pub(super) fn run_migrations(
    file: &Path,
    connection: &mut SqliteConnection,
) -> Result<Vec<String>, OpenError> {
    let ran = connection
        .run_pending_migrations(MIGRATIONS)
        .map_err(|error| OpenError::Migration { file: file.to_owned(), reason: error.to_string() })?;
    Ok(ran.into_iter().map(|version| version.to_string()).collect())
}

pub(super) fn file_error(file: &Path, error: &dyn std::fmt::Display) -> OpenError {
    OpenError::File { file: file.to_owned(), reason: error.to_string() }
}

/// Opens a connection with the settings that the store stands on, and asserts them.
pub(super) fn connect(file: &Path) -> Result<SqliteConnection, OpenError> {
    let url = file.to_str().ok_or_else(|| file_error(file, &"the path is not UTF-8"))?;
    let mut connection = SqliteConnection::establish(url).map_err(|error| file_error(file, &error))?;
    connection
        .batch_execute(
            "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
             PRAGMA cache_size = -65536; PRAGMA temp_store = MEMORY; \
             PRAGMA wal_autocheckpoint = 2000; PRAGMA journal_size_limit = 67108864;",
        )
        .map_err(|error| file_error(file, &error))?;
    let mode: Setting = sql_query("PRAGMA journal_mode")
        .get_result(&mut connection)
        .map_err(|error| file_error(file, &error))?;
    let sync: Synchronous = sql_query("PRAGMA synchronous")
        .get_result(&mut connection)
        .map_err(|error| file_error(file, &error))?;
    if mode.journal_mode != "wal" {
        return Err(OpenError::Setting { file: file.to_owned(), setting: "journal_mode = WAL" });
    }
    if sync.synchronous != 2 {
        return Err(OpenError::Setting { file: file.to_owned(), setting: "synchronous = FULL" });
    }
    Ok(connection)
}

/// Reads the secret that seals cursors, making it on first use.
fn secret(connection: &mut SqliteConnection, options: &SqliteOptions) -> Result<[u8; 32], OpenError> {
    let mut fresh = [0_u8; 32];
    options.random.fill(&mut fresh);
    let made = sql_query("INSERT INTO meta (name, value) VALUES ('cursor_secret', ?) ON CONFLICT DO NOTHING")
        .bind::<Binary, _>(fresh.to_vec())
        .execute(connection);
    made.map_err(|error| file_error(&options.file, &error))?;
    let stored: Secret = sql_query("SELECT value FROM meta WHERE name = 'cursor_secret'")
        .get_result(connection)
        .map_err(|error| file_error(&options.file, &error))?;
    stored.value.try_into().map_err(|_| file_error(&options.file, &"the cursor secret is damaged"))
}
