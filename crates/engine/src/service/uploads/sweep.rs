//! The sweeper: what expired, what a crash left behind, and who was not told.

use std::collections::HashSet;

use driftline_protocol::Fault;
use driftline_uploads::State;

use super::{Engine, UploadRight, lost};
use crate::ports::{Observer, Store};
use crate::service::unavailable;

/// Uploads that one look takes.
const ROWS: usize = 100;

/// How long nothing may have happened before something is taken for left behind, in milliseconds.
const LEFT_MS: u64 = 3_600_000;

/// How long finalizing may take before somebody looks whether it goes on, in milliseconds.
const FINALIZING_MS: u64 = 60_000;

/// How long uploads that were given up or expired are remembered, so that their clients are told what became of them, in
/// milliseconds.
const REMEMBERED_MS: u64 = 24 * 3_600_000;

/// What a sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Uploads that expired.
    pub expired: u64,
    /// Uploads that were finalized after a crash.
    pub finished: u64,
    /// Staged bytes without an upload that were removed.
    pub orphans: u64,
    /// Staged bytes without an upload that could not be removed.
    pub stuck: u64,
    /// Users who were told late of a finished upload.
    pub told: u64,
}

impl Swept {
    /// Tells whether nothing was to be done.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl<S: Store, O: Observer> Engine<S, O> {
    /// Ends uploads whose time is over, removes staged bytes that belong to none, and ends what a crash interrupted.
    /// Several nodes may do it at once. `holder` tells this attempt from all others.
    ///
    /// Dropping the future leaves the rest to the next time.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`; what was done stays done.
    pub async fn sweep_uploads(&self, now_ms: u64, holder: u64) -> Result<Swept, Fault> {
        let Some(uploads) = &self.uploads else { return Ok(Swept::default()) };
        let mut swept = Swept::default();
        let rows = self.upload_rows();
        for row in rows.overdue_uploads(now_ms, ROWS).await.map_err(|error| unavailable(&error))? {
            // Bytes that came at this moment have moved the end, and then it is not turned.
            swept.expired += u64::from(self.give_up(&row, State::Open, State::Expired, now_ms).await?);
        }
        let before_ms = now_ms.saturating_sub(FINALIZING_MS);
        for row in rows.unfinished_uploads(before_ms, ROWS).await.map_err(|error| unavailable(&error))? {
            let ended = self.finalize_upload(UploadRight::Secret, row.id, None, (now_ms, holder)).await;
            swept.finished += u64::from(matches!(ended, Ok(super::Finalized::Done(_))));
        }
        for row in rows.untold_uploads(ROWS).await.map_err(|error| unavailable(&error))? {
            if row.changed_ms < before_ms {
                self.tell_done(&row, now_ms).await;
                swept.told += 1;
            }
        }
        let staged = uploads.blobs.staged_before(now_ms.saturating_sub(LEFT_MS)).await;
        let staged = staged.map_err(|error| lost(&error))?;
        for some in staged.chunks(ROWS) {
            let ids = some.iter().map(|(id, _)| *id).collect();
            let states = rows.upload_states(ids).await.map_err(|error| unavailable(&error))?;
            let under_way = |state: &State| matches!(state, State::Open | State::Finalizing);
            let live: HashSet<_> =
                states.into_iter().filter(|(_, state)| under_way(state)).map(|(id, _)| id).collect();
            for (id, name) in some.iter().filter(|(id, _)| !live.contains(id)) {
                // One that cannot be removed holds up no other.
                match uploads.blobs.discard(*id, name.clone()).await {
                    Ok(()) => swept.orphans += 1,
                    Err(_) => swept.stuck += 1,
                }
            }
        }
        let forget_ms = now_ms.saturating_sub(REMEMBERED_MS);
        rows.forget_uploads(forget_ms).await.map_err(|error| unavailable(&error))?;
        let usage = rows.upload_usage().await.map_err(|error| unavailable(&error))?;
        self.observer.upload_usage(usage);
        Ok(swept)
    }
}
