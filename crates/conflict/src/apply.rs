//! The decision on one change.

mod account;
mod check;
mod escalation;
mod existence;
mod fields;
mod joins;

use std::cmp::Ordering;

use driftline_model::{Object, Seq};

use crate::change::{Change, Context, Op};
use crate::decision::{
    Audit, ChangeError, Decision, Existence, FieldDecision, Outcome, Review, ReviewReason, Stamp,
};
use crate::policy::{OnDelete, Policy, Strategy};
use crate::record::{FieldState, Life, Mark, Record, Write};

/// Applies one change to a record, which may be deleted or not exist.
///
/// A field is in conflict when another device wrote a different value that the change's author had not
/// seen (`fv > base`): a three-way merge for a base of any age, without old bodies. The policy decides
/// conflicts; what its author had seen, or wrote itself, a change overwrites unless the field's rule says otherwise.
#[must_use]
pub fn apply(current: Option<&Record>, change: &Change, policy: &Policy, context: &Context<'_>) -> Decision {
    if let Err(refused) = check::check(change, policy, context) {
        return *refused;
    }
    let stamp = effective(change, context);
    let Some(record) = current else {
        return match change.op {
            Op::Create => create(change, policy, context, stamp),
            Op::Patch | Op::Delete | Op::Restore => Decision::refused(Outcome::Gone),
        };
    };
    if change.base > record.version {
        return Decision::refused(Outcome::ClientAhead);
    }
    let record = existence::suited(record, policy, context);
    let deleted = record.is_deleted(context.devices);
    let mut merge = Merge::new(&record, change, policy, context, stamp);
    match change.op {
        Op::Delete if deleted => merge.delete_again(),
        Op::Delete => merge.delete(),
        Op::Create if deleted && merge.saw_delete() => merge.restore(),
        Op::Patch if deleted && merge.saw_delete() => return Decision::refused(Outcome::Gone),
        Op::Restore if deleted && merge.saw_delete() => merge.restore(),
        // A create of what exists has seen as much of it as its base says: nothing, unless its author knew a tombstone
        // that another device has brought back in the meantime. What it knew cannot depend on who arrives first.
        Op::Create | Op::Patch | Op::Restore if deleted => merge.update_deleted(),
        Op::Create | Op::Patch | Op::Restore => merge.update(),
    }
    merge.finish()
}

/// The clock that counts: the device's own, held at the latest that is taken at its word.
fn effective(change: &Change, context: &Context<'_>) -> Stamp {
    Stamp { raw: change.hlc, effective: change.hlc.map_or(context.received, |raw| raw.min(context.latest)) }
}

fn create(change: &Change, policy: &Policy, context: &Context<'_>, stamp: Stamp) -> Decision {
    let mark = Mark { fv: context.next, hlc: stamp.effective, device: change.device, n: change.n };
    if change.intents.is_none() && policy.strategy.fields().is_empty() {
        return created(Record::created(change.fields.clone(), mark), stamp, Vec::new());
    }
    // By its rules, every field is written to a record without fields.
    let empty = Record::created(Object::empty(), mark);
    let mut merge = Merge::new(&empty, change, policy, context, stamp);
    merge.write_fields();
    if !merge.errors.is_empty() {
        return Decision::invalid(merge.errors);
    }
    let fields = empty.written(&merge.writes, &[]).fields;
    created(Record::created(fields, mark), stamp, merge.fields)
}

fn created(record: Record, stamp: Stamp, lost: Vec<FieldDecision>) -> Decision {
    let outcome = if lost.is_empty() { Outcome::Applied } else { Outcome::Merged };
    let told = stamp.is_clamped() || !lost.is_empty();
    let audit = Audit { stamp, version_before: Seq::ZERO, fields: lost, existence: None };
    let audit = told.then_some(audit);
    Decision { record: Some(record), audit, ..Decision::refused(outcome) }
}

/// One change being merged into one record.
struct Merge<'a> {
    record: &'a Record,
    change: &'a Change,
    policy: &'a Policy,
    context: &'a Context<'a>,
    stamp: Stamp,
    base: Seq,
    /// The mark that the change's writes get unless they follow one they had seen.
    mark: Mark,
    writes: Vec<Write<'a>>,
    /// States of merging fields that change; none: the field needs none any more.
    states: Vec<(&'a str, Option<FieldState>)>,
    del: Option<Mark>,
    live: Mark,
    /// What decides about existence afterwards, where it changes.
    life: Option<Life>,
    fields: Vec<FieldDecision>,
    existence: Option<Existence>,
    review: Option<Review>,
    errors: Vec<ChangeError>,
    conflict: bool,
    /// Whether the change weighed in on a field, even where it lost: that depends on the order of arrival.
    touched: bool,
    /// Parts of the change that do not stand.
    lost: bool,
    /// Whether the author can see an effect although parts lost.
    visible: bool,
    /// Whether the assertions of an ordered field were cut to their limit.
    collapsed: bool,
}

impl<'a> Merge<'a> {
    fn new(
        record: &'a Record,
        change: &'a Change,
        policy: &'a Policy,
        context: &'a Context<'a>,
        stamp: Stamp,
    ) -> Self {
        let mark = Mark { fv: context.next, hlc: stamp.effective, device: change.device, n: change.n };
        Self {
            record,
            change,
            policy,
            context,
            stamp,
            base: change.base,
            mark,
            writes: Vec::with_capacity(change.fields.len()),
            states: Vec::new(),
            del: record.del,
            live: record.live,
            life: None,
            fields: Vec::new(),
            existence: None,
            review: None,
            errors: Vec::new(),
            conflict: false,
            touched: false,
            lost: false,
            visible: false,
            collapsed: false,
        }
    }

    // What the author knew.

    /// Another device's write that the author had not seen.
    fn concurrent(&self, mark: &Mark) -> bool {
        mark.fv > self.base && mark.device != self.change.device
    }

    /// Whether another device changed the field since the author saw it.
    fn concurrent_field(&self, name: &str, mark: &Mark) -> bool {
        if mark.device != self.change.device {
            return mark.fv > self.base;
        }
        self.record.state(name).is_some_and(|state| state.others > self.base)
    }

    /// A later write of the same device, which overtook this change on the way.
    fn own_newer(&self, mark: &Mark) -> bool {
        mark.device == self.change.device && mark.n > self.change.n
    }

    /// A write that the author had seen, or made itself before.
    fn seen(&self, mark: &Mark) -> bool {
        if mark.device == self.change.device { mark.n < self.change.n } else { mark.fv <= self.base }
    }

    fn any_concurrent(&self) -> bool {
        self.record.version > self.base
            && (self.record.all_marks().any(|mark| self.concurrent(&mark))
                || self.record.states.iter().any(|(_, state)| state.others > self.base))
    }

    // Marks.

    /// The mark of a write that follows one its author had seen.
    fn after(&self, seen: &Mark) -> Mark {
        Mark { hlc: self.mark.hlc.max(seen.hlc.successor()), ..self.mark }
    }

    fn newer(&self, a: &Mark, b: &Mark) -> bool {
        a.order(b, self.context.devices) == Ordering::Greater
    }

    // The result.

    fn set_aside(&mut self, reason: ReviewReason, field: Option<&str>) {
        let review = self.review.get_or_insert_with(|| Review { reason, fields: Vec::new() });
        if review.reason == ReviewReason::Manual {
            review.reason = reason;
        }
        review.fields.extend(field.map(Box::from));
    }

    fn finish(mut self) -> Decision {
        if !self.errors.is_empty() {
            return Decision::invalid(self.errors);
        }
        let concurrent = self.any_concurrent();
        self.settle_life();
        self.account_fallen();
        let record = self.changed_record();
        let outcome = self.outcome(record.is_some(), concurrent);
        let decided = self.conflict || !self.fields.is_empty() || self.existence.is_some();
        let decided = decided || self.stamp.is_clamped() || self.review.is_some();
        let audit = decided.then(|| Audit {
            stamp: self.stamp,
            version_before: self.record.version,
            fields: std::mem::take(&mut self.fields),
            existence: self.existence,
        });
        Decision {
            outcome,
            record,
            audit,
            conflict: self.conflict,
            review: self.review,
            errors: Vec::new(),
            collapsed: self.collapsed,
        }
    }

    fn outcome(&self, changed: bool, concurrent: bool) -> Outcome {
        match self.review.as_ref().map(|review| review.reason) {
            Some(ReviewReason::Manual) if self.writes.is_empty() && !self.visible => {
                return Outcome::ConflictPending;
            }
            Some(_) => return Outcome::Merged,
            None => {}
        }
        let visible = self.visible || self.existence.is_none() && !self.writes.is_empty() && !self.hidden();
        match (changed, self.lost) {
            (_, true) if !visible => Outcome::Superseded,
            (false, _) => Outcome::Noop,
            (true, lost) if lost || concurrent || self.conflict => Outcome::Merged,
            (true, _) => Outcome::Applied,
        }
    }

    fn changed_record(&self) -> Option<Record> {
        let life = self.life.as_ref().unwrap_or(&self.record.life);
        let same = self.del == self.record.del && self.live == self.record.live && *life == self.record.life;
        if self.writes.is_empty() && self.states.is_empty() && same {
            return None;
        }
        let mut record = self.record.written(&self.writes, &self.states);
        (record.version, record.del, record.live) = (self.context.next, self.del, self.live);
        record.life = life.clone();
        Some(record)
    }
}

/// How existence is decided under a policy, beside the clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LifeRule {
    Clocks,
    Urgent,
    Writes,
    Deletes,
}

impl LifeRule {
    fn of(policy: &Policy) -> Self {
        match &policy.strategy {
            Strategy::PreserveEscalation { .. } => Self::Urgent,
            Strategy::FieldMerge { on_delete: OnDelete::UpdateWins, .. } => Self::Writes,
            Strategy::FieldMerge { on_delete: OnDelete::DeleteWins, .. } => Self::Deletes,
            _ => Self::Clocks,
        }
    }
}
