//! Random interleavings of requests that may come again, against a plain map: each has its effect once, and the second
//! answer is the first.
//!
//! The real engine runs over a store in memory and over SQLite, whose file is opened anew now and then. `ONCE_SEED=17` runs
//! one history alone.

mod model;
mod request;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use driftline_engine::{
    Catalogue, DeviceAction, DeviceChange, DeviceChanged, DeviceOnce, DeviceQuery, Done, Engine, Hub,
    Identity, Ingest, KindRule, NullObserver, Prepared, SampleQuery, SeriesQuery, Store, TelemetryRule,
    Windows, Work,
};
use driftline_idempotency::Fingerprint;
use driftline_model::{DeviceId, KindName, Limits, TenantId, UserId};
use driftline_protocol::{Ack, BareAck, Encoding, ErrorCode, Fault, Inbound, TelemetryAck, decode};
use driftline_storage::{MemoryStore, SqliteOptions, SqliteStore};
use driftline_testkit::{Rng, World, block_on};
use futures_util::future::join_all;

use model::{Answer, Branch, Model, Outcome};
use request::{Body, DEVICES, Request, TENANTS, Who};

const STEPS: u64 = 250;
/// How many requests may come again.
const LATELY: usize = 8;
const HOUR_MS: u64 = 3_600_000;
/// How long keys are remembered, by tenant.
const WINDOWS_MS: [u64; 2] = [HOUR_MS, 3 * HOUR_MS];

/// What a request was answered.
#[derive(Debug, Clone, PartialEq)]
enum Said {
    Samples(TelemetryAck),
    Items(Ack),
    Noted(BareAck),
    Registered(Box<[u8]>),
    Exists,
}

impl Said {
    /// The answer without the word that it is one of before, and that word.
    fn split(self) -> (Self, bool) {
        match self {
            Self::Samples(ack) => {
                (Self::Samples(TelemetryAck { replayed: false, ..ack.clone() }), ack.replayed)
            }
            Self::Items(ack) => (Self::Items(Ack { replayed: false, ..ack.clone() }), ack.replayed),
            Self::Noted(ack) => (Self::Noted(BareAck { replayed: false, ..ack.clone() }), ack.replayed),
            other => (other, false),
        }
    }
}

type Answered = Result<(Said, bool), ErrorCode>;

fn catalogue() -> Catalogue {
    let kind = |name: &str, telemetry: Option<TelemetryRule>| {
        let rule = KindRule { telemetry: telemetry.map(Arc::new), ..KindRule::default() };
        (KindName::new(name).expect("a name"), rule)
    };
    let keyed = TelemetryRule { key: vec!["slot".into()], ..TelemetryRule::default() };
    Catalogue::new(BTreeMap::from([
        kind("note", None),
        kind("reading", Some(TelemetryRule::default())),
        kind("gauge", Some(keyed)),
    ]))
}

/// The engine over one store, with who sends.
struct Office<S> {
    engine: Engine<S, NullObserver>,
    identities: Vec<Vec<Identity>>,
}

impl<S: Store> Office<S> {
    fn new(store: S, hub: Arc<Hub>) -> Self {
        let engine = Engine::new(store, hub, catalogue(), Limits::default(), NullObserver);
        let tenants = TENANTS.map(|name| TenantId::new(name).expect("a name"));
        let windows = Windows {
            default_ms: WINDOWS_MS[0],
            tenants: BTreeMap::from([(tenants[1].clone(), WINDOWS_MS[1])]),
        };
        let engine = engine.with_windows(windows);
        let identify = |tenant: &TenantId, device: &str| {
            let (user, device) =
                (UserId::text("ada").expect("a name"), DeviceId::new(device).expect("a name"));
            block_on(engine.identify(tenant.clone(), user, Some(device), vec!["staff".into()], &[]))
        };
        let of = |tenant| DEVICES.iter().map(|device| identify(tenant, device).expect("let in")).collect();
        let identities = tenants.iter().map(of).collect();
        Self { engine, identities }
    }

    fn identity(&self, who: Who) -> &Identity {
        &self.identities[who.tenant][who.device]
    }

    /// Turns a message into work, as a session does.
    fn prepare(&self, request: &Request, step: u64, now_ms: u64) -> Prepared {
        let identity = self.identity(request.who);
        let message = decode(Encoding::Json, request.frame().as_bytes(), self.engine.limits());
        let message = message.expect("a message of the protocol");
        let key = message.key.as_deref();
        let once = self.engine.once_of(identity, request.kind(), message.sync_id.as_ref(), key);
        let seed = u128::from(step) << 32;
        let work = match message.body {
            Inbound::Telemetry(telemetry) => Work::Ingest {
                ingest: Box::new(Ingest {
                    messages: vec![(0, *telemetry)],
                    array: false,
                    once: once.into_iter().collect(),
                    batch_key: request.key.clone(),
                    seed,
                }),
            },
            Inbound::SyncData(data) => Work::Push {
                sync_id: message.sync_id.expect("a session"),
                data,
                epoch: None,
                once: once.into_iter().collect(),
                seed,
            },
            Inbound::AnalyticsBatch(batch) => Work::Aggregate { batch, once },
            other => panic!("{other:?} is none of these requests"),
        };
        block_on(self.engine.prepare(identity, work, now_ms, "test"))
    }

    async fn register(&self, request: &Request, step: u64) -> Answered {
        let Body::Device { number, register, enabled } = request.body else { panic!("{request:?}") };
        let identity = self.identity(request.who);
        let once = request.key.as_ref().map(|key| DeviceOnce {
            owner: identity.owner(),
            key: key.as_str().into(),
            fingerprint: Fingerprint::builder("devices").text(&request.payload()).finish(),
            window_ms: self.engine.window_ms(&identity.tenant_id),
            answer: Arc::new(move |row| format!("{} {} {step}", row.device_id, row.enabled).into_bytes()),
        });
        let change = DeviceChange {
            owner: owner_of(request.who),
            device_id: DeviceId::new(&format!("extra-{number}")).expect("a name"),
            action: if register { DeviceAction::Register } else { DeviceAction::Update },
            enabled: Some(enabled),
            digest: None,
        };
        let answer = once.as_ref().map(|once| Arc::clone(&once.answer));
        match self.engine.change_device(identity, change, once).await {
            Ok(DeviceChanged::Done(row)) => {
                Ok((Said::Registered(answer.map_or_else(Box::default, |answer| answer(&row).into())), false))
            }
            Ok(DeviceChanged::Replayed(bytes)) => Ok((Said::Registered(bytes), true)),
            Ok(DeviceChanged::Exists(_)) => Ok((Said::Exists, false)),
            Ok(other) => panic!("{other:?}"),
            Err(fault) => Err(fault.code),
        }
    }

    async fn finish(&self, request: &Request, prepared: Prepared, now_ms: u64) -> Answered {
        let done = self.engine.finish(self.identity(request.who), prepared, now_ms).await;
        let said = match done {
            Done::Ingested(result) => result.map(Said::Samples),
            Done::Pushed(result) => result.map(Said::Items),
            Done::Noted(result) => result.map(Said::Noted),
            other => panic!("{other:?}"),
        };
        said.map(Said::split).map_err(|fault: Fault| fault.code)
    }

    /// What is stored must be what the model holds.
    fn check(&self, model: &Model, place: &str) {
        let store = self.engine.store();
        for (number, identities) in self.identities.iter().enumerate() {
            let tenant = identities[0].tenant;
            for kind in ["reading", "gauge"] {
                let query = SampleQuery {
                    kind: KindName::new(kind).expect("a name"),
                    devices: None,
                    from_ms: 0,
                    to_ms: 2 * World::BEGIN_MS,
                    after: None,
                    rows: 10_000,
                };
                let rows = block_on(store.samples(tenant, query)).expect("a read").len();
                assert_eq!(rows, model.samples_of(number, kind), "{place}: samples of {kind}");
            }
            let query = SeriesQuery { from_ms: 0, to_ms: 2 * World::BEGIN_MS, after: None, rows: 1_000 };
            let points = block_on(store.series(tenant, query)).expect("a read");
            let counted: u64 = points.iter().map(|row| row.point.counter).sum();
            assert_eq!(counted, model.counted.get(&number).copied().unwrap_or(0), "{place}: counted");
            let head = block_on(store.head(tenant)).expect("a read");
            assert_eq!(
                head.seq.number(),
                model.changes.get(&number).copied().unwrap_or(0),
                "{place}: changes"
            );
            self.check_devices(number, model, place);
        }
    }

    fn check_devices(&self, number: usize, model: &Model, place: &str) {
        let query = DeviceQuery { rows: 1_000, ..DeviceQuery::default() };
        let rows = block_on(self.engine.store().devices(self.identities[number][0].tenant, query));
        let rows = rows.expect("a read");
        let extra = rows.iter().filter(|row| row.device_id.as_str().starts_with("extra-"));
        let stored: BTreeMap<(String, String), bool> =
            extra.map(|row| ((row.owner.to_string(), row.device_id.to_string()), row.enabled)).collect();
        let wanted: BTreeMap<(String, String), bool> = model
            .devices
            .iter()
            .filter(|((tenant, ..), _)| *tenant == number)
            .map(|((tenant, device, name), enabled)| {
                let owner = owner_of(Who { tenant: *tenant, device: *device });
                ((owner.into(), format!("extra-{name}")), *enabled)
            })
            .collect();
        assert_eq!(stored, wanted, "{place}: devices");
    }
}

/// Each sender registers devices of a user of its own.
fn owner_of(who: Who) -> Box<str> {
    format!("owner-of-{}", DEVICES[who.device]).into()
}

/// A world in which the store may be opened again.
struct Scene<S, O> {
    world: World,
    open: O,
    office: Option<Office<S>>,
    model: Model,
    /// The engine's words for what was executed, by step.
    first: BTreeMap<u64, Said>,
    /// What was sent lately, and may come again.
    sent: Vec<Request>,
}

impl<S: Store, O: Fn(&World) -> (S, Arc<Hub>)> Scene<S, O> {
    fn new(seed: u64, open: O) -> Self {
        let world = World::new(seed);
        let mut model = Model::default();
        model.now_ms = World::BEGIN_MS;
        let mut scene = Self { world, open, office: None, model, first: BTreeMap::new(), sent: Vec::new() };
        scene.reopen();
        scene
    }

    fn reopen(&mut self) {
        // The file is one store's alone: the old one goes first.
        self.office = None;
        let (store, hub) = (self.open)(&self.world);
        self.office = Some(Office::new(store, hub));
        self.model.now.restarts += 1;
    }

    fn office(&self) -> &Office<S> {
        self.office.as_ref().expect("it is open")
    }

    fn step(&mut self, rng: &mut Rng, step: u64, place: &str) {
        match rng.below(100) {
            0..3 => self.reopen(),
            3..7 => self.prune(),
            7..20 => self.wait(rng),
            _ => self.ask(rng, step, place),
        }
    }

    fn prune(&mut self) {
        let retention = catalogue().retention();
        block_on(self.office().engine.store().prune(self.model.now_ms, &retention)).expect("cleaned");
        self.model.now.prunes += 1;
    }

    /// Lets time pass: some minutes, or up to the moment at which something is forgotten, or the one before it.
    fn wait(&mut self, rng: &mut Rng) {
        let expiries = self.model.expiries();
        let now_ms = if expiries.is_empty() || rng.percent(30) {
            self.model.now_ms + rng.below(20 * 60_000)
        } else {
            (*rng.pick(&expiries) - rng.below(2)).max(self.model.now_ms)
        };
        self.model.now_ms = now_ms;
        self.world.clock.set(now_ms);
    }

    /// Sends one request, or several that are under way at once.
    fn ask(&mut self, rng: &mut Rng, step: u64, place: &str) {
        self.model.now.group += 1;
        let now_ms = self.model.now_ms;
        let first = match self.sent.is_empty() || rng.percent(50) {
            true => Request::draw(rng),
            false => rng.pick(&self.sent).clone(),
        };
        self.sent.push(first.clone());
        if self.sent.len() > LATELY {
            self.sent.remove(0);
        }
        if matches!(first.body, Body::Device { .. }) {
            let said = block_on(self.office().register(&first, step));
            return self.judge(&first, step, said, place);
        }
        let mut requests = vec![first.clone()];
        while rng.percent(30) {
            let other = if rng.percent(60) { first.clone() } else { Request::draw(rng) };
            let other = Request { who: first.who, key: first.key.clone(), ..other };
            if !matches!(other.body, Body::Device { .. }) {
                requests.push(other);
            }
        }
        let office = self.office();
        let mut under_way: Vec<(Request, u64, Prepared)> = Vec::new();
        for (number, request) in requests.into_iter().enumerate() {
            let step = step * 100 + number as u64;
            let prepared = office.prepare(&request, step, now_ms);
            // They reach the store in another order than that in which they came.
            under_way.insert(rng.place(under_way.len() + 1), (request, step, prepared));
        }
        let mut asked = Vec::new();
        let mut answers: Vec<Pin<Box<dyn Future<Output = Answered> + '_>>> = Vec::new();
        for (request, step, prepared) in under_way {
            asked.push((request.clone(), step));
            answers.push(Box::pin(async move { office.finish(&request, prepared, now_ms).await }));
        }
        let said = block_on(join_all(answers));
        for ((request, step), said) in asked.iter().zip(said) {
            self.judge(request, *step, said, place);
        }
    }

    /// Holds an answer against the model's.
    fn judge(&mut self, request: &Request, step: u64, said: Answered, place: &str) {
        let place = format!("{place}, {request:?}");
        let window_ms = WINDOWS_MS[request.who.tenant];
        match (self.model.expect(request, step, window_ms), said) {
            (Outcome::Reused, Err(ErrorCode::IdempotencyKeyReused))
            | (Outcome::Executed(Answer::NotFound), Err(ErrorCode::NotFound)) => {}
            (Outcome::Executed(answer), Ok((said, replayed))) => {
                // A batch whose changes are all known by their own names says so as well.
                let all_known = matches!(&answer, Answer::Items(known) if known.iter().all(|known| *known));
                assert_eq!(replayed, all_known, "{place}: {said:?}");
                check_words(&answer, &said, request, &place);
                self.first.insert(step, said);
            }
            (Outcome::Replayed { of }, Ok((said, replayed))) => {
                assert!(replayed, "{place}: {said:?} is an answer of before");
                assert_eq!(Some(&said), self.first.get(&of), "{place}: the second answer is the first");
            }
            (wanted, said) => panic!("{place}: wanted {wanted:?}, got {said:?}"),
        }
    }
}

/// The words of an answer must be those of the model.
fn check_words(answer: &Answer, said: &Said, request: &Request, place: &str) {
    match (answer, said) {
        (Answer::Samples { accepted, duplicates, rejected }, Said::Samples(ack)) => {
            let places: Vec<u64> = ack.rejected.iter().map(|rejected| rejected.index).collect();
            assert_eq!(
                (ack.accepted, ack.duplicates, &places),
                (*accepted, *duplicates, rejected),
                "{place}"
            );
            assert_eq!(ack.of, request.kind(), "{place}");
        }
        (Answer::Items(known), Said::Items(ack)) => {
            let duplicates: Vec<bool> = ack.results.iter().map(|result| result.duplicate).collect();
            assert_eq!((&duplicates, ack.failed), (known, 0), "{place}");
        }
        (Answer::Counted, Said::Noted(ack)) => assert_eq!(ack.of, "analytics_batch", "{place}"),
        (Answer::Registered, Said::Registered(_)) | (Answer::Exists, Said::Exists) => {}
        (wanted, said) => panic!("{place}: wanted {wanted:?}, got {said:?}"),
    }
}

/// Runs histories; together they must meet every branch.
fn run<S: Store>(seeds: std::ops::Range<u64>, open: impl Fn(&World) -> (S, Arc<Hub>) + Copy) {
    let alone = std::env::var("ONCE_SEED").ok().map(|seed| seed.parse::<u64>().expect("a number"));
    let seeds = alone.map_or(seeds, |seed| seed..seed + 1);
    let mut seen: BTreeMap<Branch, u64> = BTreeMap::new();
    for seed in seeds {
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let mut scene = Scene::new(seed, open);
        for step in 1..=STEPS {
            let place = format!("ONCE_SEED={seed}, step {step}");
            scene.step(&mut rng, step, &place);
            if step % 50 == 0 {
                scene.office().check(&scene.model, &place);
            }
        }
        for (branch, count) in scene.model.seen {
            *seen.entry(branch).or_default() += count;
        }
    }
    println!("{seen:?}");
    if alone.is_none() {
        let missed: Vec<Branch> =
            Branch::ALL.into_iter().filter(|branch| !seen.contains_key(branch)).collect();
        assert!(missed.is_empty(), "never met: {missed:?}");
    }
}

#[test]
fn in_memory_every_request_has_its_effect_once() {
    // What is in memory is lost with it: one store serves all openings of a world.
    let kept = RefCell::new(BTreeMap::<PathBuf, (MemoryStore, Arc<Hub>)>::new());
    let open = |world: &World| {
        let make = || {
            let hub = Arc::new(Hub::new(64));
            let limits = Limits::default();
            let store = MemoryStore::new(world.clock.clone(), world.random.clone(), hub.clone(), limits);
            (store, hub)
        };
        kept.borrow_mut().entry(world.folder.path().to_owned()).or_insert_with(make).clone()
    };
    run(0..60, &open);
}

#[test]
fn on_sqlite_every_request_has_its_effect_once_whenever_the_file_is_opened_again() {
    let open = |world: &World| {
        let hub = Arc::new(Hub::new(64));
        let limits = Limits::default();
        let store = SqliteStore::open(SqliteOptions {
            file: world.folder.path().join("driftline.db"),
            clock: world.clock.clone(),
            random: world.random.clone(),
            listeners: hub.clone(),
            fatal: Box::new(|reason| panic!("{reason}")),
            skew_ms_max: limits.skew_ms_max,
            record_bytes: limits.record_bytes,
            readers: 1,
        });
        (store.expect("a new file"), hub)
    };
    run(1_000..1_008, open);
}
