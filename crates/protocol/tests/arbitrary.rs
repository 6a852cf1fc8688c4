//! Arbitrary input: no parser panics, and canonical form keeps its promises.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use driftline_model::{Epoch, KindName, Limits, Object, RecordId, ScopeName, Seq, TenantId, key_cmp};
use driftline_protocol::{
    AuditDoc, ConflictDoc, ConflictResolved, Cursor, CursorKey, Deflater, Document, Encoding, ErrorCode,
    Inflater, Missing, Phase, PolicyDoc, Problem, ResolvePost, Resume, ServerMessage, SyncAnswer,
    SyncRequest, ValueErrorKind, canonical_object, canonical_value, decode, json_of_msgpack, msgpack_of_json,
    object_of_text,
};
use hmac::{Hmac, Mac};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Map, Value};
use sha2::Sha256;

const DEPTH: usize = 64;

const BYTES_MAX: usize = 1 << 16;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Shows some bytes to everything that reads bytes from outside.
fn read_everywhere(bytes: &[u8]) {
    let limits = Limits::default();
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        let _ = decode(encoding, bytes, &limits);
        let _ = SyncRequest::decode(encoding, bytes, &limits);
        let _ = ServerMessage::decode(encoding, bytes);
        let _ = SyncAnswer::decode(encoding, bytes);
        let _ = Problem::decode(encoding, bytes);
        let _ = ResolvePost::decode(encoding, bytes, &limits);
    }
    if let Ok(message) = Inflater::default().open(bytes, BYTES_MAX) {
        assert!(message.len() <= BYTES_MAX);
    }
    let _ = serde_json::from_slice::<ConflictDoc>(bytes);
    let _ = serde_json::from_slice::<ConflictResolved>(bytes);
    let _ = serde_json::from_slice::<AuditDoc>(bytes);
    let _ = CursorKey::new(&[7; 32]).open(&tenant(), &String::from_utf8_lossy(bytes));
    let _ = Object::from_canonical(String::from_utf8_lossy(bytes).into_owned());
    let _ = PolicyDoc::parse(&String::from_utf8_lossy(bytes));
    let documents = [Document::parse(bytes, DEPTH).ok(), Document::parse_msgpack(bytes, DEPTH).ok()];
    for document in documents.iter().flatten() {
        let _ = canonical_object(document.root());
        let mut out = String::new();
        let _ = canonical_value(document.root(), &mut out);
        walk(document.root());
        assert!(Document::parse_msgpack(&document.to_msgpack(), DEPTH).is_ok());
    }
    #[cfg(feature = "schema")]
    judge_everywhere(bytes);
}

/// Takes the bytes for a schema, and what is an item in them for a change that a schema judges.
#[cfg(feature = "schema")]
fn judge_everywhere(bytes: &[u8]) {
    use std::sync::LazyLock;

    use driftline_protocol::{Inbound, KindSchema, Whole};

    static SCHEMA: LazyLock<KindSchema> = LazyLock::new(|| {
        let text = r#"{"required":["a"],"additionalProperties":false,"properties":{
            "a":{"type":"integer","minimum":1},"priority":{"enum":["low","high"]},
            "tags":{"items":{"type":"string","pattern":"^[a-z]+$"},"uniqueItems":true}}}"#;
        KindSchema::compile(text).expect("a schema")
    });
    if let Ok(schema) = KindSchema::compile(&String::from_utf8_lossy(bytes)) {
        let _ = schema.check(&Object::empty(), Whole::Create);
    }
    if let Ok(Ok(fields)) = object_of_text(&String::from_utf8_lossy(bytes), DEPTH) {
        let _ = (SCHEMA.check(&fields, Whole::Create), SCHEMA.check_elements(&fields));
    }
    if let Ok(message) = decode(Encoding::Json, bytes, &Limits::default())
        && let Inbound::SyncData(data) = message.body
    {
        for item in data.items.iter().flatten() {
            let _ = SCHEMA.check_item(item);
        }
    }
}

fn walk(node: driftline_protocol::Node<'_>) {
    let _ = (node.as_str(), node.as_i64(), node.as_u64(), node.as_bool(), node.to_json(), node.is_null());
    node.elements().for_each(walk);
    for (key, value) in node.members() {
        assert!(node.get(&key.as_str().expect("a key is a string")).is_some());
        walk(value);
    }
}

fn tenant() -> TenantId {
    TenantId::new("t1").expect("a tenant")
}

// What is tried.

/// Pieces of JSON in any order.
fn rubble() -> impl Strategy<Value = Vec<u8>> {
    let pieces = select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\\u",
        "\\ud83d",
        "\\ude00",
        "\\u0000",
        "null",
        "true",
        "false",
        "0",
        "1",
        "-",
        "9007199254740993",
        "1e400",
        ".5",
        "e",
        " ",
        "\n",
        "\u{0}",
        "é",
        "😀",
        "\"type\"",
        "\"ping\"",
        "\"payload\"",
        "\"data\"",
        "\"batch\"",
        "\"sync_data\"",
        "\"fields\"",
        "\"increments\"",
        "\"previous\"",
        "\"add\"",
        "\"append\"",
        "\"remove\"",
        "\"flags\"",
        "\"deescalate\"",
        "\"range\"",
        "\"checksums\"",
        "\"request_checksums\"",
        "\"resolve_conflict\"",
        "\"kind\"",
        "\"op\"",
        "\"ack\"",
        "\"server_data\"",
        "\"changes\"",
        "\"a\":1",
        "{}",
        "[]",
    ]);
    vec(pieces, 0..40).prop_map(|pieces| pieces.concat().into_bytes())
}

/// The frames of the golden vectors, in both directions, and a few bodies of HTTP.
fn frames() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/protocol/vectors");
    let mut frames = vec![
        br#"{"device_id":"d1","sync_id":"0192f3a1-b2c3-7000-8000-00000000abcd","epoch":"00c0ffee","batch":[{"kind":"k","id":"i","op":"create","fields":{"a":1.5}}],"batch_seq":1,"cursor":"AbC","data_types":["k"],"limit":5}"#.to_vec(),
        br#"{"ack":null,"data":{"changes":[],"cursor":"AbC","seq":1,"hlc":"000000000001-0000","has_more":false}}"#.to_vec(),
        br#"{"strategy":"field_merge","fields":{"a":{"rule":"lww"}},"options":{"x":"y"}}"#.to_vec(),
        br#"{"strategy":"preserve_escalation","fields":{"p":{"rule":"ordered","order":["low",2,3.5],"urgent":2}}}"#.to_vec(),
        br##"{"type":"object","properties":{"a":{"items":{"$ref":"#/$defs/b"}}},"$defs":{"b":{"pattern":"^a+$"}},"required":["a"]}"##.to_vec(),
        br#"{"resolution":"merged","fields":{"a":1.5},"version":7}"#.to_vec(),
        br#"{"conflict_id":"c","kind":"k","id":"i","status":"open","reason":"manual","device_id":"d","user_id":"u","op":"patch","n":1,"fields":["a"],"base_version":1,"base":{},"client":{"a":1},"server":{"a":2},"version":3,"policy_version":1,"opened_at":"2025-11-21T02:34:56.007Z","record":{"version":3,"deleted":false,"fields":{}}}"#.to_vec(),
        br#"{"audit_id":1,"at":"2025-11-21T02:34:56.007Z","kind":"k","id":"i","version":3,"device_id":"d","user_id":"u","n":1,"code":"merged","strategy":"manual","policy_version":1,"correlation_id":"c","detail":{"a":[1]}}"#.to_vec(),
    ];
    for name in ["messages.json", "outbound.json"] {
        let text = std::fs::read_to_string(folder.join(name)).expect("the file of vectors");
        let vectors: Vec<Value> = serde_json::from_str(&text).expect("a list of vectors");
        frames.extend(vectors.iter().map(|vector| vector["frame"].as_str().expect("a frame").into()));
    }
    frames
}

/// The same frames in MessagePack, as far as they are JSON.
fn msgpack_frames() -> Vec<Vec<u8>> {
    let documents = frames().into_iter().filter(|frame| Document::parse(frame, DEPTH).is_ok());
    let text = documents.map(|frame| String::from_utf8(frame).expect("JSON is UTF-8"));
    text.map(|text| msgpack_of_json(&text)).collect()
}

/// Messages of the compressed forms.
fn packed_frames() -> Vec<Vec<u8>> {
    let mut deflater = Deflater::default();
    let frames = frames().into_iter().chain(msgpack_frames());
    frames
        .map(|frame| {
            let mut packed = Vec::new();
            deflater.pack(&frame, &mut packed);
            packed
        })
        .collect()
}

/// Pieces of MessagePack in any order: markers of every kind, good and bad lengths, known names.
fn msgpack_rubble() -> impl Strategy<Value = Vec<u8>> {
    let markers = (0xc0..=0xdf_u8).map(|marker| vec![marker]);
    let numbers = [vec![0xcb, 0x40, 0x1c, 0, 0, 0, 0, 0, 0], vec![0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0]];
    let lengths = [vec![0xdd, 0xff, 0xff, 0xff, 0xff], vec![0xdf, 0, 0, 0, 2], vec![0xdb, 0, 0, 0, 1, b'a']];
    let names =
        ["type", "ping", "timestamp", "payload", "batch", "sync_data", "fields", "kind", "id", "op", "n"];
    let names =
        names.map(|name| [&[0xa0 | u8::try_from(name.len()).expect("short")], name.as_bytes()].concat());
    let small = [0x80, 0x81, 0x82, 0x90, 0x91, 0x92, 0x00, 0x7f, 0xff, 0xa0].map(|byte| vec![byte]);
    let pieces: Vec<Vec<u8>> =
        markers.chain(numbers).chain(lengths).chain(names.clone()).chain(names).chain(small).collect();
    vec(select(pieces), 0..30).prop_map(|pieces| pieces.concat())
}

#[derive(Debug, Clone)]
enum Damage {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize, usize),
    Cut(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let byte = prop_oneof![any::<u8>(), select(b"\"\\{}[],:0e-. u".to_vec())];
    prop_oneof![
        (any::<Index>(), byte).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (any::<Index>(), rubble()).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (any::<Index>(), 1..20_usize).prop_map(|(at, len)| Damage::Remove(at, len)),
        (any::<Index>(), 1..30_usize, 2..90_usize)
            .prop_map(|(at, len, times)| Damage::Repeat(at, len, times)),
        any::<Index>().prop_map(Damage::Cut),
    ]
}

fn damaged(mut frame: Vec<u8>, damages: Vec<Damage>) -> Vec<u8> {
    for damage in damages {
        let len = frame.len().max(1);
        let end = |at: usize, count: usize, frame: &[u8]| (at + count).min(frame.len());
        match damage {
            Damage::Set(at, byte) => {
                if let Some(place) = frame.get_mut(at.index(len)) {
                    *place = byte;
                }
            }
            Damage::Insert(at, bytes) => {
                let at = at.index(frame.len() + 1);
                frame.splice(at..at, bytes);
            }
            Damage::Remove(at, count) => {
                let at = at.index(frame.len() + 1);
                let end = end(at, count, &frame);
                frame.drain(at..end);
            }
            Damage::Repeat(at, count, times) => {
                let at = at.index(frame.len() + 1);
                let piece = frame[at..end(at, count, &frame)].repeat(times);
                frame.splice(at..at, piece);
            }
            Damage::Cut(at) => frame.truncate(at.index(len)),
        }
    }
    frame
}

/// Text of any characters but U+0000.
fn text() -> impl Strategy<Value = String> {
    let plain =
        select("abcdefgh zé€😀\u{fb33}\u{1}\u{1f}\n\t\"\\/\u{7f}\u{2028}".chars().collect::<Vec<_>>());
    let char = prop_oneof![4 => plain, 1 => any::<char>()];
    vec(char, 0..8).prop_map(|chars| chars.into_iter().filter(|char| *char != '\0').collect())
}

/// Values that every JSON library holds exactly: integers within 2^53, and short binary fractions.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-(1_i64 << 53)..=1 << 53).prop_map(Value::from),
        (-1000_i64..1000).prop_map(Value::from),
        (-(1_i32 << 20)..1 << 20).prop_map(|number| Value::from(f64::from(number) / 1024.0)),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 8, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            btree_map(text(), inner, 0..6)
                .prop_map(|members| members.into_iter().collect::<Map<_, _>>().into()),
        ]
    })
}

fn object() -> impl Strategy<Value = Value> {
    btree_map(text(), value(), 0..8).prop_map(|members| members.into_iter().collect::<Map<_, _>>().into())
}

/// Writes a value in another spelling: white space, escapes, exponents, any order of members.
fn spell(value: &Value, choices: &mut impl Iterator<Item = usize>, out: &mut String) {
    let mut choose = |below: usize| choices.next().unwrap_or(0) % below;
    out.push_str(["", " ", "\n\t", "\r "][choose(4)]);
    match value {
        Value::Number(number) => match (number.as_i64(), choose(3)) {
            (Some(number), 0) if number.abs() < 1_000_000 => out.push_str(&format!("{number}.0")),
            (Some(number), 1) if number.abs() < 1_000_000 => out.push_str(&format!("{}e-1", number * 10)),
            _ => out.push_str(&number.to_string()),
        },
        Value::String(text) => spell_text(text, choose(2), out),
        Value::Array(elements) => {
            out.push('[');
            for (at, element) in elements.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                spell(element, choices, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            let turn = choose(members.len().max(1));
            members.rotate_left(turn);
            out.push('{');
            for (at, (name, value)) in members.into_iter().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                spell_text(name, at % 2, out);
                out.push_str(" :");
                spell(value, choices, out);
            }
            out.push('}');
        }
        Value::Null | Value::Bool(_) => out.push_str(&value.to_string()),
    }
    out.push(' ');
}

fn spell_text(text: &str, escape_all: usize, out: &mut String) {
    if escape_all == 0 {
        return out.push_str(&Value::from(text).to_string());
    }
    out.push('"');
    for unit in text.encode_utf16() {
        out.push_str(&format!("\\u{unit:04X}"));
    }
    out.push('"');
}

fn canonical(text: &str) -> Result<String, ValueErrorKind> {
    let document = Document::parse(text.as_bytes(), DEPTH).expect("JSON");
    let mut out = String::new();
    canonical_value(document.root(), &mut out).map_err(|error| error.kind)?;
    Ok(out)
}

/// Equality of values in which `1.0` is `1`.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((a, x), (b, y))| a == b && same(x, y))
        }
        _ => a == b,
    }
}

proptest! {
    #![proptest_config(config(4_000))]

    #[test]
    fn arbitrary_bytes_are_read_without_panic(bytes in vec(any::<u8>(), 0..200)) {
        read_everywhere(&bytes);
    }

    #[test]
    fn rubble_is_read_without_panic(bytes in rubble()) {
        read_everywhere(&bytes);
    }

    #[test]
    fn msgpack_rubble_is_read_without_panic(bytes in msgpack_rubble()) {
        read_everywhere(&bytes);
        same_verdict(&bytes)?;
    }

    #[test]
    fn damaged_documents_get_one_verdict_in_both_encodings(
        frame in select(msgpack_frames()),
        damages in vec(damage(), 0..3),
    ) {
        same_verdict(&damaged(frame, damages))?;
    }

    #[test]
    fn damaged_messages_are_read_without_panic(
        frame in select([frames(), msgpack_frames(), packed_frames()].concat()),
        damages in vec(damage(), 1..4),
    ) {
        read_everywhere(&damaged(frame, damages));
    }

    #[test]
    fn arbitrary_cursors_are_opened_without_panic(
        body in vec(any::<u8>(), 0..60),
        resealed in any::<bool>(),
    ) {
        // Behind a good seal stands whatever an older or newer server wrote.
        let mut body = body;
        if resealed {
            body.splice(0..0, sealed_body()[..13].iter().copied());
        }
        let mut hmac = Hmac::<Sha256>::new_from_slice(&[7; 32]).expect("HMAC takes keys of any length");
        hmac.update(&body);
        let mac = hmac.finalize().into_bytes();
        body.extend_from_slice(&mac[..8]);
        let key = CursorKey::new(&[7; 32]);
        let text = URL_SAFE_NO_PAD.encode(&body);
        if let Ok(cursor) = key.open(&tenant(), &text) {
            prop_assert_eq!(key.open(&tenant(), &key.seal(&tenant(), &cursor)), Ok(cursor));
        }
    }

    #[test]
    fn a_changed_cursor_does_not_open(at in any::<Index>(), bit in 0..8_u32) {
        let key = CursorKey::new(&[7; 32]);
        let mut bytes = sealed_body();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(key.open(&tenant(), &URL_SAFE_NO_PAD.encode(bytes)).is_err());
    }
}

fn sealed_body() -> Vec<u8> {
    let kind = |name| KindName::new(name).expect("a kind");
    let resume = Resume { from: Seq::new(300), at: Seq::new(70_000) };
    let after = Some((kind("note"), RecordId::new("é 1").expect("a record")));
    let scopes = vec![ScopeName::new("group:site:7").expect("a scope"), ScopeName::tenant()];
    let missing = Missing { all: false, kinds: vec![kind("note")], scopes: scopes.clone() };
    let phase = Phase::Evict { after, lost: scopes.clone(), missing, then: resume };
    let kinds = vec![kind("note"), kind("ticket")];
    let cursor = Cursor { epoch: Epoch::new(9), kinds, scopes, phase };
    let sealed = CursorKey::new(&[7; 32]).seal(&tenant(), &cursor);
    URL_SAFE_NO_PAD.decode(sealed).expect("base64url")
}

/// Compares the verdict on a MessagePack document with that on its twin in JSON.
fn same_verdict(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok(json) = json_of_msgpack(bytes, DEPTH) else {
        let fault = decode(Encoding::MessagePack, bytes, &Limits::default()).expect_err("no document");
        prop_assert_eq!(fault.code, ErrorCode::MsgpackDecodeError);
        return Ok(());
    };
    let document = Document::parse_msgpack(bytes, DEPTH).expect("MessagePack");
    let mut text = String::new();
    let text = canonical_value(document.root(), &mut text).map(|()| text).map_err(|error| error.kind);
    prop_assert_eq!(canonical(&json), text);
    let read = decode(Encoding::MessagePack, bytes, &Limits::default());
    match (decode(Encoding::Json, json.as_bytes(), &Limits::default()), read) {
        (Ok(twin), Ok(message)) => prop_assert_eq!(message, twin, "{}", json),
        (Err(twin), Err(fault)) => {
            let code = match fault.code {
                ErrorCode::MsgpackDecodeError => ErrorCode::JsonDecodeError,
                code => code,
            };
            let verdict = (code, &fault.errors, &fault.reply_to);
            prop_assert_eq!(verdict, (twin.code, &twin.errors, &twin.reply_to), "{}", json);
        }
        (twin, message) => prop_assert!(false, "{message:?} is {twin:?} in JSON: {json}"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(2_000))]

    #[test]
    fn documents_travel_in_both_encodings(value in value(), choices in vec(any::<usize>(), 0..100)) {
        let mut spelled = String::new();
        spell(&value, &mut choices.into_iter(), &mut spelled);
        let packed = msgpack_of_json(&spelled);
        let json = json_of_msgpack(&packed, DEPTH).expect("our own bytes are MessagePack");
        prop_assert_eq!(canonical(&json), canonical(&spelled));
        let document = Document::parse_msgpack(&packed, DEPTH).expect("our own bytes are MessagePack");
        prop_assert_eq!(document.to_msgpack(), packed);
    }

    #[test]
    fn packed_messages_open_to_what_they_were(
        message in prop_oneof![
            vec(any::<u8>(), 0..600),
            select(frames()),
            (vec(any::<u8>(), 1..40), 1..200_usize).prop_map(|(piece, times)| piece.repeat(times)),
        ],
        spare in 0..3_usize,
    ) {
        let mut packed = vec![7];
        Deflater::default().pack(&message, &mut packed);
        prop_assert!(packed.len() <= message.len() + 2, "one byte is the most that packing costs");
        let mut inflater = Inflater::default();
        let opened = inflater.open(&packed[1..], message.len() + spare);
        prop_assert_eq!(opened.as_deref(), Ok(&message[..]));
        if let Some(bytes_max) = message.len().checked_sub(1) {
            prop_assert!(inflater.open(&packed[1..], bytes_max).is_err());
        }
    }

    #[test]
    fn canonical_text_is_its_own_canonical_form(value in value()) {
        let once = canonical(&value.to_string()).expect("a good value");
        prop_assert_eq!(canonical(&once).expect("canonical text is a good value"), once);
    }

    #[test]
    fn canonical_text_reads_as_the_same_value(value in value()) {
        let text = canonical(&value.to_string()).expect("a good value");
        let read: Value = serde_json::from_str(&text).expect("canonical text is JSON");
        prop_assert!(same(&read, &value), "{text} is not {value}");
    }

    #[test]
    fn spelling_does_not_matter(value in value(), choices in vec(any::<usize>(), 0..100)) {
        let mut spelled = String::new();
        spell(&value, &mut choices.into_iter(), &mut spelled);
        prop_assert_eq!(canonical(&spelled), canonical(&value.to_string()), "{}", spelled);
    }

    #[test]
    fn canonical_objects_are_taken_over_as_they_stand(value in object()) {
        let made = object_of_text(&value.to_string(), DEPTH).expect("JSON").expect("a good object");
        let taken = Object::from_canonical(made.as_str().to_owned()).expect("canonical");
        prop_assert_eq!(&taken, &made);
        prop_assert_eq!(canonical(&value.to_string()), Ok(made.as_str().to_owned()));
        for (name, value) in taken.iter() {
            prop_assert_eq!(taken.get(name), Some(value));
            prop_assert_eq!(canonical(value), Ok(value.to_owned()), "a slice of canonical text is canonical");
        }
    }

    #[test]
    fn names_stand_in_utf16_order(value in object()) {
        let made = object_of_text(&value.to_string(), DEPTH).expect("JSON").expect("a good object");
        let plain = |name: &str| serde_json::from_str::<String>(&format!("\"{name}\"")).expect("a name");
        let units: Vec<Vec<u16>> = made.iter().map(|(name, _)| plain(name).encode_utf16().collect()).collect();
        prop_assert!(units.is_sorted());
        let names: Vec<&str> = made.iter().map(|(name, _)| name).collect();
        prop_assert!(names.is_sorted_by(|a, b| key_cmp(a, b).is_lt()));
    }

    #[test]
    fn doubles_come_back_to_the_bit_or_are_refused(number in any::<f64>().prop_filter("finite", |x| x.is_finite())) {
        let spelled = format!("{number:e}");
        let big = number.abs() > 9_007_199_254_740_992.0 && number.abs() < 1e21;
        match canonical(&spelled) {
            Err(kind) => prop_assert!(big && kind == ValueErrorKind::NumberRange, "{spelled}: {kind}"),
            Ok(text) => {
                prop_assert!(!big, "{spelled} became {text}");
                let read: f64 = text.parse().expect("a number");
                prop_assert_eq!(read, number);
                prop_assert_eq!(canonical(&text), Ok(text));
            }
        }
    }

    #[test]
    fn doubled_names_are_refused_wherever_they_stand(
        value in object(),
        name in text(),
        outer in vec(any::<bool>(), 0..4),
    ) {
        let name = Value::from(name);
        let mut text = format!("{{{name}:{value},{name}:null}}");
        for array in outer {
            text = if array { format!("[0,{text}]") } else { format!("{{\"x\":{text}}}") };
        }
        prop_assert_eq!(canonical(&text), Err(ValueErrorKind::DuplicateKey));
    }
}
