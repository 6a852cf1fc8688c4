//! The registry of devices.

use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::{
    DeviceAction, DeviceChange, DeviceChanged, DeviceNote, DeviceOnce, DeviceQuery, DeviceRow, DeviceSign,
    StoreError,
};
use driftline_model::{DeviceNo, TenantId, TenantNo};

use super::filter::Filter;
use super::hot::statement;
use super::writer::Writer;
use super::{once, queries, store_error};
use crate::codec::corrupt;
use crate::log::is_of_the_log;
use crate::names::{device_key, device_of, device_sql, tenant_of, tenant_sql};
use crate::once::{Kept, Met, meet_change};
use crate::registry::{digest_of, refused};
use crate::rows::{DeviceSql, sql, sql_ms};

const SELECT: &str = "SELECT d.device_no, d.sub, d.device_id, d.disabled_at IS NULL AS enabled, \
     d.retired_at IS NOT NULL AS retired, g.digest IS NOT NULL AS hashed, d.connection IS NOT NULL AS online, \
     d.status, d.report, d.created_at, d.last_seen_at \
     FROM devices AS d LEFT JOIN device_digests AS g ON g.device_no = d.device_no";

statement! {
    /// A device was heard.
    NoteHeard { at: i64 => BigInt, device_no: i32 => Integer, tenant_no: i32 => Integer } =
    "UPDATE devices SET last_seen_at = max(last_seen_at, " ? at: BigInt
    ") WHERE device_no = " ? device_no: Integer
    " AND tenant_no = " ? tenant_no: Integer
}

statement! {
    /// A device connected, unless a later connection is known.
    NoteConnected { at: i64 => BigInt, connection: String => Text, device_no: i32 => Integer, tenant_no: i32 => Integer } =
    "UPDATE devices SET connected_at = " ? at: BigInt
    ", connection = " ? connection: Text
    " WHERE device_no = " ? device_no: Integer
    " AND tenant_no = " ? tenant_no: Integer
    " AND connected_at <= " ? at: BigInt
}

statement! {
    /// A connection of a device is gone.
    NoteDisconnected { device_no: i32 => Integer, tenant_no: i32 => Integer, connection: String => Text } =
    "UPDATE devices SET connection = NULL WHERE device_no = " ? device_no: Integer
    " AND tenant_no = " ? tenant_no: Integer
    " AND connection = " ? connection: Text
}

statement! {
    /// A device said how it is, unless it said something later.
    NoteReported {
        at: i64 => BigInt, status: Option<String> => Nullable<Text>, report: String => Text, device_no: i32 => Integer,
        tenant_no: i32 => Integer,
    } =
    "UPDATE devices SET reported_at = " ? at: BigInt
    ", status = coalesce(" ? status: Nullable<Text>
    ", status), report = " ? report: Text
    " WHERE device_no = " ? device_no: Integer
    " AND tenant_no = " ? tenant_no: Integer
    " AND reported_at <= " ? at: BigInt
}

pub(super) fn device_row(
    connection: &mut SqliteConnection,
    tenant: TenantNo,
    device: DeviceNo,
) -> Result<Option<DeviceRow>, StoreError> {
    let mut filter = Filter::new(SELECT);
    filter.number("d.tenant_no =", i64::from(tenant_sql(tenant)));
    filter.number("d.device_no =", i64::from(device_sql(device)));
    let found: Option<DeviceSql> = filter.query().get_result(connection).optional().map_err(store_error)?;
    found.map(DeviceSql::row).transpose()
}

pub(super) fn devices(
    connection: &mut SqliteConnection,
    tenant: TenantNo,
    query: &DeviceQuery,
) -> Result<Vec<DeviceRow>, StoreError> {
    let mut filter = Filter::new(SELECT);
    filter.number("d.tenant_no =", i64::from(tenant_sql(tenant)));
    filter.holds("d.retired_at IS NULL");
    if let Some(owner) = &query.owner {
        filter.text("d.sub =", owner);
    }
    if let Some(device_id) = &query.device_id {
        filter.text("d.device_id =", device_id.as_str());
    }
    if let Some(after) = query.after {
        filter.number("d.device_no >", i64::from(device_sql(after)));
    }
    filter.limit("ORDER BY d.device_no LIMIT", query.rows);
    let found: Vec<DeviceSql> = filter.query().load(connection).map_err(store_error)?;
    found.into_iter().map(DeviceSql::row).collect()
}

#[derive(QueryableByName)]
struct Led {
    #[diesel(sql_type = Text)]
    tenant: String,
    #[diesel(sql_type = Integer)]
    tenant_no: i32,
    #[diesel(sql_type = Integer)]
    device_no: i32,
}

pub(super) fn device_by_digest(
    connection: &mut SqliteConnection,
    digest: [u8; 32],
) -> Result<Option<(TenantId, TenantNo, DeviceRow)>, StoreError> {
    let led: Option<Led> = sql_query(
        "SELECT t.tenant, t.tenant_no, g.device_no FROM device_digests AS g \
         JOIN tenants AS t ON t.tenant_no = g.tenant_no WHERE g.digest = ?",
    )
    .bind::<Binary, _>(digest.to_vec())
    .get_result(connection)
    .optional()
    .map_err(store_error)?;
    let Some(Led { tenant, tenant_no, device_no }) = led else { return Ok(None) };
    let (name, tenant) = (TenantId::new(&tenant).map_err(|_| corrupt("tenant"))?, tenant_of(tenant_no));
    let row = device_row(connection, tenant, device_of(device_no))?;
    Ok(row.map(|row| (name, tenant, row)))
}

pub(super) fn change_device(
    writer: &mut Writer,
    tenant: TenantNo,
    change: &DeviceChange,
    once: Option<&DeviceOnce>,
) -> Result<DeviceChanged, StoreError> {
    let now_ms = writer.clock.now_ms();
    if let Some(once) = once {
        let name = (&*once.owner, &*once.key);
        let kept = once::kept(&mut writer.connection, tenant, name).map_err(store_error)??;
        match meet_change(kept.as_ref(), &once.fingerprint, now_ms)? {
            Met::Free => {}
            Met::Before(bytes) => return Ok(DeviceChanged::Replayed(bytes)),
            Met::Other => return Ok(DeviceChanged::Reused),
        }
    }
    let key = device_key(&change.owner, change.device_id.as_str());
    let number = queries::find_device(&mut writer.connection, tenant, &key)?;
    let found = match number {
        Some(number) => device_row(&mut writer.connection, tenant, number)?,
        None => None,
    };
    if let Some(answer) = refused(found.as_ref(), change) {
        return Ok(answer);
    }
    let digest = digest_of(change);
    if let Some(digest) = digest
        && holder(&mut writer.connection, digest)?.is_some_and(|holder| Some(holder) != number)
    {
        return Ok(DeviceChanged::HashTaken);
    }
    let number = match number {
        Some(number) => number,
        None => queries::register_device(writer, tenant, &key)?,
    };
    write_change(&mut writer.connection, number, change, sql(now_ms))?;
    if let Some(digest) = digest {
        lead(&mut writer.connection, (tenant, number), digest, sql(now_ms))?;
    }
    let row = device_row(&mut writer.connection, tenant, number)?.ok_or_else(|| corrupt("devices"))?;
    if let Some(once) = once {
        let expires_ms = now_ms.saturating_add(once.window_ms);
        let kept = Kept::of_change(once.fingerprint, expires_ms, &(once.answer)(&row));
        once::keep(&mut writer.connection, tenant, (&once.owner, &once.key), kept)?;
    }
    Ok(DeviceChanged::Done(Box::new(row)))
}

#[derive(QueryableByName)]
struct Holder {
    #[diesel(sql_type = Integer)]
    device_no: i32,
}

/// Finds the device that a digest leads to.
fn holder(connection: &mut SqliteConnection, digest: [u8; 32]) -> Result<Option<DeviceNo>, StoreError> {
    let found: Option<Holder> = sql_query("SELECT device_no FROM device_digests WHERE digest = ?")
        .bind::<Binary, _>(digest.to_vec())
        .get_result(connection)
        .optional()
        .map_err(store_error)?;
    Ok(found.map(|found| device_of(found.device_no)))
}

fn write_change(
    connection: &mut SqliteConnection,
    device: DeviceNo,
    change: &DeviceChange,
    now: i64,
) -> Result<(), StoreError> {
    let retired = change.action == DeviceAction::Retire;
    if retired {
        forget_digest(connection, device)?;
    }
    sql_query("UPDATE devices SET retired_at = ? WHERE device_no = ?")
        .bind::<Nullable<BigInt>, _>(retired.then_some(now))
        .bind::<Integer, _>(device_sql(device))
        .execute(connection)
        .map_err(store_error)?;
    let disabled = match change.enabled {
        None => return Ok(()),
        Some(enabled) => (!enabled).then_some(now),
    };
    sql_query("UPDATE devices SET disabled_at = ? WHERE device_no = ?")
        .bind::<Nullable<BigInt>, _>(disabled)
        .bind::<Integer, _>(device_sql(device))
        .execute(connection)
        .map_err(store_error)?;
    Ok(())
}

/// Has a digest lead to a device, and no other one.
fn lead(
    connection: &mut SqliteConnection,
    (tenant, device): (TenantNo, DeviceNo),
    digest: [u8; 32],
    now: i64,
) -> Result<(), StoreError> {
    forget_digest(connection, device)?;
    sql_query("INSERT INTO device_digests (digest, tenant_no, device_no, set_at) VALUES (?, ?, ?, ?)")
        .bind::<Binary, _>(digest.to_vec())
        .bind::<Integer, _>(tenant_sql(tenant))
        .bind::<Integer, _>(device_sql(device))
        .bind::<BigInt, _>(now)
        .execute(connection)
        .map_err(store_error)?;
    Ok(())
}

fn forget_digest(connection: &mut SqliteConnection, device: DeviceNo) -> Result<(), StoreError> {
    sql_query("DELETE FROM device_digests WHERE device_no = ?")
        .bind::<Integer, _>(device_sql(device))
        .execute(connection)
        .map_err(store_error)?;
    Ok(())
}

/// Writes down what was noticed of devices.
pub(super) fn note(connection: &mut SqliteConnection, notes: Vec<DeviceNote>) -> Result<(), StoreError> {
    for note in notes {
        let (at, device_no, tenant_no) =
            (sql_ms(note.at_ms), device_sql(note.device), tenant_sql(note.tenant));
        NoteHeard { at, device_no, tenant_no }.execute(connection).map_err(store_error)?;
        if is_of_the_log(&note.sign) {
            super::log::note(connection, &note)?;
            continue;
        }
        let written = match note.sign {
            DeviceSign::Heard
            | DeviceSign::Acknowledged { .. }
            | DeviceSign::Listened { .. }
            | DeviceSign::Slow { .. } => continue,
            DeviceSign::Connected { connection: name } => {
                NoteConnected { at, connection: name.into(), device_no, tenant_no }.execute(connection)
            }
            DeviceSign::Disconnected { connection: name } => {
                NoteDisconnected { device_no, tenant_no, connection: name.into() }.execute(connection)
            }
            DeviceSign::Reported { status, report } => {
                let (status, report) = (status.map(Into::into), report.into());
                NoteReported { at, status, report, device_no, tenant_no }.execute(connection)
            }
        };
        written.map_err(store_error)?;
    }
    Ok(())
}

/// Takes every device for disconnected: whoever wrote the file has ended.
pub(super) fn disconnect_all(connection: &mut SqliteConnection) -> QueryResult<usize> {
    sql_query("UPDATE devices SET connection = NULL WHERE connection IS NOT NULL").execute(connection)
}
