//! Finalizing: from an upload to a file.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use driftline_model::ObjectBuilder;
use driftline_protocol::{ErrorCode, Fault, UploadPlace};
use driftline_uploads::{Digest, Form, Ranges, Refused, State, UploadId};

use super::chunk::Held;
use super::found::Seal;
use super::{Engine, GAPS_MAX, LEASE_MS, UploadRight, busy, lost, mismatch, refused};
use crate::events::{EventDraft, quoted};
use crate::ports::{Observer, Store};
use crate::service::unavailable;
use crate::uploads::{BlobError, Joining, LeaseKey, LeaseSlot, Leased, UploadRow, UploadTurn, Verdict};

/// Tells the time in Unix milliseconds.
pub(super) type Now<'a> = dyn Fn() -> u64 + Send + Sync + 'a;

/// What came of finalizing.
#[derive(Debug, Clone)]
pub enum Finalized {
    /// It is a file.
    Done(Box<UploadRow>),
    /// Somebody is at it.
    UnderWay,
}

impl<S: Store, O: Observer> Engine<S, O> {
    /// Makes a file of an upload whose bytes are all there and have the claimed digest: the one that is claimed now, else
    /// the announced one. Doing it again tells of the file.
    ///
    /// It may take long and is not to be dropped: it runs in a task of its own, beside which [`Engine::hold_right`] is called
    /// every few seconds, and `now` tells the time in Unix milliseconds whenever it is asked. What a crash leaves behind is
    /// ended by whoever asks for [`Engine::unfinished_uploads`].
    ///
    /// # Errors
    /// `NOT_FOUND`, `FORBIDDEN` for a part of a concatenation, `UPLOAD_GONE`, `UPLOAD_INCOMPLETE` with what is missing, `DIGEST_MISMATCH`: the upload stays open,
    /// `VALIDATION_ERROR` for a file that verification refused, `STORAGE_FULL`, `STORE_UNAVAILABLE`.
    pub async fn finalize_upload(
        &self,
        right: UploadRight<'_>,
        id: UploadId,
        claimed: Option<Digest>,
        (now, holder): (&Now<'_>, u64),
    ) -> Result<Finalized, Fault> {
        let row = self.upload(right, id).await?;
        let now_ms = now();
        if row.joining == Joining::Part {
            return Err(Fault::new(ErrorCode::Forbidden, "a part of a concatenation is no file of its own"));
        }
        let claimed = claimed.or(row.announced);
        match row.upload.state_at(now_ms) {
            State::Done => return done_before(row, claimed),
            State::Open if !row.upload.is_whole() => return Err(self.incomplete(&row).await?),
            State::Open | State::Finalizing => {}
            gone => return Err(refused(Refused::Gone(gone))),
        }
        let key = LeaseKey { id, slot: LeaseSlot::Finalize };
        let leased = self.upload_rows().lease(key, holder, now_ms, now_ms + LEASE_MS, false).await;
        if matches!(leased.map_err(|error| unavailable(&error))?, Leased::Busy { .. }) {
            return Ok(Finalized::UnderWay);
        }
        let held = Held { key, holder, renewed_ms: now_ms };
        let finished = self.finalize_held(held, claimed, now).await;
        self.let_go(held).await;
        finished
    }

    async fn incomplete(&self, row: &UploadRow) -> Result<Fault, Fault> {
        let fault = refused(Refused::Incomplete);
        Ok(match row.upload.form {
            Form::Chunks(plan) => {
                let there = self.received_chunks(row.id).await?;
                fault.at(UploadPlace::Missing(there.missing(plan.chunks(), GAPS_MAX)))
            }
            Form::Stream { .. } => fault.at(UploadPlace::Offset(row.upload.received)),
        })
    }

    /// Finalizes with the right to do so.
    async fn finalize_held(
        &self,
        held: Held,
        claimed: Option<Digest>,
        now: &Now<'_>,
    ) -> Result<Finalized, Fault> {
        let (id, now_ms) = (held.key.id, now());
        // What a receipt no longer counts for may still be on its way to the disk.
        if self.taken()?.writers.is_written(id) {
            return Err(busy("bytes of the upload are still being written"));
        }
        // Somebody may have finished it before the right was had.
        let mut row = self.upload(UploadRight::Secret, id).await?;
        let claimed_now = claimed;
        let claimed = match row.upload.state_at(now_ms) {
            State::Done => return done_before(row, claimed),
            State::Open => {
                let turn = UploadTurn {
                    whole: true,
                    digest: claimed,
                    holder: Some(held.holder),
                    ..turn(&row, State::Open, State::Finalizing, now_ms)
                };
                if !self.turn_upload(turn).await? {
                    return Err(busy("the upload changed meanwhile"));
                }
                claimed
            }
            // It was begun and not ended: with the digest that was claimed then.
            State::Finalizing => row.digest.or(claimed),
            gone => return Err(refused(Refused::Gone(gone))),
        };
        let checked = self.checked(&row, claimed).await;
        // That may have taken long.
        let now_ms = now();
        match checked {
            Ok(digest) => {
                row.digest = Some(digest);
                row.upload.state = State::Done;
                let turn = UploadTurn {
                    digest: Some(digest),
                    holder: Some(held.holder),
                    ..turn(&row, State::Finalizing, State::Done, now_ms)
                };
                if !self.turn_upload(turn).await? {
                    return Err(overtaken());
                }
                self.observer.upload_ended(
                    State::Done,
                    row.upload.received,
                    now_ms.saturating_sub(row.upload.opened_ms),
                );
                self.tell_done(&row, now_ms).await;
                // Whoever ends what another one began may have claimed something else.
                done_before(row, claimed_now)
            }
            Err(Failed::Refused(why)) => {
                let why = format!("the file was refused: {why}");
                let turn = UploadTurn {
                    // Whoever does not wait for the answer asks later.
                    fault: Some(why.as_str().into()),
                    holder: Some(held.holder),
                    ..turn(&row, State::Finalizing, State::Cancelled, now_ms)
                };
                if !self.give_up(&row, turn).await? {
                    return Err(overtaken());
                }
                Err(Fault::new(ErrorCode::ValidationError, why))
            }
            Err(Failed::Again(fault)) => {
                self.turn_back(&row, (&fault, Vec::new()), held, now_ms).await?;
                Err(fault)
            }
            Err(Failed::Damaged(fault, whole)) => {
                let damaged = self.looked_through(&row).await;
                let whole = whole.filter(|_| matches!(damaged, Ok(None)));
                // What cannot be read now leaves it at the mismatch.
                let (fault, missing) = damaged.ok().flatten().unwrap_or_else(|| (fault, Vec::new()));
                let is_back = self.turn_back(&row, (&fault, missing), held, now()).await?;
                // Whoever was overtaken may have read what was mended since.
                if let Some((seal, digest)) = whole.filter(|_| is_back) {
                    self.taken()?.found.remember(id, seal, digest);
                }
                Err(fault)
            }
        }
    }

    /// Leaves an upload open that could not be finalized, without the chunks that are to be sent again; tells whether it was
    /// still this one's to leave.
    async fn turn_back(
        &self,
        row: &UploadRow,
        (fault, missing): (&Fault, Vec<(u64, u64)>),
        held: Held,
        now_ms: u64,
    ) -> Result<bool, Fault> {
        let turn = UploadTurn {
            fault: Some(fault.message.as_str().into()),
            holder: Some(held.holder),
            missing,
            ..turn(row, State::Finalizing, State::Open, now_ms)
        };
        self.turn_upload(turn).await
    }

    /// Looks which chunks of a file with another digest are to blame: those whose bytes are not what was received. Gives
    /// them with their bytes, and what is told then.
    async fn looked_through(&self, row: &UploadRow) -> Result<Option<(Fault, Vec<(u64, u64)>)>, Fault> {
        let Form::Chunks(plan) = row.upload.form else { return Ok(None) };
        let chunks = self.upload_rows().chunks(row.id).await.map_err(|error| unavailable(&error))?;
        let digests = chunks.iter().map(|chunk| (chunk.index, chunk.digest)).collect();
        let damaged = self.taken()?.blobs.damaged(row, digests).await.map_err(|error| lost(&error))?;
        if damaged.is_empty() {
            // The client claims another file than it sent.
            return Ok(None);
        }
        let damaged: HashSet<u64> = damaged.into_iter().collect();
        let there: Ranges =
            chunks.iter().map(|chunk| chunk.index).filter(|index| !damaged.contains(index)).collect();
        let missing = damaged.iter().filter_map(|index| Some((*index, plan.chunk(*index)?.1))).collect();
        let message = "chunks were damaged where they lay: send them again";
        let gaps = there.missing(plan.chunks(), GAPS_MAX);
        Ok(Some((Fault::new(ErrorCode::UploadIncomplete, message).at(UploadPlace::Missing(gaps)), missing)))
    }

    /// Checks the whole file, has it looked at, and publishes it.
    async fn checked(&self, row: &UploadRow, claimed: Option<Digest>) -> Result<Digest, Failed> {
        let uploads = self.taken()?;
        let chunks = self.upload_rows().chunks(row.id).await.map_err(|error| unavailable(&error))?;
        let seal = Seal::of(&chunks);
        let known = uploads.found.digest(row.id, seal);
        if let (Some(claimed), Some(known)) = (claimed, known.filter(|known| claimed != Some(*known))) {
            return Err(Failed::Again(mismatch(claimed, known)));
        }
        let tags = chunks.into_iter().filter_map(|chunk| chunk.tag).collect();
        let digest = uploads.blobs.assemble(row, tags).await?;
        if let Some(claimed) = claimed.filter(|claimed| *claimed != digest) {
            let fault = mismatch(claimed, digest);
            let came = row.running.as_ref().filter(|running| running.through() == row.upload.received);
            // What lies there is what came: the client claims another file than it sent.
            let is_as_it_came = came.is_some_and(|running| running.digest() == digest);
            return Err(if is_as_it_came {
                Failed::Again(fault)
            } else {
                let whole = matches!(row.upload.form, Form::Chunks(_)).then_some((seal, digest));
                Failed::Damaged(fault, whole)
            });
        }
        let verifier = uploads.rules.verifier.as_ref().filter(|_| uploads.rules.of(&row.tenant_id).verified);
        if let Some(verifier) = verifier {
            match verifier.verify(row, &*uploads.blobs).await {
                Verdict::Released => {}
                Verdict::Refused(why) => return Err(Failed::Refused(why)),
                Verdict::Later(why) => {
                    let message = format!("the file cannot be verified now: {why}");
                    return Err(Fault::new(ErrorCode::StoreUnavailable, message).into());
                }
            }
        }
        uploads.blobs.publish(row.id).await?;
        Ok(digest)
    }

    pub(super) async fn turn_upload(&self, turn: UploadTurn) -> Result<bool, Fault> {
        self.upload_rows().turn_upload(turn).await.map_err(|error| unavailable(&error))
    }

    /// Gives an upload up: its bytes go, and what it had of the quota comes back. Tells whether it was in the state that
    /// it had to be in.
    pub(super) async fn give_up(&self, row: &UploadRow, turn: UploadTurn) -> Result<bool, Fault> {
        let is_given_up = self.end(row, turn).await?;
        if is_given_up {
            // What is left when this fails is removed by the sweeper.
            let _ = self.discard(row).await;
        }
        Ok(is_given_up)
    }

    /// Gives an upload up and leaves its bytes where they are.
    pub(super) async fn end(&self, row: &UploadRow, turn: UploadTurn) -> Result<bool, Fault> {
        let (to, now_ms) = (turn.to, turn.at_ms);
        if !self.turn_upload(turn).await? {
            return Ok(false);
        }
        self.taken()?.forget(row.id);
        if row.joining != Joining::Part {
            let lived_ms = now_ms.saturating_sub(row.upload.opened_ms);
            self.observer.upload_ended(to, row.upload.received, lived_ms);
        }
        Ok(true)
    }

    /// Removes the bytes of an upload that was given up, and takes down that what was staged is discarded if the place has a
    /// name for it.
    pub(super) async fn discard(&self, row: &UploadRow) -> Result<(), Fault> {
        let uploads = self.taken()?;
        let (blobs, is_written) = (&uploads.blobs, uploads.writers.is_written(row.id));
        let discarded = blobs.discard(row.id, row.staged.clone()).await;
        // Somebody else may have published it before it was refused.
        let removed = blobs.remove(row.id).await;
        discarded.and(removed).map_err(|error| lost(&error))?;
        // What is still on its way may come after it was discarded, and is discarded again by the sweeper.
        if row.staged.is_some() && !is_written {
            self.upload_rows().upload_discarded(row.id).await.map_err(|error| unavailable(&error))?;
        }
        Ok(())
    }

    /// Gives an upload up for its owner.
    ///
    /// # Errors
    /// `NOT_FOUND`, `UPLOAD_GONE`, `IDEMPOTENCY_IN_PROGRESS` while it is finalized, `STORE_UNAVAILABLE`.
    pub async fn cancel_upload(
        &self,
        right: UploadRight<'_>,
        id: UploadId,
        now_ms: u64,
    ) -> Result<(), Fault> {
        let row = self.upload(right, id).await?;
        row.upload.require_open(now_ms).map_err(refused)?;
        if self.give_up(&row, turn(&row, State::Open, State::Cancelled, now_ms)).await? {
            return Ok(());
        }
        Err(busy("the upload changed meanwhile"))
    }

    /// Tells the user, now and for ever, that a file is there.
    pub(super) async fn tell_done(&self, row: &UploadRow, now_ms: u64) {
        if let Ok(uploads) = self.taken() {
            uploads.forget(row.id);
        }
        if row.joining == Joining::Part {
            return;
        }
        let id = quoted(&row.id.to_string());
        let mut data = ObjectBuilder::with_capacity(8, 160);
        data.push("file_id", &id);
        data.push("file_name", &quoted(&row.file_name));
        if let Some((kind, record)) = &row.record {
            data.push(
                "record",
                &format!("{{\"id\":{},\"kind\":{}}}", quoted(record.as_str()), quoted(kind.as_str())),
            );
        }
        if let Some(digest) = row.digest {
            data.push("sha256", &quoted(&digest.to_string()));
        }
        data.push("size", &row.upload.received.to_string());
        data.push("upload_id", &id);
        let draft = EventDraft {
            dedupe_key: Some(format!("~upload:{}", row.id).into()),
            ..of_upload("upload_completed", row, data.finish().as_str(), now_ms)
        };
        let told = crate::service::publish::publication(row.tenant, "", vec![draft], "");
        // Who is not told now is told by the sweeper.
        if self.store.commit(told).await.is_ok() {
            let _ = self.upload_rows().upload_told(row.id).await;
        }
    }

    /// Tells the user who listens how far an upload has come.
    pub(super) fn tell_progress(&self, row: &UploadRow, received: u64, now_ms: u64) {
        let Ok(uploads) = self.taken() else { return };
        if row.joining == Joining::Part || !self.is_heard(row.tenant) || !uploads.is_due(row.id, now_ms) {
            return;
        }
        let mut data = ObjectBuilder::with_capacity(8, 160);
        data.push("bytes_received", &received.to_string());
        data.push("size", &row.upload.form.size().map_or("null".into(), |size| size.to_string()));
        data.push("upload_id", &quoted(&row.id.to_string()));
        let draft = of_upload("upload_progress", row, data.finish().as_str(), now_ms);
        self.tell_now(
            row.tenant,
            &EventDraft { durable: false, reached: Arc::new(AtomicU32::new(0)), ..draft },
        );
    }
}

/// Makes the event of an upload, for the user who opened it.
fn of_upload(kind: &str, row: &UploadRow, data: &str, now_ms: u64) -> EventDraft {
    let topic = format!("user_{}", row.owner);
    EventDraft::new(kind, vec![topic.into()], data.into(), now_ms)
}

/// Why a file was not published.
enum Failed {
    /// Verification refused it.
    Refused(String),
    /// It stays open.
    Again(Fault),
    /// It stays open, and may have been damaged where it lies. If it was not, this is the digest of its chunks.
    Damaged(Fault, Option<(Seal, Digest)>),
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Self::Again(fault)
    }
}

impl From<BlobError> for Failed {
    fn from(error: BlobError) -> Self {
        let fault = lost(&error);
        if error == BlobError::Mismatch { Self::Damaged(fault, None) } else { Self::Again(fault) }
    }
}

/// Somebody else finalizes, since the right to do so had ended.
fn overtaken() -> Fault {
    busy("another request finalizes the upload")
}

/// Tells of a file that was finished before.
fn done_before(row: UploadRow, claimed: Option<Digest>) -> Result<Finalized, Fault> {
    match (claimed, row.digest) {
        (Some(claimed), Some(digest)) if claimed != digest => Err(mismatch(claimed, digest)),
        _ => Ok(Finalized::Done(Box::new(row))),
    }
}

pub(super) fn turn(row: &UploadRow, from: State, to: State, now_ms: u64) -> UploadTurn {
    UploadTurn {
        id: row.id,
        from,
        to,
        whole: false,
        overdue: to == State::Expired,
        digest: None,
        fault: None,
        holder: None,
        missing: Vec::new(),
        at_ms: now_ms,
    }
}
