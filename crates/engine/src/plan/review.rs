//! What is set aside for a reviewer, and what the reviewer decides.

use driftline_conflict::{
    Audit, Change as RecordChange, Context, Decision, Existence, FieldDecision, Mark, Op, Outcome, Record,
    Review, ReviewReason, Rights, Rule, Stamp, Strategy, Winner, apply,
};
use driftline_model::{
    ConflictId, DeviceKey, DeviceNo, Intents, Object, ObjectBuilder, RecordId, Seq, TenantNo, key_cmp,
};
use driftline_protocol::{ItemCode, Resolution};

use super::decide::{Asked, code_of, field_error};
use super::keep::{Kept, view};
use super::{Plan, Savepoint};
use crate::audit::{audit_detail, resolution_detail};
use crate::group::{Apply, Placement, Resolve, Resolved, RowKey, SubmissionResult};
use crate::hub::CommittedConflict;
use crate::ports::Row;
use crate::review::{ConflictRow, ConflictStatus, conflict_fields, conflicts_kind};

impl Plan<'_> {
    /// Finds the open conflict of a device that holds whole changes of the record: further changes join it, as long as
    /// the policy sets whole changes aside.
    pub(super) fn whole_review(&self, key: &RowKey, apply: &Apply, device: DeviceNo) -> Option<ConflictId> {
        if apply.policy.strategy != Strategy::Manual {
            return None;
        }
        let rows = self.state.conflicts.get(key)?;
        let whole = |row: &&ConflictRow| row.reason == ReviewReason::Manual && row.fields.is_empty();
        let row = rows.iter().filter(whole).find(|row| row.device == device && row.status.is_open())?;
        Some(row.conflict_id.clone())
    }

    /// Sets a change aside together with an earlier one of the same device.
    pub(super) fn join_review(
        &mut self,
        asked: Asked<'_>,
        apply: &Apply,
        key: &RowKey,
        conflict_id: &ConflictId,
        savepoint: Option<&mut Savepoint>,
    ) -> SubmissionResult {
        let Some(row) = self.state.rows.get(key).and_then(Option::as_ref).cloned() else {
            return SubmissionResult::of(ItemCode::Gone);
        };
        let joined = self.state.conflicts.get(key).and_then(|rows| {
            let mut row = rows.iter().find(|row| row.conflict_id == *conflict_id)?.clone();
            join(&mut row, asked, apply, &[]);
            Some(row)
        });
        let Some(mut joined) = joined.filter(|row| row.client.as_str().len() <= self.env.record_bytes) else {
            return SubmissionResult::of(ItemCode::TooLarge);
        };
        let context = self.context(key.tenant);
        let effective = apply.hlc.map_or(context.received, |raw| raw.min(context.latest));
        let held = apply.fields.iter().map(|(name, value)| FieldDecision {
            name: name.into(),
            client: Some(value.into()),
            server: row.record.fields.get(name).unwrap_or("null").into(),
            server_mark: row.record.mark(name).unwrap_or(row.record.live),
            winner: Winner::Held,
            rule: Rule::Manual,
        });
        let audit = Audit {
            stamp: Stamp { raw: apply.hlc, effective },
            version_before: row.record.version,
            fields: held.collect(),
            existence: (apply.op == Op::Delete).then_some(Existence {
                server_mark: row.record.live,
                winner: Winner::Held,
                rule: Rule::Manual,
                deleted: row.deleted,
            }),
        };
        let mut result = SubmissionResult::of(ItemCode::ConflictPending);
        result.clamped = audit.stamp.is_clamped();
        result.strategy = Some(apply.policy.strategy.name());
        result.winners = audit.fields.iter().map(|field| (field.name.clone(), Winner::Held)).collect();
        self.audit(asked, apply, (row.record.version, result.code), audit_detail(apply, asked.n, &audit));
        let mut savepoint = savepoint;
        if let Some(savepoint) = savepoint.as_deref_mut() {
            self.remember_conflicts(key, savepoint);
        }
        joined.server = picked(&row.record.fields, &joined.client);
        joined.version = row.record.version;
        joined.scope = row.scope.clone();
        self.write_conflict(key, joined, savepoint);
        result.conflict_id = Some(conflict_id.clone());
        result.version = Some(row.record.version);
        result.record = Some(view(&row.record, row.deleted));
        result
    }

    /// Opens a conflict, or joins the one that the device has open on the record.
    pub(super) fn open_review(
        &mut self,
        asked: Asked<'_>,
        apply: &Apply,
        met: &Row,
        review: &Review,
        mut savepoint: Option<&mut Savepoint>,
    ) -> ConflictId {
        let Asked { submission, entry, n } = asked;
        let key = RowKey { tenant: submission.tenant, kind: apply.kind.clone(), id: apply.id.clone() };
        if let Some(savepoint) = savepoint.as_deref_mut() {
            self.remember_conflicts(&key, savepoint);
        }
        let own = |row: &&ConflictRow| row.device == submission.device && row.status.is_open();
        let open = self.state.conflicts.get(&key).and_then(|rows| rows.iter().find(own).cloned());
        let head = self.state.heads[&submission.tenant];
        let mut row = open.unwrap_or_else(|| ConflictRow {
            conflict_id: ConflictId::new(&format!("{}-{}", head.epoch, head.seq.next()))
                .expect("hexadecimal digits, a hyphen and a number"),
            kind: apply.kind.clone(),
            id: apply.id.clone(),
            scope: met.scope.clone(),
            device: submission.device,
            device_key: DeviceKey::from_text(&String::from_utf8_lossy(
                self.env.devices.bytes(submission.device),
            )),
            op_id: entry.op_id.clone(),
            n,
            op: apply.op,
            reason: review.reason,
            status: ConflictStatus::Open,
            fields: Vec::new(),
            base_version: apply.base,
            base: seen_values(apply, &met.record, &review.fields),
            client: Object::empty(),
            client_ns: Object::empty(),
            server: Object::empty(),
            version: met.record.version,
            policy_version: apply.policy.version,
            opened_ms: self.env.now_ms,
            seq: Seq::ZERO,
        });
        join(&mut row, asked, apply, &review.fields);
        // The stored side is the record as it is now: other parts of the change may have been applied.
        if let Some(now) = self.state.rows.get(&key).and_then(Option::as_ref) {
            row.server = picked(&now.record.fields, &row.client);
            (row.version, row.scope) = (now.record.version, now.scope.clone());
        }
        let conflict_id = row.conflict_id.clone();
        self.write_conflict(&key, row, savepoint);
        conflict_id
    }

    /// Has the open conflicts of a record follow it into another scope.
    pub(super) fn follow(&mut self, key: &RowKey, mut savepoint: Option<&mut Savepoint>) {
        let Some(scope) = self.state.rows.get(key).and_then(Option::as_ref).map(|row| row.scope.clone())
        else {
            return;
        };
        let rows = self.state.conflicts.get(key).into_iter().flatten();
        let behind: Vec<ConflictRow> =
            rows.filter(|row| row.status.is_open() && row.scope != scope).cloned().collect();
        if let Some(savepoint) = savepoint.as_deref_mut().filter(|_| !behind.is_empty()) {
            self.remember_conflicts(key, savepoint);
        }
        for row in behind {
            self.write_conflict(key, ConflictRow { scope: scope.clone(), ..row }, savepoint.as_deref_mut());
        }
    }

    /// Carries out what a reviewer decided, if the record is still the one that the reviewer saw.
    pub(super) fn resolve(
        &mut self,
        asked: Asked<'_>,
        resolve: &Resolve,
        mut savepoint: Option<&mut Savepoint>,
    ) -> SubmissionResult {
        let key = match (&asked.entry.kind, &asked.entry.id) {
            (Some(kind), Some(id)) => {
                RowKey { tenant: asked.submission.tenant, kind: kind.clone(), id: id.clone() }
            }
            _ => return unresolved(Resolved::NotFound),
        };
        let rows = self.state.conflicts.get(&key);
        let row =
            rows.and_then(|rows| rows.iter().find(|row| row.conflict_id == resolve.conflict_id)).cloned();
        // The record may have moved since the row was written: its own scope counts.
        let scope_of = |row: &ConflictRow| {
            let record = self.state.rows.get(&key).and_then(Option::as_ref);
            record.map_or_else(|| row.scope.clone(), |record| record.scope.clone())
        };
        let Some(mut row) = row.filter(|row| asked.submission.scopes.contains(&scope_of(row))) else {
            return unresolved(Resolved::NotFound);
        };
        if !row.status.is_open() {
            return unresolved(Resolved::Already(row));
        }
        if let Some(savepoint) = savepoint.as_deref_mut() {
            self.remember_conflicts(&key, savepoint);
        }
        let before = self.state.rows.get(&key).and_then(Option::as_ref).cloned();
        let version = before.as_ref().map_or(Seq::ZERO, |row| row.record.version);
        if version != resolve.version.unwrap_or(row.version) {
            return self.refresh_review(&key, row, before.as_ref(), savepoint);
        }
        let decision = before.as_ref().and_then(|before| self.carry_out(asked, resolve, &row, before));
        let (scope, code) = match &decision {
            Some(decision) if !matters(decision.outcome) => {
                let errors = decision.errors.iter().map(field_error).collect();
                return SubmissionResult { errors, ..SubmissionResult::of(code_of(decision.outcome)) };
            }
            Some(decision) => {
                match self.admit(asked.submission, &resolve.placement, before.as_ref(), decision) {
                    Ok(scope) => (scope, code_of(decision.outcome)),
                    Err(refused) => return *refused,
                }
            }
            None => (row.scope.clone(), ItemCode::Noop),
        };
        let record = decision.and_then(|decision| decision.record);
        let seq = record.as_ref().map_or(version, |record| record.version);
        self.audit_resolution(asked, resolve, (&row, before.as_ref()), (seq, code));
        if let (Some(record), Some(before)) = (record, &before) {
            let kept = Kept {
                key: key.clone(),
                scope,
                owner: before.owner.clone(),
                schema_version: 0,
                record,
                device: Some(asked.submission.device),
                announce: resolve.announce.clone(),
            };
            row.scope = kept.scope.clone();
            self.keep(kept, savepoint.as_deref_mut());
            self.follow(&key, savepoint.as_deref_mut());
        }
        let at_ms = self.env.now_ms;
        let by = asked.submission.user.clone();
        row.status = ConflictStatus::Resolved { resolution: resolve.resolution, by, at_ms };
        let now =
            self.state.rows.get(&key).and_then(Option::as_ref).map(|row| view(&row.record, row.deleted));
        row.version = now.as_ref().map_or(version, |now| Seq::new(now.version));
        let row = self.write_conflict(&key, row, savepoint);
        let mut result = SubmissionResult::of(code);
        result.version = Some(row.version);
        result.record = now;
        result.conflict_id = Some(row.conflict_id.clone());
        result.resolved = Some(Box::new(Resolved::Done(row)));
        result
    }

    /// Brings a conflict up to date for a reviewer who saw an older record.
    fn refresh_review(
        &mut self,
        key: &RowKey,
        mut row: ConflictRow,
        now: Option<&Row>,
        savepoint: Option<&mut Savepoint>,
    ) -> SubmissionResult {
        let version = now.map_or(Seq::ZERO, |now| now.record.version);
        if row.version != version {
            row.version = version;
            if let Some(now) = now {
                row.server = picked(&now.record.fields, &row.client);
                row.scope = now.scope.clone();
            }
            row = self.write_conflict(key, row, savepoint);
        }
        let record = now.map(|now| view(&now.record, now.deleted));
        SubmissionResult { record, ..unresolved(Resolved::Stale(row)) }
    }

    /// Makes the reviewer's decision a change of one who had seen everything; nothing when what is stored stays.
    fn carry_out(
        &self,
        asked: Asked<'_>,
        resolve: &Resolve,
        row: &ConflictRow,
        before: &Row,
    ) -> Option<Decision> {
        let (op, fields) = match (resolve.resolution, row.op) {
            // A delete that was held up is remembered: who keeps the record says that it lives.
            (Resolution::Server, Op::Delete) if before.record.del.is_some() => (Op::Restore, Object::empty()),
            (Resolution::Server, _) => return None,
            (Resolution::Client, Op::Delete) => (Op::Delete, Object::empty()),
            (Resolution::Client, _) => (Op::Patch, row.client.clone()),
            (Resolution::Merged, _) => (Op::Patch, resolve.fields.clone()),
        };
        let op = if before.deleted && op == Op::Patch { Op::Restore } else { op };
        let mut previous = ObjectBuilder::default();
        for (name, _) in fields.iter() {
            previous.push(name, before.record.fields.get(name).unwrap_or("null"));
        }
        let previous = previous.finish();
        let intents = Intents { previous, deescalate: true, ..Intents::default() };
        let change = RecordChange {
            op,
            base: before.record.version,
            fields,
            intents: Some(Box::new(intents)),
            hlc: None,
            device: asked.submission.device,
            n: asked.n,
        };
        let rights = Rights { deescalate: true, service: true };
        let context = Context { rights, ..self.context(asked.submission.tenant) };
        Some(apply(Some(&before.record), &change, &resolve.policy, &context))
    }

    fn audit_resolution(
        &mut self,
        asked: Asked<'_>,
        resolve: &Resolve,
        (row, before): (&ConflictRow, Option<&Row>),
        (seq, code): (Seq, ItemCode),
    ) {
        let apply = Apply {
            kind: row.kind.clone(),
            id: row.id.clone(),
            op: row.op,
            base: row.version,
            fields: resolve.fields.clone(),
            intents: None,
            hlc: None,
            schema_version: 0,
            placement: Placement::Fixed(row.scope.clone()),
            rights: Rights::default(),
            policy: std::sync::Arc::clone(&resolve.policy),
            announce: None,
        };
        let detail = resolution_detail(row, resolve, before.map(|before| &before.record));
        self.audit(asked, &apply, (seq, code), detail);
    }

    /// Keeps the conflicts of a record as they are, to be put back if the group of items fails.
    fn remember_conflicts(&self, key: &RowKey, savepoint: &mut Savepoint) {
        let rows = self.state.conflicts.get(key).cloned().unwrap_or_default();
        savepoint.conflicts.push((key.clone(), rows));
    }

    /// Writes a conflict and its record under the kind `$conflicts`, which is deleted once the conflict is decided.
    fn write_conflict(
        &mut self,
        key: &RowKey,
        mut row: ConflictRow,
        savepoint: Option<&mut Savepoint>,
    ) -> ConflictRow {
        let own = RowKey {
            tenant: key.tenant,
            kind: conflicts_kind(),
            id: RecordId::new(row.conflict_id.as_str()).expect("a conflict's name is short"),
        };
        // The row as it is stored tells in which scope its record was until now.
        let stored = self.state.conflicts.get(key).and_then(|rows| {
            rows.iter().find(|known| known.conflict_id == row.conflict_id && known.seq > Seq::ZERO)
        });
        if let Some(stored) = stored
            && self.state.rows.get(&own).is_none_or(Option::is_none)
        {
            let before = self.conflict_row(key.tenant, stored, stored.seq);
            self.state.rows.insert(own.clone(), Some(before));
        }
        row.seq = self.context(key.tenant).next;
        let kept = self.conflict_row(key.tenant, &row, row.seq);
        let kept = Kept {
            key: own,
            scope: kept.scope,
            owner: kept.owner,
            schema_version: 0,
            record: kept.record,
            device: None,
            announce: None,
        };
        self.keep(kept, savepoint);
        let rows = self.state.conflicts.entry(key.clone()).or_default();
        match rows.iter_mut().find(|known| known.conflict_id == row.conflict_id) {
            Some(known) => *known = row.clone(),
            None => rows.push(row.clone()),
        }
        let named = (key.clone(), row.conflict_id.clone());
        if !self.reviewed.contains(&named) {
            self.reviewed.push(named);
        }
        row
    }

    /// The record of a conflict at a version.
    fn conflict_row(&self, tenant: TenantNo, row: &ConflictRow, seq: Seq) -> Row {
        let context = self.context(tenant);
        let mark = Mark { fv: seq, hlc: context.received, device: row.device, n: row.n };
        let mut record = Record::created(conflict_fields(row), mark);
        let deleted = !row.status.is_open();
        if deleted {
            record.del = Some(Mark { hlc: mark.hlc.successor(), ..mark });
        }
        Row {
            kind: conflicts_kind(),
            id: RecordId::new(row.conflict_id.as_str()).expect("a conflict's name is short"),
            scope: row.scope.clone(),
            entered: seq,
            owner: row.device_key.user().into(),
            schema_version: 0,
            deleted,
            record,
        }
    }

    /// Lists what the group did to conflicts, and has it written.
    pub(super) fn settle_reviews(&mut self) -> Vec<(TenantNo, CommittedConflict)> {
        let mut told = Vec::new();
        for (key, conflict_id) in std::mem::take(&mut self.reviewed) {
            let rows = self.state.conflicts.get(&key);
            let row = rows.and_then(|rows| rows.iter().find(|row| row.conflict_id == conflict_id));
            // A group of items that failed took its conflicts back.
            let Some(row) = row.cloned() else { continue };
            let record = self.state.rows.get(&key).and_then(Option::as_ref);
            let record = record.map(|record| view(&record.record, record.deleted));
            self.out.writes.conflicts.push((key.tenant, row.clone()));
            told.push((key.tenant, CommittedConflict { row, record }));
        }
        told
    }
}

fn unresolved(resolved: Resolved) -> SubmissionResult {
    // A decision that was not carried out leaves nothing to be remembered.
    SubmissionResult { resolved: Some(Box::new(resolved)), ..SubmissionResult::of(ItemCode::RetryLater) }
}

/// Whether a reviewer's change was carried out, or had nothing to do.
fn matters(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Applied | Outcome::Merged | Outcome::Noop | Outcome::Superseded)
}

/// Takes a change, or some of its fields, into a conflict. Of two values of a field the one of the change with the
/// greater number counts.
fn join(row: &mut ConflictRow, asked: Asked<'_>, apply: &Apply, fields: &[Box<str>]) {
    let wanted = |name: &str| fields.is_empty() || fields.iter().any(|field| **field == *name);
    let number = |name: &str| row.client_ns.get(name).and_then(|n| n.parse::<u64>().ok());
    let mut names: Vec<&str> = row.client.iter().map(|(name, _)| name).collect();
    names.extend(apply.fields.iter().map(|(name, _)| name).filter(|name| wanted(name)));
    names.sort_by(|a, b| key_cmp(a, b));
    names.dedup();
    let (mut client, mut client_ns) = (ObjectBuilder::default(), ObjectBuilder::default());
    for name in names {
        let held = row.client.get(name).map(|value| (number(name).unwrap_or(0), value));
        let brought = apply.fields.get(name).filter(|_| wanted(name)).map(|value| (asked.n, value));
        let newest = held.into_iter().chain(brought).max_by_key(|(n, _)| *n);
        if let Some((n, value)) = newest {
            client.push(name, value);
            client_ns.push(name, &n.to_string());
        }
    }
    (row.client, row.client_ns) = (client.finish(), client_ns.finish());
    let later = asked.n >= row.n;
    row.fields.extend(fields.iter().filter(|field| !row.fields.contains(field)).cloned().collect::<Vec<_>>());
    row.fields.sort_by(|a, b| key_cmp(a, b));
    if later {
        (row.n, row.op_id) = (asked.n, asked.entry.op_id.clone());
        row.op = match (row.op, apply.op) {
            (_, Op::Delete) => Op::Delete,
            (Op::Delete, op) => op,
            (op, _) => op,
        };
    }
}

/// The values of one object under the names of another.
fn picked(from: &Object, names: &Object) -> Object {
    let mut built = ObjectBuilder::default();
    for (name, _) in names.iter() {
        if let Some(value) = from.get(name) {
            built.push(name, value);
        }
    }
    built.finish()
}

/// What the author had seen of the fields that wait: what it says itself, else what has not changed since its base.
fn seen_values(apply: &Apply, record: &Record, fields: &[Box<str>]) -> Object {
    let mut built = ObjectBuilder::default();
    for (name, _) in apply.fields.iter() {
        if !fields.is_empty() && !fields.iter().any(|field| **field == *name) {
            continue;
        }
        let said = apply.intents.as_ref().and_then(|intents| intents.previous.get(name));
        let unchanged = record.mark(name).filter(|mark| mark.fv <= apply.base);
        if let Some(value) = said.or_else(|| record.fields.get(name).filter(|_| unchanged.is_some())) {
            built.push(name, value);
        }
    }
    built.finish()
}
