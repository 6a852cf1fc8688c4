//! Records between SQL and the engine.

use driftline_conflict::Record;
use driftline_engine::{Head, Row, StoreError};
use driftline_model::{Epoch, Hlc, Object, RecordId, Seq, TenantNo};

use super::codec::{corrupt, decode_del, decode_mark, decode_marks, encode_del, encode_marks, mark_bytes};
use super::hot::{HeadRow, RecordRow, RecordWrite};
use super::names::{Names, tenant_sql};
use super::states::{decode_states, encode_states};

pub(super) fn seq_of(number: i64) -> Result<Seq, StoreError> {
    u64::try_from(number).map(Seq::new).map_err(|_| corrupt("seq"))
}

pub(super) fn sql(number: u64) -> i64 {
    i64::try_from(number).expect("numbers from the wire and the sequence stay below 2^53")
}

pub(super) fn head_of(row: HeadRow) -> Result<Head, StoreError> {
    let (epoch, seq, hlc, scopes_version, gc_floor, epoch_seq) = row;
    Ok(Head {
        epoch: epoch.parse::<Epoch>().map_err(|_| corrupt("epoch"))?,
        seq: seq_of(seq)?,
        hlc: Hlc::from_bits(u64::try_from(hlc).map_err(|_| corrupt("hlc"))?),
        scopes_version: u64::try_from(scopes_version).map_err(|_| corrupt("scopes_version"))?,
        gc_floor: seq_of(gc_floor)?,
        epoch_seq: seq_of(epoch_seq)?,
    })
}

pub(super) fn row_of(names: &Names, row: RecordRow) -> Result<Row, StoreError> {
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

pub(super) fn write_of(
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
