//! Committed changes on their way to the sessions of a tenant, and what else a store tells its node.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};

use driftline_model::{DeviceNo, Epoch, Hlc, ScopeName, Seq, TenantNo};
use driftline_protocol::{Change, RecordView, encode_changes};
use futures_channel::mpsc;
use futures_util::Stream;

use crate::events::{Event, EventDraft};
use crate::fanout::Fanout;
use crate::policies::Policies;
use crate::ports::Listeners;
use crate::review::ConflictRow;

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
    /// The changes in their order; nothing when nobody listened while they were planned, or when another node made
    /// them: then sessions have their clients pull.
    pub changes: Option<Arc<[CommittedChange]>>,
    /// Conflicts that were opened, joined or decided, as they are now.
    pub conflicts: Arc<[CommittedConflict]>,
    /// The number of the last event before.
    pub prev_event: u64,
    /// The number of the last event after.
    pub event: u64,
    /// The events, those that the log does not keep among them.
    pub events: Vec<Arc<Event>>,
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
        let changes = changes.map(Arc::from);
        Self {
            tenant,
            prev_seq,
            seq,
            hlc,
            changes,
            conflicts: Arc::new([]),
            prev_event: 0,
            event: 0,
            events: Vec::new(),
            encoded: OnceLock::new(),
        }
    }

    /// Adds events, with the numbers of the last event before and after.
    #[must_use]
    pub fn with_events(mut self, prev_event: u64, event: u64, events: Vec<Arc<Event>>) -> Self {
        (self.prev_event, self.event, self.events) = (prev_event, event, events);
        self
    }

    /// Adds conflicts.
    #[must_use]
    pub fn with_conflicts(mut self, conflicts: Vec<CommittedConflict>) -> Self {
        self.conflicts = conflicts.into();
        self
    }

    /// Returns all changes as one JSON array, made once for everybody who saw and sees them all.
    #[must_use]
    pub fn encoded(&self) -> Arc<str> {
        let changes = || self.changes.iter().flat_map(|changes| changes.iter()).map(|change| &change.change);
        Arc::clone(self.encoded.get_or_init(|| Arc::from(encode_changes(changes()))))
    }
}

/// One change with its author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedChange {
    /// The device that made it, which is not told; none: the server made it, and everybody is told.
    pub device: Option<DeviceNo>,
    /// The change as readers get it who saw the record before.
    pub change: Change,
    /// Set when the record moved from one scope to another.
    pub moved: Option<Box<Moved>>,
}

/// A record that moved from one scope to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The scope that it left.
    pub left: ScopeName,
    /// The whole record, for readers of the new scope who do not read the old one.
    pub put: Change,
    /// What readers of the old scope are told who do not read the new one.
    pub evict: Change,
}

impl CommittedChange {
    /// Returns the change as a reader of these scopes gets it, if it concerns the reader at all.
    #[must_use]
    pub fn seen_by(&self, scopes: &[ScopeName]) -> Option<&Change> {
        let sees = scopes.contains(&self.change.scope);
        match &self.moved {
            None => sees.then_some(&self.change),
            Some(moved) => match (scopes.contains(&moved.left), sees) {
                (true, true) => Some(&self.change),
                (false, true) => Some(&moved.put),
                (true, false) => Some(&moved.evict),
                (false, false) => None,
            },
        }
    }
}

/// A conflict that was opened, joined or decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedConflict {
    /// The conflict as it is now.
    pub row: ConflictRow,
    /// The record as it is now.
    pub record: Option<RecordView>,
}

/// Knows the sessions of every tenant, and what a node holds of its store that the store may take back: policies, and
/// how far numbers can be trusted. One hub belongs to one store and one engine.
#[derive(Debug)]
pub struct Hub {
    /// Senders by tenant. The lock is held for a push, a removal or one round of sends, none of which waits.
    tenants: Mutex<HashMap<TenantNo, Vec<Subscriber>>>,
    queue: usize,
    policies: Policies,
    /// Counts how often numbers were voided.
    numbering: AtomicU64,
    fanout: Fanout,
}

#[derive(Debug)]
struct Subscriber {
    sender: mpsc::Sender<Arc<Committed>>,
    overflow: Overflow,
}

/// The last commit that found the queue full. The lock is held while the queue is tried, so that whoever has emptied
/// the queue finds it here.
type Overflow = Arc<Mutex<Option<Arc<Committed>>>>;

impl Subscriber {
    /// Hands a commit on; tells whether the session is still there.
    fn send(&mut self, committed: &Arc<Committed>) -> bool {
        let mut overflow = self.overflow.lock().unwrap_or_else(PoisonError::into_inner);
        match self.sender.try_send(Arc::clone(committed)) {
            Ok(()) => {
                *overflow = None;
                true
            }
            // A full queue loses commits but the last; the gap tells the session, which makes its client pull.
            Err(error) if error.is_full() => {
                *overflow = Some(Arc::clone(committed));
                true
            }
            Err(_) => false,
        }
    }
}

/// The commits of one tenant, as one session hears them. It ends when dropped, and when the tenant's number was voided:
/// then no commit comes under it any more.
///
/// A session that falls behind by more than the hub's queue misses commits, but never the last one; it notices by
/// `prev_seq`. Dropping a future that waits for the next commit loses none.
#[derive(Debug)]
pub struct Subscription {
    receiver: mpsc::Receiver<Arc<Committed>>,
    overflow: Overflow,
}

impl Subscription {
    /// Takes the next commit, if one waits.
    pub fn try_next(&mut self) -> Option<Arc<Committed>> {
        self.receiver.try_recv().ok().or_else(|| self.overflowed())
    }

    fn overflowed(&self) -> Option<Arc<Committed>> {
        self.overflow.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Stream for Subscription {
    type Item = Arc<Committed>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match Pin::new(&mut self.receiver).poll_next(context) {
            Poll::Ready(Some(committed)) => Poll::Ready(Some(committed)),
            Poll::Ready(None) => Poll::Ready(self.overflowed()),
            Poll::Pending => self.overflowed().map_or(Poll::Pending, |last| Poll::Ready(Some(last))),
        }
    }
}

impl Hub {
    /// Makes a hub that lets `queue` commits wait for each session.
    #[must_use]
    pub fn new(queue: usize) -> Self {
        Self {
            tenants: Mutex::default(),
            queue,
            policies: Policies::default(),
            numbering: AtomicU64::new(0),
            fanout: Fanout::new(),
        }
    }

    /// The policies in force, as far as they are known.
    pub(crate) fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Returns how often numbers of tenants and devices were voided. A number that was found before it rose may stand
    /// for nobody.
    #[must_use]
    pub fn numbering(&self) -> u64 {
        self.numbering.load(Ordering::SeqCst)
    }

    /// Who listens to events.
    pub(crate) fn fanout(&self) -> &Fanout {
        &self.fanout
    }

    /// Tells whoever listens now of an event that the log does not keep; gives how many connections it reached.
    pub(crate) fn tell_now(&self, tenant: TenantNo, draft: &EventDraft) -> u32 {
        self.fanout.tell_now(tenant, &Arc::new(draft.event(Epoch::new(0), None)))
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
        let overflow = Overflow::default();
        subscribers.push(Subscriber { sender, overflow: Arc::clone(&overflow) });
        Subscription { receiver, overflow }
    }
}

impl Listeners for Hub {
    fn listening(&self, tenant: TenantNo) -> bool {
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let syncing = tenants.get(&tenant).is_some_and(|subscribers| !subscribers.is_empty());
        drop(tenants);
        syncing || self.fanout.is_heard(tenant)
    }

    fn committed(&self, committed: Committed) {
        let tenant = committed.tenant;
        if committed.event > committed.prev_event || !committed.events.is_empty() {
            self.fanout.tell(tenant, committed.prev_event, committed.event, &committed.events);
        }
        // A commit of events alone is no news of records.
        if committed.seq == committed.prev_seq && committed.conflicts.is_empty() && committed.event > 0 {
            return;
        }
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(subscribers) = tenants.get_mut(&tenant) else { return };
        let committed = Arc::new(committed);
        subscribers.retain_mut(|subscriber| subscriber.send(&committed));
        if subscribers.is_empty() {
            tenants.remove(&tenant);
        }
    }

    fn policies_changed(&self, tenant: TenantNo) {
        self.policies.forget(tenant);
    }

    fn numbers_voided(&self) {
        // The count rises first: who subscribes under a voided number after the round below sees that it rose.
        self.numbering.fetch_add(1, Ordering::SeqCst);
        self.policies.forget_all();
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.fanout.void();
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
        assert_eq!(here.try_next().expect("a commit").seq, Seq::new(1));
        assert!(elsewhere.try_next().is_none());
        drop(here);
        hub.committed(commit(2));
        assert!(!hub.listening(TenantNo::new(1)));
    }

    #[test]
    fn a_full_queue_loses_commits_but_not_the_last_one() {
        let hub = Hub::new(1);
        let mut slow = hub.subscribe(TenantNo::new(1));
        for seq in 1..=5 {
            hub.committed(commit(seq));
        }
        let mut heard = Vec::new();
        while let Some(committed) = slow.try_next() {
            heard.push(committed.seq.number());
        }
        assert_eq!(heard, [1, 2, 5], "one queued, one in the sender's own slot, and the last");
        hub.committed(commit(6));
        let later = slow.try_next().expect("still subscribed");
        assert_eq!((later.prev_seq, later.seq), (Seq::new(5), Seq::new(6)));
    }

    #[test]
    fn voided_numbers_end_every_subscription_behind_what_was_told() {
        let hub = Hub::new(4);
        let (mut one, mut other) = (hub.subscribe(TenantNo::new(1)), hub.subscribe(TenantNo::new(2)));
        hub.committed(commit(1));
        assert_eq!(hub.numbering(), 0);
        hub.numbers_voided();
        assert_eq!(hub.numbering(), 1);
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut next = |subscription: &mut Subscription| match Pin::new(subscription).poll_next(&mut context)
        {
            Poll::Ready(committed) => Some(committed.map(|committed| committed.seq.number())),
            Poll::Pending => None,
        };
        assert_eq!(
            (next(&mut one), next(&mut one), next(&mut other)),
            (Some(Some(1)), Some(None), Some(None))
        );
        let mut later = hub.subscribe(TenantNo::new(1));
        assert_eq!(next(&mut later), None, "who comes afterwards listens");
        assert!(hub.listening(TenantNo::new(1)) && !hub.listening(TenantNo::new(2)));
    }

    #[test]
    fn what_overflowed_is_old_once_a_later_commit_fits() {
        let hub = Hub::new(1);
        let mut slow = hub.subscribe(TenantNo::new(1));
        for seq in 1..=5 {
            hub.committed(commit(seq));
        }
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut next = || match Pin::new(&mut slow).poll_next(&mut context) {
            Poll::Ready(Some(committed)) => Some(committed.seq.number()),
            _ => None,
        };
        assert_eq!((next(), next()), (Some(1), Some(2)));
        hub.committed(commit(6));
        assert_eq!((next(), next()), (Some(6), None));
    }
}
