//! The log: what was published, what is retained, and how far the fan-out got.

use driftline_model::Epoch;
use driftline_realtime::Log;

pub(crate) const TOPICS: usize = 4;

/// The topics that a subscriber may see.
pub(crate) type Seen = [bool; TOPICS];

/// A tenant's log with its retention by topic.
pub(crate) struct World {
    pub(crate) epoch: u32,
    /// The topic of each event; its id is one more than its place.
    topics: Vec<usize>,
    /// Up to which id each topic is trimmed: the id of an event of this topic, or 0.
    trimmed: [u64; TOPICS],
    /// The last id that the fan-out offered to whoever was there.
    pub(crate) offered: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { epoch: 1, topics: Vec::new(), trimmed: [0; TOPICS], offered: 0 }
    }

    pub(crate) fn head(&self) -> u64 {
        self.topics.len() as u64
    }

    pub(crate) fn publish(&mut self, topic: usize) {
        self.topics.push(topic);
    }

    pub(crate) fn topic(&self, id: u64) -> usize {
        self.topics[usize::try_from(id - 1).expect("a small id")]
    }

    /// What the log is for somebody who sees these topics.
    pub(crate) fn log(&self, seen: Seen) -> Log {
        let floor = (0..TOPICS).filter(|topic| seen[*topic]).map(|topic| self.trimmed[topic]).max();
        Log { epoch: Epoch::new(self.epoch), head: self.head(), floor: floor.unwrap_or(0) }
    }

    /// The ids of these topics behind `from`, up to `through`, whether they are retained or not.
    pub(crate) fn published(&self, seen: Seen, from: u64, through: u64) -> Vec<u64> {
        (from + 1..=through).filter(|id| seen[self.topic(*id)]).collect()
    }

    pub(crate) fn is_retained(&self, id: u64) -> bool {
        id > self.trimmed[self.topic(id)]
    }

    /// Trims a topic up to its last event that is not behind `through`.
    pub(crate) fn trim(&mut self, topic: usize, through: u64) {
        let last = (1..=through.min(self.head())).rev().find(|id| self.topic(*id) == topic);
        self.trimmed[topic] = self.trimmed[topic].max(last.unwrap_or(0));
    }

    /// Goes back to what the log was at its event `head`, as another life of it.
    pub(crate) fn restore(&mut self, head: u64) {
        let trimmed = self.trimmed;
        self.topics.truncate(usize::try_from(head).expect("a small id"));
        self.trimmed = [0; TOPICS];
        for (topic, through) in trimmed.into_iter().enumerate() {
            self.trim(topic, through);
        }
        self.epoch += 1;
        self.offered = self.head();
    }
}
