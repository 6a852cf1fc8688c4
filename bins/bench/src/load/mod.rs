//! The `load` command: scenarios, and the parts they are made of.

mod batches;
pub(crate) mod bulk;
mod clock;
mod connect;
mod device;
pub(crate) mod dialect;
pub(crate) mod drive;
mod echo;
pub(crate) mod events;
pub(crate) mod frame;
mod idle;
mod latency;
pub(crate) mod now;
pub(crate) mod options;
mod post;
pub(crate) mod process;
pub(crate) mod records;
pub(crate) mod report;
mod samples;
mod scenario;
pub(crate) mod socket;
mod sync;
pub(crate) mod tally;
mod telemetry;
mod topics;
mod upload;
pub(crate) mod window;

pub(crate) use scenario::{Scenario, run};
