//! A store whose commits wait until the test lets them go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use driftline_engine::{
    Head, History, Page, PageQuery, Receipt, Row, SessionProgress, Store, StoreError, StoredPolicy,
    Submission,
};
use driftline_model::{DeviceKey, DeviceNo, Epoch, KindName, RecordId, SyncId, TenantId, TenantNo};
use driftline_storage::MemoryStore;
use tokio::sync::Semaphore;

/// A store in memory behind a gate.
pub struct Gated {
    store: MemoryStore,
    gate: Arc<Gate>,
}

/// Lets commits through, and can hold one look at the policies.
pub struct Gate {
    permits: Semaphore,
    begun: AtomicUsize,
    hold_policies: AtomicBool,
    policies_held: AtomicUsize,
    policies: Semaphore,
}

impl Gate {
    /// Makes a gate that is shut.
    pub fn shut() -> Arc<Self> {
        Arc::new(Self {
            permits: Semaphore::new(0),
            begun: AtomicUsize::new(0),
            hold_policies: AtomicBool::new(false),
            policies_held: AtomicUsize::new(0),
            policies: Semaphore::new(0),
        })
    }

    /// Holds the next look at the policies; those after it pass.
    pub fn hold_policies(&self) {
        self.hold_policies.store(true, Ordering::SeqCst);
    }

    /// Returns how many looks at the policies were held.
    pub fn policies_held(&self) -> usize {
        self.policies_held.load(Ordering::SeqCst)
    }

    /// Lets the held look go.
    pub fn let_policies_go(&self) {
        self.policies.add_permits(1);
    }

    /// Lets so many commits through.
    pub fn let_through(&self, commits: usize) {
        self.permits.add_permits(commits);
    }

    /// Returns how many commits were asked for.
    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }
}

impl Gated {
    pub fn new(store: MemoryStore, gate: Arc<Gate>) -> Self {
        Self { store, gate }
    }
}

impl Store for Gated {
    async fn commit(&self, submission: Submission) -> Result<Receipt, StoreError> {
        self.gate.begun.fetch_add(1, Ordering::SeqCst);
        self.gate.permits.acquire().await.expect("the gate stays").forget();
        self.store.commit(submission).await
    }

    async fn tenant(&self, tenant: &TenantId) -> Result<TenantNo, StoreError> {
        self.store.tenant(tenant).await
    }

    async fn device(&self, tenant: TenantNo, device: &DeviceKey) -> Result<DeviceNo, StoreError> {
        self.store.device(tenant, device).await
    }

    async fn head(&self, tenant: TenantNo) -> Result<Head, StoreError> {
        self.store.head(tenant).await
    }

    async fn page(&self, query: PageQuery) -> Result<Page, StoreError> {
        self.store.page(query).await
    }

    async fn record(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> Result<Option<Row>, StoreError> {
        self.store.record(tenant, kind, id).await
    }

    async fn history(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> Result<Option<History>, StoreError> {
        self.store.history(tenant, kind, id).await
    }

    async fn policies(&self, tenant: TenantNo) -> Result<Vec<StoredPolicy>, StoreError> {
        if self.gate.hold_policies.swap(false, Ordering::SeqCst) {
            self.gate.policies_held.fetch_add(1, Ordering::SeqCst);
            self.gate.policies.acquire().await.expect("the gate stays").forget();
        }
        self.store.policies(tenant).await
    }

    async fn set_policy(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        doc: Option<String>,
    ) -> Result<Option<u64>, StoreError> {
        self.store.set_policy(tenant, kind, doc).await
    }

    async fn begin_epoch(&self, tenant: TenantNo, left: Epoch) -> Result<Head, StoreError> {
        self.store.begin_epoch(tenant, left).await
    }

    async fn session(
        &self,
        tenant: TenantNo,
        device: DeviceNo,
        sync_id: &SyncId,
    ) -> Result<Option<SessionProgress>, StoreError> {
        self.store.session(tenant, device, sync_id).await
    }

    async fn prune(&self, now_ms: u64) -> Result<u64, StoreError> {
        self.store.prune(now_ms).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.store.probe().await
    }

    fn cursor_secret(&self) -> [u8; 32] {
        self.store.cursor_secret()
    }
}
