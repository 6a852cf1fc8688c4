//! A record of everything that a store was told and answered.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use driftline_engine::{
    AuditEntry, AuditQuery, Clock as _, ConflictQuery, ConflictRow, DeviceChange, DeviceChanged, DeviceNote,
    DeviceOnce, DeviceQuery, DeviceRow, Head, History, Page, PageQuery, PartSum, Receipt, Remembered,
    Retention, Row, SampleQuery, SampleRow, SeriesQuery, SeriesRow, SessionProgress, Store, StoreError,
    StoredPolicy, Submission, SumQuery,
};
use driftline_idempotency::Record;
use driftline_model::{
    ConflictId, DeviceKey, DeviceNo, Epoch, KindName, RecordId, SyncId, TenantId, TenantNo,
};

use super::world::ServerClock;

/// One batch with its answer.
#[derive(Debug, Clone)]
pub(super) struct Commit {
    /// The server's clock when it came.
    pub(super) at_ms: u64,
    pub(super) submission: Submission,
    pub(super) receipt: Receipt,
}

/// The batches of the present life of the sequence, in the order of their commits.
///
/// A store that is brought back from a copy has forgotten the batches after the copy; the book forgets them too.
#[derive(Debug, Default)]
pub(super) struct Book {
    commits: Vec<Commit>,
    /// How many batches the store's copy holds.
    saved: usize,
    /// How many batches the laws have seen.
    read: usize,
}

impl Book {
    pub(super) fn save(&mut self) {
        self.saved = self.commits.len();
    }

    pub(super) fn restore(&mut self) {
        self.commits.truncate(self.saved);
        self.read = self.saved;
    }

    pub(super) fn commits(&self) -> &[Commit] {
        &self.commits
    }

    /// Takes the batches that nobody has looked at yet.
    pub(super) fn unread(&mut self) -> Vec<Commit> {
        let unread = self.commits[self.read..].to_vec();
        self.read = self.commits.len();
        unread
    }
}

/// The book, as the store that writes it and the laws that read it share it. Nobody holds the lock across a call.
#[derive(Debug, Clone, Default)]
pub(super) struct Journal(Arc<Mutex<Book>>);

impl Journal {
    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A store whose batches and answers are written down.
#[derive(Debug)]
pub(super) struct Journaled<S> {
    pub(super) inner: S,
    pub(super) journal: Journal,
    pub(super) clock: Arc<ServerClock>,
}

impl<S: Store> Store for Journaled<S> {
    async fn commit(&self, submission: Submission) -> Result<Receipt, StoreError> {
        let at_ms = self.clock.now_ms();
        let receipt = self.inner.commit(submission.clone()).await?;
        let commit = Commit { at_ms, submission, receipt: receipt.clone() };
        self.journal.book().commits.push(commit);
        Ok(receipt)
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

    fn head(&self, tenant: TenantNo) -> impl Future<Output = Result<Head, StoreError>> + Send {
        self.inner.head(tenant)
    }

    fn page(&self, query: PageQuery) -> impl Future<Output = Result<Page, StoreError>> + Send {
        self.inner.page(query)
    }

    fn record(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> impl Future<Output = Result<Option<Row>, StoreError>> + Send {
        self.inner.record(tenant, kind, id)
    }

    fn history(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> impl Future<Output = Result<Option<History>, StoreError>> + Send {
        self.inner.history(tenant, kind, id)
    }

    fn conflict(
        &self,
        tenant: TenantNo,
        conflict_id: &ConflictId,
    ) -> impl Future<Output = Result<Option<ConflictRow>, StoreError>> + Send {
        self.inner.conflict(tenant, conflict_id)
    }

    fn conflicts(
        &self,
        tenant: TenantNo,
        query: ConflictQuery,
    ) -> impl Future<Output = Result<Vec<ConflictRow>, StoreError>> + Send {
        self.inner.conflicts(tenant, query)
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

    fn begin_epoch(
        &self,
        tenant: TenantNo,
        left: Epoch,
    ) -> impl Future<Output = Result<Head, StoreError>> + Send {
        self.inner.begin_epoch(tenant, left)
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
