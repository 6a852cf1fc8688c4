//! Telemetry on its way to the store, and topics.

use driftline_idempotency::Fingerprint;
use driftline_model::SyncId;
use driftline_protocol::{
    ErrorCode, EventsSubscribed, Fault, MessageKey, Outbound, ReplayRequest, Telemetry, TopicAnswer, Topics,
};

use std::sync::Arc;

use super::{Session, Waiting};
use crate::group::{Once, OnceKey};
use crate::service::Ingest;
use crate::work::Work;

impl Session {
    /// Has samples appended. Like a batch they wait for their answer among few.
    pub(super) fn ingest(
        &mut self,
        telemetry: Telemetry,
        sync_id: Option<&SyncId>,
        key: Option<&MessageKey>,
        reply_to: Option<String>,
    ) {
        let once = self.once(telemetry.kind.as_str(), sync_id, key);
        let ingest = Ingest {
            messages: vec![(0, telemetry)],
            array: false,
            once: once.into_iter().collect(),
            batch_key: key.map(|key| key.key.clone()),
            seed: self.draw(),
        };
        self.unacknowledged += 1;
        self.ask(reply_to, None, Work::Ingest { ingest: Box::new(ingest) });
    }

    /// Answers for topics that are wanted no more.
    pub(super) fn unsubscribe(&mut self, dropped: &[Box<str>]) -> EventsSubscribed {
        let listener = self.listener.as_ref();
        let topics = dropped.iter().map(|topic| TopicAnswer {
            topic: topic.to_string(),
            accepted: listener.is_some_and(|listener| listener.unsubscribe(topic)),
            ..TopicAnswer::default()
        });
        EventsSubscribed { topics: topics.collect() }
    }

    /// Asks for topics. What was missed since a place is read before anything else comes.
    pub(super) fn subscribe(&mut self, wanted: Topics, reply_to: Option<String>) -> Result<(), Fault> {
        let listener = Arc::clone(self.listener.as_ref().ok_or_else(deaf)?);
        let announced =
            wanted.since.map(|since| self.replays.announce(since, reply_to.clone())).transpose()?;
        self.ask(reply_to, None, Work::Subscribe { listener, wanted });
        if let Some(waiting) = self.waiting.back_mut() {
            waiting.announced = announced;
        }
        Ok(())
    }

    pub(super) fn subscribed(
        &mut self,
        answer: Result<EventsSubscribed, Fault>,
        waiting: Waiting,
        now_ms: u64,
    ) {
        match answer {
            Err(fault) => {
                if let Some(number) = waiting.announced {
                    self.replays.withdraw(number);
                }
                self.error(&fault, waiting.reply_to, now_ms);
            }
            Ok(answer) => {
                let granted =
                    answer.topics.iter().filter(|topic| topic.accepted && topic.recovered.is_some());
                let granted: Vec<Box<str>> = granted.map(|topic| topic.topic.as_str().into()).collect();
                let announced = waiting.announced;
                self.reply(waiting, &Outbound::EventsSubscribed(answer), now_ms);
                if let Some(number) = announced {
                    self.replays.grant(number, granted);
                }
            }
        }
        self.read_next();
    }

    /// Asks for events that were missed.
    pub(super) fn replay(&mut self, request: ReplayRequest, reply_to: Option<String>) -> Result<(), Fault> {
        self.listener.as_ref().ok_or_else(deaf)?;
        self.replays.push(request, reply_to)?;
        self.read_next();
        Ok(())
    }

    /// Makes what a message is remembered by; its window is the engine's to set.
    pub(super) fn once(
        &self,
        kind: &str,
        sync_id: Option<&SyncId>,
        key: Option<&MessageKey>,
    ) -> Option<Once> {
        let key = key?;
        let sync_id = sync_id.map(SyncId::as_str);
        Some(Once {
            key: OnceKey::Request { owner: self.identity.owner(), key: key.key.as_str().into() },
            fingerprint: Fingerprint::envelope(kind, sync_id, key.payload.as_bytes()),
            window_ms: self.window_ms,
        })
    }

    /// Draws a number that no other message of any connection draws.
    pub(super) fn draw(&mut self) -> u128 {
        self.made_ids += 1;
        self.id_seed.wrapping_add(u128::from(self.made_ids) << 64)
    }
}

fn deaf() -> Fault {
    Fault::new(ErrorCode::UnknownMessageType, "this route tells no events")
}
