//! The shell around a buffer of telemetry: two doors, and the change between them.

mod change;
mod doors;
mod line;
mod shell;
mod status;
mod turn;

pub use shell::{Courier, CourierError, CourierOptions, Keeper};
pub use status::{CourierMode, CourierState, CourierStatus, Switches};
