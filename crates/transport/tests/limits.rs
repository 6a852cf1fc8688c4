//! Every limit of the doors, reached.

mod support;

use std::sync::Arc;

use axum::body::Body;
use driftline_model::Limits;
use driftline_testkit::World;
use driftline_testkit::http::{Request, Response, soon};
use driftline_testkit::socket::{Frame, Handshake, Incoming, Socket};
use driftline_transport::{Grant, Settings, router};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use support::gated::{Gate, gated};
use support::{
    Harness, SYNC_ID, Setup, batch, create, grant, pull, sign, socket_path, start, start_limited, start_on,
    token, until,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const MIB: usize = 1 << 20;

fn notes(count: u64) -> Vec<Value> {
    (1..=count).map(|n| create(n, "note", &format!("n-{n}"), &json!({"n": n}))).collect()
}

/// A message that is answered, padded to a length.
fn padded_ping(len: usize) -> String {
    let (head, tail) = (r#"{"type":"ping","pad":""#, r#""}"#);
    format!("{head}{}{tail}", "x".repeat(len - head.len() - tail.len()))
}

async fn stored(harness: &Harness) -> usize {
    let list = harness.ask("t1", "ada", Request::get("/api/v1/records/note?limit=500")).await.json();
    list["items"].as_array().expect("a list").len()
}

// Messages.

#[tokio::test]
async fn a_batch_of_101_items_is_refused_whole() {
    let harness = start(Setup::default()).await;
    let mut socket = harness.syncing("d1").await;
    let error = socket.ask(&batch(1, &notes(101)), "error").await;
    assert_eq!((&error["code"], &error["reply_to"]), (&json!("BATCH_TOO_LARGE"), &json!("b1")));
    let request = Request::post("/api/v1/sync?device_id=d2", &json!({"batch": notes(101)}));
    let response = harness.ask("t1", "ada", request).await;
    assert_eq!((response.status, response.code().as_str()), (413, "BATCH_TOO_LARGE"));
    assert_eq!(stored(&harness).await, 0, "nothing was applied");

    let ack = socket.ask(&batch(2, &notes(100)), "ack").await;
    assert_eq!((&ack["synced"], stored(&harness).await), (&json!(100), 100));
}

#[tokio::test]
async fn a_message_holds_one_mebibyte() {
    let harness = start(Setup::default()).await;
    let mut socket = harness.device("d1").await;
    socket.send_text(&padded_ping(MIB)).await;
    socket.expect("pong").await;
    socket.send_text(&padded_ping(MIB + 1)).await;
    assert_eq!(socket.until_error().await, ("MESSAGE_TOO_LARGE".into(), 1009));

    let post = |len: usize| {
        let (head, tail) = (r#"{"pad":""#, r#""}"#);
        let body = format!("{head}{}{tail}", "x".repeat(len - head.len() - tail.len()));
        Request::new("POST", "/api/v1/sync?device_id=d1").body(body)
    };
    assert_eq!(harness.ask("t1", "ada", post(MIB)).await.status, 200);
    let refused = harness.ask("t1", "ada", post(MIB + 1)).await;
    assert_eq!((refused.status, refused.code().as_str()), (413, "MESSAGE_TOO_LARGE"));
}

#[tokio::test]
async fn parts_add_up_to_one_mebibyte() {
    let harness = start(Setup::default()).await;
    let whole = padded_ping(MIB).into_bytes();
    let mut socket = harness.device("d1").await;
    socket.send_frame(&Frame::part(Frame::TEXT, &whole[..MIB / 2])).await;
    socket.send_frame(&Frame::last(Frame::CONTINUATION, &whole[MIB / 2..])).await;
    socket.expect("pong").await;

    socket.send_frame(&Frame::part(Frame::TEXT, &whole[..MIB / 2])).await;
    socket.send_frame(&Frame::part(Frame::CONTINUATION, &whole[MIB / 2..])).await;
    socket.send_frame(&Frame::part(Frame::CONTINUATION, "x")).await;
    assert_eq!(socket.until_error().await, ("MESSAGE_TOO_LARGE".into(), 1009));
}

#[tokio::test]
async fn parts_are_counted_too() {
    let harness = start(Setup::default()).await;
    let mut socket = harness.device("d1").await;
    let mut bytes = Frame::part(Frame::TEXT, "x").encode(1);
    for _ in 0..4096 {
        bytes.extend(Frame::part(Frame::CONTINUATION, "x").encode(2));
    }
    socket.send_bytes(&bytes).await;
    assert_eq!(socket.until_error().await, ("MESSAGE_TOO_LARGE".into(), 1009));
}

#[tokio::test]
async fn nesting_ends_at_64_levels() {
    let harness = start(Setup::default()).await;
    let mut socket = harness.device("d1").await;
    let nested = |arrays: usize| {
        let (open, close) = ("[".repeat(arrays), "]".repeat(arrays));
        format!(r#"{{"type":"ping","deep":{open}{close}}}"#)
    };
    // The message itself is the first level.
    socket.send_text(&nested(63)).await;
    socket.expect("pong").await;
    for arrays in [64, 100_000] {
        socket.send_text(&nested(arrays)).await;
        assert_eq!(socket.expect("error").await["code"], "JSON_DECODE_ERROR", "{arrays} arrays");
    }
    let body = Request::new("POST", "/api/v1/sync?device_id=d1").body(nested(64));
    let response = harness.ask("t1", "ada", body).await;
    assert_eq!((response.status, response.code().as_str()), (400, "JSON_DECODE_ERROR"));
}

#[tokio::test]
async fn ten_messages_in_a_row_that_are_no_json_are_enough() {
    let harness = start(Setup::default()).await;
    let mut socket = harness.device("d1").await;
    for _ in 0..3 {
        for _ in 0..9 {
            socket.send_text("[]").await;
            assert_eq!(socket.expect("error").await["code"], "JSON_DECODE_ERROR");
        }
        socket.ask(&json!({"type": "ping"}), "pong").await;
    }
    for _ in 0..10 {
        socket.send_text("{").await;
    }
    let (errors, close) = socket.until_end().await;
    assert_eq!((errors.len(), close), (10, 1007));
    assert!(errors.iter().all(|error| error["code"] == "JSON_DECODE_ERROR"), "{errors:?}");
}

#[tokio::test]
async fn pages_end_at_rows_and_at_bytes() {
    let long = "x".repeat(1000);
    let items: Vec<_> =
        (1..=10).map(|n| create(n, "note", &format!("n-{n:02}"), &json!({"t": long}))).collect();
    let by_rows = |limits: &mut Limits| limits.page_rows = 3;
    let by_bytes = |limits: &mut Limits| limits.page_bytes = 3500;
    for limit in [by_rows as fn(&mut Limits), by_bytes] {
        let harness = start_limited(limit).await;
        harness.push("w", &items).await;
        let mut socket = harness.syncing("d1").await;
        let mut request = pull();
        let mut sizes = Vec::new();
        let mut seen = Vec::new();
        loop {
            request["payload"]["limit"] = json!(1_000_000);
            let page = socket.ask(&request, "server_data").await;
            let changes = page["changes"].as_array().expect("changes");
            sizes.push(changes.len());
            seen.extend(changes.iter().map(|change| change["id"].clone()));
            request["payload"]["cursor"] = page["cursor"].clone();
            if page["has_more"] == false {
                break;
            }
        }
        assert_eq!(sizes, [3, 3, 3, 1]);
        assert_eq!(seen.len(), 10);
        let list = harness.ask("t1", "ada", Request::get("/api/v1/records/note?limit=1000")).await.json();
        assert_eq!(list["items"].as_array().map(Vec::len), Some(3));
        assert!(list["next_cursor"].is_string());
    }
}

// What waits.

#[tokio::test]
async fn four_batches_may_wait_for_their_answers() {
    let gate = Gate::shut();
    let harness = start_on(Setup::default(), |store| gated(store, &gate)).await;
    let mut socket = harness.syncing("d1").await;
    for n in 1..=6 {
        socket.send(&batch(n, &[create(n, "note", &format!("n-{n}"), &json!({}))])).await;
    }
    socket.send_frame(&Frame::last(Frame::PING, "after")).await;
    until("four commits", async || gate.begun() == 4).await;
    // Others are served meanwhile; the fifth batch and what follows it are not even read.
    for _ in 0..20 {
        harness.serves().await;
    }
    assert_eq!((gate.begun(), socket.read_now()), (4, None));
    gate.let_through(1);
    assert_eq!(socket.expect("ack").await["reply_to"], "b1");
    until("a fifth commit", async || gate.begun() == 5).await;
    gate.let_through(5);
    for n in 2..=6 {
        // Answers come in the order of the asking. The ping was read behind the last batch.
        let mut incoming = socket.read().await;
        if incoming == Incoming::Pong(b"after".to_vec()) {
            incoming = socket.read().await;
        }
        let Incoming::Text(text) = incoming else { panic!("{incoming:?}") };
        let ack: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&ack["reply_to"], &ack["synced"]), (&json!(format!("b{n}")), &json!(1)));
    }
}

/// Batches of one connection reach the store in their order, even when the first has to wait for the policies and the
/// second would find them.
#[tokio::test]
async fn batches_keep_their_order_while_policies_load() {
    let gate = Gate::shut();
    let harness = start_on(Setup::default(), |store| gated(store, &gate)).await;
    let mut socket = harness.syncing("d1").await;
    let policy = Request::new("PUT", "/api/v1/policies/note").json(&json!({"strategy": "server_wins"}));
    let admin = sign(&grant("t1", "ada", "admin"));
    assert_eq!(
        policy.bearer(&admin).send(harness.address).await.status,
        200,
        "now the policies are read anew"
    );
    gate.hold_policies();
    let patch = json!({"op_id": "p", "n": 2, "kind": "note", "id": "n-1", "op": "patch", "fields": {"v": 2}});
    socket.send(&batch(1, &[create(1, "note", "n-1", &json!({"v": 1}))])).await;
    socket.send(&batch(2, &[patch])).await;
    until("a held look", async || gate.policies_held() == 1).await;
    for _ in 0..20 {
        harness.serves().await;
    }
    assert_eq!(gate.begun(), 0, "the second batch waits for the first");
    gate.let_policies_go();
    gate.let_through(2);
    for n in 1..=2 {
        let ack = socket.expect("ack").await;
        assert_eq!(
            (&ack["reply_to"], &ack["results"][0]["code"]),
            (&json!(format!("b{n}")), &json!("applied"))
        );
    }
}

/// A device that does not read is cut; what waited for it stays within bounds, and others go on working.
#[tokio::test]
async fn a_slow_consumer_is_cut() {
    let bound = 64 << 10;
    let harness = start_limited(|limits| {
        limits.outbound_bytes = bound;
        limits.page_bytes = bound;
    })
    .await;
    let path = socket_path("t1", "ada", "slow");
    let slow = Handshake::new(&path).receive_bytes(4096).send(harness.address).await;
    let (mut slow, _) = slow.expect("it is let in");
    slow.expect("connection_established").await;
    slow.start(SYNC_ID, &[]).await;
    let mut quick = harness.syncing("quick").await;

    // Nobody else in this process is slow.
    let cuts = "driftline_slow_consumers_total";
    assert_eq!(harness.counted(cuts).await, 0);
    let text = "x".repeat(8 << 10);
    let mut produced = 0;
    let mut rounds = 0;
    while harness.counted(cuts).await == 0 {
        rounds += 1;
        assert!(rounds < 2000, "the slow consumer was never cut");
        let items: Vec<_> = (1..=4)
            .map(|at| create(rounds * 4 + at, "note", &format!("r{rounds}-{at}"), &json!({"t": text})))
            .collect();
        harness.push("writer", &items).await;
        produced += items.len() * text.len();
        assert_eq!(quick.expect("server_delta").await["changes"].as_array().map(Vec::len), Some(4));
    }
    let (messages, close) = slow.until_end().await;
    assert_eq!((close, &messages.last().expect("a message")["code"]), (4008, &json!("SLOW_CONSUMER")));
    let received: usize =
        messages.iter().filter(|message| message["type"] == "server_delta").count() * 4 * text.len();
    let dropped = produced - received;
    assert!(dropped <= 4 * bound, "of {produced} bytes {dropped} had been waiting");
    quick.ask(&json!({"type": "ping"}), "pong").await;
}

// Time.

#[tokio::test]
async fn a_silent_device_is_let_go() {
    let harness = start_limited(|limits| limits.heartbeat_s = 1).await;
    let mut silent = harness.device("silent").await;
    let mut alive = harness.device("alive").await;
    harness.clock.advance(1900);
    alive.ask(&json!({"type": "heartbeat"}), "heartbeat_ack").await;
    // A pong of the WebSocket library is no sign of a living app.
    silent.send_frame(&Frame::last(Frame::PONG, "")).await;
    harness.clock.advance(200);
    assert_eq!(silent.until_error().await, ("HEARTBEAT_TIMEOUT".into(), 4009));
    alive.ask(&json!({"type": "ping"}), "pong").await;
    loop {
        // The server asks at every interval, for clients that only answer pings.
        if let Incoming::Ping(_) = alive.read().await {
            break;
        }
    }
}

#[tokio::test]
async fn a_connection_ends_with_its_token() {
    let harness = start_limited(|limits| limits.heartbeat_s = 1).await;
    let short = sign(&Grant { expires_s: World::BEGIN_MS / 1000 + 1, ..grant("t1", "ada", "user") });
    let path = format!("/ws/mobile/sync?device_id=d1&token={short}");
    let mut socket = Socket::connect(harness.address, &path).await;
    socket.expect("connection_established").await;
    harness.clock.advance(1500);
    assert_eq!(socket.until_error().await, ("UNAUTHORIZED".into(), 4001));
}

/// Reads until the server ends the connection; gives what it said.
async fn let_go(mut stream: TcpStream) -> String {
    let mut said = Vec::new();
    // A reset is an end too.
    let _ = soon("the end", stream.read_to_end(&mut said)).await;
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn a_head_must_come_in_time() {
    let harness = start_limited(|limits| limits.header_ms = 500).await;
    for begun in ["", "GET /alive HTTP/1.1\r\nhost: a\r\n"] {
        let mut stream = TcpStream::connect(harness.address).await.expect("a server listens");
        stream.write_all(begun.as_bytes()).await.expect("it reads");
        let said = let_go(stream).await;
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{said}");
    }
    harness.serves().await;
}

#[tokio::test]
async fn a_head_has_a_size() {
    let harness = start(Setup::default()).await;
    let fits = Request::get("/alive").header("x-pad", &"x".repeat(15 << 10)).send(harness.address).await;
    assert_eq!(fits.status, 200);
    let long = format!("GET /alive HTTP/1.1\r\nhost: a\r\nx-pad: {}\r\n\r\n", "x".repeat(17 << 10));
    let mut many = String::from("GET /alive HTTP/1.1\r\nhost: a\r\n");
    (0..100).for_each(|n| many.push_str(&format!("x-{n}: 1\r\n")));
    many.push_str("\r\n");
    // Without an end, as long as anybody wants to read it.
    let endless = format!("GET /{} ", "x".repeat(MIB));
    for head in [long, many, endless] {
        let mut stream = TcpStream::connect(harness.address).await.expect("a server listens");
        // The server may stop reading before the end.
        let _ = soon("room", stream.write_all(head.as_bytes())).await;
        let said = let_go(stream).await;
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
    }
    harness.serves().await;
}

#[tokio::test]
async fn a_body_must_go_on_coming() {
    let harness = start_limited(|limits| limits.body_frame_ms = 100).await;
    let whole = Request::post("/api/v1/sync?device_id=d1", &json!({"batch": notes(3)}))
        .bearer(&token("t1", "ada"))
        .encode(harness.address);
    let mut stream = TcpStream::connect(harness.address).await.expect("a server listens");
    stream.write_all(&whole[..whole.len() - 10]).await.expect("it reads");
    let response = Response::read(&mut stream, &mut Vec::new()).await.expect("an answer comes");
    assert_eq!((response.status, response.code().as_str()), (408, "HEARTBEAT_TIMEOUT"));
    assert_eq!(let_go(stream).await, "", "the rest of the body is not read as a request");
    assert_eq!(stored(&harness).await, 0);
}

// Connections.

#[tokio::test]
async fn connections_have_a_cap() {
    let harness = start_limited(|limits| limits.connections = 4).await;
    let path = socket_path("t1", "ada", "d");
    let mut open = Vec::new();
    let mut refused = 0;
    // All at once, so that nobody is counted too late.
    let opened = futures_util::future::join_all((0..12).map(|n| {
        let handshake = Handshake::new(&path.replace("device_id=d", &format!("device_id=d{n}")));
        async move { handshake.send(harness.address).await }
    }));
    for outcome in opened.await {
        match outcome {
            Ok((socket, _)) => open.push(socket),
            Err(response) => {
                refused += 1;
                assert_eq!((response.status, response.code().as_str()), (503, "SERVER_DRAINING"));
                assert!(response.header("retry-after").is_some(), "{response:?}");
            }
        }
    }
    assert_eq!((open.len(), refused), (4, 8));
    assert_eq!(Request::get("/alive").send(harness.address).await.status, 200, "requests go on");

    let mut leaving = open.pop().expect("one of four");
    leaving.expect("connection_established").await;
    leaving.send_frame(&Frame::close(1000, "")).await;
    leaving.until_end().await;
    let handshake = Handshake::new(&path);
    until("room for one more", async || handshake.send(harness.address).await.is_ok()).await;
}

#[tokio::test]
async fn limits_off_lets_everybody_in() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let settings = Settings { unlimited: true, ..Settings::default() };
    let harness = start(Setup { limits, settings, ..Setup::default() }).await;
    let mut sockets = Vec::new();
    for n in 0..5 {
        sockets.push(harness.device(&format!("d{n}")).await);
    }
    let mut first = sockets.remove(0);
    first.send_text(&padded_ping(MIB + 1)).await;
    assert_eq!(first.until_error().await, ("MESSAGE_TOO_LARGE".into(), 1009), "sizes stay");
}

#[tokio::test]
async fn the_newest_connection_of_a_device_stays() {
    let harness = start(Setup::default()).await;
    let mut old = harness.device("d1").await;
    let mut other = harness.device("d2").await;
    let mut new = harness.device("d1").await;
    assert_eq!(old.until_error().await, ("REPLACED".into(), 4510));
    // The same name at another user, and in another tenant, is another device.
    for (tenant, user) in [("t1", "bob"), ("t2", "ada")] {
        let mut socket = Socket::connect(harness.address, &socket_path(tenant, user, "d1")).await;
        socket.expect("connection_established").await;
    }
    for socket in [&mut new, &mut other] {
        socket.ask(&json!({"type": "ping"}), "pong").await;
    }
    let mut newest = harness.device("d1").await;
    assert_eq!(new.until_error().await, ("REPLACED".into(), 4510));
    newest.ask(&json!({"type": "ping"}), "pong").await;
}

// The end.

#[tokio::test]
async fn a_stopping_server_tells_everybody_and_answers_what_was_asked() {
    let gate = Gate::shut();
    let harness = start_on(Setup::default(), |store| gated(store, &gate)).await;
    let mut idle = harness.device("idle").await;
    let mut busy = harness.syncing("busy").await;
    busy.send(&batch(1, &notes(1))).await;
    let post =
        Request::post("/api/v1/sync?device_id=p", &json!({"batch": [create(1, "note", "p", &json!({}))]}));
    let posting = tokio::spawn({
        let (post, address) = (post.bearer(&token("t1", "ada")), harness.address);
        async move { post.send(address).await }
    });
    until("two commits", async || gate.begun() == 2).await;

    harness.app.drain();
    let (said, close) = idle.until_end().await;
    let [draining] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!((&draining["type"], close), (&json!("server_draining"), 1012));
    assert!((500..5000).contains(&draining["reconnect_after_ms"].as_u64().expect("milliseconds")));
    until("the listener's end", async || TcpStream::connect(harness.address).await.is_err()).await;

    // What was sent before is answered; what is sent now is not read.
    busy.send(&batch(2, &notes(2))).await;
    gate.let_through(100);
    let (said, close) = busy.until_end().await;
    let kinds: Vec<_> = said.iter().map(|message| message["type"].as_str().unwrap_or_default()).collect();
    assert_eq!((kinds.as_slice(), close), (["ack", "server_draining"].as_slice(), 1012), "{said:?}");
    let posted = posting.await.expect("the task ends");
    assert_eq!((posted.status, &posted.json()["ack"]["synced"]), (200, &json!(1)));
    assert_eq!(gate.begun(), 2);
    soon("the server's end", harness.serving).await.expect("no panic").expect("no error");

    // The doors themselves say so too, where they are mounted behind another listener.
    let doors = TowerToHyperService::new(router(Arc::clone(&harness.app)));
    let ready =
        |path: &str| hyper::Request::get(path).header("host", "a").body(Body::empty()).expect("a request");
    let response = doors.call(ready("/ready")).await.expect("it answers");
    assert_eq!(response.status(), 503);
    assert_eq!(doors.call(ready("/alive")).await.expect("it answers").status(), 200);
}
