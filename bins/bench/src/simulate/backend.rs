//! Stores under a simulated server: opened, copied and brought back.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use driftline_engine::{Listeners, Silent, Store};
use driftline_storage::{MemoryStore, SqliteOptions, SqliteStore};

use super::world::World;

/// A place where a store lives, also while no server runs.
///
/// A simulation opens the store anew after every restart of its server; what the one before has committed is there.
pub trait Backend {
    /// The store.
    type Store: Store;

    /// Opens the store with all that it holds. Its commits are reported to `listeners`.
    ///
    /// # Errors
    /// What keeps the store from being opened.
    fn open(&mut self, world: &World, listeners: Arc<dyn Listeners>) -> Result<Self::Store>;

    /// Takes a copy of all that is committed; it replaces the copy before. No server works meanwhile.
    ///
    /// # Errors
    /// What keeps the copy from being taken.
    fn save(&mut self) -> Result<()>;

    /// Puts the last copy in the place of the store, which is closed.
    ///
    /// # Errors
    /// What keeps the copy from being put back.
    fn restore(&mut self) -> Result<()>;
}

/// Stores in memory.
#[derive(Debug, Default)]
pub struct MemoryBackend {
    store: Option<MemoryStore>,
    saved: Option<MemoryStore>,
}

impl Backend for MemoryBackend {
    type Store = MemoryStore;

    fn open(&mut self, world: &World, listeners: Arc<dyn Listeners>) -> Result<MemoryStore> {
        let store = match self.store.take() {
            Some(store) => store.fork(listeners),
            None => {
                MemoryStore::new(world.clock.clone(), world.random.clone(), listeners, world.limits.clone())
            }
        };
        self.store = Some(store.clone());
        Ok(store)
    }

    fn save(&mut self) -> Result<()> {
        self.saved = self.store.as_ref().map(|store| store.fork(Arc::new(Silent)));
        Ok(())
    }

    fn restore(&mut self) -> Result<()> {
        self.store = self.saved.as_ref().map(|saved| saved.fork(Arc::new(Silent)));
        Ok(())
    }
}

/// Stores in SQLite files.
#[derive(Debug)]
pub struct SqliteBackend {
    file: PathBuf,
    saved: PathBuf,
}

/// The suffixes of the files that hold what is committed.
const PARTS: [&str; 2] = ["", "-wal"];

impl SqliteBackend {
    /// Keeps the file and its copy in a folder, which is empty and outlives the backend.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { file: folder.join("driftline.db"), saved: folder.join("saved.db") }
    }

    fn copy(from: &Path, to: &Path) -> Result<()> {
        for part in PARTS {
            let (from, to) = (beside(from, part), beside(to, part));
            if to.exists() {
                fs::remove_file(&to).with_context(|| format!("cannot remove {}", to.display()))?;
            }
            if from.exists() {
                fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
            }
        }
        Ok(())
    }
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

impl Backend for SqliteBackend {
    type Store = SqliteStore;

    fn open(&mut self, world: &World, listeners: Arc<dyn Listeners>) -> Result<SqliteStore> {
        let store = SqliteStore::open(SqliteOptions {
            file: self.file.clone(),
            clock: world.clock.clone(),
            random: world.random.clone(),
            listeners,
            fatal: Box::new(|reason| eprintln!("error: {reason}")),
            skew_ms_max: world.limits.skew_ms_max,
            record_bytes: world.limits.record_bytes,
            readers: 1,
            outbox_claims: Vec::new(),
        })?;
        Ok(store)
    }

    fn save(&mut self) -> Result<()> {
        Self::copy(&self.file, &self.saved)
    }

    fn restore(&mut self) -> Result<()> {
        // The index of the log belongs to the file that goes; the next opening makes another.
        let index = beside(&self.file, "-shm");
        if index.exists() {
            fs::remove_file(&index).with_context(|| format!("cannot remove {}", index.display()))?;
        }
        Self::copy(&self.saved, &self.file)
    }
}
