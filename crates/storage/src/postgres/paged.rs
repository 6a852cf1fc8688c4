//! The statements of pages.
//!
//! Rows come in the order of the page, at most so many, and until their fields have used up the bytes. Beside each row
//! stands how many there were before the bytes were looked at. Fields of rows that are left out are not even read, as
//! their length is known without.
//!
//! A plan may be made while the tables are still empty, when every way to read them looks the same, and be kept while
//! they grow. So each statement leaves one way only: the addition of a zero keeps a column from an index that is not
//! meant, and what has a limit of its own, or gives one value, is looked up with the whole key for each row around it.

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text};

use super::sql::statement;
use crate::rows::{RecordRow, RecordSql};

/// A row of a page, and how many rows there were before the bytes were looked at.
pub(super) type PagedRow = (RecordRow, i64);

/// The columns of a row that left.
type LeftSql = (Integer, Text, Integer, BigInt);

/// A row that left as a query gives it.
pub(super) type LeftRow = (i32, String, i32, i64);

statement! {
    /// The records of some scopes that changed after a place, in the order of their change.
    PageByLog {
        scopes: Vec<i32> => Array<Integer>, tenant_no: i32 => Integer, after: i64 => BigInt,
        kinds: Option<Vec<i32>> => Nullable<Array<Integer>>, rows: i64 => BigInt, bytes: i64 => BigInt,
    } =
    "SELECT kind_no, id, seq, scope_no, owner, fields, default_mark, marks, del, live, schema_version, states, entered, \
     total FROM (SELECT p.*, count(*) OVER () AS total, sum(octet_length(fields)) OVER (ORDER BY seq \
     ROWS UNBOUNDED PRECEDING) - octet_length(fields) AS before FROM (SELECT r.* FROM unnest(" ? scopes: Array<Integer>
    ") AS s(scope_no) CROSS JOIN LATERAL (SELECT * FROM records WHERE tenant_no = " ? tenant_no: Integer
    " AND scope_no = s.scope_no AND seq > " ? after: BigInt
    " AND (kind_no = ANY(" ? kinds: Nullable<Array<Integer>>
    ")) IS NOT FALSE ORDER BY seq LIMIT " ? rows: BigInt
    ") AS r ORDER BY seq LIMIT " ? rows: BigInt
    ") AS p) AS c WHERE before <= " ? bytes: BigInt
    " ORDER BY seq"
}

impl Query for PageByLog {
    type SqlType = (RecordSql, BigInt);
}

statement! {
    /// The records that left some scopes after a place and are in none of them, in the order of their change.
    LeftByLog {
        scopes: Vec<i32> => Array<Integer>, tenant_no: i32 => Integer, after: i64 => BigInt,
        kinds: Option<Vec<i32>> => Nullable<Array<Integer>>, rows: i64 => BigInt,
    } =
    "SELECT l.kind_no, l.id, l.scope_no, l.seq FROM unnest(" ? scopes: Array<Integer>
    ") AS s(scope_no) CROSS JOIN LATERAL (SELECT e.kind_no, e.id, e.scope_no, e.seq FROM scope_exits AS e \
     WHERE e.tenant_no = " ? tenant_no: Integer
    " AND e.scope_no = s.scope_no AND e.seq > " ? after: BigInt
    " AND (e.kind_no = ANY(" ? kinds: Nullable<Array<Integer>>
    ")) IS NOT FALSE AND ((SELECT r.scope_no FROM records AS r WHERE r.tenant_no = e.tenant_no \
     AND r.kind_no = e.kind_no AND r.id >= e.id AND r.id <= e.id ORDER BY r.id LIMIT 1) = ANY(" ? scopes: Array<Integer>
    ")) IS NOT TRUE ORDER BY e.seq LIMIT " ? rows: BigInt
    ") AS l ORDER BY l.seq LIMIT " ? rows: BigInt
    ""
}

impl Query for LeftByLog {
    type SqlType = LeftSql;
}

statement! {
    /// The live records of some scopes by kind and id.
    PageByKey {
        tenant_no: i32 => Integer, kind_no: i32 => Integer, id: String => Text, scopes: Vec<i32> => Array<Integer>,
        kinds: Option<Vec<i32>> => Nullable<Array<Integer>>, only_kinds: Option<Vec<i32>> => Nullable<Array<Integer>>,
        only_scopes: Option<Vec<i32>> => Nullable<Array<Integer>>, rows: i64 => BigInt, bytes: i64 => BigInt,
        few: i64 => BigInt,
    } =
    "WITH held AS MATERIALIZED (SELECT coalesce(sum(count), 0) <= " ? few: BigInt
    " AS few FROM scope_sums WHERE tenant_no = " ? tenant_no: Integer
    " AND scope_no = ANY(" ? scopes: Array<Integer>
    ")) SELECT kind_no, id, seq, scope_no, owner, fields, default_mark, marks, del, live, schema_version, states, \
     entered, total FROM (SELECT p.*, count(*) OVER () AS total, sum(octet_length(fields)) OVER (ORDER BY kind_no, id \
     ROWS UNBOUNDED PRECEDING) - octet_length(fields) AS before FROM ((SELECT * FROM records WHERE NOT (SELECT few \
     FROM held) AND tenant_no = " ? tenant_no: Integer
    " AND (kind_no, id) > (" ? kind_no: Integer
    ", " ? id: Text
    ") AND scope_no + 0 = ANY(" ? scopes: Array<Integer>
    ") AND (kind_no = ANY(" ? kinds: Nullable<Array<Integer>>
    ")) IS NOT FALSE AND (kind_no = ANY(" ? only_kinds: Nullable<Array<Integer>>
    ") OR scope_no = ANY(" ? only_scopes: Nullable<Array<Integer>>
    ")) IS NOT FALSE AND (get_byte(del, 0) = 1) IS NOT TRUE ORDER BY kind_no, id LIMIT " ? rows: BigInt
    ") UNION ALL (SELECT r.* FROM unnest(" ? scopes: Array<Integer>
    ") AS s(scope_no) CROSS JOIN LATERAL (SELECT * FROM records WHERE (SELECT few FROM held) AND tenant_no = "
    ? tenant_no: Integer
    " AND scope_no = s.scope_no AND (kind_no + 0, id) > (" ? kind_no: Integer
    ", " ? id: Text
    ") AND (kind_no = ANY(" ? kinds: Nullable<Array<Integer>>
    ")) IS NOT FALSE AND (kind_no = ANY(" ? only_kinds: Nullable<Array<Integer>>
    ") OR scope_no = ANY(" ? only_scopes: Nullable<Array<Integer>>
    ")) IS NOT FALSE AND (get_byte(del, 0) = 1) IS NOT TRUE ORDER BY kind_no + 0, id LIMIT " ? rows: BigInt
    ") AS r ORDER BY kind_no, id LIMIT " ? rows: BigInt
    ")) AS p) AS c WHERE before <= " ? bytes: BigInt
    " ORDER BY kind_no, id"
}

impl Query for PageByKey {
    type SqlType = (RecordSql, BigInt);
}

statement! {
    /// The live records of a kind and scope within a range of ids.
    PageByRange {
        tenant_no: i32 => Integer, kind_no: i32 => Integer, after: String => Text, until: String => Text,
        scope_no: i32 => Integer, rows: i64 => BigInt, bytes: i64 => BigInt, few: i64 => BigInt,
    } =
    "WITH held AS MATERIALIZED (SELECT coalesce(sum(count), 0) <= " ? few: BigInt
    " AS few FROM scope_sums WHERE tenant_no = " ? tenant_no: Integer
    " AND scope_no = " ? scope_no: Integer
    ") SELECT kind_no, id, seq, scope_no, owner, fields, default_mark, marks, del, live, schema_version, states, entered, \
     total FROM (SELECT p.*, count(*) OVER () AS total, sum(octet_length(fields)) OVER (ORDER BY id \
     ROWS UNBOUNDED PRECEDING) - octet_length(fields) AS before FROM ((SELECT * FROM records WHERE NOT (SELECT few \
     FROM held) AND tenant_no = " ? tenant_no: Integer
    " AND kind_no = " ? kind_no: Integer
    " AND id > " ? after: Text
    " AND id <= " ? until: Text
    " AND scope_no + 0 = " ? scope_no: Integer
    " AND (get_byte(del, 0) = 1) IS NOT TRUE ORDER BY id LIMIT " ? rows: BigInt
    ") UNION ALL (SELECT * FROM records WHERE (SELECT few FROM held) AND tenant_no = " ? tenant_no: Integer
    " AND kind_no + 0 = " ? kind_no: Integer
    " AND id > " ? after: Text
    " AND id <= " ? until: Text
    " AND scope_no = " ? scope_no: Integer
    " AND (get_byte(del, 0) = 1) IS NOT TRUE ORDER BY id LIMIT " ? rows: BigInt
    ")) AS p) AS c WHERE before <= " ? bytes: BigInt
    " ORDER BY id"
}

impl Query for PageByRange {
    type SqlType = (RecordSql, BigInt);
}

statement! {
    /// What a reader forgets who loses scopes: records in them, deleted ones too, and records that left them, but for
    /// those in the reader's scopes. Of one record the newest is taken.
    LostByKey {
        tenant_no: i32 => Integer, kind_no: i32 => Integer, id: String => Text, lost: Vec<i32> => Array<Integer>,
        scopes: Vec<i32> => Array<Integer>, kinds: Option<Vec<i32>> => Nullable<Array<Integer>>, rows: i64 => BigInt,
        few: i64 => BigInt,
    } =
    "WITH held AS MATERIALIZED (SELECT coalesce(sum(count), 0) <= " ? few: BigInt
    " AS few FROM scope_sums WHERE tenant_no = " ? tenant_no: Integer
    " AND scope_no = ANY(" ? lost: Array<Integer>
    ")) SELECT DISTINCT ON (kind_no, id) kind_no, id, scope_no, seq FROM (\
     (SELECT kind_no, id, scope_no, seq, 1 AS here FROM records WHERE NOT (SELECT few FROM held) AND tenant_no = "
    ? tenant_no: Integer
    " AND (kind_no, id) > (" ? kind_no: Integer
    ", " ? id: Text
    ") AND scope_no + 0 = ANY(" ? lost: Array<Integer>
    ") AND scope_no <> ALL(" ? scopes: Array<Integer>
    ") AND (kind_no = ANY(" ? kinds: Nullable<Array<Integer>>
    ")) IS NOT FALSE ORDER BY kind_no, id LIMIT " ? rows: BigInt
    ") UNION ALL SELECT r.kind_no, r.id, r.scope_no, r.seq, 1 AS here FROM unnest(" ? lost: Array<Integer>
    ") AS s(scope_no) CROSS JOIN LATERAL (SELECT kind_no, id, scope_no, seq FROM records WHERE (SELECT few FROM held) \
     AND tenant_no = " ? tenant_no: Integer
    " AND scope_no = s.scope_no AND (kind_no + 0, id) > (" ? kind_no: Integer
    ", " ? id: Text
    ") AND scope_no <> ALL(" ? scopes: Array<Integer>
    ") AND (kind_no = ANY(" ? kinds: Nullable<Array<Integer>>
    ")) IS NOT FALSE ORDER BY kind_no + 0, id LIMIT " ? rows: BigInt
    ") AS r UNION ALL SELECT l.kind_no, l.id, l.scope_no, l.seq, 0 AS here FROM unnest(" ? lost: Array<Integer>
    ") AS s(scope_no) CROSS JOIN LATERAL (SELECT e.kind_no, e.id, e.scope_no, e.seq FROM scope_exits AS e \
     WHERE e.tenant_no = " ? tenant_no: Integer
    " AND e.scope_no = s.scope_no AND (e.kind_no, e.id) > (" ? kind_no: Integer
    ", " ? id: Text
    ") AND (e.kind_no = ANY(" ? kinds: Nullable<Array<Integer>>
    ")) IS NOT FALSE AND ((SELECT r.scope_no FROM records AS r WHERE r.tenant_no = e.tenant_no \
     AND r.kind_no = e.kind_no AND r.id >= e.id AND r.id <= e.id ORDER BY r.id LIMIT 1) = ANY(" ? scopes: Array<Integer>
    ")) IS NOT TRUE ORDER BY e.kind_no, e.id LIMIT " ? rows: BigInt
    ") AS l) AS w ORDER BY kind_no, id, seq DESC, here DESC, scope_no LIMIT " ? rows: BigInt
    ""
}

impl Query for LostByKey {
    type SqlType = LeftSql;
}
