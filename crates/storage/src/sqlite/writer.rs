//! The one thread that writes.
//!
//! What queued up while the last commit ran becomes the next commit group: no timer, and one sync for many
//! batches. Answers go out after the commit. A commit that fails for another reason than a busy database ends
//! the process, because nobody can tell what is on the disk then.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Integer, Text};
use driftline_conflict::DeviceOrder;
use driftline_engine::{
    Clock, DeviceState, GroupState, Head, Known, Listeners, PlanEnv, Planned, Random, Receipt, RowKey,
    StoreError, Submission, Task, plan,
};
use driftline_model::{DeviceKey, DeviceNo, KindName, ScopeName, TenantNo};
use driftline_protocol::{ItemClass, ItemCode};
use tokio::sync::oneshot;

use super::codec::{decode_code, decode_op, encode_code, encode_op};
use super::hot::{
    AnswerBatch, AuditInsert, ForgetAnswers, HeadRow, KnownByName, KnownByNumber, KnownRow, LoadHead,
    LoadRecords, MoveDevice, MoveHead, RecordRow, ResultRow, insert, is_unique_violation,
};
use super::names::{Names, tenant_sql};
use super::rows::{head_of, row_of, seq_of, sql, write_of};
use super::{Fatal, store_error};

/// What the writer is asked to do.
pub(super) enum Job {
    /// Apply a batch.
    Commit(Submission, oneshot::Sender<Result<Receipt, StoreError>>, Queued),
    /// Do something else on the writing connection, between two commit groups.
    Run(Box<dyn FnOnce(&mut Writer) + Send>),
}

/// Bytes of batches that wait for the writer, as long as they do.
pub(super) struct Queued {
    bytes: usize,
    waiting: Arc<AtomicUsize>,
}

/// Bytes of batches that may wait for the writer.
const QUEUED_BYTES_MAX: usize = 256 << 20;

impl Queued {
    /// Counts a batch in, unless too much waits already.
    pub(super) fn count(waiting: &Arc<AtomicUsize>, bytes: usize) -> Option<Self> {
        let before = waiting.fetch_add(bytes, Ordering::Relaxed);
        let queued = Self { bytes, waiting: Arc::clone(waiting) };
        (before + bytes <= QUEUED_BYTES_MAX).then_some(queued)
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A commit group holds at most this many batches and bytes.
const GROUP_BATCHES: usize = 64;
const GROUP_BYTES: usize = 4 << 20;

/// Devices whose state and name are held in memory.
const DEVICES_MAX: usize = 200_000;

pub(super) struct Writer {
    pub(super) connection: SqliteConnection,
    pub(super) names: Arc<Names>,
    /// Heads for look-ups; the lock is held for one of them.
    heads: Arc<Mutex<HashMap<TenantNo, Head>>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) random: Arc<dyn Random>,
    pub(super) listeners: Arc<dyn Listeners>,
    pub(super) fatal: Fatal,
    pub(super) skew_ms_max: u64,
    pub(super) record_bytes: usize,
    latest_ms: u64,
    /// States of devices, as they are in the table: this thread alone writes it.
    states: HashMap<DeviceNo, DeviceState>,
    devices: DeviceNames,
}

/// How answers that came before are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lookup {
    /// Only where an item's number is not new; a name that came under another number fails on its key.
    Likely,
    /// For every item.
    Thorough,
}

/// Why a group was not committed.
enum GroupError {
    /// A name of a change came again under another number, or may have: every answer must be looked up.
    DoubledName,
    Store(StoreError),
}

impl From<StoreError> for GroupError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<diesel::result::Error> for GroupError {
    fn from(error: diesel::result::Error) -> Self {
        if is_unique_violation(&error) { Self::DoubledName } else { Self::Store(store_error(error)) }
    }
}

/// The names of devices, for the order of equal clocks.
#[derive(Default)]
struct DeviceNames(HashMap<DeviceNo, DeviceKey>);

impl DeviceOrder for DeviceNames {
    fn bytes(&self, device: DeviceNo) -> &[u8] {
        self.0.get(&device).map_or(&[], |key| key.as_str().as_bytes())
    }
}

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

pub(super) fn device_sql(device: DeviceNo) -> i32 {
    i32::try_from(device.number()).expect("the store gives devices numbers of 31 bits")
}

impl Writer {
    pub(super) fn new(
        connection: SqliteConnection,
        (names, heads): (Arc<Names>, Arc<Mutex<HashMap<TenantNo, Head>>>),
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        listeners: Arc<dyn Listeners>,
        fatal: Fatal,
        (skew_ms_max, record_bytes): (u64, usize),
    ) -> Self {
        Self {
            connection,
            names,
            heads,
            clock,
            random,
            listeners,
            fatal,
            skew_ms_max,
            record_bytes,
            latest_ms: 0,
            states: HashMap::new(),
            devices: DeviceNames::default(),
        }
    }

    /// The time of receipt: the clock's, and never an earlier one than before.
    fn now_ms(&mut self) -> u64 {
        self.latest_ms = self.latest_ms.max(self.clock.now_ms());
        self.latest_ms
    }

    /// Keeps a head for look-ups.
    pub(super) fn keep_head(&self, tenant: TenantNo, head: Head) {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).insert(tenant, head);
    }

    /// Has the next look-up read the table, after a change beside the commit groups.
    pub(super) fn forget_head(&self, tenant: TenantNo) {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).remove(&tenant);
    }

    /// Works until every sender is gone.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        let mut held: Option<Job> = None;
        loop {
            let first = match held.take() {
                Some(job) => job,
                None => match jobs.recv() {
                    Ok(job) => job,
                    Err(_) => return,
                },
            };
            match first {
                Job::Run(run) => run(&mut self),
                Job::Commit(submission, answer, queued) => {
                    drop(queued);
                    let mut bytes = submission.bytes();
                    let (mut group, mut answers) = (vec![submission], vec![answer]);
                    while group.len() < GROUP_BATCHES && bytes < GROUP_BYTES {
                        match jobs.try_recv() {
                            Ok(Job::Commit(submission, answer, queued)) => {
                                drop(queued);
                                bytes += submission.bytes();
                                group.push(submission);
                                answers.push(answer);
                            }
                            Ok(other) => {
                                held = Some(other);
                                break;
                            }
                            Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                        }
                    }
                    self.commit(&group, answers);
                }
            }
        }
    }

    fn commit(&mut self, group: &[Submission], answers: Vec<oneshot::Sender<Result<Receipt, StoreError>>>) {
        match self.transact(group, Lookup::Likely) {
            Ok(receipts) => {
                for (answer, receipt) in answers.into_iter().zip(receipts) {
                    // Nobody waits any more: the batch is applied all the same and a resend is recognised.
                    let _ = answer.send(Ok(receipt));
                }
            }
            // One batch is at fault, or a name came again: each batch runs alone, with every answer looked up.
            Err(error) => {
                if let GroupError::Store(error) = &error {
                    tracing::warn!(%error, batches = group.len(), "commit group failed, batches run one by one");
                }
                for (submission, answer) in group.iter().zip(answers) {
                    let receipt = self.transact(std::slice::from_ref(submission), Lookup::Thorough);
                    let _ = answer.send(match receipt {
                        Ok(mut receipts) => {
                            receipts.pop().ok_or(StoreError::Unavailable("no receipt".into()))
                        }
                        Err(GroupError::DoubledName) => Err(StoreError::Unavailable("a doubled key".into())),
                        Err(GroupError::Store(error)) => Err(error),
                    });
                }
            }
        }
    }

    /// Loads, plans, writes and commits; or leaves everything as it was.
    fn transact(&mut self, group: &[Submission], lookup: Lookup) -> Result<Vec<Receipt>, GroupError> {
        self.intern(group)?;
        self.connection.batch_execute("BEGIN IMMEDIATE").map_err(store_error)?;
        match self.apply(group, lookup) {
            Ok((planned, state)) => {
                if let Err(error) = self.connection.batch_execute("COMMIT") {
                    (self.fatal)(&format!("the commit failed: {error}"));
                    return Err(GroupError::Store(store_error(error)));
                }
                for write in &planned.writes.devices {
                    self.states.insert(write.device, write.state);
                }
                drop(state);
                for (tenant, head) in &planned.writes.heads {
                    self.keep_head(*tenant, *head);
                }
                for committed in planned.commits {
                    self.listeners.committed(committed);
                }
                Ok(planned.receipts)
            }
            Err(error) => {
                if let Err(error) = self.connection.batch_execute("ROLLBACK") {
                    tracing::error!(%error, "rollback failed");
                }
                Err(error)
            }
        }
    }

    /// Gives numbers to new kinds and scopes, before the transaction, so that they stay if it fails.
    fn intern(&mut self, group: &[Submission]) -> Result<(), StoreError> {
        for submission in group {
            let mut last: Option<(&KindName, &ScopeName)> = None;
            for entry in &submission.entries {
                let Task::Apply(apply) = &entry.task else { continue };
                if last != Some((&apply.kind, &apply.scope)) {
                    self.names.intern_kind(&mut self.connection, submission.tenant, &apply.kind)?;
                    self.names.intern_scope(&mut self.connection, submission.tenant, &apply.scope)?;
                    last = Some((&apply.kind, &apply.scope));
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, group: &[Submission], lookup: Lookup) -> Result<(Planned, GroupState), GroupError> {
        let mut state = self.load(group, lookup)?;
        let listeners = Arc::clone(&self.listeners);
        let now_ms = self.now_ms();
        let env = PlanEnv {
            now_ms,
            skew_ms_max: self.skew_ms_max,
            record_bytes: self.record_bytes,
            devices: &self.devices,
            listening: &|tenant| listeners.listening(tenant),
        };
        let planned = plan(group, &mut state, &env);
        if lookup == Lookup::Likely && unproven(group, &planned) {
            return Err(GroupError::DoubledName);
        }
        let now = sql(env.now_ms);
        self.write(&planned, &state, now)?;
        Ok((planned, state))
    }

    fn load(&mut self, group: &[Submission], lookup: Lookup) -> Result<GroupState, GroupError> {
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
            if let Slot::Vacant(slot) = state.devices.entry(submission.device) {
                slot.insert(self.device_state(submission.device)?);
            }
            self.load_known(submission, &mut state, lookup)?;
            for entry in &submission.entries {
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
                devices.extend(row.record.all_marks().map(|mark| mark.device));
                let key = RowKey { tenant: *tenant, kind: kind.clone(), id: row.id.clone() };
                state.rows.insert(key, Some(row));
            }
        }
        self.load_device_names(devices.into_iter().chain(group.iter().map(|submission| submission.device)))?;
        Ok(state)
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
        let asked: Vec<_> =
            submission.entries.iter().filter(|entry| lookup == Lookup::Thorough || old(entry.n)).collect();
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
        for (n, op_id, hash, code, version) in rows {
            let known = Known {
                op_id: op_id.as_deref().map(decode_op).transpose()?,
                n: u64::try_from(n).map_err(|_| StoreError::Corrupt("n".into()))?,
                hash: hash.cast_unsigned(),
                code: decode_code(code)?,
                version: seq_of(version)?,
            };
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
            self.devices
                .0
                .insert(device, DeviceKey::from_text(&format!("{}\u{1}{}", row.sub, row.device_id)));
        }
        Ok(())
    }

    fn write(&mut self, planned: &Planned, state: &GroupState, now: i64) -> Result<(), GroupError> {
        let writes = &planned.writes;
        let mut records = Vec::with_capacity(writes.rows.len());
        for key in &writes.rows {
            let Some(Some(row)) = state.rows.get(key) else { continue };
            let kind_no = self.names.intern_kind(&mut self.connection, key.tenant, &key.kind)?;
            let scope_no = self.names.intern_scope(&mut self.connection, key.tenant, &row.scope)?;
            records.push(write_of(key.tenant, (kind_no, scope_no), row, now));
        }
        insert(&mut self.connection, &records)?;
        for device in writes.devices.iter().filter(|device| device.state.acked_n > device.acked_before) {
            let acked_n = sql(device.state.acked_n);
            ForgetAnswers { device_no: device_sql(device.device), acked_n }.execute(&mut self.connection)?;
        }
        let results: Vec<ResultRow> = writes
            .results
            .iter()
            .map(|result| ResultRow {
                device_no: device_sql(result.device),
                n: sql(result.known.n),
                tenant_no: tenant_sql(result.tenant),
                op_id: result.known.op_id.as_ref().map(encode_op),
                hash: result.known.hash.cast_signed(),
                code: encode_code(result.known.code),
                seq: sql(result.known.version.number()),
                at: now,
            })
            .collect();
        insert(&mut self.connection, &results)?;
        self.write_audit(planned, now)?;
        for device in &writes.devices {
            let (last_n, acked_n) = (sql(device.state.last_n), sql(device.state.acked_n));
            MoveDevice { last_n, acked_n, at: now, device_no: device_sql(device.device) }
                .execute(&mut self.connection)?;
        }
        for (tenant, head) in &writes.heads {
            let (seq, hlc) = (sql(head.seq.number()), head.hlc.bits().cast_signed());
            MoveHead { seq, hlc, tenant_no: tenant_sql(*tenant) }.execute(&mut self.connection)?;
        }
        for (tenant, device, sync_id, number) in &writes.batches {
            let (tenant_no, device_no) = (tenant_sql(*tenant), device_sql(*device));
            AnswerBatch {
                tenant_no,
                device_no,
                sync_id: sync_id.to_string(),
                batch_seq: sql(*number),
                at: now,
            }
            .execute(&mut self.connection)?;
        }
        Ok(())
    }

    fn write_audit(&mut self, planned: &Planned, now: i64) -> Result<(), GroupError> {
        let mut rows = Vec::with_capacity(planned.writes.audits.len());
        for audit in &planned.writes.audits {
            rows.push(AuditInsert {
                tenant_no: tenant_sql(audit.tenant),
                at: now,
                kind_no: self.names.intern_kind(&mut self.connection, audit.tenant, &audit.kind)?,
                id: audit.id.as_str().to_owned(),
                seq: sql(audit.seq.number()),
                device_no: device_sql(audit.device),
                sub: audit.user.to_string(),
                op_id: audit.op_id.as_ref().map(encode_op),
                n: sql(audit.n),
                code: encode_code(audit.code),
                strategy: audit.strategy,
                policy_version: sql(audit.policy_version),
                correlation_id: audit.correlation.to_string(),
                detail: audit.detail.clone(),
            });
        }
        insert(&mut self.connection, &rows)?;
        Ok(())
    }
}

/// Whether a change with a name got an answer that is not written: only the key of a written one shows that its name
/// never came before.
fn unproven(group: &[Submission], planned: &Planned) -> bool {
    group.iter().zip(&planned.receipts).any(|(submission, receipt)| {
        submission.entries.iter().zip(&receipt.results).any(|(entry, result)| {
            let fails_group = entry.group.is_some() && result.code.class() != ItemClass::Done;
            let written = result.code.is_remembered() && !fails_group;
            entry.op_id.is_some() && !written && !result.duplicate && result.code != ItemCode::EpochChanged
        })
    })
}

fn json_array(texts: &[&str]) -> String {
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

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        write!(out, "{byte:02x}").expect("writing to a string does not fail");
        out
    })
}
