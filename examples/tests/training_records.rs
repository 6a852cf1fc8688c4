//! The story of `deployments/training-records.toml`: cadets and staff who see grades, attendance and exam scores at once.

mod support;

use std::path::Path;

use driftline_testkit::http::Request;
use driftline_testkit::postgres::Cluster;
use driftline_testkit::server::{Server, TokenFor};
use driftline_testkit::socket::{Handshake, Socket};
use serde_json::{Value, json};
use support::programs::sql;
use support::{Deployment, Person};

/// Two cadets, who looks after them, the school's own program, and somebody who is not approved.
struct Cast {
    school: Deployment,
    ada: Person,
    ben: Person,
    staff: Person,
    admin: Person,
    stranger: Person,
}

const APPROVED: &str = "approved=true";

fn cast() -> Cast {
    let school = Deployment::start("training-records.toml");
    Cast {
        ada: school.person("school", "ada", "cadet", &[APPROVED, "cadet_id=1"]),
        ben: school.person("school", "ben", "cadet", &[APPROVED, "cadet_id=2"]),
        staff: school.person("school", "sue", "training_staff", &[APPROVED]),
        admin: school.person("school", "root", "admin", &[APPROVED]),
        stranger: school.person("school", "eve", "admin", &["approved=false"]),
        school,
    }
}

impl Cast {
    async fn open(&self, person: &Person, more: &str) -> (Socket, Value) {
        let target = format!("/ws/updates?token={}{more}", person.token());
        let mut socket = Socket::connect(self.school.address(), &target).await;
        let greeting = socket.expect("connection_established").await;
        (socket, greeting)
    }

    async fn publish(&self, event: Value) -> String {
        let answer = self.school.ask(&self.admin, Request::post("/api/v1/events", &event)).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.json()["id"].as_str().expect("the log keeps it").to_owned()
    }
}

fn bodies() -> [(&'static str, Value); 3] {
    [
        (
            "grade_update",
            json!({"attendance_present": true, "cadet_id": 1, "demerit_points": 0, "final_score": null,
                   "merit_points": 5, "midterm_score": 88.5, "points": 5, "prelim_score": 90,
                   "reason": "first aid", "type": "merit"}),
        ),
        (
            "attendance_update",
            json!({"attendance_present": true, "cadet_id": 1, "status": "present", "time_in": "07:58:00",
                   "time_out": null, "training_day_id": 12}),
        ),
        (
            "exam_score_update",
            json!({"cadet_id": 1, "changed_scores": {"final_score": 91}, "final_score": 91,
                   "midterm_score": 88.5, "prelim_score": 90}),
        ),
    ]
}

#[tokio::test]
async fn each_update_reaches_its_cadet_and_the_staff_and_nobody_else() {
    let cast = cast();
    let (mut ada, greeting) = cast.open(&cast.ada, "").await;
    assert_eq!((&greeting["user_id"], greeting["position"].is_string()), (&json!("ada"), true));
    let (mut ben, _) = cast.open(&cast.ben, "").await;
    let (mut staff, _) = cast.open(&cast.staff, "").await;
    let (mut admin, _) = cast.open(&cast.admin, "").await;
    for (kind, data) in bodies() {
        let id = cast.publish(json!({"type": kind, "data": data})).await;
        for (who, topic) in
            [(&mut ada, "cadet_1"), (&mut staff, "role_training_staff"), (&mut admin, "role_admin")]
        {
            let event = who.expect(kind).await;
            assert_eq!((&event["id"], &event["topic"]), (&json!(id), &json!(topic)), "{event}");
            assert_eq!((&event["data"], &event["cadet_id"]), (&data, &json!(1)), "{event}");
            assert!(event["timestamp"].is_string() && event["server_time"].is_string(), "{event}");
        }
    }
    // One user, by name.
    cast.publish(json!({"type": "note", "user_id": "ben", "data": {"text": "see me"}})).await;
    let first = ben.expect("note").await;
    assert_eq!((&first["topic"], &first["data"]["text"]), (&json!("user_ben"), &json!("see me")));
}

#[tokio::test]
async fn only_approved_users_enter_and_only_from_the_schools_pages() {
    let cast = cast();
    let address = cast.school.address();
    let unapproved = cast.school.person("school", "new", "cadet", &["cadet_id=3"]);
    for token in [cast.stranger.token(), unapproved.token(), "no.token.atall", ""] {
        let mut socket = Socket::connect(address, &format!("/ws/updates?token={token}")).await;
        assert_eq!(socket.until_error().await, ("UNAUTHORIZED".into(), 4001), "{token}");
    }
    let asked = Request::post("/api/v1/events", &json!({"type": "note", "topic": "all", "data": {}}));
    assert_eq!(cast.school.ask(&cast.stranger, asked).await.status, 401);
    assert_eq!(cast.school.ask(&unapproved, Request::get("/api/events")).await.status, 401);
    let target = format!("/ws/updates?token={}", cast.ada.token());
    let from = |origin| Handshake::new(&target).header("origin", Some(origin));
    let refused = from("https://evil.example").send(address).await.expect_err("another page");
    assert_eq!((refused.status, &refused.json()["code"]), (403, &json!("ORIGIN_REFUSED")));
    let (mut socket, _) = from("https://school.example.org").send(address).await.expect("the school's page");
    socket.expect("connection_established").await;
    // The other ways to bring a token.
    let bearer = Handshake::new("/ws/updates").bearer(cast.ada.token());
    let (mut socket, _) = bearer.send(address).await.expect("it enters");
    socket.expect("connection_established").await;
    let offered = format!("driftline.v1.json, bearer.{}", cast.ada.token());
    let bearer = Handshake::new("/ws/updates").header("sec-websocket-protocol", Some(&offered));
    let (mut socket, _) = bearer.send(address).await.expect("it enters");
    socket.expect("connection_established").await;
}

#[tokio::test]
async fn our_own_failure_while_connecting_closes_with_4000() {
    let database = Cluster::shared().empty_database();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deployments/training-records.toml");
    let file = file.to_str().expect("the path is text");
    let server = Server::on(&database.url(), &["--config", file]);
    let token =
        server.token(&TokenFor { sub: "ada", role: "cadet", claims: &[APPROVED], ..TokenFor::default() });
    drop(database);
    let mut socket = Socket::connect(server.address(), &format!("/ws/updates?token={token}")).await;
    assert_eq!(socket.until_error().await, ("STORE_UNAVAILABLE".into(), 4000));
}

#[tokio::test]
async fn a_ping_is_answered_and_what_was_missed_is_replayed() {
    let cast = cast();
    let (mut ada, greeting) = cast.open(&cast.ada, "").await;
    let pong = ada.ask(&json!({"type": "ping", "timestamp": 1_763_692_496_123_u64}), "pong").await;
    assert_eq!(pong["timestamp"], 1_763_692_496_123_u64);
    let mut ids = Vec::new();
    for (kind, data) in bodies() {
        ids.push(cast.publish(json!({"type": kind, "data": data})).await);
    }
    for (kind, _) in bodies() {
        ada.expect(kind).await;
    }
    // From the first one on, from the beginning, and from a place in the query.
    ada.send(&json!({"type": "replay_request", "id": "r", "last_event_id": ids[0]})).await;
    assert_eq!(ada.expect("attendance_update").await["id"], ids[1]);
    assert_eq!(ada.expect("exam_score_update").await["id"], ids[2]);
    let done = ada.expect("replay_complete").await;
    let told = (&done["from"], &done["to"], &done["count"], &done["complete"], &done["reply_to"]);
    assert_eq!(told, (&json!(ids[0]), &json!(ids[2]), &json!(2), &json!(true), &json!("r")), "{done}");
    ada.send(&json!({"type": "replay_request", "last_event_id": 0})).await;
    for (kind, _) in bodies() {
        ada.expect(kind).await;
    }
    assert_eq!(ada.expect("replay_complete").await["complete"], true);
    drop(ada);
    let position = greeting["position"].as_str().expect("a position");
    let token = greeting["resume_token"].as_str().expect("a token");
    for resume in [format!("&last_event_id={position}"), format!("&resume_token={token}")] {
        let (mut again, _) = cast.open(&cast.ada, &resume).await;
        for ((kind, _), id) in bodies().iter().zip(&ids) {
            assert_eq!(again.expect(kind).await["id"], **id);
        }
        assert_eq!(again.expect("replay_complete").await["count"], 3);
    }
    // Another cadet asks in vain for what is not his.
    let (mut ben, _) = cast.open(&cast.ben, &format!("&last_event_id={position}")).await;
    let done = ben.expect("replay_complete").await;
    assert_eq!((&done["count"], &done["complete"]), (&json!(0), &json!(true)), "{done}");
    let wanted = json!({"type": "subscribe_events", "topics": ["cadet_1", "nowhere"]});
    let answer = ben.ask(&wanted, "events_subscribed").await;
    let codes: Vec<&Value> =
        answer["topics"].as_array().expect("a list").iter().map(|topic| &topic["code"]).collect();
    assert_eq!(codes, [&json!("FORBIDDEN"), &json!("NOT_FOUND")], "{answer}");
}

#[tokio::test]
async fn records_and_samples_are_announced() {
    let cast = cast();
    let (mut ada, _) = cast.open(&cast.ada, "").await;
    let (mut staff, _) = cast.open(&cast.staff, "").await;
    let item = json!({"op_id": "r-1", "n": 1, "kind": "remark", "id": "r-1", "op": "create",
                      "fields": {"cadet_id": 1, "text": "shows up early"}});
    let push = Request::post("/api/v1/sync?device_id=tablet", &json!({"batch": [item]}));
    let answer = cast.school.ask(&cast.staff, push).await.json();
    assert_eq!(answer["ack"]["synced"], 1, "{answer}");
    for who in [&mut ada, &mut staff] {
        let event = who.expect("remark_update").await;
        let data = json!({"cadet_id": 1, "id": "r-1", "text": "shows up early"});
        assert_eq!((&event["data"], &event["cadet_id"]), (&data, &json!(1)), "{event}");
        assert!(event["id"].is_string(), "the topic is kept: {event}");
    }
    // A sample is its device's: the owner hears of it and the staff, whoever else listens to the topic does not.
    let (mut admin, _) = cast.open(&cast.admin, "").await;
    let phone = cast.school.register(&cast.admin, "ada", "phone-ada").await;
    let scan = json!({"type": "gate_scan", "data": {"cadet_id": 1, "gate": "north"}});
    assert_eq!(phone.post(&scan).await.json()["accepted"], 1);
    for who in [&mut ada, &mut admin] {
        let event = who.expect("gate_scan").await;
        let data = json!({"cadet_id": 1, "device_id": "phone-ada", "gate": "north"});
        assert_eq!(event["data"], data, "{event}");
    }
}

/// Long ago is made by setting back what the database says of times.
#[tokio::test]
async fn what_is_older_than_seven_days_is_cleaned_up() {
    let mut cast = cast();
    let insert = "INSERT INTO sync_events (tenant, event_type, cadet_id, payload) \
                  VALUES ('school', 'grade_update', '1', '{\"cadet_id\":1,\"points\":3}');";
    // Nobody is at the very beginning of the log, from where everything is asked for that there still is.
    cast.publish(json!({"type": "note", "topic": "all", "data": {}})).await;
    let (mut ada, greeting) = cast.open(&cast.ada, "").await;
    sql(cast.school.server(), insert);
    assert_eq!(ada.expect("grade_update").await["data"], json!({"cadet_id": 1, "points": 3}));
    drop(ada);
    let back_ms = 8 * 86_400_000_u64;
    let on_postgres = cast.school.server().store_url().is_some();
    cast.school.while_stopped(|school| {
        let rows = if on_postgres {
            "UPDATE sync_events SET processed_at = processed_at - interval '8 days';".to_owned()
        } else {
            format!("UPDATE sync_events SET processed_at = processed_at - {back_ms};")
        };
        sql(school.server(), &rows);
        sql(
            school.server(),
            &format!("UPDATE events SET kept_at = kept_at - {back_ms}, at = at - {back_ms};"),
        );
        assert_eq!(
            sql(school.server(), "SELECT count(*) FROM sync_events WHERE processed_at IS NOT NULL;"),
            "1"
        );
    });
    let cleaned = async {
        let left = || {
            sql(
                cast.school.server(),
                "SELECT (SELECT count(*) FROM sync_events) + (SELECT count(*) FROM events);",
            )
        };
        while left() != "0" {
            tokio::task::yield_now().await;
        }
    };
    driftline_testkit::http::soon("the clean-up", cleaned).await;
    // Who comes back from before is told that something is gone, and where to read what is so now.
    let place = greeting["position"].as_str().expect("a position");
    let (mut ada, _) = cast.open(&cast.ada, &format!("&last_event_id={place}")).await;
    let done = ada.expect("replay_complete").await;
    assert_eq!((&done["complete"], &done["reason"]), (&json!(false), &json!("trimmed")), "{done}");
}
