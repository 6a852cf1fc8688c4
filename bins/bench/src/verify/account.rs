//! Audit rows, read for what they say of values.

use std::collections::BTreeMap;

use serde_json::Value;

use super::history::Audit;

/// What the audit rows of one item say.
#[derive(Debug, Default)]
pub(super) struct Account {
    fields: BTreeMap<String, Entry>,
    /// Whether the item went into a record that stays deleted.
    pub(super) hidden: bool,
    /// Whether the item was a delete that did not delete.
    pub(super) stays: bool,
    /// Whether the item was a delete that waits for a reviewer.
    pub(super) waits: bool,
    /// Whether the item brought back a record whose delete its author had not seen.
    pub(super) revives: bool,
}

/// What an audit row says of one field.
#[derive(Debug)]
pub(super) struct Entry {
    /// What the item carried.
    pub(super) client: Value,
    /// What was stored.
    pub(super) server: Value,
    pub(super) winner: String,
    pub(super) rule: String,
    /// Whether the item deleted the field's record.
    pub(super) deletes: bool,
}

impl Entry {
    /// Whether the item's own value waits for a reviewer.
    pub(super) fn held(&self) -> bool {
        self.winner == "held"
    }

    /// Whether the item's own value did not get in.
    pub(super) fn refused(&self) -> bool {
        matches!(self.winner.as_str(), "server" | "held")
    }

    /// Whether both sides are in the field afterwards, each on its own.
    pub(super) fn joins(&self) -> bool {
        self.winner == "merged" && matches!(self.rule.as_str(), "counter" | "set" | "append")
    }

    /// Whether the decision replaced what was stored.
    pub(super) fn replaces(&self) -> bool {
        self.deletes || !self.refused() && !self.joins()
    }
}

impl Account {
    /// Reads one more row of the item.
    pub(super) fn read(&mut self, audit: &Audit) {
        let detail = &audit.detail;
        for (name, entry) in detail["fields"].as_object().into_iter().flatten() {
            let entry = Entry {
                client: entry["client"].clone(),
                server: entry["server"].clone(),
                winner: entry["winner"].as_str().unwrap_or_default().to_owned(),
                rule: entry["rule"].as_str().unwrap_or_default().to_owned(),
                deletes: entry["client_deletes"] == Value::Bool(true),
            };
            self.fields.insert(name.clone(), entry);
        }
        let existence = &detail["existence"];
        let winner = existence["winner"].as_str();
        self.hidden |= winner == Some("server") && existence["deleted"] == Value::Bool(true);
        let lost = matches!(winner, Some("server" | "held"));
        let lives = existence["deleted"] == Value::Bool(false);
        self.stays |= lost && lives;
        self.waits |= winner == Some("held");
        self.revives |= winner == Some("client") && lives;
    }

    pub(super) fn entry(&self, field: &str) -> Option<&Entry> {
        self.fields.get(field)
    }

    /// The fields that the rows name.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    pub(super) fn refused(&self, field: &str) -> bool {
        self.entry(field).is_some_and(Entry::refused)
    }
}
