//! The statements of the hot path.
//!
//! Each is a query of its own with a static identity, so that diesel prepares it once per connection. Writes go
//! in chunks of 100, 10 and 1 rows, which makes three statements per table.

use diesel::QueryResult;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::query_dsl::RunQueryDsl;
use diesel::result::Error;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};

use crate::rows::{AuditInsert, HeadSql, KnownSql, RecordSql, RecordWrite, ResultRow};

/// The rows of one table that go into one statement.
pub(super) trait Rows: Sized {
    /// Everything before the rows.
    const HEAD: &'static str;
    /// Everything after the rows.
    const TAIL: &'static str;
    /// Binds one row.
    fn bind<'b>(&'b self, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()>;
}

/// A statement that writes `N` rows.
struct Insert<'a, R, const N: usize>(&'a [R]);

impl<R: Rows, const N: usize> QueryFragment<Sqlite> for Insert<'_, R, N> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql(R::HEAD);
        for (at, row) in self.0.iter().enumerate() {
            out.push_sql(if at == 0 { "(" } else { ",(" });
            row.bind(&mut out)?;
            out.push_sql(")");
        }
        out.push_sql(R::TAIL);
        Ok(())
    }
}

impl<R: QueryId, const N: usize> QueryId for Insert<'_, R, N> {
    type QueryId = Insert<'static, R::QueryId, N>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<R, const N: usize> RunQueryDsl<SqliteConnection> for Insert<'_, R, N> {}

/// Writes rows in chunks of 100, 10 and 1.
pub(super) fn insert<R: Rows + QueryId>(connection: &mut SqliteConnection, rows: &[R]) -> QueryResult<()>
where
    R::QueryId: 'static,
{
    let mut rest = rows;
    while !rest.is_empty() {
        let len = match rest.len() {
            100.. => 100,
            10.. => 10,
            _ => 1,
        };
        let (chunk, after) = rest.split_at(len);
        match len {
            100 => Insert::<R, 100>(chunk).execute(connection)?,
            10 => Insert::<R, 10>(chunk).execute(connection)?,
            _ => Insert::<R, 1>(chunk).execute(connection)?,
        };
        rest = after;
    }
    Ok(())
}

/// Binds the columns of a row.
macro_rules! binds {
    ($self:ident, $out:ident, $($sql:ty => $field:ident),+ $(,)?) => {{
        let mut first = true;
        $(
            if !std::mem::take(&mut first) {
                $out.push_sql(",");
            }
            $out.push_bind_param::<$sql, _>(&$self.$field)?;
        )+
        Ok(())
    }};
}

impl QueryId for RecordWrite<'_> {
    type QueryId = RecordWrite<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl Rows for RecordWrite<'_> {
    const HEAD: &'static str = "INSERT INTO records (tenant_no, kind_no, id, seq, scope_no, owner, fields, default_mark, \
         marks, del, live, schema_version, states, entered, changed_at) VALUES ";
    const TAIL: &'static str = " ON CONFLICT (tenant_no, kind_no, id) DO UPDATE SET seq = excluded.seq, \
         scope_no = excluded.scope_no, fields = excluded.fields, default_mark = excluded.default_mark, \
         marks = excluded.marks, del = excluded.del, live = excluded.live, schema_version = excluded.schema_version, \
         states = excluded.states, entered = excluded.entered, changed_at = excluded.changed_at";

    fn bind<'b>(&'b self, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        binds!(self, out, Integer => tenant_no, Integer => kind_no, Text => id, BigInt => seq, Integer => scope_no,
            Text => owner, Text => fields, Binary => default_mark, Nullable<Binary> => marks, Nullable<Binary> => del,
            Nullable<Binary> => live, Integer => schema_version, Nullable<Binary> => states, BigInt => entered,
            BigInt => changed_at)
    }
}

impl Rows for ResultRow {
    const HEAD: &'static str =
        "INSERT INTO op_results (device_no, n, tenant_no, op_id, hash, code, seq, more, at) VALUES ";
    const TAIL: &'static str = "";

    fn bind<'b>(&'b self, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        binds!(self, out, Integer => device_no, BigInt => n, Integer => tenant_no, Nullable<Binary> => op_id,
            BigInt => hash, Integer => code, BigInt => seq, Nullable<Text> => more, BigInt => at)
    }
}

impl Rows for AuditInsert {
    const HEAD: &'static str = "INSERT INTO audit (tenant_no, at, kind_no, id, seq, device_no, sub, op_id, n, code, \
         strategy, policy_version, correlation_id, detail) VALUES ";
    const TAIL: &'static str = "";

    fn bind<'b>(&'b self, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        binds!(self, out, Integer => tenant_no, BigInt => at, Integer => kind_no, Text => id, BigInt => seq,
            Integer => device_no, Text => sub, Nullable<Binary> => op_id, BigInt => n, Integer => code,
            Text => strategy, BigInt => policy_version, Text => correlation_id, Text => detail)
    }
}

/// Declares a statement with named parts: SQL pieces and the values bound between them.
macro_rules! statement {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $rust:ty => $sql:ty),* $(,)? } = $($piece:tt)+) => {
        $(#[$doc])*
        #[derive(QueryId)]
        pub(super) struct $name {
            $(pub(super) $field: $rust,)*
        }

        impl QueryFragment<Sqlite> for $name {
            fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
                statement!(@pieces self out { $($field => $sql),* } $($piece)+);
                Ok(())
            }
        }

        impl RunQueryDsl<SqliteConnection> for $name {}
    };
    (@pieces $self:ident $out:ident { $($field:ident => $sql:ty),* } $($piece:literal $(? $bind:ident : $bsql:ty)?)+) => {
        $(
            $out.push_sql($piece);
            $($out.push_bind_param::<$bsql, _>(&$self.$bind)?;)?
        )+
    };
}

pub(super) use {binds, statement};

statement! {
    /// The records of one kind whose ids stand in a JSON array.
    LoadRecords { ids: String => Text, tenant_no: i32 => Integer, kind_no: i32 => Integer } =
    "SELECT r.kind_no, r.id, r.seq, r.scope_no, r.owner, r.fields, r.default_mark, r.marks, r.del, r.live, \
     r.schema_version, r.states, r.entered FROM json_each(" ? ids: Text
    ") AS j CROSS JOIN records AS r ON r.tenant_no = " ? tenant_no: Integer
    " AND r.kind_no = " ? kind_no: Integer
    " AND r.id = j.value"
}

impl Query for LoadRecords {
    type SqlType = RecordSql;
}

statement! {
    /// Remembered answers by number; the numbers stand in a JSON array.
    KnownByNumber { numbers: String => Text, device_no: i32 => Integer } =
    "SELECT o.n, o.op_id, o.hash, o.code, o.seq, o.more FROM json_each(" ? numbers: Text
    ") AS j CROSS JOIN op_results AS o ON o.device_no = " ? device_no: Integer
    " AND o.n = j.value"
}

impl Query for KnownByNumber {
    type SqlType = KnownSql;
}

statement! {
    /// Remembered answers by name; the names stand as hexadecimal digits in a JSON array.
    KnownByName { names: String => Text, device_no: i32 => Integer } =
    "SELECT o.n, o.op_id, o.hash, o.code, o.seq, o.more FROM json_each(" ? names: Text
    ") AS j CROSS JOIN op_results AS o ON o.device_no = " ? device_no: Integer
    " AND o.op_id = unhex(j.value)"
}

impl Query for KnownByName {
    type SqlType = KnownSql;
}

statement! {
    /// Forgets the answers that a device has heard.
    ForgetAnswers { device_no: i32 => Integer, acked_n: i64 => BigInt } =
    "DELETE FROM op_results WHERE device_no = " ? device_no: Integer
    " AND n <= " ? acked_n: BigInt
}

statement! {
    /// Moves a device.
    MoveDevice { last_n: i64 => BigInt, acked_n: i64 => BigInt, at: i64 => BigInt, device_no: i32 => Integer } =
    "UPDATE devices SET last_n = " ? last_n: BigInt
    ", acked_n = " ? acked_n: BigInt
    ", last_seen_at = max(last_seen_at, " ? at: BigInt
    ") WHERE device_no = " ? device_no: Integer
}

statement! {
    /// Moves a head.
    MoveHead { seq: i64 => BigInt, hlc: i64 => BigInt, event_id: i64 => BigInt, tenant_no: i32 => Integer } =
    "UPDATE stream_head SET seq = " ? seq: BigInt
    ", hlc = " ? hlc: BigInt
    ", event_id = " ? event_id: BigInt
    " WHERE tenant_no = " ? tenant_no: Integer
}

statement! {
    /// A tenant's head.
    LoadHead { tenant_no: i32 => Integer } =
    "SELECT epoch, seq, hlc, scopes_version, gc_floor, epoch_seq, event_id FROM stream_head WHERE tenant_no = " ? tenant_no: Integer
}

impl Query for LoadHead {
    type SqlType = HeadSql;
}

/// Tells whether a failure is a doubled key, which only an answer that was remembered before can cause.
pub(super) fn is_unique_violation(error: &Error) -> bool {
    matches!(error, Error::DatabaseError(diesel::result::DatabaseErrorKind::UniqueViolation, _))
}
