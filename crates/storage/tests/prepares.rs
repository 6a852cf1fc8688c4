//! The hot path prepares nothing: every statement of it is cached on its connection.
//!
//! diesel tells its instrumentation when it caches a statement and when it runs one. The instrumentation is set for
//! the whole process, so this file holds one test.

mod support;

use std::sync::atomic::Ordering;

use diesel::connection::{SimpleConnection, set_default_instrumentation};
use diesel::{Connection, SqliteConnection};
use driftline_engine::{
    DeviceNote, DeviceSign, EventDraft, EventName, EventQuery, Kept, LeaseSlot, Store, Submission,
};
use driftline_model::{DeviceNo, Epoch};
use driftline_storage::SqliteStore;
use driftline_testkit::{World, block_on, create};
use support::hot::{CONNECTIONS, Event, Load, cached, instrumentation, take, uncached};
use support::uploads;

#[test]
fn the_hot_path_prepares_nothing() {
    set_default_instrumentation(instrumentation).expect("nothing is connected yet");
    let world = World::new(1);
    let store = support::open_with(&support::file(&world), &world, 1).expect("the store opens");
    let mut load = Load::new(store);

    // Chunks of 100, 10 and 1.
    load.run(111);
    tell(&load, 111);
    uploads::carry(&load.store, &load.ada, 0);
    let warm = take();
    let cached = cached(&warm);
    assert!(cached.len() > 15, "the instrumentation hears what is cached: {cached:#?}");
    // What runs beside the cache is noticed: devices are looked up once, by a statement that is not kept.
    let beside = |event: &Event| match event {
        Event::Ran(connection, sql) => {
            sql.contains("FROM devices") && !cached.contains(&(*connection, sql.clone()))
        }
        Event::Cached(..) => false,
    };
    assert!(warm.iter().any(beside));
    assert_settings(&warm);

    for size in [1, 2, 9, 10, 11, 37, 99, 100, 150] {
        load.run(size);
        tell(&load, size);
        uploads::carry(&load.store, &load.ada, size * 2);
    }
    let hot = take();
    assert!(hot.len() > 300, "the instrumentation hears what runs: {}", hot.len());
    let prepared: Vec<_> = hot.iter().filter(|event| matches!(event, Event::Cached(..))).collect();
    assert!(prepared.is_empty(), "prepared on the hot path: {prepared:#?}");
    let uncached = uncached(&hot, &cached);
    assert!(uncached.is_empty(), "run without a cached statement: {uncached:#?}");
    assert_plain_pushes_ask_for_nothing_else(&load);
    assert_plain_publications_ask_for_nothing_else(&load);
    assert_receipts_ask_for_nothing_else(&load);
    assert_receipts_that_wait_are_committed_together(&load, &world);
}

fn publication(load: &Load<SqliteStore>, events: Vec<EventDraft>) -> Submission {
    Submission { tenant: load.ada.tenant, device: DeviceNo::new(0), events, ..load.ada.batch([]) }
}

/// Publishes events on topics that are known, reads them every way, and takes down how far a device has followed.
fn tell(load: &Load<SqliteStore>, size: u64) {
    // Rises from round to round.
    let round = block_on(load.store.head(load.ada.tenant)).expect("a head").event_id + 1;
    let event = |at: u64| EventDraft {
        dedupe_key: Some(format!("{round}/{at}").into()),
        version: Some((format!("t{at}").into(), round)),
        ..EventDraft::new("e", vec!["x".into(), "y".into()], "{}".into(), 0)
    };
    block_on(load.store.commit(publication(load, (0..size).map(event).collect()))).expect("a commit");
    let log = load.store.log();
    for (topics, kind, newest_first) in
        [(&["x"][..], None, false), (&["x", "y"], None, false), (&["x", "y"], Some("e"), true)]
    {
        let topics = topics.iter().map(|topic| Box::from(*topic)).collect();
        let kind = kind.map(Box::from);
        let query = EventQuery { topics, after: 0, until: None, kind, newest_first, rows: 50, bytes: 10_000 };
        let page = block_on(log.events(load.ada.tenant, query)).expect("a page");
        assert_eq!(page.events.len() as u64, page.head.min(50));
    }
    for name in [EventName::Id(1), EventName::Dedupe("1/5".into())] {
        assert!(block_on(log.event(load.ada.tenant, name)).expect("a read").is_some());
    }
    let epoch = Epoch::new(1);
    let (tenant, device) = (load.ada.tenant, load.ada.device);
    let signs = [
        DeviceSign::Listened { epoch, since: round, topics: vec!["x".into()], refused: Vec::new() },
        DeviceSign::Acknowledged { epoch, event: round },
        DeviceSign::Slow { event: round },
    ];
    let notes = signs.map(|sign| DeviceNote { tenant, device, at_ms: round, sign });
    block_on(load.store.note_devices(notes.to_vec())).expect("notes");
    assert!(block_on(log.device_events(tenant, device)).expect("a read").is_some());
    block_on(log.read_notice(tenant, "ada".into(), format!("n{round}").into(), 1)).expect("a write");
    block_on(log.notices_read(tenant, "ada".into(), vec!["n1".into()])).expect("a read");
}

/// A publication asks for no device and no record: its cost is that of two rows and the head.
fn assert_plain_publications_ask_for_nothing_else(load: &Load<SqliteStore>) {
    take();
    let event = EventDraft::new("e", vec!["x".into()], "{}".into(), 0);
    block_on(load.store.commit(publication(load, vec![event]))).expect("a commit");
    let wanted = [
        "BEGIN IMMEDIATE",
        "SELECT epoch, seq,",
        "INSERT INTO events",
        "INSERT INTO event_topics",
        "UPDATE stream_head SET",
        "COMMIT",
    ];
    assert_eq!(ran(), wanted);
}

/// A push of plain changes asks for their records and for nothing that few changes need.
fn assert_plain_pushes_ask_for_nothing_else(load: &Load<SqliteStore>) {
    load.push(&load.ada, vec![create("plain", r#"{"a":1}"#).n(1 << 40)], None);
    let wanted = [
        "BEGIN IMMEDIATE",
        "SELECT epoch, seq,",
        "SELECT r.kind_no, r.id,",
        "INSERT INTO records",
        "INSERT INTO scope_sums",
        "INSERT INTO op_results",
        "UPDATE devices SET",
        "UPDATE stream_head SET",
        "INSERT INTO sync_batches",
        "COMMIT",
    ];
    assert_eq!(ran(), wanted);

    // With names: one look-up each, and one more row for the key.
    let named = load.named("plain", vec![create("named", "{}").n((1 << 40) + 1)]);
    block_on(load.store.commit(named)).expect("a commit");
    let ran = ran();
    let more: Vec<_> = ran.iter().filter(|sql| !wanted.contains(&sql.as_str())).collect();
    assert_eq!(
        more,
        ["SELECT fingerprint, expires_at,", "SELECT fingerprint, at,", "INSERT INTO idempotency"]
    );
    assert_eq!(ran.len(), wanted.len() + more.len());
}

/// A chunk costs two statements; a stream costs two where nothing more is reserved.
fn assert_receipts_ask_for_nothing_else(load: &Load<SqliteStore>) {
    let rows = load.store.uploads();
    let id = uploads::open(&load.store, &uploads::row(&load.ada, 1_000, uploads::chunks(4_000)));
    let flow = uploads::open(&load.store, &uploads::row(&load.ada, 1_001, uploads::stream(Some(4_000))));
    uploads::take_rights(&load.store, id, 41);
    uploads::take_right(&load.store, flow, LeaseSlot::Stream);
    take();
    block_on(rows.keep_chunk(uploads::chunk(id, 0, 4))).expect("an answer");
    assert_eq!(ran(), ["BEGIN IMMEDIATE", "INSERT OR IGNORE", "UPDATE uploads SET", "COMMIT"]);
    block_on(rows.keep_stream(uploads::part(flow, 0, 4))).expect("an answer");
    assert_eq!(ran(), ["BEGIN IMMEDIATE", "SELECT tenant_no, state,", "UPDATE uploads SET", "COMMIT"]);
}

/// What comes while the writer is at something else is written in one transaction.
fn assert_receipts_that_wait_are_committed_together(load: &Load<SqliteStore>, world: &World) {
    let (rows, id) = (load.store.uploads(), uploads::id(1_000));
    let file = support::file(world);
    let mut other = SqliteConnection::establish(file.to_str().expect("UTF-8")).expect("a connection");
    other.batch_execute("BEGIN IMMEDIATE").expect("the lock");
    take();
    // The writer stands at this one, because somebody else has the lock.
    let probe = uploads::begun(load.store.probe());
    let keep = |index| uploads::begun(rows.keep_chunk(uploads::chunk(id, index, 4)));
    let waiting: Vec<_> = (1..41).map(keep).collect();
    other.batch_execute("COMMIT").expect("it ends");
    assert_eq!(block_on(probe), Ok(()));
    for waiting in waiting {
        assert!(matches!(block_on(waiting), Ok(Kept::Kept { .. })));
    }
    let ran = ran();
    let count = |beginning: &str| ran.iter().filter(|sql| *sql == beginning).count();
    assert_eq!((count("INSERT OR IGNORE"), count("UPDATE uploads SET")), (40, 40));
    // Those of the connection beside, of the probe, and one of all receipts.
    assert_eq!(count("COMMIT"), 3, "{ran:#?}");
}

/// The beginnings of the statements that ran since the last time.
fn ran() -> Vec<String> {
    let ran = take().into_iter().filter_map(|event| match event {
        Event::Ran(_, sql) => Some(sql.split([' ', '(']).take(3).collect::<Vec<_>>().join(" ")),
        Event::Cached(..) => None,
    });
    ran.collect()
}

/// Every connection that writes or reads had its settings made and asserted.
fn assert_settings(events: &[Event]) {
    let ran = |connection, part: &str| {
        events
            .iter()
            .any(|event| matches!(event, Event::Ran(of, sql) if *of == connection && sql.contains(part)))
    };
    assert_eq!(
        CONNECTIONS.load(Ordering::SeqCst),
        4,
        "one writes, one reads, one keeps the side file, one looks into the outbox"
    );
    for connection in [0, 1, 3] {
        assert!(ran(connection, "PRAGMA synchronous = FULL"), "connection {connection}");
        let asked = Event::Ran(connection, "PRAGMA synchronous".to_owned());
        assert!(events.contains(&asked), "connection {connection} asks whether it took");
    }
}
