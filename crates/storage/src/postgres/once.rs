//! What is remembered under names of requests and batches.

use std::collections::BTreeMap;

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Binary, Integer, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use driftline_engine::{GroupState, OnceKey, OnceWrite, Receipt, Remembered, StoreError, Submission};
use driftline_idempotency::{Fingerprint, Record, State};
use driftline_model::{SyncId, TenantNo};

use super::snapshot::give_back;
use super::sql::statement;
use super::{Shared, store_error};
use crate::codec::corrupt;
use crate::names::{device_of, device_sql, tenant_sql};
use crate::rows::sql;

/// How long a batch of a session is recognised, in milliseconds.
const BATCH_MS: u64 = 24 * 3_600_000;

statement! {
    /// What is remembered under keys.
    LoadKeys<'a> { tenant_no: i32 => Integer, owners: Vec<&'a str> => Array<Text>, keys: Vec<&'a str> => Array<Text> } =
    "SELECT i.owner, i.key, i.fingerprint, i.expires_at, i.answer, i.attempt, i.lease_until FROM unnest("
    ? owners: Array<Text>
    ", " ? keys: Array<Text>
    ") AS w(owner, key) CROSS JOIN LATERAL (SELECT * FROM idempotency WHERE tenant_no = " ? tenant_no: Integer
    " AND owner = w.owner AND key >= w.key AND key <= w.key ORDER BY key LIMIT 1) AS i"
}

impl Query for LoadKeys<'_> {
    type SqlType = (Text, Text, Binary, BigInt, Nullable<Binary>, Nullable<BigInt>, Nullable<BigInt>);
}

/// What is remembered under a key, as a query gives it.
pub(super) type KeyRow = (String, String, Vec<u8>, i64, Option<Vec<u8>>, Option<i64>, Option<i64>);

statement! {
    /// What is remembered of batches of sessions. What the version before wrote is recognised by nothing.
    LoadBatches<'a> {
        tenant_no: i32 => Integer, devices: Vec<i32> => Array<Integer>, sessions: Vec<&'a str> => Array<Text>,
        numbers: Vec<i64> => Array<BigInt>,
    } =
    "SELECT b.device_no, b.sync_id, b.batch_seq, b.at, b.fingerprint, b.answer FROM unnest(" ? devices: Array<Integer>
    ", " ? sessions: Array<Text>
    ", " ? numbers: Array<BigInt>
    ") AS w(device_no, sync_id, batch_seq) CROSS JOIN LATERAL (SELECT * FROM sync_batches WHERE tenant_no = "
    ? tenant_no: Integer
    " AND device_no = w.device_no AND sync_id = w.sync_id AND batch_seq >= w.batch_seq AND batch_seq <= w.batch_seq \
     ORDER BY batch_seq LIMIT 1) AS b WHERE b.fingerprint IS NOT NULL"
}

impl Query for LoadBatches<'_> {
    type SqlType = (Integer, Text, BigInt, BigInt, Binary, Nullable<Binary>);
}

/// What is remembered of a batch, as a query gives it.
pub(super) type BatchRow = (i32, String, i64, i64, Vec<u8>, Option<Vec<u8>>);

statement! {
    /// Remembers answers under keys.
    PutKeys {
        tenant_no: i32 => Integer, owner: Vec<String> => Array<Text>, key: Vec<String> => Array<Text>,
        fingerprint: Vec<Vec<u8>> => Array<Binary>, expires_at: Vec<i64> => Array<BigInt>,
        answer: Vec<Option<Vec<u8>>> => Array<Nullable<Binary>>,
    } =
    "INSERT INTO idempotency (tenant_no, owner, key, fingerprint, expires_at, answer) SELECT " ? tenant_no: Integer
    ", w.* FROM unnest(" ? owner: Array<Text>
    ", " ? key: Array<Text>
    ", " ? fingerprint: Array<Binary>
    ", " ? expires_at: Array<BigInt>
    ", " ? answer: Array<Nullable<Binary>>
    ") AS w ON CONFLICT (tenant_no, owner, key) DO UPDATE SET fingerprint = excluded.fingerprint, \
     expires_at = excluded.expires_at, answer = excluded.answer, attempt = NULL, lease_until = NULL"
}

/// The names of a group's batches.
#[derive(Default)]
pub(super) struct Names<'a> {
    keys: (Vec<&'a str>, Vec<&'a str>),
    batches: (Vec<i32>, Vec<&'a str>, Vec<i64>),
}

impl<'a> Names<'a> {
    /// Takes note of a batch's names.
    pub(super) fn add(&mut self, submission: &'a Submission) {
        for once in &submission.once {
            match &once.key {
                OnceKey::Request { owner, key } => {
                    self.keys.0.push(owner);
                    self.keys.1.push(key);
                }
                OnceKey::Batch { device, sync_id, number } => {
                    self.batches.0.push(device_sql(*device));
                    self.batches.1.push(sync_id.as_str());
                    self.batches.2.push(sql(*number));
                }
            }
        }
    }

    pub(super) fn split(self) -> (Keys<'a>, Batches<'a>) {
        (self.keys, self.batches)
    }
}

/// Owners and their keys.
pub(super) type Keys<'a> = (Vec<&'a str>, Vec<&'a str>);
/// Devices, sessions and numbers.
pub(super) type Batches<'a> = (Vec<i32>, Vec<&'a str>, Vec<i64>);

pub(super) async fn load_keys(
    mut pg: &AsyncPgConnection,
    tenant_no: i32,
    (owners, keys): Keys<'_>,
) -> QueryResult<Vec<KeyRow>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    LoadKeys { tenant_no, owners, keys }.load(&mut pg).await
}

pub(super) async fn load_batches(
    mut pg: &AsyncPgConnection,
    tenant_no: i32,
    (devices, sessions, numbers): Batches<'_>,
) -> QueryResult<Vec<BatchRow>> {
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    LoadBatches { tenant_no, devices, sessions, numbers }.load(&mut pg).await
}

/// Keeps what was loaded.
pub(super) fn keep(
    tenant: TenantNo,
    state: &mut GroupState,
    (keys, batches): (Vec<KeyRow>, Vec<BatchRow>),
) -> Result<(), StoreError> {
    for row in keys {
        let key = OnceKey::Request { owner: row.0.as_str().into(), key: row.1.as_str().into() };
        state.once.insert((tenant, key), record_of(row)?);
    }
    for (device_no, sync_id, batch_seq, at, fingerprint, answer) in batches {
        let number = u64::try_from(batch_seq).map_err(|_| corrupt("batch_seq"))?;
        let sync_id = sync_id.parse::<SyncId>().map_err(|_| corrupt("sync_id"))?;
        let key = OnceKey::Batch { device: device_of(device_no), sync_id, number };
        let record = Record {
            fingerprint: fingerprint_of(&fingerprint)?,
            expires_ms: ms(at)?.saturating_add(BATCH_MS),
            state: State::Done(remembered_of(answer.as_deref())?),
        };
        state.once.insert((tenant, key), record);
    }
    Ok(())
}

fn ms(stored: i64) -> Result<u64, StoreError> {
    u64::try_from(stored).map_err(|_| corrupt("time"))
}

fn fingerprint_of(bytes: &[u8]) -> Result<Fingerprint, StoreError> {
    bytes.try_into().map(Fingerprint::from_bytes).map_err(|_| corrupt("fingerprint"))
}

/// A record whose answer is yet to be read.
pub(super) fn raw_record_of(row: KeyRow) -> Result<Record<Option<Vec<u8>>>, StoreError> {
    let (_, _, fingerprint, expires_at, answer, attempt, lease_until) = row;
    let state = match (answer, attempt, lease_until) {
        (None, Some(attempt), Some(until)) => {
            let attempt = u64::try_from(attempt).map_err(|_| corrupt("attempt"))?;
            State::Leased { attempt, until_ms: ms(until)? }
        }
        (answer, ..) => State::Done(answer),
    };
    Ok(Record { fingerprint: fingerprint_of(&fingerprint)?, expires_ms: ms(expires_at)?, state })
}

pub(super) fn record_of(row: KeyRow) -> Result<Record<Remembered>, StoreError> {
    let Record { fingerprint, expires_ms, state } = raw_record_of(row)?;
    let state = match state {
        State::Done(answer) => State::Done(remembered_of(answer.as_deref())?),
        State::Leased { attempt, until_ms } => State::Leased { attempt, until_ms },
    };
    Ok(Record { fingerprint, expires_ms, state })
}

/// A time of expiry as it is stored.
pub(super) fn expiry_sql(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

/// Makes the statement that remembers answers under keys, each as its last batch left it.
pub(super) fn put_keys(tenant_no: i32, once: &[OnceWrite], receipts: &[Receipt]) -> PutKeys {
    let last: BTreeMap<(&str, &str), &OnceWrite> =
        once.iter().map(|write| ((&*write.owner, &*write.key), write)).collect();
    let mut put = PutKeys {
        tenant_no,
        owner: Vec::new(),
        key: Vec::new(),
        fingerprint: Vec::new(),
        expires_at: Vec::new(),
        answer: Vec::new(),
    };
    for ((owner, key), write) in last {
        put.owner.push(owner.to_owned());
        put.key.push(key.to_owned());
        put.fingerprint.push(write.fingerprint.as_bytes().to_vec());
        put.expires_at.push(expiry_sql(write.expires_ms));
        put.answer.push(answer_of(&receipts[write.receipt]));
    }
    put
}

/// Reads what is remembered under a key.
pub(super) async fn remembered(
    shared: &Shared,
    tenant: TenantNo,
    owner: &str,
    key: &str,
) -> Result<Option<Record<Remembered>>, StoreError> {
    let lease = shared.reader().await?;
    let found = load_keys(lease.pg(), tenant_sql(tenant), (vec![owner], vec![key])).await;
    let found = give_back(lease, found.map_err(store_error)).await?;
    found.into_iter().next().map(record_of).transpose()
}
