//! The merge: each strategy and the rules of fields over sizes and shares of conflict, beside a plain three-way merge of
//! JSON values on the same input.
//!
//! An iteration of `strategies` decides 100 items; the column of items per second counts them.

use std::sync::Arc;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use driftline_benches::body;
use driftline_conflict::{
    Change, Contested, Context, Custom, CustomStrategy, DeletedRecord, DeviceTable, FieldRule, Granularity,
    OnDelete, Op, Order, Policy, Promises, Record, Rights, Strategy, Verdict, apply,
};
use driftline_model::{DeviceNo, Hlc, Intents, Object, ObjectBuilder, Seq};
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
        let (devices, rights) = (&self.devices, Rights::default());
        apply(record, change, &self.policy, &Context { next, received, latest, devices, rights })
    }

    fn record(&self, before: Option<&Record>, change: &Change) -> Record {
        self.apply(before, change).record.expect("the change has an effect")
    }

    /// A record that Ada created as version 1 and edited as version 2.
    fn edited(&self, created: Object, edited: Object) -> Record {
        let record = self.record(None, &change(Op::Create, ADA, 1, 0, created));
        self.record(Some(&record), &change(Op::Patch, ADA, 2, 1, edited))
    }
}

fn change(op: Op, device: DeviceNo, n: u64, base: u64, fields: Object) -> Change {
    let hlc = Some(Hlc::new(1_000 + n, 0));
    Change { op, base: Seq::new(base), fields, intents: None, hlc, device, n }
}

fn object<N: AsRef<str>>(members: impl IntoIterator<Item = (N, impl AsRef<str>)>) -> Object {
    let mut built = ObjectBuilder::with_capacity(256, 8);
    for (name, value) in members {
        built.push(name.as_ref(), value.as_ref());
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

    /// What a field holds, and how it is touched.
    #[derive(Clone, Copy)]
    enum Field {
        Plain,
        Max,
        Counter,
        Set,
        List,
        Ordered,
    }

    impl Field {
        fn rule(self) -> FieldRule {
            let values = ["\"closed\"", "\"open\"", "\"in_progress\"", "\"escalated\""];
            match self {
                Self::Plain => FieldRule::Lww,
                Self::Max => FieldRule::Max,
                Self::Counter => FieldRule::Counter,
                Self::Set => FieldRule::Set,
                Self::List => FieldRule::Append,
                Self::Ordered => {
                    FieldRule::Ordered(Order { values: values.map(Box::from).to_vec(), urgent: Some(3) })
                }
            }
        }

        /// Touches the field: by nobody, who creates it, by Ada or by Bob.
        fn touch(
            self,
            name: &str,
            by: Option<DeviceNo>,
            fields: &mut Vec<(String, String)>,
            intents: &mut Parts,
        ) {
            let who = by.map_or("0", |by| if by == ADA { "1" } else { "2" });
            let name = name.to_owned();
            match self {
                Self::Plain => fields.push((name, format!("\"as device {who} left it\""))),
                Self::Max => fields.push((name, format!("1{who}"))),
                Self::Counter => intents.increments.push((name.into(), 3)),
                Self::Set => intents.add.push((name, format!("[\"tag {who}\",\"tag 9\"]"))),
                Self::List => {
                    intents.add.push((name, format!("[{{\"id\":\"n{who}\",\"text\":\"a note\"}}]")));
                }
                Self::Ordered => {
                    let value = ["\"open\"", "\"in_progress\"", "\"escalated\""];
                    let at = by.map_or(0, |by| if by == ADA { 1 } else { 2 });
                    intents.previous.push((name.clone(), "\"open\"".to_owned()));
                    fields.push((name, value[at].to_owned()));
                }
            }
        }
    }

    #[derive(Default)]
    struct Parts {
        previous: Vec<(String, String)>,
        increments: Vec<(Box<str>, i64)>,
        add: Vec<(String, String)>,
    }

    /// A change that touches the named fields, each after its kind; the kinds take turns.
    fn touching(
        op: Op,
        (device, n, base): (DeviceNo, u64, u64),
        names: &[String],
        kinds: &[Field],
    ) -> Change {
        let (mut fields, mut parts) = (Vec::new(), Parts::default());
        for name in names {
            let at: usize = name["field_".len()..].parse().expect("a number");
            let by = (op != Op::Create).then_some(device);
            kinds[at % kinds.len()].touch(name, by, &mut fields, &mut parts);
        }
        let intents = Intents {
            previous: object(parts.previous),
            increments: parts.increments,
            add: object(parts.add),
            ..Intents::default()
        };
        let intents = (!intents.is_empty()).then(|| Box::new(intents));
        Change { intents, ..change(op, device, n, base, object(fields)) }
    }

    /// Records that Ada edited, each with a change of Bob: both touch a fifth of the fields, the same ones in a conflict
    /// and others otherwise.
    fn cases(world: &World, kinds: &[Field], (fields, percent): (usize, usize)) -> Vec<(Record, Change)> {
        let names: Vec<String> = (0..fields).map(|at| format!("field_{at:03}")).collect();
        let edited = fields / 5;
        let created = world.record(None, &touching(Op::Create, (ADA, 1, 0), &names, kinds));
        let record = world.record(Some(&created), &touching(Op::Patch, (ADA, 2, 1), &names[..edited], kinds));
        let case = |at: usize| {
            let conflicts = at * percent / CASES != (at + 1) * percent / CASES;
            let from = if conflicts { 0 } else { edited };
            let change = touching(Op::Patch, (BOB, 3, 1), &names[from..from + edited], kinds);
            (record.clone(), change)
        };
        (0..CASES).map(case).collect()
    }

    fn run(bencher: Bencher<'_, '_>, strategy: Strategy, kinds: &[Field], case: (usize, usize)) {
        let world = World::new(Policy { strategy, version: 0 });
        let cases = cases(&world, kinds, case);
        let conflicts = cases.iter().filter(|(record, change)| world.apply(Some(record), change).conflict);
        assert_eq!(conflicts.count(), case.1);
        bencher.counter(ItemsCount::new(CASES)).bench(|| {
            for (record, change) in black_box(&cases) {
                black_box(world.apply(Some(record), change));
            }
        });
    }

    /// The rules of as many fields.
    fn rules(kinds: &[Field], fields: usize) -> Vec<(Box<str>, FieldRule)> {
        let rule = |at: usize| (format!("field_{at:03}").into(), kinds[at % kinds.len()].rule());
        (0..fields).map(rule).collect()
    }

    #[divan::bench(args = every_size_and_share())]
    fn client_wins(bencher: Bencher<'_, '_>, case: (usize, usize)) {
        let (granularity, deleted) = (Granularity::Field, DeletedRecord::Restored);
        run(bencher, Strategy::ClientWins { granularity, deleted }, &[Field::Plain], case);
    }

    #[divan::bench(args = every_size_and_share())]
    fn server_wins(bencher: Bencher<'_, '_>, case: (usize, usize)) {
        run(bencher, Strategy::ServerWins { granularity: Granularity::Field }, &[Field::Plain], case);
    }

    #[divan::bench(args = every_size_and_share())]
    fn most_recent_wins(bencher: Bencher<'_, '_>, case: (usize, usize)) {
        run(bencher, Strategy::MostRecentWins, &[Field::Plain], case);
    }

    #[divan::bench(args = every_size_and_share())]
    fn field_merge(bencher: Bencher<'_, '_>, case: (usize, usize)) {
        run(bencher, Policy::field_merge().strategy, &[Field::Plain], case);
    }

    /// Largest numbers, counters, sets, lists and plain values take turns.
    #[divan::bench(args = every_size_and_share())]
    fn field_merge_of_every_rule(bencher: Bencher<'_, '_>, case: (usize, usize)) {
        let kinds = [Field::Counter, Field::Set, Field::Max, Field::List, Field::Plain];
        let on_delete = OnDelete::MostRecent;
        run(bencher, Strategy::FieldMerge { fields: rules(&kinds, case.0), on_delete }, &kinds, case);
    }

    /// Every fifth field is ordered, another one is a set.
    #[divan::bench(args = every_size_and_share())]
    fn preserve_escalation(bencher: Bencher<'_, '_>, case: (usize, usize)) {
        let kinds = [Field::Ordered, Field::Set, Field::Plain, Field::Plain, Field::Plain];
        run(bencher, Strategy::PreserveEscalation { fields: rules(&kinds, case.0) }, &kinds, case);
    }

    #[divan::bench(args = every_size_and_share())]
    fn manual(bencher: Bencher<'_, '_>, case: (usize, usize)) {
        run(bencher, Strategy::Manual, &[Field::Plain], case);
    }

    /// Lets the longer value win.
    #[derive(Debug)]
    struct Longer;

    impl CustomStrategy for Longer {
        fn name(&self) -> &'static str {
            "longer"
        }

        fn promises(&self) -> Promises {
            Promises::default()
        }

        fn decide(&self, field: &Contested<'_>) -> Verdict {
            if field.client.len() > field.server.len() { Verdict::Client } else { Verdict::Server }
        }
    }

    #[divan::bench(args = every_size_and_share())]
    fn custom(bencher: Bencher<'_, '_>, case: (usize, usize)) {
        run(bencher, Strategy::Custom(Custom(Arc::new(Longer))), &[Field::Plain], case);
    }

    /// The input of the strategies of whole values, as JSON values: base, server and client.
    #[divan::bench(args = every_size_and_share())]
    fn plain_three_way(bencher: Bencher<'_, '_>, case: (usize, usize)) {
        let world = World::new(Policy::field_merge());
        let value = |object: &Object| serde_json::from_str::<Value>(object.as_str()).expect("JSON");
        let names: Vec<String> = (0..case.0).map(|at| format!("field_{at:03}")).collect();
        let base = value(&touching(Op::Create, (ADA, 1, 0), &names, &[Field::Plain]).fields);
        let sides = |(record, change): &(Record, Change)| {
            let mut client = base.clone();
            for (name, edited) in change.fields.iter() {
                client[name] = serde_json::from_str(edited).expect("JSON");
            }
            (value(&record.fields), client)
        };
        let cases: Vec<_> = cases(&world, &[Field::Plain], case).iter().map(sides).collect();
        let merged = |(server, client): &(Value, Value)| three_way::merge(&base, server.clone(), client);
        assert_eq!(cases.iter().filter(|case| !merged(case).lost.is_empty()).count(), case.1);
        bencher.counter(ItemsCount::new(CASES)).bench(|| {
            for case in black_box(&cases) {
                black_box(merged(case));
            }
        });
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
                life: loaded.life.clone(),
                states: loaded.states.clone(),
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

    pub(super) struct Merged {
        value: Value,
        pub(super) lost: Vec<(String, Value)>,
    }

    /// A plain three-way merge: a side that changed a field against the base wins it; the client wins where both did.
    pub(super) fn merge(base: &Value, mut server: Value, client: &Value) -> Merged {
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
