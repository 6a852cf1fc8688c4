//! What is kept under the name of a request, the same in every store.

use driftline_engine::{Remembered, StoreError};
use driftline_idempotency::{
    Claim, Claimed, Decision, EffectId, Fingerprint, Record, RecordsError, State, WINDOW_MS_MAX, decide,
};

use crate::codec::{corrupt, decode_answer, decode_remembered, encode_bytes};

/// How long a batch is recognised by its place in its session, in milliseconds: a day.
pub(crate) const BATCH_MS: u64 = 24 * 3_600_000;

/// A row of what is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Tells the request from another one.
    pub(crate) fingerprint: Fingerprint,
    /// From this time on it is forgotten, in Unix milliseconds.
    pub(crate) expires_ms: u64,
    /// The answer as the codec writes it; nothing where its items answer again.
    pub(crate) answer: Option<Vec<u8>>,
    /// The fencing number of who works on it, and when the lease ends in Unix milliseconds.
    pub(crate) lease: Option<(u64, u64)>,
}

impl Kept {
    /// Reads a stored row.
    pub(crate) fn of(
        fingerprint: &[u8],
        expires_at: i64,
        answer: Option<Vec<u8>>,
        (attempt, lease_until): (Option<i64>, Option<i64>),
    ) -> Result<Self, StoreError> {
        let number = |number| u64::try_from(number).map_err(|_| corrupt("idempotency"));
        let lease = match (attempt, lease_until) {
            (Some(attempt), Some(until)) => Some((number(attempt)?, number(until)?)),
            (None, None) => None,
            _ => return Err(corrupt("lease")),
        };
        Ok(Self { fingerprint: fingerprint_of(fingerprint)?, expires_ms: number(expires_at)?, answer, lease })
    }

    /// Makes the row of a batch that was answered at a time.
    pub(crate) fn of_batch(fingerprint: Fingerprint, at_ms: u64, answer: Option<Vec<u8>>) -> Self {
        Self { fingerprint, expires_ms: at_ms.saturating_add(BATCH_MS), answer, lease: None }
    }

    /// Makes the row of a change beside the batches: of the registry, or of the uploads.
    pub(crate) fn of_change(fingerprint: Fingerprint, expires_ms: u64, answer: &[u8]) -> Self {
        Self { fingerprint, expires_ms, answer: Some(encode_bytes(answer)), lease: None }
    }

    /// Makes the row of a claim that is granted.
    pub(crate) fn granted(claim: &Claim, attempt: u64) -> Self {
        let kept_ms = claim.window_ms.max(claim.lease_ms).min(WINDOW_MS_MAX);
        Self {
            fingerprint: claim.fingerprint,
            expires_ms: claim.now_ms.saturating_add(kept_ms),
            answer: None,
            lease: Some((attempt, claim.now_ms.saturating_add(claim.lease_ms))),
        }
    }

    /// Tells whether a claim with this fencing number is held at a time.
    pub(crate) fn is_held(&self, attempt: u64, now_ms: u64) -> bool {
        self.lease.is_some_and(|(held, _)| held == attempt) && now_ms < self.expires_ms
    }

    /// Reads what is remembered.
    pub(crate) fn record(&self) -> Result<Record<Remembered>, StoreError> {
        let state = match self.raw().state {
            State::Leased { attempt, until_ms } => State::Leased { attempt, until_ms },
            State::Done(answer) => State::Done(decode_remembered(answer)?),
        };
        Ok(Record { fingerprint: self.fingerprint, expires_ms: self.expires_ms, state })
    }

    fn raw(&self) -> Record<Option<&[u8]>> {
        let state = match self.lease {
            Some((attempt, until_ms)) => State::Leased { attempt, until_ms },
            None => State::Done(self.answer.as_deref()),
        };
        Record { fingerprint: self.fingerprint, expires_ms: self.expires_ms, state }
    }
}

pub(crate) fn fingerprint_of(bytes: &[u8]) -> Result<Fingerprint, StoreError> {
    Ok(Fingerprint::from_bytes(bytes.try_into().map_err(|_| corrupt("fingerprint"))?))
}

/// Tells what a claim meets under its key; nothing: it is to be granted.
pub(crate) fn meet_claim(kept: Option<&Kept>, claim: &Claim) -> Result<Option<Claimed>, StoreError> {
    let record = kept.map(Kept::raw);
    Ok(match decide(record.as_ref(), &claim.fingerprint, claim.now_ms) {
        Decision::Execute | Decision::TakeOver { .. } => None,
        Decision::InProgress { retry_after_ms } => Some(Claimed::InProgress { retry_after_ms }),
        Decision::Mismatch => Some(Claimed::Mismatch),
        Decision::Replay(answer) => Some(match decode_answer(*answer)? {
            Some(answer) => Claimed::Replay { answer, expires_ms: kept.map_or(0, |kept| kept.expires_ms) },
            // The key is a batch's or that of a change beside the batches.
            None => Claimed::Mismatch,
        }),
    })
}

/// Tells a claim that it is granted.
pub(crate) fn grant(claim: &Claim, attempt: u64) -> Claimed {
    Claimed::Granted { attempt, effect_id: EffectId::new(&claim.scope, &claim.key) }
}

/// What a change beside the batches meets under its key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Met {
    /// Nothing: it is to be made.
    Free,
    /// It was made before.
    Before(Box<[u8]>),
    /// The key is another request's.
    Other,
}

/// Tells what a change beside the batches meets.
pub(crate) fn meet_change(
    kept: Option<&Kept>,
    fingerprint: &Fingerprint,
    now_ms: u64,
) -> Result<Met, StoreError> {
    let record = kept.map(Kept::record).transpose()?;
    Ok(match decide(record.as_ref(), fingerprint, now_ms) {
        Decision::Execute | Decision::TakeOver { .. } => Met::Free,
        Decision::Replay(Remembered::Bytes(bytes)) => Met::Before(bytes.clone()),
        Decision::Replay(_) | Decision::Mismatch | Decision::InProgress { .. } => Met::Other,
    })
}

/// Tells the user of records that the store failed.
pub(crate) fn records_error(error: impl std::error::Error + Send + Sync + 'static) -> RecordsError {
    RecordsError::Unavailable(Box::new(error))
}
