//! The client's half of telemetry: messages that a device writes, answers that it reads.

use std::borrow::Cow;

use driftline_model::{DeviceId, KindName};

use crate::client::{ANSWER_DEPTH, body, malformed, number, text};
use crate::envelope::FieldError;
use crate::json::{Document, Node};
use crate::outbound::{ErrorMessage, Problem};
use crate::status::AnalyticsBatch;
use crate::telemetry::{Rejected, TelemetryAck};
use crate::write::{write_json_string, write_number};
use crate::{Encoding, ErrorCode, Fault};

/// A message of a device that no sync session is needed for.
///
/// The same value has the same bytes each time, so that a resend is recognised as one.
#[derive(Debug, Clone, Copy)]
pub struct TelemetryMessage<'a> {
    /// The message's type: a kind of telemetry, `device_status` or `analytics_batch`.
    pub kind: &'a str,
    /// The message's id of at most 64 bytes, which the answer repeats as `reply_to`.
    pub id: &'a str,
    /// What a resend is recognised by; none for what is of no harm when it is taken twice.
    pub idempotency_key: Option<&'a str>,
    /// The device's clock in Unix milliseconds.
    pub ts_ms: u64,
    /// What the message carries.
    pub payload: TelemetryPayload<'a>,
}

/// What a message of telemetry carries, each value as JSON text.
#[derive(Debug, Clone, Copy)]
pub enum TelemetryPayload<'a> {
    /// Objects, which the answer counts.
    Items(&'a [Box<str>]),
    /// One object, which the answer only acknowledges.
    Object(&'a str),
}

impl TelemetryMessage<'_> {
    /// Encodes the message as JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        let bytes = match self.payload {
            TelemetryPayload::Items(items) => items.iter().map(|item| item.len() + 1).sum(),
            TelemetryPayload::Object(object) => object.len(),
        };
        let mut out = String::with_capacity(bytes + 256);
        out.push_str("{\"type\":");
        write_json_string(&mut out, self.kind);
        text(&mut out, "id", Some(self.id));
        text(&mut out, "idempotency_key", self.idempotency_key);
        number(&mut out, "ts", self.ts_ms);
        out.push_str(",\"payload\":");
        match self.payload {
            TelemetryPayload::Items(items) => {
                out.push_str("{\"items\":[");
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    out.push_str(item);
                }
                out.push_str("]}");
            }
            TelemetryPayload::Object(object) => out.push_str(object),
        }
        out.push('}');
        out
    }
}

/// The types of messages that are no kinds of samples.
const OTHER_TYPES: [&str; 18] = [
    "ack_events",
    "analytics_batch",
    "auth",
    "device_status",
    "end_sync",
    "heartbeat",
    "ping",
    "publish",
    "replay_request",
    "request_checksums",
    "request_server_data",
    "resolve_conflict",
    "start_sync",
    "subscribe_events",
    "subscription",
    "sync_data",
    "unsubscribe_events",
    "unsubscription",
];

/// Tells whether a message of that type carries samples of that kind. Others have a meaning of their own.
#[must_use]
pub fn is_sample_kind(kind: &KindName) -> bool {
    !kind.as_str().starts_with('$') && !OTHER_TYPES.contains(&kind.as_str())
}

/// Writes one item of telemetry: its fields, then when it was recorded, unless a field says that.
#[must_use]
pub fn telemetry_item(fields: &driftline_model::Object, ts_ms: u64) -> String {
    let canonical = fields.as_str();
    if fields.get("fields").is_some_and(|value| value.starts_with('{')) {
        // A server takes an object of that name for all the fields.
        let mut item = format!("{{\"fields\":{canonical},\"ts\":");
        write_number(&mut item, ts_ms);
        item.push('}');
        return item;
    }
    if fields.get("ts").is_some() {
        return canonical.to_owned();
    }
    // The closing brace gives way to one more member.
    let mut item = canonical[..canonical.len() - 1].to_owned();
    item.push_str(if fields.is_empty() { "\"ts\":" } else { ",\"ts\":" });
    write_number(&mut item, ts_ms);
    item.push('}');
    item
}

/// Who opens a connection by its first message.
#[derive(Clone, Copy)]
pub enum Introduction<'a> {
    /// A user's token, and the device that uses it.
    Token(&'a str, &'a DeviceId),
    /// A registered device.
    DeviceHash(&'a str),
}

impl Introduction<'_> {
    /// Encodes the `auth` message as JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = String::from("{\"type\":\"auth\",\"payload\":{");
        match self {
            Self::Token(token, device) => {
                out.push_str("\"token\":");
                write_json_string(&mut out, token);
                text(&mut out, "device_id", Some(device.as_str()));
            }
            Self::DeviceHash(hash) => {
                out.push_str("\"device_hash\":");
                write_json_string(&mut out, hash);
            }
        }
        out.push_str("}}");
        out
    }
}

/// Encodes a `ping`, which every route answers.
#[must_use]
pub fn encode_ping(ts_ms: u64) -> String {
    let mut out = String::from("{\"type\":\"ping\"");
    number(&mut out, "timestamp", ts_ms);
    out.push('}');
    out
}

impl AnalyticsBatch {
    /// Encodes the payload of the message as JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = String::from("{\"from\":");
        write_number(&mut out, self.from_ms);
        number(&mut out, "to", self.to_ms);
        out.push_str(",\"counters\":{");
        for (at, (name, count)) in self.counters.iter().enumerate() {
            name_of(&mut out, at, name);
            write_number(&mut out, *count);
        }
        out.push_str("},\"histograms\":{");
        for (at, (name, values)) in self.histograms.iter().enumerate() {
            name_of(&mut out, at, name);
            out.push('[');
            for (at, (value, count)) in values.iter().enumerate() {
                out.push_str(if at > 0 { ",[" } else { "[" });
                out.push_str(ryu_js::Buffer::new().format_finite(*value));
                out.push(',');
                write_number(&mut out, *count);
                out.push(']');
            }
            out.push(']');
        }
        out.push_str("}}");
        out
    }
}

fn name_of(out: &mut String, at: usize, name: &str) {
    if at > 0 {
        out.push(',');
    }
    write_json_string(out, name);
    out.push(':');
}

/// An answer or event that a device reads on a connection that carries telemetry.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum TelemetryReply {
    /// The connection is authenticated.
    Established(TelemetryGreeting),
    /// A message was decided.
    Ack(TelemetryAck),
    /// A message failed as a whole, or the connection did.
    Error(ErrorMessage),
    /// The server is about to shut down.
    Draining {
        /// When to connect again.
        reconnect_after_ms: u64,
    },
    /// A message that says nothing about telemetry.
    Other,
}

/// What a server announces when a connection is authenticated; nothing where it says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TelemetryGreeting {
    /// Items that one message may hold.
    pub max_batch_items: Option<u64>,
    /// Bytes that one message may hold.
    pub max_message_bytes: Option<u64>,
    /// Seconds between signs of life.
    pub heartbeat_interval_s: Option<u64>,
}

impl TelemetryReply {
    /// Decodes a message from a server, with the `id` of the message that it answers.
    ///
    /// # Errors
    /// [`Fault`] when the frame is not a message that this protocol version knows how to read.
    pub fn decode(frame: &[u8]) -> Result<(Option<String>, Self), Fault> {
        let document = Document::parse(frame, ANSWER_DEPTH)
            .map_err(|error| Fault::new(ErrorCode::JsonDecodeError, error.to_string()))?;
        let root = document.root();
        let reply_to = root.get("reply_to").and_then(|node| node.as_str()).map(Cow::into_owned);
        let kind = root.get("type").and_then(|node| node.as_str()).unwrap_or_default();
        let reply = match &*kind {
            "connection_established" => Self::Established(TelemetryGreeting::read(root)),
            // Acks of batches carry results of their own form and are no concern of telemetry.
            "ack" if root.get("results").is_none() => {
                Self::Ack(TelemetryAck::read(root).ok_or_else(|| malformed("ack"))?)
            }
            "error" => Self::Error(body(frame)?),
            "server_draining" => {
                let reconnect_after_ms = root.get("reconnect_after_ms").and_then(|node| node.as_u64());
                Self::Draining { reconnect_after_ms: reconnect_after_ms.unwrap_or_default() }
            }
            _ => Self::Other,
        };
        Ok((reply_to, reply))
    }
}

impl TelemetryGreeting {
    fn read(root: Node<'_>) -> Self {
        let features = root.get("features");
        let feature = |name: &str| features.and_then(|node| node.get(name)).and_then(|node| node.as_u64());
        Self {
            max_batch_items: feature("max_batch_items"),
            max_message_bytes: feature("max_message_bytes"),
            heartbeat_interval_s: root.get("heartbeat_interval_s").and_then(|node| node.as_u64()),
        }
    }
}

impl TelemetryAck {
    /// Reads the answer 200 to `POST /api/v1/ingest`.
    ///
    /// # Errors
    /// [`Fault`] when it is not an answer that this protocol version knows how to read.
    pub fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        let document = Document::parse(bytes, ANSWER_DEPTH)
            .map_err(|error| Fault::new(ErrorCode::JsonDecodeError, error.to_string()))?;
        Self::read(document.root()).ok_or_else(|| malformed("answer"))
    }

    /// Reads the members of an ack; those of a bare one are absent.
    fn read(root: Node<'_>) -> Option<Self> {
        let member = |name: &str| root.get(name).filter(|node| !node.is_null());
        let count = |name: &str| member(name).map_or(Some(0), |node| node.as_u64());
        let rejected = match member("rejected") {
            None => Vec::new(),
            Some(node) if node.is_array() => node.elements().map(Rejected::read).collect::<Option<_>>()?,
            Some(_) => return None,
        };
        Some(Self {
            of: member("of")?.as_str()?.into_owned(),
            replayed: member("replayed").map_or(Some(false), |node| node.as_bool())?,
            accepted: count("accepted")?,
            duplicates: count("duplicates")?,
            rejected,
            resend_recognised: member("resend_recognised")
                .map_or(Some(None), |node| node.as_bool().map(Some))?,
        })
    }
}

impl Rejected {
    fn read(node: Node<'_>) -> Option<Self> {
        let words =
            |node: Node<'_>, name: &str| node.get(name).and_then(|node| node.as_str()).map(Cow::into_owned);
        let error = |node: Node<'_>| FieldError {
            code: words(node, "code").unwrap_or_default(),
            pointer: words(node, "pointer").unwrap_or_default(),
            message: words(node, "message").unwrap_or_default(),
        };
        let FieldError { code, pointer, message } = error(node);
        let errors = node.get("errors").into_iter().flat_map(|errors| errors.elements()).map(error).collect();
        Some(Self {
            index: node.get("index")?.as_u64()?,
            id: words(node, "id"),
            code,
            pointer,
            message,
            errors,
        })
    }
}

/// Reads a problem document as the error that a connection would tell; for one that cannot be read, the status says
/// what it can.
#[must_use]
pub fn telemetry_problem(status: u16, bytes: &[u8]) -> ErrorMessage {
    match Problem::decode(Encoding::Json, bytes) {
        Ok(problem) => ErrorMessage {
            code: problem.code,
            message: problem.detail,
            correlation_id: problem.correlation_id,
            // A server that lacks the route says nothing about the message.
            retryable: problem.retryable || matches!(status, 404 | 405 | 415 | 426),
            retry_after_ms: problem.retry_after_ms,
            details: None,
        },
        Err(_) => ErrorMessage {
            code: code_of(status).as_str().into(),
            message: format!("the server answered with status {status}"),
            correlation_id: String::new(),
            // Whatever stands before the server may answer for it; what is wrong with the message, the server says.
            retryable: true,
            retry_after_ms: None,
            details: None,
        },
    }
}

const fn code_of(status: u16) -> ErrorCode {
    match status {
        401 | 403 => ErrorCode::Unauthorized,
        413 => ErrorCode::MessageTooLarge,
        429 => ErrorCode::RateLimited,
        _ => ErrorCode::StoreUnavailable,
    }
}

#[cfg(test)]
mod tests {
    use driftline_model::Limits;

    use super::*;
    use crate::{Auth, Inbound, decode};

    fn object(text: &str) -> driftline_model::Object {
        driftline_model::Object::from_canonical(text.to_owned()).expect("canonical")
    }

    #[test]
    fn messages_are_written() {
        let items =
            [telemetry_item(&object(r#"{"a":1}"#), 7), telemetry_item(&object("{}"), 8)].map(Box::from);
        let message = TelemetryMessage {
            kind: "voice",
            id: "t1",
            idempotency_key: Some("k"),
            ts_ms: 9,
            payload: TelemetryPayload::Items(&items),
        };
        let head = r#"{"type":"voice","id":"t1","idempotency_key":"k","ts":9,"payload":"#;
        assert_eq!(message.encode(), format!(r#"{head}{{"items":[{{"a":1,"ts":7}},{{"ts":8}}]}}}}"#));
        let inner = telemetry_item(&object(r#"{"fields":{"a":1}}"#), 7);
        assert_eq!(inner, r#"{"fields":{"fields":{"a":1}},"ts":7}"#);
        assert_eq!(telemetry_item(&object(r#"{"ts":1}"#), 7), r#"{"ts":1}"#, "what the app says stands");
        let status = TelemetryMessage {
            kind: "device_status",
            idempotency_key: None,
            payload: TelemetryPayload::Object(r#"{"battery":81}"#),
            ..message
        };
        assert_eq!(status.encode(), r#"{"type":"device_status","id":"t1","ts":9,"payload":{"battery":81}}"#);
        let batch = AnalyticsBatch {
            from_ms: 1,
            to_ms: 2,
            counters: vec![("taps".into(), 3), ("x".into(), 0)],
            histograms: vec![("load".into(), vec![(1.0, 2), (2.5, 1)]), ("none".into(), vec![])],
        };
        assert_eq!(
            batch.encode(),
            r#"{"from":1,"to":2,"counters":{"taps":3,"x":0},"histograms":{"load":[[1,2],[2.5,1]],"none":[]}}"#
        );
        assert_eq!(encode_ping(5), r#"{"type":"ping","timestamp":5}"#);
    }

    #[test]
    fn the_server_reads_what_a_device_writes() {
        let read =
            |text: &str| decode(Encoding::Json, text.as_bytes(), &Limits::default()).expect("a message").body;
        let texts = [r#"{"a":[1,{"b":"é"}]}"#, r#"{"fields":{"a":1}}"#, "{}", r#"{"id":"x","ts":3,"z":1}"#];
        let items = texts.map(|text| telemetry_item(&object(text), 7).into_boxed_str());
        let message = TelemetryMessage {
            kind: "voice",
            id: "t1",
            idempotency_key: Some("k"),
            ts_ms: 9,
            payload: TelemetryPayload::Items(&items),
        };
        let Inbound::Telemetry(telemetry) = read(&message.encode()) else { panic!("no telemetry") };
        assert_eq!(telemetry.kind.as_str(), "voice");
        let samples: Vec<_> =
            telemetry.samples.iter().map(|sample| sample.as_ref().expect("a sample")).collect();
        let fields: Vec<_> = samples.iter().map(|sample| sample.fields.as_str()).collect();
        assert_eq!(fields, [texts[0], texts[1], texts[2], r#"{"z":1}"#]);
        let times: Vec<_> = samples.iter().map(|sample| sample.at_ms).collect();
        assert_eq!(times, [Some(7), Some(7), Some(7), Some(3)]);

        let batch = AnalyticsBatch {
            from_ms: 1,
            to_ms: 2,
            counters: vec![("taps \"".into(), 3)],
            histograms: vec![("load".into(), vec![(-0.5, 2), (1e300, 1)])],
        };
        let payload = batch.encode();
        let message = TelemetryMessage {
            kind: "analytics_batch",
            payload: TelemetryPayload::Object(&payload),
            ..message
        };
        let Inbound::AnalyticsBatch(told) = read(&message.encode()) else { panic!("no batch") };
        assert_eq!(*told, batch);
        let message = TelemetryMessage {
            kind: "device_status",
            payload: TelemetryPayload::Object(r#"{"battery":81,"status":"online"}"#),
            ..message
        };
        let Inbound::DeviceStatus(status) = read(&message.encode()) else { panic!("no status") };
        assert_eq!(status.status.as_deref(), Some("online"));
        assert!(matches!(read(&encode_ping(5)), Inbound::Ping { .. }));
        assert_eq!(
            read(&Introduction::DeviceHash("h").encode()),
            Inbound::Auth(Auth::DeviceHash("h".into()))
        );
        let device = DeviceId::new("d").expect("a device");
        assert_eq!(
            read(&Introduction::Token("t", &device).encode()),
            Inbound::Auth(Auth::Token { token: "t".into(), device_id: Some("d".into()) })
        );
    }

    #[test]
    fn types_of_other_messages_are_no_kinds_of_samples() {
        let is_kind = |name: &str| is_sample_kind(&KindName::new(name).expect("a name"));
        assert!(is_kind("voice") && is_kind("screen_time"));
        for name in OTHER_TYPES {
            assert!(!is_kind(name), "{name}");
        }
    }

    #[test]
    fn introductions_are_written() {
        let device = DeviceId::new("d").expect("a device");
        let token = Introduction::Token("to\"ken", &device).encode();
        assert_eq!(token, r#"{"type":"auth","payload":{"token":"to\"ken","device_id":"d"}}"#);
        let hash = Introduction::DeviceHash("h").encode();
        assert_eq!(hash, r#"{"type":"auth","payload":{"device_hash":"h"}}"#);
    }

    fn receipt(text: &str) -> (Option<String>, TelemetryAck) {
        match TelemetryReply::decode(text.as_bytes()).expect("a message") {
            (reply_to, TelemetryReply::Ack(receipt)) => (reply_to, receipt),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn acks_are_read() {
        let (reply_to, full) = receipt(
            r#"{"type":"ack","server_time":"","reply_to":"t1","of":"voice","replayed":true,"accepted":97,"duplicates":1,
                "rejected":[{"index":4,"id":"x","code":"range","pointer":"/confidence","message":"too large",
                "errors":[{"code":"range","pointer":"/a~1b","message":"m"}]}],"resend_recognised":false,"more":1}"#,
        );
        assert_eq!(reply_to.as_deref(), Some("t1"));
        assert_eq!(
            (full.accepted, full.duplicates, full.replayed, full.resend_recognised),
            (97, 1, true, Some(false))
        );
        let bad = &full.rejected[0];
        assert_eq!((bad.index, bad.id.as_deref(), &*bad.pointer), (4, Some("x"), "/confidence"));
        assert_eq!(bad.errors[0].pointer, "/a~1b");
        let (_, bare) = receipt(r#"{"type":"ack","of":"device_status"}"#);
        assert_eq!((&*bare.of, bare.accepted, bare.rejected.len()), ("device_status", 0, 0));
        for bad in [
            r#"{"type":"ack"}"#,
            r#"{"type":"ack","of":"x","accepted":-1}"#,
            r#"{"type":"ack","of":"x","rejected":[{}]}"#,
            r#"{"type":"ack","of":"x","rejected":{}}"#,
        ] {
            assert!(TelemetryReply::decode(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn other_messages_are_told_apart() {
        let decode = |text: &str| TelemetryReply::decode(text.as_bytes()).expect("a message").1;
        let greeting = decode(
            r#"{"type":"connection_established","features":{"max_batch_items":10},"heartbeat_interval_s":25}"#,
        );
        let wanted = TelemetryGreeting {
            max_batch_items: Some(10),
            max_message_bytes: None,
            heartbeat_interval_s: Some(25),
        };
        assert!(matches!(greeting, TelemetryReply::Established(told) if told == wanted));
        let draining = decode(r#"{"type":"server_draining","reconnect_after_ms":40}"#);
        assert!(matches!(draining, TelemetryReply::Draining { reconnect_after_ms: 40 }));
        assert!(matches!(decode(r#"{"type":"ack","of":"sync_data","results":[]}"#), TelemetryReply::Other));
        assert!(matches!(decode(r#"{"type":"pong"}"#), TelemetryReply::Other));
    }

    #[test]
    fn a_status_without_a_document_is_understood() {
        for (status, code) in [(403, "UNAUTHORIZED"), (413, "MESSAGE_TOO_LARGE"), (429, "RATE_LIMITED")] {
            assert_eq!(telemetry_problem(status, b"<html>").code, code);
        }
        assert!(telemetry_problem(502, b"").retryable);
    }
}
