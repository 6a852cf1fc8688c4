//! How uploads come into other states, and how they go.

use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use diesel::{OptionalExtension, QueryResult, sql_query};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use driftline_engine::{StoreError, UploadTurn};
use driftline_uploads::UploadId;
use tokio::join;

use super::super::connect::Lease;
use super::super::queries::finish;
use super::super::snapshot::give_back;
use super::super::sql::statement;
use super::super::{Shared, store_error};
use super::{begin_with, forget_chunks, move_usage};
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
    /// Takes down that somebody was told.
    MarkTold { id: Vec<u8> => Binary } = "UPDATE uploads SET told = true WHERE id = " ? id: Binary
    ""
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
    let Some((tenant_no, standing)) = begin_with(lease, turn.id).await? else { return Ok(false) };
    let Some(turned) = turned(Some(&standing), turn) else { return Ok(false) };
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
    move_usage(pg, tenant_no, (standing.reserved, turned.reserved)).await?;
    Ok(true)
}

pub(super) async fn told(shared: &Shared, id: UploadId) -> Result<(), StoreError> {
    let lease = shared.writer().await?;
    let marked = MarkTold { id: id_sql(id) }.execute(&mut lease.pg()).await;
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

/// Forgets uploads that were given up or expired before a time, the oldest first, and leases that ended before it. What
/// another node forgets at this moment is left to it.
pub(super) async fn forget(shared: &Shared, before_ms: u64) -> Result<u64, StoreError> {
    let mut forgotten = 0;
    loop {
        let lease = shared.writer().await?;
        let gone = sql_query(
            "WITH gone AS MATERIALIZED (SELECT id FROM uploads WHERE state IN ('cancelled', 'expired') \
             AND changed_at < $1 ORDER BY changed_at, id LIMIT $2 FOR UPDATE SKIP LOCKED) \
             DELETE FROM uploads AS u USING gone WHERE u.id = gone.id",
        )
        .bind::<BigInt, _>(sql_ms(before_ms))
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
    let ended = sql_query("DELETE FROM upload_leases WHERE until < $1")
        .bind::<BigInt, _>(sql_ms(before_ms))
        .execute(&mut lease.pg())
        .await;
    give_back(lease, ended.map_err(store_error)).await?;
    Ok(forgotten)
}
