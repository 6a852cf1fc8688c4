//! The ports: what the engine needs of the world.

use std::future::Future;

use driftline_conflict::Record as StoredRecord;
use driftline_idempotency::Record;
use driftline_model::{
    ConflictId, DeviceKey, DeviceNo, Epoch, Hlc, KindName, OpId, RecordId, ScopeName, Seq, SyncId, TenantId,
    TenantNo, UserId,
};
use driftline_protocol::ItemCode;
use thiserror::Error;

use crate::catalogue::Reviewable;
use crate::group::{Receipt, Remembered, Submission};
use crate::hub::Committed;
use crate::log::EventLog;
use crate::registry::{DeviceChange, DeviceChanged, DeviceNote, DeviceOnce, DeviceQuery, DeviceRow};
use crate::review::{AuditQuery, ConflictQuery, ConflictRow};
use crate::samples::{Retention, SampleQuery, SampleRow, SeriesQuery, SeriesRow};
use crate::uploads::UploadRows;

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
    /// The assertions of an ordered field were cut to their limit.
    fn assertions_collapsed(&self) {}
    /// A device asked for the sums of a range, because what it holds does not add up to what it should.
    fn checksum_mismatch(&self) {}
    /// Samples of a message were accepted, known before or refused.
    fn samples(&self, _accepted: u64, _duplicates: u64, _rejected: u64) {}
    /// A key was looked for in memory, or in the database because memory did not know it; `hit` tells whether it was
    /// known there.
    fn remembered(&self, _layer: &'static str, _hit: bool) {}
    /// A device came by another way than before, or came again.
    fn turned(&self, _turn: crate::presence::Turn) {}
    /// Rows of the outbox were processed; of `failed` of them no event could be made.
    fn drained(&self, _processed: u64, _failed: u64) {}
    /// An upload was opened.
    fn upload_opened(&self) {}
    /// An upload was refused because its tenant's quota is used up.
    fn quota_refused(&self) {}
    /// Bytes of uploads were received.
    fn upload_bytes(&self, _bytes: u64) {}
    /// An upload with so many bytes ended, so many milliseconds after its opening.
    fn upload_ended(&self, _state: driftline_uploads::State, _bytes: u64, _lived_ms: u64) {}
    /// So much is taken by uploads and files.
    fn upload_usage(&self, _usage: crate::uploads::UploadUsage) {}
}

/// Hears everything and counts nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NullObserver;

impl Observer for NullObserver {
    fn item(&self, _: ItemCode, _: Option<&'static str>) {}
}

/// Is told of every commit, in the order of the tenant's sequence.
///
/// A store that shares its database with other nodes also tells what it hears of those. Nothing here may wait: a store
/// calls it between two groups.
pub trait Listeners: Send + Sync + 'static {
    /// Tells whether anybody listens to a tenant, so that its changes are worth collecting.
    fn listening(&self, tenant: TenantNo) -> bool;
    /// Takes what one commit group changed of one tenant.
    fn committed(&self, committed: Committed);
    /// Another node changed a tenant's policies: those that were read before are in force no more. It is told once a
    /// read gives the new ones.
    fn policies_changed(&self, _: TenantNo) {}
    /// The database lost transactions: numbers that it gave for tenants and devices may stand for nobody now, so that
    /// whoever holds one has to ask for it again. It is told once asking gives the numbers that hold.
    fn numbers_voided(&self) {}
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
    /// The user's claims that may name groups, each with one value; of one claim there may be several.
    pub claims: Vec<(Box<str>, Box<str>)>,
    /// The device, on routes that have one.
    pub device: Option<(DeviceNo, DeviceKey)>,
    /// The scopes that the user reads and writes, sorted.
    pub scopes: Vec<ScopeName>,
    /// The kinds whose conflicts the user may decide.
    pub reviews: Reviewable,
}

impl Identity {
    /// Names who keys of requests belong to: the device, else the user.
    #[must_use]
    pub fn owner(&self) -> Box<str> {
        match &self.device {
            Some((_, key)) => format!("device:{}", key.as_str()).into(),
            None => format!("user:{}", self.user).into(),
        }
    }

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
    /// The number of the last change before the epoch began. What a device holds of a later version, and of an earlier
    /// epoch, is lost here.
    pub epoch_seq: Seq,
    /// The number of the last event.
    pub event_id: u64,
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
    /// The version with which it came into that scope.
    pub entered: Seq,
    /// The user who created it.
    pub owner: Box<str>,
    /// The schema version of the last write that named one.
    pub schema_version: u32,
    /// Whether it is deleted: its delete is later than its last write.
    pub deleted: bool,
    /// Fields and marks.
    pub record: StoredRecord,
}

/// What a store remembers of a device's changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceState {
    /// The highest number seen.
    pub last_n: u64,
    /// Every change up to this number was answered to the device, and forgotten.
    pub acked_n: u64,
}

/// Where a page starts, and what it is a page of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Rows that changed after this, in the order of their change, and rows that left one of the scopes after it for
    /// a scope that is not among them.
    After(Seq),
    /// Live rows by kind and id, from the one after this.
    Key {
        /// The last row of the page before.
        after: Option<(KindName, RecordId)>,
        /// Only rows of these kinds or of these scopes.
        only: Only,
    },
    /// Rows that a reader has to forget who loses these scopes: the rows in them and those that left them, by kind and
    /// id, from the one after this. Deleted rows are among them: the reader may not have heard of the deletion. All
    /// come as [`Left`].
    Lost {
        /// The last row of the page before.
        after: Option<(KindName, RecordId)>,
        /// The lost scopes.
        lost: Vec<ScopeName>,
    },
    /// Live rows of one kind and scope by id: those after the one and up to the other.
    Range {
        /// The kind.
        kind: KindName,
        /// The scope.
        scope: ScopeName,
        /// The row before the first.
        after: Option<RecordId>,
        /// The last row.
        until: Option<RecordId>,
    },
}

/// Which rows of a snapshot are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Only {
    /// All.
    #[default]
    All,
    /// Rows of one of the kinds or in one of the scopes.
    Some {
        /// The kinds.
        kinds: Vec<KindName>,
        /// The scopes.
        scopes: Vec<ScopeName>,
    },
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
    /// Whether the sums of the reader's scopes and kinds are wanted.
    pub sums: bool,
}

/// A page of rows, read at one moment.
#[derive(Debug, Clone)]
pub struct Page {
    /// The head at that moment.
    pub head: Head,
    /// The rows.
    pub rows: Vec<Row>,
    /// Rows that left, in the order of the page's rows.
    pub left: Vec<Left>,
    /// Whether more rows wait.
    pub more: bool,
    /// The sums at that moment, if they were wanted: one for each scope and kind with live rows.
    pub sums: Vec<ScopeSum>,
}

/// A row that left a scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// The row's kind.
    pub kind: KindName,
    /// The row.
    pub id: RecordId,
    /// The scope that it left, or in which it still is, for a reader who lost the scope.
    pub scope: ScopeName,
    /// The version with which it left; of a row that is still there, its version.
    pub seq: Seq,
}

/// How many live rows of a kind a scope holds, and the wrapping sum of their [`driftline_protocol::row_sum`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopeSum {
    /// The scope.
    pub scope: ScopeName,
    /// The kind.
    pub kind: KindName,
    /// The live rows.
    pub count: u64,
    /// The sum.
    pub sum: u64,
}

/// A range of ids of one kind and scope, cut into parts.
#[derive(Debug, Clone)]
pub struct SumQuery {
    /// The tenant.
    pub tenant: TenantNo,
    /// The kind.
    pub kind: KindName,
    /// The scope.
    pub scope: ScopeName,
    /// The row before the first.
    pub after: Option<RecordId>,
    /// The last row.
    pub until: Option<RecordId>,
    /// Into how many parts of about equally many rows it is cut.
    pub parts: usize,
}

/// The sum of a part of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartSum {
    /// The row before the first; none: the beginning.
    pub after: Option<RecordId>,
    /// The last row; none: the end.
    pub until: Option<RecordId>,
    /// The live rows.
    pub count: u64,
    /// The wrapping sum of their [`driftline_protocol::row_sum`].
    pub sum: u64,
}

/// An audit row with its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// The record's kind.
    pub kind: KindName,
    /// The record.
    pub id: RecordId,
    /// The record's version afterwards.
    pub seq: Seq,
    /// The user behind the change.
    pub user: Box<str>,
    /// The device's number of the change.
    pub n: u64,
    /// The strategy.
    pub strategy: String,
    /// Finds the request in the log.
    pub correlation: String,
    /// The rest.
    pub row: AuditRow,
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
    /// The database is away or busy, or did not answer in time. Nothing was half applied: a change that is sent again is
    /// recognised by its name or number if it was applied.
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

    /// Reads one conflict.
    fn conflict(
        &self,
        tenant: TenantNo,
        conflict_id: &ConflictId,
    ) -> impl Future<Output = Result<Option<ConflictRow>, StoreError>> + Send;

    /// Lists conflicts in the order of their opening.
    fn conflicts(
        &self,
        tenant: TenantNo,
        query: ConflictQuery,
    ) -> impl Future<Output = Result<Vec<ConflictRow>, StoreError>> + Send;

    /// Lists audit rows, newest first.
    fn audit(
        &self,
        tenant: TenantNo,
        query: AuditQuery,
    ) -> impl Future<Output = Result<Vec<AuditEntry>, StoreError>> + Send;

    /// Sums the live rows of a range in parts of about equally many rows, with the head of the same moment. The parts
    /// cover the range without a gap; there is at least one.
    fn sums(&self, query: SumQuery) -> impl Future<Output = Result<(Head, Vec<PartSum>), StoreError>> + Send;

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
    /// sessions older than a day, expired answers of keys, tombstones and scope exits older than 30 days, and what
    /// `retention` names. Gives the number of removed rows.
    fn prune(
        &self,
        now_ms: u64,
        retention: &Retention,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Lists samples by device, time and id.
    fn samples(
        &self,
        tenant: TenantNo,
        query: SampleQuery,
    ) -> impl Future<Output = Result<Vec<SampleRow>, StoreError>> + Send;

    /// Lists points of series by hour and name.
    fn series(
        &self,
        tenant: TenantNo,
        query: SeriesQuery,
    ) -> impl Future<Output = Result<Vec<SeriesRow>, StoreError>> + Send;

    /// Reads a device of the registry by its number, a retired one too.
    fn device_row(
        &self,
        tenant: TenantNo,
        device: DeviceNo,
    ) -> impl Future<Output = Result<Option<DeviceRow>, StoreError>> + Send;

    /// Lists devices that are not retired, by their numbers.
    fn devices(
        &self,
        tenant: TenantNo,
        query: DeviceQuery,
    ) -> impl Future<Output = Result<Vec<DeviceRow>, StoreError>> + Send;

    /// Finds the device that a device hash leads to, by the hash's SHA-256, whichever tenant it is of.
    fn device_by_digest(
        &self,
        digest: [u8; 32],
    ) -> impl Future<Output = Result<Option<(TenantId, TenantNo, DeviceRow)>, StoreError>> + Send;

    /// Changes the registry and, with `once`, remembers the answer under the request's key, in one transaction. Only
    /// [`DeviceChanged::Done`] is remembered.
    fn change_device(
        &self,
        tenant: TenantNo,
        change: DeviceChange,
        once: Option<DeviceOnce>,
    ) -> impl Future<Output = Result<DeviceChanged, StoreError>> + Send;

    /// Writes down what was noticed of devices. A sign that is older than what is known of its device changes nothing.
    fn note_devices(&self, notes: Vec<DeviceNote>) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Reads what is remembered under a key that a user or a device made.
    fn remembered(
        &self,
        tenant: TenantNo,
        owner: &str,
        key: &str,
    ) -> impl Future<Output = Result<Option<Record<Remembered>>, StoreError>> + Send;

    /// Returns the log of events beside the records, on the same database.
    fn log(&self) -> &dyn EventLog;

    /// Returns the rows of uploads beside the records, on the same database.
    fn uploads(&self) -> &dyn UploadRows;

    /// Writes something, to show that writing works.
    fn probe(&self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Returns the secret that seals this store's cursors.
    fn cursor_secret(&self) -> [u8; 32];
}
