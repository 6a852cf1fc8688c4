//! Every rate of the doors, reached.

mod support;

use driftline_model::{Limits, Rate};
use driftline_testkit::http::{Request, Response};
use driftline_testkit::socket::{Frame, Handshake, Incoming, Socket};
use driftline_transport::Settings;
use serde_json::{Value, json};
use support::{Harness, Setup, batch, create, socket_path, start, start_limited};

const RECORDS: &str = "/api/v1/records/note";

fn rate(per_s: u32, burst: u32) -> Rate {
    Rate { per_s, burst }
}

fn ping() -> Value {
    json!({"type": "ping", "id": "p"})
}

fn note(n: u64) -> Value {
    create(n, "note", &format!("n-{n}"), &json!({"n": n}))
}

fn push(device: &str, items: &[Value]) -> Request {
    Request::post(&format!("/api/v1/sync?device_id={device}"), &json!({"batch": items}))
}

/// What an answer says of the limit that was reached: status, scope, milliseconds, and the header's seconds.
fn refusal(response: &Response) -> (u16, String, u64, String) {
    let problem = response.json();
    assert_eq!(problem["code"], "RATE_LIMITED", "{problem}");
    assert!(response.header("content-type").is_some_and(|kind| kind.starts_with("application/problem+json")));
    let scope = problem["scope"].as_str().expect("a scope").to_owned();
    let wait_ms = problem["retry_after_ms"].as_u64().expect("a wait");
    (response.status, scope, wait_ms, response.header("retry-after").expect("a header").to_owned())
}

fn left(response: &Response) -> (Option<&str>, Option<&str>) {
    (response.header("ratelimit-policy"), response.header("ratelimit"))
}

async fn refused(socket: &mut Socket, message: &Value) -> Value {
    let error = socket.ask(message, "error").await;
    assert_eq!((&error["code"], &error["retryable"]), (&json!("RATE_LIMITED"), &json!(true)), "{error}");
    error
}

/// Starts a server with the rates that it has unless told otherwise.
async fn default_rates() -> Harness {
    start(Setup { limits: Limits::default(), ..Setup::default() }).await
}

#[tokio::test]
async fn a_connection_may_say_100_messages_at_once_and_50_a_second() {
    let harness = default_rates().await;
    let mut socket = harness.device("d1").await;
    for _ in 0..100 {
        socket.ask(&ping(), "pong").await;
    }
    let error = refused(&mut socket, &ping()).await;
    assert_eq!((&error["reply_to"], &error["retry_after_ms"]), (&json!("p"), &json!(20)));
    let advice =
        json!({"status": 429, "backoff": "exponential", "limit": "50/s, burst 100", "scope": "connection"});
    assert_eq!(error["details"], advice);
    harness.clock.advance(1000);
    for _ in 0..50 {
        socket.ask(&ping(), "pong").await;
    }
    refused(&mut socket, &ping()).await;
    // Another connection of the same user has its own.
    harness.device("d2").await.ask(&ping(), "pong").await;
}

#[tokio::test]
async fn a_user_may_do_400_things_at_once_on_both_doors() {
    let harness = default_rates().await;
    let mut sockets = Vec::new();
    for n in 0..4 {
        // Coming in is one of them.
        let mut socket = harness.device(&format!("d{n}")).await;
        for _ in 0..98 {
            socket.ask(&ping(), "pong").await;
        }
        sockets.push(socket);
    }
    for remaining in (0..4).rev() {
        let response = harness.ask("t1", "ada", Request::get(RECORDS)).await;
        let told = format!(r#""user";r={remaining};t=2"#);
        assert_eq!(response.status, 200);
        assert_eq!(left(&response), (Some(r#""user";q=400;w=2"#), Some(told.as_str())));
    }
    assert_eq!(refused(&mut sockets[0], &ping()).await["details"]["scope"], "user");
    let response = harness.ask("t1", "ada", Request::get(RECORDS)).await;
    assert_eq!(refusal(&response), (429, "user".into(), 5, "1".into()));
    assert_eq!(left(&response).1, Some(r#""user";r=0;t=2"#));
    let handshake = Handshake::new(&socket_path("t1", "ada", "d9"));
    let response = handshake.send(harness.address).await.expect_err("it is refused before the upgrade");
    assert_eq!(refusal(&response), (429, "user".into(), 5, "1".into()));
    // Others are not concerned, of this tenant or of another one with the same name.
    for (tenant, user) in [("t1", "bob"), ("t2", "ada")] {
        assert_eq!(harness.ask(tenant, user, Request::get(RECORDS)).await.status, 200);
    }
    harness.clock.advance(5);
    assert_eq!(harness.ask("t1", "ada", Request::get(RECORDS)).await.status, 200);
}

#[tokio::test]
async fn batches_come_40_at_once_and_20_a_second_on_both_doors() {
    let harness = default_rates().await;
    let mut socket = harness.syncing("d1").await;
    for n in 1..=39 {
        socket.ask(&batch(n, &[note(n)]), "ack").await;
    }
    let other = |n: u64| create(n, "note", &format!("other-{n}"), &json!({}));
    let response = harness.ask("t1", "ada", push("d2", &[other(1)])).await;
    assert_eq!(response.status, 200, "{}", response.text());
    socket.expect("server_delta").await;
    let (policy, told) = left(&response);
    assert_eq!(policy, Some(r#""user";q=400;w=2, "sync_data";q=40;w=2"#));
    assert!(told.is_some_and(|told| told.ends_with(r#""sync_data";r=0;t=2"#)), "{told:?}");

    let error = refused(&mut socket, &batch(40, &[note(40)])).await;
    let advice = json!({"status": 429, "backoff": "exponential", "limit": "20/s, burst 40", "scope": "type"});
    assert_eq!(error["details"], advice);
    let response = harness.ask("t1", "ada", push("d2", &[other(2)])).await;
    assert_eq!(refusal(&response), (429, "type".into(), 50, "1".into()));
    // Pulls go on, on both doors.
    assert_eq!(harness.ask("t1", "ada", push("d2", &[])).await.status, 200);
    socket.ask(&support::pull(), "server_data").await;
    // Nothing of what was refused was applied, and what is sent again is applied once.
    let refused_one = Request::get("/api/v1/records/note/n-40");
    assert_eq!(harness.ask("t1", "ada", refused_one).await.status, 404);
    harness.clock.advance(50);
    let ack = socket.ask(&batch(40, &[note(40)]), "ack").await;
    assert_eq!((&ack["synced"], &ack["results"][0]["code"]), (&json!(1), &json!("applied")));
}

#[tokio::test]
async fn a_connection_that_goes_on_all_the_same_is_closed() {
    let harness =
        start_limited(|limits| (limits.message_rate, limits.rate_refusals) = (rate(1, 5), 10)).await;
    let mut socket = harness.device("d1").await;
    for _ in 0..20 {
        socket.send(&ping()).await;
    }
    let (said, close) = socket.until_end().await;
    let kinds = |kind: &str| said.iter().filter(|message| message["type"] == kind).count();
    assert_eq!((kinds("pong"), kinds("error"), close), (5, 10, 1008));
    harness.serves().await;
}

#[tokio::test]
async fn pings_beyond_the_rate_get_no_pong() {
    let harness =
        start_limited(|limits| (limits.message_rate, limits.rate_refusals) = (rate(1, 5), 10)).await;
    let mut socket = harness.device("d1").await;
    for _ in 0..15 {
        socket.send_frame(&Frame::last(Frame::PING, "x")).await;
    }
    let mut pongs = 0;
    loop {
        match socket.read().await {
            Incoming::Pong(payload) => pongs += usize::from(payload == b"x"),
            Incoming::Close(code, reason) => {
                assert_eq!((pongs, code, reason.as_str()), (5, 1008, "RATE_LIMITED"));
                break;
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_user_has_100_connections() {
    let harness = start(Setup::default()).await;
    let mut sockets = Vec::new();
    for n in 0..100 {
        sockets.push(harness.device(&format!("d{n}")).await);
    }
    let handshake = Handshake::new(&socket_path("t1", "ada", "one-more"));
    let response = handshake.send(harness.address).await.expect_err("it is refused before the upgrade");
    assert_eq!(refusal(&response), (429, "user".into(), 50_000, "50".into()));
    assert_eq!(response.json()["limit"], "100 connections");
    let other = Handshake::new(&socket_path("t1", "bob", "d1"));
    other.send(harness.address).await.expect("another user comes in");

    let mut leaving = sockets.pop().expect("one of them");
    leaving.send_frame(&Frame::close(1000, "")).await;
    leaving.until_end().await;
    support::until("room for one more", async || handshake.send(harness.address).await.is_ok()).await;
}

#[tokio::test]
async fn an_address_may_fail_20_times_at_once() {
    let harness = default_rates().await;
    let bad = || Request::get(RECORDS).bearer("nonsense");
    for n in 0..18 {
        let response = if n % 2 == 0 { bad() } else { Request::get(RECORDS) }.send(harness.address).await;
        assert_eq!(response.status, 401);
    }
    // On the socket the door says it on the open socket, and counts it all the same.
    for _ in 0..2 {
        let mut socket = Socket::connect(harness.address, "/ws/mobile/sync?device_id=d&token=x").await;
        assert_eq!(socket.until_error().await, ("UNAUTHORIZED".into(), 4001));
    }
    // Now it is told so, on the socket before the upgrade.
    assert_eq!(refusal(&bad().send(harness.address).await), (429, "address".into(), 50, "1".into()));
    let handshake = Handshake::new("/ws/mobile/sync?device_id=d&token=x");
    let response = handshake.send(harness.address).await.expect_err("it is refused before the upgrade");
    assert_eq!(refusal(&response), (429, "address".into(), 50, "1".into()));
    // Whoever has a good token is let in, whoever else is behind the address.
    assert_eq!(harness.ask("t1", "ada", Request::get(RECORDS)).await.status, 200);
    Socket::connect(harness.address, &socket_path("t1", "ada", "d1")).await;
    assert_eq!(
        Request::get("/alive").send(harness.address).await.status,
        200,
        "who needs no token is let in"
    );
    harness.clock.advance(50);
    assert_eq!(bad().send(harness.address).await.status, 401);
    assert_eq!(bad().send(harness.address).await.status, 429);
}

#[tokio::test]
async fn what_needs_no_token_tells_no_rates() {
    let harness = default_rates().await;
    for path in ["/alive", "/ready", "/metrics", "/nowhere"] {
        assert_eq!(left(&Request::get(path).send(harness.address).await), (None, None), "{path}");
    }
}

#[tokio::test]
async fn lifted_limits_are_counted_all_the_same() {
    let settings = Settings { unlimited: true, ..Settings::default() };
    let harness = start(Setup { limits: Limits::default(), settings, ..Setup::default() }).await;
    let mut socket = harness.syncing("d1").await;
    for n in 1..=60 {
        socket.ask(&batch(n, &[note(n)]), "ack").await;
        socket.ask(&ping(), "pong").await;
    }
    for _ in 0..30 {
        assert_eq!(Request::get(RECORDS).send(harness.address).await.status, 401);
    }
    let response = harness.ask("t1", "ada", push("d2", &[note(1)])).await;
    assert_eq!(left(&response).0, Some(r#""user";q=1000000;w=1, "sync_data";q=1000000;w=1"#));
    // The handshake, the start, what was asked, and the request.
    assert_eq!(left(&response).1, Some(r#""user";r=999877;t=1, "sync_data";r=999939;t=1"#));
}
