//! The sums of live rows, by scope and kind.

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use driftline_engine::{Head, PartSum, ScopeSum, StoreError, SumQuery};
use driftline_model::RecordId;
use driftline_protocol::row_sum;
use futures_util::TryStreamExt;
use tokio::try_join;

use super::pages::{FEW, start_id, until_id};
use super::snapshot::{first, give_back, last, whole};
use super::sql::{LoadHead, statement};
use super::{Shared, names, store_error};
use crate::codec::corrupt;
use crate::names::{Names, tenant_sql};
use crate::paging::sort_sums;
use crate::parts::Parts;
use crate::rows::{HeadRow, head_of, seq_of};

statement! {
    /// The sums of some scopes.
    SumsOfScopes { tenant_no: i32 => Integer, scopes: Vec<i32> => Array<Integer>, kinds: Option<Vec<i32>> => Nullable<Array<Integer>> } =
    "SELECT scope_no, kind_no, count, sum FROM scope_sums WHERE tenant_no = " ? tenant_no: Integer
    " AND scope_no = ANY(" ? scopes: Array<Integer>
    ") AND count <> 0 AND (kind_no = ANY(" ? kinds: Nullable<Array<Integer>>
    ")) IS NOT FALSE"
}

impl Query for SumsOfScopes {
    type SqlType = (Integer, Integer, BigInt, BigInt);
}

/// The sum of a scope and kind as a query gives it.
pub(super) type SumRow = (i32, i32, i64, i64);

/// Gives sums their names, which must be known, and their order.
pub(super) fn named(names: &Names, rows: Vec<SumRow>) -> Result<Vec<ScopeSum>, StoreError> {
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

statement! {
    /// The live records of a kind and scope within a range of ids, in their order; beside each how many there are.
    MembersOfRange {
        tenant_no: i32 => Integer, kind_no: i32 => Integer, scope_no: i32 => Integer, after: String => Text,
        until: String => Text, few: i64 => BigInt,
    } =
    "WITH held AS MATERIALIZED (SELECT coalesce(sum(count), 0) <= " ? few: BigInt
    " AS few FROM scope_sums WHERE tenant_no = " ? tenant_no: Integer
    " AND scope_no = " ? scope_no: Integer
    ") SELECT id, seq, count(*) OVER () FROM ((SELECT id, seq FROM records WHERE NOT (SELECT few FROM held) \
     AND tenant_no = " ? tenant_no: Integer
    " AND kind_no = " ? kind_no: Integer
    " AND id > " ? after: Text
    " AND id <= " ? until: Text
    " AND scope_no + 0 = " ? scope_no: Integer
    " AND (get_byte(del, 0) = 1) IS NOT TRUE ORDER BY id) UNION ALL (SELECT id, seq FROM records \
     WHERE (SELECT few FROM held) AND tenant_no = " ? tenant_no: Integer
    " AND kind_no + 0 = " ? kind_no: Integer
    " AND id > " ? after: Text
    " AND id <= " ? until: Text
    " AND scope_no = " ? scope_no: Integer
    " AND (get_byte(del, 0) = 1) IS NOT TRUE ORDER BY id)) AS m ORDER BY id"
}

impl Query for MembersOfRange {
    type SqlType = (Text, BigInt, BigInt);
}

/// Sums a range in parts, at one moment.
pub(super) async fn of_range(shared: &Shared, query: &SumQuery) -> Result<(Head, Vec<PartSum>), StoreError> {
    let lease = shared.reader().await?;
    let names = &shared.caches.names;
    let numbers = || Some((names.kind(query.tenant, &query.kind)?, names.scope(query.tenant, &query.scope)?));
    let pg = lease.pg();
    let read = match numbers() {
        Some(numbers) => whole(&lease, parts_of(pg, query, Some(numbers))).await,
        None => {
            match first(&lease, names::find(names, pg, query.tenant, [&query.kind], [&query.scope])).await {
                Ok(()) => last(&lease, parts_of(pg, query, numbers())).await,
                Err(error) => Err(error),
            }
        }
    };
    give_back(lease, read).await
}

/// A kind or scope that has no number has no rows.
async fn parts_of(
    mut pg: &AsyncPgConnection,
    query: &SumQuery,
    numbers: Option<(i32, i32)>,
) -> Result<(Head, Vec<PartSum>), StoreError> {
    let tenant_no = tenant_sql(query.tenant);
    let mut parts = Parts::new(query);
    let Some((kind_no, scope_no)) = numbers else {
        let head: HeadRow = LoadHead { tenant_no }.get_result(&mut pg).await.map_err(store_error)?;
        return Ok((head_of(head)?, parts.finish()));
    };
    let (after, until) = (start_id(query.after.as_ref()), until_id(query.until.as_ref()));
    let head = LoadHead { tenant_no }.get_result::<HeadRow>(&mut { pg });
    let members = MembersOfRange { tenant_no, kind_no, scope_no, after, until, few: FEW };
    let members = members.load_stream::<(String, i64, i64)>(&mut pg);
    let (head, mut members) = try_join!(biased; head, members).map_err(store_error)?;
    let mut expected = false;
    while let Some((id, seq, total)) = members.try_next().await.map_err(store_error)? {
        if !expected {
            parts.expect(u64::try_from(total).map_err(|_| corrupt("count"))?);
            expected = true;
        }
        let id = RecordId::new(&id).map_err(|_| corrupt("id"))?;
        parts.add(row_sum(&query.kind, &id, seq_of(seq)?), id);
    }
    Ok((head_of(head)?, parts.finish()))
}
