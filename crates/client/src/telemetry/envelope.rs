//! Messages of telemetry that were cut, and what the server refused of them.

use driftline_model::KindName;
use driftline_protocol::{FieldError, Rejected, TelemetryMessage, TelemetryPayload};

/// One message of telemetry. From the moment that it is cut, its bytes never change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// Rises with every envelope of the buffer's life.
    pub(crate) number: u64,
    pub(crate) kind: KindName,
    pub(crate) idempotency_key: Option<Box<str>>,
    pub(crate) cut_ms: u64,
    pub(crate) content: Content,
    pub(crate) trip: Trip,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Items(Vec<Box<str>>),
    Object(Box<str>),
}

/// How the sending of an envelope goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Trip {
    pub(crate) door: Option<Door>,
    /// When it went out last.
    pub(crate) sent_ms: u64,
    /// How often it went out.
    pub(crate) sent: u32,
    /// How often in a row the server asked to come again.
    pub(crate) failures: u32,
    pub(crate) not_before_ms: u64,
}

/// Where an envelope is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    Socket,
    Http,
}

impl Envelope {
    pub(crate) fn encode(&self) -> String {
        let message = TelemetryMessage {
            kind: self.kind.as_str(),
            id: &message_id(self.number),
            idempotency_key: self.idempotency_key.as_deref(),
            ts_ms: self.cut_ms,
            payload: match &self.content {
                Content::Items(items) => TelemetryPayload::Items(items),
                Content::Object(object) => TelemetryPayload::Object(object),
            },
        };
        message.encode()
    }

    pub(crate) fn items(&self) -> &[Box<str>] {
        match &self.content {
            Content::Items(items) => items,
            Content::Object(object) => std::slice::from_ref(object),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.items().iter().map(|item| item.len()).sum()
    }

    /// Makes the dead letter of one item.
    pub(crate) fn refuse(&self, rejected: Rejected) -> RefusedSample {
        let at = usize::try_from(rejected.index).ok();
        RefusedSample {
            kind: self.kind.clone(),
            item: at.and_then(|at| self.items().get(at)).cloned(),
            idempotency_key: self.idempotency_key.clone(),
            index: rejected.index,
            code: rejected.code,
            pointer: rejected.pointer,
            message: rejected.message,
            errors: rejected.errors,
        }
    }
}

/// The message id of an envelope. Messages of a replica begin with other letters.
fn message_id(number: u64) -> String {
    format!("t{number}")
}

/// The envelope that a message id names, if it names one.
pub(crate) fn number_of(message_id: &str) -> Option<u64> {
    message_id.strip_prefix('t')?.parse().ok()
}

/// A sample that the server refused for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedSample {
    /// The sample's kind.
    pub kind: KindName,
    /// The sample as it was sent, as JSON; none when the server named one that was not in the message.
    pub item: Option<Box<str>>,
    /// The key of the message that it was in.
    pub idempotency_key: Option<Box<str>>,
    /// Its place in that message.
    pub index: u64,
    /// A stable word for what is wrong; an error code where the whole message was refused.
    pub code: String,
    /// Where, as a JSON Pointer (RFC 6901) into the sample.
    pub pointer: String,
    /// What is wrong, for a person.
    pub message: String,
    /// Everything that is wrong, if it is more than one thing.
    pub errors: Vec<FieldError>,
}

impl RefusedSample {
    pub(crate) fn bytes(&self) -> usize {
        let errors =
            self.errors.iter().map(|error| error.code.len() + error.pointer.len() + error.message.len());
        let texts = self.code.len() + self.pointer.len() + self.message.len();
        self.item.as_ref().map_or(0, |item| item.len()) + texts + errors.sum::<usize>()
    }
}
