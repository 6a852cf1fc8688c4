//! The story of `deployments/field-assist.toml`: agents whose phones listen and notice, and the staff who watches while
//! it flows.

mod support;

use std::time::Duration;

use driftline_testkit::http::{Request, soon};
use driftline_testkit::socket::Socket;
use serde_json::{Value, json};
use support::ingest::{essence, rejected};
use support::{Deployment, Person};

/// Two agents, who watches them, and somebody of another tenant.
struct Cast {
    town: Deployment,
    ana: Person,
    ben: Person,
    sue: Person,
    stranger: Person,
}

fn cast() -> Cast {
    of_town(Deployment::start("field-assist.toml"))
}

fn of_town(town: Deployment) -> Cast {
    Cast {
        ana: town.person("acme", "ana", "agent", &[]),
        ben: town.person("acme", "ben", "agent", &[]),
        sue: town.person("acme", "sue", "staff", &[]),
        stranger: town.person("globex", "sue", "staff", &[]),
        town,
    }
}

const SYNC: &str = "6f9f2d0e-2f3a-4c57-9d0b-0d8a8f7a4c11";

impl Cast {
    /// Opens a route of the deployment with somebody's token.
    async fn open(&self, person: &Person, route: &str) -> Socket {
        let sign = if route.contains('?') { '&' } else { '?' };
        let target = format!("{route}{sign}token={}", person.token());
        Socket::connect(self.town.address(), &target).await
    }

    /// Opens a route that lets somebody in; gives the greeting too.
    async fn enter(&self, person: &Person, route: &str) -> (Socket, Value) {
        let mut socket = self.open(person, route).await;
        let greeting = socket.expect("connection_established").await;
        (socket, greeting)
    }

    /// Opens a route that does not let somebody in: the error, and the close code.
    async fn turned_away(&self, person: &Person, route: &str) -> (String, u16) {
        self.open(person, route).await.until_error().await
    }
}

fn voice(duration_ms: u64, confidence: f64) -> Value {
    json!({"duration_ms": duration_ms, "confidence": confidence, "device_id": "headset-7"})
}

fn behavior(score: f64) -> Value {
    json!({"event": "reached_for_tool", "score": score, "steps": 12})
}

/// Reads until a message of a type comes; live events and signs of life may come before it.
async fn next(socket: &mut Socket, kind: &str) -> Value {
    let reading = async {
        loop {
            let message = socket.receive().await;
            if message["type"] == kind {
                return message;
            }
        }
    };
    soon(kind, reading).await
}

/// Sends a message and reads its answer.
async fn ask(socket: &mut Socket, message: &Value, kind: &str) -> Value {
    socket.send(message).await;
    next(socket, kind).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_lives_its_whole_life() {
    let cast = cast();
    // Connect, authenticate by JWT, bind the device: the greeting says what the server made of it.
    let (mut phone, greeting) = cast.enter(&cast.ana, "/ws/mobile/sync?device_id=phone-ana").await;
    for (name, value) in [
        ("user_id", json!("ana")),
        ("role", json!("agent")),
        ("roles", json!(["agent"])),
        ("device_id", json!("phone-ana")),
        ("tenant", json!("acme")),
        ("heartbeat_interval_s", json!(25)),
        ("heartbeat_timeout_s", json!(50)),
    ] {
        assert_eq!(greeting[name], value, "{name}: {greeting}");
    }
    assert_eq!(greeting["features"]["max_batch_items"], 100, "{greeting}");
    assert!(greeting["connection_id"].is_string() && greeting["epoch"].is_string(), "{greeting}");
    let device = cast.town.read(&cast.ana, "devices/phone-ana").await;
    assert_eq!((&device["owner"], &device["enabled"]), (&json!("ana"), &json!(true)), "{device}");

    // subscribe_events: what may be heard, and what not.
    let wish = json!({"type": "subscribe_events", "id": "s", "payload":
        {"topics": ["device_phone-ana", "user_ana", "user_ben", "device_status", "nonsense"]}});
    let answer = ask(&mut phone, &wish, "events_subscribed").await;
    assert_eq!(answer["reply_to"], "s");
    let told: Vec<_> = answer["topics"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|topic| {
            (
                topic["topic"].as_str().unwrap_or_default(),
                topic["accepted"] == true,
                topic["code"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    let wanted = [
        ("device_phone-ana", true, ""),
        ("user_ana", true, ""),
        ("user_ben", false, "FORBIDDEN"),
        ("device_status", false, "FORBIDDEN"),
        ("nonsense", false, "NOT_FOUND"),
    ];
    assert_eq!(told, wanted);

    // start_sync.
    let start = json!({"type": "start_sync", "sync_id": SYNC, "payload":
        {"data_types": ["voice", "behavioral", "assignment"], "total_items": 4}});
    let started = ask(&mut phone, &start, "sync_session_started").await;
    let info = &started["session_info"];
    assert_eq!((&started["sync_id"], &info["sync_id"]), (&json!(SYNC), &json!(SYNC)), "{started}");
    assert_eq!((&info["max_batch_items"], &info["acked_batches"]), (&json!(100), &json!([])), "{started}");
    assert_eq!(info["policies"]["assignment"]["strategy"], "manual", "{started}");

    // sync_data: samples and a record in one batch.
    let batch = json!({"type": "sync_data", "id": "b1", "sync_id": SYNC, "payload": {"batch_seq": 1, "batch": [
        {"kind": "voice", "duration_ms": 2210, "confidence": 0.81, "device_id": "headset-7"},
        {"kind": "voice", "fields": voice(2210, 0.81)},
        {"kind": "behavioral", "fields": behavior(0.5)},
        {"op_id": "a-1", "n": 1, "kind": "assignment", "id": "w-1", "op": "create", "fields": {"title": "Check the pump"}}]}});
    let ack = ask(&mut phone, &batch, "ack").await;
    assert_eq!(
        (&ack["of"], &ack["synced"], &ack["failed"]),
        (&json!("sync_data"), &json!(4), &json!(0)),
        "{ack}"
    );

    // request_server_data: the record comes, samples are not pulled.
    let pull = json!({"type": "request_server_data", "id": "p", "sync_id": SYNC, "payload": {"limit": 10}});
    let data = ask(&mut phone, &pull, "server_data").await;
    let pulled: Vec<&Value> =
        data["changes"].as_array().expect("a list").iter().map(|change| &change["kind"]).collect();
    assert_eq!((pulled, &data["has_more"]), (vec![&json!("assignment")], &json!(false)), "{data}");

    // device_status is told on the device's topic, and kept.
    phone
        .send(&json!({"type": "device_status", "id": "d", "payload": {"status": "recording", "battery": 71}}))
        .await;
    let (mut acked, mut event) = (None, None);
    while acked.is_none() || event.is_none() {
        let message = phone.receive().await;
        match message["type"].as_str() {
            Some("ack") => acked = Some(message),
            Some("device_status") => event = Some(message),
            other => assert!(matches!(other, Some("device_connected")), "{message}"),
        }
    }
    let (acked, event) = (acked.expect("it came"), event.expect("it came"));
    assert_eq!((&acked["of"], &acked["reply_to"]), (&json!("device_status"), &json!("d")));
    let said = json!({"device_id": "phone-ana", "status": "recording", "battery": 71});
    assert_eq!((&event["data"], &event["topic"]), (&said, &json!("device_phone-ana")), "{event}");
    let device = until_device(&cast, "phone-ana", |device| device["status"] == "recording").await;
    assert_eq!(device["report"]["battery"], 71, "{device}");

    // heartbeat and ping.
    let beat = ask(
        &mut phone,
        &json!({"type": "heartbeat", "id": "h", "payload": {"queue_depth": 0}}),
        "heartbeat_ack",
    )
    .await;
    assert_eq!((&beat["reply_to"], &beat["behind"]), (&json!("h"), &json!(0)), "{beat}");
    assert!(beat["server_seq"].as_u64() >= Some(1), "{beat}");
    assert_eq!(ask(&mut phone, &json!({"type": "ping", "timestamp": 7}), "pong").await["timestamp"], 7);

    // unsubscribe_events, end_sync.
    let drop = json!({"type": "unsubscribe_events", "payload": {"topics": ["device_phone-ana"]}});
    assert_eq!(ask(&mut phone, &drop, "events_unsubscribed").await["topics"][0]["accepted"], true);
    let end = json!({"type": "end_sync", "sync_id": SYNC});
    let ended = ask(&mut phone, &end, "sync_session_ended").await;
    assert_eq!((&ended["totals"]["batches"], &ended["totals"]["synced"]), (&json!(1), &json!(4)), "{ended}");
    let late = ask(&mut phone, &batch, "error").await;
    assert_eq!(late["code"], "UNKNOWN_SYNC_ID", "{late}");
}

/// Waits until the registry tells something of a device, to which it is written behind.
async fn until_device(cast: &Cast, device: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let asking = async {
        loop {
            let row = cast.town.read(&cast.sue, &format!("devices/{device}")).await;
            if wanted(&row) {
                return row;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the row of the device", asking).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_say_who_it_is_does_not_stay() {
    let cast = cast();
    let none = cast.turned_away(&cast.ana, "/ws/mobile/sync").await;
    assert_eq!(none, ("MISSING_DEVICE_ID".to_owned(), 4502));
    for route in ["/ws/mobile/sync", "/ws/mobile/system"] {
        let target = format!("{route}?device_id=phone-ana&token=no.to.ken");
        let mut socket = Socket::connect(cast.town.address(), &target).await;
        assert_eq!(socket.until_error().await, ("UNAUTHORIZED".to_owned(), 4001), "{route}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samples_in_batches_count_once_each_however_often_they_are_sent() {
    let cast = cast();
    let (mut phone, _) = cast.enter(&cast.ana, "/ws/mobile/sync?device_id=phone-ana").await;
    phone.start(SYNC, &["voice"]).await;
    // Two equal samples are two; a resent batch is none.
    let batch = |seq: u64| {
        json!({"type": "sync_data", "sync_id": SYNC, "payload": {"batch_seq": seq, "batch": [
            {"kind": "voice", "fields": voice(100, 0.5)}, {"kind": "voice", "fields": voice(100, 0.5)}, {"kind": "voice", "fields": voice(5, 1.5)}]}})
    };
    let first = ask(&mut phone, &batch(1), "ack").await;
    assert_eq!((&first["synced"], &first["failed"]), (&json!(2), &json!(1)), "{first}");
    assert_eq!(
        (&first["results"][2]["code"], &first["results"][2]["errors"][0]["pointer"]),
        (&json!("invalid"), &json!("/confidence")),
        "{first}"
    );
    let again = ask(&mut phone, &batch(1), "ack").await;
    assert_eq!((&again["replayed"], &again["results"]), (&json!(true), &first["results"]), "{again}");
    assert_eq!(cast.town.samples(&cast.ana, "voice", 10).await.len(), 2);
    ask(&mut phone, &batch(2), "ack").await;
    assert_eq!(cast.town.samples(&cast.ana, "voice", 10).await.len(), 4);

    // The same as messages of their own, over both doors under one key.
    let message = json!({"type": "behavioral", "idempotency_key": "k-1", "payload": {"items": [behavior(0.5), behavior(0.5), {"event": "x", "score": "high"}, {"event": "x", "score": 1, "mood": "good"}]}});
    let told = ask(&mut phone, &message, "ack").await;
    assert_eq!((&told["accepted"], &told["replayed"]), (&json!(2), &json!(false)), "{told}");
    assert_eq!(rejected(&told), [(2, "/score".to_owned()), (3, "/mood".to_owned())].into(), "{told}");
    let request = Request::post("/api/ingest?device_id=phone-ana", &message);
    let posted = cast.town.ask(&cast.ana, request).await.json();
    assert_eq!(posted["replayed"], true, "{posted}");
    let mut same = essence(&posted);
    same["replayed"] = false.into();
    assert_eq!(same, essence(&told));
    let stored = cast.town.samples(&cast.ana, "behavioral", 10).await;
    assert_eq!(stored, [behavior(0.5), behavior(0.5)]);
    // Each reads the own ones; the staff reads all, another tenant's staff none.
    assert_eq!(cast.town.samples(&cast.ben, "behavioral", 10).await.len(), 0);
    assert_eq!(cast.town.samples(&cast.sue, "behavioral", 10).await.len(), 2);
    assert_eq!(cast.town.samples(&cast.stranger, "behavioral", 10).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_answers_wait_for_the_staff_and_resolve_conflict_decides() {
    let cast = cast();
    let (mut ana, _) = cast.enter(&cast.ana, "/ws/mobile/sync?device_id=phone-ana").await;
    let (mut ben, _) = cast.enter(&cast.ben, "/ws/mobile/sync?device_id=phone-ben").await;
    let (mut sue, _) = cast.enter(&cast.sue, "/ws/mobile/sync?device_id=desk").await;
    for (socket, sync_id) in [
        (&mut ana, SYNC),
        (&mut ben, "6f9f2d0e-2f3a-4c57-9d0b-0d8a8f7a4c12"),
        (&mut sue, "6f9f2d0e-2f3a-4c57-9d0b-0d8a8f7a4c13"),
    ] {
        socket.start(sync_id, &["assignment"]).await;
    }
    let send = |sync_id: &str, item: Value| json!({"type": "sync_data", "sync_id": sync_id, "payload": {"batch": [item]}});
    let made = send(
        SYNC,
        json!({"op_id": "a-1", "n": 1, "kind": "assignment", "id": "w-1", "op": "create", "fields": {"title": "Check the pump", "state": "new"}}),
    );
    let version = ask(&mut ana, &made, "ack").await["results"][0]["version"].clone();
    let patch = |op: &str, n: u64, state: &str| json!({"op_id": op, "n": n, "kind": "assignment", "id": "w-1", "op": "patch", "base_version": version, "fields": {"state": state}});
    ask(&mut ana, &send(SYNC, patch("a-2", 2, "done")), "ack").await;
    let ack =
        ask(&mut ben, &send("6f9f2d0e-2f3a-4c57-9d0b-0d8a8f7a4c12", patch("b-1", 1, "declined")), "ack")
            .await;
    assert_eq!(ack["results"][0]["code"], "conflict_pending", "{ack}");
    let conflict = next(&mut sue, "conflict").await;
    let decide = json!({"type": "resolve_conflict", "id": "r", "payload": {"conflict_id": conflict["conflict_id"], "resolution": "client"}});
    let denied = ask(&mut ana, &decide, "error").await;
    assert!(matches!(denied["code"].as_str(), Some("FORBIDDEN" | "CONFLICT_NOT_FOUND")), "{denied}");
    let decided = ask(&mut sue, &decide, "conflict_resolved").await;
    assert_eq!(
        (&decided["reply_to"], &decided["record"]["fields"]["state"]),
        (&json!("r"), &json!("declined")),
        "{decided}"
    );
    assert_eq!(next(&mut ben, "conflict_resolved").await["conflict_id"], conflict["conflict_id"]);
    assert_eq!(ask(&mut sue, &decide, "error").await["code"], "CONFLICT_ALREADY_RESOLVED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_silent_for_two_heartbeats_is_disconnected() {
    let cast = of_town(Deployment::start_with(
        "field-assist.toml",
        &[("heartbeat_s = 25", "heartbeat_s = 1\npresence_grace_ms = 200")],
    ));
    for route in ["/ws/mobile/sync?device_id=phone-ana", "/ws/mobile/system?device_id=phone-ana"] {
        let (mut silent, greeting) = cast.enter(&cast.ana, route).await;
        assert_eq!(
            (&greeting["heartbeat_interval_s"], &greeting["heartbeat_timeout_s"]),
            (&json!(1), &json!(2))
        );
        // Pongs of the library go on while the app is frozen: they are no sign of life here.
        let mut messages = Vec::new();
        let close = loop {
            match silent.read().await {
                driftline_testkit::socket::Incoming::Ping(payload) => {
                    silent
                        .send_frame(&driftline_testkit::socket::Frame::last(
                            driftline_testkit::socket::Frame::PONG,
                            payload,
                        ))
                        .await;
                }
                driftline_testkit::socket::Incoming::Text(text) => messages.push(text),
                driftline_testkit::socket::Incoming::Close(code, _) => break code,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(close, 4009, "{route}");
        let last: Value = serde_json::from_str(messages.last().expect("an error")).expect("JSON");
        assert_eq!(last["code"], "HEARTBEAT_TIMEOUT", "{last}");
    }
    let device = until_device(&cast, "phone-ana", |device| device["status"] == "offline").await;
    assert!(device["last_seen_at"].is_string(), "{device}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_system_route_takes_what_a_device_says_of_itself_and_nothing_else() {
    let cast = cast();
    let (mut phone, greeting) = cast.enter(&cast.ana, "/ws/mobile/system?device_id=phone-ana").await;
    assert_eq!(greeting["device_id"], "phone-ana");
    let ack = ask(&mut phone, &json!({"type": "device_status", "payload": {"status": "idle"}}), "ack").await;
    assert_eq!(ack["of"], "device_status");
    ask(&mut phone, &json!({"type": "heartbeat"}), "heartbeat_ack").await;
    ask(&mut phone, &json!({"type": "ping", "timestamp": 1}), "pong").await;
    for foreign in [
        json!({"type": "start_sync", "payload": {"data_types": []}}),
        json!({"type": "sync_data", "sync_id": SYNC, "payload": {"batch": []}}),
        json!({"type": "voice", "payload": voice(1, 0.5)}),
    ] {
        assert_eq!(ask(&mut phone, &foreign, "error").await["code"], "UNKNOWN_MESSAGE_TYPE", "{foreign}");
    }
    // Both connections of one device may be open at once.
    let (mut sync, _) = cast.enter(&cast.ana, "/ws/mobile/sync?device_id=phone-ana").await;
    ask(&mut sync, &json!({"type": "ping", "timestamp": 2}), "pong").await;
    ask(&mut phone, &json!({"type": "ping", "timestamp": 3}), "pong").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_devices_and_a_users_stream_are_its_owners_and_the_staffs() {
    let cast = cast();
    let (mut phone, _) = cast.enter(&cast.ana, "/ws/mobile/sync?device_id=phone-ana").await;
    let routes = ["/ws/mobile/device/phone-ana", "/ws/mobile/user/ana"];
    let mut watchers = Vec::new();
    for (person, route) in
        [&cast.ana, &cast.sue].iter().flat_map(|person| routes.map(|route| (*person, route)))
    {
        watchers.push(cast.enter(person, route).await.0);
    }
    // To another tenant's staff there is no such device; that there is such a user it cannot tell.
    for (person, route) in [(&cast.ben, routes[0]), (&cast.ben, routes[1]), (&cast.stranger, routes[0])] {
        let (code, close) = cast.turned_away(person, route).await;
        assert!(
            matches!(code.as_str(), "FORBIDDEN" | "NOT_FOUND") && close == 4503,
            "{route}: {code} {close}"
        );
    }
    let (mut foreign, _) = cast.enter(&cast.stranger, "/ws/mobile/user/ana").await;
    phone.send(&json!({"type": "device_status", "payload": {"status": "busy", "battery": 9}})).await;
    for watcher in &mut watchers {
        let event = next(watcher, "device_status").await;
        assert_eq!(
            (&event["data"]["status"], &event["data"]["device_id"]),
            (&json!("busy"), &json!("phone-ana")),
            "{event}"
        );
        // Whoever watches does nothing else.
        assert_eq!(
            ask(watcher, &json!({"type": "voice", "payload": voice(1, 0.5)}), "error").await["code"],
            "UNKNOWN_MESSAGE_TYPE"
        );
    }
    // Of another tenant's devices nothing is heard: the answer to a later ping comes first.
    assert_eq!(foreign.ask(&json!({"type": "ping", "timestamp": 4}), "pong").await["timestamp"], 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_staff_sees_streams_live_and_hears_of_what_is_unusual() {
    let cast = cast();
    let (mut metrics, _) = cast.enter(&cast.sue, "/ws/dashboard/metrics").await;
    let (mut alerts, _) = cast.enter(&cast.sue, "/ws/dashboard/alerts").await;
    let (mut phone, _) = cast.enter(&cast.ana, "/ws/mobile/sync?device_id=phone-ana").await;
    let spoken =
        json!({"type": "voice", "payload": {"items": [voice(900, 0.9), voice(1100, 0.7), voice(1, 7.0)]}});
    ask(&mut phone, &spoken, "ack").await;
    let told = loop {
        let event = next(&mut metrics, "stream_metrics").await;
        if event["data"]["kind"] == "voice" && event["data"]["errors"] == 1 {
            break event;
        }
    };
    let stream = &told["data"];
    assert!(
        stream["per_s"].as_f64() > Some(0.0) && stream["p95_ms"].is_number() && stream["backlog"].is_u64(),
        "{told}"
    );
    assert_eq!(stream["mean_confidence"], 0.8, "{told}");

    // Scores are as they always were, and then one is not.
    let usual: Vec<Value> = (0..60).map(|at| behavior(10.0 + f64::from(at % 5) / 10.0)).collect();
    ask(&mut phone, &json!({"type": "behavioral", "payload": {"items": usual}}), "ack").await;
    ask(&mut phone, &json!({"type": "behavioral", "payload": behavior(90.0)}), "ack").await;
    let alert = loop {
        let alert = next(&mut alerts, "anomaly_alert").await;
        if alert["data"]["metric"] == "behavioral.score" {
            break alert;
        }
    };
    let told = &alert["data"];
    assert_eq!(
        (&told["device_id"], told["value"].as_f64(), &told["severity"]),
        (&json!("phone-ana"), Some(90.0), &json!("critical")),
        "{alert}"
    );
    assert!((told["expected"].as_f64().expect("a number") - 10.2).abs() < 0.5, "{alert}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dashboards_are_for_the_staff_only() {
    let cast = cast();
    for route in ["/ws/dashboard/metrics", "/ws/dashboard/alerts"] {
        cast.enter(&cast.sue, route).await;
        let admin = cast.town.person("acme", "root", "admin", &[]);
        cast.enter(&admin, route).await;
        assert_eq!(cast.turned_away(&cast.ana, route).await, ("FORBIDDEN".to_owned(), 4503), "{route}");
        let mut nobody = Socket::connect(cast.town.address(), route).await;
        assert_eq!(nobody.until_error().await, ("UNAUTHORIZED".to_owned(), 4001), "{route}");
    }
    let analytics = Request::get("/api/v1/analytics");
    assert_eq!(cast.town.ask(&cast.ana, analytics.clone()).await.code(), "FORBIDDEN");
    assert_eq!(cast.town.ask(&cast.sue, analytics).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_more_than_100_items_is_refused_whole() {
    let cast = cast();
    let (mut phone, _) = cast.enter(&cast.ana, "/ws/mobile/sync?device_id=phone-ana").await;
    phone.start(SYNC, &["voice"]).await;
    let items = |count: usize| vec![json!({"kind": "voice", "fields": voice(5, 0.5)}); count];
    let samples = |count: usize| vec![voice(5, 0.5); count];
    let batch = |count| json!({"type": "sync_data", "sync_id": SYNC, "payload": {"batch": items(count)}});
    let message = |count| json!({"type": "voice", "payload": {"items": samples(count)}});
    for refused in [batch(101), message(101)] {
        assert_eq!(ask(&mut phone, &refused, "error").await["code"], "BATCH_TOO_LARGE");
    }
    let spread: Vec<Value> = (0..2).map(|_| message(51)).collect();
    for (route, body) in [
        ("/api/v1/sync", json!({"batch": items(101)})),
        ("/api/ingest", message(101)),
        ("/api/ingest", json!(vec![message(1); 101])),
        ("/api/ingest", json!(spread)),
    ] {
        let answer =
            cast.town.ask(&cast.ana, Request::post(&format!("{route}?device_id=phone-ana"), &body)).await;
        assert_eq!((answer.status, answer.code().as_str()), (413, "BATCH_TOO_LARGE"), "{route}");
    }
    assert_eq!(cast.town.samples(&cast.ana, "voice", 100).await.len(), 0, "nothing of them is stored");
    assert_eq!(ask(&mut phone, &batch(100), "ack").await["synced"], 100);
    assert_eq!(ask(&mut phone, &message(100), "ack").await["accepted"], 100);
    assert_eq!(cast.town.samples(&cast.ana, "voice", 100).await.len(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_is_refused_with_advice_to_back_off() {
    let cast = cast();
    let (mut phone, _) = cast.enter(&cast.ana, "/ws/mobile/sync?device_id=phone-ana").await;
    let ping = |n: u64| json!({"type": "ping", "id": format!("m{n}"), "timestamp": n});
    // So many that they cannot come as slowly as the limit lets them pass, and fewer than close the connection.
    for n in 0..190 {
        phone.send(&ping(n)).await;
    }
    let mut refusals = Vec::new();
    for _ in 0..190 {
        let answer = phone.receive().await;
        if answer["type"] == "error" {
            refusals.push(answer);
        } else {
            assert_eq!(answer["type"], "pong", "{answer}");
        }
    }
    let refusal = refusals.first().expect("the burst is more than 100");
    assert!(refusals.len() <= 90, "the first hundred pass");
    assert_eq!(
        (&refusal["code"], &refusal["retryable"]),
        (&json!("RATE_LIMITED"), &json!(true)),
        "{refusal}"
    );
    assert!(refusal["reply_to"].is_string(), "{refusal}");
    let wait_ms = refusal["retry_after_ms"].as_u64().expect("how long to wait");
    assert!((1..=1_000).contains(&wait_ms), "{refusal}");
    let advice =
        json!({"status": 429, "backoff": "exponential", "limit": "50/s, burst 100", "scope": "connection"});
    assert_eq!(refusal["details"], advice, "{refusal}");
    // Who does as it is told gets through, and the connection has survived.
    let mut delay_ms = wait_ms;
    let passed = loop {
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        phone.send(&ping(1_000)).await;
        let answer = phone.receive().await;
        if answer["type"] == "pong" {
            break answer;
        }
        delay_ms = 2 * delay_ms.max(answer["retry_after_ms"].as_u64().unwrap_or_default());
        assert!(delay_ms < 20_000, "{answer}");
    };
    assert_eq!(passed["timestamp"], 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_a_burst_is_refused_with_the_same_advice() {
    let limits = "heartbeat_s = 25\nuser_rate = { per_s = 1, burst = 5 }";
    let cast = of_town(Deployment::start_with("field-assist.toml", &[("heartbeat_s = 25", limits)]));
    let mut refusals = Vec::new();
    for n in 0..20 {
        let sample = json!({"type": "voice", "payload": voice(n, 0.5)});
        let request = Request::post("/api/ingest?device_id=phone-ana", &sample);
        let answer = cast.town.ask(&cast.ana, request).await;
        assert!(matches!(answer.status, 200 | 429), "{}", answer.text());
        if answer.status == 429 {
            refusals.push(answer);
        }
    }
    let refused = refusals.first().expect("twenty are more than five");
    let problem = refused.json();
    for (name, value) in [
        ("code", json!("RATE_LIMITED")),
        ("status", json!(429)),
        ("backoff", json!("exponential")),
        ("limit", json!("1/s, burst 5")),
        ("scope", json!("user")),
        ("retryable", json!(true)),
    ] {
        assert_eq!(problem[name], value, "{name}: {problem}");
    }
    assert!(refused.header("retry-after").is_some() && problem["retry_after_ms"].is_u64(), "{problem}");
    let stored = cast.town.samples(&cast.sue, "voice", 100).await;
    assert_eq!(stored.len(), 20 - refusals.len(), "what was refused is not stored, and the rest is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alive_and_ready_answer_without_a_token() {
    let cast = cast();
    let alive = Request::get("/alive").send(cast.town.address()).await;
    assert_eq!((alive.status, &alive.json()["status"]), (200, &json!("alive")), "{}", alive.text());
    for path in ["/ready", "/ready/"] {
        let ready = Request::get(path).send(cast.town.address()).await;
        assert_eq!(ready.status, 200, "{}", ready.text());
        assert_eq!(
            (&ready.json()["status"], &ready.json()["checks"]["store"]),
            (&json!("ready"), &json!("ok"))
        );
    }
}
