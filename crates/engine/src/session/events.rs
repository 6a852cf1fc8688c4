//! Telemetry on its way to the store, and live events on their way to the client.

use driftline_idempotency::Fingerprint;
use driftline_model::SyncId;
use driftline_protocol::{ErrorCode, EventsSubscribed, MessageKey, Telemetry, TopicAnswer};

use super::Session;
use crate::group::{Once, OnceKey};
use crate::service::Ingest;
use crate::signal::{Wish, fits};
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
        let topics = dropped.iter().map(|topic| TopicAnswer {
            topic: topic.to_string(),
            accepted: self.interests.drop_topic(topic),
            code: None,
        });
        EventsSubscribed { topics: topics.collect() }
    }

    /// Answers a wish for topics, and grants what may be granted.
    pub(super) fn subscribe(&mut self, wanted: &[Box<str>]) -> EventsSubscribed {
        let (interests, roles) = (&mut self.interests, &self.identity.roles);
        let announced = |topic: &str| self.announced.iter().any(|template| fits(template, topic));
        let topics = wanted.iter().map(|topic| {
            let wish = interests.want(topic, roles, announced);
            let code = match wish {
                Wish::Accepted => None,
                Wish::Forbidden => Some(ErrorCode::Forbidden),
                Wish::Unknown => Some(ErrorCode::NotFound),
            };
            let code = code.map(|code| code.as_str().to_owned());
            TopicAnswer { topic: topic.to_string(), accepted: wish == Wish::Accepted, code }
        });
        EventsSubscribed { topics: topics.collect() }
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
