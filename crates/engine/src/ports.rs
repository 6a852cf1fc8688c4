//! The ports: what the engine needs of the world.

use std::future::Future;

use driftline_conflict::Record;
use driftline_model::{
    DeviceKey, DeviceNo, Epoch, Hlc, KindName, OpId, RecordId, ScopeName, Seq, SyncId, TenantId, TenantNo,
    UserId,
};
use driftline_protocol::ItemCode;
use thiserror::Error;

use crate::group::{Receipt, Submission};
use crate::hub::Committed;

/// Reads the wall clock.
pub trait Clock: Send + Sync + 'static {
    /// Returns Unix milliseconds.
    fn now_ms(&self) -> u64;
}

/// Draws random bytes fit for secrets.
pub trait Random: Send + Sync + 'static {
    /// Fills the buffer.
    fn fill(&self, buffer: &mut [u8]);
}

/// Hears what the engine does, to count it.
pub trait Observer: Send + Sync + 'static {
    /// An item was decided; `strategy` is set when a conflict strategy decided it.
    fn item(&self, code: ItemCode, strategy: Option<&'static str>);
    /// A device's clock ran so far ahead that it was held back.
    fn clock_clamped(&self) {}
}

/// Hears everything and counts nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NullObserver;

impl Observer for NullObserver {
    fn item(&self, _: ItemCode, _: Option<&'static str>) {}
}

/// Is told of every commit, in the order of the tenant's sequence.
pub trait Listeners: Send + Sync + 'static {
    /// Tells whether anybody listens to a tenant, so that its changes are worth collecting.
    fn listening(&self, tenant: TenantNo) -> bool;
    /// Takes what one commit group changed of one tenant.
    fn committed(&self, committed: Committed);
}

/// Listens to nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Listeners for Silent {
    fn listening(&self, _: TenantNo) -> bool {
        false
    }

    fn committed(&self, _: Committed) {}
}

/// Who asks, as the transport has found out, with the store's numbers for it.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The tenant's name.
    pub tenant_id: TenantId,
    /// The store's number for it.
    pub tenant: TenantNo,
    /// The user.
    pub user: UserId,
    /// The user's roles.
    pub roles: Vec<Box<str>>,
    /// The device, on routes that have one.
    pub device: Option<(DeviceNo, DeviceKey)>,
    /// The scopes that the user reads and writes.
    pub scopes: Vec<ScopeName>,
}

impl Identity {
    /// Tells whether the user has a role.
    #[must_use]
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|own| **own == *role)
    }
}

/// The head of a tenant's sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The life of the sequence.
    pub epoch: Epoch,
    /// The number of the last change.
    pub seq: Seq,
    /// The highest stored clock.
    pub hlc: Hlc,
    /// The version of the tenant's scopes.
    pub scopes_version: u64,
    /// Tombstones up to here may be purged.
    pub gc_floor: Seq,
}

/// A stored record with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The record's kind.
    pub kind: KindName,
    /// The record.
    pub id: RecordId,
    /// The scope it belongs to.
    pub scope: ScopeName,
    /// The user who created it.
    pub owner: Box<str>,
    /// The schema version of the last write that named one.
    pub schema_version: u32,
    /// Whether it is deleted: its delete is later than its last write.
    pub deleted: bool,
    /// Fields and marks.
    pub record: Record,
}

/// What a store remembers of a device's changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceState {
    /// The highest number seen.
    pub last_n: u64,
    /// Every change up to this number was answered to the device, and forgotten.
    pub acked_n: u64,
}

/// Where a page starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Rows that changed after this, in the order of their change.
    After(Seq),
    /// Rows by kind and id, from the one after this; tombstones are left out.
    Key(Option<(KindName, RecordId)>),
}

/// A page of rows that a reader may see.
#[derive(Debug, Clone)]
pub struct PageQuery {
    /// The tenant.
    pub tenant: TenantNo,
    /// The reader's scopes; rows of others are left out.
    pub scopes: Vec<ScopeName>,
    /// The wanted kinds; empty: all.
    pub kinds: Vec<KindName>,
    /// Where to start.
    pub place: Place,
    /// The most rows.
    pub rows: usize,
    /// The most bytes of fields; a page holds at least one row.
    pub bytes: usize,
}

/// A page of rows, read at one moment.
#[derive(Debug, Clone)]
pub struct Page {
    /// The head at that moment.
    pub head: Head,
    /// The rows.
    pub rows: Vec<Row>,
    /// Whether more rows wait.
    pub more: bool,
}

/// A batch session as the store remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionProgress {
    /// The numbers of the batches that were answered, rising.
    pub batches: Vec<u64>,
    /// When the last of them was, in Unix milliseconds.
    pub last_ms: u64,
}

/// A tenant's own policy for one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPolicy {
    /// The kind.
    pub kind: KindName,
    /// The document, JSON.
    pub doc: String,
    /// Rises with every change of it.
    pub version: u64,
}

/// An audit row of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// The row's number in its tenant.
    pub audit_id: u64,
    /// When the change was received, in Unix milliseconds.
    pub at_ms: u64,
    /// The device whose change was decided.
    pub device: DeviceKey,
    /// The device's name for the change.
    pub op_id: Option<OpId>,
    /// What became of it.
    pub code: ItemCode,
    /// The policy's version.
    pub policy_version: u64,
    /// The account, JSON as [`crate::audit_detail`] made it.
    pub detail: String,
}

/// A record with everything that explains its state.
#[derive(Debug, Clone)]
pub struct History {
    /// The record.
    pub row: Row,
    /// The devices of its marks.
    pub devices: Vec<(DeviceNo, DeviceKey)>,
    /// The names of changes that are still remembered, by device and number.
    pub ops: Vec<(DeviceNo, u64, OpId)>,
    /// Its audit rows, oldest first.
    pub audit: Vec<AuditRow>,
}

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database is away or busy; nothing was applied.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The stored bytes are not what this program wrote.
    #[error("the store holds something unreadable: {0}")]
    Corrupt(String),
}

/// The port to a database.
///
/// Every call names its tenant by the number that [`Store::tenant`] gave, and no call reaches another
/// tenant's rows. Dropping a returned future gives up the answer, never half of the work: a commit that was
/// queued happens or not, as a whole.
pub trait Store: Send + Sync + 'static {
    /// Finds a tenant, creating it on first use.
    fn tenant(&self, tenant: &TenantId) -> impl Future<Output = Result<TenantNo, StoreError>> + Send;

    /// Finds a device, registering it on first use.
    fn device(
        &self,
        tenant: TenantNo,
        device: &DeviceKey,
    ) -> impl Future<Output = Result<DeviceNo, StoreError>> + Send;

    /// Reads a tenant's head.
    fn head(&self, tenant: TenantNo) -> impl Future<Output = Result<Head, StoreError>> + Send;

    /// Applies a batch durably: the answer comes after the commit.
    fn commit(&self, submission: Submission) -> impl Future<Output = Result<Receipt, StoreError>> + Send;

    /// Reads a page, with the head of the same moment.
    fn page(&self, query: PageQuery) -> impl Future<Output = Result<Page, StoreError>> + Send;

    /// Reads one record.
    fn record(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> impl Future<Output = Result<Option<Row>, StoreError>> + Send;

    /// Reads one record with what explains its state.
    fn history(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        id: &RecordId,
    ) -> impl Future<Output = Result<Option<History>, StoreError>> + Send;

    /// Reads a tenant's own policies.
    fn policies(
        &self,
        tenant: TenantNo,
    ) -> impl Future<Output = Result<Vec<StoredPolicy>, StoreError>> + Send;

    /// Writes or, without a document, removes a tenant's policy for a kind; gives its new version, or nothing
    /// when there was none to remove.
    fn set_policy(
        &self,
        tenant: TenantNo,
        kind: &KindName,
        doc: Option<String>,
    ) -> impl Future<Output = Result<Option<u64>, StoreError>> + Send;

    /// Begins a new epoch, unless the tenant has left the given one already; gives the head afterwards.
    fn begin_epoch(
        &self,
        tenant: TenantNo,
        left: Epoch,
    ) -> impl Future<Output = Result<Head, StoreError>> + Send;

    /// Reads what is remembered of a device's batch session.
    fn session(
        &self,
        tenant: TenantNo,
        device: DeviceNo,
        sync_id: &SyncId,
    ) -> impl Future<Output = Result<Option<SessionProgress>, StoreError>> + Send;

    /// Removes what is past its retention at the given time: answers of changes older than 90 days, batch
    /// sessions older than a day, tombstones older than 30 days. Gives the number of removed rows.
    fn prune(&self, now_ms: u64) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Writes something, to show that writing works.
    fn probe(&self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Returns the secret that seals this store's cursors.
    fn cursor_secret(&self) -> [u8; 32];
}
