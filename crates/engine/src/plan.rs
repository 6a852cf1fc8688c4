//! The plan of a commit group: loaded rows in, decisions and writes out.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::hash::{BuildHasherDefault, DefaultHasher};

use driftline_conflict::{Change as RecordChange, Context, DeviceOrder, Outcome, Record, apply};
use driftline_model::{
    DeviceNo, Hlc, KindName, Object, ObjectBuilder, OpId, RecordId, Seq, SyncId, TenantNo,
};
use driftline_protocol::{Change, ChangeKind, ItemClass, ItemCode, RecordView};

use crate::audit::audit_detail;
use crate::group::{Apply, Entry, Known, Receipt, RowKey, Submission, SubmissionResult, Task};
use crate::hub::{Committed, CommittedChange};
use crate::ports::{DeviceState, Head, Row};

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
    pub batches: Vec<(TenantNo, DeviceNo, SyncId, u64)>,
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
    let mut plan = Plan { state, env, out: Planned::default(), written: Map::default(), tenants: Vec::new() };
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
    /// Records that are among the writes already.
    written: Map<RowKey, ()>,
    tenants: Vec<TenantChanges>,
}

struct TenantChanges {
    tenant: TenantNo,
    before: Head,
    changes: Option<Vec<CommittedChange>>,
}

/// What a group of items changed, to be taken back if one of them fails.
struct Savepoint {
    rows: Vec<(RowKey, Option<Row>)>,
    head: Head,
    last_n: u64,
    results: usize,
    audits: usize,
    changes: usize,
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
        self.acknowledge(submission);
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
        if let Some((sync_id, number)) = &submission.batch {
            self.out.writes.batches.push((submission.tenant, submission.device, sync_id.clone(), *number));
        }
        let head = self.state.heads.get(&submission.tenant).copied().unwrap_or(head);
        let results = results
            .into_iter()
            .map(|result| result.unwrap_or_else(|| SubmissionResult::of(ItemCode::RetryLater)));
        Receipt { results: results.collect(), seq: head.seq, hlc: head.hlc, epoch: head.epoch }
    }

    fn enter_tenant(&mut self, tenant: TenantNo, head: Head) {
        if !self.tenants.iter().any(|entered| entered.tenant == tenant) {
            let changes = (self.env.listening)(tenant).then(Vec::new);
            self.tenants.push(TenantChanges { tenant, before: head, changes });
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
            head,
            last_n: self.state.devices.entry(submission.device).or_default().last_n,
            results: self.out.writes.results.len(),
            audits: self.out.writes.audits.len(),
            changes: self.changes_len(submission.tenant),
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
        self.state.heads.insert(submission.tenant, savepoint.head);
        self.set_last_n(submission.device, savepoint.last_n);
        self.out.writes.results.truncate(savepoint.results);
        self.out.writes.audits.truncate(savepoint.audits);
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

    fn entry(
        &mut self,
        submission: &Submission,
        entry: &Entry,
        savepoint: Option<&mut Savepoint>,
    ) -> SubmissionResult {
        let device = self.state.devices.entry(submission.device).or_default();
        let (last_n, acked_n) = (device.last_n, device.acked_n);
        if let Some(answer) = self.remembered(submission, entry, acked_n) {
            return answer;
        }
        if let (Task::Refuse(code, errors), None) = (&entry.task, entry.n) {
            // What cannot be read takes no number: the next number may be a good item's own.
            return SubmissionResult { errors: errors.clone(), ..SubmissionResult::of(*code) };
        }
        let n = entry.n.unwrap_or_else(|| {
            let numbered = submission.entries.iter().filter_map(|entry| entry.n).max().unwrap_or(0);
            last_n.max(numbered) + 1
        });
        if n <= acked_n {
            return SubmissionResult::of(ItemCode::TooOld);
        }
        let in_group = savepoint.is_some();
        let (result, savepoint) = match &entry.task {
            Task::Refuse(code, errors) => {
                (SubmissionResult { errors: errors.clone(), ..SubmissionResult::of(*code) }, savepoint)
            }
            Task::Apply(apply) => {
                let mut savepoint = savepoint;
                let result = self.apply(submission, entry, apply, n, savepoint.as_deref_mut());
                (result, savepoint)
            }
        };
        // A failing item takes its group with it, and no item of a failed group is remembered.
        let fails_group = in_group && result.code.class() != ItemClass::Done;
        if result.code.is_remembered() && !fails_group {
            self.remember(submission, entry, n, &result, savepoint);
        }
        result
    }

    /// Finds the first answer to an item that came before. What the device has heard is forgotten at once.
    fn remembered(&self, submission: &Submission, entry: &Entry, acked_n: u64) -> Option<SubmissionResult> {
        let by_op = entry.op_id.as_ref().and_then(|op_id| {
            if self.state.by_op.is_empty() {
                return None;
            }
            self.state.by_op.get(&(submission.device, op_id.clone()))
        });
        let by_n = entry.n.and_then(|n| self.state.by_n.get(&(submission.device, n)));
        let unheard = |known: &&Known| known.n > acked_n;
        let known = by_op.filter(unheard).or(by_n.filter(unheard))?;
        let same_op = entry.op_id.is_none() || entry.op_id == known.op_id;
        let same_n = entry.n.is_none_or(|n| n == known.n);
        if known.hash != entry.hash || !same_op || !same_n {
            return Some(SubmissionResult::of(ItemCode::DeviceIdReused));
        }
        let mut answer = SubmissionResult { duplicate: true, ..SubmissionResult::of(known.code) };
        answer.version = (known.version > Seq::ZERO).then_some(known.version);
        if let Task::Refuse(code, errors) = &entry.task
            && *code == known.code
        {
            answer.errors.clone_from(errors);
        }
        let revives = matches!(&entry.task, Task::Apply(apply) if may_revive(apply));
        if known.code != ItemCode::Invalid && (known.code != ItemCode::Applied || revives) {
            answer.record = self.stored_view(submission, entry);
        }
        Some(answer)
    }

    fn stored_view(&self, submission: &Submission, entry: &Entry) -> Option<RecordView> {
        let key = RowKey { tenant: submission.tenant, kind: entry.kind.clone()?, id: entry.id.clone()? };
        let row = self.state.rows.get(&key)?.as_ref()?;
        submission.scopes.contains(&row.scope).then(|| view(&row.record, row.deleted))
    }

    fn apply(
        &mut self,
        submission: &Submission,
        entry: &Entry,
        apply_: &Apply,
        n: u64,
        savepoint: Option<&mut Savepoint>,
    ) -> SubmissionResult {
        let key = RowKey { tenant: submission.tenant, kind: apply_.kind.clone(), id: apply_.id.clone() };
        let head = self.state.heads[&submission.tenant];
        let before = self.state.rows.get(&key).and_then(Option::as_ref);
        if let Some(row) = before.filter(|row| !submission.scopes.contains(&row.scope)) {
            return self.foreign(row, apply_);
        }
        let change = RecordChange {
            op: apply_.op,
            base: apply_.base,
            fields: apply_.fields.clone(),
            hlc: apply_.hlc,
            device: submission.device,
            n,
        };
        let context = Context {
            next: head.seq.next(),
            received: head.hlc.tick(self.env.now_ms),
            latest: Hlc::new(self.env.now_ms + self.env.skew_ms_max, 0),
            devices: self.env.devices,
        };
        let decision = apply(before.map(|row| &row.record), &change, &apply_.policy, &context);
        if decision.record.as_ref().is_some_and(|record| record.fields.as_str().len() > self.env.record_bytes)
        {
            return SubmissionResult::of(ItemCode::TooLarge);
        }
        let mut result = SubmissionResult::of(code_of(decision.outcome));
        result.winners = decision.winners().map(|(name, winner)| (Box::from(name), winner)).collect();
        result.strategy = decision.conflict.then(|| apply_.policy.strategy.name());
        result.clamped = decision.audit.as_ref().is_some_and(|audit| audit.stamp.is_clamped());
        let version_before = before.map_or(Seq::ZERO, |row| row.record.version);
        let seq = decision.record.as_ref().map_or(version_before, |record| record.version);
        if let Some(audit) = &decision.audit {
            self.out.writes.audits.push(AuditWrite {
                tenant: submission.tenant,
                kind: apply_.kind.clone(),
                id: apply_.id.clone(),
                seq,
                device: submission.device,
                user: submission.user.clone(),
                op_id: entry.op_id.clone(),
                n,
                code: result.code,
                strategy: apply_.policy.strategy.name(),
                policy_version: apply_.policy.version,
                detail: audit_detail(apply_, n, audit),
                correlation: submission.correlation.clone(),
            });
        }
        if let Some(record) = decision.record {
            self.store(submission, apply_, &key, record, savepoint);
        }
        let row = self.state.rows.get(&key).and_then(Option::as_ref);
        result.version = row.map(|row| row.record.version);
        let revives = version_before > Seq::ZERO && may_revive(apply_);
        if (result.code != ItemCode::Applied || revives) && result.code.is_remembered() {
            result.record = row.map(|row| view(&row.record, row.deleted));
        }
        result
    }

    /// A record in a scope that the author may not write. Only a create learns that the id is taken.
    fn foreign(&self, _: &Row, apply: &Apply) -> SubmissionResult {
        SubmissionResult::of(match apply.op {
            driftline_conflict::Op::Create => ItemCode::Forbidden,
            _ => ItemCode::Gone,
        })
    }

    /// Takes a changed record over into the state, the head and the writes.
    fn store(
        &mut self,
        submission: &Submission,
        apply: &Apply,
        key: &RowKey,
        record: Record,
        savepoint: Option<&mut Savepoint>,
    ) {
        let deleted = record.is_deleted(self.env.devices);
        let slot = self.state.rows.entry(key.clone()).or_default();
        let before = slot.take();
        let (scope, owner, schema_version) = match &before {
            Some(row) => (row.scope.clone(), row.owner.clone(), row.schema_version),
            None => (apply.scope.clone(), submission.user.clone(), 0),
        };
        let schema_version = if apply.schema_version > 0 { apply.schema_version } else { schema_version };
        let row =
            Row { kind: key.kind.clone(), id: key.id.clone(), scope, owner, schema_version, deleted, record };
        let head = self.state.heads.entry(submission.tenant).or_insert_with(Head::unknown);
        head.seq = row.record.version;
        head.hlc = row.record.all_marks().map(|mark| mark.hlc).fold(head.hlc, Hlc::max);
        if let Some(changes) = self.tenants.iter_mut().find(|entered| entered.tenant == submission.tenant)
            && let Some(changes) = &mut changes.changes
        {
            let was_live = before.as_ref().is_some_and(|before| !before.deleted);
            changes.push(CommittedChange { device: submission.device, change: change_of(&row, was_live) });
        }
        if let Some(savepoint) = savepoint {
            savepoint.rows.push((key.clone(), before));
        }
        self.state.rows.insert(key.clone(), Some(row));
        if let Slot::Vacant(vacant) = self.written.entry(key.clone()) {
            vacant.insert(());
            self.out.writes.rows.push(key.clone());
        }
    }

    fn remember(
        &mut self,
        submission: &Submission,
        entry: &Entry,
        n: u64,
        result: &SubmissionResult,
        savepoint: Option<&mut Savepoint>,
    ) {
        let known = Known {
            op_id: entry.op_id.clone(),
            n,
            hash: entry.hash,
            code: result.code,
            version: result.version.unwrap_or(Seq::ZERO),
        };
        let device = submission.device;
        if let Some(op_id) = &known.op_id {
            self.state.by_op.insert((device, op_id.clone()), known.clone());
        }
        self.state.by_n.insert((device, n), known.clone());
        if let Some(savepoint) = savepoint {
            savepoint.known.push((known.op_id.clone(), n));
        }
        self.out.writes.results.push(ResultWrite { tenant: submission.tenant, device, known });
        let last_n = self.state.devices.entry(device).or_default().last_n;
        self.set_last_n(device, last_n.max(n));
    }

    fn set_last_n(&mut self, device: DeviceNo, last_n: u64) {
        self.state.devices.entry(device).or_default().last_n = last_n;
        if let Some(write) = self.out.writes.devices.iter_mut().find(|write| write.device == device) {
            write.state.last_n = last_n;
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
        for TenantChanges { tenant, before, changes } in self.tenants {
            let after = self.state.heads[&tenant];
            if after != before {
                self.out.writes.heads.push((tenant, after));
                self.out.commits.push(Committed::new(tenant, before.seq, after.seq, after.hlc, changes));
            }
        }
        self.out
    }
}

impl Head {
    pub(crate) fn unknown() -> Self {
        let epoch = driftline_model::Epoch::new(0);
        Self { epoch, seq: Seq::ZERO, hlc: Hlc::ZERO, scopes_version: 0, gc_floor: Seq::ZERO }
    }
}

fn refused(submission: &Submission, code: ItemCode, head: Head) -> Receipt {
    let results = submission.entries.iter().map(|_| SubmissionResult::of(code)).collect();
    Receipt { results, seq: head.seq, hlc: head.hlc, epoch: head.epoch }
}

/// Whether a change may bring a deleted record back, and with it fields that its author no longer has.
fn may_revive(apply: &Apply) -> bool {
    matches!(apply.op, driftline_conflict::Op::Create | driftline_conflict::Op::Restore)
}

fn code_of(outcome: Outcome) -> ItemCode {
    match outcome {
        Outcome::Applied => ItemCode::Applied,
        Outcome::Merged => ItemCode::Merged,
        Outcome::Noop => ItemCode::Noop,
        Outcome::Superseded => ItemCode::Superseded,
        Outcome::Gone => ItemCode::Gone,
        Outcome::ClientAhead => ItemCode::ClientAhead,
    }
}

/// A record as its readers see it: a deleted one without fields.
pub(crate) fn view(record: &Record, deleted: bool) -> RecordView {
    let fields = if deleted { Object::empty() } else { record.fields.clone() };
    RecordView { version: record.version.number(), deleted, fields }
}

/// A change as readers get it who had the record as it was before.
fn change_of(row: &Row, was_live: bool) -> Change {
    let (change, fields) = match (row.deleted, was_live) {
        (true, _) => (ChangeKind::Delete, Object::empty()),
        (false, false) => (ChangeKind::Put, row.record.fields.clone()),
        (false, true) => {
            (ChangeKind::Patch, changed_since(&row.record, Seq::new(row.record.version.number() - 1)))
        }
    };
    change_row(row, change, fields)
}

pub(crate) fn change_row(row: &Row, change: ChangeKind, fields: Object) -> Change {
    Change {
        kind: row.kind.clone(),
        id: row.id.clone(),
        scope: row.scope.clone(),
        version: row.record.version,
        change,
        fields,
    }
}

/// The fields that changed after a place in the sequence.
pub(crate) fn changed_since(record: &Record, from: Seq) -> Object {
    if record.marks.is_empty() && record.default_mark.fv > from {
        return record.fields.clone();
    }
    let mut built = ObjectBuilder::with_capacity(record.fields.as_str().len(), record.fields.len());
    for (name, value, mark) in record.fields() {
        if mark.fv > from {
            built.push(name, value);
        }
    }
    built.finish()
}
