//! A simulated phone: the real client core, a clock of its own, and an app that comes and goes.

use driftline_client::{Event, ItemCode, Replica};
use driftline_model::{DeviceId, OpId, SyncId, TenantId, UserId};

/// Who a device is.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) tenant: TenantId,
    pub(super) user: UserId,
    pub(super) device: DeviceId,
}

/// How a device reaches the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// Not at all.
    Closed,
    /// By a connection of that number.
    Socket(u64),
    /// By requests, of which that one waits for its answer.
    Http(u64),
}

/// An edit that the server has decided, as the device heard it.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub(super) n: u64,
    pub(super) code: ItemCode,
}

/// One phone.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) account: Account,
    pub(super) replica: Replica,
    pub(super) door: Door,
    /// Milliseconds that its clock is off.
    pub(super) offset_ms: i64,
    /// Whether the app is open; it reconnects while it is.
    pub(super) foreground: bool,
    /// Whether WebSockets do not get through to it.
    pub(super) blocked: bool,
    /// No network before this time.
    pub(super) away_until_ms: u64,
    /// Counts the times that the app was opened.
    pub(super) visit: u64,
    /// Counts attempts to connect, so that an old one is not taken for the present one.
    pub(super) attempt: u64,
    /// Counts requests.
    pub(super) request: u64,
    /// Failures in a row, for the back-off.
    pub(super) failures: u32,
    /// When it last sent something.
    pub(super) sent_ms: u64,
    /// When it last planned to wake up.
    pub(super) wake_ms: u64,
    /// A cursor that came from requests, which name no epoch: it may be of another one than the replica has heard of
    /// since, until the server has judged it.
    unjudged: Option<String>,
    knew_epoch: bool,
    number: u64,
    edits: u64,
}

impl Device {
    pub(super) fn new(number: usize, account: Account, offset_ms: i64) -> Self {
        Self {
            account,
            replica: Replica::default(),
            door: Door::Closed,
            offset_ms,
            foreground: false,
            blocked: false,
            away_until_ms: 0,
            visit: 0,
            attempt: 0,
            request: 0,
            failures: 0,
            sent_ms: 0,
            wake_ms: 0,
            unjudged: None,
            knew_epoch: false,
            number: number as u64,
            edits: 0,
        }
    }

    /// The device's own clock.
    pub(super) fn clock_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_add_signed(self.offset_ms)
    }

    /// Whether the replica's place is known to be one of the epoch that it names.
    pub(super) fn knows_its_place(&mut self) -> bool {
        let knows_epoch = self.replica.epoch().is_some();
        let cursor = self.replica.cursor().map(str::to_owned);
        if knows_epoch && !std::mem::replace(&mut self.knew_epoch, knows_epoch) {
            self.unjudged = cursor.clone();
        }
        if self.unjudged != cursor {
            self.unjudged = None;
        }
        cursor.is_some() && self.unjudged.is_none()
    }

    /// Names the next edit.
    pub(super) fn op_id(&mut self) -> OpId {
        self.edits += 1;
        let text = format!("{:08x}-0000-7000-8000-{:012x}", self.number, self.edits);
        OpId::new(&text).expect("hexadecimal digits and hyphens")
    }

    /// Names a sync session.
    pub(super) fn sync_id(&self, pipe: u64) -> SyncId {
        let text = format!("{:08x}-0000-4000-8000-{pipe:012x}", self.number);
        SyncId::new(&text).expect("hexadecimal digits and hyphens")
    }

    /// Takes what the replica has to tell of edits that left the queue.
    pub(super) fn heard(&mut self) -> Vec<Heard> {
        let mut heard = Vec::new();
        while let Some(event) = self.replica.poll_event() {
            match event {
                Event::Acknowledged(told) => heard.push(Heard { n: told.n, code: told.code }),
                Event::DeadLetter(letter) => {
                    heard.push(Heard { n: letter.item.n.unwrap_or_default(), code: letter.code });
                }
                _ => {}
            }
        }
        heard
    }
}
