//! Opening an upload.

use std::num::NonZeroU64;

use driftline_model::{KindName, RecordId};
use driftline_protocol::{ErrorCode, Fault};
use driftline_uploads::{ContentType, Digest, Form, Plan, RunningHash, Upload, UploadId, file_name};

use super::{Engine, is_own, lost, not_found};
use crate::group::{Once, OnceKey};
use crate::ports::{Identity, Observer, Store};
use crate::service::unavailable;
use crate::uploads::{Joining, UploadCaps, UploadOnce, UploadOpened, UploadRow};

/// An upload that somebody wants to open.
#[derive(Debug, Clone)]
pub struct NewUpload {
    /// Its name: 128 random bits.
    pub id: UploadId,
    /// What the client calls the file.
    pub file_name: String,
    /// What the client says the file is.
    pub content_type: ContentType,
    /// The file's bytes; none: the client will tell.
    pub size: Option<u64>,
    /// Whether its bytes come in chunks, and not as a stream.
    pub chunked: bool,
    /// The digest that the client announces.
    pub announced: Option<Digest>,
    /// What else the client tells, as it tells it.
    pub metadata: Option<Box<str>>,
    /// The record that it belongs to.
    pub record: Option<(KindName, RecordId)>,
    /// What it is in a concatenation.
    pub joining: Joining,
}

/// An upload that was opened.
#[derive(Debug, Clone)]
pub struct OpenedUpload {
    /// The upload.
    pub row: UploadRow,
    /// Whether the same request opened it before.
    pub replayed: bool,
}

impl<S: Store, O: Observer> Engine<S, O> {
    /// Opens an upload. With `once` the same request opens one only once.
    ///
    /// Dropping the future may leave a staging place without an upload, which the sweeper removes.
    ///
    /// # Errors
    /// `VALIDATION_ERROR`, `MESSAGE_TOO_LARGE`, `UNSUPPORTED_MEDIA_TYPE` for content types that the tenant does not take,
    /// `QUOTA_EXCEEDED` also for a user with too many open uploads, `IDEMPOTENCY_KEY_REUSED`, `STORAGE_FULL`,
    /// `STORE_UNAVAILABLE`.
    pub async fn open_upload(
        &self,
        identity: &Identity,
        new: NewUpload,
        once: Option<Once>,
        now_ms: u64,
    ) -> Result<OpenedUpload, Fault> {
        let uploads = self.taken()?;
        let rules = uploads.rules.of(&identity.tenant_id);
        if new.size.is_some_and(|size| size > uploads.rules.size_max) {
            let message = format!("a file may have {} bytes", uploads.rules.size_max);
            return Err(Fault::new(ErrorCode::MessageTooLarge, message));
        }
        // What a file is, its parts are not asked for.
        if new.joining != Joining::Part && !rules.allowed.admits(&new.content_type) {
            let message = format!("files of the type {} are not taken", new.content_type.as_str());
            return Err(Fault::new(ErrorCode::UnsupportedMediaType, message));
        }
        let caps = match new.joining {
            Joining::Alone | Joining::Part => {
                UploadCaps { open_max: uploads.rules.open_max, quota_bytes: rules.quota_bytes }
            }
            // Its parts were admitted, and go when it is a file.
            Joining::Whole => UploadCaps {
                open_max: u64::MAX,
                quota_bytes: rules.quota_bytes.saturating_add(new.size.unwrap_or(0)),
            },
        };
        let mut row = self.row_of(identity, new, now_ms)?;
        // What is joined has a place once it is whole.
        if row.joining != Joining::Whole {
            row.staged = uploads.blobs.create(row.id).await.map_err(|error| lost(&error))?;
        }
        let once = once.and_then(remembered);
        let opened = self.upload_rows().open_upload(row.clone(), caps, once).await;
        // Whether a store that did not answer has opened it is not known: what is left is the sweeper's then.
        // What lies under the name of a whole is another attempt's.
        let is_refused = matches!(&opened, Ok(other) if *other != UploadOpened::Opened);
        if is_refused && row.joining != Joining::Whole {
            // What is left when this fails is an orphan, which the sweeper removes.
            let _ = uploads.blobs.discard(row.id, row.staged.clone()).await;
        }
        match opened.map_err(|error| unavailable(&error))? {
            UploadOpened::Opened => {
                if row.joining != Joining::Part {
                    self.observer.upload_opened();
                }
                Ok(OpenedUpload { row, replayed: false })
            }
            UploadOpened::Before(id) => {
                let row = self.upload_rows().upload(id).await.map_err(|error| unavailable(&error))?;
                let row = row.filter(|row| is_own(identity, row)).ok_or_else(not_found)?;
                Ok(OpenedUpload { row, replayed: true })
            }
            UploadOpened::Reused => {
                Err(Fault::new(ErrorCode::IdempotencyKeyReused, "the key was used for another request"))
            }
            UploadOpened::TooMany => Err(too_many(caps.open_max)),
            UploadOpened::NoRoom { left_bytes } => {
                self.observer.quota_refused();
                let message = format!("the tenant's quota has room for {left_bytes} bytes more");
                Err(Fault::new(ErrorCode::QuotaExceeded, message))
            }
        }
    }

    fn row_of(&self, identity: &Identity, new: NewUpload, now_ms: u64) -> Result<UploadRow, Fault> {
        let uploads = self.taken()?;
        let form = match new.size {
            Some(size) if new.chunked => {
                let wanted = NonZeroU64::new(uploads.blobs.chunk_bytes()).unwrap_or(NonZeroU64::MIN);
                Form::Chunks(Plan::choose(size, wanted))
            }
            None if new.chunked => return Err(Fault::new(ErrorCode::ValidationError, "a size is required")),
            size => Form::Stream { size },
        };
        Ok(UploadRow {
            id: new.id,
            tenant: identity.tenant,
            tenant_id: identity.tenant_id.clone(),
            owner: identity.user.to_string().into(),
            upload: Upload::open(form, now_ms, &uploads.rules.expiry),
            reserved: new.size.unwrap_or(0),
            file_name: file_name(&new.file_name).into(),
            content_type: new.content_type.as_str().into(),
            metadata: new.metadata,
            announced: new.announced,
            digest: None,
            running: Some(RunningHash::default()),
            staged: None,
            record: new.record,
            joining: new.joining,
            fault: None,
            changed_ms: now_ms,
        })
    }
}

/// Names the key for the rows.
fn remembered(once: Once) -> Option<UploadOnce> {
    let Once { key: OnceKey::Request { owner, key }, fingerprint, window_ms } = once else { return None };
    Some(UploadOnce { owner, key, fingerprint, window_ms })
}

fn too_many(open_max: u64) -> Fault {
    let message = format!("a user may have {open_max} uploads under way: finish or cancel one");
    Fault::new(ErrorCode::QuotaExceeded, message)
}
