//! What is read of uploads.

use std::collections::HashMap;

use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Binary, Text};
use diesel::{OptionalExtension, QueryResult, sql_query};
use diesel_async::RunQueryDsl;
use driftline_engine::{ChunkThere, StoreError, UploadRow, UploadUsage};
use driftline_uploads::{Digest, State, UploadId};

use super::super::snapshot::give_back;
use super::super::sql::statement;
use super::super::{Shared, store_error};
use crate::rows::{
    ChunkColumns, ChunkRow, UPLOAD_SELECT, UploadColumns, UploadSql, chunk_of, count_of, digest_of, id_of,
    id_sql, sql, sql_ms, state_of,
};

/// Reads an upload.
#[derive(QueryId)]
struct LoadUpload {
    id: Vec<u8>,
}

impl QueryFragment<Pg> for LoadUpload {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(UPLOAD_SELECT);
        out.push_sql(" WHERE u.id = ");
        out.push_bind_param::<Binary, _>(&self.id)
    }
}

impl Query for LoadUpload {
    type SqlType = UploadColumns;
}

statement! {
    /// The digest of a chunk.
    LoadChunk { id: Vec<u8> => Binary, chunk_no: i64 => BigInt } =
    "SELECT digest FROM upload_chunks WHERE upload = " ? id: Binary
    " AND chunk_no = " ? chunk_no: BigInt
    ""
}

impl Query for LoadChunk {
    type SqlType = Binary;
}

statement! {
    /// The chunks of an upload in their order.
    LoadChunks { id: Vec<u8> => Binary } =
    "SELECT chunk_no, digest, tag FROM upload_chunks WHERE upload = " ? id: Binary
    " ORDER BY chunk_no"
}

impl Query for LoadChunks {
    type SqlType = ChunkColumns;
}

statement! {
    /// The states of uploads.
    LoadStates { ids: Vec<Vec<u8>> => Array<Binary> } =
    "SELECT u.id, u.state FROM unnest(" ? ids: Array<Binary>
    ") AS w(id) CROSS JOIN LATERAL (SELECT id, state FROM uploads WHERE id >= w.id AND id <= w.id ORDER BY id LIMIT 1) AS u"
}

impl Query for LoadStates {
    type SqlType = (Binary, Text);
}

statement! {
    /// How many uploads are open or being finalized, and what all of them and the files take.
    LoadUsages {} =
    "SELECT (SELECT count(*) FROM uploads WHERE state IN ('open', 'finalizing')), \
     (SELECT coalesce(sum(bytes), 0)::BIGINT FROM upload_usage)"
}

impl Query for LoadUsages {
    type SqlType = (BigInt, BigInt);
}

pub(super) async fn upload(shared: &Shared, id: UploadId) -> Result<Option<UploadRow>, StoreError> {
    let lease = shared.reader().await?;
    let found = LoadUpload { id: id_sql(id) }.get_result::<UploadSql>(&mut lease.pg()).await;
    let found = give_back(lease, found.optional().map_err(store_error)).await?;
    found.map(UploadSql::row).transpose()
}

pub(super) async fn chunk(shared: &Shared, id: UploadId, index: u64) -> Result<Option<Digest>, StoreError> {
    let lease = shared.reader().await?;
    let load = LoadChunk { id: id_sql(id), chunk_no: sql(index) };
    let found = load.get_result::<Vec<u8>>(&mut lease.pg()).await;
    let found = give_back(lease, found.optional().map_err(store_error)).await?;
    found.as_deref().map(digest_of).transpose()
}

pub(super) async fn chunks(shared: &Shared, id: UploadId) -> Result<Vec<ChunkThere>, StoreError> {
    let lease = shared.reader().await?;
    let found = LoadChunks { id: id_sql(id) }.load::<ChunkRow>(&mut lease.pg()).await;
    let found = give_back(lease, found.map_err(store_error)).await?;
    found.into_iter().map(chunk_of).collect()
}

/// Lists uploads by a condition and an order that one of the partial indexes has, and that takes a time and the number
/// of rows.
async fn listed(
    shared: &Shared,
    condition: &str,
    at_ms: u64,
    rows: usize,
) -> Result<Vec<UploadRow>, StoreError> {
    let lease = shared.reader().await?;
    let found = sql_query(format!("{UPLOAD_SELECT} WHERE {condition} LIMIT $2"))
        .bind::<BigInt, _>(sql_ms(at_ms))
        .bind::<BigInt, _>(i64::try_from(rows).unwrap_or(i64::MAX))
        .load::<UploadSql>(&mut lease.pg())
        .await;
    let found = give_back(lease, found.map_err(store_error)).await?;
    found.into_iter().map(UploadSql::row).collect()
}

pub(super) async fn overdue(shared: &Shared, now_ms: u64, rows: usize) -> Result<Vec<UploadRow>, StoreError> {
    let condition = "u.state = 'open' AND u.expires_at <= $1 ORDER BY u.expires_at, u.id";
    listed(shared, condition, now_ms, rows).await
}

pub(super) async fn unfinished(
    shared: &Shared,
    before_ms: u64,
    rows: usize,
) -> Result<Vec<UploadRow>, StoreError> {
    let condition = "(u.state = 'finalizing' OR (u.state = 'open' AND u.chunk_bytes IS NULL \
         AND u.received = u.size AND u.joining <> 'part')) \
         AND u.changed_at < $1 ORDER BY u.changed_at, u.id";
    listed(shared, condition, before_ms, rows).await
}

pub(super) async fn untold(shared: &Shared, rows: usize) -> Result<Vec<UploadRow>, StoreError> {
    let condition = "u.state = 'done' AND NOT u.told AND u.joining <> 'part' AND u.changed_at <= $1 \
         ORDER BY u.changed_at, u.id";
    listed(shared, condition, u64::MAX, rows).await
}

pub(super) async fn undiscarded(shared: &Shared, rows: usize) -> Result<Vec<UploadRow>, StoreError> {
    let condition = "u.state IN ('cancelled', 'expired') AND u.staged IS NOT NULL AND u.changed_at <= $1 \
         ORDER BY u.changed_at DESC, u.id DESC";
    listed(shared, condition, u64::MAX, rows).await
}

pub(super) async fn states(
    shared: &Shared,
    ids: Vec<UploadId>,
) -> Result<Vec<(UploadId, State)>, StoreError> {
    let lease = shared.reader().await?;
    let load = LoadStates { ids: ids.iter().map(|id| id_sql(*id)).collect() };
    let found = load.load::<(Vec<u8>, String)>(&mut lease.pg()).await;
    let found = give_back(lease, found.map_err(store_error)).await?;
    let found = found.iter().map(|(id, state)| Ok((id_of(id)?, state_of(state)?)));
    let found: HashMap<UploadId, State> = found.collect::<Result<_, StoreError>>()?;
    Ok(ids.into_iter().filter_map(|id| Some((id, *found.get(&id)?))).collect())
}

pub(super) async fn usage(shared: &Shared) -> Result<UploadUsage, StoreError> {
    let lease = shared.reader().await?;
    let usages = (LoadUsages {}).get_result::<(i64, i64)>(&mut lease.pg()).await;
    let (open, bytes) = give_back(lease, usages.map_err(store_error)).await?;
    Ok(UploadUsage { open: count_of(open)?, bytes: count_of(bytes)? })
}
