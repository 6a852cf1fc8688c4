//! Foreign sessions and other nodes hold what a commit group needs, or a statement of it fails.

use std::time::Duration;

use driftline_testkit::proxy::{Direction, Proxy};

use crate::bed::{Bed, Device, Journal, Known, RESUMES_WITHIN, send_all, until};
use crate::session::Session;

const LOCK_HEADS: &str = "SELECT count(*) FROM (SELECT 1 FROM stream_head FOR UPDATE) AS h";

/// Takes the heads' lock at once when somebody waits for a row: who waits looks for deadlocks once, after a second.
const LOCK_HEADS_OF_A_WAITER: &str = "DO $$ BEGIN FOR look IN 1..4000 LOOP \
     EXIT WHEN EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted); \
     PERFORM pg_sleep(0.005); END LOOP; PERFORM 1 FROM stream_head FOR UPDATE; END $$";

#[test]
fn a_session_that_hangs_with_the_heads_lock_is_outlived() {
    let bed = Bed::new();
    let store = bed.store();
    let mut device = Device::join(&store, "acme", "ada", Known::Both);
    let first = device.batch(1);
    assert!(device.send(&store, &first));
    let mut other = Session::begin(&bed);
    // Well above the time after which the caller is told, and ended well before a resend has to be acknowledged.
    assert!(other.run("SET idle_in_transaction_session_timeout = 8000"));
    assert!(other.run("BEGIN") && other.run(LOCK_HEADS));
    let batch = device.batch(2);
    assert!(!device.send(&store, &batch), "the caller is told before the lock is free");
    until("a resend is acknowledged", RESUMES_WITHIN, || device.send(&store, &batch));
    bed.check(&store, &device.journal);
}

/// A node whose network stalls after it has got the lock.
#[test]
fn a_node_that_hangs_in_its_transaction_is_outlived() {
    let bed = Bed::new();
    let proxy = Proxy::start(bed.cluster.address());
    let (store, hung) = (bed.store(), bed.store_at(bed.database.url_through(&[proxy.address()])));
    let mut ada = Device::join(&store, "acme", "ada", Known::Both);
    let mut eve = Device::join(&hung, "acme", "eve", Known::Both);
    let first = eve.batch(1);
    assert!(eve.send(&hung, &first));
    proxy.one_way(Direction::ToServer);
    let batch = eve.batch(2);
    assert!(!eve.send(&hung, &batch), "no answer gets through");
    let mine = ada.batch(2);
    until("others get through", RESUMES_WITHIN, || ada.send(&store, &mine));
    proxy.pass();
    until("a resend is acknowledged", RESUMES_WITHIN, || eve.send(&hung, &batch));
    ada.journal.merge(eve.journal);
    bed.check(&store, &ada.journal);
}

/// The foreign session takes the device's row first and the head's second, the store the other way round.
#[test]
fn a_deadlock_with_a_foreign_session_is_survived() {
    // Whoever looks for deadlocks first is the one that fails.
    for (patience, name) in [("3s", "the store's turn"), ("10ms", "the other's turn")] {
        let bed = Bed::new();
        let store = bed.store();
        let mut device = Device::join(&store, "acme", "ada", Known::Both);
        let first = device.batch(1);
        assert!(device.send(&store, &first));
        let mut other = Session::begin(&bed);
        assert!(other.run(&format!("SET deadlock_timeout = '{patience}'")));
        assert!(
            other.run("BEGIN") && other.run("SELECT count(*) FROM (SELECT 1 FROM devices FOR UPDATE) AS d")
        );
        let batch = device.batch(2);
        other.order(LOCK_HEADS_OF_A_WAITER);
        let looks = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        until("the other session looks for a waiter", RESUMES_WITHIN, || bed.number(looks) > 0);
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| {
                until("a resend is acknowledged", RESUMES_WITHIN, || device.send(&store, &batch));
            });
            assert!(other.run("COMMIT"), "{name}");
            sending.join().expect("the batch is written");
        });
        assert!(bed.cluster.log().contains("deadlock detected"), "{name}");
        bed.check(&store, &device.journal);
    }
}

#[test]
fn a_batch_that_the_database_refuses_takes_no_other_with_it() {
    let bed = Bed::new();
    let store = bed.store();
    let known = [Known::Both, Known::Number, Known::Not, Known::Both, Known::Not];
    let mut devices: Vec<Device> = known
        .into_iter()
        .enumerate()
        .map(|(at, known)| Device::join(&store, "acme", &format!("d{at}"), known))
        .collect();
    bed.database.sql(
        "CREATE FUNCTION refuse() RETURNS TRIGGER LANGUAGE plpgsql AS $$ BEGIN \
         IF NEW.id LIKE 'd3-%' THEN RAISE EXCEPTION 'not this one'; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON records FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    let mut journal = Journal::default();
    for _ in 0..20 {
        let batches: Vec<_> = devices.iter_mut().map(|device| device.batch(2)).collect();
        let (answers, _) = send_all(&store, &batches);
        for (at, (batch, answer)) in batches.iter().zip(answers).enumerate() {
            assert_eq!(journal.note(batch, answer), at != 3, "batch {at}");
        }
    }
    assert_eq!(bed.number("SELECT count(*) FROM records WHERE id LIKE 'd3-%'"), 0);
    bed.check(&store, &journal);
    bed.database.sql("DROP TRIGGER refuse ON records");
    let late = devices[3].batch(1);
    until("it is written again", Duration::from_secs(10), || devices[3].send(&store, &late));
}

#[test]
fn a_batch_that_costs_the_connection_takes_no_other_with_it() {
    let bed = Bed::new();
    let store = bed.store();
    let mut devices: Vec<Device> =
        (0..5).map(|at| Device::join(&store, "acme", &format!("d{at}"), Known::Both)).collect();
    bed.database.sql(
        "CREATE FUNCTION leave() RETURNS TRIGGER LANGUAGE plpgsql AS $$ BEGIN \
         IF NEW.id LIKE 'd3-%' THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN NEW; END $$; \
         CREATE TRIGGER leave BEFORE INSERT ON records FOR EACH ROW EXECUTE FUNCTION leave()",
    );
    let mut journal = Journal::default();
    for _ in 0..5 {
        let batches: Vec<_> = devices.iter_mut().map(|device| device.batch(2)).collect();
        let (answers, _) = send_all(&store, &batches);
        for (at, (batch, answer)) in batches.iter().zip(answers).enumerate() {
            assert_eq!(journal.note(batch, answer), at != 3, "batch {at}");
        }
    }
    bed.database.sql("DROP TRIGGER leave ON records");
    assert_eq!(bed.number("SELECT count(*) FROM records WHERE id LIKE 'd3-%'"), 0);
    bed.check(&store, &journal);
}
