//! Many publishers on several nodes, another program that writes into the outbox, transactions that dawdle, and a node
//! that goes in the middle of it: whoever listens is told of every event once and in order.
//!
//! `DRIFTLINE_EVENTS` sets how many events each publisher makes.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use driftline_engine::{
    Committed, EventDraft, EventLog, EventQuery, Listeners, OutboxRouter, OutboxRow, Store, Submission,
};
use driftline_model::{DeviceNo, TenantId, TenantNo};
use driftline_testkit::postgres::{Cluster, Database, Template};
use driftline_testkit::{Author, Rng, World, block_on, create};

use super::commit::Faults;
use super::{Failover, PostgresOptions, PostgresStore, PostgresTarget};

const PUBLISHERS: usize = 3;
const TOPICS: [&str; 4] = ["all", "device_a", "user_ada", "metrics_a"];

/// Takes down what it is told of the events of a tenant.
#[derive(Default)]
struct Ear(Mutex<Heard>);

#[derive(Default)]
struct Heard {
    /// Behind which event it began.
    began: Option<u64>,
    /// The last event that it was told of.
    last: u64,
    ids: Vec<u64>,
    /// How many live events it was told of.
    live: usize,
    /// The last change that it was told of as news.
    seq: u64,
    wrong: Vec<String>,
}

impl Listeners for Ear {
    fn listening(&self, _: TenantNo) -> bool {
        true
    }

    fn committed(&self, committed: Committed) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ids: Vec<u64> = committed.events.iter().filter_map(|event| event.id).collect();
        heard.live += committed.events.len() - ids.len();
        if committed.seq > committed.prev_seq {
            heard.seq = heard.seq.max(committed.seq.number());
        }
        if committed.event == committed.prev_event {
            return;
        }
        if heard.began.is_none() {
            // Who begins to listen is told where the log stands, or of what is published now.
            let began = if ids.is_empty() { committed.event } else { committed.prev_event };
            (heard.began, heard.last) = (Some(began), began);
            if ids.is_empty() {
                return;
            }
        }
        let wanted: Vec<u64> = (heard.last + 1..=committed.event).collect();
        if committed.prev_event != heard.last || ids != wanted {
            let (prev, event, last) = (committed.prev_event, committed.event, heard.last);
            heard.wrong.push(format!("behind {last}: from {prev} to {event} came {ids:?}"));
        }
        heard.last = committed.event;
        heard.ids.extend(ids);
    }
}

impl Ear {
    fn last(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).last
    }

    /// Waits until it was told of everything up to an event, and checks that nothing was left out or came twice.
    fn check(&self, head: u64) {
        for _ in 0..1_000 {
            if self.last() >= head {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(heard.wrong.is_empty(), "{:#?}", heard.wrong);
        let began = heard.began.expect("it was told of something");
        assert_eq!(heard.ids, (began + 1..=head).collect::<Vec<_>>());
    }
}

/// Publishes rows as they are.
struct AsWritten;

impl OutboxRouter for AsWritten {
    fn route(&self, row: &OutboxRow, now_ms: u64) -> Result<(TenantId, EventDraft), String> {
        let tenant = TenantId::new(&row.tenant).map_err(|error| error.to_string())?;
        let topic = row.topic.as_deref().ok_or("it has no topic")?;
        let data = row.payload.as_deref().unwrap_or("{}");
        let kind = row.kind.as_deref().unwrap_or("message");
        Ok((tenant, EventDraft::new(kind, vec![topic.into()], data.into(), row.created_ms.unwrap_or(now_ms))))
    }
}

fn target(url: &str) -> PostgresTarget {
    PostgresTarget { url: url.to_owned(), tls_ca: None, connect_ms: 10_000 }
}

fn database() -> Database {
    let template =
        Template::new("ears", |url| drop(PostgresStore::migrate(&target(url)).expect("it migrates")));
    Cluster::shared().database(&template)
}

fn node(database: &Database, ear: &Arc<Ear>, seed: u64) -> PostgresStore {
    watching(database, ear, seed, 25)
}

/// A node that looks at the heads once in so many milliseconds.
fn watching(database: &Database, ear: &Arc<Ear>, seed: u64, watch_ms: u64) -> PostgresStore {
    let store = PostgresStore::open(PostgresOptions {
        target: target(&database.url()),
        failover: Failover::Lossy,
        clock: None,
        random: World::new(seed).random,
        listeners: ear.clone(),
        skew_ms_max: 60_000,
        record_bytes: 1 << 20,
        write_connections: 4,
        read_connections: 3,
        wait_ms: 60_000,
        watch_ms,
        threads: 2,
        outbox_claims: Vec::new(),
    })
    .expect("the store opens");
    let rng = Mutex::new(Rng::new(seed));
    // One transaction in eight waits, up to 10 ms.
    let pause = move || {
        let mut rng = rng.lock().unwrap_or_else(PoisonError::into_inner);
        if rng.percent(12) { rng.between(1, 10) } else { 0 }
    };
    let faults = Faults { pause_ms: Some(Box::new(pause)), head_unlocked: false };
    assert!(store.shared.faults.set(faults).is_ok(), "the store is new");
    store
}

fn acme() -> TenantId {
    TenantId::new("acme").expect("a name")
}

fn draft(rng: &mut Rng) -> EventDraft {
    let topics = vec![Box::from(*rng.pick(&TOPICS))];
    let mut draft = EventDraft::new("message", topics, r#"{"text":"hello"}"#.into(), 1);
    draft.durable = rng.percent(80);
    draft.dedupe_key = rng.percent(20).then(|| format!("k{}", rng.below(100)).into());
    draft
}

/// Publishes events, some of them together with a record; gives the numbers that they got. It ends early if the node
/// goes.
fn publish(store: &PostgresStore, publisher: usize, events: u64) -> Vec<u64> {
    let author = Author::join(store, "acme", &format!("user-{publisher}"), "phone");
    let mut rng = Rng::new(publisher as u64);
    let mut ids = Vec::new();
    for at in 0..events {
        let record = rng.percent(30).then(|| create(&format!("{publisher}-{at}"), "{}"));
        let mut batch = author.batch(record);
        if batch.entries.is_empty() {
            batch = Submission { device: DeviceNo::new(0), ..batch };
        }
        batch.events = (0..rng.between(1, 3)).map(|_| draft(&mut rng)).collect();
        let Ok(receipt) = block_on(store.commit(batch)) else { return ids };
        ids.extend(receipt.events.iter().filter(|event| !event.duplicate).filter_map(|event| event.id));
    }
    ids
}

/// Writes into the outbox as another program does, and takes some of it back; gives how many rows stay.
fn insert(database: &Database, rows: u64) -> u64 {
    let mut rng = Rng::new(77);
    let mut stay = 0;
    for at in 0..rows {
        let insert = match at % 3 {
            0 => format!("SELECT driftline_publish('acme', 'all', 'grade', '{{\"at\":{at}}}')"),
            1 => format!(
                "INSERT INTO sync_events (tenant, topic, payload) VALUES ('acme', 'user_ada', '{{\"at\":{at}}}'::JSONB)"
            ),
            _ => format!(
                "INSERT INTO sync_events (tenant, topic, payload) VALUES ('acme', 'all', '{{\"at\":{at}}}')"
            ),
        };
        let twice = format!("BEGIN; {insert}; {insert}; ");
        if rng.percent(20) {
            database.sql(&format!("{twice} ROLLBACK"));
        } else {
            database.sql(&format!("{twice} COMMIT"));
            stay += 2;
        }
    }
    stay
}

/// Picks up what waits until everybody is done; gives how many rows it was.
fn drain(store: &PostgresStore, done: &AtomicBool) -> u64 {
    let mut processed = 0;
    loop {
        let last_round = done.load(Ordering::SeqCst);
        let Ok(drained) = block_on(store.drain_outbox(7, Arc::new(AsWritten))) else { return processed };
        assert_eq!(drained.failed, 0);
        processed += drained.processed;
        if last_round && drained.processed == 0 {
            return processed;
        }
        if drained.processed == 0 {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The numbers of all events of the log.
fn stored(store: &PostgresStore, tenant: TenantNo) -> Vec<u64> {
    let query = EventQuery {
        topics: TOPICS.map(Box::from).to_vec(),
        after: 0,
        until: None,
        kind: None,
        newest_first: false,
        rows: 1 << 20,
        bytes: 1 << 30,
    };
    let page = block_on(store.events(tenant, query)).expect("a page");
    assert!(!page.more);
    page.events.iter().filter_map(|event| event.id).collect()
}

fn events() -> u64 {
    std::env::var("DRIFTLINE_EVENTS").map_or(150, |given| given.parse().expect("a number of events"))
}

#[test]
fn whoever_listens_is_told_of_every_event_once_and_in_order() {
    let database = database();
    let ears: [Arc<Ear>; 3] = Default::default();
    let mut nodes: Vec<Option<PostgresStore>> =
        ears.iter().zip(1..).map(|(ear, seed)| Some(node(&database, ear, seed))).collect();
    let tenants: Vec<TenantNo> =
        nodes.iter().flatten().map(|node| block_on(node.tenant(&acme())).expect("a tenant")).collect();
    let done = AtomicBool::new(false);
    // The last node goes while everybody is at it, and comes again with a new ear.
    let (goes, there) = (nodes[2].take().expect("a node"), tenants[2]);
    let (again, ids, inserted, drained) = thread::scope(|scope| {
        let lost = scope.spawn(move || {
            let publisher = scope.spawn({
                let goes = goes.clone();
                move || publish(&goes, 90, 1 << 20)
            });
            while database_head(&goes, there) < 100 {
                thread::sleep(Duration::from_millis(5));
            }
            goes.shared.writers.close();
            goes.shared.readers.close();
            drop(goes);
            publisher.join().expect("a publisher ends")
        });
        let (nodes, database, done) = (&nodes, &database, &done);
        let publishers: Vec<_> = (0..2 * PUBLISHERS)
            .map(|at| scope.spawn(move || publish(nodes[at % 2].as_ref().expect("a node"), at, events())))
            .collect();
        let inserts = scope.spawn(|| insert(database, events() / 3));
        let drains: Vec<_> =
            nodes.iter().flatten().map(|node| scope.spawn(move || drain(node, done))).collect();
        let mut ids = lost.join().expect("it goes");
        let ear = Arc::new(Ear::default());
        let again = (node(database, &ear, 9), ear);
        ids.extend(publish(&again.0, 91, events()));
        for publisher in publishers {
            ids.extend(publisher.join().expect("a publisher ends"));
        }
        let inserted = inserts.join().expect("it inserts");
        done.store(true, Ordering::SeqCst);
        let drained: u64 = drains.into_iter().map(|drain| drain.join().expect("it drains")).sum();
        (again, ids, inserted, drained)
    });
    let here = nodes[0].as_ref().expect("a node");
    let head = database_head(here, tenants[0]);
    println!("{head} events, {drained} of them from the outbox");
    assert_eq!(drained, inserted, "each row once");
    assert_eq!(database.sql("SELECT count(*) FROM sync_events WHERE processed_at IS NULL"), "0");
    let stored = stored(here, tenants[0]);
    assert_eq!(stored, (1..=head).collect::<Vec<_>>(), "the log has no gap");
    let unique: BTreeSet<u64> = ids.iter().copied().collect();
    assert_eq!(unique.len(), ids.len(), "no number was given twice");
    for ear in [&ears[0], &ears[1], &again.1] {
        ear.check(head);
    }
    // Who could not read the log any more was told less, and in order.
    let heard = ears[2].0.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(heard.ids.is_sorted_by(|one, next| one < next), "{:?}", heard.ids);
}

fn database_head(store: &PostgresStore, tenant: TenantNo) -> u64 {
    block_on(store.head(tenant)).expect("a head").event_id
}

#[test]
fn a_commit_of_events_alone_tells_of_changes_that_other_nodes_made() {
    let database = database();
    let ears: [Arc<Ear>; 2] = Default::default();
    // They do not look at the heads while this runs.
    let nodes: Vec<PostgresStore> =
        ears.iter().zip(1..).map(|(ear, seed)| watching(&database, ear, seed, 3_600_000)).collect();
    let author = Author::join(&nodes[0], "acme", "ada", "phone");
    let here = block_on(nodes[1].tenant(&acme())).expect("a tenant");
    let nobody = Author::new(here, DeviceNo::new(0), "nobody");
    let publish = || {
        let draft = EventDraft::new("message", vec!["all".into()], "{}".into(), 1);
        block_on(nodes[1].commit(Submission { events: vec![draft], ..nobody.batch([]) })).expect("a commit");
    };
    for seq in 1..=2 {
        block_on(nodes[0].commit(author.batch([create(&format!("r-{seq}"), "{}")]))).expect("a commit");
        publish();
        let heard = ears[1].0.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!((heard.seq, heard.last), (seq, seq));
    }
}

#[test]
fn a_quiet_node_hears_of_others_and_of_too_many_only_that_they_are() {
    let database = database();
    let ears: [Arc<Ear>; 2] = Default::default();
    let nodes: Vec<PostgresStore> =
        ears.iter().zip(1..).map(|(ear, seed)| node(&database, ear, seed)).collect();
    let tenant = block_on(nodes[0].tenant(&acme())).expect("a tenant");
    block_on(nodes[1].tenant(&acme())).expect("a tenant");
    let author = Author::new(tenant, DeviceNo::new(0), "nobody");
    let publish = |store: &PostgresStore, count: usize| {
        let draft = EventDraft::new("message", vec!["all".into()], "{}".into(), 1);
        let batch = Submission { events: vec![draft; count], ..author.batch([]) };
        block_on(store.commit(batch)).expect("a commit");
    };
    // The quiet one stands somewhere once it was told of the first.
    publish(&nodes[0], 1);
    while ears[1].last() < 1 {
        thread::sleep(Duration::from_millis(5));
    }
    publish(&nodes[0], 1_200);
    ears[1].check(1_201);
    publish(&nodes[1], 1);
    ears[0].check(1_202);
    // Somebody wrote more at once than anybody reads.
    database.sql("UPDATE stream_head SET event_id = event_id + 20000");
    while ears[1].last() < 21_202 {
        thread::sleep(Duration::from_millis(5));
    }
    let heard = ears[1].0.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(heard.wrong, ["behind 1202: from 1202 to 21202 came []"]);
}

#[test]
fn the_ear_of_the_outbox_opens_again() {
    let database = database();
    let store = node(&database, &Arc::default(), 1);
    let listens = "SELECT coalesce(min(pid), 0) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %'";
    let open = |but: &str| {
        for _ in 0..100 {
            block_on(store.outbox_waits());
            let pid = database.sql(listens);
            if pid != "0" && pid != but {
                return pid;
            }
        }
        panic!("no ear is open");
    };
    let first = open("");
    database.sql("SELECT driftline_publish(NULL, 'all', 'grade', '{}')");
    block_on(store.outbox_waits());
    assert_eq!(database.sql(&format!("SELECT pg_terminate_backend({first})")), "t");
    // While it is away somebody looks.
    block_on(store.outbox_waits());
    let again = open(&first);
    assert_ne!(first, again);
    let drained = block_on(store.drain_outbox(10, Arc::new(AsWritten))).expect("a drain");
    assert_eq!((drained.processed, drained.failed), (1, 0));
    assert_eq!(database.sql("SELECT tenant FROM tenants"), "default");
}
