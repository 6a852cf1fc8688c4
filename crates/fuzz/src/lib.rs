//! Fuzzing of everything in Driftline that reads bytes from outside.
//!
//! A [`Target`] shows some bytes to one reader and asserts what must hold whatever they are: not only that nothing
//! panics, but that canonical text is its own canonical form, that what was written is read back, that both encodings
//! get the same verdict, that a bound holds. [`TARGETS`] lists them all. The program of the feature `libfuzzer` drives
//! one; the tests replay the kept corpus through every one. What the crate does not do: it opens no file and no socket.

mod canonical;
mod config;
mod cursor;
mod deflate;
mod http;
mod ingest;
mod message;
mod names;
mod policy;
mod schema;
mod server_message;
mod target;

pub use target::{TARGETS, Target, Verdict};
