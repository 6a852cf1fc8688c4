//! What a replica tells its app.

use std::collections::{BTreeMap, VecDeque};

use driftline_model::{ConflictId, KindName, OpId, RecordId, ScopeName, Seq};
use driftline_protocol::{
    ConflictDoc, ConflictResolved, ErrorMessage, FieldError, Item, ItemCode, Progress, ResyncReason, Totals,
    WinnerName,
};

/// Something that an app may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A sync session is open.
    SessionStarted {
        /// The head of the tenant's sequence.
        seq: Seq,
    },
    /// The server's copy of a record changed or went away.
    Changed {
        /// The record's kind.
        kind: KindName,
        /// The record.
        id: RecordId,
    },
    /// A record left the scopes that the user may read; it lives on for others. Waiting edits of it stay queued.
    Evicted {
        /// The record's kind.
        kind: KindName,
        /// The record.
        id: RecordId,
    },
    /// The server decided an edit, which left the queue.
    Acknowledged(Acknowledged),
    /// The server refused an edit for good; it left the queue for the dead letters.
    DeadLetter(DeadLetter),
    /// A pull is complete: the device has everything up to `seq`.
    CaughtUp {
        /// Where the device stands.
        seq: Seq,
    },
    /// How far the snapshot has come that the device pulls.
    Progress(Progress),
    /// The device pulls everything anew; unsent edits stay.
    Resync(ResyncReason),
    /// The server was restored to an older state, and the device gives back what it still holds.
    Healing {
        /// How many rows.
        rows: u64,
    },
    /// Rows differed from the server's without a reason, and were replaced.
    Repaired {
        /// Their kind.
        kind: KindName,
        /// Their scope.
        scope: ScopeName,
        /// How many.
        rows: u64,
    },
    /// A change was set aside for a reviewer: one of this device, or one that the user may review.
    ConflictOpened(Box<ConflictDoc>),
    /// A reviewer decided a conflict: this user, or another one.
    ConflictResolved(Box<ConflictResolved>),
    /// The server refused a resolution of this user. A lost compare-and-set comes with the record as it stands.
    ResolutionRefused {
        /// The conflict, which waits on.
        conflict_id: ConflictId,
        /// Why.
        error: ErrorMessage,
    },
    /// The server reported an error about a whole message.
    ServerError(ErrorMessage),
    /// The server is about to shut down.
    Draining {
        /// When to connect again.
        reconnect_after_ms: u64,
    },
    /// The sync session ended as asked.
    SessionEnded(Totals),
    /// The app did not read events fast enough, and this many of the oldest are lost. State is unharmed.
    Lagged(u64),
}

/// How the server decided an edit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    /// The edit's name.
    pub op_id: OpId,
    /// The edit's number.
    pub n: u64,
    /// The record's kind.
    pub kind: KindName,
    /// The record.
    pub id: RecordId,
    /// What became of it.
    pub code: ItemCode,
    /// Whether the server had decided it before.
    pub duplicate: bool,
    /// Per field that a strategy decided, the winner.
    pub winners: BTreeMap<String, WinnerName>,
    /// The conflict that waits for a reviewer, if one does.
    pub conflict_id: Option<String>,
}

/// An edit that the server refused for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The edit as it was sent.
    pub item: Item,
    /// Why.
    pub code: ItemCode,
    /// What is wrong where.
    pub errors: Vec<FieldError>,
}

/// Events on their way to the app; the oldest make room when nobody reads.
#[derive(Debug, Clone, Default)]
pub(crate) struct Events {
    waiting: VecDeque<Event>,
    lost: u64,
}

impl Events {
    /// The most events that wait.
    pub(crate) const MAX: usize = 16_384;

    pub(crate) fn push(&mut self, event: Event) {
        if self.waiting.len() == Self::MAX {
            self.waiting.pop_front();
            self.lost += 1;
        }
        self.waiting.push_back(event);
    }

    pub(crate) fn pop(&mut self) -> Option<Event> {
        match std::mem::take(&mut self.lost) {
            0 => self.waiting.pop_front(),
            lost => Some(Event::Lagged(lost)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_events_make_room_and_are_counted() {
        let mut events = Events::default();
        for seq in 0..=Events::MAX as u64 {
            events.push(Event::CaughtUp { seq: Seq::new(seq) });
        }
        assert_eq!(events.pop(), Some(Event::Lagged(1)));
        assert_eq!(events.pop(), Some(Event::CaughtUp { seq: Seq::new(1) }));
        assert_eq!(events.waiting.len(), Events::MAX - 1);
    }
}
