//! The sums of live rows, by scope and kind.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::{Head, PartSum, ScopeSum, StoreError, SumQuery};
use driftline_model::{RecordId, TenantNo};
use driftline_protocol::row_sum;

use super::hot::{Rows, binds, insert, statement};
use super::queries::{head, snapshot};
use super::store_error;
use crate::codec::{corrupt, decode_del};
use crate::names::{Names, tenant_sql};
use crate::paging::sort_sums;
use crate::parts::Parts;
use crate::rows::{SumAdd, seq_of};

impl Rows for SumAdd {
    const HEAD: &'static str = "INSERT INTO scope_sums (tenant_no, scope_no, kind_no, count, sum) VALUES ";
    // SQLite's sums of integers do not wrap, so the halves are added: the lower ones carry into the upper ones.
    const TAIL: &'static str = " ON CONFLICT (tenant_no, scope_no, kind_no) DO UPDATE SET \
         count = count + excluded.count, \
         sum = ((((sum >> 32) & 4294967295) + ((excluded.sum >> 32) & 4294967295) \
         + (((sum & 4294967295) + (excluded.sum & 4294967295)) >> 32)) << 32) \
         | (((sum & 4294967295) + (excluded.sum & 4294967295)) & 4294967295)";

    fn bind<'b>(&'b self, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        binds!(self, out, Integer => tenant_no, Integer => scope_no, Integer => kind_no, BigInt => count, BigInt => sum)
    }
}

statement! {
    /// The sums of some scopes.
    SumsOfScopes { scopes: String => Text, tenant_no: i32 => Integer, kinds: Option<String> => Nullable<Text> } =
    "SELECT s.scope_no, s.kind_no, s.count, s.sum FROM json_each(" ? scopes: Text
    ") AS j CROSS JOIN scope_sums AS s ON s.tenant_no = " ? tenant_no: Integer
    " AND s.scope_no = j.value WHERE s.count <> 0 AND (" ? kinds: Nullable<Text>
    " IS NULL OR s.kind_no IN (SELECT value FROM json_each(" ? kinds: Nullable<Text>
    ")))"
}

impl Query for SumsOfScopes {
    type SqlType = (Integer, Integer, BigInt, BigInt);
}

/// Reads the sums of scopes; scopes and kinds are JSON arrays of numbers.
pub(super) fn of_scopes(
    connection: &mut SqliteConnection,
    names: &Names,
    tenant: TenantNo,
    scopes: String,
    kinds: Option<String>,
) -> Result<Vec<ScopeSum>, StoreError> {
    let query = SumsOfScopes { scopes, tenant_no: tenant_sql(tenant), kinds };
    let rows: Vec<(i32, i32, i64, i64)> = query.load(connection).map_err(store_error)?;
    let sums = rows.into_iter().map(|(scope_no, kind_no, count, sum)| {
        Ok(ScopeSum {
            scope: names.scope_name(scope_no)?,
            kind: names.kind_name(kind_no)?,
            count: u64::try_from(count).map_err(|_| corrupt("count"))?,
            sum: sum.cast_unsigned(),
        })
    });
    let mut sums = sums.collect::<Result<Vec<_>, StoreError>>()?;
    sort_sums(&mut sums);
    Ok(sums)
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

#[derive(QueryableByName)]
struct Member {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = BigInt)]
    seq: i64,
}

/// The live records of a kind and scope within a range of ids. Every text is smaller than a blob.
const IN_RANGE: &str = "FROM records INDEXED BY records_key WHERE tenant_no = ? AND kind_no = ? AND id > ? \
     AND id <= coalesce(?, x'') AND scope_no = ? AND (del IS NULL OR substr(del, 1, 1) <> x'01')";

/// Sums a range in parts, at one moment.
pub(super) fn of_range(
    connection: &mut SqliteConnection,
    names: &Names,
    query: &SumQuery,
) -> Result<(Head, Vec<PartSum>), StoreError> {
    snapshot(connection, |connection| {
        let head = head(connection, query.tenant)?;
        let mut parts = Parts::new(query);
        let numbers = (names.kind(query.tenant, &query.kind), names.scope(query.tenant, &query.scope));
        let (Some(kind_no), Some(scope_no)) = numbers else { return Ok((head, parts.finish())) };
        let bound = |select: &str| {
            sql_query(format!("{select} {IN_RANGE} ORDER BY id"))
                .bind::<Integer, _>(tenant_sql(query.tenant))
                .bind::<Integer, _>(kind_no)
                .bind::<Text, _>(query.after.as_ref().map_or(String::new(), |id| id.as_str().to_owned()))
                .bind::<Nullable<Text>, _>(query.until.as_ref().map(|id| id.as_str().to_owned()))
                .bind::<Integer, _>(scope_no)
        };
        let counted: Count = bound("SELECT count(*) AS count").get_result(connection).map_err(store_error)?;
        parts.expect(u64::try_from(counted.count).map_err(|_| corrupt("count"))?);
        let members = bound("SELECT id, seq");
        for member in members.load_iter::<Member, _>(connection).map_err(store_error)? {
            let member = member.map_err(store_error)?;
            let id = RecordId::new(&member.id).map_err(|_| corrupt("id"))?;
            parts.add(row_sum(&query.kind, &id, seq_of(member.seq)?), id);
        }
        Ok((head, parts.finish()))
    })
}

/// Rows that are read in one go when the sums of a file are made.
const CHUNK: i64 = 10_000;

#[derive(QueryableByName)]
struct Stored {
    #[diesel(sql_type = BigInt)]
    rowid: i64,
    #[diesel(sql_type = Integer)]
    tenant_no: i32,
    #[diesel(sql_type = Integer)]
    scope_no: i32,
    #[diesel(sql_type = Integer)]
    kind_no: i32,
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = Nullable<Binary>)]
    del: Option<Vec<u8>>,
}

/// Tells whether a file has sums, which one that was written before there were any has not.
pub(super) fn are_made(connection: &mut SqliteConnection) -> Result<bool, StoreError> {
    let made: Count = sql_query("SELECT count(*) AS count FROM meta WHERE name = 'sums'")
        .get_result(connection)
        .map_err(store_error)?;
    Ok(made.count > 0)
}

/// Makes the sums of a file that was written before there were any.
pub(super) fn make(connection: &mut SqliteConnection, names: &Names) -> Result<(), StoreError> {
    if are_made(connection)? {
        return Ok(());
    }
    let sums = recount(connection, names)?;
    connection
        .transaction(|connection| {
            sql_query("DELETE FROM scope_sums").execute(connection)?;
            insert(connection, &sums)?;
            sql_query("INSERT INTO meta (name, value) VALUES ('sums', x'01')").execute(connection)?;
            Ok(())
        })
        .map_err(store_error)
}

/// Sums every live row of the file, a chunk at a time.
pub(super) fn recount(connection: &mut SqliteConnection, names: &Names) -> Result<Vec<SumAdd>, StoreError> {
    let mut sums: HashMap<(i32, i32, i32), (i64, u64)> = HashMap::new();
    let mut last = 0;
    loop {
        let rows: Vec<Stored> = sql_query(
            "SELECT rowid, tenant_no, scope_no, kind_no, id, seq, del FROM records WHERE rowid > ? ORDER BY rowid LIMIT ?",
        )
        .bind::<BigInt, _>(last)
        .bind::<BigInt, _>(CHUNK)
        .load(connection)
        .map_err(store_error)?;
        let Some(end) = rows.last() else { break };
        last = end.rowid;
        for row in &rows {
            let (_, deleted) = decode_del(row.del.as_deref())?;
            if deleted {
                continue;
            }
            let id = RecordId::new(&row.id).map_err(|_| corrupt("id"))?;
            let hash = row_sum(&names.kind_name(row.kind_no)?, &id, seq_of(row.seq)?);
            let (count, sum) = sums.entry((row.tenant_no, row.scope_no, row.kind_no)).or_default();
            *count += 1;
            *sum = sum.wrapping_add(hash);
        }
    }
    let sums = sums.into_iter().map(|((tenant_no, scope_no, kind_no), (count, sum))| SumAdd {
        tenant_no,
        scope_no,
        kind_no,
        count,
        sum: sum.cast_signed(),
    });
    Ok(sums.collect())
}
