//! How uploads come into other states, and how they go.

use std::collections::BTreeMap;

use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Binary, Integer, Nullable, Text};
use diesel::{OptionalExtension, QueryResult, sql_query};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use driftline_engine::{LeaseKey, LeaseSlot, StoreError, UploadTurn};
use driftline_uploads::UploadId;
use tokio::join;

use super::super::connect::Lease;
use super::super::queries::finish;
use super::super::snapshot::give_back;
use super::super::sql::statement;
use super::super::{Shared, store_error};
use super::{begin_by_right, begin_with, forget_chunks, move_usage};
use crate::rows::{count_of, digest_sql, id_sql, sql, sql_ms};
use crate::uploads::turned;

statement! {
    /// Brings an upload into another state.
    TurnUpload<'a> {
        state: &'static str => Text, reserved: i64 => BigInt, digest: Option<Vec<u8>> => Nullable<Binary>,
        fault: Option<&'a [u8]> => Nullable<Binary>, at: i64 => BigInt, id: Vec<u8> => Binary,
    } =
    "UPDATE uploads SET state = " ? state: Text
    ", reserved = " ? reserved: BigInt
    ", digest = coalesce(" ? digest: Nullable<Binary>
    ", digest), fault = " ? fault: Nullable<Binary>
    ", changed_at = " ? at: BigInt
    " WHERE id = " ? id: Binary
    ""
}

statement! {
    /// Takes chunks back; gives those that were there.
    TakeChunksBack { id: Vec<u8> => Binary, chunks: Vec<i64> => Array<BigInt> } =
    "DELETE FROM upload_chunks WHERE upload = " ? id: Binary
    " AND chunk_no = ANY(" ? chunks: Array<BigInt>
    ") RETURNING chunk_no"
}

impl Query for TakeChunksBack {
    type SqlType = BigInt;
}

statement! {
    /// Takes down how many bytes are there once chunks were taken back.
    TakeBytesBack { received: i64 => BigInt, id: Vec<u8> => Binary } =
    "UPDATE uploads SET received = " ? received: BigInt
    ", running = NULL, hashed = 0 WHERE id = " ? id: Binary
    ""
}

statement! {
    /// Takes down that somebody was told.
    MarkTold { id: Vec<u8> => Binary } = "UPDATE uploads SET told = true WHERE id = " ? id: Binary
    ""
}

statement! {
    /// Takes down that what was staged of an upload was discarded. The states are kept from the indexes that are those of
    /// a state.
    MarkDiscarded { id: Vec<u8> => Binary } = "UPDATE uploads SET staged = NULL WHERE id = " ? id: Binary
    " AND state || '' IN ('cancelled', 'expired')"
}

statement! {
    /// Removes a file's row; gives its tenant and what it took. The state is kept from the indexes that are those of a
    /// state.
    RemoveFile { id: Vec<u8> => Binary } =
    "DELETE FROM uploads WHERE id = " ? id: Binary
    " AND state || '' = 'done' RETURNING tenant_no, reserved"
}

impl Query for RemoveFile {
    type SqlType = (Integer, BigInt);
}

pub(super) async fn turn(shared: &Shared, turn: &UploadTurn) -> Result<bool, StoreError> {
    let lease = shared.writer().await?;
    let done = turn_within(&lease, turn).await;
    finish(lease, done).await
}

async fn turn_within(lease: &Lease, turn: &UploadTurn) -> Result<bool, StoreError> {
    let key = LeaseKey { id: turn.id, slot: LeaseSlot::Finalize };
    let (found, holds) = match turn.holder {
        Some(holder) => begin_by_right(lease, key, holder).await?,
        None => (begin_with(lease, turn.id).await?, false),
    };
    let Some((tenant_no, standing)) = found else { return Ok(false) };
    let Some(turned) = turned(Some(&standing), turn, |_| holds) else { return Ok(false) };
    let statement = TurnUpload {
        state: turn.to.as_str(),
        reserved: sql(turned.reserved),
        digest: turn.digest.map(digest_sql),
        fault: turn.fault.as_deref().map(str::as_bytes),
        at: sql_ms(turn.at_ms),
        id: id_sql(turn.id),
    };
    let pg = lease.pg();
    statement.execute(&mut { pg }).await.map_err(store_error)?;
    if turned.forgets {
        forget_chunks(pg, turn.id).await?;
    }
    if let Some(missing) = turned.missing {
        take_back(pg, (turn.id, standing.received), &missing).await?;
    }
    move_usage(pg, tenant_no, (standing.reserved, turned.reserved)).await?;
    Ok(true)
}

/// Takes chunks back of an upload that has so many bytes. Those that are not there do not count.
async fn take_back(
    pg: &AsyncPgConnection,
    (id, received): (UploadId, u64),
    missing: &BTreeMap<u64, u64>,
) -> Result<(), StoreError> {
    let chunks = missing.keys().map(|index| sql(*index)).collect();
    let gone =
        TakeChunksBack { id: id_sql(id), chunks }.load::<i64>(&mut { pg }).await.map_err(store_error)?;
    let mut left = received;
    for chunk_no in gone {
        left = left.saturating_sub(missing.get(&count_of(chunk_no)?).copied().unwrap_or_default());
    }
    let take = TakeBytesBack { received: sql(left), id: id_sql(id) };
    take.execute(&mut { pg }).await.map(drop).map_err(store_error)
}

pub(super) async fn told(shared: &Shared, id: UploadId) -> Result<(), StoreError> {
    let lease = shared.writer().await?;
    let marked = MarkTold { id: id_sql(id) }.execute(&mut lease.pg()).await;
    give_back(lease, marked.map(drop).map_err(store_error)).await
}

pub(super) async fn discarded(shared: &Shared, id: UploadId) -> Result<(), StoreError> {
    let lease = shared.writer().await?;
    let marked = MarkDiscarded { id: id_sql(id) }.execute(&mut lease.pg()).await;
    give_back(lease, marked.map(drop).map_err(store_error)).await
}

pub(super) async fn remove_file(shared: &Shared, id: UploadId) -> Result<bool, StoreError> {
    let lease = shared.writer().await?;
    let removed = remove_within(&lease, id).await;
    finish(lease, removed).await
}

async fn remove_within(lease: &Lease, id: UploadId) -> Result<bool, StoreError> {
    let mut first = lease.pg();
    let (begun, removed) = join!(
        biased;
        first.batch_execute("BEGIN"),
        RemoveFile { id: id_sql(id) }.get_result::<(i32, i64)>(&mut { lease.pg() })
    );
    begun.map_err(store_error)?;
    let Some((tenant_no, reserved)) = removed.optional().map_err(store_error)? else { return Ok(false) };
    forget_chunks(lease.pg(), id).await?;
    move_usage(lease.pg(), tenant_no, (count_of(reserved)?, 0)).await?;
    Ok(true)
}

/// Uploads that one transaction forgets at most.
const STEP: usize = 1_000;

/// Forgets uploads that were given up or expired before a time, the oldest first, and leases that ended before it; uploads of
/// which something is staged only before another time. What another node forgets at this moment is left to it.
pub(super) async fn forget(
    shared: &Shared,
    (before_ms, undiscarded_before_ms): (u64, u64),
) -> Result<u64, StoreError> {
    let mut forgotten = 0;
    loop {
        let lease = shared.writer().await?;
        let gone = sql_query(
            "WITH gone AS MATERIALIZED (SELECT id FROM uploads WHERE state IN ('cancelled', 'expired') \
             AND changed_at < $1 AND (staged IS NULL OR changed_at < $2) ORDER BY changed_at, id LIMIT $3 FOR UPDATE SKIP LOCKED) \
             DELETE FROM uploads AS u USING gone WHERE u.id = gone.id",
        )
        .bind::<BigInt, _>(sql_ms(before_ms))
        .bind::<BigInt, _>(sql_ms(undiscarded_before_ms))
        .bind::<BigInt, _>(i64::try_from(STEP).unwrap_or(i64::MAX))
        .execute(&mut lease.pg())
        .await;
        let gone = give_back(lease, gone.map_err(store_error)).await?;
        forgotten += gone as u64;
        if gone < STEP {
            break;
        }
    }
    let lease = shared.writer().await?;
    // Those by which somebody writes at this moment are left to the next time.
    let ended = sql_query(
        "WITH gone AS MATERIALIZED (SELECT upload, slot FROM upload_leases WHERE until < $1 FOR UPDATE SKIP LOCKED) \
         DELETE FROM upload_leases AS l USING gone WHERE l.upload = gone.upload AND l.slot = gone.slot",
    )
    .bind::<BigInt, _>(sql_ms(before_ms))
    .execute(&mut lease.pg())
    .await;
    give_back(lease, ended.map_err(store_error)).await?;
    Ok(forgotten)
}
