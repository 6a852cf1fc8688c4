//! Migrations of PostgreSQL, as nodes that start see them.

mod support;

use std::thread;

use driftline_engine::{Once, OnceKey, Store};
use driftline_idempotency::Fingerprint;
use driftline_model::SyncId;
use driftline_storage::{PostgresError, PostgresStore};
use driftline_testkit::postgres::Cluster;
use driftline_testkit::{Author, World, block_on, create};

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

/// A node of the version before writes devices and batches without what is new of them.
#[test]
fn what_the_version_before_writes_is_understood() {
    let database = support::migrated();
    let store = support::open_postgres(&database.url(), &World::new(1)).expect("the store opens");
    let first = Author::join(&store, "acme", "ada", "phone");
    database.sql("INSERT INTO devices (tenant_no, sub, device_id, created_at, last_seen_at) SELECT tenant_no, 'ada', 'old', 5, 5 FROM tenants");
    let ada = Author::join(&store, "acme", "ada", "old");
    let sync_id: SyncId = "00000000-0000-4000-8000-000000000001".parse().expect("a UUID");
    let old = format!(
        "INSERT INTO sync_batches (tenant_no, device_no, sync_id, batch_seq, at) VALUES ({}, {}, '{sync_id}', 1, {}) \
         ON CONFLICT (tenant_no, device_no, sync_id, batch_seq) DO UPDATE SET at = excluded.at",
        ada.tenant,
        ada.device,
        World::BEGIN_MS
    );
    database.sql(&old);
    let row = block_on(store.device_row(ada.tenant, ada.device)).expect("a read").expect("a device");
    assert!(row.is_admitted() && !row.online && !row.hashed && row.device != first.device);
    assert_eq!((row.created_ms, row.last_seen_ms, row.report), (5, 5, None));
    let mut batch = ada.batch([create("n1", "{}").n(1)]);
    batch.batch = Some((sync_id.clone(), 1));
    let key = OnceKey::Batch { device: ada.device, sync_id, number: 1 };
    let fingerprint = Fingerprint::builder("test").finish();
    batch.once = vec![Once { key, fingerprint, window_ms: 1_000 }];
    for replayed in [false, true, true] {
        let receipt = block_on(store.commit(batch.clone())).expect("a receipt");
        assert_eq!(receipt.answered.is_replayed(), replayed);
        // The old node writes the batch again; what the new one remembers of it stays.
        database.sql(&old);
    }
}
