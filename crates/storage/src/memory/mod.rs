//! A store in memory, for tests, simulations and embedding without a disk.

mod log;
mod once;
mod prune;
mod reads;
mod registry;
mod samples;
mod uploads;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use driftline_conflict::DeviceOrder;
use driftline_engine::{
    AuditEntry, AuditQuery, AuditWrite, Clock, ConflictQuery, ConflictRow, DeviceChange, DeviceChanged,
    DeviceNote, DeviceOnce, DeviceQuery, DeviceRow, DeviceState, GroupState, Head, History, Known, Listeners,
    Page, PageQuery, PartSum, PlanEnv, Planned, Random, Receipt, Remembered, Retention, Row, RowKey,
    SampleQuery, SampleRow, SeriesKey, SeriesQuery, SeriesRow, SessionProgress, Store, StoreError,
    StoredPolicy, Submission, SumQuery, plan,
};
use driftline_idempotency::Record;
use driftline_insight::SeriesPoint;
use driftline_model::{
    ConflictId, DeviceKey, DeviceNo, Epoch, Hlc, KindName, Limits, OpId, RecordId, ScopeName, Seq, SyncId,
    TenantId, TenantNo,
};

use crate::once::Kept;
use registry::Device;
use samples::Sample;

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
    batches: BTreeMap<(TenantNo, DeviceNo, SyncId, u64), Batch>,
    /// What is kept under keys, by their tenant, their owner and themselves.
    once: BTreeMap<OnceName, Kept>,
    /// The highest fencing number so far, of all keys.
    attempts: u64,
    samples: BTreeMap<RowKey, Sample>,
    series: BTreeMap<SeriesKey, SeriesPoint>,
    conflicts: BTreeMap<(TenantNo, ConflictId), ConflictRow>,
    exits: BTreeMap<ExitKey, Exit>,
    /// Live rows and the wrapping sum of their hashes.
    sums: BTreeMap<(TenantNo, ScopeName, KindName), (i64, u64)>,
    log: log::Log,
    uploads: uploads::Uploads,
}

/// A scope and a record that left it.
type ExitKey = (TenantNo, ScopeName, KindName, RecordId);

/// The version with which a record left a scope, and when.
#[derive(Debug, Clone, Copy)]
struct Exit {
    seq: Seq,
    at_ms: u64,
}

/// A key with its tenant and its owner.
type OnceName = (TenantNo, Box<str>, Box<str>);

/// A batch that was answered.
#[derive(Debug, Clone)]
struct Batch {
    at_ms: u64,
    /// What it is recognised by; nothing where it has to be decided again.
    kept: Option<Kept>,
}

/// Devices in the order of their numbers.
#[derive(Clone, Default)]
struct Devices(Vec<Device>);

impl DeviceOrder for Devices {
    fn bytes(&self, device: DeviceNo) -> &[u8] {
        self.0.get(device.number() as usize).map_or(&[], |device| device.key.as_str().as_bytes())
    }
}

impl State {
    fn fresh_epoch(&self) -> Epoch {
        let mut bytes = [0; 4];
        self.random.fill(&mut bytes);
        Epoch::new(u32::from_be_bytes(bytes))
    }

    /// Finds a tenant's number, giving it one.
    fn tenant(&mut self, tenant: &TenantId) -> TenantNo {
        if let Some(number) = self.tenants.get(tenant) {
            return *number;
        }
        let number = TenantNo::new(u32::try_from(self.tenants.len() + 1).unwrap_or(u32::MAX));
        let head = Head {
            epoch: self.fresh_epoch(),
            seq: Seq::ZERO,
            hlc: Hlc::ZERO,
            scopes_version: 0,
            gc_floor: Seq::ZERO,
            epoch_seq: Seq::ZERO,
            event_id: 0,
        };
        self.tenants.insert(tenant.clone(), number);
        self.heads.insert(number, head);
        number
    }

    fn head(&self, tenant: TenantNo) -> Result<Head, StoreError> {
        self.heads.get(&tenant).copied().ok_or_else(|| StoreError::Corrupt("no such tenant".into()))
    }

    fn load(&self, submission: &Submission) -> Result<GroupState, StoreError> {
        let mut state = GroupState::default();
        if let Some(head) = self.heads.get(&submission.tenant) {
            state.heads.insert(submission.tenant, *head);
        }
        let device = submission.device;
        if !submission.is_publication() {
            state.devices.insert(device, self.states.get(&device).copied().unwrap_or_default());
        }
        for entry in submission.entries.iter().filter(|entry| entry.is_record()) {
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
        self.load_samples(submission, &mut state);
        self.load_events(submission, &mut state);
        self.load_once(submission, &mut state)?;
        Ok(state)
    }

    /// Takes over what was planned.
    fn take(&mut self, planned: Planned, group: &mut GroupState, now_ms: u64) {
        let Planned { receipts, writes, .. } = planned;
        self.take_once(&writes, &receipts, now_ms);
        self.take_events(&writes, now_ms);
        self.samples.extend(writes.samples.into_iter().map(|write| Sample::of(write, now_ms)));
        self.series.extend(writes.series);
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
            self.devices.heard(device.device, now_ms);
        }
        for result in writes.results {
            if let Some(op_id) = &result.known.op_id {
                self.names.insert((result.device, op_id.clone()), result.known.n);
            }
            self.known.insert((result.device, result.known.n), (result.known, now_ms));
        }
        self.audit.extend(writes.audits.into_iter().map(|audit| (now_ms, audit)));
        self.heads.extend(writes.heads);
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
            once: BTreeMap::new(),
            attempts: 0,
            samples: BTreeMap::new(),
            series: BTreeMap::new(),
            conflicts: BTreeMap::new(),
            exits: BTreeMap::new(),
            sums: BTreeMap::new(),
            log: log::Log::default(),
            uploads: uploads::Uploads::default(),
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
        let mut group = state.load(submission)?;
        let now_ms = self.clock.now_ms();
        let env = PlanEnv {
            now_ms,
            skew_ms_max: self.limits.skew_ms_max,
            record_bytes: self.limits.record_bytes,
            devices: &state.devices,
            listening: &|tenant| self.listeners.listening(tenant),
        };
        let mut planned = plan(std::slice::from_ref(submission), &mut group, &env);
        let commits = std::mem::take(&mut planned.commits);
        let receipt = planned.receipts.last().cloned();
        state.take(planned, &mut group, now_ms);
        // Told under the lock, so that listeners hear commits in their order.
        for committed in commits {
            self.listeners.committed(committed);
        }
        receipt.ok_or_else(|| StoreError::Unavailable("no receipt".into()))
    }
}

#[cfg(test)]
impl MemoryStore {
    /// Writes what was planned by hand.
    pub(crate) fn write_planned(&self, planned: Planned, mut group: GroupState, now_ms: u64) {
        self.state().take(planned, &mut group, now_ms);
    }

    /// Loads what a batch needs.
    pub(crate) fn load_batch(&self, submission: &Submission) -> GroupState {
        self.state().load(submission).expect("what is stored is readable")
    }
}

impl Store for MemoryStore {
    async fn tenant(&self, tenant: &TenantId) -> Result<TenantNo, StoreError> {
        Ok(self.state().tenant(tenant))
    }

    async fn device(&self, tenant: TenantNo, device: &DeviceKey) -> Result<DeviceNo, StoreError> {
        let now_ms = self.clock.now_ms();
        Ok(self.state().devices.find_or_make(tenant, device, now_ms))
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
        for ((.., number), batch) in state.batches.range(range) {
            progress.batches.push(*number);
            progress.last_ms = progress.last_ms.max(batch.at_ms);
        }
        Ok((!progress.batches.is_empty()).then_some(progress))
    }

    async fn prune(&self, now_ms: u64, retention: &Retention) -> Result<u64, StoreError> {
        Ok(self.state().prune(now_ms, retention))
    }

    async fn samples(&self, tenant: TenantNo, query: SampleQuery) -> Result<Vec<SampleRow>, StoreError> {
        self.state().listed_samples(tenant, &query)
    }

    async fn series(&self, tenant: TenantNo, query: SeriesQuery) -> Result<Vec<SeriesRow>, StoreError> {
        Ok(self.state().listed_series(tenant, &query))
    }

    async fn device_row(&self, tenant: TenantNo, device: DeviceNo) -> Result<Option<DeviceRow>, StoreError> {
        let state = self.state();
        state.devices.of(tenant, device).map(|of| of.row(device)).transpose()
    }

    async fn devices(&self, tenant: TenantNo, query: DeviceQuery) -> Result<Vec<DeviceRow>, StoreError> {
        self.state().devices.listed(tenant, &query)
    }

    async fn device_by_digest(
        &self,
        digest: [u8; 32],
    ) -> Result<Option<(TenantId, TenantNo, DeviceRow)>, StoreError> {
        self.state().device_by_digest(digest)
    }

    async fn change_device(
        &self,
        tenant: TenantNo,
        change: DeviceChange,
        once: Option<DeviceOnce>,
    ) -> Result<DeviceChanged, StoreError> {
        let now_ms = self.clock.now_ms();
        self.state().change_device(tenant, &change, once.as_ref(), now_ms)
    }

    async fn note_devices(&self, notes: Vec<DeviceNote>) -> Result<(), StoreError> {
        let mut state = self.state();
        for note in notes {
            state.note(note);
        }
        Ok(())
    }

    async fn remembered(
        &self,
        tenant: TenantNo,
        owner: &str,
        key: &str,
    ) -> Result<Option<Record<Remembered>>, StoreError> {
        let name = (tenant, owner.into(), key.into());
        self.state().once.get(&name).map(Kept::record).transpose()
    }

    fn log(&self) -> &dyn driftline_engine::EventLog {
        self
    }

    fn uploads(&self) -> &dyn driftline_engine::UploadRows {
        self
    }

    async fn probe(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn cursor_secret(&self) -> [u8; 32] {
        self.cursor_secret
    }
}
