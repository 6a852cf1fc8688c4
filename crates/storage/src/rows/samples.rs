//! Samples and points of series between SQL and the engine.

use diesel::query_builder::QueryId;
use driftline_engine::{SampleMark, SampleWrite, SeriesKey, StoreError};
use driftline_insight::{SeriesPoint, Sketch};

use super::{sql, sql_ms};
use crate::codec::corrupt;
use crate::names::{device_sql, tenant_sql};

/// A row of `samples` to be written.
#[derive(QueryId)]
pub(crate) struct SampleInsert {
    pub(crate) tenant_no: i32,
    pub(crate) kind_no: i32,
    pub(crate) id: String,
    pub(crate) device_no: i32,
    pub(crate) at: i64,
    pub(crate) sent_at: i64,
    pub(crate) received_at: i64,
    pub(crate) hash: i64,
    pub(crate) fields: String,
}

/// A row of `series` to be written.
#[derive(QueryId)]
pub(crate) struct SeriesInsert {
    pub(crate) tenant_no: i32,
    pub(crate) hour: i64,
    pub(crate) name: String,
    pub(crate) counter: i64,
    pub(crate) sketch: Vec<u8>,
}

impl SampleInsert {
    pub(crate) fn new(sample: &SampleWrite, kind_no: i32, now: i64) -> Self {
        Self {
            tenant_no: tenant_sql(sample.key.tenant),
            kind_no,
            id: sample.key.id.to_string(),
            device_no: device_sql(sample.device),
            at: sql(sample.at_ms),
            sent_at: sql(sample.mark.sent_ms),
            received_at: now,
            hash: sample.mark.hash.cast_signed(),
            fields: sample.fields.as_str().to_owned(),
        }
    }
}

impl SeriesInsert {
    pub(crate) fn new((tenant, hour_ms, name): &SeriesKey, point: &SeriesPoint) -> Self {
        Self {
            tenant_no: tenant_sql(*tenant),
            hour: sql_ms(*hour_ms),
            name: name.to_string(),
            counter: point.counter.cast_signed(),
            sketch: point.sketch.to_bytes(),
        }
    }
}

pub(crate) fn sample_mark_of(hash: i64, sent_at: i64) -> Result<SampleMark, StoreError> {
    let sent_ms = u64::try_from(sent_at).map_err(|_| corrupt("sent_at"))?;
    Ok(SampleMark { hash: hash.cast_unsigned(), sent_ms })
}

pub(crate) fn point_of(counter: i64, sketch: &[u8]) -> Result<SeriesPoint, StoreError> {
    let sketch = Sketch::from_bytes(sketch).map_err(|_| corrupt("sketch"))?;
    Ok(SeriesPoint { counter: counter.cast_unsigned(), sketch })
}
