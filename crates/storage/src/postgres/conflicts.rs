//! Conflicts that wait, or waited, for a reviewer.

use diesel_async::{AsyncPgConnection, RunQueryDsl};
use driftline_engine::{ConflictQuery, ConflictRow, StoreError};
use driftline_model::{ConflictId, TenantNo};

use super::filter::Filter;
use super::snapshot::give_back;
use super::{Shared, names, store_error};
use crate::names::{Names, tenant_sql};
use crate::rows::ConflictSql;

const SELECT: &str = "SELECT c.tenant_no, c.conflict_id, c.kind_no, c.id, c.scope_no, c.device_no, d.sub, d.device_id, \
     c.op_id, c.n, c.op, c.reason, c.fields, c.base_version, c.version, c.base, c.client, c.client_ns, c.server, \
     c.policy_version, c.opened_at, c.resolved_at, c.resolved_by, c.resolution, c.seq \
     FROM conflicts AS c JOIN devices AS d ON d.device_no = c.device_no";

pub(super) async fn conflict(
    shared: &Shared,
    tenant: TenantNo,
    conflict_id: &ConflictId,
) -> Result<Option<ConflictRow>, StoreError> {
    let lease = shared.reader().await?;
    let mut filter = Filter::new(SELECT);
    filter.number("c.tenant_no =", i64::from(tenant_sql(tenant)));
    filter.text("c.conflict_id =", conflict_id.as_str());
    let found = load(lease.pg(), &shared.caches.names, filter).await;
    Ok(give_back(lease, found).await?.into_iter().next())
}

pub(super) async fn conflicts(
    shared: &Shared,
    tenant: TenantNo,
    query: &ConflictQuery,
) -> Result<Vec<ConflictRow>, StoreError> {
    let lease = shared.reader().await?;
    let found = list(lease.pg(), &shared.caches.names, tenant, query).await;
    give_back(lease, found).await
}

async fn list(
    pg: &AsyncPgConnection,
    names: &Names,
    tenant: TenantNo,
    query: &ConflictQuery,
) -> Result<Vec<ConflictRow>, StoreError> {
    // A name that has no number yet has no rows yet: a list makes no claim about later ones.
    names::find(names, pg, tenant, &query.kinds, &query.scopes).await?;
    let mut filter = Filter::new(SELECT);
    filter.number("c.tenant_no =", i64::from(tenant_sql(tenant)));
    filter.among("c.scope_no", query.scopes.iter().filter_map(|scope| names.scope(tenant, scope)));
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
        filter.pair(
            "(c.opened_at, c.conflict_id) >",
            (i64::try_from(place.opened_ms).unwrap_or(i64::MAX), place.conflict_id.as_str()),
        );
    }
    filter.limit("ORDER BY c.opened_at, c.conflict_id LIMIT", query.rows);
    load(pg, names, filter).await
}

async fn load(
    mut pg: &AsyncPgConnection,
    names: &Names,
    filter: Filter,
) -> Result<Vec<ConflictRow>, StoreError> {
    let found: Vec<ConflictSql> = filter.query().load(&mut pg).await.map_err(store_error)?;
    names::learn(names, pg, found.iter().map(ConflictSql::kind_no), found.iter().map(ConflictSql::scope_no))
        .await?;
    found.into_iter().map(|row| row.row(names).map(|(_, row)| row)).collect()
}
