//! Giving back to a restored server what it lost and this device still holds.
//!
//! When the epoch has changed, the snapshot of the new one is pulled first; it is compared with what the device held
//! then. The version of a row is a place in the sequence, and the lost sequence and the new one agree up to the place
//! of the restore. So:
//!
//! - A row that the snapshot tells at a lower version than the held one was changed in the part that is lost, and so was
//!   a row whose held version lies above the place where the epoch began, whatever was made of it since. The fields that
//!   differ go back as a `patch`; a held deletion as a `delete`.
//! - A row that the snapshot does not tell is made again by a `create`. Whether it is lost is certain only if its
//!   version lies above the place where the epoch began: else the server may have deleted it.
//!
//! Every such change has base 0: it has seen nothing of the new epoch, and the policy decides against whatever was
//! written there. Its clock is the tenant's highest one when the device was told the body, which is above every write
//! in the body and below whatever was written later: so the newest body that any device holds wins under clock rules,
//! the restored value loses, and so does the held one against a user's later edit. Where it is not certain that the row
//! is lost, the clock is the version read as a stamp, which is below all real ones: a deletion that the server knows
//! stays.
//!
//! Per field, by its rule: *counters* move only by what this device itself had added since the told version, because
//! several devices give back what they hold, and sums would count it several times. *Sets and lists* get the elements
//! that are missing; removals that were lost stay lost. *Ordered fields* are raised, never lowered. What is immutable
//! or a service's is left alone. Kinds of the server's own, whose names begin with `$`, are never given back.
//!
//! The user's edits that wait are sent afterwards, under the names and numbers that they have: the server may know them.
//! A gift was there before them, which its number says: it is one of those that every edit leaves free below its own. So
//! a gift is whole, fields that the user has edited included, as a schema may ask for of a `create`; the edits are later
//! writes of the same device. A deletion that waits is one of a row that is there. When no number is left, the fields
//! that the user has edited are left to those edits, and a deletion to itself.

use std::borrow::Cow;
use std::collections::BTreeSet;

use driftline_model::{Hlc, Intents, Object, OpId, Seq, elements};
use driftline_protocol::{Item, ItemOp, row_sum};

use crate::event::Event;
use crate::intents::{Change, element_id, join, object};
use crate::journal::Journal;
use crate::policies::{Rule, Rules, rank};
use crate::queue::{Queue, Source};
use crate::record::Record;
use crate::records::Key;
use crate::replica::Replica;

/// What the device held of a row when the epoch changed.
struct Lost {
    version: Seq,
    hlc: Hlc,
    /// None: it was deleted.
    fields: Option<Object>,
}

/// What the snapshot told of a row.
struct Restored<'a> {
    version: Seq,
    /// None: it is deleted.
    fields: Option<&'a Object>,
}

/// A change that gives a row back.
struct Gift {
    op: ItemOp,
    fields: Object,
    intents: Intents,
    hlc: Hlc,
    /// The user's edit that it has to come before.
    before: Option<u64>,
}

impl Replica {
    /// Queues what the snapshot of an epoch that began at `begun` did not have and the device holds.
    pub(crate) fn heal(&mut self, begun: Seq) {
        let mut rows = 0;
        for key in self.records.keys_with_past() {
            let Some((held, fields)) = self.records.take_held(&key) else { continue };
            let mut lost = Lost { version: held.version, hlc: held.hlc, fields };
            if key.0.as_str().starts_with('$') || self.queue.len() >= Self::QUEUE_MAX {
                continue;
            }
            self.take_back(&key, &mut lost);
            if let Some(gift) = self.gift(&key, &lost, begun) {
                self.enqueue_gift(&key, gift, lost.version);
                rows += 1;
            }
            self.journal.forget_after(&key, self.records.version(&key).min(begun));
        }
        if rows > 0 {
            self.events.push(Event::Healing { rows });
        }
    }

    /// Takes gifts of an earlier epoch that the server has not decided into what is lost of a row, when the row is gone
    /// again: a patch alone would find nothing.
    fn take_back(&mut self, key: &Key, lost: &mut Lost) {
        let gone = self.records.version(key) == Seq::ZERO;
        let Some(record) = self.records.get(key.0.as_str(), key.1.as_str()).filter(|_| gone) else { return };
        if Waiting::of(&record.pending, &self.queue).creates() {
            return;
        }
        let is_gift = |n: &u64| self.queue.source(*n) == Some(Source::Heal);
        let gifts: Vec<u64> = record.pending.iter().copied().filter(is_gift).collect();
        for n in gifts {
            let Some((item, _)) = self.take_off(n) else { continue };
            let intents = item.intents.as_deref();
            let change = Change { op: item.op, fields: &item.fields, intents, seen: None };
            let rules = self.records.policies.of(&key.0);
            let fields = change.effect(lost.fields.as_ref().map(Cow::Borrowed), None, rules);
            lost.fields = fields.map(Cow::into_owned);
            // The gift has the clock of a history that the told row knows nothing of.
            lost.hlc = lost.hlc.max(item.hlc.unwrap_or(lost.hlc));
            let increments = intents.map_or(&[][..], |intents| &intents.increments);
            self.journal.note(key, lost.version, increments);
        }
    }

    fn gift(&self, key: &Key, lost: &Lost, begun: Seq) -> Option<Gift> {
        // Nothing is left of a row of which only a gift waited that was taken back.
        let record = self.records.get(key.0.as_str(), key.1.as_str());
        let pending = record.map_or(&[][..], |record| &record.pending);
        let waiting = Waiting::of(pending, &self.queue);
        let rules = self.records.policies.of(&key.0);
        let told = record.and_then(Record::body).filter(|body| body.version > Seq::ZERO);
        let restored = told
            .map(|body| Restored { version: body.version, fields: (!body.deleted).then_some(&body.fields) });
        let row = Row { key, lost, begun, waiting: &waiting, rules, journal: &self.journal };
        match (restored, &lost.fields) {
            (Some(restored), _) if restored.version >= lost.version && lost.version <= begun => None,
            (None, None) => None,
            // An earlier gift makes it, with the clock of what it holds.
            (None, Some(_)) if waiting.creates() => None,
            // The user deletes it anyway.
            (Some(_), _) if waiting.delete() => None,
            (None, Some(_)) if waiting.delete() && waiting.before.is_none() => None,
            // Somebody deleted it after the restore.
            (Some(Restored { fields: None, version }), Some(_)) if version > begun => None,
            (None | Some(Restored { fields: None, .. }), Some(fields)) => {
                let certain = told.is_some() || lost.version > begun;
                let hlc = if certain { lost.hlc } else { Hlc::from_bits(lost.version.number()) };
                let version = told.map_or(Seq::ZERO, |body| body.version);
                Some(Gift { hlc, ..row.create(fields, version) })
            }
            (Some(Restored { fields: Some(restored), version }), Some(fields)) => {
                row.patch(restored, fields, version)
            }
            // Edits that wait were made by somebody who knew of the deletion, and wants the row back.
            (Some(Restored { fields: Some(_), .. }), None) => waiting.items.is_empty().then(|| row.delete()),
            (Some(Restored { fields: None, .. }), None) => None,
        }
    }

    fn enqueue_gift(&mut self, key: &Key, gift: Gift, version: Seq) {
        let (kind, id) = key;
        let epoch = self.epoch.map(|epoch| epoch.to_string()).unwrap_or_default();
        let name =
            format!("heal-{epoch}-{:016x}-{:016x}", row_sum(kind, id, version), row_sum(kind, id, Seq::ZERO));
        let item = Item {
            op_id: Some(OpId::new(&name).expect("hexadecimal digits and hyphens are a name")),
            n: None,
            kind: kind.clone(),
            id: id.clone(),
            op: gift.op,
            base_version: Seq::ZERO,
            fields: gift.fields,
            intents: (!gift.intents.is_empty()).then(|| Box::new(gift.intents)),
            hlc: Some(gift.hlc),
            schema_version: 0,
            group: None,
            hash: 0,
        };
        let n = self.queue.push_gift(item, gift.before);
        self.records.add_pending_first(key, n);
    }
}

/// What waits to be sent of a row.
struct Waiting<'a> {
    items: Vec<(&'a Item, Source)>,
    /// The first of the user's edits, if a number is left that makes a gift older.
    before: Option<u64>,
}

impl<'a> Waiting<'a> {
    fn of(pending: &[u64], queue: &'a Queue) -> Self {
        let items = pending.iter().filter_map(|&n| Some((queue.item(n)?, queue.source(n)?))).collect();
        let first = pending.iter().copied().find(|n| queue.source(*n) == Some(Source::User));
        Self { items, before: first.filter(|n| queue.has_room_below(*n)) }
    }

    fn delete(&self) -> bool {
        self.items.iter().any(|(item, _)| item.op == ItemOp::Delete)
    }

    /// Whether a gift of an earlier epoch makes the row.
    fn creates(&self) -> bool {
        self.items.iter().any(|(item, source)| item.op == ItemOp::Create && *source == Source::Heal)
    }

    /// Whether a field is left to what waits, because a gift would count as the later write.
    fn keeps(&self, name: &str) -> bool {
        let later = |source| self.before.is_some() && source == Source::User;
        self.items.iter().any(|(item, source)| !later(*source) && item.fields.get(name).is_some())
    }
}

struct Row<'a> {
    key: &'a Key,
    lost: &'a Lost,
    /// Where the epoch began.
    begun: Seq,
    waiting: &'a Waiting<'a>,
    rules: &'a Rules,
    journal: &'a Journal,
}

impl Row<'_> {
    fn create(&self, fields: &Object, version: Seq) -> Gift {
        let written = fields.iter().filter(|(name, _)| {
            !self.waiting.keeps(name) && !matches!(self.rules.rule(name), Some(Rule::Counter))
        });
        let intents = Intents { increments: self.increments(version), ..Intents::default() };
        Gift {
            op: ItemOp::Create,
            fields: object(written.collect()),
            intents,
            hlc: self.lost.hlc,
            before: self.waiting.before,
        }
    }

    fn delete(&self) -> Gift {
        let (fields, intents) = (Object::empty(), Intents::default());
        Gift { op: ItemOp::Delete, fields, intents, hlc: self.lost.hlc, before: self.waiting.before }
    }

    fn patch(&self, restored: &Object, held: &Object, version: Seq) -> Option<Gift> {
        let (mut fields, mut previous, mut add) = (Vec::new(), Vec::new(), Vec::new());
        for (name, value) in held.iter().filter(|(name, _)| !self.waiting.keeps(name)) {
            let told = restored.get(name);
            if told == Some(value) {
                continue;
            }
            match self.rules.rule(name) {
                Some(Rule::Counter) => {}
                Some(Rule::Fixed) if told.is_some() => {}
                Some(Rule::Set | Rule::Append) => {
                    add.extend(missing(told.unwrap_or("[]"), value).map(|elements| (name, elements)));
                }
                Some(Rule::Ordered(order)) => {
                    if rank(order, Some(value)) > rank(order, told) {
                        previous.push((name, told.unwrap_or("null")));
                        fields.push((name, value));
                    }
                }
                _ => fields.push((name, value)),
            }
        }
        let increments = self.increments(version);
        if fields.is_empty() && add.is_empty() && increments.is_empty() {
            return None;
        }
        let intents =
            Intents { previous: object(previous), increments, add: object(add), ..Intents::default() };
        Some(Gift {
            op: ItemOp::Patch,
            fields: object(fields),
            intents,
            hlc: self.lost.hlc,
            before: self.waiting.before,
        })
    }

    /// What this device had added to the row's counters and the server lost, of a row that it tells at `version`. A
    /// version of the new epoch says nothing of what had that number in the old one.
    fn increments(&self, version: Seq) -> Vec<(Box<str>, i64)> {
        let mut increments = self.journal.since(self.key, version.min(self.begun));
        increments.retain(|(name, by)| *by != 0 && matches!(self.rules.rule(name), Some(Rule::Counter)));
        increments
    }
}

/// The elements of an array that another one has not; those of a list are told apart by their ids.
fn missing(told: &str, held: &str) -> Option<String> {
    let name = |element: &str| element_id(element).unwrap_or_else(|| element.to_owned());
    let told: BTreeSet<String> = elements(told)?.into_iter().map(name).collect();
    let missing: Vec<&str> =
        elements(held)?.into_iter().filter(|element| !told.contains(&name(element))).collect();
    (!missing.is_empty()).then(|| join(missing))
}
