//! The review of conflicts, and the audit, as documents.

use driftline_model::{ConflictId, Limits, Object, Seq};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::canonical::canonical_object;
use crate::envelope::{Envelope, Fault};
use crate::form::Encoding;
use crate::outbound::{RecordView, read_object, write_object};

/// Which side a reviewer lets stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// The value that waited.
    Client,
    /// The stored value.
    Server,
    /// The reviewer's own.
    Merged,
}

impl Resolution {
    /// Returns the name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Merged => "merged",
        }
    }

    /// Finds a resolution by its name.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        [Self::Client, Self::Server, Self::Merged].into_iter().find(|side| side.as_str() == text)
    }
}

/// Decides a conflict that waits for a reviewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolveConflict {
    /// The conflict.
    pub conflict_id: ConflictId,
    /// What stands.
    pub resolution: Resolution,
    /// The reviewer's own values; empty unless merged.
    pub fields: Object,
    /// The record's version that the reviewer has seen; none: the one that the conflict names.
    pub version: Option<Seq>,
}

impl ResolveConflict {
    pub(crate) fn read(envelope: &Envelope<'_>) -> Result<Self, Fault> {
        let conflict_id = envelope.field("conflict_id").and_then(|node| node.as_str());
        let conflict_id = conflict_id.and_then(|text| ConflictId::new(&text).ok());
        let conflict_id =
            conflict_id.ok_or_else(|| Fault::invalid("/conflict_id", "must be a conflict's name"))?;
        let ResolvePost { resolution, fields, version } = ResolvePost::read(envelope)?;
        Ok(Self { conflict_id, resolution, fields, version })
    }
}

/// The body of `POST /api/v1/conflicts/{id}/resolve`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvePost {
    /// What stands.
    pub resolution: Resolution,
    /// The reviewer's own values; empty unless merged.
    pub fields: Object,
    /// The record's version that the reviewer has seen; none: the one that the conflict names.
    pub version: Option<Seq>,
}

impl ResolvePost {
    /// Reads the body.
    ///
    /// # Errors
    /// [`Fault`] with the code that answers it.
    pub fn decode(encoding: Encoding, bytes: &[u8], limits: &Limits) -> Result<Self, Fault> {
        let document = Envelope::parse(encoding, bytes, limits)?;
        Self::read(&Envelope::open(document.root())?)
    }

    fn read(envelope: &Envelope<'_>) -> Result<Self, Fault> {
        let resolution = envelope.field("resolution").and_then(|node| node.as_str());
        let resolution = resolution
            .and_then(|text| Resolution::from_text(&text))
            .ok_or_else(|| Fault::invalid("/resolution", "must be client, server or merged"))?;
        let fields = match (envelope.field("fields"), resolution) {
            (None, Resolution::Merged) => {
                return Err(Fault::invalid("/fields", "are required when the resolution is merged"));
            }
            (None, _) => Object::empty(),
            (Some(node), Resolution::Merged) => canonical_object(node).map_err(|error| {
                Fault::invalid(&format!("/fields{}", error.pointer), &error.kind.to_string())
            })?,
            (Some(_), _) => {
                return Err(Fault::invalid("/fields", "are taken only when the resolution is merged"));
            }
        };
        let version = match envelope.field("version") {
            None => None,
            Some(node) => Some(
                node.as_u64()
                    .map(Seq::new)
                    .ok_or_else(|| Fault::invalid("/version", "must be an integer from 0 to 2^53"))?,
            ),
        };
        Ok(Self { resolution, fields, version })
    }
}

/// A conflict that waits, or waited, for a reviewer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictDoc {
    /// The conflict's name.
    pub conflict_id: String,
    /// The record's kind.
    pub kind: String,
    /// The record.
    pub id: String,
    /// `open` or `resolved`.
    pub status: String,
    /// Why it waits: `manual`, `deescalation_held` or `delete_held`.
    pub reason: String,
    /// The device whose change waits.
    pub device_id: String,
    /// The device's user.
    pub user_id: String,
    /// What the change wanted: `create`, `patch`, `delete` or `restore`.
    pub op: String,
    /// The device's number of the change; of the last one, when several joined.
    pub n: u64,
    /// The device's name for the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op_id: Option<String>,
    /// The fields in question.
    pub fields: Vec<String>,
    /// The version of the record that the author had seen.
    pub base_version: u64,
    /// The values that the author had seen, as far as they are known.
    #[serde(serialize_with = "write_object", deserialize_with = "read_object")]
    pub base: Object,
    /// The values that wait.
    #[serde(serialize_with = "write_object", deserialize_with = "read_object")]
    pub client: Object,
    /// The stored values.
    #[serde(serialize_with = "write_object", deserialize_with = "read_object")]
    pub server: Object,
    /// The record's version that this document tells of. A resolution of another version is stale.
    pub version: u64,
    /// The version of the policy that set it aside.
    pub policy_version: u64,
    /// When it was set aside, RFC 3339.
    pub opened_at: String,
    /// When it was decided, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved_at: Option<String>,
    /// Who decided it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved_by: Option<String>,
    /// What was let stand: `client`, `server` or `merged`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<String>,
}

/// A conflict that was decided; also the answer to `resolve_conflict`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConflictResolved {
    /// The conflict.
    #[serde(flatten)]
    pub conflict: ConflictDoc,
    /// The record as it stands now, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<RecordView>,
}

impl<'de> Deserialize<'de> for ConflictResolved {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Record {
            #[serde(default)]
            record: Option<RecordView>,
        }
        // Raw values cannot pass through serde's buffer for flattened members, so the text is read twice.
        let raw = <Box<RawValue>>::deserialize(deserializer)?;
        let Record { record } = serde_json::from_str(raw.get()).map_err(D::Error::custom)?;
        let conflict = serde_json::from_str(raw.get()).map_err(D::Error::custom)?;
        Ok(Self { conflict, record })
    }
}

/// One decision of the audit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuditDoc {
    /// The row's number.
    pub audit_id: u64,
    /// When it was decided, RFC 3339.
    pub at: String,
    /// The record's kind.
    pub kind: String,
    /// The record.
    pub id: String,
    /// The record's version afterwards.
    pub version: u64,
    /// The device whose change was decided.
    pub device_id: String,
    /// The device's user.
    pub user_id: String,
    /// The device's name for the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op_id: Option<String>,
    /// The device's number of the change.
    pub n: u64,
    /// What became of the change.
    pub code: String,
    /// The strategy that decided.
    pub strategy: String,
    /// The version of its policy.
    pub policy_version: u64,
    /// Finds the decision in the server's log.
    pub correlation_id: String,
    /// The input of the decision, and what it was per field.
    pub detail: Box<RawValue>,
}
