//! Batches that come again under a name that is known.

use driftline_idempotency::{Decision, Record, State, decide};
use driftline_protocol::{ItemClass, ItemCode};

use super::{BatchWrite, OnceWrite, Plan};
use crate::group::{Answered, OnceKey, Receipt, Remembered, Resolved, Submission, SubmissionResult};
use crate::ports::Head;

impl Plan<'_> {
    /// Answers a batch that was answered before, or whose name was used for another one.
    pub(super) fn answered_before(&self, submission: &Submission, head: Head) -> Option<Receipt> {
        let now_ms = self.env.now_ms;
        if submission.lacks_a_right() {
            return None;
        }
        submission.once.iter().find_map(|once| {
            let record = self.state.once.get(&(submission.tenant, once.key.clone()))?;
            let nothing = |answered| Receipt {
                results: Vec::new(),
                events: Vec::new(),
                seq: head.seq,
                hlc: head.hlc,
                epoch: head.epoch,
                answered,
            };
            match decide(Some(record), &once.fingerprint, now_ms) {
                Decision::Replay(Remembered::Receipt(receipt)) => Some(again(receipt, record.expires_ms)),
                Decision::Replay(Remembered::InGroup(at)) => {
                    self.out.receipts.get(*at).map(|receipt| again(receipt, record.expires_ms))
                }
                Decision::Mismatch | Decision::Replay(Remembered::Bytes(_)) => {
                    Some(nothing(Answered::Reused))
                }
                Decision::InProgress { retry_after_ms } => {
                    Some(nothing(Answered::InProgress { retry_after_ms }))
                }
                // What is known of each item answers again.
                Decision::Replay(Remembered::Items) | Decision::Execute | Decision::TakeOver { .. } => None,
            }
        })
    }

    /// Remembers the answer to a batch under all its names, unless some of it has to be decided again.
    pub(super) fn remember_batch(&mut self, submission: &Submission, receipt: &Receipt) {
        let tenant = submission.tenant;
        let final_ = receipt.results.iter().all(is_final);
        let at = self.out.receipts.len();
        let mut batch = submission.batch.as_ref().map(|(sync_id, number)| BatchWrite {
            tenant,
            device: submission.device,
            sync_id: sync_id.clone(),
            number: *number,
            answer: None,
        });
        for once in submission.once.iter().filter(|_| final_) {
            let expires_ms = self.env.now_ms.saturating_add(once.window_ms);
            match &once.key {
                OnceKey::Batch { .. } => {
                    if let Some(batch) = &mut batch {
                        batch.answer = Some((once.fingerprint, at));
                    }
                }
                OnceKey::Request { owner, key } => self.out.writes.once.push(OnceWrite {
                    tenant,
                    owner: owner.clone(),
                    key: key.clone(),
                    fingerprint: once.fingerprint,
                    expires_ms,
                    receipt: at,
                }),
            }
            let state = State::Done(Remembered::InGroup(at));
            let record = Record { fingerprint: once.fingerprint, expires_ms, state };
            self.state.once.insert((tenant, once.key.clone()), record);
        }
        self.out.writes.batches.extend(batch);
    }
}

/// Whether the same item would be answered the same for ever.
pub(crate) fn is_final(result: &SubmissionResult) -> bool {
    let decided = result.resolved.as_deref().is_none_or(|resolved| matches!(resolved, Resolved::Done(_)));
    // A right that is given later is to count.
    let may = result.code != ItemCode::Forbidden;
    decided && may && matches!(result.code.class(), ItemClass::Done | ItemClass::Terminal)
}

fn again(receipt: &Receipt, expires_ms: u64) -> Receipt {
    Receipt { answered: Answered::Replayed { expires_ms }, ..receipt.clone() }
}
