//! What is remembered under names of requests and batches.

use std::collections::BTreeMap;

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Binary, Integer, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use driftline_engine::{GroupState, OnceKey, OnceWrite, Receipt, Remembered, StoreError, Submission};
use driftline_idempotency::Record;
use driftline_model::{SyncId, TenantNo};

use super::snapshot::give_back;
use super::sql::statement;
use super::{Shared, store_error};
use crate::codec::{corrupt, encode_receipt};
use crate::names::{device_of, device_sql, tenant_sql};
use crate::once::{Kept, fingerprint_of};
use crate::rows::sql;

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
        state.once.insert((tenant, key), kept_of(row)?.record()?);
    }
    for (device_no, sync_id, batch_seq, at, fingerprint, answer) in batches {
        let number = |number: i64| u64::try_from(number).map_err(|_| corrupt("batch_seq"));
        let sync_id = sync_id.parse::<SyncId>().map_err(|_| corrupt("sync_id"))?;
        let key = OnceKey::Batch { device: device_of(device_no), sync_id, number: number(batch_seq)? };
        let kept = Kept::of_batch(fingerprint_of(&fingerprint)?, number(at)?, answer);
        state.once.insert((tenant, key), kept.record()?);
    }
    Ok(())
}

pub(super) fn kept_of(row: KeyRow) -> Result<Kept, StoreError> {
    let (_, _, fingerprint, expires_at, answer, attempt, lease_until) = row;
    Kept::of(&fingerprint, expires_at, answer, (attempt, lease_until))
}

/// Finds what is kept under one key.
pub(super) async fn find(
    pg: &AsyncPgConnection,
    tenant_no: i32,
    owner: &str,
    key: &str,
) -> Result<Option<Kept>, StoreError> {
    let found = load_keys(pg, tenant_no, (vec![owner], vec![key])).await.map_err(store_error)?;
    found.into_iter().next().map(kept_of).transpose()
}

/// A time of expiry as it is stored.
pub(super) fn expiry_sql(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

impl PutKeys {
    pub(super) fn of(tenant_no: i32) -> Self {
        Self {
            tenant_no,
            owner: Vec::new(),
            key: Vec::new(),
            fingerprint: Vec::new(),
            expires_at: Vec::new(),
            answer: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, (owner, key): (&str, &str), kept: Kept) {
        self.owner.push(owner.to_owned());
        self.key.push(key.to_owned());
        self.fingerprint.push(kept.fingerprint.as_bytes().to_vec());
        self.expires_at.push(expiry_sql(kept.expires_ms));
        self.answer.push(kept.answer);
    }
}

/// Makes the statement that remembers the answers of a group under keys, each as its last batch left it.
pub(super) fn put_keys(tenant_no: i32, once: &[OnceWrite], receipts: &[Receipt]) -> PutKeys {
    let last: BTreeMap<(&str, &str), &OnceWrite> =
        once.iter().map(|write| ((&*write.owner, &*write.key), write)).collect();
    let mut put = PutKeys::of(tenant_no);
    for (name, write) in last {
        let OnceWrite { fingerprint, expires_ms, receipt, .. } = *write;
        put.push(
            name,
            Kept { fingerprint, expires_ms, answer: encode_receipt(&receipts[receipt]), lease: None },
        );
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
    let found = find(lease.pg(), tenant_sql(tenant), owner, key).await;
    give_back(lease, found).await?.map(|kept| kept.record()).transpose()
}
