//! A database that goes away: everything that needs it is refused retryably, nothing is half done, sockets stay, and
//! all goes on when it is back.

mod support;

use std::pin::pin;
use std::time::Duration;

use driftline_engine::{Listeners as _, Store as _};
use driftline_model::TenantId;
use driftline_protocol::Inbound;
use driftline_storage::MemoryStore;
use driftline_testkit::http::{Request, Response};
use driftline_testkit::socket::Socket;
use driftline_testkit::{World, Wrapped};
use driftline_transport::{Access, Door, Grant, ROUTES, Route, RouteId};
use serde_json::{Value, json};
use support::leaving::Leaving;
use support::{Harness, SYNC_ID, Setup, create, grant, patch, sign, start_on, telemetry, told};
use tokio::time::timeout;

/// More calls than one request ever makes.
const CALLS_MAX: usize = 20;

/// A server whose database leaves when it is told to. It holds the record `r-1`, an open conflict about it, a
/// policy, and a notification.
struct Scene {
    harness: Harness<Wrapped<MemoryStore, Leaving>>,
    database: Leaving,
    conflict: String,
    notice: String,
}

impl Scene {
    async fn new() -> Self {
        let database = Leaving::default();
        let around = |store| Wrapped::new(store, database.clone());
        let manual = support::decided_by(&json!({"strategy": "manual"}));
        let kinds = telemetry::kinds().into_iter().chain([("ticket", manual)]).collect();
        let harness = start_on(Setup { kinds, ..Setup::default() }, around).await;
        let created = harness.push("seed", &[create(1, "ticket", "r-1", &json!({"x": 1}))]).await;
        let base = &created[0]["version"];
        harness.push("seed", &[patch(2, "ticket", "r-1", base, &json!({"x": 2}))]).await;
        let waits = harness.push("tablet", &[patch(1, "ticket", "r-1", base, &json!({"x": 3}))]).await;
        let conflict = waits[0]["conflict_id"].as_str().expect("it waits for a reviewer").to_owned();
        let policy = Request::new("PUT", "/api/v1/policies/note").json(&json!({"strategy": "manual"}));
        assert_eq!(harness.ask_as(&caller(), policy).await.status, 200);
        let news = json!({"type": "news", "title": "t", "message": "m", "severity": "low"});
        let told = harness.ask_as(&caller(), Request::post("/ws/notification", &news)).await;
        assert_eq!(told.status, 200, "{}", told.text());
        let notices = harness.ask_as(&caller(), Request::get("/api/v1/notifications")).await.json();
        let notice = notices["items"][0]["id"].as_str().expect("a notice").to_owned();
        Self { harness, database, conflict, notice }
    }

    /// Lets the database answer so many more calls. Policies are to be read again.
    async fn leaves_after(&self, calls: usize) {
        let tenant = TenantId::new("t1").expect("a name");
        let tenant = self.harness.app.engine().store().inner.tenant(&tenant).await.expect("a tenant");
        self.harness.hub.policies_changed(tenant);
        self.database.answers(calls);
    }

    async fn ask(&self, route: &Route) -> Response {
        // Only `note` has a policy that can be removed.
        let kind = match route.id {
            RouteId::RemovePolicy => "note",
            RouteId::Telemetry => "reading",
            _ => "ticket",
        };
        let path = route.path.replace("{kind}", kind).replace("{id}", "r-1").replace("{device_id}", "seed");
        let path = path.replace("{conflict_id}", &self.conflict).replace("{user_id}", "ada");
        let path = path.replace("{event_id}", "1").replace("{notification_id}", &self.notice);
        let path = path.replace("{topic}", "all").replace("{connection_id}", "none");
        let request = Request::new(route.method, &format!("{path}?device_id=phone&kind=ticket&device=seed"));
        let request = match route.id {
            RouteId::Sync => request.json(&json!({"batch": [create(1, "note", "new", &json!({}))]})),
            RouteId::Ingest => request.json(&telemetry::readings(&[1])),
            RouteId::AddDevice => request.json(&json!({"device_id": "new"})),
            RouteId::ChangeDevice => request.json(&json!({"enabled": true})),
            RouteId::ResolveConflict => request.json(&json!({"resolution": "client"})),
            RouteId::SetPolicy => request.json(&json!({"strategy": "server_wins"})),
            id => match told(id) {
                Some(body) => request.json(&body),
                None => request,
            },
        };
        self.harness.ask_as(&caller(), request).await
    }
}

/// Somebody who may do everything.
fn caller() -> Grant {
    grant("t1", "ada", "admin")
}

fn check_refused(response: &Response, case: &str) {
    let problem = response.json();
    assert_eq!((response.status, &problem["code"]), (503, &json!("STORE_UNAVAILABLE")), "{case}: {problem}");
    assert_eq!(response.header("content-type"), Some("application/problem+json"), "{case}");
    assert_eq!(response.header("retry-after"), Some("1"), "{case}");
    assert_eq!(
        (&problem["retryable"], &problem["retry_after_ms"]),
        (&json!(true), &json!(1_000)),
        "{case}: {problem}"
    );
    assert!(!response.text().contains("db-7"), "{case}: what the driver says is not for clients: {problem}");
}

#[tokio::test]
async fn every_route_is_refused_retryably_wherever_the_database_leaves_and_works_again() {
    let mut free = Vec::new();
    for route in ROUTES.iter().filter(|route| route.access != Access::Public && route.door == Door::Http) {
        let scene = Scene::new().await;
        let mut refused = 0;
        loop {
            assert!(refused < CALLS_MAX, "{:?} is never answered", route.id);
            scene.leaves_after(refused).await;
            let response = scene.ask(route).await;
            scene.database.stays();
            let gone = route.id == RouteId::Disconnect && response.status == 404;
            if gone || matches!(response.status, 200 | 201 | 202 | 204) {
                break check_answer(route, &response);
            }
            check_refused(&response, &format!("{:?} after {refused} calls", route.id));
            refused += 1;
        }
        if refused == 0 {
            free.push(route.id);
        }
    }
    assert_eq!(free, [RouteId::AddTicket]);
}

/// Nothing of the attempts before was done: an item is new, a policy is the first one.
fn check_answer(route: &Route, response: &Response) {
    match route.id {
        RouteId::Sync => {
            let ack = &response.json()["ack"];
            assert_eq!((&ack["synced"], &ack["results"][0]["code"]), (&json!(1), &json!("applied")), "{ack}");
            assert_eq!(ack["results"][0]["duplicate"], Value::Null, "{ack}");
        }
        RouteId::SetPolicy => assert_eq!(response.json()["version"], 1, "{}", response.text()),
        _ => {}
    }
}

/// A message of a type, and the type of its answer.
fn exchange(kind: &str, conflict: &str) -> (Value, &'static str) {
    let (payload, answer) = match kind {
        "start_sync" => (json!({"data_types": []}), "sync_session_started"),
        "sync_data" => (json!({"batch": [create(1, "note", "new", &json!({}))], "batch_seq": 1}), "ack"),
        "request_server_data" => (json!({}), "server_data"),
        "request_checksums" => (json!({"kind": "ticket", "scope": "tenant", "parts": 2}), "checksums"),
        "resolve_conflict" => (json!({"conflict_id": conflict, "resolution": "client"}), "conflict_resolved"),
        "end_sync" => (json!({}), "sync_session_ended"),
        "heartbeat" => (json!({}), "heartbeat_ack"),
        "ping" => (json!({}), "pong"),
        "telemetry" => return (json!({"type": "reading", "id": "m", "payload": {"value": 1}}), "ack"),
        "device_status" => (json!({"battery": 1}), "ack"),
        "analytics_batch" => (json!({"from": World::BEGIN_MS, "to": World::BEGIN_MS + 1}), "ack"),
        "subscribe_events" => (json!({"topic": "device_phone"}), "events_subscribed"),
        "unsubscribe_events" => (json!({"topic": "device_phone"}), "events_unsubscribed"),
        "replay_request" => (json!({"last_event_id": 0}), "replay_complete"),
        "publish" => (json!({"topic": "all", "event_type": "told"}), "ack"),
        other => panic!("no exchange for {other}"),
    };
    (json!({"type": kind, "id": "m", "sync_id": SYNC_ID, "payload": payload}), answer)
}

/// Reads the answer to an exchange; changes may be told before it. A replay waits until the log could be read that was
/// away before, which is tried again after a while.
async fn answer(scene: &Scene, socket: &mut Socket) -> Value {
    let mut answer = pin!(async {
        loop {
            let message = socket.receive().await;
            if message["reply_to"] == "m" {
                break message;
            }
        }
    });
    loop {
        match timeout(Duration::from_millis(500), &mut answer).await {
            Ok(message) => return message,
            Err(_) => scene.harness.clock.advance(1_000),
        }
    }
}

#[tokio::test]
async fn every_message_is_refused_retryably_and_the_socket_stays() {
    let scene = Scene::new().await;
    let mut socket = scene.harness.enter(&caller(), "phone").await;
    // That the phone is there is told now, and not between a question and its answer.
    scene.harness.app.tick().await;
    // `auth` is a message of another route, and `ack_events` is answered only when it is refused.
    for kind in Inbound::KINDS.into_iter().filter(|kind| !["auth", "ack_events"].contains(kind)) {
        let (message, wanted) = exchange(kind, &scene.conflict);
        let mut refused = 0;
        loop {
            assert!(refused < CALLS_MAX, "{kind} is never answered");
            scene.leaves_after(refused).await;
            socket.send(&message).await;
            let answer = answer(&scene, &mut socket).await;
            scene.database.stays();
            if answer["type"] == wanted {
                break;
            }
            let case = format!("{kind} after {refused} calls: {answer}");
            assert_eq!(
                (&answer["type"], &answer["code"]),
                (&json!("error"), &json!("STORE_UNAVAILABLE")),
                "{case}"
            );
            assert_eq!(
                (&answer["retryable"], &answer["retry_after_ms"]),
                (&json!(true), &json!(1_000)),
                "{case}"
            );
            assert!(!answer.to_string().contains("db-7"), "{case}");
            socket.ask(&json!({"type": "ping"}), "pong").await;
            refused += 1;
        }
        let needs = !["end_sync", "heartbeat", "ping", "unsubscribe_events"].contains(&kind);
        assert_eq!(refused > 0, needs, "{kind}");
    }
    scene.leaves_after(0).await;
    socket.send(&json!({"type": "ack_events", "id": "m", "last_event_id": 1})).await;
    let refused = answer(&scene, &mut socket).await;
    assert_eq!((&refused["code"], &refused["retryable"]), (&json!("STORE_UNAVAILABLE"), &json!(true)));
}

#[tokio::test]
async fn who_comes_while_the_database_is_away_is_asked_to_come_again() {
    let scene = Scene::new().await;
    let path = format!("/ws/mobile/sync?device_id=phone&token={}", sign(&caller()));
    for calls in 0..3 {
        scene.leaves_after(calls).await;
        let mut socket = Socket::connect(scene.harness.address, &path).await;
        let (messages, close) = socket.until_end().await;
        let case = format!("after {calls} calls: {messages:?}");
        assert_eq!((messages.len(), close), (1, 4000), "{case}");
        assert_eq!(
            (&messages[0]["code"], &messages[0]["retryable"]),
            (&json!("STORE_UNAVAILABLE"), &json!(true)),
            "{case}"
        );
    }
    // What was noticed of devices is written now and then as well.
    scene.leaves_after(8).await;
    Socket::connect(scene.harness.address, &path).await.expect("connection_established").await;
}

#[tokio::test]
async fn readiness_fails_while_the_database_is_away_and_liveness_does_not() {
    let scene = Scene::new().await;
    let mut open = scene.harness.enter(&caller(), "phone").await;
    let look = async |path| Request::get(path).send(scene.harness.address).await;
    assert_eq!(look("/ready").await.status, 200);
    scene.database.answers(0);
    scene.harness.clock.advance(1_000);
    let away = look("/ready").await;
    assert_eq!((away.status, away.json()["checks"]["store"].clone()), (503, json!("unavailable")));
    assert!(!away.text().contains("db-7"));
    assert_eq!((look("/alive").await.status, look("/metrics").await.status), (200, 200));
    open.ask(&json!({"type": "ping"}), "pong").await;

    scene.database.stays();
    scene.harness.clock.advance(1_000);
    assert_eq!(look("/ready").await.status, 200);
    open.start(SYNC_ID, &[]).await;
}
