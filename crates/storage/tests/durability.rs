//! What was answered is on the disk.

mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use diesel::connection::SimpleConnection;
use diesel::{Connection, SqliteConnection};
use driftline_conflict::{Policy, Strategy};
use driftline_engine::{Page, PageQuery, Place, Retention, Store};
use driftline_model::Seq;
use driftline_protocol::ItemCode;
use driftline_storage::{OpenError, SqliteOptions, SqliteStore};
use driftline_testkit::{Author, Draft, World, block_on, create, delete, patch};

/// How many rows and which head a reader finds.
fn seen(store: &SqliteStore, author: &Author) -> (Seq, usize) {
    let query = PageQuery {
        tenant: author.tenant,
        scopes: author.scopes(),
        kinds: Vec::new(),
        place: Place::After(Seq::ZERO),
        rows: 10_000,
        bytes: 1 << 30,
        sums: false,
    };
    let page = block_on(store.page(query)).expect("a page");
    (page.head.seq, page.rows.len())
}

fn filled(world: &World) -> (SqliteStore, Author) {
    let store = support::sqlite(world);
    let ada = Author::join(&store, "acme", "ada", "phone");
    for at in 0..30 {
        let batch = ada.batch([create(&format!("x{at}"), "{}"), patch("x0", 1, &format!(r#"{{"a":{at}}}"#))]);
        block_on(store.commit(batch)).expect("a commit");
    }
    (store, ada)
}

#[test]
fn the_file_has_a_write_ahead_log() {
    let world = World::new(1);
    let (store, _) = filled(&world);
    let file = support::file(&world);
    let head = fs::read(&file).expect("the file is readable");
    // https://www.sqlite.org/fileformat.html, §1.3: 2 in both places is WAL.
    assert_eq!(head[18..20], [2, 2]);
    let log = fs::metadata(file.with_extension("db-wal")).expect("the log lies beside it");
    assert!(log.len() > 0);
    drop(store);
}

#[test]
fn a_dropped_store_has_everything() {
    let world = World::new(1);
    let (store, ada) = filled(&world);
    let before = seen(&store, &ada);
    assert_eq!(before, (Seq::new(60), 30));
    drop(store);
    assert_eq!(seen(&support::sqlite(&world), &ada), before);
}

/// The files as a crash would leave them: nothing is closed, and nothing shared is kept.
#[test]
fn a_killed_store_has_everything_that_was_answered() {
    let world = World::new(1);
    let (store, ada) = filled(&world);
    let before = seen(&store, &ada);
    let after = World::new(2);
    for name in ["driftline.db", "driftline.db-wal"] {
        fs::copy(world.folder.path().join(name), after.folder.path().join(name)).expect("a copy");
    }
    assert_eq!(seen(&support::sqlite(&after), &ada), before);
    drop(store);
}

/// A clone keeps the threads; the last one to go stops them, and what it was asked for is done.
#[test]
fn what_was_handed_over_is_done() {
    let world = World::new(1);
    let (store, ada) = filled(&world);
    let clone = store.clone();
    drop(store);
    let (before, _) = seen(&clone, &ada);
    // Nobody waits for the answer.
    for at in 0..10 {
        let mut commit = Box::pin(clone.commit(ada.batch([create(&format!("late{at}"), "{}")])));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let _ = commit.as_mut().poll(&mut context);
    }
    drop(clone);
    assert_eq!(seen(&support::sqlite(&world), &ada).0.number(), before.number() + 10);
}

#[test]
fn a_place_that_cannot_be_durable_is_refused() {
    let world = World::new(1);
    let refused = support::open(Path::new(":memory:"), &world);
    assert!(matches!(refused, Err(OpenError::Setting { setting: "journal_mode = WAL", .. })), "{refused:?}");

    let missing = world.folder.path().join("nowhere").join("driftline.db");
    assert!(matches!(support::open(&missing, &world), Err(OpenError::File { file, .. }) if file == missing));

    let other = world.folder.path().join("other.db");
    fs::write(&other, "certainly not a database, but long enough to be read as one".repeat(40))
        .expect("a file");
    let refused = support::open(&other, &world);
    assert!(matches!(refused, Err(OpenError::File { .. } | OpenError::Migration { .. })), "{refused:?}");
}

#[test]
fn migrations_run_once() {
    let world = World::new(1);
    let file = support::file(&world);
    assert!(!SqliteStore::migrate(&file).expect("it migrates").is_empty());
    assert_eq!(SqliteStore::migrate(&file).expect("it migrates"), Vec::<String>::new());
    let (store, ada) = filled(&world);
    assert_eq!(seen(&store, &ada), (Seq::new(60), 30));
}

/// Everything of the tenant, `$conflicts` among it, with the sums.
fn all_of(store: &SqliteStore, author: &Author) -> Page {
    let query = PageQuery {
        tenant: author.tenant,
        scopes: author.scopes(),
        kinds: Vec::new(),
        place: Place::After(Seq::ZERO),
        rows: 10_000,
        bytes: 1 << 30,
        sums: true,
    };
    block_on(store.page(query)).expect("a page")
}

#[test]
fn a_name_that_was_rolled_back_is_given_anew() {
    let world = World::new(1);
    let store = support::sqlite(&world);
    let (ada, bob) =
        (Author::join(&store, "acme", "ada", "phone"), Author::join(&store, "acme", "bob", "phone"));
    let manual = Arc::new(Policy { strategy: Strategy::Manual, version: 1 });
    let push = |author: &Author, draft: Draft| {
        block_on(store.commit(author.batch([draft]))).expect("a commit").results.remove(0).code
    };
    push(&bob, create("y", "{}").n(1).op_id("once"));
    push(&ada, create("x", r#"{"a":1}"#));
    push(&ada, patch("x", 2, r#"{"a":2}"#));
    let late = patch("x", 2, r#"{"a":3}"#).policy(&manual);
    // The kind of conflicts gets its number in a transaction that fails on the name, which came before.
    assert_eq!(push(&bob, late.clone().n(2).op_id("once")), ItemCode::DeviceIdReused);
    assert_eq!(push(&bob, late.n(2).op_id("twice")), ItemCode::ConflictPending);
    drop(store);
    let store = support::sqlite(&world);
    let kinds: Vec<String> = all_of(&store, &ada).rows.iter().map(|row| row.kind.to_string()).collect();
    assert_eq!(kinds, ["note", "note", "$conflicts"]);
}

#[test]
fn a_file_without_sums_gets_them() {
    let world = World::new(1);
    let (store, ada) = filled(&world);
    let batch = ada.batch([create("gone", "{}"), create("own", "{}").owned()]);
    block_on(store.commit(batch)).expect("a commit");
    let version = all_of(&store, &ada).head.seq.number();
    block_on(store.commit(ada.batch([delete("gone", version - 1)]))).expect("a commit");
    let before = all_of(&store, &ada).sums;
    assert_eq!(before.iter().map(|sum| sum.count).collect::<Vec<_>>(), [1, 30]);
    drop(store);

    // As the version before left it.
    let file = support::file(&world);
    let url = file.to_str().expect("UTF-8");
    let mut connection = SqliteConnection::establish(url).expect("a connection");
    let old = "DELETE FROM scope_sums; DELETE FROM meta WHERE name = 'sums'; \
               INSERT INTO scope_sums (tenant_no, scope_no, kind_no, count, sum) VALUES (1, 1, 1, 7, 7)";
    connection.batch_execute(old).expect("it is written");
    drop(connection);
    let store = support::sqlite(&world);
    assert_eq!(all_of(&store, &ada).sums, before);
}

#[test]
fn normal_use_is_never_fatal() {
    let world = World::new(1);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let store = SqliteStore::open(SqliteOptions {
        file: support::file(&world),
        clock: world.clock.clone(),
        random: world.random.clone(),
        listeners: world.listeners.clone(),
        fatal: Box::new(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
        }),
        skew_ms_max: 60_000,
        record_bytes: 100,
        readers: 1,
        outbox_claims: Vec::new(),
    })
    .expect("the store opens");
    let ada = Author::join(&store, "acme", "ada", "phone");
    let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(200));
    for draft in [
        create("a", "{}").n(1).op_id("a"),
        create("b", "{}").n(2).op_id("a"),
        patch("nowhere", 0, "{}").n(3),
        patch("a", 1 << 40, "{}").n(4).op_id("ahead"),
        patch("a", 1, &large).n(5),
        create("c", "{}").n(6).group("g"),
    ] {
        block_on(store.commit(ada.batch([draft]))).expect("a commit");
    }
    block_on(store.prune(world_end(), &Retention::default())).expect("a prune");
    block_on(store.probe()).expect("a probe");
    drop(store);
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

fn world_end() -> u64 {
    World::BEGIN_MS + 1000 * 86_400_000
}
