//! Conflicts that wait, or waited, for a reviewer.

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use diesel::sqlite::Sqlite;
use driftline_conflict::{Op, ReviewReason};
use driftline_engine::{ConflictQuery, ConflictRow, ConflictStatus, StoreError};
use driftline_model::{ConflictId, Object, RecordId, TenantNo};
use driftline_protocol::Resolution;

use super::codec::{corrupt, decode_op, encode_op, join_names, split_names};
use super::filter::Filter;
use super::hot::{Rows, binds, statement};
use super::names::{Names, tenant_of, tenant_sql};
use super::queries::{device_key, device_of};
use super::rows::{seq_of, sql};
use super::store_error;
use super::writer::device_sql;

/// A row of `conflicts` to be written.
#[derive(QueryId)]
pub(super) struct ConflictWrite {
    tenant_no: i32,
    conflict_id: String,
    kind_no: i32,
    id: String,
    scope_no: i32,
    device_no: i32,
    op_id: Option<Vec<u8>>,
    n: i64,
    op: &'static str,
    reason: &'static str,
    status: &'static str,
    fields: String,
    base_version: i64,
    version: i64,
    base: String,
    client: String,
    client_ns: String,
    server: String,
    policy_version: i64,
    opened_at: i64,
    resolved_at: Option<i64>,
    resolved_by: Option<String>,
    resolution: Option<&'static str>,
    seq: i64,
}

impl Rows for ConflictWrite {
    const HEAD: &'static str = "INSERT INTO conflicts (tenant_no, conflict_id, kind_no, id, scope_no, device_no, op_id, n, op, \
         reason, status, fields, base_version, version, base, client, client_ns, server, policy_version, opened_at, resolved_at, \
         resolved_by, resolution, seq) VALUES ";
    const TAIL: &'static str = " ON CONFLICT (tenant_no, conflict_id) DO UPDATE SET scope_no = excluded.scope_no, \
         op_id = excluded.op_id, n = excluded.n, op = excluded.op, reason = excluded.reason, status = excluded.status, \
         fields = excluded.fields, base_version = excluded.base_version, version = excluded.version, \
         base = excluded.base, client = excluded.client, client_ns = excluded.client_ns, server = excluded.server, \
         policy_version = excluded.policy_version, opened_at = excluded.opened_at, \
         resolved_at = excluded.resolved_at, resolved_by = excluded.resolved_by, resolution = excluded.resolution, \
         seq = excluded.seq";

    fn bind<'b>(&'b self, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        binds!(self, out, Integer => tenant_no, Text => conflict_id, Integer => kind_no, Text => id,
            Integer => scope_no, Integer => device_no, Nullable<Binary> => op_id, BigInt => n, Text => op,
            Text => reason, Text => status, Text => fields, BigInt => base_version, BigInt => version, Text => base,
            Text => client, Text => client_ns, Text => server, BigInt => policy_version, BigInt => opened_at,
            Nullable<BigInt> => resolved_at, Nullable<Text> => resolved_by, Nullable<Text> => resolution,
            BigInt => seq)
    }
}

pub(super) fn write_of(
    tenant: TenantNo,
    (kind_no, scope_no): (i32, i32),
    row: &ConflictRow,
) -> ConflictWrite {
    let (status, resolved) = match &row.status {
        ConflictStatus::Open => (OPEN, None),
        ConflictStatus::Resolved { resolution, by, at_ms } => (RESOLVED, Some((resolution, by, at_ms))),
    };
    ConflictWrite {
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

const OPEN: &str = "open";
const RESOLVED: &str = "resolved";

const OPS: [(Op, &str); 4] =
    [(Op::Create, "create"), (Op::Patch, "patch"), (Op::Delete, "delete"), (Op::Restore, "restore")];

fn op_name(op: Op) -> &'static str {
    OPS.iter().find(|(known, _)| *known == op).map_or("", |(_, name)| name)
}

/// A row of `conflicts` with its device's name, as a query gives it.
#[derive(QueryableByName, Queryable)]
pub(super) struct ConflictSql {
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
    pub(super) fn row(self, names: &Names) -> Result<(TenantNo, ConflictRow), StoreError> {
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

statement! {
    /// The open conflicts of records that stand in a JSON array as arrays of tenant, kind and id.
    OpenConflicts { records: String => Text } =
    "SELECT c.tenant_no, c.conflict_id, c.kind_no, c.id, c.scope_no, c.device_no, d.sub, d.device_id, c.op_id, c.n, c.op, \
     c.reason, c.fields, c.base_version, c.version, c.base, c.client, c.client_ns, c.server, c.policy_version, c.opened_at, \
     c.resolved_at, c.resolved_by, c.resolution, c.seq FROM json_each(" ? records: Text
    ") AS j CROSS JOIN conflicts AS c INDEXED BY conflicts_record ON c.tenant_no = json_extract(j.value, '$[0]') \
     AND c.kind_no = json_extract(j.value, '$[1]') AND c.id = json_extract(j.value, '$[2]') AND c.status = 'open' \
     JOIN devices AS d ON d.device_no = c.device_no ORDER BY c.opened_at, c.conflict_id"
}

impl Query for OpenConflicts {
    type SqlType = (
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
}

const SELECT: &str = "SELECT c.tenant_no AS tenant_no, c.conflict_id AS conflict_id, c.kind_no AS kind_no, c.id AS id, \
     c.scope_no AS scope_no, c.device_no AS device_no, d.sub AS sub, d.device_id AS device_id, c.op_id AS op_id, \
     c.n AS n, c.op AS op, c.reason AS reason, c.fields AS fields, c.base_version AS base_version, \
     c.version AS version, c.base AS base, c.client AS client, c.client_ns AS client_ns, c.server AS server, \
     c.policy_version AS policy_version, c.opened_at AS opened_at, c.resolved_at AS resolved_at, \
     c.resolved_by AS resolved_by, c.resolution AS resolution, c.seq AS seq \
     FROM conflicts AS c JOIN devices AS d ON d.device_no = c.device_no";

pub(super) fn conflict(
    connection: &mut SqliteConnection,
    names: &Names,
    tenant: TenantNo,
    conflict_id: &ConflictId,
) -> Result<Option<ConflictRow>, StoreError> {
    let mut filter = Filter::new(SELECT);
    filter.number("c.tenant_no =", i64::from(tenant_sql(tenant)));
    filter.text("c.conflict_id =", conflict_id.as_str());
    let found: Vec<ConflictSql> = filter.query().load(connection).map_err(store_error)?;
    found.into_iter().next().map(|row| row.row(names).map(|(_, row)| row)).transpose()
}

pub(super) fn conflicts(
    connection: &mut SqliteConnection,
    names: &Names,
    tenant: TenantNo,
    query: &ConflictQuery,
) -> Result<Vec<ConflictRow>, StoreError> {
    let mut filter = Filter::new(SELECT);
    filter.number("c.tenant_no =", i64::from(tenant_sql(tenant)));
    let scopes = query.scopes.iter().filter_map(|scope| names.scope(tenant, scope));
    filter.among("c.scope_no", scopes);
    if !query.kinds.is_empty() {
        filter.among("c.kind_no", query.kinds.iter().filter_map(|kind| names.kind(tenant, kind)));
    }
    if let Some(id) = &query.id {
        filter.text("c.id =", id.as_str());
    }
    if let Some(device) = &query.device {
        filter.text("d.device_id =", device);
    }
    match query.open {
        // As the partial indexes say it.
        Some(true) => filter.holds("c.status = 'open'"),
        Some(false) => filter.holds("c.status <> 'open'"),
        None => {}
    }
    if let Some(place) = &query.after {
        filter.pair("(c.opened_at, c.conflict_id) >", (sql(place.opened_ms), place.conflict_id.as_str()));
    }
    filter.limit("ORDER BY c.opened_at, c.conflict_id LIMIT", query.rows);
    let found: Vec<ConflictSql> = filter.query().load(connection).map_err(store_error)?;
    found.into_iter().map(|row| row.row(names).map(|(_, row)| row)).collect()
}
