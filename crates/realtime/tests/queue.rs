//! The queue beside a plain list that follows its rules word by word, over random pushes and pops.
//!
//! A failure names its seed: `MODEL_SEED=<seed>` plays that history alone; `MODEL_HISTORIES` says how many are played.

mod support;

use driftline_realtime::{Pushed, Queue};
use support::rng::Rng;
use support::{Met, play};

const BRANCHES: &[&str] = &[
    "a conflated item gives way to a conflated one",
    "a conflated item gives way to a kept one",
    "closed",
    "drained in part",
    "dropped",
    "empty",
    "exactly full",
    "overflow",
    "popped",
    "queued",
    "replaced",
    "replaced while others give way",
];

#[derive(Debug, Clone, PartialEq)]
struct Item {
    number: u32,
    bytes: usize,
    key: Option<u64>,
}

struct Model {
    items: Vec<Item>,
    bytes_max: usize,
    is_closed: bool,
}

impl Model {
    fn bytes(&self) -> usize {
        self.items.iter().map(|item| item.bytes).sum()
    }

    fn push(&mut self, item: Item, met: &mut Met) -> Pushed {
        if self.is_closed {
            met.count("closed");
            return Pushed::Overflow;
        }
        let kept: usize = self.items.iter().filter(|item| item.key.is_none()).map(|item| item.bytes).sum();
        if kept + item.bytes > self.bytes_max {
            if item.key.is_some() {
                met.count("dropped");
                return Pushed::Dropped;
            }
            met.count("overflow");
            self.items.clear();
            self.is_closed = true;
            return Pushed::Overflow;
        }
        let before = self.items.len();
        self.items.retain(|older| older.key.is_none() || older.key != item.key);
        let replaced = self.items.len() < before;
        let mut gave_way = false;
        while self.bytes() + item.bytes > self.bytes_max {
            let oldest =
                self.items.iter().position(|item| item.key.is_some()).expect("the kept ones leave room");
            self.items.remove(oldest);
            gave_way = true;
        }
        match (gave_way, replaced, item.key) {
            (true, true, _) => met.count("replaced while others give way"),
            (true, false, Some(_)) => met.count("a conflated item gives way to a conflated one"),
            (true, false, None) => met.count("a conflated item gives way to a kept one"),
            (false, true, _) => met.count("replaced"),
            (false, false, _) => met.count("queued"),
        }
        self.items.push(item);
        if self.bytes() == self.bytes_max {
            met.count("exactly full");
        }
        if replaced { Pushed::Replaced } else { Pushed::Queued }
    }

    fn pop(&mut self, met: &mut Met) -> Option<Item> {
        met.count(if self.items.is_empty() { "empty" } else { "popped" });
        (!self.items.is_empty()).then(|| self.items.remove(0))
    }
}

fn history(mut rng: Rng, met: &mut Met) {
    let bytes_max = rng.between(0, 60);
    let conflated = rng.below(101);
    let pops = rng.between(1, 5);
    let mut queue = Queue::new(bytes_max);
    let mut model = Model { items: Vec::new(), bytes_max, is_closed: false };
    for number in 0..120 {
        match rng.below(10) {
            at if at < pops => assert_eq!(queue.pop(), model.pop(met)),
            9 if rng.percent(20) => {
                let many = rng.below(4);
                let drained: Vec<Item> = queue.drain().take(many).collect();
                let expected: Vec<Item> = (0..many).map_while(|_| model.pop(met)).collect();
                met.count("drained in part");
                assert_eq!(drained, expected);
            }
            _ => {
                let key = rng.percent(conflated).then(|| rng.below(5) as u64);
                let bytes = if rng.percent(2) { rng.below(100) } else { rng.below(12) };
                let item = Item { number, bytes, key };
                let expected = model.push(item.clone(), met);
                assert_eq!(queue.push(item.clone(), item.bytes, item.key), expected, "{item:?}");
            }
        }
        assert_eq!((queue.len(), queue.bytes()), (model.items.len(), model.bytes()));
        assert_eq!((queue.is_empty(), queue.is_closed()), (model.items.is_empty(), model.is_closed));
        assert!(queue.bytes() <= bytes_max, "more than the bound");
    }
    assert_eq!(queue.drain().collect::<Vec<_>>(), model.items);
}

#[test]
fn random_pushes_and_pops_agree_with_a_list() {
    play(5_000, BRANCHES, history);
}
