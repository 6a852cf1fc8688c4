//! Conflicts between SQL and the engine.

use diesel::prelude::*;
use diesel::query_builder::QueryId;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use driftline_conflict::{Op, ReviewReason};
use driftline_engine::{ConflictRow, ConflictStatus, StoreError};
use driftline_model::{ConflictId, Object, RecordId, TenantNo};
use driftline_protocol::Resolution;

use super::{seq_of, sql};
use crate::codec::{corrupt, decode_op, encode_op, join_names, split_names};
use crate::names::{Names, device_key, device_of, device_sql, tenant_of, tenant_sql};

/// A row of `conflicts` to be written.
#[derive(QueryId)]
pub(crate) struct ConflictWrite {
    pub(crate) tenant_no: i32,
    pub(crate) conflict_id: String,
    pub(crate) kind_no: i32,
    pub(crate) id: String,
    pub(crate) scope_no: i32,
    pub(crate) device_no: i32,
    pub(crate) op_id: Option<Vec<u8>>,
    pub(crate) n: i64,
    pub(crate) op: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) status: &'static str,
    pub(crate) fields: String,
    pub(crate) base_version: i64,
    pub(crate) version: i64,
    pub(crate) base: String,
    pub(crate) client: String,
    pub(crate) client_ns: String,
    pub(crate) server: String,
    pub(crate) policy_version: i64,
    pub(crate) opened_at: i64,
    pub(crate) resolved_at: Option<i64>,
    pub(crate) resolved_by: Option<String>,
    pub(crate) resolution: Option<&'static str>,
    pub(crate) seq: i64,
}

impl ConflictWrite {
    pub(crate) fn new(tenant: TenantNo, (kind_no, scope_no): (i32, i32), row: &ConflictRow) -> Self {
        let (status, resolved) = match &row.status {
            ConflictStatus::Open => (OPEN, None),
            ConflictStatus::Resolved { resolution, by, at_ms } => (RESOLVED, Some((resolution, by, at_ms))),
        };
        Self {
            tenant_no: tenant_sql(tenant),
            conflict_id: row.conflict_id.to_string(),
            kind_no,
            id: row.id.to_string(),
            scope_no,
            device_no: device_sql(row.device),
            op_id: row.op_id.as_ref().map(encode_op),
            n: sql(row.n),
            op: op_name(row.op),
            reason: row.reason.name(),
            status,
            fields: join_names(&row.fields),
            base_version: sql(row.base_version.number()),
            version: sql(row.version.number()),
            base: row.base.as_str().to_owned(),
            client: row.client.as_str().to_owned(),
            client_ns: row.client_ns.as_str().to_owned(),
            server: row.server.as_str().to_owned(),
            policy_version: sql(row.policy_version),
            opened_at: sql(row.opened_ms),
            resolved_at: resolved.map(|(_, _, at_ms)| sql(*at_ms)),
            resolved_by: resolved.map(|(_, by, _)| by.to_string()),
            resolution: resolved.map(|(resolution, ..)| resolution.as_str()),
            seq: sql(row.seq.number()),
        }
    }
}

const OPEN: &str = "open";
const RESOLVED: &str = "resolved";

const OPS: [(Op, &str); 4] =
    [(Op::Create, "create"), (Op::Patch, "patch"), (Op::Delete, "delete"), (Op::Restore, "restore")];

fn op_name(op: Op) -> &'static str {
    OPS.iter().find(|(known, _)| *known == op).map_or("", |(_, name)| name)
}

/// A row of `conflicts` with its device's name, as a query gives it.
#[derive(QueryableByName, Queryable)]
pub(crate) struct ConflictSql {
    #[diesel(sql_type = Integer)]
    tenant_no: i32,
    #[diesel(sql_type = Text)]
    conflict_id: String,
    #[diesel(sql_type = Integer)]
    kind_no: i32,
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Integer)]
    scope_no: i32,
    #[diesel(sql_type = Integer)]
    device_no: i32,
    #[diesel(sql_type = Text)]
    sub: String,
    #[diesel(sql_type = Text)]
    device_id: String,
    #[diesel(sql_type = Nullable<Binary>)]
    op_id: Option<Vec<u8>>,
    #[diesel(sql_type = BigInt)]
    n: i64,
    #[diesel(sql_type = Text)]
    op: String,
    #[diesel(sql_type = Text)]
    reason: String,
    #[diesel(sql_type = Text)]
    fields: String,
    #[diesel(sql_type = BigInt)]
    base_version: i64,
    #[diesel(sql_type = BigInt)]
    version: i64,
    #[diesel(sql_type = Text)]
    base: String,
    #[diesel(sql_type = Text)]
    client: String,
    #[diesel(sql_type = Text)]
    client_ns: String,
    #[diesel(sql_type = Text)]
    server: String,
    #[diesel(sql_type = BigInt)]
    policy_version: i64,
    #[diesel(sql_type = BigInt)]
    opened_at: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    resolved_at: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    resolved_by: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    resolution: Option<String>,
    #[diesel(sql_type = BigInt)]
    seq: i64,
}

impl ConflictSql {
    /// Returns the number of the record's kind.
    pub(crate) fn kind_no(&self) -> i32 {
        self.kind_no
    }

    /// Returns the number of the record's scope.
    pub(crate) fn scope_no(&self) -> i32 {
        self.scope_no
    }

    pub(crate) fn row(self, names: &Names) -> Result<(TenantNo, ConflictRow), StoreError> {
        let status = self.status()?;
        let unsigned = |number: i64| u64::try_from(number).map_err(|_| corrupt("conflict"));
        let op = OPS.iter().find(|(_, name)| *name == self.op).map(|(op, _)| *op);
        let row = ConflictRow {
            conflict_id: ConflictId::new(&self.conflict_id).map_err(|_| corrupt("conflict_id"))?,
            kind: names.kind_name(self.kind_no)?,
            id: RecordId::new(&self.id).map_err(|_| corrupt("id"))?,
            scope: names.scope_name(self.scope_no)?,
            device: device_of(self.device_no),
            device_key: device_key(&self.sub, &self.device_id),
            op_id: self.op_id.as_deref().map(decode_op).transpose()?,
            n: unsigned(self.n)?,
            op: op.ok_or_else(|| corrupt("op"))?,
            reason: ReviewReason::from_name(&self.reason).ok_or_else(|| corrupt("reason"))?,
            status,
            fields: split_names(&self.fields)?,
            base_version: seq_of(self.base_version)?,
            base: object(self.base)?,
            client: object(self.client)?,
            client_ns: object(self.client_ns)?,
            server: object(self.server)?,
            version: seq_of(self.version)?,
            policy_version: unsigned(self.policy_version)?,
            opened_ms: unsigned(self.opened_at)?,
            seq: seq_of(self.seq)?,
        };
        Ok((tenant_of(self.tenant_no), row))
    }

    fn status(&self) -> Result<ConflictStatus, StoreError> {
        let Some(resolution) = &self.resolution else { return Ok(ConflictStatus::Open) };
        let resolution = Resolution::from_text(resolution).ok_or_else(|| corrupt("resolution"))?;
        let at_ms = self.resolved_at.and_then(|at| u64::try_from(at).ok());
        Ok(ConflictStatus::Resolved {
            resolution,
            by: self.resolved_by.as_deref().ok_or_else(|| corrupt("resolved_by"))?.into(),
            at_ms: at_ms.ok_or_else(|| corrupt("resolved_at"))?,
        })
    }
}

fn object(text: String) -> Result<Object, StoreError> {
    Object::from_canonical(text).map_err(|_| corrupt("conflict"))
}

/// The types of the columns of [`ConflictSql`].
pub(crate) type ConflictColumns = (
    Integer,
    Text,
    Integer,
    Text,
    Integer,
    Integer,
    Text,
    Text,
    Nullable<Binary>,
    BigInt,
    Text,
    Text,
    Text,
    BigInt,
    BigInt,
    Text,
    Text,
    Text,
    Text,
    BigInt,
    BigInt,
    Nullable<BigInt>,
    Nullable<Text>,
    Nullable<Text>,
    BigInt,
);
