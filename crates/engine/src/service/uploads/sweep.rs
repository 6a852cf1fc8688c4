//! The sweeper: what expired, what a crash left behind, and who was not told.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use driftline_protocol::Fault;
use driftline_uploads::{State, UploadId};

use super::finish::turn;
use super::{Engine, lost};
use crate::ports::{Observer, Store};
use crate::service::unavailable;
use crate::uploads::BlobError;

/// Uploads that one look takes.
const ROWS: usize = 100;

/// How long nothing may have happened before something is taken for left behind, in milliseconds.
const LEFT_MS: u64 = 3_600_000;

/// How long a file of which there is no row is kept after it was written, in milliseconds: a database that was restored from
/// a backup does not know the files that came after it, and somebody may want them.
const UNKNOWN_MS: u64 = 30 * 24 * 3_600_000;

/// How long finalizing may take before somebody looks whether it goes on, in milliseconds.
const FINALIZING_MS: u64 = 60_000;

/// How long uploads that were given up or expired are remembered, so that their clients are told what became of them, in
/// milliseconds.
const REMEMBERED_MS: u64 = 24 * 3_600_000;

/// How long it is tried to discard what is staged of them, in milliseconds. A bucket has a rule for what is older.
const UNDISCARDED_MS: u64 = 8 * 24 * 3_600_000;

/// What a sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Uploads that expired.
    pub expired: u64,
    /// Staged bytes and files without an upload under way that were removed.
    pub orphans: u64,
    /// Staged bytes and files without an upload under way that could not be removed.
    pub stuck: u64,
    /// Files that were published again: the machine had lost that they were.
    pub published: u64,
    /// Users who were told late of a finished upload.
    pub told: u64,
}

impl Swept {
    /// Tells whether nothing was to be done.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    fn removed<E>(&mut self, removed: &Result<(), E>) {
        match removed {
            Ok(()) => self.orphans += 1,
            Err(_) => self.stuck += 1,
        }
    }
}

impl<S: Store, O: Observer> Engine<S, O> {
    /// Ends uploads whose time is over, removes bytes that belong to none, and tells who was not told. Several nodes may do
    /// it at once. Of the files each call looks at the 256th part.
    ///
    /// Uploads of which nobody knows whether they are still finalized are [`Engine::unfinished_uploads`].
    ///
    /// Dropping the future leaves the rest to the next time.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`; what was done stays done.
    pub async fn sweep_uploads(&self, now_ms: u64) -> Result<Swept, Fault> {
        if self.uploads.is_none() {
            return Ok(Swept::default());
        }
        let mut swept = Swept::default();
        let rows = self.upload_rows();
        let before_ms = now_ms.saturating_sub(FINALIZING_MS);
        for row in rows.untold_uploads(ROWS).await.map_err(|error| unavailable(&error))? {
            if row.changed_ms < before_ms {
                self.tell_done(&row, now_ms).await;
                swept.told += 1;
            }
        }
        let (forget_ms, last_ms) =
            (now_ms.saturating_sub(REMEMBERED_MS), now_ms.saturating_sub(UNDISCARDED_MS));
        rows.forget_uploads(forget_ms, last_ms).await.map_err(|error| unavailable(&error))?;
        // What asks the place of the bytes comes last: it may be away, and answer late.
        let mut is_there = self.expire_uploads(now_ms, &mut swept).await?;
        let usage = rows.upload_usage().await.map_err(|error| unavailable(&error))?;
        self.observer.upload_usage(usage);
        let mut undiscarded = rows.undiscarded_uploads(ROWS).await.map_err(|error| unavailable(&error))?;
        // One that is never discarded holds up the others once in a while only: each sweep begins with another one.
        let first = usize::from(self.taken()?.shard.load(Ordering::Relaxed)) % undiscarded.len().max(1);
        undiscarded.rotate_left(first);
        for row in undiscarded {
            if is_there && row.changed_ms < before_ms {
                let discarded = self.discard(&row).await;
                swept.removed(&discarded);
                is_there = discarded.is_ok();
            }
        }
        // A place that lists nothing now keeps nothing else from being done.
        let staged = self.sweep_staged(now_ms, &mut swept).await;
        let files = self.sweep_files(now_ms, &mut swept).await;
        staged.and(files).map(|()| swept)
    }

    /// Tells whether the place of the bytes removed what it was to. When it does not, the bytes of the others wait for the
    /// next sweep.
    async fn expire_uploads(&self, now_ms: u64, swept: &mut Swept) -> Result<bool, Fault> {
        let mut is_there = true;
        loop {
            let overdue = self.upload_rows().overdue_uploads(now_ms, ROWS).await;
            let overdue = overdue.map_err(|error| unavailable(&error))?;
            let (found, before) = (overdue.len(), swept.expired);
            for row in overdue {
                // Bytes that came at this moment have moved the end, and then it is not turned.
                if self.end(&row, turn(&row, State::Open, State::Expired, now_ms)).await? {
                    swept.expired += 1;
                    is_there = is_there && self.discard(&row).await.is_ok();
                }
            }
            if found < ROWS || swept.expired == before {
                return Ok(is_there);
            }
        }
    }

    /// Removes staged bytes of which no upload is under way.
    async fn sweep_staged(&self, now_ms: u64, swept: &mut Swept) -> Result<(), Fault> {
        let blobs = &self.taken()?.blobs;
        let staged =
            blobs.staged_before(now_ms.saturating_sub(LEFT_MS)).await.map_err(|error| lost(&error))?;
        for some in staged.chunks(ROWS) {
            let states = self.states_of(some.iter().map(|(id, _)| *id).collect()).await?;
            for (id, name) in some {
                match states.get(id) {
                    Some(State::Open | State::Finalizing) => {}
                    // A machine without power may forget a place that it was not told to make durable.
                    Some(State::Done) => match blobs.publish(*id).await {
                        Ok(()) => swept.published += 1,
                        // It is published, and an attempt at joining its parts came late.
                        Err(BlobError::Taken) => swept.removed(&blobs.discard(*id, name.clone()).await),
                        Err(_) => swept.stuck += 1,
                    },
                    // One that cannot be removed holds up no other.
                    Some(State::Cancelled | State::Expired) | None => {
                        swept.removed(&blobs.discard(*id, name.clone()).await);
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes files of which no upload was done, among the 256th part of all.
    async fn sweep_files(&self, now_ms: u64, swept: &mut Swept) -> Result<(), Fault> {
        let uploads = self.taken()?;
        let shard = uploads.shard.fetch_add(1, Ordering::Relaxed);
        let files = |age_ms| uploads.blobs.files_before(shard, now_ms.saturating_sub(age_ms));
        let unknown = files(UNKNOWN_MS).await.map_err(|error| lost(&error))?;
        let unknown: HashSet<UploadId> = unknown.into_iter().collect();
        for some in files(LEFT_MS).await.map_err(|error| lost(&error))?.chunks(ROWS) {
            let states = self.states_of(some.to_vec()).await?;
            for id in some {
                let is_orphan = match states.get(id) {
                    Some(State::Open | State::Finalizing | State::Done) => false,
                    Some(State::Cancelled | State::Expired) => true,
                    None => unknown.contains(id),
                };
                if is_orphan {
                    swept.removed(&uploads.blobs.remove(*id).await);
                }
            }
        }
        Ok(())
    }

    async fn states_of(&self, ids: Vec<UploadId>) -> Result<HashMap<UploadId, State>, Fault> {
        let states = self.upload_rows().upload_states(ids).await.map_err(|error| unavailable(&error))?;
        Ok(states.into_iter().collect())
    }

    /// Lists uploads that are to be finalized, and of which nothing was heard for a minute: whoever serves finalizes them,
    /// which does nothing where somebody is still at it. A client over tus never finalizes itself.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn unfinished_uploads(&self, now_ms: u64) -> Result<Vec<UploadId>, Fault> {
        if self.uploads.is_none() {
            return Ok(Vec::new());
        }
        let before_ms = now_ms.saturating_sub(FINALIZING_MS);
        let rows = self.upload_rows().unfinished_uploads(before_ms, ROWS).await;
        Ok(rows.map_err(|error| unavailable(&error))?.into_iter().map(|row| row.id).collect())
    }
}
