//! Stored samples and series, as they are asked for.

use driftline_insight::SeriesPoint;
use driftline_model::{DeviceKey, DeviceNo, KindName, Object, RecordId};

/// Which samples of a tenant are wanted: those of one kind, by device, time and id.
#[derive(Debug, Clone)]
pub struct SampleQuery {
    /// The kind.
    pub kind: KindName,
    /// Only those of these devices; none: of all.
    pub devices: Option<Vec<DeviceNo>>,
    /// Only those that tell of this time or later, in Unix milliseconds.
    pub from_ms: u64,
    /// Only those that tell of an earlier time than this.
    pub to_ms: u64,
    /// The last sample of the page before.
    pub after: Option<SamplePlace>,
    /// The most rows.
    pub rows: usize,
}

/// The place of a sample in a list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SamplePlace {
    /// The device that sent it.
    pub device: DeviceNo,
    /// The time that it tells of, in Unix milliseconds.
    pub at_ms: u64,
    /// Its id.
    pub id: RecordId,
}

/// A stored sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleRow {
    /// Where it stands in a list.
    pub place: SamplePlace,
    /// The device that sent it.
    pub key: DeviceKey,
    /// When it was received, in Unix milliseconds.
    pub received_ms: u64,
    /// Its fields.
    pub fields: Object,
}

/// Which points of a tenant's series are wanted, by hour and name.
#[derive(Debug, Clone)]
pub struct SeriesQuery {
    /// Only hours that begin at this time or later, in Unix milliseconds.
    pub from_ms: u64,
    /// Only hours that begin before this time.
    pub to_ms: u64,
    /// The last point of the page before.
    pub after: Option<(u64, Box<str>)>,
    /// The most rows.
    pub rows: usize,
}

/// What a series holds of one hour.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesRow {
    /// The hour's beginning in Unix milliseconds.
    pub hour_ms: u64,
    /// The series.
    pub name: Box<str>,
    /// The point.
    pub point: SeriesPoint,
}

/// How long samples and series are kept beside what is always kept for its own time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retention {
    /// Kinds of telemetry whose samples go, and how many milliseconds after their receipt.
    pub samples: Vec<(KindName, u64)>,
    /// Milliseconds after which points of series go; none: they stay.
    pub series_ms: Option<u64>,
}
