//! Whole systems in one thread: real devices and the real engine, with a network, clocks and faults from a seed.
//!
//! A run plays a schedule of edits, pulls, cuts, restarts, restores and clock jumps in virtual time. After every step
//! it checks the laws: what was acknowledged is there once, sequences have no gap, a device at a place has everything
//! up to it, a caught-up device shows what the server shows. In the end an independent model and the offline verifier
//! look at what the server holds. In liveness mode the faults end then, and all have to agree within a bound.
//!
//! Nothing but the seed decides what happens: the same seed tells the same story, byte for byte.
//!
//! ```
//! use driftline_bench::simulate::{MemoryBackend, Setup, play};
//!
//! let setup = Setup { seed: 7, steps: 40, ..Setup::default() };
//! let outcome = play(&setup, &mut MemoryBackend::default())?;
//! assert_eq!(outcome.violation, None);
//! # Ok::<(), anyhow::Error>(())
//! ```

mod backend;
mod command;
mod device;
mod doors;
mod evidence;
mod faults;
mod journal;
mod laws;
mod model;
mod network;
mod report;
mod review;
mod run;
mod schedule;
mod server;
mod setup;
mod workload;
mod world;

pub use backend::{Backend, MemoryBackend, SqliteBackend};
pub use command::Arguments;
pub(crate) use command::command;
pub use report::{Counts, Outcome, Violation};
pub use run::play;
pub use setup::{Mode, Setup};
pub(crate) use world::{BEGIN_MS, block_on};
pub use world::{SeededRandom, ServerClock, World};
