//! Histories of careless clients: any operation on any record, late, out of order, with any clock.

use driftline_conflict::{Change, Context, Decision, DeviceTable, Op, Policy, Record, Rights};
use driftline_model::{DeviceNo, Hlc, Object, Seq};

use super::parts::Parts;
use super::policies::{self, Content};
use super::rng::Rng;
use super::seen::clash;
use super::{Apply, SKEW_MS, accepted};

/// One change as the server received it; a list of these is all that a replay needs.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    /// Which record.
    pub(crate) key: usize,
    pub(crate) change: Change,
    pub(crate) rights: Rights,
    pub(crate) received: Hlc,
}

impl Input {
    pub(crate) fn latest(&self) -> Hlc {
        Hlc::new(self.received.millis() + SKEW_MS, 0)
    }
}

/// One input with what came out.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) input: Input,
    /// The version that the change was offered.
    pub(crate) next: Seq,
    pub(crate) before: Option<Record>,
    pub(crate) decision: Decision,
    pub(crate) after: Option<Record>,
}

/// Records of one tenant under one policy, with one sequence.
pub(crate) struct Server<'a> {
    apply: &'a Apply<'a>,
    pub(crate) policy: Policy,
    pub(crate) devices: DeviceTable,
    pub(crate) records: Vec<Option<Record>>,
    pub(crate) head: Seq,
}

impl<'a> Server<'a> {
    pub(crate) fn new(apply: &'a Apply<'a>, policy: Policy, devices: DeviceTable, records: usize) -> Self {
        Self { apply, policy, devices, records: vec![None; records], head: Seq::ZERO }
    }

    /// Applies one input. A version is used up only by a change.
    pub(crate) fn take(&mut self, input: &Input) -> Step {
        let next = self.head.next();
        let context = Context {
            next,
            received: input.received,
            latest: input.latest(),
            devices: &self.devices,
            rights: input.rights,
        };
        let before = self.records[input.key].clone();
        let decision = (self.apply)(before.as_ref(), &input.change, &self.policy, &context);
        if let Some(record) = &decision.record {
            self.records[input.key] = Some(record.clone());
            self.head = next;
        }
        let after = self.records[input.key].clone();
        Step { input: input.clone(), next, before, decision, after }
    }
}

/// A finished history.
pub(crate) struct Run {
    pub(crate) policy: Policy,
    pub(crate) devices: DeviceTable,
    pub(crate) steps: Vec<Step>,
    pub(crate) records: Vec<Option<Record>>,
}

/// How a device's clock runs.
#[derive(Clone, Copy)]
enum Clock {
    Honest,
    Slow,
    Fast,
    Random,
    None,
}

struct Device {
    no: DeviceNo,
    clock: Clock,
    /// The last stamp, for clocks that follow one another.
    last: Hlc,
    n: u64,
    /// What it saw at its last pull, by record.
    bases: Vec<Seq>,
    bodies: Vec<Object>,
    /// What it has not sent yet.
    queue: Vec<Input>,
}

/// Plays the history of a seed.
pub(crate) fn play(apply: &Apply<'_>, seed: u64) -> Run {
    play_under(apply, seed, |_| true)
}

/// Plays the history of a seed while the policy changes now and then.
pub(crate) fn play_with_changing_policies(apply: &Apply<'_>, seed: u64) -> Run {
    play_history(apply, seed, |_| true, 10)
}

/// Plays the history of a seed under one of the policies that are wanted.
pub(crate) fn play_under(apply: &Apply<'_>, seed: u64, wanted: fn(&Policy) -> bool) -> Run {
    play_history(apply, seed, wanted, 0)
}

fn play_history(apply: &Apply<'_>, seed: u64, wanted: fn(&Policy) -> bool, changing: usize) -> Run {
    let mut rng = Rng::new(seed);
    let policies: Vec<Policy> = policies::every_policy().into_iter().filter(wanted).collect();
    let policy = rng.pick(&policies).clone();
    let mut names = ["ada\u{1}phone", "ada\u{1}tablet", "bob\u{1}phone", "eve\u{1}phone"];
    rng.shuffle(&mut names);
    let names = &names[..rng.between(2, 4)];
    let record_count = rng.between(1, 2);
    let mut server = Server::new(apply, policy, DeviceTable::new(names.iter().copied()), record_count);
    let mut devices: Vec<Device> = (0_u32..)
        .zip(names)
        .map(|(no, _)| Device {
            no: DeviceNo::new(no),
            clock: *rng.pick(&[
                Clock::Honest,
                Clock::Honest,
                Clock::Slow,
                Clock::Fast,
                Clock::Random,
                Clock::None,
            ]),
            last: Hlc::ZERO,
            n: 0,
            bases: vec![Seq::ZERO; record_count],
            bodies: vec![Object::empty(); record_count],
            queue: Vec::new(),
        })
        .collect();
    let mut now = 1_000_000_u64;
    let mut unique = 0;
    let mut steps = Vec::new();
    for _ in 0..rng.between(6, 24) {
        now += rng.next() % 4_000;
        if changing > 0 && rng.percent(changing) {
            server.policy = rng.pick(&policies).clone();
        }
        let at = rng.below(devices.len());
        let device = &mut devices[at];
        if rng.percent(30) {
            device.pull(&server.records);
        }
        if device.queue.is_empty() || rng.percent(50) {
            device.n += 1;
            let input = edit(&mut rng, device, now, &server, &mut unique);
            device.queue.push(input);
        }
        if rng.percent(60) {
            steps.push(send(&mut rng, device, now, &mut server));
        }
    }
    for device in &mut devices {
        while !device.queue.is_empty() {
            now += rng.next() % 4_000;
            steps.push(send(&mut rng, device, now, &mut server));
        }
    }
    let Server { policy, devices, records, .. } = server;
    Run { policy, devices, steps, records }
}

/// Sends the oldest change of the queue, or now and then a later one that overtakes it.
fn send(rng: &mut Rng, device: &mut Device, now: u64, server: &mut Server<'_>) -> Step {
    let at = if rng.percent(60) { 0 } else { rng.below(device.queue.len()) };
    let mut input = device.queue.remove(at);
    input.received = Hlc::new(now, 0);
    server.take(&input)
}

impl Device {
    fn pull(&mut self, records: &[Option<Record>]) {
        for (key, record) in records.iter().enumerate() {
            if let Some(record) = record {
                self.bases[key] = record.version;
                self.bodies[key] = record.fields.clone();
            }
        }
    }
}

fn edit(rng: &mut Rng, device: &mut Device, now: u64, server: &Server<'_>, unique: &mut u64) -> Input {
    let key = rng.below(server.records.len());
    let base = match rng.below(20) {
        0 => Seq::ZERO,
        1 => server.head.next(),
        _ => device.bases[key],
    };
    let op = if server.records[key].is_none() && rng.percent(80) {
        Op::Create
    } else {
        *rng.pick(&[
            Op::Create,
            Op::Patch,
            Op::Patch,
            Op::Patch,
            Op::Patch,
            Op::Patch,
            Op::Delete,
            Op::Delete,
            Op::Restore,
        ])
    };
    let parts = match op {
        Op::Delete => Parts::default(),
        _ => random_parts(rng, &server.policy, op, &device.bodies[key], unique),
    };
    let (fields, intents) = parts.finish();
    let hlc = stamp(rng, device, now);
    let change = Change { op, base, fields, intents, hlc, device: device.no, n: device.n };
    let rights = Rights { deescalate: rng.percent(60), service: rng.percent(25) };
    Input { key, change, rights, received: Hlc::new(now, 0) }
}

/// Touches up to three fields, now and then none, and rarely one in a way that its rule refuses.
fn random_parts(rng: &mut Rng, policy: &Policy, op: Op, body: &Object, unique: &mut u64) -> Parts {
    let strategy = &policy.strategy;
    let mut names = policies::names(strategy);
    rng.shuffle(&mut names);
    let count = if rng.percent(6) { 0 } else { rng.between(1, 3) };
    let mut parts = Parts { deescalate: rng.percent(30), ..Parts::default() };
    for name in &names[..count] {
        if rng.percent(2) {
            parts.spoil(rng, strategy, name);
            continue;
        }
        parts.touch(rng, strategy, name, unique);
        // A create needs no previous value, and careless clients forget it elsewhere too.
        let told = if op == Op::Create { 30 } else { 96 };
        if Content::of(strategy, name) == Content::Ordered && rng.percent(told) {
            let values = &policies::order(strategy, name).expect("an ordered field").values;
            let seen = body.get(name).unwrap_or("null");
            let previous = if rng.percent(85) { seen } else { rng.pick(values) };
            parts.previous.push(((*name).to_owned(), previous.to_owned()));
        }
    }
    if !names.iter().any(|name| Content::of(strategy, name) == Content::Ordered) {
        parts.deescalate = false;
    }
    parts
}

fn stamp(rng: &mut Rng, device: &mut Device, now: u64) -> Option<Hlc> {
    device.last = match device.clock {
        Clock::None => return None,
        Clock::Honest => device.last.tick(now),
        Clock::Slow => device.last.tick(now - 500_000),
        Clock::Fast => device.last.tick(now + SKEW_MS + 10_000 + rng.next() % 1_000_000),
        Clock::Random => Hlc::new(now - 100_000 + rng.next() % 200_000, 0),
    };
    Some(device.last)
}

/// Whether two devices touched one field, or an update met a delete, without having seen each other.
pub(crate) fn overlaps(run: &Run) -> bool {
    let taken: Vec<&Step> = run.steps.iter().filter(|step| accepted(step.decision.outcome)).collect();
    taken.iter().enumerate().any(|(at, late)| {
        taken[..at].iter().any(|early| {
            let (one, two) = (&early.input.change, &late.input.change);
            let unseen = early.decision.record.as_ref().is_some_and(|record| record.version > two.base);
            early.input.key == late.input.key && one.device != two.device && unseen && clash(one, two)
        })
    })
}
