//! Receipts of bytes.

use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Nullable, Text};
use diesel::{OptionalExtension, QueryResult};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use driftline_engine::{ChunkReceipt, Kept, StoreError, StreamReceipt};
use driftline_uploads::State;
use tokio::join;

use super::super::connect::Lease;
use super::super::queries::finish;
use super::super::snapshot::give_back;
use super::super::sql::{Commit, statement};
use super::super::{Shared, store_error};
use super::{LockUpload, begin_with, lock_usage, move_usage};
use crate::rows::{StandingRow, count_of, digest_sql, id_sql, running_sql, sql, sql_ms, standing_of};
use crate::uploads::go_on;

statement! {
    /// Writes down a chunk, if its upload is open and the chunk is not there; gives how many bytes are there then. The
    /// upload is locked already. The state is kept from the indexes that are those of a state.
    PutChunk<'a> {
        id: &'a [u8] => Binary, chunk_no: i64 => BigInt, digest: Vec<u8> => Binary, tag: Option<&'a str> => Nullable<Text>,
        bytes: i64 => BigInt, at: i64 => BigInt, expires_at: i64 => BigInt, running: Option<Vec<u8>> => Nullable<Binary>,
        hashed: i64 => BigInt,
    } =
    "WITH chunk AS (INSERT INTO upload_chunks (upload, chunk_no, digest, tag) SELECT id, " ? chunk_no: BigInt
    ", " ? digest: Binary
    ", " ? tag: Nullable<Text>
    " FROM uploads WHERE id = " ? id: Binary
    " AND state || '' = 'open' ON CONFLICT (upload, chunk_no) DO NOTHING RETURNING chunk_no) \
     UPDATE uploads SET received = received + " ? bytes: BigInt
    ", changed_at = greatest(changed_at, " ? at: BigInt
    "), expires_at = " ? expires_at: BigInt
    ", running = CASE WHEN " ? hashed: BigInt
    " > hashed THEN " ? running: Nullable<Binary>
    " ELSE running END, hashed = greatest(hashed, " ? hashed: BigInt
    ") WHERE id = " ? id: Binary
    " AND EXISTS (SELECT FROM chunk) RETURNING received"
}

impl Query for PutChunk<'_> {
    type SqlType = BigInt;
}

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

/// Writes down a chunk. The transaction travels as a whole: each of its statements sees what was there when the one before
/// it had ended, so the chunk is looked for behind the lock.
pub(super) async fn keep_chunk(shared: &Shared, receipt: &ChunkReceipt) -> Result<Kept, StoreError> {
    let lease = shared.writer().await?;
    let kept = chunk_within(&lease, receipt).await;
    give_back(lease, kept).await
}

async fn chunk_within(lease: &Lease, receipt: &ChunkReceipt) -> Result<Kept, StoreError> {
    let (hashed, running) = running_sql(receipt.running.as_ref());
    let put = PutChunk {
        id: receipt.id.as_bytes(),
        chunk_no: sql(receipt.index),
        digest: digest_sql(receipt.digest),
        tag: receipt.tag.as_deref(),
        bytes: sql(receipt.bytes),
        at: sql_ms(receipt.at_ms),
        expires_at: sql_ms(receipt.expires_ms),
        running,
        hashed,
    };
    let (mut first, pg) = (lease.pg(), lease.pg());
    let (begun, found, received, ended) = join!(
        biased;
        first.batch_execute("BEGIN"),
        LockUpload { id: id_sql(receipt.id) }.get_result::<StandingRow>(&mut { pg }),
        put.get_result::<i64>(&mut { pg }),
        Commit {}.execute(&mut { pg }),
    );
    begun.map_err(store_error)?;
    let found = found.optional().map_err(store_error)?;
    let received = received.optional().map_err(store_error)?;
    ended.map_err(store_error)?;
    if let Some(received) = received {
        return Ok(Kept::Kept { received: count_of(received)? });
    }
    let state = found.as_ref().map(standing_of).transpose()?.map(|(_, standing)| standing.state);
    Ok(if state == Some(State::Open) { Kept::Overtaken } else { Kept::NotOpen(state) })
}

pub(super) async fn keep_stream(shared: &Shared, receipt: &StreamReceipt) -> Result<Kept, StoreError> {
    let lease = shared.writer().await?;
    let kept = stream_within(&lease, receipt).await;
    finish(lease, kept).await
}

async fn stream_within(lease: &Lease, receipt: &StreamReceipt) -> Result<Kept, StoreError> {
    let found = begin_with(lease, receipt.id).await?;
    let streamed = match go_on(found.as_ref().map(|(_, standing)| standing), receipt) {
        Ok(streamed) => streamed,
        Err(kept) => return Ok(kept),
    };
    if let Some((tenant_no, standing)) = found
        && streamed.reserved > standing.reserved
    {
        let more = streamed.reserved - standing.reserved;
        if lock_usage(lease.pg(), tenant_no).await?.saturating_add(more) > receipt.quota_bytes {
            return Ok(Kept::NoRoom);
        }
        move_usage(lease.pg(), tenant_no, (standing.reserved, streamed.reserved)).await?;
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
