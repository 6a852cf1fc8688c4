//! What a set of changes comes to, said without an order of arrival.
//!
//! A change is known by its stamp, and by which other changes its author had seen. Each rule is one sentence over the
//! whole set; there is no state to fold and no code of the merge.

use std::collections::{BTreeMap, BTreeSet};

use driftline_conflict::{FieldRule, OnDelete, Op, Strategy};
use driftline_model::{Seq, elements};

use super::policies::{Content, order};
use super::sane::{Essence, Item, Stamp};
use super::seen::integer;

/// A change, with the version in which others could see it; without one, nobody else has.
pub(crate) struct Done<'a> {
    pub(crate) item: &'a Item,
    pub(crate) version: Option<Seq>,
}

impl Done<'_> {
    fn stamp(&self) -> Stamp {
        (self.item.hlc, self.item.name, self.item.n)
    }

    /// Whether the author of this change had seen, or made, the other one before.
    fn saw(&self, other: &Self) -> bool {
        if self.item.client == other.item.client {
            return other.item.n < self.item.n;
        }
        other.version.is_some_and(|version| version <= self.item.base)
    }
}

/// A set of changes of one record.
pub(crate) struct Model<'a> {
    pub(crate) strategy: &'a Strategy,
    pub(crate) done: Vec<Done<'a>>,
}

impl Model<'_> {
    /// Returns the state that every order of arrival has to give; nothing without a create.
    pub(crate) fn state(&self) -> Option<Essence> {
        let created = self.done.iter().any(|done| done.item.op == Op::Create);
        if !created {
            return None;
        }
        let mut fields = BTreeMap::new();
        for name in self.names() {
            if let Some(value) = self.field(name) {
                fields.insert(name.to_owned(), value);
            }
        }
        let (del, live) = self.clocks();
        Some(Essence { deleted: self.is_deleted(), fields, del, live })
    }

    fn names(&self) -> BTreeSet<&str> {
        self.done.iter().flat_map(|done| done.item.touched()).collect()
    }

    fn field(&self, name: &str) -> Option<(String, Option<Stamp>)> {
        let value = match Content::of(self.strategy, name) {
            Content::Plain | Content::Open => return self.latest(name),
            Content::Number => self.extreme(name),
            Content::Counter => Some(self.total(name)),
            Content::Set => self.set(name),
            Content::List => self.list(name),
            Content::Ordered => self.most_urgent(name),
        };
        value.map(|value| (value, None))
    }

    fn whole_writes<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a Done<'a>, &'a str)> {
        self.done.iter().filter_map(move |done| Some((done, done.item.fields.get(name)?)))
    }

    /// Of whole values the one with the largest stamp.
    fn latest(&self, name: &str) -> Option<(String, Option<Stamp>)> {
        let (done, value) = self.whole_writes(name).max_by_key(|(done, _)| done.stamp())?;
        Some((value.to_owned(), Some(done.stamp())))
    }

    /// Of numbers the largest or the smallest.
    fn extreme(&self, name: &str) -> Option<String> {
        let number = |value: &str| value.parse::<f64>().expect("a number");
        let values = self.whole_writes(name).map(|(_, value)| value);
        let by = |a: &&str, b: &&str| number(a).total_cmp(&number(b));
        let found = match self.strategy.rule(name) {
            Some(FieldRule::Max) => values.max_by(by),
            _ => values.min_by(by),
        };
        found.map(str::to_owned)
    }

    /// Of increments the sum.
    fn total(&self, name: &str) -> String {
        let asked = self.done.iter().filter_map(|done| done.item.intents.as_ref());
        let steps = asked.flat_map(|intents| &intents.increments).filter(|(field, _)| **field == *name);
        steps.map(|(_, step)| step).sum::<i64>().to_string()
    }

    /// Of elements those that nobody removed who had seen them added.
    fn set(&self, name: &str) -> Option<String> {
        let mut standing = BTreeSet::new();
        for adder in &self.done {
            for element in adder.item.added(name) {
                let gone = self
                    .done
                    .iter()
                    .any(|other| other.item.removed(name).contains(&element) && other.saw(adder));
                if !gone {
                    standing.insert(element);
                }
            }
        }
        let standing: Vec<&str> = standing.into_iter().collect();
        // Whether an empty set is a field is nothing that a reader could tell apart.
        (!standing.is_empty()).then(|| format!("[{}]", standing.join(",")))
    }

    /// Of entries the first of each id, in the order of their stamps.
    fn list(&self, name: &str) -> Option<String> {
        let mut writers: Vec<&Done<'_>> = self.done.iter().collect();
        writers.sort_by_key(|done| done.stamp());
        let mut ids = BTreeSet::new();
        let mut entries = Vec::new();
        for entry in writers.iter().flat_map(|done| done.item.added(name)) {
            if ids.insert(id_of(entry)) {
                entries.push(entry);
            }
        }
        (!entries.is_empty()).then(|| format!("[{}]", entries.join(",")))
    }

    /// Of ordered values the most urgent one that nobody has replaced who had seen it.
    fn most_urgent(&self, name: &str) -> Option<String> {
        let rank = |value: &str| order(self.strategy, name).and_then(|order| order.rank(value));
        let standing = self.standing(name);
        standing.into_iter().map(|(_, value)| value).max_by_key(|value| rank(value)).map(str::to_owned)
    }

    fn standing<'a>(&'a self, name: &'a str) -> Vec<(&'a Done<'a>, &'a str)> {
        let effective = || self.whole_writes(name).filter(|(done, _)| !self.is_held(done, name));
        effective().filter(|(written, _)| !effective().any(|(later, _)| later.saw(written))).collect()
    }

    /// Whether a write lowers what its author saw without saying so.
    fn is_held(&self, done: &Done<'_>, name: &str) -> bool {
        let Some(order) = order(self.strategy, name) else { return false };
        let rank = |value: Option<&str>| value.and_then(|value| order.rank(value));
        let flagged = done.item.intents.as_ref().is_some_and(|intents| intents.deescalate);
        let previous = done.item.intents.as_ref().and_then(|intents| intents.previous.get(name));
        let value = done.item.fields.get(name);
        !flagged && value.is_some() && rank(value) < rank(previous)
    }

    /// Whether a change says that the record lives. A patch of which nothing remains but what is held says nothing.
    fn is_write(&self, done: &Done<'_>) -> bool {
        match done.item.op {
            Op::Delete => false,
            Op::Patch => done.item.touched().into_iter().any(|name| !self.is_held(done, name)),
            Op::Create | Op::Restore => true,
        }
    }

    fn clocks(&self) -> (Option<Stamp>, Option<Stamp>) {
        let del = self.done.iter().filter(|done| done.item.op == Op::Delete).map(Done::stamp).max();
        let live = self.done.iter().filter(|done| self.is_write(done)).map(Done::stamp).max();
        (del, live)
    }

    fn is_deleted(&self) -> bool {
        let deletes = || self.done.iter().filter(|done| done.item.op == Op::Delete);
        let (del, live) = self.clocks();
        match self.strategy {
            Strategy::FieldMerge { on_delete: OnDelete::UpdateWins, .. } => {
                let mut writes = self.done.iter().filter(|done| self.is_write(done));
                !writes.any(|write| !deletes().any(|delete| delete.saw(write)))
            }
            Strategy::FieldMerge { on_delete: OnDelete::DeleteWins, .. } => {
                let restores =
                    || self.done.iter().filter(|done| matches!(done.item.op, Op::Create | Op::Restore));
                deletes().any(|delete| !restores().any(|restore| restore.saw(delete)))
            }
            Strategy::PreserveEscalation { fields } => {
                let urgent = fields.iter().any(|(name, rule)| match rule {
                    FieldRule::Ordered(order) => self.standing(name).iter().any(|(done, value)| {
                        order.urgent.is_some_and(|urgent| order.rank(value) >= Some(urgent))
                            && !deletes().any(|delete| delete.saw(done))
                    }),
                    _ => false,
                });
                !urgent && del > live
            }
            _ => del > live,
        }
    }
}

fn id_of(entry: &str) -> &str {
    let rest = entry.strip_prefix("{\"id\":\"").expect("an entry begins with its id");
    rest.split('"').next().expect("an id ends")
}

impl Item {
    pub(crate) fn touched(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.fields.iter().map(|(name, _)| name).collect();
        if let Some(intents) = &self.intents {
            names.extend(intents.increments.iter().map(|(name, _)| &**name));
            names.extend(intents.add.iter().chain(intents.remove.iter()).map(|(name, _)| name));
        }
        names
    }

    /// The elements that the change adds to a set or a list, by whatever part.
    fn added(&self, name: &str) -> Vec<&str> {
        let whole = self.fields.get(name);
        let add = self.intents.as_ref().and_then(|intents| intents.add.get(name));
        whole.into_iter().chain(add).flat_map(|array| elements(array).expect("an array")).collect()
    }

    fn removed(&self, name: &str) -> Vec<&str> {
        let remove = self.intents.as_ref().and_then(|intents| intents.remove.get(name));
        remove.into_iter().flat_map(|array| elements(array).expect("an array")).collect()
    }
}

/// A counter that nobody touched is as good as none.
pub(crate) fn is_nothing(content: Content, value: &str) -> bool {
    match content {
        Content::Set | Content::List => value == "[]",
        Content::Counter => integer(Some(value)) == 0,
        Content::Plain | Content::Number | Content::Ordered | Content::Open => false,
    }
}
