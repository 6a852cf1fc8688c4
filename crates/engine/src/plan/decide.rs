//! One item: known before, refused, applied or resolved.

use driftline_conflict::{Change as RecordChange, ChangeError, Context, Decision, Op, Outcome, apply};
use driftline_model::{DeviceNo, Hlc, ScopeName, Seq, TenantNo};
use driftline_protocol::{FieldError, ItemClass, ItemCode, RecordView, plain_name};

use super::keep::{Kept, view};
use super::{AuditWrite, Plan, ResultWrite, Savepoint};
use crate::audit::audit_detail;
use crate::group::{Apply, Entry, Known, KnownMore, Placement, RowKey, Submission, SubmissionResult, Task};
use crate::ports::Row;

/// A batch and one of its items, with the number that the item got.
#[derive(Clone, Copy)]
pub(super) struct Asked<'s> {
    pub(super) submission: &'s Submission,
    pub(super) entry: &'s Entry,
    pub(super) n: u64,
}

impl Plan<'_> {
    pub(super) fn entry(
        &mut self,
        submission: &Submission,
        entry: &Entry,
        mut savepoint: Option<&mut Savepoint>,
    ) -> SubmissionResult {
        match &entry.task {
            Task::Append(append) => return self.append(submission, entry, append, savepoint),
            Task::Aggregate(aggregate) => return self.aggregate(submission, aggregate),
            Task::Refuse(..) | Task::Apply(_) | Task::Resolve(_) => {}
        }
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
        let asked = Asked { submission, entry, n };
        let result = match &entry.task {
            Task::Refuse(code, errors) => {
                SubmissionResult { errors: errors.clone(), ..SubmissionResult::of(*code) }
            }
            Task::Apply(apply) => self.apply(asked, apply, savepoint.as_deref_mut()),
            Task::Resolve(resolve) => self.resolve(asked, resolve, savepoint.as_deref_mut()),
            // They take no number, as was seen above.
            Task::Append(_) | Task::Aggregate(_) => SubmissionResult::of(ItemCode::RetryLater),
        };
        // A failing item takes its group with it, and no item of a failed group is remembered.
        let fails_group = savepoint.is_some() && result.code.class() != ItemClass::Done;
        if result.code.is_remembered() && !fails_group {
            self.remember(asked, &result, savepoint);
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
        if let Some(more) = &known.more {
            (answer.winners, answer.conflict_id) = (more.winners.clone(), more.conflict_id.clone());
        }
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

    pub(super) fn stored_view(&self, submission: &Submission, entry: &Entry) -> Option<RecordView> {
        let key = RowKey { tenant: submission.tenant, kind: entry.kind.clone()?, id: entry.id.clone()? };
        let row = self.state.rows.get(&key)?.as_ref()?;
        submission.scopes.contains(&row.scope).then(|| view(&row.record, row.deleted))
    }

    fn apply(
        &mut self,
        asked: Asked<'_>,
        apply_: &Apply,
        mut savepoint: Option<&mut Savepoint>,
    ) -> SubmissionResult {
        let Asked { submission, n, .. } = asked;
        let key = RowKey { tenant: submission.tenant, kind: apply_.kind.clone(), id: apply_.id.clone() };
        let before = self.state.rows.get(&key).and_then(Option::as_ref);
        if before.is_some_and(|row| !submission.scopes.contains(&row.scope)) {
            return foreign(apply_);
        }
        if !self.may_move(submission, apply_, before) {
            return SubmissionResult::of(ItemCode::Forbidden);
        }
        let change = RecordChange {
            op: apply_.op,
            base: apply_.base,
            fields: apply_.fields.clone(),
            intents: apply_.intents.clone(),
            hlc: apply_.hlc,
            device: submission.device,
            n,
        };
        let context = Context { rights: apply_.rights, ..self.context(submission.tenant) };
        let decision = apply(before.map(|row| &row.record), &change, &apply_.policy, &context);
        if before.is_some()
            && takes_part(decision.outcome)
            && let Some(conflict_id) = self.whole_review(&key, apply_, submission.device)
        {
            return self.join_review(asked, apply_, &key, &conflict_id, savepoint);
        }
        let scope = match self.admit(submission, &apply_.placement, before, &decision) {
            Ok(scope) => scope,
            Err(refused) => return *refused,
        };
        // What the reviewer compares is the record as the author met it.
        let met = decision.review.as_ref().and(before).cloned();
        let mut result = self.result_of(&decision, apply_);
        let version_before = before.map_or(Seq::ZERO, |row| row.record.version);
        let seq = decision.record.as_ref().map_or(version_before, |record| record.version);
        if let Some(audit) = &decision.audit {
            self.audit(asked, apply_, (seq, result.code), audit_detail(apply_, n, audit));
        }
        if let Some(record) = decision.record {
            let kept = Kept {
                key: key.clone(),
                scope,
                owner: submission.user.clone(),
                schema_version: apply_.schema_version,
                record,
                device: Some(submission.device),
                announce: apply_.announce.clone(),
            };
            self.keep(kept, savepoint.as_deref_mut());
            self.follow(&key, savepoint.as_deref_mut());
        }
        if let (Some(review), Some(met)) = (&decision.review, met) {
            result.conflict_id = Some(self.open_review(asked, apply_, &met, review, savepoint));
        }
        let row = self.state.rows.get(&key).and_then(Option::as_ref);
        result.version = row.map(|row| row.record.version);
        let revives = version_before > Seq::ZERO && may_revive(apply_);
        if (result.code != ItemCode::Applied || revives) && result.code.is_remembered() {
            result.record = row.map(|row| view(&row.record, row.deleted));
        }
        result
    }

    /// Whether the author may write the group that the change names for the record.
    fn may_move(&self, submission: &Submission, apply: &Apply, before: Option<&Row>) -> bool {
        let Placement::Group(_) = &apply.placement else { return true };
        let named = apply.placement.of(&apply.fields);
        before.is_none() || named.is_none_or(|scope| submission.scopes.contains(&scope))
    }

    pub(super) fn context(&self, tenant: TenantNo) -> Context<'_> {
        let head = self.state.heads[&tenant];
        Context {
            next: head.seq.next(),
            received: head.hlc.tick(self.env.now_ms),
            latest: Hlc::new(self.env.now_ms + self.env.skew_ms_max, 0),
            devices: self.env.devices,
            rights: driftline_conflict::Rights::default(),
        }
    }

    /// Finds the scope of a record as a change would leave it, unless the change is refused for its size or because
    /// the author may not write that scope.
    pub(super) fn admit(
        &self,
        submission: &Submission,
        placement: &Placement,
        before: Option<&Row>,
        decision: &Decision,
    ) -> Result<ScopeName, Box<SubmissionResult>> {
        let stays = || before.map_or_else(ScopeName::tenant, |row| row.scope.clone());
        let Some(record) = &decision.record else { return Ok(stays()) };
        if record.fields.as_str().len() > self.env.record_bytes {
            return Err(Box::new(SubmissionResult::of(ItemCode::TooLarge)));
        }
        let scope = match (placement, before) {
            (Placement::Fixed(_), Some(row)) => return Ok(row.scope.clone()),
            (Placement::Group(_), Some(row)) if record.is_deleted(self.env.devices) => {
                return Ok(row.scope.clone());
            }
            (placement, _) => placement.of(&record.fields),
        };
        match (scope, placement) {
            (Some(scope), _) if submission.scopes.contains(&scope) => Ok(scope),
            (None, Placement::Group(field)) => {
                let error = FieldError {
                    code: "invalid".into(),
                    pointer: format!("/fields/{}", plain_name(field)),
                    message: "the field has to name the record's group: a short text or an integer".into(),
                };
                let refused = SubmissionResult::of(ItemCode::Invalid);
                Err(Box::new(SubmissionResult { errors: vec![error], ..refused }))
            }
            _ => Err(Box::new(SubmissionResult::of(ItemCode::Forbidden))),
        }
    }

    fn result_of(&self, decision: &Decision, apply: &Apply) -> SubmissionResult {
        let mut result = SubmissionResult::of(code_of(decision.outcome));
        result.winners = decision.winners().map(|(name, winner)| (Box::from(name), winner)).collect();
        result.strategy = decision.conflict.then(|| apply.policy.strategy.name());
        result.clamped = decision.audit.as_ref().is_some_and(|audit| audit.stamp.is_clamped());
        result.collapsed = decision.collapsed;
        result.errors = decision.errors.iter().map(field_error).collect();
        result
    }

    pub(super) fn audit(
        &mut self,
        asked: Asked<'_>,
        apply: &Apply,
        (seq, code): (Seq, ItemCode),
        detail: String,
    ) {
        let Asked { submission, entry, n } = asked;
        self.out.writes.audits.push(AuditWrite {
            tenant: submission.tenant,
            kind: apply.kind.clone(),
            id: apply.id.clone(),
            seq,
            device: submission.device,
            user: submission.user.clone(),
            op_id: entry.op_id.clone(),
            n,
            code,
            strategy: apply.policy.strategy.name(),
            policy_version: apply.policy.version,
            detail,
            correlation: submission.correlation.clone(),
        });
    }

    fn remember(&mut self, asked: Asked<'_>, result: &SubmissionResult, savepoint: Option<&mut Savepoint>) {
        let Asked { submission, entry, n } = asked;
        let more = !result.winners.is_empty() || result.conflict_id.is_some();
        let more = more.then(|| {
            let (winners, conflict_id) = (result.winners.clone(), result.conflict_id.clone());
            Box::new(KnownMore { winners, conflict_id })
        });
        let known = Known {
            op_id: entry.op_id.clone(),
            n,
            hash: entry.hash,
            code: result.code,
            version: result.version.unwrap_or(Seq::ZERO),
            more,
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

    pub(super) fn set_last_n(&mut self, device: DeviceNo, last_n: u64) {
        self.state.devices.entry(device).or_default().last_n = last_n;
        if let Some(write) = self.out.writes.devices.iter_mut().find(|write| write.device == device) {
            write.state.last_n = last_n;
        }
    }
}

/// Whether a change may bring a deleted record back, and with it fields that its author no longer has.
fn may_revive(apply: &Apply) -> bool {
    matches!(apply.op, Op::Create | Op::Restore)
}

/// Whether a change of this outcome may wait for a reviewer together with earlier ones.
fn takes_part(outcome: Outcome) -> bool {
    !matches!(outcome, Outcome::Gone | Outcome::ClientAhead | Outcome::Invalid | Outcome::Forbidden)
}

/// A record in a scope that the author may not write. Only a create learns that the id is taken.
fn foreign(apply: &Apply) -> SubmissionResult {
    SubmissionResult::of(match apply.op {
        Op::Create => ItemCode::Forbidden,
        _ => ItemCode::Gone,
    })
}

pub(super) fn field_error(error: &ChangeError) -> FieldError {
    FieldError {
        code: "invalid".into(),
        pointer: format!("/{}/{}", error.part.name(), plain_name(&error.field)),
        message: error.message.into(),
    }
}

pub(super) fn code_of(outcome: Outcome) -> ItemCode {
    match outcome {
        Outcome::Applied => ItemCode::Applied,
        Outcome::Merged => ItemCode::Merged,
        Outcome::Noop => ItemCode::Noop,
        Outcome::Superseded => ItemCode::Superseded,
        Outcome::Gone => ItemCode::Gone,
        Outcome::ClientAhead => ItemCode::ClientAhead,
        Outcome::ConflictPending => ItemCode::ConflictPending,
        Outcome::Invalid => ItemCode::Invalid,
        Outcome::Forbidden => ItemCode::Forbidden,
    }
}
