//! Stored samples and series.

use axum::http::StatusCode;
use driftline_engine::{SamplePlace, SampleRow, SampleWish, SeriesQuery, SeriesRow, Store};
use driftline_model::{DeviceId, DeviceNo, RecordId};
use driftline_protocol::{ListDoc, SampleDoc, SeriesDoc, format_millis, raw_object, to_json};

use super::{Asked, cursor_of};
use crate::app::App;
use crate::reply::{Answer, Refusal, json};

/// Lists samples of a kind by device, time and id.
pub(super) async fn samples<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let (limit, pairs) = (asked.limit(app)?, &asked.pairs);
    let wish = SampleWish {
        kind: asked.kind()?,
        device: pairs.parsed("device", DeviceId::new)?,
        owner: pairs.get("owner").map(Box::from),
        from_ms: pairs.time("from")?.unwrap_or(0),
        to_ms: pairs.time("to")?.unwrap_or(TIME_MAX),
        after: asked.place(read_sample_place)?,
        // One more than wanted tells whether more wait.
        rows: limit + 1,
    };
    let mut rows = app.engine.samples(&asked.identity, wish).await?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next_cursor = rows.last().filter(|_| more).map(|row| {
        let SamplePlace { device, at_ms, id } = &row.place;
        cursor_of(&format!("{}:{at_ms}:{id}", device.number()))
    });
    let list = ListDoc { items: rows.iter().map(sample_doc).collect(), next_cursor };
    Ok(json(StatusCode::OK, to_json(&list)))
}

/// The end of all times that are told.
const TIME_MAX: u64 = 1 << 53;

fn read_sample_place(text: &str) -> Option<SamplePlace> {
    let mut parts = text.splitn(3, ':');
    let device = DeviceNo::new(parts.next()?.parse().ok()?);
    let at_ms = parts.next()?.parse().ok()?;
    Some(SamplePlace { device, at_ms, id: RecordId::new(parts.next()?).ok()? })
}

fn sample_doc(row: &SampleRow) -> SampleDoc {
    SampleDoc {
        id: row.place.id.to_string(),
        device_id: row.key.device().to_owned(),
        owner: row.key.user().to_owned(),
        at: format_millis(row.place.at_ms),
        received_at: format_millis(row.received_ms),
        fields: raw_object(&row.fields),
    }
}

/// Lists points of series by hour or day, and name.
pub(super) async fn analytics<S: Store>(app: &App<S>, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let (limit, pairs) = (asked.limit(app)?, &asked.pairs);
    let by_day = pairs.parsed("granularity", |text| match text {
        "hour" => Ok(false),
        "day" => Ok(true),
        _ => Err("must be hour or day"),
    })?;
    let query = SeriesQuery {
        from_ms: pairs.time("from")?.unwrap_or(0),
        to_ms: pairs.time("to")?.unwrap_or(TIME_MAX),
        after: asked.place(read_series_place)?,
        rows: limit + 1,
    };
    let mut rows = if by_day == Some(true) {
        app.engine.series_by_day(&asked.identity, query).await?
    } else {
        app.engine.series(&asked.identity, query).await?
    };
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next_cursor =
        rows.last().filter(|_| more).map(|row| cursor_of(&format!("{}:{}", row.hour_ms, row.name)));
    let list = ListDoc { items: rows.iter().map(series_doc).collect(), next_cursor };
    Ok(json(StatusCode::OK, to_json(&list)))
}

fn read_series_place(text: &str) -> Option<(u64, Box<str>)> {
    let (at_ms, name) = text.split_once(':')?;
    Some((at_ms.parse().ok()?, name.into()))
}

fn series_doc(row: &SeriesRow) -> SeriesDoc {
    let sketch = &row.point.sketch;
    SeriesDoc {
        from: format_millis(row.hour_ms),
        series: row.name.to_string(),
        counter: row.point.counter,
        count: sketch.count(),
        sum: sketch.sum(),
        min: sketch.min(),
        max: sketch.max(),
        p50: sketch.quantile(0.5),
        p95: sketch.quantile(0.95),
        p99: sketch.quantile(0.99),
    }
}
