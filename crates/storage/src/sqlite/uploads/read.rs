//! What is read of uploads.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::{ChunkThere, StoreError, UploadRow, UploadUsage};
use driftline_uploads::{Digest, State, UploadId};

use super::super::hot::statement;
use super::super::load::json_array;
use super::super::store_error;
use crate::rows::{
    ChunkColumns, ChunkRow, UPLOAD_SELECT, UploadColumns, UploadSql, chunk_of, count_of, digest_of, id_of,
    id_sql, sql, sql_ms, state_of,
};

/// Reads an upload.
#[derive(QueryId)]
pub(super) struct LoadUpload {
    pub(super) id: Vec<u8>,
}

impl QueryFragment<Sqlite> for LoadUpload {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql(UPLOAD_SELECT);
        out.push_sql(" WHERE u.id = ");
        out.push_bind_param::<Binary, _>(&self.id)
    }
}

impl Query for LoadUpload {
    type SqlType = UploadColumns;
}

impl RunQueryDsl<SqliteConnection> for LoadUpload {}

statement! {
    /// The digest of a chunk.
    LoadChunk { id: Vec<u8> => Binary, chunk_no: i64 => BigInt } =
    "SELECT digest FROM upload_chunks WHERE upload = " ? id: Binary
    " AND chunk_no = " ? chunk_no: BigInt
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
    /// The states of uploads whose names stand as hexadecimal digits in a JSON array.
    LoadStates { ids: String => Text } =
    "SELECT u.id, u.state FROM json_each(" ? ids: Text
    ") AS j CROSS JOIN uploads AS u ON u.id = unhex(j.value)"
}

impl Query for LoadStates {
    type SqlType = (Binary, Text);
}

statement! {
    /// How many uploads are open or being finalized, and what all of them and the files take.
    LoadUsages {} =
    "SELECT (SELECT count(*) FROM uploads WHERE state IN ('open', 'finalizing')), \
     (SELECT coalesce(sum(bytes), 0) FROM upload_usage)"
}

impl Query for LoadUsages {
    type SqlType = (BigInt, BigInt);
}

pub(super) fn upload(
    connection: &mut SqliteConnection,
    id: UploadId,
) -> Result<Option<UploadRow>, StoreError> {
    let found: Option<UploadSql> =
        LoadUpload { id: id_sql(id) }.get_result(connection).optional().map_err(store_error)?;
    found.map(UploadSql::row).transpose()
}

pub(super) fn chunk(
    connection: &mut SqliteConnection,
    id: UploadId,
    index: u64,
) -> Result<Option<Digest>, StoreError> {
    let load = LoadChunk { id: id_sql(id), chunk_no: sql(index) };
    let found: Option<Vec<u8>> = load.get_result(connection).optional().map_err(store_error)?;
    found.as_deref().map(digest_of).transpose()
}

pub(super) fn chunks(connection: &mut SqliteConnection, id: UploadId) -> Result<Vec<ChunkThere>, StoreError> {
    let found: Vec<ChunkRow> = LoadChunks { id: id_sql(id) }.load(connection).map_err(store_error)?;
    found.into_iter().map(chunk_of).collect()
}

/// Uploads whose time is over.
const OVERDUE: &str = "u.state = 'open' AND u.expires_at <= ? ORDER BY u.expires_at, u.id";
/// Uploads that are to be finalized for long.
const UNFINISHED: &str = "(u.state = 'finalizing' OR (u.state = 'open' AND u.chunk_bytes IS NULL \
     AND u.received = u.size AND u.joining <> 'part')) \
     AND u.changed_at < ? ORDER BY u.changed_at, u.id";
/// Uploads that were done and of which nobody was told.
const UNTOLD: &str = "u.state = 'done' AND u.told = 0 AND u.joining <> 'part' AND u.changed_at <= ? \
     ORDER BY u.changed_at, u.id";
/// Uploads that are over and of which something is still staged.
const UNDISCARDED: &str = "u.state IN ('cancelled', 'expired') AND u.staged IS NOT NULL AND u.changed_at <= ? \
     ORDER BY u.changed_at DESC, u.id DESC";

#[cfg(test)]
pub(super) const LISTS: [&str; 4] = [OVERDUE, UNFINISHED, UNTOLD, UNDISCARDED];

/// Makes the statement of a list, which takes a time and the number of rows.
pub(super) fn listing(condition: &str) -> String {
    format!("{UPLOAD_SELECT} WHERE {condition} LIMIT ?")
}

fn listed(
    connection: &mut SqliteConnection,
    condition: &str,
    at_ms: u64,
    rows: usize,
) -> Result<Vec<UploadRow>, StoreError> {
    let found: Vec<UploadSql> = sql_query(listing(condition))
        .bind::<BigInt, _>(sql_ms(at_ms))
        .bind::<BigInt, _>(i64::try_from(rows).unwrap_or(i64::MAX))
        .load(connection)
        .map_err(store_error)?;
    found.into_iter().map(UploadSql::row).collect()
}

pub(super) fn overdue(
    connection: &mut SqliteConnection,
    now_ms: u64,
    rows: usize,
) -> Result<Vec<UploadRow>, StoreError> {
    listed(connection, OVERDUE, now_ms, rows)
}

pub(super) fn unfinished(
    connection: &mut SqliteConnection,
    before_ms: u64,
    rows: usize,
) -> Result<Vec<UploadRow>, StoreError> {
    listed(connection, UNFINISHED, before_ms, rows)
}

pub(super) fn untold(connection: &mut SqliteConnection, rows: usize) -> Result<Vec<UploadRow>, StoreError> {
    listed(connection, UNTOLD, u64::MAX, rows)
}

pub(super) fn undiscarded(
    connection: &mut SqliteConnection,
    rows: usize,
) -> Result<Vec<UploadRow>, StoreError> {
    listed(connection, UNDISCARDED, u64::MAX, rows)
}

pub(super) fn states(
    connection: &mut SqliteConnection,
    ids: Vec<UploadId>,
) -> Result<Vec<(UploadId, State)>, StoreError> {
    let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let load = LoadStates { ids: json_array(&names) };
    let found: Vec<(Vec<u8>, String)> = load.load(connection).map_err(store_error)?;
    let found = found.iter().map(|(id, state)| Ok((id_of(id)?, state_of(state)?)));
    let found: HashMap<UploadId, State> = found.collect::<Result<_, StoreError>>()?;
    Ok(ids.into_iter().filter_map(|id| Some((id, *found.get(&id)?))).collect())
}

pub(super) fn usage(connection: &mut SqliteConnection) -> Result<UploadUsage, StoreError> {
    let (open, bytes): (i64, i64) = (LoadUsages {}).get_result(connection).map_err(store_error)?;
    Ok(UploadUsage { open: count_of(open)?, bytes: count_of(bytes)? })
}
