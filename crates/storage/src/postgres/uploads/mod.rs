//! The rows of uploads.
//!
//! Whoever changes an upload locks its row first, then the rights by which he does, its chunks, and at last what its
//! tenant's uploads take. A right is given, held on to or given back by a statement of its own, which locks nothing else,
//! and whoever removes those that ended goes by the locked ones. Opening an upload
//! locks what the tenant's take, behind the tenant's head where a key is remembered: the row of the upload is nobody else's
//! yet. So nobody waits for somebody who waits for him.

mod chunks;
mod open;
mod read;
mod receipts;
mod rights;
mod turn;

use std::sync::Arc;

use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Integer};
use diesel::{OptionalExtension, QueryResult};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use driftline_engine::{
    Answer, ChunkReceipt, ChunkThere, Kept, LeaseKey, Leased, Renewed, StoreError, StreamReceipt, UploadCaps,
    UploadOnce, UploadOpened, UploadRow, UploadRows, UploadTurn, UploadUsage,
};
use driftline_uploads::{Digest, State, UploadId};
use tokio::join;

use super::connect::Lease;
use super::sql::statement;
use super::{PostgresStore, store_error};
use crate::rows::{StandingColumns, StandingRow, count_of, id_sql, standing_of};
use crate::uploads::Standing;
use rights::LockRight;

pub(super) use chunks::Waiting;

statement! {
    /// Locks an upload; gives what decides on it.
    LockUpload { id: Vec<u8> => Binary } =
    "SELECT tenant_no, state, received, size, reserved, expires_at FROM uploads WHERE id = " ? id: Binary
    " FOR UPDATE"
}

impl Query for LockUpload {
    type SqlType = StandingColumns;
}

statement! {
    /// Makes the row of what a tenant's uploads take, so that it can be locked.
    MakeUsage { tenant_no: i32 => Integer } =
    "INSERT INTO upload_usage (tenant_no, bytes) VALUES (" ? tenant_no: Integer
    ", 0) ON CONFLICT (tenant_no) DO NOTHING"
}

statement! {
    /// Locks what a tenant's uploads and files take.
    LockUsage { tenant_no: i32 => Integer } =
    "SELECT bytes FROM upload_usage WHERE tenant_no = " ? tenant_no: Integer
    " FOR UPDATE"
}

impl Query for LockUsage {
    type SqlType = BigInt;
}

statement! {
    /// Adds to what a tenant's uploads and files take.
    AddUsage { tenant_no: i32 => Integer, bytes: i64 => BigInt } =
    "INSERT INTO upload_usage AS u (tenant_no, bytes) VALUES (" ? tenant_no: Integer
    ", " ? bytes: BigInt
    ") ON CONFLICT (tenant_no) DO UPDATE SET bytes = u.bytes + excluded.bytes"
}

statement! {
    /// Forgets the chunks of an upload.
    ForgetChunks { id: Vec<u8> => Binary } = "DELETE FROM upload_chunks WHERE upload = " ? id: Binary
    ""
}

/// Begins a transaction and locks an upload in it; gives what decides on it, with the number of its tenant.
async fn begin_with(lease: &Lease, id: UploadId) -> Result<Option<(i32, Standing)>, StoreError> {
    let mut first = lease.pg();
    let (begun, found) = join!(
        biased;
        first.batch_execute("BEGIN"),
        LockUpload { id: id_sql(id) }.get_result::<StandingRow>(&mut { lease.pg() })
    );
    begun.map_err(store_error)?;
    found.optional().map_err(store_error)?.as_ref().map(standing_of).transpose()
}

/// Begins a transaction, locks an upload in it, and then a right; gives what decides on the upload, with the number of its
/// tenant, and whether the right is somebody's. It stays so until the transaction is over: whoever asks for it waits, and
/// reads what was written.
async fn begin_by_right(
    lease: &Lease,
    key: LeaseKey,
    holder: u64,
) -> Result<(Option<(i32, Standing)>, bool), StoreError> {
    let right = LockRight::new(key, holder);
    let (found, locked) = join!(
        biased;
        begin_with(lease, key.id),
        right.get_result::<i64>(&mut { lease.pg() })
    );
    Ok((found?, locked.optional().map_err(store_error)?.is_some()))
}

/// Locks what a tenant's uploads and files take.
async fn lock_usage(pg: &AsyncPgConnection, tenant_no: i32) -> Result<u64, StoreError> {
    let (made, bytes) = join!(
        biased;
        MakeUsage { tenant_no }.execute(&mut { pg }),
        LockUsage { tenant_no }.get_result::<i64>(&mut { pg })
    );
    made.map_err(store_error)?;
    count_of(bytes.map_err(store_error)?)
}

/// Takes down what an upload reserves now, if its tenant's quota has room for what is more than before; tells whether it
/// has.
async fn reserve_more(
    pg: &AsyncPgConnection,
    tenant_no: i32,
    (before, after): (u64, u64),
    quota_bytes: u64,
) -> Result<bool, StoreError> {
    let more = after.saturating_sub(before);
    if more > 0 && lock_usage(pg, tenant_no).await?.saturating_add(more) > quota_bytes {
        return Ok(false);
    }
    move_usage(pg, tenant_no, (before, after)).await?;
    Ok(true)
}

/// Takes down that an upload reserves more, or less, than before.
async fn move_usage(
    pg: &AsyncPgConnection,
    tenant_no: i32,
    (before, after): (u64, u64),
) -> Result<(), StoreError> {
    if before == after {
        return Ok(());
    }
    let bytes = after.cast_signed() - before.cast_signed();
    AddUsage { tenant_no, bytes }.execute(&mut { pg }).await.map(drop).map_err(store_error)
}

async fn forget_chunks(pg: &AsyncPgConnection, id: UploadId) -> Result<(), StoreError> {
    ForgetChunks { id: id_sql(id) }.execute(&mut { pg }).await.map(drop).map_err(store_error)
}

impl UploadRows for PostgresStore {
    fn open_upload(
        &self,
        row: UploadRow,
        caps: UploadCaps,
        once: Option<UploadOnce>,
    ) -> Answer<'_, UploadOpened> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { open::open_upload(&shared, &row, caps, once.as_ref()).await }))
    }

    fn upload(&self, id: UploadId) -> Answer<'_, Option<UploadRow>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { read::upload(&shared, id).await }))
    }

    fn chunk(&self, id: UploadId, index: u64) -> Answer<'_, Option<Digest>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { read::chunk(&shared, id, index).await }))
    }

    fn chunks(&self, id: UploadId) -> Answer<'_, Vec<ChunkThere>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { read::chunks(&shared, id).await }))
    }

    fn keep_chunk(&self, receipt: ChunkReceipt) -> Answer<'_, Kept> {
        let waiting = Waiting::keep(&self.shared, receipt);
        Box::pin(async move { self.answer(waiting?).await })
    }

    fn keep_stream(&self, receipt: StreamReceipt) -> Answer<'_, Kept> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { receipts::keep_stream(&shared, &receipt).await }))
    }

    fn reserve_upload(&self, id: UploadId, bytes: u64, quota_bytes: u64) -> Answer<'_, bool> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { open::reserve(&shared, id, (bytes, quota_bytes)).await }))
    }

    fn release_upload(&self, id: UploadId) -> Answer<'_, ()> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { open::release(&shared, id).await }))
    }

    fn turn_upload(&self, turn: UploadTurn) -> Answer<'_, bool> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { turn::turn(&shared, &turn).await }))
    }

    fn is_alone(&self) -> bool {
        false
    }

    fn lease(
        &self,
        key: LeaseKey,
        holder: u64,
        now_ms: u64,
        until_ms: u64,
        evict: bool,
    ) -> Answer<'_, Leased> {
        let shared = Arc::clone(&self.shared);
        let times = (now_ms, until_ms);
        Box::pin(self.run(async move { rights::lease(&shared, key, holder, times, evict).await }))
    }

    fn renew(&self, key: LeaseKey, holder: u64, now_ms: u64, until_ms: u64) -> Answer<'_, Renewed> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { rights::renew(&shared, key, holder, (now_ms, until_ms)).await }))
    }

    fn release(&self, key: LeaseKey, holder: u64) -> Answer<'_, ()> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { rights::release(&shared, key, holder).await }))
    }

    fn overdue_uploads(&self, now_ms: u64, rows: usize) -> Answer<'_, Vec<UploadRow>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { read::overdue(&shared, now_ms, rows).await }))
    }

    fn unfinished_uploads(&self, before_ms: u64, rows: usize) -> Answer<'_, Vec<UploadRow>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { read::unfinished(&shared, before_ms, rows).await }))
    }

    fn upload_states(&self, ids: Vec<UploadId>) -> Answer<'_, Vec<(UploadId, State)>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { read::states(&shared, ids).await }))
    }

    fn untold_uploads(&self, rows: usize) -> Answer<'_, Vec<UploadRow>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { read::untold(&shared, rows).await }))
    }

    fn upload_told(&self, id: UploadId) -> Answer<'_, ()> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { turn::told(&shared, id).await }))
    }

    fn undiscarded_uploads(&self, rows: usize) -> Answer<'_, Vec<UploadRow>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { read::undiscarded(&shared, rows).await }))
    }

    fn upload_discarded(&self, id: UploadId) -> Answer<'_, ()> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { turn::discarded(&shared, id).await }))
    }

    fn remove_file_row(&self, id: UploadId) -> Answer<'_, bool> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { turn::remove_file(&shared, id).await }))
    }

    fn forget_uploads(&self, before_ms: u64, undiscarded_before_ms: u64) -> Answer<'_, u64> {
        let shared = Arc::clone(&self.shared);
        // However long it takes: nobody is told to forget again.
        Box::pin(self.finish(async move { turn::forget(&shared, (before_ms, undiscarded_before_ms)).await }))
    }

    fn upload_usage(&self) -> Answer<'_, UploadUsage> {
        let shared = Arc::clone(&self.shared);
        Box::pin(self.run(async move { read::usage(&shared).await }))
    }
}
