//! A load that goes through every statement of the hot path, and an ear for what diesel prepares.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use diesel::connection::{Instrumentation, InstrumentationEvent};
use driftline_conflict::{Granularity, Policy, Strategy};
use driftline_engine::{
    Aggregate, DeviceNote, DeviceSign, Entry, Once, OnceKey, Only, PageQuery, Place, Store, Submission, Task,
};
use driftline_idempotency::{Fingerprint, WINDOW_MS_DEFAULT};
use driftline_insight::{HOUR_MS, SeriesPoint};
use driftline_model::{ScopeName, Seq, SyncId};
use driftline_testkit::{Author, Draft, block_on, create, delete, patch, sample};

/// Something that a connection did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Cached(usize, String),
    Ran(usize, String),
}

static EVENTS: Mutex<Vec<Event>> = Mutex::new(Vec::new());
pub(crate) static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
/// The connection that keeps the side file: it looks once a second, beside the hot path.
const SIDE: usize = 2;

fn note(event: Event) {
    EVENTS.lock().unwrap_or_else(PoisonError::into_inner).push(event);
}

pub(crate) fn take() -> Vec<Event> {
    std::mem::take(&mut *EVENTS.lock().unwrap_or_else(PoisonError::into_inner))
}

pub(crate) fn instrumentation() -> Option<Box<dyn Instrumentation>> {
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

pub(crate) struct Load<S> {
    pub(crate) store: S,
    pub(crate) ada: Author,
    bob: Author,
    policy: Arc<Policy>,
    manual: Arc<Policy>,
    session: SyncId,
    round: u64,
}

impl<S: Store> Load<S> {
    pub(crate) fn new(store: S) -> Self {
        let ada = Author::join(&store, "acme", "ada", "phone");
        let bob = Author::join(&store, "acme", "bob", "phone");
        let policy = Arc::new(Policy {
            strategy: Strategy::ServerWins { granularity: Granularity::Field },
            version: 1,
        });
        let session = "00000000-0000-4000-8000-000000000001".parse().expect("a UUID");
        let manual = Arc::new(Policy { strategy: Strategy::Manual, version: 1 });
        Self { store, ada, bob, policy, manual, session, round: 0 }
    }

    /// Pushes, resends, conflicts and pulls, in batches of this size.
    pub(crate) fn run(&mut self, size: u64) {
        self.round += 1;
        let round = self.round;
        let ids: Vec<String> = (0..size).map(|at| format!("{round}/{at}")).collect();
        let base = |store: &S| block_on(store.head(self.ada.tenant)).expect("a head").seq.number();
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
        self.measure(&ids);
        self.notice();
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

    /// Appends samples and adds to series, under names, and sends all of it again.
    fn measure(&self, ids: &[String]) {
        let samples = ids.iter().map(|id| sample(id, r#"{"v":1}"#)).collect::<Vec<_>>();
        let series = ids.iter().map(|id| (Box::from(id.as_str()), SeriesPoint::default())).collect();
        let task = Task::Aggregate(Box::new(Aggregate { hour_ms: self.round % 2 * HOUR_MS, series }));
        let aggregate = Entry { op_id: None, n: None, hash: 0, kind: None, id: None, group: None, task };
        for name in ["first", "second"] {
            let mut batch = self.named(&format!("{name} {}", self.round), samples.clone());
            batch.entries.push(aggregate.clone());
            for _ in 0..2 {
                block_on(self.store.commit(batch.clone())).expect("a commit");
            }
        }
    }

    /// Makes a batch with a key and a place in its session.
    pub(crate) fn named(&self, key: &str, drafts: Vec<Draft>) -> Submission {
        let fingerprint = Fingerprint::envelope("sync_data", None, key.as_bytes());
        let (owner, number) = ("user:ada".into(), self.round << 20 | key.len() as u64);
        let request = OnceKey::Request { owner, key: key.into() };
        let place = OnceKey::Batch { device: self.ada.device, sync_id: self.session.clone(), number };
        let names = [request, place];
        let once = names.map(|key| Once { key, fingerprint, window_ms: WINDOW_MS_DEFAULT }).to_vec();
        Submission { batch: Some((self.session.clone(), number)), once, ..self.ada.batch(drafts) }
    }

    /// Writes down every sign of a device.
    fn notice(&self) {
        let connection: Box<str> = "c".into();
        let signs = [
            DeviceSign::Heard,
            DeviceSign::Connected { connection: connection.clone() },
            DeviceSign::Reported { status: None, report: "{}".into() },
            DeviceSign::Disconnected { connection },
        ];
        let (tenant, device) = (self.ada.tenant, self.ada.device);
        let notes = signs.map(|sign| DeviceNote { tenant, device, at_ms: self.round, sign });
        block_on(self.store.note_devices(notes.to_vec())).expect("notes");
    }

    pub(crate) fn push(&self, author: &Author, drafts: Vec<Draft>, acked_n: Option<u64>) {
        let mut batch = author.batch(drafts);
        batch.acked_n = acked_n;
        batch.scopes.extend(["a", "b"].map(team));
        batch.batch = Some((self.session.clone(), self.round));
        block_on(self.store.commit(batch)).expect("a commit");
    }
}

pub(crate) fn team(name: &str) -> ScopeName {
    ScopeName::group("team", name).expect("a scope's name")
}

/// The statements that were cached, each with its connection.
pub(crate) fn cached(events: &[Event]) -> BTreeSet<(usize, String)> {
    let cached = events.iter().filter_map(|event| match event {
        Event::Cached(connection, sql) => Some((*connection, sql.trim().to_owned())),
        Event::Ran(..) => None,
    });
    cached.collect()
}

/// The statements that ran beside the cache, but for those that begin and end transactions.
pub(crate) fn uncached(events: &[Event], cached: &BTreeSet<(usize, String)>) -> BTreeSet<(usize, String)> {
    let ran = events.iter().filter_map(|event| match event {
        Event::Ran(connection, sql) => Some((*connection, sql.clone())),
        Event::Cached(..) => None,
    });
    ran.filter(|(_, sql)| !sql.starts_with("BEGIN") && !matches!(sql.as_str(), "COMMIT" | "ROLLBACK"))
        .filter(|ran| !cached.contains(ran))
        .collect()
}
