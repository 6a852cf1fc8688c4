//! Answers in memory, in front of the records.

use std::future::Future;
use std::sync::Arc;

use moka::sync::Cache;

use crate::name::Name;
use crate::{
    Answer, Claim, Claimed, CompleteError, Decision, Fingerprint, Held, Key, Record, Records, RecordsError,
    Scope, State, decide,
};

/// Finished answers by scope and key, bounded in bytes.
///
/// It holds no state of its own: an answer comes from the records, does not change until it expires, and carries its
/// deadline with it, which is compared with the caller's time. Losing an answer costs a question to the records.
///
/// A clone is another handle of the same cache.
#[derive(Clone)]
pub struct Answers<A> {
    finished: Cache<Name, Arc<Finished<A>>>,
}

struct Finished<A> {
    record: Record<A>,
    bytes: usize,
}

/// What a cache knows of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hit<A> {
    /// It was carried out, and this was answered.
    Replay {
        /// The answer.
        answer: A,
        /// Until when it is remembered, in milliseconds.
        expires_ms: u64,
    },
    /// The key belongs to another request.
    Mismatch,
}

impl<A: Clone + Send + Sync + 'static> Answers<A> {
    /// What an answer takes beside its own bytes.
    pub const ENTRY_BYTES: usize = 256;

    /// Makes an empty cache of about so many bytes; what was used least gives way.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        let finished = Cache::builder()
            .max_capacity(bytes_max)
            .weigher(|_, finished: &Arc<Finished<A>>| {
                u32::try_from(Self::ENTRY_BYTES.saturating_add(finished.bytes)).unwrap_or(u32::MAX)
            })
            .build();
        Self { finished }
    }

    /// Returns what is known of a request; `None` says nothing, and the records have to be asked.
    #[must_use]
    pub fn find(&self, scope: &Scope, key: &Key, fingerprint: &Fingerprint, now_ms: u64) -> Option<Hit<A>> {
        let finished = self.finished.get(&Name::new(scope, key))?;
        let record = &finished.record;
        match decide(Some(record), fingerprint, now_ms) {
            Decision::Replay(answer) => {
                Some(Hit::Replay { answer: answer.clone(), expires_ms: record.expires_ms })
            }
            Decision::Mismatch => Some(Hit::Mismatch),
            // The answer expired: what took its place is only known to the records.
            Decision::Execute | Decision::TakeOver { .. } | Decision::InProgress { .. } => None,
        }
    }

    /// Keeps a finished answer of so many bytes. A record that is still leased is not kept: it may change.
    pub fn keep(&self, scope: &Scope, key: &Key, record: Record<A>, bytes: usize) {
        if matches!(record.state, State::Done(_)) {
            self.finished.insert(Name::new(scope, key), Arc::new(Finished { record, bytes }));
        }
    }

    /// Forgets one answer.
    pub fn forget(&self, scope: &Scope, key: &Key) {
        self.finished.invalidate(&Name::new(scope, key));
    }

    /// Forgets all answers.
    pub fn clear(&self) {
        self.finished.invalidate_all();
    }

    /// Returns the bytes of the kept answers, after everything that is to be given up was given up.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.finished.run_pending_tasks();
        self.finished.weighted_size()
    }
}

/// Records behind a cache of their finished answers.
///
/// Only what was answered before comes from memory, and it is what the records would answer, to the byte. Everything else
/// is decided by the records.
pub struct Cached<R> {
    records: R,
    answers: Answers<Answer>,
}

impl<R: Records> Cached<R> {
    /// Puts a cache of about so many bytes in front of records.
    #[must_use]
    pub fn new(records: R, bytes_max: u64) -> Self {
        Self { records, answers: Answers::new(bytes_max) }
    }

    /// Returns the cache.
    #[must_use]
    pub fn answers(&self) -> &Answers<Answer> {
        &self.answers
    }

    /// Returns the records behind it.
    #[must_use]
    pub fn records(&self) -> &R {
        &self.records
    }

    /// Forgets all answers in memory; the records stay.
    pub fn clear(&self) {
        self.answers.clear();
    }

    fn keep(&self, claim: &Claim, answer: &Answer, expires_ms: u64) {
        let state = State::Done(answer.clone());
        let record = Record { fingerprint: claim.fingerprint, expires_ms, state };
        self.answers.keep(&claim.scope, &claim.key, record, answer.bytes());
    }
}

impl<R: Records> Records for Cached<R> {
    async fn claim(&self, claim: Claim) -> Result<Claimed, RecordsError> {
        match self.answers.find(&claim.scope, &claim.key, &claim.fingerprint, claim.now_ms) {
            Some(Hit::Replay { answer, expires_ms }) => return Ok(Claimed::Replay { answer, expires_ms }),
            Some(Hit::Mismatch) => return Ok(Claimed::Mismatch),
            None => {}
        }
        let claimed = self.records.claim(claim.clone()).await?;
        if let Claimed::Replay { answer, expires_ms } = &claimed {
            self.keep(&claim, answer, *expires_ms);
        }
        Ok(claimed)
    }

    fn complete(
        &self,
        held: &Held,
        answer: Answer,
        now_ms: u64,
    ) -> impl Future<Output = Result<(), CompleteError>> + Send {
        self.records.complete(held, answer, now_ms)
    }

    fn release(&self, held: &Held) -> impl Future<Output = Result<(), RecordsError>> + Send {
        self.records.release(held)
    }

    fn prune(&self, now_ms: u64, limit: usize) -> impl Future<Output = Result<usize, RecordsError>> + Send {
        self.records.prune(now_ms, limit)
    }
}
