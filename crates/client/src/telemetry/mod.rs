//! Samples on their way to the server, and the doors that they take.

mod answers;
mod backoff;
mod buffer;
mod cut;
mod envelope;
mod limits;
mod saved;
mod window;

pub use answers::Heard;
pub use backoff::Backoff;
pub use buffer::{RecordError, Telemetry};
pub use envelope::RefusedSample;
pub use limits::{TelemetryLimits, TelemetryTotals};
pub use saved::SavedError;
pub use window::{CountError, Window};
