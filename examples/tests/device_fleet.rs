//! The story of `deployments/device-fleet.toml`: owners, staff and administrators of a fleet of devices.

mod support;

use driftline_testkit::http::Request;
use driftline_testkit::socket::{Incoming, Socket};
use serde_json::{Value, json};
use support::{Deployment, Person};

struct Cast {
    fleet: Deployment,
    ada: Person,
    ben: Person,
    sue: Person,
    root: Person,
}

fn cast(fleet: Deployment) -> Cast {
    Cast {
        ada: fleet.person("acme", "ada", "user", &[]),
        ben: fleet.person("acme", "ben", "user", &[]),
        sue: fleet.person("acme", "sue", "staff", &[]),
        root: fleet.person("acme", "root", "admin", &[]),
        fleet,
    }
}

const TOPICS: [&str; 7] =
    ["device_status", "device_d1", "metrics_d1", "notifications", "security", "performance", "analytics"];

impl Cast {
    async fn open(&self, person: &Person, client: &str) -> (Socket, Value) {
        let target = format!("/ws?client_id={client}&token={}", person.token());
        let mut socket = Socket::connect(self.fleet.address(), &target).await;
        let greeting = socket.expect("connection_established").await;
        (socket, greeting)
    }

    /// Asks for topics; gives those that were refused, with their codes.
    async fn subscribe(&self, socket: &mut Socket, topics: &[&str]) -> Vec<(String, String)> {
        let wanted = json!({"type": "subscribe_events", "id": "s", "topics": topics});
        let answer = socket.ask(&wanted, "events_subscribed").await;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let refused = answer["topics"].as_array().expect("a list").iter();
        let refused = refused.filter(|topic| topic["accepted"] != true);
        refused.map(|topic| (text(&topic["topic"]), text(&topic["code"]))).collect()
    }
}

#[tokio::test]
async fn owners_listen_to_their_devices_and_the_staff_to_all() {
    let cast = cast(Deployment::start("device-fleet.toml"));
    cast.fleet.register(&cast.root, "ada", "d1").await;
    let (mut sue, greeting) = cast.open(&cast.sue, "wall-1").await;
    assert_eq!((&greeting["client_id"], &greeting["heartbeat_interval_s"]), (&json!("wall-1"), &json!(30)));
    assert_eq!(cast.subscribe(&mut sue, &TOPICS).await, []);
    let (mut ada, _) = cast.open(&cast.ada, "phone").await;
    let forbidden = |topic: &str| (topic.to_owned(), "FORBIDDEN".to_owned());
    let closed = ["device_status", "security", "performance", "analytics"].map(forbidden);
    assert_eq!(cast.subscribe(&mut ada, &TOPICS).await, closed);
    let (mut ben, _) = cast.open(&cast.ben, "phone").await;
    let refused = cast.subscribe(&mut ben, &["device_d1", "metrics_d1", "notifications", "somewhere"]).await;
    let unknown = ("somewhere".to_owned(), "NOT_FOUND".to_owned());
    assert_eq!(refused, [forbidden("device_d1"), forbidden("metrics_d1"), unknown]);
    let mut nobody = Socket::connect(cast.fleet.address(), "/ws?client_id=x").await;
    assert_eq!(nobody.until_error().await, ("UNAUTHORIZED".into(), 4001));
}

/// The shortcuts: the path, the body, the type of the event and its topic.
fn shortcuts() -> Vec<(&'static str, Value, &'static str, &'static str)> {
    let note =
        json!({"type": "update", "title": "v2", "message": "is out", "severity": "low", "device_id": "d1"});
    let alert = json!({"device_id": "d1", "title": "root", "message": "rooted", "severity": "critical"});
    vec![
        ("/ws/broadcast", json!({"data": {"text": "hello"}}), "system_message", "all"),
        (
            "/ws/broadcast",
            json!({"type": "rollout", "topic": "analytics", "data": {"n": 1}}),
            "rollout",
            "analytics",
        ),
        ("/ws/send-to-user/sue", json!({"data": {"text": "you"}}), "message", "user_sue"),
        ("/ws/device-alert", alert, "security_alert", "security"),
        (
            "/ws/live-metrics",
            json!({"device_id": "d1", "metrics": {"cpu_usage": 0.5}}),
            "live_metrics",
            "metrics_d1",
        ),
        ("/ws/notification", note, "notification", "notifications"),
        ("/ws/performance-data", json!({"metrics": {"p95_ms": 12}}), "performance_data", "performance"),
        (
            "/ws/device-action/d1",
            json!({"action": "lock", "status": "started", "progress": 10}),
            "device_action",
            "device_d1",
        ),
        (
            "/ws/start-monitoring/d1",
            json!({"interval_s": 5, "metrics": ["cpu_usage"], "duration_s": 60}),
            "start_monitoring",
            "device_d1",
        ),
        ("/ws/stop-monitoring/d1", json!({}), "stop_monitoring", "device_d1"),
    ]
}

#[tokio::test]
async fn administrators_alone_broadcast_and_everybody_concerned_hears_it() {
    let cast = cast(Deployment::start("device-fleet.toml"));
    cast.fleet.register(&cast.root, "ada", "d1").await;
    let (mut sue, _) = cast.open(&cast.sue, "wall").await;
    assert_eq!(cast.subscribe(&mut sue, &TOPICS).await, []);
    for (path, body, kind, topic) in shortcuts() {
        for other in [&cast.ada, &cast.sue] {
            let refused = cast.fleet.ask(other, Request::post(path, &body)).await;
            assert_eq!((refused.status, &refused.json()["code"]), (403, &json!("FORBIDDEN")), "{path}");
        }
        let answer = cast.fleet.ask(&cast.root, Request::post(path, &body)).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let answer = answer.json();
        assert_eq!((&answer["reached"], &answer["nodes"]), (&json!(1), &json!(1)), "{path}: {answer}");
        let event = sue.expect(kind).await;
        assert_eq!(event["topic"], topic, "{event}");
        // What is kept has an id; live metrics and what is told once have none.
        assert_eq!(event.get("id"), answer.get("id").filter(|id| !id.is_null()), "{event} {answer}");
        if kind == "start_monitoring" {
            let read = Request::get("/ws/start-monitoring/d1");
            let monitored = cast.fleet.ask(&cast.sue, read).await.json();
            assert_eq!(
                (&monitored["active"], &monitored["interval_s"]),
                (&json!(true), &json!(5)),
                "{monitored}"
            );
        }
    }
    for (path, body) in [("/ws/device-alert", json!({"device_id": "d1"})), ("/ws/broadcast", json!({}))] {
        assert_eq!(cast.fleet.ask(&cast.root, Request::post(path, &body)).await.status, 422, "{path}");
    }
    // Several users by name, and one who is not there.
    let event = json!({"type": "message", "user_ids": ["sue", "nobody"], "data": {"text": "both"}});
    let answer = cast.fleet.ask(&cast.root, Request::post("/api/v1/events", &event)).await;
    assert_eq!((answer.status, &answer.json()["reached"]), (202, &json!(1)));
    assert_eq!(sue.expect("message").await["data"]["text"], "both");
}

#[tokio::test]
async fn a_notification_is_kept_for_each_user_until_it_is_read() {
    let cast = cast(Deployment::start("device-fleet.toml"));
    let note = json!({"type": "update", "title": "v2", "message": "is out", "severity": "high",
                      "user_ids": ["ada"], "id": "n-1"});
    let (mut ada, _) = cast.open(&cast.ada, "phone").await;
    assert_eq!(cast.fleet.ask(&cast.root, Request::post("/ws/notification", &note)).await.status, 200);
    let event = ada.expect("notification").await;
    assert_eq!(
        (&event["topic"], &event["data"]["id"], &event["data"]["is_read"]),
        (&json!("user_ada"), &json!("n-1"), &json!(false))
    );
    assert_eq!(cast.fleet.list(&cast.ada, "notifications?unread=true").await.len(), 1);
    assert_eq!(cast.fleet.list(&cast.ben, "notifications?unread=true").await.len(), 0);
    let read = Request::post("/api/v1/notifications/n-1/read", &json!({}));
    assert!(cast.fleet.ask(&cast.ada, read).await.status < 300);
    assert_eq!(cast.fleet.list(&cast.ada, "notifications?unread=true").await.len(), 0);
}

#[tokio::test]
async fn the_statistics_count_clients_and_subscriptions() {
    let cast = cast(Deployment::start("device-fleet.toml"));
    let (mut sue, _) = cast.open(&cast.sue, "wall").await;
    assert_eq!(cast.subscribe(&mut sue, &TOPICS).await, []);
    let (_ada, _) = cast.open(&cast.ada, "phone").await;
    assert_eq!(cast.fleet.ask(&cast.ada, Request::get("/ws/stats")).await.status, 403);
    let stats = cast.fleet.ask(&cast.sue, Request::get("/ws/stats")).await.json();
    assert_eq!(
        (&stats["total_connections"], &stats["active_connections"]),
        (&json!(2), &json!(2)),
        "{stats}"
    );
    assert_eq!(
        (&stats["total_users"], &stats["subscriptions"]["security"]),
        (&json!(2), &json!(1)),
        "{stats}"
    );
    assert!(
        stats["average_subscriptions_per_client"].as_f64().is_some_and(|average| average >= 3.5),
        "{stats}"
    );
}

/// The same client comes back with the same name: its subscriptions stand again, and it hears what it missed.
#[tokio::test]
async fn a_client_that_comes_back_has_its_subscriptions_and_what_it_missed() {
    let cast = cast(Deployment::start("device-fleet.toml"));
    let (mut sue, _) = cast.open(&cast.sue, "wall").await;
    assert_eq!(cast.subscribe(&mut sue, &["security"]).await, []);
    let alert = |title: &str| json!({"device_id": "d1", "title": title, "message": "m", "severity": "low"});
    let tell = async |title: &str| {
        let answer = cast.fleet.ask(&cast.root, Request::post("/ws/device-alert", &alert(title))).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    tell("first").await;
    let last = sue.expect("security_alert").await["id"].as_str().expect("an id").to_owned();
    drop(sue);
    tell("missed").await;
    let (mut sue, _) = cast.open(&cast.sue, &format!("wall&last_event_id={last}")).await;
    let missed = sue.expect("security_alert").await;
    assert_eq!(missed["data"]["title"], "missed");
    assert_eq!(sue.expect("replay_complete").await["complete"], true);
    tell("live").await;
    assert_eq!(sue.expect("security_alert").await["data"]["title"], "live");
}

/// Scaled: heartbeats every second, and idle after twelve instead of 300.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_beats_and_lets_go_of_the_silent() {
    let cast = cast(Deployment::start_with("device-fleet.toml", &[("heartbeat_s = 25", "heartbeat_s = 1")]));
    let (mut silent, greeting) = cast.open(&cast.ada, "silent").await;
    assert_eq!(greeting["heartbeat_interval_s"], 1);
    let (mut alive, _) = cast.open(&cast.ben, "alive").await;
    let mut beats = 0;
    let end = loop {
        match silent.read().await {
            Incoming::Text(text) if text.contains("\"type\":\"heartbeat\"") => {
                beats += 1;
                alive.send(&json!({"type": "ping", "timestamp": beats})).await;
                while alive.receive().await["type"] != "pong" {}
            }
            Incoming::Text(text) => assert!(text.contains("HEARTBEAT_TIMEOUT"), "{text}"),
            Incoming::Ping(_) => {}
            other => break other,
        }
    };
    assert!(matches!(end, Incoming::Close(4009, _)), "{end:?}");
    assert!(beats >= 3, "{beats} heartbeats");
    alive.send(&json!({"type": "ping", "timestamp": 7})).await;
    while alive.receive().await["type"] != "pong" {}
}
