//! What is set aside for a reviewer.

use driftline_conflict::{Op, ReviewReason};
use driftline_model::{ConflictId, DeviceKey, DeviceNo, KindName, Object, OpId, RecordId, ScopeName, Seq};

/// The kind under which conflicts are synced: `$conflicts`.
#[must_use]
pub fn conflicts_kind() -> KindName {
    KindName::new("$conflicts").expect("a kind's name")
}

/// A change, or a part of one, that waits or waited for a reviewer.
///
/// At most one row of a device and a record is open: later changes of that device join it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConflictRow {
    /// Its name, which is also its record's id under the kind `$conflicts`.
    pub conflict_id: ConflictId,
    /// The record's kind.
    pub kind: KindName,
    /// The record.
    pub id: RecordId,
    /// The scope that the record belonged to when the row was last written.
    pub scope: ScopeName,
    /// The device whose change it is.
    pub device: DeviceNo,
    /// The device's name.
    pub device_key: DeviceKey,
    /// The name of the last change that joined.
    pub op_id: Option<OpId>,
    /// The device's number of the last change that joined.
    pub n: u64,
    /// What the author wanted.
    pub op: Op,
    /// Why it waits.
    pub reason: ReviewReason,
    /// Whether and how it was decided.
    pub status: ConflictStatus,
    /// The fields that wait, in canonical order; none: the whole change.
    pub fields: Vec<Box<str>>,
    /// The version that the author had seen.
    pub base_version: Seq,
    /// Values that the author had seen of the fields that wait, as far as they are known.
    pub base: Object,
    /// Values that the author wants.
    pub client: Object,
    /// The stored values of those fields at `version`.
    pub server: Object,
    /// The record's version that a decision is compared with.
    pub version: Seq,
    /// The version of the policy that set it aside.
    pub policy_version: u64,
    /// When it was set aside, in Unix milliseconds.
    pub opened_ms: u64,
    /// The version of its record under the kind `$conflicts`.
    pub seq: Seq,
}

/// Whether a conflict waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConflictStatus {
    /// It waits for a reviewer.
    Open,
    /// It was decided.
    Resolved {
        /// How.
        resolution: Resolution,
        /// By which user.
        by: Box<str>,
        /// When, in Unix milliseconds.
        at_ms: u64,
    },
}

impl ConflictStatus {
    /// Tells whether the conflict waits.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self, Self::Open)
    }
}

/// How a reviewer decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// The change that waits is carried out.
    Client,
    /// What is stored stays.
    Server,
    /// The reviewer's own values are written.
    Merged,
}

impl Resolution {
    /// Every resolution.
    pub const ALL: [Self; 3] = [Self::Client, Self::Server, Self::Merged];

    /// Returns the name used on the wire and in the store.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Merged => "merged",
        }
    }

    /// Finds a resolution by its name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resolution| resolution.name() == name)
    }
}

/// Which conflicts are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConflictQuery {
    /// The scopes whose conflicts the reader may see.
    pub scopes: Vec<ScopeName>,
    /// The kinds; empty: all.
    pub kinds: Vec<KindName>,
    /// Only of this record.
    pub id: Option<RecordId>,
    /// Only of devices of this name.
    pub device: Option<String>,
    /// Only those that wait, or only those that were decided.
    pub open: Option<bool>,
    /// Only those opened after this row, in the order of their opening.
    pub after: Option<ConflictPlace>,
    /// The most rows.
    pub rows: usize,
}

/// The place of a row in the list of conflicts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConflictPlace {
    /// When it was opened.
    pub opened_ms: u64,
    /// The row.
    pub conflict_id: ConflictId,
}

/// Which audit rows are listed, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditQuery {
    /// The kinds; empty: all.
    pub kinds: Vec<KindName>,
    /// Only of this record.
    pub id: Option<RecordId>,
    /// Only of devices of this name.
    pub device: Option<String>,
    /// Only decisions of this strategy.
    pub strategy: Option<String>,
    /// Only with this code.
    pub code: Option<driftline_protocol::ItemCode>,
    /// Only at or after this time, in Unix milliseconds.
    pub from_ms: Option<u64>,
    /// Only before this time, in Unix milliseconds.
    pub until_ms: Option<u64>,
    /// Only rows with a smaller number.
    pub before: Option<u64>,
    /// The most rows.
    pub rows: usize,
}
