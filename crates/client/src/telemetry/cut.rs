//! Cutting samples into messages, and choosing the next one to send.

use std::collections::VecDeque;

use driftline_model::KindName;

use super::buffer::{ANALYTICS, AROUND_BYTES, STATUS, Telemetry};
use super::envelope::{Content, Envelope, Trip};

/// How the samples of a kind travel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// Many in one message.
    Items,
    /// One by one, and recognised when they come again.
    Object,
    /// One by one; taken twice they do no harm.
    Report,
}

impl Style {
    fn of(kind: &KindName) -> Self {
        match kind.as_str() {
            STATUS => Self::Report,
            ANALYTICS => Self::Object,
            _ => Self::Items,
        }
    }
}

impl Telemetry {
    /// Cuts waiting samples into messages: one for each kind that has none under way, so that the samples that come
    /// meanwhile share the next one. `draw` gives random numbers, of which the messages' keys are made.
    pub fn cut(&mut self, now_ms: u64, draw: &mut dyn FnMut() -> u64) {
        let envelopes = &self.envelopes;
        let is_free = |kind: &KindName| envelopes.iter().all(|envelope| envelope.kind != *kind);
        let kinds: Vec<KindName> = self.waiting.keys().filter(|kind| is_free(kind)).cloned().collect();
        for kind in kinds {
            let style = Style::of(&kind);
            let Some(waiting) = self.waiting.get_mut(&kind) else { continue };
            let count = match style {
                Style::Items => fitting(waiting, self.batch_items, self.message_bytes),
                Style::Object | Style::Report => 1,
            };
            let items = waiting.drain(..count).collect();
            if waiting.is_empty() {
                self.waiting.remove(&kind);
            }
            let envelope = self.seal(kind, items, now_ms, draw);
            self.envelopes.push_back(envelope);
        }
    }

    fn seal(
        &mut self,
        kind: KindName,
        mut items: Vec<Box<str>>,
        now_ms: u64,
        draw: &mut dyn FnMut() -> u64,
    ) -> Envelope {
        let style = Style::of(&kind);
        let number = self.next_number;
        self.next_number += 1;
        self.revision += 1;
        let key = (style != Style::Report).then(|| format!("{:016x}{:016x}", draw(), draw()).into());
        let content = match style {
            Style::Items => Content::Items(items),
            Style::Object | Style::Report => Content::Object(items.pop().unwrap_or_else(|| "{}".into())),
        };
        Envelope { number, kind, idempotency_key: key, cut_ms: now_ms, content, trip: Trip::default() }
    }

    /// Puts two messages in the place of one that the server finds too large, and of which it therefore has nothing.
    pub(super) fn halve(&mut self, at: usize, now_ms: u64, draw: &mut dyn FnMut() -> u64) {
        let Some(Envelope { kind, content: Content::Items(mut items), .. }) = self.envelopes.remove(at)
        else {
            return;
        };
        let second = items.split_off(items.len() / 2);
        for half in [second, items] {
            let envelope = self.seal(kind.clone(), half, now_ms, draw);
            self.envelopes.insert(at, envelope);
        }
    }

    /// The first message of its kind that is not under way and need not wait.
    pub(super) fn next_to_send(&self, now_ms: u64) -> Option<usize> {
        let under_way = self.envelopes.iter().filter(|envelope| envelope.trip.door.is_some()).count();
        if under_way >= Self::IN_FLIGHT_MAX {
            return None;
        }
        self.heads().find_map(|(at, head)| {
            let may_go = head.trip.door.is_none() && head.trip.not_before_ms <= now_ms;
            may_go.then_some(at)
        })
    }

    /// Tells when to poll again for what the server asked to send later, in Unix milliseconds.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        let waiting = self.heads().filter(|(_, head)| head.trip.door.is_none());
        waiting.map(|(_, head)| head.trip.not_before_ms).min()
    }

    fn heads(&self) -> impl Iterator<Item = (usize, &Envelope)> {
        let envelopes = &self.envelopes;
        let is_head = |at: usize, kind: &KindName| envelopes.range(..at).all(|earlier| earlier.kind != *kind);
        envelopes.iter().enumerate().filter(move |(at, envelope)| is_head(*at, &envelope.kind))
    }
}

/// How many of the samples fit into one message: at least one.
fn fitting(waiting: &VecDeque<Box<str>>, items_max: usize, message_bytes: usize) -> usize {
    let mut left = message_bytes.saturating_sub(AROUND_BYTES);
    let sizes = waiting.iter().take(items_max).map(|item| item.len() + 1);
    let fits = |bytes: &usize| {
        let room = left.checked_sub(*bytes);
        left = room.unwrap_or_default();
        room.is_some()
    };
    sizes.take_while(fits).count().max(1)
}
