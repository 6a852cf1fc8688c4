//! Migrations while nodes write: none is held up for long, and none fails.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use diesel_migrations::FileBasedMigrations;
use driftline_engine::Store;
use driftline_testkit::postgres::{Cluster, Database, command};
use driftline_testkit::{Author, TempFolder, World, block_on, create, patch};

use super::connect::Connector;
use super::{Failover, PostgresError, PostgresOptions, PostgresStore, PostgresTarget, migrate, open};

fn target(url: &str) -> PostgresTarget {
    PostgresTarget { url: url.to_owned(), tls_ca: None, connect_ms: 10_000 }
}

fn node(database: &Database, seed: u64) -> PostgresStore {
    let world = World::new(seed);
    PostgresStore::open(PostgresOptions {
        target: target(&database.url()),
        failover: Failover::Lossy,
        clock: None,
        random: world.random.clone(),
        listeners: world.listeners.clone(),
        skew_ms_max: 60_000,
        record_bytes: 1 << 20,
        write_connections: 2,
        read_connections: 1,
        wait_ms: 30_000,
        watch_ms: 2_000,
        threads: 1,
        outbox_claims: Vec::new(),
    })
    .expect("the store opens")
}

/// The migrations of a later version: those of this one, and more.
struct Later {
    folder: TempFolder,
}

impl Later {
    fn new() -> Self {
        let folder = TempFolder::new();
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations/postgres");
        for migration in fs::read_dir(own).expect("the migrations of this version") {
            let migration = migration.expect("a folder");
            let copy = folder.path().join(migration.file_name());
            fs::create_dir(&copy).expect("writable");
            for file in fs::read_dir(migration.path()).expect("a folder") {
                let file = file.expect("a file");
                fs::copy(file.path(), copy.join(file.file_name())).expect("writable");
            }
        }
        Self { folder }
    }

    fn add(&self, name: &str, sql: &str) {
        let folder = self.folder.path().join(name);
        fs::create_dir_all(&folder).expect("writable");
        fs::write(folder.join("up.sql"), sql).expect("writable");
        let metadata = format!("run_in_transaction = {}\n", !sql.contains("CONCURRENTLY"));
        fs::write(folder.join("metadata.toml"), metadata).expect("writable");
    }

    fn run(&self, database: &Database) -> Result<Vec<String>, PostgresError> {
        let source = FileBasedMigrations::from_path(self.folder.path()).expect("a folder");
        let connector = Connector::new(&target(&database.url())).expect("a target");
        migrate::run(&open::runtime(1).expect("threads"), &connector, &source)
    }
}

/// Writes on two nodes while something happens; gives how many commits there were, and the longest one.
fn while_writing<T>(database: &Database, happens: impl FnOnce(&dyn Fn()) -> T) -> (T, u64, Duration) {
    let nodes = [node(database, 1), node(database, 2)];
    let (done, commits, longest) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let write = |number: usize| {
        let author = Author::join(&nodes[number], "acme", "ada", &format!("phone-{number}"));
        let mut at = 0;
        while !done.load(Ordering::SeqCst) {
            at += 1;
            let id = format!("{number}-{at}");
            let begun = now();
            let batch = author.batch([create(&id, "{}").op_id(&id), patch("shared", 0, r#"{"a":1}"#)]);
            block_on(nodes[number].commit(batch)).expect("no commit fails");
            let ms = u64::try_from(begun.elapsed().as_millis()).expect("not that long");
            longest.fetch_max(ms, Ordering::SeqCst);
            commits.fetch_add(1, Ordering::SeqCst);
        }
    };
    let more = || {
        let wanted = commits.load(Ordering::SeqCst) + 20;
        while commits.load(Ordering::SeqCst) < wanted {
            thread::sleep(Duration::from_millis(5));
        }
    };
    let happened = thread::scope(|scope| {
        for number in 0..nodes.len() {
            scope.spawn(move || write(number));
        }
        more();
        let happened = happens(&more);
        more();
        done.store(true, Ordering::SeqCst);
        happened
    });
    let longest = Duration::from_millis(longest.load(Ordering::SeqCst));
    (happened, commits.load(Ordering::SeqCst), longest)
}

#[allow(clippy::disallowed_methods, reason = "how long it takes is what is looked at")]
fn now() -> Instant {
    Instant::now()
}

#[test]
fn expanding_the_schema_makes_no_commit_fail() {
    let database = Cluster::shared().empty_database();
    let later = Later::new();
    later.run(&database).expect("the base");
    // In the order in which a commit locks them.
    later.add("2026-12-01-000000_column", "ALTER TABLE devices ADD COLUMN a INTEGER NOT NULL DEFAULT 7; ALTER TABLE records ADD COLUMN note TEXT");
    later.add(
        "2026-12-02-000000_index",
        "CREATE INDEX CONCURRENTLY records_note ON records (tenant_no, note)",
    );
    later.add(
        "2026-12-03-000000_table",
        "CREATE TABLE notes (tenant_no INTEGER REFERENCES tenants, note TEXT)",
    );
    let (ran, commits, longest) = while_writing(&database, |more| {
        // Two nodes of the later version start at once.
        let ran = thread::scope(|scope| {
            let both = [(); 2].map(|()| scope.spawn(|| later.run(&database)));
            both.map(|one| one.join().expect("it ends").expect("it migrates"))
        });
        more();
        // A node of the version before starts on the newer schema.
        drop(node(&database, 3));
        ran
    });
    println!("{commits} commits, the longest took {} ms", longest.as_millis());
    let mut names = ran.concat();
    names.sort();
    assert_eq!(names, ["20261201000000", "20261202000000", "20261203000000"], "each ran once");
    assert_eq!(
        database.sql("SELECT indisvalid FROM pg_index WHERE indexrelid = 'records_note'::REGCLASS"),
        "t"
    );
    assert_eq!(later.run(&database), Ok(Vec::new()));
}

#[test]
fn a_migration_that_waits_for_a_table_lets_the_others_go_on() {
    let database = Cluster::shared().empty_database();
    let later = Later::new();
    later.run(&database).expect("the base");
    later.add(
        "2026-12-01-000000_column",
        "CREATE TABLE half (a INTEGER); ALTER TABLE records ADD COLUMN note TEXT",
    );
    let (refused, commits, longest) = while_writing(&database, |_| {
        // An operator's report reads the table for longer than anybody waits.
        let hold = "SET application_name = 'report'; BEGIN; LOCK TABLE records IN ACCESS SHARE MODE; SELECT pg_sleep(60)";
        let mut report =
            command("psql").args([&database.url(), "-q", "-c", hold]).spawn().expect("psql runs");
        let held = "SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity USING (pid) \
                    WHERE application_name = 'report' AND l.mode = 'AccessShareLock' AND l.relation = 'records'::REGCLASS";
        while database.sql(held) != "1" {
            thread::sleep(Duration::from_millis(10));
        }
        let refused = later.run(&database);
        database
            .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'report'");
        report.wait().expect("it is ours");
        refused
    });
    println!("{commits} commits, the longest took {} ms", longest.as_millis());
    let Err(PostgresError::Migration(reason)) = refused else { panic!("{refused:?}") };
    assert!(
        reason.starts_with("20261201000000: ") && reason.ends_with("nothing is changed, run it again"),
        "{reason}"
    );
    assert_eq!(database.sql("SELECT to_regclass('half') IS NULL"), "t", "nothing of it is left");
    assert_eq!(later.run(&database), Ok(vec!["20261201000000".to_owned()]));
}

#[test]
fn what_fails_half_way_leaves_nothing() {
    let database = Cluster::shared().empty_database();
    let later = Later::new();
    later.add("2026-12-01-000000_good", "CREATE TABLE good (a INTEGER); INSERT INTO good VALUES (1), (1)");
    later.add("2026-12-02-000000_bad", "CREATE TABLE bad (a INTEGER); SELECT 1 / 0");
    let refused = later.run(&database);
    let Err(PostgresError::Migration(reason)) = refused else { panic!("{refused:?}") };
    assert_eq!(reason, "20261202000000: Failed to run 2026-12-02-000000_bad with: division by zero");
    assert_eq!(database.sql("SELECT to_regclass('bad') IS NULL, to_regclass('good') IS NULL"), "t|f");
    later.add("2026-12-02-000000_bad", "CREATE TABLE bad (a INTEGER)");
    // An index that cannot be built is left behind by the database, and goes with the next attempt.
    later.add("2026-12-03-000000_index", "CREATE UNIQUE INDEX CONCURRENTLY good_a ON good (a)");
    let refused = later.run(&database);
    let Err(PostgresError::Migration(reason)) = refused else { panic!("{refused:?}") };
    assert!(
        reason.starts_with("20261203000000: ") && reason.contains("could not create unique index"),
        "{reason}"
    );
    later.add("2026-12-03-000000_index", "CREATE INDEX CONCURRENTLY good_a ON good (a)");
    assert_eq!(later.run(&database), Ok(vec!["20261203000000".to_owned()]));
    assert_eq!(database.sql("SELECT indisvalid FROM pg_index WHERE indexrelid = 'good_a'::REGCLASS"), "t");
}

#[test]
fn a_node_of_the_version_before_starts_while_somebody_migrates() {
    let database = Cluster::shared().empty_database();
    let later = Later::new();
    later.run(&database).expect("the base");
    later.add("2026-12-01-000000_slow", "CREATE TABLE slow (a INTEGER); SELECT pg_sleep(60)");
    thread::scope(|scope| {
        let slow = scope.spawn(|| later.run(&database));
        let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
        while database.sql(sleeps) != "1" {
            assert!(!slow.is_finished());
            thread::sleep(Duration::from_millis(10));
        }
        drop(node(&database, 1));
        database.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()");
        slow.join().expect("it ends").expect_err("its connection was ended");
    });
    assert_eq!(database.sql("SELECT to_regclass('slow') IS NULL"), "t");
}
