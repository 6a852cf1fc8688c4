//! The WebSocket door: handshakes, frames of every kind, and live changes between devices.

mod support;

use driftline_engine::{Head, StoreError};
use driftline_model::TenantNo;
use driftline_storage::MemoryStore;
use driftline_testkit::http::{Request, Response};
use driftline_testkit::socket::{Frame, Handshake, Incoming, Socket};
use driftline_testkit::{Hook, Rng, Wrapped};
use driftline_transport::Settings;
use serde_json::{Value, json};
use support::{Harness, SYNC_ID, Setup, batch, create, pull, socket_path, start, start_on, token};

async fn server() -> Harness {
    start(Setup::default()).await
}

fn handshake() -> Handshake {
    Handshake::new(&socket_path("t1", "ada", "d1"))
}

async fn refusal(harness: &Harness, handshake: Handshake) -> Response {
    let refused = handshake.send(harness.address).await.err();
    refused.unwrap_or_else(|| panic!("not refused: {handshake:?}"))
}

async fn welcome(harness: &Harness, handshake: Handshake) -> (Socket, Response) {
    let opened = handshake.send(harness.address).await;
    let (mut socket, response) =
        opened.unwrap_or_else(|refused| panic!("refused: {} {handshake:?}", refused.text()));
    assert_eq!(socket.receive().await["type"], "connection_established", "{handshake:?}");
    (socket, response)
}

#[tokio::test]
async fn a_malformed_handshake_is_refused_before_the_upgrade() {
    let harness = server().await;
    let with = |name, value| handshake().header(name, value);
    let table = [
        with("sec-websocket-key", None),
        with("sec-websocket-key", Some("")),
        with("sec-websocket-key", Some("c2hvcnQ=")),
        with("sec-websocket-key", Some("no base64, but of this length")),
        with("sec-websocket-version", None),
        with("sec-websocket-version", Some("12")),
        with("connection", None),
        with("connection", Some("keep-alive")),
        with("upgrade", None),
        with("upgrade", Some("h2c")),
        with("sec-websocket-protocol", Some("graphql-ws")),
        with("sec-websocket-protocol", Some(&format!("bearer.{}", token("t1", "ada")))),
        handshake().version("HTTP/1.0"),
        handshake().doubled("sec-websocket-version", "8"),
        handshake().doubled("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
        with("content-length", Some("5")),
        with("transfer-encoding", Some("chunked")),
    ];
    for handshake in table {
        let shown = format!("{handshake:?}");
        let refused = refusal(&harness, handshake).await;
        assert_eq!((refused.status, refused.code().as_str()), (400, "VALIDATION_ERROR"), "{shown}");
        assert_eq!(refused.json()["status"], 400);
        assert_eq!(refused.header("sec-websocket-version"), Some("13"), "RFC 6455, 4.2.2");
    }
    let posted = refusal(&harness, handshake().method("POST").header("content-length", Some("0"))).await;
    assert_eq!((posted.status, posted.code().as_str()), (405, "METHOD_NOT_ALLOWED"));
}

/// A database that is away when a connection asks for its head.
struct Headless;

impl Hook<MemoryStore> for Headless {
    async fn head(&self, _: &MemoryStore, _: TenantNo) -> Result<Head, StoreError> {
        Err(StoreError::Unavailable("away".into()))
    }
}

#[tokio::test]
async fn our_own_failure_while_connecting_closes_4000() {
    let harness = start_on(Setup::default(), |store| Wrapped::new(store, Headless)).await;
    let mut socket = Socket::connect(harness.address, &socket_path("t1", "ada", "d1")).await;
    assert_eq!(socket.until_error().await, ("STORE_UNAVAILABLE".into(), 4000));
}

#[tokio::test]
async fn an_honest_handshake_may_be_written_in_many_ways() {
    let harness = server().await;
    let with = |name, value| handshake().header(name, Some(value));
    let table = [
        (with("connection", "keep-alive, Upgrade"), None),
        (with("upgrade", "WebSocket"), None),
        (with("sec-websocket-protocol", "driftline.v1.json"), Some("driftline.v1.json")),
        (with("sec-websocket-protocol", "soap, driftline.v1.json"), Some("driftline.v1.json")),
        (with("sec-websocket-extensions", "permessage-deflate"), None),
    ];
    for (handshake, protocol) in table {
        let (_, response) = welcome(&harness, handshake).await;
        assert_eq!(response.header("sec-websocket-protocol"), protocol);
        assert_eq!(response.header("sec-websocket-extensions"), None, "none is offered");
    }
}

#[tokio::test]
async fn pages_connect_from_where_they_may() {
    let settings = Settings { origins: vec!["https://app.example".into()], ..Settings::default() };
    let harness = start(Setup { settings, ..Setup::default() }).await;
    let same = format!("http://{}", harness.address);
    for origin in [same.as_str(), "https://app.example"] {
        welcome(&harness, handshake().header("origin", Some(origin))).await;
    }
    let elsewhere = ["https://evil.example", "http://127.0.0.1", "https://app.example.evil", "null", ""];
    for origin in elsewhere {
        let refused = refusal(&harness, handshake().header("origin", Some(origin))).await;
        assert_eq!((refused.status, refused.code().as_str()), (403, "ORIGIN_REFUSED"), "{origin}");
    }
}

#[tokio::test]
async fn a_token_travels_in_three_ways() {
    let harness = server().await;
    let path = "/ws/mobile/sync?device_id=d1";
    let token = token("t1", "ada");
    let protocols = format!("driftline.v1.json, bearer.{token}");
    let table = [
        Handshake::new(&format!("{path}&token={token}")),
        Handshake::new(path).bearer(&token),
        Handshake::new(path).header("sec-websocket-protocol", Some(&protocols)),
    ];
    for handshake in table {
        let opened = handshake.send(harness.address).await;
        let (mut socket, response) = opened.expect("it is let in");
        let hello = socket.expect("connection_established").await;
        assert_eq!(
            (&hello["tenant"], &hello["user_id"], &hello["device_id"]),
            (&json!("t1"), &json!("ada"), &json!("d1"))
        );
        let echoed = response.header("sec-websocket-protocol").unwrap_or_default();
        assert!(!echoed.contains("bearer"), "a token is not echoed: {echoed}");
    }
}

#[tokio::test]
async fn control_frames_are_answered() {
    let harness = server().await;
    let mut socket = harness.device("d1").await;
    socket.send_frame(&Frame::last(Frame::PING, "are you there?")).await;
    assert_eq!(socket.read().await, Incoming::Pong(b"are you there?".to_vec()));
    socket.send_frame(&Frame::last(Frame::PONG, "nobody asked")).await;
    socket.ask(&json!({"type": "ping"}), "pong").await;
    socket.send_frame(&Frame::close(1000, "goodbye")).await;
    assert_eq!(socket.read().await, Incoming::Close(1000, String::new()));
    assert_eq!(socket.read().await, Incoming::End);

    let mut wordless = harness.device("d2").await;
    wordless.send_frame(&Frame::last(Frame::CLOSE, [])).await;
    assert_eq!(wordless.until_end().await, (Vec::new(), 1005));
}

#[tokio::test]
async fn a_message_may_come_in_parts() {
    let harness = server().await;
    let mut socket = harness.device("d1").await;
    let text = r#"{"type":"ping","timestamp":41,"note":"zwölf Boxkämpfer"}"#.as_bytes();
    for at in 0..text.len() {
        // A ping may come between the parts, and a part may end inside a character.
        socket.send_frame(&Frame::part(Frame::TEXT, &text[..at])).await;
        socket.send_frame(&Frame::last(Frame::PING, "between")).await;
        socket.send_frame(&Frame::part(Frame::CONTINUATION, [])).await;
        socket.send_frame(&Frame::last(Frame::CONTINUATION, &text[at..])).await;
        assert_eq!(socket.read().await, Incoming::Pong(b"between".to_vec()));
        assert_eq!(socket.expect("pong").await["timestamp"], 41, "cut at {at}");
    }
    for byte in Frame::last(Frame::TEXT, text).encode(7) {
        socket.send_bytes(&[byte]).await;
    }
    socket.expect("pong").await;
}

#[tokio::test]
async fn frames_that_break_the_protocol_close_with_their_code() {
    let harness = server().await;
    let ping = r#"{"type":"ping"}"#;
    let raw = |head: u8| Frame { head, payload: ping.into() };
    let table: &[(&str, &[Frame], u16)] = &[
        ("not UTF-8 in a part that others follow", &[Frame::part(Frame::TEXT, [b'"', 0xf4, 0x90])], 1007),
        ("not UTF-8", &[Frame::last(Frame::TEXT, [b'"', 0xff, b'"'])], 1007),
        (
            "not UTF-8 in parts",
            &[Frame::part(Frame::TEXT, [b'"', 0xc3]), Frame::last(Frame::CONTINUATION, [b'"'])],
            1007,
        ),
        ("first reserved bit", &[raw(0xc1)], 1002),
        ("second reserved bit", &[raw(0xa1)], 1002),
        ("third reserved bit", &[raw(0x91)], 1002),
        ("reserved data opcode", &[raw(0x83)], 1002),
        ("reserved control opcode", &[raw(0x8b)], 1002),
        ("ping in parts", &[Frame::part(Frame::PING, "a")], 1002),
        ("long ping", &[Frame::last(Frame::PING, [0; 126])], 1002),
        ("long pong", &[Frame::last(Frame::PONG, [0; 126])], 1002),
        ("long close", &[Frame::close(1000, &"x".repeat(124))], 1002),
        ("nothing to continue", &[Frame::last(Frame::CONTINUATION, ping)], 1002),
        (
            "a message inside a message",
            &[Frame::part(Frame::TEXT, ping), Frame::last(Frame::TEXT, ping)],
            1002,
        ),
        ("half a close code", &[Frame::last(Frame::CLOSE, [3])], 1002),
        ("a close code that is never sent", &[Frame::close(1006, "")], 1002),
        ("a close code of nobody", &[Frame::close(999, "")], 1002),
        ("a close reason that is not UTF-8", &[Frame::last(Frame::CLOSE, [3, 232, 0xff])], 1007),
    ];
    for (case, frames, code) in table {
        let mut socket = harness.device("d1").await;
        for frame in *frames {
            socket.send_frame(frame).await;
        }
        assert_eq!(socket.until_end().await, (Vec::new(), *code), "{case}");
    }
    harness.serves().await;
}

/// A declared length costs nothing until the bytes come.
#[tokio::test]
async fn a_boast_of_length_is_refused_at_once() {
    let harness = server().await;
    for len in [(1 << 20) + 1, 1 << 31, 1 << 40, (1_u64 << 63) - 1] {
        let mut socket = harness.device("d1").await;
        let mut bytes = vec![0x81, 0xff];
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        socket.send_bytes(&bytes).await;
        assert_eq!(socket.until_error().await, ("MESSAGE_TOO_LARGE".into(), 1009), "{len}");
    }
    for len in [1 << 63, u64::MAX, 125, 65_535] {
        let mut socket = harness.device("d1").await;
        let mut bytes = vec![0x81, 0xff];
        bytes.extend_from_slice(&u64::to_be_bytes(len));
        socket.send_bytes(&bytes).await;
        assert_eq!(socket.until_end().await, (Vec::new(), 1002), "{len}: no length, or one in a longer form");
    }
    harness.serves().await;
}

/// A peer that is still sending reads why it is cut off: the rest is read out, not answered by a reset.
#[tokio::test]
async fn who_is_cut_off_while_sending_learns_why() {
    let harness = server().await;
    for _ in 0..3 {
        let mut socket = harness.device("d1").await;
        socket.send_all(&Frame::last(Frame::TEXT, vec![b' '; 3 << 20]).encode(1)).await;
        assert_eq!(socket.until_error().await, ("MESSAGE_TOO_LARGE".into(), 1009));
    }
}

#[tokio::test]
async fn random_frames_never_stop_the_server() {
    let harness = server().await;
    let seed = 20_260_101;
    let mut rng = Rng::new(seed);
    for round in 0..400 {
        let mut socket = harness.device("hostile").await;
        for _ in 0..rng.between(1, 12) {
            if rng.percent(30) {
                let noise: Vec<u8> = (0..rng.between(1, 40)).map(|_| rng.next().to_le_bytes()[0]).collect();
                socket.send_bytes(&noise).await;
            } else {
                let frame = random_frame(&mut rng);
                socket.send_frame(&frame).await;
            }
        }
        socket.finish().await;
        let (messages, close) = socket.until_end().await;
        for message in messages {
            assert!(message["type"].is_string(), "seed {seed}, round {round}: {message}");
        }
        assert!(matches!(close, 1000..=1015 | 3000..=4999), "seed {seed}, round {round}: {close}");
    }
    harness.serves().await;
}

fn random_frame(rng: &mut Rng) -> Frame {
    const TEXTS: &[&str] = &[
        r#"{"type":"ping"}"#,
        r#"{"type":"start_sync"}"#,
        r#"{"type":"start_sync","payload":{"data_types":[1]}}"#,
        r#"{"type":"sync_data","sync_id":"6f9f2d0e-2f3a-4c57-9d0b-0d8a8f7a4c11","payload":{"batch":[{}, 7]}}"#,
        r#"{"type":"end_sync"}"#,
        r#"{"type":"heartbeat","last_seq":-1}"#,
        "[[[[",
        "",
        "\u{0}",
    ];
    let opcodes = [0x1, 0x1, 0x1, 0x1, 0x0, 0x2, 0x8, 0x9, 0xa, 0x3, 0xf];
    let mut head = *rng.pick(&opcodes);
    if rng.percent(85) {
        head |= 0x80;
    }
    if rng.percent(3) {
        head |= 0x40;
    }
    let mut payload = rng.pick(TEXTS).as_bytes().to_vec();
    if rng.percent(20) && !payload.is_empty() {
        let at = rng.place(payload.len());
        payload[at] = rng.next().to_le_bytes()[0];
    }
    Frame { head, payload }
}

/// Takes the records of a delta.
fn told(delta: &Value) -> Vec<&str> {
    let changes = delta["changes"].as_array().expect("changes");
    changes.iter().map(|change| change["id"].as_str().expect("an id")).collect()
}

#[tokio::test]
async fn devices_hear_of_each_other_and_not_of_themselves() {
    let harness = server().await;
    let (mut one, mut two) = (harness.syncing("one").await, harness.syncing("two").await);
    let page = one.ask(&pull(), "server_data").await;
    two.ask(&pull(), "server_data").await;

    // Over the socket, then over HTTP: the other device is told of both.
    let ack = one.ask(&batch(1, &[create(1, "note", "a", &json!({"x": 1}))]), "ack").await;
    let delta = two.expect("server_delta").await;
    assert_eq!((told(&delta), &delta["prev_seq"], &delta["seq"]), (vec!["a"], &page["seq"], &ack["seq"]));
    harness.push("one", &[create(2, "note", "b", &json!({"x": 2}))]).await;
    let delta = two.expect("server_delta").await;
    assert_eq!((told(&delta), &delta["prev_seq"]), (vec!["b"], &ack["seq"]));

    // The first thing that the first device hears is of the second one.
    two.ask(&batch(1, &[create(1, "note", "c", &json!({"x": 3}))]), "ack").await;
    let delta = one.expect("server_delta").await;
    assert_eq!(told(&delta), ["c"]);
    assert_eq!(delta["changes"][0]["fields"], json!({"x": 3}));

    // What is told can be built upon: nothing is left to pull from the delta's cursor.
    let rest = json!({"type": "request_server_data", "sync_id": SYNC_ID,
                      "payload": {"cursor": delta["cursor"]}});
    assert_eq!(one.ask(&rest, "server_data").await["changes"], json!([]));
}

#[tokio::test]
async fn live_changes_keep_within_tenant_owner_kinds_and_session() {
    let harness = server().await;
    let open = async |tenant: &str, user: &str, kinds: &[&str]| {
        let mut socket = Socket::connect(harness.address, &socket_path(tenant, user, "d")).await;
        socket.expect("connection_established").await;
        socket.start(SYNC_ID, kinds).await;
        socket
    };
    let mut owner = open("t1", "ada", &[]).await;
    let mut colleague = open("t1", "bob", &[]).await;
    let mut narrow = open("t1", "eve", &["diary"]).await;
    let mut stranger = open("t2", "ada", &[]).await;
    let mut early = harness.device("no-session").await;
    let fields = json!({"x": 1});
    harness.push("w", &[create(1, "diary", "secret", &fields), create(2, "note", "open", &fields)]).await;

    assert_eq!(told(&owner.expect("server_delta").await), ["secret", "open"]);
    assert_eq!(told(&colleague.expect("server_delta").await), ["open"]);
    // Work for everybody makes sure that what was to come has come.
    let request = Request::post(
        "/api/v1/sync?device_id=w",
        &json!({"batch": [
        {"op_id": "last", "kind": "diary", "id": "hers", "op": "create", "fields": {}}]}),
    );
    assert_eq!(harness.ask("t1", "eve", request).await.status, 200);
    assert_eq!(told(&narrow.expect("server_delta").await), ["hers"]);
    for silent in [&mut stranger, &mut early, &mut colleague, &mut owner] {
        silent.ask(&json!({"type": "ping"}), "pong").await;
    }
}

#[tokio::test]
async fn a_long_poll_wakes_with_the_first_change() {
    let harness = server().await;
    let first = harness.ask("t1", "ada", Request::get("/api/v1/changes")).await.json();
    let cursor = first["cursor"].as_str().expect("a cursor");
    let poll = Request::get(&format!("/api/v1/changes?wait_s=30&cursor={cursor}"));
    let news = [create(1, "note", "news", &json!({}))];
    let (woken, _) = tokio::join!(harness.ask("t1", "ada", poll), harness.push("w", &news));
    assert_eq!(told(&woken.json()), ["news"]);
}
