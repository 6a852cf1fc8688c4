//! The outbox on PostgreSQL: rows that other programs insert in transactions of their own.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use driftline_engine::{Drained, EventDraft, EventQuery, OutboxRouter, OutboxRow, Store, StoreError};
use driftline_model::TenantId;
use driftline_protocol::Document;
use driftline_storage::{PostgresError, PostgresOptions, PostgresStore};
use driftline_testkit::postgres::Database;
use driftline_testkit::{World, block_on};

/// Routes a row to the topic that it names, and keeps what it was asked to route.
#[derive(Default)]
struct Router {
    seen: Mutex<Vec<OutboxRow>>,
    /// Whether it dies at the next row.
    dies: AtomicBool,
}

impl Router {
    fn seen(&self) -> Vec<OutboxRow> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl OutboxRouter for Router {
    fn route(&self, row: &OutboxRow, now_ms: u64) -> Result<(TenantId, EventDraft), String> {
        assert!(!self.dies.swap(false, Ordering::SeqCst), "the process dies here");
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(row.clone());
        let tenant = TenantId::new(&row.tenant).map_err(|error| error.to_string())?;
        let kind = row.kind.as_deref().ok_or("it has no type")?;
        let payload = row.payload.as_deref().unwrap_or("{}");
        Document::parse(payload.as_bytes(), 32).map_err(|error| error.to_string())?;
        let topics: Vec<Box<str>> = row.topic.iter().map(|topic| Box::from(topic.as_str())).collect();
        let draft = EventDraft {
            dedupe_key: row.dedupe_key.as_deref().map(Into::into),
            ..EventDraft::new(kind, topics, payload.into(), row.created_ms.unwrap_or(now_ms))
        };
        Ok((tenant, draft))
    }
}

fn open(database: &Database, world: &World, claims: &[&str]) -> Result<PostgresStore, PostgresError> {
    PostgresStore::open(PostgresOptions {
        target: support::target(&database.url()),
        outbox_claims: claims.iter().map(|claim| Box::from(*claim)).collect(),
        ..support::postgres_options(world)
    })
}

fn drain(store: &PostgresStore, batch: usize, router: &Arc<Router>) -> Result<Drained, StoreError> {
    let router: Arc<dyn OutboxRouter> = router.clone();
    block_on(store.log().drain_outbox(batch, router))
}

fn drained(processed: u64, failed: u64) -> Result<Drained, StoreError> {
    Ok(Drained { processed, failed })
}

/// The data of all events on a tenant's topic, in their order.
fn data(store: &PostgresStore, tenant: &str, topic: &str) -> Vec<String> {
    let tenant = block_on(store.tenant(&TenantId::new(tenant).expect("a name"))).expect("a tenant");
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
    page.events.iter().map(|event| event.data.to_string()).collect()
}

#[test]
fn every_way_to_write_a_row_is_taken() {
    let (world, router) = (World::new(1), Arc::new(Router::default()));
    let database = support::migrated();
    let store = open(&database, &world, &["cadet_id", "unit"]).expect("the store opens");
    for insert in [
        "INSERT INTO sync_events (event_type, topic, payload, cadet_id) VALUES ('a', 't', '{\"n\":1}', 7)",
        "INSERT INTO sync_events (event_type, topic, payload, unit) VALUES ('a', 't', '{\"n\":2}'::JSON, 'b\"c')",
        "INSERT INTO sync_events (event_type, topic, payload) SELECT 'a', 't', jsonb_build_object('n', 3)",
        "INSERT INTO sync_events (event_type, topic, payload, user_id, role) VALUES ('a', 't', '{\"n\":4}'::TEXT, 5, 'staff')",
        "PREPARE p(JSONB) AS INSERT INTO sync_events (event_type, topic, payload) VALUES ('a', 't', $1); EXECUTE p('{\"n\":5}')",
        "SELECT driftline_publish('default', 't', 'a', '{\"n\":6}')",
        "BEGIN; SELECT driftline_publish('default', 't', 'a', '{\"n\":7}'); ROLLBACK",
        "COPY sync_events (event_type, topic, payload) FROM PROGRAM 'echo a,t,9' WITH (FORMAT csv)",
    ] {
        database.sql(insert);
    }
    assert_eq!(drain(&store, 100, &router), drained(7, 0));
    assert_eq!(drain(&store, 100, &router), drained(0, 0));
    let told = data(&store, "default", "t").join(" ").replace(' ', "");
    assert_eq!(told, r#"{"n":1}{"n":2}{"n":3}{"n":4}{"n":5}{"n":6}9"#);
    // The first look found no tenant, and every row was looked at again.
    let seen = router.seen().split_off(7);
    let claims = |at: usize| seen[seen.len() - 7 + at].claims.clone();
    assert_eq!(claims(0), [(Box::from("cadet_id"), Box::from("7"))]);
    assert_eq!(claims(1), [(Box::from("unit"), Box::from(r#""b\"c""#))]);
    let fourth = &seen[seen.len() - 4];
    assert_eq!((fourth.user.as_deref(), fourth.role.as_deref()), (Some("5"), Some("staff")));
    assert!(seen.iter().all(|row| row.created_ms.is_some()));
    assert_eq!(
        database.sql("SELECT count(*), count(processed_at), count(error) FROM sync_events"),
        "7|7|0",
        "all are marked"
    );
}

#[test]
fn garbage_is_marked_and_blocks_nothing() {
    let (world, router) = (World::new(1), Arc::new(Router::default()));
    let database = support::migrated();
    let store = open(&database, &world, &[]).expect("the store opens");
    database.sql(
        "INSERT INTO sync_events (tenant, event_type, topic, payload, dedupe_key, created_at) VALUES \
         ('acme', 'a', 't', '1', NULL, 'infinity'), ('acme', 'a', 't', '{', NULL, now()), ('', 'a', 't', '2', NULL, now()), \
         ('acme', NULL, 't', '3', NULL, now()), ('acme', 'a', NULL, '4', NULL, now()), ('acme', 'a', 't u', '5', NULL, now()), \
         ('acme', 'a', 't', repeat('x', 5000000), NULL, now()), \
         ('acme', 'a', 't', '6', (SELECT string_agg(md5(i::TEXT), '') FROM generate_series(1, 2000) AS i), now()), \
         ('acme', 'a', 't', '7', 'k', '0044-03-15 BC'), ('acme', 'a', 't', '8', 'k', NULL), ('acme', 'a', 't', '9', NULL, now())",
    );
    let mut all = Drained::default();
    while let Drained { processed: processed @ 1.., failed } = drain(&store, 100, &router).expect("a drain") {
        all = Drained { processed: all.processed + processed, failed: all.failed + failed };
    }
    assert_eq!(all, Drained { processed: 11, failed: 7 });
    assert_eq!(data(&store, "acme", "t"), ["1", "7", "9"]);
    let errors =
        database.sql("SELECT string_agg(id::TEXT, ' ' ORDER BY id) FROM sync_events WHERE error IS NOT NULL");
    assert_eq!(errors, "2 3 4 5 6 7 8");
    let error = |id: u64| database.sql(&format!("SELECT error FROM sync_events WHERE id = {id}"));
    assert_eq!(
        (&*error(4), &*error(5), &*error(7)),
        ("it has no type", "it has no topic", "payload is too large")
    );
    assert!(error(8).contains("index row"), "{}", error(8));
}

#[test]
fn each_row_is_published_once_whoever_drains_and_dies() {
    let (world, router) = (World::new(1), Arc::new(Router::default()));
    let database = support::migrated();
    let stores = [(); 2].map(|()| open(&database, &world, &[]).expect("the store opens"));
    database.sql(
        "INSERT INTO sync_events (tenant, event_type, topic, payload) \
         SELECT 'acme', 'a', 't', n FROM generate_series(1, 300) AS n",
    );
    // It dies in the middle of it, and nothing is half done.
    router.dies.store(true, Ordering::SeqCst);
    assert!(matches!(drain(&stores[0], 5, &router), Err(StoreError::Unavailable(_))));
    assert_eq!(database.sql("SELECT count(processed_at) FROM sync_events"), "0");
    // Rows that somebody holds are passed over.
    let processed: u64 = thread::scope(|scope| {
        let drains = [0, 1, 0, 1].map(|at: usize| {
            let (store, router, database) = (&stores[at], &router, &database);
            scope.spawn(move || {
                let mut processed = 0;
                while database.sql("SELECT count(*) FROM sync_events WHERE processed_at IS NULL") != "0" {
                    processed += drain(store, 7, router).expect("a drain").processed;
                }
                processed
            })
        });
        drains.into_iter().map(|drain| drain.join().expect("it ends")).sum()
    });
    assert_eq!(processed, 300);
    let wanted: Vec<String> = (1..=300).map(|n| n.to_string()).collect();
    assert_eq!(data(&stores[1], "acme", "t"), wanted);
    // What was processed goes, and what waits stays.
    database.sql("INSERT INTO sync_events (event_type) VALUES ('a')");
    let clean = |before_ms| block_on(stores[0].log().clean_outbox(before_ms));
    assert_eq!(clean(World::BEGIN_MS), Ok(0));
    assert_eq!((clean(u64::MAX), clean(u64::MAX)), (Ok(300), Ok(0)));
    assert_eq!(database.sql("SELECT count(*) FROM sync_events"), "1");
}

#[test]
fn columns_for_claims_are_added_where_that_is_allowed() {
    let world = World::new(1);
    let database = support::migrated();
    let refused = |claim: &str| match open(&database, &world, &[claim]) {
        Err(PostgresError::Claim { claim: named, .. }) => assert_eq!(&*named, claim),
        other => panic!("{other:?}"),
    };
    for claim in ["payload", "id", "Cadet", "a-b", "", "9a", "a\";DROP TABLE sync_events;--"] {
        refused(claim);
    }
    let there = || {
        database.sql(
            "SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute \
             WHERE attrelid = 'sync_events'::REGCLASS AND attnum > 11",
        )
    };
    assert_eq!(there(), "");
    for _ in 0..2 {
        drop(open(&database, &world, &["cadet_id", "unit"]).expect("the store opens"));
        assert_eq!(there(), "cadet_id unit");
    }
    // Somebody else owns the table now, and the store may use it all the same.
    database.sql(
        "CREATE ROLE plain LOGIN; GRANT pg_read_all_data, pg_write_all_data TO plain; GRANT USAGE ON SCHEMA public TO plain; \
         GRANT EXECUTE ON FUNCTION pg_control_system() TO plain",
    );
    let url = database.url().replacen("driftline@", "plain@", 1);
    let open_as = |claims: &[&str]| {
        PostgresStore::open(PostgresOptions {
            target: support::target(&url),
            outbox_claims: claims.iter().map(|claim| Box::from(*claim)).collect(),
            ..support::postgres_options(&world)
        })
    };
    drop(open_as(&["cadet_id"]).expect("nothing is to be added"));
    let error = open_as(&["squad"]).expect_err("it may not").to_string();
    assert!(
        error.starts_with("the claim squad cannot have a column") && error.contains("must be owner"),
        "{error}"
    );
    database.sql("DROP OWNED BY plain; DROP ROLE plain");
}
