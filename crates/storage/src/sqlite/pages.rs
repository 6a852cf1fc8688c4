//! Pages of rows.

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use diesel::sqlite::Sqlite;
use driftline_engine::{Head, Left, Only, Page, PageQuery, Place, StoreError};
use driftline_model::{KindName, RecordId, ScopeName, Seq};

use super::hot::statement;
use super::queries::{head, snapshot};
use super::{store_error, sums};
use crate::codec::corrupt;
use crate::names::{Names, tenant_sql};
use crate::paging::{Item, cut};
use crate::rows::{RecordRow, RecordSql, row_of, seq_of, sql};

statement! {
    /// The records of one scope that changed after a place.
    PageByLog {
        tenant_no: i32 => Integer, scope_no: i32 => Integer, after: i64 => BigInt, kinds: Option<String> => Nullable<Text>,
        rows: i64 => BigInt,
    } =
    "SELECT kind_no, id, seq, scope_no, owner, fields, default_mark, marks, del, live, schema_version, states, entered \
     FROM records INDEXED BY records_seq WHERE tenant_no = " ? tenant_no: Integer
    " AND scope_no = " ? scope_no: Integer
    " AND seq > " ? after: BigInt
    " AND (" ? kinds: Nullable<Text>
    " IS NULL OR kind_no IN (SELECT value FROM json_each(" ? kinds: Nullable<Text>
    "))) ORDER BY seq LIMIT " ? rows: BigInt
}

impl Query for PageByLog {
    type SqlType = RecordSql;
}

/// The columns of a row that left.
type LeftSql = (Integer, Text, Integer, BigInt);

/// A row that left as a query gives it.
type LeftRow = (i32, String, i32, i64);

statement! {
    /// The records that left one scope after a place and are in none of the reader's scopes.
    LeftByLog {
        tenant_no: i32 => Integer, scope_no: i32 => Integer, after: i64 => BigInt, kinds: Option<String> => Nullable<Text>,
        scopes: String => Text, rows: i64 => BigInt,
    } =
    "SELECT e.kind_no, e.id, e.scope_no, e.seq FROM scope_exits AS e INDEXED BY scope_exits_seq \
     WHERE e.tenant_no = " ? tenant_no: Integer
    " AND e.scope_no = " ? scope_no: Integer
    " AND e.seq > " ? after: BigInt
    " AND (" ? kinds: Nullable<Text>
    " IS NULL OR e.kind_no IN (SELECT value FROM json_each(" ? kinds: Nullable<Text>
    "))) AND NOT EXISTS (SELECT 1 FROM records AS r WHERE r.tenant_no = e.tenant_no AND r.kind_no = e.kind_no \
     AND r.id = e.id AND r.scope_no IN (SELECT value FROM json_each(" ? scopes: Text
    "))) ORDER BY e.seq LIMIT " ? rows: BigInt
}

impl Query for LeftByLog {
    type SqlType = LeftSql;
}

statement! {
    /// The live records of some scopes by kind and id.
    PageByKey {
        tenant_no: i32 => Integer, kind_no: i32 => Integer, id: String => Text, scopes: String => Text,
        kinds: Option<String> => Nullable<Text>, only_kinds: Option<String> => Nullable<Text>,
        only_scopes: Option<String> => Nullable<Text>, rows: i64 => BigInt,
    } =
    "SELECT kind_no, id, seq, scope_no, owner, fields, default_mark, marks, del, live, schema_version, states, entered \
     FROM records INDEXED BY records_key WHERE tenant_no = " ? tenant_no: Integer
    " AND (kind_no, id) > (" ? kind_no: Integer
    ", " ? id: Text
    ") AND scope_no IN (SELECT value FROM json_each(" ? scopes: Text
    ")) AND (" ? kinds: Nullable<Text>
    " IS NULL OR kind_no IN (SELECT value FROM json_each(" ? kinds: Nullable<Text>
    "))) AND (" ? only_kinds: Nullable<Text>
    " IS NULL OR kind_no IN (SELECT value FROM json_each(" ? only_kinds: Nullable<Text>
    ")) OR scope_no IN (SELECT value FROM json_each(" ? only_scopes: Nullable<Text>
    "))) AND (del IS NULL OR substr(del, 1, 1) <> x'01') ORDER BY kind_no, id LIMIT " ? rows: BigInt
}

impl Query for PageByKey {
    type SqlType = RecordSql;
}

statement! {
    /// The live records of a kind and scope within a range of ids. Every text is smaller than a blob.
    PageByRange {
        tenant_no: i32 => Integer, kind_no: i32 => Integer, after: String => Text, until: Option<String> => Nullable<Text>,
        scope_no: i32 => Integer, rows: i64 => BigInt,
    } =
    "SELECT kind_no, id, seq, scope_no, owner, fields, default_mark, marks, del, live, schema_version, states, entered \
     FROM records INDEXED BY records_key WHERE tenant_no = " ? tenant_no: Integer
    " AND kind_no = " ? kind_no: Integer
    " AND id > " ? after: Text
    " AND id <= coalesce(" ? until: Nullable<Text>
    ", x'') AND scope_no = " ? scope_no: Integer
    " AND (del IS NULL OR substr(del, 1, 1) <> x'01') ORDER BY id LIMIT " ? rows: BigInt
}

impl Query for PageByRange {
    type SqlType = RecordSql;
}

statement! {
    /// What a reader forgets who loses scopes: records in them, deleted ones too, and records that left them, but for those in the
    /// reader's scopes. Of one record the newest comes first.
    LostByKey {
        tenant_no: i32 => Integer, kind_no: i32 => Integer, id: String => Text, lost: String => Text,
        scopes: String => Text, kinds: Option<String> => Nullable<Text>,
    } =
    "SELECT r.kind_no, r.id, r.scope_no, r.seq, 1 AS here FROM records AS r INDEXED BY records_seq \
     WHERE r.tenant_no = " ? tenant_no: Integer
    " AND (r.kind_no, r.id) > (" ? kind_no: Integer
    ", " ? id: Text
    ") AND r.scope_no IN (SELECT value FROM json_each(" ? lost: Text
    ")) AND r.scope_no NOT IN (SELECT value FROM json_each(" ? scopes: Text
    ")) AND (" ? kinds: Nullable<Text>
    " IS NULL OR r.kind_no IN (SELECT value FROM json_each(" ? kinds: Nullable<Text>
    "))) UNION ALL \
     SELECT e.kind_no, e.id, e.scope_no, e.seq, 0 AS here FROM scope_exits AS e WHERE e.tenant_no = " ? tenant_no: Integer
    " AND (e.kind_no, e.id) > (" ? kind_no: Integer
    ", " ? id: Text
    ") AND e.scope_no IN (SELECT value FROM json_each(" ? lost: Text
    ")) AND (" ? kinds: Nullable<Text>
    " IS NULL OR e.kind_no IN (SELECT value FROM json_each(" ? kinds: Nullable<Text>
    "))) AND NOT EXISTS (SELECT 1 FROM records AS r WHERE r.tenant_no = e.tenant_no AND r.kind_no = e.kind_no \
     AND r.id = e.id AND r.scope_no IN (SELECT value FROM json_each(" ? scopes: Text
    "))) ORDER BY 1, 2, 4 DESC, 5 DESC, 3"
}

impl Query for LostByKey {
    type SqlType = (Integer, Text, Integer, BigInt, Integer);
}

/// Reads a page, at one moment.
pub(super) fn page(
    connection: &mut SqliteConnection,
    names: &Names,
    query: &PageQuery,
) -> Result<Page, StoreError> {
    snapshot(connection, |connection| {
        let head = head(connection, query.tenant)?;
        // Names are looked up after the moment was fixed: one that has no number has no rows in it.
        let mut reader = Reader::new(connection, names, query);
        let mut page = if query.kinds.is_empty() || !reader.known_kinds.is_empty() {
            reader.page(head)?
        } else {
            cut(head, Vec::new(), query, false)
        };
        if query.sums {
            let (scopes, kinds) = (numbers(&reader.scopes), reader.kinds());
            page.sums = sums::of_scopes(reader.connection, names, query.tenant, scopes, kinds)?;
        }
        Ok(page)
    })
}

struct Reader<'a> {
    connection: &'a mut SqliteConnection,
    names: &'a Names,
    query: &'a PageQuery,
    tenant_no: i32,
    /// The numbers of the reader's scopes.
    scopes: Vec<i32>,
    /// The numbers of the wanted kinds.
    known_kinds: Vec<i32>,
    /// One row more than wanted tells whether more wait.
    limit: i64,
}

impl<'a> Reader<'a> {
    fn new(connection: &'a mut SqliteConnection, names: &'a Names, query: &'a PageQuery) -> Self {
        let scopes = scope_numbers(names, query, &query.scopes);
        let known_kinds = kind_numbers(names, query, &query.kinds);
        let limit = i64::try_from(query.rows).unwrap_or(i64::MAX - 1) + 1;
        Self { connection, names, query, tenant_no: tenant_sql(query.tenant), scopes, known_kinds, limit }
    }

    /// The wanted kinds as a statement takes them; nothing stands for all.
    fn kinds(&self) -> Option<String> {
        (!self.query.kinds.is_empty()).then(|| numbers(&self.known_kinds))
    }

    fn page(&mut self, head: Head) -> Result<Page, StoreError> {
        let (items, more) = match &self.query.place {
            Place::After(after) => self.by_log(*after)?,
            Place::Key { after, only } => self.by_key(after.as_ref(), only)?,
            Place::Lost { after, lost } => self.lost(after.as_ref(), lost)?,
            Place::Range { kind, scope, after, until } => {
                self.range(kind, scope, after.as_ref(), until.as_ref())?
            }
        };
        Ok(cut(head, items, self.query, more))
    }

    /// Merges what changed in each scope and what left it.
    fn by_log(&mut self, after: Seq) -> Result<(Vec<Item>, bool), StoreError> {
        let mut items = Vec::new();
        // Up to where every scope was read: beyond it rows of a scope that was cut would be missed.
        let mut horizon: Option<Seq> = None;
        let scopes = numbers(&self.scopes);
        for scope_no in self.scopes.clone() {
            let (tenant_no, after, rows) = (self.tenant_no, sql(after.number()), self.limit);
            let left =
                LeftByLog { tenant_no, scope_no, after, kinds: self.kinds(), scopes: scopes.clone(), rows };
            let left: Vec<LeftRow> = left.load(self.connection).map_err(store_error)?;
            for (kind_no, id, scope_no, seq) in left {
                items.push(Item::Left(left_of(self.names, (kind_no, id, scope_no, seq))?));
            }
            let changed = PageByLog { tenant_no, scope_no, after, kinds: self.kinds(), rows };
            if self.collect(changed, &mut items)? {
                let read = items.last().map(Item::seq);
                horizon = horizon.map_or(read, |horizon| read.map(|read| read.min(horizon)));
            }
        }
        items.sort_by_key(Item::seq);
        items.retain(|item| horizon.is_none_or(|horizon| item.seq() <= horizon));
        Ok((items, horizon.is_some()))
    }

    fn by_key(
        &mut self,
        after: Option<&(KindName, RecordId)>,
        only: &Only,
    ) -> Result<(Vec<Item>, bool), StoreError> {
        let (kind_no, id) = self.start(after);
        let (only_kinds, only_scopes) = match only {
            Only::All => (None, None),
            Only::Some { kinds, scopes } => (
                Some(numbers(&kind_numbers(self.names, self.query, kinds))),
                Some(numbers(&scope_numbers(self.names, self.query, scopes))),
            ),
        };
        let (tenant_no, scopes, kinds) = (self.tenant_no, numbers(&self.scopes), self.kinds());
        let page =
            PageByKey { tenant_no, kind_no, id, scopes, kinds, only_kinds, only_scopes, rows: self.limit };
        let mut items = Vec::new();
        let more = self.collect(page, &mut items)?;
        Ok((items, more))
    }

    fn range(
        &mut self,
        kind: &KindName,
        scope: &ScopeName,
        after: Option<&RecordId>,
        until: Option<&RecordId>,
    ) -> Result<(Vec<Item>, bool), StoreError> {
        let wanted = self.query.kinds.is_empty() || self.query.kinds.contains(kind);
        let numbers = (self.names.kind(self.query.tenant, kind), self.names.scope(self.query.tenant, scope));
        let mut items = Vec::new();
        let more = match numbers {
            (Some(kind_no), Some(scope_no)) if wanted && self.scopes.contains(&scope_no) => {
                let after = after.map_or_else(String::new, |id| id.as_str().to_owned());
                let until = until.map(|id| id.as_str().to_owned());
                let (tenant_no, rows) = (self.tenant_no, self.limit);
                let page = PageByRange { tenant_no, kind_no, after, until, scope_no, rows };
                self.collect(page, &mut items)?
            }
            _ => false,
        };
        Ok((items, more))
    }

    fn lost(
        &mut self,
        after: Option<&(KindName, RecordId)>,
        lost: &[ScopeName],
    ) -> Result<(Vec<Item>, bool), StoreError> {
        let (kind_no, id) = self.start(after);
        let lost = numbers(&scope_numbers(self.names, self.query, lost));
        let (tenant_no, scopes, kinds) = (self.tenant_no, numbers(&self.scopes), self.kinds());
        let page = LostByKey { tenant_no, kind_no, id, lost, scopes, kinds };
        let mut items: Vec<Item> = Vec::new();
        let mut last: Option<(i32, String)> = None;
        let rows = page.load_iter::<(i32, String, i32, i64, i32), _>(self.connection).map_err(store_error)?;
        for row in rows {
            let (kind_no, id, scope_no, seq, _) = row.map_err(store_error)?;
            if last.as_ref().is_some_and(|(last_kind, last_id)| (*last_kind, last_id) == (kind_no, &id)) {
                continue;
            }
            last = Some((kind_no, id.clone()));
            items.push(Item::Left(left_of(self.names, (kind_no, id, scope_no, seq))?));
            if items.len() > self.query.rows {
                break;
            }
        }
        Ok((items, false))
    }

    /// Where a page by key starts. A kind that has no number has no rows: everything comes after it.
    fn start(&self, after: Option<&(KindName, RecordId)>) -> (i32, String) {
        after.map_or((0, String::new()), |(kind, id)| {
            (self.names.kind(self.query.tenant, kind).unwrap_or(0), id.as_str().to_owned())
        })
    }

    /// Reads rows until the bytes are used up; tells whether more follow.
    fn collect<Q>(&mut self, query: Q, items: &mut Vec<Item>) -> Result<bool, StoreError>
    where
        Q: for<'q> diesel::query_dsl::LoadQuery<'q, SqliteConnection, RecordRow>,
    {
        let mut bytes = 0;
        for row in query.load_iter::<RecordRow, _>(self.connection).map_err(store_error)? {
            if bytes > self.query.bytes {
                return Ok(true);
            }
            let row = row_of(self.names, row.map_err(store_error)?)?;
            bytes += row.record.fields.as_str().len();
            items.push(Item::Row(row));
        }
        Ok(false)
    }
}

fn left_of(names: &Names, (kind_no, id, scope_no, seq): LeftRow) -> Result<Left, StoreError> {
    Ok(Left {
        kind: names.kind_name(kind_no)?,
        id: RecordId::new(&id).map_err(|_| corrupt("id"))?,
        scope: names.scope_name(scope_no)?,
        seq: seq_of(seq)?,
    })
}

fn scope_numbers(names: &Names, query: &PageQuery, scopes: &[ScopeName]) -> Vec<i32> {
    let mut numbers: Vec<i32> = scopes.iter().filter_map(|scope| names.scope(query.tenant, scope)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

fn kind_numbers(names: &Names, query: &PageQuery, kinds: &[KindName]) -> Vec<i32> {
    kinds.iter().filter_map(|kind| names.kind(query.tenant, kind)).collect()
}

/// Numbers as a JSON array.
pub(super) fn numbers(numbers: &[i32]) -> String {
    let texts: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    format!("[{}]", texts.join(","))
}
