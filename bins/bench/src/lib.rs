//! What `driftline-bench` can do: load on a running server, bytes on the wire, the time that a key costs, and simulations
//! of whole systems.
//!
//! - [`bytes`] counts the bytes of messages in every form, with changed fields only and with whole records.
//! - `load` speaks only the public wire protocol and reads `/proc`; it shares no code with the server, so that it can
//!   drive any server and cannot inherit its mistakes. It does not judge: it prints figures, and `scripts/bars` sets
//!   two servers side by side.
//! - `fanout` publishes to one topic and follows every delivery to many subscribers, in the same manner as `load`.
//! - `replay` lets a client come back and read what it missed, and `rows` is the plain program to set beside that.
//! - [`idempotency`] takes the time of requests that come again, by memory and by the database.
//! - [`simulate`] runs the real engine and real devices in one thread, with a network, clocks and faults that a seed
//!   repeats, and judges what comes of them.
//! - [`verify`] computes from recorded inputs and final states which accepted values disappeared without a trace. It
//!   shares no code with the resolver either.

pub mod bytes;
mod cli;
mod fanout;
pub mod idempotency;
mod load;
mod replay;
mod rng;
pub mod simulate;
pub mod verify;

pub use cli::main;
