//! The account of every accepted value.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use super::account::{Account, Entry};
use super::history::{Audit, Conflict, History, Item, Op, Record};

/// What the verifier found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Values that were accepted; a delete counts as one.
    pub values: u64,
    /// Values that can be seen in the end.
    pub visible: u64,
    /// Values that were overwritten, removed or deleted by somebody who had seen them.
    pub overwritten: u64,
    /// Values that stand in an audit row.
    pub audited: u64,
    /// Values that wait or waited for a reviewer.
    pub held: u64,
    /// Values that are nowhere.
    pub silent_losses: Vec<Loss>,
}

/// A value that disappeared without a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// The record.
    pub record: String,
    /// The field; empty: the record's existence.
    pub field: String,
    /// The value, JSON; of an increment its number with its sign, of a delete `delete`.
    pub value: String,
    /// Who wrote it.
    pub device: String,
    /// The author's number of the item.
    pub n: u64,
    /// What was looked for and not found.
    pub why: String,
}

/// Finds the accepted values that disappeared without being visible, overwritten by a write that had seen them, in an
/// audit row or before a reviewer.
#[must_use]
pub fn verify(history: &History) -> Report {
    let mut report = Report::default();
    let mut records: BTreeMap<&str, Vec<&Item>> = BTreeMap::new();
    for item in history.items.iter().filter(|item| accepted(&item.code)) {
        records.entry(&item.record).or_default().push(item);
    }
    for (record, items) in records {
        Ledger::new(history, record, items).close(&mut report);
    }
    report
}

/// Whether a server that answers this has promised to keep the value.
fn accepted(code: &str) -> bool {
    matches!(code, "applied" | "merged" | "noop" | "superseded" | "conflict_pending")
}

/// One thing that somebody was promised.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    /// The place of its item.
    pub(super) at: usize,
    pub(super) field: &'a str,
    pub(super) what: What<'a>,
    /// A value written over an equal one is the same value, seen by whoever saw either; so is a delete of what is
    /// deleted.
    pub(super) group: usize,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum What<'a> {
    /// The field has this value.
    Value(&'a Value),
    /// The counter is that much higher.
    Increment(i64),
    /// The set or list holds this element.
    Element(&'a Value),
    /// The record is no more.
    Delete,
}

/// Where a value went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Visible,
    Overwritten,
    Audited,
    Held,
    Lost,
}

/// The items of one record with what is said of them.
pub(super) struct Ledger<'a> {
    record: &'a str,
    pub(super) items: Vec<&'a Item>,
    pub(super) accounts: Vec<Account>,
    claims: Vec<Claim<'a>>,
    /// The values that an item with a row found in place, by the item's place and the value's group.
    pub(super) met: BTreeSet<(usize, usize)>,
    /// What waits or waited for a reviewer.
    pub(super) conflicts: Vec<&'a Conflict>,
    /// The audit rows of reviewers' decisions.
    pub(super) decisions: Vec<&'a Audit>,
    pub(super) end: Option<&'a Record>,
    gathering: &'a [String],
}

impl<'a> Ledger<'a> {
    fn new(history: &'a History, record: &'a str, items: Vec<&'a Item>) -> Self {
        let places: BTreeMap<_, _> =
            items.iter().enumerate().map(|(at, item)| ((&*item.device, item.n), at)).collect();
        let mut accounts: Vec<Account> = items.iter().map(|_| Account::default()).collect();
        let rows = history.audits.iter().filter(|audit| audit.record == record);
        let (decisions, rows): (Vec<_>, Vec<_>) = rows.partition(|audit| audit.detail["op"] == "resolve");
        for audit in rows {
            if let Some(&at) = places.get(&(&*audit.device, audit.n)) {
                accounts[at].read(audit);
            }
        }
        let conflicts = history.conflicts.iter().filter(|conflict| conflict.record == record).collect();
        let end = history.records.iter().find(|end| end.record == record && !end.deleted);
        let gathering = &history.gathering;
        let (claims, met) = (Vec::new(), BTreeSet::new());
        let mut ledger = Self { record, items, accounts, claims, met, conflicts, decisions, end, gathering };
        ledger.claim_all();
        ledger
    }

    /// Enters what every item promises.
    fn claim_all(&mut self) {
        // The value of each field as the decisions in the audit make it, with the claims that hold it.
        let mut current: BTreeMap<&str, (&Value, usize)> = BTreeMap::new();
        let (mut groups, mut dead) = (0, None);
        for at in 0..self.items.len() {
            let item = self.items[at];
            if self.lives_after(at) {
                dead = None;
            }
            if item.op == Op::Delete {
                let group = dead.unwrap_or_else(|| {
                    groups += 1;
                    groups
                });
                dead = self.deletes(at).then_some(group).or(dead);
                self.claims.push(Claim { at, field: "", what: What::Delete, group });
            }
            let found = self.accounts[at].names().filter_map(|name| current.get(name));
            self.met.extend(found.map(|(_, group)| (at, *group)));
            for (field, value) in &item.fields {
                if self.gathers(field) || value.is_array() && self.gathered(field) {
                    let elements = value.as_array().into_iter().flatten();
                    let claims = elements.map(|element| claim(at, field, What::Element(element)));
                    self.claims.extend(claims);
                    continue;
                }
                let equal = current.get(&**field).filter(|(held, _)| *held == value).map(|(_, group)| *group);
                let group = equal.unwrap_or_else(|| {
                    groups += 1;
                    groups
                });
                if self.writes(at, field) {
                    current.insert(field, (value, group));
                }
                self.claims.push(Claim { at, field, what: What::Value(value), group });
            }
            let increments = item.increments.iter().filter(|(_, by)| **by != 0);
            self.claims.extend(increments.map(|(field, by)| claim(at, field, What::Increment(*by))));
            for (field, elements) in &item.add {
                self.claims.extend(elements.iter().map(|element| claim(at, field, What::Element(element))));
            }
        }
    }

    /// Finds out where every value went.
    fn close(&self, report: &mut Report) {
        for claim in &self.claims {
            report.values += 1;
            match self.fate(claim) {
                Fate::Visible => report.visible += 1,
                Fate::Overwritten => report.overwritten += 1,
                Fate::Audited => report.audited += 1,
                Fate::Held => report.held += 1,
                Fate::Lost => report.silent_losses.push(self.loss(claim)),
            }
        }
    }

    fn fate(&self, claim: &Claim<'_>) -> Fate {
        if matches!(claim.what, What::Delete) {
            self.fate_of_delete(claim)
        } else if self.is_visible(claim) {
            Fate::Visible
        } else if let Some(fate) = self.reviewed(claim) {
            fate
        } else if self.is_overwritten(claim) {
            Fate::Overwritten
        } else if self.is_audited(claim) {
            Fate::Audited
        } else {
            Fate::Lost
        }
    }

    fn loss(&self, claim: &Claim<'_>) -> Loss {
        let item = self.items[claim.at];
        let (value, found) = match claim.what {
            What::Value(value) | What::Element(value) => (value.to_string(), "the value".to_owned()),
            What::Increment(by) => {
                let (sure, hidden) = self.sum(claim.field);
                let or = if hidden == 0 { String::new() } else { format!(" or {}", sure + hidden) };
                (format!("{by:+}"), format!("the sum {sure}{or}"))
            }
            What::Delete => ("delete".to_owned(), "the delete".to_owned()),
        };
        let state = match self.end {
            Some(_) if matches!(claim.what, What::Delete) => "a living record".to_owned(),
            Some(end) => end.fields.get(claim.field).map_or("nothing".to_owned(), Value::to_string),
            None => "a deleted record".to_owned(),
        };
        Loss {
            record: self.record.to_owned(),
            field: claim.field.to_owned(),
            value,
            device: item.device.clone(),
            n: item.n,
            why: format!(
                "{found} is not visible (the end shows {state}), nobody who had seen it wrote over it, no audit row \
                 and no conflict names it"
            ),
        }
    }

    // Visible.

    fn is_visible(&self, claim: &Claim<'_>) -> bool {
        let Some(shown) = self.end.and_then(|end| end.fields.get(claim.field)) else { return false };
        match claim.what {
            What::Value(value) => shown == value || self.is_counted(claim, shown),
            What::Element(element) => shown.as_array().is_some_and(|elements| elements.contains(element)),
            // Increments cannot be told apart: they are all visible, or some of them are not.
            What::Increment(_) => self.is_sum(claim.field, shown) && self.counts(claim.at, claim.field),
            What::Delete => false,
        }
    }

    /// Whether a whole value is the start of a counter that shows it with everything that was added.
    fn is_counted(&self, claim: &Claim<'_>, shown: &Value) -> bool {
        let counted = (claim.at..self.items.len()).any(|at| self.counts(at, claim.field));
        counted && self.start(claim.field) == Some(claim.at) && self.is_sum(claim.field, shown)
    }

    /// The last item that set a counter to a value, or made the record without it.
    fn start(&self, field: &str) -> Option<usize> {
        (0..self.items.len()).rev().find(|&at| {
            let whole = self.items[at].fields.contains_key(field) && self.writes(at, field);
            whole || self.items[at].born
        })
    }

    /// Whether a value is what a counter comes to: its start with everything that was added later.
    ///
    /// What was added to a record that stays deleted is added to its hidden fields under most strategies, and shows if
    /// the record is brought back; under one that keeps what is stored it is not.
    fn is_sum(&self, field: &str, shown: &Value) -> bool {
        let (sure, hidden) = self.sum(field);
        shown.as_i64().is_some_and(|shown| shown == sure || shown == sure + hidden)
    }

    /// What a counter comes to, and what was added while the record was deleted.
    fn sum(&self, field: &str) -> (i64, i64) {
        let first = self.start(field).unwrap_or(0);
        let start = self.items[first].fields.get(field).and_then(Value::as_i64).unwrap_or(0);
        let (mut sure, mut hidden) = (start, 0);
        for at in (first..self.items.len()).filter(|&at| self.counts(at, field)) {
            let by = self.items[at].increments[field];
            if self.accounts[at].refused(field) { hidden += by } else { sure += by }
        }
        (sure, hidden)
    }

    /// Whether an item's increment got in, be it into hidden fields.
    fn counts(&self, at: usize, field: &str) -> bool {
        let account = &self.accounts[at];
        self.items[at].increments.contains_key(field)
            && (account.hidden || !account.refused(field))
            && !self.is_pending(at)
    }

    // Overwritten.

    fn is_overwritten(&self, claim: &Claim<'_>) -> bool {
        (0..self.items.len()).any(|at| at != claim.at && self.ends(at, claim) && self.saw_value(at, claim))
    }

    /// Whether an item, if its author had seen a value, ends it.
    fn ends(&self, at: usize, claim: &Claim<'_>) -> bool {
        let item = self.items[at];
        if item.op == Op::Delete {
            return self.deletes(at);
        }
        match claim.what {
            What::Value(value) => {
                let ends = self.writes(at, claim.field) || self.releases(at, claim.field);
                ends && item.fields.get(claim.field) != Some(value) || self.counts(at, claim.field)
            }
            What::Increment(_) => self.writes(at, claim.field),
            What::Delete => false,
            What::Element(element) => {
                let removed = item.remove.get(claim.field).is_some_and(|elements| elements.contains(element));
                let replaced = self.writes(at, claim.field) && !self.gathers(claim.field);
                // Of two list elements with one id one gives way.
                let id = element.get("id");
                let added = item.add.get(claim.field).into_iter().flatten();
                let renewed = id.is_some() && added.clone().any(|other| other.get("id") == id);
                (removed || renewed) && !self.is_pending(at) || replaced
            }
        }
    }

    /// Whether the author of an item had seen a value. What never stood is seen by nobody.
    pub(super) fn saw_value(&self, at: usize, claim: &Claim<'_>) -> bool {
        let saw = |other: &Claim<'_>| !self.was_set_aside(other) && self.saw(at, other.at);
        match claim.what {
            What::Value(_) | What::Delete => self
                .claims
                .iter()
                .filter(|other| other.group == claim.group && other.field == claim.field)
                .any(saw),
            What::Increment(_) | What::Element(_) => saw(claim),
        }
    }

    /// Whether the author of one item knew of another: by its base, or because it is an earlier one of its own.
    pub(super) fn saw(&self, at: usize, other: usize) -> bool {
        let (item, other) = (self.items[at], self.items[other]);
        other.version <= item.base || item.device == other.device && other.n < item.n
    }

    /// Whether an item's whole value got in.
    pub(super) fn writes(&self, at: usize, field: &str) -> bool {
        let carries = self.items[at].fields.contains_key(field);
        carries && !self.accounts[at].refused(field) && !self.is_pending(at)
    }

    /// Whether an item took back what its author had seen of an ordered field, although a value of somebody else keeps
    /// its own from showing.
    fn releases(&self, at: usize, field: &str) -> bool {
        let entry = self.accounts[at].entry(field);
        entry.is_some_and(|entry| entry.rule == "escalation" && !entry.held())
    }

    /// Whether a delete deleted.
    pub(super) fn deletes(&self, at: usize) -> bool {
        let item = self.items[at];
        let done = matches!(item.code.as_str(), "applied" | "merged" | "noop");
        item.op == Op::Delete && done && !self.accounts[at].stays
    }

    /// Whether nothing of an item got in because a reviewer has to decide.
    pub(super) fn is_pending(&self, at: usize) -> bool {
        self.items[at].code == "conflict_pending"
    }

    /// Whether a value waits for a reviewer, alone or with the whole item.
    pub(super) fn waits(&self, at: usize, field: &str) -> bool {
        // Of an item that waits, a field may have been decided at once by another rule; its row says so.
        self.accounts[at].entry(field).map_or(self.is_pending(at), Entry::held)
    }

    /// Whether elements of a field come and go alone, so that a whole value is what it holds.
    fn gathered(&self, field: &str) -> bool {
        self.items.iter().any(|item| item.add.contains_key(field) || item.remove.contains_key(field))
    }

    fn gathers(&self, field: &str) -> bool {
        self.gathering.iter().any(|gathering| gathering == field)
    }
}

fn claim<'a>(at: usize, field: &'a str, what: What<'a>) -> Claim<'a> {
    Claim { at, field, what, group: 0 }
}
