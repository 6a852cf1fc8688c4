//! An account of every accepted value, kept without the resolver.
//!
//! It knows the inputs, the outcomes, the audits and the states after each step, and shares no code with the
//! merge. What was accepted must be visible, or have been overwritten, taken out or deleted by a change whose author
//! had seen it, or stand in an audit.

use std::collections::BTreeMap;

use driftline_conflict::{Change, FieldDecision, Op, Outcome, Rule, Winner};
use driftline_model::{Seq, elements};

use super::accepted;
use super::claims::{Claim, Promise, Visible};
use super::policies::Content;
use super::seen::{entry, holds, integer};
use super::story::story;
use super::wild::{Run, Step};

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
    /// Deletes that were accepted, whether or not they took effect at once.
    deletes: Vec<Change>,
    /// Per counter, the sum of all accepted increments.
    totals: BTreeMap<String, i64>,
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
        let before = Visible::of(run, step.before.as_ref());
        let after = Visible::of(run, step.after.as_ref());
        match step.input.change.op {
            _ if is_set_aside(step)? => {}
            Op::Delete => self.deleted(step, &after),
            Op::Create | Op::Patch | Op::Restore => {
                let mut entering = Entering { run, step, before: &before, after: &after, fields: Vec::new() };
                self.written(&mut entering)?;
            }
        }
        if after.deleted && (!before.deleted || step.input.change.op == Op::Delete) {
            self.hidden(step);
        }
        match self.claims.iter().find(|claim| !claim.settled && !claim.is_kept(after.value(&claim.field))) {
            None => Ok(()),
            Some(lost) => Err(format!("{lost:?}")),
        }
    }

    fn deleted(&mut self, step: &Step, after: &Visible) {
        let change = &step.input.change;
        self.deletes.push(change.clone());
        if after.deleted {
            let (device, n) = (change.device.number(), change.n);
            self.effects.push(Effect { device, n, deletes: true, fields: Vec::new() });
        }
    }

    /// The record disappears from view: what a delete had seen, and what the account names, is settled.
    fn hidden(&mut self, step: &Step) {
        for entry in step.decision.audit.iter().flat_map(|audit| &audit.fields) {
            self.told(&entry.name, &entry.server);
        }
        let change = &step.input.change;
        let deletes = match change.op {
            Op::Delete => std::slice::from_ref(change),
            // A write lets go of what had held an earlier delete up.
            _ => &self.deletes[..],
        };
        let mut seen = Vec::new();
        for delete in deletes {
            seen.extend(groups_seen_by(&self.claims, delete));
        }
        for claim in self.claims.iter_mut().filter(|claim| seen.contains(&claim.group)) {
            claim.settled = true;
        }
    }

    fn written(&mut self, entering: &mut Entering<'_>) -> Result<(), String> {
        let change = &entering.step.input.change;
        for (field, value) in change.fields.iter() {
            match Content::of(&entering.run.policy.strategy, field) {
                Content::Set | Content::List => self.united(entering, field, value),
                Content::Counter => return Err(format!("{field}: a counter was written as a whole")),
                _ => self.whole(entering, field, value)?,
            }
        }
        if let Some(intents) = &change.intents {
            for (field, step) in &intents.increments {
                self.increased(entering, field, *step)?;
            }
            for (field, array) in intents.remove.iter() {
                self.taken_out(entering, field, array);
            }
            for (field, array) in intents.add.iter() {
                self.united(entering, field, array);
            }
        }
        let (device, n) = (change.device.number(), change.n);
        let fields = std::mem::take(&mut entering.fields);
        self.effects.push(Effect { device, n, deletes: false, fields });
        Ok(())
    }

    fn whole(&mut self, entering: &mut Entering<'_>, field: &str, value: &str) -> Result<(), String> {
        let change = &entering.step.input.change;
        let entry = entering.entry(field);
        let winner = entry.map(|entry| entry.winner);
        let ordered = Content::of(&entering.run.policy.strategy, field) == Content::Ordered;
        // An ordered value that does not show has still replaced those that its author saw.
        let refused = match winner {
            Some(Winner::Held) => true,
            Some(Winner::Server) => !ordered || entry.is_some_and(|entry| entry.rule == Rule::OwnNewer),
            Some(Winner::Client | Winner::Merged) | None => false,
        };
        if winner == Some(Winner::Held) && !is_in_review(entering.step, field) {
            return Err(format!("{field}: held for nobody"));
        }
        if let Some(entry) = entry.filter(|entry| matches!(entry.winner, Winner::Client | Winner::Merged)) {
            self.told(field, &entry.server);
        }
        if !refused {
            self.overwritten(change, field, value);
            entering.fields.push(field.to_owned());
            if entering.before.stored(field) == Some(value) {
                self.carried(entering, field, value);
            }
        }
        let group = self.group(entering.before, field, value);
        let overtaken = self.is_overtaken(entering, Some(field));
        let told = winner.is_some_and(|winner| winner != Winner::Client)
            && entry.is_some_and(|entry| entry.client.as_deref() == Some(value));
        let settled = overtaken || told || entering.is_hidden_and_told(field, value);
        self.claim(entering, field, Promise::Whole(value.to_owned()), group, settled);
        if winner == Some(Winner::Merged) {
            let made = entering.after.stored(field).unwrap_or("nothing").to_owned();
            let group = self.next_group();
            let settled = overtaken || entering.is_hidden_and_told(field, &made);
            self.claim(entering, field, Promise::Whole(made), group, settled);
        }
        Ok(())
    }

    /// Elements are added to a set or a list.
    fn united(&mut self, entering: &mut Entering<'_>, field: &str, array: &str) {
        self.opened(entering, field);
        let entry = entering.entry(field);
        if let Some(entry) = entry.filter(|entry| entry.winner != Winner::Server) {
            // Of two entries with one id the other one goes.
            self.told_missing(field, &entry.server, entering.after);
        }
        let overtaken = self.is_overtaken(entering, None);
        for element in elements(array).expect("an accepted array") {
            let told =
                entry.and_then(|entry| entry.client.as_deref()).is_some_and(|told| holds(told, element))
                    && !entering.after.stored(field).is_some_and(|value| holds(value, element));
            let settled = overtaken || told || entering.is_hidden_and_told(field, element);
            let group = self.next_group();
            let promise = Promise::Element(element.to_owned());
            let settled = self.added_again(&entering.step.input.change, field, &promise) || settled;
            self.claim(entering, field, promise, group, settled);
        }
    }

    /// Whoever adds an element again stands for those whose adding it had seen; tells whether the same device has added
    /// it later already.
    fn added_again(&mut self, change: &Change, field: &str, promise: &Promise) -> bool {
        let mut later = false;
        for claim in self.claims.iter_mut().filter(|claim| claim.field == field && claim.promise == *promise)
        {
            claim.settled |= claim.was_seen_by(change);
            later |= claim.device == change.device.number() && claim.n > change.n;
        }
        later
    }

    fn taken_out(&mut self, entering: &Entering<'_>, field: &str, array: &str) {
        self.opened(entering, field);
        let removed = elements(array).expect("an accepted array");
        for claim in self.claims.iter_mut().filter(|claim| claim.field == field) {
            let Promise::Element(element) = &claim.promise else { continue };
            let seen = claim.was_seen_by(&entering.step.input.change);
            claim.settled |= seen && removed.contains(&element.as_str());
        }
    }

    fn increased(&mut self, entering: &Entering<'_>, field: &str, step: i64) -> Result<(), String> {
        let (before, after) = (entering.before.stored(field), entering.after.stored(field));
        if integer(before) + step != integer(after) {
            return Err(format!("{field}: {before:?} and {step} made {after:?}"));
        }
        if Content::of(&entering.run.policy.strategy, field) == Content::Counter {
            let total = self.totals.entry(field.to_owned()).or_default();
            *total += step;
            if *total != integer(after) {
                return Err(format!("{field}: the increments make {total}, not {after:?}"));
            }
        }
        self.carried(entering, field, before.unwrap_or_default());
        let overtaken = self.is_overtaken(entering, None);
        let settled = overtaken || entering.is_hidden_and_told(field, after.unwrap_or_default());
        let group = self.next_group();
        self.claim(entering, field, Promise::Share(step), group, settled);
        // Whoever writes the sum as a whole value has written the same value.
        let group = self.next_group();
        self.claim(entering, field, Promise::Whole(after.unwrap_or_default().to_owned()), group, true);
        Ok(())
    }

    /// A whole value that goes on in what is made of it is no longer claimed as it was.
    fn carried(&mut self, entering: &Entering<'_>, field: &str, before: &str) {
        let now = entering.step.input.change.fields.get(field);
        for claim in self.claims.iter_mut().filter(|claim| claim.field == field) {
            match &claim.promise {
                Promise::Whole(value) => claim.settled |= value == before && now != Some(value),
                Promise::Share(_) => claim.settled |= now.is_some(),
                Promise::Element(_) => {}
            }
        }
    }

    /// An array that was written as a whole is claimed element by element once elements are added or taken out.
    fn opened(&mut self, entering: &Entering<'_>, field: &str) {
        let mut opened = Vec::new();
        for claim in self.claims.iter_mut().filter(|claim| claim.field == field && !claim.settled) {
            let Promise::Whole(value) = &claim.promise else { continue };
            if entering.before.stored(field) != Some(value) {
                continue;
            }
            claim.settled = true;
            for element in elements(value).unwrap_or_default() {
                let promise = Promise::Element(element.to_owned());
                opened.push(Claim { promise, settled: false, field: field.to_owned(), ..*claim });
            }
        }
        self.claims.extend(opened);
    }

    /// A change replaces what its author had seen of a field.
    fn overwritten(&mut self, change: &Change, field: &str, value: &str) {
        let seen = groups_seen_by(&self.claims, change);
        for claim in self.claims.iter_mut().filter(|claim| claim.field == field) {
            claim.settled |= claim.promise != Promise::Whole(value.to_owned()) && seen.contains(&claim.group);
        }
    }

    /// An audit names a value that lost.
    fn told(&mut self, field: &str, value: &str) {
        for claim in self.claims.iter_mut().filter(|claim| claim.field == field) {
            claim.settled |= claim.is_told_by(value);
        }
    }

    /// An audit names an array, of which something is missing now.
    fn told_missing(&mut self, field: &str, value: &str, after: &Visible) {
        for claim in self.claims.iter_mut().filter(|claim| claim.field == field) {
            claim.settled |= !claim.is_kept(after.stored(field)) && claim.is_told_by(value);
        }
    }

    fn claim(&mut self, entering: &Entering<'_>, field: &str, promise: Promise, group: usize, settled: bool) {
        let (device, n) = (entering.step.input.change.device.number(), entering.step.input.change.n);
        let version = entering.step.after.as_ref().map_or(Seq::ZERO, |record| record.version);
        self.claims.push(Claim { field: field.to_owned(), promise, device, n, version, group, settled });
    }

    /// Whether a later change of the same device has deleted the record, or written the field. A delete that stands
    /// behind another one counts as well.
    fn is_overtaken(&self, entering: &Entering<'_>, field: Option<&str>) -> bool {
        let change = &entering.step.input.change;
        let deleted = self.deletes.iter().any(|own| own.device == change.device && own.n > change.n);
        if deleted && entering.after.deleted {
            return true;
        }
        self.effects.iter().any(|effect| {
            effect.device == change.device.number()
                && effect.n > change.n
                && (effect.deletes || effect.fields.iter().any(|own| Some(&**own) == field))
        })
    }

    /// Finds the value that the body held already, visible or hidden.
    fn group(&mut self, before: &Visible, field: &str, value: &str) -> usize {
        let equal = Promise::Whole(value.to_owned());
        if before.stored(field) == Some(value)
            && let Some(claim) =
                self.claims.iter().rev().find(|claim| claim.field == field && claim.promise == equal)
        {
            return claim.group;
        }
        self.next_group()
    }

    fn next_group(&mut self) -> usize {
        self.groups += 1;
        self.groups
    }
}

/// A change that is being entered.
struct Entering<'a> {
    run: &'a Run,
    step: &'a Step,
    before: &'a Visible,
    after: &'a Visible,
    /// The fields that it has written as a whole so far.
    fields: Vec<String>,
}

impl<'a> Entering<'a> {
    fn entry(&self, field: &str) -> Option<&'a FieldDecision> {
        entry(self.step.decision.audit.as_ref(), field)
    }

    /// Whether the value waits in a deleted body, and the account says that the record is deleted.
    fn is_hidden_and_told(&self, field: &str, value: &str) -> bool {
        let existence = self.step.decision.audit.as_ref().and_then(|audit| audit.existence);
        let told = existence.is_some_and(|made| made.deleted && made.winner == Winner::Server);
        told && self.after.deleted && self.after.stored(field).is_some_and(|stored| holds(stored, value))
    }
}

/// Whether the whole change waits for a reviewer, with the account and without any effect.
fn is_set_aside(step: &Step) -> Result<bool, String> {
    let whole = step.decision.review.as_ref().is_some_and(|review| review.fields.is_empty());
    if step.decision.outcome != Outcome::ConflictPending {
        return Ok(false);
    }
    if step.decision.review.is_none() || step.decision.audit.is_none() {
        return Err("a change set aside for nobody".to_owned());
    }
    if whole && step.decision.record.is_some() {
        return Err("a change set aside that has an effect".to_owned());
    }
    Ok(whole)
}

fn is_in_review(step: &Step, field: &str) -> bool {
    step.decision.review.as_ref().is_some_and(|review| review.fields.iter().any(|held| **held == *field))
}

fn groups_seen_by(claims: &[Claim], change: &Change) -> Vec<usize> {
    claims.iter().filter(|claim| claim.was_seen_by(change)).map(|claim| claim.group).collect()
}
