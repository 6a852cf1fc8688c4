//! Stories that the examples tell and the tests check.

pub mod server;
pub mod two_phones;
