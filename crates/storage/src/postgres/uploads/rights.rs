//! The rights to write. They stand in a table that no disk waits for: a crash of the database ends all of them.

use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Bool};
use diesel::{OptionalExtension, QueryResult};
use diesel_async::RunQueryDsl;
use driftline_engine::{LeaseKey, LeaseSlot, Leased, Renewed, StoreError};

use super::super::snapshot::give_back;
use super::super::sql::statement;
use super::super::{Shared, store_error};
use crate::rows::{count_of, id_sql, sql, sql_ms};
use crate::uploads::{GIVEN_BACK_MS, NOBODY};

statement! {
    /// Takes a right that nobody else has; gives whose it is then, until when, and whether it was taken from somebody.
    TakeRight {
        id: Vec<u8> => Binary, slot: i64 => BigInt, holder: i64 => BigInt, until: i64 => BigInt, now: i64 => BigInt,
        evict: bool => Bool,
    } =
    "INSERT INTO upload_leases AS l (upload, slot, holder, until, wanted, taken) VALUES (" ? id: Binary
    ", " ? slot: BigInt
    ", " ? holder: BigInt
    ", " ? until: BigInt
    ", false, false) ON CONFLICT (upload, slot) DO UPDATE SET \
     taken = CASE WHEN l.until <= " ? now: BigInt
    " THEN l.holder <> excluded.holder ELSE l.taken END, \
     holder = CASE WHEN l.until <= " ? now: BigInt
    " THEN excluded.holder ELSE l.holder END, \
     until = CASE WHEN l.until <= " ? now: BigInt
    " OR l.holder = excluded.holder THEN excluded.until ELSE l.until END, \
     wanted = l.until > " ? now: BigInt
    " AND (l.wanted OR (" ? evict: Bool
    " AND l.holder <> excluded.holder)) RETURNING holder, until, taken"
}

impl Query for TakeRight {
    type SqlType = (BigInt, BigInt, Bool);
}

statement! {
    /// Holds on to a right; gives whether somebody else waits for it.
    RenewRight {
        id: Vec<u8> => Binary, slot: i64 => BigInt, holder: i64 => BigInt, until: i64 => BigInt, now: i64 => BigInt,
    } =
    "UPDATE upload_leases SET until = " ? until: BigInt
    " WHERE upload = " ? id: Binary
    " AND slot = " ? slot: BigInt
    " AND holder = " ? holder: BigInt
    " AND until > " ? now: BigInt
    " RETURNING wanted"
}

impl Query for RenewRight {
    type SqlType = Bool;
}

statement! {
    /// Gives a right back. One that was taken over stays, ended and nobody's.
    GiveRightBack {
        id: Vec<u8> => Binary, slot: i64 => BigInt, holder: i64 => BigInt, nobody: i64 => BigInt, earlier: i64 => BigInt,
    } =
    "WITH back AS (DELETE FROM upload_leases WHERE upload = " ? id: Binary
    " AND slot = " ? slot: BigInt
    " AND holder = " ? holder: BigInt
    " AND NOT taken) UPDATE upload_leases SET holder = " ? nobody: BigInt
    ", until = until - " ? earlier: BigInt
    ", wanted = false WHERE upload = " ? id: Binary
    " AND slot = " ? slot: BigInt
    " AND holder = " ? holder: BigInt
    " AND taken"
}

statement! {
    /// Locks a right, if it is somebody's, so that nobody else is given it before the end of the transaction.
    LockRight { id: Vec<u8> => Binary, slot: i64 => BigInt, holder: i64 => BigInt } =
    "SELECT slot FROM upload_leases WHERE upload = " ? id: Binary
    " AND slot = " ? slot: BigInt
    " AND holder = " ? holder: BigInt
    " FOR SHARE"
}

impl Query for LockRight {
    type SqlType = BigInt;
}

impl LockRight {
    pub(super) fn new(key: LeaseKey, holder: u64) -> Self {
        Self { id: id_sql(key.id), slot: slot_sql(key.slot), holder: holder.cast_signed() }
    }
}

fn slot_sql(slot: LeaseSlot) -> i64 {
    match slot {
        LeaseSlot::Chunk(index) => sql(index),
        LeaseSlot::Stream => -1,
        LeaseSlot::Finalize => -2,
    }
}

pub(super) async fn lease(
    shared: &Shared,
    key: LeaseKey,
    holder: u64,
    (now_ms, until_ms): (u64, u64),
    evict: bool,
) -> Result<Leased, StoreError> {
    let take = TakeRight {
        id: id_sql(key.id),
        slot: slot_sql(key.slot),
        holder: holder.cast_signed(),
        until: sql_ms(until_ms),
        now: sql_ms(now_ms),
        evict,
    };
    let lease = shared.writer().await?;
    let taken = take.get_result::<(i64, i64, bool)>(&mut lease.pg()).await;
    let (of, until, taken) = give_back(lease, taken.map_err(store_error)).await?;
    Ok(match (of.cast_unsigned() == holder, taken) {
        (true, false) => Leased::Held,
        (true, true) => Leased::TakenOver,
        (false, _) => Leased::Busy { until_ms: count_of(until)? },
    })
}

pub(super) async fn renew(
    shared: &Shared,
    key: LeaseKey,
    holder: u64,
    (now_ms, until_ms): (u64, u64),
) -> Result<Renewed, StoreError> {
    let renew = RenewRight {
        id: id_sql(key.id),
        slot: slot_sql(key.slot),
        holder: holder.cast_signed(),
        until: sql_ms(until_ms),
        now: sql_ms(now_ms),
    };
    let lease = shared.writer().await?;
    let wanted = renew.get_result::<bool>(&mut lease.pg()).await.optional();
    Ok(match give_back(lease, wanted.map_err(store_error)).await? {
        None => Renewed::Lost,
        Some(true) => Renewed::Wanted,
        Some(false) => Renewed::Held,
    })
}

pub(super) async fn release(shared: &Shared, key: LeaseKey, holder: u64) -> Result<(), StoreError> {
    let back = GiveRightBack {
        id: id_sql(key.id),
        slot: slot_sql(key.slot),
        holder: holder.cast_signed(),
        nobody: NOBODY.cast_signed(),
        earlier: sql(GIVEN_BACK_MS),
    };
    let lease = shared.writer().await?;
    let given = back.execute(&mut lease.pg()).await;
    give_back(lease, given.map(drop).map_err(store_error)).await
}
