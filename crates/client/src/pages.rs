//! The pull half: pages, deltas and resyncs.

use driftline_model::{Epoch, Seq};
use driftline_protocol::{Change, ChangeKind, ResyncReason, Rows};

use crate::event::Event;
use crate::pull::{Deferred, Order, Pull};
use crate::record::Telling;
use crate::records::Told;
use crate::replica::Replica;
use crate::session::Link;

impl Replica {
    /// Tells whether a page may be asked for now.
    pub(crate) fn may_pull(&self) -> bool {
        let pull = &self.pull;
        let turn = pull.order != Order::QueueFirst || self.queue.is_idle();
        pull.wanted && pull.in_flight.is_none() && pull.hold_until_ms.is_none() && turn
    }

    /// Notes that a page is asked for; without a cursor it is the first of a snapshot.
    pub(crate) fn begin_page(&mut self, id: u64) {
        self.pull.wanted = false;
        self.pull.in_flight = Some(id);
        if self.pull.order == Order::QueueFirst {
            self.pull.order = Order::Any;
        }
        if self.pull.cursor.is_none() {
            self.pull.unseen = Some(self.records.keys_with_body());
        }
    }

    pub(crate) fn handle_page(&mut self, rows: Rows, reply_to: Option<&str>) {
        if rows.range.is_some() || reply_to.is_some_and(|id| id.starts_with('r')) {
            return self.handle_range(rows, reply_to);
        }
        let Some(asked) = self.pull.in_flight else { return };
        if reply_to.is_some_and(|id| id.strip_prefix('p') != Some(asked.to_string().as_str())) {
            return;
        }
        self.pull.in_flight = None;
        self.apply_page(rows);
    }

    pub(crate) fn apply_page(&mut self, rows: Rows) {
        let Rows { cursor, seq, has_more, checksums, epoch_seq, .. } = self.apply_rows(rows);
        self.pull.begun = epoch_seq.or(self.pull.begun);
        if has_more {
            self.pull.cursor = Some(cursor);
            self.pull.between_pages = true;
            self.pull.wanted = true;
            return;
        }
        let begun = self.pull.begun.take().unwrap_or(seq);
        self.heal(begun);
        for key in self.pull.unseen.take().unwrap_or_default() {
            if self.records.version(&key) > seq {
                continue;
            }
            self.records.sweep(&key);
            let (kind, id) = key;
            self.events.push(Event::Changed { kind, id });
        }
        if self.pull.order == Order::SnapshotFirst {
            self.pull.order = Order::Any;
        }
        self.arrive(seq, cursor, Told::Everything);
        self.queue.rebase(|key| self.records.version(key));
        self.pull.wanted = std::mem::take(&mut self.pull.missed) > seq || self.pull.wanted;
        self.events.push(Event::CaughtUp { seq });
        self.compare(&checksums, seq);
    }

    /// Applies the changes and returns the rest.
    fn apply_rows(&mut self, mut rows: Rows) -> Rows {
        self.raise_hlc(rows.hlc);
        self.pull.head = self.pull.head.max(rows.seq);
        if let Some(progress) = rows.progress {
            self.events.push(Event::Progress(progress));
        }
        for change in std::mem::take(&mut rows.changes) {
            let key = (change.kind, change.id);
            if let Some(unseen) = &mut self.pull.unseen {
                unseen.remove(&key);
            }
            let Change { version, change, fields, scope, .. } = change;
            if change == ChangeKind::Evict {
                self.pull.evicted.insert(key.clone(), version);
            } else {
                self.pull.evicted.remove(&key);
            }
            let told = Telling { version, change, fields, scope: Some(scope), hlc: rows.hlc };
            if self.records.apply(&key, told) {
                let (kind, id) = key;
                self.events.push(match change {
                    ChangeKind::Evict => Event::Evicted { kind, id },
                    _ => Event::Changed { kind, id },
                });
            }
        }
        rows
    }

    fn arrive(&mut self, seq: Seq, cursor: String, told: Told) {
        self.pull.arrive(seq, cursor);
        self.records.reach(seq, told);
    }

    pub(crate) fn handle_delta(&mut self, prev_seq: Seq, rows: Rows) {
        self.raise_hlc(rows.hlc);
        self.pull.head = self.pull.head.max(rows.seq);
        if self.session.link != Link::Open || self.pull.is_running() {
            self.pull.missed = self.pull.missed.max(rows.seq);
            return;
        }
        // The delta may lie on top of own writes whose acks are on their way: the acks go under it.
        match self.queue.last_in_flight() {
            None => self.accept_delta(prev_seq, rows),
            Some(after_batch) => {
                self.pull.deferred.push_back(Deferred { after_batch, prev_seq, rows });
                if self.pull.deferred.len() > Pull::DEFERRED_MAX {
                    self.pull.want();
                }
            }
        }
    }

    /// Takes up the deltas whose acks have come.
    pub(crate) fn resume_deltas(&mut self) {
        let waits_for = self.queue.first_in_flight().unwrap_or(u64::MAX);
        while self.pull.deferred.front().is_some_and(|deferred| deferred.after_batch < waits_for) {
            if let Some(Deferred { prev_seq, rows, .. }) = self.pull.deferred.pop_front() {
                self.accept_delta(prev_seq, rows);
            }
        }
    }

    /// Applies a delta that continues where the device stands; any other asks for a pull instead.
    fn accept_delta(&mut self, prev_seq: Seq, rows: Rows) {
        if rows.seq <= self.pull.seq {
            return;
        }
        if prev_seq < self.pull.seq || !self.pull.reaches(prev_seq) {
            return self.pull.want();
        }
        let Rows { cursor, seq, .. } = self.apply_rows(rows);
        self.arrive(seq, cursor, Told::OthersOnly);
    }

    /// Begins anew; unsent edits stay.
    pub(crate) fn resync(&mut self, reason: ResyncReason, epoch: Option<Epoch>) {
        // The server may say the same in answer to several questions.
        let known = epoch.is_none() || epoch == self.epoch;
        if self.pull.cursor.is_none() && (known || reason == ResyncReason::CursorExpired) {
            return;
        }
        match reason {
            ResyncReason::EpochChanged => {
                self.epoch = epoch;
                self.records.leave_epoch();
                self.queue.forget_bases();
                self.pull.restart(Order::SnapshotFirst);
            }
            // What the device holds of a lost epoch is compared with a snapshot before anything is sent.
            _ if self.pull.order == Order::SnapshotFirst => self.pull.restart(Order::SnapshotFirst),
            _ => self.pull.restart(Order::QueueFirst),
        }
        self.events.push(Event::Resync(reason));
    }
}
