//! What the tests of several Driftline crates share; no product depends on it.
//!
//! - [`World`]: a clock that stands until it is moved, seeded randomness, a recorder of commits, a folder that is
//!   removed at the end.
//! - [`Author`] and [`Draft`]: batches in a few words.
//! - [`conformance`]: the laws that every store keeps. [`Wrapped`]: a store that does one thing otherwise.
//! - [`server`], [`memory`], [`http`] and [`socket`]: the real server as a process, what it holds, and clients as
//!   hostile as a test wants.
//! - [`s3`]: an S3 in memory that fails as it is told to.
//! - [`postgres`]: a private PostgreSQL for a process, or for a test that kills it.
//! - [`Rng`] and [`block_on`]: the same random history on every machine, and futures without a runtime.
//!
//! ```
//! use driftline_model::{DeviceNo, TenantNo};
//! use driftline_testkit::{Author, create, patch};
//!
//! let ada = Author::new(TenantNo::new(1), DeviceNo::new(1), "ada");
//! let batch = ada.batch([create("n1", r#"{"title":"a"}"#).n(1), patch("n1", 1, r#"{"title":"b"}"#).n(2)]);
//! assert_eq!(batch.entries.len(), 2);
//! ```

mod batch;
pub mod conformance;
mod folder;
pub mod http;
pub mod memory;
pub mod postgres;
pub mod proxy;
mod rng;
pub mod s3;
pub mod server;
pub mod socket;
mod wait;
mod world;
mod wrapped;

pub use batch::{Author, Draft, create, delete, object, patch, refused, resolve, restore, sample};
pub use folder::TempFolder;
pub use rng::Rng;
pub use wait::block_on;
pub use world::{FixedClock, Recorder, SeededRandom, World};
pub use wrapped::{Hook, Wrapped};
