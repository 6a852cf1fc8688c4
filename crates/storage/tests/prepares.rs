//! The hot path prepares nothing: every statement of it is cached on its connection.
//!
//! diesel tells its instrumentation when it caches a statement and when it runs one. The instrumentation is set for
//! the whole process, so this file holds one test.

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use diesel::connection::{Instrumentation, InstrumentationEvent, set_default_instrumentation};
use driftline_conflict::{Granularity, Policy, Strategy};
use driftline_engine::{Only, PageQuery, Place, Store};
use driftline_model::{ScopeName, Seq, SyncId};
use driftline_storage::SqliteStore;
use driftline_testkit::{Author, Draft, World, block_on, create, delete, patch};

/// Something that a connection did.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    Cached(usize, String),
    Ran(usize, String),
}

static EVENTS: Mutex<Vec<Event>> = Mutex::new(Vec::new());
static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
/// The connection that keeps the side file: it looks once a second, beside the hot path.
const SIDE: usize = 2;

fn note(event: Event) {
    EVENTS.lock().unwrap_or_else(PoisonError::into_inner).push(event);
}

fn take() -> Vec<Event> {
    std::mem::take(&mut *EVENTS.lock().unwrap_or_else(PoisonError::into_inner))
}

fn instrumentation() -> Option<Box<dyn Instrumentation>> {
    let connection = CONNECTIONS.fetch_add(1, Ordering::SeqCst);
    if connection == SIDE {
        return None;
    }
    Some(Box::new(move |event: InstrumentationEvent<'_>| match event {
        InstrumentationEvent::CacheQuery { sql, .. } => note(Event::Cached(connection, sql.to_owned())),
        InstrumentationEvent::StartQuery { query, .. } => {
            let text = query.to_string();
            let sql = text.split(" -- binds").next().unwrap_or_default();
            note(Event::Ran(connection, sql.trim().to_owned()));
        }
        _ => {}
    }))
}

struct Load {
    store: SqliteStore,
    ada: Author,
    bob: Author,
    policy: Arc<Policy>,
    manual: Arc<Policy>,
    session: SyncId,
    round: u64,
}

impl Load {
    /// Pushes, resends, conflicts and pulls, in batches of this size.
    fn run(&mut self, size: u64) {
        self.round += 1;
        let round = self.round;
        let ids: Vec<String> = (0..size).map(|at| format!("{round}/{at}")).collect();
        let base = |store: &SqliteStore| block_on(store.head(self.ada.tenant)).expect("a head").seq.number();
        let all = |draft: &dyn Fn(&str) -> Draft| ids.iter().map(|id| draft(id)).collect::<Vec<_>>();
        let creates = all(&|id| create(id, r#"{"a":1}"#).op_id(&format!("make {id}")));
        self.push(&self.ada, creates.clone(), None);
        self.push(&self.ada, creates, None);
        let clashes = all(&|id| patch(id, 0, r#"{"a":2}"#).policy(&self.policy).op_id(&format!("lose {id}")));
        self.push(&self.bob, clashes, None);
        let seen = base(&self.store);
        self.push(&self.bob, all(&|id| patch(id, seen.min(1), r#"{"b":2}"#)), None);
        self.push(&self.ada, all(&|id| delete(id, 1)), Some(round * 1000));
        self.move_and_set_aside(&ids);
        // A change from the future and a failed group: the thorough look-up.
        self.push(&self.ada, vec![patch(&ids[0], 1 << 40, "{}").op_id(&format!("ahead {round}"))], None);
        for place in [
            Place::After(Seq::ZERO),
            Place::After(Seq::new(seen)),
            Place::Key { after: None, only: Only::All },
            Place::Key { after: None, only: Only::Some { kinds: Vec::new(), scopes: vec![team("a")] } },
            Place::Lost { after: None, lost: vec![team("a"), team("b")] },
            Place::Range {
                kind: "note".parse().expect("a kind"),
                scope: ScopeName::tenant(),
                after: None,
                until: None,
            },
        ] {
            for kinds in [vec![], vec!["note".parse().expect("a kind")]] {
                let query = PageQuery {
                    tenant: self.ada.tenant,
                    scopes: self.ada.scopes(),
                    kinds,
                    place: place.clone(),
                    rows: 50,
                    bytes: 10_000,
                    sums: true,
                };
                block_on(self.store.page(query)).expect("a page");
            }
        }
        let id = ids[0].parse().expect("an id");
        let record = block_on(self.store.record(self.ada.tenant, &"note".parse().expect("a kind"), &id));
        assert!(record.expect("a read").is_some());
    }

    /// Moves records between scopes and back, and sets changes of them aside.
    fn move_and_set_aside(&self, ids: &[String]) {
        let all = |draft: &dyn Fn(&str) -> Draft| ids.iter().map(|id| draft(id)).collect::<Vec<_>>();
        self.push(&self.ada, all(&|id| create(id, r#"{"team":"a"}"#).kind("ticket").grouped("team")), None);
        let seen = block_on(self.store.head(self.ada.tenant)).expect("a head").seq.number();
        for team in ["b", "a"] {
            let fields = format!(r#"{{"team":"{team}"}}"#);
            let moved = |id: &str| patch(id, seen, &fields).kind("ticket").grouped("team");
            self.push(&self.ada, all(&moved), None);
        }
        let late =
            |id: &str| patch(id, seen, r#"{"n":1}"#).kind("ticket").grouped("team").policy(&self.manual);
        self.push(&self.bob, all(&late), None);
        self.push(&self.bob, all(&late), None);
    }

    fn push(&self, author: &Author, drafts: Vec<Draft>, acked_n: Option<u64>) {
        let mut batch = author.batch(drafts);
        batch.acked_n = acked_n;
        batch.scopes.extend(["a", "b"].map(team));
        batch.batch = Some((self.session.clone(), self.round));
        block_on(self.store.commit(batch)).expect("a commit");
    }
}

fn team(name: &str) -> ScopeName {
    ScopeName::group("team", name).expect("a scope's name")
}

#[test]
fn the_hot_path_prepares_nothing() {
    set_default_instrumentation(instrumentation).expect("nothing is connected yet");
    let world = World::new(1);
    let store = support::open_with(&support::file(&world), &world, 1).expect("the store opens");
    let ada = Author::join(&store, "acme", "ada", "phone");
    let bob = Author::join(&store, "acme", "bob", "phone");
    let policy =
        Arc::new(Policy { strategy: Strategy::ServerWins { granularity: Granularity::Field }, version: 1 });
    let session = "00000000-0000-4000-8000-000000000001".parse().expect("a UUID");
    let manual = Arc::new(Policy { strategy: Strategy::Manual, version: 1 });
    let mut load = Load { store, ada, bob, policy, manual, session, round: 0 };

    // Chunks of 100, 10 and 1.
    load.run(111);
    let warm = take();
    let cached: BTreeSet<(usize, String)> = warm
        .iter()
        .filter_map(|event| match event {
            Event::Cached(connection, sql) => Some((*connection, sql.trim().to_owned())),
            Event::Ran(..) => None,
        })
        .collect();
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
    }
    let hot = take();
    assert!(hot.len() > 300, "the instrumentation hears what runs: {}", hot.len());
    let prepared: Vec<_> = hot.iter().filter(|event| matches!(event, Event::Cached(..))).collect();
    assert!(prepared.is_empty(), "prepared on the hot path: {prepared:#?}");
    let uncached: BTreeSet<_> = hot
        .iter()
        .filter_map(|event| match event {
            Event::Ran(connection, sql) => Some((*connection, sql.clone())),
            Event::Cached(..) => None,
        })
        .filter(|(_, sql)| !matches!(sql.as_str(), "BEGIN" | "BEGIN IMMEDIATE" | "COMMIT" | "ROLLBACK"))
        .filter(|ran| !cached.contains(ran))
        .collect();
    assert!(uncached.is_empty(), "run without a cached statement: {uncached:#?}");
    assert_plain_pushes_ask_for_nothing_else(&load);
}

/// A push of plain changes asks for their records and for nothing that few changes need.
fn assert_plain_pushes_ask_for_nothing_else(load: &Load) {
    load.push(&load.ada, vec![create("plain", r#"{"a":1}"#).n(1 << 40)], None);
    let ran: Vec<String> = take()
        .into_iter()
        .filter_map(|event| match event {
            Event::Ran(_, sql) => Some(sql.split([' ', '(']).take(3).collect::<Vec<_>>().join(" ")),
            Event::Cached(..) => None,
        })
        .collect();
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
    assert_eq!(ran, wanted);
}

/// Every connection that writes or reads had its settings made and asserted.
fn assert_settings(events: &[Event]) {
    let ran = |connection, part: &str| {
        events
            .iter()
            .any(|event| matches!(event, Event::Ran(of, sql) if *of == connection && sql.contains(part)))
    };
    assert_eq!(CONNECTIONS.load(Ordering::SeqCst), 3, "one writes, one reads, one keeps the side file");
    for connection in 0..2 {
        assert!(ran(connection, "PRAGMA synchronous = FULL"), "connection {connection}");
        let asked = Event::Ran(connection, "PRAGMA synchronous".to_owned());
        assert!(events.contains(&asked), "connection {connection} asks whether it took");
    }
}
