//! How the stores are opened in tests.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::Path;

use driftline_model::Limits;
use driftline_storage::{MemoryStore, OpenError, SqliteOptions, SqliteStore};
use driftline_testkit::World;

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
    })
}
