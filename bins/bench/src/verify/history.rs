//! What the verifier is given.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Everything that was accepted, and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// The accepted items, each once, in the order of their commits.
    pub items: Vec<Item>,
    /// The audit rows.
    #[serde(default)]
    pub audits: Vec<Audit>,
    /// The conflicts that were set aside, open or decided.
    #[serde(default)]
    pub conflicts: Vec<Conflict>,
    /// The records in the end; one that is missing was deleted and removed.
    #[serde(default)]
    pub records: Vec<Record>,
    /// Fields whose whole values unite with the stored elements instead of replacing them.
    #[serde(default)]
    pub gathering: Vec<String>,
}

impl History {
    /// Reads a history of its JSON text.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

/// What an item does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Makes a record, or writes to one without having seen it.
    Create,
    /// Writes fields.
    Patch,
    /// Deletes.
    Delete,
    /// Brings back.
    Restore,
}

/// One accepted item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// Names the record.
    pub record: String,
    /// Names the device.
    pub device: String,
    /// The device's number of the item.
    pub n: u64,
    /// What it does.
    pub op: Op,
    /// The version that the author had seen.
    #[serde(default)]
    pub base: u64,
    /// Whole values.
    #[serde(default)]
    pub fields: BTreeMap<String, Value>,
    /// What is added to counters.
    #[serde(default)]
    pub increments: BTreeMap<String, i64>,
    /// Elements that are added to sets and lists.
    #[serde(default)]
    pub add: BTreeMap<String, Vec<Value>>,
    /// Elements that are taken out of sets.
    #[serde(default)]
    pub remove: BTreeMap<String, Vec<Value>>,
    /// How it was answered.
    pub code: String,
    /// The record's version afterwards.
    pub version: u64,
    /// Whether there was no record before it.
    #[serde(default)]
    pub born: bool,
    /// The conflict in which it, or a part of it, was set aside.
    #[serde(default)]
    pub conflict: String,
    /// The conflict that it decides, if it is what a reviewer wrote.
    #[serde(default)]
    pub decides: String,
}

/// One audit row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// Names the record.
    pub record: String,
    /// The device whose item was decided.
    pub device: String,
    /// The item's number.
    pub n: u64,
    /// The account: per field both values and the winner, and what became of the record's existence.
    pub detail: Value,
}

/// A change, or a part of one, that was set aside for a reviewer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conflict {
    /// Its name, as the items tell it.
    #[serde(default)]
    pub id: String,
    /// Names the record.
    pub record: String,
    /// The device whose change it is.
    pub device: String,
    /// The values that wait or waited.
    pub client: BTreeMap<String, Value>,
    /// The device's numbers of the items that these values came with, as far as they are known.
    #[serde(default)]
    pub ns: BTreeMap<String, u64>,
    /// Whether what waits is a delete.
    #[serde(default)]
    pub deletes: bool,
    /// How it was decided; none: it waits, or the audit tells.
    #[serde(default)]
    pub resolution: Option<Resolution>,
}

/// What a reviewer chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// What waited was written.
    Client,
    /// What stood stays.
    Server,
    /// The reviewer's own values were written.
    Merged,
}

/// A record as it stands in the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Names the record.
    pub record: String,
    /// Whether it is deleted; its fields are not visible then.
    #[serde(default)]
    pub deleted: bool,
    /// The fields.
    #[serde(default)]
    pub fields: BTreeMap<String, Value>,
}
