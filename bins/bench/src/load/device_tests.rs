//! Tests of the batches that a device makes and of what it learns from acknowledgements.

use serde_json::{Value, json};

use super::super::now::now;
use super::*;

fn device(dialect: Dialect, items: usize) -> Device {
    device_of(dialect, items, 1)
}

/// A device whose ids differ from those of every other `stream`.
fn device_of(dialect: Dialect, items: usize, stream: u64) -> Device {
    let profile = Profile {
        dialect,
        kind: "load_0".to_owned(),
        sync_id: "s".to_owned(),
        items,
        bodies: Arc::new(Bodies::new(1, 64)),
    };
    Device::new(profile, Rng::new(1, stream))
}

fn next(device: &mut Device) -> Value {
    let mut out = Vec::new();
    device.request(now(), &mut out);
    serde_json::from_slice(&out).expect("a batch is JSON")
}

fn items_of(batch: &Value) -> &Vec<Value> {
    batch
        .pointer("/payload/batch")
        .or(batch.pointer("/payload/items"))
        .and_then(Value::as_array)
        .expect("items")
}

/// Acknowledges a batch with `code` for every item, versions from `first_version` on.
fn acknowledge(device: &mut Device, batch: &Value, code: &str, first_version: u64) -> Settled {
    let results: Vec<Value> = (items_of(batch).iter().enumerate())
        .map(|(i, item)| json!({"index": i, "id": item["id"], "code": code, "version": first_version + i as u64}))
        .collect();
    let ack = json!({"type": "ack", "of": "sync_data", "reply_to": batch["id"], "results": results});
    device.answer(ack.to_string().as_bytes(), &mut Codes::default()).expect("a valid ack")
}

fn ops(batch: &Value) -> (usize, usize) {
    let of = |op: &str| items_of(batch).iter().filter(|item| item["op"] == op).count();
    (of("create"), of("patch"))
}

#[test]
fn half_of_the_items_patch_once_there_are_rows() {
    let mut device = device(Dialect::Driftline, 10);
    device.mix(Arc::new([]), 0.0);
    let first = next(&mut device);
    assert_eq!(ops(&first), (10, 0));
    acknowledge(&mut device, &first, "applied", 100);
    let second = next(&mut device);
    assert_eq!(ops(&second), (5, 5));
    for item in items_of(&second).iter().filter(|item| item["op"] == "patch") {
        let at = items_of(&first).iter().position(|old| old["id"] == item["id"]).expect("an earlier row");
        assert_eq!(item["base_version"], 100 + at as u64);
        assert_eq!(item["fields"].as_object().map(serde_json::Map::len), Some(10));
    }
}

#[test]
fn numbers_and_stamps_rise_and_op_ids_are_unique() {
    let mut device = device(Dialect::Driftline, 50);
    let batches = [next(&mut device), next(&mut device)];
    let items: Vec<&Value> = batches.iter().flat_map(items_of).collect();
    let n: Vec<_> = items.iter().map(|item| item["n"].as_u64().expect("n")).collect();
    assert_eq!(n, (1..=100).collect::<Vec<_>>());
    let text =
        |key: &str| items.iter().map(|i| i[key].as_str().expect("text").to_owned()).collect::<Vec<_>>();
    assert!(text("hlc").is_sorted_by(|a, b| a < b));
    assert!(text("op_id").is_sorted_by(|a, b| a < b));
}

#[test]
fn acked_n_is_sent_up_to_the_first_gap() {
    let mut device = device(Dialect::Driftline, 10);
    let batches: Vec<Value> = (0..3).map(|_| next(&mut device)).collect();
    acknowledge(&mut device, &batches[1], "applied", 20);
    assert_eq!(next(&mut device)["payload"]["acked_n"], 0);
    acknowledge(&mut device, &batches[0], "applied", 10);
    assert_eq!(next(&mut device)["payload"]["acked_n"], 20);
    assert_eq!(device.in_flight(), 3);
}

#[test]
fn contested_items_keep_the_base_of_the_creation() {
    let mut author = device(Dialect::Driftline, 10);
    let created = next(&mut author);
    acknowledge(&mut author, &created, "applied", 7);
    let pool = author.take_rows();
    let mut other = device_of(Dialect::Driftline, 10, 2);
    other.mix(Arc::clone(&pool), 0.2);
    let mut contested = 0;
    for version in 0..20 {
        let batch = next(&mut other);
        for item in items_of(&batch).iter().filter(|item| item["op"] == "patch") {
            if let Some(at) = items_of(&created).iter().position(|old| old["id"] == item["id"]) {
                contested += 1;
                assert_eq!(item["base_version"], 7 + at as u64);
            }
        }
        acknowledge(&mut other, &batch, "merged", 1_000 + version * 10);
    }
    assert!((38..=40).contains(&contested), "{contested} of 200");
}

#[test]
fn refused_items_are_not_patched_later() {
    let mut device = device(Dialect::Driftline, 4);
    device.mix(Arc::new([]), 0.0);
    let batch = next(&mut device);
    let settled = acknowledge(&mut device, &batch, "invalid", 1);
    assert!(matches!(settled, Settled::Done { items: 0, .. }), "{settled:?}");
    assert_eq!(ops(&next(&mut device)), (4, 0));
}

#[test]
fn an_error_settles_the_batch_that_it_names() {
    let mut device = device(Dialect::Driftline, 1);
    next(&mut device);
    let error = br#"{"type":"error","code":"RATE_LIMITED","reply_to":"1","retry_after_ms":20}"#;
    let settled = device.answer(error, &mut Codes::default()).expect("read");
    let Settled::Refused { due: Some(_), code, pause } = settled else { panic!("{settled:?}") };
    assert_eq!((code.as_str(), pause), ("RATE_LIMITED", Some(Duration::from_millis(20))));
    assert_eq!(device.in_flight(), 0);
}

#[test]
fn live_changes_answer_nothing_and_a_short_ack_is_a_fault() {
    let mut device = device(Dialect::Driftline, 2);
    next(&mut device);
    let mut answer = |text: &[u8]| device.answer(text, &mut Codes::default());
    assert_eq!(answer(br#"{"type":"server_delta","changes":[]}"#).expect("read"), Settled::Nothing);
    assert_eq!(answer(br#"{"type":"heartbeat"}"#).expect("read"), Settled::Nothing);
    assert!(answer(br#"{"type":"ack","reply_to":"1","results":[]}"#).is_err());
}

#[test]
fn the_plain_dialect_carries_the_same_bodies_and_rising_versions() {
    let mut device = device(Dialect::Plain, 10);
    device.mix(Arc::new([]), 0.0);
    let first = next(&mut device);
    let ack = json!({"type": "ack", "sync_id": first["sync_id"], "payload": {"applied": 10}});
    let mut results = Codes::default();
    let settled = device.answer(ack.to_string().as_bytes(), &mut results).expect("read");
    assert!(matches!(settled, Settled::Done { items: 10, .. }), "{settled:?}");
    let second = next(&mut device);
    assert_ne!(first["sync_id"], second["sync_id"]);
    let patched = items_of(&second).iter().filter(|item| {
        items_of(&first).iter().any(|old| {
            old["id"] == item["id"]
                && old["ver"].as_u64() < item["ver"].as_u64()
                && old["updated_at"].is_u64()
        })
    });
    assert_eq!(patched.count(), 5);
    assert!(
        items_of(&second).iter().all(|item| item["data"].as_object().map(serde_json::Map::len) == Some(10))
    );
}
