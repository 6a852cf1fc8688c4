//! Files: what became of uploads.

use driftline_protocol::Fault;
use driftline_uploads::{State, UploadId};

use super::{Engine, UploadRight, is_own, lost, not_found};
use crate::catalogue::STAFF_ROLES;
use crate::ports::{Identity, Observer, Store};
use crate::service::unavailable;
use crate::uploads::UploadRow;

impl<S: Store, O: Observer> Engine<S, O> {
    /// Finds a file that somebody may read: the user who uploaded it, staff of its tenant, and whoever may read the record
    /// that it belongs to.
    ///
    /// # Errors
    /// `NOT_FOUND` and `STORE_UNAVAILABLE`.
    pub async fn file(&self, identity: &Identity, id: UploadId) -> Result<UploadRow, Fault> {
        let row = self.upload(UploadRight::Secret, id).await?;
        let here = row.upload.state == State::Done && row.tenant_id == identity.tenant_id;
        if here && (is_own(identity, &row) || STAFF_ROLES.iter().any(|role| identity.has_role(role))) {
            return Ok(row);
        }
        let Some((kind, record)) = row.record.as_ref().filter(|_| here) else { return Err(not_found()) };
        match self.record(identity, kind, record).await {
            Ok(record) if !record.deleted => Ok(row),
            Ok(_) => Err(not_found()),
            Err(fault) if fault.code.status() >= 500 => Err(fault),
            Err(_) => Err(not_found()),
        }
    }

    /// Returns how many bytes of a file one read had best ask for.
    pub fn file_read_bytes(&self) -> usize {
        self.uploads.as_ref().map_or(1, |uploads| uploads.blobs.read_bytes())
    }

    /// Reads bytes of a file, at most so many from a place on; fewer only at its end.
    ///
    /// # Errors
    /// `HANDLER_ERROR` when they are not there, `STORE_UNAVAILABLE`.
    pub async fn read_file(&self, id: UploadId, at: u64, bytes: usize) -> Result<Vec<u8>, Fault> {
        self.taken()?.blobs.read(id, at, bytes).await.map_err(|error| lost(&error))
    }

    /// Removes a file for the user who uploaded it, or for an administrator, and gives its bytes back to the quota.
    ///
    /// # Errors
    /// `NOT_FOUND` and `STORE_UNAVAILABLE`.
    pub async fn remove_file(&self, identity: &Identity, id: UploadId) -> Result<(), Fault> {
        let row = self.file(identity, id).await?;
        if !is_own(identity, &row) && !identity.has_role("admin") {
            return Err(not_found());
        }
        self.remove_bytes(id).await
    }

    /// Removes the file of a finished upload, or gives up one that is under way, for whoever may touch the upload.
    ///
    /// # Errors
    /// As [`Engine::cancel_upload`].
    pub async fn terminate_upload(
        &self,
        right: UploadRight<'_>,
        id: UploadId,
        now_ms: u64,
    ) -> Result<(), Fault> {
        let row = self.upload(right, id).await?;
        if row.upload.state == State::Done {
            self.remove_bytes(id).await
        } else {
            self.cancel_upload(right, id, now_ms).await
        }
    }

    async fn remove_bytes(&self, id: UploadId) -> Result<(), Fault> {
        // The row first: a file without a row can be read by nobody, a row without its file would promise one.
        let removed = self.upload_rows().remove_file_row(id).await.map_err(|error| unavailable(&error))?;
        if !removed {
            return Err(not_found());
        }
        self.taken()?.blobs.remove(id).await.map_err(|error| lost(&error))
    }
}
