//! Opening: migrations, the secret, the threads.

use std::sync::Arc;
use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_query;
use diesel::sql_types::{Binary, Integer, Text};
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use driftline_engine::Random;
use tokio::runtime::Runtime;

use super::connect::{Connector, Manager, Pool};
use super::timeline::Timeline;
use super::{PostgresError, PostgresOptions, PostgresStore, PostgresTarget, Shared, Threads, commit, watch};

pub(super) const MIGRATIONS: EmbeddedMigrations = embed_migrations!("../../migrations/postgres");

/// The oldest version that serves, as the database numbers it.
pub(super) const VERSION_MIN: i32 = 140_000;

/// Held while migrations run, so that nodes that start together run them once. Any number serves.
const MIGRATION_LOCK: i64 = 0x6472_6966_746c_696e;

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = Integer)]
    number: i32,
    #[diesel(sql_type = Text)]
    name: String,
}

#[derive(QueryableByName)]
struct Secret {
    #[diesel(sql_type = Binary)]
    value: Vec<u8>,
}

impl PostgresStore {
    /// Connects, migrates and starts the threads. It blocks, so it does not belong into an asynchronous task.
    ///
    /// # Errors
    /// [`PostgresError`] says what is wrong with the target or the database.
    pub fn open(options: PostgresOptions) -> Result<Self, PostgresError> {
        let connector = Connector::new(&options.target)?;
        let runtime = runtime(options.threads)?;
        let connect = Duration::from_millis(options.target.connect_ms.max(1));
        run_migrations(&runtime, &connector, connect)?;
        let cursor_secret = runtime.block_on(secret(&connector, connect, &*options.random))?;
        let watch_every = Duration::from_millis(options.watch_ms.max(1));
        let shared = Arc::new(shared(options, &connector, cursor_secret, &runtime));
        // A first connection shows what the pool would only tell the first user.
        let first = runtime.block_on(shared.writers.lease());
        first.map_err(|error| PostgresError::Connect(error.to_string()))?.done();
        runtime.spawn(watch::watch(Arc::downgrade(&shared), watch_every));
        Ok(Self {
            _threads: Arc::new(Threads { runtime: Some(runtime), shared: Arc::clone(&shared) }),
            shared,
        })
    }

    /// Brings the database to the newest schema; gives the names of the migrations that ran. Nodes of the version before
    /// may go on meanwhile. It blocks.
    ///
    /// # Errors
    /// As [`PostgresStore::open`].
    pub fn migrate(target: &PostgresTarget) -> Result<Vec<String>, PostgresError> {
        let connector = Connector::new(target)?;
        run_migrations(&runtime(1)?, &connector, Duration::from_millis(target.connect_ms.max(1)))
    }
}

pub(super) fn runtime(threads: usize) -> Result<Runtime, PostgresError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads.max(1)).thread_name("driftline-postgres").enable_all();
    builder.build().map_err(|error| PostgresError::Thread(error.to_string()))
}

fn shared(
    options: PostgresOptions,
    connector: &Connector,
    cursor_secret: [u8; 32],
    runtime: &Runtime,
) -> Shared {
    let caches = Arc::default();
    let timeline = Arc::new(Timeline {
        failover: options.failover,
        random: Arc::clone(&options.random),
        listeners: Arc::clone(&options.listeners),
        caches: Arc::clone(&caches),
        met: std::sync::Mutex::default(),
    });
    let wait = Duration::from_millis(options.wait_ms.max(1));
    let connect = Duration::from_millis(options.target.connect_ms.max(1));
    let pool = |size| {
        let manager = Manager { connector: connector.clone(), timeline: Arc::clone(&timeline) };
        Pool::new(manager, size, wait, connect)
    };
    Shared {
        runtime: runtime.handle().clone(),
        writers: pool(options.write_connections),
        readers: pool(options.read_connections),
        lanes: super::Lanes::default(),
        caches,
        clock: options.clock,
        random: options.random,
        listeners: options.listeners,
        skew_ms_max: options.skew_ms_max,
        record_bytes: options.record_bytes,
        wait,
        months: commit::Months::default(),
        cursor_secret,
        #[cfg(test)]
        faults: std::sync::OnceLock::new(),
    }
}

pub(super) async fn connected(
    connector: &Connector,
    connect: Duration,
) -> Result<AsyncPgConnection, PostgresError> {
    match tokio::time::timeout(connect, connector.connect()).await {
        Ok(connection) => Ok(connection?.pg),
        Err(_) => Err(PostgresError::Connect("it did not answer in time".into())),
    }
}

fn run_migrations(
    runtime: &Runtime,
    connector: &Connector,
    connect: Duration,
) -> Result<Vec<String>, PostgresError> {
    let failed = |error: diesel::result::Error| PostgresError::Migration(error.to_string());
    let pg = runtime.block_on(async {
        let mut pg = connected(connector, connect).await?;
        let version: Version = sql_query(
            "SELECT current_setting('server_version_num')::INTEGER AS number, current_setting('server_version') AS name",
        )
        .get_result(&mut pg)
        .await
        .map_err(failed)?;
        if version.number < VERSION_MIN {
            return Err(PostgresError::Version(version.name));
        }
        // Whoever migrates may take long, and others wait for it.
        let lock = format!("SET lock_timeout = 0; SET statement_timeout = 0; SELECT pg_advisory_lock({MIGRATION_LOCK}); SET lock_timeout = 3000");
        pg.batch_execute(&lock).await.map_err(failed)?;
        Ok(pg)
    })?;
    // diesel's migrations are synchronous: they drive the connection from this thread.
    let _within = runtime.enter();
    let mut pg: AsyncConnectionWrapper<AsyncPgConnection> = AsyncConnectionWrapper::from(pg);
    let ran = pg.run_pending_migrations(MIGRATIONS);
    let ran = ran.map_err(|error| PostgresError::Migration(error.to_string()))?;
    // The lock ends with the connection.
    Ok(ran.into_iter().map(|version| version.to_string()).collect())
}

/// Reads the secret that seals cursors, making it on first use.
async fn secret(
    connector: &Connector,
    connect: Duration,
    random: &dyn Random,
) -> Result<[u8; 32], PostgresError> {
    let failed = |error: diesel::result::Error| PostgresError::Connect(error.to_string());
    let mut pg = connected(connector, connect).await?;
    let mut fresh = [0_u8; 32];
    random.fill(&mut fresh);
    sql_query("INSERT INTO meta (name, value) VALUES ('cursor_secret', $1) ON CONFLICT DO NOTHING")
        .bind::<Binary, _>(fresh.to_vec())
        .execute(&mut pg)
        .await
        .map_err(failed)?;
    let stored: Secret = sql_query("SELECT value FROM meta WHERE name = 'cursor_secret'")
        .get_result(&mut pg)
        .await
        .map_err(failed)?;
    stored.value.try_into().map_err(|_| PostgresError::Corrupt("the cursor secret is damaged".into()))
}
