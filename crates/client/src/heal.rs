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
//! or a service's is left alone. Fields that the user has edited meanwhile are left to those edits, which are sent
//! afterwards. Kinds of the server's own, whose names begin with `$`, are never given back.

use std::collections::BTreeSet;

use driftline_model::{Hlc, Intents, Object, OpId, Seq, elements};
use driftline_protocol::{Item, ItemOp, row_sum};

use crate::event::Event;
use crate::intents::{element_id, join, object};
use crate::journal::Journal;
use crate::policies::{Rule, Rules, rank};
use crate::queue::Source;
use crate::records::Key;
use crate::replica::Replica;
use crate::seen::Seen;

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
}

impl Replica {
    /// Queues what the snapshot of an epoch that began at `begun` did not have and the device holds.
    pub(crate) fn heal(&mut self, begun: Seq) {
        let mut rows = 0;
        for key in self.records.keys_with_past() {
            let Some((held, fields)) = self.records.take_held(&key) else { continue };
            let lost = Lost { version: held.version, hlc: held.hlc, fields };
            if key.0.as_str().starts_with('$') || self.queue.len() >= Self::QUEUE_MAX {
                continue;
            }
            if let Some(gift) = self.gift(&key, &lost, begun) {
                self.enqueue_gift(&key, gift, lost.version);
                rows += 1;
            }
            self.journal.forget_after(&key, self.records.version(&key));
        }
        if rows > 0 {
            self.events.push(Event::Healing { rows });
        }
    }

    fn gift(&self, key: &Key, lost: &Lost, begun: Seq) -> Option<Gift> {
        let record = self.records.get(key.0.as_str(), key.1.as_str())?;
        let edited = Edited::of(record.pending.iter().filter_map(|&n| self.queue.item(n)))?;
        let rules = self.records.policies.of(&key.0);
        let told = record.body().filter(|body| body.version > Seq::ZERO);
        let restored = told
            .map(|body| Restored { version: body.version, fields: (!body.deleted).then_some(&body.fields) });
        let row = Row { key, lost, edited: &edited, rules, journal: &self.journal };
        match (restored, &lost.fields) {
            (Some(restored), _) if restored.version >= lost.version && lost.version <= begun => None,
            (None, None) => None,
            // Somebody deleted it after the restore.
            (Some(Restored { fields: None, version }), Some(_)) if version > begun => None,
            (None | Some(Restored { fields: None, .. }), Some(fields)) => {
                let certain = told.is_some() || lost.version > begun;
                let hlc = if certain { lost.hlc } else { Hlc::from_bits(lost.version.number()) };
                Some(Gift { hlc, ..row.create(fields) })
            }
            (Some(Restored { fields: Some(restored), version }), Some(fields)) => {
                row.patch(restored, fields, version)
            }
            // Edits that wait were made by somebody who knew of the deletion, and wants the row back.
            (Some(Restored { fields: Some(_), .. }), None) => edited.0.is_empty().then(|| row.delete()),
            (Some(Restored { fields: None, .. }), None) => None,
        }
    }

    fn enqueue_gift(&mut self, key: &Key, gift: Gift, version: Seq) {
        let n = self.queue.next_n();
        self.records.add_pending_first(key, n);
        let (kind, id) = key;
        let epoch = self.epoch.map(|epoch| epoch.to_string()).unwrap_or_default();
        let name =
            format!("heal-{epoch}-{:016x}-{:016x}", row_sum(kind, id, version), row_sum(kind, id, Seq::ZERO));
        let item = Item {
            op_id: Some(OpId::new(&name).expect("hexadecimal digits and hyphens are a name")),
            n: Some(n),
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
        self.queue.push(item, Source::Heal, Seen::default());
    }
}

/// The fields that the user's waiting edits of a row write.
struct Edited<'a>(Vec<&'a Item>);

impl<'a> Edited<'a> {
    /// Nothing when the user deletes the row anyway.
    fn of(items: impl Iterator<Item = &'a Item>) -> Option<Self> {
        let items: Vec<_> = items.collect();
        items.iter().all(|item| item.op != ItemOp::Delete).then_some(Self(items))
    }

    fn writes(&self, name: &str) -> bool {
        self.0.iter().any(|item| item.fields.get(name).is_some())
    }
}

struct Row<'a> {
    key: &'a Key,
    lost: &'a Lost,
    edited: &'a Edited<'a>,
    rules: &'a Rules,
    journal: &'a Journal,
}

impl Row<'_> {
    fn create(&self, fields: &Object) -> Gift {
        let written = fields.iter().filter(|(name, _)| {
            !self.edited.writes(name) && !matches!(self.rules.rule(name), Some(Rule::Counter))
        });
        let intents = Intents { increments: self.increments(Seq::ZERO), ..Intents::default() };
        Gift { op: ItemOp::Create, fields: object(written.collect()), intents, hlc: self.lost.hlc }
    }

    fn delete(&self) -> Gift {
        let (fields, intents) = (Object::empty(), Intents::default());
        Gift { op: ItemOp::Delete, fields, intents, hlc: self.lost.hlc }
    }

    fn patch(&self, restored: &Object, held: &Object, version: Seq) -> Option<Gift> {
        let (mut fields, mut previous, mut add) = (Vec::new(), Vec::new(), Vec::new());
        for (name, value) in held.iter().filter(|(name, _)| !self.edited.writes(name)) {
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
        Some(Gift { op: ItemOp::Patch, fields: object(fields), intents, hlc: self.lost.hlc })
    }

    /// What this device had added to the row's counters after `version`.
    fn increments(&self, version: Seq) -> Vec<(Box<str>, i64)> {
        let mut increments = self.journal.since(self.key, version);
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
