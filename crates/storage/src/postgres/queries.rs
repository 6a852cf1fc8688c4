//! Everything beside the hot path.

use diesel::OptionalExtension;
use diesel::QueryableByName;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Integer, Text};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use driftline_engine::{Head, SessionProgress, StoreError, StoredPolicy};
use driftline_model::{DeviceKey, DeviceNo, Epoch, KindName, SyncId, TenantId, TenantNo};

use super::connect::Lease;
use super::sql::LoadHead;
use super::timeline::fresh_epoch;
use super::{Shared, names, store_error};
use crate::names::{device_of, device_sql, tenant_of, tenant_sql};
use crate::rows::{HeadRow, head_of, sql};

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = Integer)]
    number: i32,
}

#[derive(QueryableByName)]
struct Big {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

#[derive(QueryableByName)]
struct PolicyRow {
    #[diesel(sql_type = Integer)]
    kind_no: i32,
    #[diesel(sql_type = Text)]
    doc: String,
    #[diesel(sql_type = BigInt)]
    version: i64,
}

#[derive(QueryableByName)]
struct BatchRow {
    #[diesel(sql_type = BigInt)]
    batch_seq: i64,
    #[diesel(sql_type = BigInt)]
    at: i64,
}

/// Milliseconds as the database counts them.
const NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000)::BIGINT";

/// Commits a transaction, or takes it back; gives the connection back either way.
pub(super) async fn finish<T>(lease: Lease, done: Result<T, StoreError>) -> Result<T, StoreError> {
    if done.is_err() {
        lease.roll_back().await;
        return done;
    }
    (&mut lease.pg()).batch_execute("COMMIT").await.map_err(store_error)?;
    lease.done();
    done
}

/// Gives a connection back on which no transaction was begun.
fn returned<T>(lease: Lease, done: Result<T, StoreError>) -> Result<T, StoreError> {
    // A statement that fails by itself leaves nothing behind; a connection that is gone is noticed by the pool.
    lease.done();
    done
}

pub(super) async fn tenant(shared: &Shared, tenant: &TenantId) -> Result<TenantNo, StoreError> {
    let lease = shared.writer().await?;
    let generation = shared.caches.generation();
    (&mut lease.pg()).batch_execute("BEGIN").await.map_err(store_error)?;
    let found = find_or_make_tenant(shared, &lease, tenant).await;
    let number = finish(lease, found).await?;
    shared.caches.keep_tenant(generation, tenant, number);
    shared.caches.tellers.watch(number);
    Ok(number)
}

async fn find_or_make_tenant(
    shared: &Shared,
    lease: &Lease,
    tenant: &TenantId,
) -> Result<TenantNo, StoreError> {
    let find = || {
        sql_query("SELECT tenant_no AS number FROM tenants WHERE tenant = $1")
            .bind::<Text, _>(tenant.as_str())
    };
    let found: Option<Number> = find().get_result(&mut lease.pg()).await.optional().map_err(store_error)?;
    if let Some(found) = found {
        return Ok(tenant_of(found.number));
    }
    // Another node may be making it: whoever comes second waits here, and finds it.
    let made: Option<Number> = sql_query(format!(
        "INSERT INTO tenants (tenant, created_at) VALUES ($1, {NOW}) ON CONFLICT DO NOTHING RETURNING tenant_no AS number"
    ))
    .bind::<Text, _>(tenant.as_str())
    .get_result(&mut lease.pg())
    .await
    .optional()
    .map_err(store_error)?;
    let Some(made) = made else {
        let found: Number = find().get_result(&mut lease.pg()).await.map_err(store_error)?;
        return Ok(tenant_of(found.number));
    };
    sql_query("INSERT INTO stream_head (tenant_no, epoch) VALUES ($1, $2)")
        .bind::<Integer, _>(made.number)
        .bind::<Text, _>(fresh_epoch(&*shared.random).to_string())
        .execute(&mut lease.pg())
        .await
        .map_err(store_error)?;
    Ok(tenant_of(made.number))
}

pub(super) async fn device(
    shared: &Shared,
    tenant: TenantNo,
    device: &DeviceKey,
) -> Result<DeviceNo, StoreError> {
    let lease = shared.writer().await?;
    let generation = shared.caches.generation();
    let own_ms = shared.clock.as_ref().map(|clock| sql(clock.now_ms()));
    let found = find_or_register(&lease, tenant, device, own_ms).await;
    let number = returned(lease, found)?;
    shared.caches.keep_device(generation, (tenant, device.clone()), number);
    Ok(number)
}

async fn find_or_register(
    lease: &Lease,
    tenant: TenantNo,
    device: &DeviceKey,
    own_ms: Option<i64>,
) -> Result<DeviceNo, StoreError> {
    let bound = |statement: String| {
        sql_query(statement)
            .bind::<Integer, _>(tenant_sql(tenant))
            .bind::<Text, _>(device.user().to_owned())
            .bind::<Text, _>(device.device().to_owned())
            .bind::<diesel::sql_types::Nullable<BigInt>, _>(own_ms)
    };
    let find = "SELECT device_no AS number FROM devices WHERE tenant_no = $1 AND sub = $2 AND device_id = $3";
    let make = format!(
        "INSERT INTO devices (tenant_no, sub, device_id, created_at, last_seen_at) VALUES ($1, $2, $3, coalesce($4, {NOW}), \
         coalesce($4, {NOW})) ON CONFLICT DO NOTHING RETURNING device_no AS number"
    );
    // Another node may register it between the first two.
    for statement in [find.to_owned(), make, find.to_owned()] {
        let found: Option<Number> =
            bound(statement).get_result(&mut lease.pg()).await.optional().map_err(store_error)?;
        if let Some(found) = found {
            return Ok(device_of(found.number));
        }
    }
    Err(StoreError::Unavailable("the device could not be registered".into()))
}

pub(super) async fn head(shared: &Shared, tenant: TenantNo) -> Result<Head, StoreError> {
    let lease = shared.reader().await?;
    let row = LoadHead { tenant_no: tenant_sql(tenant) }.get_result::<HeadRow>(&mut lease.pg()).await;
    returned(lease, row.map_err(store_error).and_then(head_of))
}

pub(super) async fn policies(shared: &Shared, tenant: TenantNo) -> Result<Vec<StoredPolicy>, StoreError> {
    let lease = shared.reader().await?;
    let found = read_policies(shared, &lease, tenant).await;
    returned(lease, found)
}

async fn read_policies(
    shared: &Shared,
    lease: &Lease,
    tenant: TenantNo,
) -> Result<Vec<StoredPolicy>, StoreError> {
    let rows: Vec<PolicyRow> =
        sql_query("SELECT kind_no, doc, version FROM policies WHERE tenant_no = $1 AND doc IS NOT NULL ORDER BY kind_no")
            .bind::<Integer, _>(tenant_sql(tenant))
            .load(&mut lease.pg())
            .await
            .map_err(store_error)?;
    let caches = &shared.caches.names;
    names::learn(caches, lease.pg(), rows.iter().map(|row| row.kind_no), []).await?;
    rows.into_iter()
        .map(|row| {
            let version = u64::try_from(row.version).map_err(|_| StoreError::Corrupt("version".into()))?;
            Ok(StoredPolicy { kind: caches.kind_name(row.kind_no)?, doc: row.doc, version })
        })
        .collect()
}

pub(super) async fn set_policy(
    shared: &Shared,
    tenant: TenantNo,
    kind: &KindName,
    doc: Option<&str>,
) -> Result<Option<u64>, StoreError> {
    let lease = shared.writer().await?;
    let caches = &shared.caches.names;
    let kinds = [kind.clone()].into();
    let named = match doc {
        Some(_) => names::intern(caches, lease.pg(), tenant, &kinds, &[].into()).await,
        None => names::find(caches, lease.pg(), tenant, [kind], []).await,
    };
    let named = named.map(|()| caches.kind(tenant, kind));
    let kind_no = match named {
        Ok(Some(kind_no)) => kind_no,
        Ok(None) => return returned(lease, Ok(None)),
        Err(error) => return returned(lease, Err(error)),
    };
    (&mut lease.pg()).batch_execute("BEGIN").await.map_err(store_error)?;
    let changed = write_policy(&lease, tenant, kind_no, doc).await;
    finish(lease, changed).await
}

async fn write_policy(
    lease: &Lease,
    tenant: TenantNo,
    kind_no: i32,
    doc: Option<&str>,
) -> Result<Option<u64>, StoreError> {
    // The head's row is the first that is locked, and tells the other nodes.
    sql_query("UPDATE stream_head SET policies_version = policies_version + 1 WHERE tenant_no = $1")
        .bind::<Integer, _>(tenant_sql(tenant))
        .execute(&mut lease.pg())
        .await
        .map_err(store_error)?;
    let statement = match doc {
        Some(_) => format!(
            "INSERT INTO policies AS p (tenant_no, kind_no, doc, version, updated_at) VALUES ($1, $2, $3, 1, {NOW}) \
             ON CONFLICT (tenant_no, kind_no) DO UPDATE SET doc = excluded.doc, version = p.version + 1, \
             updated_at = excluded.updated_at RETURNING version AS number"
        ),
        None => format!(
            "UPDATE policies SET doc = NULL, version = version + 1, updated_at = {NOW} \
             WHERE tenant_no = $1 AND kind_no = $2 AND doc IS NOT NULL AND $3 IS NULL RETURNING version AS number"
        ),
    };
    let changed: Option<Big> = sql_query(statement)
        .bind::<Integer, _>(tenant_sql(tenant))
        .bind::<Integer, _>(kind_no)
        .bind::<diesel::sql_types::Nullable<Text>, _>(doc)
        .get_result(&mut lease.pg())
        .await
        .optional()
        .map_err(store_error)?;
    Ok(changed.and_then(|changed| u64::try_from(changed.number).ok()))
}

pub(super) async fn begin_epoch(shared: &Shared, tenant: TenantNo, left: Epoch) -> Result<Head, StoreError> {
    let mut fresh = fresh_epoch(&*shared.random);
    if fresh == left {
        fresh = Epoch::new(left.number().wrapping_add(1));
    }
    let lease = shared.writer().await?;
    let begun =
        sql_query("UPDATE stream_head SET epoch = $1, epoch_seq = seq WHERE tenant_no = $2 AND epoch = $3")
            .bind::<Text, _>(fresh.to_string())
            .bind::<Integer, _>(tenant_sql(tenant))
            .bind::<Text, _>(left.to_string())
            .execute(&mut lease.pg())
            .await;
    if let Err(error) = begun {
        return returned(lease, Err(store_error(error)));
    }
    let row = LoadHead { tenant_no: tenant_sql(tenant) }.get_result::<HeadRow>(&mut lease.pg()).await;
    returned(lease, row.map_err(store_error).and_then(head_of))
}

/// Batches of a session that are told to a device that resumes it.
const BATCHES: i64 = 1000;

pub(super) async fn session(
    shared: &Shared,
    tenant: TenantNo,
    device: DeviceNo,
    sync_id: &SyncId,
) -> Result<Option<SessionProgress>, StoreError> {
    let lease = shared.reader().await?;
    let rows = sql_query(
        "SELECT batch_seq, at FROM sync_batches WHERE tenant_no = $1 AND device_no = $2 AND sync_id = $3 \
         ORDER BY batch_seq DESC LIMIT $4",
    )
    .bind::<Integer, _>(tenant_sql(tenant))
    .bind::<Integer, _>(device_sql(device))
    .bind::<Text, _>(sync_id.as_str())
    .bind::<BigInt, _>(BATCHES)
    .load::<BatchRow>(&mut lease.pg())
    .await;
    let rows = returned(lease, rows.map_err(store_error))?;
    if rows.is_empty() {
        return Ok(None);
    }
    let last_ms = rows.iter().map(|row| u64::try_from(row.at).unwrap_or_default()).max().unwrap_or_default();
    let batches = rows.iter().rev().map(|row| u64::try_from(row.batch_seq).unwrap_or_default()).collect();
    Ok(Some(SessionProgress { batches, last_ms }))
}

pub(super) async fn probe(shared: &Shared) -> Result<(), StoreError> {
    let lease = shared.writer().await?;
    let written = sql_query(
        "INSERT INTO meta (name, value) VALUES ('probe', $1) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .bind::<Binary, _>(sql(shared.now(0)).to_be_bytes().to_vec())
    .execute(&mut lease.pg())
    .await;
    returned(lease, written.map(drop).map_err(store_error))
}
