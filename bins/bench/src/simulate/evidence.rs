//! What a run leaves behind for those who judge it: accepted items, audit rows, final records.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use driftline_conflict::Op as RecordOp;
use driftline_engine::{Apply, Entry, Identity, Row, Store, SubmissionResult, Task};
use driftline_model::DeviceNo;
use driftline_protocol::ItemClass;
use serde_json::Value;

use super::journal::Commit;
use super::laws::Key;
use super::world::block_on;
use crate::verify::{Audit, History, Item, Op, Record};

/// Audit rows of records that a clean-up may remove, and the records' lives.
#[derive(Debug, Clone, Default)]
pub(super) struct Evidence {
    /// Rows by record and the row's number.
    audits: BTreeMap<(String, u64), Audit>,
    /// Changes that found no record, by device and number.
    births: BTreeSet<(DeviceNo, u64)>,
}

impl Evidence {
    /// Notes that a change made its record.
    pub(super) fn born(&mut self, device: DeviceNo, n: u64) {
        self.births.insert((device, n));
    }

    /// Takes the audit rows of a record.
    pub(super) fn collect(&mut self, store: &impl Store, identity: &Identity, key: &Key) -> Result<()> {
        let history = block_on(store.history(identity.tenant, &key.0, &key.1))?;
        for row in history.into_iter().flat_map(|history| history.audit) {
            let detail: Value = serde_json::from_str(&row.detail).context("an audit row is no JSON")?;
            let audit = Audit {
                record: name(key),
                device: row.device.as_str().to_owned(),
                n: detail["n"].as_u64().unwrap_or_default(),
                detail,
            };
            self.audits.insert((name(key), row.audit_id), audit);
        }
        Ok(())
    }

    /// Puts everything together for the verifier.
    pub(super) fn history(
        &self,
        commits: &[Commit],
        rows: &BTreeMap<Key, Row>,
        identities: &[Identity],
    ) -> Result<History> {
        let devices: BTreeMap<DeviceNo, &str> = identities
            .iter()
            .filter_map(|identity| identity.device.as_ref())
            .map(|(number, key)| (*number, key.as_str()))
            .collect();
        let mut history = History::default();
        for commit in commits {
            let device = commit.submission.device;
            for (entry, result) in commit.submission.entries.iter().zip(&commit.receipt.results) {
                let accepted = result.code.class() == ItemClass::Done && !result.duplicate;
                if let (Task::Apply(apply), true) = (&entry.task, accepted) {
                    let mut item = item(entry, apply, result)?;
                    item.device = devices.get(&device).copied().unwrap_or_default().to_owned();
                    item.born = self.births.contains(&(device, item.n));
                    history.items.push(item);
                }
            }
        }
        history.audits = self.audits.values().cloned().collect();
        for (key, row) in rows {
            let fields = serde_json::from_str(row.record.fields.as_str())?;
            history.records.push(Record { record: name(key), deleted: row.deleted, fields });
        }
        Ok(history)
    }
}

fn name((kind, id): &Key) -> String {
    format!("{kind}/{id}")
}

fn item(entry: &Entry, apply: &Apply, result: &SubmissionResult) -> Result<Item> {
    Ok(Item {
        record: name(&(apply.kind.clone(), apply.id.clone())),
        device: String::new(),
        n: entry.n.unwrap_or_default(),
        op: match apply.op {
            RecordOp::Create => Op::Create,
            RecordOp::Patch => Op::Patch,
            RecordOp::Delete => Op::Delete,
            RecordOp::Restore => Op::Restore,
        },
        // A create has seen nothing of what exists.
        base: apply.base.number(),
        fields: serde_json::from_str(apply.fields.as_str())?,
        increments: BTreeMap::new(),
        add: BTreeMap::new(),
        remove: BTreeMap::new(),
        code: result.code.to_string(),
        version: result.version.map_or(0, |version| version.number()),
        born: false,
    })
}
