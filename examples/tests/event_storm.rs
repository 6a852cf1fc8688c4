//! Very many events to very many subscribers whose connections break at random: each gets every event that it may see,
//! and no other.
//!
//! | variable | meaning |
//! |---|---|
//! | `STORM_SEED` | the seed of who breaks off when; a failure prints it |

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use driftline_testkit::http::{Request, soon};
use driftline_testkit::memory::Memory;
use driftline_testkit::server::{Server, program};
use driftline_testkit::socket::Incoming;
use driftline_testkit::{Rng, TempFolder};
use serde_json::json;
use support::feed::{Publisher, Resume, Signer, Subscriber};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const SUBSCRIBERS: u64 = 200;
const GROUPS: u64 = 40;
const EVENTS: u64 = 20_000;
const PUBLISHERS: u64 = 4;

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deployments/training-records.toml")
}

fn deployment() -> Server {
    start(&file())
}

/// A server that does not reset whoever is cut and reads why only much later.
fn patient_deployment() -> Server {
    let text = fs::read_to_string(file()).expect("the file can be read");
    let folder = TempFolder::new();
    let copy = folder.path().join("driftline.toml");
    fs::write(&copy, text + "\n[limits]\nwrite_ms = 600000\n").expect("it is written");
    // It is read once, before the server listens.
    start(&copy)
}

fn start(file: &Path) -> Server {
    let file = file.to_str().expect("the path is text");
    Server::with(&program(), &["--config", file, "--limits", "off"])
}

/// Where event `n` goes: mostly to one cadet, now and then to the staff or to everybody.
fn topic_of(n: u64) -> String {
    match n {
        EVENTS => "all".into(),
        n if n.is_multiple_of(100) => "all".into(),
        n if n % 25 == 1 => "role_training_staff".into(),
        n => format!("cadet_{}", Rng::new(n).below(GROUPS)),
    }
}

/// What a subscriber is: every tenth one is of the staff, the others are cadets, several devices of each.
fn is_staff(subscriber: u64) -> bool {
    subscriber.is_multiple_of(10)
}

fn may_see(subscriber: u64, topic: &str) -> bool {
    match topic {
        "all" => true,
        "role_training_staff" => is_staff(subscriber),
        cadet => !is_staff(subscriber) && cadet == format!("cadet_{}", subscriber % GROUPS),
    }
}

/// Follows the feed over as many connections as it takes, until the last event came and nothing before it is still to be
/// replayed; gives how often it was cut.
async fn follow(me: &mut Subscriber, to: SocketAddr, mut rng: Rng, published: &AtomicU64) -> u64 {
    let (mut cuts, mut last_came) = (0, false);
    loop {
        let mut socket = me.connect(to).await;
        let (mut budget, life) = (rng.between(10, 500), Duration::from_millis(rng.between(50, 1_500)));
        let mut end = std::pin::pin!(tokio::time::sleep(life));
        loop {
            // Nobody breaks off any more when nothing new comes.
            let calm = published.load(Ordering::Relaxed) >= EVENTS;
            let frame = if calm {
                socket.read().await
            } else {
                tokio::select! {
                    frame = socket.read() => frame,
                    () = &mut end => break,
                }
            };
            match frame {
                Incoming::Text(text) => {
                    last_came |= me.take(&text) == Some(EVENTS);
                    if last_came && !me.is_behind() {
                        return cuts;
                    }
                }
                Incoming::Ping(_) => {}
                Incoming::Close(4008, _) => break,
                other => panic!("wanted events, got {other:?}"),
            }
            budget -= 1;
            if budget == 0 && !calm {
                break;
            }
            budget = budget.max(1);
        }
        cuts += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_breaks_off_at_random_gets_every_event_once() {
    let seed = std::env::var("STORM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7_u64);
    println!("STORM_SEED={seed}");
    let server = deployment();
    let (to, signer) = (server.address(), Signer::of(&server));
    let published = Arc::new(AtomicU64::new(0));
    let mut following = JoinSet::new();
    let ready = Arc::new(tokio::sync::Barrier::new(usize::try_from(SUBSCRIBERS).expect("few") + 1));
    for number in 0..SUBSCRIBERS {
        let (roles, claims) = if is_staff(number) {
            (["training_staff"], json!({}))
        } else {
            (["cadet"], json!({"cadet_id": number % GROUPS}))
        };
        let token = signer.token("school", &format!("u{number}"), &roles, &claims);
        let resume =
            [Resume::Query, Resume::Token, Resume::Request][usize::try_from(number % 3).expect("small")];
        let mut me = Subscriber::new(token, resume);
        let (published, ready) = (Arc::clone(&published), Arc::clone(&ready));
        following.spawn(async move {
            // The place from which on it wants everything is the one of its first connection.
            drop(me.connect(to).await);
            ready.wait().await;
            let cuts = follow(&mut me, to, Rng::new(seed * 1_000 + number), &published).await;
            (number, me, cuts)
        });
    }
    ready.wait().await;
    let mut publishing = JoinSet::new();
    for number in 0..PUBLISHERS {
        let token = signer.token("school", &format!("p{number}"), &["admin"], &json!({}));
        let published = Arc::clone(&published);
        publishing.spawn(async move {
            let mut publisher = Publisher::connect(to, &token).await;
            for n in (1..EVENTS).filter(|n| n % PUBLISHERS == number) {
                publisher.publish(&topic_of(n), &json!({"n": n, "z": 0})).await;
                published.fetch_add(1, Ordering::Relaxed);
            }
            publisher.settle().await;
        });
    }
    while let Some(done) = publishing.join_next().await {
        done.expect("a publisher");
    }
    // It stands behind all others in the log, so that whoever has it has all others.
    let token = signer.token("school", "last", &["admin"], &json!({}));
    let mut publisher = Publisher::connect(to, &token).await;
    publisher.publish("all", &json!({"n": EVENTS, "z": 0})).await;
    publisher.settle().await;
    published.store(EVENTS, Ordering::Relaxed);

    let topics: Vec<String> = (1..=EVENTS).map(topic_of).collect();
    let (mut all_cuts, mut repeated) = (0, 0);
    while let Some(done) = following.join_next().await {
        let (number, me, cuts) = done.expect("a subscriber");
        assert!(me.incomplete.is_empty(), "seed {seed}, subscriber {number}: {:?}", me.incomplete);
        let expected: BTreeSet<u64> =
            (1..=EVENTS).zip(&topics).filter(|(_, topic)| may_see(number, topic)).map(|(n, _)| n).collect();
        let seen = me.numbers();
        let missing: Vec<_> = expected.difference(&seen).take(5).collect();
        let foreign: Vec<_> = seen.difference(&expected).take(5).collect();
        assert!(
            missing.is_empty() && foreign.is_empty(),
            "seed {seed}, subscriber {number}: missing {missing:?}, foreign {foreign:?}, {cuts} cuts"
        );
        (all_cuts, repeated) = (all_cuts + cuts, repeated + me.repeated);
    }
    assert!(all_cuts >= SUBSCRIBERS / 2, "{all_cuts} cuts are few");
    println!("{all_cuts} cuts, {repeated} events came again");
}

/// Subscribers that stop reading, and what they are not to cost.
const SLOW: usize = 8;
const LARGE_EVENTS: u64 = 800;
const LARGE_BYTES: usize = 16 << 10;
/// How many events are published before the one that reads has read the first of them.
const AHEAD: usize = 32;
/// What waits for one connection at most, with the event that was too much and a page that was on its way.
const QUEUE_BYTES: u64 = 2 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_reading_slows_nobody_and_comes_back_without_loss() {
    let server = patient_deployment();
    let (to, signer) = (server.address(), Signer::of(&server));
    let reader = |name: &str| signer.token("school", name, &["cadet"], &json!({"cadet_id": 1}));
    let mut fast = Subscriber::new(reader("fast"), Resume::Query);
    let mut socket = fast.connect(to).await;
    let mut slow = Vec::new();
    for number in 0..SLOW {
        let mut one = Subscriber::new(reader(&format!("slow{number}")), Resume::Query);
        let socket = one.connect_narrow(to).await;
        slow.push((one, socket));
    }
    let admin = signer.token("school", "root", &["admin"], &json!({}));
    let before = Memory::of(server.pid()).resident;
    let publishing = admin.clone();
    // Who reads decides how fast it goes, so that it is never too slow on a machine that is: what is ahead of it is half
    // of what may wait for it.
    let ahead = Arc::new(Semaphore::new(AHEAD));
    let pace = Arc::clone(&ahead);
    let publishing = tokio::spawn(async move {
        let mut publisher = Publisher::connect(to, &publishing).await;
        let pad = "x".repeat(LARGE_BYTES);
        for n in 1..=LARGE_EVENTS {
            pace.acquire().await.expect("it stays open").forget();
            publisher.publish("cadet_1", &json!({"n": n, "pad": pad})).await;
        }
        publisher.settle().await;
    });
    let mut queued = 0;
    for n in 1..=LARGE_EVENTS {
        fast.read_until(&mut socket, n).await;
        ahead.add_permits(1);
        if !n.is_multiple_of(50) {
            continue;
        }
        let stats = Request::get("/ws/stats").bearer(&admin).send(to).await.json();
        queued = queued.max(stats["queued_bytes"].as_u64().unwrap_or_else(|| panic!("{stats}")));
    }
    publishing.await.expect("everything is published");
    assert_eq!((fast.numbers(), fast.repeated), ((1..=LARGE_EVENTS).collect(), 0));
    let slow_bytes = u64::try_from(SLOW + 2).expect("few") * QUEUE_BYTES;
    assert!(queued <= slow_bytes, "{queued} bytes waited");
    let grown = Memory::of(server.pid()).resident.saturating_sub(before);
    // Beside the queues it holds caches of the database and what the allocator keeps.
    assert!(grown <= slow_bytes + (64 << 20), "the server grew by {grown} bytes");

    for (mut one, mut socket) in slow {
        let (messages, code) = socket.until_end().await;
        for message in &messages {
            one.take(&message.to_string());
        }
        assert!(code == 4008 && one.seen.len() < 800, "{code}, {} events", one.seen.len());
        let mut socket = one.connect(to).await;
        soon("the rest", one.read_until(&mut socket, LARGE_EVENTS)).await;
        assert_eq!((one.numbers(), one.repeated), ((1..=LARGE_EVENTS).collect(), 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_and_epoch_outlive_a_kill_in_the_middle() {
    let mut server = deployment();
    let signer = Signer::of(&server);
    let token = signer.token("school", "c1", &["cadet"], &json!({"cadet_id": 1}));
    let admin = signer.token("school", "root", &["admin"], &json!({}));
    let mut cadet = Subscriber::new(token, Resume::Query);
    let mut socket = cadet.connect(server.address()).await;
    for round in 0..3_u64 {
        let mut publisher = Publisher::connect(server.address(), &admin).await;
        for n in round * 200 + 1..=round * 200 + 200 {
            publisher.publish("cadet_1", &json!({"n": n, "z": 0})).await;
        }
        publisher.settle().await;
        // What was acknowledged is there after the kill, however much of it the subscriber had read.
        cadet.read_until(&mut socket, round * 200 + 50).await;
        drop((socket, publisher));
        server.kill9();
        server.restart();
        socket = cadet.connect(server.address()).await;
        cadet.read_until(&mut socket, round * 200 + 200).await;
    }
    assert_eq!(cadet.numbers(), (1..=600).collect());
    assert!(cadet.incomplete.is_empty(), "{:?}", cadet.incomplete);
}
