//! What the stores share about the log of events: how a page is cut, and how far devices have followed.

use std::sync::Arc;

use driftline_engine::{
    DeviceEvents, DeviceQuery, DeviceRow, DeviceSign, Event, EventDraft, EventPage, EventQuery,
};
use driftline_model::{DeviceId, Epoch};

/// States that events told of go so many milliseconds after the last one.
pub(crate) const VERSIONS_MS: u64 = 90 * 24 * 3_600_000;

/// How long it is known that something of the server's own, whose name begins with `~`, was used: an hour.
pub(crate) const USED_MS: u64 = 3_600_000;

/// The numbers that a query can find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdRange {
    /// Those above this one.
    pub(crate) above: u64,
    /// Those up to this one.
    pub(crate) through: u64,
}

impl IdRange {
    pub(crate) fn of(query: &EventQuery, head: u64) -> Self {
        let through = query.until.map_or(head, |until| until.min(head));
        match (query.newest_first, query.after) {
            (false, after) => Self { above: after, through },
            (true, 0) => Self { above: 0, through },
            (true, before) => Self { above: 0, through: through.min(before - 1) },
        }
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.above >= self.through
    }

    /// Cuts off what was read, up to a number in the order of reading.
    pub(crate) fn behind(self, last: u64, newest_first: bool) -> Self {
        if newest_first {
            Self { through: last.saturating_sub(1), ..self }
        } else {
            Self { above: last, ..self }
        }
    }
}

/// A page that is being filled.
#[derive(Debug)]
pub(crate) struct Filling {
    page: EventPage,
    rows: usize,
    bytes: usize,
    taken: usize,
}

impl Filling {
    pub(crate) fn new(query: &EventQuery, epoch: Epoch, head: u64, floor: u64) -> Self {
        let page = EventPage { epoch, head, floor, events: Vec::new(), more: false };
        Self { page, rows: query.rows, bytes: query.bytes, taken: 0 }
    }

    /// How many more events may be wanted, the one that shows that there are more among them.
    pub(crate) fn wants(&self) -> usize {
        self.rows.saturating_sub(self.page.events.len()).saturating_add(1)
    }

    /// Takes the next event; tells whether more may be taken. One that has no room says that there are more.
    pub(crate) fn take(&mut self, event: Event) -> bool {
        let bytes = event.data.len().max(1);
        let first = self.page.events.is_empty();
        if self.page.events.len() >= self.rows || (!first && self.taken + bytes > self.bytes) {
            self.page.more = true;
            return false;
        }
        self.taken += bytes;
        self.page.events.push(Arc::new(event));
        true
    }

    pub(crate) fn finish(self) -> EventPage {
        self.page
    }
}

/// How far a device has followed the log, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Following {
    pub(crate) events: DeviceEvents,
    /// When it began to listen last, or acknowledged in another life of the log, in Unix milliseconds.
    pub(crate) listened_ms: u64,
}

impl Following {
    /// Takes a sign; tells whether it changed anything. An older sign than what is known changes nothing.
    pub(crate) fn note(&mut self, at_ms: u64, sign: &DeviceSign) -> bool {
        let before = self.clone();
        match sign {
            DeviceSign::Acknowledged { epoch, event } => self.acknowledge(at_ms, *epoch, *event),
            DeviceSign::Listened { epoch, since, topics, refused } => {
                // Of the same life, a device that only acknowledged so far did listen before.
                let unheard = self.events.epoch == Some(*epoch) && self.events.since.is_none();
                if at_ms >= self.listened_ms || unheard {
                    let acked = if self.events.epoch == Some(*epoch) { self.events.acked } else { 0 };
                    let (topics, refused) = (topics.clone(), refused.clone());
                    self.events = DeviceEvents {
                        epoch: Some(*epoch),
                        acked,
                        since: Some(*since),
                        topics,
                        refused,
                        slow: None,
                    };
                    self.listened_ms = self.listened_ms.max(at_ms);
                }
            }
            DeviceSign::Slow { event } => {
                if self.events.since.is_some() && at_ms >= self.listened_ms {
                    self.events.slow = self.events.slow.max(Some(*event));
                }
            }
            DeviceSign::Heard
            | DeviceSign::Connected { .. }
            | DeviceSign::Disconnected { .. }
            | DeviceSign::Reported { .. } => {}
        }
        *self != before
    }

    fn acknowledge(&mut self, at_ms: u64, epoch: Epoch, event: u64) {
        if self.events.epoch == Some(epoch) {
            self.events.acked = self.events.acked.max(event);
        } else if at_ms >= self.listened_ms {
            self.events = DeviceEvents { epoch: Some(epoch), acked: event, ..DeviceEvents::default() };
            self.listened_ms = at_ms;
        }
    }
}

/// Tells whether a sign is about the log.
pub(crate) const fn is_of_the_log(sign: &DeviceSign) -> bool {
    matches!(sign, DeviceSign::Acknowledged { .. } | DeviceSign::Listened { .. } | DeviceSign::Slow { .. })
}

/// Gives an event of a device to the device's owner; `rows` are the devices of that name.
pub(crate) fn own(draft: &mut EventDraft, mut rows: Vec<DeviceRow>) -> Result<(), String> {
    match (rows.pop(), rows.pop()) {
        (Some(_), Some(_)) => Err("topic: several users have a device of this name".into()),
        (row, _) => {
            // Of a device that nobody has registered only staff hears.
            draft.owner = row.map(|row| row.key);
            Ok(())
        }
    }
}

/// Asks for the devices of a name.
pub(crate) fn named(device_id: DeviceId) -> DeviceQuery {
    DeviceQuery { device_id: Some(device_id), owner: None, after: None, rows: 2 }
}
