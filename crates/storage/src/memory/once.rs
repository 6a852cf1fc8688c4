//! What is kept under the names of requests, in memory.

use driftline_engine::{GroupState, OnceKey, Receipt, StoreError, Submission, Writes};
use driftline_idempotency::{Answer, Claim, Claimed, CompleteError, Held, Records, RecordsError, Scope};
use driftline_model::TenantId;

use super::{Batch, MemoryStore, OnceName, State};
use crate::codec::{encode_answer, encode_receipt};
use crate::once::{Kept, grant, meet_claim, records_error};

impl State {
    pub(super) fn load_once(
        &self,
        submission: &Submission,
        state: &mut GroupState,
    ) -> Result<(), StoreError> {
        let tenant = submission.tenant;
        for once in &submission.once {
            let kept = match &once.key {
                OnceKey::Request { owner, key } => self.once.get(&(tenant, owner.clone(), key.clone())),
                OnceKey::Batch { device, sync_id, number } => {
                    let batch = self.batches.get(&(tenant, *device, sync_id.clone(), *number));
                    batch.and_then(|batch| batch.kept.as_ref())
                }
            };
            if let Some(kept) = kept {
                state.once.insert((tenant, once.key.clone()), kept.record()?);
            }
        }
        Ok(())
    }

    pub(super) fn take_once(&mut self, writes: &Writes, receipts: &[Receipt], now_ms: u64) {
        let answer = |at: usize| receipts.get(at).and_then(encode_receipt);
        for batch in &writes.batches {
            let kept = batch.answer.map(|(fingerprint, at)| Kept::of_batch(fingerprint, now_ms, answer(at)));
            let name = (batch.tenant, batch.device, batch.sync_id.clone(), batch.number);
            self.batches.insert(name, Batch { at_ms: now_ms, kept });
        }
        for once in &writes.once {
            let kept = Kept {
                fingerprint: once.fingerprint,
                expires_ms: once.expires_ms,
                answer: answer(once.receipt),
                lease: None,
            };
            self.once.insert((once.tenant, once.owner.clone(), once.key.clone()), kept);
        }
    }

    fn name(&mut self, scope: &Scope, key: &str) -> Result<OnceName, RecordsError> {
        let tenant = TenantId::new(scope.tenant()).map_err(records_error)?;
        Ok((self.tenant(&tenant), scope.owner().into(), key.into()))
    }
}

impl Records for MemoryStore {
    async fn claim(&self, claim: Claim) -> Result<Claimed, RecordsError> {
        let mut state = self.state();
        let name = state.name(&claim.scope, claim.key.as_str())?;
        if let Some(met) = meet_claim(state.once.get(&name), &claim).map_err(records_error)? {
            return Ok(met);
        }
        state.attempts += 1;
        let attempt = state.attempts;
        state.once.insert(name, Kept::granted(&claim, attempt));
        Ok(grant(&claim, attempt))
    }

    async fn complete(&self, held: &Held, answer: Answer, now_ms: u64) -> Result<(), CompleteError> {
        let mut state = self.state();
        let name = state.name(&held.scope, held.key.as_str())?;
        let kept = state.once.get_mut(&name).filter(|kept| kept.is_held(held.attempt, now_ms));
        let kept = kept.ok_or(CompleteError::Fenced)?;
        (kept.lease, kept.answer) = (None, Some(encode_answer(&answer)));
        Ok(())
    }

    async fn release(&self, held: &Held) -> Result<(), RecordsError> {
        let mut state = self.state();
        let name = state.name(&held.scope, held.key.as_str())?;
        // An expired claim is none; to free it once more harms nobody.
        if state.once.get(&name).is_some_and(|kept| kept.is_held(held.attempt, 0)) {
            state.once.remove(&name);
        }
        Ok(())
    }

    async fn prune(&self, now_ms: u64, limit: usize) -> Result<usize, RecordsError> {
        let mut state = self.state();
        let mut expired: Vec<(u64, OnceName)> = state
            .once
            .iter()
            .filter(|(_, kept)| kept.expires_ms <= now_ms)
            .map(|(name, kept)| (kept.expires_ms, name.clone()))
            .collect();
        expired.sort();
        expired.truncate(limit);
        for (_, name) in &expired {
            state.once.remove(name);
        }
        Ok(expired.len())
    }
}
