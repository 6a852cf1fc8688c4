//! Decisions of a reviewer on their way to the server.

use std::collections::BTreeMap;

use driftline_model::{ConflictId, KindName, Object, RecordId, Seq};
use driftline_protocol::{ClientMessage, ConflictResolved, ErrorMessage, Resolution};

use crate::event::Event;
use crate::replica::Replica;

/// The decisions that wait for the server's answer, by the message that carries them.
///
/// A decision is of a version of the record, so that it can be sent again without harm.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reviews {
    waiting: BTreeMap<u64, Review>,
}

#[derive(Debug, Clone)]
struct Review {
    conflict_id: ConflictId,
    resolution: Resolution,
    fields: Object,
    version: Option<Seq>,
    sent: bool,
}

impl Reviews {
    pub(crate) fn forget_flight(&mut self) {
        self.waiting.values_mut().for_each(|review| review.sent = false);
    }
}

impl Replica {
    /// Decides a conflict that waits for a reviewer.
    ///
    /// `fields` are the reviewer's own values and sent only with [`Resolution::Merged`]; `version` is that of the
    /// record which the reviewer has seen, none: any. [`Event::ConflictResolved`] or [`Event::ResolutionRefused`] tells
    /// what became of it. A decision that is not sent yet is lost with the process: the conflict waits on.
    pub fn resolve(
        &mut self,
        conflict_id: ConflictId,
        resolution: Resolution,
        fields: Object,
        version: Option<Seq>,
    ) {
        let id = self.session.message_id();
        self.reviews.waiting.insert(id, Review { conflict_id, resolution, fields, version, sent: false });
    }

    pub(crate) fn next_resolution(&mut self) -> Option<String> {
        if self.session.hold_until_ms.is_some() {
            return None;
        }
        let (id, review) = self.reviews.waiting.iter_mut().find(|(_, review)| !review.sent)?;
        review.sent = true;
        let message = ClientMessage::ResolveConflict {
            conflict_id: &review.conflict_id,
            resolution: review.resolution,
            fields: &review.fields,
            version: review.version,
        };
        Some(message.encode_with_id(&format!("c{id}")))
    }

    pub(crate) fn handle_resolved(&mut self, resolved: Box<ConflictResolved>, reply_to: Option<&str>) {
        if let Some(id) = reply_to.and_then(|id| id.strip_prefix('c')).and_then(|id| id.parse().ok()) {
            self.reviews.waiting.remove(&id);
        }
        let key = KindName::new(&resolved.conflict.kind).ok().zip(RecordId::new(&resolved.conflict.id).ok());
        if let (Some(key), Some(record)) = (key, &resolved.record) {
            // The server counts the write as one of this device or of another; in either case no delta may tell it.
            self.pull.head = self.pull.head.max(Seq::new(record.version));
            self.apply_view(key, record, self.hlc);
        }
        self.events.push(Event::ConflictResolved(resolved));
    }

    pub(crate) fn refuse_resolution(&mut self, id: u64, error: ErrorMessage, until_ms: u64) {
        if error.retryable {
            self.session.hold_until_ms = Some(until_ms);
            if let Some(review) = self.reviews.waiting.get_mut(&id) {
                review.sent = false;
            }
            return self.events.push(Event::ServerError(error));
        }
        if let Some(review) = self.reviews.waiting.remove(&id) {
            self.events.push(Event::ResolutionRefused { conflict_id: review.conflict_id, error });
        }
    }
}
