//! What is kept under the names of requests.

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::{GroupState, OnceKey, Planned, StoreError, Submission};
use driftline_idempotency::{Answer, Claim, Claimed, CompleteError, Held, Records, RecordsError};
use driftline_model::{TenantId, TenantNo};

use super::hot::{Rows, binds, insert, statement};
use super::writer::{GroupError, Writer};
use super::{SqliteStore, prune, queries, store_error};
use crate::codec::{corrupt, encode_answer, encode_receipt};
use crate::names::{device_sql, tenant_sql};
use crate::once::{Kept, fingerprint_of, grant, meet_claim, records_error};
use crate::rows::{sql, sql_ms};

/// A row of `idempotency` to be written.
#[derive(QueryId)]
struct OnceRow {
    tenant_no: i32,
    owner: String,
    key: String,
    fingerprint: Vec<u8>,
    expires_at: i64,
    answer: Option<Vec<u8>>,
    attempt: Option<i64>,
    lease_until: Option<i64>,
}

impl OnceRow {
    fn new(tenant: TenantNo, (owner, key): (&str, &str), kept: Kept) -> Self {
        Self {
            tenant_no: tenant_sql(tenant),
            owner: owner.to_owned(),
            key: key.to_owned(),
            fingerprint: kept.fingerprint.as_bytes().to_vec(),
            expires_at: sql_ms(kept.expires_ms),
            answer: kept.answer,
            attempt: kept.lease.map(|(attempt, _)| sql_ms(attempt)),
            lease_until: kept.lease.map(|(_, until_ms)| sql_ms(until_ms)),
        }
    }
}

impl Rows for OnceRow {
    const HEAD: &'static str = "INSERT INTO idempotency (tenant_no, owner, key, fingerprint, expires_at, answer, attempt, \
         lease_until) VALUES ";
    const TAIL: &'static str = " ON CONFLICT (tenant_no, owner, key) DO UPDATE SET fingerprint = excluded.fingerprint, \
         expires_at = excluded.expires_at, answer = excluded.answer, attempt = excluded.attempt, \
         lease_until = excluded.lease_until";

    fn bind<'b>(&'b self, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        binds!(self, out, Integer => tenant_no, Text => owner, Text => key, Binary => fingerprint,
            BigInt => expires_at, Nullable<Binary> => answer, Nullable<BigInt> => attempt,
            Nullable<BigInt> => lease_until)
    }
}

/// A row of `sync_batches` to be written.
#[derive(QueryId)]
struct BatchRow {
    tenant_no: i32,
    device_no: i32,
    sync_id: String,
    batch_seq: i64,
    at: i64,
    fingerprint: Option<Vec<u8>>,
    answer: Option<Vec<u8>>,
}

impl Rows for BatchRow {
    const HEAD: &'static str = "INSERT INTO sync_batches (tenant_no, device_no, sync_id, batch_seq, at, fingerprint, answer) \
         VALUES ";
    const TAIL: &'static str = " ON CONFLICT (tenant_no, device_no, sync_id, batch_seq) DO UPDATE SET at = excluded.at, \
         fingerprint = excluded.fingerprint, answer = excluded.answer";

    fn bind<'b>(&'b self, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        binds!(self, out, Integer => tenant_no, Integer => device_no, Text => sync_id, BigInt => batch_seq,
            BigInt => at, Nullable<Binary> => fingerprint, Nullable<Binary> => answer)
    }
}

statement! {
    /// What is kept under a key.
    LoadRequest { tenant_no: i32 => Integer, owner: String => Text, key: String => Text } =
    "SELECT fingerprint, expires_at, answer, attempt, lease_until FROM idempotency WHERE tenant_no = " ? tenant_no: Integer
    " AND owner = " ? owner: Text
    " AND key = " ? key: Text
}

impl Query for LoadRequest {
    type SqlType = (Binary, BigInt, Nullable<Binary>, Nullable<BigInt>, Nullable<BigInt>);
}

type RequestRow = (Vec<u8>, i64, Option<Vec<u8>>, Option<i64>, Option<i64>);

statement! {
    /// What is kept of a batch.
    LoadBatch { tenant_no: i32 => Integer, device_no: i32 => Integer, sync_id: String => Text, batch_seq: i64 => BigInt } =
    "SELECT fingerprint, at, answer FROM sync_batches WHERE tenant_no = " ? tenant_no: Integer
    " AND device_no = " ? device_no: Integer
    " AND sync_id = " ? sync_id: Text
    " AND batch_seq = " ? batch_seq: BigInt
    " AND fingerprint IS NOT NULL"
}

impl Query for LoadBatch {
    type SqlType = (Binary, BigInt, Nullable<Binary>);
}

/// Reads what is kept under a key.
pub(super) fn kept(
    connection: &mut SqliteConnection,
    tenant: TenantNo,
    (owner, key): (&str, &str),
) -> QueryResult<Result<Option<Kept>, StoreError>> {
    let query = LoadRequest { tenant_no: tenant_sql(tenant), owner: owner.to_owned(), key: key.to_owned() };
    let row: Option<RequestRow> = query.get_result(connection).optional()?;
    let kept = row.map(|(fingerprint, expires_at, answer, attempt, lease_until)| {
        Kept::of(&fingerprint, expires_at, answer, (attempt, lease_until))
    });
    Ok(kept.transpose())
}

/// Writes what is kept under a key.
pub(super) fn keep(
    connection: &mut SqliteConnection,
    tenant: TenantNo,
    name: (&str, &str),
    kept: Kept,
) -> Result<(), StoreError> {
    insert(connection, &[OnceRow::new(tenant, name, kept)]).map_err(store_error)
}

impl Writer {
    /// Loads what is known of the names of a group's batches.
    pub(super) fn load_once(
        &mut self,
        group: &[Submission],
        state: &mut GroupState,
    ) -> Result<(), GroupError> {
        for submission in group {
            for once in &submission.once {
                let kept = match &once.key {
                    OnceKey::Request { owner, key } => {
                        kept(&mut self.connection, submission.tenant, (owner, key))??
                    }
                    OnceKey::Batch { device, sync_id, number } => {
                        let query = LoadBatch {
                            tenant_no: tenant_sql(submission.tenant),
                            device_no: device_sql(*device),
                            sync_id: sync_id.to_string(),
                            batch_seq: sql(*number),
                        };
                        let row: Option<(Vec<u8>, i64, Option<Vec<u8>>)> =
                            query.get_result(&mut self.connection).optional()?;
                        row.map(|row| batch_of(&row.0, row.1, row.2)).transpose()?
                    }
                };
                if let Some(kept) = kept {
                    state.once.insert((submission.tenant, once.key.clone()), kept.record()?);
                }
            }
        }
        Ok(())
    }

    pub(super) fn write_once(&mut self, planned: &Planned, now: i64) -> Result<(), GroupError> {
        let answer = |at: usize| planned.receipts.get(at).and_then(encode_receipt);
        let batches = planned.writes.batches.iter().map(|batch| BatchRow {
            tenant_no: tenant_sql(batch.tenant),
            device_no: device_sql(batch.device),
            sync_id: batch.sync_id.to_string(),
            batch_seq: sql(batch.number),
            at: now,
            fingerprint: batch.answer.map(|(fingerprint, _)| fingerprint.as_bytes().to_vec()),
            answer: batch.answer.and_then(|(_, at)| answer(at)),
        });
        insert(&mut self.connection, &batches.collect::<Vec<_>>())?;
        let once = planned.writes.once.iter().map(|once| {
            let (fingerprint, expires_ms) = (once.fingerprint, once.expires_ms);
            let kept = Kept { fingerprint, expires_ms, answer: answer(once.receipt), lease: None };
            OnceRow::new(once.tenant, (&once.owner, &once.key), kept)
        });
        insert(&mut self.connection, &once.collect::<Vec<_>>())?;
        Ok(())
    }
}

fn batch_of(fingerprint: &[u8], at: i64, answer: Option<Vec<u8>>) -> Result<Kept, StoreError> {
    let at_ms = u64::try_from(at).map_err(|_| corrupt("at"))?;
    Ok(Kept::of_batch(fingerprint_of(fingerprint)?, at_ms, answer))
}

#[derive(QueryableByName)]
struct Counter {
    #[diesel(sql_type = Binary)]
    value: Vec<u8>,
}

/// Gives the next fencing number. The counter is that of all keys, so that it outlives each of them.
fn next_attempt(connection: &mut SqliteConnection) -> Result<u64, StoreError> {
    let last: Option<Counter> = sql_query("SELECT value FROM meta WHERE name = 'attempt'")
        .get_result(connection)
        .optional()
        .map_err(store_error)?;
    let last = match last {
        None => 0,
        Some(last) => u64::from_be_bytes(last.value.try_into().map_err(|_| corrupt("attempt"))?),
    };
    sql_query(
        "INSERT INTO meta (name, value) VALUES ('attempt', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .bind::<Binary, _>((last + 1).to_be_bytes().to_vec())
    .execute(connection)
    .map_err(store_error)?;
    Ok(last + 1)
}

fn claim(writer: &mut Writer, tenant: &TenantId, claim: &Claim) -> Result<Claimed, StoreError> {
    let tenant = queries::tenant(writer, tenant)?;
    let name = (claim.scope.owner(), claim.key.as_str());
    let connection = &mut writer.connection;
    let before = kept(connection, tenant, name).map_err(store_error)??;
    if let Some(met) = meet_claim(before.as_ref(), claim)? {
        return Ok(met);
    }
    let attempt = next_attempt(connection)?;
    keep(connection, tenant, name, Kept::granted(claim, attempt))?;
    Ok(grant(claim, attempt))
}

fn complete(writer: &mut Writer, held: &Held, answer: Vec<u8>, now_ms: u64) -> Result<bool, StoreError> {
    let done = sql_query(
        "UPDATE idempotency SET answer = ?, attempt = NULL, lease_until = NULL \
         WHERE tenant_no = (SELECT tenant_no FROM tenants WHERE tenant = ?) AND owner = ? AND key = ? \
         AND attempt = ? AND expires_at > ?",
    )
    .bind::<Binary, _>(answer)
    .bind::<Text, _>(held.scope.tenant())
    .bind::<Text, _>(held.scope.owner())
    .bind::<Text, _>(held.key.as_str())
    .bind::<BigInt, _>(sql_ms(held.attempt))
    .bind::<BigInt, _>(sql_ms(now_ms))
    .execute(&mut writer.connection)
    .map_err(store_error)?;
    Ok(done > 0)
}

fn release(writer: &mut Writer, held: &Held) -> Result<(), StoreError> {
    sql_query(
        "DELETE FROM idempotency WHERE tenant_no = (SELECT tenant_no FROM tenants WHERE tenant = ?) \
         AND owner = ? AND key = ? AND attempt = ?",
    )
    .bind::<Text, _>(held.scope.tenant())
    .bind::<Text, _>(held.scope.owner())
    .bind::<Text, _>(held.key.as_str())
    .bind::<BigInt, _>(sql_ms(held.attempt))
    .execute(&mut writer.connection)
    .map_err(store_error)?;
    Ok(())
}

impl Records for SqliteStore {
    async fn claim(&self, asked: Claim) -> Result<Claimed, RecordsError> {
        let tenant = TenantId::new(asked.scope.tenant()).map_err(records_error)?;
        self.write(move |writer| claim(writer, &tenant, &asked)).await.map_err(records_error)
    }

    async fn complete(&self, held: &Held, answer: Answer, now_ms: u64) -> Result<(), CompleteError> {
        let (held, answer) = (held.clone(), encode_answer(&answer));
        let done = self.write(move |writer| complete(writer, &held, answer, now_ms)).await;
        if done.map_err(records_error)? { Ok(()) } else { Err(CompleteError::Fenced) }
    }

    async fn release(&self, held: &Held) -> Result<(), RecordsError> {
        let held = held.clone();
        self.write(move |writer| release(writer, &held)).await.map_err(records_error)
    }

    async fn prune(&self, now_ms: u64, limit: usize) -> Result<usize, RecordsError> {
        let removed = self.write(move |writer| prune::keys(writer, now_ms, limit)).await;
        removed.map(|removed| usize::try_from(removed).unwrap_or(limit)).map_err(records_error)
    }
}
