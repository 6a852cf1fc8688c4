//! A batch on its way through a commit group.

use std::sync::Arc;

use driftline_conflict::{Op, Policy, Winner};
use driftline_model::{
    DeviceNo, Epoch, Hlc, KindName, Object, OpId, RecordId, ScopeName, Seq, SyncId, TenantNo,
};
use driftline_protocol::{FieldError, ItemCode, RecordView};

/// Where a record is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowKey {
    /// The tenant.
    pub tenant: TenantNo,
    /// The kind.
    pub kind: KindName,
    /// The record.
    pub id: RecordId,
}

/// One batch of one device, checked and ready to be applied.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The tenant.
    pub tenant: TenantNo,
    /// The device.
    pub device: DeviceNo,
    /// The user behind it.
    pub user: Box<str>,
    /// The scopes that the user may write.
    pub scopes: Vec<ScopeName>,
    /// The epoch of the items' bases; another one at commit applies nothing.
    pub epoch: Option<Epoch>,
    /// Every change up to this number was answered to the device.
    pub acked_n: Option<u64>,
    /// The batch's place in its session.
    pub batch: Option<(SyncId, u64)>,
    /// Finds the request in the log.
    pub correlation: Box<str>,
    /// The items, in their order.
    pub entries: Vec<Entry>,
}

impl Submission {
    /// Estimates the bytes that the batch brings, to bound a commit group.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let fields = self.entries.iter().map(|entry| match &entry.task {
            Task::Apply(apply) => apply.fields.as_str().len() + 200,
            Task::Refuse(..) => 200,
        });
        fields.sum()
    }
}

/// One item of a batch.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The device's name for the change.
    pub op_id: Option<OpId>,
    /// The device's number of the change.
    pub n: Option<u64>,
    /// Identifies the intent.
    pub hash: u64,
    /// The kind, if it was readable.
    pub kind: Option<KindName>,
    /// The record, if it was readable.
    pub id: Option<RecordId>,
    /// Items of one group apply together or not at all.
    pub group: Option<Box<str>>,
    /// What is to be done.
    pub task: Task,
}

/// What is to be done with an item.
#[derive(Debug, Clone)]
pub enum Task {
    /// Apply it.
    Apply(Apply),
    /// Refuse it; the answer is remembered if its code is.
    Refuse(ItemCode, Vec<FieldError>),
}

/// A change that passed every check that needs no stored row.
#[derive(Debug, Clone)]
pub struct Apply {
    /// The record's kind.
    pub kind: KindName,
    /// The record.
    pub id: RecordId,
    /// What is to be done.
    pub op: Op,
    /// The version that the author had seen.
    pub base: Seq,
    /// The fields to write.
    pub fields: Object,
    /// The author's clock.
    pub hlc: Option<Hlc>,
    /// The schema version that the item was made for; zero: none named.
    pub schema_version: u32,
    /// The scope that the record gets if it is created.
    pub scope: ScopeName,
    /// The policy of its kind.
    pub policy: Arc<Policy>,
}

/// The first answer to a change, as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The device's name for the change.
    pub op_id: Option<OpId>,
    /// The device's number of the change.
    pub n: u64,
    /// Identifies the intent.
    pub hash: u64,
    /// What became of it.
    pub code: ItemCode,
    /// The record's version afterwards; zero: none.
    pub version: Seq,
}

/// The answer to a batch, after its commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// One result per item.
    pub results: Vec<SubmissionResult>,
    /// The head after the batch.
    pub seq: Seq,
    /// The tenant's highest stored clock.
    pub hlc: Hlc,
    /// The tenant's epoch.
    pub epoch: Epoch,
}

/// What became of one item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubmissionResult {
    /// What became of it.
    pub code: ItemCode,
    /// The record's version afterwards.
    pub version: Option<Seq>,
    /// Whether it was known before.
    pub duplicate: bool,
    /// The record as it stands, when it is not what the client must expect.
    pub record: Option<RecordView>,
    /// Per field that a strategy decided, the winner. Names are canonical JSON text.
    pub winners: Vec<(Box<str>, Winner)>,
    /// The strategy that decided, if there was a conflict.
    pub strategy: Option<&'static str>,
    /// Whether the device's clock was held back.
    pub clamped: bool,
    /// What is wrong with it.
    pub errors: Vec<FieldError>,
}

impl SubmissionResult {
    /// Makes a result that says nothing but its code.
    #[must_use]
    pub fn of(code: ItemCode) -> Self {
        Self {
            code,
            version: None,
            duplicate: false,
            record: None,
            winners: Vec::new(),
            strategy: None,
            clamped: false,
            errors: Vec::new(),
        }
    }
}
