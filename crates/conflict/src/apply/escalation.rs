//! Ordered fields, which never drop through a stale edit.
//!
//! The field holds assertions, and shows the most urgent one. A write removes the assertions that its author had seen
//! and adds its own; a write that would lower the field is held, unless it says that it means to. So the set of
//! assertions is the same whatever the order of arrival, as for an observed-remove set.

use std::borrow::Cow;
use std::cmp::Reverse;

use driftline_model::Seq;

use crate::change::Op;
use crate::decision::{ReviewReason, Rule, Winner};
use crate::policy::{FieldRule, Order, Policy, Strategy};
use crate::record::{Assertion, FieldState, Mark, Parts, Record, Write};

use super::Merge;
use super::fields::Stored;

/// The most assertions that a field holds.
const ASSERTIONS_MAX: usize = 8;

/// The assertions of an ordered field.
fn assertions(record: &Record, stored: Stored<'_>) -> Vec<Assertion> {
    match record.state(stored.name).map(|state| &state.parts) {
        Some(Parts::Ordered(assertions)) if !assertions.is_empty() => assertions.clone(),
        _ => vec![Assertion { value: stored.value.into(), mark: stored.mark, covered: false }],
    }
}

/// Gives a deleted record whose urgent values count as seen by its delete, also where another policy deleted it.
pub(super) fn covered<'r>(record: &'r Record, policy: &Policy) -> Cow<'r, Record> {
    let mut covered = Cow::Borrowed(record);
    for (name, rule) in policy.strategy.fields() {
        let FieldRule::Ordered(order) = rule else { continue };
        let Some((value, mark)) = record.fields.get(name).zip(record.mark(name)) else { continue };
        let mut all = assertions(record, Stored { name, value, mark });
        let mut unseen = all.iter_mut().filter(|one| order.is_urgent(&one.value) && !one.covered).peekable();
        if unseen.peek().is_none() {
            continue;
        }
        unseen.for_each(|one| one.covered = true);
        let others = record.state(name).map_or(Seq::ZERO, |state| state.others);
        covered.to_mut().remember(name, FieldState { others, parts: Parts::Ordered(all) });
    }
    covered
}

impl<'a> Merge<'a> {
    pub(super) fn write_ordered(&mut self, stored: Stored<'a>, value: &'a str, order: &Order) {
        let old = assertions(self.record, stored);
        if self.own_newer(&stored.mark) || old.iter().any(|old| self.own_newer(&old.mark)) {
            self.lost = true;
            if stored.value != value {
                self.contest(stored, value, Winner::Server, Rule::OwnNewer);
            }
            return;
        }
        if self.lowers_unsaid(stored.name, value, &old, order) {
            self.conflict |= self.concurrent_field(stored.name, &stored.mark);
            self.lost = true;
            // The record that a create asks for exists, whether or not another device has brought it back already.
            self.touched |= self.change.op == Op::Create;
            self.contest(stored, value, Winner::Held, Rule::Escalation);
            return self.set_aside(ReviewReason::DeescalationHeld, Some(stored.name));
        }
        let concurrent = self.concurrent_field(stored.name, &stored.mark);
        let mark = if concurrent { self.mark } else { self.after(&stored.mark) };
        // A delete of the same device that overtook this write had seen it.
        let covered = self.del.is_some_and(|del| self.own_newer(&del));
        let mut new: Vec<Assertion> = old.into_iter().filter(|old| !self.seen(&old.mark)).collect();
        new.push(Assertion { value: value.into(), mark, covered });
        self.limit(&mut new, order);
        let shown = highest(&new, order).map_or(value, |highest| &*highest.value).to_owned();
        // That an ordered field falls is accounted for, also where nobody objects.
        let falls = order.rank(&shown) < order.rank(stored.value);
        if stored.value != value && (concurrent || falls) {
            self.conflict |= concurrent;
            let winner = if shown == value { Winner::Client } else { Winner::Server };
            self.lost |= winner == Winner::Server;
            self.contest(stored, value, winner, Rule::Escalation);
        }
        self.assert_values(stored, (shown, mark), new);
    }

    /// Whether the change lowers the field without saying so: below what its author saw, or below what it had seen or
    /// made of the assertions that stand.
    fn lowers_unsaid(&self, name: &str, value: &str, old: &[Assertion], order: &Order) -> bool {
        let intents = self.change.intents.as_deref();
        if intents.is_some_and(|intents| intents.deescalate) {
            return false;
        }
        let rank = order.rank(value);
        let previous =
            intents.and_then(|intents| intents.previous.get(name)).and_then(|value| order.rank(value));
        rank < previous || old.iter().any(|old| self.seen(&old.mark) && rank < order.rank(&old.value))
    }

    /// Cuts assertions to their limit: the most urgent one stands for all that go.
    fn limit(&mut self, assertions: &mut Vec<Assertion>, order: &Order) {
        if assertions.len() > ASSERTIONS_MAX {
            let kept = highest(assertions, order).cloned();
            assertions.clear();
            assertions.extend(kept);
            self.collapsed = true;
        }
    }

    fn assert_values(&mut self, stored: Stored<'a>, (shown, mark): (String, Mark), mut new: Vec<Assertion>) {
        let Stored { name, value, mark: before } = stored;
        // The order of the assertions must not depend on that of their arrival.
        new.sort_by(|a, b| a.mark.order(&b.mark, self.context.devices));
        let others = match self.record.state(name) {
            _ if before.device != self.change.device => before.fv,
            Some(state) => state.others,
            None => Seq::ZERO,
        };
        self.writes.push(Write { name, value: (shown != value).then_some(Cow::Owned(shown)), mark });
        let state = FieldState { others, parts: Parts::Ordered(new) };
        let needed = !state.is_as_written(&mark);
        if needed || self.record.state(name).is_some() {
            self.states.push((name, needed.then_some(state)));
        }
    }

    // Urgent records.

    /// Goes through the ordered fields of the record with their orders.
    fn ordered_fields(&self) -> impl Iterator<Item = (Stored<'a>, &'a Order)> + use<'a> {
        let (record, policy) = (self.record, self.policy);
        let rules = match &policy.strategy {
            Strategy::PreserveEscalation { fields } => &fields[..],
            _ => &[],
        };
        rules.iter().filter_map(move |(name, rule)| match rule {
            FieldRule::Ordered(order) => {
                let stored = Stored { name, value: record.fields.get(name)?, mark: record.mark(name)? };
                Some((stored, order))
            }
            _ => None,
        })
    }

    /// Notes which urgent assertions a delete had seen; tells whether there are others.
    pub(super) fn cover_urgent(&mut self) -> bool {
        let mut unseen = false;
        for (stored, order) in self.ordered_fields() {
            let mut all = assertions(self.record, stored);
            let mut moved = false;
            for assertion in all.iter_mut().filter(|assertion| order.is_urgent(&assertion.value)) {
                if self.seen(&assertion.mark) {
                    moved |= !assertion.covered;
                    assertion.covered = true;
                } else {
                    unseen |= !assertion.covered;
                }
            }
            if moved {
                let others = self.record.state(stored.name).map_or(Seq::ZERO, |state| state.others);
                let state = FieldState { others, parts: Parts::Ordered(all) };
                self.states.push((stored.name, Some(state)));
            }
        }
        self.states.sort_by(|a, b| driftline_model::key_cmp(a.0, b.0));
        unseen
    }

    /// Whether the record, as the change leaves it, has an urgent assertion that no delete had seen.
    pub(super) fn is_urgent(&self) -> bool {
        let Strategy::PreserveEscalation { fields } = &self.policy.strategy else { return false };
        fields.iter().any(|(name, rule)| {
            let FieldRule::Ordered(order) = rule else { return false };
            let stands = |assertion: &Assertion| order.is_urgent(&assertion.value) && !assertion.covered;
            match self.states.iter().find(|(changed, _)| **changed == **name) {
                Some((_, Some(FieldState { parts: Parts::Ordered(all), .. }))) => all.iter().any(stands),
                _ => {
                    let written = self.writes.iter().find(|write| *write.name == **name);
                    if let Some(write) = written {
                        // One assertion that is as the write left it.
                        let stored = self.record.fields.get(name);
                        return write.value.as_deref().or(stored).is_some_and(|value| order.is_urgent(value));
                    }
                    let stored = self.record.fields.get(name).zip(self.record.mark(name));
                    stored.is_some_and(|(value, mark)| {
                        assertions(self.record, Stored { name, value, mark }).iter().any(stands)
                    })
                }
            }
        })
    }
}

fn highest<'s>(assertions: &'s [Assertion], order: &Order) -> Option<&'s Assertion> {
    // Of equal ranks the first one, so that the choice is the same for the same set.
    assertions.iter().min_by_key(|assertion| Reverse(order.rank(&assertion.value)))
}
