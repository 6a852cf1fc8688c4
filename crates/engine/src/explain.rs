//! Why a record is what it is.

use driftline_model::{DeviceNo, Hlc, Seq};
use driftline_protocol::{Document, Node, canonical_value};

use crate::ports::History;

/// Why a record is what it is, field by field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The record's kind.
    pub kind: String,
    /// The record.
    pub id: String,
    /// Its version.
    pub version: Seq,
    /// Whether it is deleted.
    pub deleted: bool,
    /// Its fields; of a deleted record the hidden ones.
    pub fields: Vec<FieldExplanation>,
}

/// Why a field has its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldExplanation {
    /// The field's name, as canonical JSON text without quotes.
    pub name: String,
    /// Its value, canonical JSON.
    pub value: String,
    /// The version in which it last changed.
    pub fv: Seq,
    /// The clock of that write.
    pub hlc: Hlc,
    /// The device that wrote it.
    pub device_id: String,
    /// The rule by which it stands; nothing when nobody contested it.
    pub rule: Option<String>,
    /// The version of the policy that decided.
    pub policy_version: Option<u64>,
    /// The name of the change that wrote it, while it is remembered.
    pub op_id: Option<String>,
    /// Values that lost against it, or before it.
    pub lost: Vec<LostValue>,
}

/// A value that lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostValue {
    /// The value, canonical JSON.
    pub value: String,
    /// The clock of its write.
    pub hlc: Option<String>,
    /// The device that wrote it.
    pub device_id: String,
    /// The name of the change that carried it.
    pub op_id: Option<String>,
    /// The audit row that accounts for it.
    pub audit_id: u64,
}

/// Puts the explanation together of what the store remembers.
pub(crate) fn explain(history: &History) -> Explanation {
    let row = &history.row;
    let fields = row.record.fields().map(|(name, value, mark)| {
        let op_id = history.ops.iter().find(|(device, n, _)| *device == mark.device && *n == mark.n);
        let mut field = FieldExplanation {
            name: name.to_owned(),
            value: value.to_owned(),
            fv: mark.fv,
            hlc: mark.hlc,
            device_id: device_name(history, mark.device),
            rule: None,
            policy_version: None,
            op_id: op_id.map(|(_, _, op_id)| op_id.to_string()),
            lost: Vec::new(),
        };
        tell_losses(history, &mut field);
        field
    });
    Explanation {
        kind: row.kind.to_string(),
        id: row.id.to_string(),
        version: row.record.version,
        deleted: row.deleted,
        fields: fields.collect(),
    }
}

fn device_name(history: &History, device: DeviceNo) -> String {
    let key = history.devices.iter().find(|(number, _)| *number == device);
    key.map_or_else(String::new, |(_, key)| key.device().to_owned())
}

/// Goes through the audit rows of a field: each names one value that lost.
fn tell_losses(history: &History, field: &mut FieldExplanation) {
    for audit in &history.audit {
        // The store gives back what the engine wrote, which is always a document.
        let Ok(document) = Document::parse(audit.detail.as_bytes(), 128) else { continue };
        let root = document.root();
        let decided = root.get("fields").and_then(|fields| find_canonical(fields, &field.name));
        let Some(decided) = decided else { continue };
        field.rule = decided.get("rule").and_then(|node| node.as_str()).map(std::borrow::Cow::into_owned);
        field.policy_version = Some(audit.policy_version);
        let side = |side: &str| decided.get("winner").is_some_and(|winner| winner.is_str(side));
        // Of a merge nothing is lost; what is held waits for a reviewer, whose decision has a row of its own.
        if side("merged") || side("held") {
            continue;
        }
        let client_lost = side("server");
        // A reviewer's decision names whose value waited.
        let author = root.get("author");
        let of_author = |name: &str| Some(author?.get(name)?.as_str()?.into_owned());
        let lost = if client_lost {
            LostValue {
                value: json(decided.get("client")),
                hlc: root
                    .get("hlc_effective")
                    .and_then(|node| node.as_str())
                    .map(std::borrow::Cow::into_owned),
                device_id: of_author("device_id").unwrap_or_else(|| audit.device.device().to_owned()),
                op_id: of_author("op_id").or_else(|| audit.op_id.as_ref().map(ToString::to_string)),
                audit_id: audit.audit_id,
            }
        } else {
            let mark = decided.get("server_mark");
            let number = |name: &str| mark.and_then(|mark| mark.get(name)).and_then(|node| node.as_u64());
            let device = number("device_no").and_then(|number| u32::try_from(number).ok()).map(DeviceNo::new);
            let op = history.ops.iter().find(|(of, n, _)| Some(*of) == device && Some(*n) == number("n"));
            LostValue {
                value: json(decided.get("server")),
                hlc: mark.and_then(|mark| mark.get("hlc")?.as_str()).map(std::borrow::Cow::into_owned),
                device_id: device.map_or_else(String::new, |device| device_name(history, device)),
                op_id: op.map(|(_, _, op_id)| op_id.to_string()),
                audit_id: audit.audit_id,
            }
        };
        field.lost.push(lost);
    }
}

/// Finds a member by its name in canonical escapes.
fn find_canonical<'d>(object: Node<'d>, name: &str) -> Option<Node<'d>> {
    let quoted = format!("\"{name}\"");
    object.members().find(|(key, _)| json(Some(*key)) == quoted).map(|(_, value)| value)
}

fn json(node: Option<Node<'_>>) -> String {
    let mut out = String::new();
    let written = node.is_some_and(|node| canonical_value(node, &mut out).is_ok());
    if written { out } else { "null".to_owned() }
}
