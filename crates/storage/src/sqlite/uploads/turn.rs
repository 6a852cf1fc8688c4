//! How uploads come into other states, and how they go.

use std::collections::BTreeMap;

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::{LeaseKey, LeaseSlot, StoreError, UploadTurn};
use driftline_uploads::UploadId;

use super::super::hot::statement;
use super::super::prune::STEP;
use super::super::store_error;
use super::{Fence, forget_chunks, move_usage, standing};
use crate::rows::{count_of, digest_sql, id_sql, sql, sql_ms};
use crate::uploads::turned;

statement! {
    /// Brings an upload into another state.
    TurnUpload {
        state: &'static str => Text, reserved: i64 => BigInt, digest: Option<Vec<u8>> => Nullable<Binary>,
        fault: Option<Vec<u8>> => Nullable<Binary>, at: i64 => BigInt, id: Vec<u8> => Binary,
    } =
    "UPDATE uploads SET state = " ? state: Text
    ", reserved = " ? reserved: BigInt
    ", digest = coalesce(" ? digest: Nullable<Binary>
    ", digest), fault = " ? fault: Nullable<Binary>
    ", changed_at = " ? at: BigInt
    " WHERE id = " ? id: Binary
}

statement! {
    /// Takes a chunk back.
    TakeChunkBack { id: Vec<u8> => Binary, chunk_no: i64 => BigInt } =
    "DELETE FROM upload_chunks WHERE upload = " ? id: Binary
    " AND chunk_no = " ? chunk_no: BigInt
}

statement! {
    /// Takes down how many bytes are there once chunks were taken back.
    TakeBytesBack { received: i64 => BigInt, id: Vec<u8> => Binary } =
    "UPDATE uploads SET received = " ? received: BigInt
    ", running = NULL, hashed = 0 WHERE id = " ? id: Binary
}

statement! {
    /// Takes down that somebody was told.
    MarkTold { id: Vec<u8> => Binary } = "UPDATE uploads SET told = 1 WHERE id = " ? id: Binary
}

statement! {
    /// Takes down that what was staged of an upload was discarded.
    MarkDiscarded { id: Vec<u8> => Binary } = "UPDATE uploads SET staged = NULL WHERE id = " ? id: Binary
    " AND state IN ('cancelled', 'expired')"
}

statement! {
    /// Removes a file's row; gives its tenant and what it took.
    RemoveFile { id: Vec<u8> => Binary } =
    "DELETE FROM uploads WHERE id = " ? id: Binary
    " AND state = 'done' RETURNING tenant_no, reserved"
}

impl Query for RemoveFile {
    type SqlType = (Integer, BigInt);
}

pub(super) fn turn(
    connection: &mut SqliteConnection,
    turn: &UploadTurn,
    fence: &mut Fence<'_>,
) -> Result<bool, StoreError> {
    let Some((tenant_no, standing)) = standing(connection, turn.id)? else { return Ok(false) };
    let key = LeaseKey { id: turn.id, slot: LeaseSlot::Finalize };
    let turned = turned(Some(&standing), turn, |holder| fence.holds(key, holder));
    let Some(turned) = turned else { return Ok(false) };
    let statement = TurnUpload {
        state: turn.to.as_str(),
        reserved: sql(turned.reserved),
        digest: turn.digest.map(digest_sql),
        fault: turn.fault.as_deref().map(|text| text.as_bytes().to_vec()),
        at: sql_ms(turn.at_ms),
        id: id_sql(turn.id),
    };
    statement.execute(connection).map_err(store_error)?;
    move_usage(connection, tenant_no, (standing.reserved, turned.reserved))?;
    if turned.forgets {
        forget_chunks(connection, turn.id)?;
    }
    if let Some(missing) = turned.missing {
        take_back(connection, (turn.id, standing.received), &missing)?;
    }
    Ok(true)
}

/// Takes chunks back of an upload that has so many bytes. Those that are not there do not count.
fn take_back(
    connection: &mut SqliteConnection,
    (id, received): (UploadId, u64),
    missing: &BTreeMap<u64, u64>,
) -> Result<(), StoreError> {
    let mut left = received;
    for (index, bytes) in missing {
        let take = TakeChunkBack { id: id_sql(id), chunk_no: sql(*index) };
        if take.execute(connection).map_err(store_error)? > 0 {
            left = left.saturating_sub(*bytes);
        }
    }
    let take = TakeBytesBack { received: sql(left), id: id_sql(id) };
    take.execute(connection).map(drop).map_err(store_error)
}

pub(super) fn told(connection: &mut SqliteConnection, id: UploadId) -> Result<(), StoreError> {
    MarkTold { id: id_sql(id) }.execute(connection).map(drop).map_err(store_error)
}

pub(super) fn discarded(connection: &mut SqliteConnection, id: UploadId) -> Result<(), StoreError> {
    MarkDiscarded { id: id_sql(id) }.execute(connection).map(drop).map_err(store_error)
}

pub(super) fn remove_file(connection: &mut SqliteConnection, id: UploadId) -> Result<bool, StoreError> {
    let removed: Option<(i32, i64)> =
        RemoveFile { id: id_sql(id) }.get_result(connection).optional().map_err(store_error)?;
    let Some((tenant_no, reserved)) = removed else { return Ok(false) };
    move_usage(connection, tenant_no, (count_of(reserved)?, 0))?;
    forget_chunks(connection, id)?;
    Ok(true)
}

pub(super) const FORGET: &str = "DELETE FROM uploads WHERE id IN \
     (SELECT id FROM uploads WHERE state IN ('cancelled', 'expired') \
     AND changed_at < ? AND (staged IS NULL OR changed_at < ?) ORDER BY changed_at, id LIMIT ?)";

/// Forgets at most a step of the uploads that were given up or expired before a time, the oldest first; those of which
/// something is staged before another time. Their chunks and what they had reserved went when they were.
pub(super) fn forget(
    connection: &mut SqliteConnection,
    (before_ms, undiscarded_before_ms): (u64, u64),
) -> Result<u64, StoreError> {
    let removed = sql_query(FORGET)
        .bind::<BigInt, _>(sql_ms(before_ms))
        .bind::<BigInt, _>(sql_ms(undiscarded_before_ms))
        .bind::<BigInt, _>(i64::try_from(STEP).unwrap_or(i64::MAX))
        .execute(connection)
        .map_err(store_error)?;
    Ok(removed as u64)
}
