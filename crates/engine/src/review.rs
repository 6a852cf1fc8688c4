//! What is set aside for a reviewer.

use driftline_conflict::{Op, ReviewReason};
use driftline_model::{ConflictId, DeviceKey, DeviceNo, KindName, Object, OpId, RecordId, ScopeName, Seq};
use driftline_protocol::{ConflictDoc, Resolution, format_millis, object_of_text, plain_name, to_json};

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
    /// The device's number of the change that each of these values came with. Changes may arrive in another order than
    /// that of their numbers.
    pub client_ns: Object,
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

/// A conflict as a document.
#[must_use]
pub fn conflict_doc(row: &ConflictRow) -> ConflictDoc {
    let (status, resolution, by, at_ms) = match &row.status {
        ConflictStatus::Open => ("open", None, None, None),
        ConflictStatus::Resolved { resolution, by, at_ms } => {
            ("resolved", Some(*resolution), Some(by.to_string()), Some(*at_ms))
        }
    };
    ConflictDoc {
        conflict_id: row.conflict_id.to_string(),
        kind: row.kind.to_string(),
        id: row.id.to_string(),
        status: status.into(),
        reason: row.reason.name().into(),
        device_id: row.device_key.device().into(),
        user_id: row.device_key.user().into(),
        op: op_name(row.op).into(),
        n: row.n,
        op_id: row.op_id.as_ref().map(ToString::to_string),
        fields: row.fields.iter().map(|name| plain_name(name)).collect(),
        base_version: row.base_version.number(),
        base: row.base.clone(),
        client: row.client.clone(),
        server: row.server.clone(),
        version: row.version.number(),
        policy_version: row.policy_version,
        opened_at: format_millis(row.opened_ms),
        resolved_at: at_ms.map(format_millis),
        resolved_by: by,
        resolution: resolution.map(|resolution| resolution.as_str().into()),
    }
}

/// The document as the fields of a record.
pub(crate) fn conflict_fields(row: &ConflictRow) -> Object {
    let text = to_json(&conflict_doc(row));
    let parsed = object_of_text(&text, DEPTH).ok().and_then(Result::ok);
    parsed.expect("a document of canonical values is a canonical object")
}

/// Room for the values of a record inside the document.
const DEPTH: usize = 128;

/// Returns an operation's name on the wire.
pub(crate) const fn op_name(op: Op) -> &'static str {
    match op {
        Op::Create => "create",
        Op::Patch => "patch",
        Op::Delete => "delete",
        Op::Restore => "restore",
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
    /// The scopes of the records whose rows the reader may see.
    pub scopes: Vec<ScopeName>,
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
