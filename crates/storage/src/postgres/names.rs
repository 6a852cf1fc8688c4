//! Numbers of kinds and scopes: found in the tables, and given.
//!
//! A number is committed before anything refers to it, in a transaction of its own. Other nodes give numbers too, so a
//! name that is not remembered is looked for before it is given up, and a number is looked up when its rows come.

use std::collections::BTreeSet;

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::prelude::{Queryable, QueryableByName};
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_query;
use diesel::sql_types::{Array, Integer, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use driftline_engine::{StoreError, Submission, Task};
use driftline_model::{KindName, ScopeName, TenantNo};

use super::sql::statement;
use super::store_error;
use crate::codec::corrupt;
use crate::names::{Names, tenant_of, tenant_sql};

#[derive(Queryable, QueryableByName)]
struct Numbered {
    #[diesel(sql_type = Integer)]
    number: i32,
    #[diesel(sql_type = Integer)]
    tenant_no: i32,
    #[diesel(sql_type = Text)]
    name: String,
}

/// The statements for one of the two kinds of names.
struct Table {
    give: &'static str,
    all: &'static str,
}

statement! {
    /// The numbers of kinds. Whoever reads asks for those of names that have none again and again.
    FindKinds<'a> { tenant_no: i32 => Integer, names: Vec<&'a str> => Array<Text> } =
    "SELECT kind_no, tenant_no, kind FROM kinds WHERE tenant_no = " ? tenant_no: Integer
    " AND kind = ANY(" ? names: Array<Text>
    ")"
}

statement! {
    /// The numbers of scopes, as above.
    FindScopes<'a> { tenant_no: i32 => Integer, names: Vec<&'a str> => Array<Text> } =
    "SELECT scope_no, tenant_no, scope FROM scopes WHERE tenant_no = " ? tenant_no: Integer
    " AND scope = ANY(" ? names: Array<Text>
    ")"
}

impl Query for FindKinds<'_> {
    type SqlType = (Integer, Integer, Text);
}

impl Query for FindScopes<'_> {
    type SqlType = (Integer, Integer, Text);
}

const KINDS: Table = Table {
    give: "INSERT INTO kinds (tenant_no, kind) SELECT $1, name FROM unnest($2) AS w(name) ON CONFLICT DO NOTHING",
    all: "SELECT kind_no AS number, tenant_no, kind AS name FROM kinds WHERE kind_no = ANY($1)",
};

const SCOPES: Table = Table {
    give: "INSERT INTO scopes (tenant_no, scope) SELECT $1, name FROM unnest($2) AS w(name) ON CONFLICT DO NOTHING",
    all: "SELECT scope_no AS number, tenant_no, scope AS name FROM scopes WHERE scope_no = ANY($1)",
};

/// Finds the numbers of kinds and scopes that are not remembered; those that have none stay unknown.
pub(super) async fn find(
    names: &Names,
    pg: &AsyncPgConnection,
    tenant: TenantNo,
    kinds: impl IntoIterator<Item = &KindName>,
    scopes: impl IntoIterator<Item = &ScopeName>,
) -> Result<(), StoreError> {
    let generation = names.generation();
    let kinds: BTreeSet<&KindName> =
        kinds.into_iter().filter(|kind| names.kind(tenant, kind).is_none()).collect();
    let scopes: BTreeSet<&ScopeName> =
        scopes.into_iter().filter(|scope| names.scope(tenant, scope).is_none()).collect();
    if !kinds.is_empty() {
        let found = look_kinds(pg, tenant, kinds.iter().map(|kind| kind.as_str())).await?;
        keep_kinds(names, generation, found)?;
    }
    if !scopes.is_empty() {
        let found = look_scopes(pg, tenant, scopes.iter().map(|scope| scope.as_str())).await?;
        keep_scopes(names, generation, found)?;
    }
    Ok(())
}

/// Finds the numbers of kinds and scopes, giving those that have none.
pub(super) async fn intern(
    names: &Names,
    pg: &AsyncPgConnection,
    tenant: TenantNo,
    kinds: &BTreeSet<KindName>,
    scopes: &BTreeSet<ScopeName>,
) -> Result<(), StoreError> {
    let generation = names.generation();
    find(names, pg, tenant, kinds, scopes).await?;
    let new: Vec<&str> =
        kinds.iter().filter(|kind| names.kind(tenant, kind).is_none()).map(KindName::as_str).collect();
    if !new.is_empty() {
        give(pg, KINDS.give, tenant, &new).await?;
        keep_kinds(names, generation, look_kinds(pg, tenant, new.into_iter()).await?)?;
    }
    let new: Vec<&str> =
        scopes.iter().filter(|scope| names.scope(tenant, scope).is_none()).map(ScopeName::as_str).collect();
    if !new.is_empty() {
        give(pg, SCOPES.give, tenant, &new).await?;
        keep_scopes(names, generation, look_scopes(pg, tenant, new.into_iter()).await?)?;
    }
    Ok(())
}

/// Looks up the names of numbers that came with rows and that another node has given.
pub(super) async fn learn(
    names: &Names,
    pg: &AsyncPgConnection,
    kinds: impl IntoIterator<Item = i32>,
    scopes: impl IntoIterator<Item = i32>,
) -> Result<(), StoreError> {
    let generation = names.generation();
    let kinds: BTreeSet<i32> = kinds.into_iter().filter(|number| names.kind_name(*number).is_err()).collect();
    let scopes: BTreeSet<i32> =
        scopes.into_iter().filter(|number| names.scope_name(*number).is_err()).collect();
    if !kinds.is_empty() {
        keep_kinds(names, generation, named(pg, KINDS.all, kinds).await?)?;
    }
    if !scopes.is_empty() {
        keep_scopes(names, generation, named(pg, SCOPES.all, scopes).await?)?;
    }
    Ok(())
}

/// The kinds and scopes that a group of one tenant may write.
pub(super) fn of_group(group: &[Submission]) -> (BTreeSet<KindName>, BTreeSet<ScopeName>) {
    let (mut kinds, mut scopes) = (BTreeSet::new(), BTreeSet::new());
    for entry in group.iter().flat_map(|submission| &submission.entries) {
        if matches!(entry.task, Task::Refuse(..)) {
            continue;
        }
        let Some(kind) = &entry.kind else { continue };
        if !kinds.contains(kind) {
            kinds.insert(kind.clone());
        }
        if let Some(scope) = entry.scope() {
            scopes.insert(scope);
        }
    }
    (kinds, scopes)
}

async fn look_kinds(
    mut pg: &AsyncPgConnection,
    tenant: TenantNo,
    wanted: impl Iterator<Item = &str>,
) -> Result<Vec<Numbered>, StoreError> {
    let find = FindKinds { tenant_no: tenant_sql(tenant), names: wanted.collect() };
    find.load(&mut pg).await.map_err(store_error)
}

async fn look_scopes(
    mut pg: &AsyncPgConnection,
    tenant: TenantNo,
    wanted: impl Iterator<Item = &str>,
) -> Result<Vec<Numbered>, StoreError> {
    let find = FindScopes { tenant_no: tenant_sql(tenant), names: wanted.collect() };
    find.load(&mut pg).await.map_err(store_error)
}

async fn give(
    mut pg: &AsyncPgConnection,
    sql: &'static str,
    tenant: TenantNo,
    new: &[&str],
) -> Result<(), StoreError> {
    let given = sql_query(sql)
        .bind::<Integer, _>(tenant_sql(tenant))
        .bind::<Array<Text>, _>(new)
        .execute(&mut pg)
        .await;
    given.map(drop).map_err(store_error)
}

async fn named(
    mut pg: &AsyncPgConnection,
    sql: &'static str,
    numbers: BTreeSet<i32>,
) -> Result<Vec<Numbered>, StoreError> {
    let numbers: Vec<i32> = numbers.into_iter().collect();
    sql_query(sql).bind::<Array<Integer>, _>(numbers).load(&mut pg).await.map_err(store_error)
}

fn keep_kinds(names: &Names, generation: u64, rows: Vec<Numbered>) -> Result<(), StoreError> {
    for row in rows {
        let kind = KindName::new(&row.name).map_err(|_| corrupt("kind"))?;
        names.keep_kind(generation, tenant_of(row.tenant_no), kind, row.number);
    }
    Ok(())
}

fn keep_scopes(names: &Names, generation: u64, rows: Vec<Numbered>) -> Result<(), StoreError> {
    for row in rows {
        let scope = ScopeName::new(&row.name).map_err(|_| corrupt("scope"))?;
        names.keep_scope(generation, tenant_of(row.tenant_no), scope, row.number);
    }
    Ok(())
}
