//! Samples and series: what a commit group asks of them and writes, and how they are listed.

use std::collections::BTreeSet;

use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Binary, Integer, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use driftline_engine::{
    GroupState, RowKey, SampleMark, SamplePlace, SampleQuery, SampleRow, SampleWrite, SeriesKey, SeriesQuery,
    SeriesRow, StoreError,
};
use driftline_insight::{SeriesPoint, Sketch};
use driftline_model::{Object, RecordId, TenantNo};

use super::snapshot::give_back;
use super::sql::statement;
use super::{Shared, names, store_error};
use crate::codec::corrupt;
use crate::names::{Names, device_key, device_of, device_sql, tenant_sql};
use crate::rows::sql;

statement! {
    /// What tells stored samples from others of their ids.
    LoadSamples<'a> { tenant_no: i32 => Integer, kinds: Vec<i32> => Array<Integer>, ids: Vec<&'a str> => Array<Text> } =
    "SELECT s.kind_no, s.id, s.hash, s.sent_at FROM unnest(" ? kinds: Array<Integer>
    ", " ? ids: Array<Text>
    ") AS w(kind_no, id) CROSS JOIN LATERAL (SELECT * FROM samples WHERE tenant_no = " ? tenant_no: Integer
    " AND kind_no = w.kind_no AND id >= w.id AND id <= w.id ORDER BY id LIMIT 1) AS s"
}

impl Query for LoadSamples<'_> {
    type SqlType = (Integer, Text, BigInt, BigInt);
}

/// What tells a sample from others, as a query gives it.
pub(super) type MarkRow = (i32, String, i64, i64);

statement! {
    /// Points of series.
    LoadSeries<'a> { tenant_no: i32 => Integer, hours: Vec<i64> => Array<BigInt>, names: Vec<&'a str> => Array<Text> } =
    "SELECT s.hour, s.name, s.counter, s.sketch FROM unnest(" ? hours: Array<BigInt>
    ", " ? names: Array<Text>
    ") AS w(hour, name) CROSS JOIN LATERAL (SELECT * FROM series WHERE tenant_no = " ? tenant_no: Integer
    " AND hour = w.hour AND name >= w.name AND name <= w.name ORDER BY name LIMIT 1) AS s"
}

impl Query for LoadSeries<'_> {
    type SqlType = (BigInt, Text, BigInt, Binary);
}

/// A point of a series as a query gives it.
pub(super) type PointRow = (i64, String, i64, Vec<u8>);

statement! {
    /// Writes samples; a later one of the same id takes the place of an earlier one.
    PutSamples<'a> {
        tenant_no: i32 => Integer, now: i64 => BigInt, kind_no: Vec<i32> => Array<Integer>, id: Vec<&'a str> => Array<Text>,
        device_no: Vec<i32> => Array<Integer>, at: Vec<i64> => Array<BigInt>, sent_at: Vec<i64> => Array<BigInt>,
        hash: Vec<i64> => Array<BigInt>, fields: Vec<&'a str> => Array<Text>,
    } =
    "INSERT INTO samples (tenant_no, kind_no, id, device_no, at, sent_at, hash, fields, received_at) SELECT "
    ? tenant_no: Integer
    ", w.*, " ? now: BigInt
    " FROM unnest(" ? kind_no: Array<Integer>
    ", " ? id: Array<Text>
    ", " ? device_no: Array<Integer>
    ", " ? at: Array<BigInt>
    ", " ? sent_at: Array<BigInt>
    ", " ? hash: Array<BigInt>
    ", " ? fields: Array<Text>
    ") AS w ON CONFLICT (tenant_no, kind_no, id) DO UPDATE SET device_no = excluded.device_no, at = excluded.at, \
     sent_at = excluded.sent_at, received_at = excluded.received_at, hash = excluded.hash, fields = excluded.fields"
}

statement! {
    /// Writes points of series as they are now.
    PutSeries<'a> {
        tenant_no: i32 => Integer, hour: Vec<i64> => Array<BigInt>, name: Vec<&'a str> => Array<Text>,
        counter: Vec<i64> => Array<BigInt>, sketch: Vec<Vec<u8>> => Array<Binary>,
    } =
    "INSERT INTO series (tenant_no, hour, name, counter, sketch) SELECT " ? tenant_no: Integer
    ", w.* FROM unnest(" ? hour: Array<BigInt>
    ", " ? name: Array<Text>
    ", " ? counter: Array<BigInt>
    ", " ? sketch: Array<Binary>
    ") AS w ON CONFLICT (tenant_no, hour, name) DO UPDATE SET counter = excluded.counter, sketch = excluded.sketch"
}

impl<'a> PutSamples<'a> {
    pub(super) fn of(tenant_no: i32, now: i64) -> Self {
        Self {
            tenant_no,
            now,
            kind_no: Vec::new(),
            id: Vec::new(),
            device_no: Vec::new(),
            at: Vec::new(),
            sent_at: Vec::new(),
            hash: Vec::new(),
            fields: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, kind_no: i32, sample: &'a SampleWrite) {
        self.kind_no.push(kind_no);
        self.id.push(sample.key.id.as_str());
        self.device_no.push(device_sql(sample.device));
        self.at.push(sql(sample.at_ms));
        self.sent_at.push(sql(sample.mark.sent_ms));
        self.hash.push(sample.mark.hash.cast_signed());
        self.fields.push(sample.fields.as_str());
    }
}

impl<'a> PutSeries<'a> {
    pub(super) fn of(tenant_no: i32, points: &'a [(SeriesKey, SeriesPoint)]) -> Self {
        Self {
            tenant_no,
            hour: points.iter().map(|((_, hour_ms, _), _)| sql(*hour_ms)).collect(),
            name: points.iter().map(|((_, _, name), _)| &**name).collect(),
            counter: points.iter().map(|(_, point)| point.counter.cast_signed()).collect(),
            sketch: points.iter().map(|(_, point)| point.sketch.to_bytes()).collect(),
        }
    }
}

pub(super) async fn load_samples(
    mut pg: &AsyncPgConnection,
    tenant_no: i32,
    (kinds, ids): (Vec<i32>, Vec<&str>),
) -> QueryResult<Vec<MarkRow>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    LoadSamples { tenant_no, kinds, ids }.load(&mut pg).await
}

pub(super) async fn load_series(
    mut pg: &AsyncPgConnection,
    tenant_no: i32,
    (hours, names): (Vec<i64>, Vec<&str>),
) -> QueryResult<Vec<PointRow>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    LoadSeries { tenant_no, hours, names }.load(&mut pg).await
}

/// Keeps what was loaded, whose kinds are known.
pub(super) fn keep(
    names: &Names,
    tenant: TenantNo,
    state: &mut GroupState,
    (samples, series): (Vec<MarkRow>, Vec<PointRow>),
) -> Result<(), StoreError> {
    for (kind_no, id, hash, sent_at) in samples {
        let id = RecordId::new(&id).map_err(|_| corrupt("id"))?;
        let key = RowKey { tenant, kind: names.kind_name(kind_no)?, id };
        let mark = SampleMark { hash: hash.cast_unsigned(), sent_ms: ms(sent_at)? };
        state.samples.insert(key, mark);
    }
    for (hour, name, counter, sketch) in series {
        state.series.insert((tenant, ms(hour)?, name.into()), point(counter, &sketch)?);
    }
    Ok(())
}

fn ms(stored: i64) -> Result<u64, StoreError> {
    u64::try_from(stored).map_err(|_| corrupt("time"))
}

fn point(counter: i64, sketch: &[u8]) -> Result<SeriesPoint, StoreError> {
    let sketch = Sketch::from_bytes(sketch).map_err(|_| corrupt("sketch"))?;
    Ok(SeriesPoint { counter: counter.cast_unsigned(), sketch })
}

/// A bound as the database compares it; none of its times is later.
fn bound(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

#[derive(QueryableByName)]
struct SampleSql {
    #[diesel(sql_type = Integer)]
    device_no: i32,
    #[diesel(sql_type = Text)]
    sub: String,
    #[diesel(sql_type = Text)]
    device_id: String,
    #[diesel(sql_type = BigInt)]
    at: i64,
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = BigInt)]
    received_at: i64,
    #[diesel(sql_type = Text)]
    fields: String,
}

impl SampleSql {
    fn row(self) -> Result<SampleRow, StoreError> {
        let id = RecordId::new(&self.id).map_err(|_| corrupt("id"))?;
        Ok(SampleRow {
            place: SamplePlace { device: device_of(self.device_no), at_ms: ms(self.at)?, id },
            key: device_key(&self.sub, &self.device_id),
            received_ms: ms(self.received_at)?,
            fields: Object::from_canonical(self.fields).map_err(|_| corrupt("fields"))?,
        })
    }
}

pub(super) async fn samples(
    shared: &Shared,
    tenant: TenantNo,
    query: &SampleQuery,
) -> Result<Vec<SampleRow>, StoreError> {
    let lease = shared.reader().await?;
    let found = list_samples(lease.pg(), &shared.caches.names, tenant, query).await;
    give_back(lease, found).await
}

/// Goes from device to device, and within each by time: no sample outside the times is looked at.
async fn list_samples(
    mut pg: &AsyncPgConnection,
    names: &Names,
    tenant: TenantNo,
    query: &SampleQuery,
) -> Result<Vec<SampleRow>, StoreError> {
    names::find(names, pg, tenant, [&query.kind], []).await?;
    let Some(kind_no) = names.kind(tenant, &query.kind) else { return Ok(Vec::new()) };
    let only = query.devices.as_ref().map_or("", |_| " AND d.device_no = ANY($9)");
    let devices: BTreeSet<i32> = query.devices.iter().flatten().map(|device| device_sql(*device)).collect();
    let after = query.after.as_ref();
    let statement = format!(
        "SELECT d.device_no, d.sub, d.device_id, s.at, s.id, s.received_at, s.fields FROM devices AS d \
         CROSS JOIN LATERAL (SELECT at, id, received_at, fields FROM samples WHERE tenant_no = $1 AND kind_no = $2 \
         AND device_no = d.device_no AND at >= $3 AND at < $4 AND (device_no, at, id) > ($5, $6, $7) \
         ORDER BY at, id LIMIT $8) AS s WHERE d.tenant_no = $1 AND d.device_no >= $5{only} \
         ORDER BY d.device_no, s.at, s.id LIMIT $8"
    );
    let found: Vec<SampleSql> = sql_query(statement)
        .bind::<Integer, _>(tenant_sql(tenant))
        .bind::<Integer, _>(kind_no)
        .bind::<BigInt, _>(bound(query.from_ms))
        .bind::<BigInt, _>(bound(query.to_ms))
        .bind::<Integer, _>(after.map_or(-1, |place| device_sql(place.device)))
        .bind::<BigInt, _>(after.map_or(-1, |place| bound(place.at_ms)))
        .bind::<Text, _>(after.map_or("", |place| place.id.as_str()))
        .bind::<BigInt, _>(i64::try_from(query.rows).unwrap_or(i64::MAX))
        .bind::<Array<Integer>, _>(devices.into_iter().collect::<Vec<_>>())
        .load(&mut pg)
        .await
        .map_err(store_error)?;
    found.into_iter().map(SampleSql::row).collect()
}

#[derive(QueryableByName)]
struct PointSql {
    #[diesel(sql_type = BigInt)]
    hour: i64,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    counter: i64,
    #[diesel(sql_type = Binary)]
    sketch: Vec<u8>,
}

pub(super) async fn series(
    shared: &Shared,
    tenant: TenantNo,
    query: &SeriesQuery,
) -> Result<Vec<SeriesRow>, StoreError> {
    let lease = shared.reader().await?;
    let (hour, name) = query.after.as_ref().map_or((-1, ""), |(hour_ms, name)| (bound(*hour_ms), name));
    let found = sql_query(
        "SELECT hour, name, counter, sketch FROM series WHERE tenant_no = $1 AND hour >= $2 AND hour < $3 \
         AND (hour, name) > ($4, $5) ORDER BY hour, name LIMIT $6",
    )
    .bind::<Integer, _>(tenant_sql(tenant))
    .bind::<BigInt, _>(bound(query.from_ms))
    .bind::<BigInt, _>(bound(query.to_ms))
    .bind::<BigInt, _>(hour)
    .bind::<Text, _>(name)
    .bind::<BigInt, _>(i64::try_from(query.rows).unwrap_or(i64::MAX))
    .load::<PointSql>(&mut lease.pg())
    .await;
    let found = give_back(lease, found.map_err(store_error)).await?;
    let row = |row: PointSql| {
        let point = point(row.counter, &row.sketch)?;
        Ok(SeriesRow { hour_ms: ms(row.hour)?, name: row.name.into(), point })
    };
    found.into_iter().map(row).collect()
}
