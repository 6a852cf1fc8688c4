//! What a user has done is there in the end, whatever the server loses while edits wait: a device with a random queue, a
//! network that cuts answers off, and a server that goes back to older states, under a schema with a required field.

mod common;
#[path = "common/server.rs"]
mod server;

use std::collections::BTreeMap;

use common::{Device, create, delete, patch};
use driftline_client::{DeadLetter, Edit, ItemCode};
use proptest::prelude::*;
use server::Server;

const ROWS: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    /// Edits of these rows in these ways, alone or as a group.
    Edit(Vec<(usize, u8)>),
    /// Messages reach the server, and as many as told reach the user's device before the connection goes.
    Exchange {
        rounds: usize,
        up: usize,
        down: usize,
    },
    /// A device syncs: the user's, or one that only reads, and gives back what it has read.
    Sync(usize),
    Save,
    Restore,
}

fn step() -> impl Strategy<Value = Step> {
    let edits = prop::collection::vec((0..ROWS, 0..12_u8), 1..4);
    prop_oneof![
        8 => edits.prop_map(Step::Edit),
        4 => (0..4_usize, 0..6_usize, 0..6_usize)
            .prop_map(|(rounds, up, down)| Step::Exchange { rounds, up, down }),
        3 => (0..2_usize).prop_map(Step::Sync),
        2 => Just(Step::Save),
        2 => Just(Step::Restore),
    ]
}

/// What the user has made of a row: the values of its fields and of its counter.
type Row = (BTreeMap<String, u64>, i64);

struct Story {
    server: Server,
    /// The user's device, and one that only reads.
    devices: [Device; 2],
    saved: server::State,
    /// What the user has made, by id.
    made: BTreeMap<String, Row>,
    /// The id of each row; one that was deleted is not taken again.
    ids: [String; ROWS],
    edits: u64,
    /// How many devices hold anything.
    healers: usize,
    restores: usize,
}

impl Story {
    fn new() -> Self {
        let mut server = Server::new(2, 0);
        server.required = Some("f0");
        let ids = std::array::from_fn(|row| format!("r{row}"));
        server.begun = Some(0);
        let (devices, saved) = ([Device::new(), Device::new()], server::State::default());
        Self { server, devices, saved, made: BTreeMap::new(), ids, edits: 0, healers: 1, restores: 0 }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Edit(wishes) => {
                let edits: Vec<Edit> = wishes.iter().map(|(row, how)| self.wish(*row, *how)).collect();
                match <[Edit; 1]>::try_from(edits) {
                    Ok([edit]) => _ = self.devices[0].edit(edit),
                    Err(edits) => _ = self.devices[0].group(edits),
                }
            }
            Step::Exchange { rounds, up, down } => {
                self.connect(0);
                (0..*rounds).for_each(|_| self.round(0));
                self.transmit(0);
                (0..*up).for_each(|_| self.server.receive(0));
                self.server.send_ack(0);
                (0..*down).for_each(|_| self.deliver(0));
                self.cut(0);
            }
            Step::Sync(at) => {
                self.healers = self.healers.max(at + 1);
                self.sync(*at);
            }
            Step::Save => self.saved = self.server.state.clone(),
            // A device knows where the last epoch began and of no other before it, and copies of two devices are told
            // apart by clocks that begin anew: a second restore waits for the first to be healed.
            Step::Restore if self.healers > 1 && self.restores > 0 && !self.is_healed() => {}
            Step::Restore => {
                self.restores += 1;
                self.server.restore(self.saved.clone());
                self.devices.iter_mut().for_each(|device| device.replica.handle_disconnected());
            }
        }
    }

    /// Whether the user's device has sent all that it holds to the present epoch.
    fn is_healed(&self) -> bool {
        let replica = &self.devices[0].replica;
        let known = replica.epoch().is_some_and(|epoch| epoch.to_string() == self.server.epoch_text());
        known && replica.queue_len() == 0 && replica.seq().number() > 0
    }

    /// Makes an edit of a row, and notes what it comes to.
    fn wish(&mut self, row: usize, how: u8) -> Edit {
        self.edits += 1;
        let (value, id) = (self.edits, self.ids[row].clone());
        let Some((fields, count)) = self.made.get_mut(&id) else {
            self.made.insert(id.clone(), (BTreeMap::from([("f0".into(), value), ("f1".into(), value)]), 0));
            return create(&id, &format!(r#"{{"f0":{value},"f1":{value}}}"#));
        };
        match how {
            0 => {
                self.made.remove(&id);
                self.ids[row] = format!("r{row}-{value}");
                delete(&id)
            }
            1..4 => {
                *count += i64::from(how);
                patch(&id, "{}").increment("n", i64::from(how))
            }
            _ => {
                let name = format!("f{}", how % 3);
                fields.insert(name.clone(), value);
                patch(&id, &format!(r#"{{"{name}":{value}}}"#))
            }
        }
    }

    fn connect(&mut self, at: usize) {
        if self.server.connections[at].is_none() {
            self.server.connect(at);
            self.devices[at].greet(&self.server.epoch_text());
        }
    }

    fn cut(&mut self, at: usize) {
        self.server.connections[at] = None;
        self.devices[at].replica.handle_disconnected();
    }

    fn transmit(&mut self, at: usize) {
        let connection = self.server.connections[at].as_mut().expect("connected");
        connection.up.extend(self.devices[at].sent());
    }

    fn deliver(&mut self, at: usize) {
        let connection = self.server.connections[at].as_mut().expect("connected");
        if let Some(text) = connection.down.pop_front() {
            self.devices[at].frame(&text);
        }
    }

    fn round(&mut self, at: usize) {
        self.transmit(at);
        self.server.receive(at);
        self.server.send_ack(at);
        self.deliver(at);
    }

    /// Lets a device send and hear everything, and go.
    fn sync(&mut self, at: usize) {
        self.connect(at);
        for asked in [false, true] {
            if asked {
                self.devices[at].replica.request_pull();
            }
            for round in 0.. {
                assert!(round < 1_000, "not settled: {:?}", self.devices[at].replica);
                self.round(at);
                self.devices[at].replica.catch_up();
                if self.devices[at].replica.is_settled() && round > 8 {
                    break;
                }
            }
        }
        self.cut(at);
    }

    /// The rows as the user made them, and as they would be shown.
    fn wanted(&self) -> Vec<(String, String)> {
        let text = |(fields, count): &Row| {
            let mut members: Vec<_> =
                fields.iter().map(|(name, value)| format!(r#""{name}":{value}"#)).collect();
            if *count != 0 {
                members.push(format!(r#""n":{count}"#));
            }
            format!("{{{}}}", members.join(","))
        };
        self.made.iter().map(|(id, row)| (id.clone(), text(row))).collect()
    }

    fn check(&self) {
        // Edits of a row whose deletion a page told of before the restore find nothing, and leave nothing behind.
        let lost = |letter: &&DeadLetter| {
            letter.code != ItemCode::Gone || self.made.contains_key(letter.item.id.as_str())
        };
        let letters: Vec<_> = self.devices[0].replica.dead_letters().iter().filter(lost).collect();
        assert!(letters.is_empty(), "{letters:?}");
        // A row that was made and deleted in the lost part is unknown to the server, which may get an older copy of it.
        let live = self
            .server
            .state
            .records
            .iter()
            .filter(|(id, record)| !record.deleted && self.made.contains_key(*id));
        let stored: Vec<_> = live.map(|(id, record)| (id.clone(), record.text(0))).collect();
        assert_eq!(stored, self.wanted(), "the server");
        let views = self.devices[0].replica.views().filter(|(_, id, _)| self.made.contains_key(id.as_str()));
        let shown: Vec<_> =
            views.map(|(_, id, view)| (id.to_string(), view.fields.as_str().to_owned())).collect();
        assert_eq!(shown, self.wanted(), "the device");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_the_user_did_is_lost_or_done_twice(steps in prop::collection::vec(step(), 1..60)) {
        let mut story = Story::new();
        for step in &steps {
            story.run(step);
        }
        story.sync(0);
        story.check();
    }
}
