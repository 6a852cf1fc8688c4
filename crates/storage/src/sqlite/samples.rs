//! Samples and series: what a commit group loads and writes of them, and how they are listed.

use std::collections::{BTreeMap, BTreeSet};

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Integer, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::{
    GroupState, Planned, RowKey, SamplePlace, SampleQuery, SampleRow, SeriesQuery, SeriesRow, StoreError,
    Submission, Task,
};
use driftline_model::{DeviceKey, DeviceNo, KindName, Object, RecordId, TenantNo};

use super::filter::Filter;
use super::hot::{Rows, binds, insert, statement};
use super::load::json_array;
use super::store_error;
use super::writer::{GroupError, Writer};
use crate::codec::corrupt;
use crate::names::{Names, device_key, device_of, device_sql, tenant_of, tenant_sql};
use crate::rows::{SampleInsert, SeriesInsert, point_of, sample_mark_of, sql_ms};

impl Rows for SampleInsert {
    const HEAD: &'static str = "INSERT INTO samples (tenant_no, kind_no, id, device_no, at, sent_at, received_at, hash, fields) \
         VALUES ";
    const TAIL: &'static str = " ON CONFLICT (tenant_no, kind_no, id) DO UPDATE SET device_no = excluded.device_no, \
         at = excluded.at, sent_at = excluded.sent_at, received_at = excluded.received_at, hash = excluded.hash, \
         fields = excluded.fields";

    fn bind<'b>(&'b self, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        binds!(self, out, Integer => tenant_no, Integer => kind_no, Text => id, Integer => device_no, BigInt => at,
            BigInt => sent_at, BigInt => received_at, BigInt => hash, Text => fields)
    }
}

impl Rows for SeriesInsert {
    const HEAD: &'static str = "INSERT INTO series (tenant_no, hour, name, counter, sketch) VALUES ";
    const TAIL: &'static str = " ON CONFLICT (tenant_no, hour, name) DO UPDATE SET counter = excluded.counter, sketch = excluded.sketch";

    fn bind<'b>(&'b self, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        binds!(self, out, Integer => tenant_no, BigInt => hour, Text => name, BigInt => counter, Binary => sketch)
    }
}

statement! {
    /// What tells samples of one kind from others, whose ids stand in a JSON array.
    LoadSamples { ids: String => Text, tenant_no: i32 => Integer, kind_no: i32 => Integer } =
    "SELECT s.id, s.hash, s.sent_at FROM json_each(" ? ids: Text
    ") AS j CROSS JOIN samples AS s ON s.tenant_no = " ? tenant_no: Integer
    " AND s.kind_no = " ? kind_no: Integer
    " AND s.id = j.value"
}

impl Query for LoadSamples {
    type SqlType = (Text, BigInt, BigInt);
}

statement! {
    /// Points of series that stand in a JSON array as arrays of tenant, hour and name.
    LoadSeries { points: String => Text } =
    "SELECT s.tenant_no, s.hour, s.name, s.counter, s.sketch FROM json_each(" ? points: Text
    ") AS j CROSS JOIN series AS s ON s.tenant_no = json_extract(j.value, '$[0]') \
     AND s.hour = json_extract(j.value, '$[1]') AND s.name = json_extract(j.value, '$[2]')"
}

impl Query for LoadSeries {
    type SqlType = (Integer, BigInt, Text, BigInt, Binary);
}

impl Writer {
    /// Loads what is stored of the samples that a group appends.
    pub(super) fn load_samples(
        &mut self,
        group: &[Submission],
        state: &mut GroupState,
    ) -> Result<(), GroupError> {
        let mut wanted: BTreeMap<(TenantNo, &KindName), Vec<&str>> = BTreeMap::new();
        for submission in group {
            for entry in &submission.entries {
                let (Task::Append(_), Some(kind), Some(id)) = (&entry.task, &entry.kind, &entry.id) else {
                    continue;
                };
                wanted.entry((submission.tenant, kind)).or_default().push(id.as_str());
            }
        }
        for ((tenant, kind), ids) in wanted {
            let Some(kind_no) = self.names.kind(tenant, kind) else { continue };
            let query = LoadSamples { ids: json_array(&ids), tenant_no: tenant_sql(tenant), kind_no };
            let rows: Vec<(String, i64, i64)> = query.load(&mut self.connection)?;
            for (id, hash, sent_at) in rows {
                let id = RecordId::new(&id).map_err(|_| corrupt("id"))?;
                let key = RowKey { tenant, kind: kind.clone(), id };
                state.samples.insert(key, sample_mark_of(hash, sent_at)?);
            }
        }
        Ok(())
    }

    /// Loads the points that a group adds to.
    pub(super) fn load_series(
        &mut self,
        group: &[Submission],
        state: &mut GroupState,
    ) -> Result<(), GroupError> {
        let mut wanted: BTreeSet<(TenantNo, i64, &str)> = BTreeSet::new();
        for submission in group {
            for entry in &submission.entries {
                let Task::Aggregate(aggregate) = &entry.task else { continue };
                let hour = sql_ms(aggregate.hour_ms);
                wanted.extend(aggregate.series.iter().map(|(name, _)| (submission.tenant, hour, &**name)));
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let mut points = String::with_capacity(wanted.len() * 40);
        for (tenant, hour, name) in wanted {
            points.push(if points.is_empty() { '[' } else { ',' });
            points.push_str(&format!("[{tenant},{hour},"));
            driftline_protocol::write_json_string(&mut points, name);
            points.push(']');
        }
        points.push(']');
        let rows: Vec<(i32, i64, String, i64, Vec<u8>)> = LoadSeries { points }.load(&mut self.connection)?;
        for (tenant_no, hour, name, counter, sketch) in rows {
            let hour_ms = u64::try_from(hour).map_err(|_| corrupt("hour"))?;
            let key = (tenant_of(tenant_no), hour_ms, name.into());
            state.series.insert(key, point_of(counter, &sketch)?);
        }
        Ok(())
    }

    pub(super) fn write_samples(&mut self, planned: &Planned, now: i64) -> Result<(), GroupError> {
        let mut samples = Vec::with_capacity(planned.writes.samples.len());
        for sample in &planned.writes.samples {
            let kind_no = self.intern_kind(sample.key.tenant, &sample.key.kind)?;
            samples.push(SampleInsert::new(sample, kind_no, now));
        }
        insert(&mut self.connection, &samples)?;
        let series = planned.writes.series.iter().map(|(key, point)| SeriesInsert::new(key, point));
        insert(&mut self.connection, &series.collect::<Vec<_>>())?;
        Ok(())
    }
}

#[derive(QueryableByName)]
struct SampleSql {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = BigInt)]
    at: i64,
    #[diesel(sql_type = BigInt)]
    received_at: i64,
    #[diesel(sql_type = Text)]
    fields: String,
}

#[derive(QueryableByName)]
struct NextDevice {
    #[diesel(sql_type = Integer)]
    device_no: i32,
    #[diesel(sql_type = Text)]
    sub: String,
    #[diesel(sql_type = Text)]
    device_id: String,
}

/// Lists samples device by device, so that each is found by its time.
pub(super) fn samples(
    connection: &mut SqliteConnection,
    names: &Names,
    tenant: TenantNo,
    query: &SampleQuery,
) -> Result<Vec<SampleRow>, StoreError> {
    let Some(kind_no) = names.kind(tenant, &query.kind) else { return Ok(Vec::new()) };
    let wanted = query.devices.as_ref().map(|devices| devices.iter().copied().collect::<BTreeSet<_>>());
    let mut rows = Vec::new();
    let mut from = query.after.as_ref().map(|after| after.device);
    while rows.len() < query.rows {
        let next = match &wanted {
            None => from.map_or(0, device_sql),
            Some(wanted) => match wanted.range(from.unwrap_or_default()..).next() {
                Some(device) => device_sql(*device),
                None => break,
            },
        };
        let Some((device, key)) = next_device(connection, tenant, kind_no, next)? else { break };
        if wanted.as_ref().is_none_or(|wanted| wanted.contains(&device)) {
            rows.extend(samples_of(connection, (tenant, kind_no), query, (device, &key), rows.len())?);
        }
        from = Some(DeviceNo::new(device.number() + 1));
    }
    Ok(rows)
}

/// Finds the first device from a number on that has samples of a kind.
fn next_device(
    connection: &mut SqliteConnection,
    tenant: TenantNo,
    kind_no: i32,
    from: i32,
) -> Result<Option<(DeviceNo, DeviceKey)>, StoreError> {
    let found: Option<NextDevice> = sql_query(
        "SELECT d.device_no, d.sub, d.device_id FROM samples AS s JOIN devices AS d ON d.device_no = s.device_no \
         WHERE s.tenant_no = ? AND s.kind_no = ? AND s.device_no >= ? ORDER BY s.device_no LIMIT 1",
    )
    .bind::<Integer, _>(tenant_sql(tenant))
    .bind::<Integer, _>(kind_no)
    .bind::<Integer, _>(from)
    .get_result(connection)
    .optional()
    .map_err(store_error)?;
    Ok(found.map(|found| (device_of(found.device_no), device_key(&found.sub, &found.device_id))))
}

fn samples_of(
    connection: &mut SqliteConnection,
    (tenant, kind_no): (TenantNo, i32),
    query: &SampleQuery,
    (device, key): (DeviceNo, &DeviceKey),
    have: usize,
) -> Result<Vec<SampleRow>, StoreError> {
    let mut filter = Filter::new("SELECT id, at, received_at, fields FROM samples");
    filter.number("tenant_no =", i64::from(tenant_sql(tenant)));
    filter.number("kind_no =", i64::from(kind_no));
    filter.number("device_no =", i64::from(device_sql(device)));
    filter.number("at >=", sql_ms(query.from_ms));
    filter.number("at <", sql_ms(query.to_ms));
    if let Some(after) = query.after.as_ref().filter(|after| after.device == device) {
        filter.pair("(at, id) >", (sql_ms(after.at_ms), after.id.as_str()));
    }
    filter.limit("ORDER BY at, id LIMIT", query.rows - have);
    let found: Vec<SampleSql> = filter.query().load(connection).map_err(store_error)?;
    let time = |at: i64| u64::try_from(at).map_err(|_| corrupt("at"));
    let row = |row: SampleSql| {
        let id = RecordId::new(&row.id).map_err(|_| corrupt("id"))?;
        Ok(SampleRow {
            place: SamplePlace { device, at_ms: time(row.at)?, id },
            key: key.clone(),
            received_ms: time(row.received_at)?,
            fields: Object::from_canonical(row.fields).map_err(|_| corrupt("fields"))?,
        })
    };
    found.into_iter().map(row).collect()
}

#[derive(QueryableByName)]
struct SeriesSql {
    #[diesel(sql_type = BigInt)]
    hour: i64,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    counter: i64,
    #[diesel(sql_type = Binary)]
    sketch: Vec<u8>,
}

pub(super) fn series(
    connection: &mut SqliteConnection,
    tenant: TenantNo,
    query: &SeriesQuery,
) -> Result<Vec<SeriesRow>, StoreError> {
    let mut filter = Filter::new("SELECT hour, name, counter, sketch FROM series");
    filter.number("tenant_no =", i64::from(tenant_sql(tenant)));
    filter.number("hour >=", sql_ms(query.from_ms));
    filter.number("hour <", sql_ms(query.to_ms));
    if let Some((hour_ms, name)) = &query.after {
        filter.pair("(hour, name) >", (sql_ms(*hour_ms), name));
    }
    filter.limit("ORDER BY hour, name LIMIT", query.rows);
    let found: Vec<SeriesSql> = filter.query().load(connection).map_err(store_error)?;
    let row = |row: SeriesSql| {
        Ok(SeriesRow {
            hour_ms: u64::try_from(row.hour).map_err(|_| corrupt("hour"))?,
            point: point_of(row.counter, &row.sketch)?,
            name: row.name.into(),
        })
    };
    found.into_iter().map(row).collect()
}
