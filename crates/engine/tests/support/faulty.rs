//! Planted faults around the reading side.

use driftline_engine::{
    Head, History, Page, PageQuery, Place, Receipt, Row, SessionProgress, Store, StoreError, StoredPolicy,
    Submission,
};
use driftline_model::{DeviceKey, DeviceNo, Epoch, KindName, RecordId, Seq, SyncId, TenantId, TenantNo};
use driftline_protocol::{Cursor, CursorKey, Phase};
use driftline_storage::MemoryStore;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    /// Every page of the log but the first starts one place too late.
    SkipsAPlace,
    /// Tombstones are left out of the log.
    HidesTombstones,
    /// A page that was cut says that nothing follows.
    NeverMore,
    /// Rows of the log come by key.
    ForgetsTheOrder,
    /// Tombstones are purged without raising the floor.
    ForgetsTheFloor,
    /// Pages pass, and the changes are told against the last page instead of where the reader was caught up.
    FromIsAt,
    /// A cursor says that it covers kinds that it does not.
    CoversAll,
    /// The log after a snapshot starts at its end.
    SnapshotEndsLate,
}

/// A store with a fault.
#[derive(Debug, Clone)]
pub(crate) struct Faulty {
    pub(crate) inner: MemoryStore,
    pub(crate) fault: Fault,
}

impl Faulty {
    /// Spoils a cursor on its way to the reader.
    pub(crate) fn spoil(&self, tenant: &TenantId, sealed: String, seq: Seq) -> String {
        let key = CursorKey::new(&self.cursor_secret());
        let Ok(mut cursor) = key.open(tenant, &sealed) else { return sealed };
        let Cursor { kinds, phase, .. } = &mut cursor;
        match (self.fault, phase) {
            (Fault::FromIsAt, Phase::Log(resume)) => resume.from = resume.at,
            (Fault::CoversAll, _) => kinds.clear(),
            (Fault::SnapshotEndsLate, Phase::Snapshot { then, .. }) => (then.from, then.at) = (seq, seq),
            _ => return sealed,
        }
        key.seal(tenant, &cursor)
    }
}

impl Store for Faulty {
    async fn page(&self, query: PageQuery) -> Result<Page, StoreError> {
        let mut spoiled = query.clone();
        let mut page = match (self.fault, &query.place) {
            (Fault::SkipsAPlace, Place::After(at)) if *at > Seq::ZERO => {
                spoiled.place = Place::After(at.next());
                self.inner.page(spoiled).await?
            }
            (Fault::ForgetsTheOrder, Place::After(_)) => {
                (spoiled.rows, spoiled.bytes) = (usize::MAX, usize::MAX);
                let mut page = self.inner.page(spoiled).await?;
                page.rows.sort_by(|a, b| a.id.cmp(&b.id));
                page.more = page.rows.len() > query.rows;
                page.rows.truncate(query.rows);
                page
            }
            _ => self.inner.page(spoiled).await?,
        };
        match self.fault {
            Fault::HidesTombstones => page.rows.retain(|row| !row.deleted),
            Fault::NeverMore => page.more = false,
            Fault::ForgetsTheFloor => page.head.gc_floor = Seq::ZERO,
            _ => {}
        }
        Ok(page)
    }

    async fn tenant(&self, tenant: &TenantId) -> Result<TenantNo, StoreError> {
        self.inner.tenant(tenant).await
    }

    async fn device(&self, tenant: TenantNo, device: &DeviceKey) -> Result<DeviceNo, StoreError> {
        self.inner.device(tenant, device).await
    }

    async fn head(&self, tenant: TenantNo) -> Result<Head, StoreError> {
        self.inner.head(tenant).await
    }

    async fn commit(&self, submission: Submission) -> Result<Receipt, StoreError> {
        self.inner.commit(submission).await
    }

    async fn record(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> Result<Option<Row>, StoreError> {
        self.inner.record(tenant, kind, id).await
    }

    async fn history(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> Result<Option<History>, StoreError> {
        self.inner.history(tenant, kind, id).await
    }

    async fn policies(&self, tenant: TenantNo) -> Result<Vec<StoredPolicy>, StoreError> {
        self.inner.policies(tenant).await
    }

    async fn set_policy(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        doc: Option<String>,
    ) -> Result<Option<u64>, StoreError> {
        self.inner.set_policy(tenant, kind, doc).await
    }

    async fn begin_epoch(&self, tenant: TenantNo, left: Epoch) -> Result<Head, StoreError> {
        self.inner.begin_epoch(tenant, left).await
    }

    async fn session(
        &self,
        tenant: TenantNo,
        device: DeviceNo,
        sync_id: &SyncId,
    ) -> Result<Option<SessionProgress>, StoreError> {
        self.inner.session(tenant, device, sync_id).await
    }

    async fn prune(&self, now_ms: u64) -> Result<u64, StoreError> {
        self.inner.prune(now_ms).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.inner.probe().await
    }

    fn cursor_secret(&self) -> [u8; 32] {
        self.inner.cursor_secret()
    }
}
