//! Opening: migrations, the secret, the threads.

use std::sync::Arc;
use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_query;
use diesel::sql_types::Binary;
use diesel_async::RunQueryDsl;
use diesel_migrations::{EmbeddedMigrations, embed_migrations};
use driftline_engine::Random;
use tokio::runtime::Runtime;

use super::connect::{Connector, Dialer, Pool};
use super::timeline::Timeline;
use super::{
    PostgresError, PostgresOptions, PostgresStore, PostgresTarget, Shared, Threads, claims, migrate, watch,
};

pub(super) const MIGRATIONS: EmbeddedMigrations = embed_migrations!("../../migrations/postgres");

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
        migrate::run(&runtime, &connector, &MIGRATIONS)?;
        runtime.block_on(claims::add(&connector, &options.outbox_claims))?;
        let cursor_secret = runtime.block_on(secret(&connector, &*options.random))?;
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
        migrate::run(&runtime(1)?, &connector, &MIGRATIONS)
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
    let pool = |size| {
        let manager = Dialer { connector: connector.clone(), timeline: Arc::clone(&timeline) };
        Pool::new(manager, size, wait)
    };
    Shared {
        runtime: runtime.handle().clone(),
        writers: pool(options.write_connections),
        readers: pool(options.read_connections),
        lanes: super::Lanes::default(),
        receipts: super::uploads::Waiting::default(),
        caches,
        clock: options.clock,
        random: options.random,
        listeners: options.listeners,
        skew_ms_max: options.skew_ms_max,
        record_bytes: options.record_bytes,
        wait,
        outbox_claims: options.outbox_claims,
        bell: super::listen::Bell::default(),
        cursor_secret,
        #[cfg(test)]
        faults: std::sync::OnceLock::new(),
    }
}

/// Reads the secret that seals cursors, making it on first use.
async fn secret(connector: &Connector, random: &dyn Random) -> Result<[u8; 32], PostgresError> {
    let failed = |error: diesel::result::Error| PostgresError::Connect(error.to_string());
    let mut pg = connector.connect(None).await?.pg;
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
