//! The connection's life: greeting, session, and what to send next.

use driftline_model::{Limits, Seq, SyncId};
use driftline_protocol::{ClientMessage, ConnectionEstablished, Fault, Item, ResyncReason, SessionInfo};

use crate::event::Event;
use crate::policies::Policies;
use crate::pull::Order;
use crate::queue::BatchLimits;
use crate::replica::{Replica, malformed};

/// How far the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Link {
    /// There is none.
    #[default]
    Offline,
    /// Open; the server's greeting comes first.
    Greeting,
    /// Greeted; `start_sync` is to be sent.
    Greeted,
    /// `start_sync` was sent.
    Starting,
    /// The session is open.
    Open,
    /// The session was ended, at this side's wish.
    Ended,
    /// One request to the HTTP door is on its way.
    Http,
}

/// The connection and its session.
#[derive(Debug, Clone, Default)]
pub(crate) struct Session {
    pub(crate) link: Link,
    sync_id: Option<SyncId>,
    /// Rises with every message of the device's life, so that a late answer is not taken for another's.
    next_message: u64,
    /// Nothing is pushed or started before this time.
    pub(crate) hold_until_ms: Option<u64>,
    pub(crate) limits: BatchLimits,
    pub(crate) heartbeat: bool,
    pub(crate) ending: bool,
    pub(crate) heartbeat_interval_s: Option<u64>,
}

impl Default for BatchLimits {
    fn default() -> Self {
        let limits = Limits::default();
        Self { items: limits.batch_items, bytes: limits.message_bytes - ENVELOPE_BYTES }
    }
}

/// Room for what stands around the items of a batch, and for the heads of the items.
const ENVELOPE_BYTES: usize = 48 << 10;

impl Session {
    pub(crate) fn open(&mut self, sync_id: SyncId) {
        *self = Self {
            link: Link::Greeting,
            sync_id: Some(sync_id),
            next_message: self.next_message,
            ..Self::default()
        };
    }

    pub(crate) fn close(&mut self) {
        *self = Self { next_message: self.next_message, ..Self::default() };
    }

    pub(crate) fn greeted(&mut self, greeting: &ConnectionEstablished) {
        self.heartbeat_interval_s = Some(greeting.heartbeat_interval_s);
        if self.link == Link::Greeting {
            self.link = Link::Greeted;
        }
    }

    /// Sends `start_sync` again if it waits for its answer.
    pub(crate) fn start_again(&mut self) {
        if self.link == Link::Starting {
            self.link = Link::Greeted;
        }
    }

    pub(crate) fn message_id(&mut self) -> u64 {
        self.next_message += 1;
        self.next_message
    }

    pub(crate) fn sync_id(&self) -> &str {
        self.sync_id.as_ref().map_or("", SyncId::as_str)
    }

    fn announce(&mut self, info: &SessionInfo) {
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        self.limits = BatchLimits {
            items: size(info.max_batch_items).max(1),
            bytes: size(info.max_message_bytes).saturating_sub(ENVELOPE_BYTES).max(1),
        };
    }
}

impl Replica {
    /// Returns the next message to send, as a text frame; nothing when there is none for now.
    pub fn poll_transmit(&mut self) -> Option<String> {
        let held = self.session.hold_until_ms.is_some();
        match self.session.link {
            Link::Greeted if !held => return Some(self.start_sync()),
            Link::Open => {}
            _ => return None,
        }
        if std::mem::take(&mut self.session.heartbeat) {
            return Some(self.heartbeat());
        }
        if self.may_pull() {
            return Some(self.request_page());
        }
        if let Some(message) = self.next_resolution().or_else(|| self.next_repair()) {
            return Some(message);
        }
        let batch = if held || !self.may_push() { None } else { self.take_batch() };
        if let Some((batch_seq, items)) = batch {
            let acked_n = self.queue.acked_n();
            let sync_id = self.session.sync_id();
            let message = ClientMessage::SyncData { sync_id, items: &items, batch_seq, acked_n };
            return Some(message.encode_with_id(&format!("b{batch_seq}")));
        }
        if self.session.ending && self.queue.is_idle() && !self.pull.is_running() {
            self.session.ending = false;
            return Some(ClientMessage::EndSync { sync_id: self.session.sync_id() }.encode_with_id("e"));
        }
        None
    }

    /// Returns the seconds that may pass between two messages of a living device, once the server said so.
    #[must_use]
    pub fn heartbeat_interval_s(&self) -> Option<u64> {
        self.session.heartbeat_interval_s
    }

    /// Tells whether the server has greeted the present connection.
    #[must_use]
    pub fn is_greeted(&self) -> bool {
        matches!(self.session.link, Link::Greeted | Link::Starting | Link::Open | Link::Ended)
    }

    fn start_sync(&mut self) -> String {
        self.session.link = Link::Starting;
        let message = ClientMessage::StartSync {
            sync_id: self.session.sync_id(),
            data_types: &self.data_types,
            total_items: self.queue.len() as u64,
            cursor: self.pull.cursor.as_deref(),
            epoch: self.epoch,
            acked_n: self.queue.acked_n(),
        };
        message.encode_with_id("s")
    }

    fn heartbeat(&self) -> String {
        let queue_depth = self.queue.len() as u64;
        ClientMessage::Heartbeat { last_seq: self.pull.seq, queue_depth }.encode()
    }

    fn request_page(&mut self) -> String {
        let id = self.session.message_id();
        self.begin_page(id);
        let message = ClientMessage::RequestServerData {
            sync_id: self.session.sync_id(),
            data_types: &self.data_types,
            cursor: self.pull.cursor.as_deref(),
            range: None,
        };
        message.encode_with_id(&format!("p{id}"))
    }

    pub(crate) fn take_batch(&mut self) -> Option<(u64, Vec<Item>)> {
        self.queue.take_batch(self.session.limits, &self.records.policies)
    }

    pub(crate) fn handle_started(&mut self, info: &SessionInfo) -> Result<(), Fault> {
        let epoch = info.epoch.parse().map_err(|_| malformed("epoch"))?;
        self.session.announce(info);
        if self.session.link != Link::Starting {
            return Ok(());
        }
        self.session.link = Link::Open;
        self.records.policies = Policies::told(&info.policies);
        if self.epoch.is_some_and(|known| known != epoch) {
            self.resync(ResyncReason::EpochChanged, Some(epoch));
        }
        self.epoch = Some(epoch);
        let pull = &mut self.pull;
        pull.head = Seq::new(info.seq);
        let incomplete = pull.cursor.is_none() || pull.between_pages || pull.unseen.is_some();
        // Also where nothing was written since: the user may read more than before, or less.
        let behind = pull.seq != pull.head || info.pull_needed;
        pull.wanted = incomplete || pull.order != Order::Any || behind;
        self.events.push(Event::SessionStarted { seq: self.pull.head });
        Ok(())
    }
}
