//! The client's half of the wire: messages written by a device, answers read by it.

use std::borrow::Cow;

use driftline_model::{ConflictId, Epoch, Hlc, Intents, KindName, Object, RecordId, ScopeName, Seq};
use serde::Deserialize;

use crate::canonical::canonical_object;
use crate::checksums::{Checksum, Checksums, Progress, Range, write_bounds};
use crate::conflict::{ConflictDoc, ConflictResolved, Resolution};
use crate::intents::write_increments;
use crate::item::Item;
use crate::json::{Document, Node};
use crate::outbound::{
    Ack, ConnectionEstablished, ErrorMessage, HeartbeatAck, Pong, ResyncRequired, ServerDraining,
    SyncSessionEnded, SyncSessionStarted,
};
use crate::rows::{Change, ChangeKind};
use crate::write::{write_json_string, write_number};
use crate::{Encoding, ErrorCode, Fault, json_of_msgpack};

/// A message that a client sends.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum ClientMessage<'a> {
    /// Opens or resumes a sync session.
    StartSync {
        /// The session's name.
        sync_id: &'a str,
        /// The kinds to sync; empty: all.
        data_types: &'a [KindName],
        /// How many items wait on the device.
        total_items: u64,
        /// Where the device stands.
        cursor: Option<&'a str>,
        /// The epoch of the queue's bases.
        epoch: Option<Epoch>,
        /// Every change up to this number was answered.
        acked_n: u64,
    },
    /// Pushes a batch.
    SyncData {
        /// The session's name.
        sync_id: &'a str,
        /// The items.
        items: &'a [Item],
        /// The batch's number in its session.
        batch_seq: u64,
        /// Every change up to this number was answered.
        acked_n: u64,
    },
    /// Pulls a page.
    RequestServerData {
        /// The session's name.
        sync_id: &'a str,
        /// The kinds to pull; empty: all.
        data_types: &'a [KindName],
        /// Where the device stands.
        cursor: Option<&'a str>,
        /// Only these rows, whole, to repair what differs.
        range: Option<&'a Range>,
    },
    /// Asks for the sums of the parts of a range.
    RequestChecksums {
        /// The session's name.
        sync_id: &'a str,
        /// The range.
        range: &'a Range,
        /// Into how many parts to cut it, 1 to 64.
        parts: u64,
    },
    /// Decides a conflict.
    ResolveConflict {
        /// The conflict.
        conflict_id: &'a ConflictId,
        /// What stands.
        resolution: Resolution,
        /// The reviewer's own values; sent only when merged.
        fields: &'a Object,
        /// The record's version that the reviewer has seen; none: the one that the conflict names.
        version: Option<Seq>,
    },
    /// Ends the session.
    EndSync {
        /// The session's name.
        sync_id: &'a str,
    },
    /// Says that the app is alive.
    Heartbeat {
        /// The sequence number up to which the device is caught up.
        last_seq: Seq,
        /// How many changes wait on the device.
        queue_depth: u64,
    },
}

impl ClientMessage<'_> {
    /// Encodes the message as JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        self.write(None)
    }

    /// Encodes the message under an id of at most 64 bytes, which every answer repeats as `reply_to`.
    #[must_use]
    pub fn encode_with_id(&self, id: &str) -> String {
        self.write(Some(id))
    }

    fn write(&self, message_id: Option<&str>) -> String {
        let mut out = String::with_capacity(256);
        out.push_str("{\"type\":\"");
        out.push_str(self.kind());
        out.push('"');
        text(&mut out, "id", message_id);
        text(&mut out, "sync_id", self.sync_id());
        self.write_payload(&mut out);
        out.push('}');
        out
    }

    const fn kind(&self) -> &'static str {
        match self {
            Self::StartSync { .. } => "start_sync",
            Self::SyncData { .. } => "sync_data",
            Self::RequestServerData { .. } => "request_server_data",
            Self::RequestChecksums { .. } => "request_checksums",
            Self::ResolveConflict { .. } => "resolve_conflict",
            Self::EndSync { .. } => "end_sync",
            Self::Heartbeat { .. } => "heartbeat",
        }
    }

    const fn sync_id(&self) -> Option<&str> {
        match self {
            Self::StartSync { sync_id, .. }
            | Self::SyncData { sync_id, .. }
            | Self::RequestServerData { sync_id, .. }
            | Self::RequestChecksums { sync_id, .. }
            | Self::EndSync { sync_id } => Some(sync_id),
            Self::ResolveConflict { .. } | Self::Heartbeat { .. } => None,
        }
    }

    fn write_payload(&self, out: &mut String) {
        match self {
            Self::StartSync { data_types, total_items, cursor, epoch, acked_n, .. } => {
                kinds(out, data_types);
                number(out, "total_items", *total_items);
                number(out, "acked_n", *acked_n);
                text(out, "cursor", *cursor);
                text(out, "epoch", epoch.map(|epoch| epoch.to_string()).as_deref());
            }
            Self::SyncData { items, batch_seq, acked_n, .. } => {
                batch(out, items);
                number(out, "batch_seq", *batch_seq);
                number(out, "acked_n", *acked_n);
            }
            Self::RequestServerData { data_types, cursor, range, .. } => {
                kinds(out, data_types);
                text(out, "cursor", *cursor);
                if let Some(range) = range {
                    out.push_str(",\"range\":");
                    range.write(out);
                }
            }
            Self::RequestChecksums { range, parts, .. } => {
                text(out, "kind", Some(range.kind.as_str()));
                text(out, "scope", Some(range.scope.as_str()));
                write_bounds(out, range.after.as_ref(), range.until.as_ref());
                number(out, "parts", *parts);
            }
            Self::ResolveConflict { conflict_id, resolution, fields, version } => {
                text(out, "conflict_id", Some(conflict_id.as_str()));
                text(out, "resolution", Some(resolution.as_str()));
                if *resolution == Resolution::Merged {
                    object(out, "fields", fields);
                }
                if let Some(version) = version {
                    number(out, "version", version.number());
                }
            }
            Self::EndSync { .. } => {}
            Self::Heartbeat { last_seq, queue_depth } => {
                number(out, "last_seq", last_seq.number());
                number(out, "queue_depth", *queue_depth);
            }
        }
    }
}

pub(crate) fn text(out: &mut String, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        out.push_str(",\"");
        out.push_str(name);
        out.push_str("\":");
        write_json_string(out, value);
    }
}

pub(crate) fn number(out: &mut String, name: &str, value: u64) {
    out.push_str(",\"");
    out.push_str(name);
    out.push_str("\":");
    write_number(out, value);
}

pub(crate) fn kinds(out: &mut String, kinds: &[KindName]) {
    out.push_str(",\"data_types\":[");
    for (at, kind) in kinds.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_json_string(out, kind.as_str());
    }
    out.push(']');
}

pub(crate) fn batch(out: &mut String, items: &[Item]) {
    out.push_str(",\"batch\":[");
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_item(out, item);
    }
    out.push(']');
}

fn write_item(out: &mut String, item: &Item) {
    out.push_str("{\"kind\":");
    write_json_string(out, item.kind.as_str());
    text(out, "id", Some(item.id.as_str()));
    text(out, "op", Some(item.op.as_str()));
    text(out, "op_id", item.op_id.as_ref().map(driftline_model::OpId::as_str));
    if let Some(n) = item.n {
        number(out, "n", n);
    }
    number(out, "base_version", item.base_version.number());
    text(out, "hlc", item.hlc.map(|hlc| hlc.to_string()).as_deref());
    if item.schema_version > 0 {
        number(out, "schema_version", u64::from(item.schema_version));
    }
    text(out, "group", item.group.as_deref());
    object(out, "fields", &item.fields);
    if let Some(intents) = &item.intents {
        write_intents(out, intents);
    }
    out.push('}');
}

fn write_intents(out: &mut String, intents: &Intents) {
    for (name, asked) in [("previous", &intents.previous), ("add", &intents.add), ("remove", &intents.remove)]
    {
        if !asked.is_empty() {
            object(out, name, asked);
        }
    }
    if !intents.increments.is_empty() {
        out.push_str(",\"increments\":");
        write_increments(out, &intents.increments);
    }
    if intents.deescalate {
        out.push_str(",\"flags\":[\"deescalate\"]");
    }
}

fn object(out: &mut String, name: &str, object: &Object) {
    out.push_str(",\"");
    out.push_str(name);
    out.push_str("\":");
    out.push_str(object.as_str());
}

/// An answer or event that a client reads.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ServerMessage {
    /// The connection is authenticated.
    ConnectionEstablished(Box<ConnectionEstablished>),
    /// A sync session is open.
    SyncSessionStarted(Box<SyncSessionStarted>),
    /// A batch was decided.
    Ack(Ack),
    /// A page of a pull.
    Page(Rows),
    /// Changes of other devices.
    Delta {
        /// What the connection had accounted for before.
        prev_seq: Seq,
        /// The rows.
        rows: Rows,
    },
    /// The cursor is of no use any more.
    ResyncRequired(ResyncRequired),
    /// The sums of the parts of a range.
    Checksums(Checksums),
    /// A change was set aside for a reviewer.
    Conflict(Box<ConflictDoc>),
    /// A conflict was decided.
    ConflictResolved(Box<ConflictResolved>),
    /// The session is closed.
    SyncSessionEnded(SyncSessionEnded),
    /// The server heard the heartbeat.
    HeartbeatAck(HeartbeatAck),
    /// The answer to a ping.
    Pong(Pong),
    /// Something went wrong.
    Error(ErrorMessage),
    /// The server is about to shut down.
    ServerDraining(ServerDraining),
    /// A message that this library does not know; later servers may send some.
    Other(String),
}

/// Rows of a page or a delta, as a client reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// The rows.
    pub changes: Vec<Change>,
    /// Where the reader stands after them.
    pub cursor: String,
    /// The sequence number up to which they tell everything, when no more wait.
    pub seq: Seq,
    /// The tenant's highest stored clock.
    pub hlc: Hlc,
    /// Whether more pages wait.
    pub has_more: bool,
    /// What the reader must hold by now; empty: nothing is told.
    pub checksums: Vec<Checksum>,
    /// How far a snapshot has come.
    pub progress: Option<Progress>,
    /// The range that was asked, when the page is one of a repair.
    pub range: Option<Range>,
    /// In a snapshot: the number of the last change before the epoch began.
    pub epoch_seq: Option<Seq>,
}

impl ServerMessage {
    /// Decodes a message from a server.
    ///
    /// # Errors
    /// [`Fault`] when the frame is not a message that this protocol version knows how to read.
    pub fn decode(encoding: Encoding, frame: &[u8]) -> Result<Self, Fault> {
        Self::decode_reply(encoding, frame).map(|(_, message)| message)
    }

    /// Decodes a message from a server, with the `id` of the message that it answers.
    ///
    /// # Errors
    /// As [`ServerMessage::decode`].
    pub fn decode_reply(encoding: Encoding, frame: &[u8]) -> Result<(Option<String>, Self), Fault> {
        let frame = &*json(encoding, frame)?;
        let document = Document::parse(frame, ANSWER_DEPTH)
            .map_err(|error| Fault::new(ErrorCode::JsonDecodeError, error.to_string()))?;
        let root = document.root();
        let kind = root.get("type").and_then(|node| node.as_str()).unwrap_or_default().into_owned();
        let reply_to = root.get("reply_to").and_then(|node| node.as_str()).map(Cow::into_owned);
        let message = match kind.as_str() {
            "connection_established" => Self::ConnectionEstablished(Box::new(body(frame)?)),
            "sync_session_started" => Self::SyncSessionStarted(Box::new(body(frame)?)),
            "ack" => Self::Ack(body(frame)?),
            "server_data" => Self::Page(Rows::read(root).ok_or_else(|| malformed(&kind))?),
            "server_delta" => Self::Delta {
                prev_seq: seq(root, "prev_seq").ok_or_else(|| malformed(&kind))?,
                rows: Rows::read(root).ok_or_else(|| malformed(&kind))?,
            },
            "resync_required" => Self::ResyncRequired(body(frame)?),
            "checksums" => Self::Checksums(Checksums::read(root).ok_or_else(|| malformed(&kind))?),
            "conflict" => Self::Conflict(Box::new(body(frame)?)),
            "conflict_resolved" => Self::ConflictResolved(Box::new(body(frame)?)),
            "sync_session_ended" => Self::SyncSessionEnded(body(frame)?),
            "heartbeat_ack" => Self::HeartbeatAck(body(frame)?),
            "pong" => Self::Pong(body(frame)?),
            "error" => Self::Error(body(frame)?),
            "server_draining" => Self::ServerDraining(body(frame)?),
            _ => Self::Other(kind),
        };
        Ok((reply_to, message))
    }
}

impl Rows {
    /// Reads the fields of a page, of `server_data` or of an HTTP answer.
    #[must_use]
    pub fn read(node: Node<'_>) -> Option<Self> {
        let changes = node.get("changes").filter(Node::is_array)?;
        let member = |name: &str| node.get(name).filter(|node| !node.is_null());
        Some(Self {
            changes: changes.elements().map(change).collect::<Option<_>>()?,
            cursor: node.get("cursor")?.as_str()?.into_owned(),
            seq: seq(node, "seq")?,
            hlc: node.get("hlc")?.as_str()?.parse().ok()?,
            has_more: node.get("has_more").and_then(|node| node.as_bool()).unwrap_or(false),
            checksums: Checksum::read_all(member("checksums"))?,
            progress: member("progress").map_or(Some(None), |node| Progress::read(node).map(Some))?,
            range: member("range").map_or(Some(None), |node| Range::read(node).map(Some))?,
            epoch_seq: seq(node, "epoch_seq"),
        })
    }
}

fn seq(node: Node<'_>, name: &str) -> Option<Seq> {
    node.get(name)?.as_u64().map(Seq::new)
}

fn change(node: Node<'_>) -> Option<Change> {
    Some(Change {
        kind: KindName::new(&node.get("kind")?.as_str()?).ok()?,
        id: RecordId::new(&node.get("id")?.as_str()?).ok()?,
        scope: ScopeName::new(&node.get("scope")?.as_str()?).ok()?,
        version: seq(node, "version")?,
        change: ChangeKind::from_text(&node.get("change")?.as_str()?)?,
        fields: canonical_object(node.get("fields")?).ok()?,
    })
}

pub(crate) fn malformed(kind: &str) -> Fault {
    Fault::new(ErrorCode::ValidationError, format!("the server sent a malformed {kind}"))
}

/// The levels of an answer: those of a record, and those around it.
pub(crate) const ANSWER_DEPTH: usize = 72;

/// Returns an answer as JSON, whichever encoding it came in.
pub(crate) fn json(encoding: Encoding, bytes: &[u8]) -> Result<Cow<'_, [u8]>, Fault> {
    match encoding {
        Encoding::Json => Ok(Cow::Borrowed(bytes)),
        Encoding::MessagePack => json_of_msgpack(bytes, ANSWER_DEPTH)
            .map(|text| Cow::Owned(text.into_bytes()))
            .map_err(|error| Fault::new(encoding.decode_error(), error.to_string())),
    }
}

pub(crate) fn body<'a, T: Deserialize<'a>>(frame: &'a [u8]) -> Result<T, Fault> {
    serde_json::from_slice(frame).map_err(|error| Fault::new(ErrorCode::ValidationError, error.to_string()))
}
