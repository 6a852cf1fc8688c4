//! Telemetry, keys and what devices say of themselves, through sessions.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use driftline_engine::{
    Announce, Catalogue, KindRule, Preset, Retention, SampleQuery, SeriesQuery, Store, TelemetryRule,
};
use driftline_model::{KindName, Limits};
use driftline_protocol::{Document, Encoding, SampleSchema, decode};
use driftline_realtime::Pattern;
use driftline_testkit::block_on;

use support::desk::{Desk, Frame, Office, SYNC, kinds};

fn kind(name: &str) -> KindName {
    KindName::new(name).expect("a kind")
}

fn rule(telemetry: TelemetryRule) -> KindRule {
    KindRule { telemetry: Some(Arc::new(telemetry)), ..KindRule::default() }
}

/// Positions by their time, scores without a name, and records of any kind.
fn office() -> Office {
    let schema = r#"{"required":["latitude","timestamp"],
        "properties":{"latitude":{"type":"number","minimum":-90,"maximum":90}}}"#;
    let location = TelemetryRule {
        key: vec!["timestamp".into()],
        schema: Some(Arc::new(SampleSchema::compile(schema).expect("a schema"))),
        ..TelemetryRule::default()
    };
    let announce = Arc::new(Announce {
        kind: "score".into(),
        topics: vec![Pattern::parse("scores_{team}").expect("a pattern")],
        fields: vec!["score".into()],
        durable: false,
        conflate: None,
    });
    let voice = TelemetryRule {
        announce: Some(announce),
        retention_ms: Some(1_000),
        watch: vec!["score".into()],
        ..TelemetryRule::default()
    };
    let kinds = BTreeMap::from([
        (kind("location"), rule(location)),
        (kind("voice"), rule(voice)),
        (kind("secret"), KindRule { write: vec!["nobody".into()], ..rule(TelemetryRule::default()) }),
    ]);
    Office::with(Limits::default(), 64, Catalogue::new(kinds).allow_undeclared())
}

/// The one answer to a message, behind `server_time` and `reply_to`.
fn answer(desk: &mut Desk<'_>, frame: &str) -> String {
    let frames = desk.ask(frame);
    assert_eq!(frames.len(), 1, "{frames:#?}");
    behind(&frames[0])
}

/// What stands behind the fields that differ between an answer and its replay.
fn behind(frame: &Frame) -> String {
    let text = &frame.text;
    match text.split_once("\"replayed\":") {
        Some((_, rest)) => rest.split_once(',').expect("fields follow").1.to_owned(),
        None => text.split_once(",\"code\":").map_or(text.clone(), |(_, rest)| format!("\"code\":{rest}")),
    }
}

fn is_replay(frame: &Frame) -> bool {
    frame.text.contains("\"replayed\":true")
}

fn stored(desk: &Desk<'_>, name: &str) -> Vec<String> {
    let query = SampleQuery {
        kind: kind(name),
        devices: None,
        from_ms: 0,
        to_ms: u64::MAX,
        after: None,
        rows: 1_000,
    };
    let rows = block_on(desk.office.engine.store().samples(desk.identity.tenant, query)).expect("samples");
    rows.into_iter().map(|row| row.fields.as_str().to_owned()).collect()
}

fn code(text: &str) -> String {
    let whole = format!("{{{text}");
    let document = Document::parse(whole.as_bytes(), 64).expect("JSON");
    document.root().get("code").and_then(|node| node.as_str()).expect("a code").into_owned()
}

#[test]
fn three_bad_samples_of_a_hundred_are_named_and_a_resend_changes_nothing() {
    let office = office();
    let mut desk = office.desk("ada", "phone");
    desk.take();
    let samples: Vec<String> = (0..100)
        .map(|at| match at {
            7 => r#"{"timestamp":"t","latitude":91}"#.to_owned(),
            50 => r#"{"latitude":1}"#.to_owned(),
            99 => "3".to_owned(),
            at => format!(r#"{{"timestamp":{at},"latitude":{}}}"#, at % 90),
        })
        .collect();
    let message = format!(r#"{{"type":"location","payload":{{"items":[{}]}}}}"#, samples.join(","));
    let first = answer(&mut desk, &message);
    assert!(first.contains(r#""accepted":97,"duplicates":0"#), "{first}");
    for named in [
        r#""index":7,"code":"invalid","pointer":"/latitude""#,
        r#""index":50,"code":"invalid""#,
        r#""index":99"#,
    ] {
        assert!(first.contains(named), "{named}: {first}");
    }
    let before = stored(&desk, "location");
    assert_eq!(before.len(), 97);
    let second = answer(&mut desk, &message);
    assert!(second.contains(r#""accepted":0,"duplicates":97"#), "{second}");
    assert_eq!(stored(&desk, "location"), before);
}

#[test]
fn a_key_answers_again_to_the_byte() {
    let office = office();
    let mut desk = office.desk("ada", "phone");
    desk.take();
    let message = |id: &str, score: u32| {
        format!(
            r#"{{"type":"voice","id":"{id}","idempotency_key":"k1","payload":{{"items":[{{"score":{score}}},{{"score":{score}}}]}}}}"#
        )
    };
    let first = desk.ask(&message("m1", 1)).remove(0);
    assert!(!is_replay(&first) && first.text.contains(r#""accepted":2"#), "{first:?}");
    let second = desk.ask(&message("m2", 1)).remove(0);
    assert!(is_replay(&second), "{second:?}");
    assert_eq!((behind(&first), second.reply_to.as_deref()), (behind(&second), Some("m2")));
    // The store answers as memory does.
    office.engine.forget_answers();
    let third = desk.ask(&message("m3", 1)).remove(0);
    assert!(is_replay(&third));
    assert_eq!(behind(&third), behind(&first));
    assert_eq!(stored(&desk, "voice").len(), 2, "two equal samples both count, and once");

    // Another body under the key is refused, from memory and from the store, and the first record stays.
    for _ in 0..2 {
        let other = desk.ask(&message("m4", 2)).remove(0);
        assert_eq!(other.error_code().as_deref(), Some("IDEMPOTENCY_KEY_REUSED"));
        office.engine.forget_answers();
    }
    assert_eq!(behind(&desk.ask(&message("m5", 1)).remove(0)), behind(&first));
}

#[test]
fn keys_belong_to_their_device() {
    let office = office();
    let message = r#"{"type":"voice","idempotency_key":"k1","score":1}"#;
    for (user, device) in [("ada", "phone"), ("ada", "tablet"), ("bob", "phone")] {
        let mut desk = office.desk(user, device);
        desk.take();
        let frames = desk.ask(message);
        assert!(!is_replay(&frames[0]) && frames[0].text.contains(r#""accepted":1"#), "{frames:?}");
    }
    assert_eq!(stored(&office.desk("ada", "phone"), "voice").len(), 3);
}

#[test]
fn both_encodings_have_one_fingerprint() {
    let office = office();
    let mut desk = office.desk("ada", "phone");
    desk.take();
    let text = r#"{"type":"voice","idempotency_key":"k1","payload":{"b":1.0,"a":"\u00e9"}}"#;
    let first = desk.ask(text).remove(0);
    let packed = Document::parse(text.as_bytes(), 8).expect("JSON").to_msgpack();
    let twin = decode(Encoding::MessagePack, &packed, office.engine.limits());
    desk.session.handle_message(twin, desk.now_ms);
    desk.poll();
    desk.settle();
    let second = desk.take().remove(0);
    assert!(is_replay(&second), "{second:?}");
    assert_eq!(behind(&second), behind(&first));
}

#[test]
fn a_batch_of_a_session_answers_again_with_its_samples() {
    let office = office();
    let mut desk = office.desk("ada", "phone").start("");
    let batch = |acked_n: u64, title: &str| {
        format!(
            r#"{{"type":"sync_data","sync_id":"{SYNC}","payload":{{"batch_seq":1,"acked_n":{acked_n},"batch":[
            {{"op_id":"o1","n":1,"kind":"note","id":"n1","op":"create","fields":{{"title":"{title}"}}}},
            {{"kind":"voice","score":3}},{{"kind":"voice","score":3}},{{"kind":"voice","op":"patch","id":"x","fields":{{}}}}]}}}}"#
        )
    };
    let first = desk.ask(&batch(0, "a")).remove(0);
    assert!(first.text.contains(r#""synced":3,"failed":1"#), "{first:?}");
    // What was acknowledged meanwhile is no part of the batch.
    let second = desk.ask(&batch(1, "a")).remove(0);
    assert!(is_replay(&second), "{second:?}");
    assert_eq!(behind(&second), behind(&first));
    let other = desk.ask(&batch(1, "b")).remove(0);
    assert_eq!(other.error_code().as_deref(), Some("IDEMPOTENCY_KEY_REUSED"));
    assert_eq!(stored(&desk, "voice"), [r#"{"score":3}"#, r#"{"score":3}"#]);
}

#[test]
fn who_cannot_be_recognised_is_told() {
    let office = office();
    let mut desk = office.desk("ada", "phone").start("");
    let flat = answer(&mut desk, r#"{"type":"voice","id":"1","score":1}"#);
    assert!(flat.contains(r#""resend_recognised":false"#), "{flat}");
    let again = answer(&mut desk, r#"{"type":"voice","id":"1","score":1}"#);
    assert!(again.contains(r#""accepted":1"#), "a message's id is no sample's: {again}");
    for recognised in [
        r#"{"type":"location","timestamp":5,"latitude":1}"#,
        r#"{"type":"voice","payload":{"id":"s1","score":1}}"#,
        r#"{"type":"voice","idempotency_key":"k","score":1}"#,
    ] {
        let told = answer(&mut desk, recognised);
        assert!(!told.contains("resend_recognised"), "{told}");
    }
    let batch = format!(
        r#"{{"type":"sync_data","sync_id":"{SYNC}","payload":{{"batch":[{{"kind":"voice","score":1}}]}}}}"#
    );
    assert!(answer(&mut desk, &batch).contains(r#""resend_recognised":false"#));
    let named = batch.replace("\"kind\"", "\"op_id\":\"o9\",\"kind\"");
    assert!(!answer(&mut desk, &named).contains("resend_recognised"));
    assert!(answer(&mut desk, &named).contains(r#""duplicate":true"#));
}

#[test]
fn a_later_sample_of_a_key_takes_the_place_of_an_earlier_one() {
    let office = office();
    let mut desk = office.desk("ada", "phone");
    desk.take();
    let message = |ts: u64, latitude: u32| {
        format!(r#"{{"type":"location","ts":{ts},"payload":{{"timestamp":5,"latitude":{latitude}}}}}"#)
    };
    assert!(answer(&mut desk, &message(10, 1)).contains(r#""accepted":1"#));
    assert!(answer(&mut desk, &message(20, 2)).contains(r#""accepted":1"#));
    let overtaken = answer(&mut desk, &message(10, 1));
    assert!(overtaken.contains(r#""accepted":0,"duplicates":1"#), "{overtaken}");
    assert_eq!(stored(&desk, "location"), [r#"{"latitude":2,"timestamp":5}"#]);
    // Another device's sample of the same values is another one.
    let mut other = office.desk("bob", "phone");
    other.take();
    assert!(answer(&mut other, &message(30, 3)).contains(r#""accepted":1"#));
    assert_eq!(stored(&desk, "location").len(), 2);
}

#[test]
fn a_sample_of_a_failed_group_is_not_kept() {
    let office = office();
    let mut desk = office.desk("ada", "phone").start("");
    let batch = format!(
        r#"{{"type":"sync_data","sync_id":"{SYNC}","payload":{{"batch_seq":1,"batch":[
        {{"kind":"voice","score":3,"group":"g"}},
        {{"op_id":"o1","n":1,"kind":"note","id":"n1","op":"patch","fields":{{"a":1}},"group":"g"}}]}}}}"#
    );
    let told = answer(&mut desk, &batch);
    assert!(told.contains(r#""code":"dependency_failed""#) && told.contains(r#""code":"gone""#), "{told}");
    assert!(stored(&desk, "voice").is_empty());
}

#[test]
fn a_taken_id_is_refused_and_overwrites_nothing() {
    let office = office();
    let mut desk = office.desk("ada", "phone");
    desk.take();
    let message = |score: u32| format!(r#"{{"type":"voice","payload":{{"id":"s1","score":{score}}}}}"#);
    answer(&mut desk, &message(1));
    let refused = answer(&mut desk, &message(2));
    assert!(refused.contains(r#""pointer":"/id""#) && refused.contains("invalid"), "{refused}");
    assert_eq!(stored(&desk, "voice"), [r#"{"score":1}"#]);
}

#[test]
fn messages_of_other_routes_and_kinds_are_refused() {
    let office = office();
    let mut desk = office.desk("ada", "phone");
    desk.take();
    for message in [r#"{"type":"note","a":1}"#, r#"{"type":"nonsense"}"#] {
        assert_eq!(code(&answer(&mut desk, message)), "UNKNOWN_MESSAGE_TYPE");
    }
    let forbidden = answer(&mut desk, r#"{"type":"secret","a":1}"#);
    assert!(forbidden.contains(r#""code":"forbidden""#), "{forbidden}");
    for (preset, refused) in [
        (Preset::Ingest, vec!["start_sync", "subscribe_events"]),
        (Preset::System, vec!["start_sync", "voice", "analytics_batch"]),
        (Preset::Watch, vec!["voice", "device_status", "subscribe_events", "end_sync"]),
    ] {
        let mut desk = office.desk("ada", "phone");
        desk.session = desk.session.on(preset);
        desk.take();
        for name in refused {
            let rest = r#""topics":["x"],"status":"ok","from":1,"to":2"#;
            let told = answer(&mut desk, &format!(r#"{{"type":"{name}","payload":{{{rest}}}}}"#));
            assert_eq!(code(&told), "UNKNOWN_MESSAGE_TYPE", "{preset:?} {name}");
        }
        assert_eq!(kinds(&desk.ask(r#"{"type":"ping","timestamp":1}"#)), ["pong"]);
    }
}

#[test]
fn a_window_counts_once() {
    let office = office();
    let mut desk = office.desk("ada", "phone");
    desk.take();
    let hour = desk.now_ms / 3_600_000 * 3_600_000;
    let batch = |opened: u64| {
        format!(
            r#"{{"type":"analytics_batch","payload":{{"from":{hour},"to":{},"counters":{{"opened":{opened}}},"histograms":{{"ms":[[10,2],30]}}}}}}"#,
            hour + 60_000
        )
    };
    let mut clock = desk.now_ms;
    clock = clock.max(hour + 120_000);
    desk.wait(clock - desk.now_ms);
    assert!(desk.ask(&batch(3)).remove(0).text.contains(r#""of":"analytics_batch""#));
    assert!(is_replay(&desk.ask(&batch(3)).remove(0)));
    let other = desk.ask(&batch(4)).remove(0);
    assert_eq!(other.error_code().as_deref(), Some("IDEMPOTENCY_KEY_REUSED"));
    let mut second = office.desk("ada", "tablet");
    second.take();
    second.ask(&batch(5));
    let query = SeriesQuery { from_ms: 0, to_ms: u64::MAX, after: None, rows: 10 };
    let rows = block_on(office.engine.store().series(desk.identity.tenant, query)).expect("series");
    let told: Vec<_> = rows
        .iter()
        .map(|row| (row.hour_ms, &*row.name, row.point.counter, row.point.sketch.count()))
        .collect();
    assert_eq!(told, [(hour, "ms", 0, 6), (hour, "opened", 8, 0)]);
    let future = batch(1).replace(&format!("\"to\":{}", hour + 60_000), "\"to\":9000000000000000");
    assert_eq!(code(&answer(&mut desk, &future)), "VALIDATION_ERROR");
}

#[test]
fn samples_are_announced_to_those_who_may_hear() {
    let office = office();
    let mut listener = office.desk("ada", "phone");
    listener.take();
    let subscribed = listener.ask(
        r#"{"type":"subscribe_events","topics":["scores_red","device_phone","user_bob","nonsense","device_status"]}"#,
    );
    let told = &subscribed[0].text;
    for part in [
        r#"{"topic":"scores_red","accepted":true,"#,
        r#"{"topic":"device_phone","accepted":true,"#,
        r#"{"topic":"user_bob","accepted":false,"code":"FORBIDDEN"}"#,
        r#"{"topic":"nonsense","accepted":false,"code":"NOT_FOUND"}"#,
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let mut phone = office.desk("ada", "phone");
    phone.take();
    phone.ask(r#"{"type":"voice","payload":{"score":7,"team":"red"}}"#);
    phone.ask(r#"{"type":"voice","payload":{"score":8,"team":"blue"}}"#);
    listener.listen();
    let events = listener.take();
    // The device's own topic is one of each of its events.
    assert_eq!(kinds(&events), ["score", "score"]);
    assert!(events[0].text.contains(r#""data":{"device_id":"phone","score":7}"#), "{events:?}");
}

#[test]
fn what_is_past_its_retention_goes() {
    let office = office();
    let mut desk = office.desk("ada", "phone");
    desk.take();
    desk.ask(r#"{"type":"voice","score":1}"#);
    desk.ask(r#"{"type":"location","timestamp":1,"latitude":1}"#);
    let retention = Retention { samples: vec![(kind("voice"), 1_000)], series_ms: None };
    let store = office.engine.store();
    block_on(store.prune(desk.now_ms + 999, &retention)).expect("pruned");
    assert_eq!(stored(&desk, "voice").len(), 1);
    block_on(store.prune(desk.now_ms + 1_001, &retention)).expect("pruned");
    assert_eq!((stored(&desk, "voice").len(), stored(&desk, "location").len()), (0, 1));
}
