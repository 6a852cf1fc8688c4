//! All records of a device.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use driftline_model::{Hlc, KindName, Object, RecordId, Seq};
use driftline_protocol::{Item, Range};

use crate::intents::Change;
use crate::policies::{Policies, Rules};
use crate::queue::Queue;
use crate::record::{Body, Held, Record, Telling, View};
use crate::seen::Seen;
use crate::sums::{Sum, Sums};

/// Names a record on the device.
pub(crate) type Key = (KindName, RecordId);

/// Whose changes the server tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// Everybody's, as pages do. An own change that none of them showed is not there any more.
    Everything,
    /// Those of other devices, as deltas do.
    OthersOnly,
}

/// The records by kind and id, with an index of those that wait for the body to catch up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Records {
    kinds: Kinds,
    acked: BTreeSet<(Seq, Key)>,
    pub(crate) sums: Sums,
    /// How the server merges, as it told at the start of the last session.
    pub(crate) policies: Policies,
}

type Kinds = BTreeMap<KindName, BTreeMap<RecordId, Record>>;

impl Records {
    pub(crate) fn get(&self, kind: &str, id: &str) -> Option<&Record> {
        self.kinds.get(kind)?.get(id)
    }

    pub(crate) fn body(&self, (kind, id): &Key) -> Option<&Body> {
        self.get(kind.as_str(), id.as_str())?.body()
    }

    /// The version of the server's body, which is the base of an edit.
    pub(crate) fn version(&self, key: &Key) -> Seq {
        self.body(key).map_or(Seq::ZERO, |body| body.version)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&KindName, &RecordId, &Record)> {
        self.kinds
            .iter()
            .flat_map(|(kind, records)| records.iter().map(move |(id, record)| (kind, id, record)))
    }

    pub(crate) fn view<'a>(
        &'a self,
        kind: &KindName,
        record: &'a Record,
        queue: &'a Queue,
    ) -> Option<View<'a>> {
        let pending = record.pending.iter().filter_map(|&n| queue.waiting(n));
        record.view(pending.map(|(item, seen)| Change::waiting(item, seen)), self.policies.of(kind))
    }

    /// Shows a record by its name.
    pub(crate) fn view_of<'a>(&'a self, kind: &str, id: &str, queue: &'a Queue) -> Option<View<'a>> {
        let (kind, records) = self.kinds.get_key_value(kind)?;
        self.view(kind, records.get(id)?, queue)
    }

    /// Notes what the author of a write of `fields` sees.
    pub(crate) fn seen(&self, (kind, id): &Key, fields: &Object, queue: &Queue) -> Seen {
        match self.get(kind.as_str(), id.as_str()) {
            Some(record) => record.seen(fields, record.pending.iter().filter_map(|&n| queue.waiting(n))),
            None => Seen::at_edit(fields, None, &[]),
        }
    }

    /// How many changes wait for the body to catch up.
    pub(crate) fn acked_len(&self) -> usize {
        self.acked.len()
    }

    pub(crate) fn keys_with_body(&self) -> BTreeSet<Key> {
        self.keys_where(|record| record.body().is_some())
    }

    /// The records of which the device held something when the epoch changed.
    pub(crate) fn keys_with_past(&self) -> BTreeSet<Key> {
        self.keys_where(Record::holds_past)
    }

    fn keys_where(&self, wanted: impl Fn(&Record) -> bool) -> BTreeSet<Key> {
        let found = self.iter().filter(|(_, _, record)| wanted(record));
        found.map(|(kind, id, _)| (kind.clone(), id.clone())).collect()
    }

    /// The records whose ids lie in the range and whose scope is its, or not known yet.
    pub(crate) fn in_range<'a>(
        &'a self,
        range: &'a Range,
    ) -> impl Iterator<Item = (&'a RecordId, &'a Record)> {
        let from = range.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let records = self.kinds.get(&range.kind).into_iter();
        records
            .flat_map(move |records| records.range::<RecordId, _>((from, Bound::Unbounded)))
            .take_while(|(id, _)| range.until.as_ref().is_none_or(|until| *id <= until))
            .filter(|(_, record)| {
                let body = record.body().filter(|body| body.is_row());
                body.is_some_and(|body| body.scope.as_ref().is_none_or(|scope| *scope == range.scope))
            })
    }

    /// What the rows of a range add up to here.
    pub(crate) fn sum_in(&self, range: &Range) -> Sum {
        let shares = self.in_range(range).filter_map(|(id, record)| Sums::share(&range.kind, id, record));
        shares.fold(Sum::default(), |sum, (_, share)| sum.add(share))
    }

    pub(crate) fn add_pending(&mut self, key: &Key, n: u64) {
        entry(&mut self.kinds, key).pending.push(n);
    }

    /// Adds a change that is sent before all others of its record.
    pub(crate) fn add_pending_first(&mut self, key: &Key, n: u64) {
        entry(&mut self.kinds, key).pending.insert(0, n);
    }

    /// Takes a settled change off the record, and with it a body that the server turned out not to have.
    pub(crate) fn remove_pending(&mut self, key: &Key, n: u64) {
        self.change(key, |record, _| {
            record.pending.retain(|&pending| pending != n);
            let unknown = record.body().is_some_and(|body| body.version == Seq::ZERO);
            if unknown && !record.holds_past() {
                record.drop_body();
            }
        });
    }

    /// Applies what the server says of a record; tells whether it was news.
    pub(crate) fn apply(&mut self, key: &Key, told: Telling) -> bool {
        self.change(key, |record, rules| record.apply(told, rules))
    }

    /// Puts the server's word in the place of what is here; tells whether anything changed.
    pub(crate) fn replace(&mut self, key: &Key, told: Option<Telling>, seq: Seq) -> bool {
        self.change(key, |record, _| record.replace(told, seq))
    }

    /// Keeps a change that the server took at `version` until the body has caught up.
    pub(crate) fn acknowledge(&mut self, item: Item, version: Seq, hlc: Hlc) {
        let key = (item.kind.clone(), item.id.clone());
        if self.change(&key, |record, _| record.acknowledge(version, item, hlc)) {
            self.acked.insert((version, key));
        }
    }

    /// Settles every acknowledged change up to `seq`, which the bodies have reached with changes of `told`.
    pub(crate) fn reach(&mut self, seq: Seq, told: Told) {
        while let Some(first) = self.acked.first().filter(|(version, _)| *version <= seq).cloned() {
            self.acked.remove(&first);
            self.change(&first.1, |record, rules| match told {
                Told::Everything => record.drop_through(seq),
                Told::OthersOnly => record.fold_through(seq, rules),
            });
        }
    }

    /// Forgets all versions, so that whatever another epoch says is news, and keeps in mind what is held.
    pub(crate) fn leave_epoch(&mut self) {
        self.acked.clear();
        self.change_all(Record::leave_epoch);
    }

    /// Forgets all versions, so that whatever the server says is news.
    pub(crate) fn forget_versions(&mut self) {
        self.change_all(|record, _| record.forget_version());
    }

    fn change_all(&mut self, change: impl Fn(&mut Record, &Rules)) {
        self.sums = Sums::default();
        for (kind, records) in &mut self.kinds {
            let rules = self.policies.of(kind);
            records.values_mut().for_each(|record| change(record, rules));
            records.retain(|_, record| !record.is_empty());
            for (id, record) in &*records {
                self.sums.move_share(kind, None, Sums::share(kind, id, record));
            }
        }
    }

    /// Takes what was held of a record when the epoch changed.
    pub(crate) fn take_held(&mut self, key: &Key) -> Option<(Held, Option<Object>)> {
        self.change(key, |record, _| record.take_held())
    }

    /// Removes a record that a whole snapshot did not tell of, unless the user still edits it.
    pub(crate) fn sweep(&mut self, key: &Key) {
        self.change(key, |record, _| {
            if record.pending.is_empty() {
                record.drop_body();
            } else {
                record.forget_version();
            }
        });
    }

    /// Changes a record, keeps the sums, and forgets a record of which nothing is left.
    fn change<T>(&mut self, key: &Key, change: impl FnOnce(&mut Record, &Rules) -> T) -> T {
        let (kind, id) = key;
        let record = entry(&mut self.kinds, key);
        let before = Sums::share(kind, id, record);
        let changed = change(record, self.policies.of(kind));
        self.sums.move_share(kind, before, Sums::share(kind, id, record));
        let left_over = if record.is_empty() { self.kinds.get_mut(kind) } else { None };
        left_over.map(|records| records.remove(id));
        changed
    }
}

fn entry<'k>(kinds: &'k mut Kinds, (kind, id): &Key) -> &'k mut Record {
    kinds.entry(kind.clone()).or_default().entry(id.clone()).or_default()
}
