//! Records between SQL and the engine.

mod audit;
mod conflict;
mod device;
mod events;
mod samples;
mod upload;

use diesel::query_builder::QueryId;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use driftline_conflict::Record;
use driftline_engine::{Head, Known, ResultWrite, Row, StoreError};
use driftline_model::{Epoch, Hlc, Object, RecordId, Seq, TenantNo};

use crate::codec::{
    corrupt, decode_code, decode_del, decode_mark, decode_marks, decode_more, decode_op, decode_states,
    encode_code, encode_del, encode_marks, encode_more, encode_op, encode_states, mark_bytes,
};
use crate::names::{Names, device_sql, tenant_sql};

pub(crate) use audit::{AuditInsert, AuditSql};
pub(crate) use conflict::{ConflictColumns, ConflictSql, ConflictWrite};
pub(crate) use device::DeviceSql;
pub(crate) use events::{EventColumns, EventInsert, EventRow, event_of, topics_of, topics_sql};
pub(crate) use samples::{SampleInsert, SeriesInsert, point_of, sample_mark_of};
pub(crate) use upload::{
    ChunkColumns, ChunkRow, StandingColumns, StandingRow, UPLOAD_SELECT, UploadColumns, UploadSql,
    UploadWrite, chunk_of, count_of, digest_of, digest_sql, id_of, id_sql, running_sql, standing_of,
    state_of,
};

/// The columns of a record as a query gives them.
pub(crate) type RecordSql = (
    Integer,
    Text,
    BigInt,
    Integer,
    Text,
    Text,
    Binary,
    Nullable<Binary>,
    Nullable<Binary>,
    Nullable<Binary>,
    Integer,
    Nullable<Binary>,
    BigInt,
);

/// A record as a query gives it.
pub(crate) type RecordRow = (
    i32,
    String,
    i64,
    i32,
    String,
    String,
    Vec<u8>,
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    i32,
    Option<Vec<u8>>,
    i64,
);

/// The columns of a remembered answer.
pub(crate) type KnownSql = (BigInt, Nullable<Binary>, BigInt, Integer, BigInt, Nullable<Text>);

/// A remembered answer as a query gives it.
pub(crate) type KnownRow = (i64, Option<Vec<u8>>, i64, i32, i64, Option<String>);

/// The columns of a head.
pub(crate) type HeadSql = (Text, BigInt, BigInt, BigInt, BigInt, BigInt, BigInt);

/// A head as a query gives it.
pub(crate) type HeadRow = (String, i64, i64, i64, i64, i64, i64);

/// A row of `records` to be written.
pub(crate) struct RecordWrite<'a> {
    pub(crate) tenant_no: i32,
    pub(crate) kind_no: i32,
    pub(crate) id: &'a str,
    pub(crate) seq: i64,
    pub(crate) scope_no: i32,
    pub(crate) owner: &'a str,
    pub(crate) fields: &'a str,
    pub(crate) default_mark: Vec<u8>,
    pub(crate) marks: Option<Vec<u8>>,
    pub(crate) del: Option<Vec<u8>>,
    pub(crate) live: Option<Vec<u8>>,
    pub(crate) schema_version: i32,
    pub(crate) states: Option<Vec<u8>>,
    pub(crate) entered: i64,
    /// When the change was received; tombstones age by it, never by a device's clock.
    pub(crate) changed_at: i64,
}

/// A row of `op_results` to be written.
#[derive(QueryId)]
pub(crate) struct ResultRow {
    pub(crate) device_no: i32,
    pub(crate) n: i64,
    pub(crate) tenant_no: i32,
    pub(crate) op_id: Option<Vec<u8>>,
    pub(crate) hash: i64,
    pub(crate) code: i32,
    pub(crate) seq: i64,
    pub(crate) more: Option<String>,
    pub(crate) at: i64,
}

/// What is added to a row of `scope_sums`.
#[derive(QueryId)]
pub(crate) struct SumAdd {
    pub(crate) tenant_no: i32,
    pub(crate) scope_no: i32,
    pub(crate) kind_no: i32,
    pub(crate) count: i64,
    pub(crate) sum: i64,
}

pub(crate) fn seq_of(number: i64) -> Result<Seq, StoreError> {
    u64::try_from(number).map(Seq::new).map_err(|_| corrupt("seq"))
}

pub(crate) fn sql(number: u64) -> i64 {
    i64::try_from(number).expect("numbers from the wire and the sequence stay below 2^53")
}

/// A time, which may be any: the last one that SQL knows stands for all later ones.
pub(crate) fn sql_ms(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

pub(crate) fn head_of(row: HeadRow) -> Result<Head, StoreError> {
    let (epoch, seq, hlc, scopes_version, gc_floor, epoch_seq, event_id) = row;
    Ok(Head {
        epoch: epoch.parse::<Epoch>().map_err(|_| corrupt("epoch"))?,
        seq: seq_of(seq)?,
        hlc: Hlc::from_bits(u64::try_from(hlc).map_err(|_| corrupt("hlc"))?),
        scopes_version: u64::try_from(scopes_version).map_err(|_| corrupt("scopes_version"))?,
        gc_floor: seq_of(gc_floor)?,
        epoch_seq: seq_of(epoch_seq)?,
        event_id: u64::try_from(event_id).map_err(|_| corrupt("event_id"))?,
    })
}

pub(crate) fn row_of(names: &Names, row: RecordRow) -> Result<Row, StoreError> {
    let (
        kind_no,
        id,
        seq,
        scope_no,
        owner,
        fields,
        default_mark,
        marks,
        del,
        live,
        schema_version,
        states,
        entered,
    ) = row;
    let (life, states) = decode_states(states.as_deref())?;
    let default_mark = decode_mark(&default_mark)?;
    let (del, deleted) = decode_del(del.as_deref())?;
    let live = live.as_deref().map_or(Ok(default_mark), decode_mark)?;
    Ok(Row {
        kind: names.kind_name(kind_no)?,
        id: RecordId::new(&id).map_err(|_| corrupt("id"))?,
        scope: names.scope_name(scope_no)?,
        entered: seq_of(entered)?,
        owner: owner.into(),
        schema_version: u32::try_from(schema_version).map_err(|_| corrupt("schema_version"))?,
        deleted,
        record: Record {
            version: seq_of(seq)?,
            fields: Object::from_canonical(fields).map_err(|_| corrupt("fields"))?,
            default_mark,
            marks: decode_marks(marks.as_deref())?,
            del,
            live,
            life,
            states,
        },
    })
}

pub(crate) fn write_of(
    tenant: TenantNo,
    (kind_no, scope_no): (i32, i32),
    row: &Row,
    now: i64,
) -> RecordWrite<'_> {
    let record = &row.record;
    RecordWrite {
        tenant_no: tenant_sql(tenant),
        kind_no,
        id: row.id.as_str(),
        seq: sql(record.version.number()),
        scope_no,
        owner: &row.owner,
        fields: record.fields.as_str(),
        default_mark: mark_bytes(&record.default_mark),
        marks: encode_marks(&record.marks),
        del: encode_del(record.del.as_ref(), row.deleted),
        live: (record.live != record.default_mark).then(|| mark_bytes(&record.live)),
        schema_version: i32::try_from(row.schema_version).unwrap_or(i32::MAX),
        states: encode_states(&record.life, &record.states),
        entered: sql(row.entered.number()),
        changed_at: now,
    }
}

pub(crate) fn known_of(row: KnownRow) -> Result<Known, StoreError> {
    let (n, op_id, hash, code, version, more) = row;
    Ok(Known {
        op_id: op_id.as_deref().map(decode_op).transpose()?,
        n: u64::try_from(n).map_err(|_| corrupt("n"))?,
        hash: hash.cast_unsigned(),
        code: decode_code(code)?,
        version: seq_of(version)?,
        more: more.as_deref().map(decode_more).transpose()?.map(Box::new),
    })
}

impl ResultRow {
    pub(crate) fn new(result: &ResultWrite, now: i64) -> Self {
        let known = &result.known;
        Self {
            device_no: device_sql(result.device),
            n: sql(known.n),
            tenant_no: tenant_sql(result.tenant),
            op_id: known.op_id.as_ref().map(encode_op),
            hash: known.hash.cast_signed(),
            code: encode_code(known.code),
            seq: sql(known.version.number()),
            more: known.more.as_deref().map(encode_more),
            at: now,
        }
    }
}
