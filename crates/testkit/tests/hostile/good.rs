//! A client that behaves, while others do not: it pings and pushes all the time, and remembers what it was told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use driftline_testkit::http::{Request, soon};
use driftline_testkit::socket::{Handshake, Socket};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

const SYNC_ID: &str = "0e8a6c52-61a5-4d52-9b1c-2f6c1c0f7a10";
/// The kind that only this client writes.
const KIND: &str = "good";
/// The time between two rounds of a ping and a push, which keeps it within every rate.
const PACE: Duration = Duration::from_millis(100);

/// What the client tells while it runs.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// The longest wait for an answer since it was last asked for, in milliseconds.
    longest_ms: AtomicU64,
}

/// The client, on a thread and a runtime of its own, so that what it waits for is the server.
#[derive(Debug)]
pub(crate) struct Good {
    shared: Arc<Shared>,
    /// Rounds that were answered: a pong, and an acknowledgement.
    rounds: watch::Receiver<u64>,
    thread: JoinHandle<()>,
    to: SocketAddr,
    token: String,
}

impl Good {
    /// Connects and begins.
    pub(crate) fn start(to: SocketAddr, token: String) -> Self {
        let shared = Arc::new(Shared::default());
        let (answered, rounds) = watch::channel(0);
        let (of_thread, bearer) = (Arc::clone(&shared), token.clone());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(run(to, &bearer, &of_thread, &answered));
        });
        Self { shared, rounds, thread, to, token }
    }

    /// Waits until two more rounds are answered, of which one began after the call; gives the longest wait for an
    /// answer since the last call.
    pub(crate) async fn is_served(&self) -> Duration {
        let mut rounds = self.rounds.clone();
        let begun = *rounds.borrow();
        let served = soon("an answer to the good client", rounds.wait_for(|round| *round >= begun + 2)).await;
        served.expect("the good client is not cut off");
        Duration::from_millis(self.shared.longest_ms.swap(0, Ordering::Relaxed))
    }

    /// Ends the client and counts its records, all of which must be there; gives how many there are.
    pub(crate) async fn finish(self) -> u64 {
        self.shared.stop.store(true, Ordering::Relaxed);
        let joined =
            tokio::task::spawn_blocking(move || self.thread.join()).await.expect("it is not cancelled");
        joined.expect("every message of the good client was answered as it should be");
        let rounds = *self.rounds.borrow();
        assert_eq!(stored(self.to, &self.token).await, (0..rounds).map(name).collect::<Vec<_>>());
        rounds
    }
}

/// Names sort as numbers do.
fn name(round: u64) -> String {
    format!("r-{round:06}")
}

async fn run(to: SocketAddr, token: &str, shared: &Shared, answered: &watch::Sender<u64>) {
    let handshake = Handshake::new("/ws/mobile/sync?device_id=good").bearer(token);
    let (mut socket, _) = handshake.send(to).await.expect("the good client is let in");
    socket.expect("connection_established").await;
    socket.start(SYNC_ID, &[KIND]).await;
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        pace.tick().await;
        let ping = json!({"type": "ping", "timestamp": round});
        let pong = timed(&mut socket, &ping, "pong", shared).await;
        assert_eq!(pong["timestamp"], round, "{pong}");
        let ack = timed(&mut socket, &push(round), "ack", shared).await;
        assert_eq!(ack["synced"], 1, "{ack}");
        round += 1;
        answered.send_replace(round);
    }
}

fn push(round: u64) -> Value {
    let item = json!({"op_id": format!("op-{round}"), "n": round + 1, "kind": KIND, "id": name(round), "op": "create",
                      "fields": {"round": round}});
    json!({"type": "sync_data", "sync_id": SYNC_ID, "payload": {"batch": [item], "batch_seq": round + 1}})
}

#[allow(clippy::disallowed_methods, reason = "how long an answer takes is what is measured here")]
async fn timed(socket: &mut Socket, message: &Value, kind: &str, shared: &Shared) -> Value {
    let asked = Instant::now();
    let answer = socket.ask(message, kind).await;
    let waited_ms = u64::try_from(asked.elapsed().as_millis()).expect("a test ends sooner");
    shared.longest_ms.fetch_max(waited_ms, Ordering::Relaxed);
    answer
}

/// Names the records of the client that the server has.
async fn stored(to: SocketAddr, token: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut cursor = String::new();
    loop {
        let target = format!("/api/v1/records/{KIND}?limit=500{cursor}");
        let page = Request::get(&target).bearer(token).send(to).await.json();
        let items = page["items"].as_array().expect("a list of records");
        names.extend(items.iter().map(|item| item["id"].as_str().expect("a name").to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    names.sort();
    names
}
