//! The hot path on PostgreSQL prepares nothing: the database's own log tells of every statement that it was asked to
//! parse.

mod support;

use std::sync::Arc;

use driftline_engine::{
    DeviceNote, DeviceSign, EventDraft, EventName, EventQuery, OutboxRouter, OutboxRow, Store, Submission,
    TopicRetention, TopicRules,
};
use driftline_model::{DeviceNo, Epoch, TenantId};
use driftline_storage::{PostgresOptions, PostgresStore};
use driftline_testkit::postgres::{Cluster, Database, Options, Template};
use driftline_testkit::{World, block_on};
use support::hot::Load;
use support::uploads;

/// What the log says since a place: statements that were parsed, and how many were executed.
fn logged(cluster: &Cluster, since: usize) -> (Vec<String>, usize) {
    let log = cluster.log();
    let lines = log[since..].lines();
    let parsed = lines.clone().filter(|line| line.contains(" parse ")).map(str::to_owned).collect();
    (parsed, lines.filter(|line| line.contains(" execute ")).count())
}

/// Publishes what is in the outbox, and keeps the three newest events of each topic.
struct Rules;

impl OutboxRouter for Rules {
    fn route(&self, row: &OutboxRow, now_ms: u64) -> Result<(TenantId, EventDraft), String> {
        let tenant = TenantId::new(&row.tenant).map_err(|error| error.to_string())?;
        Ok((tenant, EventDraft::new("written", vec!["all".into()], "{}".into(), now_ms)))
    }
}

impl TopicRules for Rules {
    fn retention(&self, _: &str) -> TopicRetention {
        TopicRetention { age_ms: Some(1 << 40), keep: Some(3) }
    }
}

/// Publishes events, as many at once as `size` says, reads them in every way and writes down who has read them.
fn publish_and_read(load: &Load<PostgresStore>, database: &Database, size: u64) {
    let (store, ada) = (&load.store, &load.ada);
    let draft = |at: u64| EventDraft {
        dedupe_key: Some(format!("{size}/{at}").into()),
        version: Some((format!("thing {at}").into(), size)),
        ..EventDraft::new("message", vec!["all".into(), "user_ada".into()], "{}".into(), 1)
    };
    for device in [DeviceNo::new(0), ada.device] {
        let batch = Submission { device, events: (0..size).map(draft).collect(), ..ada.batch([]) };
        block_on(store.commit(batch)).expect("a commit");
    }
    database.sql(&format!("INSERT INTO sync_events (tenant) SELECT 'acme' FROM generate_series(1, {size})"));
    block_on(store.log().drain_outbox(100, Arc::new(Rules))).expect("a drain");
    for (newest_first, kind) in [(false, None), (true, None), (false, Some("message".into()))] {
        let topics = vec!["all".into(), "user_ada".into()];
        let query = EventQuery { topics, after: 0, until: None, kind, newest_first, rows: 20, bytes: 1_000 };
        block_on(store.log().events(ada.tenant, query)).expect("a page");
    }
    for name in [EventName::Id(1), EventName::Dedupe("1/0".into())] {
        block_on(store.log().event(ada.tenant, name)).expect("a read");
    }
    let sign = DeviceSign::Acknowledged { epoch: Epoch::new(1), event: size };
    let note = DeviceNote { tenant: ada.tenant, device: ada.device, at_ms: size, sign };
    block_on(store.note_devices(vec![note])).expect("notes");
    block_on(store.log().device_events(ada.tenant, ada.device)).expect("a read");
    block_on(store.log().read_notice(ada.tenant, "ada".into(), "n".into(), 1)).expect("a write");
    block_on(store.log().notices_read(ada.tenant, "ada".into(), vec!["n".into()])).expect("a read");
    block_on(store.log().trim_events(1, Arc::new(Rules))).expect("it trims");
    block_on(store.log().clean_outbox(1)).expect("it cleans");
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
    publish_and_read(&load, &database, 11);
    publish_and_read(&load, &database, 3);
    uploads::carry(&load.store, &load.ada, 0);
    let (parsed, executed) = logged(&cluster, begin);
    assert!(parsed.len() > 25 && executed > 100, "the log tells: {executed} executed, {parsed:#?}");

    let warm = cluster.log().len();
    for size in [1, 2, 10, 37, 150] {
        load.run(size);
        publish_and_read(&load, &database, size);
        uploads::carry(&load.store, &load.ada, size * 2);
    }
    let (parsed, executed) = logged(&cluster, warm);
    assert!(executed > 300, "the log tells: {executed} executed");
    assert!(parsed.is_empty(), "prepared on the hot path: {parsed:#?}");
}
