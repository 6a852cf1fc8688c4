//! Publishing by requests: any event, the shortcuts, and what is monitored.

mod support;

use driftline_testkit::World;
use driftline_testkit::http::{Request, Response};
use serde_json::{Value, json};
use support::sse::EventSource;
use support::{Harness, Setup, grant, hear, sign, start};

async fn post_as(harness: &Harness, role: &str, path: &str, body: &Value) -> Response {
    harness.ask_as(&grant("t1", "root", role), Request::post(path, body)).await
}

/// Sends what must be accepted; gives the answer.
async fn post(harness: &Harness, path: &str, body: &Value) -> Value {
    let response = post_as(harness, "admin", path, body).await;
    assert!(matches!(response.status, 200 | 202), "{path}: {}", response.text());
    response.json()
}

/// Listens as a member of the staff of `t1` called `sub`.
async fn listen(harness: &Harness, sub: &str, topics: &str) -> EventSource {
    let token = sign(&grant("t1", sub, "staff"));
    let target = format!("/api/events?topics={topics}");
    let mut source = EventSource::open(harness.address, &target, Some(&token), None).await;
    assert_eq!(source.event().await["type"], "connection_established");
    source
}

#[tokio::test]
async fn those_who_may_publish_do() {
    let harness = start(Setup::default()).await;
    let body = json!({"topic": "all", "type": "told", "data": {"a": 1}});
    for (role, status) in [("publisher", 202), ("staff", 202), ("admin", 202), ("user", 403)] {
        let response = post_as(&harness, role, "/api/v1/events", &body).await;
        assert_eq!(response.status, status, "{role}: {}", response.text());
    }
    let nobody = Request::post("/api/v1/events", &body).send(harness.address).await;
    assert_eq!((nobody.status, nobody.code().as_str()), (401, "UNAUTHORIZED"));
    let unknown = json!({"topic": "nowhere", "type": "told"});
    let response = post_as(&harness, "admin", "/api/v1/events", &unknown).await;
    assert_eq!((response.status, response.code().as_str()), (404, "NOT_FOUND"));
}

#[tokio::test]
async fn events_go_to_topics_users_and_roles_once() {
    let harness = start(Setup::default()).await;
    let mut ada = listen(&harness, "ada", "notifications").await;
    let mut bob = listen(&harness, "bob", "").await;
    let table = [
        (json!({"topics": ["all", "notifications"]}), 2),
        (json!({"user_id": "ada"}), 1),
        (json!({"user_ids": ["ada", "bob", "carol"]}), 2),
        (json!({"role": "staff"}), 2),
        (json!({"group": "role_staff"}), 2),
        (json!({"topic": "all", "durable": false}), 2),
        (json!({"user_id": "carol"}), 0),
    ];
    for (n, (mut body, reached)) in table.into_iter().enumerate() {
        body["type"] = json!("told");
        body["data"] = json!({"n": n});
        let told = post(&harness, "/api/v1/events", &body).await;
        assert_eq!((&told["reached"], &told["nodes"]), (&json!(reached), &json!(1)), "{body}");
        assert_eq!(told.get("id").is_none(), body["durable"] == false, "{told}");
        if reached > 0 {
            assert_eq!(ada.event().await["data"]["n"], n);
        }
        if reached > 1 {
            assert_eq!(bob.event().await["data"]["n"], n);
        }
    }
}

#[tokio::test]
async fn another_tenant_hears_nothing() {
    let harness = start(Setup::default()).await;
    let token = sign(&grant("t2", "ada", "admin"));
    let mut elsewhere = EventSource::open(harness.address, "/api/events", Some(&token), None).await;
    elsewhere.event().await;
    for body in [json!({"topic": "all", "type": "told"}), json!({"user_id": "ada", "type": "told"})] {
        assert_eq!(post(&harness, "/api/v1/events", &body).await["reached"], 0);
    }
    let own = Request::post("/api/v1/events", &json!({"topic": "all", "type": "own"}));
    let told = harness.ask_as(&grant("t2", "root", "admin"), own).await.json();
    assert_eq!(told["reached"], 1);
    assert_eq!(elsewhere.event().await["type"], "own");
}

#[tokio::test]
async fn a_request_that_comes_again_publishes_once() {
    let harness = start(Setup::default()).await;
    let mut source = listen(&harness, "ada", "").await;
    let table = [
        ("/api/v1/events", json!({"topic": "all", "type": "told"}), 202),
        ("/ws/broadcast", json!({"data": {"a": 1}}), 200),
        (
            "/ws/notification",
            json!({"type": "n", "title": "t", "message": "m", "severity": "low",
                                    "user_ids": ["ada"]}),
            200,
        ),
        ("/ws/start-monitoring/d1", json!({}), 200),
    ];
    for (at, (path, body, status)) in table.into_iter().enumerate() {
        let send = |body: &Value| {
            let request = Request::post(path, body).header("idempotency-key", &format!("key-{at}"));
            let root = grant("t1", "root", "admin");
            let harness = &harness;
            async move { harness.ask_as(&root, request).await }
        };
        let first = send(&body).await;
        assert_eq!((first.status, first.header("idempotency-replayed")), (status, None), "{}", first.text());
        let again = send(&body).await;
        assert_eq!((again.status, again.header("idempotency-replayed")), (status, Some("true")), "{path}");
        assert_eq!(first.json()["id"], again.json()["id"], "{path}");
        let mut other = body.clone();
        other["data"] = json!({"other": true});
        other["message"] = json!("other");
        other["interval_s"] = json!(7);
        let reused = send(&other).await;
        assert_eq!((reused.status, reused.code().as_str()), (422, "IDEMPOTENCY_KEY_REUSED"), "{path}");
        let bad = Request::post(path, &body).header("idempotency-key", "b\u{e4}d");
        assert_eq!(harness.ask_as(&grant("t1", "root", "admin"), bad).await.status, 400, "{path}");
    }
    for kind in ["told", "system_message", "notification"] {
        assert_eq!(source.event().await["type"], kind, "each came once");
    }
}

#[tokio::test]
async fn duplicates_and_late_states_are_dropped() {
    let harness = start(Setup::default()).await;
    let body = json!({"topic": "all", "type": "told", "dedupe_key": "k"});
    let first = post(&harness, "/api/v1/events", &body).await;
    let second = post(&harness, "/api/v1/events", &body).await;
    assert_eq!((&first["duplicate"], &second["duplicate"]), (&json!(false), &json!(true)));
    assert_eq!(first["id"], second["id"]);
    let state = |version: u64| json!({"topic": "all", "type": "state", "key": "door", "version": version});
    post(&harness, "/api/v1/events", &state(2)).await;
    assert_eq!(post(&harness, "/api/v1/events", &state(1)).await["late"], true);
}

#[tokio::test]
async fn every_shortcut_tells_whom_it_should() {
    let harness = start(Setup::default()).await;
    let mut source = listen(&harness, "ada", "security,device_d1,metrics_d1,performance,notifications").await;
    let alert = json!({"device_id": "d1", "title": "t", "message": "m", "severity": "critical"});
    let notice = json!({"type": "news", "title": "t", "message": "m", "severity": "low"});
    let table = [
        ("broadcast", json!({"data": {"a": 1}}), "system_message", "all", json!({"a": 1})),
        ("broadcast", json!({"type": "x", "data": {}, "topic": "security"}), "x", "security", json!({})),
        ("send-to-user/ada", json!({"data": {"a": 1}}), "message", "user_ada", json!({"a": 1})),
        ("send-to-user/ada/", json!({"type": "y", "data": {}}), "y", "user_ada", json!({})),
        ("device-alert", alert.clone(), "security_alert", "security", alert),
        (
            "live-metrics",
            json!({"device_id": "d1", "metrics": {"cpu_usage": 0.5, "device_id": "d7"}}),
            "live_metrics",
            "metrics_d1",
            json!({"device_id": "d1", "cpu_usage": 0.5}),
        ),
        (
            "performance-data",
            json!({"device_id": "d1", "metrics": {"p95": 7}}),
            "performance_data",
            "performance",
            json!({"device_id": "d1", "metrics": {"p95": 7}}),
        ),
        (
            "device-action/d1",
            json!({"action": "restart", "status": "running", "progress": 40, "result": {"ok": true}}),
            "device_action",
            "device_d1",
            json!({"device_id": "d1", "action": "restart", "status": "running", "progress": 40,
                   "result": {"ok": true}}),
        ),
        ("stop-monitoring/d1", json!({}), "stop_monitoring", "device_d1", json!({"device_id": "d1"})),
    ];
    for (path, body, kind, topic, data) in table {
        let told = post(&harness, &format!("/ws/{path}"), &body).await;
        assert_eq!((&told["reached"], &told["nodes"]), (&json!(1), &json!(1)), "{path}: {told}");
        let event = source.event().await;
        assert_eq!((&event["type"], &event["topic"], &event["data"]), (&json!(kind), &json!(topic), &data));
        let durable = !matches!(kind, "live_metrics" | "performance_data");
        assert_eq!(event.get("id").is_some(), durable, "{event}");
        assert_eq!(event.get("id"), told.get("id"), "{event}");
    }
    let told = post(&harness, "/ws/notification", &notice).await;
    let event = source.event().await;
    assert_eq!((&event["topic"], &event["id"]), (&json!("notifications"), &told["id"]));
    let data = &event["data"];
    assert_eq!((&data["type"], &data["is_read"]), (&json!("news"), &json!(false)));
    assert!(data["id"].is_string() && data["created_at"].is_string(), "{data}");
    let named =
        json!({"type": "news", "title": "t", "message": "m", "severity": "low", "user_ids": ["ada", 7]});
    assert_eq!(post(&harness, "/ws/notification", &named).await["reached"], 1);
    let event = source.event().await;
    assert_eq!((&event["topic"], event["data"].get("user_ids")), (&json!("user_ada"), None));
}

#[tokio::test]
async fn bodies_that_are_wrong_are_told_where() {
    let harness = start(Setup::default()).await;
    let alert = |name: &str, value: Value| {
        let mut alert = json!({"device_id": "d1", "title": "t", "message": "m", "severity": "low"});
        alert[name] = value;
        alert
    };
    let notice = |name: &str, value: Value| {
        let mut notice = json!({"type": "n", "title": "t", "message": "m", "severity": "low"});
        notice[name] = value;
        notice
    };
    let action = |name: &str, value: Value| {
        let mut action = json!({"action": "a", "status": "s"});
        action[name] = value;
        action
    };
    let long = "x".repeat(70_000);
    let table = [
        ("/api/v1/events", json!({"topic": "all"}), "/type"),
        ("/api/v1/events", json!({"type": "x"}), "/topic"),
        ("/api/v1/events", json!({"type": "x", "topic": "a b"}), "/topic"),
        ("/api/v1/events", json!({"type": "error", "topic": "all"}), "/type"),
        ("/api/v1/events", json!({"type": "x", "topic": "all", "data": 7}), "/data"),
        ("/api/v1/events", json!({"type": "x", "topic": "all", "durable": 7}), "/durable"),
        ("/api/v1/events", json!({"type": "x", "topic": "all", "version": 7}), "/version"),
        ("/ws/broadcast", json!({}), "/data"),
        ("/ws/broadcast", json!({"data": []}), "/data"),
        ("/ws/broadcast", json!({"data": {}, "type": "ack"}), "/type"),
        ("/ws/broadcast", json!({"data": {}, "topic": ""}), "/topic"),
        ("/ws/send-to-user/ada", json!({"data": "x"}), "/data"),
        ("/ws/device-alert", alert("device_id", Value::Null), "/device_id"),
        ("/ws/device-alert", alert("device_id", json!("a b")), "/device_id"),
        ("/ws/device-alert", alert("title", Value::Null), "/title"),
        ("/ws/device-alert", alert("message", json!("")), "/message"),
        ("/ws/device-alert", alert("severity", json!("extreme")), "/severity"),
        ("/ws/live-metrics", json!({"metrics": {}}), "/device_id"),
        ("/ws/live-metrics", json!({"device_id": "d1"}), "/metrics"),
        ("/ws/live-metrics", json!({"device_id": "d1", "metrics": [1]}), "/metrics"),
        ("/ws/performance-data", json!({}), "/metrics"),
        ("/ws/notification", notice("type", Value::Null), "/type"),
        ("/ws/notification", notice("title", json!(7)), "/title"),
        ("/ws/notification", notice("message", Value::Null), "/message"),
        ("/ws/notification", notice("severity", json!("LOW")), "/severity"),
        ("/ws/notification", notice("user_ids", json!("ada")), "/user_ids"),
        ("/ws/notification", notice("user_ids", json!([])), "/user_ids"),
        ("/ws/notification", notice("user_ids", json!([{}])), "/user_ids/0"),
        ("/ws/device-action/d1", action("action", Value::Null), "/action"),
        ("/ws/device-action/d1", action("status", json!(7)), "/status"),
        ("/ws/device-action/d1", action("progress", json!(101)), "/progress"),
        ("/ws/start-monitoring/d1", json!({"interval_s": 0}), "/interval_s"),
        ("/ws/start-monitoring/d1", json!({"duration_s": "long"}), "/duration_s"),
        ("/ws/start-monitoring/d1", json!({"duration_s": 86_401}), "/duration_s"),
        ("/ws/start-monitoring/d1", json!({"metrics": "cpu"}), "/metrics"),
        ("/ws/broadcast", json!({"data": {"text": long}}), ""),
        ("/api/v1/outbox/drain", json!({"batch": 0}), "/batch"),
    ];
    for (path, body, pointer) in table {
        let response = post_as(&harness, "admin", path, &body).await;
        assert_eq!(
            (response.status, response.code().as_str()),
            (422, "VALIDATION_ERROR"),
            "{path} {pointer}"
        );
        assert_eq!(response.json()["errors"][0]["pointer"], pointer, "{path}: {}", response.text());
    }
    let broken = Request::new("POST", "/ws/broadcast").body("{").header("content-type", "application/json");
    let response = harness.ask_as(&grant("t1", "root", "admin"), broken).await;
    assert_eq!((response.status, response.code().as_str()), (400, "JSON_DECODE_ERROR"));
    let nameless = post_as(&harness, "admin", "/ws/device-action/a%20b", &action("result", json!(1))).await;
    assert_eq!((nameless.status, nameless.code().as_str()), (404, "NOT_FOUND"));
}

async fn monitoring(harness: &Harness, tenant: &str) -> Value {
    let request = Request::get("/ws/start-monitoring/d1");
    let response = harness.ask_as(&grant(tenant, "root", "staff"), request).await;
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

#[tokio::test]
async fn a_device_is_monitored_until_it_is_told_or_the_time_is_over() {
    let harness = start(Setup::default()).await;
    let nothing = json!({"active": false, "interval_s": null, "metrics": [], "until": null});
    assert_eq!(monitoring(&harness, "t1").await, nothing);
    let path = format!("/ws/mobile/system?device_id=d1&token={}", support::token("t1", "ada"));
    let mut device = driftline_testkit::socket::Socket::connect(harness.address, &path).await;
    device.expect("connection_established").await;

    let wanted = json!({"interval_s": 2, "metrics": ["cpu_usage"], "duration_s": 60});
    assert_eq!(post(&harness, "/ws/start-monitoring/d1", &wanted).await["reached"], 1);
    let event = hear(&mut device, "start_monitoring").await;
    let data = &event["data"];
    assert_eq!((&data["interval_s"], &data["metrics"]), (&json!(2), &json!(["cpu_usage"])));
    assert_eq!((&data["duration_s"], &data["device_id"]), (&json!(60), &json!("d1")));
    let doc = monitoring(&harness, "t1").await;
    assert_eq!(
        (&doc["active"], &doc["interval_s"], &doc["until"]),
        (&json!(true), &json!(2), &data["until"])
    );
    assert_eq!(monitoring(&harness, "t2").await, nothing, "another tenant's device of that name");

    assert_eq!(post(&harness, "/ws/stop-monitoring/d1", &json!({})).await["reached"], 1);
    hear(&mut device, "stop_monitoring").await;
    assert_eq!(monitoring(&harness, "t1").await, nothing);

    // What ends by itself ends once, and not before.
    post(&harness, "/ws/start-monitoring/d1", &wanted).await;
    hear(&mut device, "start_monitoring").await;
    harness.clock.set(World::BEGIN_MS + 59_000);
    harness.app.tick().await;
    assert_eq!(monitoring(&harness, "t1").await["active"], true);
    harness.clock.set(World::BEGIN_MS + 60_000);
    assert_eq!(monitoring(&harness, "t1").await, nothing);
    harness.app.tick().await;
    let event = hear(&mut device, "stop_monitoring").await;
    assert!(event["id"].is_string(), "{event}");
    harness.app.tick().await;
    post(&harness, "/ws/device-action/d1", &json!({"action": "last", "status": "done"})).await;
    assert_eq!(device.receive().await["type"], "device_action", "it was told once");
}

#[tokio::test]
async fn a_monitoring_that_begins_anew_outlives_the_first() {
    let harness = start(Setup::default()).await;
    post(&harness, "/ws/start-monitoring/d1", &json!({"duration_s": 10})).await;
    harness.clock.advance(5_000);
    post(&harness, "/ws/start-monitoring/d1", &json!({"duration_s": 60})).await;
    harness.clock.advance(30_000);
    harness.app.tick().await;
    assert_eq!(monitoring(&harness, "t1").await["active"], true);
}

#[tokio::test]
async fn another_node_ends_what_a_node_that_is_gone_began() {
    let harness = start(Setup::default()).await;
    let root = grant("t1", "root", "admin");
    let begun = json!({"topics": ["device_d1", "monitoring"], "type": "start_monitoring",
                       "data": {"device_id": "d1", "interval_s": 5, "metrics": [], "duration_s": 10,
                                "until": "2025-11-21T02:35:06.000Z"}});
    assert_eq!(harness.ask_as(&root, Request::post("/api/v1/events", &begun)).await.status, 202);
    let mut source = listen(&harness, "ada", "monitoring").await;
    harness.clock.advance(60_000);
    harness.app.tick().await;
    assert_eq!(source.event().await["type"], "stop_monitoring");
    assert_eq!(monitoring(&harness, "t1").await["active"], false);
}
