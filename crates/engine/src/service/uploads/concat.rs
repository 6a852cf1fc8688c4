//! Concatenation: one file of several uploads.

use std::collections::HashSet;

use driftline_protocol::{ErrorCode, Fault};
use driftline_uploads::{Refused, RunningHash, State, UploadId};

use super::chunk::Held;
use super::finish::{Now, turn};
use super::open::{NewUpload, OpenedUpload};
use super::{Engine, LEASE_MS, UploadRight, busy, lost, not_found, refused};
use crate::ports::{Identity, Observer, Store};
use crate::service::unavailable;
use crate::uploads::{BlobError, Joining, Kept, LeaseKey, LeaseSlot, Leased, StreamReceipt, UploadRow};

impl<S: Store, O: Observer> Engine<S, O> {
    /// Makes an upload of parts that are whole, in their order, and begins nothing else with it: it is finalized as any
    /// other. The same parts in the same order make one upload, however often they are joined: who did not hear the answer
    /// asks again. The parts stay until [`Engine::give_up_parts`].
    ///
    /// While both are there the tenant's quota may be exceeded by what the parts have of it.
    ///
    /// It is not to be dropped: it runs in a task of its own, beside which [`Engine::hold_joining`] is called every few
    /// seconds, and `now` tells the time in Unix milliseconds whenever it is asked.
    ///
    /// # Errors
    /// As [`Engine::open_upload`]; `NOT_FOUND` for a part that is none of the caller's, `VALIDATION_ERROR` for one that is
    /// named twice, `UPLOAD_INCOMPLETE` for one that is not whole, `UPLOAD_GONE` for a concatenation that was given up,
    /// `IDEMPOTENCY_IN_PROGRESS` while another request joins the same parts.
    pub async fn join_uploads(
        &self,
        identity: &Identity,
        new: NewUpload,
        parts: &[UploadId],
        (now, holder): (&Now<'_>, u64),
    ) -> Result<UploadRow, Fault> {
        let now_ms = now();
        let mut named = HashSet::new();
        if !parts.iter().all(|part| named.insert(part)) {
            return Err(Fault::new(ErrorCode::ValidationError, "a part of the concatenation is named twice"));
        }
        let new = NewUpload { id: whole_id(identity, parts), ..new };
        let key = LeaseKey { id: new.id, slot: LeaseSlot::Stream };
        let leased = self.upload_rows().lease(key, holder, now_ms, now_ms + LEASE_MS, false).await;
        if matches!(leased.map_err(|error| unavailable(&error))?, Leased::Busy { .. }) {
            return Err(busy("another request joins these parts"));
        }
        let joined = self.join_held(identity, new, parts, (now, holder)).await;
        self.let_go(Held { key, holder, renewed_ms: now_ms }).await;
        joined
    }

    /// Holds on to the right to join parts for whoever does; it does nothing for anybody else.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`: the right may end, and then somebody else joins them.
    pub async fn hold_joining(
        &self,
        identity: &Identity,
        parts: &[UploadId],
        (now_ms, holder): (u64, u64),
    ) -> Result<(), Fault> {
        self.hold_right(whole_id(identity, parts), LeaseSlot::Stream, (now_ms, holder)).await
    }

    async fn join_held(
        &self,
        identity: &Identity,
        mut new: NewUpload,
        parts: &[UploadId],
        (now, holder): (&Now<'_>, u64),
    ) -> Result<UploadRow, Fault> {
        let (uploads, now_ms) = (self.taken()?, now());
        let begun = self.upload_rows().upload(new.id).await.map_err(|error| unavailable(&error))?;
        if let Some(row) = &begun {
            match row.upload.state_at(now_ms) {
                // One without bytes is whole from the beginning, and may have no place yet.
                State::Open if !row.upload.is_whole() || row.upload.received == 0 => {}
                State::Open | State::Finalizing | State::Done => return Ok(row.clone()),
                gone => return Err(refused(Refused::Gone(gone))),
            }
        }
        let lengths = self.lengths_of(identity, parts, now_ms).await?;
        let size = lengths.iter().fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let mut row = match begun {
            Some(row) => row,
            None => {
                new.size = Some(size);
                let OpenedUpload { row, .. } = self.open_upload(identity, new, None, now_ms).await?;
                row
            }
        };
        let joined = uploads.blobs.join(row.id, attempt_id(row.id, holder), lengths).await;
        // That may have taken long.
        let now_ms = now();
        if let Err(error) = joined {
            if error == BlobError::Missing {
                let key = LeaseKey { id: row.id, slot: LeaseSlot::Stream };
                if !self.holds(key, holder, now_ms).await? {
                    return Err(busy("another request joins these parts"));
                }
                // A part that was given up meanwhile does not come back.
                self.give_up(&row, turn(&row, State::Open, State::Cancelled, now_ms)).await?;
            }
            return Err(lost(&error));
        }
        let receipt = StreamReceipt {
            id: row.id,
            from: 0,
            to: size,
            size: Some(size),
            running: None,
            holder,
            at_ms: now_ms,
            expires_ms: row.upload.expires_ms,
            // Its size was reserved when it was opened.
            quota_bytes: u64::MAX,
        };
        match self.upload_rows().keep_stream(receipt).await.map_err(|error| unavailable(&error))? {
            Kept::Kept { received } => {
                row.upload.received = received;
                Ok(row)
            }
            Kept::Overtaken | Kept::Lost | Kept::NotOpen(Some(State::Finalizing | State::Done)) => {
                Err(busy("another request joins these parts"))
            }
            Kept::NoRoom | Kept::NotOpen(_) => {
                // What is left when this fails is removed by the sweeper.
                let _ = uploads.blobs.discard(row.id, None).await;
                Err(Fault::new(ErrorCode::UploadGone, "the upload was given up meanwhile"))
            }
        }
    }

    /// Finds the parts, all of them whole and the caller's own; gives their lengths.
    async fn lengths_of(
        &self,
        identity: &Identity,
        parts: &[UploadId],
        now_ms: u64,
    ) -> Result<Vec<(UploadId, u64)>, Fault> {
        let mut lengths = Vec::with_capacity(parts.len());
        for part in parts {
            let row = self.upload(UploadRight::User(identity), *part).await?;
            if row.joining != Joining::Part {
                return Err(not_found());
            }
            row.upload.require_open(now_ms).map_err(refused)?;
            if !row.upload.is_whole() {
                let message = "a part of the concatenation is not complete";
                return Err(Fault::new(ErrorCode::UploadIncomplete, message));
            }
            lengths.push((*part, row.upload.received));
        }
        Ok(lengths)
    }

    /// Gives up the parts of a concatenation that is a file now. Those that cannot be given up now expire.
    pub async fn give_up_parts(&self, whole: &UploadRow, parts: &[UploadId], now_ms: u64) {
        for part in parts {
            let Ok(row) = self.upload(UploadRight::Secret, *part).await else { continue };
            let is_own = (row.tenant, &row.owner) == (whole.tenant, &whole.owner);
            if is_own && row.joining == Joining::Part && row.upload.state == State::Open {
                let turn = turn(&row, State::Open, State::Cancelled, now_ms).joined();
                let _ = self.give_up(&row, turn).await;
            }
        }
    }
}

/// The name of the place in which an attempt joins parts. No other attempt has it.
fn attempt_id(whole: UploadId, holder: u64) -> UploadId {
    let mut hash = RunningHash::default();
    hash.update(whole.as_bytes());
    hash.update(&holder.to_be_bytes());
    id_of(&hash)
}

fn id_of(hash: &RunningHash) -> UploadId {
    let mut id = [0; 16];
    id.copy_from_slice(&hash.digest().as_bytes()[..16]);
    UploadId::of(id)
}

/// The name of the upload that parts of a user make. Whoever knows all their names, and nobody else, can tell it.
fn whole_id(identity: &Identity, parts: &[UploadId]) -> UploadId {
    let mut hash = RunningHash::default();
    let (tenant, user) = (identity.tenant_id.as_str(), identity.user.to_string());
    for text in [tenant, &user] {
        hash.update(&(text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    }
    for part in parts {
        hash.update(part.as_bytes());
    }
    id_of(&hash)
}
