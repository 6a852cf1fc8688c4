//! Both stores under writes that are made by hand, whatever the plan would make.
//!
//! A history of random writes goes into both; then everything that can be read must be the same, and what a plain model
//! says.

use std::collections::{BTreeMap, BTreeSet};

use driftline_conflict::{Assertion, FieldState, Life, Mark, Op, Parts, Record, ReviewReason};
use driftline_engine::{
    AuditQuery, AuditWrite, ConflictPlace, ConflictQuery, ConflictRow, ConflictStatus, ExitWrite, GroupState,
    Head, Left, Only, Page, PageQuery, Place, Planned, Row, RowKey, Store, StoreError, SumQuery, SumWrite,
};
use driftline_model::{ConflictId, Epoch, Hlc, KindName, Limits, Object, RecordId, ScopeName, Seq, TenantNo};
use driftline_protocol::{ItemCode, Resolution, row_sum};
use driftline_testkit::{Author, Rng, World, block_on};

use crate::{MemoryStore, SqliteOptions, SqliteStore};

/// A store that takes writes made by hand.
trait Hand: Store {
    fn write(&self, planned: Planned, state: GroupState, now_ms: u64) -> Result<(), StoreError>;
}

impl Hand for MemoryStore {
    fn write(&self, planned: Planned, state: GroupState, now_ms: u64) -> Result<(), StoreError> {
        self.write_planned(planned.writes, state, now_ms);
        Ok(())
    }
}

impl Hand for SqliteStore {
    fn write(&self, planned: Planned, state: GroupState, now_ms: u64) -> Result<(), StoreError> {
        block_on(self.write_planned(planned, state, now_ms))
    }
}

fn memory(world: &World) -> MemoryStore {
    let World { clock, random, listeners, .. } = world;
    let store = MemoryStore::new(clock.clone(), random.clone(), listeners.clone(), Limits::default());
    // The numbers of devices begin at one in the other store.
    let _ = Author::join(&store, "acme", "nobody", "none");
    store
}

fn sqlite(world: &World) -> SqliteStore {
    let World { clock, random, listeners, folder } = world;
    SqliteStore::open(SqliteOptions {
        file: folder.path().join("driftline.db"),
        clock: clock.clone(),
        random: random.clone(),
        listeners: listeners.clone(),
        fatal: Box::new(|reason| panic!("{reason}")),
        skew_ms_max: 60_000,
        record_bytes: 1 << 20,
        readers: 1,
    })
    .expect("the store opens")
}

const SCOPES: [&str; 5] = ["tenant", "owner:ada", "group:team:a", "group:team:b", "group:team:c"];
const KINDS: [&str; 3] = ["$conflicts", "car", "note"];

fn scope(name: &str) -> ScopeName {
    ScopeName::new(name).expect("a scope's name")
}

fn kind(name: &str) -> KindName {
    KindName::new(name).expect("a kind's name")
}

fn some_scope(rng: &mut Rng) -> ScopeName {
    scope(SCOPES[rng.place(SCOPES.len())])
}

fn some_kind(rng: &mut Rng) -> KindName {
    kind(KINDS[rng.place(KINDS.len())])
}

/// A random history, and what it comes to.
struct History {
    rng: Rng,
    tenant: TenantNo,
    devices: [Author; 2],
    head: Head,
    rows: BTreeMap<(KindName, RecordId), Row>,
    exits: BTreeMap<(ScopeName, KindName, RecordId), Seq>,
    conflicts: BTreeMap<ConflictId, ConflictRow>,
    now_ms: u64,
}

impl History {
    fn new(seed: u64, store: &impl Store) -> Self {
        let devices = [("ada", "phone"), ("bob", "tablet")]
            .map(|(user, device)| Author::join(store, "acme", user, device));
        let tenant = devices[0].tenant;
        let head = block_on(store.head(tenant)).expect("a head");
        Self {
            rng: Rng::new(seed),
            tenant,
            devices,
            head: Head { epoch: Epoch::new(0), ..head },
            rows: BTreeMap::new(),
            exits: BTreeMap::new(),
            conflicts: BTreeMap::new(),
            now_ms: World::BEGIN_MS,
        }
    }

    /// One commit group of random writes.
    fn step(&mut self) -> (Planned, GroupState) {
        self.now_ms += self.rng.below(1000);
        let (mut planned, mut state) = (Planned::default(), GroupState::default());
        for _ in 0..self.rng.between(1, 6) {
            let key = (
                some_kind(&mut self.rng),
                RecordId::new(&format!("x{}", self.rng.below(12))).expect("an id"),
            );
            self.change(key, &mut planned, &mut state);
        }
        if self.rng.percent(40) {
            self.review(&mut planned);
        }
        if self.rng.percent(40) {
            self.decide(&mut planned);
        }
        planned.writes.heads.push((self.tenant, self.head));
        (planned, state)
    }

    /// The first step: kinds get their numbers in the order of their names.
    fn begin(&mut self) -> (Planned, GroupState) {
        let (mut planned, mut state) = (Planned::default(), GroupState::default());
        for name in KINDS {
            self.change((kind(name), RecordId::new("x0").expect("an id")), &mut planned, &mut state);
        }
        planned.writes.heads.push((self.tenant, self.head));
        (planned, state)
    }

    fn mark(&mut self) -> Mark {
        let device = self.rng.pick(&self.devices).device;
        Mark { fv: self.head.seq, hlc: Hlc::new(self.now_ms, 0), device, n: self.rng.below(100) }
    }

    fn change(&mut self, key: (KindName, RecordId), planned: &mut Planned, state: &mut GroupState) {
        self.head.seq = self.head.seq.next();
        let before = self.rows.get(&key).cloned();
        let mark = self.mark();
        let moves = before.is_none() || self.rng.percent(40);
        let place =
            if moves { some_scope(&mut self.rng) } else { before.as_ref().expect("it exists").scope.clone() };
        let stays = before.as_ref().is_some_and(|row| row.scope == place);
        let body = "x".repeat(self.rng.place(40));
        let mut record =
            Record::created(Object::from_canonical(format!(r#"{{"a":"{body}"}}"#)).expect("canonical"), mark);
        let deleted = before.is_some() && self.rng.percent(25);
        record.del = deleted.then_some(mark);
        self.add_states(&mut record);
        let row = Row {
            kind: key.0.clone(),
            id: key.1.clone(),
            entered: if stays { before.as_ref().expect("it exists").entered } else { self.head.seq },
            scope: place,
            owner: before.as_ref().map_or("ada".into(), |row| row.owner.clone()),
            schema_version: 1,
            deleted,
            record,
        };
        self.account(before.as_ref(), &row, planned);
        let row_key = RowKey { tenant: self.tenant, kind: key.0.clone(), id: key.1.clone() };
        if state.rows.insert(row_key.clone(), Some(row.clone())).is_none() {
            planned.writes.rows.push(row_key);
        }
        self.rows.insert(key, row);
    }

    fn add_states(&mut self, record: &mut Record) {
        record.life = match self.rng.below(4) {
            0 => Life::Urgent,
            1 => Life::Writes(vec![self.mark(), self.mark()]),
            _ => Life::Clocks,
        };
        if self.rng.percent(50) {
            let assertion =
                Assertion { value: "\"open\"".into(), mark: self.mark(), covered: self.rng.percent(50) };
            let parts = [
                Parts::Set(vec![vec![self.mark()], vec![]]),
                Parts::Ordered(vec![assertion]),
                Parts::Counter,
            ];
            let state =
                FieldState { others: Seq::new(self.rng.below(9)), parts: self.rng.pick(&parts).clone() };
            record.states = vec![("a".into(), state)];
        }
    }

    /// Writes what a change means for scopes.
    fn account(&mut self, before: Option<&Row>, row: &Row, planned: &mut Planned) {
        let sums = &mut planned.writes.sums;
        let add = |row: &Row, sign: i64| {
            let hash = row_sum(&row.kind, &row.id, row.record.version);
            let sum = if sign > 0 { hash } else { hash.wrapping_neg() };
            SumWrite {
                tenant: self.tenant,
                scope: row.scope.clone(),
                kind: row.kind.clone(),
                count: sign,
                sum,
            }
        };
        sums.extend(before.filter(|row| !row.deleted).map(|row| add(row, -1)));
        sums.extend(Some(row).filter(|row| !row.deleted).map(|row| add(row, 1)));
        let Some(before) = before.filter(|before| before.scope != row.scope) else { return };
        for (of, seq) in [(before, Some(row.record.version)), (row, None)] {
            let key = (of.scope.clone(), row.kind.clone(), row.id.clone());
            let (scope, kind, id) = key.clone();
            match seq {
                Some(seq) => drop(self.exits.insert(key, seq)),
                None => drop(self.exits.remove(&key)),
            }
            planned.writes.exits.push(ExitWrite { tenant: self.tenant, scope, kind, id, seq });
        }
    }

    /// Opens a conflict, or writes one again.
    fn review(&mut self, planned: &mut Planned) {
        self.head.seq = self.head.seq.next();
        let conflict_id = ConflictId::new(&format!("c{}", self.rng.below(15))).expect("a name");
        let known = self.conflicts.get(&conflict_id).cloned();
        let author = self.rng.pick(&self.devices).clone();
        let device_key = [("ada", "phone"), ("bob", "tablet")]
            .into_iter()
            .zip(&self.devices)
            .find(|(_, known)| known.device == author.device)
            .map(|((user, device), _)| format!("{user}\u{1}{device}"));
        let mut row = known.clone().unwrap_or_else(|| ConflictRow {
            conflict_id: conflict_id.clone(),
            kind: kind(KINDS[self.rng.place(2) + 1]),
            id: RecordId::new(&format!("x{}", self.rng.below(4))).expect("an id"),
            scope: some_scope(&mut self.rng),
            device: author.device,
            device_key: driftline_model::DeviceKey::from_text(&device_key.expect("a known device")),
            op_id: self.rng.percent(50).then(|| "op-1".parse().expect("a name")),
            n: self.rng.below(50),
            op: *self.rng.pick(&[Op::Create, Op::Patch, Op::Delete, Op::Restore]),
            reason: *self.rng.pick(&ReviewReason::ALL),
            status: ConflictStatus::Open,
            fields: vec![],
            base_version: Seq::new(self.rng.below(9)),
            base: Object::empty(),
            client: Object::from_canonical(r#"{"a":1,"é\n":[2]}"#.to_owned()).expect("canonical"),
            server: Object::empty(),
            version: Seq::ZERO,
            policy_version: self.rng.below(5),
            opened_ms: self.now_ms / 1000 * 1000,
            seq: Seq::ZERO,
        });
        row.seq = self.head.seq;
        row.version = Seq::new(self.rng.below(100));
        row.scope = some_scope(&mut self.rng);
        row.fields = ["a", "b\\\"", "é\\n"].into_iter().take(self.rng.place(4)).map(Box::from).collect();
        if known.is_some() && self.rng.percent(60) {
            let resolution = *self.rng.pick(&[Resolution::Client, Resolution::Server, Resolution::Merged]);
            row.status = ConflictStatus::Resolved { resolution, by: "eve".into(), at_ms: self.now_ms };
        }
        self.conflicts.insert(conflict_id, row.clone());
        planned.writes.conflicts.push((self.tenant, row));
    }

    /// Writes accounts of decisions and remembers an answer.
    fn decide(&mut self, planned: &mut Planned) {
        let author = self.rng.pick(&self.devices).clone();
        for _ in 0..self.rng.between(1, 3) {
            planned.writes.audits.push(AuditWrite {
                tenant: self.tenant,
                kind: some_kind(&mut self.rng),
                id: RecordId::new(&format!("x{}", self.rng.below(4))).expect("an id"),
                seq: self.head.seq,
                device: author.device,
                user: author.user.to_string().into(),
                op_id: self.rng.percent(50).then(|| "op-2".parse().expect("a name")),
                n: self.rng.below(100),
                code: *self.rng.pick(ItemCode::ALL),
                strategy: *self.rng.pick(&["manual", "field_merge"]),
                policy_version: self.rng.below(4),
                detail: "{}".to_owned(),
                correlation: "test".into(),
            });
        }
    }

    fn scopes(&mut self, chance: u64) -> Vec<ScopeName> {
        SCOPES.into_iter().filter(|_| self.rng.percent(chance)).map(scope).collect()
    }

    fn kinds(&mut self, chance: u64) -> Vec<KindName> {
        KINDS.into_iter().chain(["unheard_of"]).filter(|_| self.rng.percent(chance)).map(kind).collect()
    }

    fn id(&mut self) -> Option<RecordId> {
        self.rng.percent(60).then(|| RecordId::new(&format!("x{}", self.rng.below(13))).expect("an id"))
    }

    fn query(&mut self) -> PageQuery {
        let after = Seq::new(self.rng.below(self.head.seq.number() + 1));
        let place = match self.rng.below(5) {
            0 => Place::After(Seq::ZERO),
            1 => Place::After(after),
            2 => Place::Key {
                after: None,
                only: if self.rng.percent(50) {
                    Only::All
                } else {
                    Only::Some { kinds: self.kinds(30), scopes: self.scopes(30) }
                },
            },
            3 => Place::Lost { after: None, lost: self.scopes(50) },
            _ => Place::Range {
                kind: some_kind(&mut self.rng),
                scope: some_scope(&mut self.rng),
                after: self.id(),
                until: self.id(),
            },
        };
        PageQuery {
            tenant: self.tenant,
            scopes: self.scopes(60),
            kinds: if self.rng.percent(60) { Vec::new() } else { self.kinds(60) },
            place,
            rows: *self.rng.pick(&[1, 2, 3, 7, 1000]),
            bytes: *self.rng.pick(&[1, 30, 100, 1 << 20]),
            sums: self.rng.percent(50),
        }
    }

    /// What the sums of live rows are, counted anew.
    fn recount(&self) -> BTreeMap<(ScopeName, KindName), (u64, u64)> {
        let mut sums: BTreeMap<_, (u64, u64)> = BTreeMap::new();
        for row in self.rows.values().filter(|row| !row.deleted) {
            let (count, sum) = sums.entry((row.scope.clone(), row.kind.clone())).or_default();
            *count += 1;
            *sum = sum.wrapping_add(row_sum(&row.kind, &row.id, row.record.version));
        }
        sums
    }
}

/// Everything of a page but the epoch, which each store draws for itself.
fn shown(page: &Page) -> String {
    let Page { head, rows, left, more, sums } = page;
    format!("{} {more} {left:#?} {sums:#?} {rows:#?}", head.seq)
}

/// The place after a page.
fn next(query: &PageQuery, page: &Page) -> PageQuery {
    let mut next = query.clone();
    let last_row = page.rows.last().map(|row| (row.kind.clone(), row.id.clone()));
    let last_left = page.left.last().map(|left| (left.kind.clone(), left.id.clone()));
    match &mut next.place {
        Place::After(at) => {
            let rows = page.rows.iter().map(|row| row.record.version);
            *at = rows
                .chain(page.left.iter().map(|left| left.seq))
                .max()
                .expect("a page that is not the last holds something");
        }
        Place::Key { after, .. } => *after = last_row,
        Place::Lost { after, .. } => *after = last_left,
        Place::Range { after, .. } => *after = last_row.map(|(_, id)| id),
    }
    next
}

/// Reads to the end and gives everything that was told.
fn read(stores: (&impl Store, &impl Store), query: &PageQuery) -> (Vec<Row>, Vec<Left>) {
    let (mut rows, mut left) = (Vec::new(), Vec::new());
    let mut query = query.clone();
    loop {
        let page = block_on(stores.0.page(query.clone())).expect("a page");
        let other = block_on(stores.1.page(query.clone())).expect("a page");
        assert_eq!(shown(&page), shown(&other), "{query:#?}");
        assert!(page.rows.len() + page.left.len() <= query.rows, "a page keeps to its rows");
        let following = page.more.then(|| next(&query, &page));
        rows.extend(page.rows);
        left.extend(page.left);
        match following {
            Some(next) => query = next,
            None => return (rows, left),
        }
    }
}

/// What the model says a reader is told.
fn told(
    history: &History,
    query: &PageQuery,
) -> (BTreeSet<(KindName, RecordId)>, BTreeSet<(KindName, RecordId)>) {
    let wants = |kind: &KindName| query.kinds.is_empty() || query.kinds.contains(kind);
    let mine = |row: &&Row| query.scopes.contains(&row.scope) && wants(&row.kind);
    let here = |kind: &KindName, id: &RecordId| {
        history.rows.get(&(kind.clone(), id.clone())).is_some_and(|row| query.scopes.contains(&row.scope))
    };
    let key = |row: &Row| (row.kind.clone(), row.id.clone());
    let gone = |scopes: &[ScopeName], after: Seq| -> BTreeSet<_> {
        let exits = history.exits.iter().filter(|((scope, kind, id), seq)| {
            scopes.contains(scope) && wants(kind) && **seq > after && !here(kind, id)
        });
        exits.map(|((_, kind, id), _)| (kind.clone(), id.clone())).collect()
    };
    let rows = history.rows.values();
    match &query.place {
        Place::After(after) => (
            rows.filter(mine).filter(|row| row.record.version > *after).map(key).collect(),
            gone(&query.scopes, *after),
        ),
        Place::Key { only, .. } => {
            let wanted = |row: &&Row| match only {
                Only::All => true,
                Only::Some { kinds, scopes } => kinds.contains(&row.kind) || scopes.contains(&row.scope),
            };
            (rows.filter(mine).filter(|row| !row.deleted).filter(wanted).map(key).collect(), BTreeSet::new())
        }
        Place::Lost { lost, .. } => {
            let here = rows.filter(|row| {
                lost.contains(&row.scope)
                    && !query.scopes.contains(&row.scope)
                    && wants(&row.kind)
                    && !row.deleted
            });
            (BTreeSet::new(), here.map(key).chain(gone(lost, Seq::ZERO)).collect())
        }
        Place::Range { kind, scope, after, until } => {
            let within = |row: &&Row| {
                (&row.kind, &row.scope) == (kind, scope)
                    && after.as_ref().is_none_or(|after| row.id > *after)
                    && until.as_ref().is_none_or(|until| row.id <= *until)
            };
            (rows.filter(mine).filter(|row| !row.deleted).filter(within).map(key).collect(), BTreeSet::new())
        }
    }
}

fn check_pages(history: &mut History, stores: (&impl Store, &impl Store)) {
    for _ in 0..6 {
        let query = history.query();
        let (rows, left) = read(stores, &query);
        let (wanted, gone) = told(history, &query);
        let found: BTreeSet<_> = rows.iter().map(|row| (row.kind.clone(), row.id.clone())).collect();
        assert_eq!((rows.len(), &found), (wanted.len(), &wanted), "{query:#?}");
        let found: BTreeSet<_> = left.iter().map(|left| (left.kind.clone(), left.id.clone())).collect();
        assert_eq!(found, gone, "{query:#?}");
        for row in rows {
            assert_eq!(row, history.rows[&(row.kind.clone(), row.id.clone())]);
        }
    }
}

fn check_sums(history: &mut History, stores: (&impl Store, &impl Store)) {
    let query = PageQuery {
        tenant: history.tenant,
        scopes: SCOPES.map(scope).to_vec(),
        kinds: Vec::new(),
        place: Place::After(history.head.seq),
        rows: 1,
        bytes: 1,
        sums: true,
    };
    let page = block_on(stores.1.page(query)).expect("a page");
    let found: BTreeMap<_, _> =
        page.sums.into_iter().map(|sum| ((sum.scope, sum.kind), (sum.count, sum.sum))).collect();
    assert_eq!(found, history.recount());
    for _ in 0..3 {
        let (after, until) = (history.id(), history.id());
        let query = SumQuery {
            tenant: history.tenant,
            kind: some_kind(&mut history.rng),
            scope: some_scope(&mut history.rng),
            after: after.clone(),
            until: until.clone(),
            parts: history.rng.place(6),
        };
        let (_, parts) = block_on(stores.0.sums(query.clone())).expect("sums");
        assert_eq!(block_on(stores.1.sums(query.clone())).expect("sums").1, parts, "{query:?}");
        assert_eq!(
            (&parts[0].after, &parts[parts.len() - 1].until),
            (&after, &until),
            "the ends are the range's"
        );
        assert!(
            parts.windows(2).all(|pair| pair[0].until.is_some() && pair[0].until == pair[1].after),
            "{parts:?}"
        );
        let within = history.rows.values().filter(|row| {
            !row.deleted
                && (&row.kind, &row.scope) == (&query.kind, &query.scope)
                && after.as_ref().is_none_or(|after| row.id > *after)
                && until.as_ref().is_none_or(|until| row.id <= *until)
        });
        let hashes: Vec<u64> = within.map(|row| row_sum(&row.kind, &row.id, row.record.version)).collect();
        assert_eq!(parts.iter().map(|part| part.count).sum::<u64>(), hashes.len() as u64);
        let total = |sums: &mut dyn Iterator<Item = u64>| sums.fold(0, u64::wrapping_add);
        assert_eq!(total(&mut parts.iter().map(|part| part.sum)), total(&mut hashes.iter().copied()));
    }
}

fn check_lists(history: &mut History, stores: (&impl Store, &impl Store)) {
    for (name, row) in &history.conflicts {
        for found in [
            block_on(stores.0.conflict(history.tenant, name)),
            block_on(stores.1.conflict(history.tenant, name)),
        ] {
            assert_eq!(found.expect("a read").as_ref(), Some(row));
        }
    }
    for _ in 0..4 {
        let mut query = ConflictQuery {
            scopes: history.scopes(70),
            kinds: if history.rng.percent(60) { Vec::new() } else { history.kinds(60) },
            id: if history.rng.percent(30) { history.id() } else { None },
            device: history
                .rng
                .percent(30)
                .then(|| (*history.rng.pick(&["phone", "tablet", "none"])).to_owned()),
            open: *history.rng.pick(&[None, Some(true), Some(false)]),
            after: None,
            rows: *history.rng.pick(&[1, 3, 100]),
        };
        loop {
            let found = block_on(stores.0.conflicts(history.tenant, query.clone())).expect("a list");
            assert_eq!(
                block_on(stores.1.conflicts(history.tenant, query.clone())).expect("a list"),
                found,
                "{query:?}"
            );
            let Some(last) = found.last().filter(|_| found.len() == query.rows) else { break };
            query.after =
                Some(ConflictPlace { opened_ms: last.opened_ms, conflict_id: last.conflict_id.clone() });
        }
    }
    for _ in 0..4 {
        let mut query = AuditQuery {
            scopes: history.scopes(70),
            kinds: if history.rng.percent(60) { Vec::new() } else { history.kinds(60) },
            id: if history.rng.percent(30) { history.id() } else { None },
            device: history
                .rng
                .percent(30)
                .then(|| (*history.rng.pick(&["phone", "tablet", "none"])).to_owned()),
            strategy: history.rng.percent(30).then(|| "manual".to_owned()),
            code: history.rng.percent(20).then(|| *history.rng.pick(ItemCode::ALL)),
            from_ms: history.rng.percent(30).then(|| history.now_ms - history.rng.below(9000)),
            until_ms: history.rng.percent(30).then(|| history.now_ms - history.rng.below(9000)),
            before: None,
            rows: *history.rng.pick(&[1, 3, 100]),
        };
        loop {
            let found = block_on(stores.0.audit(history.tenant, query.clone())).expect("a list");
            assert_eq!(
                block_on(stores.1.audit(history.tenant, query.clone())).expect("a list"),
                found,
                "{query:?}"
            );
            let Some(last) = found.last().filter(|_| found.len() == query.rows) else { break };
            query.before = Some(last.row.audit_id);
        }
    }
}

#[test]
fn the_stores_read_alike_and_as_the_model_says() {
    for seed in 0..12 {
        println!("seed {seed}");
        let worlds = [World::new(seed), World::new(seed)];
        let stores = (memory(&worlds[0]), sqlite(&worlds[1]));
        let mut histories = [History::new(seed, &stores.0), History::new(seed, &stores.1)];
        assert_eq!(histories[0].devices[1].device, histories[1].devices[1].device);
        for step in 0..30 {
            let [mine, theirs] = &mut histories;
            let (planned, state) = if step == 0 { mine.begin() } else { mine.step() };
            stores.0.write(planned, state, mine.now_ms).expect("a write");
            let (planned, state) = if step == 0 { theirs.begin() } else { theirs.step() };
            stores.1.write(planned, state, theirs.now_ms).expect("a write");
        }
        let history = &mut histories[0];
        assert!(!history.exits.is_empty() && !history.conflicts.is_empty());
        check_pages(history, (&stores.0, &stores.1));
        check_sums(history, (&stores.0, &stores.1));
        check_lists(history, (&stores.0, &stores.1));
    }
}
