//! What is live: connections, who listens to what, who got which event, and notifications.

mod support;

use std::sync::{Arc, Mutex};

use driftline_engine::{Ear, Missed, StoreError};
use driftline_model::{TenantId, UserId};
use driftline_protocol::EventPlace;
use driftline_storage::MemoryStore;
use driftline_testkit::http::{Request, Response};
use driftline_testkit::socket::Socket;
use driftline_testkit::{Hook, World, Wrapped};
use driftline_transport::Grant;
use serde_json::{Value, json};
use support::sse::EventSource;
use support::{Harness, Setup, grant, sign, start, start_limited, start_on, token, until};

fn root() -> Grant {
    grant("t1", "root", "admin")
}

async fn listen(harness: &Harness, grant: &Grant, query: &str) -> (EventSource, String) {
    let target = format!("/api/events{query}");
    let mut source = EventSource::open(harness.address, &target, Some(&sign(grant)), None).await;
    let first = source.event().await;
    (source, first["connection_id"].as_str().expect("a name").to_owned())
}

/// Publishes as an administrator of `t1`; gives the event's id.
async fn publish(harness: &Harness, body: &Value) -> String {
    let response = harness.ask_as(&root(), Request::post("/api/v1/events", body)).await;
    assert_eq!(response.status, 202, "{}", response.text());
    response.json()["id"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn stats_count_what_is_connected_of_the_tenant() {
    let harness = start(Setup::default()).await;
    let ada = grant("t1", "ada", "user");
    let _one = listen(&harness, &ada, "?topics=notifications&client_id=desk").await;
    let _two = listen(&harness, &ada, "").await;
    let _three = listen(&harness, &grant("t1", "bob", "user"), "").await;
    let _elsewhere = listen(&harness, &grant("t2", "eve", "user"), "").await;
    let stats = harness.ask_as(&root(), Request::get("/ws/stats")).await.json();
    let counts = ["total_connections", "active_connections", "total_users"].map(|name| stats[name].clone());
    assert_eq!(counts, [json!(3), json!(3), json!(2)], "{stats}");
    let wanted = json!({"all": 3, "notifications": 1, "role_user": 3, "user_ada": 2, "user_bob": 1});
    assert_eq!(stats["subscriptions"], wanted);
    let average = stats["average_subscriptions_per_client"].as_f64().expect("a number");
    assert!((average - 10.0 / 3.0).abs() < 1e-9, "{average}");
    assert_eq!((&stats["queued_bytes"], &stats["doors"]), (&json!(0), &json!({"sse": 3})));
    let refused = harness.ask_as(&ada, Request::get("/ws/stats/")).await;
    assert_eq!((refused.status, refused.code().as_str()), (403, "FORBIDDEN"));

    harness.clock.set(World::BEGIN_MS + 300_000);
    let stats = harness.ask_as(&root(), Request::get("/ws/stats")).await.json();
    assert_eq!((&stats["total_connections"], &stats["active_connections"]), (&json!(3), &json!(0)));
}

async fn sessions(harness: &Harness, grant: &Grant, query: &str) -> Value {
    let response = harness.ask_as(grant, Request::get(&format!("/api/v1/sessions{query}"))).await;
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

#[tokio::test]
async fn everybody_sees_the_own_connections_and_administrators_all() {
    let harness = start(Setup::default()).await;
    let (ada, bob) = (grant("t1", "ada", "user"), grant("t1", "bob", "user"));
    let (_one, first) = listen(&harness, &ada, "?client_id=desk&device_id=d1").await;
    let _two = listen(&harness, &bob, "").await;
    let _elsewhere = listen(&harness, &grant("t2", "ada", "user"), "").await;
    let own = sessions(&harness, &ada, "?user=bob").await;
    assert_eq!(own["items"].as_array().map(Vec::len), Some(1), "{own}");
    let session = &own["items"][0];
    assert_eq!(session["connection_id"], json!(first));
    let shown = ["user_id", "client_id", "device_id", "door"].map(|name| session[name].clone());
    assert_eq!(shown, [json!("ada"), json!("desk"), json!("d1"), json!("sse")]);
    assert!(session["topics"].as_array().expect("topics").contains(&json!("user_ada")), "{session}");
    assert!(session["connected_at"].is_string() && session["peer"].is_string());

    let all = sessions(&harness, &root(), "").await;
    assert_eq!(all["items"].as_array().map(Vec::len), Some(2), "{all}");
    let of_bob = sessions(&harness, &root(), "?user=bob").await;
    assert_eq!(of_bob["items"][0]["user_id"], "bob");
    let mut users = Vec::new();
    let mut query = "?limit=1".to_owned();
    loop {
        let page = sessions(&harness, &root(), &query).await;
        users.push(page["items"][0]["user_id"].as_str().expect("a user").to_owned());
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("?limit=1&cursor={cursor}");
    }
    users.sort();
    assert_eq!(users, ["ada", "bob"], "pages hold each once");
}

#[tokio::test]
async fn an_administrator_ends_a_connection_of_the_own_tenant() {
    let harness = start(Setup::default()).await;
    let (mut source, id) = listen(&harness, &grant("t1", "ada", "user"), "").await;
    let path = format!("/api/v1/sessions/{id}");
    let end = |grant: Grant| {
        let (harness, request) = (&harness, Request::new("DELETE", &path));
        async move { harness.ask_as(&grant, request).await }
    };
    assert_eq!(end(grant("t1", "ada", "user")).await.status, 403);
    assert_eq!(end(grant("t2", "root", "admin")).await.status, 404);
    assert_eq!(end(root()).await.status, 204);
    let rest = source.rest().await;
    assert_eq!(rest.last().and_then(|block| block.comment.as_deref()), Some("disconnected"));
    until("the connection is gone", || async { end(root()).await.status == 404 }).await;
}

#[tokio::test]
async fn a_client_takes_its_topics_back_also_while_its_old_connection_seems_to_live() {
    let harness = start(Setup::default()).await;
    let path = |user: &str, client: &str| format!("/ws?client_id={client}&token={}", token("t1", user));
    let open = async |user: &str, client: &str| {
        let mut socket = Socket::connect(harness.address, &path(user, client)).await;
        let greeting = socket.expect("connection_established").await;
        (socket, greeting["connection_id"].as_str().expect("a name").to_owned())
    };
    let topics = async |user: &str, connection: &str| {
        let own = sessions(&harness, &grant("t1", user, "user"), "").await;
        let items = own["items"].as_array().expect("a list").iter();
        let mut found = items.filter(|item| item["connection_id"] == connection);
        let topics = found.next().expect("it is connected")["topics"].clone();
        topics.as_array().expect("topics").contains(&json!("notifications"))
    };
    let subscribe = |kind: &str| json!({"type": kind, "id": "s", "topics": ["notifications"]});
    let (mut half_dead, _) = open("ada", "phone").await;
    half_dead.ask(&subscribe("subscribe_events"), "events_subscribed").await;
    for (user, client) in [("ada", "tablet"), ("bob", "phone")] {
        let (_socket, id) = open(user, client).await;
        assert!(!topics(user, &id).await, "{user} {client}");
    }
    let (mut again, id) = open("ada", "phone").await;
    assert!(topics("ada", &id).await, "the other one still holds them");

    // What the old one had when it is found to be gone is not what the client wants now.
    again.ask(&subscribe("unsubscribe_events"), "events_unsubscribed").await;
    let connected = async || sessions(&harness, &root(), "?user=ada").await["items"].as_array().map(Vec::len);
    drop(again);
    until("the new one's end", async || connected().await == Some(1)).await;
    drop(half_dead);
    until("the old one's end", async || connected().await == Some(0)).await;
    let (mut third, id) = open("ada", "phone").await;
    assert!(!topics("ada", &id).await);

    third.ask(&subscribe("subscribe_events"), "events_subscribed").await;
    drop(third);
    until("its end", async || connected().await == Some(0)).await;
    let (_fourth, id) = open("ada", "phone").await;
    assert!(topics("ada", &id).await, "it comes within five minutes");
}

async fn presence(harness: &Harness, grant: &Grant, topic: &str) -> Response {
    harness.ask_as(grant, Request::get(&format!("/api/v1/topics/{topic}/presence"))).await
}

#[tokio::test]
async fn who_may_listen_to_a_topic_sees_who_does() {
    let harness = start(Setup::default()).await;
    let ada = grant("t1", "ada", "user");
    let _one = listen(&harness, &ada, "?topics=notifications").await;
    let _two = listen(&harness, &ada, "?topics=notifications").await;
    let _three = listen(&harness, &grant("t1", "bob", "user"), "?topics=notifications").await;
    let _elsewhere = listen(&harness, &grant("t2", "eve", "user"), "?topics=notifications").await;
    let users = json!([{"user_id": "ada", "connections": 2}, {"user_id": "bob", "connections": 1}]);
    let wanted = json!({"topic": "notifications", "users": users, "connections": 3});
    assert_eq!(presence(&harness, &ada, "notifications").await.json(), wanted);
    assert_eq!(harness.register("t1", "bob", &json!({"device_id": "d2"})).await.status, 201);
    let staff = grant("t1", "rita", "staff");
    let table = [
        (&ada, "user_bob", 403),
        (&ada, "security", 403),
        (&ada, "device_d2", 403),
        (&staff, "device_d2", 200),
        (&staff, "security", 200),
        (&ada, "user_ada", 200),
        (&staff, "nowhere", 404),
        (&ada, "a%20b", 404),
    ];
    for (grant, topic, status) in table {
        let response = presence(&harness, grant, topic).await;
        assert_eq!(response.status, status, "{topic}: {}", response.text());
    }
}

async fn delivery(harness: &Harness, grant: &Grant, event: &str, device: &str) -> Response {
    let path = format!("/api/v1/events/{event}/delivery?device={device}");
    harness.ask_as(grant, Request::get(&path)).await
}

#[tokio::test]
async fn why_a_device_did_not_get_an_event_is_told() {
    let harness = start(Setup::default()).await;
    let ada = grant("t1", "ada", "user");
    assert_eq!(harness.register("t1", "ada", &json!({"device_id": "d1"})).await.status, 201);
    let status = |event: String| {
        let (harness, ada) = (&harness, &ada);
        async move {
            harness.app.tick().await;
            let response = delivery(harness, ada, &event, "d1").await;
            assert_eq!(response.status, 200, "{}", response.text());
            response.json()["status"].as_str().expect("a status").to_owned()
        }
    };
    let before = publish(&harness, &json!({"topic": "all", "type": "a"})).await;
    assert_eq!(status(before.clone()).await, "never_connected");

    let path = format!("/ws?device_id=d1&token={}", token("t1", "ada"));
    let mut socket = Socket::connect(harness.address, &path).await;
    socket.expect("connection_established").await;
    let wanted = json!({"type": "subscribe_events", "id": "s", "topics": ["notifications", "security"],
                        "filter": {"types": ["b"]}});
    socket.ask(&wanted, "events_subscribed").await;
    let heard = publish(&harness, &json!({"topic": "all", "type": "a"})).await;
    let strange = publish(&harness, &json!({"topic": "user_bob", "type": "a"})).await;
    let secret = publish(&harness, &json!({"topic": "security", "type": "a"})).await;
    let filtered = publish(&harness, &json!({"topic": "notifications", "type": "a"})).await;
    assert_eq!(status(heard.clone()).await, "pending");
    assert_eq!(status(strange).await, "filtered");
    assert_eq!(status(secret).await, "forbidden");
    assert_eq!(status(filtered).await, "filtered");
    assert_eq!(socket.receive().await["id"], json!(heard));
    socket.send(&json!({"type": "ack_events", "last_event_id": heard})).await;
    socket.ask(&json!({"type": "ping"}), "pong").await;
    assert_eq!(status(heard.clone()).await, "delivered");
    let doc = delivery(&harness, &ada, &heard, "d1").await.json();
    assert_eq!((&doc["acknowledged"], &doc["topics"]), (&json!(heard), &json!([])));
    // Where an event went tells of others, so that only staff is told.
    let doc = delivery(&harness, &grant("t1", "root", "admin"), &heard, "d1").await.json();
    assert_eq!((&doc["status"], &doc["topics"]), (&json!("delivered"), &json!(["all"])));

    let later_ms = World::BEGIN_MS + 30 * 24 * 3_600_000;
    harness.app.engine().trim_events(later_ms, 0).await.expect("the store answers");
    assert_eq!(status(heard).await, "trimmed");
}

#[tokio::test]
async fn a_stream_that_was_cut_is_told_as_slow() {
    let harness = start_limited(|limits| {
        limits.write_ms = 60_000;
        limits.outbound_bytes = 1 << 10;
    })
    .await;
    assert_eq!(harness.register("t1", "ada", &json!({"device_id": "d1"})).await.status, 201);
    let (mut source, _) = listen(&harness, &grant("t1", "ada", "user"), "?device_id=d1").await;
    // It is larger than all that may wait, so that the stream ends and the client comes back for it.
    let large =
        publish(&harness, &json!({"topic": "all", "type": "a", "data": {"x": "x".repeat(2_000)}})).await;
    let rest = source.rest().await;
    assert_eq!(rest.last().and_then(|block| block.comment.as_deref()), Some("the stream was not read"));
    harness.app.tick().await;
    let doc = delivery(&harness, &grant("t1", "ada", "user"), &large, "d1").await.json();
    assert_eq!(doc["status"], "slow", "{doc}");
}

#[tokio::test]
async fn deliveries_are_for_the_owner_and_the_staff() {
    let harness = start(Setup::default()).await;
    assert_eq!(harness.register("t1", "ada", &json!({"device_id": "d1"})).await.status, 201);
    let event = publish(&harness, &json!({"topic": "all", "type": "a"})).await;
    let table = [
        (grant("t1", "ada", "user"), &*event, "d1", 200),
        (grant("t1", "rita", "staff"), &event, "d1", 200),
        (grant("t1", "bob", "user"), &event, "d1", 404),
        (grant("t2", "ada", "user"), &event, "d1", 404),
        (grant("t1", "ada", "user"), &event, "d9", 404),
        (grant("t1", "ada", "user"), "9999", "d1", 404),
        (grant("t1", "ada", "user"), "00000000-1", "d1", 404),
        (grant("t1", "ada", "user"), "nonsense", "d1", 404),
        (grant("t1", "ada", "user"), &event, "", 422),
    ];
    for (grant, event, device, status) in table {
        let response = delivery(&harness, &grant, event, device).await;
        assert_eq!(response.status, status, "{} {event} {device}: {}", grant.sub, response.text());
    }
}

async fn notices(harness: &Harness, sub: &str, query: &str) -> Value {
    let response = harness.ask("t1", sub, Request::get(&format!("/api/v1/notifications{query}"))).await;
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

fn titles(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().expect("a list");
    items.iter().map(|item| item["title"].as_str().expect("a title")).collect()
}

#[tokio::test]
async fn notifications_are_read_by_each_user_alone() {
    let harness = start(Setup::default()).await;
    for (title, users) in
        [("one", None), ("two", Some(json!(["ada"]))), ("three", None), ("four", Some(json!(["bob"])))]
    {
        let mut body = json!({"type": "news", "title": title, "message": "m", "severity": "low"});
        if let Some(users) = users {
            body["user_ids"] = users;
        }
        let told = harness.ask_as(&root(), Request::post("/ws/notification", &body)).await;
        assert_eq!(told.status, 200, "{}", told.text());
    }
    let list = notices(&harness, "ada", "").await;
    assert_eq!(titles(&list), ["three", "two", "one"], "newest first");
    let id = list["items"][0]["id"].as_str().expect("an id").to_owned();
    let own = list["items"][1]["id"].as_str().expect("an id").to_owned();
    let read = |sub: &str, id: &str| {
        let request = Request::new("POST", &format!("/api/v1/notifications/{id}/read"));
        let (harness, sub) = (&harness, sub.to_owned());
        async move { harness.ask("t1", &sub, request).await }
    };
    for _ in 0..2 {
        let answer = read("ada", &id).await;
        assert_eq!((answer.status, &answer.json()["is_read"]), (200, &json!(true)));
    }
    assert_eq!(read("bob", &own).await.status, 404, "another user's");
    assert_eq!(read("ada", "nothing").await.status, 404);
    let elsewhere = Request::new("POST", &format!("/api/v1/notifications/{id}/read"));
    assert_eq!(harness.ask("t2", "ada", elsewhere).await.status, 404);

    assert_eq!(titles(&notices(&harness, "ada", "?unread=true").await), ["two", "one"]);
    assert_eq!(titles(&notices(&harness, "bob", "?unread=true").await), ["four", "three", "one"]);
    assert_eq!(notices(&harness, "ada", "").await["items"][0]["is_read"], true);
    let page = notices(&harness, "ada", "?limit=2").await;
    assert_eq!(titles(&page), ["three", "two"]);
    let cursor = page["next_cursor"].as_str().expect("more").to_owned();
    let page = notices(&harness, "ada", &format!("?limit=2&cursor={cursor}")).await;
    assert_eq!((titles(&page), &page["next_cursor"]), (vec!["one"], &Value::Null));
    for (query, status) in [("?unread=maybe", 422), ("?cursor=nonsense!", 410)] {
        let request = Request::get(&format!("/api/v1/notifications{query}"));
        assert_eq!(harness.ask("t1", "ada", request).await.status, status, "{query}");
    }
}

#[tokio::test]
async fn an_administrator_has_the_outbox_published() {
    let harness = start(Setup::default()).await;
    for request in [
        Request::new("POST", "/api/v1/outbox/drain"),
        Request::post("/api/v1/outbox/drain/", &json!({"batch": 5})),
    ] {
        let answer = harness.ask_as(&root(), request).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"processed": 0, "failed": 0})));
    }
    let refused = harness.ask("t1", "ada", Request::new("POST", "/api/v1/outbox/drain")).await;
    assert_eq!((refused.status, refused.code().as_str()), (403, "FORBIDDEN"));
}

/// Does something the next time that the database is asked.
#[derive(Clone, Default)]
struct Meanwhile(Arc<Mutex<Option<Deed>>>);

type Deed = Box<dyn FnOnce() + Send>;

impl Hook<MemoryStore> for Meanwhile {
    fn admit(&self) -> Result<(), StoreError> {
        let work = self.0.lock().expect("nobody panics").take();
        if let Some(work) = work {
            work();
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_page_has_the_topics_that_were_granted_while_it_was_read() {
    let meanwhile = Meanwhile::default();
    let harness = start_on(Setup::default(), |store| Wrapped::new(store, meanwhile.clone())).await;
    let request = Request::post("/api/v1/events", &json!({"topic": "notifications", "type": "a"}));
    assert_eq!(harness.ask_as(&root(), request).await.status, 202);
    let (tenant, user) = (TenantId::new("t1").expect("a name"), UserId::text("ada").expect("a name"));
    let engine = harness.app.engine();
    let identity = engine.identify(tenant, user, None, Vec::new(), &[]).await.expect("an identity");
    let listener = engine.listener(&identity, Ear::of(&identity), true);
    let granted = Arc::clone(&listener);
    *meanwhile.0.lock().expect("nobody panics") = Some(Box::new(move || granted.join("notifications")));
    let missed = Missed { topics: None, after: EventPlace { epoch: None, id: 0 }, begun: None, limit: None };
    let page = engine.missed(&identity, &listener, &missed).await.expect("a page");
    assert_eq!((page.heard.len(), page.through), (1, 1));
}
