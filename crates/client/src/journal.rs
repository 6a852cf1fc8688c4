//! What the device added to counters, for the day on which the server has to be restored.

use std::collections::{BTreeMap, VecDeque};

use driftline_model::{Seq, key_cmp};

use crate::records::Key;

/// The increments that the server took from this device, each with its version; the oldest make room.
#[derive(Debug, Clone, Default)]
pub(crate) struct Journal {
    rows: BTreeMap<Key, VecDeque<(Seq, Box<str>, i64)>>,
    /// Whose increment comes next when room is made.
    oldest: VecDeque<Key>,
}

impl Journal {
    /// The most increments that are kept.
    const MAX: usize = 16_384;

    /// Notes what the server took at `version`.
    pub(crate) fn note(&mut self, key: &Key, version: Seq, increments: &[(Box<str>, i64)]) {
        for (name, by) in increments {
            self.rows.entry(key.clone()).or_default().push_back((version, name.clone(), *by));
            self.oldest.push_back(key.clone());
        }
        while self.oldest.len() > Self::MAX {
            if let Some(key) = self.oldest.pop_front() {
                self.forget_one(&key);
            }
        }
    }

    fn forget_one(&mut self, key: &Key) {
        if let Some(row) = self.rows.get_mut(key) {
            row.pop_front();
            if row.is_empty() {
                self.rows.remove(key);
            }
        }
    }

    /// Adds up, per counter of a row, what was added after `version`; in canonical order of the names.
    pub(crate) fn since(&self, key: &Key, version: Seq) -> Vec<(Box<str>, i64)> {
        let mut sums: Vec<(Box<str>, i64)> = Vec::new();
        let row = self.rows.get(key).into_iter().flatten();
        for (_, name, by) in row.filter(|(at, ..)| *at > version) {
            match sums.binary_search_by(|(known, _)| key_cmp(known, name)) {
                Ok(at) => sums[at].1 = sums[at].1.saturating_add(*by),
                Err(at) => sums.insert(at, (name.clone(), *by)),
            }
        }
        sums
    }

    /// Forgets what was added to a row after `version`: it belongs to an epoch that is gone.
    pub(crate) fn forget_after(&mut self, key: &Key, version: Seq) {
        if let Some(row) = self.rows.get_mut(key) {
            row.retain(|(at, ..)| *at <= version);
            if row.is_empty() {
                self.rows.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use driftline_model::{KindName, RecordId};

    use super::*;

    fn key(id: &str) -> Key {
        (KindName::new("k").expect("a kind"), RecordId::new(id).expect("a record"))
    }

    #[test]
    fn increments_add_up_per_counter_and_the_oldest_make_room() {
        let mut journal = Journal::default();
        let (x, y) = (key("x"), key("y"));
        journal.note(&x, Seq::new(1), &[("b".into(), 1), ("a".into(), 2)]);
        journal.note(&x, Seq::new(3), &[("b".into(), -5)]);
        assert_eq!(journal.since(&x, Seq::ZERO), [("a".into(), 2), ("b".into(), -4)]);
        assert_eq!(journal.since(&x, Seq::new(1)), [("b".into(), -5)]);
        for version in 4..4 + Journal::MAX as u64 {
            journal.note(&y, Seq::new(version), &[("c".into(), 1)]);
        }
        assert_eq!(journal.since(&x, Seq::ZERO), []);
        assert_eq!(journal.since(&y, Seq::ZERO), [("c".into(), Journal::MAX as i64)]);
        journal.forget_after(&y, Seq::new(5));
        assert_eq!(journal.since(&y, Seq::ZERO), [("c".into(), 2)]);
    }
}
