//! A store around another one.

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;

use driftline_engine::{
    Answer, AuditEntry, AuditQuery, ChunkReceipt, ChunkThere, ConflictQuery, ConflictRow, DeviceChange,
    DeviceChanged, DeviceEvents, DeviceNote, DeviceOnce, DeviceQuery, DeviceRow, Drained, Event, EventLog,
    EventName, EventPage, EventQuery, Head, History, Kept, LeaseKey, Leased, OutboxRouter, Page, PageQuery,
    PartSum, Receipt, Remembered, Renewed, Retention, Row, SampleQuery, SampleRow, SeriesQuery, SeriesRow,
    SessionProgress, Store, StoreError, StoredPolicy, StreamReceipt, Submission, SumQuery, TopicRules,
    UploadCaps, UploadOnce, UploadOpened, UploadRow, UploadRows, UploadTurn, UploadUsage,
};
use driftline_idempotency::Record;
use driftline_model::{
    ConflictId, DeviceKey, DeviceNo, Epoch, KindName, RecordId, SyncId, TenantId, TenantNo,
};
use driftline_uploads::{Digest, State, UploadId};

/// What a [`Wrapped`] store does otherwise than the one inside; each hook may still ask that one.
pub trait Hook<S: Store>: Send + Sync + 'static {
    /// Is asked before every call; an error is its answer, and the store inside does not hear of it.
    ///
    /// # Errors
    /// None, unless the hook makes some.
    fn admit(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Stands in for [`Store::commit`].
    fn commit(
        &self,
        inner: &S,
        submission: Submission,
    ) -> impl Future<Output = Result<Receipt, StoreError>> + Send {
        inner.commit(submission)
    }

    /// Stands in for [`Store::head`].
    fn head(&self, inner: &S, tenant: TenantNo) -> impl Future<Output = Result<Head, StoreError>> + Send {
        inner.head(tenant)
    }

    /// Stands in for [`Store::page`].
    fn page(&self, inner: &S, query: PageQuery) -> impl Future<Output = Result<Page, StoreError>> + Send {
        inner.page(query)
    }

    /// Stands in for [`Store::policies`].
    fn policies(
        &self,
        inner: &S,
        tenant: TenantNo,
    ) -> impl Future<Output = Result<Vec<StoredPolicy>, StoreError>> + Send {
        inner.policies(tenant)
    }

    /// Stands in for [`UploadRows::chunk`].
    fn chunk<'a>(&'a self, inner: &'a S, id: UploadId, index: u64) -> Answer<'a, Option<Digest>> {
        inner.uploads().chunk(id, index)
    }

    /// Stands in for [`UploadRows::lease`], from a time until another one.
    fn lease<'a>(
        &'a self,
        inner: &'a S,
        key: LeaseKey,
        holder: u64,
        (now_ms, until_ms): (u64, u64),
        evict: bool,
    ) -> Answer<'a, Leased> {
        inner.uploads().lease(key, holder, now_ms, until_ms, evict)
    }

    /// Stands in for [`UploadRows::keep_stream`].
    fn keep_stream<'a>(&'a self, inner: &'a S, receipt: StreamReceipt) -> Answer<'a, Kept> {
        inner.uploads().keep_stream(receipt)
    }
}

/// A store that hands everything on to another one, but for what its hook does otherwise.
#[derive(Debug, Clone)]
pub struct Wrapped<S, H> {
    /// The store inside.
    pub inner: S,
    /// What is done otherwise.
    pub hook: H,
}

impl<S, H> Wrapped<S, H> {
    /// Puts a hook around a store.
    pub const fn new(inner: S, hook: H) -> Self {
        Self { inner, hook }
    }
}

impl<S: Store, H: Hook<S>> Store for Wrapped<S, H> {
    async fn commit(&self, submission: Submission) -> Result<Receipt, StoreError> {
        self.hook.admit()?;
        self.hook.commit(&self.inner, submission).await
    }

    async fn page(&self, query: PageQuery) -> Result<Page, StoreError> {
        self.hook.admit()?;
        self.hook.page(&self.inner, query).await
    }

    async fn policies(&self, tenant: TenantNo) -> Result<Vec<StoredPolicy>, StoreError> {
        self.hook.admit()?;
        self.hook.policies(&self.inner, tenant).await
    }

    async fn tenant(&self, tenant: &TenantId) -> Result<TenantNo, StoreError> {
        self.hook.admit()?;
        self.inner.tenant(tenant).await
    }

    async fn device(&self, tenant: TenantNo, device: &DeviceKey) -> Result<DeviceNo, StoreError> {
        self.hook.admit()?;
        self.inner.device(tenant, device).await
    }

    async fn head(&self, tenant: TenantNo) -> Result<Head, StoreError> {
        self.hook.admit()?;
        self.hook.head(&self.inner, tenant).await
    }

    async fn record(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> Result<Option<Row>, StoreError> {
        self.hook.admit()?;
        self.inner.record(tenant, kind, id).await
    }

    async fn history(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> Result<Option<History>, StoreError> {
        self.hook.admit()?;
        self.inner.history(tenant, kind, id).await
    }

    async fn conflict(
        &self,
        tenant: TenantNo,
        conflict_id: &ConflictId,
    ) -> Result<Option<ConflictRow>, StoreError> {
        self.hook.admit()?;
        self.inner.conflict(tenant, conflict_id).await
    }

    async fn conflicts(
        &self,
        tenant: TenantNo,
        query: ConflictQuery,
    ) -> Result<Vec<ConflictRow>, StoreError> {
        self.hook.admit()?;
        self.inner.conflicts(tenant, query).await
    }

    async fn audit(&self, tenant: TenantNo, query: AuditQuery) -> Result<Vec<AuditEntry>, StoreError> {
        self.hook.admit()?;
        self.inner.audit(tenant, query).await
    }

    async fn sums(&self, query: SumQuery) -> Result<(Head, Vec<PartSum>), StoreError> {
        self.hook.admit()?;
        self.inner.sums(query).await
    }

    async fn set_policy(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        doc: Option<String>,
    ) -> Result<Option<u64>, StoreError> {
        self.hook.admit()?;
        self.inner.set_policy(tenant, kind, doc).await
    }

    async fn begin_epoch(&self, tenant: TenantNo, left: Epoch) -> Result<Head, StoreError> {
        self.hook.admit()?;
        self.inner.begin_epoch(tenant, left).await
    }

    async fn session(
        &self,
        tenant: TenantNo,
        device: DeviceNo,
        sync_id: &SyncId,
    ) -> Result<Option<SessionProgress>, StoreError> {
        self.hook.admit()?;
        self.inner.session(tenant, device, sync_id).await
    }

    async fn prune(&self, now_ms: u64, retention: &Retention) -> Result<u64, StoreError> {
        self.hook.admit()?;
        self.inner.prune(now_ms, retention).await
    }

    async fn samples(&self, tenant: TenantNo, query: SampleQuery) -> Result<Vec<SampleRow>, StoreError> {
        self.hook.admit()?;
        self.inner.samples(tenant, query).await
    }

    async fn series(&self, tenant: TenantNo, query: SeriesQuery) -> Result<Vec<SeriesRow>, StoreError> {
        self.hook.admit()?;
        self.inner.series(tenant, query).await
    }

    async fn device_row(&self, tenant: TenantNo, device: DeviceNo) -> Result<Option<DeviceRow>, StoreError> {
        self.hook.admit()?;
        self.inner.device_row(tenant, device).await
    }

    async fn devices(&self, tenant: TenantNo, query: DeviceQuery) -> Result<Vec<DeviceRow>, StoreError> {
        self.hook.admit()?;
        self.inner.devices(tenant, query).await
    }

    async fn device_by_digest(
        &self,
        digest: [u8; 32],
    ) -> Result<Option<(TenantId, TenantNo, DeviceRow)>, StoreError> {
        self.hook.admit()?;
        self.inner.device_by_digest(digest).await
    }

    async fn change_device(
        &self,
        tenant: TenantNo,
        change: DeviceChange,
        once: Option<DeviceOnce>,
    ) -> Result<DeviceChanged, StoreError> {
        self.hook.admit()?;
        self.inner.change_device(tenant, change, once).await
    }

    async fn note_devices(&self, notes: Vec<DeviceNote>) -> Result<(), StoreError> {
        self.hook.admit()?;
        self.inner.note_devices(notes).await
    }

    async fn remembered(
        &self,
        tenant: TenantNo,
        owner: &str,
        key: &str,
    ) -> Result<Option<Record<Remembered>>, StoreError> {
        self.hook.admit()?;
        self.inner.remembered(tenant, owner, key).await
    }

    fn log(&self) -> &dyn EventLog {
        self
    }

    fn uploads(&self) -> &dyn UploadRows {
        self
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.hook.admit()?;
        self.inner.probe().await
    }

    fn cursor_secret(&self) -> [u8; 32] {
        self.inner.cursor_secret()
    }
}

impl<S: Store, H: Hook<S>> Wrapped<S, H> {
    fn admitted<'a, T: Send + 'a>(
        &'a self,
        ask: impl FnOnce(&'a dyn EventLog) -> Answer<'a, T>,
    ) -> Answer<'a, T> {
        match self.hook.admit() {
            Ok(()) => ask(self.inner.log()),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }

    fn admitted_to_uploads<'a, T: Send + 'a>(
        &'a self,
        ask: impl FnOnce(&'a dyn UploadRows) -> Answer<'a, T>,
    ) -> Answer<'a, T> {
        match self.hook.admit() {
            Ok(()) => ask(self.inner.uploads()),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }
}

impl<S: Store, H: Hook<S>> EventLog for Wrapped<S, H> {
    fn events(&self, tenant: TenantNo, query: EventQuery) -> Answer<'_, EventPage> {
        self.admitted(|log| log.events(tenant, query))
    }

    fn event(&self, tenant: TenantNo, name: EventName) -> Answer<'_, Option<Arc<Event>>> {
        self.admitted(|log| log.event(tenant, name))
    }

    fn trim_events(&self, now_ms: u64, rules: Arc<dyn TopicRules>) -> Answer<'_, u64> {
        self.admitted(|log| log.trim_events(now_ms, rules))
    }

    fn drain_outbox(&self, batch: usize, router: Arc<dyn OutboxRouter>) -> Answer<'_, Drained> {
        self.admitted(|log| log.drain_outbox(batch, router))
    }

    fn clean_outbox(&self, before_ms: u64) -> Answer<'_, u64> {
        self.admitted(|log| log.clean_outbox(before_ms))
    }

    fn outbox_waits(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.inner.log().outbox_waits()
    }

    fn device_events(&self, tenant: TenantNo, device: DeviceNo) -> Answer<'_, Option<DeviceEvents>> {
        self.admitted(|log| log.device_events(tenant, device))
    }

    fn read_notice(&self, tenant: TenantNo, user: Box<str>, id: Box<str>, now_ms: u64) -> Answer<'_, bool> {
        self.admitted(|log| log.read_notice(tenant, user, id, now_ms))
    }

    fn notices_read(&self, tenant: TenantNo, user: Box<str>, ids: Vec<Box<str>>) -> Answer<'_, Vec<bool>> {
        self.admitted(|log| log.notices_read(tenant, user, ids))
    }
}

impl<S: Store, H: Hook<S>> UploadRows for Wrapped<S, H> {
    fn open_upload(
        &self,
        row: UploadRow,
        caps: UploadCaps,
        once: Option<UploadOnce>,
    ) -> Answer<'_, UploadOpened> {
        self.admitted_to_uploads(|uploads| uploads.open_upload(row, caps, once))
    }

    fn upload(&self, id: UploadId) -> Answer<'_, Option<UploadRow>> {
        self.admitted_to_uploads(|uploads| uploads.upload(id))
    }

    fn chunk(&self, id: UploadId, index: u64) -> Answer<'_, Option<Digest>> {
        match self.hook.admit() {
            Ok(()) => self.hook.chunk(&self.inner, id, index),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }

    fn chunks(&self, id: UploadId) -> Answer<'_, Vec<ChunkThere>> {
        self.admitted_to_uploads(|uploads| uploads.chunks(id))
    }

    fn keep_chunk(&self, receipt: ChunkReceipt) -> Answer<'_, Kept> {
        self.admitted_to_uploads(|uploads| uploads.keep_chunk(receipt))
    }

    fn keep_stream(&self, receipt: StreamReceipt) -> Answer<'_, Kept> {
        match self.hook.admit() {
            Ok(()) => self.hook.keep_stream(&self.inner, receipt),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }

    fn is_alone(&self) -> bool {
        self.inner.uploads().is_alone()
    }

    fn reserve_upload(&self, id: UploadId, bytes: u64, quota_bytes: u64) -> Answer<'_, bool> {
        self.admitted_to_uploads(|uploads| uploads.reserve_upload(id, bytes, quota_bytes))
    }

    fn release_upload(&self, id: UploadId) -> Answer<'_, ()> {
        self.admitted_to_uploads(|uploads| uploads.release_upload(id))
    }

    fn turn_upload(&self, turn: UploadTurn) -> Answer<'_, bool> {
        self.admitted_to_uploads(|uploads| uploads.turn_upload(turn))
    }

    fn lease(
        &self,
        key: LeaseKey,
        holder: u64,
        now_ms: u64,
        until_ms: u64,
        evict: bool,
    ) -> Answer<'_, Leased> {
        match self.hook.admit() {
            Ok(()) => self.hook.lease(&self.inner, key, holder, (now_ms, until_ms), evict),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }

    fn renew(&self, key: LeaseKey, holder: u64, now_ms: u64, until_ms: u64) -> Answer<'_, Renewed> {
        self.admitted_to_uploads(|uploads| uploads.renew(key, holder, now_ms, until_ms))
    }

    fn release(&self, key: LeaseKey, holder: u64) -> Answer<'_, ()> {
        self.admitted_to_uploads(|uploads| uploads.release(key, holder))
    }

    fn overdue_uploads(&self, now_ms: u64, rows: usize) -> Answer<'_, Vec<UploadRow>> {
        self.admitted_to_uploads(|uploads| uploads.overdue_uploads(now_ms, rows))
    }

    fn unfinished_uploads(&self, before_ms: u64, rows: usize) -> Answer<'_, Vec<UploadRow>> {
        self.admitted_to_uploads(|uploads| uploads.unfinished_uploads(before_ms, rows))
    }

    fn upload_states(&self, ids: Vec<UploadId>) -> Answer<'_, Vec<(UploadId, State)>> {
        self.admitted_to_uploads(|uploads| uploads.upload_states(ids))
    }

    fn untold_uploads(&self, rows: usize) -> Answer<'_, Vec<UploadRow>> {
        self.admitted_to_uploads(|uploads| uploads.untold_uploads(rows))
    }

    fn upload_told(&self, id: UploadId) -> Answer<'_, ()> {
        self.admitted_to_uploads(|uploads| uploads.upload_told(id))
    }

    fn undiscarded_uploads(&self, rows: usize) -> Answer<'_, Vec<UploadRow>> {
        self.admitted_to_uploads(|uploads| uploads.undiscarded_uploads(rows))
    }

    fn upload_discarded(&self, id: UploadId) -> Answer<'_, ()> {
        self.admitted_to_uploads(|uploads| uploads.upload_discarded(id))
    }

    fn remove_file_row(&self, id: UploadId) -> Answer<'_, bool> {
        self.admitted_to_uploads(|uploads| uploads.remove_file_row(id))
    }

    fn forget_uploads(&self, before_ms: u64, undiscarded_before_ms: u64) -> Answer<'_, u64> {
        self.admitted_to_uploads(|uploads| uploads.forget_uploads(before_ms, undiscarded_before_ms))
    }

    fn upload_usage(&self) -> Answer<'_, UploadUsage> {
        self.admitted_to_uploads(|uploads| uploads.upload_usage())
    }
}
