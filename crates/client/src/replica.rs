//! The state machine of a device.

use std::fmt;

use driftline_model::{Epoch, Hlc, KindName, Limits, OpId, RecordId, Seq, SyncId};
use driftline_protocol::{Encoding, ErrorCode, Fault, Item, ItemOp, ServerMessage};

use crate::edit::{Edit, EditError};
use crate::event::{DeadLetter, Event, Events};
use crate::journal::Journal;
use crate::pull::{Order, Pull};
use crate::queue::{BatchLimits, Queue};
use crate::record::{Body, View};
use crate::records::Records;
use crate::repair::Repair;
use crate::reviews::Reviews;
use crate::seen::Seen;
use crate::session::{Link, Session};

/// What a device holds and knows: records, edits that wait, and its place in the server's sequence.
///
/// A replica has no clock, no socket and no source of randomness. It is driven from outside:
///
/// - **App**: [`edit`](Self::edit) and [`edit_group`](Self::edit_group) queue changes, [`view`](Self::view) and
///   [`views`](Self::views) show the records with them on top, [`poll_event`](Self::poll_event) tells what happened.
/// - **Connection**: [`handle_connected`](Self::handle_connected), [`handle_frame`](Self::handle_frame) and
///   [`handle_disconnected`](Self::handle_disconnected) take what the world does;
///   [`poll_transmit`](Self::poll_transmit) gives the messages to send. After each of these and after each edit, poll
///   until nothing comes.
/// - **Time**: at [`poll_timeout`](Self::poll_timeout) call [`handle_timeout`](Self::handle_timeout).
/// - **HTTP** instead of a connection: [`http_request`](Self::http_request) and [`handle_http`](Self::handle_http).
///
/// What holds, whatever the order of these calls:
///
/// - An edit leaves the queue only when the server has decided it, and is sent unchanged until then.
/// - Its base is the version of the server's body that the user saw, which neither later pulls nor acks move.
/// - A record's body changes only through a change of a higher version, so that nothing is applied twice.
/// - The cursor moves only together with everything that the server had up to it.
///
/// A clone is what a device that is written to disk and read again would be, once
/// [`handle_disconnected`](Self::handle_disconnected) was called on it.
#[derive(Clone)]
pub struct Replica {
    pub(crate) data_types: Vec<KindName>,
    pub(crate) hlc: Hlc,
    /// The epoch of the bodies, the cursor and the queue's bases.
    pub(crate) epoch: Option<Epoch>,
    pub(crate) records: Records,
    pub(crate) queue: Queue,
    pub(crate) pull: Pull,
    pub(crate) session: Session,
    pub(crate) repair: Repair,
    pub(crate) reviews: Reviews,
    pub(crate) journal: Journal,
    pub(crate) dead_letters: Vec<DeadLetter>,
    pub(crate) events: Events,
}

impl Default for Replica {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl Replica {
    /// The most edits that may wait.
    pub const QUEUE_MAX: usize = 1_000_000;

    /// Makes the replica of a device that has never synced.
    ///
    /// `data_types` are the kinds that it pulls; none: all that the user may read. Edits of other kinds are pushed too,
    /// but no local copy of them is kept.
    #[must_use]
    pub fn new(data_types: Vec<KindName>) -> Self {
        Self {
            data_types,
            hlc: Hlc::ZERO,
            epoch: None,
            records: Records::default(),
            queue: Queue::default(),
            pull: Pull { wanted: true, ..Pull::default() },
            session: Session::default(),
            repair: Repair::default(),
            reviews: Reviews::default(),
            journal: Journal::default(),
            dead_letters: Vec::new(),
            events: Events::default(),
        }
    }

    // What there is.

    /// Shows a record with own changes on top; nothing for one that is deleted or unknown.
    #[must_use]
    pub fn view(&self, kind: &str, id: &str) -> Option<View<'_>> {
        self.records.view_of(kind, id, &self.queue)
    }

    /// Goes through all records with own changes on top, by kind and id; deleted ones are left out.
    pub fn views(&self) -> impl Iterator<Item = (&KindName, &RecordId, View<'_>)> {
        self.records
            .iter()
            .filter_map(|(kind, id, record)| Some((kind, id, self.records.view(kind, record, &self.queue)?)))
    }

    /// Returns a record as the server last told it, without own changes.
    #[must_use]
    pub fn body(&self, kind: &str, id: &str) -> Option<&Body> {
        self.records.get(kind, id)?.body()
    }

    /// Goes through the edits that wait for the server's decision, in their order.
    pub fn queue(&self) -> impl Iterator<Item = &Item> {
        self.queue.iter()
    }

    /// Returns how many edits wait for the server's decision.
    #[must_use]
    pub fn queue_len(&self) -> usize {
        self.queue.len()
    }

    /// Returns the edits that the server refused for good, oldest first.
    #[must_use]
    pub fn dead_letters(&self) -> &[DeadLetter] {
        &self.dead_letters
    }

    /// Takes over the edits that the server refused for good.
    pub fn take_dead_letters(&mut self) -> Vec<DeadLetter> {
        std::mem::take(&mut self.dead_letters)
    }

    /// Returns the place in the server's sequence up to which the device has everything.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.pull.seq
    }

    /// Returns the cursor that the next pull goes on from.
    #[must_use]
    pub fn cursor(&self) -> Option<&str> {
        self.pull.cursor.as_deref()
    }

    /// Returns the epoch that versions and bases belong to.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// Returns the highest clock that the device has seen or made.
    #[must_use]
    pub fn hlc(&self) -> Hlc {
        self.hlc
    }

    /// Returns the number up to which every edit was decided.
    #[must_use]
    pub fn acked_n(&self) -> u64 {
        self.queue.acked_n()
    }

    /// Tells whether no edit waits, no pull runs and nothing on the server is known to be missing here.
    ///
    /// Never before the first pull, and not between the loss of a connection and the next session.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.queue.len() == 0
            && !self.pull.is_running()
            && !self.repair.is_running()
            && self.pull.cursor.is_some()
            && !self.pull.is_behind()
    }

    // Commands of the app.

    /// Queues an edit; returns its number.
    ///
    /// `op_id` names this edit once and for ever, `now_ms` is the device's clock in Unix milliseconds.
    ///
    /// # Errors
    /// [`EditError`] when the edit is beyond a limit.
    pub fn edit(&mut self, edit: Edit, op_id: OpId, now_ms: u64) -> Result<u64, EditError> {
        self.check_edits(std::slice::from_ref(&edit))?;
        Ok(self.enqueue(edit, op_id, None, now_ms))
    }

    /// Queues edits that apply together or not at all; returns the number of the first.
    ///
    /// # Errors
    /// [`EditError`] when the edits are beyond a limit; then none of them is queued.
    pub fn edit_group(
        &mut self,
        edits: Vec<Edit>,
        mut op_id: impl FnMut() -> OpId,
        now_ms: u64,
    ) -> Result<u64, EditError> {
        let max = Limits::default().batch_items;
        if edits.len() > max {
            return Err(EditError::GroupTooLarge { items: edits.len(), max });
        }
        self.check_edits(&edits)?;
        let first = self.queue.next_n();
        let group = format!("g{first}");
        for edit in edits {
            self.enqueue(edit, op_id(), Some(&group), now_ms);
        }
        Ok(first)
    }

    fn check_edits(&self, edits: &[Edit]) -> Result<(), EditError> {
        if self.queue.len() + edits.len() > Self::QUEUE_MAX {
            return Err(EditError::QueueFull { max: Self::QUEUE_MAX });
        }
        let max = BatchLimits::default().bytes / edits.len().max(1);
        match edits.iter().map(Edit::bytes).max() {
            Some(bytes) if bytes > max => Err(EditError::TooLarge { bytes, max }),
            _ => Ok(()),
        }
    }

    fn enqueue(&mut self, edit: Edit, op_id: OpId, group: Option<&str>, now_ms: u64) -> u64 {
        self.hlc = self.hlc.tick(now_ms);
        let key = (edit.kind, edit.id);
        let base_version = self.records.version(&key);
        let seen = match edit.op {
            ItemOp::Delete => Seen::default(),
            _ => self.records.seen(&key, &edit.fields, &self.queue),
        };
        let (kind, id) = key.clone();
        let asks = edit.op != ItemOp::Delete && !edit.intents.is_empty();
        let item = Item {
            op_id: Some(op_id),
            n: None,
            kind,
            id,
            op: edit.op,
            base_version,
            fields: edit.fields,
            intents: asks.then(|| Box::new(edit.intents)),
            hlc: Some(self.hlc),
            schema_version: edit.schema_version,
            group: group.map(Box::from),
            hash: 0,
        };
        let n = self.queue.push(item, seen);
        self.records.add_pending(&key, n);
        n
    }

    /// Asks the server for what is new, as soon as a session allows it.
    pub fn request_pull(&mut self) {
        self.pull.want();
    }

    /// Asks for what is new if the server is known to be ahead and no delta is sure to tell of it.
    pub fn catch_up(&mut self) {
        if self.pull.is_behind() && self.queue.is_idle() && !self.pull.is_running() {
            self.pull.want();
        }
    }

    /// Sends a heartbeat with the next messages.
    pub fn request_heartbeat(&mut self) {
        self.session.heartbeat = true;
    }

    /// Ends the sync session once nothing is left to send; [`Event::SessionEnded`] tells of it.
    pub fn end_session(&mut self) {
        self.session.ending = true;
    }

    // What the world does.

    /// Learns that a connection is open; `sync_id` names the session that is to be started on it.
    pub fn handle_connected(&mut self, sync_id: SyncId) {
        self.handle_disconnected();
        self.session.open(sync_id);
    }

    /// Learns that the connection is gone. Whatever has no answer is sent again on the next one.
    pub fn handle_disconnected(&mut self) {
        self.session.close();
        self.queue.forget_flight();
        self.pull.disconnect();
        self.repair.give_up_job();
        self.reviews.forget_flight();
    }

    /// Takes a message of the server in; `now_ms` is the device's clock in Unix milliseconds.
    ///
    /// # Errors
    /// [`Fault`] when the message is not one of this protocol. The replica is unchanged then; the connection should
    /// be closed, for an answer may be lost.
    pub fn handle_frame(&mut self, frame: &[u8], now_ms: u64) -> Result<(), Fault> {
        let (reply_to, message) = ServerMessage::decode_reply(Encoding::Json, frame)?;
        let reply_to = reply_to.as_deref();
        match message {
            ServerMessage::ConnectionEstablished(greeting) => {
                self.saw_hlc(&greeting.hlc)?;
                self.session.greeted(&greeting);
            }
            ServerMessage::SyncSessionStarted(started) => self.handle_started(&started.session_info)?,
            ServerMessage::Ack(ack) if ack.of == "sync_data" => self.handle_ack(ack, now_ms)?,
            ServerMessage::Page(rows) => self.handle_page(rows, reply_to),
            ServerMessage::Delta { prev_seq, rows } => self.handle_delta(prev_seq, rows),
            ServerMessage::ResyncRequired(resync) => {
                let epoch = resync.epoch.parse().map_err(|_| malformed("epoch"))?;
                self.resync(resync.reason, Some(epoch));
                self.session.start_again();
            }
            ServerMessage::SyncSessionEnded(ended) => {
                self.session.link = Link::Ended;
                self.events.push(Event::SessionEnded(ended.totals));
            }
            ServerMessage::HeartbeatAck(ack) => self.pull.head = self.pull.head.max(Seq::new(ack.server_seq)),
            ServerMessage::Checksums(sums) => self.handle_sums(&sums, reply_to),
            ServerMessage::Conflict(conflict) => self.events.push(Event::ConflictOpened(conflict)),
            ServerMessage::ConflictResolved(resolved) => self.handle_resolved(resolved, reply_to),
            ServerMessage::Error(error) => self.handle_error(error, reply_to, now_ms),
            ServerMessage::ServerDraining(draining) => {
                self.events.push(Event::Draining { reconnect_after_ms: draining.reconnect_after_ms });
            }
            _ => {}
        }
        Ok(())
    }

    /// Tells when [`handle_timeout`](Self::handle_timeout) is to be called next, in Unix milliseconds.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        let times = [self.queue.next_time(), self.pull.hold_until_ms, self.session.hold_until_ms];
        times.into_iter().flatten().min()
    }

    /// Learns the time, which lets waiting messages be sent again.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        self.queue.release(now_ms);
        for hold in [&mut self.pull.hold_until_ms, &mut self.session.hold_until_ms] {
            *hold = hold.filter(|until| *until > now_ms);
        }
    }

    /// Returns the next event, if there is one.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    pub(crate) fn saw_hlc(&mut self, text: &str) -> Result<(), Fault> {
        let hlc = text.parse().map_err(|_| malformed("hlc"))?;
        self.raise_hlc(hlc);
        Ok(())
    }

    pub(crate) fn raise_hlc(&mut self, hlc: Hlc) {
        self.hlc = self.hlc.max(hlc);
    }

    /// Tells whether edits may be sent now.
    pub(crate) fn may_push(&self) -> bool {
        self.pull.order != Order::SnapshotFirst
            && self.queue.in_flight_len() < Limits::default().unacknowledged_batches
    }
}

pub(crate) fn malformed(what: &str) -> Fault {
    Fault::new(ErrorCode::ValidationError, format!("the server sent a malformed {what}"))
}

impl fmt::Debug for Replica {
    /// Counts only: fields of records do not belong into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica")
            .field("epoch", &self.epoch)
            .field("seq", &self.pull.seq)
            .field("queue", &self.queue.len())
            .field("dead_letters", &self.dead_letters.len())
            .field("link", &self.session.link)
            .finish_non_exhaustive()
    }
}
