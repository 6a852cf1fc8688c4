//! The registry of devices.
//!
//! Signs of devices are written without their tenants' heads, as many at once as there are: so every statement that
//! writes rows of several devices locks them in the order of their numbers.

use std::collections::BTreeMap;

use diesel::pg::Pg;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Binary, Bool, Integer, Nullable, Text};
use diesel::{OptionalExtension, QueryResult, QueryableByName, sql_query};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use driftline_engine::{
    DeviceAction, DeviceChange, DeviceChanged, DeviceNote, DeviceOnce, DeviceQuery, DeviceRow, DeviceSign,
    StoreError,
};
use driftline_model::{DeviceId, DeviceNo, TenantId, TenantNo};

use super::connect::Lease;
use super::filter::Filter;
use super::followers::{self, LogSigns};
use super::leases::begin_locked;
use super::once::{self, PutKeys};
use super::prune::DatabaseClock;
use super::queries::finish;
use super::snapshot::give_back;
use super::sql::statement;
use super::{Shared, store_error};
use crate::codec::corrupt;
use crate::log::is_of_the_log;
use crate::names::{device_key, device_of, device_sql, tenant_of, tenant_sql};
use crate::once::{Kept, Met, meet_change};
use crate::registry::{digest_of, refused};
use crate::rows::sql;

/// The columns of a device of the registry.
const COLUMNS: &str = "d.tenant_no, d.device_no, d.sub, d.device_id, d.disabled_at IS NULL AS enabled, \
     d.retired_at IS NOT NULL AS retired, \
     EXISTS (SELECT FROM device_digests AS h WHERE h.device_no = d.device_no) AS hashed, \
     d.connection IS NOT NULL AS online, d.status, d.report, d.created_at, d.last_seen_at";

#[derive(QueryableByName)]
struct DeviceSql {
    #[diesel(sql_type = Integer)]
    tenant_no: i32,
    #[diesel(sql_type = Integer)]
    device_no: i32,
    #[diesel(sql_type = Text)]
    sub: String,
    #[diesel(sql_type = Text)]
    device_id: String,
    #[diesel(sql_type = Bool)]
    enabled: bool,
    #[diesel(sql_type = Bool)]
    retired: bool,
    #[diesel(sql_type = Bool)]
    hashed: bool,
    #[diesel(sql_type = Bool)]
    online: bool,
    #[diesel(sql_type = Nullable<Text>)]
    status: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    report: Option<String>,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
    #[diesel(sql_type = BigInt)]
    last_seen_at: i64,
}

impl DeviceSql {
    fn row(self) -> Result<DeviceRow, StoreError> {
        let ms = |stored: i64| u64::try_from(stored).map_err(|_| corrupt("time"));
        Ok(DeviceRow {
            device: device_of(self.device_no),
            key: device_key(&self.sub, &self.device_id),
            owner: self.sub.into(),
            device_id: DeviceId::new(&self.device_id).map_err(|_| corrupt("device_id"))?,
            enabled: self.enabled,
            retired: self.retired,
            hashed: self.hashed,
            online: self.online,
            status: self.status.map(Into::into),
            report: self.report.map(Into::into),
            created_ms: ms(self.created_at)?,
            last_seen_ms: ms(self.last_seen_at)?,
        })
    }
}

pub(super) async fn device_row(
    shared: &Shared,
    tenant: TenantNo,
    device: DeviceNo,
) -> Result<Option<DeviceRow>, StoreError> {
    let mut filter = of_tenant(tenant);
    filter.number("d.device_no =", i64::from(device_sql(device)));
    Ok(listed(shared, filter).await?.into_iter().next())
}

pub(super) async fn devices(
    shared: &Shared,
    tenant: TenantNo,
    query: &DeviceQuery,
) -> Result<Vec<DeviceRow>, StoreError> {
    let mut filter = of_tenant(tenant);
    filter.holds("d.retired_at IS NULL");
    if let Some(owner) = &query.owner {
        filter.text("d.sub =", owner);
    }
    if let Some(device_id) = &query.device_id {
        filter.text("d.device_id =", device_id.as_str());
    }
    if let Some(after) = query.after {
        filter.number("d.device_no >", i64::from(device_sql(after)));
    }
    filter.limit("ORDER BY d.device_no LIMIT", query.rows);
    listed(shared, filter).await
}

fn of_tenant(tenant: TenantNo) -> Filter {
    let mut filter = Filter::new(&format!("SELECT {COLUMNS} FROM devices AS d"));
    filter.number("d.tenant_no =", i64::from(tenant_sql(tenant)));
    filter
}

async fn listed(shared: &Shared, filter: Filter) -> Result<Vec<DeviceRow>, StoreError> {
    let lease = shared.reader().await?;
    let found = filter.query().load::<DeviceSql>(&mut lease.pg()).await;
    let found = give_back(lease, found.map_err(store_error)).await?;
    found.into_iter().map(DeviceSql::row).collect()
}

#[derive(QueryableByName)]
struct Tenant {
    #[diesel(sql_type = Text)]
    tenant: String,
}

pub(super) async fn device_by_digest(
    shared: &Shared,
    digest: [u8; 32],
) -> Result<Option<(TenantId, TenantNo, DeviceRow)>, StoreError> {
    let lease = shared.reader().await?;
    let statement = format!(
        "SELECT t.tenant, {COLUMNS} FROM device_digests AS g JOIN devices AS d ON d.device_no = g.device_no \
         JOIN tenants AS t ON t.tenant_no = d.tenant_no WHERE g.digest = $1"
    );
    let found = sql_query(statement)
        .bind::<Binary, _>(digest.to_vec())
        .get_result::<(Tenant, DeviceSql)>(&mut lease.pg())
        .await
        .optional();
    let Some((tenant, row)) = give_back(lease, found.map_err(store_error)).await? else { return Ok(None) };
    let tenant_no = tenant_of(row.tenant_no);
    let tenant = TenantId::new(&tenant.tenant).map_err(|_| corrupt("tenant"))?;
    Ok(Some((tenant, tenant_no, row.row()?)))
}

/// Changes the registry in one transaction with its answer.
pub(super) async fn change_device(
    shared: &Shared,
    tenant: TenantNo,
    change: &DeviceChange,
    once: Option<&DeviceOnce>,
) -> Result<DeviceChanged, StoreError> {
    let lease = shared.writer().await?;
    let changed = change_within(shared, &lease, tenant_sql(tenant), change, once).await;
    finish(lease, changed).await
}

async fn change_within(
    shared: &Shared,
    lease: &Lease,
    tenant_no: i32,
    change: &DeviceChange,
    once: Option<&DeviceOnce>,
) -> Result<DeviceChanged, StoreError> {
    let received_at = begin_locked(lease, tenant_no).await.map_err(store_error)?.7;
    let database_ms: i64 = DatabaseClock {}.get_result(&mut { lease.pg() }).await.map_err(store_error)?;
    let received_ms = u64::try_from(received_at).map_err(|_| corrupt("received_at"))?;
    let now_ms = shared.now(database_ms).max(received_ms);
    if let Some(once) = once {
        let kept = once::find(lease.pg(), tenant_no, &once.owner, &once.key).await?;
        match meet_change(kept.as_ref(), &once.fingerprint, now_ms)? {
            Met::Free => {}
            Met::Before(bytes) => return Ok(DeviceChanged::Replayed(bytes)),
            Met::Other => return Ok(DeviceChanged::Reused),
        }
    }
    let found = find(lease.pg(), tenant_no, change).await?;
    if let Some(answer) = refused(found.as_ref(), change) {
        return Ok(answer);
    }
    let digest = digest_of(change);
    if let Some(digest) = digest
        && is_taken(lease.pg(), &digest, found.as_ref()).await?
    {
        return Ok(DeviceChanged::HashTaken);
    }
    let device_no = put_device(lease.pg(), tenant_no, change, now_ms).await?;
    put_digest(lease.pg(), (tenant_no, device_no), change, now_ms).await?;
    let row = find(lease.pg(), tenant_no, change).await?.ok_or_else(|| corrupt("device"))?;
    if let Some(once) = once {
        let mut put = PutKeys::of(tenant_no);
        let expires_ms = now_ms.saturating_add(once.window_ms);
        let kept = Kept::of_change(once.fingerprint, expires_ms, &(once.answer)(&row));
        put.push((&once.owner, &once.key), kept);
        put.execute(&mut { lease.pg() }).await.map_err(store_error)?;
    }
    Ok(DeviceChanged::Done(Box::new(row)))
}

async fn find(
    mut pg: &AsyncPgConnection,
    tenant_no: i32,
    change: &DeviceChange,
) -> Result<Option<DeviceRow>, StoreError> {
    let found: Option<DeviceSql> = sql_query(format!(
        "SELECT {COLUMNS} FROM devices AS d WHERE d.tenant_no = $1 AND d.sub = $2 AND d.device_id = $3"
    ))
    .bind::<Integer, _>(tenant_no)
    .bind::<Text, _>(&*change.owner)
    .bind::<Text, _>(change.device_id.as_str())
    .get_result(&mut pg)
    .await
    .optional()
    .map_err(store_error)?;
    found.map(DeviceSql::row).transpose()
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = Integer)]
    device_no: i32,
}

/// Whether a digest leads to another device. Digests are those of all tenants, so whoever changes one waits for the
/// others who do: two that swap theirs would wait for each other.
async fn is_taken(
    pg: &AsyncPgConnection,
    digest: &[u8; 32],
    found: Option<&DeviceRow>,
) -> Result<bool, StoreError> {
    sql_query("SELECT pg_advisory_xact_lock(hashtext('driftline.device_digests'))")
        .execute(&mut { pg })
        .await
        .map_err(store_error)?;
    let holder: Option<Number> = sql_query("SELECT device_no FROM device_digests WHERE digest = $1")
        .bind::<Binary, _>(digest.to_vec())
        .get_result(&mut { pg })
        .await
        .optional()
        .map_err(store_error)?;
    Ok(holder.is_some_and(|holder| found.is_none_or(|row| row.device != device_of(holder.device_no))))
}

/// Writes a device as a change leaves it; gives its number. It may have been made meanwhile by its own first
/// request, which locks no head.
async fn put_device(
    mut pg: &AsyncPgConnection,
    tenant_no: i32,
    change: &DeviceChange,
    now_ms: u64,
) -> Result<i32, StoreError> {
    let put = sql_query(
        "INSERT INTO devices AS d (tenant_no, sub, device_id, created_at, last_seen_at, disabled_at, retired_at) \
         VALUES ($1, $2, $3, $4, $4, CASE WHEN NOT $5 THEN $4 END, CASE WHEN $6 THEN $4 END) \
         ON CONFLICT (tenant_no, sub, device_id) DO UPDATE SET retired_at = excluded.retired_at, \
         disabled_at = CASE WHEN $5 THEN NULL WHEN NOT $5 THEN coalesce(d.disabled_at, $4) ELSE d.disabled_at END \
         RETURNING device_no",
    );
    let number: Number = put
        .bind::<Integer, _>(tenant_no)
        .bind::<Text, _>(&*change.owner)
        .bind::<Text, _>(change.device_id.as_str())
        .bind::<BigInt, _>(sql(now_ms))
        .bind::<Nullable<Bool>, _>(change.enabled)
        .bind::<Bool, _>(change.action == DeviceAction::Retire)
        .get_result(&mut pg)
        .await
        .map_err(store_error)?;
    Ok(number.device_no)
}

/// Has the digest of a change lead to a device, and no other; a retired device has none.
async fn put_digest(
    pg: &AsyncPgConnection,
    (tenant_no, device_no): (i32, i32),
    change: &DeviceChange,
    now_ms: u64,
) -> Result<(), StoreError> {
    let digest = digest_of(change);
    if digest.is_some() || change.action == DeviceAction::Retire {
        sql_query("DELETE FROM device_digests WHERE device_no = $1")
            .bind::<Integer, _>(device_no)
            .execute(&mut { pg })
            .await
            .map_err(store_error)?;
    }
    let Some(digest) = digest else { return Ok(()) };
    sql_query("INSERT INTO device_digests (digest, tenant_no, device_no, set_at) VALUES ($1, $2, $3, $4)")
        .bind::<Binary, _>(digest.to_vec())
        .bind::<Integer, _>(tenant_no)
        .bind::<Integer, _>(device_no)
        .bind::<BigInt, _>(sql(now_ms))
        .execute(&mut { pg })
        .await
        .map(drop)
        .map_err(store_error)
}

statement! {
    /// Writes down signs of devices, one row for each. Every part counts unless a later one of its sort is known.
    NoteDevices {
        device_no: Vec<i32> => Array<Integer>, tenant_no: Vec<i32> => Array<Integer>, seen_at: Vec<i64> => Array<BigInt>,
        connection: Vec<Option<String>> => Array<Nullable<Text>>, connected_at: Vec<i64> => Array<BigInt>,
        status: Vec<Option<String>> => Array<Nullable<Text>>, report: Vec<Option<String>> => Array<Nullable<Text>>,
        reported_at: Vec<i64> => Array<BigInt>, status_at: Vec<i64> => Array<BigInt>,
        gone_device: Vec<i32> => Array<Integer>, gone: Vec<String> => Array<Text>,
    } =
    "WITH locked AS MATERIALIZED (SELECT device_no FROM devices WHERE device_no = ANY(" ? device_no: Array<Integer>
    ") ORDER BY device_no FOR NO KEY UPDATE), signs AS (SELECT w.* FROM unnest(" ? device_no: Array<Integer>
    ", " ? tenant_no: Array<Integer>
    ", " ? seen_at: Array<BigInt>
    ", " ? connection: Array<Nullable<Text>>
    ", " ? connected_at: Array<BigInt>
    ", " ? status: Array<Nullable<Text>>
    ", " ? report: Array<Nullable<Text>>
    ", " ? reported_at: Array<BigInt>
    ", " ? status_at: Array<BigInt>
    ") AS w(device_no, tenant_no, seen_at, connection, connected_at, status, report, reported_at, status_at) \
     JOIN locked AS l ON l.device_no = w.device_no) \
     UPDATE devices AS d SET last_seen_at = greatest(d.last_seen_at, s.seen_at), \
     connection = (SELECT c.open FROM (SELECT CASE WHEN s.connection IS NOT NULL AND s.connected_at >= d.connected_at \
     THEN s.connection ELSE d.connection END AS open) AS c \
     WHERE NOT EXISTS (SELECT FROM unnest(" ? gone_device: Array<Integer>
    ", " ? gone: Array<Text>
    ") AS g(device_no, connection) WHERE g.device_no = d.device_no AND g.connection = c.open)), \
     connected_at = CASE WHEN s.connection IS NULL THEN d.connected_at ELSE greatest(d.connected_at, s.connected_at) END, \
     status = CASE WHEN s.status IS NOT NULL AND s.status_at >= d.reported_at THEN s.status ELSE d.status END, \
     report = CASE WHEN s.report IS NOT NULL AND s.reported_at >= d.reported_at THEN s.report ELSE d.report END, \
     reported_at = CASE WHEN s.report IS NULL THEN d.reported_at ELSE greatest(d.reported_at, s.reported_at) END \
     FROM signs AS s WHERE d.device_no = s.device_no AND d.tenant_no + 0 = s.tenant_no"
}

/// What the signs of one device come to.
#[derive(Default)]
struct Signs {
    tenant_no: i32,
    seen_ms: u64,
    /// The connection that was opened last, and when.
    connected: Option<(Box<str>, u64)>,
    /// Connections that are gone. None of them comes again.
    gone: Vec<Box<str>>,
    /// The last word for how it is, and when it was said.
    status: Option<(Box<str>, u64)>,
    report: Option<Box<str>>,
    reported_ms: u64,
}

impl Signs {
    fn add(&mut self, at_ms: u64, sign: DeviceSign) {
        self.seen_ms = self.seen_ms.max(at_ms);
        match sign {
            DeviceSign::Heard => {}
            DeviceSign::Connected { connection } => {
                if self.connected.as_ref().is_none_or(|(_, before_ms)| at_ms >= *before_ms) {
                    self.connected = Some((connection, at_ms));
                }
            }
            DeviceSign::Disconnected { connection } => self.gone.push(connection),
            DeviceSign::Acknowledged { .. } | DeviceSign::Listened { .. } | DeviceSign::Slow { .. } => {}
            DeviceSign::Reported { status, report } => {
                if self.report.is_none() || at_ms >= self.reported_ms {
                    (self.report, self.reported_ms) = (Some(report), at_ms);
                    self.status = status.map(|status| (status, at_ms)).or(self.status.take());
                }
            }
        }
    }
}

/// Devices of which one statement writes signs at most.
const NOTED: usize = 1_000;

pub(super) async fn note_devices(shared: &Shared, notes: Vec<DeviceNote>) -> Result<(), StoreError> {
    let mut devices: BTreeMap<i32, Signs> = BTreeMap::new();
    let mut of_the_log = LogSigns::new();
    for DeviceNote { tenant, device, at_ms, sign } in notes {
        if is_of_the_log(&sign) {
            let signs = of_the_log.entry((device_sql(device), tenant_sql(tenant))).or_default();
            signs.push((at_ms, sign.clone()));
        }
        let signs = devices.entry(device_sql(device)).or_default();
        signs.tenant_no = tenant_sql(tenant);
        signs.add(at_ms, sign);
    }
    let mut devices = devices.into_iter();
    loop {
        let some: Vec<(i32, Signs)> = devices.by_ref().take(NOTED).collect();
        if some.is_empty() {
            return followers::note(shared, of_the_log).await;
        }
        let lease = shared.writer().await?;
        let noted = noted(some).execute(&mut lease.pg()).await;
        give_back(lease, noted.map_err(store_error)).await?;
    }
}

fn noted(devices: Vec<(i32, Signs)>) -> NoteDevices {
    let mut note = NoteDevices {
        device_no: vec![],
        tenant_no: vec![],
        seen_at: vec![],
        connection: vec![],
        connected_at: vec![],
        status: vec![],
        report: vec![],
        reported_at: vec![],
        status_at: vec![],
        gone_device: vec![],
        gone: vec![],
    };
    for (device_no, signs) in devices {
        let (connection, connected_ms) = signs.connected.unzip();
        let (status, status_ms) = signs.status.unzip();
        note.device_no.push(device_no);
        note.tenant_no.push(signs.tenant_no);
        note.seen_at.push(sql(signs.seen_ms));
        note.connection.push(connection.map(Into::into));
        note.connected_at.push(sql(connected_ms.unwrap_or_default()));
        note.status.push(status.map(Into::into));
        note.status_at.push(sql(status_ms.unwrap_or_default()));
        note.report.push(signs.report.map(Into::into));
        note.reported_at.push(sql(signs.reported_ms));
        for connection in signs.gone {
            note.gone_device.push(device_no);
            note.gone.push(connection.into());
        }
    }
    note
}
