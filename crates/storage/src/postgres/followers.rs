//! How far devices have followed the log, and which notifications users have read.
//!
//! Signs of devices are written without their tenants' heads. Whoever writes some locks the devices first, in the order
//! of their numbers, as everybody does.

use std::collections::{BTreeMap, HashMap, HashSet};

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Binary, Integer, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use driftline_engine::{DeviceEvents, DeviceSign, StoreError};
use driftline_model::{DeviceNo, TenantNo};
use tokio::join;

use super::snapshot::give_back;
use super::sql::{Commit, statement};
use super::{Shared, store_error};
use crate::codec::corrupt;
use crate::log::Following;
use crate::names::{device_sql, tenant_sql};
use crate::rows::{sql_ms, topics_of, topics_sql};

statement! {
    /// Locks devices, in the order of their numbers.
    LockDevices { devices: Vec<i32> => Array<Integer> } =
    "SELECT device_no, tenant_no FROM devices WHERE device_no = ANY(" ? devices: Array<Integer>
    ") ORDER BY device_no FOR NO KEY UPDATE"
}

impl Query for LockDevices {
    type SqlType = (Integer, Integer);
}

statement! {
    /// How far devices have followed the log.
    LoadFollowing { tenants: Vec<i32> => Array<Integer>, devices: Vec<i32> => Array<Integer> } =
    "SELECT f.device_no, f.epoch, f.acked, f.since, f.topics, f.refused, f.slow, f.listened_at FROM unnest("
    ? tenants: Array<Integer>
    ", " ? devices: Array<Integer>
    ") AS w(tenant_no, device_no) CROSS JOIN LATERAL (SELECT * FROM event_devices WHERE tenant_no = w.tenant_no \
     AND device_no >= w.device_no AND device_no <= w.device_no ORDER BY device_no LIMIT 1) AS f"
}

impl Query for LoadFollowing {
    type SqlType = (Integer, Text, BigInt, Nullable<BigInt>, Text, Text, Nullable<BigInt>, BigInt);
}

type FollowingRow = (i32, String, i64, Option<i64>, String, String, Option<i64>, i64);

statement! {
    /// Writes how far devices have followed the log.
    PutFollowing {
        tenant_no: Vec<i32> => Array<Integer>, device_no: Vec<i32> => Array<Integer>,
        epoch: Vec<String> => Array<Text>, acked: Vec<i64> => Array<BigInt>,
        since: Vec<Option<i64>> => Array<Nullable<BigInt>>, topics: Vec<String> => Array<Text>,
        refused: Vec<String> => Array<Text>, slow: Vec<Option<i64>> => Array<Nullable<BigInt>>,
        listened_at: Vec<i64> => Array<BigInt>,
    } =
    "INSERT INTO event_devices (tenant_no, device_no, epoch, acked, since, topics, refused, slow, listened_at) \
     SELECT * FROM unnest(" ? tenant_no: Array<Integer>
    ", " ? device_no: Array<Integer>
    ", " ? epoch: Array<Text>
    ", " ? acked: Array<BigInt>
    ", " ? since: Array<Nullable<BigInt>>
    ", " ? topics: Array<Text>
    ", " ? refused: Array<Text>
    ", " ? slow: Array<Nullable<BigInt>>
    ", " ? listened_at: Array<BigInt>
    ") ON CONFLICT (tenant_no, device_no) DO UPDATE SET epoch = excluded.epoch, acked = excluded.acked, \
     since = excluded.since, topics = excluded.topics, refused = excluded.refused, slow = excluded.slow, \
     listened_at = excluded.listened_at"
}

statement! {
    /// Takes down that a user has read a notification.
    ReadNotice<'a> { tenant_no: i32 => Integer, sub: &'a [u8] => Binary, notice_id: &'a [u8] => Binary, at: i64 => BigInt } =
    "INSERT INTO notice_reads (tenant_no, sub, notice_id, at) VALUES (" ? tenant_no: Integer
    ", " ? sub: Binary
    ", " ? notice_id: Binary
    ", " ? at: BigInt
    ") ON CONFLICT DO NOTHING"
}

statement! {
    /// Of notifications those that a user has read.
    LoadRead<'a> { ids: Vec<&'a [u8]> => Array<Binary>, tenant_no: i32 => Integer, sub: &'a [u8] => Binary } =
    "SELECT r.notice_id FROM unnest(" ? ids: Array<Binary>
    ") AS w(notice_id) CROSS JOIN LATERAL (SELECT notice_id FROM notice_reads WHERE tenant_no = " ? tenant_no: Integer
    " AND sub = " ? sub: Binary
    " AND notice_id >= w.notice_id AND notice_id <= w.notice_id ORDER BY notice_id LIMIT 1) AS r"
}

impl Query for LoadRead<'_> {
    type SqlType = Binary;
}

/// Signs that are about the log with their times, by the numbers of the device and of its tenant.
pub(super) type LogSigns = BTreeMap<(i32, i32), Vec<(u64, DeviceSign)>>;

/// Devices of which one transaction writes signs at most.
const NOTED: usize = 1_000;

/// Writes down signs that are about the log. An older sign than what is known changes nothing.
pub(super) async fn note(shared: &Shared, signs: LogSigns) -> Result<(), StoreError> {
    let mut signs = signs.into_iter();
    loop {
        let some: LogSigns = signs.by_ref().take(NOTED).collect();
        if some.is_empty() {
            return Ok(());
        }
        let lease = shared.writer().await?;
        let noted = note_some(lease.pg(), &some).await;
        give_back(lease, noted).await?;
    }
}

async fn note_some(pg: &AsyncPgConnection, signs: &LogSigns) -> Result<(), StoreError> {
    let (devices, tenants): (Vec<i32>, Vec<i32>) = signs.keys().copied().unzip();
    let mut first = pg;
    let (begun, locked, known) = join!(
        biased;
        first.batch_execute("BEGIN"),
        LockDevices { devices: devices.clone() }.load::<(i32, i32)>(&mut { pg }),
        LoadFollowing { tenants, devices }.load::<FollowingRow>(&mut { pg }),
    );
    begun.map_err(store_error)?;
    let locked: HashSet<(i32, i32)> = locked.map_err(store_error)?.into_iter().collect();
    let mut known: HashMap<i32, Following> =
        known.map_err(store_error)?.into_iter().map(following).collect::<Result<_, _>>()?;
    let mut put = PutFollowing::empty();
    // Of a device of another tenant, or of none, nothing is written down.
    for (device, signs) in signs.iter().filter(|(device, _)| locked.contains(device)) {
        let mut following = known.remove(&device.0).unwrap_or_default();
        let noted = signs.iter().map(|(at_ms, sign)| following.note(*at_ms, sign));
        if noted.fold(false, |any, news| any | news) {
            put.push(*device, &following);
        }
    }
    let (put, ended) = join!(biased; put.execute(&mut { pg }), Commit {}.execute(&mut { pg }));
    put.map_err(store_error)?;
    ended.map(drop).map_err(store_error)
}

fn following(row: FollowingRow) -> Result<(i32, Following), StoreError> {
    let (device_no, epoch, acked, since, topics, refused, slow, listened_at) = row;
    let number = |number: i64| u64::try_from(number).map_err(|_| corrupt("event_devices"));
    let events = DeviceEvents {
        epoch: Some(epoch.parse().map_err(|_| corrupt("epoch"))?),
        acked: number(acked)?,
        since: since.map(number).transpose()?,
        topics: topics_of(&topics),
        refused: topics_of(&refused),
        slow: slow.map(number).transpose()?,
    };
    Ok((device_no, Following { events, listened_ms: number(listened_at)? }))
}

impl PutFollowing {
    const fn empty() -> Self {
        Self {
            tenant_no: Vec::new(),
            device_no: Vec::new(),
            epoch: Vec::new(),
            acked: Vec::new(),
            since: Vec::new(),
            topics: Vec::new(),
            refused: Vec::new(),
            slow: Vec::new(),
            listened_at: Vec::new(),
        }
    }

    fn push(&mut self, (device_no, tenant_no): (i32, i32), following: &Following) {
        let Following { events, listened_ms } = following;
        let Some(epoch) = events.epoch else { return };
        self.tenant_no.push(tenant_no);
        self.device_no.push(device_no);
        self.epoch.push(epoch.to_string());
        self.acked.push(sql_ms(events.acked));
        self.since.push(events.since.map(sql_ms));
        self.topics.push(topics_sql(&events.topics));
        self.refused.push(topics_sql(&events.refused));
        self.slow.push(events.slow.map(sql_ms));
        self.listened_at.push(sql_ms(*listened_ms));
    }
}

pub(super) async fn device_events(
    shared: &Shared,
    tenant: TenantNo,
    device: DeviceNo,
) -> Result<Option<DeviceEvents>, StoreError> {
    let lease = shared.reader().await?;
    let load = LoadFollowing { tenants: vec![tenant_sql(tenant)], devices: vec![device_sql(device)] };
    let rows: QueryResult<Vec<FollowingRow>> = load.load(&mut lease.pg()).await;
    let rows = give_back(lease, rows.map_err(store_error)).await?;
    let Some(row) = rows.into_iter().next() else { return Ok(None) };
    Ok(Some(following(row)?.1.events))
}

pub(super) async fn read_notice(
    shared: &Shared,
    tenant: TenantNo,
    (user, id): (&str, &str),
    now_ms: u64,
) -> Result<bool, StoreError> {
    let lease = shared.writer().await?;
    let (sub, notice_id) = (user.as_bytes(), id.as_bytes());
    let read = ReadNotice { tenant_no: tenant_sql(tenant), sub, notice_id, at: sql_ms(now_ms) };
    let news = read.execute(&mut lease.pg()).await;
    Ok(give_back(lease, news.map_err(store_error)).await? > 0)
}

pub(super) async fn notices_read(
    shared: &Shared,
    tenant: TenantNo,
    user: &str,
    ids: &[Box<str>],
) -> Result<Vec<bool>, StoreError> {
    let lease = shared.reader().await?;
    let names = ids.iter().map(|id| id.as_bytes()).collect();
    let query = LoadRead { ids: names, tenant_no: tenant_sql(tenant), sub: user.as_bytes() };
    let read: QueryResult<Vec<Vec<u8>>> = query.load(&mut lease.pg()).await;
    let read: HashSet<Vec<u8>> = give_back(lease, read.map_err(store_error)).await?.into_iter().collect();
    Ok(ids.iter().map(|id| read.contains(id.as_bytes())).collect())
}
