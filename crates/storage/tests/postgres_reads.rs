//! What PostgreSQL is read with: both ways to read scopes give the same, and statements that were planned while the
//! tables were empty still go by the keys when they are full.

mod support;

use std::thread;

use driftline_engine::{
    Aggregate, Entry, EventDraft, EventName, EventQuery, LeaseKey, LeaseSlot, Left, Once, OnceKey, Only,
    Page, PageQuery, Place, Row, Store, Submission, SumQuery, Task, UploadRow,
};
use driftline_idempotency::Fingerprint;
use driftline_insight::SeriesPoint;
use driftline_model::{DeviceNo, KindName, RecordId, ScopeName, SyncId};
use driftline_storage::{PostgresOptions, PostgresStore};
use driftline_testkit::postgres::Database;
use driftline_testkit::{Author, Draft, Rng, World, block_on, create, delete, patch, sample};
use support::uploads;

const TEAMS: [&str; 3] = ["a", "b", "c"];
const KINDS: [&str; 2] = ["note", "car"];

fn team(name: &str) -> ScopeName {
    ScopeName::group("team", name).expect("a scope's name")
}

fn kind(name: &str) -> KindName {
    name.parse().expect("a kind's name")
}

/// Opens a store with one connection to write and one to read.
fn open(database: &Database, world: &World) -> PostgresStore {
    let options = PostgresOptions {
        target: support::target(&database.url()),
        write_connections: 1,
        read_connections: 1,
        ..support::postgres_options(world)
    };
    PostgresStore::open(options).expect("the store opens")
}

fn push(store: &PostgresStore, author: &Author, drafts: impl IntoIterator<Item = Draft>) {
    let mut batch = author.batch(drafts.into_iter().map(|draft| draft.grouped("team")));
    batch.scopes.extend(TEAMS.map(team));
    block_on(store.commit(batch)).expect("a commit");
}

/// A change of one of some records; it may come, go, or move to another team.
fn some_draft(rng: &mut Rng) -> Draft {
    let id = format!("r{}", rng.below(150));
    let fields = format!(r#"{{"team":"{}","title":"{}"}}"#, TEAMS[rng.place(3)], "x".repeat(rng.place(60)));
    let draft = match rng.below(10) {
        0 => delete(&id, 0),
        1..=5 => patch(&id, 0, &fields),
        _ => create(&id, &fields),
    };
    draft.kind(KINDS[rng.place(2)])
}

/// The name of the last item of a page by key.
fn last_of(page: &Page) -> Option<(KindName, RecordId)> {
    let row = page.rows.last().map(|Row { kind, id, .. }| (kind.clone(), id.clone()));
    row.or_else(|| page.left.last().map(|Left { kind, id, .. }| (kind.clone(), id.clone())))
}

/// Reads small pages to the end.
fn walk(
    store: &PostgresStore,
    query: &PageQuery,
    place: impl Fn(Option<(KindName, RecordId)>) -> Place,
) -> Vec<String> {
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = block_on(store.page(PageQuery { place: place(after), ..query.clone() })).expect("a page");
        seen.push(format!("{:?} {:?} {}", page.rows, page.left, page.more));
        if !page.more {
            return seen;
        }
        after = last_of(&page);
    }
}

/// Everything that is read by key, in every way that it can be asked for.
fn read(store: &PostgresStore, author: &Author, rows: usize, bytes: usize) -> Vec<String> {
    let scopes = vec![team("a"), team("b")];
    let place = Place::Key { after: None, only: Only::All };
    let query = PageQuery {
        tenant: author.tenant,
        scopes: scopes.clone(),
        kinds: Vec::new(),
        place,
        rows,
        bytes,
        sums: false,
    };
    let some = || Only::Some { kinds: vec![kind("car")], scopes: vec![team("b")] };
    let mut seen = walk(store, &query, |after| Place::Key { after, only: Only::All });
    seen.extend(walk(store, &query, |after| Place::Key { after, only: some() }));
    let cars = PageQuery { kinds: vec![kind("car")], ..query.clone() };
    seen.extend(walk(store, &cars, |after| Place::Key { after, only: Only::All }));
    let left = PageQuery { scopes: vec![team("a")], ..query.clone() };
    let lost = || vec![team("b"), team("c")];
    seen.extend(walk(store, &left, |after| Place::Lost { after, lost: lost() }));
    let until = Some("r60".parse::<RecordId>().expect("an id"));
    seen.extend(walk(store, &query, |after| Place::Range {
        kind: kind("note"),
        scope: team("b"),
        after: after.map(|(_, id)| id),
        until: until.clone(),
    }));
    for until in [None, until] {
        let (kind, scope, after) = (kind("note"), team("a"), "r2".parse().ok());
        let sums = SumQuery { tenant: author.tenant, kind, scope, after, until, parts: 5 };
        seen.push(format!("{:?}", block_on(store.sums(sums)).expect("sums").1));
    }
    seen
}

#[test]
fn scopes_of_few_and_of_many_rows_read_alike() {
    for seed in 0..3 {
        println!("seed {seed}");
        let (database, world, mut rng) = (support::migrated(), World::new(seed), Rng::new(seed));
        let store = open(&database, &world);
        let ada = Author::join(&store, "acme", "ada", "phone");
        for _ in 0..12 {
            push(&store, &ada, (0..50).map(|_| some_draft(&mut rng)).collect::<Vec<_>>());
        }
        let sizes = [(7, 1 << 20), (1000, 150), (1000, 1 << 20)];
        let few = sizes.map(|(rows, bytes)| read(&store, &ada, rows, bytes));
        let pages = few.each_ref().map(Vec::len);
        assert!(pages[0] > 40 && pages[1] > pages[2] + 10, "there are pages to go through: {pages:?}");
        // As if the scopes were large.
        database.sql("UPDATE scope_sums SET count = count + 1000000");
        let many = sizes.map(|(rows, bytes)| read(&store, &ada, rows, bytes));
        assert_eq!(few, many, "seed {seed}");
    }
}

const TABLES: [&str; 10] = [
    "records",
    "scope_exits",
    "conflicts",
    "devices",
    "op_results",
    "scope_sums",
    "samples",
    "series",
    "idempotency",
    "sync_batches",
];

/// Samples of which half are sent again, under a key and a place in a session.
fn push_samples(store: &PostgresStore, author: &Author, round: u64) {
    let ids = (0..50).map(|n| sample(&format!("s{}", round * 25 + n), "{}").keyed().sent(World::BEGIN_MS));
    let mut batch = author.batch(ids);
    let mut point = SeriesPoint::default();
    point.count(1);
    let series = (0..5).map(|n| (format!("series-{n}").into(), point.clone())).collect();
    let hour_ms = round * 3_600_000;
    let task = Task::Aggregate(Box::new(Aggregate { hour_ms, series }));
    let entry = Entry { op_id: None, n: None, hash: 0, kind: None, id: None, group: None, task };
    batch.entries.push(entry);
    let sync_id: SyncId = "00000000-0000-4000-8000-000000000001".parse().expect("a UUID");
    batch.batch = Some((sync_id.clone(), round));
    let fingerprint = Fingerprint::builder("test").number(round).finish();
    let keys = [
        OnceKey::Request { owner: "user:ada".into(), key: format!("k{round}").into() },
        OnceKey::Batch { device: author.device, sync_id, number: round },
    ];
    batch.once = keys.map(|key| Once { key, fingerprint, window_ms: 1_000_000 }).into();
    for replayed in [false, true] {
        let receipt = block_on(store.commit(batch.clone())).expect("a commit");
        assert_eq!(receipt.answered.is_replayed(), replayed);
    }
}

#[test]
fn plans_of_empty_tables_serve_full_ones() {
    let (database, world) = (support::migrated(), World::new(1));
    // Nothing has the plans made again.
    for table in TABLES {
        database.sql(&format!("ALTER TABLE {table} SET (autovacuum_enabled = off)"));
    }
    let store = open(&database, &world);
    let ada = Author::join(&store, "acme", "ada", "phone");
    for round in 0..40 {
        let new = (0..50).map(|n| create(&format!("r{round}-{n}"), r#"{"team":"a"}"#));
        // The team is left and entered again.
        let moved = |team: &str| patch(&format!("r{}-1", round / 2), 0, &format!(r#"{{"team":"{team}"}}"#));
        push(&store, &ada, new.collect::<Vec<_>>());
        push(&store, &ada, [moved("b")]);
        push(&store, &ada, [moved("a")]);
        push_samples(&store, &ada, round);
        block_on(store.record(ada.tenant, &kind("note"), &"r0-1".parse().expect("an id"))).expect("a record");
    }
    drop(store);

    // A connection tells what it read when it ends.
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    assert!((0..1000).any(|_| database.sql(others).trim() == "0"), "the connections end");
    let read = "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname IN \
         ('records', 'scope_exits', 'conflicts', 'devices', 'samples', 'series', 'idempotency', 'sync_batches')";
    let read: u64 = database.sql(read).trim().parse().expect("a number");
    // 2,080 changes look up a record, an exit or none, and a device per batch; 4,000 samples look up one, 400 points of
    // series and 160 names one each.
    assert!((2_000..20_000).contains(&read), "{read} entries of indexes were read");
}

/// Reads two topics to their end, in pages; gives the number of events.
fn read_log(store: &PostgresStore, author: &Author, newest_first: bool, kind: Option<&str>) -> usize {
    let (mut after, mut events) = (0, 0);
    loop {
        let query = EventQuery {
            topics: vec!["topic3".into(), "topic4".into()],
            after,
            until: None,
            kind: kind.map(Box::from),
            newest_first,
            rows: 50,
            bytes: 1 << 20,
        };
        let page = block_on(store.log().events(author.tenant, query)).expect("a page");
        events += page.events.len();
        match page.events.last().and_then(|event| event.id).filter(|_| page.more) {
            Some(last) => after = last,
            None => return events,
        }
    }
}

#[test]
fn plans_of_an_empty_log_serve_a_full_one() {
    let (database, world) = (support::migrated(), World::new(1));
    for table in ["events", "event_topics", "event_versions", "topics"] {
        database.sql(&format!("ALTER TABLE {table} SET (autovacuum_enabled = off)"));
    }
    let store = open(&database, &world);
    let ada = Author::join(&store, "acme", "ada", "phone");
    let ways = [(false, None), (true, None), (false, Some("message"))];
    for (newest_first, kind) in ways {
        assert_eq!(read_log(&store, &ada, newest_first, kind), 0);
    }
    let draft = |n: u64| EventDraft {
        dedupe_key: Some(format!("key {n}").into()),
        version: Some((format!("thing {}", n % 500).into(), n + 1)),
        ..EventDraft::new("message", vec![format!("topic{}", n % 10).into()], r#"{"n":1}"#.into(), 1)
    };
    for round in 0..60 {
        let events = (round * 100..).take(100).map(draft).collect();
        let batch = Submission { device: DeviceNo::new(0), events, ..ada.batch([]) };
        block_on(store.commit(batch)).expect("a commit");
        block_on(store.log().event(ada.tenant, EventName::Dedupe("key 1".into()))).expect("a read");
    }
    for (newest_first, kind) in ways {
        assert_eq!(read_log(&store, &ada, newest_first, kind), 1_200);
    }
    drop(store);

    // A connection tells what it read when it ends.
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    assert!((0..1000).any(|_| database.sql(others).trim() == "0"), "the connections end");
    let read = "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname IN \
         ('events', 'event_topics', 'event_versions')";
    let read: u64 = database.sql(read).trim().parse().expect("a number");
    // Three ways in 24 pages: each looks up a page's worth in each topic, and its events; one of them their types too.
    // 5,500 states are found when they are looked up and again when they are replaced. What a vacuum in between reads
    // comes to it.
    assert!((10_000..60_000).contains(&read), "{read} entries of indexes were read");
}

#[test]
fn plans_of_no_uploads_serve_many() {
    const COUNT: u64 = 600;
    let (database, world) = (support::migrated(), World::new(1));
    let tables = ["uploads", "upload_chunks", "upload_usage", "upload_leases"];
    for table in tables.iter().chain(&["tenants"]) {
        database.sql(&format!("ALTER TABLE {table} SET (autovacuum_enabled = off)"));
    }
    let store = open(&database, &world);
    let ada = Author::join(&store, "acme", "ada", "phone");
    for number in 0..50 {
        let _ = Author::join(&store, &format!("tenant {number}"), "ada", "phone");
    }
    // The plans are made for the first of them.
    uploads::carry(&store, &ada, 1 << 40);
    let rows = store.uploads();
    for number in 0..COUNT {
        // Each by a user of its own, who is looked for among all of them.
        let row = UploadRow {
            owner: format!("user {number}").into(),
            ..uploads::row(&ada, number, uploads::chunks(8))
        };
        let id = uploads::open(&store, &row);
        let key = LeaseKey { id, slot: LeaseSlot::Chunk(0) };
        block_on(rows.lease(key, 1, 0, 10, false)).expect("an answer");
        block_on(rows.renew(key, 1, 0, 10)).expect("an answer");
        uploads::take_rights(&store, id, 2);
        for index in [0, 1] {
            block_on(rows.keep_chunk(uploads::chunk(id, index, 4))).expect("an answer");
        }
        block_on(rows.upload(id)).expect("a read");
        block_on(rows.chunk(id, 1)).expect("a read");
    }
    block_on(rows.upload_states((0..COUNT).map(uploads::id).collect())).expect("a list");
    uploads::carry(&store, &ada, 2 << 40);
    drop(store);

    // A connection tells what it read when it ends.
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    assert!((0..1000).any(|_| database.sql(others).trim() == "0"), "the connections end");
    let read = "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname IN \
         ('uploads', 'upload_chunks', 'upload_usage', 'upload_leases', 'tenants')";
    let read: u64 = database.sql(read).trim().parse().expect("a number");
    // Each upload is looked up seven times, its rights four times or so, its chunks three times, its tenant and what that
    // uses twice or so; a row that changed may be met in its older states too.
    assert!((COUNT * 10..COUNT * 60).contains(&read), "{read} entries of indexes were read");
    let seen = "SELECT coalesce(sum(seq_tup_read), 0) FROM pg_stat_user_tables WHERE relname LIKE 'upload%'";
    let seen: u64 = database.sql(seen).trim().parse().expect("a number");
    assert!(seen < COUNT, "{seen} rows were read one after the other");
}

/// Nodes meet a new month at the same moment.
#[test]
fn a_month_is_made_once_by_all_who_need_it() {
    let database = support::migrated();
    let day_ms = 86_400_000_u64;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for month in 0..12 {
                    let at_ms = (20_000 + month * 31) * day_ms;
                    let made = database.sql(&format!(
                        "SELECT month_begin <= {at_ms} AND {at_ms} < month_end FROM audit_month({at_ms})"
                    ));
                    assert_eq!(made, "t");
                }
            });
        }
    });
    assert_eq!(database.sql("SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit'::REGCLASS"), "12");
    // A table that is there but is no partition yet becomes one.
    database.sql("ALTER TABLE audit DETACH PARTITION audit_2024_10");
    database.sql(&format!("SELECT FROM audit_month({})", 20_000 * day_ms));
    assert_eq!(database.sql("SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit'::REGCLASS"), "12");
}
