//! A batch on its way through a commit group.

use std::sync::Arc;

use driftline_conflict::{Op, Policy, Rights, Winner};
use driftline_idempotency::Fingerprint;
use driftline_insight::SeriesPoint;
use driftline_model::{
    ConflictId, DeviceNo, Epoch, Hlc, Intents, KindName, Object, OpId, RecordId, ScopeName, Seq, SyncId,
    TenantNo,
};
use driftline_protocol::{FieldError, ItemCode, RecordView, Resolution};

use crate::events::{Announcing, EventDraft, Published};
use crate::review::ConflictRow;

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

/// One batch of one device, checked and ready to be applied; or events to be published, which need no device.
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
    /// The names under which the batch may be sent again; the first that is known answers for all.
    pub once: Vec<Once>,
    /// Finds the request in the log.
    pub correlation: Box<str>,
    /// The items, in their order.
    pub entries: Vec<Entry>,
    /// Events to be published, in their order.
    pub events: Vec<EventDraft>,
}

impl Submission {
    /// Tells whether the sender lacks the right to write one of the items. Then no answer of before is given: the right may
    /// have been taken away since.
    #[must_use]
    pub fn lacks_a_right(&self) -> bool {
        self.entries.iter().any(|entry| matches!(entry.task, Task::Refuse(ItemCode::Forbidden, _)))
    }

    /// Estimates the bytes that the batch brings, to bound a commit group.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let fields = self.entries.iter().map(|entry| match &entry.task {
            Task::Apply(apply) => apply.fields.as_str().len() + 200,
            Task::Resolve(resolve) => resolve.fields.as_str().len() + 200,
            Task::Append(append) => append.fields.as_str().len() + 100,
            Task::Aggregate(aggregate) => aggregate.bytes(),
            Task::Refuse(..) => 200,
        });
        fields.sum::<usize>() + self.events.iter().map(EventDraft::bytes).sum::<usize>()
    }

    /// Tells whether there are only events: then the device is nobody, and no state of it is looked at.
    #[must_use]
    pub fn is_publication(&self) -> bool {
        self.entries.is_empty() && !self.events.is_empty()
    }
}

/// A name under which a batch may be sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Once {
    /// The name.
    pub key: OnceKey,
    /// Tells the batch from another one under the same name.
    pub fingerprint: Fingerprint,
    /// Milliseconds for which the answer is remembered.
    pub window_ms: u64,
}

/// What a batch is remembered by. Names belong to their tenant and, within it, to a user or a device.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OnceKey {
    /// A key that the client made.
    Request {
        /// The user or the device that made it, as [`Identity::owner`](crate::Identity::owner) names it.
        owner: Box<str>,
        /// The key.
        key: Box<str>,
    },
    /// The batch's place in a sync session.
    Batch {
        /// The device.
        device: DeviceNo,
        /// The session.
        sync_id: SyncId,
        /// The batch's number in it.
        number: u64,
    },
}

/// The answer that is remembered of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remembered {
    /// The whole of it.
    Receipt(Box<Receipt>),
    /// It was too large: what is known of each item answers again.
    Items,
    /// That of an earlier batch of the same commit group, by its place.
    InGroup(usize),
    /// Bytes that somebody else keeps under the key: an answer beside the batches.
    Bytes(Box<[u8]>),
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
    /// Decide a conflict. The entry names the conflict's record.
    Resolve(Resolve),
    /// Append a sample.
    Append(Append),
    /// Add to hourly series.
    Aggregate(Box<Aggregate>),
}

/// A sample that passed every check that needs no stored row. The entry names its kind and id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// Its fields.
    pub fields: Object,
    /// Identifies the content.
    pub hash: u64,
    /// The time that it tells of, in Unix milliseconds; none: the time of receipt.
    pub at_ms: Option<u64>,
    /// The device's time of sending in Unix milliseconds, which decides between two samples of one key; none: the time
    /// of receipt.
    pub sent_ms: Option<u64>,
    /// Whether a later sample of the same id takes the place of an earlier one.
    pub keyed: bool,
    /// The event that it publishes once it is accepted.
    pub announce: Option<Announcing>,
}

/// What a device counted, on its way into hourly series.
#[derive(Debug, Clone, PartialEq)]
pub struct Aggregate {
    /// The hour's beginning in Unix milliseconds.
    pub hour_ms: u64,
    /// Names, how much is added to each counter and what was measured.
    pub series: Vec<(Box<str>, SeriesPoint)>,
}

impl Aggregate {
    fn bytes(&self) -> usize {
        self.series.len() * 400
    }
}

/// A reviewer's decision.
#[derive(Debug, Clone)]
pub struct Resolve {
    /// The conflict.
    pub conflict_id: ConflictId,
    /// The decision.
    pub resolution: Resolution,
    /// The values to write, for [`Resolution::Merged`].
    pub fields: Object,
    /// The record's version that the reviewer had before the eyes; none: the one that the row names.
    pub version: Option<Seq>,
    /// Where the record is kept.
    pub placement: Placement,
    /// The policy of the record's kind.
    pub policy: Arc<Policy>,
    /// The event that the record publishes if it changes.
    pub announce: Option<Announcing>,
}

/// The scope that a record is kept in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// The one in which it was created.
    Fixed(ScopeName),
    /// That of the group which the field names, canonical JSON text; it moves with the field.
    Group(Box<str>),
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
    /// What is asked beside whole values, if anything.
    pub intents: Option<Box<Intents>>,
    /// The author's clock.
    pub hlc: Option<Hlc>,
    /// The schema version that the item was made for; zero: none named.
    pub schema_version: u32,
    /// Where the record is kept.
    pub placement: Placement,
    /// What the author may do beyond writing.
    pub rights: Rights,
    /// The policy of its kind.
    pub policy: Arc<Policy>,
    /// The event that it publishes once it is accepted.
    pub announce: Option<Announcing>,
}

impl Entry {
    /// Tells whether open conflicts of the record are needed to decide the item.
    #[must_use]
    pub fn may_review(&self) -> bool {
        match &self.task {
            Task::Apply(apply) => apply.policy.may_review(),
            Task::Resolve(_) => true,
            Task::Refuse(..) | Task::Append(_) | Task::Aggregate(_) => false,
        }
    }

    /// Returns the scope that the item may bring its record into, where it can be told beforehand.
    #[must_use]
    pub fn scope(&self) -> Option<ScopeName> {
        let (placement, fields) = match &self.task {
            Task::Apply(apply) => (&apply.placement, &apply.fields),
            Task::Resolve(resolve) => (&resolve.placement, &resolve.fields),
            Task::Refuse(..) | Task::Append(_) | Task::Aggregate(_) => return None,
        };
        placement.of(fields)
    }

    /// Tells whether the item names a record.
    #[must_use]
    pub fn is_record(&self) -> bool {
        !matches!(self.task, Task::Append(_) | Task::Aggregate(_))
    }
}

impl Placement {
    /// Returns the scope of a record with these fields; nothing when they name no group.
    #[must_use]
    pub fn of(&self, fields: &Object) -> Option<ScopeName> {
        match self {
            Self::Fixed(scope) => Some(scope.clone()),
            Self::Group(field) => {
                let value = fields.get(field)?;
                // A group's name is a text or an integer; a text counts as it stands between its quotes.
                let name = match value.as_bytes() {
                    [b'"', .., b'"'] => &value[1..value.len() - 1],
                    [b'-' | b'0'..=b'9', ..] => value,
                    _ => return None,
                };
                ScopeName::group(field, name).ok()
            }
        }
    }
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
    /// What the answer says beyond that, if anything: see [`KnownMore`].
    pub more: Option<Box<KnownMore>>,
}

/// The rarer half of a remembered answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KnownMore {
    /// Per field that a strategy decided, the winner. Names are canonical JSON text.
    pub winners: Vec<(Box<str>, Winner)>,
    /// What waits for a reviewer.
    pub conflict_id: Option<ConflictId>,
}

/// The answer to a batch, after its commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// One result per item.
    pub results: Vec<SubmissionResult>,
    /// One result per event.
    pub events: Vec<Published>,
    /// The head after the batch.
    pub seq: Seq,
    /// The tenant's highest stored clock.
    pub hlc: Hlc,
    /// The tenant's epoch.
    pub epoch: Epoch,
    /// How the answer came about.
    pub answered: Answered,
}

/// How an answer to a batch came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Answered {
    /// The batch was applied.
    #[default]
    Applied,
    /// It was applied before: this is the answer of then.
    Replayed {
        /// Until when it is remembered, in Unix milliseconds.
        expires_ms: u64,
    },
    /// One of its names was used for another batch. Nothing was applied.
    Reused,
    /// Somebody works on a request of the same name. Nothing was applied.
    InProgress {
        /// Milliseconds until it is worth asking again.
        retry_after_ms: u64,
    },
}

impl Answered {
    /// Tells whether this is the answer of an earlier batch.
    #[must_use]
    pub const fn is_replayed(self) -> bool {
        matches!(self, Self::Replayed { .. })
    }
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
    /// What waits for a reviewer.
    pub conflict_id: Option<ConflictId>,
    /// Whether the assertions of an ordered field had to be cut to their limit.
    pub collapsed: bool,
    /// Of a reviewer's decision: what came of it.
    pub resolved: Option<Box<Resolved>>,
}

/// What came of a reviewer's decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// It was carried out; the row as it is now.
    Done(ConflictRow),
    /// There is no such conflict.
    NotFound,
    /// It was decided before.
    Already(ConflictRow),
    /// The record changed since the reviewer read it; the row tells of it as it is now.
    Stale(ConflictRow),
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
            conflict_id: None,
            collapsed: false,
            resolved: None,
        }
    }
}
