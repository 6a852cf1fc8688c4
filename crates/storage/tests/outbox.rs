//! The outbox of the embedded store: rows that other programs insert in transactions of their own.

mod support;

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Nullable, Text};
use driftline_engine::{
    Drained, EventDraft, EventQuery, OutboxRouter, OutboxRow, Published, Store, StoreError, Submission,
};
use driftline_model::{DeviceNo, TenantId, TenantNo};
use driftline_protocol::Document;
use driftline_storage::{OpenError, SqliteOptions, SqliteStore};
use driftline_testkit::{Author, Rng, World, block_on, create};

/// Routes a row to the topic that it names, and keeps what it was asked to route.
#[derive(Default)]
struct Router {
    seen: Mutex<Vec<OutboxRow>>,
    /// At which row it dies, counted from one.
    dies_at: Option<usize>,
    routed: AtomicUsize,
}

impl Router {
    fn seen(&self) -> Vec<OutboxRow> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl OutboxRouter for Router {
    fn route(&self, row: &OutboxRow, now_ms: u64) -> Result<(TenantId, EventDraft), String> {
        let routed = self.routed.fetch_add(1, Ordering::SeqCst) + 1;
        assert!(Some(routed) != self.dies_at, "the process dies here");
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(row.clone());
        let tenant = TenantId::new(&row.tenant).map_err(|error| error.to_string())?;
        let kind = row.kind.as_deref().ok_or("it has no type")?;
        let payload = row.payload.as_deref().unwrap_or("{}");
        Document::parse(payload.as_bytes(), 32).map_err(|error| error.to_string())?;
        let topics: Vec<Box<str>> = row.topic.iter().map(|topic| Box::from(topic.as_str())).collect();
        let at_ms = row.created_ms.unwrap_or(now_ms);
        let draft = EventDraft {
            dedupe_key: row.dedupe_key.as_deref().map(Into::into),
            ..EventDraft::new(kind, topics, payload.into(), at_ms)
        };
        Ok((tenant, draft))
    }
}

/// Another program's connection to the store's file.
fn foreign(world: &World) -> SqliteConnection {
    let file = support::file(world);
    let mut connection = SqliteConnection::establish(file.to_str().expect("UTF-8")).expect("a connection");
    connection.batch_execute("PRAGMA busy_timeout = 20000").expect("a setting");
    connection
}

fn open(file: &Path, world: &World, claims: &[&str]) -> Result<SqliteStore, OpenError> {
    let World { clock, random, listeners, .. } = world;
    SqliteStore::open(SqliteOptions {
        file: file.to_owned(),
        clock: clock.clone(),
        random: random.clone(),
        listeners: listeners.clone(),
        fatal: Box::new(|reason| panic!("{reason}")),
        skew_ms_max: 60_000,
        record_bytes: 1 << 20,
        readers: 1,
        outbox_claims: claims.iter().map(|claim| Box::from(*claim)).collect(),
    })
}

fn drain(store: &SqliteStore, batch: usize, router: &Arc<Router>) -> Drained {
    let router: Arc<dyn OutboxRouter> = router.clone();
    block_on(store.log().drain_outbox(batch, router)).expect("a drain")
}

fn tenant(store: &SqliteStore, name: &str) -> TenantNo {
    block_on(store.tenant(&TenantId::new(name).expect("a name"))).expect("a tenant")
}

/// The data of all events on a topic, in their order.
fn data(store: &SqliteStore, tenant: TenantNo, topic: &str) -> Vec<String> {
    let query = EventQuery {
        topics: vec![topic.into()],
        after: 0,
        until: None,
        kind: None,
        newest_first: false,
        rows: 100_000,
        bytes: 1 << 30,
    };
    let page = block_on(store.log().events(tenant, query)).expect("a page");
    let ids: Vec<_> = page.events.iter().map(|event| event.id).collect();
    assert!(ids.is_sorted());
    page.events.iter().map(|event| event.data.to_string()).collect()
}

fn publication(tenant: TenantNo, draft: EventDraft) -> Submission {
    let nobody = Author::new(tenant, DeviceNo::new(0), "nobody");
    Submission { events: vec![draft], ..nobody.batch([]) }
}

#[derive(QueryableByName, Debug)]
struct Row {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    processed_at: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    error: Option<String>,
}

fn rows(connection: &mut SqliteConnection) -> Vec<Row> {
    sql_query("SELECT id, processed_at, error FROM sync_events ORDER BY id").load(connection).expect("rows")
}

#[test]
fn a_row_becomes_an_event_and_is_marked() {
    let world = World::new(1);
    let store = support::sqlite(&world);
    let mut psql = foreign(&world);
    psql.batch_execute(
        "INSERT INTO sync_events (event_type, topic, payload) VALUES ('a', 'x', '{\"n\":1}');
         INSERT INTO sync_events (tenant, event_type, topic, user_id, role, payload, dedupe_key, created_at)
         VALUES ('acme', 'b', 'x', 7, 'staff', '{\"n\":2}', 'k', '2026-01-02T03:04:05.006+01:00'),
                ('acme', 'b', 'x', NULL, NULL, NULL, 'k', 1767225600123),
                ('acme', 'b', 'x', NULL, NULL, '{\"n\":3}', NULL, 'yesterday')",
    )
    .expect("an insert");
    world.clock.advance(5);
    let router = Arc::new(Router::default());
    assert_eq!(drain(&store, 100, &router), Drained { processed: 4, failed: 0 });
    let seen = router.seen();
    let of = |at: usize| {
        (seen[at].id, seen[at].tenant.as_str(), seen[at].user.as_deref(), seen[at].role.as_deref())
    };
    assert_eq!(of(0), (1, "default", None, None));
    assert_eq!(of(1), (2, "acme", Some("7"), Some("staff")));
    assert!(seen[0].created_ms.is_some(), "the table says when");
    let times: Vec<_> = seen[1..].iter().map(|row| row.created_ms).collect();
    assert_eq!(times, [Some(1_767_319_445_006), Some(1_767_225_600_123), None]);

    let (default, acme) = (tenant(&store, "default"), tenant(&store, "acme"));
    assert_eq!(data(&store, default, "x"), [r#"{"n":1}"#]);
    assert_eq!(data(&store, acme, "x"), [r#"{"n":2}"#, r#"{"n":3}"#], "the second of a key is dropped");
    for row in rows(&mut psql) {
        assert_eq!(row.processed_at, Some(i64::try_from(world.clock_ms()).expect("small")), "{row:?}");
        assert_eq!(row.error, None, "{row:?}");
    }
    assert_eq!(drain(&store, 100, &router), Drained::default());
    let told: u64 = world.listeners.take().iter().map(|commit| commit.event - commit.prev_event).sum();
    assert_eq!(told, 3);
    // The key is known to those who publish otherwise, and theirs to the outbox.
    let keyed = |key: &str| EventDraft {
        dedupe_key: Some(key.into()),
        ..EventDraft::new("b", vec!["x".into()], "{}".into(), 0)
    };
    let published = block_on(store.commit(publication(acme, keyed("k")))).expect("a commit").events;
    assert_eq!(published, [Published { id: Some(1), duplicate: true, late: false }]);
    block_on(store.commit(publication(acme, keyed("l")))).expect("a commit");
    psql.batch_execute(
        "INSERT INTO sync_events (tenant, event_type, topic, dedupe_key) VALUES ('acme', 'b', 'x', 'l')",
    )
    .expect("an insert");
    assert_eq!(drain(&store, 100, &router), Drained { processed: 1, failed: 0 });
    assert_eq!(store.shared_head(acme), 3);
}

trait Heads {
    fn shared_head(&self, tenant: TenantNo) -> u64;
}

impl Heads for SqliteStore {
    /// The number of the tenant's last event.
    fn shared_head(&self, tenant: TenantNo) -> u64 {
        block_on(self.head(tenant)).expect("a head").event_id
    }
}

#[test]
fn rows_of_garbage_are_marked_and_block_nothing() {
    let world = World::new(1);
    let store = support::sqlite(&world);
    let mut psql = foreign(&world);
    let large = "x".repeat(5 << 20);
    psql.batch_execute(&format!(
        "INSERT INTO sync_events (event_type, topic, payload) VALUES
            ('e', 'x', '1'),
            ('e', 'x', 'no json'),
            ('e', 'x', '{{\"a\":'),
            (NULL, 'x', '2'),
            ('e', NULL, '3'),
            ('e', 'x y', '4'),
            ('e', '', '5'),
            (x'00ff', 'x', '6'),
            ('e', 'x', x'7b7d'),
            ('e', 'x', CAST(x'22ff22' AS TEXT)),
            ('e', 'x', '\"{large}\"'),
            ('e', 'x', 12),
            ('e', 'x', 1.5),
            ('e', 'x', '\"' || char(0) || '\"');
         INSERT INTO sync_events (tenant, event_type, topic, payload) VALUES
            ('', 'e', 'x', '7'), (x'ff', 'e', 'x', '8'), ('default', 'e', 'x', '9');
         INSERT INTO sync_events (id, event_type, topic, payload) VALUES (-5, 'e', 'x', '0')",
    ))
    .expect("an insert");
    let router = Arc::new(Router::default());
    let mut all = Drained::default();
    loop {
        let drained = drain(&store, 100, &router);
        if drained == Drained::default() {
            break;
        }
        all.processed += drained.processed;
        all.failed += drained.failed;
    }
    assert_eq!(all, Drained { processed: 18, failed: 13 });
    let default = tenant(&store, "default");
    let mut told = data(&store, default, "x");
    assert_eq!(told.remove(0), "0", "the lowest number comes first");
    assert_eq!(told, ["1", "12", "1.5", "9"]);
    let rows = rows(&mut psql);
    assert!(rows.iter().all(|row| row.processed_at.is_some()), "{rows:?}");
    let wrong =
        |id: i64| rows.iter().find(|row| row.id == id).and_then(|row| row.error.clone()).unwrap_or_default();
    assert_eq!(wrong(5), "it has no topic");
    assert_eq!(wrong(8), "event_type holds bytes, not a text");
    assert_eq!(wrong(9), "payload holds bytes, not a text");
    assert_eq!(wrong(10), "payload holds a text that is not UTF-8");
    assert_eq!(wrong(11), "payload is too large");
    assert_eq!(wrong(16), "tenant holds bytes, not a text");
    assert_eq!(rows.iter().filter(|row| row.error.is_some()).count(), 13);
}

/// A program that inserts in transactions, some of which it takes back, while others publish and two drain.
#[test]
fn every_committed_row_is_told_once_in_order() {
    let world = World::new(1);
    let store = support::sqlite(&world);
    let (default, acme) = (tenant(&store, "default"), tenant(&store, "acme"));
    let router = Arc::new(Router::default());
    let done = AtomicBool::new(false);
    let mut committed: Vec<(&str, String)> = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                // Whoever is told that nobody inserts any more looks once more.
                loop {
                    let over = done.load(Ordering::SeqCst);
                    if drain(&store, 7, &router) == Drained::default() {
                        if over {
                            return;
                        }
                        std::thread::yield_now();
                    }
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let draft = EventDraft::new("own", vec!["own".into()], "{}".into(), 0);
                block_on(store.commit(publication(acme, draft))).expect("a commit");
                // Whoever is not of this process only looks from time to time whether it may write.
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let mut psql = foreign(&world);
        let rng = &mut Rng::new(3);
        let mut number = 0;
        for _ in 0..60 {
            psql.batch_execute("BEGIN IMMEDIATE").expect("a transaction");
            let stays = rng.percent(70);
            for _ in 0..rng.between(1, 9) {
                number += 1;
                let name = *rng.pick(&["default", "acme"]);
                sql_query(
                    "INSERT INTO sync_events (tenant, event_type, topic, payload) VALUES (?, 'e', 'x', ?)",
                )
                .bind::<Text, _>(name)
                .bind::<Text, _>(number.to_string())
                .execute(&mut psql)
                .expect("an insert");
                if stays {
                    committed.push((name, number.to_string()));
                }
            }
            psql.batch_execute(if stays { "COMMIT" } else { "ROLLBACK" }).expect("an end");
        }
        done.store(true, Ordering::SeqCst);
    });
    for (name, number) in [("default", default), ("acme", acme)] {
        let wanted: Vec<_> =
            committed.iter().filter(|(of, _)| *of == name).map(|(_, payload)| payload.clone()).collect();
        assert!(wanted.len() > 30);
        assert_eq!(data(&store, number, "x"), wanted);
    }
    let own = data(&store, acme, "own").len() as u64;
    assert!(own > 0);
    assert_eq!(store.shared_head(acme), own + data(&store, acme, "x").len() as u64);
    // What listeners heard is the log, each number once.
    let mut last = [(default, 0), (acme, 0)];
    for commit in world.listeners.take() {
        let (_, last) = last.iter_mut().find(|(tenant, _)| *tenant == commit.tenant).expect("a tenant");
        assert_eq!(commit.prev_event, *last);
        *last = commit.event;
    }
    assert_eq!(last[1].1, store.shared_head(acme));
}

/// The writer dies at any row of a drain: after the next opening every row is told once.
#[test]
fn a_drain_that_dies_leaves_nothing_half_done() {
    for dies_at in [1, 2, 5, 10] {
        let world = World::new(1);
        let store = support::sqlite(&world);
        let mut psql = foreign(&world);
        for at in 1..=10 {
            let insert = format!(
                "INSERT INTO sync_events (tenant, event_type, topic, payload) VALUES ('fresh{}', 'e', 'x', '{at}')",
                at % 3
            );
            psql.batch_execute(&insert).expect("an insert");
        }
        let dies: Arc<dyn OutboxRouter> = Arc::new(Router { dies_at: Some(dies_at), ..Router::default() });
        let died = block_on(store.log().drain_outbox(100, dies));
        assert!(matches!(died, Err(StoreError::Unavailable(_))), "{died:?}");
        assert!(rows(&mut psql).iter().all(|row| row.processed_at.is_none()));
        drop(store);
        let store = support::sqlite(&world);
        let router = Arc::new(Router::default());
        assert_eq!(drain(&store, 100, &router), Drained { processed: 10, failed: 0 });
        assert_eq!(drain(&store, 100, &router), Drained::default());
        let all: usize =
            (0..3).map(|at| data(&store, tenant(&store, &format!("fresh{at}")), "x").len()).sum();
        assert_eq!(all, 10);
    }
}

#[test]
fn whoever_waits_hears_of_rows() {
    let world = World::new(1);
    let store = support::sqlite(&world);
    let router = Arc::new(Router::default());
    // Rows may have come while nobody had the file open.
    block_on(store.log().outbox_waits());
    let mut waits = store.log().outbox_waits();
    let mut context = Context::from_waker(Waker::noop());
    assert_eq!(waits.as_mut().poll(&mut context), Poll::Pending);
    drop(waits);
    let mut psql = foreign(&world);
    for round in 0..3 {
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| block_on(store.log().outbox_waits()));
            psql.batch_execute("INSERT INTO sync_events (event_type, topic) VALUES ('e', 'x')")
                .expect("an insert");
            waiter.join().expect("it ends");
        });
        // A row that is left behind is heard of again.
        block_on(store.log().outbox_waits());
        assert_eq!(drain(&store, 1, &router), Drained { processed: 1, failed: 0 }, "round {round}");
    }
    let mut waits = store.log().outbox_waits();
    assert_eq!(waits.as_mut().poll(&mut context), Poll::Pending);
    drop(waits);
    drop(store);
}

#[test]
fn claims_have_columns_of_their_own() {
    let world = World::new(1);
    let file = support::file(&world);
    for wrong in
        [&["Upper"][..], &["9a"], &["a b"], &[""], &["a", "a"], &["topic"], &["id"], &["error"], &["a\"b"]]
    {
        let refused = open(&file, &world, wrong);
        assert!(matches!(refused, Err(OpenError::Claim { .. })), "{wrong:?}: {refused:?}");
    }
    assert!(!file.exists(), "a wrong name makes nothing");
    drop(open(&file, &world, &["cadet_id"]).expect("it opens"));
    let store = open(&file, &world, &["cadet_id", "select", "_x9"]).expect("it opens");
    let mut psql = foreign(&world);
    psql.batch_execute(
        "INSERT INTO sync_events (event_type, topic, cadet_id, \"select\", _x9) VALUES
            ('e', 'x', 1, 'a \"b\"', NULL), ('e', 'x', '1', -9223372036854775808, 'é'),
            ('e', 'x', 1.5, NULL, NULL), ('e', 'x', NULL, x'00', NULL);
         INSERT INTO sync_events (event_type, topic) VALUES ('e', 'x')",
    )
    .expect("an insert");
    let router = Arc::new(Router::default());
    assert_eq!(drain(&store, 100, &router), Drained { processed: 5, failed: 2 });
    let claims: Vec<Vec<(Box<str>, Box<str>)>> = router.seen().into_iter().map(|row| row.claims).collect();
    let of = |claims: &[(&str, &str)]| -> Vec<(Box<str>, Box<str>)> {
        claims.iter().map(|(name, value)| (Box::from(*name), Box::from(*value))).collect()
    };
    assert_eq!(
        claims,
        [
            of(&[("cadet_id", "1"), ("select", r#""a \"b\"""#)]),
            of(&[("cadet_id", r#""1""#), ("select", "-9223372036854775808"), ("_x9", r#""é""#)]),
            of(&[]),
        ]
    );
    let wrong: Vec<_> = rows(&mut psql).into_iter().filter_map(|row| row.error).collect();
    assert_eq!(wrong, ["cadet_id holds neither an integer nor a text", "select holds bytes, not a text"]);
    drop(store);
    // A store that is opened without them leaves them.
    let store = open(&file, &world, &[]).expect("it opens");
    psql.batch_execute("INSERT INTO sync_events (event_type, topic, cadet_id) VALUES ('e', 'x', 5)")
        .expect("an insert");
    assert_eq!(drain(&store, 100, &router), Drained { processed: 1, failed: 0 });
    assert_eq!(router.seen()[0].claims, of(&[]));
    assert!(SqliteStore::check(&backup(&world)).findings.is_empty());
}

fn backup(world: &World) -> std::path::PathBuf {
    let target = world.folder.path().join("kept.db");
    SqliteStore::backup(&support::file(world), &target).expect("a backup");
    target
}

#[test]
fn processed_rows_are_removed_when_they_are_old() {
    let world = World::new(1);
    let store = support::sqlite(&world);
    let mut psql = foreign(&world);
    let insert = |psql: &mut SqliteConnection, count: u64| {
        let insert = format!(
            "WITH RECURSIVE n (at) AS (SELECT 1 UNION ALL SELECT at + 1 FROM n WHERE at < {count})
             INSERT INTO sync_events (event_type, topic) SELECT 'e', 'x' FROM n"
        );
        psql.batch_execute(&insert).expect("an insert");
    };
    let router = Arc::new(Router::default());
    insert(&mut psql, 2500);
    assert_eq!(drain(&store, 2500, &router).processed, 2500);
    world.clock.advance(1000);
    insert(&mut psql, 10);
    assert_eq!(drain(&store, 4, &router).processed, 4);
    let clean = |before_ms| block_on(store.log().clean_outbox(before_ms)).expect("a step");
    assert_eq!(clean(World::BEGIN_MS), 0);
    assert_eq!(clean(World::BEGIN_MS + 1), 2500);
    assert_eq!(rows(&mut psql).len(), 10);
    assert_eq!(clean(u64::MAX), 4, "what waits stays");
    assert_eq!(drain(&store, 100, &router).processed, 6);
    assert_eq!(data(&store, tenant(&store, "default"), "x").len(), 2510, "the events stay");
}

/// Another program's open transaction holds the lock: whoever writes waits for it, for as long as a connection waits;
/// then every batch of the group is refused at once, and nothing is lost.
#[test]
fn a_foreign_transaction_delays_writers_and_loses_nothing() {
    let world = World::new(1);
    let store = support::sqlite(&world);
    let ada = Author::join(&store, "acme", "ada", "phone");
    // The kind has its number before, so that the group gets to its transaction.
    block_on(store.commit(ada.batch([create("first", "{}")]))).expect("a commit");
    let mut psql = foreign(&world);
    psql.batch_execute("BEGIN IMMEDIATE; INSERT INTO sync_events (event_type, topic) VALUES ('e', 'x')")
        .expect("a lock");
    std::thread::scope(|scope| {
        let commits: Vec<_> = (0..20)
            .map(|at| {
                let (store, ada) = (&store, &ada);
                let create = create(&format!("r{at}"), "{}").op_id(&format!("r{at}"));
                scope.spawn(move || (block_on(store.commit(ada.batch([create.clone()]))), create))
            })
            .collect();
        let refused: Vec<_> = commits.into_iter().map(|commit| commit.join().expect("an answer")).collect();
        psql.batch_execute("COMMIT").expect("an end");
        for (answer, create) in refused {
            assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
            let receipt = block_on(store.commit(ada.batch([create]))).expect("a commit");
            assert!(!receipt.results[0].duplicate, "nothing of it was applied");
        }
    });
    let head = block_on(store.head(ada.tenant)).expect("a head");
    assert_eq!(head.seq.number(), 21);
    assert_eq!(drain(&store, 100, &Arc::new(Router::default())).processed, 1);
    // A lock that is let go in time is only waited for.
    psql.batch_execute("BEGIN IMMEDIATE").expect("a lock");
    std::thread::scope(|scope| {
        let commit = scope.spawn(|| block_on(store.commit(ada.batch([create("late", "{}")]))));
        psql.batch_execute("INSERT INTO sync_events (event_type, topic) VALUES ('e', 'x'); COMMIT")
            .expect("an end");
        commit.join().expect("an answer").expect("a commit");
    });
}

/// The head of the file's log, which is another one each time that the log begins anew.
fn log_head(world: &World) -> Vec<u8> {
    let log = fs::File::open(world.folder.path().join("driftline.db-wal")).expect("a log");
    let mut head = Vec::new();
    log.take(32).read_to_end(&mut head).expect("it can be read");
    head
}

/// Opens the files as a crash would leave them at this moment. One is copied after the other: what was taken over from the
/// log into the file meanwhile has to stand in the copy of the log, so the log must not have begun anew in between.
fn crashed(world: &World) -> World {
    let after = World::new(2);
    for _ in 0..1_000 {
        let head = log_head(world);
        for name in ["driftline.db", "driftline.db-wal"] {
            fs::copy(world.folder.path().join(name), after.folder.path().join(name)).expect("a copy");
        }
        if log_head(world) == head {
            return after;
        }
    }
    panic!("the log begins anew each time")
}

/// So many crashes there are at least.
const COPIES: usize = 12;

/// Rows that are written for each crash, two by two.
const ROWS: usize = 60;

/// Crashes at any moment, between and within the transactions of both programs: what a row says of itself is true, and
/// every row is told once in the end.
#[test]
fn a_crash_at_any_moment_tells_no_row_twice() {
    let world = World::new(1);
    let store = support::sqlite(&world);
    // The file has everything that is read before the first row.
    let default = tenant(&store, "default");
    let (over, copied) = (AtomicBool::new(false), AtomicUsize::new(0));
    let router = Arc::new(Router::default());
    let copies: Vec<World> = std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut psql, mut waits) = (foreign(&world), 0);
            // On a busy machine the copies take their time: so many rows wait for each of them.
            for at in 0..COPIES * ROWS {
                while at >= (copied.load(Ordering::SeqCst) + 1) * ROWS {
                    // Nobody waits for copies that do not come.
                    waits += 1;
                    if waits > 120_000 {
                        over.store(true, Ordering::SeqCst);
                        panic!("the copies take too long");
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                let insert = format!(
                    "INSERT INTO sync_events (event_type, topic, payload) VALUES ('e', 'x', '{at}'), ('e', 'x', 'garbage')"
                );
                psql.batch_execute(&insert).expect("an insert");
            }
            over.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                drain(&store, 3, &router);
            }
        });
        let mut copies = Vec::new();
        while !over.load(Ordering::SeqCst) || copies.is_empty() {
            let before = router.routed.load(Ordering::SeqCst);
            copies.push(crashed(&world));
            copied.store(copies.len(), Ordering::SeqCst);
            // The next one is of another moment.
            while !over.load(Ordering::SeqCst) && router.routed.load(Ordering::SeqCst) < before + 15 {
                std::thread::yield_now();
            }
        }
        copies
    });
    let mut halfway = 0;
    for copy in &copies {
        let store = support::sqlite(copy);
        let marked = rows(&mut foreign(copy));
        let good = marked.iter().filter(|row| row.processed_at.is_some() && row.error.is_none()).count();
        assert_eq!(data(&store, default, "x").len(), good, "an event for every marked row");
        halfway += usize::from(good > 0 && marked.iter().any(|row| row.processed_at.is_none()));
        while drain(&store, 100, &router) != Drained::default() {}
        let wanted: Vec<String> = (0..marked.len() / 2).map(|at| at.to_string()).collect();
        assert_eq!(data(&store, default, "x"), wanted);
    }
    assert!(halfway > 0, "{} copies", copies.len());
}
