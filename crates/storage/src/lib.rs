//! Stores for the Driftline engine: embedded SQLite and memory.
//!
//! Both pass one conformance suite, and nothing outside this crate can tell which of them runs. The stores
//! load and save; every decision is the engine's, whose `plan` runs inside the store's transaction.
//!
//! What the crate does not do: it knows no wire format, no rights and no conflict policy.

mod memory;
mod sqlite;

pub use memory::MemoryStore;
pub use sqlite::{Fatal, OpenError, SqliteOptions, SqliteStore};
