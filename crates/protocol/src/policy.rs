//! A conflict policy as a document: in requests, answers and configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A tenant's policy for one kind, as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyDoc {
    /// `client_wins`, `server_wins`, `most_recent_wins` or `field_merge`.
    pub strategy: String,
    /// `record` or `field`, for `client_wins` and `server_wins`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granularity: Option<String>,
    /// Options of the strategy.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// Rules of single fields, for `field_merge`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, FieldPolicyDoc>,
}

/// The rule of one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldPolicyDoc {
    /// `lww`: the last writer wins.
    pub rule: String,
}

impl PolicyDoc {
    /// Reads a document of its JSON text.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    /// Writes the document as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and maps of texts serialise")
    }
}
