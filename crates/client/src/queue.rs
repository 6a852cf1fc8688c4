//! Edits on their way to the server.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use driftline_model::Seq;
use driftline_protocol::{Item, ItemCode};

use crate::policies::Policies;
use crate::records::Key;
use crate::seen::Seen;

/// The queue: edits by their number, each with where it stands, and the batches that wait for their answer.
///
/// An edit leaves the queue only by [`Queue::remove`], when the server has decided it.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    items: BTreeMap<u64, Queued>,
    /// The edits that are to be sent.
    unsent: BTreeSet<Turn>,
    /// The edits that wait for a time, by time.
    held: BTreeSet<(u64, u64)>,
    in_flight: VecDeque<Batch>,
    next_n: u64,
    next_batch: u64,
}

/// When an edit is sent: what heals the server comes first, then edits by their number.
type Turn = (Source, u64);

/// Where an edit comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// The device gives back what the server lost.
    Heal,
    /// The user.
    User,
}

#[derive(Debug, Clone)]
struct Queued {
    item: Item,
    source: Source,
    seen: Seen,
    place: Place,
    /// How often the server asked to send it again later.
    refusals: u32,
    /// How many of the numbers right below its own are free.
    room: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Unsent,
    Sent,
    /// The server asked to wait until then.
    Held(u64),
    /// Needs a new base, which the next complete pull brings.
    Rebase,
}

/// A batch that was sent and not answered.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    pub(crate) seq: u64,
    /// The numbers of its edits, in the order in which they were sent.
    pub(crate) ns: Vec<u64>,
}

/// What one batch may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchLimits {
    pub(crate) items: usize,
    pub(crate) bytes: usize,
}

/// The delay after the first refusal, when the server names none; it doubles with every further one.
const RETRY_MS_FIRST: u64 = 1_000;
const RETRY_MS_MAX: u64 = 30_000;

/// How many numbers are left free below an edit of the user's. What the device gives back of the edit's record to a
/// restored server was there before the edit, and a server takes the greater number of a device for the later write.
/// Each restore that happens while the edit waits takes one.
const ROOM: u64 = 8;

/// How often an edit gets a new base before it goes without one.
const REBASES_MAX: u32 = 2;

impl Default for Queue {
    fn default() -> Self {
        Self {
            items: BTreeMap::new(),
            unsent: BTreeSet::new(),
            held: BTreeSet::new(),
            in_flight: VecDeque::new(),
            next_n: 1,
            next_batch: 1,
        }
    }
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn item(&self, n: u64) -> Option<&Item> {
        self.items.get(&n).map(|queued| &queued.item)
    }

    /// Returns an edit with what its author saw.
    pub(crate) fn waiting(&self, n: u64) -> Option<(&Item, &Seen)> {
        self.items.get(&n).map(|queued| (&queued.item, &queued.seen))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Item> {
        self.items.values().map(|queued| &queued.item)
    }

    /// The number that the user's next edit gets.
    pub(crate) fn next_n(&self) -> u64 {
        self.next_n + ROOM
    }

    /// Tells where an edit comes from.
    pub(crate) fn source(&self, n: u64) -> Option<Source> {
        self.items.get(&n).map(|queued| queued.source)
    }

    /// Tells whether a number is left that makes a gift older than an edit.
    pub(crate) fn has_room_below(&self, n: u64) -> bool {
        self.items.get(&n).is_some_and(|queued| queued.room > 0)
    }

    /// The highest number up to which every edit was decided.
    pub(crate) fn acked_n(&self) -> u64 {
        self.items.iter().next().map_or(self.next_n, |(n, first)| n - first.room) - 1
    }

    /// Takes an edit of the user's in and gives it its number.
    pub(crate) fn push(&mut self, item: Item, seen: Seen) -> u64 {
        let n = self.next_n();
        self.next_n = n + 1;
        let queued =
            Queued { item, source: Source::User, seen, place: Place::Unsent, refusals: 0, room: ROOM };
        self.insert(n, queued)
    }

    /// Takes a gift in and gives it its number: one below that of the edit which it has to come before, if there is one
    /// left. A later gift that comes before the same edit gets a greater number.
    pub(crate) fn push_gift(&mut self, item: Item, before: Option<u64>) -> u64 {
        let edit = before.and_then(|n| Some((n, self.items.get_mut(&n).filter(|edit| edit.room > 0)?)));
        let n = match edit {
            Some((n, edit)) => {
                edit.room -= 1;
                n - edit.room - 1
            }
            None => {
                self.next_n += 1;
                self.next_n - 1
            }
        };
        let (source, seen) = (Source::Heal, Seen::default());
        self.insert(n, Queued { item, source, seen, place: Place::Unsent, refusals: 0, room: 0 })
    }

    fn insert(&mut self, n: u64, mut queued: Queued) -> u64 {
        queued.item.n = Some(n);
        self.unsent.insert((queued.source, n));
        self.items.insert(n, queued);
        n
    }

    /// Tells whether nothing is to be sent and nothing waits for an answer.
    pub(crate) fn is_idle(&self) -> bool {
        self.unsent.is_empty() && self.in_flight.is_empty()
    }

    pub(crate) fn in_flight_len(&self) -> usize {
        self.in_flight.len()
    }

    /// The number of the batch that was sent last, while it waits for its answer.
    pub(crate) fn last_in_flight(&self) -> Option<u64> {
        self.in_flight.back().map(|batch| batch.seq)
    }

    pub(crate) fn first_in_flight(&self) -> Option<u64> {
        self.in_flight.front().map(|batch| batch.seq)
    }

    /// Makes the next batch, if anything can be sent.
    pub(crate) fn take_batch(
        &mut self,
        limits: BatchLimits,
        policies: &Policies,
    ) -> Option<(u64, Vec<Item>)> {
        let ns = self.choose(limits);
        if ns.is_empty() {
            return None;
        }
        let items = ns.iter().filter_map(|n| self.items.get(n)).map(|queued| queued.sent(policies)).collect();
        for &n in &ns {
            self.place(n, Place::Sent);
        }
        let seq = self.next_batch;
        self.next_batch += 1;
        self.in_flight.push_back(Batch { seq, ns });
        Some((seq, items))
    }

    /// Chooses edits in the order of their numbers. A record whose earlier edit has to wait is passed over, and so
    /// is a group with such a record; a group goes into one batch.
    fn choose(&self, limits: BatchLimits) -> Vec<u64> {
        let mut chosen = Vec::new();
        let mut bytes = 0;
        let mut waiting = self.waiting_records();
        let mut taken = BTreeSet::new();
        let mut passed_over = BTreeSet::new();
        for &(_, n) in &self.unsent {
            if passed_over.contains(&n) || taken.contains(&n) {
                continue;
            }
            let unit = self.unit(n);
            let blocked = unit.iter().any(|m| {
                let Some(queued) = self.items.get(m) else { return true };
                let turn = (queued.source, *m);
                waiting.get(&key(&queued.item)).is_some_and(|earlier| *earlier < turn)
                    || !self.unsent.contains(&turn)
            });
            if blocked {
                for m in &unit {
                    if let Some(queued) = self.items.get(m) {
                        waiting.entry(key(&queued.item)).or_insert((queued.source, *m));
                    }
                }
                passed_over.extend(unit);
                continue;
            }
            let unit_bytes: usize = unit.iter().filter_map(|m| self.items.get(m)).map(Queued::bytes).sum();
            let full = chosen.len() + unit.len() > limits.items || bytes + unit_bytes > limits.bytes;
            if full && !chosen.is_empty() {
                break;
            }
            bytes += unit_bytes;
            taken.extend(unit.iter().copied());
            chosen.extend(unit);
        }
        chosen
    }

    /// The records with an edit that waits, each with the first such edit.
    fn waiting_records(&self) -> BTreeMap<Key, Turn> {
        if self.unsent.len() + self.sent_len() == self.items.len() {
            return BTreeMap::new();
        }
        let mut waiting = BTreeMap::new();
        for (&n, queued) in &self.items {
            if matches!(queued.place, Place::Held(_) | Place::Rebase) {
                let turn = (queued.source, n);
                let first = waiting.entry(key(&queued.item)).or_insert(turn);
                *first = turn.min(*first);
            }
        }
        waiting
    }

    fn sent_len(&self) -> usize {
        self.in_flight.iter().map(|batch| batch.ns.len()).sum()
    }

    /// The edits that go together with `n`: its group, between whose numbers are none but those of gifts, or itself
    /// alone.
    fn unit(&self, n: u64) -> Vec<u64> {
        let Some(group) = self.item(n).and_then(|item| item.group.as_ref()) else { return vec![n] };
        let users = |(_, queued): &(&u64, &Queued)| queued.source == Source::User;
        let same = |(_, queued): &(&u64, &Queued)| queued.item.group.as_ref() == Some(group);
        let before = self.items.range(..n).rev().filter(users).take_while(same);
        let first = before.last().map_or(n, |(n, _)| *n);
        self.items.range(first..).filter(users).take_while(same).map(|(n, _)| *n).collect()
    }

    /// Takes the batch that an answer names off the flight; without a name it is the oldest.
    pub(crate) fn answered(&mut self, seq: Option<u64>) -> Option<Batch> {
        let at = match seq {
            Some(seq) => self.in_flight.iter().position(|batch| batch.seq == seq)?,
            None => 0,
        };
        self.in_flight.remove(at)
    }

    /// Takes a decided edit out.
    pub(crate) fn remove(&mut self, n: u64) -> Option<(Item, Source)> {
        self.place(n, Place::Sent);
        self.items.remove(&n).map(|queued| (queued.item, queued.source))
    }

    /// Lets an edit be sent again.
    pub(crate) fn requeue(&mut self, n: u64) {
        self.place(n, Place::Unsent);
    }

    /// Lets an edit be sent again at a later time.
    pub(crate) fn hold(&mut self, n: u64, now_ms: u64, retry_after_ms: Option<u64>) {
        let Some(queued) = self.items.get_mut(&n) else { return };
        let delay = RETRY_MS_MAX.min(RETRY_MS_FIRST << queued.refusals.min(5));
        queued.refusals += 1;
        self.place(n, Place::Held(now_ms.saturating_add(retry_after_ms.unwrap_or(delay))));
    }

    /// Lets an edit wait for the next complete pull.
    pub(crate) fn await_base(&mut self, n: u64) {
        if let Some(queued) = self.items.get_mut(&n) {
            queued.refusals += 1;
        }
        self.place(n, Place::Rebase);
    }

    /// Gives the edits that waited for it their new base. A base that a server refuses again and again becomes none,
    /// which every server takes.
    pub(crate) fn rebase(&mut self, base: impl Fn(&Key) -> Seq) {
        let waiting: Vec<u64> = self.with_place(Place::Rebase).collect();
        for n in waiting {
            if let Some(queued) = self.items.get_mut(&n) {
                let hopeless = queued.refusals > REBASES_MAX;
                queued.item.base_version = if hopeless { Seq::ZERO } else { base(&key(&queued.item)) };
            }
            self.place(n, Place::Unsent);
        }
    }

    /// Makes every edit one whose author had seen nothing: the epoch of its base is gone.
    pub(crate) fn forget_bases(&mut self) {
        for queued in self.items.values_mut() {
            queued.item.base_version = Seq::ZERO;
        }
        let waiting: Vec<u64> = self.with_place(Place::Rebase).collect();
        for n in waiting {
            self.place(n, Place::Unsent);
        }
    }

    /// Forgets what was sent: it will be sent again, unchanged.
    pub(crate) fn forget_flight(&mut self) {
        for batch in std::mem::take(&mut self.in_flight) {
            for n in batch.ns {
                self.place(n, Place::Unsent);
            }
        }
    }

    /// The next time at which an edit may be sent again.
    pub(crate) fn next_time(&self) -> Option<u64> {
        self.held.first().map(|(until, _)| *until)
    }

    /// Lets edits be sent again whose time has come.
    pub(crate) fn release(&mut self, now_ms: u64) {
        while let Some((_, n)) = self.held.first().copied().filter(|(until, _)| *until <= now_ms) {
            self.place(n, Place::Unsent);
        }
    }

    fn with_place(&self, place: Place) -> impl Iterator<Item = u64> {
        self.items.iter().filter(move |(_, queued)| queued.place == place).map(|(n, _)| *n)
    }

    fn place(&mut self, n: u64, place: Place) {
        let Some(queued) = self.items.get_mut(&n) else { return };
        let turn = (queued.source, n);
        match std::mem::replace(&mut queued.place, place) {
            Place::Unsent => _ = self.unsent.remove(&turn),
            Place::Held(until) => _ = self.held.remove(&(until, n)),
            Place::Sent | Place::Rebase => {}
        }
        match place {
            Place::Unsent => _ = self.unsent.insert(turn),
            Place::Held(until) => _ = self.held.insert((until, n)),
            Place::Sent | Place::Rebase => {}
        }
    }
}

/// The codes of one batch, with what a failed group says about its members.
///
/// A member answers `dependency_failed` whatever the culprit's code was. It is refused for good only if the culprit
/// is: a group whose culprit may be sent again is sent again as a whole.
pub(crate) fn effective_codes(items: &[(Option<&Item>, ItemCode)]) -> Vec<ItemCode> {
    use driftline_protocol::ItemClass::{Resync, Retry};
    let group_of = |item: Option<&Item>| item.and_then(|item| item.group.as_deref().map(str::to_owned));
    let mut passing = BTreeMap::new();
    for (item, code) in items {
        if let (Some(group), Retry | Resync) = (group_of(*item), code.class()) {
            passing.insert(group, *code);
        }
    }
    let code = |(item, code): &(Option<&Item>, ItemCode)| match (code, group_of(*item)) {
        (ItemCode::DependencyFailed, Some(group)) => passing.get(&group).copied().unwrap_or(*code),
        _ => *code,
    };
    items.iter().map(code).collect()
}

fn key(item: &Item) -> Key {
    (item.kind.clone(), item.id.clone())
}

impl Queued {
    /// The edit as it is sent: with the values that its author saw where the server wants to know them.
    fn sent(&self, policies: &Policies) -> Item {
        let mut item = self.item.clone();
        let previous = self.seen.previous(&item, policies.of(&item.kind));
        if !previous.is_empty() {
            item.intents.get_or_insert_default().previous = previous;
        }
        item
    }

    /// About how many bytes the edit takes in a message.
    fn bytes(&self) -> usize {
        let Item { kind, id, fields, intents, .. } = &self.item;
        let intents = intents.as_ref().map_or(0, |intents| {
            let names: usize = intents.increments.iter().map(|(name, _)| name.len() + 24).sum();
            names + intents.add.as_str().len() + intents.remove.as_str().len()
        });
        let names = 2 * (kind.as_str().len() + id.as_str().len());
        fields.as_str().len() + intents + self.seen.bytes() + names + 400
    }
}

#[cfg(test)]
mod tests {
    use driftline_model::{KindName, Object, RecordId};
    use driftline_protocol::ItemOp;

    use super::*;

    fn item(id: &str, group: Option<&str>) -> Item {
        Item {
            op_id: None,
            n: None,
            kind: KindName::new("k").expect("a kind"),
            id: RecordId::new(id).expect("a record"),
            op: ItemOp::Patch,
            base_version: Seq::ZERO,
            fields: Object::empty(),
            intents: None,
            hlc: None,
            schema_version: 0,
            group: group.map(Box::from),
            hash: 0,
        }
    }

    #[test]
    fn gifts_take_the_numbers_below_an_edit_one_after_the_other_until_none_is_left() {
        let mut queue = Queue::default();
        let first = queue.push(item("x", None), Seen::default());
        let second = queue.push(item("y", None), Seen::default());
        assert_eq!((first, second, queue.acked_n()), (1 + ROOM, 2 + 2 * ROOM, 0));
        for gift in 0..ROOM {
            assert!(queue.has_room_below(second));
            assert_eq!(queue.push_gift(item("y", None), Some(second)), first + 1 + gift);
        }
        assert!(!queue.has_room_below(second));
        assert_eq!(queue.push_gift(item("y", None), Some(second)), second + 1, "as if nothing waited");
        assert_eq!(queue.push_gift(item("z", None), None), second + 2);
    }

    #[test]
    fn free_numbers_count_as_answered_only_with_the_edit_above_them() {
        let mut queue = Queue::default();
        let edit = queue.push(item("x", None), Seen::default());
        let gift = queue.push_gift(item("x", None), Some(edit));
        assert_eq!(queue.acked_n(), gift - 1);
        queue.remove(gift);
        assert_eq!(queue.acked_n(), gift);
        queue.remove(edit);
        assert_eq!(queue.acked_n(), edit);
    }

    #[test]
    fn a_gift_between_the_numbers_of_a_group_does_not_part_it() {
        let mut queue = Queue::default();
        let ns = ["x", "y", "z"].map(|id| queue.push(item(id, Some("g")), Seen::default()));
        let gift = queue.push_gift(item("y", None), Some(ns[1]));
        assert!(ns[0] < gift && gift < ns[1]);
        for n in ns {
            assert_eq!(queue.unit(n), ns);
        }
        let (_, items) = queue.take_batch(BatchLimits::default(), &Policies::default()).expect("a batch");
        let sent: Vec<_> = items.iter().filter_map(|item| item.n).collect();
        assert_eq!(sent, [gift, ns[0], ns[1], ns[2]], "the gift comes first");
    }
}
