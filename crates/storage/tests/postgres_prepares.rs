//! The hot path on PostgreSQL prepares nothing: every statement of it is cached on its connection.
//!
//! diesel tells its instrumentation when it caches a statement and when it runs one. The instrumentation is set for
//! the whole process, so this file holds one test.

mod support;

use diesel::connection::set_default_instrumentation;
use driftline_storage::{PostgresOptions, PostgresStore};
use driftline_testkit::World;
use support::hot::{Event, Load, cached, instrumentation, take, uncached};

#[test]
fn the_hot_path_prepares_nothing() {
    let world = World::new(1);
    let database = support::migrated();
    set_default_instrumentation(instrumentation).expect("nothing else is set in this process");
    let store = PostgresStore::open(PostgresOptions {
        target: support::target(&database.url()),
        write_connections: 1,
        read_connections: 1,
        // Another look at the heads is not part of the path.
        watch_ms: 3_600_000,
        ..support::postgres_options(&world)
    })
    .expect("the store opens");
    let mut load = Load::new(store);
    load.run(11);
    load.run(3);
    let warm = take();
    let cached = cached(&warm);
    assert!(cached.len() > 15, "the instrumentation hears what is cached: {cached:#?}");
    // What runs beside the cache is noticed: a device is registered by a statement that is not kept.
    assert!(uncached(&warm, &cached).iter().any(|(_, sql)| sql.contains("INTO devices")));

    for size in [1, 2, 10, 37, 150] {
        load.run(size);
    }
    let hot = take();
    assert!(hot.len() > 300, "the instrumentation hears what runs: {}", hot.len());
    let prepared: Vec<_> = hot.iter().filter(|event| matches!(event, Event::Cached(..))).collect();
    assert!(prepared.is_empty(), "prepared on the hot path: {prepared:#?}");
    let uncached = uncached(&hot, &cached);
    assert!(uncached.is_empty(), "run without a cached statement: {uncached:#?}");
}
