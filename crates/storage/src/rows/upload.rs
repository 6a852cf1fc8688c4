//! Uploads between SQL and the engine.

use std::num::NonZeroU64;

use diesel::prelude::*;
use diesel::query_builder::QueryId;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use driftline_engine::{ChunkThere, Joining, StoreError, UploadRow};
use driftline_model::{KindName, RecordId, TenantId};
use driftline_uploads::{Digest, Form, Plan, RunningHash, State, Upload, UploadId};

use super::{sql, sql_ms};
use crate::codec::corrupt;
use crate::names::{tenant_of, tenant_sql};
use crate::uploads::Standing;

/// Reads uploads; conditions follow.
pub(crate) const UPLOAD_SELECT: &str = "SELECT u.id AS id, u.tenant_no AS tenant_no, t.tenant AS tenant, u.owner AS owner, \
     u.state AS state, u.size AS size, u.chunk_bytes AS chunk_bytes, u.received AS received, u.reserved AS reserved, \
     u.opened_at AS opened_at, u.expires_at AS expires_at, u.changed_at AS changed_at, u.file_name AS file_name, \
     u.content_type AS content_type, u.metadata AS metadata, u.announced AS announced, u.digest AS digest, \
     u.running AS running, u.staged AS staged, u.record_kind AS record_kind, u.record_id AS record_id, \
     u.joining AS joining, u.fault AS fault FROM uploads AS u JOIN tenants AS t ON t.tenant_no = u.tenant_no";

/// An upload as [`UPLOAD_SELECT`] gives it.
#[derive(QueryableByName, Queryable)]
pub(crate) struct UploadSql {
    #[diesel(sql_type = Binary)]
    id: Vec<u8>,
    #[diesel(sql_type = Integer)]
    tenant_no: i32,
    #[diesel(sql_type = Text)]
    tenant: String,
    #[diesel(sql_type = Text)]
    owner: String,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Nullable<BigInt>)]
    size: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    chunk_bytes: Option<i64>,
    #[diesel(sql_type = BigInt)]
    received: i64,
    #[diesel(sql_type = BigInt)]
    reserved: i64,
    #[diesel(sql_type = BigInt)]
    opened_at: i64,
    #[diesel(sql_type = BigInt)]
    expires_at: i64,
    #[diesel(sql_type = BigInt)]
    changed_at: i64,
    #[diesel(sql_type = Text)]
    file_name: String,
    #[diesel(sql_type = Text)]
    content_type: String,
    #[diesel(sql_type = Nullable<Binary>)]
    metadata: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Binary>)]
    announced: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Binary>)]
    digest: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Binary>)]
    running: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Text>)]
    staged: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    record_kind: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    record_id: Option<String>,
    #[diesel(sql_type = Text)]
    joining: String,
    #[diesel(sql_type = Nullable<Binary>)]
    fault: Option<Vec<u8>>,
}

/// The types of the columns of [`UploadSql`].
pub(crate) type UploadColumns = (
    Binary,
    Integer,
    Text,
    Text,
    Text,
    Nullable<BigInt>,
    Nullable<BigInt>,
    BigInt,
    BigInt,
    BigInt,
    BigInt,
    BigInt,
    Text,
    Text,
    Nullable<Binary>,
    Nullable<Binary>,
    Nullable<Binary>,
    Nullable<Binary>,
    Nullable<Text>,
    Nullable<Text>,
    Nullable<Text>,
    Text,
    Nullable<Binary>,
);

impl UploadSql {
    pub(crate) fn row(self) -> Result<UploadRow, StoreError> {
        let form = form_of(self.size, self.chunk_bytes)?;
        Ok(UploadRow {
            id: id_of(&self.id)?,
            tenant: tenant_of(self.tenant_no),
            tenant_id: TenantId::new(&self.tenant).map_err(|_| corrupt("tenant"))?,
            owner: self.owner.into(),
            upload: Upload {
                form,
                state: state_of(&self.state)?,
                received: count_of(self.received)?,
                opened_ms: count_of(self.opened_at)?,
                expires_ms: count_of(self.expires_at)?,
            },
            reserved: count_of(self.reserved)?,
            file_name: self.file_name.into(),
            content_type: self.content_type.into(),
            metadata: text_of(self.metadata)?,
            announced: self.announced.as_deref().map(digest_of).transpose()?,
            digest: self.digest.as_deref().map(digest_of).transpose()?,
            // What another version of the hash put away is of no use to this one: the file is hashed anew.
            running: self.running.and_then(|state| RunningHash::resume(&state).ok()),
            staged: self.staged.map(Into::into),
            record: record_of(self.record_kind.as_deref(), self.record_id.as_deref())?,
            joining: joining_of(&self.joining)?,
            fault: text_of(self.fault)?,
            changed_ms: count_of(self.changed_at)?,
        })
    }
}

/// A row of `uploads` to be written.
#[derive(QueryId)]
pub(crate) struct UploadWrite {
    pub(crate) id: Vec<u8>,
    pub(crate) tenant_no: i32,
    pub(crate) owner: String,
    pub(crate) state: &'static str,
    pub(crate) size: Option<i64>,
    pub(crate) chunk_bytes: Option<i64>,
    pub(crate) received: i64,
    pub(crate) reserved: i64,
    pub(crate) opened_at: i64,
    pub(crate) expires_at: i64,
    pub(crate) changed_at: i64,
    pub(crate) file_name: String,
    pub(crate) content_type: String,
    pub(crate) metadata: Option<Vec<u8>>,
    pub(crate) announced: Option<Vec<u8>>,
    pub(crate) digest: Option<Vec<u8>>,
    pub(crate) running: Option<Vec<u8>>,
    pub(crate) hashed: i64,
    pub(crate) staged: Option<String>,
    pub(crate) record_kind: Option<String>,
    pub(crate) record_id: Option<String>,
    pub(crate) joining: &'static str,
    pub(crate) fault: Option<Vec<u8>>,
}

impl UploadWrite {
    pub(crate) fn new(row: &UploadRow) -> Self {
        let upload = &row.upload;
        let chunk_bytes = match upload.form {
            Form::Chunks(plan) => Some(sql(plan.chunk_bytes())),
            Form::Stream { .. } => None,
        };
        let (hashed, running) = running_sql(row.running.as_ref());
        Self {
            id: id_sql(row.id),
            tenant_no: tenant_sql(row.tenant),
            owner: row.owner.to_string(),
            state: upload.state.as_str(),
            size: upload.form.size().map(sql),
            chunk_bytes,
            received: sql(upload.received),
            reserved: sql(row.reserved),
            opened_at: sql_ms(upload.opened_ms),
            expires_at: sql_ms(upload.expires_ms),
            changed_at: sql_ms(row.changed_ms),
            file_name: row.file_name.to_string(),
            content_type: row.content_type.to_string(),
            metadata: row.metadata.as_deref().map(|text| text.as_bytes().to_vec()),
            announced: row.announced.map(digest_sql),
            digest: row.digest.map(digest_sql),
            running,
            hashed,
            staged: row.staged.as_deref().map(str::to_owned),
            record_kind: row.record.as_ref().map(|(kind, _)| kind.to_string()),
            record_id: row.record.as_ref().map(|(_, id)| id.to_string()),
            joining: joining_sql(row.joining),
            fault: row.fault.as_deref().map(|text| text.as_bytes().to_vec()),
        }
    }
}

/// The columns of what decides on an upload: tenant, state, received, size, reserved and its end.
pub(crate) type StandingColumns = (Integer, Text, BigInt, Nullable<BigInt>, BigInt, BigInt);

/// What decides on an upload as a query gives it.
pub(crate) type StandingRow = (i32, String, i64, Option<i64>, i64, i64);

/// Reads what decides on an upload, with the number of its tenant.
pub(crate) fn standing_of(row: &StandingRow) -> Result<(i32, Standing), StoreError> {
    let (tenant_no, state, received, size, reserved, expires) = row;
    let standing = Standing {
        state: state_of(state)?,
        received: count_of(*received)?,
        size: size.map(count_of).transpose()?,
        reserved: count_of(*reserved)?,
        expires_ms: count_of(*expires)?,
    };
    Ok((*tenant_no, standing))
}

/// The columns of a chunk: its place, its digest and its tag.
pub(crate) type ChunkColumns = (BigInt, Binary, Nullable<Text>);

/// A chunk as a query gives it.
pub(crate) type ChunkRow = (i64, Vec<u8>, Option<String>);

pub(crate) fn chunk_of((chunk_no, digest, tag): ChunkRow) -> Result<ChunkThere, StoreError> {
    Ok(ChunkThere { index: count_of(chunk_no)?, digest: digest_of(&digest)?, tag: tag.map(Into::into) })
}

const JOININGS: [(Joining, &str); 3] =
    [(Joining::Alone, "alone"), (Joining::Part, "part"), (Joining::Whole, "whole")];

fn joining_sql(joining: Joining) -> &'static str {
    JOININGS.iter().find(|(known, _)| *known == joining).map_or("", |(_, name)| name)
}

fn joining_of(text: &str) -> Result<Joining, StoreError> {
    let found = JOININGS.iter().find(|(_, name)| *name == text).map(|(joining, _)| *joining);
    found.ok_or_else(|| corrupt("joining"))
}

/// How far a running hash goes, and its state. One that is at the beginning is none.
pub(crate) fn running_sql(running: Option<&RunningHash>) -> (i64, Option<Vec<u8>>) {
    match running.filter(|running| running.through() > 0) {
        Some(running) => (sql(running.through()), Some(running.put_away())),
        None => (0, None),
    }
}

pub(crate) fn id_sql(id: UploadId) -> Vec<u8> {
    id.as_bytes().to_vec()
}

pub(crate) fn id_of(bytes: &[u8]) -> Result<UploadId, StoreError> {
    Ok(UploadId::of(bytes.try_into().map_err(|_| corrupt("upload"))?))
}

pub(crate) fn digest_sql(digest: Digest) -> Vec<u8> {
    digest.as_bytes().to_vec()
}

pub(crate) fn digest_of(bytes: &[u8]) -> Result<Digest, StoreError> {
    Ok(Digest::of(bytes.try_into().map_err(|_| corrupt("digest"))?))
}

pub(crate) fn state_of(text: &str) -> Result<State, StoreError> {
    State::from_text(text).ok_or_else(|| corrupt("state"))
}

/// Reads a number or a time of an upload.
pub(crate) fn count_of(number: i64) -> Result<u64, StoreError> {
    u64::try_from(number).map_err(|_| corrupt("upload"))
}

fn form_of(size: Option<i64>, chunk_bytes: Option<i64>) -> Result<Form, StoreError> {
    let size = size.map(count_of).transpose()?;
    let Some(chunk_bytes) = chunk_bytes else { return Ok(Form::Stream { size }) };
    let chunk_bytes = NonZeroU64::new(count_of(chunk_bytes)?).ok_or_else(|| corrupt("chunk_bytes"))?;
    Ok(Form::Chunks(Plan::new(size.ok_or_else(|| corrupt("size"))?, chunk_bytes)))
}

fn text_of(bytes: Option<Vec<u8>>) -> Result<Option<Box<str>>, StoreError> {
    let text = bytes.map(String::from_utf8).transpose().map_err(|_| corrupt("upload"))?;
    Ok(text.map(Into::into))
}

fn record_of(kind: Option<&str>, id: Option<&str>) -> Result<Option<(KindName, RecordId)>, StoreError> {
    match (kind, id) {
        (None, None) => Ok(None),
        (Some(kind), Some(id)) => Ok(Some((
            KindName::new(kind).map_err(|_| corrupt("record_kind"))?,
            RecordId::new(id).map_err(|_| corrupt("record_id"))?,
        ))),
        _ => Err(corrupt("record_id")),
    }
}
