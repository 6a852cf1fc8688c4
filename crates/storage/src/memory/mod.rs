//! A store in memory, for tests, simulations and embedding without a disk.

mod reads;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use driftline_conflict::DeviceOrder;
use driftline_engine::{
    AuditEntry, AuditQuery, AuditWrite, Clock, ConflictQuery, ConflictRow, DeviceState, GroupState, Head,
    History, Known, Listeners, Page, PageQuery, PartSum, PlanEnv, Random, Receipt, Row, RowKey,
    SessionProgress, Store, StoreError, StoredPolicy, Submission, SumQuery, Writes, plan,
};
use driftline_model::{
    ConflictId, DeviceKey, DeviceNo, Epoch, Hlc, KindName, Limits, OpId, RecordId, ScopeName, Seq, SyncId,
    TenantId, TenantNo,
};

/// The engine's store in memory. Every clone is the same store; nothing outlives the last one.
#[derive(Clone)]
pub struct MemoryStore {
    /// Everything. The lock is held for one operation, none of which waits.
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Clock>,
    listeners: Arc<dyn Listeners>,
    cursor_secret: [u8; 32],
    limits: Limits,
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryStore")
    }
}

#[derive(Clone)]
struct State {
    random: Arc<dyn Random>,
    tenants: HashMap<TenantId, TenantNo>,
    heads: HashMap<TenantNo, Head>,
    devices: Devices,
    states: HashMap<DeviceNo, DeviceState>,
    rows: BTreeMap<RowKey, Row>,
    /// When each record was last changed.
    changed: HashMap<RowKey, u64>,
    known: BTreeMap<(DeviceNo, u64), (Known, u64)>,
    names: HashMap<(DeviceNo, OpId), u64>,
    audit: Vec<(u64, AuditWrite)>,
    policies: BTreeMap<(TenantNo, KindName), (Option<String>, u64)>,
    batches: BTreeMap<(TenantNo, DeviceNo, SyncId, u64), u64>,
    conflicts: BTreeMap<(TenantNo, ConflictId), ConflictRow>,
    exits: BTreeMap<ExitKey, Exit>,
    /// Live rows and the wrapping sum of their hashes.
    sums: BTreeMap<(TenantNo, ScopeName, KindName), (i64, u64)>,
}

/// A scope and a record that left it.
type ExitKey = (TenantNo, ScopeName, KindName, RecordId);

/// The version with which a record left a scope, and when.
#[derive(Debug, Clone, Copy)]
struct Exit {
    seq: Seq,
    at_ms: u64,
}

/// Devices in the order of their numbers.
#[derive(Clone, Default)]
struct Devices(Vec<(TenantNo, DeviceKey)>);

impl DeviceOrder for Devices {
    fn bytes(&self, device: DeviceNo) -> &[u8] {
        self.0.get(device.number() as usize).map_or(&[], |(_, key)| key.as_str().as_bytes())
    }
}

impl State {
    fn fresh_epoch(&self) -> Epoch {
        let mut bytes = [0; 4];
        self.random.fill(&mut bytes);
        Epoch::new(u32::from_be_bytes(bytes))
    }

    /// Counts the rows that may be past their retention.
    fn prunable(&self) -> usize {
        self.known.len() + self.batches.len() + self.rows.len() + self.exits.len()
    }

    fn head(&self, tenant: TenantNo) -> Result<Head, StoreError> {
        self.heads.get(&tenant).copied().ok_or_else(|| StoreError::Corrupt("no such tenant".into()))
    }

    fn load(&self, submission: &Submission) -> GroupState {
        let mut state = GroupState::default();
        if let Some(head) = self.heads.get(&submission.tenant) {
            state.heads.insert(submission.tenant, *head);
        }
        let device = submission.device;
        state.devices.insert(device, self.states.get(&device).copied().unwrap_or_default());
        for entry in &submission.entries {
            let by_name =
                entry.op_id.as_ref().and_then(|op_id| self.names.get(&(device, op_id.clone())).copied());
            for n in [by_name, entry.n].into_iter().flatten() {
                let Some((known, _)) = self.known.get(&(device, n)) else { continue };
                if let Some(op_id) = &known.op_id {
                    state.by_op.insert((device, op_id.clone()), known.clone());
                }
                state.by_n.insert((device, n), known.clone());
            }
            if let (Some(kind), Some(id)) = (&entry.kind, &entry.id) {
                let key = RowKey { tenant: submission.tenant, kind: kind.clone(), id: id.clone() };
                if entry.may_review() {
                    let open = self.open_conflicts(&key);
                    if !open.is_empty() {
                        state.conflicts.insert(key.clone(), open);
                    }
                }
                let row = self.rows.get(&key).cloned();
                state.rows.insert(key, row);
            }
        }
        state
    }

    /// Takes over what was planned.
    fn take(&mut self, writes: Writes, group: &mut GroupState, now_ms: u64) {
        for key in writes.rows {
            if let Some(Some(row)) = group.rows.remove(&key) {
                self.changed.insert(key.clone(), now_ms);
                self.rows.insert(key, row);
            }
        }
        for device in &writes.devices {
            let heard = (device.device, 0)..=(device.device, device.state.acked_n);
            let gone: Vec<_> =
                self.known.range(heard).map(|(key, (known, _))| (*key, known.op_id.clone())).collect();
            for (key, op_id) in gone {
                self.known.remove(&key);
                if let Some(op_id) = op_id {
                    self.names.remove(&(device.device, op_id));
                }
            }
            self.states.insert(device.device, device.state);
        }
        for result in writes.results {
            if let Some(op_id) = &result.known.op_id {
                self.names.insert((result.device, op_id.clone()), result.known.n);
            }
            self.known.insert((result.device, result.known.n), (result.known, now_ms));
        }
        self.audit.extend(writes.audits.into_iter().map(|audit| (now_ms, audit)));
        self.heads.extend(writes.heads);
        for (tenant, device, sync_id, number) in writes.batches {
            self.batches.insert((tenant, device, sync_id, number), now_ms);
        }
        for (tenant, row) in writes.conflicts {
            self.conflicts.insert((tenant, row.conflict_id.clone()), row);
        }
        for exit in writes.exits {
            let key = (exit.tenant, exit.scope, exit.kind, exit.id);
            match exit.seq {
                Some(seq) => drop(self.exits.insert(key, Exit { seq, at_ms: now_ms })),
                None => drop(self.exits.remove(&key)),
            }
        }
        for add in writes.sums {
            let (count, sum) = self.sums.entry((add.tenant, add.scope, add.kind)).or_default();
            (*count, *sum) = (*count + add.count, sum.wrapping_add(add.sum));
        }
    }
}

impl MemoryStore {
    /// Makes an empty store.
    #[must_use]
    pub fn new(
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        listeners: Arc<dyn Listeners>,
        limits: Limits,
    ) -> Self {
        let mut cursor_secret = [0; 32];
        random.fill(&mut cursor_secret);
        let state = State {
            random,
            tenants: HashMap::new(),
            heads: HashMap::new(),
            devices: Devices::default(),
            states: HashMap::new(),
            rows: BTreeMap::new(),
            changed: HashMap::new(),
            known: BTreeMap::new(),
            names: HashMap::new(),
            audit: Vec::new(),
            policies: BTreeMap::new(),
            batches: BTreeMap::new(),
            conflicts: BTreeMap::new(),
            exits: BTreeMap::new(),
            sums: BTreeMap::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), clock, listeners, cursor_secret, limits }
    }

    /// Makes another store that holds what this one holds now, and reports its own commits to `listeners`.
    ///
    /// What happens to the one is not seen in the other, as with a copy of a file.
    #[must_use]
    pub fn fork(&self, listeners: Arc<dyn Listeners>) -> Self {
        Self {
            state: Arc::new(Mutex::new(self.state().clone())),
            clock: Arc::clone(&self.clock),
            listeners,
            cursor_secret: self.cursor_secret,
            limits: self.limits.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, submission: &Submission) -> Result<Receipt, StoreError> {
        let mut guard = self.state();
        let state = &mut *guard;
        let mut group = state.load(submission);
        let now_ms = self.clock.now_ms();
        let env = PlanEnv {
            now_ms,
            skew_ms_max: self.limits.skew_ms_max,
            record_bytes: self.limits.record_bytes,
            devices: &state.devices,
            listening: &|tenant| self.listeners.listening(tenant),
        };
        let mut planned = plan(std::slice::from_ref(submission), &mut group, &env);
        state.take(planned.writes, &mut group, now_ms);
        // Told under the lock, so that listeners hear commits in their order.
        for committed in planned.commits {
            self.listeners.committed(committed);
        }
        planned.receipts.pop().ok_or_else(|| StoreError::Unavailable("no receipt".into()))
    }
}

#[cfg(test)]
impl MemoryStore {
    /// Writes what was planned by hand.
    pub(crate) fn write_planned(&self, writes: Writes, mut group: GroupState, now_ms: u64) {
        self.state().take(writes, &mut group, now_ms);
    }

    /// Loads what a batch needs.
    pub(crate) fn load_batch(&self, submission: &Submission) -> GroupState {
        self.state().load(submission)
    }
}

const DAY_MS: u64 = 24 * 3_600_000;

impl Store for MemoryStore {
    async fn tenant(&self, tenant: &TenantId) -> Result<TenantNo, StoreError> {
        let mut state = self.state();
        if let Some(number) = state.tenants.get(tenant) {
            return Ok(*number);
        }
        let number = TenantNo::new(u32::try_from(state.tenants.len() + 1).unwrap_or(u32::MAX));
        let head = Head {
            epoch: state.fresh_epoch(),
            seq: Seq::ZERO,
            hlc: Hlc::ZERO,
            scopes_version: 0,
            gc_floor: Seq::ZERO,
            epoch_seq: Seq::ZERO,
        };
        state.tenants.insert(tenant.clone(), number);
        state.heads.insert(number, head);
        Ok(number)
    }

    async fn device(&self, tenant: TenantNo, device: &DeviceKey) -> Result<DeviceNo, StoreError> {
        let mut state = self.state();
        let known = state.devices.0.iter().position(|(of, key)| *of == tenant && key == device);
        let number = known.unwrap_or_else(|| {
            state.devices.0.push((tenant, device.clone()));
            state.devices.0.len() - 1
        });
        Ok(DeviceNo::new(u32::try_from(number).unwrap_or(u32::MAX)))
    }

    async fn head(&self, tenant: TenantNo) -> Result<Head, StoreError> {
        self.state().head(tenant)
    }

    async fn commit(&self, submission: Submission) -> Result<Receipt, StoreError> {
        self.apply(&submission)
    }

    async fn page(&self, query: PageQuery) -> Result<Page, StoreError> {
        self.state().page(&query)
    }

    async fn record(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> Result<Option<Row>, StoreError> {
        let key = RowKey { tenant, kind: kind.clone(), id: id.clone() };
        Ok(self.state().rows.get(&key).cloned())
    }

    async fn history(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> Result<Option<History>, StoreError> {
        self.state().history(tenant, kind, id)
    }

    async fn conflict(
        &self,
        tenant: TenantNo,
        conflict_id: &ConflictId,
    ) -> Result<Option<ConflictRow>, StoreError> {
        Ok(self.state().conflicts.get(&(tenant, conflict_id.clone())).cloned())
    }

    async fn conflicts(
        &self,
        tenant: TenantNo,
        query: ConflictQuery,
    ) -> Result<Vec<ConflictRow>, StoreError> {
        Ok(self.state().listed_conflicts(tenant, &query))
    }

    async fn audit(&self, tenant: TenantNo, query: AuditQuery) -> Result<Vec<AuditEntry>, StoreError> {
        self.state().listed_audit(tenant, &query)
    }

    async fn sums(&self, query: SumQuery) -> Result<(Head, Vec<PartSum>), StoreError> {
        self.state().part_sums(&query)
    }

    async fn policies(&self, tenant: TenantNo) -> Result<Vec<StoredPolicy>, StoreError> {
        let state = self.state();
        let own = state.policies.iter().filter(|((of, _), _)| *of == tenant).filter_map(
            |((_, kind), (doc, version))| {
                Some(StoredPolicy { kind: kind.clone(), doc: doc.clone()?, version: *version })
            },
        );
        Ok(own.collect())
    }

    async fn set_policy(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        doc: Option<String>,
    ) -> Result<Option<u64>, StoreError> {
        let mut state = self.state();
        let key = (tenant, kind.clone());
        if doc.is_none() && state.policies.get(&key).is_none_or(|(doc, _)| doc.is_none()) {
            return Ok(None);
        }
        let (stored, version) = state.policies.entry(key).or_insert((None, 0));
        *stored = doc;
        *version += 1;
        Ok(Some(*version))
    }

    async fn begin_epoch(&self, tenant: TenantNo, left: Epoch) -> Result<Head, StoreError> {
        let mut state = self.state();
        let fresh = state.fresh_epoch();
        let fresh = if fresh == left { Epoch::new(left.number().wrapping_add(1)) } else { fresh };
        if let Some(head) = state.heads.get_mut(&tenant)
            && head.epoch == left
        {
            head.epoch = fresh;
            head.epoch_seq = head.seq;
        }
        state.head(tenant)
    }

    async fn session(
        &self,
        tenant: TenantNo,
        device: DeviceNo,
        sync_id: &SyncId,
    ) -> Result<Option<SessionProgress>, StoreError> {
        let state = self.state();
        let range = (tenant, device, sync_id.clone(), 0)..=(tenant, device, sync_id.clone(), u64::MAX);
        let mut progress = SessionProgress::default();
        for ((.., number), at_ms) in state.batches.range(range) {
            progress.batches.push(*number);
            progress.last_ms = progress.last_ms.max(*at_ms);
        }
        Ok((!progress.batches.is_empty()).then_some(progress))
    }

    async fn prune(&self, now_ms: u64) -> Result<u64, StoreError> {
        let mut guard = self.state();
        let state = &mut *guard;
        let before = state.prunable();
        let states = &mut state.states;
        state.known.retain(|(device, n), (_, at_ms)| {
            let keep = *at_ms + 90 * DAY_MS >= now_ms;
            if !keep {
                // What is forgotten is too old from now on, and never new.
                let device = states.entry(*device).or_default();
                device.acked_n = device.acked_n.max(*n);
            }
            keep
        });
        let known = &state.known;
        state.names.retain(|(device, _), n| known.contains_key(&(*device, *n)));
        state.batches.retain(|_, at_ms| *at_ms + DAY_MS >= now_ms);
        let (heads, changed) = (&mut state.heads, &mut state.changed);
        state.rows.retain(|key, row| {
            let old = changed.get(key).is_some_and(|at_ms| *at_ms + 30 * DAY_MS < now_ms);
            if row.deleted && old {
                changed.remove(key);
                if let Some(head) = heads.get_mut(&key.tenant) {
                    head.gc_floor = head.gc_floor.max(row.record.version);
                }
                return false;
            }
            true
        });
        state.exits.retain(|(tenant, ..), exit| {
            let keep = exit.at_ms + 30 * DAY_MS >= now_ms;
            if let (false, Some(head)) = (keep, heads.get_mut(tenant)) {
                head.gc_floor = head.gc_floor.max(exit.seq);
            }
            keep
        });
        Ok((before - state.prunable()) as u64)
    }

    async fn probe(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn cursor_secret(&self) -> [u8; 32] {
        self.cursor_secret
    }
}
