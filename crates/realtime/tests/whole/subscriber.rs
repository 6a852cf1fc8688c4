//! A subscriber that drops what it has seen, and the account of what it got.

use driftline_model::Epoch;
use driftline_realtime::{Asked, Incomplete};

use super::support::Met;
use super::world::{Seen, World};

/// What travels to a subscriber.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Message {
    Event(u64),
    /// Everything up to this id was handed on.
    Through(u64),
    /// Something is missing; it goes on behind `from`.
    Told {
        reason: Incomplete,
        epoch: Epoch,
        asked: u64,
        from: u64,
    },
}

/// A stretch of the log in which nothing may be missing.
struct Stretch {
    start: u64,
    seen: Seen,
    received: Vec<u64>,
    /// The floor when everything that is retained was asked for: before it, only what was retained was to be had.
    floor: u64,
}

/// What survives a cut.
pub(crate) struct Subscriber {
    /// The epoch of its position.
    epoch: Epoch,
    pub(crate) position: u64,
    stretch: Stretch,
}

impl Subscriber {
    /// Begins behind `start`.
    pub(crate) fn new(world: &World, seen: Seen, start: u64) -> Self {
        let stretch = Stretch { start, seen, received: Vec::new(), floor: 0 };
        Self { epoch: Epoch::new(world.epoch), position: start, stretch }
    }

    pub(crate) fn seen(&self) -> Seen {
        self.stretch.seen
    }

    pub(crate) fn asks(&self) -> Asked {
        Asked { epoch: Some(self.epoch), id: self.position }
    }

    pub(crate) fn is_of(&self, world: &World) -> bool {
        self.epoch == Epoch::new(world.epoch)
    }

    /// It asks for everything that is retained.
    pub(crate) fn excuse(&mut self, world: &World) {
        self.stretch.floor = world.log(self.seen()).floor;
    }

    /// It comes back, and sees these topics from here on.
    pub(crate) fn come_back(&mut self, world: &World, seen: Seen) {
        self.settle(world);
        self.begin(seen, self.position, 0);
    }

    pub(crate) fn receive(&mut self, world: &World, message: Message, met: &mut Met) {
        match message {
            Message::Event(id) if id <= self.position => met.count("a seen id is dropped"),
            Message::Event(id) => {
                self.stretch.received.push(id);
                self.position = id;
            }
            Message::Through(id) => self.position = self.position.max(id),
            Message::Told { reason, epoch, asked, from } => {
                self.told(world, (reason, epoch, asked, from), met);
            }
        }
    }

    fn told(
        &mut self,
        world: &World,
        (reason, epoch, asked, from): (Incomplete, Epoch, u64, u64),
        met: &mut Met,
    ) {
        let is_other_epoch = self.epoch != epoch;
        assert_eq!(
            reason == Incomplete::EpochChanged,
            is_other_epoch && reason != Incomplete::Ahead,
            "{reason:?}"
        );
        if reason == Incomplete::Ahead {
            assert!(asked > from, "{asked} is not behind the head {from}");
        }
        if reason == Incomplete::Trimmed {
            assert!(asked < from, "told of nothing: behind {asked} up to {from}");
            assert!(!world.is_retained(from), "{from} is retained, but told to be trimmed");
            assert!(self.seen()[world.topic(from)], "told of a topic that it does not see");
            if from <= self.position {
                return met.count("what is missing in a replay was seen before");
            }
        }
        self.settle(world);
        self.epoch = epoch;
        // It may have asked for everything while this was on its way.
        self.begin(self.seen(), from, self.stretch.floor);
    }

    fn begin(&mut self, seen: Seen, start: u64, floor: u64) {
        self.position = start;
        self.stretch = Stretch { start, seen, received: Vec::new(), floor };
    }

    /// Checks the account: every id of the stretch up to the position, once and in order.
    pub(crate) fn settle(&self, world: &World) {
        if !self.is_of(world) {
            // The log in which this stretch lay is gone, and it was settled before that.
            return;
        }
        let Stretch { start, seen, received, floor } = &self.stretch;
        let mut owed = world.published(*seen, *start, self.position.min(world.head()));
        owed.retain(|id| id > floor || world.is_retained(*id) || received.contains(id));
        assert_eq!(received, &owed, "behind {start} up to {}", self.position);
    }
}
