//! Uploads: opening, chunks, streams, finalizing, files and the sweeper.

mod chunk;
mod concat;
mod files;
mod finish;
mod found;
mod open;
mod stream;
mod sweep;
mod writers;

use std::collections::HashMap;
use std::sync::atomic::AtomicU8;
use std::sync::{Arc, Mutex, PoisonError};

use driftline_protocol::{ErrorCode, Fault, Throttle, ThrottleScope, UploadPlace};
use driftline_uploads::{Digest, Form, Ranges, Refused, State, UploadId};
use futures_channel::oneshot;

use super::{Engine, unavailable};
use crate::ports::{Identity, Observer, Store};
use crate::uploads::{BlobError, Blobs, LeaseKey, LeaseSlot, Renewed, UploadRow, UploadRows, UploadRules};

use chunk::Held;
pub use chunk::{ChunkKept, ChunkUpload};
pub use finish::Finalized;
use found::Found;
pub use open::{NewUpload, OpenedUpload};
pub use stream::{StreamUpload, Streaming};
pub use sweep::Swept;
use writers::{Kept, Receiving, Writers};

/// How long a right to write is held without being renewed, in milliseconds. It is renewed after a quarter of that.
const LEASE_MS: u64 = 15_000;

/// Gaps that a status names.
const GAPS_MAX: usize = 10_000;

/// How often listeners are told how far an upload has come, in milliseconds.
const PROGRESS_MS: u64 = 1000;

/// Uploads whose last progress is remembered; of more all are told anew.
const PROGRESS_MAX: usize = 10_000;

/// Where the bytes are, what is allowed, and what this node knows of uploads under way.
pub(crate) struct Uploads {
    pub(super) blobs: Arc<dyn Blobs>,
    pub(super) rules: UploadRules,
    /// Who receives and writes on this node.
    writers: Arc<Writers>,
    /// Which files the sweeper looks at next, by the first byte of their names.
    shard: AtomicU8,
    /// When listeners were told of uploads last. The lock is held for one look-up.
    told: Mutex<HashMap<UploadId, u64>>,
    /// The digests of whole files of which another one was claimed.
    found: Found,
}

impl Uploads {
    /// Begins to receive a body for an upload; with a right to write, nobody else may be writing at that place.
    fn receive(
        &self,
        row: &UploadRow,
        held: Option<&Held>,
    ) -> Result<(Receiving, oneshot::Receiver<()>), Fault> {
        let place = held.map(|held| (row.id, held.key.slot, held.holder));
        let bodies_max = self.rules.bodies_max;
        self.writers.enter((row.tenant, &row.owner), bodies_max, place).map_err(|kept| match kept {
            Kept::Busy => busy("what came before is still being written"),
            Kept::Full => Fault::throttled(Throttle {
                // Nobody knows when one ends; a short one does by then.
                retry_after_ms: 1000,
                limit: format!("{bodies_max} bodies of uploads at once"),
                scope: ThrottleScope::User,
            }),
        })
    }

    /// Tells whether listeners are to be told of an upload now.
    fn is_due(&self, id: UploadId, now_ms: u64) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.get(&id).is_some_and(|last_ms| now_ms < last_ms + PROGRESS_MS) {
            return false;
        }
        if told.len() >= PROGRESS_MAX {
            told.clear();
        }
        told.insert(id, now_ms);
        true
    }

    fn forget(&self, id: UploadId) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        self.found.forget(id);
    }
}

/// By what right somebody comes to an upload.
#[derive(Debug, Clone, Copy)]
pub enum UploadRight<'a> {
    /// As a user: the one who opened it.
    User(&'a Identity),
    /// By the secret that opening it gave, which the caller has checked.
    Secret,
}

/// Where an upload stands, as its owner is told.
#[derive(Debug, Clone)]
pub struct UploadStatus {
    /// The upload.
    pub row: UploadRow,
    /// Where it stands now.
    pub state: State,
    /// How many chunks were received.
    pub received: u64,
    /// Which chunks are missing: the first and the last one of each gap.
    pub missing: Vec<[u64; 2]>,
}

impl<S: Store, O: Observer> Engine<S, O> {
    /// Takes uploads, with their bytes in a place and within rules.
    #[must_use]
    pub fn with_uploads(self, blobs: Arc<dyn Blobs>, rules: UploadRules) -> Self {
        let uploads = Uploads {
            blobs,
            rules,
            writers: Arc::default(),
            shard: AtomicU8::default(),
            told: Mutex::default(),
            found: Found::default(),
        };
        Self { uploads: Some(uploads), ..self }
    }

    /// Returns what uploads may be; nothing where none are taken.
    pub fn upload_rules(&self) -> Option<&UploadRules> {
        self.uploads.as_ref().map(|uploads| &uploads.rules)
    }

    /// Tells whether uploads may come as streams.
    pub fn takes_streams(&self) -> bool {
        self.uploads.as_ref().is_some_and(|uploads| uploads.blobs.takes_streams())
    }

    fn taken(&self) -> Result<&Uploads, Fault> {
        self.uploads.as_ref().ok_or_else(|| Fault::new(ErrorCode::NotFound, "this server takes no uploads"))
    }

    fn upload_rows(&self) -> &dyn UploadRows {
        self.store.uploads()
    }

    /// Reads an upload that somebody may touch; one of another user or tenant is not found.
    ///
    /// # Errors
    /// `NOT_FOUND` and `STORE_UNAVAILABLE`.
    pub async fn upload(&self, right: UploadRight<'_>, id: UploadId) -> Result<UploadRow, Fault> {
        self.taken()?;
        let row = self.upload_rows().upload(id).await.map_err(|error| unavailable(&error))?;
        let own = |row: &UploadRow| match right {
            UploadRight::User(identity) => is_own(identity, row),
            UploadRight::Secret => true,
        };
        row.filter(own).ok_or_else(not_found)
    }

    /// Tells where an upload stands and what is missing.
    ///
    /// # Errors
    /// As [`Engine::upload`].
    pub async fn upload_status(
        &self,
        right: UploadRight<'_>,
        id: UploadId,
        now_ms: u64,
    ) -> Result<UploadStatus, Fault> {
        let row = self.upload(right, id).await?;
        let state = row.upload.state_at(now_ms);
        let (received, missing) = match (state, row.upload.form) {
            (State::Open, Form::Chunks(plan)) => {
                let there = self.received_chunks(id).await?;
                (there.count(), there.missing(plan.chunks(), GAPS_MAX))
            }
            (State::Finalizing | State::Done, Form::Chunks(plan)) => (plan.chunks(), Vec::new()),
            _ => (0, Vec::new()),
        };
        Ok(UploadStatus { row, state, received, missing })
    }

    /// Holds on to a right for a holder while something by it takes long; it does nothing for anybody else.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`: the right may end, and then somebody else may have it.
    pub async fn hold_right(
        &self,
        id: UploadId,
        slot: LeaseSlot,
        (now_ms, holder): (u64, u64),
    ) -> Result<(), Fault> {
        let renewed =
            self.upload_rows().renew(LeaseKey { id, slot }, holder, now_ms, now_ms + LEASE_MS).await;
        renewed.map(drop).map_err(|error| unavailable(&error))
    }

    /// Tells whether a right is still a holder's.
    async fn holds(&self, key: LeaseKey, holder: u64, now_ms: u64) -> Result<bool, Fault> {
        let renewed = self.upload_rows().renew(key, holder, now_ms, now_ms + LEASE_MS).await;
        Ok(renewed.map_err(|error| unavailable(&error))? != Renewed::Lost)
    }

    async fn received_chunks(&self, id: UploadId) -> Result<Ranges, Fault> {
        let chunks = self.upload_rows().chunks(id).await.map_err(|error| unavailable(&error))?;
        Ok(chunks.into_iter().map(|chunk| chunk.index).collect())
    }
}

fn is_own(identity: &Identity, row: &UploadRow) -> bool {
    row.tenant_id == identity.tenant_id && *row.owner == *identity.user.to_string()
}

fn not_found() -> Fault {
    Fault::new(ErrorCode::NotFound, "there is no such upload or file here")
}

/// Somebody else is at it.
fn busy(what: &str) -> Fault {
    Fault::new(ErrorCode::IdempotencyInProgress, what)
}

/// Makes what is told of an upload that may not go on as it was asked to.
pub(super) fn refused(refused: Refused) -> Fault {
    let message = refused.to_string();
    let code = match refused {
        Refused::Gone(_) => ErrorCode::UploadGone,
        Refused::Finalizing => return busy(&message),
        Refused::NoSuchChunk { .. } | Refused::OtherForm => ErrorCode::NotFound,
        Refused::WrongOffset { offset } => {
            return Fault::new(ErrorCode::OffsetMismatch, message).at(UploadPlace::Offset(offset));
        }
        Refused::TooLong { .. } => ErrorCode::MessageTooLarge,
        Refused::Incomplete => ErrorCode::UploadIncomplete,
        _ => ErrorCode::ValidationError,
    };
    Fault::new(code, message)
}

/// Makes what is told of bytes that could not be written or read.
pub(super) fn lost(error: &BlobError) -> Fault {
    match error {
        BlobError::Full => Fault::new(
            ErrorCode::StorageFull,
            "no space is left for uploads: what was acknowledged stays, go on later",
        ),
        BlobError::Missing => Fault::new(ErrorCode::HandlerError, "the bytes of the upload are not there"),
        BlobError::Taken => {
            Fault::new(ErrorCode::StoreUnavailable, "other bytes lie in the place of the upload")
        }
        BlobError::Length => Fault::new(ErrorCode::ValidationError, "the part has another length"),
        BlobError::Mismatch => Fault::new(ErrorCode::DigestMismatch, "the bytes have another digest"),
        BlobError::Failed(what) => {
            Fault::new(ErrorCode::StoreUnavailable, format!("the bytes could not be written or read: {what}"))
        }
    }
}

fn mismatch(wanted: Digest, found: Digest) -> Fault {
    Fault::new(ErrorCode::DigestMismatch, format!("the file has the SHA-256 {found}, not {wanted}"))
}
