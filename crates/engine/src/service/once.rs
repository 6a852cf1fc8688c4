//! Batches that come again: answered from memory where that knows them, else by the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use driftline_idempotency::{Answers, Hit, Key, Record, Scope, State};

use super::Engine;
use crate::group::{Answered, Once, OnceKey, Receipt, Submission, SubmissionResult};
use crate::plan::is_final;
use crate::ports::{Identity, Observer, Store, StoreError};

/// Answers that were given under keys, in memory. The store is the record: what is lost here costs a look-up there.
pub(super) struct Memory {
    answers: Answers<Arc<Receipt>>,
    /// The hub's numbering when the answers were given. Answers of transactions that a failover lost are worth nothing.
    numbering: AtomicU64,
}

/// Bytes of answers in memory.
const MEMORY_BYTES: u64 = 16 << 20;

impl Default for Memory {
    fn default() -> Self {
        Self { answers: Answers::new(MEMORY_BYTES), numbering: AtomicU64::new(0) }
    }
}

impl Memory {
    fn find(&self, scope: &Scope, key: &Key, once: &Once, now_ms: u64) -> Option<Receipt> {
        match self.answers.find(scope, key, &once.fingerprint, now_ms)? {
            Hit::Replay { answer, expires_ms } => {
                Some(Receipt { answered: Answered::Replayed { expires_ms }, ..Receipt::clone(&answer) })
            }
            Hit::Mismatch => None,
        }
    }

    fn keep(&self, scope: &Scope, key: &Key, once: &Once, receipt: &Receipt, now_ms: u64) {
        let expires_ms = match receipt.answered {
            Answered::Applied if receipt.results.iter().all(is_final) => {
                now_ms.saturating_add(once.window_ms)
            }
            Answered::Replayed { expires_ms } => expires_ms,
            _ => return,
        };
        let bytes = receipt.results.iter().map(held).sum();
        let state = State::Done(Arc::new(Receipt { answered: Answered::Applied, ..receipt.clone() }));
        let record = Record { fingerprint: once.fingerprint, expires_ms, state };
        self.answers.keep(scope, key, record, bytes);
    }

    /// Forgets everything once the store has voided numbers.
    fn look_for_voided(&self, numbering: u64) {
        if self.numbering.swap(numbering, Ordering::SeqCst) != numbering {
            self.answers.clear();
        }
    }
}

impl<S: Store, O: Observer> Engine<S, O> {
    /// Applies a batch, unless memory knows its answer.
    pub(super) async fn commit(
        &self,
        identity: &Identity,
        submission: Submission,
        now_ms: u64,
    ) -> Result<Receipt, StoreError> {
        let named = keyed(identity, &submission.once).filter(|_| !submission.lacks_a_right());
        let Some((scope, key, once)) = named else {
            return self.store.commit(submission).await;
        };
        // An answer of before may be known by the batch's other name, under which memory does not keep it.
        let alone = submission.once.len() == 1;
        let numbering = self.hub.numbering();
        self.memory.look_for_voided(numbering);
        let known = self.memory.find(&scope, &key, &once, now_ms);
        self.observer.remembered("memory", known.is_some());
        if let Some(receipt) = known {
            return Ok(receipt);
        }
        let receipt = self.store.commit(submission).await?;
        self.observer.remembered("store", matches!(receipt.answered, Answered::Replayed { .. }));
        // An answer of before a failover is not kept behind it.
        let told = receipt.answered == Answered::Applied || alone;
        if told && self.hub.numbering() == numbering {
            self.memory.keep(&scope, &key, &once, &receipt, now_ms);
        }
        Ok(receipt)
    }

    /// Forgets all answers in memory; the store has them.
    pub fn forget_answers(&self) {
        self.memory.answers.clear();
    }
}

/// Bytes that a result holds.
fn held(result: &SubmissionResult) -> usize {
    let record = result.record.as_ref().map_or(0, |record| record.fields.as_str().len());
    let told: usize = result.errors.iter().map(|error| error.pointer.len() + error.message.len() + 100).sum();
    size_of::<SubmissionResult>() + record + told + result.winners.len() * 48
}

/// The key that a client made, if the batch came with one.
fn keyed(identity: &Identity, once: &[Once]) -> Option<(Scope, Key, Once)> {
    once.iter().find_map(|once| {
        let OnceKey::Request { owner, key } = &once.key else { return None };
        let scope = Scope::new(identity.tenant_id.as_str(), owner).ok()?;
        Some((scope, Key::new(key).ok()?, once.clone()))
    })
}
