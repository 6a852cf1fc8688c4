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
    /// Messages reach the server, and as many as told reach the device before the connection goes.
    Exchange {
        rounds: usize,
        up: usize,
        down: usize,
    },
    Sync,
    Save,
    Restore,
}

fn step() -> impl Strategy<Value = Step> {
    let edits = prop::collection::vec((0..ROWS, 0..12_u8), 1..4);
    prop_oneof![
        8 => edits.prop_map(Step::Edit),
        4 => (0..4_usize, 0..6_usize, 0..6_usize)
            .prop_map(|(rounds, up, down)| Step::Exchange { rounds, up, down }),
        2 => Just(Step::Sync),
        2 => Just(Step::Save),
        2 => Just(Step::Restore),
    ]
}

/// What the user has made of a row: the values of its fields and of its counter.
type Row = (BTreeMap<String, u64>, i64);

struct Story {
    server: Server,
    device: Device,
    saved: server::State,
    /// What the user has made, by id.
    made: BTreeMap<String, Row>,
    /// The id of each row; one that was deleted is not taken again.
    ids: [String; ROWS],
    edits: u64,
}

impl Story {
    fn new() -> Self {
        let mut server = Server::new(2, 0);
        server.required = Some("f0");
        let ids = std::array::from_fn(|row| format!("r{row}"));
        let (device, saved, made) = (Device::new(), server::State::default(), BTreeMap::new());
        Self { server, device, saved, made, ids, edits: 0 }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Edit(wishes) => {
                let edits: Vec<Edit> = wishes.iter().map(|(row, how)| self.wish(*row, *how)).collect();
                match <[Edit; 1]>::try_from(edits) {
                    Ok([edit]) => _ = self.device.edit(edit),
                    Err(edits) => _ = self.device.group(edits),
                }
            }
            Step::Exchange { rounds, up, down } => {
                self.connect();
                (0..*rounds).for_each(|_| self.round());
                self.transmit();
                (0..*up).for_each(|_| self.server.receive(0));
                self.server.send_ack(0);
                (0..*down).for_each(|_| self.deliver());
                self.cut();
            }
            Step::Sync => self.sync(),
            Step::Save => self.saved = self.server.state.clone(),
            Step::Restore => {
                self.server.restore(self.saved.clone());
                self.device.replica.handle_disconnected();
            }
        }
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

    fn connect(&mut self) {
        if self.server.connections[0].is_none() {
            self.server.connect(0);
            self.device.greet(&self.server.epoch_text());
        }
    }

    fn cut(&mut self) {
        self.server.connections[0] = None;
        self.device.replica.handle_disconnected();
    }

    fn transmit(&mut self) {
        let connection = self.server.connections[0].as_mut().expect("connected");
        connection.up.extend(self.device.sent());
    }

    fn deliver(&mut self) {
        let connection = self.server.connections[0].as_mut().expect("connected");
        if let Some(text) = connection.down.pop_front() {
            self.device.frame(&text);
        }
    }

    fn round(&mut self) {
        self.transmit();
        self.server.receive(0);
        self.server.send_ack(0);
        self.deliver();
    }

    fn sync(&mut self) {
        self.connect();
        for round in 0..1_000 {
            self.round();
            if self.device.replica.is_settled() && round > 8 {
                return;
            }
            self.device.replica.catch_up();
        }
        panic!("not settled: {:?}", self.device.replica);
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
        let letters: Vec<_> = self.device.replica.dead_letters().iter().filter(lost).collect();
        assert!(letters.is_empty(), "{letters:?}");
        let live = self.server.state.records.iter().filter(|(_, record)| !record.deleted);
        let stored: Vec<_> = live.map(|(id, record)| (id.clone(), record.text(0))).collect();
        assert_eq!(stored, self.wanted(), "the server");
        let views = self.device.replica.views();
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
        story.sync();
        story.device.replica.request_pull();
        story.sync();
        story.check();
    }
}
