//! The account of what was decided.

use crate::change::Op;
use crate::decision::{Existence, FieldDecision, Rule, Winner};
use crate::record::Mark;

use super::Merge;

/// A field on which a decision is made.
pub(super) struct Contest<'t> {
    pub(super) name: &'t str,
    /// What the change carries.
    pub(super) client: Option<&'t str>,
    pub(super) server: &'t str,
    pub(super) mark: Mark,
}

impl<'a> Merge<'a> {
    pub(super) fn account(&mut self, contest: &Contest<'_>, winner: Winner, rule: Rule) {
        self.fields.push(FieldDecision {
            name: contest.name.into(),
            client: contest.client.map(Box::from),
            server: contest.server.into(),
            server_mark: contest.mark,
            winner,
            rule,
        });
    }

    /// Accounts for every touched field as not written.
    pub(super) fn account_touched(&mut self, winner: Winner, rule: Rule) {
        self.lost = true;
        let record = self.record;
        for (name, value) in self.change.fields.iter() {
            let stored = record.fields.get(name);
            if stored != Some(value) {
                let mark = record.mark(name).unwrap_or(record.live);
                let server = stored.unwrap_or("null");
                self.account(&Contest { name, client: Some(value), server, mark }, winner, rule);
            }
        }
    }

    /// Accounts for values that went into the body of a record that stays deleted.
    pub(super) fn account_hidden(&mut self, rule: Rule) {
        let mark = self.record.del.unwrap_or(self.record.live);
        let hidden: Vec<_> =
            self.writes.iter().filter_map(|write| Some((write.name, write.value.clone()?))).collect();
        for (name, value) in hidden {
            if self.fields.iter().any(|field| *field.name == *name) {
                continue;
            }
            let asked = self.asked(name).unwrap_or(value);
            let server = self.record.fields.get(name).unwrap_or("null");
            let contest = Contest { name, client: Some(&asked), server, mark };
            self.account(&contest, Winner::Server, rule);
        }
        // A value that won its field is hidden all the same.
        let won = |winner| matches!(winner, Winner::Client | Winner::Merged);
        for field in self.fields.iter_mut().filter(|field| won(field.winner)) {
            (field.winner, field.rule) = (Winner::Server, rule);
        }
        self.sort_fields();
    }

    /// Accounts for unseen values of other devices that a delete hides.
    pub(super) fn account_deleted(&mut self, rule: Rule) {
        for (name, server, mark) in self.record.fields() {
            if self.concurrent_field(name, &mark) {
                self.account(&Contest { name, client: None, server, mark }, Winner::Client, rule);
            }
        }
    }

    /// Accounts for a record that a write lets fall: an urgent value held back a delete, and the write lowered it.
    pub(super) fn account_fallen(&mut self) {
        let Some(del) = self.del.filter(|_| self.change.op != Op::Delete && self.existence.is_none()) else {
            return;
        };
        if !self.hidden() || self.record.is_deleted(self.context.devices) {
            return;
        }
        self.conflict = true;
        for (name, server, mark) in self.record.fields() {
            if !self.fields.iter().any(|field| *field.name == *name) {
                let client = self.change.fields.get(name);
                self.account(&Contest { name, client, server, mark }, Winner::Client, Rule::MostRecent);
            }
        }
        self.sort_fields();
        self.settle_existence(del, Winner::Server, Rule::MostRecent, true);
    }

    pub(super) fn sort_fields(&mut self) {
        self.fields.sort_by(|a, b| driftline_model::key_cmp(&a.name, &b.name));
    }

    pub(super) fn settle_existence(&mut self, server_mark: Mark, winner: Winner, rule: Rule, deleted: bool) {
        self.lost |= matches!(winner, Winner::Server | Winner::Held);
        self.existence = Some(Existence { server_mark, winner, rule, deleted });
    }
}
