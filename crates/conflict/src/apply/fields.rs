//! Whole values of fields.

use std::borrow::Cow;
use std::cmp::Ordering;

use driftline_model::key_cmp;

use crate::custom::{Contested, Verdict};
use crate::decision::{ReviewReason, Rule, Winner};
use crate::policy::{FieldRule, Strategy};
use crate::record::{Mark, Write};

use super::account::Contest;
use super::check::number;
use super::{LifeRule, Merge};

/// A field with what is stored of it.
#[derive(Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) name: &'a str,
    pub(super) value: &'a str,
    pub(super) mark: Mark,
}

/// What a conflict of two whole values comes to.
enum Settled {
    /// The client's value, with its mark.
    Client(Mark),
    Server,
    Merged(String),
    Held,
}

impl<'a> Merge<'a> {
    /// Writes everything that the change carries, in canonical order of the fields.
    pub(super) fn write_fields(&mut self) {
        let change = self.change;
        let plain = self.policy.strategy.fields().is_empty();
        for (name, value) in change.fields.iter() {
            match self.policy.strategy.rule(name) {
                _ if plain => self.write_value(name, value, None),
                Some(FieldRule::Set | FieldRule::Append | FieldRule::Counter) => {}
                rule => self.write_value(name, value, rule),
            }
        }
        if !plain || change.intents.is_some() {
            self.write_merging();
            self.writes.sort_by(|a, b| key_cmp(a.name, b.name));
            self.states.sort_by(|a, b| key_cmp(a.0, b.0));
            self.sort_fields();
        }
    }

    fn write_value(&mut self, name: &'a str, value: &'a str, rule: Option<&FieldRule>) {
        let service = self.context.rights.service;
        let (Some(stored), Some(mark)) = (self.record.fields.get(name), self.record.mark(name)) else {
            if matches!(rule, Some(FieldRule::ServerOnly)) && !service {
                return self.refuse_unwritten(name, value);
            }
            return self.push(name, Some(value), self.mark);
        };
        let stored = Stored { name, value: stored, mark };
        match rule {
            Some(FieldRule::Ordered(order)) => return self.write_ordered(stored, value, order),
            Some(FieldRule::Max) => return self.write_extreme(stored, value, Rule::Max),
            Some(FieldRule::Min) => return self.write_extreme(stored, value, Rule::Min),
            Some(FieldRule::ServerOnly) if !service => {
                return self.keep(stored, value, Rule::ServerOnly);
            }
            Some(FieldRule::Immutable) if stored.value != value => {
                return self.keep(stored, value, Rule::Immutable);
            }
            _ => {}
        }
        if self.own_newer(&mark) {
            self.lost = true;
            if stored.value != value {
                self.contest(stored, value, Winner::Server, Rule::OwnNewer);
            }
            return;
        }
        let same = stored.value == value;
        if !self.concurrent_field(name, &mark) {
            return self.push(name, (!same).then_some(value), self.after(&mark));
        }
        // By the clocks, a write that loses its field says nothing about existence that the winner does not say.
        self.touched |=
            LifeRule::of(self.policy) == LifeRule::Writes && !matches!(rule, Some(FieldRule::Manual));
        if same {
            if self.newer(&self.mark, &mark) {
                self.push(name, None, self.mark);
            }
            return;
        }
        self.conflict = true;
        self.settle_value(stored, value, rule);
    }

    fn settle_value(&mut self, stored: Stored<'a>, value: &'a str, rule: Option<&FieldRule>) {
        let (settled, rule) = self.decide(stored, value, rule);
        let winner = match settled {
            Settled::Client(_) => Winner::Client,
            Settled::Server => Winner::Server,
            Settled::Merged(_) => Winner::Merged,
            Settled::Held => Winner::Held,
        };
        self.contest(stored, value, winner, rule);
        match settled {
            Settled::Client(mark) => self.push(stored.name, Some(value), mark),
            Settled::Server => self.lost = true,
            Settled::Merged(merged) => {
                let mark = self.after(&stored.mark);
                let value = (merged != stored.value).then_some(Cow::Owned(merged));
                self.writes.push(Write { name: stored.name, value, mark });
                self.drop_state(stored.name);
            }
            Settled::Held => {
                self.lost = true;
                self.set_aside(ReviewReason::Manual, Some(stored.name));
            }
        }
    }

    /// Decides a field that two devices wrote.
    fn decide(&self, stored: Stored<'_>, value: &str, rule: Option<&FieldRule>) -> (Settled, Rule) {
        match &self.policy.strategy {
            Strategy::ClientWins { .. } => (Settled::Client(self.after(&stored.mark)), Rule::ClientWins),
            Strategy::ServerWins { .. } => (Settled::Server, Rule::ServerWins),
            Strategy::Manual => (Settled::Held, Rule::Manual),
            Strategy::Custom(custom) => {
                let contested = Contested {
                    name: stored.name,
                    client: value,
                    server: stored.value,
                    client_mark: self.mark,
                    server_mark: stored.mark,
                    client_is_newer: self.newer(&self.mark, &stored.mark),
                };
                let settled = match custom.0.decide(&contested) {
                    Verdict::Client => Settled::Client(self.after(&stored.mark)),
                    Verdict::Server => Settled::Server,
                    Verdict::Merged(value) => Settled::Merged(value),
                    Verdict::Held => Settled::Held,
                };
                (settled, Rule::Custom(custom.0.name()))
            }
            _ if matches!(rule, Some(FieldRule::Manual)) => (Settled::Held, Rule::Manual),
            _ if self.newer(&self.mark, &stored.mark) => (Settled::Client(self.mark), Rule::MostRecent),
            _ => (Settled::Server, Rule::MostRecent),
        }
    }

    /// Writes a number that stands only while it is the largest, or the smallest.
    ///
    /// A later number of the same device does not outdo an earlier one that is more extreme: the field is a join.
    fn write_extreme(&mut self, stored: Stored<'a>, value: &'a str, rule: Rule) {
        let order = match (number(value), number(stored.value)) {
            (Some(new), Some(old)) if rule == Rule::Min => old.total_cmp(&new),
            (Some(new), Some(old)) => new.total_cmp(&old),
            // What is no number was written under another policy.
            _ => Ordering::Greater,
        };
        self.touched = true;
        let mut mark = self.mark;
        let concurrent = self.concurrent_field(stored.name, &stored.mark);
        if !concurrent {
            mark = self.after(&stored.mark);
        }
        mark.n = if self.own_newer(&stored.mark) { stored.mark.n } else { mark.n };
        match order {
            Ordering::Equal => {
                if !self.own_newer(&stored.mark) && self.newer(&mark, &stored.mark) {
                    self.push(stored.name, None, mark);
                }
            }
            Ordering::Greater => {
                // A later number of the same device that this one overtakes has not been seen either.
                if concurrent || self.own_newer(&stored.mark) {
                    self.conflict |= concurrent;
                    self.contest(stored, value, Winner::Client, rule);
                }
                self.push(stored.name, Some(value), mark);
            }
            Ordering::Less => {
                self.conflict |= concurrent;
                self.lost = true;
                self.contest(stored, value, Winner::Server, rule);
            }
        }
    }

    /// Leaves a field as it is, whoever writes it.
    fn keep(&mut self, stored: Stored<'a>, value: &'a str, rule: Rule) {
        if stored.value != value {
            self.conflict |= self.concurrent_field(stored.name, &stored.mark);
            self.lost = true;
            self.contest(stored, value, Winner::Server, rule);
        }
    }

    fn refuse_unwritten(&mut self, name: &str, value: &str) {
        self.lost = true;
        let contest = Contest { name, client: Some(value), server: "null", mark: self.record.live };
        self.account(&contest, Winner::Server, Rule::ServerOnly);
    }

    pub(super) fn contest(&mut self, stored: Stored<'_>, value: &str, winner: Winner, rule: Rule) {
        let Stored { name, value: server, mark } = stored;
        self.account(&Contest { name, client: Some(value), server, mark }, winner, rule);
    }

    pub(super) fn push(&mut self, name: &'a str, value: Option<&'a str>, mark: Mark) {
        self.writes.push(Write { name, value: value.map(Cow::Borrowed), mark });
        self.drop_state(name);
    }

    /// A whole value leaves nothing to be merged behind.
    fn drop_state(&mut self, name: &'a str) {
        if self.record.state(name).is_some() {
            self.states.push((name, None));
        }
    }
}
