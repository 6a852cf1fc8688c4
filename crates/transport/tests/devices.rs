//! Devices: their registry, who is connected, and who is told of it.

mod support;

use driftline_engine::Store;
use driftline_testkit::http::Request;
use driftline_testkit::socket::Socket;
use driftline_transport::Grant;
use serde_json::{Value, json};
use support::telemetry::{HASH, readings, setup};
use support::{Harness, grant, sign, start, token, until};

fn patch(device: &str, body: &Value) -> Request {
    Request::new("PATCH", &format!("/api/v1/devices/{device}")).json(body)
}

/// Reads a device of ada's.
async fn device<S: Store>(harness: &Harness<S>, device: &str) -> Value {
    let answer = harness.ask("t1", "ada", Request::get(&format!("/api/v1/devices/{device}"))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// Enters a door with a token of this grant; gives the socket, or the error and the close code.
async fn door<S: Store>(harness: &Harness<S>, path: &str, grant: &Grant) -> Result<Socket, (String, u16)> {
    let mut socket = Socket::connect(harness.address, &format!("{path}?token={}", sign(grant))).await;
    let first = socket.receive().await;
    if first["type"] == "connection_established" {
        return Ok(socket);
    }
    let (_, close) = socket.until_end().await;
    Err((first["code"].as_str().unwrap_or_default().to_owned(), close))
}

/// What a socket was told before it answers a ping: everything that was published until now.
async fn told(socket: &mut Socket) -> Vec<Value> {
    socket.send(&json!({"type": "ping"})).await;
    let mut told = Vec::new();
    loop {
        let message = socket.receive().await;
        if message["type"] == "pong" {
            return told;
        }
        told.push(message);
    }
}

#[tokio::test]
async fn a_device_hash_is_told_once() {
    let harness = start(setup()).await;
    let body = json!({"device_id": "d1"});
    let keyed = || Request::post("/api/v1/devices", &body).header("idempotency-key", "r-1");
    let first = harness.ask("t1", "ada", keyed()).await;
    assert_eq!(first.status, 201, "{}", first.text());
    let hash = first.json()["device_hash"].as_str().expect("a hash").to_owned();
    assert_eq!(hash.len(), 43, "32 bytes in base64url");
    let again = harness.ask("t1", "ada", keyed()).await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (201, Some("true")));
    assert_eq!(again.body, first.body, "a resend is told the same");
    let known = harness.register("t1", "ada", &body).await;
    assert_eq!((known.status, known.json().get("device_hash")), (200, None), "{}", known.text());
    assert_eq!(device(&harness, "d1").await["has_device_hash"], true);
    let other =
        Request::post("/api/v1/devices", &json!({"device_id": "d2"})).header("idempotency-key", "r-1");
    assert_eq!(harness.ask("t1", "ada", other).await.code(), "IDEMPOTENCY_KEY_REUSED");

    let enters = async |hash: &str| {
        let request = Request::post("/api/ingest", &readings(&[1])).header("x-device-hash", hash);
        request.send(harness.address).await.status == 200
    };
    assert!(enters(&hash).await);
    let renewed = harness.ask("t1", "ada", patch("d1", &json!({"device_hash": null}))).await.json();
    let renewed = renewed["device_hash"].as_str().expect("a hash").to_owned();
    assert!(enters(&renewed).await && !enters(&hash).await, "the old one leads nowhere");
    let set = || patch("d1", &json!({"device_hash": HASH}));
    assert_eq!(harness.ask("t1", "ada", set()).await.code(), "FORBIDDEN", "a hash of one's choice");
    let set = harness.ask_as(&grant("t1", "root", "admin"), set()).await;
    assert_eq!(set.json()["device_hash"], HASH);
    assert!(enters(HASH).await);
    // A hash leads to one device, whoever's it is.
    let same = json!({"device_id": "d1", "device_hash": HASH});
    let eve = grant("t2", "eve", "admin");
    let taken = harness.ask_as(&eve, Request::post("/api/v1/devices", &same)).await;
    assert_eq!((taken.status, taken.code().as_str()), (422, "VALIDATION_ERROR"));

    let removed = harness.ask("t1", "ada", Request::new("DELETE", "/api/v1/devices/d1")).await;
    assert_eq!(removed.status, 204);
    assert!(!enters(HASH).await);
    assert_eq!(harness.ask("t1", "ada", Request::get("/api/v1/devices/d1")).await.status, 404);
    let sync = harness.ask("t1", "ada", Request::post("/api/v1/sync?device_id=d1", &json!({}))).await;
    assert_eq!(sync.code(), "FORBIDDEN", "it is refused until it is registered again");
    assert_eq!(harness.register("t1", "ada", &body).await.status, 201);
    let sync = harness.ask("t1", "ada", Request::post("/api/v1/sync?device_id=d1", &json!({}))).await;
    assert_eq!(sync.status, 200);
}

#[tokio::test]
async fn devices_are_their_owners_and_the_administrators() {
    let harness = start(setup()).await;
    harness.hashed().await;
    let (root, staff) = (grant("t1", "root", "admin"), grant("t1", "sam", "staff"));
    let list = |query: &str| Request::get(&format!("/api/v1/devices{query}"));
    let count = |list: Value| list["items"].as_array().expect("a list").len();
    assert_eq!(count(harness.ask("t1", "ada", list("")).await.json()), 1);
    assert_eq!(count(harness.ask("t1", "bob", list("?owner=ada")).await.json()), 0);
    assert_eq!(count(harness.ask("t2", "ada", list("")).await.json()), 0);
    assert_eq!(count(harness.ask_as(&staff, list("?owner=ada")).await.json()), 1);
    assert_eq!(count(harness.ask_as(&staff, list("?owner=bob")).await.json()), 0);

    let disable = || patch("d1", &json!({"enabled": false}));
    assert_eq!(harness.ask("t1", "bob", disable()).await.status, 404);
    assert_eq!(harness.ask("t1", "ada", disable()).await.status, 403);
    assert_eq!(harness.ask_as(&staff, disable()).await.status, 403);
    let done = harness.ask_as(&root, disable()).await;
    assert_eq!((done.status, &done.json()["enabled"]), (200, &json!(false)));
    // Removing it and registering it anew does not enable it.
    assert_eq!(harness.ask("t1", "ada", Request::new("DELETE", "/api/v1/devices/d1")).await.status, 204);
    let body = json!({"device_id": "d1", "enabled": true});
    assert_eq!(harness.register("t1", "ada", &body).await.json()["enabled"], false);
    let foreign = json!({"device_id": "d9", "owner": "bob"});
    assert_eq!(harness.register("t1", "ada", &foreign).await.status, 403);
    let placed = harness.ask_as(&root, Request::post("/api/v1/devices", &foreign)).await;
    assert_eq!((placed.status, &placed.json()["owner"]), (201, &json!("bob")));
    for bad in [json!({}), json!({"device_id": ""}), json!({"device_id": "d", "device_hash": "short"})] {
        assert_eq!(harness.register("t1", "ada", &bad).await.status, 422, "{bad}");
    }
}

#[tokio::test]
async fn a_device_is_offline_after_the_grace() {
    let harness = start(setup()).await;
    harness.hashed().await;
    let staff = grant("t1", "sam", "staff");
    let mut watcher = door(&harness, "/ws/mobile/user/ada", &staff).await.expect("staff watches");
    let mut socket = harness.by_hash().await;
    harness.app.tick().await;
    assert_eq!(told(&mut watcher).await[0]["type"], "device_connected");
    socket.ask(&json!({"type": "device_status", "payload": {"status": "busy", "battery": 7}}), "ack").await;
    let events = told(&mut watcher).await;
    assert_eq!((&events[0]["type"], &events[0]["topic"]), (&json!("device_status"), &json!("device_d1")));
    assert_eq!((&events[0]["data"]["device_id"], &events[0]["data"]["battery"]), (&json!("d1"), &json!(7)));
    harness.app.tick().await;
    let seen = device(&harness, "d1").await;
    assert_eq!((&seen["status"], &seen["report"]["battery"]), (&json!("busy"), &json!(7)), "{seen}");

    harness.clock.advance(6_000);
    socket.ask(&json!({"type": "ping"}), "pong").await;
    harness.app.tick().await;
    let heard = device(&harness, "d1").await;
    assert_ne!(heard["last_seen_at"], seen["last_seen_at"]);

    drop(socket);
    let gone = async || {
        harness.clock.advance(1_000);
        harness.app.tick().await;
        device(&harness, "d1").await["status"] == "offline"
    };
    until("the device is offline", gone).await;
    let events = told(&mut watcher).await;
    assert_eq!(events.last().map(|event| &event["type"]), Some(&json!("device_disconnected")), "{events:?}");
}

#[tokio::test]
async fn events_reach_whom_they_concern() {
    let harness = start(setup()).await;
    harness.hashed().await;
    let (ada, bob) = (grant("t1", "ada", "user"), grant("t1", "bob", "user"));
    let (staff, other) = (grant("t1", "sam", "staff"), grant("t2", "ada", "user"));
    let paths = ["/ws/mobile/device/d1", "/ws/mobile/user/ada"];
    let mut hear = Vec::new();
    for path in paths {
        for grant in [&ada, &staff] {
            hear.push(door(&harness, path, grant).await.expect("they may watch"));
        }
    }
    let path = format!("/ws/mobile/system?device_id=d1&token={}", token("t1", "ada"));
    let mut own = Socket::connect(harness.address, &path).await;
    own.expect("connection_established").await;
    hear.push(own);
    let mut deaf = vec![door(&harness, "/ws/mobile/user/ada", &other).await.expect("it is her name there")];
    // A device of the same name of somebody else's is another one.
    let request = Request::post("/api/v1/devices", &json!({"device_id": "d1"}));
    assert_eq!(harness.ask("t1", "bob", request).await.status, 201);
    let twin = door(&harness, "/ws/mobile/device/d1/", &bob).await.expect("his own");
    deaf.push(twin);
    assert_eq!(door(&harness, "/ws/mobile/user/ada", &bob).await.err(), Some(("FORBIDDEN".into(), 4503)));
    assert_eq!(door(&harness, "/ws/mobile/device/d1", &other).await.err(), Some(("NOT_FOUND".into(), 4503)));
    assert_eq!(door(&harness, "/ws/mobile/device/d7", &ada).await.err(), Some(("NOT_FOUND".into(), 4503)));

    // That the device is there is told now, and not in the middle of what follows.
    harness.app.tick().await;
    for socket in hear.iter_mut().chain(&mut deaf) {
        told(socket).await;
    }
    let status = json!({"type": "device_status", "payload": {"status": "sesame"}});
    assert_eq!(harness.ingest(&status, "").await.status, 200);
    for socket in &mut hear {
        let events = told(socket).await;
        let count = events.iter().filter(|event| event["type"] == "device_status").count();
        assert_eq!(count, 1, "{events:?}");
    }
    for socket in &mut deaf {
        assert_eq!(told(socket).await, Vec::<Value>::new());
    }
    // What a watcher sends is not taken.
    let error = hear[0].ask(&readings(&[1]), "error").await;
    assert_eq!(error["code"], "UNKNOWN_MESSAGE_TYPE");
}

#[tokio::test]
async fn topics_are_wanted_and_dropped() {
    let harness = start(setup()).await;
    harness.hashed().await;
    let mut socket = harness.device("d2").await;
    let topics = ["device_d1", "device_status", "user_bob", "nonsense"];
    let wish = json!({"type": "subscribe_events", "id": "s", "payload": {"topics": topics}});
    let answer = socket.ask(&wish, "events_subscribed").await;
    let accepted: Vec<bool> = answer["topics"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|topic| topic["accepted"].as_bool().expect("a verdict"))
        .collect();
    assert_eq!(accepted, [true, false, false, false], "{answer}");
    let status = json!({"type": "device_status", "payload": {"status": "here"}});
    harness.ingest(&status, "").await;
    assert_eq!(told(&mut socket).await[0]["data"]["status"], "here");
    let drop = json!({"type": "unsubscribe_events", "payload": {"topic": "device_d1"}});
    assert_eq!(socket.ask(&drop, "events_unsubscribed").await["topics"][0]["accepted"], true);
    harness.ingest(&status, "").await;
    assert_eq!(told(&mut socket).await, Vec::<Value>::new());
}

#[tokio::test]
async fn dashboards_are_for_the_staff() {
    let harness = start(setup()).await;
    let staff = grant("t1", "sam", "staff");
    for path in ["/ws/dashboard/metrics", "/ws/dashboard/alerts"] {
        for role in ["user", "reviewer"] {
            let refused = door(&harness, path, &grant("t1", "ada", role)).await.err();
            assert_eq!(refused, Some(("FORBIDDEN".into(), 4503)), "{path} {role}");
        }
        door(&harness, path, &grant("t1", "root", "admin")).await.expect("an administrator watches");
    }
    let mut metrics = door(&harness, "/ws/dashboard/metrics", &staff).await.expect("staff watches");
    let first = metrics.expect("server_metrics").await;
    assert!(first["data"]["connections"].is_u64() && first["data"]["messages_per_s"].is_u64(), "{first}");
    // From then on it is told what changed.
    harness.ingest(&readings(&[1]), "").await;
    harness.clock.advance(1_000);
    harness.app.tick().await;
    let events = told(&mut metrics).await;
    let stream =
        events.iter().find(|event| event["type"] == "stream_metrics" && event["data"]["kind"] == "reading");
    assert!(stream.is_some(), "{events:?}");
}

#[tokio::test]
async fn who_falls_back_and_comes_again_is_counted() {
    let harness = start(setup()).await;
    let counts = async || {
        let fallbacks = harness.counted("driftline_fallbacks_total").await;
        (fallbacks, harness.counted("driftline_reconnections_total").await)
    };
    let (fallbacks, reconnections) = counts().await;
    drop(harness.device("d1").await);
    until("the cut is noticed and the fallback counted", async || {
        harness.ingest(&readings(&[1]), "").await;
        counts().await.0 > fallbacks
    })
    .await;
    harness.device("d1").await;
    assert!(counts().await.1 > reconnections);
}

#[tokio::test]
async fn phones_hear_what_everybody_and_their_user_is_told() {
    let harness = start(setup()).await;
    let mut phones = Vec::new();
    for path in ["/ws/mobile/system?device_id=d1", "/ws/mobile/sync?device_id=d2"] {
        phones.push(harness.at(path).await);
    }
    let root = grant("t1", "root", "admin");
    for path in ["/ws/broadcast", "/ws/send-to-user/ada", "/ws/send-to-user/bob"] {
        let request = Request::post(path, &json!({"data": {"text": "hello"}}));
        assert_eq!(harness.ask_as(&root, request).await.status, 200);
    }
    for phone in &mut phones {
        let events = told(phone).await;
        // That the devices came is told now or later.
        let events = events.iter().filter(|event| event["type"] != "device_connected");
        let told: Vec<_> = events.map(|event| (&event["type"], &event["topic"])).collect();
        let wanted = [(&json!("system_message"), &json!("all")), (&json!("message"), &json!("user_ada"))];
        assert_eq!(told, wanted);
    }
}
