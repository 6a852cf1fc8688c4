//! Stores and hubs with planted faults, each of which breaks one law.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use driftline_bench::simulate::{Backend, MemoryBackend, World};
use driftline_conflict::{Op, Policy};
use driftline_engine::{
    Apply, AuditEntry, AuditQuery, Committed, ConflictQuery, ConflictRow, DeviceChange, DeviceChanged,
    DeviceNote, DeviceOnce, DeviceQuery, DeviceRow, Head, History, Listeners, Page, PageQuery, PartSum,
    Place, Receipt, Remembered, Retention, Row, SampleQuery, SampleRow, SeriesQuery, SeriesRow,
    SessionProgress, Silent, Store, StoreError, StoredPolicy, Submission, SumQuery, Task,
};
use driftline_idempotency::Record;
use driftline_model::{
    ConflictId, DeviceKey, DeviceNo, Epoch, KindName, Object, ObjectBuilder, RecordId, ScopeName, Seq,
    SyncId, TenantId, TenantNo, UserId,
};
use driftline_protocol::ItemClass;
use driftline_storage::MemoryStore;

/// What is wrong with the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    /// Answers are not remembered: a change that comes again is applied again.
    ForgetsAnswers,
    /// Answers are forgotten before the device has heard them.
    ForgetsTooEarly,
    /// A batch is answered before it is on the disk, and the server dies in between.
    AnswersBeforeCommit,
    /// A version is given twice.
    ReusesASeq,
    /// A version is left out.
    SkipsASeq,
    /// A patch of nothing makes a record.
    PatchCreates,
    /// A device's clock is believed, however far ahead it runs.
    BelievesClocks,
    /// A field of an accepted change is not written.
    DropsAValue,
    /// What an accepted change adds to a counter is not added.
    DropsAnIncrement,
    /// What an accepted change adds to a set is not added.
    DropsAnElement,
    /// A change that was set aside is not to be found.
    LosesWhatWaits,
    /// An ordered field falls like any other.
    LowersByTheClock,
    /// The losing values of a decision are not written down.
    DropsAnAuditRow,
    /// A group applies in part.
    SplitsGroups,
    /// Bases of another epoch are taken for bases of this one.
    IgnoresTheEpoch,
    /// A store that was brought back goes on as if nothing had happened.
    KeepsTheEpoch,
    /// A delta leaves a change out.
    DeltaSkipsAChange,
    /// A delta shows what others own.
    DeltaIgnoresScopes,
    /// A page of the log starts one row too late.
    PageSkipsARow,
    /// A page of the log leaves deleted records out.
    PageHidesTombstones,
    /// A cut page says that nothing follows.
    PageSaysThatIsAll,
    /// A page of the log tells a new record as a change of an old one.
    PageForgetsCreates,
    /// A page shows what others own.
    PageIgnoresScopes,
    /// A snapshot leaves its last row out.
    SnapshotSkipsARow,
    /// Tombstones are removed, and old cursors go on.
    ForgetsTheFloor,
}

/// Stores in memory with a fault.
pub(crate) struct FaultyBackend {
    inner: MemoryBackend,
    fault: Fault,
    /// What is on the disk, of a store that answers too early.
    disk: Arc<Mutex<Option<MemoryStore>>>,
}

impl FaultyBackend {
    pub(crate) fn new(fault: Fault) -> Self {
        Self { inner: MemoryBackend::default(), fault, disk: Arc::default() }
    }
}

impl Backend for FaultyBackend {
    type Store = Faulty;

    fn open(&mut self, world: &World, listeners: Arc<dyn Listeners>) -> Result<Faulty> {
        let mut world = world.clone();
        if self.fault == Fault::BelievesClocks {
            world.limits.skew_ms_max = 1 << 40;
        }
        let listeners = Arc::new(FaultyListeners { inner: listeners, fault: self.fault });
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner).take();
        let inner = match disk {
            Some(disk) => disk.fork(listeners),
            None => self.inner.open(&world, listeners)?,
        };
        Ok(Faulty { inner, fault: self.fault, disk: Arc::clone(&self.disk), commits: Arc::default() })
    }

    fn save(&mut self) -> Result<()> {
        self.inner.save()
    }

    fn restore(&mut self) -> Result<()> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.inner.restore()
    }
}

/// A hub that does not tell all.
struct FaultyListeners {
    inner: Arc<dyn Listeners>,
    fault: Fault,
}

impl Listeners for FaultyListeners {
    fn listening(&self, tenant: TenantNo) -> bool {
        self.inner.listening(tenant)
    }

    fn committed(&self, committed: Committed) {
        let Some(changes) = &committed.changes else { return self.inner.committed(committed) };
        let mut changes = changes.to_vec();
        match self.fault {
            Fault::DeltaSkipsAChange => drop(changes.pop()),
            Fault::DeltaIgnoresScopes => {
                changes.iter_mut().for_each(|change| change.change.scope = ScopeName::tenant());
            }
            _ => {}
        }
        let Committed { tenant, prev_seq, seq, hlc, .. } = committed;
        self.inner.committed(Committed::new(tenant, prev_seq, seq, hlc, Some(changes)));
    }
}

/// A store with a fault.
pub(crate) struct Faulty {
    inner: MemoryStore,
    fault: Fault,
    disk: Arc<Mutex<Option<MemoryStore>>>,
    commits: Arc<AtomicU64>,
}

impl Faulty {
    /// Spoils a batch on its way in.
    async fn spoil(&self, submission: &mut Submission) {
        match self.fault {
            Fault::ForgetsAnswers => {
                for entry in &mut submission.entries {
                    (entry.op_id, entry.n) = (None, None);
                }
            }
            Fault::ForgetsTooEarly => submission.acked_n = Some(u64::MAX),
            Fault::SplitsGroups => submission.entries.iter_mut().for_each(|entry| entry.group = None),
            Fault::IgnoresTheEpoch => submission.epoch = None,
            Fault::AnswersBeforeCommit => {
                let disk = self.inner.fork(Arc::new(Silent));
                *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = Some(disk);
            }
            Fault::PatchCreates => {
                for entry in &mut submission.entries {
                    if let Task::Apply(apply) = &mut entry.task
                        && apply.op == Op::Patch
                        && matches!(
                            self.inner.record(submission.tenant, &apply.kind, &apply.id).await,
                            Ok(None)
                        )
                    {
                        apply.op = Op::Create;
                    }
                }
            }
            Fault::DropsAnIncrement | Fault::DropsAnElement | Fault::LowersByTheClock => {
                for entry in &mut submission.entries {
                    if let Task::Apply(apply) = &mut entry.task {
                        self.spoil_intents(apply);
                    }
                }
            }
            Fault::DropsAValue => {
                for entry in &mut submission.entries {
                    if let Task::Apply(apply) = &mut entry.task
                        && apply.fields.len() > 1
                    {
                        apply.fields = first_field(&apply.fields);
                    }
                }
            }
            _ => {}
        }
    }

    fn spoil_intents(&self, apply: &mut Apply) {
        if self.fault == Fault::LowersByTheClock {
            apply.policy = Arc::new(Policy::field_merge());
        }
        if let Some(intents) = &mut apply.intents {
            match self.fault {
                Fault::DropsAnIncrement => intents.increments.clear(),
                Fault::DropsAnElement => intents.add = Object::empty(),
                _ => {}
            }
        }
    }

    /// Spoils the answer to a batch on its way out.
    fn spoil_answer(&self, receipt: &mut Receipt) {
        let number = self.commits.fetch_add(1, Ordering::SeqCst);
        let by = match self.fault {
            Fault::ReusesASeq => -1,
            Fault::SkipsASeq => 1,
            _ => return,
        };
        let fresh = receipt.results.iter().any(|result| {
            !result.duplicate && result.code.class() == ItemClass::Done && result.version == Some(receipt.seq)
        });
        if number % 5 == 4 && fresh {
            let moved = |seq: Seq| Seq::new(seq.number().saturating_add_signed(by));
            let seq = receipt.seq;
            for result in receipt.results.iter_mut().filter(|result| result.version == Some(seq)) {
                result.version = Some(moved(seq));
            }
            receipt.seq = moved(seq);
        }
    }

    fn spoil_page(&self, query: &PageQuery, page: &mut Page) {
        let log = matches!(query.place, Place::After(_));
        match self.fault {
            Fault::PageSkipsARow if log && page.rows.len() > 1 => drop(page.rows.remove(0)),
            Fault::PageHidesTombstones if log => page.rows.retain(|row| !row.deleted),
            Fault::PageSaysThatIsAll => page.more = false,
            Fault::SnapshotSkipsARow if !log && page.rows.len() > 1 => drop(page.rows.pop()),
            Fault::PageForgetsCreates if log => {
                for row in &mut page.rows {
                    row.record.default_mark.fv = Seq::ZERO;
                    row.record.live.fv = Seq::ZERO;
                }
            }
            Fault::ForgetsTheFloor => page.head.gc_floor = Seq::ZERO,
            _ => {}
        }
    }
}

fn first_field(fields: &Object) -> Object {
    let mut built = ObjectBuilder::with_capacity(64, 1);
    if let Some((name, value)) = fields.iter().next() {
        built.push(name, value);
    }
    built.finish()
}

impl Store for Faulty {
    async fn commit(&self, mut submission: Submission) -> Result<Receipt, StoreError> {
        self.spoil(&mut submission).await;
        let mut receipt = self.inner.commit(submission).await?;
        self.spoil_answer(&mut receipt);
        Ok(receipt)
    }

    async fn head(&self, tenant: TenantNo) -> Result<Head, StoreError> {
        let mut head = self.inner.head(tenant).await?;
        if self.fault == Fault::ForgetsTheFloor {
            head.gc_floor = Seq::ZERO;
        }
        Ok(head)
    }

    async fn page(&self, mut query: PageQuery) -> Result<Page, StoreError> {
        if self.fault == Fault::PageIgnoresScopes {
            let owners = ["ada", "bob", "cleo"].map(|user| UserId::text(user).expect("a name"));
            query.scopes.extend(owners.iter().map(ScopeName::owner));
        }
        let mut page = self.inner.page(query.clone()).await?;
        self.spoil_page(&query, &mut page);
        Ok(page)
    }

    async fn history(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> Result<Option<History>, StoreError> {
        let mut history = self.inner.history(tenant, kind, id).await?;
        if let (Fault::DropsAnAuditRow, Some(history)) = (self.fault, &mut history) {
            history.audit.pop();
        }
        Ok(history)
    }

    async fn begin_epoch(&self, tenant: TenantNo, left: Epoch) -> Result<Head, StoreError> {
        match self.fault {
            Fault::KeepsTheEpoch => self.inner.head(tenant).await,
            _ => self.inner.begin_epoch(tenant, left).await,
        }
    }

    fn tenant(&self, tenant: &TenantId) -> impl Future<Output = Result<TenantNo, StoreError>> + Send {
        self.inner.tenant(tenant)
    }

    fn device(
        &self,
        tenant: TenantNo,
        device: &DeviceKey,
    ) -> impl Future<Output = Result<DeviceNo, StoreError>> + Send {
        self.inner.device(tenant, device)
    }

    fn record(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> impl Future<Output = Result<Option<Row>, StoreError>> + Send {
        self.inner.record(tenant, kind, id)
    }

    fn conflict(
        &self,
        tenant: TenantNo,
        conflict_id: &ConflictId,
    ) -> impl Future<Output = Result<Option<ConflictRow>, StoreError>> + Send {
        self.inner.conflict(tenant, conflict_id)
    }

    async fn conflicts(
        &self,
        tenant: TenantNo,
        query: ConflictQuery,
    ) -> Result<Vec<ConflictRow>, StoreError> {
        let mut rows = self.inner.conflicts(tenant, query).await?;
        if self.fault == Fault::LosesWhatWaits {
            rows.truncate(rows.len() / 2);
        }
        Ok(rows)
    }

    fn audit(
        &self,
        tenant: TenantNo,
        query: AuditQuery,
    ) -> impl Future<Output = Result<Vec<AuditEntry>, StoreError>> + Send {
        self.inner.audit(tenant, query)
    }

    fn sums(&self, query: SumQuery) -> impl Future<Output = Result<(Head, Vec<PartSum>), StoreError>> + Send {
        self.inner.sums(query)
    }

    fn policies(
        &self,
        tenant: TenantNo,
    ) -> impl Future<Output = Result<Vec<StoredPolicy>, StoreError>> + Send {
        self.inner.policies(tenant)
    }

    fn set_policy(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        doc: Option<String>,
    ) -> impl Future<Output = Result<Option<u64>, StoreError>> + Send {
        self.inner.set_policy(tenant, kind, doc)
    }

    fn session(
        &self,
        tenant: TenantNo,
        device: DeviceNo,
        sync_id: &SyncId,
    ) -> impl Future<Output = Result<Option<SessionProgress>, StoreError>> + Send {
        self.inner.session(tenant, device, sync_id)
    }

    fn prune(
        &self,
        now_ms: u64,
        retention: &Retention,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send {
        self.inner.prune(now_ms, retention)
    }

    fn samples(
        &self,
        tenant: TenantNo,
        query: SampleQuery,
    ) -> impl Future<Output = Result<Vec<SampleRow>, StoreError>> + Send {
        self.inner.samples(tenant, query)
    }

    fn series(
        &self,
        tenant: TenantNo,
        query: SeriesQuery,
    ) -> impl Future<Output = Result<Vec<SeriesRow>, StoreError>> + Send {
        self.inner.series(tenant, query)
    }

    fn device_row(
        &self,
        tenant: TenantNo,
        device: DeviceNo,
    ) -> impl Future<Output = Result<Option<DeviceRow>, StoreError>> + Send {
        self.inner.device_row(tenant, device)
    }

    fn devices(
        &self,
        tenant: TenantNo,
        query: DeviceQuery,
    ) -> impl Future<Output = Result<Vec<DeviceRow>, StoreError>> + Send {
        self.inner.devices(tenant, query)
    }

    fn device_by_digest(
        &self,
        digest: [u8; 32],
    ) -> impl Future<Output = Result<Option<(TenantId, TenantNo, DeviceRow)>, StoreError>> + Send {
        self.inner.device_by_digest(digest)
    }

    fn change_device(
        &self,
        tenant: TenantNo,
        change: DeviceChange,
        once: Option<DeviceOnce>,
    ) -> impl Future<Output = Result<DeviceChanged, StoreError>> + Send {
        self.inner.change_device(tenant, change, once)
    }

    fn note_devices(&self, notes: Vec<DeviceNote>) -> impl Future<Output = Result<(), StoreError>> + Send {
        self.inner.note_devices(notes)
    }

    fn remembered(
        &self,
        tenant: TenantNo,
        owner: &str,
        key: &str,
    ) -> impl Future<Output = Result<Option<Record<Remembered>>, StoreError>> + Send {
        self.inner.remembered(tenant, owner, key)
    }

    fn probe(&self) -> impl Future<Output = Result<(), StoreError>> + Send {
        self.inner.probe()
    }

    fn log(&self) -> &dyn driftline_engine::EventLog {
        self.inner.log()
    }

    fn uploads(&self) -> &dyn driftline_engine::UploadRows {
        self.inner.uploads()
    }

    fn cursor_secret(&self) -> [u8; 32] {
        self.inner.cursor_secret()
    }
}
