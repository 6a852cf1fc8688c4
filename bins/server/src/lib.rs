//! The Driftline server: chooses and wires; everything it does is done by the library crates.
//!
//! The program is [`main`]. [`Config`] is what a configuration file means, so that files can be read without starting
//! anything.

mod bucket;
mod cli;
mod commands;
mod config;
mod idempotency;
mod key;
mod kind;
mod limits;
mod outbox;
mod realtime;
mod run;
mod store;
mod uploads;
mod verify;

pub use cli::main;
pub use config::Config;
