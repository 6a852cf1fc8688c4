//! A store of which the kind is known when the server starts.

use driftline_engine::{
    AuditEntry, AuditQuery, ConflictQuery, ConflictRow, DeviceChange, DeviceChanged, DeviceNote, DeviceOnce,
    DeviceQuery, DeviceRow, Head, History, Page, PageQuery, PartSum, Receipt, Remembered, Retention, Row,
    SampleQuery, SampleRow, SeriesQuery, SeriesRow, SessionProgress, Store, StoreError, StoredPolicy,
    Submission, SumQuery,
};
use driftline_idempotency::Record;
use driftline_model::{
    ConflictId, DeviceKey, DeviceNo, Epoch, KindName, RecordId, SyncId, TenantId, TenantNo,
};

use crate::postgres::PostgresStore;
use crate::sqlite::SqliteStore;

/// One of the stores that outlive the process, so that what stands on a store is compiled once for both. Every clone
/// is the same store.
#[derive(Debug, Clone)]
pub enum AnyStore {
    /// The embedded database.
    Sqlite(SqliteStore),
    /// A database that other nodes may share.
    Postgres(PostgresStore),
}

/// Has the store that there is answer a call.
macro_rules! ask {
    ($any:expr, $store:ident => $call:expr) => {
        match $any {
            AnyStore::Sqlite($store) => $call.await,
            AnyStore::Postgres($store) => $call.await,
        }
    };
}

impl Store for AnyStore {
    async fn tenant(&self, tenant: &TenantId) -> Result<TenantNo, StoreError> {
        ask!(self, store => store.tenant(tenant))
    }

    async fn device(&self, tenant: TenantNo, device: &DeviceKey) -> Result<DeviceNo, StoreError> {
        ask!(self, store => store.device(tenant, device))
    }

    async fn head(&self, tenant: TenantNo) -> Result<Head, StoreError> {
        ask!(self, store => store.head(tenant))
    }

    async fn commit(&self, submission: Submission) -> Result<Receipt, StoreError> {
        ask!(self, store => store.commit(submission))
    }

    async fn page(&self, query: PageQuery) -> Result<Page, StoreError> {
        ask!(self, store => store.page(query))
    }

    async fn record(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> Result<Option<Row>, StoreError> {
        ask!(self, store => store.record(tenant, kind, id))
    }

    async fn history(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> Result<Option<History>, StoreError> {
        ask!(self, store => store.history(tenant, kind, id))
    }

    async fn conflict(
        &self,
        tenant: TenantNo,
        conflict_id: &ConflictId,
    ) -> Result<Option<ConflictRow>, StoreError> {
        ask!(self, store => store.conflict(tenant, conflict_id))
    }

    async fn conflicts(
        &self,
        tenant: TenantNo,
        query: ConflictQuery,
    ) -> Result<Vec<ConflictRow>, StoreError> {
        ask!(self, store => store.conflicts(tenant, query))
    }

    async fn audit(&self, tenant: TenantNo, query: AuditQuery) -> Result<Vec<AuditEntry>, StoreError> {
        ask!(self, store => store.audit(tenant, query))
    }

    async fn sums(&self, query: SumQuery) -> Result<(Head, Vec<PartSum>), StoreError> {
        ask!(self, store => store.sums(query))
    }

    async fn policies(&self, tenant: TenantNo) -> Result<Vec<StoredPolicy>, StoreError> {
        ask!(self, store => store.policies(tenant))
    }

    async fn set_policy(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        doc: Option<String>,
    ) -> Result<Option<u64>, StoreError> {
        ask!(self, store => store.set_policy(tenant, kind, doc))
    }

    async fn begin_epoch(&self, tenant: TenantNo, left: Epoch) -> Result<Head, StoreError> {
        ask!(self, store => store.begin_epoch(tenant, left))
    }

    async fn session(
        &self,
        tenant: TenantNo,
        device: DeviceNo,
        sync_id: &SyncId,
    ) -> Result<Option<SessionProgress>, StoreError> {
        ask!(self, store => store.session(tenant, device, sync_id))
    }

    async fn prune(&self, now_ms: u64, retention: &Retention) -> Result<u64, StoreError> {
        ask!(self, store => Store::prune(store, now_ms, retention))
    }

    async fn samples(&self, tenant: TenantNo, query: SampleQuery) -> Result<Vec<SampleRow>, StoreError> {
        ask!(self, store => store.samples(tenant, query))
    }

    async fn series(&self, tenant: TenantNo, query: SeriesQuery) -> Result<Vec<SeriesRow>, StoreError> {
        ask!(self, store => store.series(tenant, query))
    }

    async fn device_row(&self, tenant: TenantNo, device: DeviceNo) -> Result<Option<DeviceRow>, StoreError> {
        ask!(self, store => store.device_row(tenant, device))
    }

    async fn devices(&self, tenant: TenantNo, query: DeviceQuery) -> Result<Vec<DeviceRow>, StoreError> {
        ask!(self, store => store.devices(tenant, query))
    }

    async fn device_by_digest(
        &self,
        digest: [u8; 32],
    ) -> Result<Option<(TenantId, TenantNo, DeviceRow)>, StoreError> {
        ask!(self, store => store.device_by_digest(digest))
    }

    async fn change_device(
        &self,
        tenant: TenantNo,
        change: DeviceChange,
        once: Option<DeviceOnce>,
    ) -> Result<DeviceChanged, StoreError> {
        ask!(self, store => store.change_device(tenant, change, once))
    }

    async fn note_devices(&self, notes: Vec<DeviceNote>) -> Result<(), StoreError> {
        ask!(self, store => store.note_devices(notes))
    }

    async fn remembered(
        &self,
        tenant: TenantNo,
        owner: &str,
        key: &str,
    ) -> Result<Option<Record<Remembered>>, StoreError> {
        ask!(self, store => store.remembered(tenant, owner, key))
    }

    fn log(&self) -> &dyn driftline_engine::EventLog {
        match self {
            Self::Sqlite(store) => store.log(),
            Self::Postgres(store) => store.log(),
        }
    }

    fn uploads(&self) -> &dyn driftline_engine::UploadRows {
        match self {
            Self::Sqlite(store) => store.uploads(),
            Self::Postgres(store) => store.uploads(),
        }
    }

    async fn probe(&self) -> Result<(), StoreError> {
        ask!(self, store => store.probe())
    }

    fn cursor_secret(&self) -> [u8; 32] {
        match self {
            Self::Sqlite(store) => store.cursor_secret(),
            Self::Postgres(store) => store.cursor_secret(),
        }
    }
}
