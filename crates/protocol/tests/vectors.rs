//! The golden vectors of `docs/protocol/vectors`, to the byte.
//!
//! `WRITE_VECTORS=1 cargo test -p driftline-protocol --test vectors` computes every answer anew from the questions
//! in the files; what changed then shows in the diff.

mod forms;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use driftline_model::{Epoch, Hlc, Intents, KindName, Limits, Object, RecordId, ScopeName, Seq, TenantId};
use driftline_protocol::{
    Ack, BadItem, Change, ChangeKind, Checksum, ChecksumPart, Checksums, Cursor, CursorKey, Document,
    Encoding, ErrorCode, EventPlace, EventView, Fault, Head, Inbound, InflateError, Inflater, Item,
    ItemClass, ItemCode, JsonError, Message, Missing, MsgpackError, Outbound, Phase, Progress, Range,
    RequestChecksums, RequestServerData, ResolveConflict, Resume, Retry, ServerData, ServerDelta,
    ServerMessage, SyncData, ValueErrorKind, canonical_value, decode, encode_changes, json_of_msgpack,
    msgpack_of_json, parse_time, row_sum,
};
use forms::{bytes_of, hex, other_forms};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

// The files.

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocol/vectors").join(name)
}

/// Checks a list of vectors: computes each from its question and compares the whole of it.
///
/// `keys` is the order in which the members of a vector are written.
fn check(name: &str, keys: &[&str], answer: fn(&Value) -> Value) {
    let text = std::fs::read_to_string(file(name)).expect("the file of vectors");
    let stored: Value = serde_json::from_str(&text).expect("vectors are JSON");
    let stored = stored.as_array().expect("a list of vectors");
    let computed: Vec<Value> = stored.iter().map(answer).collect();
    if std::env::var_os("WRITE_VECTORS").is_some() {
        let lines: Vec<String> = computed.iter().map(|vector| format!("  {}", line(vector, keys))).collect();
        let written = format!("[\n{}\n]\n", lines.join(",\n"));
        std::fs::write(file(name), written).expect("vectors are written");
        return;
    }
    assert!(!stored.is_empty(), "{name} holds vectors");
    for (stored, computed) in stored.iter().zip(&computed) {
        assert_eq!(
            serde_json::to_string_pretty(computed).expect("JSON"),
            serde_json::to_string_pretty(stored).expect("JSON"),
            "{name}"
        );
    }
}

/// Writes a vector on one line and in ASCII, with its members in the given order.
fn line(vector: &Value, keys: &[&str]) -> String {
    let members = vector.as_object().expect("a vector is an object");
    assert!(members.keys().all(|key| keys.contains(&key.as_str())), "{vector} has an unknown member");
    let member = |key: &&&str| members.get(**key).map(|value| format!("{}: {value}", Value::from(**key)));
    let members: Vec<String> = keys.iter().filter_map(|key| member(&key)).collect();
    let mut written = String::from("{");
    for char in members.join(", ").chars() {
        if char.is_ascii_graphic() || char == ' ' {
            written.push(char);
        } else {
            let units = char
                .encode_utf16(&mut [0; 2])
                .iter()
                .map(|unit| format!("\\u{unit:04x}"))
                .collect::<String>();
            written.push_str(&units);
        }
    }
    written.push('}');
    written
}

fn text<'v>(vector: &'v Value, key: &str) -> &'v str {
    vector[key].as_str().unwrap_or_else(|| panic!("{key} is a text in {vector}"))
}

fn number(vector: &Value, key: &str) -> u64 {
    vector[key].as_u64().unwrap_or_else(|| panic!("{key} is a number in {vector}"))
}

/// Keeps the question of a vector and drops its answer.
fn question(vector: &Value, keys: &[&str]) -> Map<String, Value> {
    keys.iter().filter_map(|key| Some(((*key).to_owned(), vector.get(*key)?.clone()))).collect()
}

fn raw(text: &str) -> Value {
    serde_json::from_str(text).expect("canonical text is JSON")
}

// Canonical values.

#[test]
fn canonical_values() {
    check("canonical.json", &["input", "canonical", "error", "pointer"], |vector| {
        let mut answer = question(vector, &["input"]);
        match Document::parse(text(vector, "input").as_bytes(), Limits::default().depth) {
            Err(error) => {
                let depth = matches!(error, JsonError::Depth { .. });
                answer.insert("error".into(), if depth { "too_deep" } else { "not_json" }.into());
            }
            Ok(document) => {
                let mut out = String::new();
                match canonical_value(document.root(), &mut out) {
                    Ok(()) => {
                        answer.insert("canonical".into(), out.into());
                    }
                    Err(error) => {
                        answer.insert("error".into(), word(error.kind).into());
                        answer.insert("pointer".into(), error.pointer.into());
                    }
                }
            }
        }
        answer.into()
    });
}

fn word(kind: ValueErrorKind) -> &'static str {
    match kind {
        ValueErrorKind::DuplicateKey => "duplicate_key",
        ValueErrorKind::Nul => "nul",
        ValueErrorKind::NumberRange => "number_range",
        ValueErrorKind::NotAnObject => "not_an_object",
        other => panic!("no word for {other:?}"),
    }
}

// Inbound messages.

#[test]
fn inbound_messages() {
    let keys = ["name", "frame", "message", "error", "msgpack", "deflate", "msgpack_deflate"];
    check("messages.json", &keys, |vector| {
        let mut answer = question(vector, &["name", "frame"]);
        let frame = text(vector, "frame");
        let read = decode(Encoding::Json, frame.as_bytes(), &Limits::default());
        for form in other_forms(vector, frame, &mut answer) {
            let twin = decode(form.encoding, &form.bytes, &Limits::default());
            assert_same_verdict(&read, &twin, frame);
        }
        match read {
            Ok(message) => answer.insert("message".into(), summary(&message)),
            Err(fault) => answer.insert("error".into(), refused(&fault)),
        };
        answer.into()
    });
}

/// The same message, down to the hashes of its items, or the same refusal.
fn assert_same_verdict(json: &Result<Message, Fault>, twin: &Result<Message, Fault>, frame: &str) {
    match (json, twin) {
        (Ok(message), Ok(twin)) => assert_eq!(twin, message, "{frame}"),
        (Err(fault), Err(twin)) => {
            let undecodable = [ErrorCode::JsonDecodeError, ErrorCode::MsgpackDecodeError];
            let class = |code| if undecodable.contains(&code) { ErrorCode::JsonDecodeError } else { code };
            assert_eq!(class(twin.code), class(fault.code), "{frame}");
            assert_eq!((&twin.errors, &twin.reply_to), (&fault.errors, &fault.reply_to), "{frame}");
        }
        _ => panic!("{json:?} in JSON, {twin:?} in another form: {frame}"),
    }
}

// MessagePack beyond the twins of JSON, and the framing of compressed forms.

#[test]
fn msgpack_documents() {
    check("msgpack.json", &["name", "msgpack", "json", "error"], |vector| {
        let mut answer = question(vector, &["name", "msgpack"]);
        let bytes = bytes_of(text(vector, "msgpack"));
        match json_of_msgpack(&bytes, Limits::default().depth) {
            Ok(json) => {
                let again = json_of_msgpack(&msgpack_of_json(&json), Limits::default().depth);
                assert_eq!(again.as_ref(), Ok(&json), "our own bytes hold the same document");
                answer.insert("json".into(), json.into());
            }
            Err(error) => {
                let fault = decode(Encoding::MessagePack, &bytes, &Limits::default()).expect_err("refused");
                assert_eq!(fault.code, ErrorCode::MsgpackDecodeError);
                let word = match error {
                    MsgpackError::Syntax => "not_msgpack",
                    MsgpackError::Utf8 => "not_utf8",
                    MsgpackError::Unsupported(_) => "unsupported",
                    MsgpackError::Depth { .. } => "too_deep",
                    other => panic!("no word for {other:?}"),
                };
                answer.insert("error".into(), word.into());
            }
        }
        answer.into()
    });
}

#[test]
fn framing() {
    check("framing.json", &["name", "payload", "max_bytes", "message", "error", "close"], |vector| {
        let mut answer = question(vector, &["name", "payload", "max_bytes"]);
        let bytes_max = usize::try_from(number(vector, "max_bytes")).expect("a size");
        match Inflater::default().open(&bytes_of(text(vector, "payload")), bytes_max) {
            Ok(message) => {
                answer.insert("message".into(), hex(&message).into());
            }
            Err(error) => {
                let word = match error {
                    InflateError::Prefix => "prefix",
                    InflateError::Broken => "broken",
                    InflateError::TooLarge { .. } => "too_large",
                    other => panic!("no word for {other:?}"),
                };
                answer.insert("error".into(), word.into());
                answer.insert("close".into(), error.close().0.into());
            }
        }
        answer.into()
    });
}

fn refused(fault: &Fault) -> Value {
    let pointers: Vec<&str> = fault.errors.iter().map(|error| &*error.pointer).collect();
    without_null(json!({"code": fault.code.as_str(), "reply_to": fault.reply_to, "pointers": pointers}))
}

fn summary(message: &Message) -> Value {
    let body = match &message.body {
        Inbound::StartSync(start) => json!({
            "data_types": names(&start.data_types),
            "total_items": start.total_items,
            "cursor": start.cursor,
            "epoch": start.epoch.map(|epoch| epoch.to_string()),
            "acked_n": start.acked_n,
            "resume": start.resume,
        }),
        Inbound::SyncData(SyncData { items, batch_seq, acked_n }) => json!({
            "batch_seq": batch_seq,
            "acked_n": acked_n,
            "items": items.iter().map(|item| match item {
                Ok(item) => item_summary(item),
                Err(bad) => bad_summary(bad),
            }).collect::<Vec<_>>(),
        }),
        Inbound::RequestServerData(RequestServerData { data_types, cursor, limit, range }) => json!({
            "data_types": data_types.as_deref().map(names),
            "cursor": cursor,
            "limit": limit,
            "range": range.as_ref().map(range_summary),
        }),
        Inbound::RequestChecksums(RequestChecksums { range, parts }) => {
            let mut summary = range_summary(range);
            summary["parts"] = (*parts).into();
            summary
        }
        Inbound::ResolveConflict(ResolveConflict { conflict_id, resolution, fields, version }) => json!({
            "conflict_id": conflict_id.as_str(),
            "resolution": resolution.as_str(),
            "fields": Some(fields.as_str()).filter(|_| !fields.is_empty()),
            "version": version.map(Seq::number),
        }),
        Inbound::EndSync => json!({}),
        Inbound::Heartbeat(heartbeat) => {
            json!({"last_seq": heartbeat.last_seq, "queue_depth": heartbeat.queue_depth})
        }
        Inbound::Ping { timestamp } => json!({"timestamp": timestamp.as_deref().map(raw)}),
        Inbound::Auth(auth) => json!({"auth": format!("{auth:?}")}),
        Inbound::Telemetry(telemetry) => json!({
            "kind": telemetry.kind.as_str(),
            "at_ms": telemetry.at_ms,
            "member": telemetry.member,
            "samples": telemetry.samples.iter().map(|sample| match sample {
                Ok(sample) => without_null(json!({
                    "id": sample.id.as_ref().map(RecordId::as_str),
                    "at_ms": sample.at_ms,
                    "fields": sample.fields.as_str(),
                })),
                Err(bad) => bad_summary(bad),
            }).collect::<Vec<_>>(),
        }),
        Inbound::DeviceStatus(status) => json!({"status": status.status, "fields": status.fields.as_str()}),
        Inbound::AnalyticsBatch(batch) => json!({
            "from_ms": batch.from_ms,
            "to_ms": batch.to_ms,
            "counters": batch.counters.iter().map(|(name, count)| json!([name, count])).collect::<Vec<_>>(),
            "histograms": batch.histograms.iter().map(|(name, values)| json!([name, values])).collect::<Vec<_>>(),
        }),
        Inbound::SubscribeEvents(topics) | Inbound::UnsubscribeEvents(topics) => json!({
            "topics": topics.topics,
            "since": topics.since.map(place),
            "filter": topics.filter.as_ref().map(driftline_protocol::EventFilter::to_text),
        }),
        Inbound::ReplayRequest(replay) => json!({
            "after": place(replay.after),
            "topics": replay.topics,
            "limit": replay.limit,
        }),
        Inbound::AckEvents(ack) => json!({"last": place(ack.last)}),
        Inbound::Publish(publish) => without_null(json!({
            "topics": publish.topics,
            "users": Some(&publish.users).filter(|users| !users.is_empty()),
            "roles": Some(&publish.roles).filter(|roles| !roles.is_empty()),
            "kind": publish.kind,
            "data": publish.data.as_str(),
            "durable": publish.durable,
            "dedupe_key": publish.dedupe_key,
            "version": publish.version,
        })),
        other => panic!("no summary of {}", other.kind()),
    };
    without_null(json!({
        "type": message.body.kind(),
        "id": message.id,
        "key": message.key.as_ref().map(|key| json!([key.key, key.payload])),
        "sync_id": message.sync_id.as_ref().map(|id| id.as_str()),
        "payload": without_null(body),
    }))
}

fn place(place: EventPlace) -> Value {
    json!([place.epoch.map(|epoch| epoch.to_string()), place.id])
}

fn names(kinds: &[KindName]) -> Vec<&str> {
    kinds.iter().map(KindName::as_str).collect()
}

fn range_summary(range: &Range) -> Value {
    without_null(json!({
        "kind": range.kind.as_str(),
        "scope": range.scope.as_str(),
        "after": range.after.as_ref().map(|id| id.as_str()),
        "until": range.until.as_ref().map(|id| id.as_str()),
    }))
}

fn item_summary(item: &Item) -> Value {
    let asked = |of: fn(&Intents) -> &Object| {
        item.intents.as_deref().map(of).filter(|asked| !asked.is_empty()).map(Object::as_str)
    };
    let increments = item.intents.as_deref().map(|intents| &intents.increments);
    let increments = increments.filter(|increments| !increments.is_empty());
    without_null(json!({
        "op_id": item.op_id.as_ref().map(|id| id.as_str()),
        "n": item.n,
        "kind": item.kind.as_str(),
        "id": item.id.as_str(),
        "op": item.op.as_str(),
        "base_version": item.base_version.number(),
        "fields": item.fields.as_str(),
        "previous": asked(|intents| &intents.previous),
        "increments": increments.map(|all| all.iter().map(|(k, v)| (k.to_string(), json!(v))).collect::<Map<_, _>>()),
        "add": asked(|intents| &intents.add),
        "remove": asked(|intents| &intents.remove),
        "deescalate": item.intents.as_deref().and_then(|intents| intents.deescalate.then_some(true)),
        "hlc": item.hlc.map(|hlc| hlc.to_string()),
        "schema_version": Some(item.schema_version).filter(|version| *version > 0),
        "group": item.group,
    }))
}

fn bad_summary(bad: &BadItem) -> Value {
    let pointers: Vec<&str> = bad.errors.iter().map(|error| &*error.pointer).collect();
    without_null(json!({
        "op_id": bad.op_id.as_ref().map(|id| id.as_str()),
        "n": bad.n,
        "kind": bad.kind.as_ref().map(|kind| kind.as_str()),
        "id": bad.id.as_ref().map(|id| id.as_str()),
        "group": bad.group,
        "invalid": pointers,
    }))
}

/// An absent member says that nothing was sent.
fn without_null(value: Value) -> Value {
    let Value::Object(members) = value else { return value };
    members.into_iter().filter(|(_, value)| !value.is_null()).collect::<Map<_, _>>().into()
}

// Outbound messages.

#[test]
fn outbound_messages() {
    let keys = ["name", "type", "head", "body", "frame", "msgpack", "deflate", "msgpack_deflate"];
    check("outbound.json", &keys, |vector| {
        let mut answer = question(vector, &["name", "type", "head", "body"]);
        let head = Head {
            now_ms: number(&vector["head"], "now_ms"),
            reply_to: vector["head"]["reply_to"].as_str().map(str::to_owned),
            sync_id: vector["head"]["sync_id"].as_str().map(str::to_owned),
        };
        let frame = if vector["body"]["topic"].is_string() {
            event(text(vector, "type"), &vector["body"], head.now_ms)
        } else {
            let outbound = outbound(text(vector, "type"), &vector["body"]);
            assert_eq!(outbound.kind(), text(vector, "type"));
            outbound.encode(&head)
        };
        // What a syncing client does not ask for it does not read either.
        let read = !LIVE.contains(&text(vector, "name").split(',').next().unwrap_or_default());
        if read {
            assert_is_read(Encoding::Json, frame.as_bytes(), &head, &vector["body"]);
        }
        for form in other_forms(vector, &frame, &mut answer) {
            if read {
                assert_is_read(form.encoding, &form.bytes, &head, &vector["body"]);
            }
        }
        answer.insert("frame".into(), frame.into());
        answer.into()
    });
}

/// The first words of the names of vectors that tell of telemetry and events.
const LIVE: [&str; 8] = [
    "telemetry ack",
    "bare ack",
    "publish ack",
    "event",
    "events_subscribed",
    "events_unsubscribed",
    "replay_complete",
    "heartbeat",
];

/// Writes an event as every socket and stream has it.
fn event(kind: &str, body: &Value, now_ms: u64) -> String {
    let id = body["id"].as_str().map(|id| EventPlace::parse(id).expect("an event's id"));
    let data = body["data"].to_string();
    let view = EventView {
        kind,
        id: id.map(|place| (place.epoch.expect("an epoch"), place.id)),
        topic: text(body, "topic"),
        values: body["values"].as_str().unwrap_or_default(),
        data: &data,
        at_ms: time(text(body, "timestamp")),
        now_ms,
    };
    view.encode()
}

fn typed<T: DeserializeOwned>(body: &Value) -> T {
    // Through text, because canonical texts inside a body are taken from it as they stand.
    serde_json::from_str(&body.to_string()).unwrap_or_else(|error| panic!("{error}: {body}"))
}

fn outbound(kind: &str, body: &Value) -> Outbound {
    match kind {
        "connection_established" => Outbound::ConnectionEstablished(typed(body)),
        "sync_session_started" => Outbound::SyncSessionStarted(typed(body)),
        "ack" if body["of"] == "publish" => Outbound::PublishAck(typed(body)),
        "ack" if body["accepted"].is_u64() => Outbound::TelemetryAck(typed(body)),
        "ack" if body["results"].is_null() => Outbound::BareAck(typed(body)),
        "ack" => Outbound::Ack(typed(body)),
        "events_subscribed" => Outbound::EventsSubscribed(typed(body)),
        "events_unsubscribed" => Outbound::EventsUnsubscribed(typed(body)),
        "replay_complete" => Outbound::ReplayComplete(typed(body)),
        "heartbeat" => Outbound::Heartbeat(typed(body)),
        "server_data" => Outbound::ServerData(ServerData {
            changes: changes(body),
            cursor: text(body, "cursor").to_owned(),
            seq: Seq::new(number(body, "seq")),
            hlc: text(body, "hlc").parse().expect("a clock"),
            has_more: body["has_more"].as_bool().expect("true or false"),
            checksums: list(body, "checksums").iter().map(checksum).collect(),
            progress: body["progress"].is_object().then(|| Progress {
                sent: number(&body["progress"], "sent"),
                total: number(&body["progress"], "total"),
            }),
            range: body["range"].is_object().then(|| range(&body["range"])),
            epoch_seq: body["epoch_seq"].as_u64().map(Seq::new),
        }),
        "server_delta" => Outbound::ServerDelta(ServerDelta {
            prev_seq: Seq::new(number(body, "prev_seq")),
            seq: Seq::new(number(body, "seq")),
            cursor: text(body, "cursor").to_owned(),
            hlc: text(body, "hlc").parse().expect("a clock"),
            changes: Arc::from(changes(body)),
        }),
        "resync_required" => Outbound::ResyncRequired(typed(body)),
        "checksums" => Outbound::Checksums(Checksums {
            seq: Seq::new(number(body, "seq")),
            range: range(&body["range"]),
            parts: list(body, "parts").iter().map(part).collect(),
        }),
        "conflict" => Outbound::Conflict(typed(body)),
        "conflict_resolved" => Outbound::ConflictResolved(typed(body)),
        "sync_session_ended" => Outbound::SyncSessionEnded(typed(body)),
        "heartbeat_ack" => Outbound::HeartbeatAck(typed(body)),
        "pong" => Outbound::Pong(typed(body)),
        "error" => Outbound::Error(typed(body)),
        "server_draining" => Outbound::ServerDraining(typed(body)),
        other => panic!("no outbound message {other}"),
    }
}

fn time(text: &str) -> u64 {
    let quoted = Value::from(text).to_string();
    let document = Document::parse(quoted.as_bytes(), 1).expect("a text");
    parse_time(document.root()).expect("a time")
}

fn list<'v>(body: &'v Value, key: &str) -> &'v [Value] {
    body.get(key).map_or(&[], |list| list.as_array().expect("a list"))
}

fn sum(value: &Value) -> u64 {
    u64::from_str_radix(text(value, "sum"), 16).expect("hexadecimal digits")
}

fn checksum(value: &Value) -> Checksum {
    Checksum {
        scope: ScopeName::new(text(value, "scope")).expect("a scope"),
        kind: KindName::new(text(value, "kind")).expect("a kind"),
        count: number(value, "count"),
        sum: sum(value),
    }
}

fn bound(value: &Value, key: &str) -> Option<RecordId> {
    value.get(key).map(|id| RecordId::new(id.as_str().expect("a text")).expect("a record"))
}

fn part(value: &Value) -> ChecksumPart {
    ChecksumPart {
        after: bound(value, "after"),
        until: bound(value, "until"),
        count: number(value, "count"),
        sum: sum(value),
    }
}

fn range(value: &Value) -> Range {
    Range {
        kind: KindName::new(text(value, "kind")).expect("a kind"),
        scope: ScopeName::new(text(value, "scope")).expect("a scope"),
        after: bound(value, "after"),
        until: bound(value, "until"),
    }
}

fn changes(body: &Value) -> String {
    let change = |row: &Value| Change {
        kind: KindName::new(text(row, "kind")).expect("a kind"),
        id: RecordId::new(text(row, "id")).expect("a record"),
        scope: ScopeName::new(text(row, "scope")).expect("a scope"),
        version: Seq::new(number(row, "version")),
        change: ChangeKind::from_text(text(row, "change")).expect("a kind of change"),
        fields: driftline_protocol::object_of_text(&row["fields"].to_string(), 64)
            .expect("JSON")
            .expect("an object"),
    };
    let rows: Vec<Change> = body["changes"].as_array().expect("rows").iter().map(change).collect();
    encode_changes(&rows)
}

/// A client reads the frame as what it is, and finds every member of the body in it.
fn assert_is_read(encoding: Encoding, frame: &[u8], head: &Head, body: &Value) {
    let read = ServerMessage::decode_reply(encoding, frame);
    let frame = match encoding {
        Encoding::Json => String::from_utf8(frame.to_vec()).expect("a text"),
        Encoding::MessagePack => json_of_msgpack(frame, 64).expect("MessagePack"),
    };
    let (reply_to, message) = read.unwrap_or_else(|fault| panic!("{fault}: {frame}"));
    assert_eq!(reply_to, head.reply_to);
    assert!(!matches!(message, ServerMessage::Other(_)), "{frame}");
    match message {
        ServerMessage::Ack(ack) => assert_eq!(ack, typed::<Ack>(body), "an ack survives the way"),
        ServerMessage::Conflict(conflict) => assert_eq!(conflict, typed(body)),
        ServerMessage::ConflictResolved(resolved) => assert_eq!(resolved, typed(body)),
        ServerMessage::Checksums(sums) => {
            assert_eq!((sums.seq.number(), &sums.range), (number(body, "seq"), &range(&body["range"])));
            assert_eq!(sums.parts, list(body, "parts").iter().map(part).collect::<Vec<_>>());
        }
        ServerMessage::Page(rows) => {
            assert_eq!(rows.checksums, list(body, "checksums").iter().map(checksum).collect::<Vec<_>>());
            assert_eq!(rows.progress.is_some(), body["progress"].is_object());
            assert_eq!(rows.range, body["range"].is_object().then(|| range(&body["range"])));
        }
        _ => {}
    }
    let written: Value = serde_json::from_str(&frame).expect("a frame is JSON");
    for (name, value) in body.as_object().expect("a body is an object") {
        assert_eq!(&written[name], value, "{name} in {frame}");
    }
}

#[test]
fn every_outbound_type_has_a_vector() {
    let stored = std::fs::read_to_string(file("outbound.json")).expect("the file of vectors");
    let stored: Vec<Value> = serde_json::from_str(&stored).expect("a list of vectors");
    for kind in [
        "connection_established",
        "sync_session_started",
        "ack",
        "server_data",
        "server_delta",
        "resync_required",
        "checksums",
        "conflict",
        "conflict_resolved",
        "sync_session_ended",
        "heartbeat_ack",
        "pong",
        "error",
        "server_draining",
        "events_subscribed",
        "events_unsubscribed",
        "device_status",
    ] {
        assert!(stored.iter().any(|vector| vector["type"] == kind), "no vector of {kind}");
    }
}

// Codes.

#[test]
fn codes() {
    let errors: Vec<Value> = ErrorCode::ALL
        .iter()
        .map(|code| {
            let retry = match code.retry() {
                Retry::No => "no",
                Retry::Yes => "yes",
                Retry::AfterToken => "after_token",
                Retry::AfterResync => "after_resync",
            };
            json!({
                "code": code.as_str(),
                "status": code.status(),
                "retryable": code.is_retryable(),
                "retry": retry,
                "close": code.close().map(|close| close.0),
            })
        })
        .collect();
    let items: Vec<Value> = ItemCode::ALL
        .iter()
        .map(|code| {
            let class = match code.class() {
                ItemClass::Done => "done",
                ItemClass::Terminal => "terminal",
                ItemClass::Retry => "retry",
                ItemClass::Resync => "resync",
            };
            json!({"code": code.as_str(), "class": class, "remembered": code.is_remembered()})
        })
        .collect();
    if std::env::var_os("WRITE_VECTORS").is_some() {
        let lines = |list: &[Value], keys: &[&str]| {
            list.iter().map(|code| format!("    {}", line(code, keys))).collect::<Vec<_>>().join(",\n")
        };
        let written = format!(
            "{{\n  \"errors\": [\n{}\n  ],\n  \"items\": [\n{}\n  ]\n}}\n",
            lines(&errors, &["code", "status", "retryable", "retry", "close"]),
            lines(&items, &["code", "class", "remembered"])
        );
        std::fs::write(file("codes.json"), written).expect("vectors are written");
    }
    let stored = std::fs::read_to_string(file("codes.json")).expect("the file of codes");
    let stored: Value = serde_json::from_str(&stored).expect("codes are JSON");
    assert_eq!(stored, json!({"errors": errors, "items": items}));
}

// Cursors.

#[test]
fn cursors() {
    let keys = ["name", "key", "tenant", "epoch", "kinds", "scopes", "phase", "sealed"];
    check("cursor.json", &keys, |vector| {
        let mut answer = question(vector, &["name", "key", "tenant", "epoch", "kinds", "scopes", "phase"]);
        let key = CursorKey::new(&bytes(text(vector, "key")));
        let tenant = TenantId::new(text(vector, "tenant")).expect("a tenant");
        let cursor = Cursor {
            epoch: text(vector, "epoch").parse::<Epoch>().expect("an epoch"),
            kinds: kinds(&vector["kinds"]),
            scopes: scopes(&vector["scopes"]),
            phase: phase(&vector["phase"]),
        };
        let sealed = key.seal(&tenant, &cursor);
        assert_eq!(key.open(&tenant, &sealed), Ok(cursor));
        answer.insert("sealed".into(), sealed.into());
        answer.into()
    });
}

fn bytes(hex: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hexadecimal digits");
    }
    bytes
}

fn kinds(list: &Value) -> Vec<KindName> {
    let kind = |kind: &Value| KindName::new(kind.as_str().expect("a text")).expect("a kind");
    list.as_array().expect("a list of kinds").iter().map(kind).collect()
}

fn scopes(list: &Value) -> Vec<ScopeName> {
    let scope = |scope: &Value| ScopeName::new(scope.as_str().expect("a text")).expect("a scope");
    list.as_array().expect("a list of scopes").iter().map(scope).collect()
}

fn missing(value: &Value) -> Missing {
    Missing {
        all: value["all"].as_bool().expect("true or false"),
        kinds: kinds(&value["kinds"]),
        scopes: scopes(&value["scopes"]),
    }
}

fn resume(value: &Value) -> Resume {
    Resume { from: Seq::new(number(value, "from")), at: Seq::new(number(value, "at")) }
}

fn phase(value: &Value) -> Phase {
    if value["log"].is_object() {
        return Phase::Log(resume(&value["log"]));
    }
    let evicts = value["evict"].is_object();
    let place = if evicts { &value["evict"] } else { &value["snapshot"] };
    let after = place["after"].is_object().then(|| {
        let after = &place["after"];
        let kind = KindName::new(text(after, "kind")).expect("a kind");
        (kind, RecordId::new(text(after, "id")).expect("a record"))
    });
    let (missing, then) = (missing(&place["missing"]), resume(&place["then"]));
    if evicts {
        return Phase::Evict { after, lost: scopes(&place["lost"]), missing, then };
    }
    Phase::Snapshot { after, missing, sent: number(place, "sent"), then }
}

// Clocks.

#[test]
fn clocks() {
    check("hlc.json", &["text", "valid", "millis", "successor", "now_ms", "tick"], |vector| {
        let mut answer = question(vector, &["text", "now_ms"]);
        match text(vector, "text").parse::<Hlc>() {
            Err(_) => {
                answer.insert("valid".into(), false.into());
            }
            Ok(hlc) => {
                assert_eq!(hlc.to_string(), text(vector, "text"));
                answer.insert("valid".into(), true.into());
                answer.insert("millis".into(), hlc.millis().into());
                answer.insert("successor".into(), hlc.successor().to_string().into());
                answer.insert("tick".into(), hlc.tick(number(vector, "now_ms")).to_string().into());
            }
        }
        answer.into()
    });
}

// Hashes of items.

#[test]
fn item_hashes() {
    check("hash.json", &["name", "item", "hash"], |vector| {
        let mut answer = question(vector, &["name", "item"]);
        let document = Document::parse(text(vector, "item").as_bytes(), 64).expect("JSON");
        let item = Item::read(document.root()).unwrap_or_else(|bad| panic!("{:?}", bad.errors));
        answer.insert("hash".into(), format!("{:016x}", item.hash).into());
        answer.into()
    });
}

// Sums of rows.

#[test]
fn row_sums() {
    check("checksum.json", &["name", "rows", "sums", "sum"], |vector| {
        let mut answer = question(vector, &["name", "rows"]);
        let row = |row: &Value| {
            let kind = KindName::new(text(row, "kind")).expect("a kind");
            row_sum(
                &kind,
                &RecordId::new(text(row, "id")).expect("a record"),
                Seq::new(number(row, "version")),
            )
        };
        let sums: Vec<u64> = list(vector, "rows").iter().map(row).collect();
        let total = sums.iter().fold(0_u64, |total, sum| total.wrapping_add(*sum));
        answer.insert("sums".into(), sums.iter().map(|sum| format!("{sum:016x}")).collect::<Vec<_>>().into());
        answer.insert("sum".into(), format!("{total:016x}").into());
        answer.into()
    });
}
