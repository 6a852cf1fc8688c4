//! A database that lost transactions: whoever holds numbers of it is asked to come again.

mod support;

use driftline_engine::Listeners as _;
use driftline_model::Limits;
use driftline_testkit::http::Request;
use driftline_testkit::socket::Socket;
use serde_json::{Value, json};
use support::gated::{Gate, gated};
use support::{Harness, Setup, batch, create, grant, start, start_on, telemetry, unhurried, until};

/// Reads on until the connection ends, which must be because the server wants it back; gives the messages before.
async fn sent_away(mut socket: Socket) -> Vec<Value> {
    let (mut messages, close) = socket.until_end().await;
    let last = messages.pop().unwrap_or_else(|| panic!("closed with {close} and no message"));
    assert_eq!((&last["type"], close), (&json!("server_draining"), 1012), "{last}");
    let wait_ms = last["reconnect_after_ms"].as_u64().expect("a number");
    assert!((500..3_500).contains(&wait_ms), "{wait_ms}");
    messages
}

async fn is_ready<S: driftline_engine::Store>(harness: &Harness<S>) -> bool {
    Request::get("/ready").send(harness.address).await.status == 200
}

#[tokio::test]
async fn sessions_that_listen_end_at_once_and_their_devices_come_back() {
    let harness = start(Setup::default()).await;
    let mut syncing = harness.syncing("phone").await;
    let listening = harness.enter(&grant("t1", "rita", "reviewer"), "desk").await;
    let idle = harness.device("watch").await;
    syncing.ask(&batch(1, &[create(1, "note", "a", &json!({}))]), "ack").await;
    harness.hub.numbers_voided();
    assert_eq!(sent_away(syncing).await, [] as [Value; 0]);
    assert_eq!(sent_away(listening).await, [] as [Value; 0]);
    assert_eq!(sent_away(idle).await, [] as [Value; 0], "it listens to events");

    assert!(is_ready(&harness).await, "the server itself goes on");
    let (mut again, mut other) = (harness.syncing("phone").await, harness.syncing("tablet").await);
    other.ask(&batch(1, &[create(1, "note", "b", &json!({}))]), "ack").await;
    assert_eq!(
        again.expect("server_delta").await["changes"][0]["id"],
        "b",
        "they hear of each other as before"
    );
}

#[tokio::test]
async fn a_session_that_hears_of_nothing_ends_with_its_next_work() {
    let harness = start(telemetry::setup()).await;
    harness.hashed().await;
    let mut sending = harness.by_hash().await;
    harness.hub.numbers_voided();
    sending.ask(&json!({"type": "ping"}), "pong").await;
    sending.send(&json!({"type": "reading", "id": "s", "payload": {"value": 1}})).await;
    let answers = sent_away(sending).await;
    assert_eq!(answers.len(), 1, "what was asked is answered first: {answers:?}");
    assert_eq!(answers[0]["reply_to"], "s");
}

#[tokio::test]
async fn a_session_that_asks_for_nothing_ends_with_the_next_look_at_the_time() {
    let mut setup = telemetry::setup();
    setup.limits.heartbeat_s = 1;
    let harness = start(setup).await;
    harness.hashed().await;
    let quiet = harness.by_hash().await;
    harness.hub.numbers_voided();
    assert_eq!(sent_away(quiet).await, [] as [Value; 0]);
}

#[tokio::test]
async fn what_is_under_way_is_answered_before_the_session_ends() {
    let gate = Gate::shut();
    let setup = Setup { limits: unhurried(Limits::default()), ..Setup::default() };
    let harness = start_on(setup, |store| gated(store, &gate)).await;
    let mut socket = harness.syncing("phone").await;
    socket.send(&batch(1, &[create(1, "note", "a", &json!({}))])).await;
    until("the commit", async || gate.begun() > 0).await;
    harness.hub.numbers_voided();
    gate.let_through(1);
    let answers = sent_away(socket).await;
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!((&answers[0]["type"], &answers[0]["synced"]), (&json!("ack"), &json!(1)));
}
