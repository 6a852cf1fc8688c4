//! Stores for the Driftline engine: embedded SQLite and memory.
//!
//! Both pass one conformance suite, and nothing outside this crate can tell which of them runs. The stores
//! load and save; every decision is the engine's, whose `plan` runs inside the store's transaction.
//!
//! A [`SqliteStore`]'s file can be copied while it is in use, checked, and put back: [`SqliteStore::backup`],
//! [`SqliteStore::check`], [`SqliteStore::restore`].
//!
//! What the crate does not do: it knows no wire format, no rights and no conflict policy.
//!
//! ```
//! use driftline_engine::Store;
//! use driftline_storage::{SqliteOptions, SqliteStore};
//! use driftline_testkit::{Author, World, block_on, create};
//!
//! let world = World::new(1);
//! let open = || {
//!     SqliteStore::open(SqliteOptions {
//!         file: world.folder.path().join("driftline.db"),
//!         clock: world.clock.clone(),
//!         random: world.random.clone(),
//!         listeners: world.listeners.clone(),
//!         fatal: Box::new(|reason| panic!("{reason}")),
//!         skew_ms_max: 60_000,
//!         record_bytes: 1 << 20,
//!         readers: 2,
//!         outbox_claims: Vec::new(),
//!     })
//! };
//! let store = open()?;
//! let ada = Author::join(&store, "acme", "ada", "phone");
//! block_on(store.commit(ada.batch([create("n1", r#"{"title":"hello"}"#)])))?;
//! drop(store);
//!
//! let kept = block_on(open()?.record(ada.tenant, &"note".parse()?, &"n1".parse()?))?;
//! assert_eq!(kept.expect("it was committed").record.fields.as_str(), r#"{"title":"hello"}"#);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod any;
mod blobs;
mod codec;
mod group;
#[cfg(test)]
mod handmade;
mod log;
mod marks;
mod memory;
mod names;
mod once;
mod paging;
mod parts;
mod postgres;
mod registry;
mod rows;
mod sqlite;
mod tls;
mod uploads;

pub use any::AnyStore;
pub use blobs::{LocalBlobs, S3Blobs, S3Error, S3Options};
pub use memory::MemoryStore;
pub use postgres::{
    Failover, PostgresDiagnosis, PostgresError, PostgresOptions, PostgresStore, PostgresTarget,
};
pub use sqlite::{
    BackupError, Contents, Diagnosis, Fatal, Finding, OpenError, Report, RestoreError, Restored, SideFile,
    SqliteOptions, SqliteStore,
};
