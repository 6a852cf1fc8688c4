//! Histories at random: devices edit and count, lose connections and rights, meet pages, deltas and acks in any order, a
//! server that forgets tombstones, forgets to tell of a change, or is restored from an older state. In the end all agree.

mod common;
#[path = "common/server.rs"]
mod server;

use common::{Device, create, delete, patch};
use driftline_client::{DeadLetter, ItemCode};
use proptest::prelude::*;
use server::Server;

const DEVICES: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    Edit {
        device: usize,
        record: u8,
        field: u8,
        op: u8,
    },
    Connect(usize),
    /// The connection goes; of what is under way, so many messages still arrive at the server and at the device.
    Cut(usize, usize, usize),
    ToServer(usize),
    ToDevice(usize),
    Ack(usize),
    Delta(usize, usize),
    /// A record leaves a device's scopes or comes back; the device has to connect again.
    Scope(usize, u8),
    /// The server forgets to tell a device of a change.
    Lose(usize),
    Later(usize),
    Purge,
    Save,
    Restore,
}

fn step(losses: u32) -> impl Strategy<Value = Step> {
    let device = 0..DEVICES;
    prop_oneof![
        10 => (device.clone(), 0..3_u8, 0..4_u8, 0..8_u8)
            .prop_map(|(device, record, field, op)| Step::Edit { device, record, field, op }),
        4 => device.clone().prop_map(Step::Connect),
        1 => (device.clone(), 0..4_usize, 0..4_usize).prop_map(|(device, up, down)| Step::Cut(device, up, down)),
        12 => device.clone().prop_map(Step::ToServer),
        12 => device.clone().prop_map(Step::ToDevice),
        5 => device.clone().prop_map(Step::Ack),
        5 => (device.clone(), 1..4_usize).prop_map(|(device, count)| Step::Delta(device, count)),
        1 => (device.clone(), 0..3_u8).prop_map(|(device, record)| Step::Scope(device, record)),
        losses.max(1) => device.clone()
            .prop_map(move |device| if losses == 0 { Step::Later(device) } else { Step::Lose(device) }),
        1 => device.prop_map(Step::Later),
        1 => Just(Step::Purge),
        1 => Just(Step::Save),
        1 => Just(Step::Restore),
    ]
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Exactness {
    /// Own writes may still lie on top of older bodies.
    Seen,
    Exact,
}

struct Story {
    server: Server,
    devices: Vec<Device>,
    saved: server::State,
    edits: u64,
}

impl Story {
    fn new(busy_every: u64) -> Self {
        let devices = (0..DEVICES).map(|_| Device::new()).collect();
        let mut server = Server::new(DEVICES, busy_every);
        server.required = Some("f0");
        Self { server, devices, saved: server::State::default(), edits: 0 }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Edit { device, record, field, op } => {
                self.edits += 1;
                let id = format!("r{record}");
                let json = format!(r#"{{"f{field}":{}}}"#, self.edits);
                let json = if field == 3 { "{}" } else { &json };
                let whole = format!(r#"{{"f0":{},"f{field}":{}}}"#, self.edits, self.edits);
                let whole = if field == 0 { json } else { &whole };
                let live = self.devices[device].shown(&id).is_some();
                let edit = match op {
                    0 if live => delete(&id),
                    _ if live => patch(&id, json),
                    0..5 => create(&id, whole),
                    _ => return,
                };
                let edit = if field == 3 && op > 0 { edit.increment("n", i64::from(op)) } else { edit };
                self.devices[device].edit(edit);
            }
            Step::Connect(device) => self.connect(device),
            Step::Cut(device, up, down) => {
                (0..up).for_each(|_| self.server.receive(device));
                (0..down).for_each(|_| self.deliver(device));
                self.server.connections[device] = None;
                self.devices[device].replica.handle_disconnected();
            }
            Step::ToServer(device) => self.server.receive(device),
            Step::ToDevice(device) => self.deliver(device),
            Step::Ack(device) => self.server.send_ack(device),
            Step::Delta(device, count) => self.server.send_delta(device, count),
            Step::Scope(device, record) => {
                self.run(&Step::Cut(device, 1, 1));
                self.server.toggle(device, &format!("r{record}"));
            }
            Step::Lose(device) => self.server.lose_change(device),
            Step::Later(device) => {
                let device = &mut self.devices[device];
                device.now_ms += 60_000;
                device.replica.handle_timeout(device.now_ms);
            }
            Step::Purge => self.server.purge(),
            Step::Save => self.saved = self.server.state.clone(),
            Step::Restore => {
                self.server.restore(self.saved.clone());
                self.devices.iter_mut().for_each(|device| device.replica.handle_disconnected());
            }
        }
        self.transmit();
    }

    fn connect(&mut self, device: usize) {
        if self.server.connections[device].is_none() {
            self.server.connect(device);
            let epoch = self.server.epoch_text();
            self.devices[device].greet(&epoch);
        }
    }

    fn deliver(&mut self, device: usize) {
        let connection = self.server.connections[device].as_mut();
        if let Some(text) = connection.and_then(|connection| connection.down.pop_front()) {
            self.devices[device].frame(&text);
        }
    }

    fn transmit(&mut self) {
        for (device, connection) in self.devices.iter_mut().zip(&mut self.server.connections) {
            if let Some(connection) = connection {
                connection.up.extend(device.sent());
            }
        }
    }

    /// Faults end; everybody connects and goes on until all is said.
    fn settle(&mut self) {
        self.server.busy_every = 0;
        for round in 0..200 {
            for device in 0..DEVICES {
                self.connect(device);
                self.devices[device].replica.catch_up();
                self.run(&Step::Later(device));
                for _ in 0..8 {
                    self.run(&Step::ToServer(device));
                    self.run(&Step::Ack(device));
                    self.run(&Step::Delta(device, 9));
                    self.run(&Step::ToDevice(device));
                }
            }
            let quiet = |connection: &Option<server::Connection>| {
                connection.as_ref().is_some_and(|it| it.up.is_empty() && it.down.is_empty())
            };
            let done = self.devices.iter().all(|device| device.replica.is_settled());
            if done && self.server.connections.iter().all(quiet) && round > 2 {
                return;
            }
        }
        panic!("not settled: {:?}", self.devices.iter().map(|device| &device.replica).collect::<Vec<_>>());
    }

    /// No device gave anything back that the server could not take.
    fn check_letters(&self) {
        use ItemCode::{DeviceIdReused, Invalid, TooOld};
        for (at, device) in self.devices.iter().enumerate() {
            let bad = |letter: &&DeadLetter| matches!(letter.code, DeviceIdReused | Invalid | TooOld);
            let bad: Vec<_> = device.replica.dead_letters().iter().filter(bad).collect();
            assert_eq!(bad, [] as [&DeadLetter; 0], "device {at}");
        }
    }

    /// Everybody sees the server's fields; `Exact`: and has its versions and its place.
    fn check(&self, exactness: Exactness) {
        for (at, device) in self.devices.iter().enumerate() {
            let records = self.server.state.records.iter();
            let wanted: Vec<_> = records
                .filter(|(id, record)| !record.deleted && !self.server.is_hidden(at, id))
                .map(|(id, record)| (id.clone(), record.version, record.text(0)))
                .collect();
            let shown: Vec<_> = device
                .replica
                .views()
                .map(|(_, id, view)| (id.to_string(), view.version.number(), view.fields.as_str().to_owned()))
                .collect();
            if exactness == Exactness::Exact {
                assert_eq!(shown, wanted, "device {at}");
                assert_eq!(device.replica.seq().number(), self.server.state.seq, "device {at}");
            }
            let fields = |rows: &[(String, u64, String)]| -> Vec<_> {
                rows.iter().map(|(id, _, fields)| (id.clone(), fields.clone())).collect()
            };
            assert_eq!(fields(&shown), fields(&wanted), "device {at}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn devices_and_server_agree_in_the_end(
        busy_every in prop_oneof![3 => Just(0_u64), 1 => 3..9_u64],
        steps in prop::collection::vec(step(0), 1..160),
    ) {
        let story = ended(busy_every, &steps);
        let repairs: u64 = story.devices.iter().map(|device| device.replica.repairs()).sum();
        prop_assert_eq!(repairs, 0, "nothing differs without a reason");
    }

    #[test]
    fn a_change_that_nobody_told_of_is_found_by_its_sum(
        steps in prop::collection::vec(step(4), 1..160),
    ) {
        ended(0, &steps);
    }
}

/// Runs a history to its end and checks that all agree.
fn ended(busy_every: u64, steps: &[Step]) -> Story {
    {
        let mut story = Story::new(busy_every);
        let loses = steps.iter().any(|step| matches!(step, Step::Lose(_)));
        // A patch on top of a change that was lost has the right version and the wrong fields.
        story.server.whole_rows = loses;
        (0..DEVICES).for_each(|device| story.connect(device));
        for step in steps {
            story.run(step);
        }
        story.settle();
        if !loses {
            story.check(Exactness::Seen);
        }
        story.devices.iter_mut().for_each(|device| device.replica.request_pull());
        story.settle();
        story.check(Exactness::Exact);
        story.check_letters();
        story
    }
}
