//! An account of every accepted value, kept without the resolver.
//!
//! It knows the inputs, the outcomes, the audits and the states after each step, and shares no code with the
//! merge. A value that was accepted must be visible, or have been overwritten (or deleted) by a change whose
//! author had seen it, or stand in an audit.

use std::collections::BTreeMap;

use driftline_conflict::{Audit, Change, Op, Winner};
use driftline_model::Seq;

use super::accepted;
use super::wild::{Run, Step};

/// A value that somebody was promised.
struct Claim {
    field: String,
    value: String,
    device: u32,
    n: u64,
    /// The version of the record with the value in it.
    version: Seq,
    /// A value written over an equal one is the same value, seen by whoever saw or wrote either.
    group: usize,
    settled: bool,
}

/// A change that took effect, as far as its own audit goes.
struct Effect {
    device: u32,
    n: u64,
    deletes: bool,
    fields: Vec<String>,
}

#[derive(Default)]
struct Ledger {
    claims: Vec<Claim>,
    effects: Vec<Effect>,
    groups: usize,
}

/// Finds values that disappeared silently.
pub(crate) fn audit_of(run: &Run) -> Result<(), String> {
    let mut ledgers: BTreeMap<usize, Ledger> = BTreeMap::new();
    for (at, step) in run.steps.iter().enumerate() {
        let ledger = ledgers.entry(step.input.key).or_default();
        ledger.enter(run, step).map_err(|lost| {
            format!(
                "silently lost {lost} at step {at} under {:?}\n{}",
                run.policy,
                story(run, step.input.key)
            )
        })?;
    }
    Ok(())
}

impl Ledger {
    fn enter(&mut self, run: &Run, step: &Step) -> Result<(), String> {
        if !accepted(step.decision.outcome) {
            return Ok(());
        }
        let change = &step.input.change;
        let audit = step.decision.audit.as_ref();
        let visible = Visible::of(run, step.before.as_ref());
        let visible_after = Visible::of(run, step.after.as_ref());
        if change.op == Op::Delete {
            self.deleted(change, audit, &visible_after);
        } else {
            self.written(step, &visible, &visible_after);
        }
        let shown = |claim: &Claim| visible_after.value(&claim.field) == Some(&*claim.value);
        match self.claims.iter().find(|claim| !claim.settled && !shown(claim)) {
            None => Ok(()),
            Some(lost) => {
                Err(format!("{}={} of device {} n {}", lost.field, lost.value, lost.device, lost.n))
            }
        }
    }

    fn written(&mut self, step: &Step, before: &Visible, after: &Visible) {
        let change = &step.input.change;
        let audit = step.decision.audit.as_ref();
        let version = step.after.as_ref().map_or(Seq::ZERO, |record| record.version);
        let mut effective = Vec::new();
        for (field, value) in change.fields.iter() {
            let entry = audit.and_then(|audit| audit.fields.iter().find(|entry| *entry.name == *field));
            let refused = entry.is_some_and(|entry| entry.winner == Winner::Server);
            if let Some(entry) = entry.filter(|entry| entry.winner == Winner::Client) {
                self.recorded(field, &entry.server);
            }
            if !refused {
                self.overwritten(change, field, value);
                effective.push(field.to_owned());
            }
            let group = self.group(before, field, value);
            let overtaken = self.effects.iter().any(|effect| {
                effect.device == change.device.number()
                    && effect.n > change.n
                    && (effect.deletes || effect.fields.iter().any(|own| own == field))
            });
            let recorded = entry.is_some_and(|entry| {
                entry.winner == Winner::Server && entry.client.as_deref() == Some(value)
            });
            let hidden_and_told = audit.and_then(|audit| audit.existence).is_some_and(|existence| {
                existence.deleted && existence.winner == Winner::Server && after.hidden(field) == Some(value)
            });
            self.claims.push(Claim {
                field: field.to_owned(),
                value: value.to_owned(),
                device: change.device.number(),
                n: change.n,
                version,
                group,
                settled: overtaken || recorded || hidden_and_told,
            });
        }
        self.effects.push(Effect {
            device: change.device.number(),
            n: change.n,
            deletes: false,
            fields: effective,
        });
    }

    fn deleted(&mut self, change: &Change, audit: Option<&Audit>, after: &Visible) {
        if !after.deleted {
            return;
        }
        for entry in audit.iter().flat_map(|audit| &audit.fields) {
            self.recorded(&entry.name, &entry.server);
        }
        let seen = self.groups_seen_by(change);
        for claim in self.claims.iter_mut().filter(|claim| seen.contains(&claim.group)) {
            claim.settled = true;
        }
        self.effects.push(Effect {
            device: change.device.number(),
            n: change.n,
            deletes: true,
            fields: Vec::new(),
        });
    }

    /// A change replaces what its author had seen of a field.
    fn overwritten(&mut self, change: &Change, field: &str, value: &str) {
        let seen = self.groups_seen_by(change);
        for claim in &mut self.claims {
            if claim.field == field && claim.value != value && seen.contains(&claim.group) {
                claim.settled = true;
            }
        }
    }

    /// An audit names a value that lost.
    fn recorded(&mut self, field: &str, value: &str) {
        for claim in &mut self.claims {
            if claim.field == field && claim.value == value {
                claim.settled = true;
            }
        }
    }

    fn groups_seen_by(&self, change: &Change) -> Vec<usize> {
        let seen = |claim: &&Claim| {
            let own = claim.device == change.device.number() && claim.n < change.n;
            own || claim.version <= change.base
        };
        self.claims.iter().filter(seen).map(|claim| claim.group).collect()
    }

    /// Finds the value that the body held already, visible or hidden.
    fn group(&mut self, before: &Visible, field: &str, value: &str) -> usize {
        let equal = |claim: &&Claim| claim.field == field && claim.value == value;
        if before.fields.get(field).is_some_and(|held| held == value)
            && let Some(claim) = self.claims.iter().rev().find(equal)
        {
            return claim.group;
        }
        self.groups += 1;
        self.groups
    }
}

/// What a reader sees of a record.
struct Visible {
    deleted: bool,
    fields: BTreeMap<String, String>,
}

impl Visible {
    fn of(run: &Run, record: Option<&driftline_conflict::Record>) -> Self {
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            deleted: record.is_some_and(|record| record.is_deleted(&run.devices)),
            fields: record.map(|record| record.fields.iter().map(own).collect()).unwrap_or_default(),
        }
    }

    fn value(&self, field: &str) -> Option<&str> {
        if self.deleted { None } else { self.fields.get(field).map(String::as_str) }
    }

    fn hidden(&self, field: &str) -> Option<&str> {
        if self.deleted { self.fields.get(field).map(String::as_str) } else { None }
    }
}

/// Tells what happened to one record, for the report of a failure.
fn story(run: &Run, key: usize) -> String {
    let mut told = String::new();
    for step in run.steps.iter().filter(|step| step.input.key == key) {
        let change = &step.input.change;
        let fields = step.after.as_ref().map_or("-", |record| record.fields.as_str());
        let deleted = step.after.as_ref().is_some_and(|record| record.is_deleted(&run.devices));
        let clock = change.hlc.map_or("none".to_owned(), |hlc| hlc.to_string());
        told.push_str(&format!(
            "  offered {} device {} n {} {:?} base {} {} clock {clock} -> {:?} {fields}{} audit {:?}\n",
            step.next,
            change.device,
            change.n,
            change.op,
            change.base,
            change.fields.as_str(),
            step.decision.outcome,
            if deleted { " (deleted)" } else { "" },
            step.decision.audit.as_ref().map(|audit| (&audit.fields, audit.existence)),
        ));
    }
    told
}
