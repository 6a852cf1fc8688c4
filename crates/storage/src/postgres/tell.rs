//! Telling listeners of commits: of each tenant in the order of its log and without a hole, whichever node made them.
//!
//! Whoever commits takes a turn while the head is locked, so that turns stand in the order of the log, and tells when the
//! turn has come. What other nodes published since the last turn is read from the log and told first. When no turn is
//! taken, the watch of the heads takes one for what other nodes did meanwhile.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use driftline_engine::Committed;
use driftline_model::{Hlc, Seq, TenantNo};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::{Shared, log};

/// Of more events than this nobody is told one by one: whoever listens reads the log.
const MISSED_MAX: u64 = 10_000;
/// Events, and bytes of their data, that are read and told in one go.
const PAGE_ROWS: i64 = 500;
const PAGE_BYTES: i64 = 1 << 20;
/// After which time a log that cannot be read is left to whoever listens.
const UNREAD: Duration = Duration::from_secs(10);

/// Up to where the listeners of each tenant were told.
#[derive(Default)]
pub(super) struct Tellers(Mutex<Tenants>);

/// The tenants that were asked for. One entry for each, however many there are: a tenant that is not looked at hears
/// nothing of other nodes. The lock is held for a look-up or an insertion.
#[derive(Default)]
struct Tenants {
    tellers: HashMap<TenantNo, Teller>,
    /// How often everything was forgotten.
    forgotten: u64,
    /// The number of the last turn.
    last_turn: u64,
}

#[derive(Default)]
struct Teller {
    told: Told,
    /// The turns that are taken, in the order of the log.
    turns: VecDeque<u64>,
    /// Rings whenever a turn ends.
    ended: Arc<Notify>,
}

/// A place up to which listeners were told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Told {
    /// The last change; none: not known.
    seq: Option<Seq>,
    /// The last event; none: nobody listened.
    event: Option<u64>,
}

/// The head of a tenant as the watch saw it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) seq: Seq,
    pub(super) hlc: Hlc,
    pub(super) event: u64,
    /// How often everything was forgotten before.
    pub(super) forgotten: u64,
}

/// Has the listeners of a tenant told of what other nodes did up to a head, unless a commit of this node is under way.
pub(super) fn tell_seen(shared: &Arc<Shared>, tenant: TenantNo, seen: Seen) {
    let listening = shared.listeners.listening(tenant);
    if !shared.caches.tellers.is_news(tenant, &seen, listening) {
        return;
    }
    let shared = Arc::clone(shared);
    // The log may have to be read, which no other tenant is to wait for.
    shared.runtime.clone().spawn(async move {
        if let Some(turn) = shared.caches.tellers.take_idle(tenant, seen.forgotten) {
            turn.tell_seen(&shared, seen).await;
        }
    });
}

impl Tellers {
    /// Takes note of a tenant that may have listeners.
    pub(super) fn watch(&self, tenant: TenantNo) {
        self.tenants().tellers.entry(tenant).or_default();
    }

    /// Returns the tenants that may have listeners.
    pub(super) fn watched(&self) -> Vec<TenantNo> {
        self.tenants().tellers.keys().copied().collect()
    }

    /// Forgets up to where listeners were told, but not who may listen.
    pub(super) fn clear(&self) {
        let mut tenants = self.tenants();
        tenants.forgotten += 1;
        tenants.tellers.values_mut().for_each(|teller| teller.told = Told::default());
    }

    /// Takes the next turn of a tenant, whose head is locked by whoever takes it.
    pub(super) fn take_turn(&self, tenant: TenantNo) -> Turn<'_> {
        let mut tenants = self.tenants();
        tenants.last_turn += 1;
        let (number, forgotten) = (tenants.last_turn, tenants.forgotten);
        let teller = tenants.tellers.entry(tenant).or_default();
        teller.turns.push_back(number);
        Turn { tellers: self, tenant, number, forgotten, ended: Arc::clone(&teller.ended) }
    }

    /// Takes a turn of a tenant unless one is taken: a commit of this node may be under way then, and tells itself. Nor
    /// is one taken when everything was forgotten since the head was seen.
    fn take_idle(&self, tenant: TenantNo, forgotten: u64) -> Option<Turn<'_>> {
        let turn = self.take_turn(tenant);
        (turn.has_come() && turn.forgotten == forgotten).then_some(turn)
    }

    /// Returns how often everything was forgotten.
    pub(super) fn forgotten(&self) -> u64 {
        self.tenants().forgotten
    }

    /// Tells whether a head is news: for its changes, its events or because somebody began to listen, or no more does.
    fn is_news(&self, tenant: TenantNo, seen: &Seen, listening: bool) -> bool {
        let news = Told { seq: Some(seen.seq), event: listening.then_some(seen.event) };
        self.tenants().tellers.get(&tenant).is_none_or(|teller| teller.told != news)
    }

    fn tenants(&self) -> MutexGuard<'_, Tenants> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn to tell the listeners of a tenant. It ends when it is dropped.
pub(super) struct Turn<'a> {
    tellers: &'a Tellers,
    tenant: TenantNo,
    number: u64,
    /// How often everything was forgotten when it was taken.
    forgotten: u64,
    ended: Arc<Notify>,
}

impl Turn<'_> {
    fn has_come(&self) -> bool {
        let tenants = self.tellers.tenants();
        tenants.tellers.get(&self.tenant).is_some_and(|teller| teller.turns.front() == Some(&self.number))
    }

    async fn comes(&self) {
        loop {
            let ended = self.ended.notified();
            if self.has_come() {
                return;
            }
            ended.await;
        }
    }

    /// Returns up to where listeners were told.
    fn told(&self) -> Told {
        let tenants = self.tellers.tenants();
        let told = tenants.tellers.get(&self.tenant).map(|teller| teller.told);
        told.filter(|_| tenants.forgotten == self.forgotten).unwrap_or_default()
    }

    /// Takes note of up to where listeners were told, unless everything was forgotten since the turn was taken.
    fn note(&self, told: Told) {
        let mut tenants = self.tellers.tenants();
        if tenants.forgotten == self.forgotten {
            tenants.tellers.entry(self.tenant).or_default().told = told;
        }
    }

    /// Tells of a commit of this node once the turn has come, behind what other nodes published before it.
    pub(super) async fn tell(self, shared: &Shared, committed: Committed) {
        self.comes().await;
        let (told, listening) = (self.told(), shared.listeners.listening(self.tenant));
        if let Some(event) = told.event.filter(|event| listening && *event < committed.prev_event) {
            let seq = told.seq.unwrap_or(committed.prev_seq);
            self.catch_up(shared, (event, committed.prev_event), (seq, committed.hlc)).await;
        }
        // A commit that changes nothing tells nothing of what other nodes changed before it.
        let before = told.seq.unwrap_or(Seq::ZERO);
        if listening && committed.seq == committed.prev_seq && before < committed.seq {
            let moved = Committed::new(self.tenant, before, committed.seq, committed.hlc, None);
            shared.listeners.committed(moved);
        }
        let told = Told { seq: Some(committed.seq), event: listening.then_some(committed.event) };
        shared.listeners.committed(committed);
        self.note(told);
    }

    /// Tells of what other nodes did up to a head that was seen before the turn was taken.
    async fn tell_seen(self, shared: &Shared, seen: Seen) {
        let (told, listening) = (self.told(), shared.listeners.listening(self.tenant));
        // Of a tenant that was never looked at, a session may have read the head before somebody else moved it. To one
        // that stands there already it is no news.
        let before = told.seq.unwrap_or(Seq::ZERO);
        let moved = listening && seen.seq > before;
        if moved {
            let (prev_event, event) = told.event.map_or((0, seen.event), |event| (event, event));
            let moved = Committed::new(self.tenant, before, seen.seq, seen.hlc, None);
            shared.listeners.committed(moved.with_events(prev_event, event, Vec::new()));
        }
        let event = match told.event {
            _ if !listening => None,
            Some(event) if event >= seen.event => Some(event),
            Some(event) => {
                self.catch_up(shared, (event, seen.event), (seen.seq, seen.hlc)).await;
                Some(seen.event)
            }
            // Whoever began to listen may stand before events that nobody was told of.
            None if seen.event > 0 && !moved => {
                self.skip(shared, (0, seen.event), (seen.seq, seen.hlc));
                Some(seen.event)
            }
            None => Some(seen.event),
        };
        // A change may also stand lower than before: the database lost commits, and the next ones are to be told again.
        self.note(Told { seq: Some(seen.seq), event });
    }

    /// Tells of the events behind one place and up to another one, as the log has them.
    async fn catch_up(&self, shared: &Shared, (after, until): (u64, u64), at: (Seq, Hlc)) {
        let mut after = after;
        while until - after <= MISSED_MAX && after < until {
            let range = log::range(shared, self.tenant, (after, until), (PAGE_ROWS, PAGE_BYTES));
            let (events, more) = match timeout(UNREAD, range).await {
                Ok(Ok(read)) => read,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "events of another node cannot be read");
                    break;
                }
                Err(_) => break,
            };
            // What is not there was trimmed.
            let last = events.iter().filter_map(|event| event.id).next_back();
            let upto = last.filter(|_| more).unwrap_or(until);
            let committed = Committed::new(self.tenant, at.0, at.0, at.1, None);
            shared.listeners.committed(committed.with_events(after, upto, events));
            after = upto;
        }
        if after < until {
            self.skip(shared, (after, until), at);
        }
    }

    /// Tells that there were events, and not which: whoever listens reads the log.
    fn skip(&self, shared: &Shared, (after, until): (u64, u64), (seq, hlc): (Seq, Hlc)) {
        let committed = Committed::new(self.tenant, seq, seq, hlc, None);
        shared.listeners.committed(committed.with_events(after, until, Vec::new()));
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(teller) = self.tellers.tenants().tellers.get_mut(&self.tenant) {
            teller.turns.retain(|number| *number != self.number);
        }
        self.ended.notify_waiters();
    }
}
