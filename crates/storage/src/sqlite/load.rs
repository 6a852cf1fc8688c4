//! What a commit group needs to be planned.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Integer, Text};
use driftline_engine::{DeviceState, GroupState, RowKey, StoreError, Submission};
use driftline_model::{DeviceNo, KindName, TenantNo};

use super::conflicts::OpenConflicts;
use super::hot::{KnownByName, KnownByNumber, LoadHead, LoadRecords};
use super::store_error;
use super::writer::{GroupError, Writer};
use crate::codec::encode_op;
use crate::group::Lookup;
use crate::marks::every_mark;
use crate::names::{device_key, device_sql, tenant_sql};
use crate::rows::{ConflictSql, HeadRow, KnownRow, RecordRow, head_of, known_of, row_of};

/// Devices whose state and name are held in memory.
const DEVICES_MAX: usize = 200_000;

#[derive(QueryableByName)]
struct DeviceRow {
    #[diesel(sql_type = Integer)]
    device_no: i32,
    #[diesel(sql_type = Text)]
    sub: String,
    #[diesel(sql_type = Text)]
    device_id: String,
    #[diesel(sql_type = BigInt)]
    last_n: i64,
    #[diesel(sql_type = BigInt)]
    acked_n: i64,
}

impl Writer {
    pub(super) fn load(&mut self, group: &[Submission], lookup: Lookup) -> Result<GroupState, GroupError> {
        // Between groups only: a plan needs every device of its group.
        if self.states.len() >= DEVICES_MAX {
            self.forget_devices();
        }
        let mut state = GroupState::default();
        let mut wanted: BTreeMap<(TenantNo, KindName), Vec<&str>> = BTreeMap::new();
        for submission in group {
            if let Slot::Vacant(slot) = state.heads.entry(submission.tenant) {
                let query = LoadHead { tenant_no: tenant_sql(submission.tenant) };
                let row: HeadRow = query.get_result(&mut self.connection)?;
                slot.insert(head_of(row)?);
            }
            if submission.is_publication() {
                continue;
            }
            if let Slot::Vacant(slot) = state.devices.entry(submission.device) {
                slot.insert(self.device_state(submission.device)?);
            }
            self.load_known(submission, &mut state, lookup)?;
            for entry in submission.entries.iter().filter(|entry| entry.is_record()) {
                if let (Some(kind), Some(id)) = (&entry.kind, &entry.id) {
                    // A create of a new record is looked for as well: it may exist.
                    match wanted.get_mut(&(submission.tenant, kind.clone())) {
                        Some(ids) => ids.push(id.as_str()),
                        None => drop(wanted.insert((submission.tenant, kind.clone()), vec![id.as_str()])),
                    }
                }
            }
        }
        let mut devices = HashSet::new();
        for ((tenant, kind), ids) in &wanted {
            let Some(kind_no) = self.names.kind(*tenant, kind) else { continue };
            let query = LoadRecords { ids: json_array(ids), tenant_no: tenant_sql(*tenant), kind_no };
            let rows: Vec<RecordRow> = query.load(&mut self.connection)?;
            for row in rows {
                let row = row_of(&self.names, row)?;
                devices.extend(every_mark(&row.record).map(|mark| mark.device));
                let key = RowKey { tenant: *tenant, kind: kind.clone(), id: row.id.clone() };
                state.rows.insert(key, Some(row));
            }
        }
        self.load_conflicts(group, &mut state)?;
        self.load_samples(group, &mut state)?;
        self.load_series(group, &mut state)?;
        self.load_events(group, &mut state)?;
        self.load_once(group, &mut state)?;
        let authors = group.iter().filter(|submission| !submission.is_publication());
        let authors = authors.map(|submission| submission.device);
        self.load_device_names(devices.into_iter().chain(authors))?;
        Ok(state)
    }

    /// Loads what waits for a reviewer, where an item may need to know it.
    fn load_conflicts(&mut self, group: &[Submission], state: &mut GroupState) -> Result<(), GroupError> {
        let mut asked: BTreeSet<(TenantNo, i32, &str)> = BTreeSet::new();
        for submission in group {
            for entry in submission.entries.iter().filter(|entry| entry.may_review()) {
                let (Some(kind), Some(id)) = (&entry.kind, &entry.id) else { continue };
                let Some(kind_no) = self.names.kind(submission.tenant, kind) else { continue };
                asked.insert((submission.tenant, kind_no, id.as_str()));
            }
        }
        if asked.is_empty() {
            return Ok(());
        }
        let query = OpenConflicts { records: json_records(&asked) };
        let rows: Vec<ConflictSql> = query.load(&mut self.connection)?;
        for row in rows {
            let (tenant, row) = row.row(&self.names)?;
            let key = RowKey { tenant, kind: row.kind.clone(), id: row.id.clone() };
            state.conflicts.entry(key).or_default().push(row);
        }
        Ok(())
    }

    /// Loads answers that were given before to what a batch brings.
    fn load_known(
        &mut self,
        submission: &Submission,
        state: &mut GroupState,
        lookup: Lookup,
    ) -> Result<(), GroupError> {
        let last_n = state.devices.get(&submission.device).map_or(0, |device| device.last_n);
        let old = |n: Option<u64>| n.is_none_or(|n| n <= last_n);
        let records = submission.entries.iter().filter(|entry| entry.is_record());
        let asked: Vec<_> = records.filter(|entry| lookup == Lookup::Thorough || old(entry.n)).collect();
        if asked.is_empty() {
            return Ok(());
        }
        let device_no = device_sql(submission.device);
        let numbers: Vec<String> = asked.iter().filter_map(|entry| Some(entry.n?.to_string())).collect();
        let names: Vec<String> =
            asked.iter().filter_map(|entry| Some(hex(&encode_op(entry.op_id.as_ref()?)))).collect();
        let mut rows: Vec<KnownRow> = Vec::new();
        if !numbers.is_empty() {
            let query = KnownByNumber { numbers: format!("[{}]", numbers.join(",")), device_no };
            rows.extend(query.load::<KnownRow>(&mut self.connection)?);
        }
        if !names.is_empty() {
            let query = KnownByName { names: format!("[\"{}\"]", names.join("\",\"")), device_no };
            rows.extend(query.load::<KnownRow>(&mut self.connection)?);
        }
        for row in rows {
            let known = known_of(row)?;
            if let Some(op_id) = &known.op_id {
                state.by_op.insert((submission.device, op_id.clone()), known.clone());
            }
            state.by_n.insert((submission.device, known.n), known);
        }
        Ok(())
    }

    fn device_state(&mut self, device: DeviceNo) -> Result<DeviceState, StoreError> {
        if let Some(state) = self.states.get(&device) {
            return Ok(*state);
        }
        self.load_device(device)?;
        Ok(self.states.get(&device).copied().unwrap_or_default())
    }

    /// Forgets the states of devices, after they were changed in the table.
    pub(super) fn forget_devices(&mut self) {
        self.states.clear();
        self.devices.0.clear();
    }

    fn load_device_names(&mut self, devices: impl Iterator<Item = DeviceNo>) -> Result<(), StoreError> {
        for device in devices {
            if !self.devices.0.contains_key(&device) {
                self.load_device(device)?;
            }
        }
        Ok(())
    }

    fn load_device(&mut self, device: DeviceNo) -> Result<(), StoreError> {
        let rows: Vec<DeviceRow> =
            sql_query("SELECT device_no, sub, device_id, last_n, acked_n FROM devices WHERE device_no = ?")
                .bind::<Integer, _>(device_sql(device))
                .load(&mut self.connection)
                .map_err(store_error)?;
        for row in rows {
            debug_assert_eq!(row.device_no, device_sql(device));
            let number = |value: i64| u64::try_from(value).map_err(|_| StoreError::Corrupt("device".into()));
            let state = DeviceState { last_n: number(row.last_n)?, acked_n: number(row.acked_n)? };
            self.states.insert(device, state);
            self.devices.0.insert(device, device_key(&row.sub, &row.device_id));
        }
        Ok(())
    }
}

pub(super) fn json_array(texts: &[&str]) -> String {
    let mut out = String::with_capacity(texts.len() * 24);
    out.push('[');
    for text in texts {
        if out.len() > 1 {
            out.push(',');
        }
        driftline_protocol::write_json_string(&mut out, text);
    }
    out.push(']');
    out
}

fn json_records(records: &BTreeSet<(TenantNo, i32, &str)>) -> String {
    let mut out = String::with_capacity(records.len() * 32);
    for (tenant, kind_no, id) in records {
        out.push(if out.is_empty() { '[' } else { ',' });
        out.push_str(&format!("[{tenant},{kind_no},"));
        driftline_protocol::write_json_string(&mut out, id);
        out.push(']');
    }
    out.push(']');
    out
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        write!(out, "{byte:02x}").expect("writing to a string does not fail");
        out
    })
}
