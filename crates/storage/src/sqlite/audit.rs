//! Accounts of decisions, and what explains a record.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use driftline_engine::{AuditEntry, AuditQuery, History, StoreError};
use driftline_model::{DeviceNo, KindName, RecordId, TenantNo};

use super::filter::Filter;
use super::queries::{record, snapshot};
use super::store_error;
use crate::codec::{decode_op, encode_code};
use crate::marks::every_mark;
use crate::names::{Names, device_key, device_sql, tenant_sql};
use crate::rows::{AuditSql, sql};

pub(super) const SELECT: &str = "SELECT a.audit_id AS audit_id, a.at AS at, a.kind_no AS kind_no, a.id AS id, a.seq AS seq, \
     a.device_no AS device_no, d.sub AS device_sub, d.device_id AS device_id, a.sub AS sub, a.op_id AS op_id, \
     a.n AS n, a.code AS code, a.strategy AS strategy, a.policy_version AS policy_version, \
     a.correlation_id AS correlation_id, a.detail AS detail \
     FROM audit AS a JOIN devices AS d ON d.device_no = a.device_no";

const NEWEST_FIRST: &str = "ORDER BY a.audit_id DESC LIMIT";

/// The scope that the record of a row belongs to now. Rows of a purged record belong to none.
const SCOPE: &str = "(SELECT r.scope_no FROM records AS r \
     WHERE r.tenant_no = a.tenant_no AND r.kind_no = a.kind_no AND r.id = a.id)";

pub(super) fn audit(
    connection: &mut SqliteConnection,
    names: &Names,
    tenant: TenantNo,
    query: &AuditQuery,
) -> Result<Vec<AuditEntry>, StoreError> {
    let mut filter = Filter::new(SELECT);
    filter.number("a.tenant_no =", i64::from(tenant_sql(tenant)));
    filter.among(SCOPE, query.scopes.iter().filter_map(|scope| names.scope(tenant, scope)));
    if !query.kinds.is_empty() {
        filter.among("a.kind_no", query.kinds.iter().filter_map(|kind| names.kind(tenant, kind)));
    }
    if let Some(id) = &query.id {
        filter.text("a.id =", id.as_str());
    }
    if let Some(device) = &query.device {
        filter.text("d.device_id =", device);
    }
    if let Some(strategy) = &query.strategy {
        filter.text("a.strategy =", strategy);
    }
    if let Some(code) = query.code {
        filter.number("a.code =", i64::from(encode_code(code)));
    }
    for (compared, bound) in
        [("a.at >=", query.from_ms), ("a.at <", query.until_ms), ("a.audit_id <", query.before)]
    {
        if let Some(bound) = bound {
            filter.number(compared, i64::try_from(bound).unwrap_or(i64::MAX));
        }
    }
    filter.limit(NEWEST_FIRST, query.rows);
    let found: Vec<AuditSql> = filter.query().load(connection).map_err(store_error)?;
    found.into_iter().map(|row| row.entry(names).map(|(_, entry)| entry)).collect()
}

/// Audit rows that an explanation looks at, newest first.
const AUDIT_ROWS: usize = 1000;

pub(super) fn history(
    connection: &mut SqliteConnection,
    names: &Names,
    tenant: TenantNo,
    kind: &KindName,
    id: &RecordId,
) -> Result<Option<History>, StoreError> {
    snapshot(connection, |connection| {
        let Some(row) = record(connection, names, tenant, kind, id)? else { return Ok(None) };
        let mut filter = Filter::new(SELECT);
        filter.number("a.tenant_no =", i64::from(tenant_sql(tenant)));
        filter.number("a.kind_no =", i64::from(names.kind(tenant, kind).unwrap_or(0)));
        filter.text("a.id =", id.as_str());
        filter.limit(NEWEST_FIRST, AUDIT_ROWS);
        let mut found: Vec<AuditSql> = filter.query().load(connection).map_err(store_error)?;
        found.reverse();
        let mut history = History { row, devices: Vec::new(), ops: Vec::new(), audit: Vec::new() };
        for audit in found {
            let (device, entry) = audit.entry(names)?;
            history.devices.push((device, entry.row.device.clone()));
            if let Some(op_id) = &entry.row.op_id {
                history.ops.push((device, entry.n, op_id.clone()));
            }
            history.audit.push(entry.row);
        }
        let mut marks: Vec<_> = every_mark(&history.row.record).map(|mark| (mark.device, mark.n)).collect();
        marks.sort_unstable();
        marks.dedup();
        for (device, n) in marks {
            name_mark(connection, &mut history, device, n)?;
        }
        Ok(Some(history))
    })
}

#[derive(QueryableByName)]
struct DeviceName {
    #[diesel(sql_type = Text)]
    sub: String,
    #[diesel(sql_type = Text)]
    device_id: String,
}

#[derive(QueryableByName)]
struct OpName {
    #[diesel(sql_type = Nullable<Binary>)]
    op_id: Option<Vec<u8>>,
}

fn name_mark(
    connection: &mut SqliteConnection,
    history: &mut History,
    device: DeviceNo,
    n: u64,
) -> Result<(), StoreError> {
    if !history.devices.iter().any(|(known, _)| *known == device) {
        let name: Option<DeviceName> = sql_query("SELECT sub, device_id FROM devices WHERE device_no = ?")
            .bind::<Integer, _>(device_sql(device))
            .get_result(connection)
            .optional()
            .map_err(store_error)?;
        if let Some(name) = name {
            history.devices.push((device, device_key(&name.sub, &name.device_id)));
        }
    }
    if !history.ops.iter().any(|(known, number, _)| *known == device && *number == n) {
        let op: Option<OpName> = sql_query("SELECT op_id FROM op_results WHERE device_no = ? AND n = ?")
            .bind::<Integer, _>(device_sql(device))
            .bind::<BigInt, _>(sql(n))
            .get_result(connection)
            .optional()
            .map_err(store_error)?;
        if let Some(op_id) = op.and_then(|op| op.op_id) {
            history.ops.push((device, n, decode_op(&op_id)?));
        }
    }
    Ok(())
}
