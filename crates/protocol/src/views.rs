//! Bodies of HTTP answers.

use driftline_model::Object;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::outbound::Ack;
use crate::policy::PolicyDoc;
use crate::rows::ServerData;
use crate::time::format_millis;
use crate::write::write_json_string;

/// A page of things.
#[derive(Debug, Clone, Serialize)]
pub struct ListDoc<T> {
    /// The things.
    pub items: Vec<T>,
    /// Where the next page starts; null: nowhere.
    pub next_cursor: Option<String>,
}

/// A stored record.
#[derive(Debug, Clone, Serialize)]
pub struct RecordDoc {
    /// The record's kind.
    pub kind: String,
    /// The record.
    pub id: String,
    /// The scope it belongs to.
    pub scope: String,
    /// The user who created it.
    pub owner: String,
    /// Its version.
    pub version: u64,
    /// Whether it is deleted.
    pub deleted: bool,
    /// Its fields; empty when deleted.
    pub fields: Box<RawValue>,
}

/// A policy with its kind and version.
#[derive(Debug, Clone, Serialize)]
pub struct PolicyView {
    /// The kind.
    pub kind: String,
    /// The version; 0: the declared policy.
    pub version: u64,
    /// The strategy.
    pub strategy: String,
    /// What counts as a conflict.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granularity: Option<String>,
    /// Options of the strategy.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub options: std::collections::BTreeMap<String, String>,
    /// Rules of single fields.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub fields: std::collections::BTreeMap<String, crate::policy::FieldPolicyDoc>,
}

impl PolicyView {
    /// Joins a document with its kind and version.
    #[must_use]
    pub fn new(kind: String, doc: PolicyDoc, version: u64) -> Self {
        let PolicyDoc { strategy, granularity, options, fields } = doc;
        Self { kind, version, strategy, granularity, options, fields }
    }
}

/// Why a record is what it is.
#[derive(Debug, Clone, Serialize)]
pub struct ExplainDoc {
    /// The record's kind.
    pub kind: String,
    /// The record.
    pub id: String,
    /// Its version.
    pub version: u64,
    /// Whether it is deleted.
    pub deleted: bool,
    /// Its fields.
    pub fields: std::collections::BTreeMap<String, ExplainField>,
}

/// Why a field has its value.
#[derive(Debug, Clone, Serialize)]
pub struct ExplainField {
    /// Its value.
    pub value: Box<RawValue>,
    /// The version in which it last changed.
    pub fv: u64,
    /// The clock of that write.
    pub hlc: String,
    /// The device that wrote it.
    pub device_id: String,
    /// The rule by which it stands; null: nobody contested it.
    pub rule: Option<String>,
    /// The version of the policy that decided.
    pub policy_version: Option<u64>,
    /// The name of the change that wrote it, while it is remembered.
    pub op_id: Option<String>,
    /// Values that lost.
    pub lost: Vec<ExplainLoss>,
}

/// A value that lost.
#[derive(Debug, Clone, Serialize)]
pub struct ExplainLoss {
    /// The value.
    pub value: Box<RawValue>,
    /// The clock of its write.
    pub hlc: Option<String>,
    /// The device that wrote it.
    pub device_id: String,
    /// The name of the change that carried it.
    pub op_id: Option<String>,
    /// The audit row that accounts for it.
    pub audit_id: u64,
}

/// Takes canonical JSON text over as a value of an answer.
#[must_use]
pub fn raw_json(canonical: &str) -> Box<RawValue> {
    RawValue::from_string(canonical.to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// Takes an object over as a value of an answer.
#[must_use]
pub fn raw_object(object: &Object) -> Box<RawValue> {
    raw_json(object.as_str())
}

/// Encodes a body as JSON.
#[must_use]
pub fn to_json(body: &impl Serialize) -> String {
    serde_json::to_string(body).expect("answers serialise")
}

/// Encodes the answer of `POST /api/v1/sync`.
#[must_use]
pub fn encode_sync_answer(now_ms: u64, ack: &Ack, data: &ServerData) -> String {
    let ack = to_json(ack);
    let data = data.encode_object();
    format!("{{\"server_time\":\"{}\",\"ack\":{ack},\"data\":{data}}}", format_millis(now_ms))
}

/// Encodes an answer whose body stands behind the time and the message that is answered. `body` is a JSON object with at
/// least one member.
#[must_use]
pub fn encode_flat_answer(now_ms: u64, reply_to: Option<&str>, body: &str) -> String {
    let mut out = format!("{{\"server_time\":\"{}\"", format_millis(now_ms));
    if let Some(id) = reply_to {
        out.push_str(",\"reply_to\":");
        write_json_string(&mut out, id);
    }
    out.push(',');
    out.push_str(body.strip_prefix('{').unwrap_or(body));
    out
}

/// Encodes the answer of `GET /api/v1/changes`.
#[must_use]
pub fn encode_changes_answer(now_ms: u64, data: &ServerData) -> String {
    data.encode(format!("{{\"server_time\":\"{}\"", format_millis(now_ms)))
}

/// The field names of an explanation, unescaped from their canonical form.
#[must_use]
pub fn plain_name(canonical: &str) -> String {
    crate::json::unescape(canonical)
}
