//! Messages from client to server, and the body of the HTTP sync.

use driftline_model::{Epoch, KindName, Limits, SyncId};

use crate::checksums::{Range, RequestChecksums};
use crate::code::ErrorCode;
use crate::conflict::ResolveConflict;
use crate::envelope::{Envelope, Fault, sync_id};
use crate::events::{AckEvents, Publish, ReplayRequest, Topics};
use crate::form::Encoding;
use crate::item::{BadItem, Item};
use crate::json::Node;
use crate::status::{AnalyticsBatch, DeviceStatus};
use crate::telemetry::{Telemetry, payload_text};

/// A decoded message with the outer fields its answer needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The client's message id, echoed as `reply_to`.
    pub id: Option<String>,
    /// The sync session it belongs to.
    pub sync_id: Option<SyncId>,
    /// The key under which it may be sent again, with what identifies its content.
    pub key: Option<Box<MessageKey>>,
    /// The message.
    pub body: Inbound,
}

/// The key under which a message may be sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageKey {
    /// The key: 1 to 255 visible ASCII characters.
    pub key: String,
    /// The canonical text of the payload, the same in every encoding.
    pub payload: String,
}

impl MessageKey {
    fn read(envelope: &Envelope<'_>) -> Result<Option<Box<Self>>, Fault> {
        let key = envelope.idempotency_key()?;
        Ok(key.map(|key| Box::new(Self { key, payload: payload_text(envelope) })))
    }
}

/// The messages of the sync lifecycle.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Inbound {
    /// Opens or resumes a sync session.
    StartSync(StartSync),
    /// Pushes a batch.
    SyncData(SyncData),
    /// Pulls a page.
    RequestServerData(RequestServerData),
    /// Asks for the sums of the parts of a range.
    RequestChecksums(RequestChecksums),
    /// Decides a conflict.
    ResolveConflict(ResolveConflict),
    /// Ends the session.
    EndSync,
    /// Says that the app is alive.
    Heartbeat(Heartbeat),
    /// Asks for the same number back.
    Ping {
        /// The number, as canonical JSON.
        timestamp: Option<String>,
    },
    /// Says who is at the other end.
    Auth(Auth),
    /// Brings samples. Every type that is no other message's may be the name of a kind of telemetry.
    Telemetry(Box<Telemetry>),
    /// Says how the device is.
    DeviceStatus(Box<DeviceStatus>),
    /// Brings what the device counted.
    AnalyticsBatch(Box<AnalyticsBatch>),
    /// Asks for events.
    SubscribeEvents(Topics),
    /// Wants no more of them.
    UnsubscribeEvents(Topics),
    /// Asks for the events that were missed.
    ReplayRequest(ReplayRequest),
    /// Publishes an event.
    Publish(Box<Publish>),
    /// Acknowledges events.
    AckEvents(AckEvents),
}

/// Who is at the other end of a connection.
#[derive(Clone, PartialEq, Eq)]
pub enum Auth {
    /// Whoever the token names.
    Token {
        /// The token.
        token: String,
        /// The device, unless the token is bound to one.
        device_id: Option<String>,
    },
    /// The registered device that the hash leads to.
    DeviceHash(String),
}

impl std::fmt::Debug for Auth {
    /// Secrets stay out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Token { .. } => "Token",
            Self::DeviceHash(_) => "DeviceHash",
        })
    }
}

impl Inbound {
    /// The types of all messages on the wire.
    pub const KINDS: [&'static str; 17] = [
        "start_sync",
        "sync_data",
        "request_server_data",
        "request_checksums",
        "resolve_conflict",
        "end_sync",
        "heartbeat",
        "ping",
        "auth",
        "telemetry",
        "device_status",
        "analytics_batch",
        "subscribe_events",
        "unsubscribe_events",
        "replay_request",
        "publish",
        "ack_events",
    ];

    /// Returns the message's type on the wire.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::StartSync(_) => "start_sync",
            Self::SyncData(_) => "sync_data",
            Self::RequestServerData(_) => "request_server_data",
            Self::RequestChecksums(_) => "request_checksums",
            Self::ResolveConflict(_) => "resolve_conflict",
            Self::EndSync => "end_sync",
            Self::Heartbeat(_) => "heartbeat",
            Self::Ping { .. } => "ping",
            Self::Auth(_) => "auth",
            // Kinds have names of their own; they share one rate.
            Self::Telemetry(_) => "telemetry",
            Self::DeviceStatus(_) => "device_status",
            Self::AnalyticsBatch(_) => "analytics_batch",
            Self::SubscribeEvents(_) => "subscribe_events",
            Self::UnsubscribeEvents(_) => "unsubscribe_events",
            Self::ReplayRequest(_) => "replay_request",
            Self::Publish(_) => "publish",
            Self::AckEvents(_) => "ack_events",
        }
    }
}

/// Opens or resumes a sync session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StartSync {
    /// The kinds to sync; empty: all.
    pub data_types: Vec<KindName>,
    /// How many items the device is about to send.
    pub total_items: Option<u64>,
    /// Where the device stands.
    pub cursor: Option<String>,
    /// The epoch of the bases in the device's queue.
    pub epoch: Option<Epoch>,
    /// Every change up to this number was answered to the device.
    pub acked_n: Option<u64>,
    /// Whether a session of this name is to be continued.
    pub resume: bool,
}

/// Pushes a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncData {
    /// The items, good and bad, in the order of the message.
    pub items: Vec<Result<Item, Box<BadItem>>>,
    /// The batch's number in its session.
    pub batch_seq: Option<u64>,
    /// Every change up to this number was answered to the device.
    pub acked_n: Option<u64>,
}

/// Pulls a page.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestServerData {
    /// The kinds to pull; absent: those of the session; empty: all.
    pub data_types: Option<Vec<KindName>>,
    /// Where the device stands; absent: at the beginning.
    pub cursor: Option<String>,
    /// The most rows wanted.
    pub limit: Option<u64>,
    /// Only these rows, whole, to repair what differs.
    pub range: Option<Range>,
}

/// Says that the app is alive, and how it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heartbeat {
    /// The sequence number up to which the device is caught up.
    pub last_seq: Option<u64>,
    /// How many changes wait on the device.
    pub queue_depth: Option<u64>,
}

/// The body of `POST /api/v1/sync`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncRequest {
    /// The device, unless the token or the query names it.
    pub device_id: Option<String>,
    /// The sync session that batches are counted in.
    pub sync_id: Option<SyncId>,
    /// The epoch of the bases in the device's queue.
    pub epoch: Option<Epoch>,
    /// The batch, if one is pushed.
    pub push: SyncData,
    /// What is pulled.
    pub pull: RequestServerData,
    /// The key under which the request may be sent again, if the body has one.
    pub key: Option<Box<MessageKey>>,
}

/// Decodes a message.
///
/// # Errors
/// [`Fault`] with the code that answers it; it carries the message's `id` whenever that was readable.
pub fn decode(encoding: Encoding, frame: &[u8], limits: &Limits) -> Result<Message, Fault> {
    let document = Envelope::parse(encoding, frame, limits)?;
    let id = Envelope::message_id(document.root())?;
    let opened = Envelope::open(document.root()).and_then(|envelope| body(&envelope, limits));
    let message = |(sync_id, key, body)| Message { id: id.clone(), sync_id, key, body };
    opened.map(message).map_err(|mut fault| {
        fault.reply_to.clone_from(&id);
        fault
    })
}

type Opened = (Option<SyncId>, Option<Box<MessageKey>>, Inbound);

fn body(envelope: &Envelope<'_>, limits: &Limits) -> Result<Opened, Fault> {
    let kind = envelope.kind()?;
    let sync_id = envelope.sync_id()?;
    let body = match kind.as_str() {
        "start_sync" => Inbound::StartSync(start_sync(envelope)?),
        "sync_data" => Inbound::SyncData(sync_data(envelope, limits, true)?),
        "request_server_data" => Inbound::RequestServerData(request(envelope)?),
        "request_checksums" => Inbound::RequestChecksums(RequestChecksums::read(envelope)?),
        "resolve_conflict" => Inbound::ResolveConflict(ResolveConflict::read(envelope)?),
        "end_sync" => Inbound::EndSync,
        "heartbeat" => Inbound::Heartbeat(Heartbeat {
            last_seq: number(envelope, "last_seq")?,
            queue_depth: number(envelope, "queue_depth")?,
        }),
        "ping" => Inbound::Ping { timestamp: ping_timestamp(envelope)? },
        "auth" => Inbound::Auth(auth(envelope)?),
        "device_status" => Inbound::DeviceStatus(Box::new(DeviceStatus::read(envelope)?)),
        "analytics_batch" => Inbound::AnalyticsBatch(Box::new(AnalyticsBatch::read(envelope)?)),
        "subscribe_events" | "subscription" => Inbound::SubscribeEvents(Topics::read(envelope)?),
        "unsubscribe_events" | "unsubscription" => Inbound::UnsubscribeEvents(Topics::read(envelope)?),
        "replay_request" => Inbound::ReplayRequest(ReplayRequest::read(envelope)?),
        "publish" => Inbound::Publish(Box::new(Publish::of_message(envelope)?)),
        "ack_events" => Inbound::AckEvents(AckEvents::read(envelope)?),
        other => match KindName::new(other) {
            Ok(kind) if !other.starts_with('$') => {
                Inbound::Telemetry(Box::new(Telemetry::read(envelope, kind, limits)?))
            }
            _ => return Err(unknown_type(other)),
        },
    };
    Ok((sync_id, MessageKey::read(envelope)?, body))
}

/// Refuses a type that is none of the route's.
#[must_use]
pub fn unknown_type(kind: &str) -> Fault {
    let shown: String = kind.chars().take(64).collect();
    Fault::new(ErrorCode::UnknownMessageType, format!("{shown:?} is not a message of this route"))
}

/// Reads who is at the other end; `child_hash` is another name of `device_hash`.
fn auth(envelope: &Envelope<'_>) -> Result<Auth, Fault> {
    if let Some(token) = text(envelope, "token")? {
        return Ok(Auth::Token { token, device_id: text(envelope, "device_id")? });
    }
    let hash = match text(envelope, "device_hash")? {
        Some(hash) => Some(hash),
        None => text(envelope, "child_hash")?,
    };
    hash.map(Auth::DeviceHash).ok_or_else(|| Fault::invalid("/token", "a token or a device_hash is required"))
}

/// The body of `POST /api/v1/ingest`: one message or several, and the device that they come from.
#[derive(Debug, Clone, PartialEq)]
pub struct IngestPost {
    /// The device hash, if the body has one.
    pub device_hash: Option<String>,
    /// The device, if the body names one.
    pub device_id: Option<String>,
    /// The messages, good and bad.
    pub messages: Vec<Result<Message, Fault>>,
    /// Whether they came in an array.
    pub array: bool,
}

impl IngestPost {
    /// Reads the body. A message that cannot be read stands among the others as its fault. `key` is one that came beside
    /// the body: of a single message it takes the place of the message's own.
    ///
    /// # Errors
    /// As [`decode`] for what concerns the body as a whole; `BATCH_TOO_LARGE` for too many messages.
    pub fn decode(
        encoding: Encoding,
        bytes: &[u8],
        key: Option<&str>,
        limits: &Limits,
    ) -> Result<Self, Fault> {
        let document = Envelope::parse_any(encoding, bytes, limits)?;
        let root = document.root();
        let roots: Vec<Node<'_>> = if root.is_array() { root.elements().collect() } else { vec![root] };
        if roots.len() > limits.batch_items {
            let message =
                format!("a body may hold {} messages, this one holds {}", limits.batch_items, roots.len());
            return Err(Fault::new(ErrorCode::BatchTooLarge, message));
        }
        let device_hash = common(&roots, &["device_hash", "child_hash"])?;
        let device_id = common(&roots, &["device_id"])?;
        let beside = key.filter(|_| !root.is_array());
        let message = |root: &Node<'_>| {
            let id = Envelope::message_id(*root)?;
            let envelope = Envelope::open(*root)?;
            let (sync_id, own, body) = body(&envelope, limits)?;
            let beside = beside
                .map(|key| Box::new(MessageKey { key: key.to_owned(), payload: payload_text(&envelope) }));
            Ok(Message { id, sync_id, key: beside.or(own), body })
        };
        Ok(Self {
            device_hash,
            device_id,
            messages: roots.iter().map(message).collect(),
            array: root.is_array(),
        })
    }
}

impl SyncRequest {
    /// Reads the body of `POST /api/v1/sync`.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn decode(encoding: Encoding, bytes: &[u8], limits: &Limits) -> Result<Self, Fault> {
        let document = Envelope::parse(encoding, bytes, limits)?;
        let envelope = Envelope::open(document.root())?;
        let device_id = match envelope.field("device_id") {
            None => None,
            Some(node) => {
                let text = node.as_str().ok_or_else(|| Fault::invalid("/device_id", "must be a string"))?;
                Some(text.into_owned())
            }
        };
        let session = match document.root().get("sync_id").filter(|node| !node.is_null()) {
            None => None,
            Some(node) => {
                let text = node.as_str().unwrap_or_default().to_ascii_lowercase();
                Some(sync_id(&text).ok_or_else(|| Fault::invalid("/sync_id", "must be a UUID"))?)
            }
        };
        Ok(Self {
            device_id,
            sync_id: session,
            epoch: epoch(&envelope)?,
            push: sync_data(&envelope, limits, false)?,
            pull: request(&envelope)?,
            key: MessageKey::read(&envelope)?,
        })
    }
}

/// Finds the text that messages have under one of some names, which must be one text: a body comes from one device.
fn common(roots: &[Node<'_>], names: &[&str]) -> Result<Option<String>, Fault> {
    let mut found: Option<String> = None;
    for root in roots {
        for (name, text) in names.iter().filter_map(|name| Some((name, root.get(name)?.as_str()?))) {
            if found.as_deref().is_some_and(|found| *found != *text) {
                return Err(Fault::invalid(
                    &format!("/{name}"),
                    "must be the same in all messages of a body",
                ));
            }
            found = Some(text.into_owned());
        }
    }
    Ok(found)
}

fn start_sync(envelope: &Envelope<'_>) -> Result<StartSync, Fault> {
    Ok(StartSync {
        data_types: data_types(envelope)?.unwrap_or_default(),
        total_items: number(envelope, "total_items")?,
        cursor: text(envelope, "cursor")?,
        epoch: epoch(envelope)?,
        acked_n: number(envelope, "acked_n")?,
        resume: match envelope.field("resume") {
            None => false,
            Some(node) => node.as_bool().ok_or_else(|| Fault::invalid("/resume", "must be true or false"))?,
        },
    })
}

fn sync_data(envelope: &Envelope<'_>, limits: &Limits, required: bool) -> Result<SyncData, Fault> {
    let batch = envelope.field("batch").or_else(|| envelope.field("items"));
    let items = match batch {
        None if required => return Err(Fault::invalid("/batch", "an array of items is required")),
        None => Vec::new(),
        Some(batch) if !batch.is_array() => {
            return Err(Fault::invalid("/batch", "must be an array of items"));
        }
        Some(batch) => read_items(batch, limits)?,
    };
    Ok(SyncData { items, batch_seq: number(envelope, "batch_seq")?, acked_n: number(envelope, "acked_n")? })
}

fn read_items(batch: Node<'_>, limits: &Limits) -> Result<Vec<Result<Item, Box<BadItem>>>, Fault> {
    let count = batch.elements().count();
    if count > limits.batch_items {
        let message =
            format!("a batch may hold {} items, this one holds {count}: split it", limits.batch_items);
        return Err(Fault::new(ErrorCode::BatchTooLarge, message));
    }
    Ok(batch.elements().map(Item::read).collect())
}

fn request(envelope: &Envelope<'_>) -> Result<RequestServerData, Fault> {
    Ok(RequestServerData {
        data_types: data_types(envelope)?,
        cursor: text(envelope, "cursor")?,
        limit: number(envelope, "limit")?,
        range: Range::of_payload(envelope)?,
    })
}

fn data_types(envelope: &Envelope<'_>) -> Result<Option<Vec<KindName>>, Fault> {
    let Some(node) = envelope.field("data_types") else { return Ok(None) };
    if !node.is_array() {
        return Err(Fault::invalid("/data_types", "must be an array of kinds"));
    }
    let mut kinds = Vec::new();
    for (at, element) in node.elements().enumerate() {
        let kind = element.as_str().and_then(|text| KindName::new(&text).ok());
        kinds
            .push(kind.ok_or_else(|| Fault::invalid(&format!("/data_types/{at}"), "must be a kind's name"))?);
        if kinds.len() > 256 {
            return Err(Fault::invalid("/data_types", "may name 256 kinds"));
        }
    }
    kinds.sort();
    kinds.dedup();
    Ok(Some(kinds))
}

fn number(envelope: &Envelope<'_>, name: &str) -> Result<Option<u64>, Fault> {
    let Some(node) = envelope.field(name) else { return Ok(None) };
    let number = node.as_u64();
    number.map(Some).ok_or_else(|| Fault::invalid(&format!("/{name}"), "must be an integer from 0 to 2^53"))
}

fn text(envelope: &Envelope<'_>, name: &str) -> Result<Option<String>, Fault> {
    let Some(node) = envelope.field(name) else { return Ok(None) };
    let text = node.as_str().ok_or_else(|| Fault::invalid(&format!("/{name}"), "must be a string"))?;
    Ok(Some(text.into_owned()))
}

fn epoch(envelope: &Envelope<'_>) -> Result<Option<Epoch>, Fault> {
    let Some(text) = text(envelope, "epoch")? else { return Ok(None) };
    text.parse().map(Some).map_err(|_| Fault::invalid("/epoch", "must be 8 hexadecimal digits"))
}

fn ping_timestamp(envelope: &Envelope<'_>) -> Result<Option<String>, Fault> {
    let Some(node) = envelope.field("timestamp") else { return Ok(None) };
    let mut out = String::new();
    match crate::canonical::canonical_value(node, &mut out) {
        Ok(()) if node.is_number() => Ok(Some(out)),
        _ => Err(Fault::invalid("/timestamp", "must be a number")),
    }
}
