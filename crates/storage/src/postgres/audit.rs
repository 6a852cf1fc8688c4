//! Accounts of decisions, and what explains a record.

use std::collections::BTreeSet;

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Binary, Integer, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use driftline_engine::{AuditEntry, AuditQuery, History, Row, StoreError};
use driftline_model::{KindName, RecordId, TenantNo};
use tokio::try_join;

use super::filter::Filter;
use super::snapshot::{first, give_back, last};
use super::sql::{LoadRecords, statement};
use super::{Shared, names, store_error};
use crate::codec::{corrupt, decode_op, encode_code};
use crate::marks::every_mark;
use crate::names::{Names, device_key, device_of, device_sql, tenant_sql};
use crate::rows::{AuditSql, RecordRow, row_of, sql};

const SELECT: &str = "SELECT a.audit_id, a.at, a.kind_no, a.id, a.seq, a.device_no, d.sub AS device_sub, d.device_id, \
     a.sub, a.op_id, a.n, a.code, a.strategy, a.policy_version, a.correlation_id, a.detail \
     FROM audit AS a JOIN devices AS d ON d.device_no = a.device_no";

const NEWEST_FIRST: &str = "ORDER BY a.audit_id DESC LIMIT";

/// The scope that the record of a row belongs to now. Rows of a purged record belong to none.
const SCOPE: &str = "(SELECT r.scope_no FROM records AS r \
     WHERE r.tenant_no = a.tenant_no AND r.kind_no = a.kind_no AND r.id = a.id)";

pub(super) async fn audit(
    shared: &Shared,
    tenant: TenantNo,
    query: &AuditQuery,
) -> Result<Vec<AuditEntry>, StoreError> {
    let lease = shared.reader().await?;
    let found = list(lease.pg(), &shared.caches.names, tenant, query).await;
    give_back(lease, found).await
}

async fn list(
    mut pg: &AsyncPgConnection,
    names: &Names,
    tenant: TenantNo,
    query: &AuditQuery,
) -> Result<Vec<AuditEntry>, StoreError> {
    // A name that has no number yet has no rows yet: a list makes no claim about later ones.
    names::find(names, pg, tenant, &query.kinds, &query.scopes).await?;
    let found: Vec<AuditSql> =
        wanted(names, tenant, query).query().load(&mut pg).await.map_err(store_error)?;
    names::learn(names, pg, found.iter().map(|row| row.kind_no), []).await?;
    found.into_iter().map(|row| row.entry(names).map(|(_, entry)| entry)).collect()
}

/// The query for a list. Bounds of the time leave out the months beyond them.
fn wanted(names: &Names, tenant: TenantNo, query: &AuditQuery) -> Filter {
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
    filter
}

/// Audit rows that an explanation looks at, newest first.
const AUDIT_ROWS: usize = 1000;

statement! {
    /// The names of devices.
    NamesOfDevices { devices: Vec<i32> => Array<Integer> } =
    "SELECT device_no, sub, device_id FROM devices WHERE device_no = ANY(" ? devices: Array<Integer>
    ")"
}

impl Query for NamesOfDevices {
    type SqlType = (Integer, Text, Text);
}

statement! {
    /// The names of changes that are still remembered.
    NamesOfChanges { devices: Vec<i32> => Array<Integer>, numbers: Vec<i64> => Array<BigInt> } =
    "SELECT w.device_no, w.n, o.op_id FROM unnest(" ? devices: Array<Integer>
    ", " ? numbers: Array<BigInt>
    ") AS w(device_no, n) CROSS JOIN LATERAL (SELECT op_id FROM op_results WHERE device_no = w.device_no AND n = w.n \
     LIMIT 1) AS o"
}

impl Query for NamesOfChanges {
    type SqlType = (Integer, BigInt, Nullable<Binary>);
}

pub(super) async fn history(
    shared: &Shared,
    tenant: TenantNo,
    kind: &KindName,
    id: &RecordId,
) -> Result<Option<History>, StoreError> {
    let lease = shared.reader().await?;
    let (names, pg) = (&shared.caches.names, lease.pg());
    let read = async {
        let found = first(&lease, found(names, pg, tenant, kind, id)).await?;
        last(&lease, explained(names, pg, found)).await
    };
    let history = read.await;
    give_back(lease, history).await
}

/// Finds a record and its latest audit rows, newest first.
async fn found(
    names: &Names,
    mut pg: &AsyncPgConnection,
    tenant: TenantNo,
    kind: &KindName,
    id: &RecordId,
) -> Result<Option<(Row, Vec<AuditSql>)>, StoreError> {
    names::find(names, pg, tenant, [kind], []).await?;
    let Some(kind_no) = names.kind(tenant, kind) else { return Ok(None) };
    let tenant_no = tenant_sql(tenant);
    let record = LoadRecords { tenant_no, kinds: vec![kind_no], ids: vec![id.as_str()] };
    let mut filter = Filter::new(SELECT);
    filter.number("a.tenant_no =", i64::from(tenant_no));
    filter.number("a.kind_no =", i64::from(kind_no));
    filter.text("a.id =", id.as_str());
    filter.limit(NEWEST_FIRST, AUDIT_ROWS);
    let (rows, audit) =
        try_join!(biased; record.load::<RecordRow>(&mut { pg }), filter.query().load::<AuditSql>(&mut pg))
            .map_err(store_error)?;
    let Some(row) = rows.into_iter().next() else { return Ok(None) };
    names::learn(names, pg, [], [row.3]).await?;
    Ok(Some((row_of(names, row)?, audit)))
}

/// Adds the names of devices and changes that a record's marks refer to.
async fn explained(
    names: &Names,
    mut pg: &AsyncPgConnection,
    found: Option<(Row, Vec<AuditSql>)>,
) -> Result<Option<History>, StoreError> {
    let Some((row, audit)) = found else { return Ok(None) };
    let mut history = History { row, devices: Vec::new(), ops: Vec::new(), audit: Vec::new() };
    for audit in audit.into_iter().rev() {
        let (device, entry) = audit.entry(names)?;
        history.devices.push((device, entry.row.device.clone()));
        if let Some(op_id) = &entry.row.op_id {
            history.ops.push((device, entry.n, op_id.clone()));
        }
        history.audit.push(entry.row);
    }
    let marks: BTreeSet<_> =
        every_mark(&history.row.record).map(|mark| (device_sql(mark.device), sql(mark.n))).collect();
    let (devices, numbers): (Vec<i32>, Vec<i64>) = marks.into_iter().unzip();
    let changes = NamesOfChanges { devices: devices.clone(), numbers };
    let (devices, changes) = try_join!(
        biased;
        NamesOfDevices { devices }.load::<(i32, String, String)>(&mut { pg }),
        changes.load::<(i32, i64, Option<Vec<u8>>)>(&mut pg)
    )
    .map_err(store_error)?;
    for (device, sub, device_id) in devices {
        let device = device_of(device);
        if !history.devices.iter().any(|(known, _)| *known == device) {
            history.devices.push((device, device_key(&sub, &device_id)));
        }
    }
    for (device, n, op_id) in changes {
        let Some(op_id) = op_id else { continue };
        let (device, n) = (device_of(device), u64::try_from(n).map_err(|_| corrupt("n"))?);
        if !history.ops.iter().any(|(known, number, _)| (*known, *number) == (device, n)) {
            history.ops.push((device, n, decode_op(&op_id)?));
        }
    }
    Ok(Some(history))
}
