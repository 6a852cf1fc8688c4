//! Names and their numbers, held in memory beside the tables.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Integer, Text};
use driftline_engine::StoreError;
use driftline_model::{KindName, ScopeName, TenantNo};

use super::store_error;

/// Kinds and scopes of all tenants. Both only grow; a number never changes its name.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// The lock is held for look-ups and insertions only, never across a query.
    maps: RwLock<Maps>,
}

#[derive(Debug, Default)]
struct Maps {
    kinds: HashMap<(TenantNo, KindName), i32>,
    kind_names: HashMap<i32, KindName>,
    scopes: HashMap<(TenantNo, ScopeName), i32>,
    scope_names: HashMap<i32, ScopeName>,
}

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

pub(super) fn tenant_sql(tenant: TenantNo) -> i32 {
    i32::try_from(tenant.number()).expect("the store gives tenants numbers of 31 bits")
}

pub(super) fn tenant_of(number: i32) -> TenantNo {
    TenantNo::new(u32::try_from(number).expect("the store gives tenants positive numbers"))
}

impl Names {
    /// Loads every name.
    pub(super) fn load(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        let kinds: Vec<NumberedKind> =
            sql_query("SELECT kind_no, tenant_no, kind FROM kinds").load(connection).map_err(store_error)?;
        let scopes: Vec<NumberedScope> = sql_query("SELECT scope_no, tenant_no, scope FROM scopes")
            .load(connection)
            .map_err(store_error)?;
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        for row in kinds {
            let kind = KindName::new(&row.kind).map_err(|_| StoreError::Corrupt("kind".into()))?;
            maps.kind_names.insert(row.kind_no, kind.clone());
            maps.kinds.insert((tenant_of(row.tenant_no), kind), row.kind_no);
        }
        for row in scopes {
            let scope = ScopeName::new(&row.scope).map_err(|_| StoreError::Corrupt("scope".into()))?;
            maps.scope_names.insert(row.scope_no, scope.clone());
            maps.scopes.insert((tenant_of(row.tenant_no), scope), row.scope_no);
        }
        Ok(())
    }

    pub(super) fn kind(&self, tenant: TenantNo, kind: &KindName) -> Option<i32> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner).kinds.get(&(tenant, kind.clone())).copied()
    }

    pub(super) fn scope(&self, tenant: TenantNo, scope: &ScopeName) -> Option<i32> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner).scopes.get(&(tenant, scope.clone())).copied()
    }

    pub(super) fn kind_name(&self, number: i32) -> Result<KindName, StoreError> {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        maps.kind_names.get(&number).cloned().ok_or_else(|| StoreError::Corrupt("kind_no".into()))
    }

    pub(super) fn scope_name(&self, number: i32) -> Result<ScopeName, StoreError> {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        maps.scope_names.get(&number).cloned().ok_or_else(|| StoreError::Corrupt("scope_no".into()))
    }

    /// Finds a kind's number, giving it one; only the writer does this.
    pub(super) fn intern_kind(
        &self,
        connection: &mut SqliteConnection,
        tenant: TenantNo,
        kind: &KindName,
    ) -> Result<i32, StoreError> {
        if let Some(number) = self.kind(tenant, kind) {
            return Ok(number);
        }
        let row: NumberedKind =
            sql_query("INSERT INTO kinds (tenant_no, kind) VALUES (?, ?) RETURNING kind_no, tenant_no, kind")
                .bind::<Integer, _>(tenant_sql(tenant))
                .bind::<Text, _>(kind.as_str())
                .get_result(connection)
                .map_err(store_error)?;
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        maps.kind_names.insert(row.kind_no, kind.clone());
        maps.kinds.insert((tenant, kind.clone()), row.kind_no);
        Ok(row.kind_no)
    }

    /// Finds a scope's number, giving it one; only the writer does this.
    pub(super) fn intern_scope(
        &self,
        connection: &mut SqliteConnection,
        tenant: TenantNo,
        scope: &ScopeName,
    ) -> Result<i32, StoreError> {
        if let Some(number) = self.scope(tenant, scope) {
            return Ok(number);
        }
        let row: NumberedScope = sql_query(
            "INSERT INTO scopes (tenant_no, scope) VALUES (?, ?) RETURNING scope_no, tenant_no, scope",
        )
        .bind::<Integer, _>(tenant_sql(tenant))
        .bind::<Text, _>(scope.as_str())
        .get_result(connection)
        .map_err(store_error)?;
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        maps.scope_names.insert(row.scope_no, scope.clone());
        maps.scopes.insert((tenant, scope.clone()), row.scope_no);
        Ok(row.scope_no)
    }
}
