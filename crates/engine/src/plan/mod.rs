//! The plan of a commit group: loaded rows in, decisions and writes out.

mod append;
mod decide;
mod events;
mod keep;
mod once;
mod review;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use driftline_conflict::DeviceOrder;
use driftline_idempotency::{Fingerprint, Record};
use driftline_insight::SeriesPoint;
use driftline_model::{
    ConflictId, DeviceNo, Hlc, KindName, Object, OpId, RecordId, ScopeName, Seq, SyncId, TenantNo,
};
use driftline_protocol::{ItemClass, ItemCode};

use crate::events::Event;
use crate::group::{
    Answered, Entry, Known, OnceKey, Receipt, Remembered, RowKey, Submission, SubmissionResult,
};
use crate::hub::{Committed, CommittedChange};
use crate::ports::{DeviceState, Head, Row};
use crate::review::ConflictRow;

use keep::Stood;
pub(crate) use keep::view;
pub(crate) use keep::{change_row, changed_since};
pub(crate) use once::is_final;

/// Maps that hash the same in every process, so that a plan replays exactly.
type Map<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// Everything a store has loaded for a commit group. [`plan`] changes it as it goes.
#[derive(Debug, Default)]
pub struct GroupState {
    /// The head of each tenant of the group.
    pub heads: Map<TenantNo, Head>,
    /// Every record that an item names; nothing where there is none.
    pub rows: Map<RowKey, Option<Row>>,
    /// Remembered answers by the device's name for the change.
    pub by_op: Map<(DeviceNo, OpId), Known>,
    /// Remembered answers by the device's number of the change.
    pub by_n: Map<(DeviceNo, u64), Known>,
    /// Each device of the group.
    pub devices: Map<DeviceNo, DeviceState>,
    /// The open conflicts of every record that an item names which [`Entry::may_review`].
    pub conflicts: Map<RowKey, Vec<ConflictRow>>,
    /// What is stored of every sample that an item names; nothing where there is none.
    pub samples: Map<RowKey, SampleMark>,
    /// What is remembered of the names of the group's batches.
    pub once: Map<(TenantNo, OnceKey), Record<Remembered>>,
    /// The stored points of every series that an item adds to, by hour.
    pub series: Map<SeriesKey, SeriesPoint>,
    /// The numbers of kept events by the keys of duplicates that drafts of the group name.
    pub dedupe: Map<(TenantNo, Box<str>), u64>,
    /// The latest kept states of what drafts of the group tell of.
    pub versions: Map<(TenantNo, Box<str>), u64>,
}

/// A series of a tenant in one hour.
pub type SeriesKey = (TenantNo, u64, Box<str>);

/// What tells a stored sample from another one of the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleMark {
    /// Identifies the content.
    pub hash: u64,
    /// The device's time of sending in Unix milliseconds.
    pub sent_ms: u64,
}

/// What surrounds a commit group.
pub struct PlanEnv<'a> {
    /// The store's clock in Unix milliseconds.
    pub now_ms: u64,
    /// How far a device's clock may run ahead.
    pub skew_ms_max: u64,
    /// How many bytes a record's fields may have.
    pub record_bytes: usize,
    /// The order of devices for equal clocks.
    pub devices: &'a dyn DeviceOrder,
    /// Whether anybody listens to a tenant.
    pub listening: &'a dyn Fn(TenantNo) -> bool,
}

/// The outcome of a plan.
#[derive(Debug, Default)]
pub struct Planned {
    /// One answer per submission.
    pub receipts: Vec<Receipt>,
    /// What the store writes, in one transaction.
    pub writes: Writes,
    /// What listeners are told after the commit, one per changed tenant.
    pub commits: Vec<Committed>,
}

/// What a store writes for a commit group.
#[derive(Debug, Default)]
pub struct Writes {
    /// Records, each once, in the order of their first change. Their rows stand in [`GroupState::rows`].
    pub rows: Vec<RowKey>,
    /// Answers to remember.
    pub results: Vec<ResultWrite>,
    /// Audit rows.
    pub audits: Vec<AuditWrite>,
    /// Heads that moved.
    pub heads: Vec<(TenantNo, Head)>,
    /// Devices that moved.
    pub devices: Vec<DeviceWrite>,
    /// Batches that were answered, by session.
    pub batches: Vec<BatchWrite>,
    /// Names of batches, with their answers.
    pub once: Vec<OnceWrite>,
    /// Samples, each once.
    pub samples: Vec<SampleWrite>,
    /// Points of series, each once, as they are now.
    pub series: Vec<(SeriesKey, SeriesPoint)>,
    /// Conflicts that were opened, joined or decided: each once, as it is now.
    pub conflicts: Vec<(TenantNo, ConflictRow)>,
    /// Records that left a scope; a later row replaces an earlier one of the same scope and record.
    pub exits: Vec<ExitWrite>,
    /// What is to be added to the sums of live rows.
    pub sums: Vec<SumWrite>,
    /// Events that the log keeps, in their order.
    pub events: Vec<EventWrite>,
    /// The latest states of what events tell of, each once.
    pub versions: Vec<((TenantNo, Box<str>), u64)>,
}

/// An event to write.
#[derive(Debug, Clone)]
pub struct EventWrite {
    /// The tenant.
    pub tenant: TenantNo,
    /// The event.
    pub event: Arc<Event>,
    /// The key by which duplicates of it are known.
    pub dedupe_key: Option<Box<str>>,
}

/// A batch that was answered, in its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchWrite {
    /// The tenant.
    pub tenant: TenantNo,
    /// The device.
    pub device: DeviceNo,
    /// The session.
    pub sync_id: SyncId,
    /// The batch's number in it.
    pub number: u64,
    /// What it is recognised by when it comes again, and which of [`Planned::receipts`] answers it. Nothing where it has
    /// to be decided again.
    pub answer: Option<(Fingerprint, usize)>,
}

/// The name of a batch, with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnceWrite {
    /// The tenant.
    pub tenant: TenantNo,
    /// The user or the device that made the key.
    pub owner: Box<str>,
    /// The key.
    pub key: Box<str>,
    /// Tells the batch from another one.
    pub fingerprint: Fingerprint,
    /// From this time on it is forgotten, in Unix milliseconds.
    pub expires_ms: u64,
    /// Which of [`Planned::receipts`] is the answer.
    pub receipt: usize,
}

/// A sample to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleWrite {
    /// Where it is kept.
    pub key: RowKey,
    /// The device that sent it.
    pub device: DeviceNo,
    /// The time that it tells of, in Unix milliseconds.
    pub at_ms: u64,
    /// What tells it from another one.
    pub mark: SampleMark,
    /// Its fields.
    pub fields: Object,
}

/// A record that left a scope, or came back into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitWrite {
    /// The tenant.
    pub tenant: TenantNo,
    /// The scope.
    pub scope: ScopeName,
    /// The record's kind.
    pub kind: KindName,
    /// The record.
    pub id: RecordId,
    /// The version with which it left; none: it is back, and the exit goes.
    pub seq: Option<Seq>,
}

/// What is to be added to the sum of one scope and kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SumWrite {
    /// The tenant.
    pub tenant: TenantNo,
    /// The scope.
    pub scope: ScopeName,
    /// The kind.
    pub kind: KindName,
    /// The change of the number of live rows.
    pub count: i64,
    /// The change of their sum, wrapping.
    pub sum: u64,
}

/// An answer to remember.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultWrite {
    /// The tenant.
    pub tenant: TenantNo,
    /// The device.
    pub device: DeviceNo,
    /// The answer.
    pub known: Known,
}

/// An audit row to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditWrite {
    /// The tenant.
    pub tenant: TenantNo,
    /// The record's kind.
    pub kind: KindName,
    /// The record.
    pub id: RecordId,
    /// The record's version afterwards; the version before when nothing changed.
    pub seq: Seq,
    /// The device whose change was decided.
    pub device: DeviceNo,
    /// The user behind it.
    pub user: Box<str>,
    /// The device's name for the change.
    pub op_id: Option<OpId>,
    /// The device's number of the change.
    pub n: u64,
    /// What became of it.
    pub code: ItemCode,
    /// The strategy.
    pub strategy: &'static str,
    /// The policy's version.
    pub policy_version: u64,
    /// The account, JSON.
    pub detail: String,
    /// Finds the request in the log.
    pub correlation: Box<str>,
}

/// A device's state to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceWrite {
    /// The tenant.
    pub tenant: TenantNo,
    /// The device.
    pub device: DeviceNo,
    /// Its state.
    pub state: DeviceState,
    /// Answers up to this number were forgotten before; those up to `state.acked_n` may go now.
    pub acked_before: u64,
}

/// Plans a commit group: decides every item of every batch in order.
///
/// The function is pure: equal state, batches and surroundings give equal writes. The store has loaded every
/// row, answer, device and head that the batches name; what is missing counts as not existing.
#[must_use]
pub fn plan(group: &[Submission], state: &mut GroupState, env: &PlanEnv<'_>) -> Planned {
    let mut plan = Plan {
        state,
        env,
        out: Planned::default(),
        written: Map::default(),
        reviewed: Vec::new(),
        tenants: Vec::new(),
    };
    for submission in group {
        let receipt = plan.submission(submission);
        plan.out.receipts.push(receipt);
    }
    plan.finish()
}

struct Plan<'a> {
    state: &'a mut GroupState,
    env: &'a PlanEnv<'a>,
    out: Planned,
    /// Records that are among the writes already, with where they stood before.
    written: Map<RowKey, Option<Stood>>,
    /// Conflicts that were opened, joined or decided.
    reviewed: Vec<(RowKey, ConflictId)>,
    tenants: Vec<TenantChanges>,
}

struct TenantChanges {
    tenant: TenantNo,
    before: Head,
    changes: Option<Vec<CommittedChange>>,
    events: Vec<Arc<Event>>,
}

/// What a group of items changed, to be taken back if one of them fails.
struct Savepoint {
    rows: Vec<(RowKey, Option<Row>)>,
    /// The conflicts of records as they were.
    conflicts: Vec<(RowKey, Vec<ConflictRow>)>,
    head: Head,
    last_n: u64,
    results: usize,
    audits: usize,
    samples: Vec<(RowKey, Option<SampleMark>)>,
    sample_writes: usize,
    changes: usize,
    /// How many events were told of, and how many of them are written.
    events: (usize, usize),
    /// How many conflicts the items before had touched.
    reviewed: usize,
    known: Vec<(Option<OpId>, u64)>,
}

impl Plan<'_> {
    fn submission(&mut self, submission: &Submission) -> Receipt {
        let Some(head) = self.state.heads.get(&submission.tenant).copied() else {
            return refused(submission, ItemCode::RetryLater, Head::unknown());
        };
        if submission.epoch.is_some_and(|epoch| epoch != head.epoch) {
            return refused(submission, ItemCode::EpochChanged, head);
        }
        self.enter_tenant(submission.tenant, head);
        if !submission.is_publication() {
            self.acknowledge(submission);
        }
        if let Some(answer) = self.answered_before(submission, head) {
            return answer;
        }
        let mut results: Vec<Option<SubmissionResult>> = vec![None; submission.entries.len()];
        for (at, entry) in submission.entries.iter().enumerate() {
            if results[at].is_some() {
                continue;
            }
            match &entry.group {
                None => results[at] = Some(self.entry(submission, entry, None)),
                Some(label) => self.group(submission, label, &mut results),
            }
        }
        let events = submission.events.iter().map(|draft| self.publish(submission.tenant, draft)).collect();
        let head = self.state.heads.get(&submission.tenant).copied().unwrap_or(head);
        let results = results
            .into_iter()
            .map(|result| result.unwrap_or_else(|| SubmissionResult::of(ItemCode::RetryLater)))
            .collect();
        let (seq, hlc, epoch) = (head.seq, head.hlc, head.epoch);
        let receipt = Receipt { results, events, seq, hlc, epoch, answered: Answered::Applied };
        self.remember_batch(submission, &receipt);
        receipt
    }

    fn enter_tenant(&mut self, tenant: TenantNo, head: Head) {
        if !self.tenants.iter().any(|entered| entered.tenant == tenant) {
            let changes = (self.env.listening)(tenant).then(Vec::new);
            self.tenants.push(TenantChanges { tenant, before: head, changes, events: Vec::new() });
        }
    }

    /// Takes over which answers the device has heard.
    fn acknowledge(&mut self, submission: &Submission) {
        let state = self.state.devices.entry(submission.device).or_default();
        let before = *state;
        // A device cannot have heard answers to numbers that never came.
        state.acked_n = state.acked_n.max(submission.acked_n.unwrap_or(0).min(state.last_n));
        let writes = &mut self.out.writes.devices;
        match writes.iter_mut().find(|write| write.device == submission.device) {
            Some(write) => write.state = *state,
            None => writes.push(DeviceWrite {
                tenant: submission.tenant,
                device: submission.device,
                state: *state,
                acked_before: before.acked_n,
            }),
        }
    }

    /// Applies the items of a group together or not at all.
    fn group(&mut self, submission: &Submission, label: &str, results: &mut [Option<SubmissionResult>]) {
        let head = self.state.heads[&submission.tenant];
        let mut savepoint = Savepoint {
            rows: Vec::new(),
            conflicts: Vec::new(),
            head,
            last_n: self.state.devices.entry(submission.device).or_default().last_n,
            results: self.out.writes.results.len(),
            audits: self.out.writes.audits.len(),
            samples: Vec::new(),
            sample_writes: self.out.writes.samples.len(),
            changes: self.changes_len(submission.tenant),
            events: (self.told_len(submission.tenant), self.out.writes.events.len()),
            reviewed: self.reviewed.len(),
            known: Vec::new(),
        };
        let members: Vec<usize> = (0..submission.entries.len())
            .filter(|&at| submission.entries[at].group.as_deref() == Some(label))
            .collect();
        let mut failed = None;
        for &at in &members {
            let result = self.entry(submission, &submission.entries[at], Some(&mut savepoint));
            let done = result.code.class() == ItemClass::Done;
            results[at] = Some(result);
            if !done {
                failed = Some(at);
                break;
            }
        }
        let Some(culprit) = failed else { return };
        self.roll_back(submission, savepoint);
        for &at in &members {
            // An item that was done in an earlier batch stays done; nothing of it is taken back.
            let stays = |result: &SubmissionResult| at == culprit || result.duplicate;
            match results[at].take().filter(stays) {
                Some(mut result) => {
                    self.look_again(submission, &submission.entries[at], &mut result);
                    results[at] = Some(result);
                }
                None => results[at] = Some(SubmissionResult::of(ItemCode::DependencyFailed)),
            }
        }
    }

    /// Brings an answer from within a failed group in line with the record as it stands without the group.
    fn look_again(&self, submission: &Submission, entry: &Entry, result: &mut SubmissionResult) {
        let record = self.stored_view(submission, entry);
        if !result.duplicate && result.version.is_some() {
            result.version = record.as_ref().map(|record| Seq::new(record.version));
        }
        result.record = record.filter(|_| result.record.is_some());
    }

    fn roll_back(&mut self, submission: &Submission, savepoint: Savepoint) {
        for (key, row) in savepoint.rows.into_iter().rev() {
            self.state.rows.insert(key, row);
        }
        for (key, conflicts) in savepoint.conflicts.into_iter().rev() {
            self.state.conflicts.insert(key, conflicts);
        }
        self.state.heads.insert(submission.tenant, savepoint.head);
        self.set_last_n(submission.device, savepoint.last_n);
        self.out.writes.results.truncate(savepoint.results);
        self.out.writes.audits.truncate(savepoint.audits);
        self.out.writes.samples.truncate(savepoint.sample_writes);
        for (key, mark) in savepoint.samples.into_iter().rev() {
            match mark {
                Some(mark) => drop(self.state.samples.insert(key, mark)),
                None => drop(self.state.samples.remove(&key)),
            }
        }
        self.reviewed.truncate(savepoint.reviewed);
        self.untell(submission.tenant, savepoint.events);
        if let Some(changes) = self.changes(submission.tenant) {
            changes.truncate(savepoint.changes);
        }
        for (op_id, n) in savepoint.known {
            if let Some(op_id) = op_id {
                self.state.by_op.remove(&(submission.device, op_id));
            }
            self.state.by_n.remove(&(submission.device, n));
        }
    }

    fn changes(&mut self, tenant: TenantNo) -> Option<&mut Vec<CommittedChange>> {
        self.tenants.iter_mut().find(|entered| entered.tenant == tenant)?.changes.as_mut()
    }

    fn changes_len(&mut self, tenant: TenantNo) -> usize {
        self.changes(tenant).map_or(0, |changes| changes.len())
    }

    fn finish(mut self) -> Planned {
        // A later batch of the group may tell that answers to an earlier one were heard.
        let devices = &self.state.devices;
        let heard = |device: &DeviceNo| devices.get(device).map_or(0, |device| device.acked_n);
        self.out.writes.results.retain(|result| result.known.n > heard(&result.device));
        // A group that was rolled back may have left keys whose rows are what they were.
        self.out.writes.rows.retain(|key| self.state.rows.get(key).is_some_and(Option::is_some));
        self.settle_scopes();
        self.settle_samples();
        let mut told = self.settle_reviews();
        for TenantChanges { tenant, before, changes, events } in self.tenants {
            let after = self.state.heads[&tenant];
            if after != before {
                self.out.writes.heads.push((tenant, after));
            }
            if after != before || !events.is_empty() {
                let committed = Committed::new(tenant, before.seq, after.seq, after.hlc, changes);
                let conflicts = told.extract_if(.., |(of, _)| *of == tenant).map(|(_, told)| told).collect();
                let committed = committed.with_conflicts(conflicts);
                self.out.commits.push(committed.with_events(before.event_id, after.event_id, events));
            }
        }
        self.out
    }
}

impl Head {
    pub(crate) fn unknown() -> Self {
        let epoch = driftline_model::Epoch::new(0);
        Self {
            epoch,
            seq: Seq::ZERO,
            hlc: Hlc::ZERO,
            scopes_version: 0,
            gc_floor: Seq::ZERO,
            epoch_seq: Seq::ZERO,
            event_id: 0,
        }
    }
}

fn refused(submission: &Submission, code: ItemCode, head: Head) -> Receipt {
    let results = submission.entries.iter().map(|_| SubmissionResult::of(code)).collect();
    let (seq, hlc, epoch) = (head.seq, head.hlc, head.epoch);
    Receipt { results, events: Vec::new(), seq, hlc, epoch, answered: Answered::Applied }
}
