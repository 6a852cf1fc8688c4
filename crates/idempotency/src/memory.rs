//! Records in the memory of one process.

use std::collections::{BTreeSet, HashMap};
use std::future::{Future, ready};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::name::Name;
use crate::{
    ANSWER_BYTES_MAX, Answer, Claim, Claimed, CompleteError, Decision, EffectId, Held, Record, Records,
    RecordsError, State, WINDOW_MS_MAX, decide,
};

/// Records in the memory of one process, bounded in entries and bytes. They end with the process.
///
/// When there is no room, expired records make it, the oldest first. A record that is still promised is never given up for
/// another one: the claim fails with [`RecordsError::Full`]. A claim takes the room of the largest answer until it is
/// completed, so that the answer of a finished effect always finds its place.
#[derive(Debug)]
pub struct MemoryRecords {
    limits: MemoryLimits,
    /// Protects the table, for the time of one look-up and one change; it is never held across an await.
    table: Mutex<Table>,
}

/// What the records of a [`MemoryRecords`] may at most be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Keys that are claimed or remembered.
    pub entries: usize,
    /// Bytes of records, at [`MemoryLimits::ENTRY_BYTES`] each, and of answers. A claim counts [`ANSWER_BYTES_MAX`].
    pub bytes: usize,
}

impl MemoryLimits {
    /// What a record takes without its answer, in bytes.
    pub const ENTRY_BYTES: usize = 256;
}

impl Default for MemoryLimits {
    /// 100,000 keys and 128 MiB, which is room for 2,000 claims at once.
    fn default() -> Self {
        Self { entries: 100_000, bytes: 128 * 1024 * 1024 }
    }
}

impl MemoryRecords {
    /// Makes an empty table.
    #[must_use]
    pub fn new(limits: MemoryLimits) -> Self {
        Self { limits, table: Mutex::default() }
    }

    /// Returns how many keys are claimed or remembered, with expired ones that were not removed.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.table().records.len()
    }

    /// Returns the bytes that count against the limit.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.table().bytes
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No change of the table can stop half-way, so what a panic elsewhere left behind is whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryRecords {
    fn default() -> Self {
        Self::new(MemoryLimits::default())
    }
}

impl Records for MemoryRecords {
    fn claim(&self, claim: Claim) -> impl Future<Output = Result<Claimed, RecordsError>> + Send {
        ready(self.table().claim(&claim, self.limits))
    }

    fn complete(
        &self,
        held: &Held,
        answer: Answer,
        now_ms: u64,
    ) -> impl Future<Output = Result<(), CompleteError>> + Send {
        ready(self.table().complete(held, answer, now_ms))
    }

    fn release(&self, held: &Held) -> impl Future<Output = Result<(), RecordsError>> + Send {
        self.table().release(held);
        ready(Ok(()))
    }

    fn prune(&self, now_ms: u64, limit: usize) -> impl Future<Output = Result<usize, RecordsError>> + Send {
        ready(Ok(self.table().prune(now_ms, limit)))
    }
}

#[derive(Debug, Default)]
struct Table {
    records: HashMap<Name, Record<Answer>>,
    /// The same records by the time at which they expire.
    expiries: BTreeSet<(u64, Name)>,
    bytes: usize,
    /// The highest fencing number so far, of all keys: so it outlives the records.
    attempts: u64,
}

impl Table {
    fn claim(&mut self, claim: &Claim, limits: MemoryLimits) -> Result<Claimed, RecordsError> {
        let name = Name::new(&claim.scope, &claim.key);
        let record = self.records.get(&name);
        match decide(record, &claim.fingerprint, claim.now_ms) {
            Decision::Replay(answer) => {
                let expires_ms = record.map_or(0, |record| record.expires_ms);
                Ok(Claimed::Replay { answer: answer.clone(), expires_ms })
            }
            Decision::InProgress { retry_after_ms } => Ok(Claimed::InProgress { retry_after_ms }),
            Decision::Mismatch => Ok(Claimed::Mismatch),
            Decision::Execute | Decision::TakeOver { .. } => {
                self.remove(&name);
                self.make_room(claim.now_ms, limits)?;
                Ok(self.grant(name, claim))
            }
        }
    }

    fn complete(&mut self, held: &Held, answer: Answer, now_ms: u64) -> Result<(), CompleteError> {
        let name = Name::new(&held.scope, &held.key);
        let Some(record) = self.records.get_mut(&name) else {
            return Err(CompleteError::Fenced);
        };
        if !holds(record, held.attempt) || record.expires_ms <= now_ms {
            return Err(CompleteError::Fenced);
        }
        let claimed = weight(record);
        record.state = State::Done(answer);
        self.bytes = self.bytes - claimed + weight(record);
        Ok(())
    }

    fn release(&mut self, held: &Held) {
        let name = Name::new(&held.scope, &held.key);
        if self.records.get(&name).is_some_and(|record| holds(record, held.attempt)) {
            self.remove(&name);
        }
    }

    fn prune(&mut self, now_ms: u64, limit: usize) -> usize {
        (0..limit).take_while(|_| self.remove_expired(now_ms)).count()
    }

    fn grant(&mut self, name: Name, claim: &Claim) -> Claimed {
        self.attempts += 1;
        let kept_ms = claim.window_ms.max(claim.lease_ms).min(WINDOW_MS_MAX);
        let record = Record {
            fingerprint: claim.fingerprint,
            expires_ms: claim.now_ms.saturating_add(kept_ms),
            state: State::Leased {
                attempt: self.attempts,
                until_ms: claim.now_ms.saturating_add(claim.lease_ms),
            },
        };
        self.bytes += weight(&record);
        self.expiries.insert((record.expires_ms, name));
        self.records.insert(name, record);
        Claimed::Granted { attempt: self.attempts, effect_id: EffectId::new(&claim.scope, &claim.key) }
    }

    /// Makes room for one claim.
    fn make_room(&mut self, now_ms: u64, limits: MemoryLimits) -> Result<(), RecordsError> {
        let claimed = MemoryLimits::ENTRY_BYTES + ANSWER_BYTES_MAX;
        while self.records.len() >= limits.entries || self.bytes + claimed > limits.bytes {
            if !self.remove_expired(now_ms) {
                return Err(RecordsError::Full);
            }
        }
        Ok(())
    }

    /// Removes the record that expired first, if one did.
    fn remove_expired(&mut self, now_ms: u64) -> bool {
        match self.expiries.first() {
            Some(&(expires_ms, name)) if expires_ms <= now_ms => {
                self.remove(&name);
                true
            }
            _ => false,
        }
    }

    fn remove(&mut self, name: &Name) {
        if let Some(record) = self.records.remove(name) {
            self.bytes -= weight(&record);
            self.expiries.remove(&(record.expires_ms, *name));
        }
    }
}

fn holds(record: &Record<Answer>, held: u64) -> bool {
    matches!(record.state, State::Leased { attempt, .. } if attempt == held)
}

fn weight(record: &Record<Answer>) -> usize {
    MemoryLimits::ENTRY_BYTES
        + match &record.state {
            State::Done(answer) => answer.bytes(),
            State::Leased { .. } => ANSWER_BYTES_MAX,
        }
}
