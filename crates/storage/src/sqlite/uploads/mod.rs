//! The rows of uploads in the file.

mod open;
#[cfg(test)]
mod plans;
mod read;
mod receipts;
mod turn;

use std::sync::{Arc, Mutex, PoisonError};

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Integer};
use diesel::sqlite::Sqlite;
use driftline_engine::{
    Answer, ChunkReceipt, ChunkThere, Kept, LeaseKey, Leased, Renewed, StoreError, StreamReceipt, UploadCaps,
    UploadOnce, UploadOpened, UploadRow, UploadRows, UploadTurn, UploadUsage,
};
use driftline_uploads::{Digest, State, UploadId};
use futures_util::future::ready;

use super::hot::statement;
use super::{SqliteStore, store_error};
use crate::rows::{StandingColumns, StandingRow, count_of, id_sql, standing_of};
use crate::uploads::{Leases, Standing};
use receipts::Receipt;

pub(super) use receipts::Waiting;

/// The rights to write. This process is the only one that has the file, and they end with it.
///
/// The lock is held to look at one right or to change it, and never while anything is written.
#[derive(Default)]
pub(super) struct Held(Mutex<Leases>);

impl Held {
    fn with<T>(&self, work: impl FnOnce(&mut Leases) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Begins to look at rights for a transaction.
    fn fence(&self) -> Fence<'_> {
        Fence { held: self, looked_at: Vec::new() }
    }
}

/// The rights by which a transaction writes. It outlives the transaction.
///
/// From the look at a right to the end of the commit nobody else is given it: whoever asks is told that it is busy. So who
/// takes a right over either did so before the look, and then the transaction does not write by it, or reads behind the
/// commit, and then sees what it wrote.
struct Fence<'a> {
    held: &'a Held,
    looked_at: Vec<LeaseKey>,
}

impl Fence<'_> {
    /// Tells whether a right is somebody's, and keeps it so.
    fn holds(&mut self, key: LeaseKey, holder: u64) -> bool {
        let holds = self.held.with(|leases| leases.settle(key, holder));
        if holds {
            self.looked_at.push(key);
        }
        holds
    }
}

impl Drop for Fence<'_> {
    fn drop(&mut self) {
        self.held.with(|leases| self.looked_at.iter().for_each(|key| leases.settled(*key)));
    }
}

statement! {
    /// What decides on an upload.
    LoadStanding { id: Vec<u8> => Binary } =
    "SELECT tenant_no, state, received, size, reserved, expires_at FROM uploads WHERE id = " ? id: Binary
}

impl Query for LoadStanding {
    type SqlType = StandingColumns;
}

statement! {
    /// What a tenant's uploads and files take.
    LoadUsage { tenant_no: i32 => Integer } =
    "SELECT bytes FROM upload_usage WHERE tenant_no = " ? tenant_no: Integer
}

impl Query for LoadUsage {
    type SqlType = BigInt;
}

statement! {
    /// Adds to what a tenant's uploads and files take.
    AddUsage { tenant_no: i32 => Integer, bytes: i64 => BigInt } =
    "INSERT INTO upload_usage (tenant_no, bytes) VALUES (" ? tenant_no: Integer
    ", " ? bytes: BigInt
    ") ON CONFLICT (tenant_no) DO UPDATE SET bytes = bytes + excluded.bytes"
}

statement! {
    /// Forgets the chunks of an upload.
    ForgetChunks { id: Vec<u8> => Binary } = "DELETE FROM upload_chunks WHERE upload = " ? id: Binary
}

/// Reads what decides on an upload, with the number of its tenant.
fn standing(connection: &mut SqliteConnection, id: UploadId) -> Result<Option<(i32, Standing)>, StoreError> {
    let row: Option<StandingRow> =
        LoadStanding { id: id_sql(id) }.get_result(connection).optional().map_err(store_error)?;
    row.as_ref().map(standing_of).transpose()
}

fn used(connection: &mut SqliteConnection, tenant_no: i32) -> Result<u64, StoreError> {
    let bytes: Option<i64> =
        LoadUsage { tenant_no }.get_result(connection).optional().map_err(store_error)?;
    count_of(bytes.unwrap_or_default())
}

/// Takes down what an upload reserves now, if its tenant's quota has room for what is more than before; tells whether it
/// has.
fn reserve_more(
    connection: &mut SqliteConnection,
    tenant_no: i32,
    (before, after): (u64, u64),
    quota_bytes: u64,
) -> Result<bool, StoreError> {
    let more = after.saturating_sub(before);
    let has_room = more == 0 || used(connection, tenant_no)?.saturating_add(more) <= quota_bytes;
    if has_room {
        move_usage(connection, tenant_no, (before, after))?;
    }
    Ok(has_room)
}

/// Takes down that an upload reserves more, or less, than before.
fn move_usage(
    connection: &mut SqliteConnection,
    tenant_no: i32,
    (before, after): (u64, u64),
) -> Result<(), StoreError> {
    if before == after {
        return Ok(());
    }
    let bytes = after.cast_signed() - before.cast_signed();
    AddUsage { tenant_no, bytes }.execute(connection).map(drop).map_err(store_error)
}

fn forget_chunks(connection: &mut SqliteConnection, id: UploadId) -> Result<(), StoreError> {
    ForgetChunks { id: id_sql(id) }.execute(connection).map(drop).map_err(store_error)
}

impl UploadRows for SqliteStore {
    fn open_upload(
        &self,
        row: UploadRow,
        caps: UploadCaps,
        once: Option<UploadOnce>,
    ) -> Answer<'_, UploadOpened> {
        Box::pin(self.write(move |writer| open::open_upload(writer, &row, caps, once.as_ref())))
    }

    fn upload(&self, id: UploadId) -> Answer<'_, Option<UploadRow>> {
        Box::pin(self.read(move |connection, _| read::upload(connection, id)))
    }

    fn chunk(&self, id: UploadId, index: u64) -> Answer<'_, Option<Digest>> {
        Box::pin(self.read(move |connection, _| read::chunk(connection, id, index)))
    }

    fn chunks(&self, id: UploadId) -> Answer<'_, Vec<ChunkThere>> {
        Box::pin(self.read(move |connection, _| read::chunks(connection, id)))
    }

    fn keep_chunk(&self, receipt: ChunkReceipt) -> Answer<'_, Kept> {
        Box::pin(self.keep(Receipt::Chunk(receipt)))
    }

    fn keep_stream(&self, receipt: StreamReceipt) -> Answer<'_, Kept> {
        Box::pin(self.keep(Receipt::Stream(receipt)))
    }

    fn reserve_upload(&self, id: UploadId, bytes: u64, quota_bytes: u64) -> Answer<'_, bool> {
        Box::pin(self.write(move |writer| open::reserve(&mut writer.connection, id, (bytes, quota_bytes))))
    }

    fn release_upload(&self, id: UploadId) -> Answer<'_, ()> {
        Box::pin(self.write(move |writer| open::release(&mut writer.connection, id)))
    }

    fn turn_upload(&self, turn: UploadTurn) -> Answer<'_, bool> {
        let held = Arc::clone(&self.shared.held);
        Box::pin(self.run(move |writer| {
            let mut fence = held.fence();
            writer.transaction(|writer| turn::turn(&mut writer.connection, &turn, &mut fence))
        }))
    }

    fn is_alone(&self) -> bool {
        true
    }

    fn lease(
        &self,
        key: LeaseKey,
        holder: u64,
        now_ms: u64,
        until_ms: u64,
        evict: bool,
    ) -> Answer<'_, Leased> {
        let leased = |leases: &mut Leases| leases.lease(key, holder, (now_ms, until_ms), evict);
        Box::pin(ready(Ok(self.shared.held.with(leased))))
    }

    fn renew(&self, key: LeaseKey, holder: u64, now_ms: u64, until_ms: u64) -> Answer<'_, Renewed> {
        let renewed = |leases: &mut Leases| leases.renew(key, holder, (now_ms, until_ms));
        Box::pin(ready(Ok(self.shared.held.with(renewed))))
    }

    fn release(&self, key: LeaseKey, holder: u64) -> Answer<'_, ()> {
        self.shared.held.with(|leases| leases.release(key, holder));
        Box::pin(ready(Ok(())))
    }

    fn overdue_uploads(&self, now_ms: u64, rows: usize) -> Answer<'_, Vec<UploadRow>> {
        Box::pin(self.read(move |connection, _| read::overdue(connection, now_ms, rows)))
    }

    fn unfinished_uploads(&self, before_ms: u64, rows: usize) -> Answer<'_, Vec<UploadRow>> {
        Box::pin(self.read(move |connection, _| read::unfinished(connection, before_ms, rows)))
    }

    fn upload_states(&self, ids: Vec<UploadId>) -> Answer<'_, Vec<(UploadId, State)>> {
        Box::pin(self.read(move |connection, _| read::states(connection, ids)))
    }

    fn untold_uploads(&self, rows: usize) -> Answer<'_, Vec<UploadRow>> {
        Box::pin(self.read(move |connection, _| read::untold(connection, rows)))
    }

    fn upload_told(&self, id: UploadId) -> Answer<'_, ()> {
        Box::pin(self.write(move |writer| turn::told(&mut writer.connection, id)))
    }

    fn undiscarded_uploads(&self, rows: usize) -> Answer<'_, Vec<UploadRow>> {
        Box::pin(self.read(move |connection, _| read::undiscarded(connection, rows)))
    }

    fn upload_discarded(&self, id: UploadId) -> Answer<'_, ()> {
        Box::pin(self.write(move |writer| turn::discarded(&mut writer.connection, id)))
    }

    fn remove_file_row(&self, id: UploadId) -> Answer<'_, bool> {
        Box::pin(self.write(move |writer| turn::remove_file(&mut writer.connection, id)))
    }

    fn forget_uploads(&self, before_ms: u64, undiscarded_before_ms: u64) -> Answer<'_, u64> {
        self.shared.held.with(|leases| leases.forget(before_ms));
        let before = (before_ms, undiscarded_before_ms);
        Box::pin(self.in_steps(move |writer| turn::forget(&mut writer.connection, before)))
    }

    fn upload_usage(&self) -> Answer<'_, UploadUsage> {
        Box::pin(self.read(|connection, _| read::usage(connection)))
    }
}
