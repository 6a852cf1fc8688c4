//! What is removed when its time has passed.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Integer, Text};
use driftline_engine::StoreError;
use driftline_model::KindName;

use super::store_error;
use super::writer::Writer;
use crate::names::tenant_of;
use crate::rows::{sql, sql_ms};

#[derive(QueryableByName)]
struct Numbers {
    #[diesel(sql_type = Integer)]
    tenant_no: i32,
    #[diesel(sql_type = Integer)]
    number: i32,
}

#[derive(QueryableByName)]
struct Tombstone {
    #[diesel(sql_type = BigInt)]
    rowid: i64,
    #[diesel(sql_type = Integer)]
    tenant_no: i32,
    #[diesel(sql_type = BigInt)]
    seq: i64,
}

#[derive(QueryableByName)]
struct Floor {
    #[diesel(sql_type = Integer)]
    tenant_no: i32,
    #[diesel(sql_type = BigInt)]
    seq: i64,
}

const DAY_MS: u64 = 24 * 3_600_000;

/// The most rows, and devices, that one transaction goes through where many may be past their time.
pub(super) const STEP: usize = 1000;

pub(super) fn prune(writer: &mut Writer, now_ms: u64) -> Result<u64, StoreError> {
    let before = |days: u64| sql(now_ms.saturating_sub(days * DAY_MS));
    // What is forgotten is too old from now on, and never new.
    sql_query(
        "UPDATE devices SET acked_n = max(acked_n, old.n) FROM (SELECT device_no, max(n) AS n FROM op_results \
         WHERE at < ? GROUP BY device_no) AS old WHERE old.device_no = devices.device_no",
    )
    .bind::<BigInt, _>(before(90))
    .execute(&mut writer.connection)
    .map_err(store_error)?;
    writer.forget_devices();
    let mut removed = 0;
    for (statement, days) in
        [("DELETE FROM op_results WHERE at < ?", 90), ("DELETE FROM sync_batches WHERE at < ?", 1)]
    {
        removed += sql_query(statement)
            .bind::<BigInt, _>(before(days))
            .execute(&mut writer.connection)
            .map_err(store_error)?;
    }
    let old = before(30);
    Ok(removed as u64 + purge_tombstones(writer, old)? + purge_exits(writer, old)?)
}

/// Purges deleted records that were last changed before a time; readers that stand before them must pull anew.
fn purge_tombstones(writer: &mut Writer, before: i64) -> Result<u64, StoreError> {
    let rows: Vec<Tombstone> = sql_query(
        "SELECT rowid, tenant_no, seq FROM records WHERE substr(del, 1, 1) = x'01' AND changed_at < ?",
    )
    .bind::<BigInt, _>(before)
    .load(&mut writer.connection)
    .map_err(store_error)?;
    let mut removed = 0;
    for row in rows {
        sql_query("DELETE FROM records WHERE rowid = ?")
            .bind::<BigInt, _>(row.rowid)
            .execute(&mut writer.connection)
            .map_err(store_error)?;
        raise_floor(writer, row.tenant_no, row.seq)?;
        removed += 1;
    }
    Ok(removed)
}

/// Purges exits from scopes that were written before a time; readers that stand before them must pull anew.
fn purge_exits(writer: &mut Writer, before: i64) -> Result<u64, StoreError> {
    let floors: Vec<Floor> =
        sql_query("SELECT tenant_no, max(seq) AS seq FROM scope_exits WHERE at < ? GROUP BY tenant_no")
            .bind::<BigInt, _>(before)
            .load(&mut writer.connection)
            .map_err(store_error)?;
    for floor in floors {
        raise_floor(writer, floor.tenant_no, floor.seq)?;
    }
    let removed = sql_query("DELETE FROM scope_exits WHERE at < ?")
        .bind::<BigInt, _>(before)
        .execute(&mut writer.connection)
        .map_err(store_error)?;
    Ok(removed as u64)
}

fn raise_floor(writer: &mut Writer, tenant_no: i32, seq: i64) -> Result<(), StoreError> {
    sql_query("UPDATE stream_head SET gc_floor = max(gc_floor, ?) WHERE tenant_no = ?")
        .bind::<BigInt, _>(seq)
        .bind::<Integer, _>(tenant_no)
        .execute(&mut writer.connection)
        .map_err(store_error)?;
    writer.forget_head(tenant_of(tenant_no));
    Ok(())
}

/// Removes at most so many answers of keys that are expired, the oldest first.
pub(super) fn keys(writer: &mut Writer, now_ms: u64, limit: usize) -> Result<u64, StoreError> {
    let removed = sql_query(
        "DELETE FROM idempotency WHERE (tenant_no, owner, key) IN \
         (SELECT tenant_no, owner, key FROM idempotency WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)",
    )
    .bind::<BigInt, _>(sql_ms(now_ms))
    .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
    .execute(&mut writer.connection)
    .map_err(store_error)?;
    Ok(removed as u64)
}

/// Removes a step of the points of series whose hour began before a time.
pub(super) fn series(writer: &mut Writer, before_ms: u64) -> Result<u64, StoreError> {
    let removed = sql_query(
        "DELETE FROM series WHERE (tenant_no, hour, name) IN \
         (SELECT s.tenant_no, s.hour, s.name FROM tenants AS t CROSS JOIN series AS s \
         ON s.tenant_no = t.tenant_no AND s.hour < ? LIMIT ?)",
    )
    .bind::<BigInt, _>(sql_ms(before_ms))
    .bind::<BigInt, _>(sql(STEP as u64))
    .execute(&mut writer.connection)
    .map_err(store_error)?;
    Ok(removed as u64)
}

/// Samples of one kind, as far as they were gone through.
#[derive(Debug, Clone, Copy)]
pub(super) struct SampleSteps {
    tenant_no: i32,
    kind_no: i32,
    /// The device that comes next.
    device_no: i32,
    /// Samples that tell of an earlier time, and were received before it, go.
    before: i64,
}

/// Finds the kinds of a name, each tenant's own.
pub(super) fn samples(
    connection: &mut SqliteConnection,
    kind: &KindName,
    before_ms: u64,
) -> Result<Vec<SampleSteps>, StoreError> {
    let kinds: Vec<Numbers> = sql_query("SELECT tenant_no, kind_no AS number FROM kinds WHERE kind = ?")
        .bind::<Text, _>(kind.as_str())
        .load(connection)
        .map_err(store_error)?;
    let before = sql_ms(before_ms);
    let steps =
        |kind: Numbers| SampleSteps { tenant_no: kind.tenant_no, kind_no: kind.number, device_no: 0, before };
    Ok(kinds.into_iter().map(steps).collect())
}

impl SampleSteps {
    /// Removes a step of them; gives how many, and whether more may follow.
    pub(super) fn step(&mut self, writer: &mut Writer) -> Result<(u64, bool), StoreError> {
        let mut removed = 0;
        for _ in 0..STEP {
            let Some(device_no) = self.next_device(&mut writer.connection)? else {
                return Ok((removed, false));
            };
            self.device_no = device_no;
            let left = STEP as u64 - removed;
            let gone = self.remove(&mut writer.connection, left)?;
            removed += gone;
            if gone == left {
                // There may be more of the same device.
                return Ok((removed, true));
            }
            self.device_no += 1;
        }
        Ok((removed, true))
    }

    fn next_device(&self, connection: &mut SqliteConnection) -> Result<Option<i32>, StoreError> {
        let next: Option<Numbers> = sql_query(
            "SELECT tenant_no, device_no AS number FROM samples \
             WHERE tenant_no = ? AND kind_no = ? AND device_no >= ? ORDER BY device_no LIMIT 1",
        )
        .bind::<Integer, _>(self.tenant_no)
        .bind::<Integer, _>(self.kind_no)
        .bind::<Integer, _>(self.device_no)
        .get_result(connection)
        .optional()
        .map_err(store_error)?;
        Ok(next.map(|next| next.number))
    }

    fn remove(&self, connection: &mut SqliteConnection, limit: u64) -> Result<u64, StoreError> {
        let removed = sql_query(
            "DELETE FROM samples WHERE rowid IN (SELECT rowid FROM samples \
             WHERE tenant_no = ? AND kind_no = ? AND device_no = ? AND at < ? AND received_at < ? LIMIT ?)",
        )
        .bind::<Integer, _>(self.tenant_no)
        .bind::<Integer, _>(self.kind_no)
        .bind::<Integer, _>(self.device_no)
        .bind::<BigInt, _>(self.before)
        .bind::<BigInt, _>(self.before)
        .bind::<BigInt, _>(sql(limit))
        .execute(connection)
        .map_err(store_error)?;
        Ok(removed as u64)
    }
}
