//! Committed changes on their way to the sessions of a tenant.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use driftline_model::{DeviceNo, Hlc, Seq, TenantNo};
use driftline_protocol::{Change, encode_changes};
use futures_channel::mpsc;

use crate::ports::Listeners;

/// What one commit group changed of one tenant.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The tenant.
    pub tenant: TenantNo,
    /// The head before.
    pub prev_seq: Seq,
    /// The head after.
    pub seq: Seq,
    /// The highest stored clock after.
    pub hlc: Hlc,
    /// The changes in their order; nothing when nobody listened while they were planned.
    pub changes: Option<Arc<[CommittedChange]>>,
    encoded: OnceLock<Arc<str>>,
}

impl Committed {
    /// Puts a commit together.
    #[must_use]
    pub fn new(
        tenant: TenantNo,
        prev_seq: Seq,
        seq: Seq,
        hlc: Hlc,
        changes: Option<Vec<CommittedChange>>,
    ) -> Self {
        Self { tenant, prev_seq, seq, hlc, changes: changes.map(Arc::from), encoded: OnceLock::new() }
    }

    /// Returns all changes as one JSON array, made once for everybody who may see them all.
    #[must_use]
    pub fn encoded(&self) -> Arc<str> {
        let changes = || self.changes.iter().flat_map(|changes| changes.iter()).map(|change| &change.change);
        Arc::clone(self.encoded.get_or_init(|| Arc::from(encode_changes(changes()))))
    }
}

/// One change with its author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedChange {
    /// The device that made it; that device is not told.
    pub device: DeviceNo,
    /// The change as readers get it.
    pub change: Change,
}

/// Knows the sessions of every tenant.
#[derive(Debug)]
pub struct Hub {
    /// Senders by tenant. The lock is held for a push, a removal or one round of sends, none of which waits.
    tenants: Mutex<HashMap<TenantNo, Vec<Subscriber>>>,
    queue: usize,
}

#[derive(Debug)]
struct Subscriber {
    sender: mpsc::Sender<Arc<Committed>>,
}

/// The commits of one tenant, as one session hears them. It ends when dropped.
///
/// A session that falls behind by more than the hub's queue misses commits; it notices by `prev_seq`.
pub type Subscription = mpsc::Receiver<Arc<Committed>>;

impl Hub {
    /// Makes a hub that lets `queue` commits wait for each session.
    #[must_use]
    pub fn new(queue: usize) -> Self {
        Self { tenants: Mutex::default(), queue }
    }

    /// Starts to listen to a tenant.
    #[must_use]
    pub fn subscribe(&self, tenant: TenantNo) -> Subscription {
        let (sender, receiver) = mpsc::channel(self.queue);
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let subscribers = tenants.entry(tenant).or_default();
        // Growth is the moment to forget those who left, so that the cost stays constant per subscriber.
        if subscribers.len() == subscribers.capacity() {
            subscribers.retain(|subscriber| !subscriber.sender.is_closed());
        }
        subscribers.push(Subscriber { sender });
        receiver
    }
}

impl Listeners for Hub {
    fn listening(&self, tenant: TenantNo) -> bool {
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        tenants.get(&tenant).is_some_and(|subscribers| !subscribers.is_empty())
    }

    fn committed(&self, committed: Committed) {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let tenant = committed.tenant;
        let Some(subscribers) = tenants.get_mut(&tenant) else { return };
        let committed = Arc::new(committed);
        subscribers.retain_mut(|subscriber| match subscriber.sender.try_send(Arc::clone(&committed)) {
            Ok(()) => true,
            // A full queue loses this commit; the gap tells the session, which makes its client pull.
            Err(error) => error.is_full(),
        });
        if subscribers.is_empty() {
            tenants.remove(&tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(seq: u64) -> Committed {
        Committed::new(TenantNo::new(1), Seq::new(seq - 1), Seq::new(seq), Hlc::ZERO, Some(Vec::new()))
    }

    #[test]
    fn a_session_hears_its_tenant_until_it_leaves() {
        let hub = Hub::new(4);
        let mut here = hub.subscribe(TenantNo::new(1));
        let mut elsewhere = hub.subscribe(TenantNo::new(2));
        hub.committed(commit(1));
        assert_eq!(here.try_recv().expect("a commit").seq, Seq::new(1));
        assert!(elsewhere.try_recv().is_err());
        drop(here);
        hub.committed(commit(2));
        assert!(!hub.listening(TenantNo::new(1)));
    }

    #[test]
    fn a_full_queue_loses_commits_but_not_the_subscription() {
        let hub = Hub::new(1);
        let mut slow = hub.subscribe(TenantNo::new(1));
        for seq in 1..=5 {
            hub.committed(commit(seq));
        }
        let mut heard = Vec::new();
        while let Ok(committed) = slow.try_recv() {
            heard.push(committed.seq.number());
        }
        assert_eq!(heard, [1, 2], "one queued and one in the sender's own slot");
        hub.committed(commit(6));
        let later = slow.try_recv().expect("still subscribed");
        assert_eq!((later.prev_seq, later.seq), (Seq::new(5), Seq::new(6)));
    }
}
