//! How an upload is opened.

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use driftline_engine::{StoreError, UploadCaps, UploadOnce, UploadOpened, UploadRow};
use driftline_uploads::UploadId;
use tokio::join;

use super::super::connect::Lease;
use super::super::leases::begin_locked;
use super::super::once::{self, PutKeys};
use super::super::prune::DatabaseClock;
use super::super::queries::finish;
use super::super::sql::statement;
use super::super::{Shared, store_error};
use super::{begin_with, lock_usage, move_usage, reserve_more};
use crate::codec::corrupt;
use crate::names::tenant_sql;
use crate::rows::{UploadWrite, count_of, id_sql, sql};
use crate::uploads::{kept_of, met, refused, released, reserved};

statement! {
    /// How many uploads of a user are open or being finalized.
    CountLive<'a> { tenant_no: i32 => Integer, owner: &'a str => Text } =
    "SELECT count(*) FROM uploads WHERE tenant_no = " ? tenant_no: Integer
    " AND owner = " ? owner: Text
    " AND state IN ('open', 'finalizing')"
}

impl Query for CountLive<'_> {
    type SqlType = BigInt;
}

statement! {
    /// Takes down what an upload reserves.
    Reserve { reserved: i64 => BigInt, id: Vec<u8> => Binary } =
    "UPDATE uploads SET reserved = " ? reserved: BigInt
    " WHERE id = " ? id: Binary
    ""
}

/// Writes the row of an upload.
#[derive(QueryId)]
struct PutUpload(UploadWrite);

impl QueryFragment<Pg> for PutUpload {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        let Self(row) = self;
        out.push_sql(
            "INSERT INTO uploads (id, tenant_no, owner, state, size, chunk_bytes, received, reserved, opened_at, \
             expires_at, changed_at, file_name, content_type, metadata, announced, digest, running, hashed, staged, \
             record_kind, record_id, joining, fault) VALUES (",
        );
        out.push_bind_param::<Binary, _>(&row.id)?;
        macro_rules! bind {
            ($($sql:ty => $field:ident),+ $(,)?) => {
                $(
                    out.push_sql(", ");
                    out.push_bind_param::<$sql, _>(&row.$field)?;
                )+
            };
        }
        bind!(Integer => tenant_no, Text => owner, Text => state, Nullable<BigInt> => size,
            Nullable<BigInt> => chunk_bytes, BigInt => received, BigInt => reserved, BigInt => opened_at,
            BigInt => expires_at, BigInt => changed_at, Text => file_name, Text => content_type,
            Nullable<Binary> => metadata, Nullable<Binary> => announced, Nullable<Binary> => digest,
            Nullable<Binary> => running, BigInt => hashed, Nullable<Text> => staged, Nullable<Text> => record_kind,
            Nullable<Text> => record_id, Text => joining, Nullable<Binary> => fault);
        out.push_sql(")");
        Ok(())
    }
}

pub(super) async fn open_upload(
    shared: &Shared,
    row: &UploadRow,
    caps: UploadCaps,
    once: Option<&UploadOnce>,
) -> Result<UploadOpened, StoreError> {
    let lease = shared.writer().await?;
    let opened = match once {
        None => match (&mut lease.pg()).batch_execute("BEGIN").await {
            Ok(()) => open_within(&lease, row, caps).await,
            Err(error) => Err(store_error(error)),
        },
        Some(once) => open_once(shared, &lease, row, caps, once).await,
    };
    finish(lease, opened).await
}

/// Opens an upload under a key, with the tenant's head locked as by everybody who changes what is kept under keys.
async fn open_once(
    shared: &Shared,
    lease: &Lease,
    row: &UploadRow,
    caps: UploadCaps,
    once: &UploadOnce,
) -> Result<UploadOpened, StoreError> {
    let tenant_no = tenant_sql(row.tenant);
    let received_at = begin_locked(lease, tenant_no).await.map_err(store_error)?.7;
    let database_ms: i64 = DatabaseClock {}.get_result(&mut { lease.pg() }).await.map_err(store_error)?;
    let received_ms = u64::try_from(received_at).map_err(|_| corrupt("received_at"))?;
    let now_ms = shared.now(database_ms).max(received_ms);
    let kept = once::find(lease.pg(), tenant_no, &once.owner, &once.key).await?;
    if let Some(answer) = met(kept.as_ref(), once, now_ms)? {
        return Ok(answer);
    }
    let opened = open_within(lease, row, caps).await?;
    if opened == UploadOpened::Opened {
        let mut put = PutKeys::of(tenant_no);
        put.push((&once.owner, &once.key), kept_of(once, row.id, now_ms));
        put.execute(&mut { lease.pg() }).await.map_err(store_error)?;
    }
    Ok(opened)
}

async fn open_within(lease: &Lease, row: &UploadRow, caps: UploadCaps) -> Result<UploadOpened, StoreError> {
    let (tenant_no, pg) = (tenant_sql(row.tenant), lease.pg());
    let count = CountLive { tenant_no, owner: &row.owner };
    // Counted behind the lock, which everybody needs who opens one for this tenant.
    let (used, open) = join!(biased; lock_usage(pg, tenant_no), count.get_result::<i64>(&mut { pg }));
    let (used, open) = (used?, open.map_err(store_error)?);
    if let Some(answer) = refused(row, caps, count_of(open)?, used) {
        return Ok(answer);
    }
    let put = PutUpload(UploadWrite::new(row));
    let (put, moved) = join!(
        biased;
        put.execute(&mut { pg }),
        move_usage(pg, tenant_no, (0, row.reserved))
    );
    put.map_err(store_error)?;
    moved?;
    Ok(UploadOpened::Opened)
}

pub(super) async fn reserve(shared: &Shared, id: UploadId, bytes: (u64, u64)) -> Result<bool, StoreError> {
    let lease = shared.writer().await?;
    let reserved = reserve_within(&lease, id, bytes).await;
    finish(lease, reserved).await
}

async fn reserve_within(
    lease: &Lease,
    id: UploadId,
    (bytes, quota_bytes): (u64, u64),
) -> Result<bool, StoreError> {
    let Some((tenant_no, standing)) = begin_with(lease, id).await? else { return Ok(false) };
    let Some(reserved) = reserved(Some(&standing), bytes) else { return Ok(false) };
    if !reserve_more(lease.pg(), tenant_no, (standing.reserved, reserved), quota_bytes).await? {
        return Ok(false);
    }
    let reserve = Reserve { reserved: sql(reserved), id: id_sql(id) };
    reserve.execute(&mut { lease.pg() }).await.map_err(store_error)?;
    Ok(true)
}

pub(super) async fn release(shared: &Shared, id: UploadId) -> Result<(), StoreError> {
    let lease = shared.writer().await?;
    let released = release_within(&lease, id).await;
    finish(lease, released).await
}

async fn release_within(lease: &Lease, id: UploadId) -> Result<(), StoreError> {
    let Some((tenant_no, standing)) = begin_with(lease, id).await? else { return Ok(()) };
    let Some(reserved) = released(Some(&standing)) else { return Ok(()) };
    let reserve = Reserve { reserved: sql(reserved), id: id_sql(id) };
    reserve.execute(&mut { lease.pg() }).await.map_err(store_error)?;
    move_usage(lease.pg(), tenant_no, (standing.reserved, reserved)).await
}
