//! What a commit group needs to be planned.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use diesel::QueryResult;
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use driftline_engine::{DeviceState, Entry, GroupState, RowKey, StoreError, Submission, Task};
use driftline_model::{DeviceNo, KindName, TenantNo};
use tokio::join;

use super::commit::Failure;
use super::events::{self, EventKeys, Keyed, KeyedRow, load_dedupe, load_versions};
use super::once::{self, BatchRow, KeyRow, load_batches, load_keys};
use super::prune::DatabaseClock;
use super::samples::{self, MarkRow, PointRow, load_samples, load_series};
use super::sql::{
    DeviceRow, KnownByName, KnownByNumber, KnownRowOf, LoadDevices, LoadRecords, LockHead, LockedHead,
    OpenConflicts,
};
use super::{Shared, names};
use crate::codec::{corrupt, encode_op};
use crate::group::{DeviceNames, Lookup};
use crate::marks::every_mark;
use crate::names::{device_key, device_of, device_sql, tenant_sql};
use crate::rows::{ConflictSql, RecordRow, head_of, known_of, row_of, sql};

/// A group's state, with what surrounds its plan.
pub(super) struct Loaded {
    pub(super) state: GroupState,
    pub(super) devices: DeviceNames,
    /// The time of receipt: the clock's, and never an earlier one than the tenant has seen.
    pub(super) now_ms: u64,
}

/// What the first flight asks for.
struct Asked<'a> {
    devices: BTreeSet<DeviceNo>,
    /// The kinds' numbers, and the records.
    rows: (Vec<i32>, Vec<&'a str>),
    conflicts: (Vec<i32>, Vec<&'a str>),
    /// As the records.
    samples: (Vec<i32>, Vec<&'a str>),
    /// The hours, and the names of the series.
    series: (Vec<i64>, Vec<&'a str>),
    /// Changes whose first answer may be remembered.
    known: KnownKeys,
    once: once::Names<'a>,
    /// Tenants and keys of events' duplicates, and tenants and what events tell of.
    events: (Keyed<'a>, Keyed<'a>),
}

#[derive(Default)]
struct KnownKeys {
    numbers: (Vec<i32>, Vec<i64>),
    names: (Vec<i32>, Vec<Vec<u8>>),
}

impl KnownKeys {
    fn add(&mut self, device: DeviceNo, entry: &Entry) {
        // Samples are known by themselves.
        if !entry.is_record() {
            return;
        }
        if let Some(n) = entry.n {
            self.numbers.0.push(device_sql(device));
            self.numbers.1.push(sql(n));
        }
        if let Some(op_id) = &entry.op_id {
            self.names.0.push(device_sql(device));
            self.names.1.push(encode_op(op_id));
        }
    }
}

/// Begins the transaction, locks the head and loads.
pub(super) async fn load(
    shared: &Shared,
    pg: &AsyncPgConnection,
    tenant: TenantNo,
    group: &[Submission],
    lookup: Lookup,
) -> Result<Loaded, Failure> {
    // As this node knows it; the rest is asked for when the devices' states are here.
    let believed: HashMap<DeviceNo, u64> = group
        .iter()
        .filter_map(|submission| Some((submission.device, shared.caches.last_ns.get(&submission.device)?)))
        .collect();
    let old = |submission: &Submission, entry: &Entry| {
        let last_n = believed.get(&submission.device);
        lookup == Lookup::Thorough || last_n.zip(entry.n).is_none_or(|(last_n, n)| n <= *last_n)
    };
    let asked = ask(shared, tenant, group, old)?;
    let fetched = fetch(shared, pg, tenant, asked).await?;
    let mut loaded = sort(shared, pg, tenant, group, fetched).await?;
    // Another node may have moved a device on.
    let mut missed = KnownKeys::default();
    for submission in group {
        let last_n = loaded.state.devices.get(&submission.device).map_or(0, |device| device.last_n);
        for entry in &submission.entries {
            if !old(submission, entry) && entry.n.is_some_and(|n| n <= last_n) {
                missed.add(submission.device, entry);
            }
        }
    }
    let (by_number, by_name) = join!(known_by_number(pg, missed.numbers), known_by_name(pg, missed.names));
    keep_known(&mut loaded.state, by_number?.into_iter().chain(by_name?))?;
    Ok(loaded)
}

fn ask<'a>(
    shared: &Shared,
    tenant: TenantNo,
    group: &'a [Submission],
    old: impl Fn(&Submission, &Entry) -> bool,
) -> Result<Asked<'a>, Failure> {
    let mut asked = Asked {
        devices: senders(group).map(|submission| submission.device).collect(),
        rows: Default::default(),
        conflicts: Default::default(),
        samples: Default::default(),
        series: Default::default(),
        known: KnownKeys::default(),
        once: once::Names::default(),
        events: Default::default(),
    };
    let mut keys = EventKeys::default();
    let mut wanted = Wanted::default();
    let mut last: Option<(&KindName, Option<i32>)> = None;
    for submission in group {
        asked.once.add(submission);
        keys.add(submission);
        for entry in &submission.entries {
            if old(submission, entry) {
                asked.known.add(submission.device, entry);
            }
            if let Task::Aggregate(aggregate) = &entry.task {
                wanted
                    .series
                    .extend(aggregate.series.iter().map(|(name, _)| (sql(aggregate.hour_ms), &**name)));
                continue;
            }
            let (Some(kind), Some(id)) = (&entry.kind, &entry.id) else { continue };
            let kind_no = match last {
                Some((known, number)) if known == kind => number,
                _ => shared.caches.names.kind(tenant, kind),
            };
            last = Some((kind, kind_no));
            match kind_no {
                Some(kind_no) => wanted.add(entry, (kind_no, id.as_str())),
                None if matches!(entry.task, Task::Refuse(..)) => {}
                // A failover came between: the record must not count as missing.
                None => return Err(StoreError::Unavailable("the kind's number was forgotten".into()).into()),
            }
        }
    }
    wanted.sort_into(&mut asked);
    asked.events = keys.split();
    Ok(asked)
}

/// The batches of devices: whoever publishes needs none.
fn senders(group: &[Submission]) -> impl Iterator<Item = &Submission> {
    group.iter().filter(|submission| !submission.is_publication())
}

/// What the first flight asks for by name, each once.
#[derive(Default)]
struct Wanted<'a> {
    /// Records, and whether their conflicts are wanted too.
    rows: BTreeMap<(i32, &'a str), bool>,
    samples: BTreeSet<(i32, &'a str)>,
    series: BTreeSet<(i64, &'a str)>,
}

impl<'a> Wanted<'a> {
    fn add(&mut self, entry: &Entry, key: (i32, &'a str)) {
        if entry.is_record() {
            // A create of a new record is looked for as well: it may exist.
            *self.rows.entry(key).or_default() |= entry.may_review();
        } else {
            self.samples.insert(key);
        }
    }

    fn sort_into(self, asked: &mut Asked<'a>) {
        asked.conflicts =
            self.rows.iter().filter(|(_, may_review)| **may_review).map(|(key, _)| *key).unzip();
        asked.rows = self.rows.into_keys().unzip();
        asked.samples = self.samples.into_iter().unzip();
        asked.series = self.series.into_iter().unzip();
    }
}

struct Fetched {
    head: LockedHead,
    database_ms: i64,
    devices: Vec<DeviceRow>,
    rows: Vec<RecordRow>,
    conflicts: Vec<ConflictSql>,
    known: Vec<KnownRowOf>,
    telemetry: (Vec<MarkRow>, Vec<PointRow>),
    once: (Vec<KeyRow>, Vec<BatchRow>),
    /// What is known of keys of duplicates, and of what events tell of.
    events: (Vec<KeyedRow>, Vec<KeyedRow>),
}

/// The first flight.
async fn fetch(
    shared: &Shared,
    pg: &AsyncPgConnection,
    tenant: TenantNo,
    asked: Asked<'_>,
) -> Result<Fetched, Failure> {
    let tenant_no = tenant_sql(tenant);
    let devices = asked.devices.iter().map(|device| device_sql(*device)).collect();
    let (keys, batches) = asked.once.split();
    let (dedupe, versions) = asked.events;
    let mut first = pg;
    let (begun, head, (devices, database_ms), rows, conflicts, by_number, by_name, samples, series, more) = join!(
        biased;
        first.batch_execute("BEGIN"),
        lock_head(shared, pg, tenant_no),
        load_devices(pg, tenant_no, devices),
        load_records(pg, tenant_no, asked.rows),
        load_conflicts(pg, tenant_no, asked.conflicts),
        known_by_number(pg, asked.known.numbers),
        known_by_name(pg, asked.known.names),
        load_samples(pg, tenant_no, asked.samples),
        load_series(pg, tenant_no, asked.series),
        async {
            join!(
                biased;
                load_keys(pg, tenant_no, keys),
                load_batches(pg, tenant_no, batches),
                load_dedupe(pg, dedupe),
                load_versions(pg, versions),
            )
        },
    );
    let (keys, batches, dedupe, versions) = more;
    begun?;
    let mut known = by_number?;
    known.extend(by_name?);
    Ok(Fetched {
        head: head?,
        database_ms: database_ms?,
        devices: devices?,
        rows: rows?,
        conflicts: conflicts?,
        known,
        telemetry: (samples?, series?),
        once: (keys?, batches?),
        events: (dedupe?, versions?),
    })
}

/// Loads devices, and asks for the time: behind the lock, for which the transaction may have waited.
async fn load_devices(
    pg: &AsyncPgConnection,
    tenant_no: i32,
    devices: Vec<i32>,
) -> (QueryResult<Vec<DeviceRow>>, QueryResult<i64>) {
    if devices.is_empty() {
        return (Ok(Vec::new()), DatabaseClock {}.get_result(&mut { pg }).await);
    }
    let devices = LoadDevices { tenant_no, devices }.load::<DeviceRow>(&mut { pg }).await;
    let database_ms = devices.iter().flatten().map(|device| device.5).next().unwrap_or(0);
    (devices, Ok(database_ms))
}

async fn lock_head(shared: &Shared, mut pg: &AsyncPgConnection, tenant_no: i32) -> QueryResult<LockedHead> {
    #[cfg(test)]
    if shared.faults.get().is_some_and(|faults| faults.head_unlocked) {
        return super::sql::ReadHead { tenant_no }.get_result(&mut pg).await;
    }
    let _ = shared;
    LockHead { tenant_no }.get_result(&mut pg).await
}

async fn load_records(
    mut pg: &AsyncPgConnection,
    tenant_no: i32,
    (kinds, ids): (Vec<i32>, Vec<&str>),
) -> QueryResult<Vec<RecordRow>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    LoadRecords { tenant_no, kinds, ids }.load(&mut pg).await
}

async fn load_conflicts(
    mut pg: &AsyncPgConnection,
    tenant_no: i32,
    (kinds, ids): (Vec<i32>, Vec<&str>),
) -> QueryResult<Vec<ConflictSql>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    OpenConflicts { tenant_no, kinds, ids }.load(&mut pg).await
}

async fn known_by_number(
    mut pg: &AsyncPgConnection,
    (devices, numbers): (Vec<i32>, Vec<i64>),
) -> QueryResult<Vec<KnownRowOf>> {
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    KnownByNumber { devices, numbers }.load(&mut pg).await
}

async fn known_by_name(
    mut pg: &AsyncPgConnection,
    (devices, names): (Vec<i32>, Vec<Vec<u8>>),
) -> QueryResult<Vec<KnownRowOf>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    KnownByName { devices, names }.load(&mut pg).await
}

/// Makes a group's state of what was fetched, looking up names that this node does not know.
async fn sort(
    shared: &Shared,
    pg: &AsyncPgConnection,
    tenant: TenantNo,
    group: &[Submission],
    fetched: Fetched,
) -> Result<Loaded, Failure> {
    let (epoch, seq, hlc, scopes_version, gc_floor, epoch_seq, event_id, received_at) = fetched.head;
    let received_ms = u64::try_from(received_at).map_err(|_| corrupt("received_at"))?;
    let mut loaded = Loaded {
        state: GroupState::default(),
        devices: DeviceNames::default(),
        now_ms: shared.now(fetched.database_ms).max(received_ms),
    };
    let state = &mut loaded.state;
    state.heads.insert(tenant, head_of((epoch, seq, hlc, scopes_version, gc_floor, epoch_seq, event_id))?);
    keep_devices(shared, &mut loaded.devices, Some(&mut *state), fetched.devices)?;
    for submission in senders(group) {
        if !state.devices.contains_key(&submission.device) {
            return Err(StoreError::Unavailable(
                "the device is not registered any more: connect again".into(),
            )
            .into());
        }
    }
    let caches = &shared.caches.names;
    let kinds = fetched.rows.iter().map(|row| row.0);
    names::learn(caches, pg, kinds, fetched.rows.iter().map(|row| row.3)).await?;
    let mut marked = HashSet::new();
    for row in fetched.rows {
        let row = row_of(caches, row)?;
        marked.extend(every_mark(&row.record).map(|mark| mark.device));
        let key = RowKey { tenant, kind: row.kind.clone(), id: row.id.clone() };
        state.rows.insert(key, Some(row));
    }
    let scopes = fetched.conflicts.iter().map(ConflictSql::scope_no);
    names::learn(caches, pg, fetched.conflicts.iter().map(ConflictSql::kind_no), scopes).await?;
    for row in fetched.conflicts {
        let (tenant, row) = row.row(caches)?;
        let key = RowKey { tenant, kind: row.kind.clone(), id: row.id.clone() };
        state.conflicts.entry(key).or_default().push(row);
    }
    keep_known(state, fetched.known)?;
    names::learn(caches, pg, fetched.telemetry.0.iter().map(|row| row.0), []).await?;
    samples::keep(caches, tenant, state, fetched.telemetry)?;
    once::keep(tenant, state, fetched.once)?;
    events::keep(state, fetched.events.0, fetched.events.1)?;
    name_devices(shared, pg, tenant, &mut loaded.devices, marked).await?;
    Ok(loaded)
}

fn keep_known(state: &mut GroupState, rows: impl IntoIterator<Item = KnownRowOf>) -> Result<(), StoreError> {
    for (device_no, n, op_id, hash, code, seq, more) in rows {
        let (device, known) = (device_of(device_no), known_of((n, op_id, hash, code, seq, more))?);
        if let Some(op_id) = &known.op_id {
            state.by_op.insert((device, op_id.clone()), known.clone());
        }
        state.by_n.insert((device, known.n), known);
    }
    Ok(())
}

/// Keeps the names of devices, and their states where these are wanted.
fn keep_devices(
    shared: &Shared,
    devices: &mut DeviceNames,
    mut state: Option<&mut GroupState>,
    rows: Vec<DeviceRow>,
) -> Result<(), StoreError> {
    let number = |value: i64| u64::try_from(value).map_err(|_| corrupt("device"));
    for (device_no, sub, device_id, last_n, acked_n, _) in rows {
        let (device, key) = (device_of(device_no), device_key(&sub, &device_id));
        shared.caches.device_names.insert(device, key.clone());
        devices.0.insert(device, key);
        if let Some(state) = &mut state {
            let own = DeviceState { last_n: number(last_n)?, acked_n: number(acked_n)? };
            state.devices.insert(device, own);
        }
    }
    Ok(())
}

/// Finds the names of the devices of marks, which decide ties.
async fn name_devices(
    shared: &Shared,
    mut pg: &AsyncPgConnection,
    tenant: TenantNo,
    devices: &mut DeviceNames,
    marked: HashSet<DeviceNo>,
) -> Result<(), Failure> {
    let mut unknown = Vec::new();
    for device in marked {
        if devices.0.contains_key(&device) {
            continue;
        }
        match shared.caches.device_names.get(&device) {
            Some(key) => drop(devices.0.insert(device, key)),
            None => unknown.push(device_sql(device)),
        }
    }
    if !unknown.is_empty() {
        let query = LoadDevices { tenant_no: tenant_sql(tenant), devices: unknown };
        let rows = query.load::<DeviceRow>(&mut pg).await?;
        keep_devices(shared, devices, None, rows)?;
    }
    Ok(())
}
