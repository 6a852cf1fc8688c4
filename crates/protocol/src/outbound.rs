//! Messages from server to client, except the rows of pulls and deltas.

use std::collections::BTreeMap;

use driftline_model::{Object, UserId};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::canonical::object_of_text;
use crate::checksums::Checksums;
use crate::code::ItemCode;
use crate::conflict::{ConflictDoc, ConflictResolved};
use crate::envelope::{Fault, FieldError, UploadPlace};
use crate::events::{EventsSubscribed, PublishAck, ReplayComplete, ServerHeartbeat};
use crate::policy::PolicyDoc;
use crate::rows::{ServerData, ServerDelta};
use crate::telemetry::{BareAck, TelemetryAck};
use crate::time::format_millis;
use crate::write::write_json_string;

/// The outer fields of an outbound message.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// The server's time in Unix milliseconds.
    pub now_ms: u64,
    /// The `id` of the message that this answers.
    pub reply_to: Option<String>,
    /// The sync session it belongs to.
    pub sync_id: Option<String>,
}

impl Head {
    /// Starts a message: the opening brace and the outer fields.
    pub(crate) fn open(&self, kind: &str) -> String {
        let mut out = String::with_capacity(256);
        out.push_str("{\"type\":");
        write_json_string(&mut out, kind);
        out.push_str(",\"server_time\":\"");
        out.push_str(&format_millis(self.now_ms));
        out.push('"');
        for (name, value) in [("reply_to", &self.reply_to), ("sync_id", &self.sync_id)] {
            if let Some(value) = value {
                out.push_str(",\"");
                out.push_str(name);
                out.push_str("\":");
                write_json_string(&mut out, value);
            }
        }
        out
    }
}

/// A message from server to client.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Outbound {
    /// Greets an authenticated connection.
    ConnectionEstablished(Box<ConnectionEstablished>),
    /// Answers `start_sync`.
    SyncSessionStarted(Box<SyncSessionStarted>),
    /// Answers `sync_data`.
    Ack(Ack),
    /// A page of a pull.
    ServerData(ServerData),
    /// Changes of other devices, as they are committed.
    ServerDelta(ServerDelta),
    /// The cursor is of no use any more.
    ResyncRequired(ResyncRequired),
    /// Answers `request_checksums`.
    Checksums(Checksums),
    /// A change was set aside for a reviewer.
    Conflict(Box<ConflictDoc>),
    /// A conflict was decided; also answers `resolve_conflict`.
    ConflictResolved(Box<ConflictResolved>),
    /// Answers `end_sync`.
    SyncSessionEnded(SyncSessionEnded),
    /// Answers `heartbeat`.
    HeartbeatAck(HeartbeatAck),
    /// Answers `ping`.
    Pong(Pong),
    /// Says what went wrong.
    Error(ErrorMessage),
    /// The server is about to shut down.
    ServerDraining(ServerDraining),
    /// Answers a telemetry message.
    TelemetryAck(TelemetryAck),
    /// Answers a message of which there is nothing else to tell.
    BareAck(BareAck),
    /// Answers `subscribe_events`.
    EventsSubscribed(EventsSubscribed),
    /// Answers `unsubscribe_events`.
    EventsUnsubscribed(EventsSubscribed),
    /// Ends a replay.
    ReplayComplete(Box<ReplayComplete>),
    /// Answers `publish`.
    PublishAck(PublishAck),
    /// Says that the server is alive.
    Heartbeat(ServerHeartbeat),
}

impl Outbound {
    /// Returns the message's type on the wire.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ConnectionEstablished(_) => "connection_established",
            Self::SyncSessionStarted(_) => "sync_session_started",
            Self::Ack(_) => "ack",
            Self::ServerData(_) => "server_data",
            Self::ServerDelta(_) => "server_delta",
            Self::ResyncRequired(_) => "resync_required",
            Self::Checksums(_) => "checksums",
            Self::Conflict(_) => "conflict",
            Self::ConflictResolved(_) => "conflict_resolved",
            Self::SyncSessionEnded(_) => "sync_session_ended",
            Self::HeartbeatAck(_) => "heartbeat_ack",
            Self::Pong(_) => "pong",
            Self::Error(_) => "error",
            Self::ServerDraining(_) => "server_draining",
            Self::TelemetryAck(_) | Self::BareAck(_) | Self::PublishAck(_) => "ack",
            Self::EventsSubscribed(_) => "events_subscribed",
            Self::EventsUnsubscribed(_) => "events_unsubscribed",
            Self::ReplayComplete(_) => "replay_complete",
            Self::Heartbeat(_) => "heartbeat",
        }
    }

    /// Encodes the message as JSON.
    #[must_use]
    pub fn encode(&self, head: &Head) -> String {
        let open = head.open(self.kind());
        match self {
            Self::ConnectionEstablished(body) => splice(open, body),
            Self::SyncSessionStarted(body) => splice(open, body),
            Self::Ack(body) => splice(open, body),
            Self::ServerData(body) => body.encode(open),
            Self::ServerDelta(body) => body.encode(open),
            Self::ResyncRequired(body) => splice(open, body),
            Self::Checksums(body) => body.encode(open),
            Self::Conflict(body) => splice(open, body),
            Self::ConflictResolved(body) => splice(open, body),
            Self::SyncSessionEnded(body) => splice(open, body),
            Self::HeartbeatAck(body) => splice(open, body),
            Self::Pong(body) => splice(open, body),
            Self::Error(body) => splice(open, body),
            Self::ServerDraining(body) => splice(open, body),
            Self::TelemetryAck(body) => splice(open, body),
            Self::BareAck(body) => splice(open, body),
            Self::EventsSubscribed(body) | Self::EventsUnsubscribed(body) => splice(open, body),
            Self::ReplayComplete(body) => splice(open, body),
            Self::PublishAck(body) => splice(open, body),
            Self::Heartbeat(body) => splice(open, body),
        }
    }
}

/// Joins the outer fields with the fields of a body.
fn splice(mut open: String, body: &impl Serialize) -> String {
    let at = open.len();
    // Plain structs of texts, numbers and canonical objects always serialise.
    let mut bytes = open.into_bytes();
    serde_json::to_writer(&mut bytes, body).expect("messages serialise");
    let empty = bytes.len() == at + 2;
    if empty {
        bytes.remove(at);
    } else {
        bytes[at] = b',';
    }
    open = String::from_utf8(bytes).expect("serde_json writes UTF-8");
    open
}

/// Greets an authenticated connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionEstablished {
    /// A greeting for a person.
    pub message: String,
    /// The connection's name on this node.
    pub connection_id: String,
    /// The token's subject; an integer stays one.
    #[serde(serialize_with = "write_user", deserialize_with = "read_user")]
    pub user_id: UserId,
    /// The first of the roles.
    pub role: String,
    /// All roles.
    pub roles: Vec<String>,
    /// The device; empty, and left out, on routes without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device_id: String,
    /// The tenant.
    pub tenant: String,
    /// What this server can do.
    pub features: Features,
    /// Seconds between heartbeats.
    pub heartbeat_interval_s: u64,
    /// Seconds of silence after which the connection is closed.
    pub heartbeat_timeout_s: u64,
    /// The tenant's epoch.
    pub epoch: String,
    /// The tenant's highest stored clock.
    pub hlc: String,
    /// The end of the log of events: later ones come.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub position: String,
    /// Stands for the position, sealed: any node resumes there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resume_token: String,
    /// The name that the client gave itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// Topics that the server joined for the user.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Topics that the client asked for under this name before, and has again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subscriptions: Vec<String>,
}

/// What a server can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Encodings of messages.
    pub encodings: Vec<String>,
    /// Compressions of messages.
    pub compression: Vec<String>,
    /// Items that one batch may hold.
    pub max_batch_items: u64,
    /// Bytes that one message may hold.
    pub max_message_bytes: u64,
    /// For how many seconds missed events are kept, unless their topic says otherwise.
    #[serde(default)]
    pub replay_window_s: u64,
}

/// Answers `start_sync`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncSessionStarted {
    /// The session.
    pub session_info: SessionInfo,
}

/// A sync session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// The session's name.
    pub sync_id: String,
    /// The tenant's epoch.
    pub epoch: String,
    /// The head of the tenant's sequence.
    pub seq: u64,
    /// The device's cursor, if it gave a good one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Whether the device has to pull although nothing was written: what its cursor tells of is not what it may read
    /// now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pull_needed: bool,
    /// Batches of this session that were answered before.
    pub acked_batches: Vec<u64>,
    /// Items that one batch may hold.
    pub max_batch_items: u64,
    /// Bytes that one message may hold.
    pub max_message_bytes: u64,
    /// The policies of the session's kinds that have one.
    pub policies: BTreeMap<String, PolicyDoc>,
    /// When the idle session ends, RFC 3339.
    pub expires_at: String,
}

/// How a batch went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AckStatus {
    /// Every item is done.
    Ok,
    /// Some items are done.
    Partial,
    /// No item is done.
    Failed,
}

/// Answers a batch: one result per item, in its order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Whether this is the answer of an earlier, equal request. What stands behind it is the same in both.
    pub replayed: bool,
    /// The type of the message that is answered.
    pub of: String,
    /// How the batch went.
    pub status: AckStatus,
    /// The batch's number, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_seq: Option<u64>,
    /// Items that are done.
    pub synced: u64,
    /// All other items.
    pub failed: u64,
    /// Items that a strategy decided.
    pub conflicts: u64,
    /// The head of the tenant's sequence.
    pub seq: u64,
    /// The tenant's highest stored clock.
    pub hlc: String,
    /// Said when a resend of the batch could not be told from new samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resend_recognised: Option<bool>,
    /// One result per item.
    pub results: Vec<ItemResult>,
}

/// The side whose value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WinnerName {
    /// The incoming value.
    Client,
    /// The stored value.
    Server,
    /// Both sides are in the value.
    Merged,
    /// The stored value, until a reviewer decides.
    Held,
}

/// What became of one item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemResult {
    /// The item's place in its batch.
    pub index: u64,
    /// The item's `op_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op_id: Option<String>,
    /// The item's kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The item's record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What became of it. A code that this library does not know reads as `retry_later`.
    #[serde(deserialize_with = "read_item_code")]
    pub code: ItemCode,
    /// The record's version afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Whether the item was known; then this is its first result.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
    /// The record as it stands, when it is not what the client must expect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<RecordView>,
    /// Per field that a strategy decided, the winner.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub winners: BTreeMap<String, WinnerName>,
    /// The conflict that waits for a reviewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict_id: Option<String>,
    /// When to send it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// A record as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordView {
    /// The record's version.
    pub version: u64,
    /// Whether it is deleted.
    pub deleted: bool,
    /// Its fields; empty when deleted.
    #[serde(serialize_with = "write_object", deserialize_with = "read_object")]
    pub fields: Object,
}

/// Why a client must pull anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ResyncReason {
    /// The cursor is older than what is retained: send the queue, then pull a snapshot.
    CursorExpired,
    /// The sequence began a new life: pull a snapshot, then send the queue as base 0.
    EpochChanged,
}

/// The cursor is of no use any more; unsent changes stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResyncRequired {
    /// Why.
    pub reason: ResyncReason,
    /// Always true: unsent changes stay on the device.
    pub keep_queue: bool,
    /// What to do first: `queue` or `snapshot`.
    pub first: String,
    /// The tenant's epoch.
    pub epoch: String,
}

impl ResyncRequired {
    /// Makes the message of its reason.
    #[must_use]
    pub fn new(reason: ResyncReason, epoch: driftline_model::Epoch) -> Self {
        let first = match reason {
            ResyncReason::CursorExpired => "queue",
            ResyncReason::EpochChanged => "snapshot",
        };
        Self { reason, keep_queue: true, first: first.into(), epoch: epoch.to_string() }
    }
}

/// Answers `end_sync`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncSessionEnded {
    /// What the session did.
    pub totals: Totals,
}

/// What a session did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Batches answered.
    pub batches: u64,
    /// Items in them.
    pub items: u64,
    /// Items done.
    pub synced: u64,
    /// All other items.
    pub failed: u64,
    /// Items that a strategy decided.
    pub conflicts: u64,
    /// Rows pulled.
    pub pulled: u64,
}

/// Answers `heartbeat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAck {
    /// The head of the tenant's sequence, as this connection knows it.
    pub server_seq: u64,
    /// How far the device is behind.
    pub behind: u64,
}

/// Answers `ping`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pong {
    /// The number of the ping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Box<RawValue>>,
}

impl Pong {
    /// Makes the answer to a ping with this number, given as canonical JSON.
    #[must_use]
    pub fn new(timestamp: Option<String>) -> Self {
        Self { timestamp: timestamp.and_then(|text| RawValue::from_string(text).ok()) }
    }
}

/// Says what went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorMessage {
    /// The stable code.
    pub code: String,
    /// What is wrong, for a person.
    pub message: String,
    /// Finds the failure in the server's log.
    pub correlation_id: String,
    /// Whether the same may be sent again.
    pub retryable: bool,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Single places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
}

/// Single places of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// What is wrong where.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// The record as it stands, when the request was about an older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<RecordView>,
    /// The status that HTTP has for it, for `RATE_LIMITED`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// How to wait when it is refused again, for `RATE_LIMITED`: `exponential`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<String>,
    /// The limit that was reached, as a person reads it, for `RATE_LIMITED`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// What the limit counts over: the text of a [`ThrottleScope`](crate::ThrottleScope). Later servers may send
    /// others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
}

/// How to wait when a request is refused again for its rate.
const BACKOFF: &str = "exponential";

impl ErrorMessage {
    /// Makes the message of a fault.
    #[must_use]
    pub fn new(fault: &Fault, correlation_id: &str) -> Self {
        Self {
            code: fault.code.as_str().into(),
            message: fault.message.clone(),
            correlation_id: correlation_id.into(),
            retryable: fault.code.is_retryable(),
            retry_after_ms: retry_after_ms(fault),
            details: Details::of(fault),
        }
    }
}

impl Details {
    fn of(fault: &Fault) -> Option<Self> {
        let told = !fault.errors.is_empty() || fault.record.is_some() || fault.throttle.is_some();
        let throttle = fault.throttle.as_deref();
        told.then(|| Self {
            errors: fault.errors.clone(),
            record: fault.record.as_deref().cloned(),
            status: throttle.map(|_| fault.code.status()),
            backoff: throttle.map(|_| BACKOFF.into()),
            limit: throttle.map(|throttle| throttle.limit.clone()),
            scope: throttle.map(|throttle| throttle.scope.as_str().into()),
        })
    }
}

/// When the same may be sent again: what a limit says, else a second for what may be sent again at all.
fn retry_after_ms(fault: &Fault) -> Option<u64> {
    let throttle = fault.throttle.as_deref();
    throttle.map(|throttle| throttle.retry_after_ms).or(fault.code.is_retryable().then_some(1_000))
}

/// The server is about to shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerDraining {
    /// When to connect again.
    pub reconnect_after_ms: u64,
}

/// An error over HTTP: `application/problem+json` (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A reference to the page of the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong, for a person.
    pub detail: String,
    /// The stable code.
    pub code: String,
    /// Finds the failure in the server's log.
    pub correlation_id: String,
    /// Whether the same may be sent again.
    pub retryable: bool,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// How to wait when it is refused again, for `RATE_LIMITED`: `exponential`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<String>,
    /// The limit that was reached, as a person reads it, for `RATE_LIMITED`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// What the limit counts over: the text of a [`ThrottleScope`](crate::ThrottleScope). Later servers may send
    /// others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Single places.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// The record as it stands, when the request was about an older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<RecordView>,
    /// Why a client must pull anew, for cursor codes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ResyncReason>,
    /// Always true where present: unsent changes stay on the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_queue: Option<bool>,
    /// What to do first: `queue` or `snapshot`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
    /// The tenant's epoch, for cursor codes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
    /// The chunks that an upload lacks, for `UPLOAD_INCOMPLETE`: the first and the last one of each gap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<Vec<[u64; 2]>>,
    /// The byte at which an upload goes on, for `OFFSET_MISMATCH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}

impl Problem {
    /// Makes the document of a fault.
    #[must_use]
    pub fn new(fault: &Fault, correlation_id: &str) -> Self {
        let code = fault.code.as_str();
        let (missing, offset) = match fault.upload.as_deref() {
            Some(UploadPlace::Missing(missing)) => (Some(missing.clone()), None),
            Some(UploadPlace::Offset(offset)) => (None, Some(*offset)),
            None => (None, None),
        };
        let throttle = fault.throttle.as_deref();
        Self {
            kind: format!("/docs/errors/{code}"),
            title: code.to_ascii_lowercase().replace('_', " "),
            status: fault.code.status(),
            detail: fault.message.clone(),
            code: code.into(),
            correlation_id: correlation_id.into(),
            retryable: fault.code.is_retryable(),
            retry_after_ms: retry_after_ms(fault),
            backoff: throttle.map(|_| BACKOFF.into()),
            limit: throttle.map(|throttle| throttle.limit.clone()),
            scope: throttle.map(|throttle| throttle.scope.as_str().into()),
            errors: fault.errors.clone(),
            record: fault.record.as_deref().cloned(),
            reason: None,
            keep_queue: None,
            first: None,
            epoch: None,
            missing,
            offset,
        }
    }

    /// Adds what a client must do to pull anew.
    #[must_use]
    pub fn with_resync(mut self, resync: &ResyncRequired) -> Self {
        self.reason = Some(resync.reason);
        self.keep_queue = Some(resync.keep_queue);
        self.first = Some(resync.first.clone());
        self.epoch = Some(resync.epoch.clone());
        self
    }
}

fn write_user<S: Serializer>(user: &UserId, serializer: S) -> Result<S::Ok, S::Error> {
    match user {
        UserId::Number(number) => serializer.serialize_i64(*number),
        UserId::Text(text) => serializer.serialize_str(text),
    }
}

fn read_user<'de, D: Deserializer<'de>>(deserializer: D) -> Result<UserId, D::Error> {
    match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(text) => UserId::text(&text).map_err(D::Error::custom),
        value => value
            .as_i64()
            .map(UserId::Number)
            .ok_or_else(|| D::Error::custom("a user is a text or an integer")),
    }
}

pub(crate) fn write_object<S: Serializer>(object: &Object, serializer: S) -> Result<S::Ok, S::Error> {
    RawValue::from_string(object.as_str().to_owned()).map_err(S::Error::custom)?.serialize(serializer)
}

/// The depth of a record's fields that a client accepts from a server.
const DEPTH: usize = 64;

pub(crate) fn read_object<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Object, D::Error> {
    let raw = <Box<RawValue>>::deserialize(deserializer)?;
    object_of_text(raw.get(), DEPTH).map_err(D::Error::custom)?.map_err(D::Error::custom)
}

fn read_item_code<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ItemCode, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(ItemCode::from_text(&text).unwrap_or(ItemCode::RetryLater))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_fields_and_body_join() {
        let head = Head { now_ms: 0, reply_to: Some("m\"1".into()), sync_id: None };
        let pong = Outbound::Pong(Pong::new(Some("123".into()))).encode(&head);
        assert_eq!(
            pong,
            r#"{"type":"pong","server_time":"1970-01-01T00:00:00.000Z","reply_to":"m\"1","timestamp":123}"#
        );
        let bare = Outbound::Pong(Pong::new(None)).encode(&Head::default());
        assert_eq!(bare, r#"{"type":"pong","server_time":"1970-01-01T00:00:00.000Z"}"#);
    }
}
