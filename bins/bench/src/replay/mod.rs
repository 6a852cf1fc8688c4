//! The `replay` command: a client that comes back and reads what it missed; and the `rows` command, the plain program that
//! is set beside it.

mod command;
mod fill;
mod read;
mod rows;
mod serve;

pub(crate) use command::{Options, run};
pub(crate) use serve::{Options as RowsOptions, serve};
