//! Rounds of concurrent edits by clients that keep their part of the bargain: their stamps follow everything
//! they saw, their numbers rise, and none of them edits what it believes deleted.

use std::collections::BTreeMap;

use driftline_conflict::{
    Change, Context, DeviceOrder, DeviceTable, FieldRule, Mark, Op, Policy, Record, Strategy,
};
use driftline_model::{DeviceNo, Hlc, Object, Seq};

use super::rng::Rng;
use super::{Apply, random_fields};

/// A change of a client, whose device is known by name: its number depends on the order of arrival.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) client: usize,
    pub(crate) op: Op,
    pub(crate) base: Seq,
    pub(crate) fields: Object,
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

/// A record without what depends on arrival: versions and device numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Essence {
    deleted: bool,
    fields: Vec<(String, String, Stamp)>,
    del: Option<Stamp>,
    live: Stamp,
}

type Stamp = (Hlc, &'static str, u64);

fn essence(record: &Record, numbers: &Numbers) -> Essence {
    let stamp = |mark: Mark| (mark.hlc, numbers.name(mark.device), mark.n);
    Essence {
        deleted: record.is_deleted(&numbers.table),
        fields: record
            .fields()
            .map(|(name, value, mark)| (name.to_owned(), value.to_owned(), stamp(mark)))
            .collect(),
        del: record.del.map(stamp),
        live: stamp(record.live),
    }
}

/// A small tenant with one record.
pub(crate) struct World {
    clients: Vec<Client>,
    names: Vec<&'static str>,
    policy: Policy,
    numbers: Numbers,
    record: Option<Record>,
    head: Seq,
    now: u64,
    unique: u64,
}

impl World {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        // The names order by their bytes, whatever their numbers; one is a prefix of another.
        let mut names = vec!["ada\u{1}phone", "ada\u{1}phone2", "ada\u{1}", "zoe\u{1}phone"];
        rng.shuffle(&mut names);
        names.truncate(rng.between(2, 4));
        let lww = Strategy::FieldMerge { fields: vec![("b".into(), FieldRule::Lww)] };
        let strategy = if rng.percent(50) { Strategy::MostRecentWins } else { lww };
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
            })
            .collect();
        let order: Vec<usize> = (0..names.len()).collect();
        Self {
            clients,
            numbers: Numbers::new(&names, &order),
            names,
            policy: Policy { strategy, version: 0 },
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
        let highest = record.all_marks().map(|mark| mark.hlc).max().unwrap_or_default();
        for client in &mut self.clients {
            if rng.percent(70) {
                client.base = record.version;
                client.pulled = if deleted { View::Deleted } else { View::Alive };
                client.view = client.pulled;
                client.deleted_since = false;
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
        let fields = match op {
            Op::Delete => Object::empty(),
            _ => random_fields(rng, 4, &mut self.unique),
        };
        Item { client: at, op, base: client.base, fields, hlc: client.hlc, n: client.n }
    }

    /// Whether two devices touch one field, or an update meets a delete.
    pub(crate) fn overlaps(items: &[Item]) -> bool {
        items.iter().enumerate().any(|(at, one)| {
            items[..at].iter().any(|two| {
                let clash = (one.op == Op::Delete) != (two.op == Op::Delete)
                    || one.fields.iter().any(|(name, _)| two.fields.get(name).is_some());
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
        record.map(|record| essence(&record, &numbers))
    }

    /// What the state has to be, whatever the order: of each field, of the deletes and of the writes the latest.
    pub(crate) fn join(&self, items: &[Item]) -> Option<Essence> {
        let (mut fields, mut del, mut live) = (BTreeMap::new(), None, None);
        if let Some(record) = &self.record {
            let before = essence(record, &self.numbers);
            fields = before.fields.into_iter().map(|(name, value, stamp)| (name, (stamp, value))).collect();
            (del, live) = (before.del, Some(before.live));
        }
        for item in items {
            let stamp = (item.hlc, self.names[item.client], item.n);
            match item.op {
                Op::Delete => del = del.max(Some(stamp)),
                Op::Patch if item.fields.is_empty() => {}
                Op::Create | Op::Patch | Op::Restore => live = live.max(Some(stamp)),
            }
            for (name, value) in item.fields.iter() {
                let write = (stamp, value.to_owned());
                let held = fields.entry(name.to_owned()).or_insert_with(|| write.clone());
                if held.0 < stamp {
                    *held = write;
                }
            }
        }
        Some(Essence {
            deleted: del > live,
            fields: fields.into_iter().map(|(name, (stamp, value))| (name, value, stamp)).collect(),
            del,
            live: live?,
        })
    }

    /// Applies the items for good.
    pub(crate) fn settle(&mut self, apply: &Apply<'_>, items: &[&Item]) {
        (self.record, self.head) = self.run(apply, self.record.clone(), &self.numbers, items);
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
                hlc: Some(item.hlc),
                device: DeviceNo::new(numbers.of[item.client]),
                n: item.n,
            };
            let latest = Hlc::new(self.now + 90_000, 0);
            let context = Context { next: head.next(), received, latest, devices: &numbers.table };
            if let Some(changed) = apply(record.as_ref(), &change, &self.policy, &context).record {
                record = Some(changed);
                head = head.next();
            }
        }
        (record, head)
    }

    fn renumbered(&self, mut record: Record, to: &Numbers) -> Record {
        let renumber = |mark: &mut Mark| *mark = self.numbers.renumber(*mark, to);
        renumber(&mut record.default_mark);
        renumber(&mut record.live);
        record.del.iter_mut().for_each(renumber);
        record.marks.iter_mut().for_each(|(_, mark)| renumber(mark));
        record
    }

    /// Tells the round, for the report of a failure.
    pub(crate) fn story(&self, items: &[&Item]) -> String {
        let mut told = match &self.record {
            None => "  no record\n".to_owned(),
            Some(record) => {
                format!("  version {}: {:?}\n", record.version, essence(record, &self.numbers))
            }
        };
        for item in items {
            let name = String::from_utf8_lossy(
                self.numbers.table.bytes(DeviceNo::new(self.numbers.of[item.client])),
            );
            debug_assert_eq!(name, self.clients[item.client].name);
            told.push_str(&format!(
                "  {name:?} n {} {:?} base {} {} at {}\n",
                item.n,
                item.op,
                item.base,
                item.fields.as_str(),
                item.hlc
            ));
        }
        told
    }
}
