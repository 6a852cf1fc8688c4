//! A store around another one.

use std::future::Future;

use driftline_engine::{
    AuditEntry, AuditQuery, ConflictQuery, ConflictRow, Head, History, Page, PageQuery, PartSum, Receipt,
    Row, SessionProgress, Store, StoreError, StoredPolicy, Submission, SumQuery,
};
use driftline_model::{
    ConflictId, DeviceKey, DeviceNo, Epoch, KindName, RecordId, SyncId, TenantId, TenantNo,
};

/// What a [`Wrapped`] store does otherwise than the one inside; each hook may still ask that one.
pub trait Hook<S: Store>: Send + Sync + 'static {
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
    fn commit(&self, submission: Submission) -> impl Future<Output = Result<Receipt, StoreError>> + Send {
        self.hook.commit(&self.inner, submission)
    }

    fn page(&self, query: PageQuery) -> impl Future<Output = Result<Page, StoreError>> + Send {
        self.hook.page(&self.inner, query)
    }

    fn policies(
        &self,
        tenant: TenantNo,
    ) -> impl Future<Output = Result<Vec<StoredPolicy>, StoreError>> + Send {
        self.hook.policies(&self.inner, tenant)
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
        self.hook.head(&self.inner, tenant)
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

    fn prune(&self, now_ms: u64) -> impl Future<Output = Result<u64, StoreError>> + Send {
        self.inner.prune(now_ms)
    }

    fn probe(&self) -> impl Future<Output = Result<(), StoreError>> + Send {
        self.inner.probe()
    }

    fn cursor_secret(&self) -> [u8; 32] {
        self.inner.cursor_secret()
    }
}
