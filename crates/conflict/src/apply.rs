//! The decision on one change.

use std::cmp::Ordering;

use driftline_model::{Hlc, Seq};

use crate::change::{Change, Context, Op};
use crate::decision::{Audit, Decision, Existence, FieldDecision, Outcome, Rule, Stamp, Winner};
use crate::policy::{DeletedRecord, FieldRule, Granularity, Policy, Strategy};
use crate::record::{Mark, Record, Write};

/// Applies one change to a record, which may be deleted or not exist.
///
/// A field is in conflict when another device wrote a different value that the change's author had not
/// seen (`fv > base`): a three-way merge for a base of any age, without old bodies. The policy decides
/// conflicts; what its author had seen, or wrote itself, a change always overwrites.
#[must_use]
pub fn apply(current: Option<&Record>, change: &Change, policy: &Policy, context: &Context<'_>) -> Decision {
    let stamp = effective(change.hlc, context);
    let Some(record) = current else {
        return match change.op {
            Op::Create => create(change, stamp, context),
            Op::Patch | Op::Delete | Op::Restore => Decision::refused(Outcome::Gone),
        };
    };
    if change.base > record.version {
        return Decision::refused(Outcome::ClientAhead);
    }
    let deleted = record.is_deleted(context.devices);
    let mut merge = Merge::new(record, change, policy, context, stamp);
    match change.op {
        Op::Delete if deleted => merge.delete_again(),
        Op::Delete => merge.delete(),
        Op::Create if deleted && merge.saw_delete() => merge.restore(),
        // A create of what exists has seen nothing of it.
        Op::Create => {
            merge.base = Seq::ZERO;
            if deleted { merge.update_deleted() } else { merge.update() }
        }
        Op::Patch if deleted && merge.saw_delete() => return Decision::refused(Outcome::Gone),
        Op::Restore if deleted && merge.saw_delete() => merge.restore(),
        Op::Patch | Op::Restore if deleted => merge.update_deleted(),
        Op::Patch | Op::Restore => merge.update(),
    }
    merge.finish()
}

/// The clock that counts: the device's own, held at the latest that is taken at its word.
fn effective(raw: Option<Hlc>, context: &Context<'_>) -> Stamp {
    Stamp { raw, effective: raw.map_or(context.received, |raw| raw.min(context.latest)) }
}

fn create(change: &Change, stamp: Stamp, context: &Context<'_>) -> Decision {
    let mark = Mark { fv: context.next, hlc: stamp.effective, device: change.device, n: change.n };
    let audit = stamp.is_clamped().then(|| Audit {
        stamp,
        version_before: Seq::ZERO,
        fields: Vec::new(),
        existence: None,
    });
    let record = Some(Record::created(change.fields.clone(), mark));
    Decision { outcome: Outcome::Applied, record, audit, conflict: false, review: None, errors: Vec::new() }
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
    del: Option<Mark>,
    live: Mark,
    fields: Vec<FieldDecision>,
    existence: Option<Existence>,
    conflict: bool,
    /// Parts of the change that do not stand.
    lost: bool,
    /// Whether the author can see an effect although parts lost.
    visible: bool,
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
            del: record.del,
            live: record.live,
            fields: Vec::new(),
            existence: None,
            conflict: false,
            lost: false,
            visible: false,
        }
    }

    // What the author knew.

    /// Another device's write that the author had not seen.
    fn concurrent(&self, mark: &Mark) -> bool {
        mark.fv > self.base && mark.device != self.change.device
    }

    /// A later write of the same device, which overtook this change on the way.
    fn own_newer(&self, mark: &Mark) -> bool {
        mark.device == self.change.device && mark.n > self.change.n
    }

    /// Whether the author knew of the delete: by its base, or because it is its own earlier one.
    fn saw_delete(&self) -> bool {
        self.record.del.is_some_and(|del| {
            !self.own_newer(&del) && (del.fv <= self.change.base || del.device == self.change.device)
        })
    }

    fn any_concurrent(&self) -> bool {
        self.record.version > self.base && self.record.all_marks().any(|mark| self.concurrent(&mark))
    }

    // Marks.

    /// The mark of a write that follows one its author had seen.
    fn after(&self, seen: &Mark) -> Mark {
        Mark { hlc: self.mark.hlc.max(seen.hlc.successor()), ..self.mark }
    }

    fn newer(&self, a: &Mark, b: &Mark) -> bool {
        a.order(b, self.context.devices) == Ordering::Greater
    }

    /// Whether the change says that the record lives: by a write, or because that is what it asks for.
    fn asserts_existence(&self) -> bool {
        match self.change.op {
            Op::Restore => true,
            Op::Create => !self.writes.is_empty() || self.change.fields.is_empty(),
            Op::Patch | Op::Delete => !self.writes.is_empty(),
        }
    }

    /// Raises the clock of the last write by this change.
    fn raise_live(&mut self) {
        let live = self.record.live;
        if self.own_newer(&live) {
            return;
        }
        let raised = if self.concurrent(&live) { self.mark } else { self.after(&live) };
        if self.newer(&raised, &live) {
            self.live = raised;
        }
    }

    // The operations.

    /// Writes to a record that is not deleted.
    fn update(&mut self) {
        let whole = self.policy.strategy.granularity() == Granularity::Record && self.any_concurrent();
        if whole && matches!(self.policy.strategy, Strategy::ServerWins { .. }) {
            self.conflict = true;
            return self.supersede_fields(Rule::ServerWins);
        }
        self.conflict |= whole;
        self.write_fields();
        if self.asserts_existence() {
            self.raise_live();
        }
    }

    /// Brings back a record whose delete the author had seen.
    fn restore(&mut self) {
        self.write_fields();
        let live = self.record.live;
        let raised = if self.own_newer(&live) { live } else { self.after(&live) };
        self.live = raised;
        if let Some(del) = self.record.del.filter(|del| !self.newer(&self.live, del)) {
            self.live = self.after(&del);
        }
        self.visible = true;
    }

    /// Writes to a record that another device deleted, unseen by the author, or that its own later delete removed.
    fn update_deleted(&mut self) {
        let Some(del) = self.record.del else { return };
        if self.own_newer(&del) {
            self.write_fields();
            self.lost = true;
            // Its own later delete stands, also when the device's clock went back in between.
            if self.asserts_existence() && self.newer(&del, &self.mark) {
                self.raise_live();
            }
            return;
        }
        self.conflict = true;
        let (rule, undelete) = match &self.policy.strategy {
            Strategy::ServerWins { .. } => {
                self.settle_existence(del, Winner::Server, Rule::ServerWins, true);
                return self.supersede_fields(Rule::ServerWins);
            }
            Strategy::ClientWins { deleted: DeletedRecord::StaysDeleted, .. } => {
                self.write_fields();
                self.account_hidden(Rule::ServerWins);
                return self.settle_existence(del, Winner::Server, Rule::ServerWins, true);
            }
            Strategy::ClientWins { deleted: DeletedRecord::Restored, .. } => (Rule::ClientWins, true),
            _ => (Rule::MostRecent, false),
        };
        self.write_fields();
        if self.asserts_existence() {
            self.raise_live();
            if undelete && !self.newer(&self.live, &del) {
                self.live = self.after(&del);
            }
        }
        if self.newer(&self.live, &del) {
            self.visible = true;
            self.settle_existence(del, Winner::Client, rule, false);
        } else {
            self.account_hidden(rule);
            self.settle_existence(del, Winner::Server, rule, true);
        }
    }

    fn delete(&mut self) {
        let live = self.record.live;
        let overtaken = self.record.all_marks().any(|mark| self.own_newer(&mark));
        let clash = self.any_concurrent();
        self.conflict = clash;
        let rule = match &self.policy.strategy {
            _ if overtaken => Rule::OwnNewer,
            Strategy::ServerWins { .. } if clash => {
                return self.settle_existence(live, Winner::Server, Rule::ServerWins, false);
            }
            Strategy::MostRecentWins | Strategy::FieldMerge { .. } if clash => Rule::MostRecent,
            _ => Rule::ClientWins,
        };
        // The device's later change stands, also when its clock went back in between or it has none.
        if overtaken && self.newer(&self.mark, &live) {
            return self.settle_existence(live, Winner::Server, rule, false);
        }
        let wanted = if rule == Rule::ClientWins { self.after(&live) } else { self.mark };
        self.raise_del(wanted);
        if !clash && !overtaken {
            return;
        }
        if self.del.is_some_and(|del| self.newer(&del, &live)) {
            self.account_deleted(rule);
            self.settle_existence(live, Winner::Client, rule, true);
        } else {
            self.settle_existence(live, Winner::Server, rule, false);
        }
    }

    /// Deletes what is deleted: only the clock may move.
    fn delete_again(&mut self) {
        let Some(del) = self.record.del else { return };
        if self.own_newer(&del) {
            return;
        }
        let wanted = if self.concurrent(&del) { self.mark } else { self.after(&del) };
        self.raise_del(wanted);
    }

    fn raise_del(&mut self, wanted: Mark) {
        if self.record.del.is_none_or(|del| self.newer(&wanted, &del)) {
            self.del = Some(wanted);
        }
    }

    // Fields.

    fn write_fields(&mut self) {
        let change: &'a Change = self.change;
        for (name, value) in change.fields.iter() {
            self.write_field(name, value);
        }
    }

    fn write_field(&mut self, name: &'a str, value: &'a str) {
        let (Some(stored), Some(mark)) = (self.record.fields.get(name), self.record.mark(name)) else {
            return self.writes.push(Write { name, value: Some(value), mark: self.mark });
        };
        let same = stored == value;
        if self.own_newer(&mark) {
            self.lost = true;
            if !same {
                self.account(name, Some(value), stored, mark, Winner::Server, Rule::OwnNewer);
            }
            return;
        }
        if !self.concurrent(&mark) {
            return self.writes.push(Write {
                name,
                value: (!same).then_some(value),
                mark: self.after(&mark),
            });
        }
        if same {
            if self.newer(&self.mark, &mark) {
                self.writes.push(Write { name, value: None, mark: self.mark });
            }
            return;
        }
        self.conflict = true;
        let (winner, rule, won) = self.decide(name, &mark);
        self.account(name, Some(value), stored, mark, winner, rule);
        match winner {
            Winner::Client => self.writes.push(Write { name, value: Some(value), mark: won }),
            Winner::Server | Winner::Merged | Winner::Held => self.lost = true,
        }
    }

    /// Decides a field that two devices wrote; gives the mark that the client's value gets if it wins.
    fn decide(&self, name: &str, stored: &Mark) -> (Winner, Rule, Mark) {
        match &self.policy.strategy {
            Strategy::ClientWins { .. } => (Winner::Client, Rule::ClientWins, self.after(stored)),
            Strategy::ServerWins { .. } => (Winner::Server, Rule::ServerWins, self.mark),
            _ if !matches!(self.policy.strategy, Strategy::FieldMerge { .. }) => self.most_recent(stored),
            Strategy::FieldMerge { fields, .. } => {
                let rule = fields
                    .iter()
                    .find(|(field, _)| **field == *name)
                    .map_or(FieldRule::Lww, |(_, rule)| rule.clone());
                let _ = rule;
                self.most_recent(stored)
            }
            _ => self.most_recent(stored),
        }
    }

    fn most_recent(&self, stored: &Mark) -> (Winner, Rule, Mark) {
        let winner = if self.newer(&self.mark, stored) { Winner::Client } else { Winner::Server };
        (winner, Rule::MostRecent, self.mark)
    }

    // The account.

    fn account(
        &mut self,
        name: &str,
        client: Option<&str>,
        server: &str,
        mark: Mark,
        winner: Winner,
        rule: Rule,
    ) {
        self.fields.push(FieldDecision {
            name: name.into(),
            client: client.map(Box::from),
            server: server.into(),
            server_mark: mark,
            winner,
            rule,
        });
    }

    /// Refuses every touched field.
    fn supersede_fields(&mut self, rule: Rule) {
        self.lost = true;
        let record = self.record;
        let change: &'a Change = self.change;
        for (name, value) in change.fields.iter() {
            let stored = record.fields.get(name);
            if stored != Some(value) {
                let mark = record.mark(name).unwrap_or(record.live);
                self.account(name, Some(value), stored.unwrap_or("null"), mark, Winner::Server, rule);
            }
        }
    }

    /// Accounts for values that went into the body of a record that stays deleted.
    fn account_hidden(&mut self, rule: Rule) {
        let hidden: Vec<_> =
            self.writes.iter().filter_map(|write| Some((write.name, write.value?))).collect();
        for (name, value) in hidden {
            if self.fields.iter().any(|field| *field.name == *name) {
                continue;
            }
            let mark = self.record.del.unwrap_or(self.record.live);
            let stored = self.record.fields.get(name).unwrap_or("null");
            self.account(name, Some(value), stored, mark, Winner::Server, rule);
        }
        // A value that won its field is hidden all the same.
        for field in self.fields.iter_mut().filter(|field| field.winner == Winner::Client) {
            (field.winner, field.rule) = (Winner::Server, rule);
        }
        self.fields.sort_by(|a, b| driftline_model::key_cmp(&a.name, &b.name));
    }

    /// Accounts for unseen values of other devices that a delete hides.
    fn account_deleted(&mut self, rule: Rule) {
        for (name, value, mark) in self.record.fields() {
            if self.concurrent(&mark) {
                self.account(name, None, value, mark, Winner::Client, rule);
            }
        }
    }

    fn settle_existence(&mut self, server_mark: Mark, winner: Winner, rule: Rule, deleted: bool) {
        self.lost |= winner == Winner::Server;
        self.existence = Some(Existence { server_mark, winner, rule, deleted });
    }

    fn finish(mut self) -> Decision {
        let concurrent = self.any_concurrent();
        let record = self.changed_record();
        let visible = self.visible || self.existence.is_none() && !self.writes.is_empty() && !self.hidden();
        let outcome = match (&record, self.lost) {
            (_, true) if !visible => Outcome::Superseded,
            (None, _) => Outcome::Noop,
            (Some(_), lost) if lost || concurrent || self.conflict => Outcome::Merged,
            (Some(_), _) => Outcome::Applied,
        };
        let decided = self.conflict || !self.fields.is_empty() || self.existence.is_some();
        let decided = decided || self.stamp.is_clamped();
        let audit = decided.then(|| Audit {
            stamp: self.stamp,
            version_before: self.record.version,
            fields: std::mem::take(&mut self.fields),
            existence: self.existence,
        });
        Decision { outcome, record, audit, conflict: self.conflict, review: None, errors: Vec::new() }
    }

    /// Whether the record is deleted after the change.
    fn hidden(&self) -> bool {
        self.del.is_some_and(|del| self.newer(&del, &self.live))
    }

    fn changed_record(&self) -> Option<Record> {
        if self.writes.is_empty() && self.del == self.record.del && self.live == self.record.live {
            return None;
        }
        let mut record = self.record.written(&self.writes);
        (record.version, record.del, record.live) = (self.context.next, self.del, self.live);
        Some(record)
    }
}
