//! The `load` command: scenarios, and the parts they are made of.

mod batches;
mod clock;
mod connect;
mod device;
mod dialect;
mod drive;
mod echo;
pub(crate) mod frame;
mod idle;
mod latency;
pub(crate) mod now;
mod options;
mod post;
mod process;
pub(crate) mod records;
mod report;
mod samples;
mod scenario;
mod socket;
mod sync;
mod tally;
mod telemetry;
mod window;

pub(crate) use scenario::{Scenario, run};
