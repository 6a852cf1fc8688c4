//! What waits for one connection.

use std::collections::{BTreeMap, VecDeque};

/// How many slots an empty queue keeps; a larger buffer is given back.
const SLOTS_KEPT: usize = 16;

/// A queue that is bounded in bytes and says what is to give way when it is full.
///
/// An item may be conflated: then only the latest item of its key matters, and it may be dropped for want of room. Every
/// other item is handed out exactly once and in order, or the queue closes. What is handed out is in the order of the
/// pushes.
///
/// An empty queue holds no buffer of more than a few slots, and a new one none at all. Without conflated items, a push and
/// a pop are those of a [`VecDeque`] and an addition.
///
/// # Examples
/// ```
/// use driftline_realtime::{Pushed, Queue};
///
/// let mut queue = Queue::new(10);
/// assert_eq!(queue.push("speed 7", 4, Some(1)), Pushed::Queued);
/// assert_eq!(queue.push("hello", 4, None), Pushed::Queued);
/// assert_eq!(queue.push("speed 9", 4, Some(1)), Pushed::Replaced);
/// // The speed gives way to what must not be lost.
/// assert_eq!(queue.push("world", 4, None), Pushed::Queued);
/// assert_eq!(queue.drain().collect::<Vec<_>>(), ["hello", "world"]);
/// ```
#[derive(Debug)]
pub struct Queue<T> {
    kept: VecDeque<Slot<T>>,
    conflated: Option<Box<Conflated<T>>>,
    bytes: usize,
    bytes_max: usize,
    /// How many items were pushed; orders the items of both parts.
    pushed: u64,
    is_closed: bool,
}

#[derive(Debug)]
struct Slot<T> {
    number: u64,
    bytes: usize,
    item: T,
}

/// The items that may give way, by the number of their push.
#[derive(Debug)]
struct Conflated<T> {
    items: BTreeMap<u64, Latest<T>>,
    numbers: BTreeMap<u64, u64>,
    bytes: usize,
}

#[derive(Debug)]
struct Latest<T> {
    key: u64,
    bytes: usize,
    item: T,
}

/// What became of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It waits.
    Queued,
    /// It waits, and an older one of its key is gone.
    Replaced,
    /// It may be dropped and did not fit beside what may not; the queue is as it was before.
    Dropped,
    /// It may not be dropped and did not fit: the queue is empty and closed from now on.
    Overflow,
}

impl<T> Queue<T> {
    /// Makes a queue for so many bytes, without allocating.
    #[must_use]
    pub const fn new(bytes_max: usize) -> Self {
        Self { kept: VecDeque::new(), conflated: None, bytes: 0, bytes_max, pushed: 0, is_closed: false }
    }

    /// Puts an item at the end; `bytes` is what it costs, which is above zero where the number of items is to be bounded.
    ///
    /// `conflate` names the thing of which only the latest item matters, such as a keyed hash of topic and key: an older
    /// item of the same thing goes. Where there is no room, conflated items go, oldest first, until there is; a
    /// conflated item for which all of them would not make room is dropped itself. Otherwise the queue overflows: it is
    /// cleared, and every further push overflows as well.
    pub fn push(&mut self, item: T, bytes: usize, conflate: Option<u64>) -> Pushed {
        if self.is_closed {
            return Pushed::Overflow;
        }
        let Some(key) = conflate else { return self.push_kept(item, bytes) };
        if bytes > self.room_at_most() {
            return Pushed::Dropped;
        }
        self.push_latest(Latest { key, bytes, item })
    }

    /// Takes the first item.
    pub fn pop(&mut self) -> Option<T> {
        if let Some(conflated) = &self.conflated {
            let kept = self.kept.front().map_or(u64::MAX, |slot| slot.number);
            if conflated.items.first_key_value().is_some_and(|(number, _)| *number < kept) {
                return self.take_latest();
            }
        }
        let slot = self.kept.pop_front()?;
        self.bytes -= slot.bytes;
        if self.kept.is_empty() && self.kept.capacity() > SLOTS_KEPT {
            self.kept = VecDeque::new();
        }
        Some(slot.item)
    }

    /// Takes the items one by one as the iterator goes on; those that it does not reach stay.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        std::iter::from_fn(|| self.pop())
    }

    /// Returns how many bytes wait, never more than the bound.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns how many items wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.len() + self.conflated.as_ref().map_or(0, |conflated| conflated.items.len())
    }

    /// Tells whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells whether the queue overflowed.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.is_closed
    }

    fn push_kept(&mut self, item: T, bytes: usize) -> Pushed {
        if bytes > self.bytes_max - self.bytes {
            if bytes > self.room_at_most() {
                *self = Self { is_closed: true, ..Self::new(self.bytes_max) };
                return Pushed::Overflow;
            }
            self.make_room(bytes);
        }
        self.bytes += bytes;
        let number = self.next_number();
        self.kept.push_back(Slot { number, bytes, item });
        Pushed::Queued
    }

    /// Puts an item at the end for which there is room if older conflated ones go.
    fn push_latest(&mut self, latest: Latest<T>) -> Pushed {
        let older = self.conflated.as_mut().and_then(|conflated| conflated.remove(latest.key));
        self.bytes -= older.as_ref().map_or(0, |older| older.bytes);
        self.make_room(latest.bytes);
        self.bytes += latest.bytes;
        let number = self.next_number();
        self.conflated.get_or_insert_default().insert(number, latest);
        if older.is_some() { Pushed::Replaced } else { Pushed::Queued }
    }

    /// Returns the room that there is once every conflated item is gone.
    fn room_at_most(&self) -> usize {
        let conflated = self.conflated.as_ref().map_or(0, |conflated| conflated.bytes);
        self.bytes_max - (self.bytes - conflated)
    }

    fn make_room(&mut self, bytes: usize) {
        while bytes > self.bytes_max - self.bytes && self.take_latest().is_some() {}
    }

    /// Takes the oldest conflated item, and gives the memory back with the last one.
    fn take_latest(&mut self) -> Option<T> {
        let conflated = self.conflated.as_mut()?;
        let oldest = conflated.take_oldest();
        if conflated.items.is_empty() {
            self.conflated = None;
        }
        let oldest = oldest?;
        self.bytes -= oldest.bytes;
        Some(oldest.item)
    }

    fn next_number(&mut self) -> u64 {
        self.pushed += 1;
        self.pushed
    }
}

impl<T> Conflated<T> {
    fn insert(&mut self, number: u64, latest: Latest<T>) {
        self.bytes += latest.bytes;
        self.numbers.insert(latest.key, number);
        self.items.insert(number, latest);
    }

    fn remove(&mut self, key: u64) -> Option<Latest<T>> {
        let number = self.numbers.remove(&key)?;
        let latest = self.items.remove(&number)?;
        self.bytes -= latest.bytes;
        Some(latest)
    }

    fn take_oldest(&mut self) -> Option<Latest<T>> {
        let (_, latest) = self.items.pop_first()?;
        self.numbers.remove(&latest.key);
        self.bytes -= latest.bytes;
        Some(latest)
    }
}

impl<T> Default for Conflated<T> {
    fn default() -> Self {
        Self { items: BTreeMap::new(), numbers: BTreeMap::new(), bytes: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(queue: &mut Queue<u32>) -> Vec<u32> {
        queue.drain().collect()
    }

    #[test]
    fn items_come_out_in_order_and_count_their_bytes() {
        let mut queue = Queue::new(100);
        assert_eq!((queue.pop(), queue.is_empty()), (None, true));
        for item in 1..=4 {
            assert_eq!(queue.push(item, 10, None), Pushed::Queued);
        }
        assert_eq!((queue.len(), queue.bytes()), (4, 40));
        assert_eq!(queue.pop(), Some(1));
        assert_eq!((queue.len(), queue.bytes()), (3, 30));
        assert_eq!(queue.drain().next(), Some(2), "a drain that is left early leaves the rest");
        assert_eq!(drained(&mut queue), [3, 4]);
        assert_eq!((queue.len(), queue.bytes()), (0, 0));
    }

    #[test]
    fn the_newest_of_a_key_stands_at_the_end() {
        let mut queue = Queue::new(100);
        for (item, key, pushed) in [
            (1, Some(7), Pushed::Queued),
            (2, None, Pushed::Queued),
            (3, Some(8), Pushed::Queued),
            (4, Some(7), Pushed::Replaced),
            (5, None, Pushed::Queued),
        ] {
            assert_eq!(queue.push(item, 10, key), pushed, "{item}");
        }
        assert_eq!((queue.len(), queue.bytes()), (4, 40));
        assert_eq!(drained(&mut queue), [2, 3, 4, 5]);
        assert_eq!(queue.push(6, 10, Some(7)), Pushed::Queued, "what was popped is not replaced");
    }

    #[test]
    fn keys_are_forgotten_with_their_items() {
        let mut queue = Queue::new(40);
        for key in 0..1_000 {
            queue.push(0, 10, Some(key));
            if key % 3 == 0 {
                queue.pop();
            }
        }
        let conflated = queue.conflated.as_ref().expect("some wait");
        assert_eq!((conflated.numbers.len(), conflated.items.len()), (queue.len(), queue.len()));
    }

    #[test]
    fn conflated_items_give_way_oldest_first() {
        let mut queue = Queue::new(40);
        for item in 1..=4 {
            queue.push(item, 10, (item != 2).then_some(u64::from(item)));
        }
        assert_eq!(queue.push(5, 15, None), Pushed::Queued);
        assert_eq!((drained(&mut queue), queue.bytes()), (vec![2, 4, 5], 0));
    }

    #[test]
    fn a_conflated_item_without_room_changes_nothing() {
        let mut queue = Queue::new(40);
        queue.push(1, 25, None);
        queue.push(2, 10, Some(2));
        assert_eq!(queue.push(3, 16, Some(2)), Pushed::Dropped);
        assert_eq!(queue.push(4, usize::MAX, Some(4)), Pushed::Dropped);
        assert_eq!((queue.len(), queue.bytes(), queue.is_closed()), (2, 35, false));
        assert_eq!(queue.push(5, 15, Some(2)), Pushed::Replaced);
        assert_eq!(drained(&mut queue), [1, 5]);
    }

    #[test]
    fn overflow_clears_and_closes() {
        let mut queue = Queue::new(40);
        queue.push(1, 30, None);
        queue.push(2, 10, Some(2));
        assert_eq!(queue.push(3, 10, None), Pushed::Queued, "exactly the bound");
        assert_eq!(queue.push(4, 1, None), Pushed::Overflow);
        assert_eq!((queue.len(), queue.bytes(), queue.is_closed()), (0, 0, true));
        for key in [None, Some(2)] {
            assert_eq!(queue.push(5, 0, key), Pushed::Overflow);
        }
        assert_eq!(queue.pop(), None);
        let mut queue = Queue::new(40);
        assert_eq!(queue.push(1, usize::MAX, None), Pushed::Overflow, "larger than the whole queue");
    }

    #[test]
    fn a_quiet_queue_gives_its_memory_back() {
        assert!(size_of::<Queue<Box<[u8]>>>() <= 72);
        let mut queue = Queue::new(1_000_000);
        assert_eq!(queue.kept.capacity(), 0);
        for item in 0..1_000 {
            queue.push(item, 10, (item % 2 == 0).then_some(u64::from(item)));
        }
        assert_eq!(drained(&mut queue).len(), 1_000);
        assert_eq!((queue.kept.capacity(), queue.conflated.is_none()), (0, true));

        queue.push(1, 10, None);
        let few = queue.kept.capacity();
        queue.pop();
        assert_eq!(queue.kept.capacity(), few, "a small buffer is kept for the next item");
    }
}
