//! The merge: each strategy over sizes and shares of conflict, and beside a plain three-way merge of JSON values.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use driftline_benches::body;
use driftline_conflict::{
    Change, Context, DeletedRecord, DeviceTable, Granularity, Op, Policy, Record, Strategy, apply,
};
use driftline_model::{DeviceNo, Hlc, Object, ObjectBuilder, Seq};
use driftline_protocol::{Document, Item};
use serde_json::Value;

#[global_allocator]
static ALLOCATED: divan::AllocProfiler = divan::AllocProfiler::system();

const ADA: DeviceNo = DeviceNo::new(0);
const BOB: DeviceNo = DeviceNo::new(1);

fn main() {
    divan::main();
}

struct World {
    devices: DeviceTable,
    policy: Policy,
}

impl World {
    fn new(policy: Policy) -> Self {
        Self { devices: DeviceTable::new(["ada\u{1}phone", "bob\u{1}phone"]), policy }
    }

    fn apply(&self, record: Option<&Record>, change: &Change) -> driftline_conflict::Decision {
        let next = record.map_or(Seq::ZERO, |record| record.version).next();
        let (received, latest) = (Hlc::new(2_000, 0), Hlc::new(62_000, 0));
        apply(record, change, &self.policy, &Context { next, received, latest, devices: &self.devices })
    }

    /// A record that Ada created as version 1 and edited as version 2.
    fn edited(&self, created: Object, edited: Object) -> Record {
        let create = change(Op::Create, ADA, 1, 0, created);
        let record = self.apply(None, &create).record.expect("a create makes a record");
        self.apply(Some(&record), &change(Op::Patch, ADA, 2, 1, edited)).record.expect("an edit")
    }
}

fn change(op: Op, device: DeviceNo, n: u64, base: u64, fields: Object) -> Change {
    Change { op, base: Seq::new(base), fields, hlc: Some(Hlc::new(1_000 + n, 0)), device, n }
}

fn object<'a>(members: impl IntoIterator<Item = (&'a str, &'a str)>) -> Object {
    let mut built = ObjectBuilder::with_capacity(256, 8);
    for (name, value) in members {
        built.push(name, value);
    }
    built.finish()
}

/// One item per call is decided, by strategy, number of fields and share of items in conflict.
mod strategies {
    use super::*;

    const CASES: usize = 100;

    fn every_size_and_share() -> impl Iterator<Item = (usize, usize)> {
        [5, 20, 100].into_iter().flat_map(|fields| [0, 10, 100].map(|percent| (fields, percent)))
    }

    fn cases(world: &World, fields: usize, percent: usize) -> Vec<(Record, Change)> {
        let names: Vec<String> = (0..fields).map(|at| format!("field_{at:03}")).collect();
        let edited = fields / 5;
        let some = |from: usize, value: &'static str| {
            object(names[from..from + edited].iter().map(move |name| (name.as_str(), value)))
        };
        let case = |at: usize| {
            let created = object(names.iter().map(|name| (name.as_str(), "\"as it was made\"")));
            let record = world.edited(created, some(0, "\"as Ada left it\""));
            // Both touch a fifth of the fields: the same ones in a conflict, else others.
            let from = if at * percent / CASES == (at + 1) * percent / CASES { edited } else { 0 };
            (record, change(Op::Patch, BOB, 3, 1, some(from, "\"as Bob left it\"")))
        };
        (0..CASES).map(case).collect()
    }

    fn run(bencher: Bencher<'_, '_>, strategy: Strategy, (fields, percent): (usize, usize)) {
        let world = World::new(Policy { strategy, version: 0 });
        let cases = cases(&world, fields, percent);
        let conflicts = cases.iter().filter(|(record, change)| world.apply(Some(record), change).conflict);
        assert_eq!(conflicts.count(), percent);
        bencher.counter(ItemsCount::new(CASES)).bench(|| {
            for (record, change) in black_box(&cases) {
                black_box(world.apply(Some(record), change));
            }
        });
    }

    #[divan::bench(args = every_size_and_share())]
    fn client_wins(bencher: Bencher<'_, '_>, case: (usize, usize)) {
        let (granularity, deleted) = (Granularity::Field, DeletedRecord::Restored);
        run(bencher, Strategy::ClientWins { granularity, deleted }, case);
    }

    #[divan::bench(args = every_size_and_share())]
    fn server_wins(bencher: Bencher<'_, '_>, case: (usize, usize)) {
        run(bencher, Strategy::ServerWins { granularity: Granularity::Field }, case);
    }

    #[divan::bench(args = every_size_and_share())]
    fn most_recent_wins(bencher: Bencher<'_, '_>, case: (usize, usize)) {
        run(bencher, Strategy::MostRecentWins, case);
    }

    #[divan::bench(args = every_size_and_share())]
    fn field_merge(bencher: Bencher<'_, '_>, case: (usize, usize)) {
        run(bencher, Strategy::FieldMerge { fields: Vec::new() }, case);
    }
}

/// Ten fields, three edited on each side, so many of them the same; the account of what lost is made in both.
mod three_way {
    use super::*;

    const OVERLAPS: [usize; 3] = [0, 1, 3];
    const ADA_EDITS: [(&str, &str); 3] =
        [("minutes", "95"), ("status", "\"resolved\""), ("title", "\"valve meter\"")];
    const BOB_EDITS: [(&str, &str); 6] = [
        ("minutes", "80"),
        ("status", "\"closed\""),
        ("title", "\"roof meter\""),
        ("assignee", "\"user-00042\""),
        ("cost", "11.5"),
        ("priority", "\"urgent\""),
    ];

    /// Bob's three edits, of which so many are of fields that Ada edited too.
    fn bob(overlap: usize) -> Object {
        let mut edits = BOB_EDITS[..overlap].to_vec();
        edits.extend(&BOB_EDITS[3 + overlap..]);
        edits.sort_unstable();
        object(edits)
    }

    fn created() -> Object {
        Object::from_canonical(body(7)).expect("canonical")
    }

    fn stored(world: &World) -> Record {
        world.edited(created(), object(ADA_EDITS))
    }

    /// Decides from a loaded record and a decoded item.
    #[divan::bench(args = OVERLAPS)]
    fn driftline(bencher: Bencher<'_, '_>, overlap: usize) {
        let world = World::new(Policy::field_merge());
        let record = stored(&world);
        let change = change(Op::Patch, BOB, 3, 1, bob(overlap));
        assert_eq!(world.apply(Some(&record), &change).winners().count(), overlap);
        bencher.bench(|| world.apply(Some(black_box(&record)), black_box(&change)));
    }

    /// Merges loaded values, into a copy.
    #[divan::bench(args = OVERLAPS)]
    fn plain(bencher: Bencher<'_, '_>, overlap: usize) {
        let sides = Sides::new(overlap);
        let (base, client) = (sides.base.clone(), sides.client.clone());
        bencher.bench(|| merge(black_box(&base), black_box(&sides.server).clone(), black_box(&client)));
    }

    /// Merges loaded values, in place: the server's is used up.
    #[divan::bench(args = OVERLAPS)]
    fn plain_in_place(bencher: Bencher<'_, '_>, overlap: usize) {
        let sides = Sides::new(overlap);
        bencher
            .with_inputs(|| sides.server.clone())
            .bench_values(|server| merge(black_box(&sides.base), server, black_box(&sides.client)));
    }

    /// The same from the bytes of the item and of the stored record, to the bytes that are stored.
    #[divan::bench(args = OVERLAPS)]
    fn driftline_with_parse_and_write(bencher: Bencher<'_, '_>, overlap: usize) {
        let world = World::new(Policy::field_merge());
        let loaded = stored(&world);
        let text = loaded.fields.as_str().to_owned();
        let item = format!(
            r#"{{"op_id":"o1","n":3,"kind":"ticket","id":"t-7","op":"patch","base_version":1,"hlc":"0000000003eb-0000","fields":{}}}"#,
            bob(overlap).as_str()
        );
        bencher.bench(|| {
            let document = Document::parse(black_box(item.as_bytes()), 64).expect("JSON");
            let item = Item::read(document.root()).expect("a good item");
            let fields = Object::from_canonical(black_box(&text).clone()).expect("canonical");
            let record = Record {
                version: loaded.version,
                fields,
                default_mark: loaded.default_mark,
                marks: loaded.marks.clone(),
                del: loaded.del,
                live: loaded.live,
            };
            let change = change(Op::Patch, BOB, item.n.unwrap_or(0), item.base_version.number(), item.fields);
            let decision = world.apply(Some(&record), &change);
            decision.record.expect("changed").fields.as_str().len()
        });
    }

    /// The same from three texts to one.
    #[divan::bench(args = OVERLAPS)]
    fn plain_with_parse_and_write(bencher: Bencher<'_, '_>, overlap: usize) {
        let Sides { base, server, client } = Sides::new(overlap);
        let texts = [base, server, client].map(|value| value.to_string());
        bencher.bench(|| {
            let [base, server, client] =
                black_box(&texts).each_ref().map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
            let merged = merge(&base, server, &client);
            (serde_json::to_string(&merged.value).expect("JSON").len(), merged.lost)
        });
    }

    /// The record as both saw it, and as each left it.
    struct Sides {
        base: Value,
        server: Value,
        client: Value,
    }

    impl Sides {
        fn new(overlap: usize) -> Self {
            let base: Value = serde_json::from_str(created().as_str()).expect("JSON");
            let with = |edits: &Object| {
                let mut side = base.clone();
                for (name, value) in edits.iter() {
                    side[name] = serde_json::from_str(value).expect("JSON");
                }
                side
            };
            let (server, client) = (with(&object(ADA_EDITS)), with(&bob(overlap)));
            let sides = Self { base, server, client };
            let merged = merge(&sides.base, sides.server.clone(), &sides.client);
            assert_eq!(merged.lost.len(), overlap);
            sides
        }
    }

    struct Merged {
        value: Value,
        lost: Vec<(String, Value)>,
    }

    /// A plain three-way merge: a side that changed a field against the base wins it; the client wins where both did.
    fn merge(base: &Value, mut server: Value, client: &Value) -> Merged {
        let mut lost = Vec::new();
        let (Some(base), Some(merged), Some(client)) =
            (base.as_object(), server.as_object_mut(), client.as_object())
        else {
            return Merged { value: server, lost };
        };
        for (name, value) in client {
            if base.get(name) == Some(value) {
                continue;
            }
            match merged.get_mut(name) {
                Some(stored) if stored == value => {}
                Some(stored) => {
                    let both = base.get(name) != Some(stored);
                    let old = std::mem::replace(stored, value.clone());
                    if both {
                        lost.push((name.clone(), old));
                    }
                }
                None => {
                    merged.insert(name.clone(), value.clone());
                }
            }
        }
        Merged { value: server, lost }
    }
}
