//! Where the device stands in the server's sequence, and how it gets on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use driftline_model::Seq;
use driftline_protocol::Rows;

use crate::records::Key;

/// The state of pulling.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pull {
    /// Where the device has everything of the server.
    pub(crate) seq: Seq,
    /// The server's word for it; further than `seq` while pages pass.
    pub(crate) cursor: Option<String>,
    /// Whether a page is to be asked for.
    pub(crate) wanted: bool,
    /// The message that asked for the page which is on its way.
    pub(crate) in_flight: Option<u64>,
    /// No page is asked for before this time.
    pub(crate) hold_until_ms: Option<u64>,
    pub(crate) order: Order,
    /// Where the epoch of the snapshot that passes began, as far as the server says.
    pub(crate) begun: Option<Seq>,
    /// While a snapshot passes: the records that it has not told of yet.
    pub(crate) unseen: Option<BTreeSet<Key>>,
    /// The records that pages since `seq` told to have left the reader's scopes, and where.
    pub(crate) evicted: BTreeMap<Key, Seq>,
    /// Whether pages have passed since `seq`.
    pub(crate) between_pages: bool,
    /// Versions of the device's own writes above `seq`.
    pub(crate) own: BTreeSet<Seq>,
    /// The highest version of a body that no pull has reached.
    pub(crate) ahead: Seq,
    /// The highest place of the server that was heard of.
    pub(crate) head: Seq,
    /// The highest place that a delta told of while it could not be used.
    pub(crate) missed: Seq,
    /// Deltas that wait for the acks of batches which were sent before they came.
    pub(crate) deferred: VecDeque<Deferred>,
}

/// What has to be done before the other of push and pull may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Order {
    /// Both at once.
    #[default]
    Any,
    /// The queue is sent first: the cursor has expired.
    QueueFirst,
    /// A snapshot is pulled first: the epoch has changed.
    SnapshotFirst,
}

/// A delta whose time has not come.
#[derive(Debug, Clone)]
pub(crate) struct Deferred {
    pub(crate) after_batch: u64,
    pub(crate) prev_seq: Seq,
    pub(crate) rows: Rows,
}

impl Pull {
    /// The most deltas that wait for acks; beyond that a pull is shorter.
    pub(crate) const DEFERRED_MAX: usize = 64;

    /// Asks for a page. Deltas are of no use until it has come.
    pub(crate) fn want(&mut self) {
        self.wanted = true;
        if let Some(last) = self.deferred.iter().map(|deferred| deferred.rows.seq).max() {
            self.missed = self.missed.max(last);
        }
        self.deferred.clear();
    }

    /// Tells whether pages are wanted, asked for or still to come.
    pub(crate) fn is_running(&self) -> bool {
        self.wanted || self.in_flight.is_some()
    }

    /// Tells whether everything up to `seq` is here or was written by this device.
    pub(crate) fn reaches(&self, seq: Seq) -> bool {
        let mut at = self.seq;
        for own in &self.own {
            if at >= seq || *own != at.next() {
                break;
            }
            at = *own;
        }
        at >= seq
    }

    /// Tells whether what was told already accounts for a version of a record.
    pub(crate) fn passed(&self, key: &Key, version: Seq) -> bool {
        version <= self.seq || self.evicted.get(key).is_some_and(|left| version <= *left)
    }

    /// Tells whether the server is known to have more than the device.
    pub(crate) fn is_behind(&self) -> bool {
        !self.reaches(self.head)
    }

    /// Moves to a place up to which everything is here.
    pub(crate) fn arrive(&mut self, seq: Seq, cursor: String) {
        self.seq = seq;
        self.cursor = Some(cursor);
        self.own = self.own.split_off(&seq.next());
        self.evicted.clear();
        self.between_pages = false;
    }

    /// Loses the connection.
    pub(crate) fn disconnect(&mut self) {
        self.want();
        self.in_flight = None;
        self.hold_until_ms = None;
        self.missed = Seq::ZERO;
        self.head = self.seq;
        self.own.clear();
    }

    /// Begins anew without a cursor.
    pub(crate) fn restart(&mut self, order: Order) {
        self.want();
        self.cursor = None;
        self.in_flight = None;
        self.hold_until_ms = None;
        self.between_pages = false;
        self.evicted.clear();
        self.order = order;
        if order == Order::SnapshotFirst {
            self.seq = Seq::ZERO;
            self.head = Seq::ZERO;
            self.missed = Seq::ZERO;
            self.ahead = Seq::ZERO;
            self.own.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_writes_bridge_a_gap_and_others_do_not() {
        let own = |seqs: &[u64]| Pull {
            seq: Seq::new(10),
            own: seqs.iter().copied().map(Seq::new).collect(),
            ..Pull::default()
        };
        let table: [(&[u64], u64, bool); 6] = [
            (&[], 10, true),
            (&[], 11, false),
            (&[11], 11, true),
            (&[11, 12], 12, true),
            (&[11, 13], 13, false),
            (&[12], 12, false),
        ];
        for (seqs, to, wanted) in table {
            assert_eq!(own(seqs).reaches(Seq::new(to)), wanted, "{seqs:?} to {to}");
        }
    }
}
