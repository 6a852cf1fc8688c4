//! What is past its retention goes.
//!
//! Nodes write meanwhile, so rows are removed a transaction of bounded size at a time, each of one tenant and under its
//! locked head, as every writer does it. Every node prunes; whoever comes while another is at it leaves the work to it.

use std::collections::BTreeMap;

use diesel::QueryResult;
use diesel::QueryableByName;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use driftline_engine::{Retention, StoreError};
use driftline_model::KindName;
use tokio::join;

use super::snapshot::give_back;
use super::sql::{Commit, LockHead, LockedHead, statement};
use super::{Shared, store_error};
use crate::rows::sql;

const DAY_MS: u64 = 24 * 3_600_000;

/// Rows that one transaction removes at most.
const REMOVED: usize = 10_000;
/// Rows that one search gives at most. More than are removed at once: what was removed is passed over by the next
/// search until the table is vacuumed.
const SOUGHT: i64 = 50_000;

/// Removes what is past its retention; gives the number of removed rows.
pub(super) async fn prune(shared: &Shared, now_ms: u64, retention: &Retention) -> Result<u64, StoreError> {
    // A node whose clock runs ahead must not remove what the others still need.
    let now_ms = if shared.clock.is_some() { now_ms } else { database_ms(shared).await? };
    // What is old needs no partition to go.
    let made = make_months(shared, now_ms).await;
    let mut removed = 0;
    for (table, before_ms) in aged(now_ms, retention) {
        let before = i64::try_from(before_ms).unwrap_or(i64::MAX);
        match prune_table(shared, table, before).await? {
            Pruned::All(rows) => removed += rows,
            Pruned::Elsewhere(rows) => return made.map(|()| removed + rows),
        }
    }
    made.map(|()| removed)
}

/// What is to go, each with the time before which it does.
fn aged(now_ms: u64, retention: &Retention) -> Vec<(Table<'_>, u64)> {
    let days = |days: u64| now_ms.saturating_sub(days * DAY_MS);
    let mut aged = vec![
        (Table::Answers, days(90)),
        (Table::Batches, days(1)),
        // At the time of its expiry a key is forgotten.
        (Table::Keys, now_ms.saturating_add(1)),
        (Table::Tombstones, days(30)),
        (Table::Exits, days(30)),
    ];
    let samples = retention.samples.iter();
    aged.extend(samples.map(|(kind, kept_ms)| (Table::Samples(kind), now_ms.saturating_sub(*kept_ms))));
    aged.extend(retention.series_ms.map(|kept_ms| (Table::Series, now_ms.saturating_sub(kept_ms))));
    aged
}

/// Removes at most so many keys that expired; gives their number.
pub(super) async fn prune_keys(shared: &Shared, now_ms: u64, limit: usize) -> Result<usize, StoreError> {
    let before = i64::try_from(now_ms.saturating_add(1)).unwrap_or(i64::MAX);
    let limit = i64::try_from(limit).unwrap_or(SOUGHT).min(SOUGHT);
    let found = Table::Keys.old(shared, before, limit).await?;
    let (Pruned::All(removed) | Pruned::Elsewhere(removed)) =
        remove_all(shared, Table::Keys, found, before).await?;
    Ok(usize::try_from(removed).unwrap_or(usize::MAX))
}

statement! {
    /// The database's clock.
    DatabaseClock {} = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::BIGINT"
}

impl Query for DatabaseClock {
    type SqlType = BigInt;
}

pub(super) async fn database_ms(shared: &Shared) -> Result<u64, StoreError> {
    let lease = shared.reader().await?;
    let now: i64 = DatabaseClock {}.get_result(&mut lease.pg()).await.map_err(store_error)?;
    lease.done();
    Ok(u64::try_from(now).unwrap_or_default())
}

statement! {
    /// Makes the partition of the audit that holds a time; gives when the next month begins.
    MakeMonth { at: i64 => BigInt } =
    "SELECT month_end FROM audit_month(" ? at: BigInt
    ")"
}

impl Query for MakeMonth {
    type SqlType = BigInt;
}

/// The year 10000: no clock shows it, and no month is made for it.
const CALENDAR_END_MS: u64 = 253_402_300_800_000;

/// Makes the partitions of the audit for this month and the next.
async fn make_months(shared: &Shared, now_ms: u64) -> Result<(), StoreError> {
    if now_ms >= CALENDAR_END_MS {
        return Ok(());
    }
    let lease = shared.writer().await?;
    let mut pg = lease.pg();
    let next: i64 = MakeMonth { at: sql(now_ms) }.get_result(&mut pg).await.map_err(store_error)?;
    let _: i64 = MakeMonth { at: next }.get_result(&mut pg).await.map_err(store_error)?;
    lease.done();
    Ok(())
}

/// What ages.
#[derive(Clone, Copy)]
enum Table<'a> {
    /// Answers to changes. What is forgotten is too old from then on, and never new.
    Answers,
    /// Batches that were answered.
    Batches,
    /// Deleted records; readers that stand before them must pull anew.
    Tombstones,
    /// Exits from scopes; as with deleted records.
    Exits,
    /// What is remembered under keys of requests.
    Keys,
    /// Samples of a kind, of all tenants.
    Samples(&'a KindName),
    /// Points of series.
    Series,
}

/// How far a table was pruned, and the rows that were removed.
enum Pruned {
    All(u64),
    /// Another node is at it.
    Elsewhere(u64),
}

/// The key of a row that is to go: its tenant, and of what else makes the table's key a number, another, a text and
/// another.
#[derive(QueryableByName)]
struct Key {
    #[diesel(sql_type = Integer)]
    tenant_no: i32,
    #[diesel(sql_type = Integer)]
    number: i32,
    #[diesel(sql_type = BigInt)]
    other: i64,
    #[diesel(sql_type = Text)]
    text: String,
    #[diesel(sql_type = Text)]
    rest: String,
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

async fn prune_table(shared: &Shared, table: Table<'_>, before: i64) -> Result<Pruned, StoreError> {
    let mut removed = 0;
    loop {
        let found = table.old(shared, before, SOUGHT).await?;
        let last = found.len() < usize::try_from(SOUGHT).unwrap_or(usize::MAX);
        let gone = match remove_all(shared, table, found, before).await? {
            Pruned::All(gone) => gone,
            Pruned::Elsewhere(gone) => return Ok(Pruned::Elsewhere(removed + gone)),
        };
        removed += gone;
        // Rows that were written again since they were found stay.
        if last || gone == 0 {
            return Ok(Pruned::All(removed));
        }
    }
}

/// Removes rows that were found, a tenant after the other.
async fn remove_all(
    shared: &Shared,
    table: Table<'_>,
    found: Vec<Key>,
    before: i64,
) -> Result<Pruned, StoreError> {
    let mut tenants: BTreeMap<i32, Vec<Key>> = BTreeMap::new();
    for key in found {
        tenants.entry(key.tenant_no).or_default().push(key);
    }
    let mut gone = 0;
    for (tenant_no, keys) in tenants {
        for keys in keys.chunks(REMOVED) {
            match remove(shared, table, tenant_no, keys, before).await? {
                Some(rows) => gone += rows,
                None => return Ok(Pruned::Elsewhere(gone)),
            }
        }
    }
    Ok(Pruned::All(gone))
}

/// Removes rows of one tenant; gives their number, or nothing while another node is at it.
async fn remove(
    shared: &Shared,
    table: Table<'_>,
    tenant_no: i32,
    keys: &[Key],
    before: i64,
) -> Result<Option<u64>, StoreError> {
    let lease = shared.writer().await?;
    let removed = match locked(lease.pg(), tenant_no).await {
        Ok(true) => removed(lease.pg(), table, tenant_no, keys, before).await.map(Some),
        Ok(false) => {
            lease.roll_back().await;
            return Ok(None);
        }
        Err(error) => Err(error),
    };
    give_back(lease, removed.map_err(store_error)).await
}

statement! {
    /// Takes the turn to prune until the transaction ends, unless somebody else has it.
    TakeTurn {} = "SELECT pg_try_advisory_xact_lock(hashtext('driftline.prune'))"
}

impl Query for TakeTurn {
    type SqlType = Bool;
}

/// Begins a transaction and locks the tenant's head in it. Tells whether it is this node's turn.
async fn locked(mut pg: &AsyncPgConnection, tenant_no: i32) -> QueryResult<bool> {
    let turn = TakeTurn {}.get_result::<bool>(&mut { pg });
    let head = LockHead { tenant_no }.load::<LockedHead>(&mut { pg });
    let (begun, turn, head) = join!(biased; pg.batch_execute("BEGIN"), turn, head);
    begun?;
    head?;
    turn
}

/// Removes rows and ends the transaction.
async fn removed(
    pg: &AsyncPgConnection,
    table: Table<'_>,
    tenant_no: i32,
    keys: &[Key],
    before: i64,
) -> QueryResult<u64> {
    let removal = sql_query(table.removal())
        .bind::<Integer, _>(tenant_no)
        .bind::<BigInt, _>(before)
        .bind::<Array<Integer>, _>(keys.iter().map(|key| key.number).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(keys.iter().map(|key| key.other).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(keys.iter().map(|key| key.text.as_str()).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(keys.iter().map(|key| key.rest.as_str()).collect::<Vec<_>>());
    let (removed, ended) =
        join!(biased; removal.get_result::<Count>(&mut { pg }), Commit {}.execute(&mut { pg }));
    let removed = removed?;
    ended?;
    Ok(removed.count.unsigned_abs())
}

impl Table<'_> {
    /// Finds at most so many rows that were last written before a time.
    async fn old(self, shared: &Shared, before: i64, limit: i64) -> Result<Vec<Key>, StoreError> {
        let lease = shared.reader().await?;
        let kind = match self {
            Self::Samples(kind) => kind.as_str(),
            _ => "",
        };
        let search =
            sql_query(self.search()).bind::<BigInt, _>(before).bind::<BigInt, _>(limit).bind::<Text, _>(kind);
        let found = search.load(&mut lease.pg()).await.map_err(store_error);
        give_back(lease, found).await
    }

    const fn search(self) -> &'static str {
        match self {
            Self::Answers => {
                "SELECT tenant_no, device_no AS number, n AS other, '' AS text, '' AS rest FROM op_results \
                 WHERE at < $1 LIMIT $2"
            }
            Self::Batches => {
                "SELECT tenant_no, device_no AS number, batch_seq AS other, sync_id AS text, '' AS rest FROM sync_batches \
                 WHERE at < $1 LIMIT $2"
            }
            Self::Tombstones => {
                "SELECT tenant_no, kind_no AS number, 0::BIGINT AS other, id AS text, '' AS rest FROM records \
                 WHERE get_byte(del, 0) = 1 AND changed_at < $1 ORDER BY changed_at LIMIT $2"
            }
            Self::Exits => {
                "SELECT tenant_no, scope_no AS number, kind_no::BIGINT AS other, id AS text, '' AS rest FROM scope_exits \
                 WHERE at < $1 ORDER BY at LIMIT $2"
            }
            Self::Keys => {
                "SELECT tenant_no, 0 AS number, 0::BIGINT AS other, owner AS text, key AS rest FROM idempotency \
                 WHERE expires_at < $1 ORDER BY expires_at LIMIT $2"
            }
            Self::Samples(_) => {
                "SELECT k.tenant_no, k.kind_no AS number, 0::BIGINT AS other, s.id AS text, '' AS rest FROM kinds AS k \
                 CROSS JOIN LATERAL (SELECT id FROM samples WHERE kind_no = k.kind_no AND received_at < $1 LIMIT $2) AS s \
                 WHERE k.kind = $3 LIMIT $2"
            }
            Self::Series => {
                "SELECT t.tenant_no, 0 AS number, s.hour AS other, s.name AS text, '' AS rest FROM tenants AS t \
                 CROSS JOIN LATERAL (SELECT hour, name FROM series WHERE tenant_no = t.tenant_no AND hour < $1 \
                 ORDER BY hour, name LIMIT $2) AS s LIMIT $2"
            }
        }
    }

    /// Removes rows by key, but for those that were written again.
    const fn removal(self) -> &'static str {
        match self {
            Self::Answers => {
                "WITH gone AS (DELETE FROM op_results AS o USING unnest($3, $4) AS w(device_no, n) \
                 WHERE o.device_no = w.device_no AND o.n = w.n AND o.tenant_no = $1 AND o.at < $2 \
                 RETURNING o.device_no, o.n), raised AS (UPDATE devices AS d SET acked_n = greatest(d.acked_n, m.n) \
                 FROM (SELECT device_no, max(n) AS n FROM gone GROUP BY device_no ORDER BY device_no) AS m \
                 WHERE d.device_no = m.device_no) SELECT count(*) AS count FROM gone"
            }
            Self::Batches => {
                "WITH gone AS (DELETE FROM sync_batches AS b USING unnest($3, $4, $5) AS w(device_no, batch_seq, sync_id) \
                 WHERE b.tenant_no = $1 AND b.device_no = w.device_no AND b.sync_id = w.sync_id \
                 AND b.batch_seq = w.batch_seq AND b.at < $2 RETURNING 1) SELECT count(*) AS count FROM gone"
            }
            Self::Tombstones => {
                "WITH gone AS (DELETE FROM records AS r USING unnest($3, $5) AS w(kind_no, id) WHERE r.tenant_no = $1 \
                 AND r.kind_no = w.kind_no AND r.id = w.id AND get_byte(r.del, 0) = 1 AND r.changed_at < $2 \
                 RETURNING r.seq), raised AS (UPDATE stream_head \
                 SET gc_floor = greatest(gc_floor, (SELECT max(seq) FROM gone)) WHERE tenant_no = $1) \
                 SELECT count(*) AS count FROM gone"
            }
            Self::Exits => {
                "WITH gone AS (DELETE FROM scope_exits AS e USING unnest($3, $4, $5) AS w(scope_no, kind_no, id) \
                 WHERE e.tenant_no = $1 AND e.scope_no = w.scope_no AND e.kind_no = w.kind_no AND e.id = w.id \
                 AND e.at < $2 RETURNING e.seq), raised AS (UPDATE stream_head \
                 SET gc_floor = greatest(gc_floor, (SELECT max(seq) FROM gone)) WHERE tenant_no = $1) \
                 SELECT count(*) AS count FROM gone"
            }
            Self::Keys => {
                "WITH gone AS (DELETE FROM idempotency AS i USING unnest($5, $6) AS w(owner, key) WHERE i.tenant_no = $1 \
                 AND i.owner = w.owner AND i.key = w.key AND i.expires_at < $2 RETURNING 1) \
                 SELECT count(*) AS count FROM gone"
            }
            Self::Samples(_) => {
                "WITH gone AS (DELETE FROM samples AS s USING unnest($3, $5) AS w(kind_no, id) WHERE s.tenant_no = $1 \
                 AND s.kind_no = w.kind_no AND s.id = w.id AND s.received_at < $2 RETURNING 1) \
                 SELECT count(*) AS count FROM gone"
            }
            Self::Series => {
                "WITH gone AS (DELETE FROM series AS s USING unnest($4, $5) AS w(hour, name) WHERE s.tenant_no = $1 \
                 AND s.hour = w.hour AND s.name = w.name AND s.hour < $2 RETURNING 1) \
                 SELECT count(*) AS count FROM gone"
            }
        }
    }
}
