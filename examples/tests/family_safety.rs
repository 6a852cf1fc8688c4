//! The story of `deployments/family-safety.toml`: a child's phone that knows nothing but its hash, a mother who reads
//! what it sent, and a network that breaks.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use driftline_client::{
    Courier, CourierMode, CourierState, CourierStatus, Endpoint, KindName, SystemClock, SystemRandom,
    Telemetry, TelemetryLimits, fields,
};
use driftline_testkit::http::{Request, soon};
use driftline_testkit::proxy::Direction;
use driftline_testkit::socket::{Incoming, Socket};
use serde_json::{Value, json};
use support::ingest::{Sender, essence, rejected};
use support::roads::{Roads, hurried, send_again};
use support::{Deployment, Person, WITHIN};

/// A family, a neighbour, and the staff of the service.
struct Family {
    town: Deployment,
    root: Person,
    mum: Person,
    neighbour: Person,
    phone: Sender,
}

async fn family() -> Family {
    of_town(Deployment::start("family-safety.toml")).await
}

async fn of_town(town: Deployment) -> Family {
    let root = town.person("home", "root", "admin", &[]);
    let mum = town.person("home", "mum", "user", &[]);
    let neighbour = town.person("home", "ned", "user", &[]);
    let phone = town.register(&root, "mum", "kid-phone").await;
    Family { town, root, mum, neighbour, phone }
}

impl Family {
    async fn set(&self, change: Value) {
        let request = Request::new("PATCH", "/api/v1/devices/kid-phone").json(&change);
        let answer = self.town.ask(&self.root, request).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    async fn stored(&self, kind: &str) -> Vec<Value> {
        self.town.samples(&self.mum, kind, 100).await
    }
}

fn location(second: u64, latitude: f64) -> Value {
    let timestamp = format!("2026-03-01T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60);
    json!({"timestamp": timestamp, "latitude": latitude, "longitude": 16.37})
}

fn day(date: &str, seconds: u64) -> Value {
    let apps = json!({"com.chat": {"0": 60, "23": 1.5}, "org.maps": {}});
    json!({"date": date, "total_screen_time": seconds, "app_wise_data": apps})
}

fn visit(url: &str, accessed: bool) -> Value {
    json!({"timestamp": "2026-03-01T08:00:00Z", "url": url, "accessed": accessed})
}

/// The fields of a flat message, with its type.
fn flat(kind: &str, fields: &Value) -> Value {
    let mut message = fields.clone();
    message["type"] = kind.into();
    message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hash_is_checked_before_the_socket_is_accepted() {
    let family = family().await;
    let refused = async |sender: &Sender| {
        let refused = sender.knock().await.expect_err("nobody is let in");
        assert_eq!((refused.status, refused.code().as_str()), (403, "UNAUTHORIZED"), "{}", refused.text());
        let refused = sender.post(&flat("location", &location(1, 48.2))).await;
        assert_eq!((refused.status, refused.code().as_str()), (403, "UNAUTHORIZED"), "{}", refused.text());
        refused.json()["title"].clone()
    };
    let stranger = family.town.sender("0123456789abcdef0123456789abcdef");
    let unknown = refused(&stranger).await;

    // Who is disabled is told what a stranger is told.
    family.phone.socket().await;
    family.set(json!({"enabled": false})).await;
    assert_eq!(refused(&family.phone).await, unknown);
    family.set(json!({"enabled": true})).await;
    let ack = family.phone.socket().await.ask(&flat("location", &location(1, 48.2)), "ack").await;
    assert_eq!(ack["accepted"], 1, "{ack}");

    // Nor does a removed one come back by its old hash.
    let removed = family.town.ask(&family.root, Request::new("DELETE", "/api/v1/devices/kid-phone")).await;
    assert!(matches!(removed.status, 200 | 204), "{}", removed.text());
    assert_eq!(refused(&family.phone).await, unknown);
    assert_eq!(family.town.samples(&family.root, "location", 10).await.len(), 1, "what it sent stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_ingest_auth_the_first_message_authenticates() {
    let family = family().await;
    let hash = &family.phone.hash;
    let mum = family.mum.token();
    let table = [
        (json!({"type": "auth", "id": "a", "payload": {"device_hash": hash}}), "kid-phone"),
        (json!({"type": "auth", "id": "a", "child_hash": hash}), "kid-phone"),
        (json!({"type": "auth", "id": "a", "data": {"token": mum, "device_id": "mums-phone"}}), "mums-phone"),
    ];
    for (second, (auth, device)) in table.iter().enumerate() {
        let mut socket = family.town.unnamed_socket().await;
        let greeting = socket.ask(auth, "connection_established").await;
        assert_eq!((&greeting["device_id"], &greeting["reply_to"]), (&json!(device), &json!("a")), "{auth}");
        let sample = location(second as u64, 48.2);
        let ack = socket.ask(&flat("location", &sample), "ack").await;
        assert_eq!(ack["accepted"], 1, "{ack}");
    }
    assert_eq!(family.stored("location").await.len(), 3);
    assert_eq!(family.stored("location?device=mums-phone").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_ingest_auth_whoever_cannot_authenticate_goes_with_4001() {
    let family = family().await;
    let table = [
        json!({"type": "auth", "payload": {"device_hash": "0123456789abcdef"}}),
        json!({"type": "auth", "payload": {"token": "no.to.ken", "device_id": "d"}}),
        flat("location", &location(1, 48.2)),
        json!({"type": "ping", "timestamp": 1}),
    ];
    for first in table {
        let mut socket = family.town.unnamed_socket().await;
        socket.send(&first).await;
        let (code, close) = socket.until_error().await;
        assert_eq!((code.as_str(), close), ("UNAUTHORIZED", 4001), "{first}");
    }
    assert_eq!(family.stored("location").await, [] as [Value; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_ingest_auth_whoever_says_nothing_in_time_goes_with_4001() {
    let patience = "[server]\n";
    let town =
        Deployment::start_with("family-safety.toml", &[(patience, "[limits]\nauth_ms = 300\n\n[server]\n")]);
    let mut silent = town.unnamed_socket().await;
    let (code, close) = silent.until_error().await;
    assert_eq!((code.as_str(), close), ("UNAUTHORIZED", 4001));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_three_types_are_validated_and_each_fault_has_its_place() {
    let family = family().await;
    let with = |mut sample: Value, name: &str, value: Value| {
        if value.is_null() {
            sample.as_object_mut().expect("an object").remove(name);
        } else {
            sample[name] = value;
        }
        sample
    };
    let apps = |data: Value| with(day("2026-03-01", 5), "app_wise_data", data);
    let table = [
        ("location", with(location(0, 0.0), "latitude", json!(90.01)), "/latitude"),
        ("location", with(location(0, 0.0), "latitude", json!(-90.01)), "/latitude"),
        ("location", with(location(0, 0.0), "latitude", json!("48.2")), "/latitude"),
        ("location", with(location(0, 0.0), "longitude", json!(-180.5)), "/longitude"),
        ("location", with(location(0, 0.0), "longitude", Value::Null), ""),
        ("location", with(location(0, 0.0), "timestamp", json!("yesterday")), "/timestamp"),
        ("location", with(location(0, 0.0), "timestamp", Value::Null), ""),
        ("screen_time", day("2026-02-30", 5), "/date"),
        ("screen_time", day("01.03.2026", 5), "/date"),
        ("screen_time", with(day("2026-03-01", 5), "date", json!(20_260_301)), "/date"),
        ("screen_time", with(day("2026-03-01", 5), "total_screen_time", json!(-1)), "/total_screen_time"),
        ("screen_time", with(day("2026-03-01", 5), "total_screen_time", Value::Null), ""),
        ("screen_time", apps(json!({"com.chat": {"24": 5}})), "/app_wise_data/com.chat/24"),
        ("screen_time", apps(json!({"com.chat": {"07": 5}})), "/app_wise_data/com.chat/07"),
        ("screen_time", apps(json!({"com.chat": {"noon": 5}})), "/app_wise_data/com.chat/noon"),
        ("screen_time", apps(json!({"a/b": {"7": "long"}})), "/app_wise_data/a~1b/7"),
        ("screen_time", apps(json!({"com.chat": 5})), "/app_wise_data/com.chat"),
        ("screen_time", apps(json!([])), "/app_wise_data"),
        ("site_access", with(visit("https://a.test", true), "url", json!(7)), "/url"),
        ("site_access", with(visit("https://a.test", true), "url", json!("")), "/url"),
        ("site_access", with(visit("https://a.test", true), "accessed", json!("yes")), "/accessed"),
        ("site_access", with(visit("https://a.test", true), "timestamp", json!(true)), "/timestamp"),
    ];
    let mut socket = family.phone.socket().await;
    for (kind, sample, place) in &table {
        let ack = socket.ask(&json!({"type": kind, "payload": sample}), "ack").await;
        assert_eq!((&ack["of"], &ack["accepted"]), (&json!(kind), &json!(0)), "{sample}: {ack}");
        assert_eq!(rejected(&ack), [(0, (*place).to_owned())].into(), "{sample}: {ack}");
        assert_eq!(ack["rejected"][0]["code"], "invalid", "{ack}");
        let posted = family.phone.post(&json!({"type": kind, "payload": sample})).await;
        assert_eq!((posted.status, essence(&posted.json())), (200, essence(&ack)), "{sample}");
    }
    for kind in ["location", "screen_time", "site_access"] {
        assert_eq!(family.stored(kind).await, [] as [Value; 0], "{kind}");
    }
    // What is bad spoils nothing of what is good, whatever the member that holds them.
    // What came under the one name is known when it comes under the other.
    for (member, under, fresh) in [("logs", "/logs", [2, 1]), ("items", "/items", [0, 0])] {
        let visits = json!([visit("https://a.test", true), {"url": "https://b.test"}, 5, visit("https://c.test", false)]);
        let ack = socket.ask(&json!({"type": "site_access", "payload": {member: visits}}), "ack").await;
        assert_eq!((&ack["accepted"], &ack["duplicates"]), (&json!(fresh[0]), &json!(2 - fresh[0])), "{ack}");
        assert_eq!(rejected(&ack), [(1, String::new()), (2, String::new())].into(), "{ack}");
        // In an array of messages the index is the message's, and the place says which of its samples.
        let array = json!([flat("location", &location(9, 1.0)), {"type": "site_access", "payload": {member: visits}}]);
        let answer = family.phone.post(&array).await.json();
        let stored = (&answer["accepted"], &answer["duplicates"]);
        assert_eq!(stored, (&json!(fresh[1]), &json!(3 - fresh[1])), "{answer}");
        let places: Vec<_> = rejected_list(&answer);
        assert_eq!(places, [(1, format!("{under}/1")), (1, format!("{under}/2"))], "{answer}");
    }
    assert_eq!(family.stored("site_access").await.len(), 2);
}

fn rejected_list(answer: &Value) -> Vec<(u64, String)> {
    let item = |item: &Value| {
        (item["index"].as_u64().unwrap_or(u64::MAX), item["pointer"].as_str().unwrap_or("-").to_owned())
    };
    answer["rejected"].as_array().expect("a list").iter().map(item).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_has_an_ack() {
    let family = family().await;
    let mut socket = family.phone.socket().await;
    let table = [
        (flat("screen_time", &day("2026-03-01", 5)), "ack", 1),
        (json!({"type": "screen_time", "payload": day("2026-03-02", 5)}), "ack", 1),
        (json!({"type": "location", "data": location(1, 48.2)}), "ack", 1),
        (json!({"type": "location", "payload": {"items": [location(2, 1.0), location(3, 1.0)]}}), "ack", 2),
        (
            json!({"type": "site_access", "logs": [visit("https://a.test", true), visit("https://b.test", false)]}),
            "ack",
            2,
        ),
        (json!({"type": "site_access", "payload": visit("https://c.test", true)}), "ack", 1),
        (json!({"type": "location", "payload": {"items": []}}), "ack", 0),
        (json!({"type": "device_status", "payload": {"status": "active", "battery": 40}}), "ack", 0),
        (json!({"type": "ping", "timestamp": 7}), "pong", 0),
        (json!({"type": "heartbeat"}), "heartbeat_ack", 0),
        (json!({"type": "gossip", "payload": {}}), "error", 0),
        (json!({"type": "location", "payload": {"items": vec![location(4, 1.0); 101]}}), "error", 0),
    ];
    // All at once: none waits for the one before, and each answer names its message.
    let mut stored = 0;
    for (at, (message, ..)) in table.iter().enumerate() {
        let mut message = message.clone();
        message["id"] = format!("m{at}").into();
        socket.send(&message).await;
    }
    let mut answers = std::collections::BTreeMap::new();
    for _ in &table {
        let answer = socket.receive().await;
        let of = answer["reply_to"].as_str().unwrap_or_else(|| panic!("of no message: {answer}")).to_owned();
        assert_eq!(answers.insert(of, answer), None, "one answer each");
    }
    for (at, (message, kind, accepted)) in table.iter().enumerate() {
        let answer = &answers[&format!("m{at}")];
        assert_eq!(answer["type"], *kind, "{message}: {answer}");
        if *kind == "ack" {
            assert_eq!(answer["of"], message["type"], "{answer}");
            assert_eq!(answer["accepted"].as_u64().unwrap_or_default(), *accepted, "{message}: {answer}");
        }
        stored += accepted;
    }
    assert_eq!(
        (&answers["m10"]["code"], &answers["m11"]["code"]),
        (&json!("UNKNOWN_MESSAGE_TYPE"), &json!("BATCH_TOO_LARGE"))
    );
    // What cannot be read is answered as well, and the connection lives on.
    socket.send_text("{\"type\":\"location\"").await;
    assert_eq!(socket.expect("error").await["code"], "JSON_DECODE_ERROR");
    assert_eq!(socket.ask(&json!({"type": "ping", "timestamp": 8}), "pong").await["timestamp"], 8);
    let mut held = 0;
    for kind in ["screen_time", "location", "site_access"] {
        held += family.stored(kind).await.len() as u64;
    }
    assert_eq!(held, stored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_word_on_the_same_thing_takes_the_place_of_the_first() {
    let family = family().await;
    let other = family.town.register(&family.root, "mum", "kid-tablet").await;
    let mut socket = family.phone.socket().await;
    let mut tablet = other.socket().await;
    let table = [
        ("screen_time", day("2026-03-01", 60), day("2026-03-01", 90), day("2026-03-02", 5)),
        ("location", location(5, 48.2), location(5, 48.3), location(6, 48.2)),
        (
            "site_access",
            visit("https://a.test", true),
            visit("https://a.test", false),
            json!({"timestamp": "2026-03-01T09:00:00Z", "url": "https://a.test", "accessed": true}),
        ),
    ];
    for (kind, first, second, different) in table {
        let ack = socket.ask(&flat(kind, &first), "ack").await;
        assert_eq!((&ack["accepted"], &ack["duplicates"]), (&json!(1), &json!(0)), "{ack}");
        let ack = socket.ask(&flat(kind, &first), "ack").await;
        assert_eq!((&ack["accepted"], &ack["duplicates"]), (&json!(0), &json!(1)), "the same again: {ack}");
        // The second word comes over the other door.
        let ack = family.phone.post(&flat(kind, &second)).await.json();
        assert_eq!((&ack["accepted"], &ack["duplicates"]), (&json!(1), &json!(0)), "{ack}");
        socket.ask(&flat(kind, &different), "ack").await;
        let mine = family.stored(&format!("{kind}?device=kid-phone")).await;
        assert_eq!(mine, [second.clone(), different.clone()], "{kind}");
        // Another device speaks for itself.
        tablet.ask(&flat(kind, &first), "ack").await;
        assert_eq!(family.stored(&format!("{kind}?device=kid-phone")).await, mine, "{kind}");
        assert_eq!(family.stored(&format!("{kind}?device=kid-tablet")).await, [first], "{kind}");
        assert_eq!(family.stored(kind).await.len(), 3, "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_doors_take_the_same_bodies_with_the_same_results() {
    let family = family().await;
    // Two households in the same state: what one phone is told over its socket, the other is told over HTTP.
    let keeper = family.town.person("next door", "root", "admin", &[]);
    let twin = family.town.register(&keeper, "root", "kid-twin").await;
    let mut socket = family.phone.socket().await;
    let good = location(1, 48.2);
    let table = [
        flat("location", &good),
        json!({"type": "location", "payload": good}),
        json!({"type": "location", "id": "m-1", "ts": "2026-03-01T00:00:00Z", "data": location(2, 48.2)}),
        json!({"type": "location", "payload": {"fields": location(3, 1.0), "id": "mine"}}),
        json!({"type": "location", "payload": {"items": [location(4, 1.0), location(4, 1.0), location(4, 2.0), location(5, 91.0)]}}),
        json!({"type": "site_access", "payload": {"logs": [visit("https://a.test", true), {"url": 5}]}}),
        json!({"type": "screen_time", "payload": day("2026-13-01", 5)}),
        json!({"type": "screen_time", "idempotency_key": "k-1", "payload": day("2026-03-01", 5)}),
        json!({"type": "screen_time", "idempotency_key": "k-1", "payload": day("2026-03-01", 5)}),
        json!({"type": "screen_time", "idempotency_key": "k-1", "payload": day("2026-03-01", 6)}),
        json!({"type": "screen_time", "idempotency_key": "", "payload": day("2026-03-01", 6)}),
        json!({"type": "location", "payload": {"items": vec![location(4, 1.0); 101]}}),
        json!({"type": "location", "ts": "never", "payload": good}),
        json!({"type": "location", "payload": "nothing"}),
        json!({"type": "location", "payload": {"items": [{"id": ""}, []]}}),
        json!({"type": "gossip", "payload": good}),
        json!({"type": 5}),
        json!({"payload": good}),
        json!({"type": "device_status", "payload": {"status": "active", "battery": 7}}),
        json!({"type": "device_status", "payload": {"battery": "low"}}),
        json!({"type": "location", "payload": {"items": [location(6, 1.0)]}, "idempotency_key": "k-2"}),
    ];
    for body in &table {
        socket.send(body).await;
        let told = socket.receive().await;
        let answer = twin.post(body).await;
        if told["type"] == "error" {
            assert_eq!(answer.json()["code"], told["code"], "{body}: {told} {}", answer.text());
            let places = |answer: &Value, list: &Value| {
                let list = list.as_array().cloned().unwrap_or_default();
                assert!(list.iter().all(|error| error["pointer"].is_string()), "{answer}");
                list.iter().map(|error| error["pointer"].clone()).collect::<Vec<_>>()
            };
            let posted = answer.json();
            assert_eq!(
                places(&told, &told["details"]["errors"]),
                places(&posted, &posted["errors"]),
                "{body}"
            );
        } else {
            assert_eq!((answer.status, essence(&answer.json())), (200, essence(&told)), "{body}");
        }
    }
    for kind in ["location", "screen_time", "site_access"] {
        let held = family.stored(kind).await;
        assert!(!held.is_empty(), "{kind}");
        assert_eq!(held, family.town.samples(&keeper, kind, 100).await, "{kind}");
    }
    let bad = Request::new("POST", "/api/ingest").header("x-device-hash", &twin.hash).body("{\"type\":");
    assert_eq!(bad.send(family.town.address()).await.code(), "JSON_DECODE_ERROR");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_with_three_bad_ones_97_are_held_however_often_they_come() {
    let family = family().await;
    let mut samples: Vec<Value> = (0..100).map(|second| location(second, 48.2)).collect();
    samples[7]["latitude"] = json!(90.5);
    samples[50]["longitude"] = json!("east");
    samples[99]["timestamp"] = json!("soon");
    let wanted = [(7, "/latitude"), (50, "/longitude"), (99, "/timestamp")];
    let wanted = wanted.map(|(index, place)| (index, place.to_owned())).into();
    let message = json!({"type": "location", "idempotency_key": "k-1", "payload": {"items": samples}});
    let mut socket = family.phone.socket().await;
    let first = socket.ask(&message, "ack").await;
    assert_eq!((&first["accepted"], rejected(&first)), (&json!(97), wanted), "{first}");
    let held = family.stored("location").await;
    assert_eq!(held.len(), 97);
    // The same message is answered as it was; without its key each sample is known by its own.
    let again = family.phone.post(&message).await.json();
    assert_eq!((&again["replayed"], &again["accepted"]), (&json!(true), &json!(97)), "{again}");
    assert_eq!(again["rejected"], first["rejected"]);
    let unkeyed = family.phone.post(&json!({"type": "location", "payload": {"items": samples}})).await.json();
    assert_eq!((&unkeyed["accepted"], &unkeyed["duplicates"]), (&json!(0), &json!(97)), "{unkeyed}");
    assert_eq!(unkeyed["rejected"], first["rejected"]);
    assert_eq!(family.stored("location").await, held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_hash_is_a_device_hash_wherever_it_stands() {
    let family = family().await;
    let hash = &family.phone.hash;
    for (second, name) in ["device_hash", "child_hash"].iter().enumerate() {
        let mut body = flat("location", &location(second as u64, 48.2));
        body[*name] = hash.as_str().into();
        let answer = family.town.post_ingest(&body).await;
        assert_eq!((answer.status, &answer.json()["accepted"]), (200, &json!(1)), "{}", answer.text());
        let mut array = json!([flat("location", &location(10 + second as u64, 48.2))]);
        array[0][*name] = hash.as_str().into();
        let answer = family.town.post_ingest(&array).await;
        assert_eq!((answer.status, &answer.json()["accepted"]), (200, &json!(1)), "{}", answer.text());
    }
    // It says who sends, and is no part of what is sent.
    let stored = family.stored("location").await;
    assert_eq!(stored, [0, 1, 10, 11].map(|second| location(second, 48.2)));
    let unknown =
        family.town.post_ingest(&json!({"type": "location", "child_hash": "0123456789abcdef"})).await;
    assert_eq!((unknown.status, unknown.code().as_str()), (403, "UNAUTHORIZED"));
    assert_eq!(
        family.town.post_ingest(&flat("location", &location(1, 1.0))).await.status,
        401,
        "no name at all"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_sends_by_http_for_the_device_that_it_names() {
    let family = family().await;
    let request = Request::post("/api/ingest/?device_id=mums-phone", &flat("location", &location(1, 48.2)));
    let answer = family.town.ask(&family.mum, request).await;
    assert_eq!((answer.status, &answer.json()["accepted"]), (200, &json!(1)), "{}", answer.text());
    let keyed = || {
        let body = json!({"type": "location", "payload": {"items": [location(2, 1.0), location(3, 1.0)]}});
        Request::post("/api/v1/ingest?device_id=mums-phone", &body).header("idempotency-key", "k-9")
    };
    let first = family.town.ask(&family.mum, keyed()).await;
    let second = family.town.ask(&family.mum, keyed()).await;
    assert_eq!(second.header("idempotency-replayed"), Some("true"));
    assert_eq!((first.json()["accepted"].clone(), second.json()["accepted"].clone()), (json!(2), json!(2)));
    assert_eq!(second.json()["replayed"], true);
    assert_eq!(family.stored("location").await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_phone_sent_is_its_owners_and_the_staffs_to_read() {
    let family = family().await;
    family.phone.socket().await.ask(&flat("location", &location(1, 48.2)), "ack").await;
    for (reader, sees) in [(&family.mum, 1), (&family.root, 1), (&family.neighbour, 0)] {
        assert_eq!(family.town.samples(reader, "location", 10).await.len(), sees);
    }
    let stranger = family.town.person("other", "root", "admin", &[]);
    assert_eq!(family.town.samples(&stranger, "location", 10).await.len(), 0, "another tenant has nothing");
    let unknown = family.town.ask(&family.mum, Request::get("/api/v1/telemetry/gossip")).await;
    assert_eq!(unknown.code(), "NOT_FOUND");
    // Whoever follows the phone hears of a place at once, without what is nobody's business.
    let follow = async |person: &Person, user: &str| {
        let target = format!("/ws/mobile/user/{user}?token={}", person.token());
        Socket::connect(family.town.address(), &target).await
    };
    let mut mum = follow(&family.mum, "mum").await;
    mum.expect("connection_established").await;
    let mut sample = location(2, 48.3);
    sample["wifi"] = "home".into();
    family.phone.post(&flat("location", &sample)).await;
    let event = loop {
        let event = mum.receive().await;
        if event["type"] == "location_update" {
            break event;
        }
    };
    let told = json!({"device_id": "kid-phone", "timestamp": sample["timestamp"], "latitude": 48.3, "longitude": 16.37});
    assert_eq!((&event["data"], &event["topic"]), (&told, &json!("device_kid-phone")), "{event}");
    let mut neighbour = follow(&family.neighbour, "mum").await;
    let (code, close) = neighbour.until_error().await;
    assert_eq!((code.as_str(), close), ("FORBIDDEN", 4503));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_remembered_for_as_long_as_the_tenants_window() {
    let own = ("window_s = 604800\n", "window_s = 604800\n\n[idempotency.tenants]\nhasty = 1\n");
    let town = Deployment::start_with("family-safety.toml", &[own]);
    let message = json!({"type": "location", "idempotency_key": "k-1", "payload": location(1, 48.2)});
    let mut phones = Vec::new();
    for tenant in ["hasty", "patient"] {
        let root = town.person(tenant, "root", "admin", &[]);
        phones.push(town.register(&root, "root", "kid-phone").await);
        assert_eq!(phones[phones.len() - 1].post(&message).await.json()["replayed"], false);
    }
    let [hasty, patient] = phones.as_slice() else { panic!("two phones") };
    let forgotten = soon("the end of the window", async {
        loop {
            let answer = hasty.post(&message).await.json();
            if answer["replayed"] == false {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let forgotten = forgotten.await;
    // The answer is forgotten, the sample is not: it is the same one by its key.
    assert_eq!((&forgotten["accepted"], &forgotten["duplicates"]), (&json!(0), &json!(1)), "{forgotten}");
    assert_eq!(patient.post(&message).await.json()["replayed"], true);
}

type Phone = Courier<Roads, SystemClock, SystemRandom>;

/// Samples that are recorded in each stretch of the way.
const STRETCH: u64 = 2_000;

/// Takes down the next samples of three kinds.
fn record(phone: &mut Phone, next: &mut u64, count: u64) {
    for n in *next..*next + count {
        let (kind, sample) = match n % 3 {
            0 => ("location", location(n, 1.0)),
            1 => ("site_access", visit(&format!("https://{n}.test"), n % 2 == 0)),
            _ => ("screen_time", day(&date(n / 3), n % 86_400)),
        };
        let kind = KindName::new(kind).expect("a kind");
        phone.record(kind, &fields(&sample.to_string()).expect("fields")).expect("there is room");
    }
    *next += count;
}

/// The day of a number, in years of 12 months of 28 days.
fn date(day: u64) -> String {
    format!("{:04}-{:02}-{:02}", 2000 + day / 336, 1 + day / 28 % 12, 1 + day % 28)
}

/// Carries until the status is as wanted.
async fn until(phone: &mut Phone, wanted: impl FnMut(&CourierStatus) -> bool) {
    let mut watch = phone.watch();
    tokio::select! {
        error = phone.run() => panic!("{error}"),
        status = soon("the status", watch.wait_for(wanted)) => drop(status.expect("it is watched")),
    }
}

/// The way of a phone: WebSocket, cut, HTTP only, both away, restart, and back, with answers that get lost on both roads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_phone_switches_from_websocket_to_http_to_its_buffer_and_back_without_loss() {
    let family = family().await;
    let roads = Roads::to(family.town.address());
    let endpoint = || {
        let address = family.town.address().to_string();
        Endpoint::by_device_hash(&address, &family.phone.hash).expect("an endpoint")
    };
    let start = |telemetry| Courier::new_in(roads.world(), endpoint(), telemetry, hurried());
    let minute = Duration::from_secs(60);
    let mut next = 0;

    let mut phone = start(Telemetry::default());
    record(&mut phone, &mut next, STRETCH);
    phone.flush(minute).await.expect("all of it");
    assert_eq!((phone.status().mode, phone.status().state), (CourierMode::WebSocket, CourierState::Open));
    assert_eq!(roads.posted().len(), 0, "nobody takes the way round while the straight one is open");

    // The socket breaks in the middle, after the server got messages of which no answer came.
    for bytes in [0, 700] {
        record(&mut phone, &mut next, STRETCH / 2);
        roads.sockets().cut_after(bytes, Direction::ToClient);
        phone.flush(minute).await.expect("all of it");
        until(&mut phone, |status| status.mode == CourierMode::WebSocket).await;
    }
    assert_eq!(roads.sockets().cuts(), 2);

    // WebSockets do not get through any more; of requests some lose their answers.
    roads.sockets().cut();
    until(&mut phone, |status| status.mode == CourierMode::Http).await;
    record(&mut phone, &mut next, STRETCH);
    roads.requests().cut_after(0, Direction::ToClient);
    phone.flush(minute).await.expect("all of it");
    assert_eq!(phone.status().mode, CourierMode::Http);
    assert_eq!(roads.requests().cuts(), 1, "an answer was lost");
    assert!(roads.posted().len() > 20, "{}", roads.posted().len());

    // Nothing gets through: it waits in the buffer, over a restart of the app too.
    roads.requests().cut();
    record(&mut phone, &mut next, STRETCH);
    until(&mut phone, |status| status.mode == CourierMode::Offline).await;
    let saved = phone.close().await.expect("nothing has to be kept").to_json();
    let saved = Telemetry::from_json(&saved, TelemetryLimits::default()).expect("a buffer");
    assert_eq!(saved.len() as u64, STRETCH);
    let mut phone = start(saved);
    record(&mut phone, &mut next, STRETCH);
    until(&mut phone, |status| status.mode == CourierMode::Offline && status.switches.failed_posts > 0).await;

    // Back: first requests, then WebSockets.
    roads.requests().pass();
    phone.drive(minute, |telemetry| (telemetry.len() as u64) < STRETCH).await.expect("it goes on");
    roads.sockets().pass();
    phone.flush(minute).await.expect("all of it");
    until(&mut phone, |status| status.mode == CourierMode::WebSocket).await;
    assert_eq!(phone.telemetry().totals().refused, 0);
    assert_eq!(next, 10_000);
    phone.close().await.expect("nothing has to be kept");
    family.holds_exactly(next).await;
    for counter in ["driftline_fallbacks_total", "driftline_reconnections_total"] {
        assert!(family.counted(counter).await > 0, "{counter}");
    }

    // A proxy on the way delivers everything a second time, the last first: nothing changes.
    let posted = roads.posted();
    for request in posted.iter().rev() {
        let answer = send_again(request, family.town.address()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    family.holds_exactly(next).await;
}

impl Family {
    /// What the server counted under a name.
    async fn counted(&self, counter: &str) -> u64 {
        let metrics = Request::get("/metrics").send(self.town.address()).await.text();
        let line = metrics.lines().find_map(|line| line.strip_prefix(counter)?.trim().parse().ok());
        line.unwrap_or_else(|| panic!("{counter} is not told"))
    }

    /// Checks that each of the first samples is held once, and nothing else.
    async fn holds_exactly(&self, count: u64) {
        let mut seen = BTreeSet::new();
        let mut held = 0;
        for kind in ["location", "site_access", "screen_time"] {
            for sample in self.town.samples(&self.mum, kind, 500).await {
                held += 1;
                seen.insert(format!("{kind} {}", name(kind, &sample)));
            }
        }
        let wanted: BTreeSet<String> = (0..count)
            .map(|n| match n % 3 {
                0 => format!("location {}", location(n, 1.0)["timestamp"]),
                1 => format!("site_access \"https://{n}.test\""),
                _ => format!("screen_time \"{}\"", date(n / 3)),
            })
            .collect();
        assert_eq!((held, seen.len()), (wanted.len(), wanted.len()));
        assert!(seen == wanted, "missing: {:?}", wanted.difference(&seen).take(5).collect::<Vec<_>>());
    }
}

fn name(kind: &str, sample: &Value) -> String {
    let field = match kind {
        "location" => "timestamp",
        "site_access" => "url",
        _ => "date",
    };
    sample[field].to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disabled_phone_is_told_so_and_keeps_its_samples() {
    let family = family().await;
    let roads = Roads::to(family.town.address());
    family.set(json!({"enabled": false})).await;
    let address = family.town.address().to_string();
    let endpoint = Endpoint::by_device_hash(&address, &family.phone.hash).expect("an endpoint");
    let mut phone = Courier::new_in(roads.world(), endpoint, Telemetry::default(), hurried());
    record(&mut phone, &mut 0, 30);
    phone.flush(WITHIN).await.expect_err("nobody lets it in");
    assert_eq!((phone.status().state, phone.telemetry().len()), (CourierState::Failed, 30));
    family.set(json!({"enabled": true})).await;
    phone.connect();
    phone.flush(WITHIN).await.expect("it is let in");
    assert_eq!(family.stored("location").await.len(), 10);
    phone.close().await.expect("nothing has to be kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_frame_of_the_phone_is_answered() {
    let family = family().await;
    let mut socket = family.phone.socket().await;
    socket.send_frame(&driftline_testkit::socket::Frame::close(1000, "")).await;
    assert_eq!(socket.read().await, Incoming::Close(1000, String::new()));
}
