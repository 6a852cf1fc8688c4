//! The whole: a log with retention by topic, a fan-out without memory, and subscribers that come, break off and come back
//! with their positions, while events are published, offered and trimmed at every point in between.
//!
//! A subscriber that drops ids it has seen has, of what it may see, every id once and in order; or it was told why not,
//! and behind which id it goes on. A failure names its seed: `MODEL_SEED=<seed>` plays that history alone;
//! `MODEL_HISTORIES` says how many are played, and `--nocapture` shows what they met.

mod node;
mod subscriber;
#[path = "../support/mod.rs"]
mod support;
mod world;

use driftline_model::Epoch;
use driftline_realtime::Asked;
use node::Connection;
use subscriber::Subscriber;
use support::rng::Rng;
use support::{Met, play};
use world::{Seen, TOPICS, World};

const SUBSCRIBERS: usize = 3;

const BRANCHES: &[&str] = &[
    "a bare id is asked",
    "a full page goes live, the rest is still to be offered",
    "a full page is followed by another one",
    "a message is lost on the way",
    "a page is lost on the way",
    "a page notices a hole",
    "a recovery begins live",
    "a recovery begins while another one reads",
    "a recovery begins with a page under way",
    "a seen id is dropped",
    "a slow subscriber is cut",
    "ahead",
    "an event is offered again",
    "an event went by since the head was read",
    "another epoch",
    "complete",
    "delivered live",
    "epoch_changed",
    "everything retained of a trimmed log",
    "offered, but past it",
    "other topics on return",
    "the fan-out starts anew",
    "the head was read, live",
    "trimmed",
    "went by while reading",
    "what is missing in a replay was seen before",
];

struct History<'m> {
    rng: Rng,
    met: &'m mut Met,
    world: World,
    peers: Vec<Peer>,
}

#[derive(Default)]
struct Peer {
    subscriber: Option<Subscriber>,
    connection: Option<Connection>,
}

impl History<'_> {
    fn play(mut self) {
        // Some histories are almost still, so that subscribers catch up; others never rest.
        let calm = self.rng.between(0, 6);
        for _ in 0..self.rng.between(20, 200) {
            match self.rng.below(20 + calm) {
                0..=2 => self.publish(),
                3..=5 => self.offer(),
                6 => self.offer_again(),
                7 => self.trim(),
                8 if self.rng.percent(10) => self.restore(),
                8 if self.rng.percent(20) => self.start_anew(),
                at => {
                    let peer = self.rng.below(SUBSCRIBERS);
                    self.step(peer, at);
                }
            }
        }
        self.come_to_rest();
    }

    fn publish(&mut self) {
        for _ in 0..self.rng.between(1, 3) {
            self.world.publish(self.rng.below(TOPICS));
        }
    }

    fn offer(&mut self) {
        for _ in 0..self.rng.between(1, 4) {
            if self.world.offered < self.world.head() {
                self.world.offered += 1;
                self.offer_to_all(self.world.offered);
            }
        }
    }

    /// A bus may repeat itself.
    fn offer_again(&mut self) {
        if self.world.offered > 0 {
            let last = usize::try_from(self.world.offered).expect("a small id");
            let id = self.rng.between(last.saturating_sub(3).max(1), last);
            self.met.count("an event is offered again");
            self.offer_to_all(id as u64);
        }
    }

    fn offer_to_all(&mut self, id: u64) {
        let topic = self.world.topic(id);
        for peer in &mut self.peers {
            let sees = peer.subscriber.as_ref().is_some_and(|subscriber| subscriber.seen()[topic]);
            if let Some(connection) = peer.connection.as_mut().filter(|_| sees) {
                connection.offer(id, self.met);
            }
        }
    }

    fn trim(&mut self) {
        let keep = self.rng.between(0, 8) as u64;
        let topic = self.rng.below(TOPICS);
        self.world.trim(topic, self.world.head().saturating_sub(keep));
    }

    /// The store goes back to an older state: everybody is cut, and the log has another epoch.
    fn restore(&mut self) {
        self.met.count("another epoch");
        self.cut_all();
        for subscriber in self.peers.iter().filter_map(|peer| peer.subscriber.as_ref()) {
            subscriber.settle(&self.world);
        }
        let back = self.rng.between(0, 6) as u64;
        self.world.restore(self.world.head().saturating_sub(back));
    }

    /// A node dies; the next one offers what comes from now on.
    fn start_anew(&mut self) {
        self.met.count("the fan-out starts anew");
        self.cut_all();
        self.world.offered = self.world.head();
    }

    fn cut_all(&mut self) {
        for peer in 0..SUBSCRIBERS {
            self.cut(peer);
        }
    }

    fn step(&mut self, peer: usize, at: usize) {
        let Some(connection) = &mut self.peers[peer].connection else { return self.come(peer) };
        if connection.queue.is_closed() || at == 9 && self.rng.percent(40) {
            return self.cut(peer);
        }
        match at {
            10 if self.rng.percent(50) => self.ask(peer),
            11..=13 => self.receive(peer),
            _ if connection.has_page() => connection.hand_on(&mut self.rng, self.met),
            _ if !connection.is_live() => connection.read(&self.world),
            _ => self.receive(peer),
        }
    }

    fn come(&mut self, peer: usize) {
        let at = if self.rng.percent(50) { self.world.offered } else { self.world.head() };
        if self.peers[peer].subscriber.is_none() {
            let seen = self.topics();
            let mut connection = Connection::new(&self.world, seen, at);
            let mut subscriber = Subscriber::new(&self.world, seen, at);
            if self.rng.percent(50) {
                subscriber = Subscriber::new(&self.world, seen, 0);
                subscriber.excuse(&self.world);
                connection.recover(&self.world, &Asked { epoch: None, id: 0 }, self.met);
            }
            self.peers[peer] = Peer { subscriber: Some(subscriber), connection: Some(connection) };
            return;
        }
        let others = self.topics();
        let subscriber = self.peers[peer].subscriber.as_mut().expect("it was there");
        let changes = self.rng.percent(15);
        if changes {
            self.met.count("other topics on return");
        }
        subscriber.come_back(&self.world, if changes { others } else { subscriber.seen() });
        let mut connection = Connection::new(&self.world, subscriber.seen(), at);
        let mut asked = subscriber.asks();
        let is_safe = subscriber.is_of(&self.world) || asked.id > self.world.head();
        if is_safe && self.rng.percent(30) {
            self.met.count("a bare id is asked");
            asked.epoch = None;
        }
        if self.rng.percent(3) {
            // Somebody else's position, or an invented one.
            asked = Asked { epoch: Some(Epoch::new(self.world.epoch)), id: self.world.head() + 7 };
        }
        if asked.id == 0 {
            subscriber.excuse(&self.world);
        }
        connection.recover(&self.world, &asked, self.met);
        self.peers[peer].connection = Some(connection);
    }

    fn topics(&mut self) -> Seen {
        let mut seen = [false; TOPICS];
        seen.fill_with(|| self.rng.percent(60));
        seen
    }

    /// Asks for a replay behind any id that it had already.
    fn ask(&mut self, peer: usize) {
        let Peer { subscriber: Some(subscriber), connection: Some(connection) } = &mut self.peers[peer]
        else {
            return;
        };
        if !subscriber.is_of(&self.world) || subscriber.position > connection.position() {
            // It has not heard yet that its position does not count.
            return;
        }
        let position = usize::try_from(subscriber.position).expect("a small id");
        let id = self.rng.between(position.saturating_sub(9), position) as u64;
        if id == 0 {
            subscriber.excuse(&self.world);
        }
        connection.recover(&self.world, &Asked { epoch: None, id }, self.met);
    }

    fn receive(&mut self, peer: usize) {
        let Peer { subscriber: Some(subscriber), connection: Some(connection) } = &mut self.peers[peer]
        else {
            return;
        };
        for _ in 0..self.rng.between(1, 6) {
            if let Some(message) = connection.queue.pop() {
                subscriber.receive(&self.world, message, self.met);
            }
        }
    }

    /// Whatever is on the way is lost.
    fn cut(&mut self, peer: usize) {
        if let Some(connection) = self.peers[peer].connection.take() {
            if connection.has_page() {
                self.met.count("a page is lost on the way");
            }
            if !connection.queue.is_empty() {
                self.met.count("a message is lost on the way");
            }
        }
    }

    /// Everybody comes back and reads to the end; then nobody may lack anything.
    fn come_to_rest(mut self) {
        while self.world.offered < self.world.head() {
            self.offer();
        }
        for peer in 0..SUBSCRIBERS {
            for round in 0.. {
                assert!(round < 1_000, "it does not come to rest");
                let connection = &mut self.peers[peer].connection;
                match connection {
                    None => self.come(peer),
                    Some(connection) if connection.queue.is_closed() => self.cut(peer),
                    Some(connection) if !connection.queue.is_empty() => self.receive(peer),
                    Some(connection) if connection.has_page() => {
                        connection.hand_on(&mut self.rng, self.met);
                    }
                    Some(connection) if !connection.is_live() => connection.read(&self.world),
                    Some(_) => break,
                }
            }
            let subscriber = self.peers[peer].subscriber.as_mut().expect("it came");
            // Live and with an empty queue, it has everything there is.
            let end = subscriber::Message::Through(self.world.head());
            assert!(subscriber.is_of(&self.world), "it was not told of the epoch");
            subscriber.receive(&self.world, end, self.met);
            subscriber.settle(&self.world);
        }
    }
}

#[test]
fn every_id_once_in_order_or_a_reason() {
    play(20_000, BRANCHES, |rng, met| {
        let peers = (0..SUBSCRIBERS).map(|_| Peer::default()).collect();
        History { rng, met, world: World::new(), peers }.play();
    });
}
