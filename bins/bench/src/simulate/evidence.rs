//! What a run leaves behind for those who judge it: accepted items, audit rows, final records.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use driftline_conflict::Op as RecordOp;
use driftline_engine::{
    Apply, ConflictPlace, ConflictQuery, ConflictRow, ConflictStatus, Entry, Identity, Resolved, Row, Store,
    SubmissionResult, Task,
};
use driftline_model::DeviceNo;
use driftline_protocol::{ItemClass, Resolution};
use serde_json::Value;

use super::journal::Commit;
use super::laws::Key;
use super::world::block_on;
use crate::verify::{self, Audit, Conflict, History, Item, Op, Record};

/// Audit rows of records that a clean-up may remove, and the records' lives.
#[derive(Debug, Clone, Default)]
pub(super) struct Evidence {
    /// Rows by record and the row's number.
    audits: BTreeMap<(String, u64), Audit>,
    /// What was set aside, by the conflict's name.
    conflicts: BTreeMap<String, Conflict>,
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

    /// Takes what was set aside for a reviewer.
    pub(super) fn collect_conflicts(&mut self, store: &impl Store, identities: &[Identity]) -> Result<()> {
        let tenant = identities[0].tenant;
        let mut scopes: Vec<_> = identities.iter().flat_map(|identity| identity.scopes.clone()).collect();
        scopes.sort();
        scopes.dedup();
        let mut after = None;
        loop {
            let query = ConflictQuery {
                scopes: scopes.clone(),
                kinds: Vec::new(),
                id: None,
                device: None,
                open: None,
                after,
                rows: 500,
            };
            let rows = block_on(store.conflicts(tenant, query))?;
            let Some(last) = rows.last() else { return Ok(()) };
            let conflict_id = last.conflict_id.clone();
            after = Some(ConflictPlace { opened_ms: last.opened_ms, conflict_id });
            for row in &rows {
                self.conflicts.insert(row.conflict_id.to_string(), conflict(row)?);
            }
        }
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
                if let Some(item) = decision(entry, result)? {
                    history.items.push(item);
                }
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
        history.conflicts = self.conflicts.values().cloned().collect();
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

fn conflict(row: &ConflictRow) -> Result<Conflict> {
    let resolution = match &row.status {
        ConflictStatus::Open => None,
        ConflictStatus::Resolved { resolution, .. } => Some(match resolution {
            Resolution::Client => verify::Resolution::Client,
            Resolution::Server => verify::Resolution::Server,
            Resolution::Merged => verify::Resolution::Merged,
        }),
    };
    Ok(Conflict {
        id: row.conflict_id.to_string(),
        record: name(&(row.kind.clone(), row.id.clone())),
        device: row.device_key.as_str().to_owned(),
        client: serde_json::from_str(row.client.as_str())?,
        ns: serde_json::from_str(row.client_ns.as_str())?,
        deletes: row.op == RecordOp::Delete,
        resolution,
    })
}

/// What a reviewer wrote, who had seen everything that was there.
fn decision(entry: &Entry, result: &SubmissionResult) -> Result<Option<Item>> {
    let (Task::Resolve(resolve), Some(resolved)) = (&entry.task, &result.resolved) else { return Ok(None) };
    let Resolved::Done(row) = &**resolved else { return Ok(None) };
    let fields = match resolve.resolution {
        Resolution::Server => return Ok(None),
        Resolution::Client => &row.client,
        Resolution::Merged => &resolve.fields,
    };
    let version = result.version.map_or(0, |version| version.number());
    let deletes = resolve.resolution == Resolution::Client && row.op == RecordOp::Delete;
    Ok(Some(Item {
        record: name(&(row.kind.clone(), row.id.clone())),
        device: "desk".to_owned(),
        n: version,
        op: if deletes { Op::Delete } else { Op::Patch },
        base: version.saturating_sub(1),
        // A delete writes nothing of what waited before it.
        fields: if deletes { BTreeMap::new() } else { serde_json::from_str(fields.as_str())? },
        increments: BTreeMap::new(),
        add: BTreeMap::new(),
        remove: BTreeMap::new(),
        code: result.code.to_string(),
        version,
        born: false,
        conflict: String::new(),
        decides: row.conflict_id.to_string(),
    }))
}

fn item(entry: &Entry, apply: &Apply, result: &SubmissionResult) -> Result<Item> {
    let intents = apply.intents.as_deref().cloned().unwrap_or_default();
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
        increments: intents.increments.iter().map(|(name, by)| (name.to_string(), *by)).collect(),
        add: serde_json::from_str(intents.add.as_str())?,
        remove: serde_json::from_str(intents.remove.as_str())?,
        code: result.code.to_string(),
        version: result.version.map_or(0, |version| version.number()),
        born: false,
        conflict: result.conflict_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        decides: String::new(),
    })
}
