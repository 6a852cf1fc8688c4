//! A hundred twins at once, through the layer of a real server on the loopback interface.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use driftline_idempotency::tower::{IdempotencyLayer, Settings};
use driftline_idempotency::{MemoryRecords, Scope};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const TWINS: usize = 100;

async fn pay(State(payments): State<Arc<AtomicUsize>>, amount: String) -> String {
    let number = payments.fetch_add(1, Ordering::SeqCst) + 1;
    tokio::task::yield_now().await;
    format!("payment {number} of {amount}")
}

/// Sends one request on a connection of its own and returns whether it was replayed, and its body.
async fn send(at: std::net::SocketAddr, key: usize) -> (bool, String) {
    let mut stream = TcpStream::connect(at).await.expect("the server listens");
    let request = format!(
        "POST /payments HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nidempotency-key: key-{key}\r\ncontent-length: 6\r\n\r\n10 EUR"
    );
    stream.write_all(request.as_bytes()).await.expect("the server reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("the server answers");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.contains("idempotency-replayed: true"), body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_twins_have_one_effect_and_equal_answers() {
    let payments = Arc::new(AtomicUsize::new(0));
    let settings = Settings { wait_ms: 30_000, ..Settings::default() };
    // Time stands still: no lease ends while the twins wait.
    let layer = IdempotencyLayer::new(MemoryRecords::default(), || 0, |_| Scope::new("acme", "ada").ok())
        .settings(settings)
        .pause(|time| Box::pin(tokio::time::sleep(time)))
        .spawn(|task| drop(tokio::spawn(task)));
    let router = Router::new().route("/payments", post(pay)).with_state(payments.clone()).layer(layer);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let at = listener.local_addr().expect("an address");
    let server = tokio::spawn(async move { axum::serve(listener, router).await });

    for round in 1..=3 {
        let twins: Vec<_> = (0..TWINS).map(|_| tokio::spawn(send(at, round))).collect();
        let mut first_hand = 0;
        for twin in twins {
            let answered = tokio::time::timeout(Duration::from_secs(60), twin).await;
            let (replayed, body) = answered.expect("in time").expect("a twin ends");
            assert_eq!(body, format!("payment {round} of 10 EUR"));
            first_hand += usize::from(!replayed);
        }
        assert_eq!((first_hand, payments.load(Ordering::SeqCst)), (1, round));
    }
    server.abort();
}
