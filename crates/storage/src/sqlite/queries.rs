//! Everything beside the hot path.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use driftline_engine::{
    AuditRow, Head, History, Page, PageQuery, Place, Row, SessionProgress, StoreError, StoredPolicy,
};
use driftline_model::{DeviceKey, DeviceNo, Epoch, KindName, RecordId, SyncId, TenantId, TenantNo};

use super::codec::{decode_code, decode_op};
use super::hot::{HeadRow, LoadHead, LoadRecords, PageByKey, PageByLog, RecordRow};
use super::names::{Names, tenant_of, tenant_sql};
use super::rows::{head_of, row_of, sql};
use super::store_error;
use super::writer::{Writer, device_sql};

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = Integer)]
    number: i32,
}

#[derive(QueryableByName)]
struct Big {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

#[derive(QueryableByName)]
struct PolicyRow {
    #[diesel(sql_type = Integer)]
    kind_no: i32,
    #[diesel(sql_type = Text)]
    doc: String,
    #[diesel(sql_type = BigInt)]
    version: i64,
}

#[derive(QueryableByName)]
struct BatchRow {
    #[diesel(sql_type = BigInt)]
    batch_seq: i64,
    #[diesel(sql_type = BigInt)]
    at: i64,
}

#[derive(QueryableByName)]
struct AuditSql {
    #[diesel(sql_type = BigInt)]
    audit_id: i64,
    #[diesel(sql_type = BigInt)]
    at: i64,
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
    #[diesel(sql_type = Integer)]
    code: i32,
    #[diesel(sql_type = BigInt)]
    policy_version: i64,
    #[diesel(sql_type = Text)]
    detail: String,
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

#[derive(QueryableByName)]
struct Tombstone {
    #[diesel(sql_type = BigInt)]
    rowid: i64,
    #[diesel(sql_type = Integer)]
    tenant_no: i32,
    #[diesel(sql_type = BigInt)]
    seq: i64,
}

impl Writer {
    /// Runs work in a transaction; all of it happens or nothing.
    pub(super) fn transaction<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.connection.batch_execute("BEGIN IMMEDIATE").map_err(store_error)?;
        match work(self) {
            Ok(done) => {
                if let Err(error) = self.connection.batch_execute("COMMIT") {
                    (self.fatal)(&format!("the commit failed: {error}"));
                    return Err(store_error(error));
                }
                Ok(done)
            }
            Err(error) => {
                if let Err(error) = self.connection.batch_execute("ROLLBACK") {
                    tracing::error!(%error, "rollback failed");
                }
                Err(error)
            }
        }
    }

    fn fresh_epoch(&self) -> Epoch {
        let mut bytes = [0; 4];
        self.random.fill(&mut bytes);
        Epoch::new(u32::from_be_bytes(bytes))
    }
}

pub(super) fn tenant(writer: &mut Writer, tenant: &TenantId) -> Result<TenantNo, StoreError> {
    let found: Option<Number> = sql_query("SELECT tenant_no AS number FROM tenants WHERE tenant = ?")
        .bind::<Text, _>(tenant.as_str())
        .get_result(&mut writer.connection)
        .optional()
        .map_err(store_error)?;
    if let Some(found) = found {
        return Ok(tenant_of(found.number));
    }
    let made: Number =
        sql_query("INSERT INTO tenants (tenant, created_at) VALUES (?, ?) RETURNING tenant_no AS number")
            .bind::<Text, _>(tenant.as_str())
            .bind::<BigInt, _>(sql(writer.clock.now_ms()))
            .get_result(&mut writer.connection)
            .map_err(store_error)?;
    let epoch = writer.fresh_epoch();
    sql_query("INSERT INTO stream_head (tenant_no, epoch) VALUES (?, ?)")
        .bind::<Integer, _>(made.number)
        .bind::<Text, _>(epoch.to_string())
        .execute(&mut writer.connection)
        .map_err(store_error)?;
    Ok(tenant_of(made.number))
}

pub(super) fn find_device(
    connection: &mut SqliteConnection,
    tenant: TenantNo,
    device: &DeviceKey,
) -> Result<Option<DeviceNo>, StoreError> {
    let found: Option<Number> = sql_query(
        "SELECT device_no AS number FROM devices WHERE tenant_no = ? AND sub = ? AND device_id = ?",
    )
    .bind::<Integer, _>(tenant_sql(tenant))
    .bind::<Text, _>(device.user())
    .bind::<Text, _>(device.device())
    .get_result(connection)
    .optional()
    .map_err(store_error)?;
    Ok(found.map(|found| device_of(found.number)))
}

fn device_of(number: i32) -> DeviceNo {
    DeviceNo::new(u32::try_from(number).expect("the store gives devices positive numbers"))
}

pub(super) fn register_device(
    writer: &mut Writer,
    tenant: TenantNo,
    device: &DeviceKey,
) -> Result<DeviceNo, StoreError> {
    let now = sql(writer.clock.now_ms());
    let made: Number = sql_query(
        "INSERT INTO devices (tenant_no, sub, device_id, created_at, last_seen_at) VALUES (?, ?, ?, ?, ?) \
         ON CONFLICT (tenant_no, sub, device_id) DO UPDATE SET last_seen_at = excluded.last_seen_at \
         RETURNING device_no AS number",
    )
    .bind::<Integer, _>(tenant_sql(tenant))
    .bind::<Text, _>(device.user())
    .bind::<Text, _>(device.device())
    .bind::<BigInt, _>(now)
    .bind::<BigInt, _>(now)
    .get_result(&mut writer.connection)
    .map_err(store_error)?;
    Ok(device_of(made.number))
}

pub(super) fn head(connection: &mut SqliteConnection, tenant: TenantNo) -> Result<Head, StoreError> {
    let row: HeadRow =
        LoadHead { tenant_no: tenant_sql(tenant) }.get_result(connection).map_err(store_error)?;
    head_of(row)
}

/// Reads a head on the writing connection and keeps it for look-ups.
pub(super) fn keep_head(writer: &mut Writer, tenant: TenantNo) -> Result<Head, StoreError> {
    let head = head(&mut writer.connection, tenant)?;
    writer.keep_head(tenant, head);
    Ok(head)
}

/// Runs reads that must see one moment.
fn snapshot<T>(
    connection: &mut SqliteConnection,
    read: impl FnOnce(&mut SqliteConnection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    connection.batch_execute("BEGIN").map_err(store_error)?;
    let done = read(connection);
    connection.batch_execute("COMMIT").map_err(store_error)?;
    done
}

pub(super) fn page(
    connection: &mut SqliteConnection,
    names: &Names,
    query: &PageQuery,
) -> Result<Page, StoreError> {
    snapshot(connection, |connection| {
        let head = head(connection, query.tenant)?;
        let scopes: Vec<i32> =
            query.scopes.iter().filter_map(|scope| names.scope(query.tenant, scope)).collect();
        let kinds: Vec<i32> = query.kinds.iter().filter_map(|kind| names.kind(query.tenant, kind)).collect();
        let nothing = scopes.is_empty() || !query.kinds.is_empty() && kinds.is_empty();
        if nothing {
            return Ok(Page { head, rows: Vec::new(), more: false });
        }
        let kinds = (!query.kinds.is_empty()).then(|| numbers(&kinds));
        // One row more than wanted tells whether more wait.
        let limit = i64::try_from(query.rows).unwrap_or(i64::MAX - 1) + 1;
        let (rows, cut) = match &query.place {
            Place::After(after) => {
                let mut rows = Vec::new();
                // Up to where every scope was read: beyond it rows of a scope that was cut would be missed.
                let mut horizon: Option<driftline_model::Seq> = None;
                for scope_no in scopes {
                    let page = PageByLog {
                        tenant_no: tenant_sql(query.tenant),
                        scope_no,
                        after: sql(after.number()),
                        kinds: kinds.clone(),
                        rows: limit,
                    };
                    if collect(connection, names, page, query.bytes, &mut rows)? {
                        let read = rows.last().map(|row: &Row| row.record.version);
                        horizon = horizon.map_or(read, |horizon| read.map(|read| read.min(horizon)));
                    }
                }
                rows.sort_by_key(|row| row.record.version);
                rows.retain(|row| horizon.is_none_or(|horizon| row.record.version <= horizon));
                (rows, horizon.is_some())
            }
            Place::Key(after) => {
                let (kind_no, id) = match after {
                    // A kind that has no number has no rows: everything comes after it.
                    Some((kind, id)) => (names.kind(query.tenant, kind).unwrap_or(0), id.as_str().to_owned()),
                    None => (0, String::new()),
                };
                let page = PageByKey {
                    tenant_no: tenant_sql(query.tenant),
                    kind_no,
                    id,
                    scopes: numbers(&scopes),
                    kinds,
                    rows: limit,
                };
                let mut rows = Vec::new();
                let cut = collect(connection, names, page, query.bytes, &mut rows)?;
                (rows, cut)
            }
        };
        Ok(trim(head, rows, query, cut))
    })
}

/// Reads rows until the bytes are used up; tells whether it stopped early.
fn collect<Q>(
    connection: &mut SqliteConnection,
    names: &Names,
    query: Q,
    bytes_max: usize,
    rows: &mut Vec<Row>,
) -> Result<bool, StoreError>
where
    Q: for<'q> diesel::query_dsl::LoadQuery<'q, SqliteConnection, RecordRow>,
{
    let mut bytes = 0;
    for row in query.load_iter::<RecordRow, _>(connection).map_err(store_error)? {
        let row = row_of(names, row.map_err(store_error)?)?;
        bytes += row.record.fields.as_str().len();
        rows.push(row);
        if bytes > bytes_max {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Cuts a page to its rows and bytes. Of rows that were merged from several scopes only a prefix is complete.
fn trim(head: Head, mut rows: Vec<Row>, query: &PageQuery, cut: bool) -> Page {
    let mut bytes = 0;
    let fits = rows.iter().take(query.rows).take_while(|row| {
        let first = bytes == 0;
        bytes += row.record.fields.as_str().len().max(1);
        first || bytes <= query.bytes
    });
    let keep = fits.count();
    let more = cut || keep < rows.len();
    rows.truncate(keep);
    Page { head, rows, more }
}

fn numbers(numbers: &[i32]) -> String {
    let texts: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    format!("[{}]", texts.join(","))
}

pub(super) fn record(
    connection: &mut SqliteConnection,
    names: &Names,
    tenant: TenantNo,
    kind: &KindName,
    id: &RecordId,
) -> Result<Option<Row>, StoreError> {
    let Some(kind_no) = names.kind(tenant, kind) else { return Ok(None) };
    let mut ids = String::from("[");
    driftline_protocol::write_json_string(&mut ids, id.as_str());
    ids.push(']');
    let rows: Vec<RecordRow> =
        LoadRecords { ids, tenant_no: tenant_sql(tenant), kind_no }.load(connection).map_err(store_error)?;
    rows.into_iter().next().map(|row| row_of(names, row)).transpose()
}

/// Audit rows that an explanation looks at, newest first.
const AUDIT_ROWS: i64 = 1000;

pub(super) fn history(
    connection: &mut SqliteConnection,
    names: &Names,
    tenant: TenantNo,
    kind: &KindName,
    id: &RecordId,
) -> Result<Option<History>, StoreError> {
    snapshot(connection, |connection| {
        let Some(row) = record(connection, names, tenant, kind, id)? else { return Ok(None) };
        let kind_no = names.kind(tenant, kind).unwrap_or(0);
        let mut found: Vec<AuditSql> = sql_query(
            "SELECT a.audit_id AS audit_id, a.at AS at, a.device_no AS device_no, d.sub AS sub, d.device_id AS device_id, \
             a.op_id AS op_id, a.n AS n, a.code AS code, a.policy_version AS policy_version, a.detail AS detail \
             FROM audit AS a JOIN devices AS d ON d.device_no = a.device_no \
             WHERE a.tenant_no = ? AND a.kind_no = ? AND a.id = ? ORDER BY a.audit_id DESC LIMIT ?",
        )
        .bind::<Integer, _>(tenant_sql(tenant))
        .bind::<Integer, _>(kind_no)
        .bind::<Text, _>(id.as_str())
        .bind::<BigInt, _>(AUDIT_ROWS)
        .load(connection)
        .map_err(store_error)?;
        found.reverse();
        let mut history = History { row, devices: Vec::new(), ops: Vec::new(), audit: Vec::new() };
        for audit in found {
            let device = DeviceKey::from_text(&format!("{}\u{1}{}", audit.sub, audit.device_id));
            let op_id = audit.op_id.as_deref().map(decode_op).transpose()?;
            let n = u64::try_from(audit.n).unwrap_or_default();
            history.devices.push((device_of(audit.device_no), device.clone()));
            if let Some(op_id) = &op_id {
                history.ops.push((device_of(audit.device_no), n, op_id.clone()));
            }
            history.audit.push(AuditRow {
                audit_id: u64::try_from(audit.audit_id).unwrap_or_default(),
                at_ms: u64::try_from(audit.at).unwrap_or_default(),
                device,
                op_id,
                code: decode_code(audit.code).unwrap_or(driftline_protocol::ItemCode::Merged),
                policy_version: u64::try_from(audit.policy_version).unwrap_or_default(),
                detail: audit.detail,
            });
        }
        let marks: Vec<_> = history.row.record.all_marks().map(|mark| (mark.device, mark.n)).collect();
        for (device, n) in marks {
            name_mark(connection, &mut history, device, n)?;
        }
        Ok(Some(history))
    })
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
            let key = DeviceKey::from_text(&format!("{}\u{1}{}", name.sub, name.device_id));
            history.devices.push((device, key));
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

pub(super) fn policies(
    connection: &mut SqliteConnection,
    names: &Names,
    tenant: TenantNo,
) -> Result<Vec<StoredPolicy>, StoreError> {
    let rows: Vec<PolicyRow> =
        sql_query("SELECT kind_no, doc, version FROM policies WHERE tenant_no = ? AND doc IS NOT NULL")
            .bind::<Integer, _>(tenant_sql(tenant))
            .load(connection)
            .map_err(store_error)?;
    rows.into_iter()
        .map(|row| {
            let version = u64::try_from(row.version).map_err(|_| StoreError::Corrupt("version".into()))?;
            Ok(StoredPolicy { kind: names.kind_name(row.kind_no)?, doc: row.doc, version })
        })
        .collect()
}

pub(super) fn set_policy(
    writer: &mut Writer,
    tenant: TenantNo,
    kind: &KindName,
    doc: Option<&str>,
) -> Result<Option<u64>, StoreError> {
    let now = sql(writer.clock.now_ms());
    let changed: Option<Big> = match doc {
        Some(doc) => {
            let kind_no = writer.names.intern_kind(&mut writer.connection, tenant, kind)?;
            sql_query(
                "INSERT INTO policies (tenant_no, kind_no, doc, version, updated_at) VALUES (?, ?, ?, 1, ?) \
                 ON CONFLICT (tenant_no, kind_no) DO UPDATE SET doc = excluded.doc, version = version + 1, \
                 updated_at = excluded.updated_at RETURNING version AS number",
            )
            .bind::<Integer, _>(tenant_sql(tenant))
            .bind::<Integer, _>(kind_no)
            .bind::<Text, _>(doc)
            .bind::<BigInt, _>(now)
            .get_result(&mut writer.connection)
            .optional()
            .map_err(store_error)?
        }
        None => {
            let Some(kind_no) = writer.names.kind(tenant, kind) else { return Ok(None) };
            sql_query(
                "UPDATE policies SET doc = NULL, version = version + 1, updated_at = ? \
                 WHERE tenant_no = ? AND kind_no = ? AND doc IS NOT NULL RETURNING version AS number",
            )
            .bind::<BigInt, _>(now)
            .bind::<Integer, _>(tenant_sql(tenant))
            .bind::<Integer, _>(kind_no)
            .get_result(&mut writer.connection)
            .optional()
            .map_err(store_error)?
        }
    };
    Ok(changed.and_then(|changed| u64::try_from(changed.number).ok()))
}

pub(super) fn begin_epoch(writer: &mut Writer, tenant: TenantNo, left: Epoch) -> Result<Head, StoreError> {
    let mut fresh = writer.fresh_epoch();
    if fresh == left {
        fresh = Epoch::new(left.number().wrapping_add(1));
    }
    sql_query("UPDATE stream_head SET epoch = ? WHERE tenant_no = ? AND epoch = ?")
        .bind::<Text, _>(fresh.to_string())
        .bind::<Integer, _>(tenant_sql(tenant))
        .bind::<Text, _>(left.to_string())
        .execute(&mut writer.connection)
        .map_err(store_error)?;
    writer.forget_head(tenant);
    head(&mut writer.connection, tenant)
}

/// Batches of a session that are told to a device that resumes it.
const BATCHES: i64 = 1000;

pub(super) fn session(
    connection: &mut SqliteConnection,
    tenant: TenantNo,
    device: DeviceNo,
    sync_id: &SyncId,
) -> Result<Option<SessionProgress>, StoreError> {
    let rows: Vec<BatchRow> = sql_query(
        "SELECT batch_seq, at FROM sync_batches WHERE tenant_no = ? AND device_no = ? AND sync_id = ? \
         ORDER BY batch_seq DESC LIMIT ?",
    )
    .bind::<Integer, _>(tenant_sql(tenant))
    .bind::<Integer, _>(device_sql(device))
    .bind::<Text, _>(sync_id.as_str())
    .bind::<BigInt, _>(BATCHES)
    .load(connection)
    .map_err(store_error)?;
    if rows.is_empty() {
        return Ok(None);
    }
    let last_ms = rows.iter().map(|row| u64::try_from(row.at).unwrap_or_default()).max().unwrap_or_default();
    let batches = rows.iter().rev().map(|row| u64::try_from(row.batch_seq).unwrap_or_default()).collect();
    Ok(Some(SessionProgress { batches, last_ms }))
}

const DAY_MS: u64 = 24 * 3_600_000;

pub(super) fn prune(writer: &mut Writer, now_ms: u64) -> Result<u64, StoreError> {
    let before = |days: u64| sql(now_ms.saturating_sub(days * DAY_MS));
    // What is forgotten is too old from now on, and never new.
    sql_query(
        "UPDATE devices SET acked_n = max(acked_n, old.n) FROM (SELECT device_no, max(n) AS n FROM op_results \
         WHERE at < ? GROUP BY device_no) AS old WHERE old.device_no = devices.device_no",
    )
    .bind::<BigInt, _>(before(90))
    .execute(&mut writer.connection)
    .map_err(store_error)?;
    writer.forget_devices();
    let mut removed = 0;
    for (statement, days) in
        [("DELETE FROM op_results WHERE at < ?", 90), ("DELETE FROM sync_batches WHERE at < ?", 1)]
    {
        removed += sql_query(statement)
            .bind::<BigInt, _>(before(days))
            .execute(&mut writer.connection)
            .map_err(store_error)?;
    }
    Ok(removed as u64 + purge_tombstones(writer, now_ms.saturating_sub(30 * DAY_MS))?)
}

/// Purges deleted records that were last changed before a time; readers that stand before them must pull anew.
fn purge_tombstones(writer: &mut Writer, before_ms: u64) -> Result<u64, StoreError> {
    let rows: Vec<Tombstone> = sql_query(
        "SELECT rowid, tenant_no, seq FROM records WHERE substr(del, 1, 1) = x'01' AND changed_at < ?",
    )
    .bind::<BigInt, _>(sql(before_ms))
    .load(&mut writer.connection)
    .map_err(store_error)?;
    let mut removed = 0;
    for row in rows {
        sql_query("DELETE FROM records WHERE rowid = ?")
            .bind::<BigInt, _>(row.rowid)
            .execute(&mut writer.connection)
            .map_err(store_error)?;
        sql_query("UPDATE stream_head SET gc_floor = max(gc_floor, ?) WHERE tenant_no = ?")
            .bind::<BigInt, _>(row.seq)
            .bind::<Integer, _>(row.tenant_no)
            .execute(&mut writer.connection)
            .map_err(store_error)?;
        writer.forget_head(tenant_of(row.tenant_no));
        removed += 1;
    }
    Ok(removed)
}

pub(super) fn probe(writer: &mut Writer) -> Result<(), StoreError> {
    let now = writer.clock.now_ms().to_be_bytes().to_vec();
    sql_query("INSERT INTO meta (name, value) VALUES ('probe', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value")
        .bind::<Binary, _>(now)
        .execute(&mut writer.connection)
        .map_err(store_error)?;
    Ok(())
}
