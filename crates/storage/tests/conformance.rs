//! Both stores keep the laws of every store, and answer the same to the same.

mod support;

use driftline_engine::{Only, PageQuery, Place, Row, Store, SubmissionResult};
use driftline_model::{Hlc, Seq};
use driftline_testkit::{
    Author, Draft, Rng, World, block_on, conformance, create, delete, patch, refused, restore,
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
fn the_sqlite_store_is_durable() {
    conformance::run_durable(support::sqlite);
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
                scopes: author.scopes(),
                kinds: vec!["note".parse().expect("a kind")],
                place,
                rows: 10_000,
                bytes: 1 << 30,
                sums: false,
            };
            let page = block_on(self.store.page(query)).expect("a page");
            seen.push(format!("{} {}", page.head.seq, page.more));
            seen.extend(page.rows.iter().map(|row| self.shown(row)));
        }
        seen
    }

    /// A row without the store's own numbers.
    fn shown(&self, row: &Row) -> String {
        let device = |number| self.authors.iter().position(|author| author.device == number);
        let marks: Vec<_> = row
            .record
            .all_marks()
            .map(|mark| (mark.fv, mark.hlc, device(mark.device).expect("a known device"), mark.n))
            .collect();
        let Row { kind, id, scope, entered, owner, schema_version, deleted, record } = row;
        format!(
            "{kind} {id} {scope} {entered} {owner} {schema_version} {deleted} {:?} {marks:?}",
            record.fields
        )
    }
}

/// A batch of one of the devices.
struct Step {
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

#[test]
fn the_stores_cannot_be_told_apart() {
    for seed in 0..20 {
        println!("seed {seed}");
        let (memory, sqlite) = (Side::new(support::memory), Side::new(support::sqlite));
        let mut rng = Rng::new(seed);
        let mut now_ms = World::BEGIN_MS;
        for at in 1..40 {
            now_ms += rng.below(40_000);
            let size = if rng.percent(5) { 120 } else { rng.between(1, 5) };
            let step = Step {
                author: rng.place(3),
                now_ms,
                acked_n: rng.percent(10).then(|| rng.below(at)),
                drafts: (0..size).map(|_| draft(&mut rng, at, now_ms)).collect(),
            };
            assert_eq!(memory.push(&step), sqlite.push(&step), "seed {seed}, step {at}");
            if rng.percent(10) {
                let later = now_ms + rng.below(100) * 86_400_000;
                let pruned = (block_on(memory.store.prune(later)), block_on(sqlite.store.prune(later)));
                assert_eq!(pruned.0, pruned.1, "seed {seed}, step {at}");
            }
            // Epochs are drawn in another order, so the heads are compared by everything else.
            let (mine, theirs) = (memory.contents(&step), sqlite.contents(&step));
            assert_eq!(mine[1..], theirs[1..], "seed {seed}, step {at}");
        }
    }
}
