//! Batches on their way to the database: one lane per tenant, one commit group in flight on each.
//!
//! What queued up while the last commit ran becomes the next commit group: no timer, and one round trip for many
//! batches. A lane is a task of its own that lives as long as batches wait. It outlives whoever asked: an answer that
//! nobody waits for any more is dropped, the work is done as a whole or not at all.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use driftline_engine::{Receipt, StoreError, Submission};
use driftline_model::TenantNo;
use tokio::sync::oneshot;

use super::Shared;
use super::commit::run_group;
use crate::group::{GROUP_BATCHES, GROUP_BYTES, QUEUED_BYTES_MAX};

/// Batches that may wait.
const QUEUE: usize = 8192;

pub(super) type Answer = oneshot::Sender<Result<Receipt, StoreError>>;

/// Tenants with batches that wait or are being written.
#[derive(Default)]
pub(super) struct Lanes {
    /// The lock is held to put batches in or take them out.
    lanes: Mutex<HashMap<TenantNo, VecDeque<(Submission, Answer)>>>,
    batches: AtomicUsize,
    bytes: AtomicUsize,
}

impl Lanes {
    /// Has a batch written; the answer comes after the commit.
    pub(super) fn submit(
        shared: &Arc<Shared>,
        submission: Submission,
    ) -> Result<oneshot::Receiver<Result<Receipt, StoreError>>, StoreError> {
        let lanes = &shared.lanes;
        let (tenant, bytes) = (submission.tenant, submission.bytes());
        let batches = lanes.batches.fetch_add(1, Ordering::Relaxed);
        let waiting = lanes.bytes.fetch_add(bytes, Ordering::Relaxed);
        if batches >= QUEUE || waiting + bytes > QUEUED_BYTES_MAX {
            lanes.left(1, bytes);
            return Err(StoreError::Unavailable("too much waits to be written".into()));
        }
        let (answer, answered) = oneshot::channel();
        let mut map = lanes.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        match map.get_mut(&tenant) {
            Some(queue) => queue.push_back((submission, answer)),
            None => {
                map.insert(tenant, VecDeque::from([(submission, answer)]));
                shared.runtime.spawn(run(Arc::clone(shared), tenant));
            }
        }
        Ok(answered)
    }

    fn left(&self, batches: usize, bytes: usize) {
        self.batches.fetch_sub(batches, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes the next group of a lane; the lane ends when nothing waits.
    fn next(&self, tenant: TenantNo) -> Option<(Vec<Submission>, Vec<Answer>)> {
        let (mut group, mut answers) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        let mut map = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = map.get_mut(&tenant)?;
        while group.len() < GROUP_BATCHES && bytes < GROUP_BYTES {
            let Some((submission, answer)) = queue.pop_front() else { break };
            let size = submission.bytes();
            self.left(1, size);
            // Whoever asked was told to send again.
            if answer.is_closed() {
                continue;
            }
            bytes += size;
            group.push(submission);
            answers.push(answer);
        }
        if group.is_empty() {
            map.remove(&tenant);
            return None;
        }
        Some((group, answers))
    }
}

async fn run(shared: Arc<Shared>, tenant: TenantNo) {
    let lane = Lane { lanes: &shared.lanes, tenant };
    while let Some((group, answers)) = shared.lanes.next(tenant) {
        run_group(&shared, tenant, group, answers).await;
    }
    drop(lane);
}

/// A lane at work. A panic in it fails what waits, and does not leave the tenant without a lane for ever.
struct Lane<'a> {
    lanes: &'a Lanes,
    tenant: TenantNo,
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let waiting = self.lanes.lanes.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.tenant);
        for (submission, _) in waiting.into_iter().flatten() {
            self.lanes.left(1, submission.bytes());
        }
    }
}
