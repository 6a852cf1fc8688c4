//! How the stores are opened in tests.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod hot;
pub(crate) mod uploads;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use driftline_model::Limits;
use driftline_storage::{
    Failover, MemoryStore, OpenError, PostgresError, PostgresOptions, PostgresStore, PostgresTarget,
    SqliteOptions, SqliteStore,
};
use driftline_testkit::World;
use driftline_testkit::postgres::{Cluster, Database, Template};

pub(crate) fn memory(world: &World) -> MemoryStore {
    let World { clock, random, listeners, .. } = world;
    MemoryStore::new(clock.clone(), random.clone(), listeners.clone(), Limits::default())
}

/// The file that [`sqlite`] opens.
pub(crate) fn file(world: &World) -> std::path::PathBuf {
    world.folder.path().join("driftline.db")
}

pub(crate) fn sqlite(world: &World) -> SqliteStore {
    open(&file(world), world).expect("the store opens")
}

/// Opens a file.
pub(crate) fn open(file: &Path, world: &World) -> Result<SqliteStore, OpenError> {
    open_with(file, world, 2)
}

/// Opens a file with that many readers; a commit that fails ends the test.
pub(crate) fn open_with(file: &Path, world: &World, readers: usize) -> Result<SqliteStore, OpenError> {
    let World { clock, random, listeners, .. } = world;
    let limits = Limits::default();
    SqliteStore::open(SqliteOptions {
        file: file.to_owned(),
        clock: clock.clone(),
        random: random.clone(),
        listeners: listeners.clone(),
        fatal: Box::new(|reason| panic!("{reason}")),
        skew_ms_max: limits.skew_ms_max,
        record_bytes: limits.record_bytes,
        readers,
        outbox_claims: Vec::new(),
    })
}

/// A database with the schema, made once per process and cloned for each test.
pub(crate) fn migrated() -> Database {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    let template = TEMPLATE.get_or_init(|| {
        Template::new("migrated", |url| {
            drop(PostgresStore::migrate(&target(url)).expect("the migrations run"));
        })
    });
    Cluster::shared().database(template)
}

pub(crate) fn target(url: &str) -> PostgresTarget {
    PostgresTarget { url: url.to_owned(), tls_ca: None, connect_ms: 5_000 }
}

/// The database that belongs to a world, always the same one.
pub(crate) fn database(world: &World) -> Arc<Database> {
    static DATABASES: Mutex<Option<HashMap<PathBuf, Arc<Database>>>> = Mutex::new(None);
    let mut databases = DATABASES.lock().unwrap_or_else(PoisonError::into_inner);
    let databases = databases.get_or_insert_default();
    Arc::clone(databases.entry(world.folder.path().to_owned()).or_insert_with(|| Arc::new(migrated())))
}

/// Opens the database that belongs to a world. It looks of itself for nothing that it was not told of: what a look tells
/// would come in the middle of a law.
pub(crate) fn postgres(world: &World) -> PostgresStore {
    let options = PostgresOptions { watch_ms: 3_600_000, ..postgres_options(world) };
    let target = target(&database(world).url());
    PostgresStore::open(PostgresOptions { target, ..options }).expect("the store opens")
}

pub(crate) fn open_postgres(url: &str, world: &World) -> Result<PostgresStore, PostgresError> {
    PostgresStore::open(PostgresOptions { target: target(url), ..postgres_options(world) })
}

/// Options with the clock of the world, for a target that is to be filled in.
pub(crate) fn postgres_options(world: &World) -> PostgresOptions {
    let World { clock, random, listeners, .. } = world;
    let limits = Limits::default();
    PostgresOptions {
        target: target(""),
        failover: Failover::Lossy,
        clock: Some(clock.clone()),
        random: random.clone(),
        listeners: listeners.clone(),
        skew_ms_max: limits.skew_ms_max,
        record_bytes: limits.record_bytes,
        write_connections: 4,
        read_connections: 2,
        wait_ms: 20_000,
        watch_ms: 2_000,
        threads: 1,
        outbox_claims: Vec::new(),
    }
}
