//! A reader at a cursor was given, or given something newer than, every visible change before it.
//!
//! Readers page while devices write: records are created, changed, deleted and restored between two pages, kinds are
//! added and dropped, tombstones are purged, epochs change. Whenever a reader is caught up, it holds exactly what it
//! may see. Every planted fault must be noticed by the same check.

mod support;

use std::sync::Arc;

use driftline_engine::{Catalogue, Engine, Hub, Identity, NullObserver, Retention, Store};
use driftline_model::{DeviceId, Hlc, KindName, Limits, ScopeName, TenantId, UserId};
use driftline_storage::MemoryStore;
use driftline_testkit::{
    Author, Draft, FixedClock, Rng, SeededRandom, World, block_on, create, delete, patch, restore,
};

use support::faulty::{Fault, Faulty};
use support::over_seeds;
use support::reader::Reader;

const HISTORIES: u64 = 1_500;
const DAY_MS: u64 = 86_400_000;

fn kinds(names: &[&str]) -> Vec<KindName> {
    names.iter().map(|name| KindName::new(name).expect("a kind's name")).collect()
}

struct Server {
    engine: Engine<Faulty, NullObserver>,
    clock: Arc<FixedClock>,
    authors: Vec<Author>,
    identities: Vec<Identity>,
}

impl Server {
    fn new(fault: Fault, rng: &mut Rng) -> Self {
        let clock = Arc::new(FixedClock::new(World::BEGIN_MS));
        let hub = Arc::new(Hub::new(4));
        let random = Arc::new(SeededRandom::new(rng.next()));
        let inner = MemoryStore::new(clock.clone(), random, hub.clone(), Limits::default());
        let limits = Limits {
            page_rows: usize::try_from(rng.between(1, 5)).expect("small"),
            page_bytes: usize::try_from(rng.between(1, 60)).expect("small"),
            ..Limits::default()
        };
        let catalogue = Catalogue::default().allow_undeclared();
        let engine = Engine::new(Faulty::new(inner, fault), hub, catalogue, limits, NullObserver);
        let identities = ["ada", "bob"].map(|user| {
            let (tenant, user) = (TenantId::new("acme"), UserId::text(user));
            let device = DeviceId::new("phone").expect("a name");
            let identity = engine.identify(
                tenant.expect("a name"),
                user.expect("a name"),
                Some(device),
                Vec::new(),
                &[],
            );
            block_on(identity).expect("an identity")
        });
        let authors = identities.iter().map(|identity| {
            let (device, _) = identity.device.clone().expect("a device");
            Author::new(identity.tenant, device, &identity.user.to_string())
        });
        Self { clock, authors: authors.collect(), identities: identities.to_vec(), engine }
    }

    fn push(&self, rng: &mut Rng) {
        self.clock.advance(rng.below(5_000));
        let author = rng.pick(&self.authors);
        let head = block_on(self.engine.store().head(author.tenant)).expect("a head");
        let drafts: Vec<Draft> = (0..rng.between(1, 4)).map(|_| draft(rng, head.seq.number())).collect();
        let mut batch = author.batch(drafts);
        batch.scopes.extend(groups());
        block_on(self.engine.store().commit(batch)).expect("a commit");
    }

    /// Tombstones go; the server is a month older then.
    fn purge(&self) {
        self.clock.advance(31 * DAY_MS);
        let now_ms = driftline_engine::Clock::now_ms(&*self.clock);
        block_on(self.engine.store().prune(now_ms, &Retention::default())).expect("a prune");
    }

    fn begin_epoch(&self) {
        let tenant = self.authors[0].tenant;
        let head = block_on(self.engine.store().head(tenant)).expect("a head");
        block_on(self.engine.store().begin_epoch(tenant, head.epoch)).expect("an epoch");
    }
}

/// The scopes of three groups, between which records of the kind `movie` move.
fn groups() -> Vec<ScopeName> {
    (0..3).map(|at| ScopeName::group("g", &format!("n{at}")).expect("a scope")).collect()
}

fn draft(rng: &mut Rng, seq: u64) -> Draft {
    let id = format!("x{}", rng.below(7));
    let base = seq.saturating_sub(rng.below(4));
    let name = ["a", "b", "c"][rng.place(3)];
    let kind = ["note", "car", "movie"][rng.place(3)];
    let op = rng.below(10);
    let moves = kind == "movie" && (op < 4 || rng.percent(40));
    let group = if moves { format!(r#","g":"n{}""#, rng.below(3)) } else { String::new() };
    let fields = format!(r#"{{"{name}":{}{group}}}"#, rng.below(1000));
    let draft = match op {
        0..4 => create(&id, &fields),
        4 => delete(&id, base),
        5 => restore(&id, base, &fields),
        _ => patch(&id, base, &fields),
    };
    let draft = draft.kind(kind);
    let draft = match kind {
        "movie" => draft.grouped("g"),
        _ if rng.percent(30) => draft.owned(),
        _ => draft,
    };
    let clock = World::BEGIN_MS + seq * 1_000 + rng.below(5_000);
    if rng.percent(50) { draft.hlc(Hlc::new(clock, 0)) } else { draft }
}

fn wanted(rng: &mut Rng) -> Vec<KindName> {
    let sets: [&[&str]; 5] = [&[], &["car"], &["car", "note"], &["movie"], &["car", "movie", "note"]];
    kinds(sets[rng.place(sets.len())])
}

/// Gives a reader other groups.
fn regroup(reader: &mut Reader, rng: &mut Rng) {
    reader.identity.scopes.retain(|scope| !scope.as_str().starts_with("group:"));
    reader.identity.scopes.extend(groups().into_iter().filter(|_| rng.percent(50)));
    reader.identity.scopes.sort();
}

/// Pulls once and, if the reader is caught up then, compares.
fn pull(server: &Server, reader: &mut Reader, rng: &mut Rng) -> Result<bool, String> {
    let limit = rng.percent(30).then(|| rng.below(4));
    let caught_up = reader.pull(&server.engine, limit)?;
    if caught_up {
        reader.check_equal(&server.engine.store().inner)?;
    }
    Ok(caught_up)
}

fn readers_keep_up(fault: &Fault, seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let server = Server::new(*fault, &mut rng);
    let mut readers: Vec<Reader> = server
        .identities
        .iter()
        .flat_map(|identity| [(); 2].map(|()| identity.clone()))
        .map(|identity| Reader::new(identity, wanted(&mut rng)))
        .collect();
    readers.iter_mut().for_each(|reader| regroup(reader, &mut rng));
    for _ in 0..rng.between(10, 50) {
        match rng.below(100) {
            0..50 => server.push(&mut rng),
            50..53 => {
                let reader = rng.place(readers.len());
                let other = wanted(&mut rng);
                readers[reader].wanted = other;
            }
            53..68 => {
                let reader = rng.place(readers.len());
                regroup(&mut readers[reader], &mut rng);
            }
            68 => server.purge(),
            69 => server.begin_epoch(),
            _ => {
                let reader = rng.place(readers.len());
                pull(&server, &mut readers[reader], &mut rng)?;
            }
        }
    }
    // Once nobody writes any more, everybody gets to the end.
    for reader in &mut readers {
        let mut pages = 0;
        while !pull(&server, reader, &mut rng)? {
            pages += 1;
            if pages > 500 {
                return Err(format!("no end after {pages} pages at {:?}", reader.cursor));
            }
        }
    }
    Ok(())
}

#[test]
fn readers_are_given_everything() {
    if let Err(broken) = over_seeds(&Fault::Nothing, HISTORIES, &readers_keep_up) {
        panic!("{broken}");
    }
}

#[test]
fn every_fault_of_the_reading_side_is_noticed() {
    for fault in [
        Fault::SkipsAPlace,
        Fault::HidesTombstones,
        Fault::NeverMore,
        Fault::ForgetsTheOrder,
        Fault::ForgetsTheFloor,
        Fault::FromIsAt,
        Fault::CoversAll,
        Fault::SnapshotEndsLate,
        Fault::ForgetsExits,
        Fault::ForgetsEntries,
        Fault::KeepsTheLost,
        Fault::KeepsTheLostDead,
        Fault::CoversGrants,
        Fault::SumsLate,
    ] {
        assert!(over_seeds(&fault, HISTORIES, &readers_keep_up).is_err(), "{fault:?} went unnoticed");
    }
}

/// A reader who gets a right later starts with a snapshot of what it could not see before.
#[test]
fn a_right_that_comes_later_begins_with_a_snapshot() {
    let mut rng = Rng::new(1);
    let server = Server::new(Fault::Nothing, &mut rng);
    let author = &server.authors[0];
    block_on(server.engine.store().commit(author.batch([create("x1", "{}")]))).expect("a commit");
    let rule = driftline_engine::KindRule { read: vec!["staff".into()], ..Default::default() };
    let secret = Catalogue::new([("note".parse().expect("a kind"), rule)].into());
    let hub = Arc::new(Hub::new(4));
    let engine = Engine::new(server.engine.store().clone(), hub, secret, Limits::default(), NullObserver);

    let mut reader = Reader::new(server.identities[1].clone(), kinds(&["note"]));
    assert_eq!(reader.pull(&engine, None), Ok(true));
    assert!(reader.rows.is_empty());
    block_on(server.engine.store().commit(author.batch([create("x2", "{}")]))).expect("a commit");
    assert_eq!(reader.pull(&engine, None), Ok(true));
    assert!(reader.rows.is_empty());

    reader.identity.roles = vec!["staff".into()];
    while reader.pull(&engine, None) != Ok(true) {}
    assert_eq!(reader.check_equal(engine.store()), Ok(()));
    assert_eq!(reader.rows.len(), 2);
}

/// A right that is taken away is gone with the next page, also in the middle of a snapshot.
#[test]
fn a_right_that_is_taken_is_gone_with_the_next_page() {
    let mut rng = Rng::new(1);
    let server = Server::new(Fault::Nothing, &mut rng);
    let author = &server.authors[0];
    let drafts = (0..6).map(|at| create(&format!("x{at}"), "{}").kind(["car", "note", "movie"][at % 3]));
    block_on(server.engine.store().commit(author.batch(drafts))).expect("a commit");
    let rule = |role: &str| driftline_engine::KindRule { read: vec![role.into()], ..Default::default() };
    let declared = kinds(&["car", "movie", "note"]).into_iter().map(|kind| {
        let role = if kind.as_str() == "note" { "staff" } else { "user" };
        (kind, rule(role))
    });
    let catalogue = Catalogue::new(declared.collect());
    let limits = Limits { page_rows: 1, ..Limits::default() };
    let engine =
        Engine::new(server.engine.store().clone(), Arc::new(Hub::new(4)), catalogue, limits, NullObserver);

    // The reader is caught up with cars, then pages films and notes as a snapshot of their own.
    let mut reader = Reader::new(server.identities[1].clone(), kinds(&["car"]));
    reader.identity.roles = vec!["user".into(), "staff".into()];
    while reader.pull(&engine, None) != Ok(true) {}
    reader.wanted = kinds(&["car", "movie", "note"]);
    assert_eq!(reader.pull(&engine, None), Ok(false));
    reader.identity.roles = vec!["user".into()];
    while reader.pull(&engine, None) != Ok(true) {}
    assert!(reader.rows.keys().all(|(kind, _)| kind.as_str() != "note"), "{:?}", reader.rows);
    assert_eq!(reader.rows.len(), 4);
}
