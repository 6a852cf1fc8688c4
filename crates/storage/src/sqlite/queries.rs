//! Everything beside the hot path.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Integer, Text};
use driftline_engine::{Head, Row, SessionProgress, StoreError, StoredPolicy};
use driftline_model::{DeviceKey, DeviceNo, Epoch, KindName, RecordId, SyncId, TenantId, TenantNo};

use super::hot::{LoadHead, LoadRecords};
use super::store_error;
use super::writer::Writer;
use crate::names::{Names, device_of, device_sql, tenant_of, tenant_sql};
use crate::rows::{HeadRow, RecordRow, head_of, row_of, sql};

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

impl Writer {
    /// Runs work in a transaction; all of it happens or nothing.
    pub(super) fn transaction<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.connection.batch_execute("BEGIN IMMEDIATE").map_err(store_error)?;
        self.end_transaction(work)
    }

    /// Runs work in the transaction that was begun, and ends it; all of it happens or nothing.
    pub(super) fn end_transaction<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match work(self) {
            Ok(done) => {
                if let Err(error) = self.connection.batch_execute("COMMIT") {
                    (self.fatal)(&format!("the commit failed: {error}"));
                    return Err(store_error(error));
                }
                self.fresh.clear();
                Ok(done)
            }
            Err(error) => {
                self.roll_back();
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

pub(super) fn register_device(
    writer: &mut Writer,
    tenant: TenantNo,
    device: &DeviceKey,
) -> Result<DeviceNo, StoreError> {
    let now = sql(writer.clock.now_ms());
    let made: Number = sql_query(
        "INSERT INTO devices (tenant_no, sub, device_id, created_at, last_seen_at) VALUES (?, ?, ?, ?, ?) \
         ON CONFLICT (tenant_no, sub, device_id) DO UPDATE SET last_seen_at = max(last_seen_at, excluded.last_seen_at) \
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
pub(super) fn snapshot<T>(
    connection: &mut SqliteConnection,
    read: impl FnOnce(&mut SqliteConnection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    connection.batch_execute("BEGIN").map_err(store_error)?;
    let done = read(connection);
    connection.batch_execute("COMMIT").map_err(store_error)?;
    done
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
            let kind_no = writer.intern_kind(tenant, kind)?;
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
    sql_query("UPDATE stream_head SET epoch = ?, epoch_seq = seq WHERE tenant_no = ? AND epoch = ?")
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

pub(super) fn probe(writer: &mut Writer) -> Result<(), StoreError> {
    let now = writer.clock.now_ms().to_be_bytes().to_vec();
    sql_query("INSERT INTO meta (name, value) VALUES ('probe', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value")
        .bind::<Binary, _>(now)
        .execute(&mut writer.connection)
        .map_err(store_error)?;
    Ok(())
}
