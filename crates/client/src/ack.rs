//! The push half: what the server says of edits.

use driftline_model::{Hlc, Seq};
use driftline_protocol::{
    Ack, ChangeKind, ErrorCode, ErrorMessage, Fault, Item, ItemClass, ItemCode, ItemResult, RecordView,
    Retry, WinnerName,
};

use crate::event::{Acknowledged, DeadLetter, Event};
use crate::intents::object;
use crate::policies::{Rule, canonical_name};
use crate::queue::{Batch, Source, effective_codes};
use crate::record::{Record, Telling};
use crate::records::Key;
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
        let hlc = ack.hlc.parse().unwrap_or(self.hlc);
        let Some(batch) = self.queue.answered(ack.batch_seq) else { return Ok(()) };
        let codes = {
            let items = batch.ns.iter().map(|n| self.queue.item(*n));
            let pairs: Vec<_> = items.zip(ack.results.iter().map(|result| result.code)).collect();
            effective_codes(&pairs)
        };
        let mut results = ack.results.into_iter().zip(codes);
        for &n in &batch.ns {
            match results.next() {
                Some((result, code)) => self.settle(n, ItemResult { code, ..result }, (hlc, now_ms)),
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

    fn settle(&mut self, n: u64, result: ItemResult, (hlc, now_ms): (Hlc, u64)) {
        match result.code.class() {
            ItemClass::Done => self.finish(n, result, hlc),
            ItemClass::Terminal => self.bury(n, result, hlc),
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
    fn finish(&mut self, n: u64, mut result: ItemResult, hlc: Hlc) {
        let Some((mut item, source)) = self.take_off(n) else { return };
        let version = result.version.map(Seq::new);
        let own = matches!(result.code, ItemCode::Applied | ItemCode::Merged);
        if let Some(version) = version.filter(|version| own && *version > self.pull.seq) {
            self.pull.own.insert(version);
        }
        let op_id = item.op_id.clone().filter(|_| source == Source::User);
        if let Some(op_id) = op_id {
            self.events.push(Event::Acknowledged(Acknowledged {
                op_id,
                n,
                kind: item.kind.clone(),
                id: item.id.clone(),
                code: result.code,
                duplicate: result.duplicate,
                winners: result.winners.clone(),
                conflict_id: result.conflict_id.take(),
            }));
        }
        if let (Some(version), Some(intents)) = (version.filter(|_| own), &item.intents) {
            let key = (item.kind.clone(), item.id.clone());
            self.journal.note(&key, version, &intents.increments);
        }
        if self.apply_canonical(&item, &result, hlc) {
            return;
        }
        let guess = self.is_guess(&item, result.code) || drop_lost(&mut item, &result);
        match version.filter(|_| own || result.code == ItemCode::Noop) {
            // Pages told of it before. Deltas did not pass it: they wait for acks.
            Some(version) if self.pull.passed(&(item.kind.clone(), item.id.clone()), version) => {}
            Some(version) => {
                if guess {
                    self.pull.want();
                }
                self.records.acknowledge(item, version, hlc);
            }
            // The state is not the one that the edit asked for, and only a pull can tell which it is.
            None => self.pull.want(),
        }
    }

    /// Whether only the server knows what became of the record.
    ///
    /// One that is brought back keeps fields on the server that this device no longer has. Where sets and lists met
    /// with other changes, the server knows what stayed and in which order.
    fn is_guess(&self, item: &Item, code: ItemCode) -> bool {
        use driftline_protocol::ItemOp::{Create, Restore};
        let known = self.records.get(item.kind.as_str(), item.id.as_str());
        let rules = self.records.policies.of(&item.kind);
        let gathers = |name: &str| matches!(rules.rule(name), Some(Rule::Set | Rule::Append));
        let asked = item.intents.iter().any(|asked| !asked.add.is_empty() || !asked.remove.is_empty());
        let gathered = asked || item.fields.iter().any(|(name, _)| gathers(name));
        item.op == Restore
            || item.op == Create && known.is_some_and(Record::has_past)
            || gathered && (code != ItemCode::Applied || !rules.is_known())
    }

    /// Applies the record that a result carries, if it carries one; a resend may get one that is long past.
    fn apply_canonical(&mut self, item: &Item, result: &ItemResult, hlc: Hlc) -> bool {
        let Some(record) = &result.record else { return false };
        self.apply_view((item.kind.clone(), item.id.clone()), record, hlc);
        true
    }

    /// Applies a record that an answer carries, unless a pull has passed it.
    pub(crate) fn apply_view(&mut self, key: Key, record: &RecordView, hlc: Hlc) {
        let version = Seq::new(record.version);
        let change = if record.deleted { ChangeKind::Delete } else { ChangeKind::Put };
        let told = Telling { version, change, fields: record.fields.clone(), scope: None, hlc };
        if !self.pull.passed(&key, version) && self.records.apply(&key, told) {
            self.pull.ahead = self.pull.ahead.max(version);
            // A snapshot under way has yet to tell of it, unless it is newer than the snapshot.
            if let Some(unseen) = &mut self.pull.unseen {
                unseen.insert(key.clone());
            }
            let (kind, id) = key;
            self.events.push(Event::Changed { kind, id });
        }
    }

    /// Moves an edit that was refused for good to the dead letters. What the device may not give back is no edit of
    /// the user's, and goes.
    fn bury(&mut self, n: u64, result: ItemResult, hlc: Hlc) {
        use ItemCode::{Forbidden, Gone, UnknownKind};
        let Some((item, source)) = self.take_off(n) else { return };
        if !self.apply_canonical(&item, &result, hlc) {
            self.events.push(Event::Changed { kind: item.kind.clone(), id: item.id.clone() });
        }
        if source == Source::Heal && matches!(result.code, Forbidden | Gone | UnknownKind) {
            return;
        }
        let letter = DeadLetter { item, code: result.code, errors: result.errors };
        self.events.push(Event::DeadLetter(letter.clone()));
        self.dead_letters.push(letter);
    }

    pub(crate) fn take_off(&mut self, n: u64) -> Option<(Item, Source)> {
        let (item, source) = self.queue.remove(n)?;
        self.records.remove_pending(&(item.kind.clone(), item.id.clone()), n);
        Some((item, source))
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
            ("k" | "r", Some(id)) => self.repair.fail(id),
            ("c", Some(id)) => return self.refuse_resolution(id, error, until_ms),
            ("s", None) => {
                self.session.start_again();
                self.session.hold_until_ms = Some(until_ms);
            }
            _ => {}
        }
        self.events.push(Event::ServerError(error));
    }

    pub(crate) fn refuse_batch(
        &mut self,
        batch: &Batch,
        code: Option<ErrorCode>,
        error: &ErrorMessage,
        until_ms: u64,
    ) {
        let too_large = matches!(code, Some(ErrorCode::BatchTooLarge | ErrorCode::MessageTooLarge));
        match batch.ns.as_slice() {
            &[n] if too_large => {
                let mut result = undecided(ItemCode::TooLarge);
                result.errors = error.details.iter().flat_map(|details| details.errors.clone()).collect();
                return self.bury(n, result, self.hlc);
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

/// Takes out of an edit what the server let another value win against; tells whether there was any.
fn drop_lost(item: &mut Item, result: &ItemResult) -> bool {
    let lost: Vec<_> = result
        .winners
        .iter()
        .filter(|(_, winner)| matches!(winner, WinnerName::Server | WinnerName::Held))
        .map(|(name, _)| canonical_name(name))
        .collect();
    let stands = |name: &str| !lost.iter().any(|lost| **lost == *name);
    if item.fields.iter().any(|(name, _)| !stands(name)) {
        item.fields = object(item.fields.iter().filter(|(name, _)| stands(name)).collect());
    }
    !lost.is_empty()
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
        conflict_id: None,
        retry_after_ms: None,
        errors: Vec::new(),
    }
}
