//! The rows of uploads in memory.

use std::collections::BTreeMap;
use std::future::ready;

use driftline_engine::{
    Answer, ChunkReceipt, ChunkThere, Kept, LeaseKey, LeaseSlot, Leased, Renewed, StoreError, StreamReceipt,
    UploadCaps, UploadOnce, UploadOpened, UploadRow, UploadRows, UploadTurn, UploadUsage,
};
use driftline_model::TenantNo;
use driftline_uploads::{Digest, Form, RunningHash, State as Stage, UploadId};

use super::{MemoryStore, State};
use crate::codec::corrupt;
use crate::uploads::{
    Leases, Standing, chunk_refused, go_on, is_live, is_to_be_finalized, is_to_be_told, kept_of, met,
    refused, released, reserved, turned,
};

/// Everything of uploads.
#[derive(Clone, Default)]
pub(super) struct Uploads {
    stored: BTreeMap<UploadId, Stored>,
    leases: Leases,
}

#[derive(Clone)]
struct Stored {
    row: UploadRow,
    /// The digests of the chunks that are there, and what the place of the bytes calls them.
    chunks: BTreeMap<u64, (Digest, Option<Box<str>>)>,
    /// Whether somebody heard that it is done.
    told: bool,
}

impl Stored {
    /// Takes a hash that goes farther than the one that is there.
    fn take_running(&mut self, running: Option<&RunningHash>) {
        let through = self.row.running.as_ref().map_or(0, RunningHash::through);
        if let Some(farther) = running.filter(|running| running.through() > through) {
            self.row.running = Some(farther.clone());
        }
    }

    fn touch(&mut self, at_ms: u64, expires_ms: u64) {
        self.row.changed_ms = self.row.changed_ms.max(at_ms);
        self.row.upload.expires_ms = expires_ms;
    }
}

impl Uploads {
    fn rows(&self) -> impl Iterator<Item = &UploadRow> {
        self.stored.values().map(|stored| &stored.row)
    }

    /// Adds up what a tenant's uploads and files take.
    fn used(&self, tenant: TenantNo) -> u64 {
        self.rows().filter(|row| row.tenant == tenant).map(|row| row.reserved).sum()
    }

    /// Tells whether a tenant's quota has room for what its upload is to reserve.
    fn has_room(&self, row: &UploadRow, reserved: u64, quota_bytes: u64) -> bool {
        let more = reserved.saturating_sub(row.reserved);
        more == 0 || self.used(row.tenant).saturating_add(more) <= quota_bytes
    }

    fn keep_chunk(&mut self, receipt: ChunkReceipt) -> Kept {
        let slot = LeaseSlot::Chunk(receipt.index);
        let holds = self.leases.holds(LeaseKey { id: receipt.id, slot }, receipt.holder);
        let Some(stored) = self.stored.get_mut(&receipt.id) else { return chunk_refused(None, false) };
        let state = stored.row.upload.state;
        let is_there = stored.chunks.contains_key(&receipt.index);
        if !holds || is_there || state != Stage::Open {
            return chunk_refused(Some(state), is_there);
        }
        stored.chunks.insert(receipt.index, (receipt.digest, receipt.tag));
        stored.row.upload.received += receipt.bytes;
        stored.take_running(receipt.running.as_ref());
        stored.touch(receipt.at_ms, receipt.expires_ms);
        Kept::Kept { received: stored.row.upload.received }
    }

    fn keep_stream(&mut self, receipt: &StreamReceipt) -> Kept {
        let standing = self.stored.get(&receipt.id).map(|stored| Standing::of(&stored.row));
        let key = LeaseKey { id: receipt.id, slot: LeaseSlot::Stream };
        let holds = || self.leases.holds(key, receipt.holder);
        let streamed = match go_on(standing.as_ref(), receipt, holds) {
            Ok(streamed) => streamed,
            Err(kept) => return kept,
        };
        let Some(stored) = self.stored.get(&receipt.id) else { return Kept::NotOpen(None) };
        if !self.has_room(&stored.row, streamed.reserved, receipt.quota_bytes) {
            return Kept::NoRoom;
        }
        let Some(stored) = self.stored.get_mut(&receipt.id) else { return Kept::NotOpen(None) };
        stored.row.reserved = streamed.reserved;
        stored.row.upload.received = receipt.to;
        if let Form::Stream { size } = &mut stored.row.upload.form {
            *size = streamed.size;
        }
        stored.take_running(receipt.running.as_ref());
        stored.touch(receipt.at_ms, receipt.expires_ms);
        Kept::Kept { received: receipt.to }
    }

    fn reserve(&mut self, id: UploadId, bytes: u64, quota_bytes: u64) -> bool {
        let Some(stored) = self.stored.get(&id) else { return false };
        let Some(reserved) = reserved(Some(&Standing::of(&stored.row)), bytes) else { return false };
        if !self.has_room(&stored.row, reserved, quota_bytes) {
            return false;
        }
        self.stored.get_mut(&id).is_some_and(|stored| {
            stored.row.reserved = reserved;
            true
        })
    }

    fn release(&mut self, id: UploadId) {
        if let Some(stored) = self.stored.get_mut(&id)
            && let Some(reserved) = released(Some(&Standing::of(&stored.row)))
        {
            stored.row.reserved = reserved;
        }
    }

    fn turn(&mut self, turn: UploadTurn) -> bool {
        let Some(stored) = self.stored.get_mut(&turn.id) else { return false };
        let key = LeaseKey { id: turn.id, slot: LeaseSlot::Finalize };
        let holds = |holder| self.leases.holds(key, holder);
        let Some(turned) = turned(Some(&Standing::of(&stored.row)), &turn, holds) else { return false };
        if turned.forgets {
            stored.chunks.clear();
        }
        if let Some(missing) = turned.missing {
            let gone = missing.iter().filter(|(index, _)| stored.chunks.remove(index).is_some());
            let upload = &mut stored.row.upload;
            upload.received = upload.received.saturating_sub(gone.map(|(_, bytes)| bytes).sum());
            stored.row.running = None;
        }
        let row = &mut stored.row;
        (row.upload.state, row.reserved) = (turn.to, turned.reserved);
        row.digest = turn.digest.or(row.digest);
        (row.fault, row.changed_ms) = (turn.fault, turn.at_ms);
        true
    }

    /// Lists uploads in the order of a time and then of their names.
    fn listed(
        &self,
        wanted: impl Fn(&Stored) -> bool,
        time: impl Fn(&UploadRow) -> u64,
        rows: usize,
    ) -> Vec<&UploadRow> {
        let wanted = self.stored.values().filter(|stored| wanted(stored));
        let mut found: Vec<&UploadRow> = wanted.map(|stored| &stored.row).collect();
        found.sort_by_key(|row| (time(row), row.id));
        found.truncate(rows);
        found
    }

    fn overdue(&self, now_ms: u64, rows: usize) -> Vec<&UploadRow> {
        let wanted = |stored: &Stored| {
            let upload = &stored.row.upload;
            upload.state == Stage::Open && upload.expires_ms <= now_ms
        };
        self.listed(wanted, |row| row.upload.expires_ms, rows)
    }

    fn unfinished(&self, before_ms: u64, rows: usize) -> Vec<&UploadRow> {
        let wanted = |stored: &Stored| is_to_be_finalized(&stored.row) && stored.row.changed_ms < before_ms;
        self.listed(wanted, |row| row.changed_ms, rows)
    }

    fn untold(&self, rows: usize) -> Vec<&UploadRow> {
        self.listed(|stored| !stored.told && is_to_be_told(&stored.row), |row| row.changed_ms, rows)
    }

    fn undiscarded(&self, rows: usize) -> Vec<&UploadRow> {
        let wanted = |stored: &Stored| is_over(&stored.row) && stored.row.staged.is_some();
        let mut found = self.listed(wanted, |row| row.changed_ms, usize::MAX);
        found.reverse();
        found.truncate(rows);
        found
    }

    fn discarded(&mut self, id: UploadId) {
        if let Some(stored) = self.stored.get_mut(&id).filter(|stored| is_over(&stored.row)) {
            stored.row.staged = None;
        }
    }

    fn state_of(&self, id: UploadId) -> Option<Stage> {
        self.stored.get(&id).map(|stored| stored.row.upload.state)
    }

    fn remove_file(&mut self, id: UploadId) -> bool {
        let is_file = self.stored.get(&id).is_some_and(|stored| stored.row.upload.state == Stage::Done);
        is_file && self.stored.remove(&id).is_some()
    }

    fn forget(&mut self, before_ms: u64, undiscarded_before_ms: u64) -> u64 {
        self.leases.forget(before_ms);
        let before = self.stored.len();
        self.stored.retain(|_, stored| {
            let row = &stored.row;
            let until_ms = if row.staged.is_none() { before_ms } else { undiscarded_before_ms };
            !(is_over(row) && row.changed_ms < until_ms)
        });
        (before - self.stored.len()) as u64
    }

    fn usage(&self) -> UploadUsage {
        UploadUsage {
            open: self.rows().filter(|row| is_live(row.upload.state)).count() as u64,
            bytes: self.rows().map(|row| row.reserved).sum(),
        }
    }
}

impl State {
    fn open_upload(
        &mut self,
        row: UploadRow,
        caps: UploadCaps,
        once: Option<&UploadOnce>,
        now_ms: u64,
    ) -> Result<UploadOpened, StoreError> {
        let name = once.map(|once| (row.tenant, once.owner.clone(), once.key.clone()));
        if let (Some(once), Some(name)) = (once, &name)
            && let Some(answer) = met(self.once.get(name), once, now_ms)?
        {
            return Ok(answer);
        }
        let own = self.uploads.rows().filter(|other| {
            other.tenant == row.tenant && other.owner == row.owner && is_live(other.upload.state)
        });
        let (open, used) = (own.count() as u64, self.uploads.used(row.tenant));
        if let Some(answer) = refused(&row, caps, open, used) {
            return Ok(answer);
        }
        if self.uploads.stored.contains_key(&row.id) {
            return Err(StoreError::Unavailable("there is an upload of this name".into()));
        }
        if let (Some(once), Some(name)) = (once, name) {
            self.once.insert(name, kept_of(once, row.id, now_ms));
        }
        let running = row.running.clone().filter(|running| running.through() > 0);
        let row = UploadRow { running, ..row };
        self.uploads.stored.insert(row.id, Stored { row, chunks: BTreeMap::new(), told: false });
        Ok(UploadOpened::Opened)
    }

    /// Gives a row as it is read: with its tenant's name.
    fn shown_upload(&self, row: &UploadRow) -> Result<UploadRow, StoreError> {
        let tenant = self.tenants.iter().find(|(_, number)| **number == row.tenant);
        let (tenant_id, _) = tenant.ok_or_else(|| corrupt("tenant"))?;
        Ok(UploadRow { tenant_id: tenant_id.clone(), ..row.clone() })
    }

    fn shown_uploads(&self, rows: &[&UploadRow]) -> Result<Vec<UploadRow>, StoreError> {
        rows.iter().map(|row| self.shown_upload(row)).collect()
    }
}

/// Tells whether an upload was given up or expired.
fn is_over(row: &UploadRow) -> bool {
    matches!(row.upload.state, Stage::Cancelled | Stage::Expired)
}

/// Gives the answer of something that does not wait.
fn answer<'a, T: Send + 'a>(answer: Result<T, StoreError>) -> Answer<'a, T> {
    Box::pin(ready(answer))
}

impl UploadRows for MemoryStore {
    fn open_upload(
        &self,
        row: UploadRow,
        caps: UploadCaps,
        once: Option<UploadOnce>,
    ) -> Answer<'_, UploadOpened> {
        let now_ms = self.clock.now_ms();
        answer(self.state().open_upload(row, caps, once.as_ref(), now_ms))
    }

    fn upload(&self, id: UploadId) -> Answer<'_, Option<UploadRow>> {
        let state = self.state();
        answer(state.uploads.stored.get(&id).map(|stored| state.shown_upload(&stored.row)).transpose())
    }

    fn chunk(&self, id: UploadId, index: u64) -> Answer<'_, Option<Digest>> {
        let state = self.state();
        let chunk = state.uploads.stored.get(&id).and_then(|stored| stored.chunks.get(&index));
        answer(Ok(chunk.map(|(digest, _)| *digest)))
    }

    fn chunks(&self, id: UploadId) -> Answer<'_, Vec<ChunkThere>> {
        let state = self.state();
        let chunks = state.uploads.stored.get(&id).into_iter().flat_map(|stored| &stored.chunks);
        let shown = chunks.map(|(index, (digest, tag))| ChunkThere {
            index: *index,
            digest: *digest,
            tag: tag.clone(),
        });
        answer(Ok(shown.collect()))
    }

    fn keep_chunk(&self, receipt: ChunkReceipt) -> Answer<'_, Kept> {
        answer(Ok(self.state().uploads.keep_chunk(receipt)))
    }

    fn keep_stream(&self, receipt: StreamReceipt) -> Answer<'_, Kept> {
        answer(Ok(self.state().uploads.keep_stream(&receipt)))
    }

    fn reserve_upload(&self, id: UploadId, bytes: u64, quota_bytes: u64) -> Answer<'_, bool> {
        answer(Ok(self.state().uploads.reserve(id, bytes, quota_bytes)))
    }

    fn release_upload(&self, id: UploadId) -> Answer<'_, ()> {
        self.state().uploads.release(id);
        answer(Ok(()))
    }

    fn turn_upload(&self, turn: UploadTurn) -> Answer<'_, bool> {
        answer(Ok(self.state().uploads.turn(turn)))
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
        answer(Ok(self.state().uploads.leases.lease(key, holder, (now_ms, until_ms), evict)))
    }

    fn renew(&self, key: LeaseKey, holder: u64, now_ms: u64, until_ms: u64) -> Answer<'_, Renewed> {
        answer(Ok(self.state().uploads.leases.renew(key, holder, (now_ms, until_ms))))
    }

    fn release(&self, key: LeaseKey, holder: u64) -> Answer<'_, ()> {
        self.state().uploads.leases.release(key, holder);
        answer(Ok(()))
    }

    fn overdue_uploads(&self, now_ms: u64, rows: usize) -> Answer<'_, Vec<UploadRow>> {
        let state = self.state();
        answer(state.shown_uploads(&state.uploads.overdue(now_ms, rows)))
    }

    fn unfinished_uploads(&self, before_ms: u64, rows: usize) -> Answer<'_, Vec<UploadRow>> {
        let state = self.state();
        answer(state.shown_uploads(&state.uploads.unfinished(before_ms, rows)))
    }

    fn upload_states(&self, ids: Vec<UploadId>) -> Answer<'_, Vec<(UploadId, Stage)>> {
        let state = self.state();
        let states = ids.into_iter().filter_map(|id| Some((id, state.uploads.state_of(id)?)));
        answer(Ok(states.collect()))
    }

    fn untold_uploads(&self, rows: usize) -> Answer<'_, Vec<UploadRow>> {
        let state = self.state();
        answer(state.shown_uploads(&state.uploads.untold(rows)))
    }

    fn upload_told(&self, id: UploadId) -> Answer<'_, ()> {
        if let Some(stored) = self.state().uploads.stored.get_mut(&id) {
            stored.told = true;
        }
        answer(Ok(()))
    }

    fn undiscarded_uploads(&self, rows: usize) -> Answer<'_, Vec<UploadRow>> {
        let state = self.state();
        answer(state.shown_uploads(&state.uploads.undiscarded(rows)))
    }

    fn upload_discarded(&self, id: UploadId) -> Answer<'_, ()> {
        self.state().uploads.discarded(id);
        answer(Ok(()))
    }

    fn remove_file_row(&self, id: UploadId) -> Answer<'_, bool> {
        answer(Ok(self.state().uploads.remove_file(id)))
    }

    fn forget_uploads(&self, before_ms: u64, undiscarded_before_ms: u64) -> Answer<'_, u64> {
        answer(Ok(self.state().uploads.forget(before_ms, undiscarded_before_ms)))
    }

    fn upload_usage(&self) -> Answer<'_, UploadUsage> {
        answer(Ok(self.state().uploads.usage()))
    }
}
