//! Names and their numbers, held in memory beside the tables.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Integer, Text};
use driftline_engine::StoreError;
use driftline_model::{KindName, ScopeName, TenantNo};

use super::store_error;

/// Kinds and scopes of all tenants. Both only grow, but for what a rollback takes back; a number never changes its name.
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
    /// The largest numbers that were ever given. Those that are taken back are not given again, so that a read which
    /// found one under its old name cannot meet another's rows.
    last_kind: i32,
    last_scope: i32,
}

/// Numbers that were given in a transaction which is not committed yet. They are in the maps already, because a read
/// that begins right after the commit needs them.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    kinds: Vec<i32>,
    scopes: Vec<i32>,
}

impl Fresh {
    /// Keeps the numbers: their rows are committed.
    pub(super) fn clear(&mut self) {
        self.kinds.clear();
        self.scopes.clear();
    }
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
            maps.last_kind = maps.last_kind.max(row.kind_no);
            maps.kind_names.insert(row.kind_no, kind.clone());
            maps.kinds.insert((tenant_of(row.tenant_no), kind), row.kind_no);
        }
        for row in scopes {
            let scope = ScopeName::new(&row.scope).map_err(|_| StoreError::Corrupt("scope".into()))?;
            maps.last_scope = maps.last_scope.max(row.scope_no);
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
        fresh: &mut Fresh,
    ) -> Result<i32, StoreError> {
        if let Some(number) = self.kind(tenant, kind) {
            return Ok(number);
        }
        let number = self.next(|maps| &mut maps.last_kind);
        sql_query("INSERT INTO kinds (kind_no, tenant_no, kind) VALUES (?, ?, ?)")
            .bind::<Integer, _>(number)
            .bind::<Integer, _>(tenant_sql(tenant))
            .bind::<Text, _>(kind.as_str())
            .execute(connection)
            .map_err(store_error)?;
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        maps.kind_names.insert(number, kind.clone());
        maps.kinds.insert((tenant, kind.clone()), number);
        fresh.kinds.push(number);
        Ok(number)
    }

    /// Finds a scope's number, giving it one; only the writer does this.
    pub(super) fn intern_scope(
        &self,
        connection: &mut SqliteConnection,
        tenant: TenantNo,
        scope: &ScopeName,
        fresh: &mut Fresh,
    ) -> Result<i32, StoreError> {
        if let Some(number) = self.scope(tenant, scope) {
            return Ok(number);
        }
        let number = self.next(|maps| &mut maps.last_scope);
        sql_query("INSERT INTO scopes (scope_no, tenant_no, scope) VALUES (?, ?, ?)")
            .bind::<Integer, _>(number)
            .bind::<Integer, _>(tenant_sql(tenant))
            .bind::<Text, _>(scope.as_str())
            .execute(connection)
            .map_err(store_error)?;
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        maps.scope_names.insert(number, scope.clone());
        maps.scopes.insert((tenant, scope.clone()), number);
        fresh.scopes.push(number);
        Ok(number)
    }

    fn next(&self, last: fn(&mut Maps) -> &mut i32) -> i32 {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        let last = last(&mut maps);
        *last += 1;
        *last
    }

    /// Takes numbers back whose rows were rolled back.
    pub(super) fn forget(&self, fresh: &mut Fresh) {
        if fresh.kinds.is_empty() && fresh.scopes.is_empty() {
            return;
        }
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        for number in fresh.kinds.drain(..) {
            maps.kind_names.remove(&number);
            maps.kinds.retain(|_, known| *known != number);
        }
        for number in fresh.scopes.drain(..) {
            maps.scope_names.remove(&number);
            maps.scopes.retain(|_, known| *known != number);
        }
    }
}
