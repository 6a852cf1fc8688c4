//! What a node remembers of the tables: numbers never change their names, so nothing here ages but by a failover.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use driftline_model::{DeviceKey, DeviceNo, TenantId, TenantNo};

use super::commit::Months;
use super::tell::Tellers;
use crate::names::Names;

/// Entries that each of the maps holds at most.
const ENTRIES_MAX: usize = 200_000;

#[derive(Default)]
pub(super) struct Caches {
    /// How often everything was forgotten.
    forgotten: AtomicU64,
    pub(super) names: Names,
    pub(super) tenants: Cache<TenantId, TenantNo>,
    pub(super) devices: Cache<(TenantNo, DeviceKey), DeviceNo>,
    pub(super) device_names: Cache<DeviceNo, DeviceKey>,
    /// The highest number that each device was seen with; another node may know a higher one.
    pub(super) last_ns: Cache<DeviceNo, u64>,
    pub(super) months: Months,
    pub(super) topics: Cache<(TenantNo, Box<str>), i32>,
    pub(super) tellers: Tellers,
}

impl Caches {
    /// Returns what numbers that are asked for now are kept with.
    pub(super) fn generation(&self) -> u64 {
        self.forgotten.load(Ordering::SeqCst)
    }

    /// Keeps a tenant's number, unless everything was forgotten since it was asked for.
    pub(super) fn keep_tenant(&self, generation: u64, tenant: &TenantId, number: TenantNo) {
        self.tenants.insert_if(|| self.generation() == generation, tenant.clone(), number);
    }

    /// Keeps a device's number, unless everything was forgotten since it was asked for.
    pub(super) fn keep_device(&self, generation: u64, key: (TenantNo, DeviceKey), number: DeviceNo) {
        self.device_names.insert_if(|| self.generation() == generation, number, key.1.clone());
        self.devices.insert_if(|| self.generation() == generation, key, number);
    }

    /// Keeps a topic's number, unless everything was forgotten since it was asked for.
    pub(super) fn keep_topic(&self, generation: u64, tenant: TenantNo, topic: &str, number: i32) {
        self.topics.insert_if(|| self.generation() == generation, (tenant, topic.into()), number);
    }

    /// Forgets everything, but which tenants may have listeners: these may stay.
    pub(super) fn clear(&self) {
        self.tellers.clear();
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        self.names.clear();
        self.tenants.clear();
        self.devices.clear();
        self.device_names.clear();
        self.last_ns.clear();
        self.months.clear();
        self.topics.clear();
    }
}

/// A bounded map. The lock is held for a look-up or an insertion.
pub(super) struct Cache<K, V>(Mutex<HashMap<K, V>>);

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    pub(super) fn get(&self, key: &K) -> Option<V> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub(super) fn insert(&self, key: K, value: V) {
        self.insert_if(|| true, key, value);
    }

    /// Inserts if that still holds when the lock is taken: whoever clears the map says first that it does not.
    fn insert_if(&self, holds: impl FnOnce() -> bool, key: K, value: V) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !holds() {
            return;
        }
        if map.len() >= ENTRIES_MAX {
            map.clear();
        }
        map.insert(key, value);
    }

    fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
