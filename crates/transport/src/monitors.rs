//! Monitored devices whose time is running.
//!
//! The log knows what is monitored; this only knows when to look at what. A node looks again now and then, so that it ends
//! what a node that is gone began.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use driftline_engine::{Monitored, Store};
use driftline_model::{DeviceId, TenantNo};

use crate::app::App;

/// A tenant's log is looked at once in so many milliseconds while the tenant has connections here.
const LOOK_MS: u64 = 60_000;

#[derive(Debug, Default)]
pub(crate) struct Monitors {
    /// The lock is held for one look-up or change.
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    /// How often numbers of tenants were voided when the first of them came.
    numbering: u64,
    running: HashMap<(TenantNo, DeviceId), Monitored>,
    /// When each tenant's log was looked at.
    looked: HashMap<TenantNo, u64>,
}

impl Monitors {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes down that a device is monitored.
    pub(crate) fn note(&self, tenant: TenantNo, monitored: Monitored, numbering: u64) {
        self.look_for_voided(numbering);
        self.inside().running.insert((tenant, monitored.device.clone()), monitored);
    }

    /// Forgets everything if numbers of tenants were voided: the log says it again.
    fn look_for_voided(&self, numbering: u64) {
        let mut inside = self.inside();
        if inside.numbering != numbering {
            *inside = Inside { numbering, ..Inside::default() };
        }
    }

    fn to_look_at(&self, here: Vec<TenantNo>, now_ms: u64) -> Vec<TenantNo> {
        let mut inside = self.inside();
        inside.looked.retain(|tenant, _| here.contains(tenant));
        let due = |tenant: &TenantNo| inside.looked.get(tenant).is_none_or(|at_ms| now_ms >= at_ms + LOOK_MS);
        here.into_iter().filter(due).collect()
    }

    fn over(&self, now_ms: u64) -> Vec<(TenantNo, Monitored)> {
        let inside = self.inside();
        let over = inside.running.iter().filter(|(_, monitored)| monitored.until_ms <= now_ms);
        over.map(|((tenant, _), monitored)| (*tenant, monitored.clone())).collect()
    }
}

impl<S: Store> App<S> {
    /// Has the monitoring of devices end whose time is over. What the store does not take waits for the next time.
    pub(crate) async fn end_monitoring(&self, now_ms: u64) {
        self.monitors.look_for_voided(self.engine.numbering());
        for tenant in self.monitors.to_look_at(self.sessions.tenants_here(), now_ms) {
            let Ok(found) = self.engine.all_monitored(tenant).await else { return };
            let mut inside = self.monitors.inside();
            inside.looked.insert(tenant, now_ms);
            let found = found.into_iter().map(|monitored| ((tenant, monitored.device.clone()), monitored));
            inside.running.extend(found);
        }
        for (tenant, monitored) in self.monitors.over(now_ms) {
            if self.engine.end_monitoring(tenant, &monitored, now_ms).await.is_err() {
                tracing::warn!("that the monitoring of a device is over is told later");
                return;
            }
            let mut inside = self.monitors.inside();
            let key = (tenant, monitored.device.clone());
            if inside.running.get(&key).is_some_and(|running| running.event == monitored.event) {
                inside.running.remove(&key);
            }
        }
    }
}
