//! Names and their numbers, held in memory beside the tables.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use driftline_engine::StoreError;
use driftline_model::{DeviceKey, DeviceNo, KindName, ScopeName, TenantNo};

/// Kinds and scopes of all tenants. Both only grow, but for what a rollback takes back; a number never changes its name.
#[derive(Debug, Default)]
pub(crate) struct Names {
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
    /// How often every name was forgotten.
    forgotten: u64,
}

/// Numbers that were given in a transaction which is not committed yet. They are in the maps already, because a read
/// that begins right after the commit needs them.
#[derive(Debug, Default)]
pub(crate) struct Fresh {
    pub(crate) kinds: Vec<i32>,
    pub(crate) scopes: Vec<i32>,
}

impl Fresh {
    /// Keeps the numbers: their rows are committed.
    pub(crate) fn clear(&mut self) {
        self.kinds.clear();
        self.scopes.clear();
    }
}

pub(crate) fn device_sql(device: DeviceNo) -> i32 {
    i32::try_from(device.number()).expect("the store gives devices numbers of 31 bits")
}

pub(crate) fn device_of(number: i32) -> DeviceNo {
    DeviceNo::new(u32::try_from(number).expect("the store gives devices positive numbers"))
}

/// Joins the stored halves of a device's name.
pub(crate) fn device_key(user: &str, device: &str) -> DeviceKey {
    DeviceKey::from_text(&format!("{user}\u{1}{device}"))
}

pub(crate) fn tenant_sql(tenant: TenantNo) -> i32 {
    i32::try_from(tenant.number()).expect("the store gives tenants numbers of 31 bits")
}

pub(crate) fn tenant_of(number: i32) -> TenantNo {
    TenantNo::new(u32::try_from(number).expect("the store gives tenants positive numbers"))
}

impl Names {
    pub(crate) fn kind(&self, tenant: TenantNo, kind: &KindName) -> Option<i32> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner).kinds.get(&(tenant, kind.clone())).copied()
    }

    pub(crate) fn scope(&self, tenant: TenantNo, scope: &ScopeName) -> Option<i32> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner).scopes.get(&(tenant, scope.clone())).copied()
    }

    pub(crate) fn kind_name(&self, number: i32) -> Result<KindName, StoreError> {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        maps.kind_names.get(&number).cloned().ok_or_else(|| StoreError::Corrupt("kind_no".into()))
    }

    pub(crate) fn scope_name(&self, number: i32) -> Result<ScopeName, StoreError> {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        maps.scope_names.get(&number).cloned().ok_or_else(|| StoreError::Corrupt("scope_no".into()))
    }

    /// Returns what numbers that are asked for now are kept with.
    pub(crate) fn generation(&self) -> u64 {
        self.maps.read().unwrap_or_else(PoisonError::into_inner).forgotten
    }

    /// Takes note of a kind's number, unless every name was forgotten since it was asked for.
    pub(crate) fn keep_kind(&self, generation: u64, tenant: TenantNo, kind: KindName, number: i32) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        if maps.forgotten != generation {
            return;
        }
        maps.last_kind = maps.last_kind.max(number);
        maps.kind_names.insert(number, kind.clone());
        maps.kinds.insert((tenant, kind), number);
    }

    /// Takes note of a scope's number, unless every name was forgotten since it was asked for.
    pub(crate) fn keep_scope(&self, generation: u64, tenant: TenantNo, scope: ScopeName, number: i32) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        if maps.forgotten != generation {
            return;
        }
        maps.last_scope = maps.last_scope.max(number);
        maps.scope_names.insert(number, scope.clone());
        maps.scopes.insert((tenant, scope), number);
    }

    /// Gives the next number of a kind, for a store that numbers them itself.
    pub(crate) fn next_kind(&self) -> i32 {
        self.next(|maps| &mut maps.last_kind)
    }

    /// Gives the next number of a scope, for a store that numbers them itself.
    pub(crate) fn next_scope(&self) -> i32 {
        self.next(|maps| &mut maps.last_scope)
    }

    fn next(&self, last: fn(&mut Maps) -> &mut i32) -> i32 {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        let last = last(&mut maps);
        *last += 1;
        *last
    }

    /// Forgets every name, after a failover that may have lost some.
    pub(crate) fn clear(&self) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        *maps = Maps { forgotten: maps.forgotten + 1, ..Maps::default() };
    }

    /// Takes numbers back whose rows were rolled back.
    pub(crate) fn forget(&self, fresh: &mut Fresh) {
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
