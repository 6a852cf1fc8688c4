//! How an upload is opened.

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::{StoreError, UploadCaps, UploadOnce, UploadOpened, UploadRow};
use driftline_uploads::UploadId;

use super::super::hot::{Rows, binds, insert, statement};
use super::super::writer::Writer;
use super::super::{once, store_error};
use super::{move_usage, reserve_more, standing, used};
use crate::names::tenant_sql;
use crate::rows::{UploadWrite, count_of, id_sql, sql};
use crate::uploads::{kept_of, met, refused, released, reserved};

impl Rows for UploadWrite {
    const HEAD: &'static str = "INSERT INTO uploads (id, tenant_no, owner, state, size, chunk_bytes, received, reserved, \
         opened_at, expires_at, changed_at, file_name, content_type, metadata, announced, digest, running, hashed, staged, \
         record_kind, record_id, joining, fault) VALUES ";
    const TAIL: &'static str = "";

    fn bind<'b>(&'b self, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        binds!(self, out, Binary => id, Integer => tenant_no, Text => owner, Text => state, Nullable<BigInt> => size,
            Nullable<BigInt> => chunk_bytes, BigInt => received, BigInt => reserved, BigInt => opened_at,
            BigInt => expires_at, BigInt => changed_at, Text => file_name, Text => content_type,
            Nullable<Binary> => metadata, Nullable<Binary> => announced, Nullable<Binary> => digest,
            Nullable<Binary> => running, BigInt => hashed, Nullable<Text> => staged, Nullable<Text> => record_kind,
            Nullable<Text> => record_id, Text => joining, Nullable<Binary> => fault)
    }
}

statement! {
    /// How many uploads of a user are open or being finalized.
    CountLive { tenant_no: i32 => Integer, owner: String => Text } =
    "SELECT count(*) FROM uploads WHERE tenant_no = " ? tenant_no: Integer
    " AND owner = " ? owner: Text
    " AND state IN ('open', 'finalizing')"
}

impl Query for CountLive {
    type SqlType = BigInt;
}

statement! {
    /// Takes down what an upload reserves.
    Reserve { reserved: i64 => BigInt, id: Vec<u8> => Binary } =
    "UPDATE uploads SET reserved = " ? reserved: BigInt
    " WHERE id = " ? id: Binary
}

pub(super) fn open_upload(
    writer: &mut Writer,
    row: &UploadRow,
    caps: UploadCaps,
    once: Option<&UploadOnce>,
) -> Result<UploadOpened, StoreError> {
    let now_ms = writer.clock.now_ms();
    let connection = &mut writer.connection;
    if let Some(once) = once {
        let kept = once::kept(connection, row.tenant, (&once.owner, &once.key)).map_err(store_error)??;
        if let Some(answer) = met(kept.as_ref(), once, now_ms)? {
            return Ok(answer);
        }
    }
    let (tenant_no, owner) = (tenant_sql(row.tenant), row.owner.to_string());
    let open: i64 = CountLive { tenant_no, owner }.get_result(connection).map_err(store_error)?;
    if let Some(answer) = refused(row, caps, count_of(open)?, used(connection, tenant_no)?) {
        return Ok(answer);
    }
    insert(connection, &[UploadWrite::new(row)]).map_err(store_error)?;
    move_usage(connection, tenant_no, (0, row.reserved))?;
    if let Some(once) = once {
        let kept = kept_of(once, row.id, now_ms);
        once::keep(connection, row.tenant, (&once.owner, &once.key), kept)?;
    }
    Ok(UploadOpened::Opened)
}

pub(super) fn reserve(
    connection: &mut SqliteConnection,
    id: UploadId,
    (bytes, quota_bytes): (u64, u64),
) -> Result<bool, StoreError> {
    let Some((tenant_no, standing)) = standing(connection, id)? else { return Ok(false) };
    let Some(reserved) = reserved(Some(&standing), bytes) else { return Ok(false) };
    if !reserve_more(connection, tenant_no, (standing.reserved, reserved), quota_bytes)? {
        return Ok(false);
    }
    let reserve = Reserve { reserved: sql(reserved), id: id_sql(id) };
    reserve.execute(connection).map_err(store_error)?;
    Ok(true)
}

pub(super) fn release(connection: &mut SqliteConnection, id: UploadId) -> Result<(), StoreError> {
    let Some((tenant_no, standing)) = standing(connection, id)? else { return Ok(()) };
    let Some(reserved) = released(Some(&standing)) else { return Ok(()) };
    let reserve = Reserve { reserved: sql(reserved), id: id_sql(id) };
    reserve.execute(connection).map_err(store_error)?;
    move_usage(connection, tenant_no, (standing.reserved, reserved))
}
