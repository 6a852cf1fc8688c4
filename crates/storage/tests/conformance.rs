//! All stores keep the laws of every store, and answer the same to the same.

mod support;

use std::sync::Arc;

use driftline_conflict::{FieldRule, Life, Mark, OnDelete, Order, Parts, Policy, Record, Strategy};
use driftline_engine::{
    AuditEntry, AuditQuery, AuditRow, ConflictQuery, ConflictRow, Only, PageQuery, Place, Retention, Row,
    Store, SubmissionResult,
};
use driftline_model::{DeviceNo, Hlc, Intents, KindName, ScopeName, Seq};
use driftline_testkit::{
    Author, Draft, Rng, World, block_on, conformance, create, delete, object, patch, refused, restore,
};

#[test]
fn the_memory_store_conforms() {
    conformance::run_all(support::memory);
}

#[test]
fn the_sqlite_store_conforms() {
    conformance::run_all(support::sqlite);
}

#[test]
fn the_postgres_store_conforms() {
    conformance::run_all(support::postgres);
}

#[test]
fn the_memory_store_leases_keys() {
    conformance::run_leases(support::memory);
}

#[test]
fn the_sqlite_store_leases_keys() {
    conformance::run_leases(support::sqlite);
}

#[test]
fn the_postgres_store_leases_keys() {
    conformance::run_leases(support::postgres);
}

#[test]
fn the_sqlite_store_is_durable() {
    conformance::run_durable(support::sqlite);
}

#[test]
fn the_postgres_store_is_durable() {
    conformance::run_durable(support::postgres);
}

/// One store with its devices.
struct Side<S> {
    store: S,
    world: World,
    authors: Vec<Author>,
}

impl<S: Store> Side<S> {
    fn new(open: impl Fn(&World) -> S) -> Self {
        let world = World::new(1);
        let store = open(&world);
        let names = [("ada", "phone"), ("ada", "tablet"), ("bob", "phone")];
        let authors = names.map(|(user, device)| Author::join(&store, "acme", user, device)).to_vec();
        Self { store, world, authors }
    }

    fn push(&self, step: &Step) -> Vec<SubmissionResult> {
        self.world.clock.set(step.now_ms);
        let mut batch = self.authors[step.author].batch(step.drafts.clone());
        batch.scopes.extend(TEAMS.map(team));
        batch.acked_n = step.acked_n;
        block_on(self.store.commit(batch)).expect("a commit").results
    }

    /// What a reader sees of the store: pages of the log, then of the keys of each kind.
    fn contents(&self, step: &Step) -> Vec<String> {
        let author = &self.authors[step.author];
        let mut places = vec![Place::After(Seq::new(step.now_ms % 50)), Place::After(Seq::ZERO)];
        places.push(Place::Key { after: None, only: Only::All });
        let mut seen = vec![format!("{:?}", block_on(self.store.head(author.tenant)).expect("a head"))];
        for place in places {
            let query = PageQuery {
                tenant: author.tenant,
                scopes: author.scopes().into_iter().chain([team("a"), team("b")]).collect(),
                kinds: step.kinds.clone(),
                place,
                rows: 10_000,
                bytes: 1 << 30,
                sums: true,
            };
            let page = block_on(self.store.page(query)).expect("a page");
            seen.push(format!("{} {} {:?} {:?}", page.head.seq, page.more, page.left, page.sums));
            seen.extend(page.rows.iter().map(|row| self.shown(row)));
        }
        seen.extend(self.reviews(author));
        seen
    }

    /// Every conflict and the latest decisions, without the store's own numbers.
    fn reviews(&self, author: &Author) -> Vec<String> {
        let scopes: Vec<ScopeName> = TEAMS.map(team).into_iter().chain(author.scopes()).collect();
        let query = ConflictQuery {
            scopes: scopes.clone(),
            kinds: Vec::new(),
            id: None,
            device: None,
            open: None,
            after: None,
            rows: 1000,
        };
        let conflicts = block_on(self.store.conflicts(author.tenant, query)).expect("a list");
        let query = AuditQuery { scopes, rows: 20, ..AuditQuery::default() };
        let audit = block_on(self.store.audit(author.tenant, query)).expect("a list");
        let zero = DeviceNo::new(0);
        let conflicts = conflicts.into_iter().map(|row| format!("{:?}", ConflictRow { device: zero, ..row }));
        let audit = audit.into_iter().map(|entry| {
            let row = AuditRow { detail: self.without_numbers(&entry.row.detail), ..entry.row.clone() };
            format!("{:?}", AuditEntry { row, ..entry })
        });
        conflicts.chain(audit).collect()
    }

    /// An account without the numbers of devices.
    fn without_numbers(&self, detail: &str) -> String {
        let numbers = self.authors.iter().enumerate();
        numbers.fold(detail.to_owned(), |detail, (at, author)| {
            let number = |end| format!("\"device_no\":{}{end}", author.device);
            detail
                .replace(&number(","), &format!("\"device {at}\","))
                .replace(&number("}"), &format!("\"device {at}\"}}"))
        })
    }

    /// A row without the store's own numbers.
    fn shown(&self, row: &Row) -> String {
        let device = |number| self.authors.iter().position(|author| author.device == number);
        let mut record = row.record.clone();
        let shown = |mark: &mut Mark| {
            let at = device(mark.device).expect("a known device");
            mark.device = DeviceNo::new(u32::try_from(at).expect("few devices"));
        };
        marks_of(&mut record).into_iter().for_each(shown);
        let Row { kind, id, scope, entered, owner, schema_version, deleted, .. } = row;
        format!("{kind} {id} {scope} {entered} {owner} {schema_version} {deleted} {record:?}")
    }
}

/// Every mark of a record, to be changed.
fn marks_of(record: &mut Record) -> Vec<&mut Mark> {
    let mut marks = vec![&mut record.default_mark, &mut record.live];
    marks.extend(record.del.as_mut());
    marks.extend(record.marks.iter_mut().map(|(_, mark)| mark));
    match &mut record.life {
        Life::Clocks | Life::Urgent => {}
        Life::Writes(unseen) => marks.extend(unseen),
        Life::Deletes(standing) => marks.extend(standing),
    }
    for (_, state) in &mut record.states {
        match &mut state.parts {
            Parts::Counter => {}
            Parts::Set(elements) => marks.extend(elements.iter_mut().flatten()),
            Parts::List(appended) => marks.extend(appended),
            Parts::Ordered(assertions) => {
                marks.extend(assertions.iter_mut().map(|assertion| &mut assertion.mark));
            }
        }
    }
    marks
}

const TEAMS: [&str; 3] = ["a", "b", "c"];

fn team(name: &str) -> ScopeName {
    ScopeName::group("team", name).expect("a scope's name")
}

/// A policy of every sort, one after the other.
fn policy_of(seed: u64) -> Arc<Policy> {
    let rule = |name: &str, rule| (Box::from(name), rule);
    let order = Order { values: vec!["1".into(), "2".into(), "3".into()], urgent: Some(2) };
    let merges = vec![
        rule("a", FieldRule::Counter),
        rule("b", FieldRule::Set),
        rule("c", FieldRule::Append),
        rule("d", FieldRule::Manual),
    ];
    let strategy = match seed % 5 {
        0 => Strategy::Manual,
        1 => Strategy::FieldMerge { fields: merges, on_delete: OnDelete::UpdateWins },
        2 => Strategy::FieldMerge { fields: merges, on_delete: OnDelete::DeleteWins },
        3 => Strategy::PreserveEscalation { fields: vec![rule("a", FieldRule::Ordered(order))] },
        _ => Strategy::MostRecentWins,
    };
    Arc::new(Policy { strategy, version: seed })
}

/// A change of a record that belongs to a team, with intents.
fn ticket(rng: &mut Rng, seed: u64, step: u64, now_ms: u64) -> Draft {
    let id = format!("t{}", rng.below(5));
    let base = rng.below(step * 3 + 2);
    let team = *rng.pick(&TEAMS);
    let ordered = !matches!(seed % 5, 1 | 2);
    let fields = if ordered {
        format!(r#"{{"a":{},"d":{},"team":"{team}"}}"#, rng.between(1, 3), rng.below(3))
    } else {
        format!(r#"{{"d":{},"team":"{team}"}}"#, rng.below(3))
    };
    let draft = match rng.below(8) {
        0 | 1 => create(&id, &fields),
        2 => delete(&id, base),
        3 => restore(&id, base, &fields),
        _ => patch(&id, base, &fields),
    };
    let mut intents = Intents::default();
    if ordered {
        intents.previous = object(&format!(r#"{{"a":{}}}"#, rng.between(1, 3)));
    } else {
        intents.increments = vec![("a".into(), 1)];
        intents.add = object(&format!(r#"{{"b":[{}],"c":[{{"id":"{}"}}]}}"#, rng.below(4), rng.below(9)));
    }
    let draft = draft.kind("ticket").grouped("team").policy(&policy_of(seed)).intents(intents);
    draft.hlc(Hlc::new(now_ms - 40_000 + rng.below(80_000), 0))
}

/// A batch of one of the devices.
struct Step {
    kinds: Vec<KindName>,
    author: usize,
    now_ms: u64,
    acked_n: Option<u64>,
    drafts: Vec<Draft>,
}

fn draft(rng: &mut Rng, step: u64, now_ms: u64) -> Draft {
    let id = format!("x{}", rng.below(12));
    let base = rng.below(step * 2 + 2);
    let fields = format!(r#"{{"{}":{}}}"#, rng.pick(&["a", "b", "c"]), rng.below(5));
    let draft = match rng.below(12) {
        0..3 => create(&id, &fields),
        3 => delete(&id, base),
        4 => restore(&id, base, &fields),
        5 => refused(&id, driftline_protocol::ItemCode::Invalid),
        _ => patch(&id, base, &fields),
    };
    let draft = if rng.percent(30) { draft.owned() } else { draft };
    let draft = if rng.percent(20) { draft.group("g") } else { draft };
    let draft = if rng.percent(60) { draft.n(rng.between(1, step * 3 + 1)) } else { draft };
    let draft = if rng.percent(40) { draft.op_id(&format!("op{}", rng.below(60))) } else { draft };
    if rng.percent(60) { draft.hlc(Hlc::new(now_ms - 40_000 + rng.below(120_000), 0)) } else { draft }
}

fn some_draft(rng: &mut Rng, seed: u64, step: u64, now_ms: u64) -> Draft {
    if rng.percent(50) { ticket(rng, seed, step, now_ms) } else { draft(rng, step, now_ms) }
}

#[test]
fn the_stores_cannot_be_told_apart() {
    let signs = [
        "Set([[",
        "List([",
        "Ordered([",
        "Writes([",
        "Deletes([",
        "Urgent",
        "Left {",
        "status: Open",
        "ScopeSum {",
    ];
    let mut bites = signs.map(|sign| (sign, 0));
    for seed in 0..20 {
        println!("seed {seed}");
        let (memory, sqlite) = (Side::new(support::memory), Side::new(support::sqlite));
        let postgres = Side::new(support::postgres);
        // It draws other numbers before it draws the epoch, which names conflicts.
        let epoch = block_on(memory.store.head(memory.authors[0].tenant)).expect("a head").epoch;
        support::database(&postgres.world).sql(&format!("UPDATE stream_head SET epoch = '{epoch}'"));
        let mut rng = Rng::new(seed);
        let mut now_ms = World::BEGIN_MS;
        for at in 1..40 {
            now_ms += rng.below(40_000);
            let size = if rng.percent(5) { 120 } else { rng.between(1, 5) };
            let kinds: [KindName; 3] =
                ["note", "ticket", "$conflicts"].map(|kind| kind.parse().expect("a kind"));
            let step = Step {
                kinds: vec![kinds[rng.place(3)].clone()],
                author: rng.place(3),
                now_ms,
                acked_n: rng.percent(10).then(|| rng.below(at)),
                drafts: (0..size).map(|_| some_draft(&mut rng, seed, at, now_ms)).collect(),
            };
            let results = memory.push(&step);
            assert_eq!(results, sqlite.push(&step), "seed {seed}, step {at}");
            assert_eq!(results, postgres.push(&step), "seed {seed}, step {at}");
            if rng.percent(10) {
                let later = now_ms + rng.below(100) * 86_400_000;
                let pruned = block_on(memory.store.prune(later, &Retention::default()));
                assert_eq!(
                    pruned,
                    block_on(sqlite.store.prune(later, &Retention::default())),
                    "seed {seed}, step {at}"
                );
                assert_eq!(
                    pruned,
                    block_on(postgres.store.prune(later, &Retention::default())),
                    "seed {seed}, step {at}"
                );
            }
            let mine = memory.contents(&step);
            assert_eq!(mine, sqlite.contents(&step), "seed {seed}, step {at}");
            assert_eq!(mine, postgres.contents(&step), "seed {seed}, step {at}");
            for (sign, count) in &mut bites {
                *count += mine.iter().filter(|line| line.contains(*sign)).count();
            }
        }
    }
    println!("{bites:?}");
    assert!(bites.iter().all(|(_, count)| *count > 10), "the histories bite: {bites:?}");
}
