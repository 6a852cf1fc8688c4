//! Histories of careless clients: any operation on any record, late, out of order, with any clock.

use driftline_conflict::{
    Change, Context, Decision, DeletedRecord, DeviceTable, Granularity, Op, Policy, Record, Strategy,
};
use driftline_model::{DeviceNo, Hlc, Object, Seq};

use super::rng::Rng;
use super::{Apply, SKEW_MS, accepted, random_fields};

/// One change as the server received it; a list of these is all that a replay needs.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    /// Which record.
    pub(crate) key: usize,
    pub(crate) change: Change,
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
        let context =
            Context { next, received: input.received, latest: input.latest(), devices: &self.devices };
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
    /// What it has not sent yet.
    queue: Vec<Input>,
}

pub(crate) fn every_policy() -> Vec<Policy> {
    let mut strategies = vec![Strategy::MostRecentWins, Strategy::FieldMerge { fields: Vec::new() }];
    for granularity in [Granularity::Record, Granularity::Field] {
        strategies.push(Strategy::ServerWins { granularity });
        for deleted in [DeletedRecord::Restored, DeletedRecord::StaysDeleted] {
            strategies.push(Strategy::ClientWins { granularity, deleted });
        }
    }
    strategies.into_iter().map(|strategy| Policy { strategy, version: 0 }).collect()
}

/// Plays the history of a seed.
pub(crate) fn play(apply: &Apply<'_>, seed: u64) -> Run {
    let mut rng = Rng::new(seed);
    let policies = every_policy();
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
            queue: Vec::new(),
        })
        .collect();
    let mut now = 1_000_000_u64;
    let mut unique = 0;
    let mut steps = Vec::new();
    for _ in 0..rng.between(6, 24) {
        now += rng.next() % 4_000;
        let at = rng.below(devices.len());
        let device = &mut devices[at];
        if rng.percent(30) {
            for (base, record) in device.bases.iter_mut().zip(&server.records) {
                *base = record.as_ref().map_or(*base, |record| record.version);
            }
        }
        if device.queue.is_empty() || rng.percent(35) {
            device.n += 1;
            let input = edit(&mut rng, device, now, &server, &mut unique);
            device.queue.push(input);
        }
        if rng.percent(65) {
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
    let at = if rng.percent(75) { 0 } else { rng.below(device.queue.len()) };
    let mut input = device.queue.remove(at);
    input.received = Hlc::new(now, 0);
    server.take(&input)
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
    let fields = match op {
        Op::Delete => Object::empty(),
        _ => random_fields(rng, 3, unique),
    };
    let change = Change { op, base, fields, hlc: stamp(rng, device, now), device: device.no, n: device.n };
    Input { key, change, received: Hlc::new(now, 0) }
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
            let clash = (one.op == Op::Delete) != (two.op == Op::Delete)
                || one.fields.iter().any(|(name, _)| two.fields.get(name).is_some());
            early.input.key == late.input.key && one.device != two.device && unseen && clash
        })
    })
}
