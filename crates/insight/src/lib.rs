//! Numbers in, numbers out: quantile sketches, hourly series, alerts and live metrics of streams.
//!
//! - [`Sketch`] keeps a distribution so that quantiles are right within 1 %, and so that sketches of nodes and hours
//!   add up to exactly the sketch of everything.
//! - [`Aggregate`] is what a device counted while it was offline; [`SeriesPoint`] is one hour of a named series.
//! - [`Ewma`] tells how unusual a value is, [`Threshold`] whether it is beyond a fixed bound.
//! - [`StreamMeter`] measures the last ten seconds of a stream.
//!
//! The buckets of the sketch are our own: `sketches-ddsketch` adds one value at a time, and has no bytes of its own
//! and no promise about those of its state, while ours travel as pairs of value and count and are stored, so that
//! equal content has to give equal bytes.
//!
//! What the crate does not do: it reads no clock (times are arguments, in milliseconds since 1970), stores nothing,
//! sends no alert anywhere and knows no wire format.
//!
//! ```
//! use driftline_insight::Sketch;
//!
//! let (mut monday, mut tuesday) = (Sketch::new(), Sketch::new());
//! monday.add(12.5)?;
//! tuesday.add_many(80.0, 3)?;
//! monday.merge(&tuesday);
//!
//! let median = monday.quantile(0.5).expect("there are values");
//! assert!((median - 80.0).abs() <= 0.8);
//! assert_eq!(Sketch::from_bytes(&monday.to_bytes())?, monday);
//! # Ok::<(), driftline_insight::SketchError>(())
//! ```

mod aggregate;
mod ewma;
mod series;
mod severity;
mod sketch;
mod stream;
mod threshold;

pub use aggregate::{Aggregate, AggregateError};
pub use ewma::{Anomaly, Ewma, EwmaConfig};
pub use series::{HOUR_MS, SeriesPoint, hour_of};
pub use severity::{ConfigError, Severity};
pub use sketch::{Sketch, SketchError};
pub use stream::{StreamMeter, StreamMetrics, StreamSample};
pub use threshold::{Side, Threshold, ThresholdChange, ThresholdConfig};

/// Compiles the example of the readme.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
