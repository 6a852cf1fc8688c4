//! Topics, publishing and what was missed, through sessions.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use driftline_engine::{
    Announce, Catalogue, Ear, EventDraft, EventQuery, EventRules, KindRule, Ring, Store, TopicRetention,
    TopicRules,
};
use driftline_model::{KindName, Limits};
use driftline_protocol::{Document, EventPlace};
use driftline_realtime::{Access, Pattern, TopicRule};
use driftline_testkit::{Rng, block_on};
use futures_util::FutureExt as _;

use support::desk::{Desk, Frame, Office, SYNC, kinds};

fn rule(name: &str) -> TopicRule {
    let everyone = || Access { everyone: true, ..Access::default() };
    TopicRule {
        pattern: Pattern::parse(name).expect("a pattern"),
        subscribe: everyone(),
        publish: everyone(),
        durable: true,
        retention_ms: None,
        keep: None,
        conflate: None,
        join: false,
        presence: false,
    }
}

/// Rooms that everybody may have, a board that forgets, and records that announce.
fn office() -> Office {
    let announce = Announce {
        kind: "moved".into(),
        topics: vec![Pattern::parse("room_{room}").expect("a pattern")],
        fields: vec!["room".into()],
        durable: true,
        conflate: None,
    };
    let chair = KindRule { announce: Some(Arc::new(announce)), ..KindRule::default() };
    let kinds = BTreeMap::from([(KindName::new("chair").expect("a kind"), chair)]);
    let board = TopicRule { durable: false, conflate: Some("of".into()), ..rule("board") };
    let staff = Access { roles: vec!["staff".into()], ..Access::default() };
    let closed = TopicRule { subscribe: Access::default(), publish: staff, ..rule("closed") };
    let routes = BTreeMap::from([("left".into(), vec![Pattern::parse("room_{room}").expect("a pattern")])]);
    let rules = EventRules::new(vec![rule("room_{room}"), board, closed], routes, Vec::new()).expect("rules");
    let limits = Limits { outbound_bytes: 64 << 10, ..Limits::default() };
    Office::with(limits, 64, Catalogue::new(kinds).allow_undeclared()).with_rules(rules)
}

fn member(text: &str, name: &str) -> Option<String> {
    let document = Document::parse(text.as_bytes(), 64).expect("JSON");
    let node = document.root().get(name)?;
    Some(node.as_str().map_or_else(|| node.to_json().into_owned(), std::borrow::Cow::into_owned))
}

fn ids(frames: &[Frame]) -> Vec<u64> {
    let id = |frame: &Frame| Some(EventPlace::parse(&member(&frame.text, "id")?).expect("an id").id);
    frames.iter().filter_map(id).collect()
}

/// The first events of a topic.
fn of_topic(topic: &str) -> EventQuery {
    EventQuery {
        topics: vec![topic.into()],
        after: 0,
        until: None,
        kind: None,
        newest_first: false,
        rows: 10,
        bytes: 1 << 20,
    }
}

fn publish(desk: &mut Desk<'_>, topic: &str, rest: &str) -> Vec<Frame> {
    desk.ask(&format!(
        r#"{{"type":"publish","payload":{{"topic":"{topic}","event_type":"x","data":{{"of":1}}{rest}}}}}"#
    ))
}

fn subscribe(desk: &mut Desk<'_>, rest: &str) -> Vec<Frame> {
    desk.ask(&format!(r#"{{"type":"subscribe_events","id":"s"{rest}}}"#))
}

#[test]
fn an_event_comes_once_to_whoever_listens() {
    let office = office();
    let (mut ada, mut bob) = (office.desk("ada", "phone"), office.desk("bob", "phone"));
    ada.take();
    bob.take();
    let answer = subscribe(&mut ada, r#","topics":["room_1","room_2","closed","nothing"]"#);
    let told = &answer[0].text;
    for part in [
        r#"{"topic":"room_1","accepted":true,"position":""#,
        r#"{"topic":"closed","accepted":false,"code":"FORBIDDEN"}"#,
        r#"{"topic":"nothing","accepted":false,"code":"NOT_FOUND"}"#,
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let ack = bob.ask(
        r#"{"type":"publish","id":"p","payload":{"topics":["room_1","room_2"],"event_type":"x","data":{"b":1,"a":2}}}"#,
    );
    assert_eq!(
        (ack[0].reply_to.as_deref(), member(&ack[0].text, "reached").as_deref()),
        (Some("p"), Some("1"))
    );
    ada.listen();
    let events = ada.take();
    assert_eq!((kinds(&events), ids(&events)), (vec!["x"], vec![1]));
    for part in [r#""topic":"room_1""#, r#""room":1"#, r#""data":{"a":2,"b":1}"#] {
        assert!(events[0].text.contains(part), "{part}: {}", events[0].text);
    }
    assert!(subscribe(&mut ada, r#","topics":[]"#)[0].text.contains("VALIDATION_ERROR"));
    let dropped = ada.ask(r#"{"type":"unsubscription","topics":["room_1","room_9"]}"#);
    assert!(
        dropped[0].text.contains(r#"{"topic":"room_1","accepted":true},{"topic":"room_9","accepted":false}"#)
    );
    publish(&mut bob, "room_1", "");
    ada.listen();
    assert!(ada.take().is_empty());
}

#[test]
fn keys_and_versions_count_once() {
    let office = office();
    let mut ada = office.desk("ada", "phone");
    subscribe(&mut ada, r#","topics":["room_1"]"#);
    let first = publish(&mut ada, "room_1", r#","dedupe_key":"k""#);
    let again = publish(&mut ada, "room_1", r#","dedupe_key":"k""#);
    let id = |frames: &[Frame]| {
        let ack = frames.iter().find(|frame| frame.kind == "ack").expect("an answer");
        (member(&ack.text, "event_id"), member(&ack.text, "duplicate"))
    };
    assert_eq!(id(&first).0, id(&again).0);
    assert_eq!((id(&again).1.as_deref(), kinds(&again)), (Some("true"), vec!["ack"]));
    let versions: Vec<bool> = [(2, false), (1, true), (2, true), (3, false)]
        .iter()
        .map(|(version, _)| {
            let told = publish(&mut ada, "room_1", &format!(r#","key":"door","version":{version}"#));
            told.iter().any(|frame| frame.text.contains("\"late\":true"))
        })
        .collect();
    assert_eq!(versions, [false, true, true, false]);
    let live = publish(&mut ada, "board", r#","dedupe_key":"k""#);
    assert_eq!(live[0].error_code().as_deref(), Some("VALIDATION_ERROR"));
    let keyed = |key: &str| {
        format!(
            r#"{{"type":"publish","idempotency_key":"{key}","payload":{{"topic":"room_1","event_type":"x","data":{{}}}}}}"#
        )
    };
    let (first, again) = (ada.ask(&keyed("a")), ada.ask(&keyed("a")));
    assert_eq!(kinds(&first), ["ack", "x"]);
    assert_eq!((kinds(&again), id(&first).0), (vec!["ack"], id(&again).0));
}

#[test]
fn who_may_publish_what() {
    let office = office();
    let mut ada = office.desk_of("ada", "phone", &["user"]);
    let mut staff = office.desk("boss", "desk");
    ada.take();
    staff.take();
    let code = |frames: Vec<Frame>| frames[0].error_code();
    assert_eq!(code(publish(&mut ada, "closed", "")).as_deref(), Some("FORBIDDEN"));
    assert_eq!(code(publish(&mut staff, "closed", "")), None);
    assert_eq!(code(publish(&mut ada, "nothing", "")).as_deref(), Some("NOT_FOUND"));
    assert_eq!(code(publish(&mut ada, "device_tablet", "")).as_deref(), Some("FORBIDDEN"));
    assert_eq!(code(publish(&mut ada, "metrics_phone", "")), None, "its own");
    // Another user's device is not hers to hear of, and her own is hers alone.
    let answer = subscribe(&mut ada, r#","topics":["device_phone","device_desk"]"#);
    assert!(
        answer[0].text.contains(r#""device_desk","accepted":false,"code":"FORBIDDEN""#),
        "{}",
        answer[0].text
    );
    let mut other = office.desk_of("eve", "phone", &["user"]);
    other.take();
    subscribe(&mut other, r#","topics":["device_phone"]"#);
    publish(&mut ada, "device_phone", "");
    ada.listen();
    other.listen();
    assert_eq!(ids(&other.take()), [] as [u64; 0]);
}

#[test]
fn what_was_missed_comes_before_what_is_new() {
    let office = office();
    let mut bob = office.desk("bob", "phone");
    for _ in 0..5 {
        publish(&mut bob, "room_1", "");
    }
    let mut ada = office.desk("ada", "phone");
    ada.take();
    let frames = subscribe(&mut ada, r#","topics":["room_1"],"since":2"#);
    assert_eq!(kinds(&frames), ["events_subscribed", "x", "x", "x", "replay_complete"]);
    assert_eq!(ids(&frames), [3, 4, 5]);
    assert!(frames[0].text.contains(r#""recovered":true"#));
    // While the log is read nothing comes live, and afterwards everything once.
    ada.feed(r#"{"type":"replay_request","id":"r","last_event_id":0}"#);
    publish(&mut bob, "room_1", "");
    let mut heard = Vec::new();
    ada.listener.take(1 << 20, &mut heard);
    assert!(heard.is_empty(), "nothing comes live while the log is read");
    let done = ada.perform();
    publish(&mut bob, "room_1", "");
    ada.report(done);
    ada.settle();
    ada.listen();
    let frames = ada.take();
    assert_eq!(ids(&frames), [1, 2, 3, 4, 5, 6, 7]);
    let end = frames.iter().position(|frame| frame.kind == "replay_complete").expect("an end");
    assert_eq!((end, frames[end].reply_to.as_deref()), (6, Some("r")), "{:?}", kinds(&frames));
    let limited = ada.ask(r#"{"type":"replay_request","last_event_id":1,"limit":2}"#);
    assert_eq!(ids(&limited), [2, 3]);
    let end = &limited[2].text;
    assert!(end.contains(r#""count":2,"complete":false,"reason":"limit""#) && end.contains("-3\""), "{end}");
    publish(&mut bob, "room_1", "");
    ada.listen();
    assert_eq!(ids(&ada.take()), [8]);
}

#[test]
fn what_is_not_there_is_said() {
    let office = office();
    let mut ada = office.desk("ada", "phone");
    subscribe(&mut ada, r#","topics":["room_1"]"#);
    for _ in 0..6 {
        publish(&mut ada, "room_1", "");
    }
    let reason = |desk: &mut Desk<'_>, rest: &str| {
        let frames = desk.ask(&format!(r#"{{"type":"replay_request",{rest}}}"#));
        let last = frames.last().expect("an end").text.clone();
        (member(&last, "reason"), ids(&frames).len())
    };
    assert_eq!(reason(&mut ada, r#""last_event_id":9"#), (Some("ahead".into()), 0));
    assert_eq!(reason(&mut ada, r#""last_event_id":"00000001-3""#), (Some("epoch_changed".into()), 0));
    assert_eq!(reason(&mut ada, r#""last_event_id":2,"topics":["room_2"]"#), (Some("forbidden".into()), 0));
    assert_eq!(reason(&mut ada, r#""last_event_id":6"#), (None, 0));
    struct Keep(u64);
    impl TopicRules for Keep {
        fn retention(&self, _: &str) -> TopicRetention {
            TopicRetention { age_ms: None, keep: Some(self.0) }
        }
    }
    let log = office.engine.store().log();
    assert_eq!(block_on(log.trim_events(ada.now_ms, Arc::new(Keep(2)))), Ok(4));
    assert_eq!(reason(&mut ada, r#""last_event_id":2"#), (Some("trimmed".into()), 2));
    assert_eq!(reason(&mut ada, r#""last_event_id":4"#), (None, 2));
}

#[test]
fn a_hole_is_filled_from_the_log() {
    let office = office();
    let (mut ada, mut bob) = (office.desk("ada", "phone"), office.desk("bob", "phone"));
    subscribe(&mut ada, r#","topics":["room_1"]"#);
    publish(&mut bob, "room_1", "");
    ada.listen();
    ada.take();
    office.mute(true);
    publish(&mut bob, "room_1", "");
    publish(&mut bob, "room_1", "");
    office.mute(false);
    publish(&mut bob, "room_1", "");
    let ring = std::future::poll_fn(|context| ada.listener.poll_ring(true, context)).now_or_never();
    assert_eq!(ring, Some(Ring::Hole));
    ada.session.fill_hole();
    ada.poll();
    ada.settle();
    ada.listen();
    let frames = ada.take();
    assert_eq!((ids(&frames), kinds(&frames)), (vec![2, 3, 4], vec!["x"; 3]), "without a word of it");
}

#[test]
fn only_some_events_are_wanted() {
    let office = office();
    let mut ada = office.desk("ada", "phone");
    subscribe(&mut ada, r#","topics":["room_1"],"filter":{"types":["x","y"],"data":{"of":[2,3]}}"#);
    let mut say = |kind: &str, of: u32| {
        ada.ask(&format!(
            r#"{{"type":"publish","payload":{{"topic":"room_1","event_type":"{kind}","data":{{"of":{of}}}}}}}"#
        ));
        ada.take().len()
    };
    for (kind, of) in [("x", 1), ("x", 2), ("z", 2), ("y", 3)] {
        say(kind, of);
    }
    let replayed = ada.ask(r#"{"type":"replay_request","last_event_id":0}"#);
    assert_eq!(ids(&replayed), [2, 4]);
    assert!(replayed[2].text.contains("-4\""), "what is filtered moves the place too");
    let wrong =
        subscribe(&mut ada, &format!(r#","topics":["room_1"],"filter":{{"types":["{}"]}}"#, "x".repeat(9)));
    assert_eq!(wrong[0].kind, "events_subscribed");
}

#[test]
fn only_the_latest_of_a_thing_waits_and_who_does_not_read_is_cut() {
    let office = office();
    let mut ada = office.desk("ada", "phone");
    subscribe(&mut ada, r#","topics":["board","room_1"]"#);
    let bob = office.identity("bob", "phone");
    let tell = |of: u32, bytes: usize, topic: &str| {
        let publish = driftline_protocol::Publish {
            topics: vec![topic.into()],
            kind: "x".into(),
            data: driftline_protocol::object_of_text(
                &format!(r#"{{"of":{of},"pad":"{}"}}"#, "x".repeat(bytes)),
                8,
            )
            .expect("JSON")
            .expect("canonical"),
            ..driftline_protocol::Publish::default()
        };
        let by = driftline_engine::Authority::Topics;
        block_on(office.engine.publish(&bob, publish, by, None, 1, ada.now_ms, "test")).expect("published")
    };
    for round in 0..100 {
        assert_eq!(tell(round % 3, 1_000, "board").id, None);
    }
    let mut heard = Vec::new();
    ada.listener.take(1 << 20, &mut heard);
    assert_eq!(heard.len(), 3, "one of each");
    let mut told = 0;
    while std::future::poll_fn(|context| ada.listener.poll_ring(true, context)).now_or_never()
        != Some(Ring::Slow)
    {
        told += 1;
        assert!(told < 200, "the queue is bounded");
        assert!(ada.listener.waiting() <= 64 << 10);
        tell(told, 1_000, "room_1");
    }
    assert!(told > 40, "{told}");
    assert_eq!(ada.listener.waiting(), 0, "what waited is gone");
}

#[test]
fn a_changed_record_announces_and_a_failed_group_does_not() {
    let office = office();
    let mut ada = office.desk("ada", "phone").start("");
    subscribe(&mut ada, r#","topics":["room_1","room_2"]"#);
    let item = |id: &str, n: u32, room: &str, rest: &str| {
        format!(
            r#"{{"op_id":"o{n}","n":{n},"kind":"chair","id":"{id}","op":"create","fields":{{"room":{room},"legs":4}}{rest}}}"#
        )
    };
    let push = |desk: &mut Desk<'_>, items: &[String]| {
        desk.ask(&format!(r#"{{"type":"sync_data","sync_id":"{SYNC}","batch":[{}]}}"#, items.join(",")))
    };
    let frames = push(&mut ada, &[item("c1", 1, "1", ""), item("c2", 2, "true", "")]);
    let events: Vec<&Frame> = frames.iter().filter(|frame| frame.kind == "moved").collect();
    assert_eq!(events.len(), 1, "no topic is named after a truth value");
    assert!(events[0].text.contains(r#""room":1,"data":{"id":"c1","room":1}"#), "{}", events[0].text);
    let bad = item("c9", 4, "2", r#","group":"g""#).replace("\"create\"", "\"patch\"");
    let frames = push(&mut ada, &[item("c3", 3, "2", r#","group":"g""#), bad]);
    assert_eq!(kinds(&frames), ["ack"], "{frames:#?}");
    let frames = push(&mut ada, &[item("c1", 1, "1", "")]);
    assert!(!kinds(&frames).contains(&"moved"), "a resend announces nothing");
}

#[test]
fn the_outbox_is_routed() {
    let office = office();
    let publish = driftline_protocol::Publish {
        kind: "left".into(),
        data: driftline_protocol::object_of_text(r#"{"room":"a b"}"#, 8).expect("JSON").expect("canonical"),
        ..driftline_protocol::Publish::default()
    };
    let rules = office.engine.rules();
    assert_eq!(
        rules.draft(&publish, &[], 1).map(|draft| draft.topics.len()).map_err(|(field, _)| field),
        Err("data")
    );
    let claims = [("room".into(), "7".into())];
    let empty = driftline_protocol::Publish { data: driftline_model::Object::empty(), ..publish };
    let draft = rules.draft(&empty, &claims, 1).expect("a draft");
    assert_eq!((&*draft.topics[0], &*draft.values), ("room_7", r#""room":7"#));
    let unknown = driftline_protocol::Publish { kind: "other".into(), ..empty };
    assert_eq!(rules.draft(&unknown, &[], 1).map(|_| ()).map_err(|(field, _)| field), Err("topic"));
    assert_eq!(
        &*rules.draft(&unknown, &[("cadet_id".into(), "7".into())], 1).expect("a group").topics[0],
        "cadet_7"
    );
}

/// Publishes, cuts, comes back, subscribes, trims and reads at random: who drops what it has seen has everything that it
/// may see, once and in order, or was told that something is missing.
#[test]
fn whatever_happens_nothing_is_missed_silently() {
    let seed = std::env::var("EVENTS_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    println!("EVENTS_SEED={seed}");
    let mut met = BTreeSet::new();
    for history in 0..60 {
        let mut rng = Rng::new(seed + history);
        follow_one(&mut rng, &mut met);
    }
    for branch in ["cut", "resumed", "hole", "replayed", "live", "between"] {
        assert!(met.contains(branch), "{branch} was never met: {met:?}");
    }
}

fn follow_one(rng: &mut Rng, met: &mut BTreeSet<&'static str>) {
    let office = office();
    let mut bob = office.desk("bob", "phone");
    let mut ada = office.desk("ada", "phone");
    ada.take();
    subscribe(&mut ada, r#","topics":["room_1","room_2"]"#);
    let (mut published, mut seen, mut last) = (Vec::new(), Vec::<u64>::new(), 0);
    let mut muted = false;
    let take = |desk: &mut Desk<'_>, seen: &mut Vec<u64>, last: &mut u64| {
        for id in ids(&desk.take()) {
            if id > *last {
                *last = id;
                seen.push(id);
            }
        }
    };
    for step in 0..120 {
        match rng.below(10) {
            0..=4 => {
                let topic = ["room_1", "room_2", "room_3"][usize::try_from(rng.below(3)).expect("small")];
                publish(&mut bob, topic, "");
                published.push(topic);
            }
            5 => {
                muted = !muted;
                office.mute(muted);
                met.insert("hole");
            }
            6 if step % 3 == 0 => {
                // The connection is cut with whatever it had not read.
                met.insert("cut");
                ada = office.desk("ada", "phone");
                ada.take();
                let frames = subscribe(&mut ada, &format!(r#","topics":["room_1","room_2"],"since":{last}"#));
                for id in ids(&frames).into_iter().filter(|id| *id > last).collect::<Vec<_>>() {
                    last = id;
                    seen.push(id);
                }
                met.insert("resumed");
            }
            7 => {
                ada.feed(&format!(r#"{{"type":"replay_request","last_event_id":{last}}}"#));
                if rng.percent(50) {
                    publish(&mut bob, "room_1", "");
                    published.push("room_1");
                    met.insert("between");
                }
                ada.settle();
                met.insert("replayed");
            }
            _ => {
                let ring =
                    std::future::poll_fn(|context| ada.listener.poll_ring(true, context)).now_or_never();
                if ring == Some(Ring::Hole) {
                    ada.session.fill_hole();
                    ada.poll();
                }
                met.insert("live");
                ada.listen();
                take(&mut ada, &mut seen, &mut last);
            }
        }
    }
    office.mute(false);
    publish(&mut bob, "room_1", "");
    published.push("room_1");
    if std::future::poll_fn(|context| ada.listener.poll_ring(true, context)).now_or_never()
        == Some(Ring::Hole)
    {
        ada.session.fill_hole();
        ada.poll();
    }
    ada.listen();
    take(&mut ada, &mut seen, &mut last);
    let mine = published.iter().zip(1..).filter(|(topic, _)| **topic != "room_3").map(|(_, id)| id);
    assert_eq!(seen, mine.collect::<Vec<u64>>());
}

#[test]
fn notifications_are_read_by_each_user() {
    let office = office();
    let mut staff = office.desk("boss", "desk");
    staff.take();
    let (ada, eve) = (office.identity("ada", "phone"), office.identity("eve", "phone"));
    for (to, id) in [(r#""user_ids":["ada"]"#, "n1"), (r#""topic":"notifications""#, "n2")] {
        let message = format!(
            r#"{{"type":"publish","payload":{{{to},"event_type":"notification","data":{{"id":"{id}","title":"hello","is_read":true}}}}}}"#
        );
        assert_eq!(staff.ask(&message)[0].error_code(), None);
    }
    let listed = |identity, unread| {
        let page = block_on(office.engine.notices(identity, unread, None, 10)).expect("a page");
        page.items
            .iter()
            .map(|item| (item.fields["id"].to_string(), item.fields["is_read"] == true))
            .collect::<Vec<_>>()
    };
    let named = |id: &str, read| (format!("\"{id}\""), read);
    assert_eq!(listed(&ada, false), [named("n2", false), named("n1", false)]);
    assert_eq!(listed(&eve, false), [named("n2", false)]);
    block_on(office.engine.read_notice(&ada, "n2", 5)).expect("read");
    assert_eq!(
        (listed(&ada, true), listed(&eve, true)),
        (vec![named("n1", false)], vec![named("n2", false)])
    );
    assert!(block_on(office.engine.read_notice(&eve, "n1", 5)).is_err(), "another user's");
}

#[test]
fn an_ear_hears_one_device_and_a_follower_all_of_a_user() {
    let office = office();
    let (phone, tablet) = (office.identity("ada", "phone"), office.identity("ada", "tablet"));
    let key = |identity: &driftline_engine::Identity| identity.device.clone().expect("a device").1;
    let one = Ear { device: Some(key(&phone)), ..Ear::of(&phone) };
    let one = office.engine.listener(&phone, one, false);
    one.join("device_status");
    let all = office.engine.listener(&phone, Ear::of(&phone), false);
    all.join(&driftline_engine::devices_of("ada"));
    for identity in [&phone, &tablet] {
        let fields = driftline_model::Object::empty();
        let draft = EventDraft::of_device("device_status", &key(identity), &["device_status"], &fields, 1);
        let draft = EventDraft { durable: false, ..draft };
        office.engine.tell_now(identity.tenant, &draft);
    }
    let count = |listener: &driftline_engine::Listener| {
        let mut heard = Vec::new();
        listener.take(1 << 20, &mut heard);
        heard.len()
    };
    assert_eq!((count(&one), count(&all)), (1, 2));
    let query = of_topic("device_status");
    let page = block_on(office.engine.store().log().events(phone.tenant, query)).expect("a page");
    assert!(page.events.is_empty(), "what is told live is not kept");
}

/// An office with these rules, and types that go where these patterns say.
fn office_of(rules: Vec<TopicRule>, routes: &[(&str, &str)]) -> Office {
    let pattern = |text: &str| vec![Pattern::parse(text).expect("a pattern")];
    let routes = routes.iter().map(|(kind, to)| (Box::from(*kind), pattern(to))).collect();
    let rules = EventRules::new(rules, routes, Vec::new()).expect("rules");
    Office::with(Limits::default(), 64, Catalogue::new(BTreeMap::new()).allow_undeclared()).with_rules(rules)
}

#[test]
fn a_topic_and_not_its_name_says_who_hears_of_devices() {
    let office = office_of(vec![rule("device_news"), rule("gate")], &[]);
    let (ada, bob) = (office.desk_of("ada", "phone", &["user"]), office.desk_of("bob", "phone", &["user"]));
    let key = |desk: &Desk<'_>| desk.identity.device.clone().expect("a device").1;
    let listener = office.engine.listener(&ada.identity, Ear::of(&ada.identity), false);
    for topic in ["device_news", "gate", "device_phone"] {
        listener.join(topic);
    }
    let reached = |topics: &[&str], owner: Option<&Desk<'_>>| {
        let topics = topics.iter().map(|topic| Box::from(*topic)).collect();
        let draft = EventDraft {
            durable: false,
            owner: owner.map(key),
            ..EventDraft::new("x", topics, "{}".into(), 1)
        };
        office.engine.tell_now(ada.identity.tenant, &draft)
    };
    assert_eq!((reached(&["device_news"], None), reached(&["gate"], None)), (1, 1));
    assert_eq!((reached(&["gate"], Some(&ada)), reached(&["gate"], Some(&bob))), (1, 0), "of a device");
    assert_eq!((reached(&["device_phone"], Some(&ada)), reached(&["device_phone"], Some(&bob))), (1, 0));
    assert_eq!(reached(&["device_phone"], None), 0, "whose it is, nobody knows");
    assert_eq!(reached(&["device_phone", "gate"], None), 1, "by the other topic");
}

#[test]
fn a_notification_goes_where_its_route_says() {
    let office = office_of(vec![rule("room_{room}")], &[("notification", "room_{room}")]);
    let mut boss = office.desk("boss", "desk");
    boss.take();
    let notify = |desk: &mut Desk<'_>, id: &str, rest: &str| {
        let data = format!(r#"{{"id":"{id}","title":"hello","room":1}}"#);
        let payload = format!(r#"{{"event_type":"notification","data":{data}{rest}}}"#);
        let answer = desk.ask(&format!(r#"{{"type":"publish","payload":{payload}}}"#));
        assert_eq!(answer[0].error_code(), None, "{}", answer[0].text);
    };
    notify(&mut boss, "n1", "");
    notify(&mut boss, "n2", r#","topic":"notifications""#);
    let page = block_on(office.engine.notices(&boss.identity, false, None, 10)).expect("a page");
    let ids: Vec<&str> = page.items.iter().map(|item| item.fields["id"].as_str().expect("an id")).collect();
    assert_eq!(ids, ["n2"]);
    let rooms = of_topic("room_1");
    let page = block_on(office.engine.store().log().events(boss.identity.tenant, rooms)).expect("a page");
    assert_eq!(page.events.len(), 1);
}

#[test]
fn notifications_are_for_whoever_may_listen_to_their_topic() {
    let staff = Access { roles: vec!["staff".into()], ..Access::default() };
    let office = office_of(vec![TopicRule { subscribe: staff, ..rule("notifications") }], &[]);
    let mut boss = office.desk("boss", "desk");
    boss.take();
    let notice =
        r#"{"type":"publish","payload":{"event_type":"notification","data":{"id":"n1","title":"a"}}}"#;
    assert_eq!(boss.ask(notice)[0].error_code(), None);
    let ada = office.desk_of("ada", "phone", &["user"]);
    let count = |desk: &Desk<'_>| {
        block_on(office.engine.notices(&desk.identity, false, None, 10)).expect("a page").items.len()
    };
    assert_eq!((count(&boss), count(&ada)), (1, 0));
    assert!(block_on(office.engine.read_notice(&ada.identity, "n1", 5)).is_err());
    assert!(block_on(office.engine.read_notice(&boss.identity, "n1", 5)).is_ok());
}

#[test]
fn an_event_goes_to_so_many_topics() {
    let office = office();
    let mut boss = office.desk("boss", "desk");
    boss.take();
    let mut publish = |users: usize| {
        let users: Vec<String> = (0..users).map(|user| format!("\"u{user}\"")).collect();
        let payload = format!(r#"{{"topic":"room_1","user_ids":[{}],"event_type":"x"}}"#, users.join(","));
        boss.ask(&format!(r#"{{"type":"publish","payload":{payload}}}"#))[0].error_code()
    };
    assert_eq!(publish(255), None);
    assert_eq!(publish(256).as_deref(), Some("VALIDATION_ERROR"));
}

/// What sixteen replays have sent is remembered until the connection has caught up.
#[test]
fn of_very_many_replays_in_a_row_the_first_are_forgotten() {
    for (others, times) in [(15, 1), (16, 2)] {
        let office = office();
        let (mut ada, mut bob) = (office.desk("ada", "phone"), office.desk("bob", "phone"));
        subscribe(&mut ada, r#","topics":["room_1","room_2"]"#);
        ada.take();
        ada.feed(r#"{"type":"replay_request","last_event_id":0}"#);
        // It goes by: the log is being read.
        publish(&mut bob, "room_1", "");
        for _ in 0..others {
            ada.feed(r#"{"type":"replay_request","last_event_id":0,"topics":["room_2"]}"#);
            let done = ada.perform();
            ada.report(done);
        }
        ada.settle();
        ada.listen();
        assert_eq!(ids(&ada.take()), vec![1; times], "{others} others");
    }
}
