//! How far devices have followed the log, and which notifications users have read.

use std::collections::HashSet;

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::{DeviceEvents, DeviceNote, StoreError};
use driftline_model::{DeviceNo, TenantNo};

use super::super::hot::statement;
use super::super::load::json_array;
use super::super::store_error;
use super::super::writer::Writer;
use crate::codec::corrupt;
use crate::log::Following;
use crate::names::{device_sql, tenant_sql};
use crate::rows::{sql_ms, topics_of, topics_sql};

statement! {
    /// How far a device has followed the log.
    LoadFollowing { tenant_no: i32 => Integer, device_no: i32 => Integer } =
    "SELECT epoch, acked, since, topics, refused, slow, listened_at FROM event_devices WHERE tenant_no = "
    ? tenant_no: Integer
    " AND device_no = " ? device_no: Integer
}

impl Query for LoadFollowing {
    type SqlType = (Text, BigInt, Nullable<BigInt>, Text, Text, Nullable<BigInt>, BigInt);
}

type FollowingRow = (String, i64, Option<i64>, String, String, Option<i64>, i64);

statement! {
    /// Writes how far a device of the tenant has followed the log.
    WriteFollowing {
        epoch: String => Text, acked: i64 => BigInt, since: Option<i64> => Nullable<BigInt>, topics: String => Text,
        refused: String => Text, slow: Option<i64> => Nullable<BigInt>, listened_at: i64 => BigInt,
        device_no: i32 => Integer, tenant_no: i32 => Integer,
    } =
    "INSERT OR REPLACE INTO event_devices (tenant_no, device_no, epoch, acked, since, topics, refused, slow, listened_at) \
     SELECT d.tenant_no, d.device_no, " ? epoch: Text
    ", " ? acked: BigInt
    ", " ? since: Nullable<BigInt>
    ", " ? topics: Text
    ", " ? refused: Text
    ", " ? slow: Nullable<BigInt>
    ", " ? listened_at: BigInt
    " FROM devices AS d WHERE d.device_no = " ? device_no: Integer
    " AND d.tenant_no = " ? tenant_no: Integer
}

statement! {
    /// Takes down that a notification was read.
    ReadNotice { tenant_no: i32 => Integer, sub: String => Text, notice_id: String => Text, at: i64 => BigInt } =
    "INSERT INTO notice_reads (tenant_no, sub, notice_id, at) VALUES (" ? tenant_no: Integer
    ", " ? sub: Text
    ", " ? notice_id: Text
    ", " ? at: BigInt
    ") ON CONFLICT DO NOTHING"
}

statement! {
    /// Of notifications whose names stand in a JSON array those that a user has read.
    LoadRead { ids: String => Text, tenant_no: i32 => Integer, sub: String => Text } =
    "SELECT n.notice_id FROM json_each(" ? ids: Text
    ") AS j CROSS JOIN notice_reads AS n ON n.tenant_no = " ? tenant_no: Integer
    " AND n.sub = " ? sub: Text
    " AND n.notice_id = j.value"
}

impl Query for LoadRead {
    type SqlType = Text;
}

/// Writes down a sign of a device that is about the log.
pub(in super::super) fn note(connection: &mut SqliteConnection, note: &DeviceNote) -> Result<(), StoreError> {
    let mut following = following(connection, note.tenant, note.device)?.unwrap_or_default();
    if !following.note(note.at_ms, &note.sign) {
        return Ok(());
    }
    let Following { events, listened_ms } = following;
    let Some(epoch) = events.epoch else { return Ok(()) };
    let write = WriteFollowing {
        epoch: epoch.to_string(),
        acked: sql_ms(events.acked),
        since: events.since.map(sql_ms),
        topics: topics_sql(&events.topics),
        refused: topics_sql(&events.refused),
        slow: events.slow.map(sql_ms),
        listened_at: sql_ms(listened_ms),
        device_no: device_sql(note.device),
        tenant_no: tenant_sql(note.tenant),
    };
    write.execute(connection).map_err(store_error)?;
    Ok(())
}

fn following(
    connection: &mut SqliteConnection,
    tenant: TenantNo,
    device: DeviceNo,
) -> Result<Option<Following>, StoreError> {
    let query = LoadFollowing { tenant_no: tenant_sql(tenant), device_no: device_sql(device) };
    let row: Option<FollowingRow> = query.get_result(connection).optional().map_err(store_error)?;
    let Some((epoch, acked, since, topics, refused, slow, listened_at)) = row else { return Ok(None) };
    let number = |number: i64| u64::try_from(number).map_err(|_| corrupt("event_devices"));
    let events = DeviceEvents {
        epoch: Some(epoch.parse().map_err(|_| corrupt("epoch"))?),
        acked: number(acked)?,
        since: since.map(number).transpose()?,
        topics: topics_of(&topics),
        refused: topics_of(&refused),
        slow: slow.map(number).transpose()?,
    };
    Ok(Some(Following { events, listened_ms: number(listened_at)? }))
}

pub(super) fn device_events(
    connection: &mut SqliteConnection,
    tenant: TenantNo,
    device: DeviceNo,
) -> Result<Option<DeviceEvents>, StoreError> {
    Ok(following(connection, tenant, device)?.map(|following| following.events))
}

pub(super) fn read_notice(
    writer: &mut Writer,
    tenant: TenantNo,
    (user, id): (&str, &str),
    now_ms: u64,
) -> Result<bool, StoreError> {
    let (sub, notice_id) = (user.to_owned(), id.to_owned());
    let read = ReadNotice { tenant_no: tenant_sql(tenant), sub, notice_id, at: sql_ms(now_ms) };
    let news = read.execute(&mut writer.connection).map_err(store_error)?;
    Ok(news > 0)
}

pub(super) fn notices_read(
    connection: &mut SqliteConnection,
    tenant: TenantNo,
    user: &str,
    ids: &[Box<str>],
) -> Result<Vec<bool>, StoreError> {
    let names: Vec<&str> = ids.iter().map(|id| &**id).collect();
    let query = LoadRead { ids: json_array(&names), tenant_no: tenant_sql(tenant), sub: user.to_owned() };
    let read: HashSet<String> = query.load(connection).map_err(store_error)?.into_iter().collect();
    Ok(ids.iter().map(|id| read.contains(&**id)).collect())
}
