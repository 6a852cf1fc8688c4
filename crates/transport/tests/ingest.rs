//! Telemetry at every door: who may bring it, what becomes of it, and that a resend changes nothing.

mod support;

use driftline_protocol::msgpack_of_json;
use driftline_testkit::World;
use driftline_testkit::http::Request;
use driftline_testkit::socket::{Frame, Handshake, Socket};
use serde_json::{Value, json};
use support::telemetry::{HASH, bare, readings, setup};
use support::{grant, hear, sign, start, token};

/// 100 readings of which three are bad.
fn hundred() -> Value {
    let mut values: Vec<i64> = (0..100).collect();
    (values[3], values[50], values[99]) = (-1, 101, 1000);
    readings(&values)
}

/// What became of [`hundred`].
fn three_bad(answer: &Value) {
    assert_eq!((&answer["accepted"], &answer["duplicates"]), (&json!(97), &json!(0)), "{answer}");
    let rejected: Vec<(&Value, &Value, &Value)> = answer["rejected"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| (&one["index"], &one["code"], &one["pointer"]))
        .collect();
    let (invalid, value) = (json!("invalid"), json!("/value"));
    let wanted = [json!(3), json!(50), json!(99)];
    assert_eq!(
        rejected,
        wanted.iter().map(|index| (index, &invalid, &value)).collect::<Vec<_>>(),
        "{answer}"
    );
}

fn keyed(message: &Value, key: &str) -> Value {
    let mut message = message.clone();
    message["idempotency_key"] = key.into();
    message
}

#[tokio::test]
async fn a_resend_over_any_door_changes_nothing() {
    let harness = start(setup()).await;
    harness.hashed().await;
    let mut sync = harness.at("/ws/mobile/sync?device_id=d1").await;
    let first = sync.ask(&keyed(&hundred(), "k-1"), "ack").await;
    assert_eq!(first["of"], "reading");
    three_bad(&first);
    assert_eq!(harness.stored("ada", "reading").await.len(), 97);

    // Over HTTP with the key in the body and beside it, by hash, and over the socket again: one request.
    let body = harness.ingest(&keyed(&hundred(), "k-1"), "").await;
    let header = harness.ingest(&hundred(), "k-1").await;
    for again in [body, header] {
        assert_eq!((again.status, again.header("idempotency-replayed")), (200, Some("true")));
        assert_eq!(again.json()["replayed"], true);
        assert_eq!(bare(again.json()), bare(first.clone()));
    }
    let mut hashed = harness.by_hash().await;
    for socket in [&mut hashed, &mut sync] {
        let again = socket.ask(&keyed(&hundred(), "k-1"), "ack").await;
        assert_eq!(again["replayed"], true);
        assert_eq!(bare(again), bare(first.clone()));
    }
    assert_eq!(harness.stored("ada", "reading").await.len(), 97);

    // The key stands for this request and no other.
    let other = harness.ingest(&readings(&[1]), "k-1").await;
    assert_eq!((other.status, other.code().as_str()), (422, "IDEMPOTENCY_KEY_REUSED"));
    let error = sync.ask(&keyed(&readings(&[1]), "k-1"), "error").await;
    assert_eq!(error["code"], "IDEMPOTENCY_KEY_REUSED");
    three_bad(&harness.ingest(&hundred(), "k-1").await.json());

    // Another tenant's key of the same name, and another device's, are others.
    let request = Request::post("/api/ingest?device_id=d1", &readings(&[1])).header("idempotency-key", "k-1");
    let foreign = harness.ask("t2", "ada", request).await;
    assert_eq!((foreign.status, &foreign.json()["accepted"]), (200, &json!(1)), "{}", foreign.text());
    let request = Request::post("/api/ingest?device_id=d2", &readings(&[2])).header("idempotency-key", "k-1");
    assert_eq!(harness.ask("t1", "ada", request).await.json()["accepted"], 1);
}

#[tokio::test]
async fn every_door_judges_alike() {
    let harness = start(setup()).await;
    harness.hashed().await;
    let mut sync = harness.at("/ws/mobile/sync?device_id=d1").await;
    let mut hashed = harness.by_hash().await;
    let table = [
        hundred(),
        json!({"type": "reading", "value": 7}),
        json!({"type": "reading", "payload": {"value": "much"}}),
        json!({"type": "reading", "payload": {"items": []}}),
        json!({"type": "reading", "payload": {"items": [7, null, {"value": 1, "id": 9}]}}),
        json!({"type": "place", "payload": {"logs": [{"timestamp": 1}, {"x": 2}]}}),
        json!({"type": "device_status", "payload": {"status": "busy", "battery": 7}}),
        json!({"type": "analytics_batch", "payload": {"from": World::BEGIN_MS, "to": World::BEGIN_MS + 1,
               "counters": {"taps": 1}}}),
    ];
    for message in table {
        let told = bare(sync.ask(&message, "ack").await);
        let over_http = harness.ingest(&message, "").await;
        assert_eq!(over_http.status, 200, "{}", over_http.text());
        let by_hash = hashed.ask(&message, "ack").await;
        for other in [over_http.json(), by_hash] {
            let (mut told, mut other) = (told.clone(), bare(other));
            // What has a name of its own was stored by the first.
            for answer in [&mut told, &mut other] {
                let known = answer["accepted"].as_u64().zip(answer["duplicates"].as_u64());
                answer["accepted"] = known.map(|(new, old)| new + old).into();
                answer["duplicates"] = 0.into();
            }
            assert_eq!(told, other, "{message}");
        }
    }
    let refused = [
        (json!({"type": "nonsense"}), 400, "UNKNOWN_MESSAGE_TYPE"),
        (
            json!({"type": "reading", "payload": {"items": vec![json!({"value": 1}); 101]}}),
            413,
            "BATCH_TOO_LARGE",
        ),
        (json!({"type": "analytics_batch", "payload": {}}), 422, "VALIDATION_ERROR"),
        (json!({"type": "device_status", "payload": {"battery": "full"}}), 422, "VALIDATION_ERROR"),
        (json!({"id": 7, "type": "reading"}), 422, "VALIDATION_ERROR"),
        (json!({"type": 7}), 422, "VALIDATION_ERROR"),
    ];
    for (message, status, code) in refused {
        let problem = harness.ingest(&message, "k-bad").await;
        assert_eq!((problem.status, problem.code().as_str()), (status, code), "{}", problem.text());
        for socket in [&mut sync, &mut hashed] {
            let error = socket.ask(&message, "error").await;
            assert_eq!(error["code"], code, "{error}");
            assert_eq!(error["details"]["errors"], problem.json()["errors"], "{error}");
        }
    }
    // What was refused as a whole did not use the key up.
    assert_eq!(harness.ingest(&readings(&[1]), "k-bad").await.json()["replayed"], false);
}

#[tokio::test]
async fn the_twins_of_two_encodings_are_one_request() {
    let harness = start(setup()).await;
    let message = keyed(&readings(&[1, 2]), "k-2");
    let mut socket = harness.at("/ws/mobile/sync?device_id=d1").await;
    socket.send_frame(&Frame::last(2, msgpack_of_json(&message.to_string()))).await;
    let first = socket.expect("ack").await;
    assert_eq!((&first["accepted"], &first["replayed"]), (&json!(2), &json!(false)));
    let request = Request::new("POST", "/api/v1/ingest?device_id=d1").body(message.to_string());
    let again = harness.ask("t1", "ada", request.header("content-type", "application/json")).await;
    assert_eq!(again.json()["replayed"], true, "{}", again.text());
    let request =
        Request::new("POST", "/api/v1/ingest/?device_id=d1").body(msgpack_of_json(&message.to_string()));
    let again = harness.ask("t1", "ada", request.header("content-type", "application/msgpack")).await;
    assert_eq!(again.json()["replayed"], true, "{}", again.text());
    assert_eq!(harness.stored("ada", "reading").await.len(), 2);
}

#[tokio::test]
async fn an_array_has_one_ack_over_all() {
    let harness = start(setup()).await;
    let body = json!([
        readings(&[1, 500]),
        keyed(&readings(&[2, -1]), "own"),
        {"type": "nonsense", "payload": {"value": 1}},
        {"type": "device_status", "payload": {"battery": "full"}},
        {"type": "device_status", "payload": {"battery": 5}},
        7,
    ]);
    let first = harness.ingest(&body, "k-3").await;
    assert_eq!(first.status, 200, "{}", first.text());
    let answer = first.json();
    assert_eq!((&answer["of"], &answer["accepted"]), (&json!("ingest"), &json!(3)), "{answer}");
    let rejected: Vec<String> = answer["rejected"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| format!("{} {} {}", one["index"], one["code"], one["pointer"]).replace('"', ""))
        .collect();
    let wanted =
        ["0 invalid /items/1/value", "1 invalid /items/1/value", "2 unknown_kind ", "3 invalid /battery"];
    assert_eq!(rejected[..4], wanted, "{answer}");
    assert!(rejected.len() == 5 && rejected[4].starts_with("5 invalid"), "{answer}");

    let again = harness.ingest(&body, "k-3").await;
    assert_eq!(
        (again.header("idempotency-replayed"), &again.json()["replayed"]),
        (Some("true"), &json!(true))
    );
    assert_eq!(bare(again.json()), bare(answer));
    assert_eq!(harness.stored("ada", "reading").await.len(), 2);
    // The message with a key of its own is known under it, wherever it comes from.
    let alone = harness.ingest(&keyed(&readings(&[2, -1]), "own"), "").await;
    assert_eq!(alone.json()["replayed"], true, "{}", alone.text());
    let other = harness.ingest(&json!([readings(&[9])]), "k-3").await;
    assert_eq!((other.status, other.code().as_str()), (422, "IDEMPOTENCY_KEY_REUSED"));
    assert_eq!(harness.ingest(&json!([]), "").await.json()["accepted"], 0);
}

#[tokio::test]
async fn without_a_key_two_equal_samples_are_two_and_the_answer_says_so() {
    let harness = start(setup()).await;
    for count in [1, 2] {
        let answer = harness.ingest(&readings(&[5]), "").await.json();
        assert_eq!((&answer["accepted"], &answer["resend_recognised"]), (&json!(1), &json!(false)));
        assert_eq!(harness.stored("ada", "reading").await.len(), count);
    }
    let place = json!({"type": "place", "payload": {"timestamp": 7, "x": 1}});
    for (accepted, duplicates) in [(1, 0), (0, 1)] {
        let answer = harness.ingest(&place, "").await.json();
        assert_eq!(
            (&answer["accepted"], &answer["duplicates"]),
            (&json!(accepted), &json!(duplicates)),
            "{answer}"
        );
        assert!(answer.get("resend_recognised").is_none());
    }
}

#[tokio::test]
async fn an_unknown_hash_is_refused_before_the_upgrade() {
    let harness = start(setup()).await;
    harness.hashed().await;
    for path in ["/ws/ingest/another-hash-of-enough-characters", "/ws/ingest/x", "/ws/ingest/%20/"] {
        let refused = Handshake::new(path).send(harness.address).await.expect_err("no upgrade");
        assert_eq!((refused.status, refused.code().as_str()), (403, "UNAUTHORIZED"), "{path}");
    }
    let over_http = |hash: &str| {
        let body = json!({"type": "reading", "value": 1, "child_hash": hash});
        let inner = Request::post("/api/ingest/", &body);
        let header = Request::post("/api/v1/ingest", &json!({"type": "reading", "value": 1}));
        [inner, header.header("x-device-hash", hash)]
    };
    for request in over_http("another-hash-of-enough-characters") {
        let refused = request.send(harness.address).await;
        assert_eq!((refused.status, refused.code().as_str()), (403, "UNAUTHORIZED"), "{}", refused.text());
    }
    for request in over_http(HASH) {
        assert_eq!(request.send(harness.address).await.json()["accepted"], 1);
    }
    let nobody = Request::post("/api/ingest", &readings(&[1])).send(harness.address).await;
    assert_eq!((nobody.status, nobody.code().as_str()), (401, "UNAUTHORIZED"));

    // A device that is disabled is refused at every door.
    let root = grant("t1", "root", "admin");
    let patch = Request::new("PATCH", "/api/v1/devices/d1").json(&json!({"enabled": false}));
    assert_eq!(harness.ask_as(&root, patch).await.status, 200);
    let refused = Handshake::new(&format!("/ws/ingest/{HASH}")).send(harness.address).await;
    assert_eq!(refused.expect_err("no upgrade").status, 403);
    for request in over_http(HASH) {
        assert_eq!(request.send(harness.address).await.status, 403);
    }
    assert_eq!(harness.ingest(&readings(&[1]), "").await.code(), "FORBIDDEN");
    let sync = harness.ask("t1", "ada", Request::post("/api/v1/sync?device_id=d1", &json!({}))).await;
    assert_eq!((sync.status, sync.code().as_str()), (403, "FORBIDDEN"));
    for route in ["sync", "system"] {
        let path = format!("/ws/mobile/{route}?device_id=d1&token={}", token("t1", "ada"));
        let mut socket = Socket::connect(harness.address, &path).await;
        assert_eq!(socket.until_error().await, ("FORBIDDEN".into(), 4503), "{route}");
    }
}

#[tokio::test]
async fn guessing_hashes_is_limited_by_address() {
    let mut setup = setup();
    setup.limits.failed_auth_rate = driftline_model::Rate { per_s: 1, burst: 2 };
    let harness = start(setup).await;
    harness.hashed().await;
    for status in [403, 403, 429, 429] {
        let refused = Handshake::new("/ws/ingest/a-guess-of-enough-characters").send(harness.address).await;
        assert_eq!(refused.expect_err("no upgrade").status, status);
    }
    let guess =
        Request::post("/api/ingest", &json!({"type": "reading", "device_hash": "another-guess-it-is"}));
    assert_eq!(guess.send(harness.address).await.status, 429);
    // Who knows a hash is let in, whoever else is behind its address.
    harness.by_hash().await;
}

#[tokio::test]
async fn the_first_message_says_who_it_is() {
    let harness = start(setup()).await;
    harness.hashed().await;
    let bound =
        sign(&driftline_transport::Grant { device_id: Some("d1".into()), ..grant("t1", "ada", "user") });
    let good = [
        json!({"type": "auth", "id": "a1", "token": bound}),
        json!({"type": "auth", "id": "a1", "payload": {"device_hash": HASH}}),
        json!({"type": "auth", "id": "a1", "data": {"child_hash": HASH}}),
    ];
    for message in good {
        let mut socket = Socket::connect(harness.address, "/ws/ingest-auth").await;
        // What was sent behind it is not lost.
        socket.send(&message).await;
        socket.send(&readings(&[1])).await;
        let greeting = socket.expect("connection_established").await;
        assert_eq!((&greeting["reply_to"], &greeting["device_id"]), (&json!("a1"), &json!("d1")));
        assert_eq!(socket.expect("ack").await["accepted"], 1);
        let error = socket.ask(&json!({"type": "start_sync", "payload": {}}), "error").await;
        assert_eq!(error["code"], "UNKNOWN_MESSAGE_TYPE");
    }
    let bad = [
        json!({"type": "auth", "token": "nonsense"}),
        json!({"type": "auth", "device_hash": "another-hash-of-enough-characters"}),
        json!({"type": "auth"}),
        json!({"type": "ping"}),
        readings(&[1]),
        json!([]),
    ];
    for message in bad {
        let mut socket = Socket::connect(harness.address, "/ws/ingest-auth/").await;
        socket.send(&message).await;
        assert_eq!(socket.until_error().await, ("UNAUTHORIZED".into(), 4001), "{message}");
    }
    let mut nowhere = Socket::connect(harness.address, "/ws/ingest-auth").await;
    nowhere.send(&json!({"type": "auth", "token": token("t1", "ada")})).await;
    assert_eq!(nowhere.until_error().await, ("MISSING_DEVICE_ID".into(), 4502));
}

#[tokio::test]
async fn who_says_nothing_in_time_is_let_go() {
    let mut setup = setup();
    setup.limits.auth_ms = 50;
    let harness = start(setup).await;
    let mut silent = Socket::connect(harness.address, "/ws/ingest-auth").await;
    assert_eq!(silent.until_error().await, ("UNAUTHORIZED".into(), 4001));
}

#[tokio::test]
async fn the_places_of_a_user_are_counted_here_as_well() {
    let mut setup = setup();
    setup.limits.user_connections = 1;
    let harness = start(setup).await;
    harness.hashed().await;
    let _first = harness.by_hash().await;
    let mut second = Socket::connect(harness.address, "/ws/ingest-auth").await;
    second.send(&json!({"type": "auth", "device_hash": HASH})).await;
    assert_eq!(second.until_error().await, ("RATE_LIMITED".into(), 1008));
}

#[tokio::test]
async fn analytics_count_a_window_once() {
    let harness = start(setup()).await;
    let at = World::BEGIN_MS;
    let hour = at - at % 3_600_000;
    let batch = |taps: u64| {
        json!({"type": "analytics_batch", "payload": {"from": hour, "to": hour + 1000,
               "counters": {"taps": taps}, "histograms": {"load_ms": [[10, 3], 20]}}})
    };
    for replayed in [None, Some(true)] {
        let answer = harness.ingest(&batch(3), "").await.json();
        assert_eq!(
            (&answer["of"], answer.get("replayed").and_then(Value::as_bool)),
            (&json!("analytics_batch"), replayed)
        );
    }
    let other = harness.ingest(&batch(4), "").await;
    assert_eq!(other.code(), "IDEMPOTENCY_KEY_REUSED", "one window is counted once");
    let path = "/api/v1/analytics?granularity=";
    let staff = grant("t1", "sam", "staff");
    let hours = harness.ask_as(&staff, Request::get(&format!("{path}hour"))).await.json();
    let days = harness.ask_as(&staff, Request::get(&format!("{path}day"))).await.json();
    for list in [&hours, &days] {
        let items = list["items"].as_array().expect("a list");
        let named =
            |name: &str| items.iter().find(|item| item["series"] == name).unwrap_or_else(|| panic!("{list}"));
        assert_eq!(named("taps")["counter"], 3);
        let load = named("load_ms");
        assert_eq!(
            (&load["count"], &load["sum"], &load["max"]),
            (&json!(4), &json!(50.0), &json!(20.0)),
            "{load}"
        );
    }
    assert_eq!(harness.ask_as(&staff, Request::get(&format!("{path}week"))).await.status, 422);
    let user = harness.ask("t1", "ada", Request::get(path)).await;
    assert_eq!(user.code(), "FORBIDDEN");
    let elsewhere = harness.ask_as(&grant("t2", "sam", "staff"), Request::get("/api/v1/analytics")).await;
    assert_eq!(elsewhere.json()["items"], json!([]));
}

#[tokio::test]
async fn one_change_over_three_doors_is_one_effect() {
    let harness = start(setup()).await;
    let item = support::create(1, "note", "n-1", &json!({"text": "once"}));
    let mut socket = harness.syncing("d1").await;
    let first = socket.ask(&support::batch(1, std::slice::from_ref(&item)), "ack").await;
    let body = json!({"batch": [item], "data_types": ["note"]});
    let over_http = || Request::post("/api/v1/sync?device_id=d1", &body).header("idempotency-key", "s-1");
    let second = harness.ask("t1", "ada", over_http()).await;
    let third = harness.ask("t1", "ada", over_http()).await;
    let again = socket.ask(&support::batch(2, std::slice::from_ref(&item)), "ack").await;
    assert_eq!(
        (third.header("idempotency-replayed"), &third.json()["ack"]["replayed"]),
        (Some("true"), &json!(true))
    );
    let versions = [&first, &second.json()["ack"], &third.json()["ack"], &again]
        .map(|ack| ack["results"][0]["version"].clone());
    assert!(versions.iter().all(|version| version.is_u64() && *version == versions[0]), "{versions:?}");
    let other = Request::post("/api/v1/sync?device_id=d1", &json!({})).header("idempotency-key", "s-1");
    assert_eq!(harness.ask("t1", "ada", other).await.code(), "IDEMPOTENCY_KEY_REUSED");
    let broken = Request::new("POST", "/api/v1/sync?device_id=d1").body("{").header("idempotency-key", "s-1");
    assert_eq!(
        harness.ask("t1", "ada", broken).await.code(),
        "IDEMPOTENCY_KEY_REUSED",
        "the key comes first"
    );
    for bad in ["", "a b", &"k".repeat(256)] {
        let request = Request::post("/api/v1/sync?device_id=d1", &json!({})).header("idempotency-key", bad);
        let refused = harness.ask("t1", "ada", request).await;
        assert_eq!((refused.status, refused.code().as_str()), (400, "VALIDATION_ERROR"), "{bad:?}");
    }
}

#[tokio::test]
async fn samples_are_read_in_pages_by_who_may() {
    let harness = start(setup()).await;
    for device in ["d1", "d2"] {
        let request = Request::post(&format!("/api/ingest?device_id={device}"), &readings(&[1, 2, 3]));
        assert_eq!(harness.ask("t1", "ada", request).await.json()["accepted"], 3);
    }
    let read = |path: &str| Request::get(&format!("/api/v1/telemetry/{path}"));
    let (mut cursor, mut found) = (String::new(), Vec::new());
    loop {
        let page = harness.ask("t1", "ada", read(&format!("reading?limit=4{cursor}"))).await.json();
        found.extend(page["items"].as_array().expect("a list").iter().map(|item| item["id"].to_string()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let whole = found.len();
    found.sort();
    found.dedup();
    assert_eq!((whole, found.len()), (6, 6));
    let one = harness.ask("t1", "ada", read("reading?device=d2")).await.json();
    assert_eq!(one["items"].as_array().map(Vec::len), Some(3));
    assert_eq!((&one["items"][0]["device_id"], &one["items"][0]["owner"]), (&json!("d2"), &json!("ada")));
    assert_eq!(harness.stored("bob", "reading").await, Vec::<Value>::new(), "others see nothing of it");
    let staff = harness.ask_as(&grant("t1", "sam", "staff"), read("reading")).await.json();
    assert_eq!(staff["items"].as_array().map(Vec::len), Some(6));
    let later = harness.ask("t1", "ada", read(&format!("reading?from={}", u64::MAX >> 12))).await.json();
    assert_eq!(later["items"], json!([]));
    for kind in ["nothing", "note"] {
        assert_eq!(harness.ask("t1", "ada", read(kind)).await.status, 404, "{kind}");
    }
    assert_eq!(harness.ask("t1", "ada", read("secret")).await.status, 403);
    assert_eq!(harness.ask("t1", "ada", read("reading?cursor=x")).await.code(), "CURSOR_INVALID");
    let mut socket = harness.device("d3").await;
    socket.send(&readings(&[4])).await;
    hear(&mut socket, "ack").await;
}
