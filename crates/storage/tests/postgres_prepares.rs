//! The hot path on PostgreSQL prepares nothing: the database's own log tells of every statement that it was asked to
//! parse.

mod support;

use driftline_storage::{PostgresOptions, PostgresStore};
use driftline_testkit::World;
use driftline_testkit::postgres::{Cluster, Options, Template};
use support::hot::Load;

/// What the log says since a place: statements that were parsed, and how many were executed.
fn logged(cluster: &Cluster, since: usize) -> (Vec<String>, usize) {
    let log = cluster.log();
    let lines = log[since..].lines();
    let parsed = lines.clone().filter(|line| line.contains(" parse ")).map(str::to_owned).collect();
    (parsed, lines.filter(|line| line.contains(" execute ")).count())
}

#[test]
fn the_hot_path_prepares_nothing() {
    let world = World::new(1);
    let settings = vec!["log_min_duration_statement=0".into()];
    let cluster = Cluster::own(&Options { settings, ..Options::default() });
    let template = Template::new("prepares", |url| {
        drop(PostgresStore::migrate(&support::target(url)).expect("the migrations run"));
    });
    let database = cluster.database(&template);
    let store = PostgresStore::open(PostgresOptions {
        target: support::target(&database.url()),
        write_connections: 1,
        read_connections: 1,
        // Another look at the heads is not part of the path.
        watch_ms: 3_600_000,
        ..support::postgres_options(&world)
    })
    .expect("the store opens");
    let begin = cluster.log().len();
    let mut load = Load::new(store);
    load.run(11);
    load.run(3);
    let (parsed, executed) = logged(&cluster, begin);
    assert!(parsed.len() > 25 && executed > 100, "the log tells: {executed} executed, {parsed:#?}");

    let warm = cluster.log().len();
    for size in [1, 2, 10, 37, 150] {
        load.run(size);
    }
    let (parsed, executed) = logged(&cluster, warm);
    assert!(executed > 300, "the log tells: {executed} executed");
    assert!(parsed.is_empty(), "prepared on the hot path: {parsed:#?}");
}
