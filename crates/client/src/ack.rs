//! The push half: what the server says of edits.

use driftline_model::Seq;
use driftline_protocol::{
    Ack, ChangeKind, ErrorCode, ErrorMessage, Fault, Item, ItemClass, ItemCode, ItemResult, Retry,
};

use crate::event::{Acknowledged, DeadLetter, Event};
use crate::queue::{Batch, effective_codes};
use crate::record::Record;
use crate::replica::Replica;
use crate::session::Link;

/// The delay after a refusal of a whole message, when the server names none.
const RETRY_MS: u64 = 1_000;

/// Changes that wait for the body to catch up, beyond which a pull makes it.
const ACKED_MAX: usize = 16_384;

impl Replica {
    pub(crate) fn handle_ack(&mut self, ack: Ack, now_ms: u64) -> Result<(), Fault> {
        self.saw_hlc(&ack.hlc)?;
        self.pull.head = self.pull.head.max(Seq::new(ack.seq));
        let Some(batch) = self.queue.answered(ack.batch_seq) else { return Ok(()) };
        let codes = {
            let items = batch.ns.iter().map(|n| self.queue.item(*n));
            let pairs: Vec<_> = items.zip(ack.results.iter().map(|result| result.code)).collect();
            effective_codes(&pairs)
        };
        let mut results = ack.results.into_iter().zip(codes);
        for &n in &batch.ns {
            match results.next() {
                Some((result, code)) => self.settle(n, ItemResult { code, ..result }, now_ms),
                // An answer without a result is no decision.
                None => self.queue.hold(n, now_ms, None),
            }
        }
        if self.records.acked_len() > ACKED_MAX && !self.pull.is_running() {
            self.pull.want();
        }
        self.resume_deltas();
        Ok(())
    }

    fn settle(&mut self, n: u64, result: ItemResult, now_ms: u64) {
        match result.code.class() {
            ItemClass::Done => self.finish(n, result),
            ItemClass::Terminal => self.bury(n, result),
            ItemClass::Retry => self.queue.hold(n, now_ms, result.retry_after_ms),
            ItemClass::Resync if result.code == ItemCode::EpochChanged => {
                // The start of a session tells the new epoch, and that all begins anew.
                self.queue.requeue(n);
                self.session.hold_until_ms = Some(now_ms.saturating_add(RETRY_MS));
                self.restart_session();
            }
            ItemClass::Resync => {
                self.queue.await_base(n);
                self.pull.want();
            }
        }
    }

    /// Takes a decided edit out of the queue; its effect stays visible if the server took it.
    fn finish(&mut self, n: u64, mut result: ItemResult) {
        let Some(item) = self.take_off(n) else { return };
        let version = result.version.map(Seq::new);
        let own = matches!(result.code, ItemCode::Applied | ItemCode::Merged);
        if let Some(version) = version.filter(|version| own && *version > self.pull.seq) {
            self.pull.own.insert(version);
        }
        if let Some(op_id) = item.op_id.clone() {
            self.events.push(Event::Acknowledged(Acknowledged {
                op_id,
                n,
                kind: item.kind.clone(),
                id: item.id.clone(),
                code: result.code,
                duplicate: result.duplicate,
                winners: std::mem::take(&mut result.winners),
            }));
        }
        if self.apply_canonical(&item, &result) {
            return;
        }
        match version.filter(|_| own || result.code == ItemCode::Noop) {
            // Pages told of it before. Deltas did not pass it: they wait for acks.
            Some(version) if version <= self.pull.seq => {}
            Some(version) => {
                if self.is_guess(&item) {
                    self.pull.want();
                }
                self.records.acknowledge(item, version);
            }
            // The state is not the one that the edit asked for, and only a pull can tell which it is.
            None => self.pull.want(),
        }
    }

    /// A record that is brought back keeps fields on the server that this device no longer has.
    fn is_guess(&self, item: &Item) -> bool {
        use driftline_protocol::ItemOp::{Create, Restore};
        let known = self.records.get(item.kind.as_str(), item.id.as_str());
        item.op == Restore || item.op == Create && known.is_some_and(Record::has_past)
    }

    /// Applies the record that a result carries, if it carries one; a resend may get one that is long past.
    fn apply_canonical(&mut self, item: &Item, result: &ItemResult) -> bool {
        let Some(record) = &result.record else { return false };
        let version = Seq::new(record.version);
        let change = if record.deleted { ChangeKind::Delete } else { ChangeKind::Put };
        let key = (item.kind.clone(), item.id.clone());
        if version > self.pull.seq && self.records.apply(&key, version, change, record.fields.clone()) {
            // A snapshot under way has yet to tell of it, unless it is newer than the snapshot.
            if let Some(unseen) = &mut self.pull.unseen {
                unseen.insert(key.clone());
            }
            let (kind, id) = key;
            self.events.push(Event::Changed { kind, id });
        }
        true
    }

    /// Moves an edit that was refused for good to the dead letters.
    fn bury(&mut self, n: u64, result: ItemResult) {
        let Some(item) = self.take_off(n) else { return };
        if !self.apply_canonical(&item, &result) {
            self.events.push(Event::Changed { kind: item.kind.clone(), id: item.id.clone() });
        }
        let letter = DeadLetter { item, code: result.code, errors: result.errors };
        self.events.push(Event::DeadLetter(letter.clone()));
        self.dead_letters.push(letter);
    }

    fn take_off(&mut self, n: u64) -> Option<Item> {
        let item = self.queue.remove(n)?;
        self.records.remove_pending(&(item.kind.clone(), item.id.clone()), n);
        Some(item)
    }

    /// A whole message was refused, and nothing of it was applied.
    pub(crate) fn handle_error(&mut self, error: ErrorMessage, reply_to: Option<&str>, now_ms: u64) {
        let code = ErrorCode::from_text(&error.code);
        let until_ms = now_ms.saturating_add(error.retry_after_ms.unwrap_or(RETRY_MS));
        let (door, number) = reply_to.unwrap_or_default().split_at_checked(1).unwrap_or_default();
        let number = number.parse::<u64>().ok();
        let lost_session = code.is_some_and(|code| code.retry() == Retry::AfterResync)
            && !matches!(code, Some(ErrorCode::CursorInvalid | ErrorCode::CursorExpired));
        match (door, number) {
            ("b", Some(seq)) => {
                let Some(batch) = self.queue.answered(Some(seq)) else { return };
                self.refuse_batch(&batch, code, &error, until_ms);
                if lost_session {
                    self.restart_session();
                }
                self.resume_deltas();
            }
            ("p", id @ Some(_)) if self.pull.in_flight == id => {
                self.pull.in_flight = None;
                self.pull.want();
                if lost_session {
                    self.session.hold_until_ms = Some(until_ms);
                    self.restart_session();
                } else {
                    self.pull.hold_until_ms = Some(until_ms);
                }
            }
            ("s", None) => {
                self.session.start_again();
                self.session.hold_until_ms = Some(until_ms);
            }
            _ => {}
        }
        self.events.push(Event::ServerError(error));
    }

    fn refuse_batch(&mut self, batch: &Batch, code: Option<ErrorCode>, error: &ErrorMessage, until_ms: u64) {
        let too_large = matches!(code, Some(ErrorCode::BatchTooLarge | ErrorCode::MessageTooLarge));
        match batch.ns.as_slice() {
            &[n] if too_large => {
                let mut result = undecided(ItemCode::TooLarge);
                result.errors = error.details.iter().flat_map(|details| details.errors.clone()).collect();
                return self.bury(n, result);
            }
            ns if too_large => {
                let limits = &mut self.session.limits;
                limits.items = limits.items.min(ns.len()).div_ceil(2).max(1);
                limits.bytes = (limits.bytes / 2).max(1);
            }
            _ => self.session.hold_until_ms = Some(until_ms),
        }
        for &n in &batch.ns {
            self.queue.requeue(n);
        }
    }

    /// Starts the session again on the same connection.
    fn restart_session(&mut self) {
        if self.session.link == Link::Open {
            self.queue.forget_flight();
            self.pull.disconnect();
            self.session.link = Link::Greeted;
        }
    }
}

/// A result that this side makes up.
fn undecided(code: ItemCode) -> ItemResult {
    ItemResult {
        index: 0,
        op_id: None,
        kind: None,
        id: None,
        code,
        version: None,
        duplicate: false,
        record: None,
        winners: std::collections::BTreeMap::new(),
        retry_after_ms: None,
        errors: Vec::new(),
    }
}
