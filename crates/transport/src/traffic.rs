//! What comes and goes, by tenant, as dashboards show it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use driftline_engine::EventDraft;
use driftline_model::TenantNo;

/// The type and the topic of the event that tells of traffic.
pub(crate) const SERVER_METRICS: &str = "server_metrics";

/// What is counted of every tenant that has connections.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// The lock is held for one look-up, or for one look at all tenants, which waits for nothing.
    tenants: Mutex<HashMap<TenantNo, Watched>>,
}

/// The counters of one tenant, shared by its connections.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    connections: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
}

/// A connection that is counted for as long as this lives.
#[derive(Debug)]
pub(crate) struct Counted(Arc<Tally>);

#[derive(Debug, Default)]
struct Watched {
    tally: Arc<Tally>,
    /// The counts of messages at the last look, and when that was.
    seen: (u64, u64, u64),
    told: Option<Values>,
}

/// Names and values, as they are told.
type Values = [(&'static str, u64); 3];

impl Counted {
    pub(crate) fn received(&self) {
        self.0.received.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, messages: u64) {
        self.0.sent.fetch_add(messages, Ordering::Relaxed);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Traffic {
    /// Counts a connection of a tenant.
    pub(crate) fn count(&self, tenant: TenantNo) -> Counted {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let tally = Arc::clone(&tenants.entry(tenant).or_default().tally);
        tally.connections.fetch_add(1, Ordering::Relaxed);
        Counted(tally)
    }

    /// Looks at every tenant once a second and tells what changed since the last look.
    pub(crate) fn look(&self, now_ms: u64, mut tell: impl FnMut(TenantNo, EventDraft)) {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        for (tenant, watched) in tenants.iter_mut() {
            let values = watched.measure(now_ms);
            let told = watched.told.replace(values);
            let changed = values
                .iter()
                .enumerate()
                .filter(|(at, value)| told.as_ref().is_none_or(|told| told[*at] != **value));
            let changed: Vec<_> = changed.map(|(_, value)| *value).collect();
            if !changed.is_empty() {
                tell(*tenant, signal(&changed, now_ms));
            }
        }
        tenants.retain(|_, watched| Arc::strong_count(&watched.tally) > 1);
    }

    /// Returns all that was last told of a tenant, for somebody who begins to listen.
    pub(crate) fn whole(&self, tenant: TenantNo, now_ms: u64) -> EventDraft {
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let known = tenants.get(&tenant);
        let told = known.and_then(|watched| watched.told);
        let connections = known.map_or(0, |watched| watched.tally.connections.load(Ordering::Relaxed));
        signal(&told.unwrap_or(values(connections, 0, 0)), now_ms)
    }
}

impl Watched {
    fn measure(&mut self, now_ms: u64) -> Values {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (received, sent) = (load(&self.tally.received), load(&self.tally.sent));
        let (received_before, sent_before, before_ms) =
            std::mem::replace(&mut self.seen, (received, sent, now_ms));
        let elapsed_ms = now_ms.saturating_sub(before_ms).clamp(1000, 10_000);
        let per_s = |now: u64, before: u64| (now.saturating_sub(before) * 1000).div_ceil(elapsed_ms);
        values(load(&self.tally.connections), per_s(received, received_before), per_s(sent, sent_before))
    }
}

const fn values(connections: u64, received: u64, sent: u64) -> Values {
    [("connections", connections), ("messages_per_s", received), ("messages_out_per_s", sent)]
}

fn signal(values: &[(&'static str, u64)], at_ms: u64) -> EventDraft {
    let mut data = String::from("{");
    for (at, (name, value)) in values.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        // Writing to a string does not fail.
        let _ = write!(data, "{comma}\"{name}\":{value}");
    }
    data.push('}');
    let topics = vec![SERVER_METRICS.into()];
    EventDraft { durable: false, ..EventDraft::new(SERVER_METRICS, topics, data.into(), at_ms) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(traffic: &Traffic, now_ms: u64) -> Vec<String> {
        let mut told = Vec::new();
        traffic.look(now_ms, |_, signal| told.push(signal.data.to_string()));
        told
    }

    #[test]
    fn only_what_changed_is_told() {
        let traffic = Traffic::default();
        let tenant = TenantNo::new(1);
        let connection = traffic.count(tenant);
        let first = r#"{"connections":1,"messages_per_s":0,"messages_out_per_s":0}"#;
        assert_eq!(look(&traffic, 1_000), [first]);
        assert_eq!(look(&traffic, 2_000), Vec::<String>::new());
        connection.received();
        connection.received();
        assert_eq!(look(&traffic, 3_000), [r#"{"messages_per_s":2}"#]);
        assert_eq!(
            &*traffic.whole(tenant, 0).data,
            r#"{"connections":1,"messages_per_s":2,"messages_out_per_s":0}"#
        );
        drop(connection);
        assert_eq!(look(&traffic, 4_000), [r#"{"connections":0,"messages_per_s":0}"#]);
        assert_eq!(look(&traffic, 5_000), Vec::<String>::new());
        assert!(traffic.tenants.lock().unwrap().is_empty());
    }
}
