//! Random interleavings of requests that may come again, against a plain map: each has its effect once, and the second
//! answer is the first.
//!
//! The real engine runs over a store in memory and over SQLite, whose file is opened anew now and then. `ONCE_SEED=17` runs
//! one history alone.

mod model;
mod office;
mod request;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use driftline_engine::{Hub, Prepared, Store};
use driftline_model::Limits;
use driftline_protocol::ErrorCode;
use driftline_storage::{MemoryStore, SqliteOptions, SqliteStore};
use driftline_testkit::{Rng, World, block_on};
use futures_util::future::join_all;

use model::{Answer, Branch, Model, Outcome};
use office::{Answered, Office, Said, catalogue};
use request::{Body, Request};

const STEPS: u64 = 250;
/// How many requests may come again.
const LATELY: usize = 8;
const HOUR_MS: u64 = 3_600_000;
/// How long keys are remembered, by tenant.
const WINDOWS_MS: [u64; 2] = [HOUR_MS, 3 * HOUR_MS];

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
    run(0..60, open);
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
            outbox_claims: Vec::new(),
        });
        (store.expect("a new file"), hub)
    };
    run(1_000..1_008, open);
}
