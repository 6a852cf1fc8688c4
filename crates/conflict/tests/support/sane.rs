//! Rounds of concurrent edits by clients that keep their part of the bargain: their stamps follow everything
//! they saw, their numbers rise, and none of them edits what it believes deleted.

use std::collections::BTreeMap;

use driftline_conflict::{
    Change, Context, DeviceOrder, DeviceTable, Mark, Op, Policy, Record, Rights, Strategy,
};
use driftline_model::{DeviceNo, Hlc, Intents, Object, Seq};

use super::Apply;
use super::model::{Done, Model, is_nothing};
use super::parts::Parts;
use super::policies::{self, Content};
use super::rng::Rng;
use super::seen::{every_mark, for_every_mark};

/// A change of a client, whose device is known by name: its number depends on the order of arrival.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) client: usize,
    pub(crate) name: &'static str,
    pub(crate) op: Op,
    pub(crate) base: Seq,
    pub(crate) fields: Object,
    pub(crate) intents: Option<Box<Intents>>,
    pub(crate) rights: Rights,
    pub(crate) hlc: Hlc,
    pub(crate) n: u64,
}

/// In which orders the items of a round may arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freedom {
    /// In every order.
    Any,
    /// In every order that keeps each device's own.
    PerDevice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    Absent,
    Alive,
    Deleted,
}

struct Client {
    name: &'static str,
    hlc: Hlc,
    n: u64,
    /// The version at the last pull.
    base: Seq,
    /// The record as it was pulled, and as the client's own edits since then have left it.
    pulled: View,
    view: View,
    deleted_since: bool,
    skew_ms: u64,
    /// Whether the client's user may lower ordered fields. Without the right it does not try.
    lowers: bool,
    /// The ordered values as the client shows them: what it pulled, under its own edits that will not be held.
    shown: BTreeMap<String, String>,
}

impl Client {
    /// Touches some fields. Ordered ones come with what the client shows, and a client that lowers them says so where
    /// it may, and otherwise now and then tries without: that write is held, and the client knows it.
    fn parts(&mut self, rng: &mut Rng, strategy: &Strategy, op: Op, unique: &mut u64) -> Parts {
        let mut names = policies::names(strategy);
        rng.shuffle(&mut names);
        let count = if rng.percent(6) { 0 } else { rng.between(1, names.len().min(4)) };
        let mut parts = Parts { deescalate: self.lowers && rng.percent(40), ..Parts::default() };
        for (at, name) in names.iter().enumerate() {
            let ordered = policies::order(strategy, name);
            // Every record has its ordered fields from the beginning, so that there is always a previous value.
            let needed = ordered.is_some() && op == Op::Create && !self.shown.contains_key(*name);
            if at >= count && !needed {
                continue;
            }
            parts.touch(rng, strategy, name, unique);
            let Some(order) = ordered else { continue };
            let value = parts.fields.last().expect("an ordered value").1.clone();
            if let Some(previous) = self.shown.get(*name) {
                parts.previous.push(((*name).to_owned(), previous.clone()));
                if !parts.deescalate && order.rank(&value) < order.rank(previous) {
                    continue;
                }
            }
            self.shown.insert((*name).to_owned(), value);
        }
        parts
    }
}

/// The devices of one run in the numbers that it gave them.
pub(crate) struct Numbers {
    /// By client: its number.
    of: Vec<u32>,
    names: Vec<&'static str>,
    table: DeviceTable,
}

impl Numbers {
    /// Numbers the clients in the given order.
    fn new(names: &[&'static str], order: &[usize]) -> Self {
        let mut of = vec![0; names.len()];
        for (no, client) in (0_u32..).zip(order) {
            of[*client] = no;
        }
        let ordered: Vec<_> = order.iter().map(|client| names[*client]).collect();
        Self { of, table: DeviceTable::new(ordered.iter().copied()), names: ordered }
    }

    fn name(&self, device: DeviceNo) -> &'static str {
        self.names[device.number() as usize]
    }

    fn renumber(&self, mark: Mark, to: &Self) -> Mark {
        let name = self.name(mark.device);
        let at = to.names.iter().position(|other| *other == name).expect("the same devices");
        Mark { device: DeviceNo::new(u32::try_from(at).expect("few devices")), ..mark }
    }
}

/// A record without what depends on arrival: versions and device numbers. Marks are told only where they are promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Essence {
    pub(crate) deleted: bool,
    pub(crate) fields: BTreeMap<String, (String, Option<Stamp>)>,
    pub(crate) del: Option<Stamp>,
    pub(crate) live: Option<Stamp>,
}

pub(crate) type Stamp = (Hlc, &'static str, u64);

impl Essence {
    fn of(record: &Record, numbers: &Numbers, strategy: &Strategy) -> Self {
        let stamp = |mark: Mark| (mark.hlc, numbers.name(mark.device), mark.n);
        let fields =
            record.fields().filter(|(name, value, _)| !is_nothing(Content::of(strategy, name), value));
        Self {
            deleted: record.is_deleted(&numbers.table),
            fields: fields
                .map(|(name, value, mark)| (name.to_owned(), (value.to_owned(), Some(stamp(mark)))))
                .collect(),
            del: record.del.map(stamp),
            live: Some(stamp(record.live)),
        }
    }

    /// Leaves what a reader sees.
    fn visible(mut self) -> Self {
        self.fields.values_mut().for_each(|(_, stamp)| *stamp = None);
        Self { del: None, live: None, ..self }
    }
}

/// A small tenant with one record.
pub(crate) struct World {
    clients: Vec<Client>,
    names: Vec<&'static str>,
    policy: Policy,
    /// Whether the policy promises every mark, and not the visible state alone.
    marks: bool,
    numbers: Numbers,
    /// What was applied for good, with the version in which it could be seen.
    log: Vec<(Item, Seq)>,
    record: Option<Record>,
    head: Seq,
    now: u64,
    unique: u64,
}

impl World {
    /// Makes a tenant under a policy whose marks are promised too, in every order, or the visible state alone, in
    /// every order that keeps each device's own.
    pub(crate) fn new(rng: &mut Rng, freedom: Freedom) -> Self {
        // The names order by their bytes, whatever their numbers; one is a prefix of another.
        let mut names = vec!["ada\u{1}phone", "ada\u{1}phone2", "ada\u{1}", "zoe\u{1}phone"];
        rng.shuffle(&mut names);
        names.truncate(rng.between(2, 4));
        let marks = freedom == Freedom::Any || rng.percent(15);
        let policies = if marks { policies::clocked_policies() } else { policies::joining_policies() };
        let policy = rng.pick(&policies).clone();
        let coarse = rng.percent(70);
        let clients = names
            .iter()
            .map(|name| Client {
                name,
                hlc: Hlc::ZERO,
                n: 0,
                base: Seq::ZERO,
                pulled: View::Absent,
                view: View::Absent,
                deleted_since: false,
                skew_ms: if coarse { 0 } else { rng.next() % 5_000 },
                lowers: rng.percent(60),
                shown: BTreeMap::new(),
            })
            .collect();
        let order: Vec<usize> = (0..names.len()).collect();
        Self {
            clients,
            numbers: Numbers::new(&names, &order),
            names,
            policy,
            marks,
            log: Vec::new(),
            record: None,
            head: Seq::ZERO,
            now: 1_000_000,
            unique: 0,
        }
    }

    /// Some clients pull, all stamp later than what they were told.
    pub(crate) fn pull(&mut self, rng: &mut Rng) {
        self.now += rng.next() % 3;
        let Some(record) = &self.record else { return };
        let deleted = record.is_deleted(&self.numbers.table);
        let highest = every_mark(record).iter().map(|mark| mark.hlc).max().unwrap_or_default();
        let strategy = &self.policy.strategy;
        let ordered =
            record.fields.iter().filter(|(name, _)| Content::of(strategy, name) == Content::Ordered);
        let shown: BTreeMap<String, String> =
            ordered.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        for client in &mut self.clients {
            if rng.percent(70) {
                client.base = record.version;
                client.pulled = if deleted { View::Deleted } else { View::Alive };
                client.view = client.pulled;
                client.deleted_since = false;
                client.shown.clone_from(&shown);
                client.hlc = client.hlc.max(highest);
            }
        }
    }

    /// Edits of all clients, none of which sees another's.
    pub(crate) fn edits(&mut self, rng: &mut Rng, count: usize, freedom: Freedom) -> Vec<Item> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            let client = rng.below(self.clients.len());
            items.push(self.edit(rng, client, freedom));
        }
        items
    }

    fn edit(&mut self, rng: &mut Rng, at: usize, freedom: Freedom) -> Item {
        let exists = self.record.is_some();
        let client = &mut self.clients[at];
        // A patch or a delete that arrives before its author's own create finds nothing, and one that arrives
        // between its author's delete and create finds it deleted.
        let exposed = freedom == Freedom::Any && (client.pulled != View::Alive || client.deleted_since);
        let op = match client.view {
            View::Absent => Op::Create,
            View::Deleted => *rng.pick(&[Op::Create, Op::Restore]),
            View::Alive if freedom == Freedom::Any && !exists => Op::Create,
            View::Alive if rng.percent(25) => Op::Delete,
            View::Alive if exposed => Op::Create,
            View::Alive => Op::Patch,
        };
        // A client that saw nothing of a record cannot restore it.
        let op = if op == Op::Restore && client.base == Seq::ZERO { Op::Create } else { op };
        client.view = if op == Op::Delete { View::Deleted } else { View::Alive };
        client.deleted_since |= op == Op::Delete;
        client.n += 1;
        client.hlc = client.hlc.tick(self.now + client.skew_ms);
        if rng.percent(30) {
            self.now += 1;
        }
        let parts = match op {
            Op::Delete => Parts::default(),
            _ => client.parts(rng, &self.policy.strategy, op, &mut self.unique),
        };
        let (fields, intents) = parts.finish();
        let rights = Rights { deescalate: client.lowers, service: false };
        let (name, base, hlc, n) = (client.name, client.base, client.hlc, client.n);
        Item { client: at, name, op, base, fields, intents, rights, hlc, n }
    }

    /// Whether two devices touch one field, or an update meets a delete.
    pub(crate) fn overlaps(items: &[Item]) -> bool {
        items.iter().enumerate().any(|(at, one)| {
            items[..at].iter().any(|two| {
                let clash = (one.op == Op::Delete) != (two.op == Op::Delete)
                    || one.touched().iter().any(|name| two.touched().contains(name));
                one.client != two.client && clash
            })
        })
    }

    /// The state after the items in this order, with devices numbered as they arrive.
    pub(crate) fn outcome(&self, apply: &Apply<'_>, items: &[&Item]) -> Option<Essence> {
        let mut order: Vec<usize> = Vec::with_capacity(self.names.len());
        for client in items.iter().map(|item| item.client).chain((0..self.names.len()).rev()) {
            if !order.contains(&client) {
                order.push(client);
            }
        }
        let numbers = Numbers::new(&self.names, &order);
        let record = self.record.clone().map(|record| self.renumbered(record, &numbers));
        let (record, _) = self.run(apply, record, &numbers, items);
        record.map(|record| self.promised(Essence::of(&record, &numbers, &self.policy.strategy)))
    }

    fn promised(&self, essence: Essence) -> Essence {
        if self.marks { essence } else { essence.visible() }
    }

    /// What the state has to be, whatever the order.
    pub(crate) fn model(&self, items: &[Item]) -> Option<Essence> {
        let before = self.log.iter().map(|(item, version)| Done { item, version: Some(*version) });
        let done = before.chain(items.iter().map(|item| Done { item, version: None })).collect();
        let state = Model { strategy: &self.policy.strategy, done }.state();
        state.map(|mut essence| {
            let strategy = &self.policy.strategy;
            essence.fields.retain(|name, (value, _)| !is_nothing(Content::of(strategy, name), value));
            self.promised(essence)
        })
    }

    /// Applies the items for good.
    pub(crate) fn settle(&mut self, apply: &Apply<'_>, items: &[&Item]) {
        for item in items {
            let numbers = &self.numbers;
            (self.record, self.head) = self.run(apply, self.record.clone(), numbers, &[item]);
            self.log.push(((*item).clone(), self.head));
        }
    }

    fn run(
        &self,
        apply: &Apply<'_>,
        mut record: Option<Record>,
        numbers: &Numbers,
        items: &[&Item],
    ) -> (Option<Record>, Seq) {
        let mut head = self.head;
        let received = Hlc::new(self.now + 30_000, 0);
        for item in items {
            let change = Change {
                op: item.op,
                base: item.base,
                fields: item.fields.clone(),
                intents: item.intents.clone(),
                hlc: Some(item.hlc),
                device: DeviceNo::new(numbers.of[item.client]),
                n: item.n,
            };
            let latest = Hlc::new(self.now + 90_000, 0);
            let context =
                Context { next: head.next(), received, latest, devices: &numbers.table, rights: item.rights };
            if let Some(changed) = apply(record.as_ref(), &change, &self.policy, &context).record {
                record = Some(changed);
                head = head.next();
            }
        }
        (record, head)
    }

    fn renumbered(&self, mut record: Record, to: &Numbers) -> Record {
        for_every_mark(&mut record, |mark| *mark = self.numbers.renumber(*mark, to));
        record
    }

    /// Tells the round, for the report of a failure.
    pub(crate) fn story(&self, items: &[&Item]) -> String {
        let mut told = match &self.record {
            None => "  no record\n".to_owned(),
            Some(record) => {
                format!("  {:?}\n  {record:?}\n", self.policy)
            }
        };
        for item in items {
            let name = String::from_utf8_lossy(
                self.numbers.table.bytes(DeviceNo::new(self.numbers.of[item.client])),
            );
            debug_assert_eq!(name, self.clients[item.client].name);
            told.push_str(&format!(
                "  {name:?} n {} {:?} base {} {} {:?} at {}\n",
                item.n,
                item.op,
                item.base,
                item.fields.as_str(),
                item.intents,
                item.hlc
            ));
        }
        told
    }
}
