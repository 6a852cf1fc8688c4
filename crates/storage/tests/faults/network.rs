//! The network breaks or stalls, at every point of a commit group.

use std::time::Duration;

use driftline_engine::{Aggregate, Entry, Once, OnceKey, Store, Submission, Task};
use driftline_idempotency::{Fingerprint, WINDOW_MS_DEFAULT};
use driftline_insight::SeriesPoint;
use driftline_storage::PostgresStore;
use driftline_testkit::proxy::{Direction, Proxy};
use driftline_testkit::{Author, block_on, sample};

use crate::bed::{Bed, Device, Journal, Known, RESUMES_WITHIN, TOLD_WITHIN, send_all, until};

/// How far apart the cuts are, in bytes: answers are shorter than what they answer.
fn step(direction: Direction) -> u64 {
    match direction {
        Direction::ToServer => 41,
        Direction::ToClient => 9,
    }
}

/// A store on one connection through a proxy, and three devices.
struct Scene {
    store: PostgresStore,
    proxy: Proxy,
    devices: Vec<Device>,
    bed: Bed,
}

/// What became of batches over all cuts.
#[derive(Debug, Default)]
struct Seen {
    cuts: u64,
    /// Batches that were recognised when the store itself sent them again.
    recognised: u64,
    /// Batches that nobody could recognise: told to send again although applied, and not applied.
    unknown_applied: u64,
    unknown_not: u64,
}

impl Scene {
    fn new() -> Self {
        let bed = Bed::new();
        let proxy = Proxy::start(bed.cluster.address());
        let url = bed.database.url_through(&[proxy.address()]);
        let mut options = bed.options(url);
        options.write_connections = 1;
        options.watch_ms = 600_000;
        let store = PostgresStore::open(options).expect("the store opens");
        let known = [("both", Known::Both), ("number", Known::Number), ("not", Known::Not)];
        let devices = known.map(|(name, known)| Device::join(&store, "acme", name, known)).into();
        Self { store, proxy, devices, bed }
    }

    /// Has the connection prepare everything.
    fn warm(&mut self) {
        for _ in 0..2 {
            let batch = self.devices[0].batch(1);
            assert!(self.devices[0].send(&self.store, &batch), "it is written when nothing fails");
        }
    }

    /// Cuts the connection after so many bytes of a commit group; false when it took fewer.
    fn cut_at(&mut self, bytes: u64, direction: Direction, seen: &mut Seen) -> bool {
        let before = self.proxy.cuts();
        self.proxy.cut_after(bytes, direction);
        let batches: Vec<_> = self.devices.iter_mut().map(|device| device.batch(2)).collect();
        let (answers, waited) = send_all(&self.store, &batches);
        assert!(waited < TOLD_WITHIN, "{bytes}: {waited:?}");
        self.proxy.pass();
        let cut = self.proxy.cuts() > before;
        seen.cuts += u64::from(cut);
        for ((device, batch), answer) in self.devices.iter_mut().zip(&batches).zip(answers) {
            let duplicates = device.journal.duplicates;
            let told = device.journal.note(batch, answer);
            seen.recognised += u64::from(device.journal.duplicates > duplicates);
            let known = batch.entries.iter().all(|entry| entry.n.is_some());
            assert!(
                told || (cut && !known),
                "{bytes} {direction:?}: a change that can be recognised is tried again"
            );
            if !told {
                let id = batch.entries[0].id.as_ref().expect("a record");
                let applied = self.bed.number(&format!("SELECT count(*) FROM records WHERE id = '{id}'"));
                seen.unknown_applied += applied;
                seen.unknown_not += 1 - applied;
            }
        }
        cut
    }

    fn check(&mut self) {
        let mut journal = Journal::default();
        for device in &mut self.devices {
            journal.merge(std::mem::take(&mut device.journal));
        }
        self.bed.check(&self.store, &journal);
    }

    /// Cuts a warm connection at one point after the other.
    fn sweep(&mut self, direction: Direction) -> Seen {
        let (mut seen, mut bytes) = (Seen::default(), 0);
        loop {
            self.warm();
            if !self.cut_at(bytes, direction, &mut seen) {
                break;
            }
            bytes += step(direction);
        }
        self.check();
        println!("{direction:?}: {seen:?}");
        seen
    }
}

/// Sweeps until everything was seen that may be: which of several batches are one group, nobody decides.
fn sweep_until(direction: Direction, is_all: impl Fn(&Seen) -> bool) {
    let all = (0..5).any(|_| is_all(&Scene::new().sweep(direction)));
    assert!(all, "{direction:?}: what was seen is printed above");
}

#[test]
fn the_answer_to_any_statement_may_be_lost() {
    sweep_until(Direction::ToClient, |seen| {
        seen.cuts >= 10 && seen.recognised > 0 && seen.unknown_applied > 0
    });
}

#[test]
fn any_statement_may_not_arrive() {
    sweep_until(Direction::ToServer, |seen| seen.cuts >= 10 && seen.unknown_not > 0);
}

/// A sample, and a count of one that only the key makes safe to send again.
fn telemetry(author: &Author, at: u64) -> Submission {
    let mut batch = author.batch([sample(&format!("s{at}"), "{}")]);
    let mut point = SeriesPoint::default();
    point.count(1);
    batch.entries.push(Entry {
        op_id: None,
        n: None,
        hash: at,
        kind: None,
        id: None,
        group: None,
        task: Task::Aggregate(Box::new(Aggregate { hour_ms: 0, series: vec![("taps".into(), point)] })),
    });
    let name = format!("k{at}");
    let fingerprint = Fingerprint::builder("test").text(&name).finish();
    let key = OnceKey::Request { owner: "user:ada".into(), key: name.into() };
    batch.once = vec![Once { key, fingerprint, window_ms: WINDOW_MS_DEFAULT }];
    batch
}

#[test]
fn a_keyed_batch_counts_once_wherever_the_connection_breaks() {
    for direction in [Direction::ToClient, Direction::ToServer] {
        let scene = Scene::new();
        let ada = Author::join(&scene.store, "acme", "ada", "phone");
        let (mut sent, mut cuts, mut replayed, mut bytes, mut cut) = (0, 0, 0, 0, true);
        while cut {
            for _ in 0..2 {
                sent += 1;
                block_on(scene.store.commit(telemetry(&ada, sent))).expect("nothing fails yet");
            }
            let before = scene.proxy.cuts();
            scene.proxy.cut_after(bytes, direction);
            sent += 1;
            let answer = block_on(scene.store.commit(telemetry(&ada, sent)));
            let receipt = answer.expect("a batch that can be recognised is tried again");
            scene.proxy.pass();
            cut = scene.proxy.cuts() > before;
            cuts += u64::from(cut);
            replayed += u64::from(receipt.answered.is_replayed());
            let again = block_on(scene.store.commit(telemetry(&ada, sent))).expect("a resend is answered");
            assert!(again.answered.is_replayed());
            assert_eq!(again.results, receipt.results);
            bytes += step(direction);
        }
        println!("{direction:?}: {cuts} cuts, {replayed} were applied before they broke");
        assert!(cuts >= 10, "{cuts}");
        assert!(replayed > 0 || direction == Direction::ToServer, "the answer to a commit was lost");
        for sum in ["SELECT sum(counter) FROM series", "SELECT count(*) FROM samples"] {
            assert_eq!(scene.bed.number(sum), sent, "{direction:?}");
        }
    }
}

#[test]
fn a_connection_may_break_while_it_is_made() {
    for direction in [Direction::ToClient, Direction::ToServer] {
        let mut scene = Scene::new();
        let (mut seen, mut bytes, mut cut) = (Seen::default(), 0, true);
        while cut {
            scene.proxy.cut();
            scene.proxy.pass();
            cut = scene.cut_at(bytes, direction, &mut seen);
            bytes += 5 * step(direction);
        }
        scene.check();
        println!("{direction:?}: {seen:?}");
        assert!(seen.cuts >= 10, "{seen:?}");
    }
}

#[test]
fn a_stalled_network_keeps_nobody_waiting_and_heals() {
    let mut scene = Scene::new();
    for late in [Some(Direction::ToServer), Some(Direction::ToClient), None] {
        scene.warm();
        match late {
            Some(open) => scene.proxy.one_way(open),
            None => scene.proxy.stall(),
        }
        let batches: Vec<_> = scene.devices.iter_mut().map(|device| device.batch(2)).collect();
        let (answers, waited) = send_all(&scene.store, &batches);
        assert!(waited < TOLD_WITHIN, "{waited:?}");
        for ((device, batch), answer) in scene.devices.iter_mut().zip(&batches).zip(answers) {
            assert!(!device.journal.note(batch, answer), "nothing can have been answered");
        }
        scene.proxy.pass();
        let Scene { store, devices, .. } = &mut scene;
        for (device, batch) in devices.iter_mut().zip(&batches).take(2) {
            until("a resend is acknowledged", RESUMES_WITHIN, || device.send(store, batch));
        }
    }
    scene.check();
}

/// One connection hangs for ever, while new ones get through.
#[test]
fn a_connection_that_hangs_for_ever_is_ended() {
    let mut scene = Scene::new();
    scene.warm();
    scene.proxy.delay(3_600_000);
    let batch = scene.devices[0].batch(1);
    assert!(!scene.devices[0].send(&scene.store, &batch), "nothing can have been answered");
    scene.proxy.delay(0);
    let Scene { store, devices, .. } = &mut scene;
    until("a resend is acknowledged", Duration::from_secs(60), || devices[0].send(store, &batch));
    scene.check();
}
