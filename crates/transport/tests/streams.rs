//! Streams of server-sent events: who may have them, what comes, and how one comes back.

mod support;

use driftline_model::TenantId;
use driftline_testkit::World;
use driftline_testkit::http::Request;
use driftline_transport::{Anonymous, Settings};
use serde_json::{Value, json};
use support::sse::EventSource;
use support::{Harness, Setup, grant, start, start_limited, token, until};

/// Publishes on a topic of `t1`; gives the answer.
async fn publish(harness: &Harness, topic: &str, n: u64) -> Value {
    let body = json!({"topic": topic, "type": "told", "data": {"n": n}});
    let request = Request::post("/api/v1/events", &body);
    let response = harness.ask_as(&grant("t1", "root", "admin"), request).await;
    assert_eq!(response.status, 202, "{}", response.text());
    response.json()
}

async fn open(harness: &Harness, query: &str, last: Option<&str>) -> EventSource {
    let token = token("t1", "ada");
    let source = EventSource::open(harness.address, &format!("/api/events{query}"), Some(&token), last).await;
    assert_eq!(source.status, 200);
    source
}

/// Opens a stream and takes the first event.
async fn opened(harness: &Harness, query: &str, last: Option<&str>) -> (EventSource, Value) {
    let mut source = open(harness, query, last).await;
    let first = source.event().await;
    assert_eq!(first["type"], "connection_established", "{first}");
    (source, first)
}

#[tokio::test]
async fn events_come_with_their_ids_in_the_words_of_the_socket() {
    let harness = start(Setup::default()).await;
    let (mut source, first) = opened(&harness, "?topics=notifications", None).await;
    assert_eq!(source.header("content-type"), Some("text/event-stream"));
    assert_eq!(source.header("cache-control"), Some("no-store"));
    assert_eq!(source.header("x-accel-buffering"), Some("no"));
    assert_eq!(source.header("content-encoding"), None);
    assert_eq!(first["recovered"], true);
    let topics = first["topics"].as_array().expect("topics");
    for joined in ["all", "user_ada", "role_user", "notifications"] {
        assert!(topics.contains(&json!(joined)), "{joined}: {first}");
    }
    let told = publish(&harness, "user_ada", 7).await;
    assert_eq!((&told["reached"], &told["nodes"], &told["duplicate"]), (&json!(1), &json!(1), &json!(false)));
    let event = source.event().await;
    assert_eq!(
        (&event["type"], &event["topic"], &event["data"]),
        (&json!("told"), &json!("user_ada"), &json!({"n": 7}))
    );
    assert_eq!(event["id"], told["id"]);
    assert_eq!(source.last_id.as_deref(), told["id"].as_str());
}

#[tokio::test]
async fn the_first_event_has_no_id_and_says_when_to_come_back() {
    let harness = start(Setup::default()).await;
    let mut source = open(&harness, "", None).await;
    let first = source.block().await.expect("a block");
    assert!(first.id.is_none() && first.data.is_some());
    assert!((500..1500).contains(&first.retry.expect("when to come back")));
    // Whoever is cut before the first event comes back to where it began.
    let place = source.block().await.expect("a block");
    assert_eq!(place.id.as_deref(), first.data.expect("data")["position"].as_str());
    assert!(place.data.is_none());
}

#[tokio::test]
async fn who_comes_back_gets_what_it_missed_once_and_in_order() {
    let harness = start(Setup::default()).await;
    let (mut source, _) = opened(&harness, "", None).await;
    publish(&harness, "all", 1).await;
    assert_eq!(source.event().await["data"]["n"], 1);
    let last = source.last_id.clone().expect("an id");
    drop(source);
    for n in 2..=50 {
        publish(&harness, if n % 2 == 0 { "all" } else { "user_ada" }, n).await;
        publish(&harness, "user_bob", n).await;
    }
    // A browser sends its header beside the address of before, which counts less.
    let mut readers = Vec::new();
    let query = format!("?last_event_id={last}");
    for (query, header) in [("?last_event_id=0", Some(last.as_str())), (&query, None)] {
        let (mut source, first) = opened(&harness, query, header).await;
        assert_eq!(first["recovered"], true, "{first}");
        for n in 2..=50 {
            assert_eq!(source.event().await["data"]["n"], n);
        }
        readers.push(source);
    }
    publish(&harness, "all", 51).await;
    for source in &mut readers {
        assert_eq!(source.event().await["data"]["n"], 51);
    }
}

#[tokio::test]
async fn everything_retained_comes_in_pages() {
    let harness = start(Setup::default()).await;
    let text = "x".repeat(30_000);
    for n in 1..=40 {
        let body = json!({"topic": "all", "type": "told", "data": {"n": n, "text": text}});
        let request = Request::post("/api/v1/events", &body);
        assert_eq!(harness.ask_as(&grant("t1", "root", "admin"), request).await.status, 202);
    }
    let (mut source, first) = opened(&harness, "?last_event_id=0", None).await;
    assert_eq!(first["recovered"], true);
    for n in 1..=40 {
        assert_eq!(source.event().await["data"]["n"], n);
    }
    publish(&harness, "all", 41).await;
    assert_eq!(source.event().await["data"]["n"], 41);
}

#[tokio::test]
async fn what_cannot_be_recovered_is_said_so() {
    let harness = start(Setup::default()).await;
    let told = publish(&harness, "all", 1).await;
    let last = told["id"].as_str().expect("an id").to_owned();
    let (epoch, _) = last.split_once('-').expect("an epoch");
    let ahead = format!("{epoch}-99");
    for (place, reason) in
        [("00000000-1", "epoch_changed"), ("nonsense", "epoch_changed"), (&*ahead, "ahead")]
    {
        let (mut source, first) = opened(&harness, "", Some(place)).await;
        assert_eq!((&first["recovered"], &first["reason"]), (&json!(false), &json!(reason)), "{place}");
        assert!(first["snapshot"].is_string(), "{first}");
        publish(&harness, "all", 2).await;
        assert_eq!(source.event().await["data"]["n"], 2, "{place}: it goes on from now");
    }
    for query in ["?last_event_id=nonsense"] {
        let target = format!("/api/events{query}");
        let refused = harness.ask("t1", "ada", Request::get(&target)).await;
        assert_eq!((refused.status, refused.code().as_str()), (422, "VALIDATION_ERROR"));
        assert_eq!(refused.json()["errors"][0]["pointer"], "/last_event_id");
    }
    let later_ms = World::BEGIN_MS + 30 * 24 * 3_600_000;
    assert!(harness.app.engine().trim_events(later_ms, 0).await.expect("the store answers") > 0);
    let (_, first) = opened(&harness, "?last_event_id=1", None).await;
    assert_eq!((&first["recovered"], &first["reason"]), (&json!(false), &json!("trimmed")), "{first}");
    let position = first["position"].as_str().expect("a position");
    let (_, first) = opened(&harness, "", Some(position)).await;
    assert_eq!(first["recovered"], true, "nothing was lost behind the end: {first}");
}

#[tokio::test]
async fn a_quiet_stream_recovers_however_much_others_were_told() {
    let harness = start(Setup::default()).await;
    publish(&harness, "all", 1).await;
    let (mut source, _) = opened(&harness, "?last_event_id=0", None).await;
    source.event().await;
    let last = source.last_id.clone();
    for n in 2..=20 {
        publish(&harness, "user_bob", n).await;
    }
    let (_, first) = opened(&harness, "", last.as_deref()).await;
    assert_eq!(first["recovered"], true);
}

#[tokio::test]
async fn a_resume_token_stands_for_a_place_of_its_user() {
    let harness = start(Setup::default()).await;
    let (_, first) = opened(&harness, "", None).await;
    let resume = first["resume_token"].as_str().expect("a token");
    publish(&harness, "all", 1).await;
    let (mut source, first) = opened(&harness, &format!("?resume_token={resume}"), None).await;
    assert_eq!(first["recovered"], true);
    assert_eq!(source.event().await["data"]["n"], 1);
    let target = format!("/api/events?resume_token={resume}");
    let bob = token("t1", "bob");
    let mut source = EventSource::open(harness.address, &target, Some(&bob), None).await;
    let first = source.event().await;
    assert_eq!((source.status, &first["recovered"]), (200, &json!(false)), "{first}");
}

#[tokio::test]
async fn topics_that_may_not_be_had_are_named() {
    let harness = start(Setup::default()).await;
    assert_eq!(harness.register("t1", "bob", &json!({"device_id": "d2"})).await.status, 201);
    let query = "?topics=user_bob,security,nowhere,device_d2,notifications,%20all";
    let (mut source, first) = opened(&harness, query, None).await;
    let refused = json!({"user_bob": "FORBIDDEN", "security": "FORBIDDEN", "nowhere": "NOT_FOUND",
                         "device_d2": "FORBIDDEN"});
    assert_eq!(first["refused"], refused);
    for topic in ["user_bob", "security", "device_d2"] {
        assert_eq!(publish(&harness, topic, 1).await["reached"], 0, "{topic}");
    }
    publish(&harness, "notifications", 2).await;
    assert_eq!(source.event().await["data"]["n"], 2);
}

#[tokio::test]
async fn a_silent_stream_says_that_it_is_alive() {
    let harness = start_limited(|limits| limits.heartbeat_s = 1).await;
    let (mut source, _) = opened(&harness, "", None).await;
    let mut comments = 0;
    while comments < 2 {
        let block = source.block().await.expect("it goes on");
        comments += u32::from(block.comment.is_some());
        assert!(block.data.is_none(), "{block:?}");
    }
    assert_eq!(publish(&harness, "all", 1).await["reached"], 1);
    assert_eq!(source.event().await["data"]["n"], 1);
}

#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let harness = start_limited(|limits| limits.heartbeat_s = 1).await;
    let (mut source, _) = opened(&harness, "", None).await;
    harness.clock.set(World::BEGIN_MS + 3_606_000);
    let rest = source.rest().await;
    let comment = rest.last().and_then(|block| block.comment.clone());
    assert_eq!(comment.as_deref(), Some("the token has expired"), "{rest:?}");
    let refused = harness.ask("t1", "ada", Request::get("/api/events")).await;
    assert_eq!((refused.status, refused.code().as_str()), (401, "UNAUTHORIZED"));
}

#[tokio::test]
async fn a_stream_ends_when_the_server_does() {
    let harness = start(Setup::default()).await;
    let (mut source, _) = opened(&harness, "", None).await;
    harness.app.drain();
    let rest = source.rest().await;
    let last = rest.last().expect("a last word");
    assert_eq!(last.comment.as_deref(), Some("the server shuts down"));
    assert!(last.retry.is_some());
    harness.serving.await.expect("it does not panic").expect("it ends well");
}

#[tokio::test]
async fn who_does_not_read_is_cut_and_holds_no_memory() {
    let harness = start_limited(|limits| {
        limits.write_ms = 200;
        limits.outbound_bytes = 64 << 10;
    })
    .await;
    let (source, _) = opened(&harness, "", None).await;
    let body = json!({"topic": "all", "type": "told", "data": {"text": "x".repeat(60_000)}});
    let admin = grant("t1", "root", "admin");
    until("the stream is cut", || async {
        let request = Request::post("/api/v1/events", &body);
        assert_eq!(harness.ask_as(&admin, request).await.status, 202);
        sessions(&harness).await == 0
    })
    .await;
    drop(source);
}

#[tokio::test]
async fn a_connection_ends_when_its_client_goes() {
    let harness = start_limited(|limits| limits.heartbeat_s = 1).await;
    let (source, _) = opened(&harness, "", None).await;
    assert_eq!(sessions(&harness).await, 1);
    drop(source);
    until("the stream is gone", || async { sessions(&harness).await == 0 }).await;
}

#[tokio::test]
async fn streams_count_as_connections_of_their_user() {
    let harness = start_limited(|limits| limits.user_connections = 1).await;
    let (source, _) = opened(&harness, "", None).await;
    let refused = harness.ask("t1", "ada", Request::get("/api/events")).await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "RATE_LIMITED"));
    drop(source);
}

#[tokio::test]
async fn a_node_that_is_full_takes_no_stream() {
    let harness = start_limited(|limits| limits.connections = 0).await;
    let refused = harness.ask("t1", "ada", Request::get("/api/events")).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "SERVER_DRAINING"));
}

#[tokio::test]
async fn pages_of_other_origins_get_no_stream() {
    let settings = Settings { origins: vec!["https://app.example".into()], ..Settings::default() };
    let harness = start(Setup { settings, ..Setup::default() }).await;
    let header = |origin: &str| {
        let bearer = ("authorization".to_owned(), format!("Bearer {}", token("t1", "ada")));
        [bearer, ("origin".to_owned(), origin.to_owned())]
    };
    let refused = EventSource::ask(harness.address, "/api/events", &header("https://evil.example")).await;
    assert_eq!(refused.status, 403);
    let source = EventSource::ask(harness.address, "/api/events", &header("https://app.example")).await;
    assert_eq!(source.status, 200);
    assert_eq!(source.header("access-control-allow-origin"), Some("https://app.example"));
}

/// Asks for a ticket.
async fn ticket(harness: &Harness, grant: &driftline_transport::Grant) -> String {
    let response = harness.ask_as(grant, Request::new("POST", "/api/v1/tickets")).await;
    assert_eq!((response.status, &response.json()["expires_in_s"]), (201, &json!(30)), "{}", response.text());
    response.json()["ticket"].as_str().expect("a ticket").to_owned()
}

#[tokio::test]
async fn a_ticket_lets_its_user_in_once() {
    let harness = start(Setup::default()).await;
    let ada = grant("t1", "ada", "staff");
    let target = format!("/api/events?topics=security&ticket={}", ticket(&harness, &ada).await);
    let mut source = EventSource::open(harness.address, &target, None, None).await;
    let first = source.event().await;
    assert!(first["topics"].as_array().expect("topics").contains(&json!("security")), "{first}");
    assert!(first["topics"].as_array().expect("topics").contains(&json!("user_ada")), "{first}");
    let again = Request::get(&target).send(harness.address).await;
    assert_eq!((again.status, again.code().as_str()), (401, "UNAUTHORIZED"));
    assert_eq!(again.header("www-authenticate"), Some("Bearer"));

    let late = format!("/api/events?ticket={}", ticket(&harness, &ada).await);
    harness.clock.set(World::BEGIN_MS + 30_000);
    let late = Request::get(&late).send(harness.address).await;
    assert_eq!((late.status, late.code().as_str()), (401, "UNAUTHORIZED"));
    let forged = Request::get("/api/events?ticket=abc").send(harness.address).await;
    assert_eq!((forged.status, forged.code().as_str()), (401, "UNAUTHORIZED"));
    let as_token = ticket(&harness, &ada).await;
    let refused = Request::get("/api/v1/changes").bearer(&as_token).send(harness.address).await;
    assert_eq!(refused.status, 401, "a ticket is no token");
}

#[tokio::test]
async fn whoever_brings_no_token_has_the_topics_that_are_open() {
    let closed = start(Setup::default()).await;
    let refused = Request::get("/api/events").send(closed.address).await;
    assert_eq!((refused.status, refused.code().as_str()), (401, "UNAUTHORIZED"));

    let tenant = TenantId::new("t1").expect("a tenant");
    let topics = vec!["notifications".into(), "device_d1".into()];
    let settings = Settings { anonymous: Some(Anonymous { tenant, topics }), ..Settings::default() };
    let harness = start(Setup { settings, ..Setup::default() }).await;
    let target = "/api/events?topics=notifications,all,device_d1,user_anonymous&device_id=d1";
    let mut source = EventSource::open(harness.address, target, None, None).await;
    let first = source.event().await;
    assert_eq!(first["topics"], json!(["notifications"]), "{first}");
    let refused = json!({"all": "FORBIDDEN", "device_d1": "FORBIDDEN", "user_anonymous": "FORBIDDEN"});
    assert_eq!(first["refused"], refused);
    publish(&harness, "all", 1).await;
    publish(&harness, "notifications", 2).await;
    assert_eq!(source.event().await["data"]["n"], 2);
    for path in ["/api/v1/changes", "/api/v1/notifications", "/api/v1/sessions"] {
        assert_eq!(Request::get(path).send(harness.address).await.status, 401, "{path}");
    }
    let bad = Request::get("/api/events?token=bad").send(harness.address).await;
    assert_eq!(bad.status, 401, "whoever brings a token brings a good one");
}

/// How many connections there are in `t1`.
async fn sessions(harness: &Harness) -> u64 {
    let stats = harness.ask_as(&grant("t1", "root", "admin"), Request::get("/ws/stats")).await;
    stats.json()["total_connections"].as_u64().expect("a number")
}
