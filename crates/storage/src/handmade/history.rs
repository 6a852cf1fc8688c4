//! A random history of writes, and what it comes to.

use std::collections::BTreeMap;

use driftline_conflict::{Assertion, FieldState, Life, Mark, Op, Parts, Record, ReviewReason, Winner};
use driftline_engine::{
    AuditWrite, ConflictRow, ConflictStatus, ExitWrite, GroupState, Head, Known, KnownMore, Only, PageQuery,
    Place, Planned, ResultWrite, Row, RowKey, Store, SumWrite,
};
use driftline_model::{
    ConflictId, DeviceKey, Epoch, Hlc, KindName, Object, RecordId, ScopeName, Seq, TenantNo,
};
use driftline_protocol::{ItemCode, Resolution, row_sum};
use driftline_testkit::{Author, Rng, World, block_on};

pub(super) const SCOPES: [&str; 5] = ["tenant", "owner:ada", "group:team:a", "group:team:b", "group:team:c"];
pub(super) const KINDS: [&str; 3] = ["$conflicts", "car", "note"];

pub(super) fn scope(name: &str) -> ScopeName {
    ScopeName::new(name).expect("a scope's name")
}

pub(super) fn kind(name: &str) -> KindName {
    KindName::new(name).expect("a kind's name")
}

pub(super) fn some_scope(rng: &mut Rng) -> ScopeName {
    scope(SCOPES[rng.place(SCOPES.len())])
}

pub(super) fn some_kind(rng: &mut Rng) -> KindName {
    kind(KINDS[rng.place(KINDS.len())])
}

/// A random history, and what it comes to.
pub(super) struct History {
    pub(super) rng: Rng,
    pub(super) tenant: TenantNo,
    pub(super) devices: [Author; 2],
    pub(super) head: Head,
    pub(super) rows: BTreeMap<(KindName, RecordId), Row>,
    pub(super) exits: BTreeMap<(ScopeName, KindName, RecordId), Seq>,
    pub(super) conflicts: BTreeMap<ConflictId, ConflictRow>,
    /// How many answers were remembered.
    pub(super) answers: u64,
    pub(super) now_ms: u64,
}

impl History {
    pub(super) fn new(seed: u64, store: &impl Store) -> Self {
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
            answers: 0,
            now_ms: World::BEGIN_MS,
        }
    }

    /// One commit group of random writes.
    pub(super) fn step(&mut self) -> (Planned, GroupState) {
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
        if self.rng.percent(40) {
            self.answer(&mut planned);
        }
        planned.writes.heads.push((self.tenant, self.head));
        (planned, state)
    }

    /// The first step: kinds get their numbers in the order of their names.
    pub(super) fn begin(&mut self) -> (Planned, GroupState) {
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
            device_key: DeviceKey::from_text(&device_key.expect("a known device")),
            op_id: self.rng.percent(50).then(|| "op-1".parse().expect("a name")),
            n: self.rng.below(50),
            op: *self.rng.pick(&[Op::Create, Op::Patch, Op::Delete, Op::Restore]),
            reason: *self.rng.pick(&ReviewReason::ALL),
            status: ConflictStatus::Open,
            fields: vec![],
            base_version: Seq::new(self.rng.below(9)),
            base: Object::empty(),
            client: Object::from_canonical(r#"{"a":1,"é\n":[2]}"#.to_owned()).expect("canonical"),
            client_ns: Object::from_canonical(r#"{"a":7,"é\n":9}"#.to_owned()).expect("canonical"),
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
                strategy: ["manual", "field_merge"][self.rng.place(2)],
                policy_version: self.rng.below(4),
                detail: "{}".to_owned(),
                correlation: "test".into(),
            });
        }
    }

    /// Remembers an answer of the first device.
    fn answer(&mut self, planned: &mut Planned) {
        self.answers += 1;
        let winner = *self.rng.pick(&[Winner::Client, Winner::Server, Winner::Merged, Winner::Held]);
        let more = KnownMore {
            winners: ["z", "a"]
                .into_iter()
                .take(self.rng.place(3))
                .map(|name| (name.into(), winner))
                .collect(),
            conflict_id: self.rng.percent(50).then(|| ConflictId::new("c1").expect("a name")),
        };
        let known = Known {
            op_id: self.rng.percent(50).then(|| format!("op-{}", self.answers).parse().expect("a name")),
            n: self.answers,
            hash: self.rng.next(),
            code: ItemCode::Merged,
            version: self.head.seq,
            more: self.rng.percent(70).then(|| Box::new(more)),
        };
        let (tenant, device) = (self.tenant, self.devices[0].device);
        planned.writes.results.push(ResultWrite { tenant, device, known });
    }

    pub(super) fn scopes(&mut self, chance: u64) -> Vec<ScopeName> {
        SCOPES.into_iter().filter(|_| self.rng.percent(chance)).map(scope).collect()
    }

    pub(super) fn kinds(&mut self, chance: u64) -> Vec<KindName> {
        KINDS.into_iter().chain(["unheard_of"]).filter(|_| self.rng.percent(chance)).map(kind).collect()
    }

    pub(super) fn id(&mut self) -> Option<RecordId> {
        self.rng.percent(60).then(|| RecordId::new(&format!("x{}", self.rng.below(13))).expect("an id"))
    }

    pub(super) fn query(&mut self) -> PageQuery {
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
    pub(super) fn recount(&self) -> BTreeMap<(ScopeName, KindName), (u64, u64)> {
        let mut sums: BTreeMap<_, (u64, u64)> = BTreeMap::new();
        for row in self.rows.values().filter(|row| !row.deleted) {
            let (count, sum) = sums.entry((row.scope.clone(), row.kind.clone())).or_default();
            *count += 1;
            *sum = sum.wrapping_add(row_sum(&row.kind, &row.id, row.record.version));
        }
        sums
    }
}
