//! Receipts of streams.

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Nullable};
use diesel_async::RunQueryDsl;
use driftline_engine::{Kept, LeaseKey, LeaseSlot, StoreError, StreamReceipt};

use super::super::connect::Lease;
use super::super::queries::finish;
use super::super::sql::statement;
use super::super::{Shared, store_error};
use super::{begin_by_right, reserve_more};
use crate::rows::{id_sql, running_sql, sql, sql_ms};
use crate::uploads::go_on;

statement! {
    /// Takes down how far a stream came.
    TakeStream {
        received: i64 => BigInt, size: Option<i64> => Nullable<BigInt>, reserved: i64 => BigInt, at: i64 => BigInt,
        expires_at: i64 => BigInt, running: Option<Vec<u8>> => Nullable<Binary>, hashed: i64 => BigInt,
        id: Vec<u8> => Binary,
    } =
    "UPDATE uploads SET received = " ? received: BigInt
    ", size = " ? size: Nullable<BigInt>
    ", reserved = " ? reserved: BigInt
    ", changed_at = greatest(changed_at, " ? at: BigInt
    "), expires_at = " ? expires_at: BigInt
    ", running = CASE WHEN " ? hashed: BigInt
    " > hashed THEN " ? running: Nullable<Binary>
    " ELSE running END, hashed = greatest(hashed, " ? hashed: BigInt
    ") WHERE id = " ? id: Binary
    ""
}

pub(super) async fn keep_stream(shared: &Shared, receipt: &StreamReceipt) -> Result<Kept, StoreError> {
    let lease = shared.writer().await?;
    let kept = stream_within(&lease, receipt).await;
    finish(lease, kept).await
}

async fn stream_within(lease: &Lease, receipt: &StreamReceipt) -> Result<Kept, StoreError> {
    let key = LeaseKey { id: receipt.id, slot: LeaseSlot::Stream };
    let (found, holds) = begin_by_right(lease, key, receipt.holder).await?;
    let streamed = match go_on(found.as_ref().map(|(_, standing)| standing), receipt, || holds) {
        Ok(streamed) => streamed,
        Err(kept) => return Ok(kept),
    };
    if let Some((tenant_no, standing)) = found
        && !reserve_more(lease.pg(), tenant_no, (standing.reserved, streamed.reserved), receipt.quota_bytes)
            .await?
    {
        return Ok(Kept::NoRoom);
    }
    let (hashed, running) = running_sql(receipt.running.as_ref());
    let take = TakeStream {
        received: sql(receipt.to),
        size: streamed.size.map(sql),
        reserved: sql(streamed.reserved),
        at: sql_ms(receipt.at_ms),
        expires_at: sql_ms(receipt.expires_ms),
        running,
        hashed,
        id: id_sql(receipt.id),
    };
    take.execute(&mut { lease.pg() }).await.map_err(store_error)?;
    Ok(Kept::Kept { received: receipt.to })
}
