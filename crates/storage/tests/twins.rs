//! Twins of a request on two nodes: one of them has the effect, and all get its answer.

mod support;

use std::sync::Arc;
use std::thread;

use driftline_engine::{
    Aggregate, Answered, DeviceAction, DeviceChange, DeviceChanged, DeviceNote, DeviceOnce, DeviceSign,
    Entry, Once, OnceKey, Receipt, Store, Submission, Task,
};
use driftline_idempotency::{Claim, Claimed, Fingerprint, Key, Records, Scope, WINDOW_MS_DEFAULT};
use driftline_insight::SeriesPoint;
use driftline_storage::PostgresStore;
use driftline_testkit::postgres::Database;
use driftline_testkit::{Author, World, block_on, create, sample};

const TWINS: usize = 100;

/// Two nodes on one database.
struct Nodes {
    database: Database,
    stores: [PostgresStore; 2],
}

impl Nodes {
    fn new() -> Self {
        let (database, world) = (support::migrated(), World::new(1));
        let stores =
            [(); 2].map(|()| support::open_postgres(&database.url(), &world).expect("the store opens"));
        Self { database, stores }
    }

    /// Does something on both nodes at once, as often as there are twins.
    fn at_once<T: Send>(&self, act: impl Fn(usize, &PostgresStore) -> T + Sync) -> Vec<T> {
        thread::scope(|scope| {
            let twins: Vec<_> = (0..TWINS)
                .map(|at| {
                    let (act, store) = (&act, &self.stores[at % 2]);
                    scope.spawn(move || act(at, store))
                })
                .collect();
            twins.into_iter().map(|twin| twin.join().expect("a twin ends well")).collect()
        })
    }

    fn number(&self, sql: &str) -> u64 {
        self.database.sql(sql).parse().expect("a number")
    }
}

fn print_of(content: &str) -> Fingerprint {
    Fingerprint::builder("test").text(content).finish()
}

/// A batch that nothing but its key makes safe to send again.
fn keyed(author: &Author, key: &str) -> Submission {
    let mut batch = author.batch([create("n1", r#"{"a":1}"#), sample("s1", r#"{"t":20}"#)]);
    let mut point = SeriesPoint::default();
    point.count(1);
    batch.entries.push(Entry {
        op_id: None,
        n: None,
        hash: 0,
        kind: None,
        id: None,
        group: None,
        task: Task::Aggregate(Box::new(Aggregate { hour_ms: 0, series: vec![("taps".into(), point)] })),
    });
    batch.once = vec![Once {
        key: OnceKey::Request { owner: "user:ada".into(), key: key.into() },
        fingerprint: print_of("one"),
        window_ms: WINDOW_MS_DEFAULT,
    }];
    batch
}

#[test]
fn twins_of_a_batch_have_one_effect_and_one_answer() {
    let nodes = Nodes::new();
    let ada = Author::join(&nodes.stores[0], "acme", "ada", "phone");
    let receipts = nodes.at_once(|_, store| block_on(store.commit(keyed(&ada, "k"))).expect("a receipt"));
    let applied = receipts.iter().filter(|receipt| receipt.answered == Answered::Applied).count();
    assert_eq!(applied, 1);
    let told = |receipt: &Receipt| Receipt { answered: Answered::Applied, ..receipt.clone() };
    assert!(receipts.iter().all(|receipt| told(receipt) == told(&receipts[0])), "{receipts:?}");
    assert_eq!(nodes.number("SELECT sum(counter) FROM series"), 1);
    assert_eq!(nodes.number("SELECT seq FROM stream_head"), 1);
    assert_eq!(nodes.number("SELECT count(*) FROM samples"), 1);
}

#[test]
fn twins_of_a_change_of_the_registry_have_one_effect_and_one_answer() {
    let nodes = Nodes::new();
    let ada = Author::join(&nodes.stores[0], "acme", "ada", "phone");
    let change = || DeviceChange {
        owner: "ada".into(),
        device_id: "tablet".parse().expect("a device's name"),
        action: DeviceAction::Register,
        enabled: None,
        digest: Some([7; 32]),
    };
    let once = || DeviceOnce {
        owner: "user:ada".into(),
        key: "k".into(),
        fingerprint: print_of("tablet"),
        window_ms: WINDOW_MS_DEFAULT,
        answer: Arc::new(|row| row.device.number().to_string().into_bytes()),
    };
    let answers = nodes.at_once(|_, store| {
        block_on(store.change_device(ada.tenant, change(), Some(once()))).expect("an answer")
    });
    let (done, replayed): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| matches!(answer, DeviceChanged::Done(_)));
    let [DeviceChanged::Done(row)] = &done[..] else { panic!("{done:?}") };
    let told = DeviceChanged::Replayed(row.device.number().to_string().into_bytes().into());
    assert!(replayed.iter().all(|answer| *answer == told), "{replayed:?}");
}

/// Two tenants lead their devices' hashes to and fro: nobody waits for the other for ever.
#[test]
fn a_hash_is_taken_once_whoever_asks() {
    let nodes = Nodes::new();
    let authors = ["acme", "other"].map(|tenant| Author::join(&nodes.stores[0], tenant, "ada", "phone"));
    let answers = nodes.at_once(|at, store| {
        let change = DeviceChange {
            owner: "ada".into(),
            device_id: "phone".parse().expect("a device's name"),
            action: DeviceAction::Update,
            enabled: None,
            digest: Some([u8::from(at % 3 == 0); 32]),
        };
        block_on(store.change_device(authors[at / 2 % 2].tenant, change, None)).expect("an answer")
    });
    assert!(answers.contains(&DeviceChanged::HashTaken));
    let led = nodes.number("SELECT count(*) FROM device_digests");
    assert!((1..=2).contains(&led), "{led} hashes lead to two devices");
}

#[test]
fn a_lease_is_granted_once() {
    let nodes = Nodes::new();
    let claim = Claim {
        scope: Scope::new("acme", "user:ada").expect("a scope"),
        key: Key::new("k").expect("a key"),
        fingerprint: print_of("one"),
        now_ms: World::BEGIN_MS,
        lease_ms: 1_000,
        window_ms: WINDOW_MS_DEFAULT,
    };
    let claimed = nodes.at_once(|_, store| block_on(store.claim(claim.clone())).expect("an answer"));
    let granted = claimed.iter().filter(|claimed| matches!(claimed, Claimed::Granted { .. })).count();
    let waiting = claimed.iter().filter(|claimed| **claimed == Claimed::InProgress { retry_after_ms: 1_000 });
    assert_eq!((granted, waiting.count()), (1, TWINS - 1));
}

/// Signs of devices lock no head, and commits of the same devices do.
#[test]
fn signs_and_commits_of_the_same_devices_do_not_lock_each_other_out() {
    let nodes = Nodes::new();
    let authors: Vec<Author> =
        (0..20).map(|at| Author::join(&nodes.stores[0], "acme", "ada", &format!("d{at}"))).collect();
    nodes.at_once(|at, store| {
        let mut order: Vec<&Author> = authors.iter().collect();
        order.rotate_left(at % 20);
        if at % 4 < 2 {
            order.reverse();
        }
        if at % 3 == 0 {
            for author in order {
                let batch = author.batch([create(&format!("{at}-{}", author.device), "{}")]);
                block_on(store.commit(batch)).expect("a receipt");
            }
            return;
        }
        let note = |author: &&Author| DeviceNote {
            tenant: author.tenant,
            device: author.device,
            at_ms: World::BEGIN_MS + at as u64,
            sign: DeviceSign::Connected { connection: format!("c{at}").into() },
        };
        for _ in 0..5 {
            block_on(store.note_devices(order.iter().map(note).collect())).expect("it is noted");
        }
    });
    assert_eq!(nodes.number("SELECT count(DISTINCT connection) FROM devices"), 1);
    assert_eq!(nodes.database.sql("SELECT DISTINCT connection FROM devices"), "c98");
}
