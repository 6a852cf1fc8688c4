//! What one connection counted; the tallies of all connections are merged at the end.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::latency::Latencies;
use super::window::Window;

/// Occurrences by code.
#[derive(Debug, Default)]
pub(crate) struct Codes(BTreeMap<String, u64>);

impl Codes {
    /// Counts `count` occurrences of a code; a code that never occurred is not listed.
    pub(crate) fn add(&mut self, code: &str, count: u64) {
        match self.0.get_mut(code) {
            Some(seen) => *seen += count,
            None if count == 0 => {}
            None => {
                self.0.insert(code.to_owned(), count);
            }
        }
    }

    /// Gives the counts, ordered by code.
    pub(crate) fn into_map(self) -> BTreeMap<String, u64> {
        self.0
    }

    fn merge(&mut self, other: Codes) {
        for (code, count) in other.0 {
            self.add(&code, count);
        }
    }
}

/// Counts of one connection or of all.
#[derive(Debug)]
pub(crate) struct Tally {
    window: Window,
    /// Operations that ended well in the window.
    pub(crate) operations: u64,
    /// Items that these operations carried and the server took.
    pub(crate) items: u64,
    /// Latencies of the operations that were due in the window.
    pub(crate) latencies: Latencies,
    /// Bytes read in the window.
    pub(crate) bytes_in: u64,
    /// Bytes written in the window.
    pub(crate) bytes_out: u64,
    /// Faults: error codes of the server, close codes, failures of the connection.
    pub(crate) errors: Codes,
    /// Per-item result codes of the operations in the window.
    pub(crate) results: Codes,
    /// Messages that answered nothing: live changes, heartbeats.
    pub(crate) unsolicited: u64,
    /// Operations that were due in the window and never sent, because too many were unanswered.
    pub(crate) unsent: u64,
    /// Operations that were sent and never answered.
    pub(crate) unanswered: u64,
}

impl Tally {
    /// Begins with nothing counted.
    pub(crate) fn new(window: Window) -> Self {
        Tally {
            window,
            operations: 0,
            items: 0,
            latencies: Latencies::new(),
            bytes_in: 0,
            bytes_out: 0,
            errors: Codes::default(),
            results: Codes::default(),
            unsolicited: 0,
            unsent: 0,
            unanswered: 0,
        }
    }

    /// Counts an operation that was due at `due`, ended well at `ended` and carried `items` items.
    pub(crate) fn done(&mut self, due: Instant, ended: Instant, items: u64) {
        if self.window.counts(ended) {
            self.operations += 1;
            self.items += items;
        }
        self.waited(due, ended);
    }

    /// Records how long an operation waited, if it was due in the window.
    pub(crate) fn waited(&mut self, due: Instant, ended: Instant) {
        if self.window.from <= due && due < self.window.until {
            self.latencies.record(ended.saturating_duration_since(due));
        }
    }

    /// Adds the counts of another tally.
    pub(crate) fn merge(&mut self, other: Tally) {
        self.operations += other.operations;
        self.items += other.items;
        self.latencies.merge(&other.latencies);
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.errors.merge(other.errors);
        self.results.merge(other.results);
        self.unsolicited += other.unsolicited;
        self.unsent += other.unsent;
        self.unanswered += other.unanswered;
    }
}

#[cfg(test)]
mod tests {
    use super::super::now::now;
    use std::time::Duration;

    use super::*;

    #[test]
    fn operations_count_by_their_end_and_latencies_by_their_start() {
        let base = now();
        let at = |s: u64| base + Duration::from_secs(s);
        let mut tally = Tally::new(Window { from: at(10), until: at(20), deadline: at(25) });
        tally.done(at(8), at(9), 5); // before the window
        tally.done(at(9), at(11), 5); // ends within: a throughput, no latency
        tally.done(at(12), at(13), 5); // both
        tally.done(at(19), at(22), 5); // due within, answered late: a latency, no throughput
        assert_eq!((tally.operations, tally.items), (2, 10));
        assert_eq!(tally.latencies.percentiles().map(|p| p.max), Some(3_000.0));
    }

    #[test]
    fn merging_adds_codes() {
        let now = now();
        let window = Window { from: now, until: now, deadline: now };
        let (mut left, mut right) = (Tally::new(window), Tally::new(window));
        left.results.add("applied", 2);
        right.results.add("applied", 3);
        right.results.add("noop", 1);
        left.merge(right);
        let codes = left.results.into_map();
        assert_eq!(codes, BTreeMap::from([("applied".to_owned(), 5), ("noop".to_owned(), 1)]));
    }
}
