//! A map that is bounded, and forgets what says nothing any more.

use std::collections::HashMap;
use std::hash::Hash;

/// Entries below which nothing is looked through.
const SWEEP_LEAST: usize = 1024;

/// Milliseconds between two looks through a map that is full.
const SWEEP_MS: u64 = 1000;

/// Keeps a value for each key, up to a number. Idle ones are looked for when the map has doubled since the last time,
/// so that forgetting costs a constant per entry and needs no timer.
#[derive(Debug)]
pub(super) struct Kept<K, V> {
    entries: HashMap<K, V>,
    most: usize,
    sweep_at: usize,
    swept_ms: u64,
}

impl<K: Eq + Hash, V> Kept<K, V> {
    pub(super) fn new(most: usize) -> Self {
        Self { entries: HashMap::new(), most, sweep_at: SWEEP_LEAST.min(most), swept_ms: 0 }
    }

    #[cfg(test)]
    pub(super) fn find(&self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }

    /// Finds or makes the value of a key; gives nothing when it is not there and no idle one can go for it.
    pub(super) fn find_or_make(
        &mut self,
        key: K,
        now_ms: u64,
        is_idle: impl Fn(&V) -> bool,
        make: impl FnOnce() -> V,
    ) -> Option<&V> {
        if !self.entries.contains_key(&key) && !self.has_room(now_ms, is_idle) {
            return None;
        }
        Some(self.entries.entry(key).or_insert_with(make))
    }

    fn has_room(&mut self, now_ms: u64, is_idle: impl Fn(&V) -> bool) -> bool {
        // A full map of busy entries is not looked through for every newcomer.
        let rested = self.sweep_at < self.most || now_ms.abs_diff(self.swept_ms) >= SWEEP_MS;
        if self.entries.len() >= self.sweep_at && rested {
            self.entries.retain(|_, value| !is_idle(value));
            let twice = self.entries.len().saturating_mul(2);
            self.entries.shrink_to(twice);
            self.sweep_at = twice.max(SWEEP_LEAST).min(self.most);
            self.swept_ms = now_ms;
        }
        self.entries.len() < self.most
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(kept: &mut Kept<u64, bool>, key: u64, busy: bool, now_ms: u64) -> bool {
        kept.find_or_make(key, now_ms, |busy| !busy, || busy).is_some()
    }

    #[test]
    fn idle_entries_go_before_the_map_doubles() {
        let mut kept = Kept::new(1 << 20);
        for key in 0..100_000 {
            assert!(put(&mut kept, key, key < 600, 0));
        }
        assert!(
            kept.len() <= 2 * SWEEP_LEAST && (0..600).all(|key| kept.find(&key).is_some()),
            "{}",
            kept.len()
        );
    }

    #[test]
    fn a_full_map_takes_nobody_and_looks_again_after_a_second() {
        let mut kept = Kept::new(10);
        assert!((0..10).all(|key| put(&mut kept, key, true, 5000)));
        assert!(!put(&mut kept, 10, true, 5000) && kept.len() == 10);
        assert!(put(&mut kept, 3, true, 5000), "who is there stays");
        kept.entries.insert(4, false);
        assert!(!put(&mut kept, 10, true, 5999), "not looked through yet");
        assert!(put(&mut kept, 10, true, 6000));
        assert!(kept.find(&4).is_none() && kept.len() == 10);
    }
}
