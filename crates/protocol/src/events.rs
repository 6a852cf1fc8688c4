//! Events and who wants them: subscriptions, replays, publishing.

use std::fmt::Write as _;

use driftline_model::{Epoch, Limits, Object};
use serde::{Deserialize, Serialize};

use crate::canonical::{canonical_object, canonical_value};
use crate::envelope::{Envelope, Fault};
use crate::form::Encoding;
use crate::json::Node;
use crate::time::write_millis;
use crate::write::{write_json_string, write_number};

/// The most topics of one message, and the most bytes of one topic.
const TOPICS_MAX: usize = 256;
const TOPIC_BYTES: usize = 200;
/// The most bytes of an event's type, of a key, and of everything an event carries.
const KIND_BYTES: usize = 64;
const KEY_BYTES: usize = 255;
const DATA_BYTES: usize = 64 << 10;
/// The most bytes of a filter.
const FILTER_BYTES: usize = 4 << 10;

/// A place in the log of events, as a client names it: `"<epoch>-<n>"`, or a bare number of the current epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventPlace {
    /// The life of the log; none: the current one.
    pub epoch: Option<Epoch>,
    /// The number.
    pub id: u64,
}

impl EventPlace {
    /// Reads a place of its text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|id| plain && *id <= MAX)
        };
        const MAX: u64 = (1 << 53) - 1;
        match text.split_once('-') {
            Some((epoch, id)) => Some(Self { epoch: Some(epoch.parse().ok()?), id: number(id)? }),
            None => Some(Self { epoch: None, id: number(text)? }),
        }
    }

    fn of(node: Node<'_>) -> Option<Self> {
        match node.as_str() {
            Some(text) => Self::parse(&text),
            None => Some(Self { epoch: None, id: node.as_u64()? }),
        }
    }

    fn read(envelope: &Envelope<'_>, name: &str) -> Result<Option<Self>, Fault> {
        let Some(node) = envelope.field(name).filter(|node| !node.is_null()) else { return Ok(None) };
        let place = Self::of(node);
        let wrong = || Fault::invalid(&format!("/{name}"), "must be an event's id or its number");
        place.ok_or_else(wrong).map(Some)
    }
}

/// Writes the id of an event, which is a place in the log.
#[must_use]
pub fn event_id(epoch: Epoch, id: u64) -> String {
    format!("{epoch}-{id}")
}

/// Asks for topics, or wants no more of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topics {
    /// The topics.
    pub topics: Vec<Box<str>>,
    /// What was missed since is wanted too.
    pub since: Option<EventPlace>,
    /// Only some of their events are wanted.
    pub filter: Option<EventFilter>,
}

/// Which events are wanted. Names and values are canonical JSON text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventFilter {
    /// The types; empty: all.
    pub types: Vec<Box<str>>,
    /// Fields of `data`, and the values of which each has to have one.
    pub fields: Vec<(Box<str>, Vec<Box<str>>)>,
}

impl Topics {
    pub(crate) fn read(envelope: &Envelope<'_>) -> Result<Self, Fault> {
        let topics = named(|name| envelope.field(name))?;
        if topics.is_empty() {
            return Err(Fault::invalid("/topics", "an array of topics is required"));
        }
        let since = EventPlace::read(envelope, "since")?;
        let filter =
            envelope.field("filter").filter(|node| !node.is_null()).map(EventFilter::read).transpose()?;
        Ok(Self { topics, since, filter })
    }
}

impl EventFilter {
    /// Writes the filter as JSON without a space, as [`EventFilter::parse`] reads it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = String::from("{\"types\":[");
        for (at, kind) in self.types.iter().enumerate() {
            out.push_str(if at > 0 { "," } else { "" });
            write_json_string(&mut out, kind);
        }
        out.push_str("],\"data\":{");
        for (at, (name, values)) in self.fields.iter().enumerate() {
            out.push_str(if at > 0 { ",\"" } else { "\"" });
            out.push_str(name);
            out.push_str("\":[");
            out.push_str(&values.join(","));
            out.push(']');
        }
        out.push_str("}}");
        out.replace(' ', "\\u0020")
    }

    /// Reads what [`EventFilter::to_text`] wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::read(crate::json::Document::parse(text.as_bytes(), 16).ok()?.root()).ok()
    }

    fn read(node: Node<'_>) -> Result<Self, Fault> {
        let wrong = |pointer: &str, message: &str| Fault::invalid(&format!("/filter{pointer}"), message);
        if !node.is_object() {
            return Err(wrong("", "must be an object of types and data"));
        }
        if node.to_json().len() > FILTER_BYTES {
            return Err(wrong("", "a filter may hold 4 KiB"));
        }
        let mut filter = Self::default();
        if let Some(types) = node.get("types") {
            if !types.is_array() {
                return Err(wrong("/types", "must be an array of types"));
            }
            for kind in types.elements() {
                let kind = kind.as_str().ok_or_else(|| wrong("/types", "must be an array of types"))?;
                filter.types.push(kind.as_ref().into());
            }
        }
        if let Some(data) = node.get("data") {
            if !data.is_object() {
                return Err(wrong("/data", "must be an object of fields and their values"));
            }
            for (name, value) in data.members() {
                let canonical = |node: Node<'_>| {
                    let mut text = String::new();
                    canonical_value(node, &mut text)
                        .map_err(|error| wrong("/data", &error.kind.to_string()))?;
                    Ok::<Box<str>, Fault>(text.into())
                };
                let values = if value.is_array() {
                    value.elements().map(canonical).collect::<Result<Vec<_>, _>>()?
                } else {
                    vec![canonical(value)?]
                };
                let name = canonical(name)?;
                filter.fields.push((name[1..name.len() - 1].into(), values));
            }
        }
        Ok(filter)
    }
}

/// Reads `topics`, or `topic`.
fn named<'d>(field: impl Fn(&str) -> Option<Node<'d>>) -> Result<Vec<Box<str>>, Fault> {
    match (field("topics"), field("topic")) {
        (Some(list), _) if list.is_array() => texts(list, "/topics", TOPIC_BYTES),
        (Some(list), None) if !list.is_null() => Err(Fault::invalid("/topics", "must be an array of topics")),
        (_, Some(topic)) => Ok(vec![text(topic, "/topic", TOPIC_BYTES)?]),
        (Some(_) | None, None) => Ok(Vec::new()),
    }
}

/// Reads an array of names, each once.
fn texts(list: Node<'_>, pointer: &str, bytes_max: usize) -> Result<Vec<Box<str>>, Fault> {
    if !list.is_array() {
        return Err(Fault::invalid(pointer, "must be an array"));
    }
    let mut found: Vec<Box<str>> = Vec::new();
    for (at, element) in list.elements().enumerate() {
        if at == TOPICS_MAX {
            return Err(Fault::invalid(pointer, "may hold 256 names"));
        }
        let name = text(element, &format!("{pointer}/{at}"), bytes_max)?;
        if !found.contains(&name) {
            found.push(name);
        }
    }
    Ok(found)
}

/// Reads a name; an integer is one too.
fn text(node: Node<'_>, pointer: &str, bytes_max: usize) -> Result<Box<str>, Fault> {
    let name = match (node.as_str(), node.as_i64()) {
        (Some(text), _) => Some(Box::from(text.as_ref())),
        (None, Some(number)) => Some(number.to_string().into()),
        (None, None) => None,
    };
    let fits =
        |name: &str| !name.is_empty() && name.len() <= bytes_max && !name.chars().any(char::is_control);
    name.filter(|name| fits(name))
        .ok_or_else(|| Fault::invalid(pointer, &format!("must be a text of 1 to {bytes_max} bytes")))
}

fn optional(node: Option<Node<'_>>, name: &str, bytes_max: usize) -> Result<Option<Box<str>>, Fault> {
    let node = node.filter(|node| !node.is_null());
    node.map(|node| text(node, &format!("/{name}"), bytes_max)).transpose()
}

/// Reads an array of names as bodies of requests have them.
pub(crate) fn names(list: Node<'_>, pointer: &str, bytes_max: usize) -> Result<Vec<Box<str>>, Fault> {
    texts(list, pointer, bytes_max)
}

/// Reads a name that need not be there.
pub(crate) fn optional_name(
    node: Option<Node<'_>>,
    pointer: &str,
    bytes_max: usize,
) -> Result<Option<Box<str>>, Fault> {
    node.filter(|node| !node.is_null()).map(|node| text(node, pointer, bytes_max)).transpose()
}

/// Asks for the events that were missed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReplayRequest {
    /// The last event that the client has; zero: everything that is retained is wanted.
    pub after: EventPlace,
    /// Only events on these topics; none: on all that the connection listens to.
    pub topics: Option<Vec<Box<str>>>,
    /// The most events.
    pub limit: Option<u64>,
}

impl ReplayRequest {
    pub(crate) fn read(envelope: &Envelope<'_>) -> Result<Self, Fault> {
        let after = EventPlace::read(envelope, "last_event_id")?;
        let mut after = after.ok_or_else(|| Fault::invalid("/last_event_id", "is required"))?;
        if let Some(epoch) = optional(envelope.field("epoch"), "epoch", 16)? {
            let epoch = epoch.parse().map_err(|_| Fault::invalid("/epoch", "must be an epoch"))?;
            after.epoch = after.epoch.or(Some(epoch));
        }
        let limit = match envelope.field("limit").filter(|node| !node.is_null()) {
            None => None,
            Some(node) => {
                let limit = node.as_u64().filter(|limit| *limit > 0);
                Some(limit.ok_or_else(|| Fault::invalid("/limit", "must be a number above zero"))?)
            }
        };
        let topics = named(|name| envelope.field(name))?;
        Ok(Self { after, topics: (!topics.is_empty()).then_some(topics), limit })
    }
}

/// Acknowledges events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckEvents {
    /// The device has everything up to this event.
    pub last: EventPlace,
}

impl AckEvents {
    pub(crate) fn read(envelope: &Envelope<'_>) -> Result<Self, Fault> {
        let last = EventPlace::read(envelope, "last_event_id")?;
        last.map(|last| Self { last }).ok_or_else(|| Fault::invalid("/last_event_id", "is required"))
    }
}

/// Publishes an event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Publish {
    /// Its topics.
    pub topics: Vec<Box<str>>,
    /// Users who are to get it.
    pub users: Vec<Box<str>>,
    /// Roles whose members are to get it.
    pub roles: Vec<Box<str>>,
    /// Its type.
    pub kind: Box<str>,
    /// What it carries, canonical.
    pub data: Object,
    /// Whether the log keeps it; none: as its topics say.
    pub durable: Option<bool>,
    /// Of events with equal keys only the first counts.
    pub dedupe_key: Option<Box<str>>,
    /// What it tells of, and which state of it: late ones are dropped.
    pub version: Option<(Box<str>, u64)>,
}

impl Publish {
    /// The most bytes of what an event carries.
    pub const DATA_BYTES: usize = DATA_BYTES;
    /// The most bytes of a key.
    pub const KEY_BYTES: usize = KEY_BYTES;

    /// Reads a message, or the body of a request, whose type stands in `type` then.
    fn read<'d>(field: impl Fn(&str) -> Option<Node<'d>>, kind: &str) -> Result<Self, Fault> {
        let given = |name: &str| field(name).filter(|node| !node.is_null());
        let name_of = |name: &str, bytes_max| optional(field(name), name, bytes_max);
        let mut users = match given("user_ids") {
            Some(list) => texts(list, "/user_ids", 128)?,
            None => Vec::new(),
        };
        users.extend(name_of("user_id", 128)?);
        let roles = name_of("role", 128)?.into_iter().collect();
        let mut topics = named(&field)?;
        topics.extend(name_of("group", TOPIC_BYTES)?);
        let data = match given("data") {
            None => Object::empty(),
            Some(node) if node.is_object() => canonical_object(node).map_err(|error| {
                Fault::invalid(&format!("/data{}", error.pointer), &error.kind.to_string())
            })?,
            Some(_) => return Err(Fault::invalid("/data", "must be an object")),
        };
        if data.as_str().len() > DATA_BYTES {
            return Err(Fault::invalid("/data", "an event may carry 64 KiB"));
        }
        let durable = match given("durable") {
            None => None,
            Some(node) => {
                Some(node.as_bool().ok_or_else(|| Fault::invalid("/durable", "must be true or false"))?)
            }
        };
        let version = match (name_of("key", KEY_BYTES)?, given("version")) {
            (Some(key), Some(version)) => {
                let version = version.as_u64();
                Some((key, version.ok_or_else(|| Fault::invalid("/version", "must be a number"))?))
            }
            (None, None) => None,
            _ => return Err(Fault::invalid("/version", "key and version stand together")),
        };
        Ok(Self {
            topics,
            users,
            roles,
            kind: event_kind(kind)?,
            data,
            durable,
            dedupe_key: name_of("dedupe_key", KEY_BYTES)?,
            version,
        })
    }

    /// Reads a message. What carries no `payload` stands at the top level, where `data` is the event's own.
    pub(crate) fn of_message(envelope: &Envelope<'_>) -> Result<Self, Fault> {
        let root = envelope.root();
        let fields = root.get("payload").filter(Node::is_object).unwrap_or(root);
        let kind = optional(fields.get("event_type"), "event_type", KIND_BYTES)?;
        let kind = kind.ok_or_else(|| Fault::invalid("/event_type", "is required"))?;
        Self::read(|name| fields.get(name), &kind)
    }

    /// Reads the body of a request that publishes, in which the event's type stands in `type`.
    ///
    /// # Errors
    /// A decode error, or `VALIDATION_ERROR`.
    pub fn decode(encoding: Encoding, bytes: &[u8], limits: &Limits) -> Result<Self, Fault> {
        let document = Envelope::parse(encoding, bytes, limits)?;
        let root = document.root();
        let kind = optional(root.get("type"), "type", KIND_BYTES)?;
        let kind = kind.ok_or_else(|| Fault::invalid("/type", "is required"))?;
        Self::read(|name| root.get(name), &kind)
    }
}

/// Checks the type of an event: what the messages of the protocol are called would confuse those who get it.
///
/// # Errors
/// `VALIDATION_ERROR`.
pub fn event_kind(kind: &str) -> Result<Box<str>, Fault> {
    const TAKEN: [&str; 20] = [
        "ack",
        "checksums",
        "conflict",
        "conflict_resolved",
        "connection_established",
        "error",
        "events_subscribed",
        "events_unsubscribed",
        "heartbeat",
        "heartbeat_ack",
        "pong",
        "replay_complete",
        "resync_required",
        "server_data",
        "server_delta",
        "server_draining",
        "sync_session_ended",
        "sync_session_started",
        "sync_data",
        "auth",
    ];
    if kind.is_empty()
        || kind.len() > KIND_BYTES
        || kind.chars().any(char::is_control)
        || TAKEN.contains(&kind)
    {
        let message = "must be a name of 1 to 64 bytes, and not that of a message of the protocol";
        return Err(Fault::invalid("/type", message));
    }
    Ok(kind.into())
}

/// Answers `publish`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PublishAck {
    /// The type of the message that is answered.
    pub of: String,
    /// The event's id; of a duplicate that of the first. Events that the log does not keep have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// Whether an event of the same key came before; this one was dropped.
    #[serde(default)]
    pub duplicate: bool,
    /// Whether a later state came before; this one was dropped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
    /// How many connections of this node got it.
    #[serde(default)]
    pub reached: u32,
    /// Whether this is the answer of an earlier, equal request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replayed: bool,
}

/// The answer to a request that publishes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EventPublished {
    /// The event's id; of a duplicate that of the first. Events that the log does not keep have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Whether an event of the same key came before; this one was dropped.
    pub duplicate: bool,
    /// Whether a later state came before; this one was dropped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
    /// How many connections got it.
    pub reached: u32,
    /// On how many nodes those were counted.
    pub nodes: u32,
}

/// Ends a replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayComplete {
    /// The place behind which the replay began.
    pub from: String,
    /// The end of the log; or the last event that was sent, where the limit was reached.
    pub to: String,
    /// How many events were sent.
    pub count: u64,
    /// Whether these are all events that were missed.
    pub complete: bool,
    /// Why not: `epoch_changed`, `trimmed`, `ahead`, `limit` or `forbidden`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where what was missed can be read as it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
}

/// A notification with its read state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoticeDoc {
    /// The event by which it came.
    pub event_id: String,
    /// What it says.
    #[serde(flatten)]
    pub fields: serde_json::Map<String, serde_json::Value>,
}

impl NoticeDoc {
    /// Makes it of what the event carries.
    #[must_use]
    pub fn new(event_id: String, data: &Object, is_read: bool) -> Self {
        let mut fields: serde_json::Map<_, _> = serde_json::from_str(data.as_str()).unwrap_or_default();
        fields.insert("is_read".into(), is_read.into());
        Self { event_id, fields }
    }
}

/// Whether a device got an event, or why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryDoc {
    /// The event.
    pub event_id: String,
    /// The device.
    pub device_id: String,
    /// `delivered`, `pending`, `filtered`, `forbidden`, `trimmed`, `slow` or `never_connected`.
    pub status: String,
    /// What that means here, for a person.
    pub detail: String,
    /// The event's topics, while the log keeps it.
    pub topics: Vec<String>,
    /// The last event that the device acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<String>,
}

/// Says that the server is alive, where clients expect it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerHeartbeat {
    /// The server's time in Unix milliseconds.
    pub timestamp: u64,
}

/// Answers `subscribe_events` and `unsubscribe_events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsSubscribed {
    /// One answer per topic.
    pub topics: Vec<TopicAnswer>,
}

/// What became of a wish for a topic.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TopicAnswer {
    /// The topic.
    pub topic: String,
    /// Whether its events come from now on; of a topic that is wanted no more: whether they came before.
    pub accepted: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The end of the log when it was granted: later events come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// Whether everything since the place that was named comes; absent: none was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered: Option<bool>,
    /// Why not everything comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// An event, as it is written for those who listen to one of its topics.
#[derive(Debug, Clone, Copy)]
pub struct EventView<'a> {
    /// What happened.
    pub kind: &'a str,
    /// Its place in the log; none: the log does not keep it.
    pub id: Option<(Epoch, u64)>,
    /// The topic under which the reader gets it.
    pub topic: &'a str,
    /// The values that filled the placeholders of its topics: members of a JSON object, without the braces.
    pub values: &'a str,
    /// The event's own fields, a JSON value.
    pub data: &'a str,
    /// When it was created, in Unix milliseconds.
    pub at_ms: u64,
    /// The server's time in Unix milliseconds.
    pub now_ms: u64,
}

impl EventView<'_> {
    /// Writes the event as JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    /// Appends the event as JSON.
    pub fn write(&self, out: &mut String) {
        out.reserve(self.data.len() + self.values.len() + 224);
        out.push_str("{\"type\":");
        write_json_string(out, self.kind);
        out.push_str(",\"server_time\":\"");
        write_millis(out, self.now_ms);
        out.push('"');
        if let Some((epoch, id)) = self.id {
            out.push_str(",\"id\":\"");
            write!(out, "{epoch}").expect("writing to a string does not fail");
            out.push('-');
            write_number(out, id);
            out.push('"');
        }
        out.push_str(",\"topic\":");
        write_json_string(out, self.topic);
        out.push_str(",\"timestamp\":\"");
        write_millis(out, self.at_ms);
        out.push('"');
        if !self.values.is_empty() {
            out.push(',');
            out.push_str(self.values);
        }
        out.push_str(",\"data\":");
        out.push_str(self.data);
        out.push('}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_so_many_topics() {
        let read = |count: usize| {
            let topics: Vec<String> = (0..count).map(|number| format!("\"t{number}\"")).collect();
            let text = format!(r#"{{"type":"subscribe_events","topics":[{}]}}"#, topics.join(","));
            let document =
                Envelope::parse(Encoding::Json, text.as_bytes(), &Limits::default()).expect("JSON");
            let envelope = Envelope::open(document.root()).expect("an envelope");
            Topics::read(&envelope).map(|topics| topics.topics.len())
        };
        assert_eq!(read(TOPICS_MAX), Ok(TOPICS_MAX));
        assert!(read(TOPICS_MAX + 1).is_err());
    }
}
