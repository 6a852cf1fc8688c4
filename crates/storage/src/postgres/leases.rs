//! Leases on effects outside the database, beside the answers to batches and under the same keys.
//!
//! Every change of a key locks the head of its tenant first, as a commit group does, so that neither overlooks the other.

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Integer, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use driftline_engine::{Store, StoreError};
use driftline_idempotency::{Answer, Claim, Claimed, CompleteError, Held, Records, RecordsError, Scope};
use driftline_model::{TenantId, TenantNo};
use tokio::join;

use super::connect::Lease;
use super::once::{self, expiry_sql};
use super::queries::finish;
use super::sql::{LockHead, LockedHead, statement};
use super::{PostgresStore, Shared, prune, store_error};
use crate::codec::encode_answer;
use crate::names::tenant_sql;
use crate::once::{Kept, grant, meet_claim, records_error};
use crate::rows::sql;

statement! {
    /// Claims a key; gives the fencing number.
    PutClaim<'a> {
        tenant_no: i32 => Integer, owner: &'a str => Text, key: &'a str => Text, fingerprint: &'a [u8] => Binary,
        expires_at: i64 => BigInt, lease_until: i64 => BigInt,
    } =
    "INSERT INTO idempotency (tenant_no, owner, key, fingerprint, expires_at, attempt, lease_until) VALUES ("
    ? tenant_no: Integer
    ", " ? owner: Text
    ", " ? key: Text
    ", " ? fingerprint: Binary
    ", " ? expires_at: BigInt
    ", nextval('idempotency_attempts'), " ? lease_until: BigInt
    ") ON CONFLICT (tenant_no, owner, key) DO UPDATE SET fingerprint = excluded.fingerprint, \
     expires_at = excluded.expires_at, answer = NULL, attempt = excluded.attempt, lease_until = excluded.lease_until \
     RETURNING attempt"
}

impl Query for PutClaim<'_> {
    type SqlType = BigInt;
}

statement! {
    /// Keeps the answer of who holds a claim.
    CompleteClaim<'a> {
        tenant_no: i32 => Integer, owner: &'a str => Text, key: &'a str => Text, attempt: i64 => BigInt,
        now: i64 => BigInt, answer: Vec<u8> => Binary,
    } =
    "UPDATE idempotency SET answer = " ? answer: Binary
    ", attempt = NULL, lease_until = NULL WHERE tenant_no = " ? tenant_no: Integer
    " AND owner = " ? owner: Text
    " AND key = " ? key: Text
    " AND attempt = " ? attempt: BigInt
    " AND expires_at > " ? now: BigInt
    ""
}

statement! {
    /// Gives a claim back.
    ReleaseClaim<'a> { tenant_no: i32 => Integer, owner: &'a str => Text, key: &'a str => Text, attempt: i64 => BigInt } =
    "DELETE FROM idempotency WHERE tenant_no = " ? tenant_no: Integer
    " AND owner = " ? owner: Text
    " AND key = " ? key: Text
    " AND attempt = " ? attempt: BigInt
    ""
}

/// Begins a transaction and locks a tenant's head in it.
pub(super) async fn begin_locked(lease: &Lease, tenant_no: i32) -> QueryResult<LockedHead> {
    let mut first = lease.pg();
    let (begun, head) = join!(
        biased;
        first.batch_execute("BEGIN"),
        LockHead { tenant_no }.get_result::<LockedHead>(&mut { lease.pg() })
    );
    begun?;
    head
}

async fn claim(shared: &Shared, tenant: TenantNo, claim: &Claim) -> Result<Claimed, StoreError> {
    let lease = shared.writer().await?;
    let claimed = claim_within(&lease, tenant_sql(tenant), claim).await;
    finish(lease, claimed).await
}

async fn claim_within(lease: &Lease, tenant_no: i32, claim: &Claim) -> Result<Claimed, StoreError> {
    begin_locked(lease, tenant_no).await.map_err(store_error)?;
    let (owner, key) = (claim.scope.owner(), claim.key.as_str());
    let kept = once::find(lease.pg(), tenant_no, owner, key).await?;
    if let Some(met) = meet_claim(kept.as_ref(), claim)? {
        return Ok(met);
    }
    // The number is the sequence's; the row is the same for all of them.
    let granted = Kept::granted(claim, 0);
    let (_, until_ms) = granted.lease.unwrap_or_default();
    let put = PutClaim {
        tenant_no,
        owner,
        key,
        fingerprint: claim.fingerprint.as_bytes(),
        expires_at: expiry_sql(granted.expires_ms),
        lease_until: expiry_sql(until_ms),
    };
    let attempt: i64 = put.get_result(&mut { lease.pg() }).await.map_err(store_error)?;
    Ok(grant(claim, attempt.unsigned_abs()))
}

/// Changes a claim that is held, under the head's lock; tells whether it was.
async fn change<S>(shared: &Shared, tenant_no: i32, statement: S) -> Result<bool, StoreError>
where
    S: QueryFragment<Pg> + QueryId + Send,
    S: for<'c> diesel_async::methods::ExecuteDsl<&'c AsyncPgConnection>,
{
    let lease = shared.writer().await?;
    let changed = match begin_locked(&lease, tenant_no).await {
        Ok(_) => statement.execute(&mut { lease.pg() }).await.map(|rows| rows > 0),
        Err(error) => Err(error),
    };
    finish(lease, changed.map_err(store_error)).await
}

impl PostgresStore {
    async fn tenant_of(&self, scope: &Scope) -> Result<TenantNo, RecordsError> {
        let tenant = TenantId::new(scope.tenant()).map_err(records_error)?;
        Store::tenant(self, &tenant).await.map_err(records_error)
    }
}

impl Records for PostgresStore {
    async fn claim(&self, wish: Claim) -> Result<Claimed, RecordsError> {
        let (shared, tenant) = (self.shared.clone(), self.tenant_of(&wish.scope).await?);
        self.run(async move { claim(&shared, tenant, &wish).await }).await.map_err(records_error)
    }

    async fn complete(&self, held: &Held, answer: Answer, now_ms: u64) -> Result<(), CompleteError> {
        let (shared, tenant) = (self.shared.clone(), self.tenant_of(&held.scope).await?);
        let held = held.clone();
        let completed = self.run(async move {
            let complete = CompleteClaim {
                tenant_no: tenant_sql(tenant),
                owner: held.scope.owner(),
                key: held.key.as_str(),
                attempt: sql(held.attempt),
                now: expiry_sql(now_ms),
                answer: encode_answer(&answer),
            };
            change(&shared, tenant_sql(tenant), complete).await
        });
        if completed.await.map_err(records_error)? { Ok(()) } else { Err(CompleteError::Fenced) }
    }

    async fn release(&self, held: &Held) -> Result<(), RecordsError> {
        let (shared, tenant) = (self.shared.clone(), self.tenant_of(&held.scope).await?);
        let held = held.clone();
        let released = self.run(async move {
            let release = ReleaseClaim {
                tenant_no: tenant_sql(tenant),
                owner: held.scope.owner(),
                key: held.key.as_str(),
                attempt: sql(held.attempt),
            };
            change(&shared, tenant_sql(tenant), release).await
        });
        released.await.map(drop).map_err(records_error)
    }

    async fn prune(&self, now_ms: u64, limit: usize) -> Result<usize, RecordsError> {
        let shared = self.shared.clone();
        let removed = self.run(async move { prune::prune_keys(&shared, now_ms, limit).await });
        removed.await.map_err(records_error)
    }
}
