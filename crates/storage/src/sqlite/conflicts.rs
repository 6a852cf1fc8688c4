//! Conflicts that wait, or waited, for a reviewer.

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::{ConflictQuery, ConflictRow, StoreError};
use driftline_model::{ConflictId, TenantNo};

use super::filter::Filter;
use super::hot::{Rows, binds, statement};
use super::store_error;
use crate::names::{Names, tenant_sql};
use crate::rows::{ConflictColumns, ConflictSql, ConflictWrite, sql};

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
    type SqlType = ConflictColumns;
}

pub(super) const SELECT: &str = "SELECT c.tenant_no AS tenant_no, c.conflict_id AS conflict_id, c.kind_no AS kind_no, c.id AS id, \
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
