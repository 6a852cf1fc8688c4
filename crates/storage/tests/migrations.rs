//! Migrations of PostgreSQL, as nodes that start see them.

mod support;

use std::thread;

use driftline_storage::{PostgresError, PostgresStore};
use driftline_testkit::World;
use driftline_testkit::postgres::Cluster;

#[test]
fn nodes_that_start_together_run_each_migration_once() {
    let database = Cluster::shared().empty_database();
    let url = database.url();
    let ran: Vec<String> = thread::scope(|scope| {
        let nodes: Vec<_> = (0..8)
            .map(|number| {
                let url = &url;
                scope.spawn(move || {
                    if number % 2 == 0 {
                        let world = World::new(number);
                        drop(support::open_postgres(url, &world).expect("the store opens"));
                        return Vec::new();
                    }
                    PostgresStore::migrate(&support::target(url)).expect("the migrations run")
                })
            })
            .collect();
        nodes.into_iter().flat_map(|node| node.join().expect("it ends")).collect()
    });
    let stored = database.sql("SELECT version FROM __diesel_schema_migrations ORDER BY 1");
    assert!(!stored.is_empty());
    assert!(ran.is_empty() || ran.join("\n") == stored, "{ran:?} are not once {stored}");
    assert_eq!(PostgresStore::migrate(&support::target(&url)), Ok(Vec::new()));
}

#[test]
fn a_program_starts_on_the_schema_of_a_newer_one() {
    let database = support::migrated();
    database.sql("INSERT INTO __diesel_schema_migrations (version) VALUES ('29991231000000')");
    database.sql("ALTER TABLE records ADD COLUMN something_new TEXT");
    assert_eq!(PostgresStore::migrate(&support::target(&database.url())), Ok(Vec::new()));
    let world = World::new(1);
    drop(support::open_postgres(&database.url(), &world).expect("the store opens"));
}

#[test]
fn who_may_not_create_anything_is_told_so() {
    let database = Cluster::shared().empty_database();
    Cluster::shared().sql("CREATE ROLE guest LOGIN");
    let url = database.url().replace("driftline@", "guest@");
    database.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC");
    let refused = PostgresStore::migrate(&support::target(&url));
    let Err(PostgresError::Migration(reason)) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("permission denied for schema public"), "{reason}");
    // A node that has nothing to migrate needs no such right.
    PostgresStore::migrate(&support::target(&database.url())).expect("the migrations run");
    database.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO guest");
    database.sql("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO guest");
    let world = World::new(1);
    drop(support::open_postgres(&url, &world).expect("the store opens"));
}
