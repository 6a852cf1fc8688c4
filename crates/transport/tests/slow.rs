//! A peer that never reads costs nobody anything for long.

mod support;

use driftline_testkit::socket::Handshake;
use serde_json::json;
use support::{SYNC_ID, create, socket_path, start_limited, until};

#[tokio::test]
async fn who_never_reads_is_cut_and_then_reset() {
    let bound = 64 << 10;
    let harness = start_limited(|limits| {
        limits.outbound_bytes = bound;
        limits.page_bytes = bound;
        limits.write_ms = 200;
    })
    .await;
    let path = socket_path("t1", "ada", "deaf");
    let deaf = Handshake::new(&path).receive_bytes(4096).send(harness.address).await;
    let (mut deaf, _) = deaf.expect("it is let in");
    deaf.expect("connection_established").await;
    deaf.start(SYNC_ID, &[]).await;
    let text = "x".repeat(32 << 10);
    let mut rounds = 0;
    while harness.counted("driftline_slow_consumers_total").await == 0 {
        rounds += 1;
        assert!(rounds < 2000, "the slow consumer was never cut");
        let id = format!("r{rounds}");
        harness.push("writer", &[create(rounds, "note", &id, &json!({"t": text}))]).await;
    }
    let closed = r#"driftline_connections_closed_total{code="4008"}"#;
    until("the end of the wait", async || harness.counted(closed).await == 1).await;
    // The socket is dropped a little later, when what the peer may still be sending was read out.
    until("the socket's end", async || harness.counted("driftline_connections ").await == 0).await;
    assert!(deaf.until_reset().await, "what waited in the server's kernel is thrown away");
    harness.serves().await;
}
