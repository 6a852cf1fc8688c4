//! All records of a device.

use std::collections::{BTreeMap, BTreeSet};

use driftline_model::{KindName, Object, RecordId, Seq};
use driftline_protocol::{ChangeKind, Item};

use crate::record::{Body, Record, View};

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
#[derive(Debug, Default)]
pub(crate) struct Records {
    kinds: BTreeMap<KindName, BTreeMap<RecordId, Record>>,
    acked: BTreeSet<(Seq, Key)>,
}

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

    pub(crate) fn view<'a>(record: &'a Record, item: impl Fn(u64) -> Option<&'a Item>) -> Option<View<'a>> {
        record.view(record.pending.iter().filter_map(|&n| item(n)).map(|item| (item.op, &item.fields)))
    }

    /// How many changes wait for the body to catch up.
    pub(crate) fn acked_len(&self) -> usize {
        self.acked.len()
    }

    pub(crate) fn keys_with_body(&self) -> BTreeSet<Key> {
        self.iter()
            .filter(|(_, _, record)| record.body().is_some())
            .map(|(kind, id, _)| (kind.clone(), id.clone()))
            .collect()
    }

    pub(crate) fn add_pending(&mut self, key: &Key, n: u64) {
        self.entry(key).pending.push(n);
    }

    /// Takes a settled change off the record, and with it a body that the server turned out not to have.
    pub(crate) fn remove_pending(&mut self, key: &Key, n: u64) {
        let record = self.entry(key);
        record.pending.retain(|&pending| pending != n);
        if record.body().is_some_and(|body| body.version == Seq::ZERO) {
            record.drop_body();
        }
        self.tidy(key);
    }

    /// Applies what the server says of a record; tells whether it was news.
    pub(crate) fn apply(&mut self, key: &Key, version: Seq, change: ChangeKind, fields: Object) -> bool {
        self.entry(key).apply(version, change, fields)
    }

    /// Keeps a change that the server took at `version` until the body has caught up.
    pub(crate) fn acknowledge(&mut self, item: Item, version: Seq) {
        let key = (item.kind, item.id);
        if self.entry(&key).acknowledge(version, item.op, item.fields) {
            self.acked.insert((version, key.clone()));
        }
        self.tidy(&key);
    }

    /// Settles every acknowledged change up to `seq`, which the bodies have reached with changes of `told`.
    pub(crate) fn reach(&mut self, seq: Seq, told: Told) {
        while let Some(first) = self.acked.first().filter(|(version, _)| *version <= seq).cloned() {
            self.acked.remove(&first);
            let (_, key) = first;
            match told {
                Told::Everything => self.entry(&key).drop_through(seq),
                Told::OthersOnly => self.entry(&key).fold_through(seq),
            }
            self.tidy(&key);
        }
    }

    /// Forgets all versions, so that whatever another epoch says is news.
    pub(crate) fn forget_versions(&mut self) {
        self.acked.clear();
        self.kinds.values_mut().flat_map(BTreeMap::values_mut).for_each(Record::forget_version);
        self.kinds.values_mut().for_each(|records| records.retain(|_, record| !record.is_empty()));
    }

    /// Removes a record that a whole snapshot did not tell of, unless the user still edits it.
    pub(crate) fn sweep(&mut self, key: &Key) {
        let record = self.entry(key);
        if record.pending.is_empty() {
            record.drop_body();
        } else {
            record.forget_version();
        }
        self.tidy(key);
    }

    fn entry(&mut self, (kind, id): &Key) -> &mut Record {
        self.kinds.entry(kind.clone()).or_default().entry(id.clone()).or_default()
    }

    fn tidy(&mut self, (kind, id): &Key) {
        let Some(records) = self.kinds.get_mut(kind) else { return };
        if records.get(id).is_some_and(Record::is_empty) {
            records.remove(id);
        }
    }
}
