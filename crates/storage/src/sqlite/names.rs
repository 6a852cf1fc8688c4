//! Numbers of kinds and scopes in the tables.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Integer, Text};
use driftline_engine::StoreError;
use driftline_model::{KindName, ScopeName, TenantNo};

use super::store_error;
use crate::names::{Fresh, Names, tenant_of, tenant_sql};

#[derive(QueryableByName)]
struct NumberedKind {
    #[diesel(sql_type = Integer)]
    kind_no: i32,
    #[diesel(sql_type = Integer)]
    tenant_no: i32,
    #[diesel(sql_type = Text)]
    kind: String,
}

#[derive(QueryableByName)]
struct NumberedScope {
    #[diesel(sql_type = Integer)]
    scope_no: i32,
    #[diesel(sql_type = Integer)]
    tenant_no: i32,
    #[diesel(sql_type = Text)]
    scope: String,
}

/// Loads every name.
pub(super) fn load(names: &Names, connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let kinds: Vec<NumberedKind> =
        sql_query("SELECT kind_no, tenant_no, kind FROM kinds").load(connection).map_err(store_error)?;
    let scopes: Vec<NumberedScope> =
        sql_query("SELECT scope_no, tenant_no, scope FROM scopes").load(connection).map_err(store_error)?;
    for row in kinds {
        let kind = KindName::new(&row.kind).map_err(|_| StoreError::Corrupt("kind".into()))?;
        names.keep_kind(names.generation(), tenant_of(row.tenant_no), kind, row.kind_no);
    }
    for row in scopes {
        let scope = ScopeName::new(&row.scope).map_err(|_| StoreError::Corrupt("scope".into()))?;
        names.keep_scope(names.generation(), tenant_of(row.tenant_no), scope, row.scope_no);
    }
    Ok(())
}

/// Finds a kind's number, giving it one; only the writer does this.
pub(super) fn intern_kind(
    names: &Names,
    connection: &mut SqliteConnection,
    tenant: TenantNo,
    kind: &KindName,
    fresh: &mut Fresh,
) -> Result<i32, StoreError> {
    if let Some(number) = names.kind(tenant, kind) {
        return Ok(number);
    }
    let number = names.next_kind();
    sql_query("INSERT INTO kinds (kind_no, tenant_no, kind) VALUES (?, ?, ?)")
        .bind::<Integer, _>(number)
        .bind::<Integer, _>(tenant_sql(tenant))
        .bind::<Text, _>(kind.as_str())
        .execute(connection)
        .map_err(store_error)?;
    names.keep_kind(names.generation(), tenant, kind.clone(), number);
    fresh.kinds.push(number);
    Ok(number)
}

/// Finds a scope's number, giving it one; only the writer does this.
pub(super) fn intern_scope(
    names: &Names,
    connection: &mut SqliteConnection,
    tenant: TenantNo,
    scope: &ScopeName,
    fresh: &mut Fresh,
) -> Result<i32, StoreError> {
    if let Some(number) = names.scope(tenant, scope) {
        return Ok(number);
    }
    let number = names.next_scope();
    sql_query("INSERT INTO scopes (scope_no, tenant_no, scope) VALUES (?, ?, ?)")
        .bind::<Integer, _>(number)
        .bind::<Integer, _>(tenant_sql(tenant))
        .bind::<Text, _>(scope.as_str())
        .execute(connection)
        .map_err(store_error)?;
    names.keep_scope(names.generation(), tenant, scope.clone(), number);
    fresh.scopes.push(number);
    Ok(number)
}
