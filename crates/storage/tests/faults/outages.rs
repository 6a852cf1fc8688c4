//! PostgreSQL stands still, ends, or lets nobody in.

use std::thread;
use std::time::Duration;

use driftline_testkit::Rng;
use driftline_testkit::postgres::{Cluster, Options};

use crate::bed::{Bed, Device, Journal, Known, RESUMES_WITHIN, now, under_load, until};
use crate::session::Session;

/// How many records there are, without anybody's help but the database's.
fn records(bed: &Bed) -> u64 {
    bed.number("SELECT count(*) FROM records")
}

/// Waits until the load has written something more.
fn goes_on(bed: &Bed) {
    let before = records(bed);
    until("something is written", RESUMES_WITHIN, || records(bed) > before);
}

fn report(what: &str, journal: &Journal) {
    let (acknowledged, longest) = (journal.acknowledged.len(), journal.longest.as_millis());
    println!(
        "{what}: {acknowledged} records acknowledged, {} recognised, {} times told to send again, \
         longest wait {longest} ms",
        journal.duplicates, journal.refused
    );
}

#[test]
fn a_paused_database_keeps_nobody_waiting() {
    let mut bed = Bed::new();
    let store = bed.store();
    // The load borrows the rest of the bed.
    let (database, cluster) = (&bed.database, &mut bed.cluster);
    let written = || database.sql("SELECT count(*) FROM records").parse::<u64>().expect("a number");
    let journal = under_load(&[&store], || {
        until("something is written", RESUMES_WITHIN, || written() > 10);
        cluster.pause();
        // The length of the fault.
        thread::sleep(Duration::from_secs(15));
        cluster.resume();
        let before = written();
        until("something is written", RESUMES_WITHIN, || written() > before);
    });
    report("paused for 15 s", &journal);
    assert!(journal.refused >= 8, "callers were told meanwhile");
    bed.check(&store, &journal);
}

/// Ends the server in one way, twice, and starts it again.
fn ended(what: &str, end: impl Fn(&mut Cluster)) {
    let mut bed = Bed::new();
    let store = bed.store();
    let (database, cluster) = (&bed.database, &mut bed.cluster);
    let written = || database.sql("SELECT count(*) FROM records").parse::<u64>().expect("a number");
    let journal = under_load(&[&store], || {
        for _ in 0..4 {
            let before = written();
            until("something is written", RESUMES_WITHIN, || written() > before + 10);
            end(cluster);
            cluster.start();
        }
        let (before, begun) = (written(), now());
        until("something is written", RESUMES_WITHIN, || written() > before);
        println!("{what}: goes on after {} ms", begun.elapsed().as_millis());
    });
    report(what, &journal);
    bed.check(&store, &journal);
}

#[test]
fn a_database_may_be_stopped() {
    ended("stopped", Cluster::stop_fast);
}

#[test]
fn a_database_may_end_at_once() {
    ended("ended at once", Cluster::kill_immediate);
}

#[test]
fn a_database_may_be_killed() {
    ended("killed", Cluster::kill9);
}

#[test]
fn a_database_may_be_full_of_others() {
    let settings = vec!["max_connections=12".to_owned(), "superuser_reserved_connections=0".to_owned()];
    let bed = Bed::with(&Options { settings, ..Options::default() });
    let store = bed.store();
    let mut device = Device::join(&store, "acme", "ada", Known::Both);
    let batch = device.batch(1);
    assert!(device.send(&store, &batch));
    // Whoever comes first gets the places that the store's connections leave.
    let terminate =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'driftline'";
    let mut others: Vec<Session> = Vec::new();
    bed.database.sql(terminate);
    for _ in 0..20 {
        let mut other = Session::begin(&bed);
        if other.run("SELECT 1") {
            others.push(other);
        }
    }
    let batch = device.batch(2);
    assert!(!device.send(&store, &batch), "there is no place for the store");
    others.clear();
    until("a resend is acknowledged", RESUMES_WITHIN, || device.send(&store, &batch));
    bed.check(&store, &device.journal);
}

#[test]
fn backends_may_be_terminated_at_any_moment() {
    let seed = 0x7e2a;
    println!("seed {seed:#x}");
    let mut rng = Rng::new(seed);
    let bed = Bed::new();
    let nodes = [bed.store(), bed.store()];
    let journal = under_load(&[&nodes[0], &nodes[1]], || {
        for _ in 0..30 {
            goes_on(&bed);
            thread::sleep(Duration::from_millis(rng.below(30)));
            bed.database.sql(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                 WHERE application_name = 'driftline' AND state <> 'idle'",
            );
        }
        goes_on(&bed);
    });
    report("terminated 30 times", &journal);
    bed.check(&nodes[0], &journal);
}
