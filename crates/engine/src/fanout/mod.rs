//! The fan-out: events on their way to the connections that listen to their topics.
//!
//! Who listens to what stands in shards, by topic: an event looks at its topics and at nobody else. Each connection has a
//! mailbox, bounded in bytes; the connection takes what waits there in one go. Whoever reads the log is offered nothing
//! that the log has: the log is the truth, and the mailbox only rings.

mod listener;
mod mailbox;

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use driftline_model::TenantNo;

use crate::events::Event;
use mailbox::{Mailbox, State};

pub use listener::{Listener, Subscribed};
pub use mailbox::{Ear, Heard, Ring};

/// How many shards there are; a topic stands in one of them.
const SHARDS: usize = 32;

/// Knows who listens to what on this node.
#[derive(Debug)]
pub(crate) struct Fanout {
    shards: Box<[Mutex<Shard>]>,
    /// The mailboxes of each tenant, and how far its log was told. The lock is held for one look-up or change.
    tenants: Mutex<HashMap<TenantNo, Audience>>,
    /// Held while events of a tenant are handed out, so that they come to everybody in one order.
    turns: Box<[Mutex<()>]>,
    next: AtomicU64,
    /// Counts events, so that a mailbox knows one that comes by another topic.
    serial: AtomicU64,
}

/// The listeners of topics. The lock is held while one event is handed to the listeners of one topic.
type Shard = HashMap<TenantNo, HashMap<Box<str>, BTreeMap<u64, Follower>>>;

/// Who listens to a topic.
#[derive(Debug)]
struct Follower {
    mailbox: Arc<Mailbox>,
    /// Whether it is a device's topic.
    guarded: bool,
}

#[derive(Debug, Default)]
struct Audience {
    mailboxes: BTreeMap<u64, Weak<Mailbox>>,
    /// The last event that was told; none: nothing was told since the first of them came.
    told: Option<u64>,
}

impl Fanout {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            tenants: Mutex::default(),
            turns: (0..SHARDS).map(|_| Mutex::default()).collect(),
            next: AtomicU64::new(1),
            serial: AtomicU64::new(1),
        }
    }

    fn shard(&self, tenant: TenantNo, topic: &str) -> MutexGuard<'_, Shard> {
        let mut hasher = DefaultHasher::new();
        (tenant, topic).hash(&mut hasher);
        #[expect(clippy::cast_possible_truncation, reason = "only the shard's place is wanted")]
        let at = hasher.finish() as usize % SHARDS;
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, tenant: TenantNo) -> MutexGuard<'_, ()> {
        let turn = &self.turns[tenant.number() as usize % SHARDS];
        turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tenants(&self) -> MutexGuard<'_, HashMap<TenantNo, Audience>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whether anybody of a tenant listens.
    pub(crate) fn is_heard(&self, tenant: TenantNo) -> bool {
        self.tenants().contains_key(&tenant)
    }

    /// Hands a commit's events to whoever listens, in the order of the log. A hole has everybody read the log.
    pub(crate) fn tell(&self, tenant: TenantNo, before: u64, head: u64, events: &[Arc<Event>]) {
        let _turn = self.turn(tenant);
        let numbered = events.iter().filter(|event| event.id.is_some()).count() as u64;
        let holed = {
            let mut tenants = self.tenants();
            let Some(audience) = tenants.get_mut(&tenant) else { return };
            let told = audience.told.replace(audience.told.unwrap_or(0).max(head));
            told.is_some_and(|told| before > told) || head.saturating_sub(before) > numbered
        };
        // Whoever has to read the log is sent there before a later event moves its place.
        if holed {
            self.all(tenant, |mailbox| {
                let mut inside = mailbox.inside();
                if matches!(inside.state, State::Open | State::Hole) {
                    inside.state = State::Hole;
                    let at = inside.follow.position();
                    inside.follow.read_from(at);
                    // A page that was read before the hole was noticed does not fill it.
                    inside.follow.offer(head);
                }
                drop(inside);
                mailbox.waker.wake();
            });
        }
        let mut rung = Vec::new();
        for event in events {
            self.hand_out(tenant, event, &mut rung);
        }
        // All of a commit waits before the first connection wakes, so that each writes it in one go.
        for mailbox in rung {
            mailbox.waker.wake();
        }
    }

    /// Hands an event to whoever listens that the log does not keep; gives how many connections it reached.
    pub(crate) fn tell_now(&self, tenant: TenantNo, event: &Arc<Event>) -> u32 {
        if !self.is_heard(tenant) {
            return 0;
        }
        let _turn = self.turn(tenant);
        let mut rung = Vec::new();
        let reached = self.hand_out(tenant, event, &mut rung);
        for mailbox in rung {
            mailbox.waker.wake();
        }
        reached
    }

    fn hand_out(&self, tenant: TenantNo, event: &Arc<Event>, rung: &mut Vec<Arc<Mailbox>>) -> u32 {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let mut reached = 0;
        for (at, topic) in event.topics.iter().enumerate() {
            let shard = self.shard(tenant, topic);
            let Some(mailboxes) = shard.get(&tenant).and_then(|topics| topics.get(&**topic)) else {
                continue;
            };
            for Follower { mailbox, guarded } in mailboxes.values() {
                let (heard, ring) = mailbox.offer(event, (at, *guarded), serial);
                reached += u32::from(heard);
                if ring {
                    rung.push(Arc::clone(mailbox));
                }
            }
        }
        if let Some(owner) = &event.owner {
            reached += self.hand_to_user(tenant, event, &devices_of(owner.user()), serial, rung);
        }
        event.count_reached(reached);
        reached
    }

    /// Hands an event to whoever follows all devices of its owner: by the first of its topics that the user may hear.
    fn hand_to_user(
        &self,
        tenant: TenantNo,
        event: &Arc<Event>,
        follows: &str,
        serial: u64,
        rung: &mut Vec<Arc<Mailbox>>,
    ) -> u32 {
        let Some(open) = event.topics.iter().position(|topic| topic.starts_with(DEVICE_TOPIC)) else {
            return 0;
        };
        let shard = self.shard(tenant, follows);
        let Some(mailboxes) = shard.get(&tenant).and_then(|topics| topics.get(follows)) else { return 0 };
        let mut reached = 0;
        for Follower { mailbox, .. } in mailboxes.values() {
            let (heard, ring) = mailbox.offer(event, (open, true), serial);
            reached += u32::from(heard);
            if ring {
                rung.push(Arc::clone(mailbox));
            }
        }
        reached
    }

    fn all(&self, tenant: TenantNo, mut each: impl FnMut(&Mailbox)) {
        let mailboxes: Vec<Arc<Mailbox>> = {
            let tenants = self.tenants();
            let Some(audience) = tenants.get(&tenant) else { return };
            audience.mailboxes.values().filter_map(Weak::upgrade).collect()
        };
        for mailbox in mailboxes {
            each(&mailbox);
        }
    }

    /// Ends every listener: the numbers of tenants were voided.
    pub(crate) fn void(&self) {
        let tenants = std::mem::take(&mut *self.tenants());
        for mailbox in tenants.values().flat_map(|audience| audience.mailboxes.values()) {
            if let Some(mailbox) = mailbox.upgrade() {
                mailbox.end(State::Voided);
            }
        }
    }

    /// Counts who listens to what.
    pub(crate) fn count(&self, tenant: TenantNo) -> BTreeMap<Box<str>, usize> {
        let mut counts = BTreeMap::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for (topic, mailboxes) in shard.get(&tenant).into_iter().flatten() {
                counts.insert(topic.clone(), mailboxes.len());
            }
        }
        counts
    }

    /// Tells who listens to a topic, by user with the number of their connections.
    pub(crate) fn present(&self, tenant: TenantNo, topic: &str) -> BTreeMap<Box<str>, usize> {
        let mut users = BTreeMap::new();
        let shard = self.shard(tenant, topic);
        let mailboxes = shard.get(&tenant).and_then(|topics| topics.get(topic));
        for Follower { mailbox, .. } in mailboxes.into_iter().flat_map(BTreeMap::values) {
            *users.entry(mailbox.ear.user.clone()).or_default() += 1;
        }
        users
    }
}

/// What the topic of a device's own events begins with.
pub(crate) const DEVICE_TOPIC: &str = "device_";

/// What names that tell of all devices of a user begin with.
pub(crate) const DEVICES_OF: &str = "~devices_of:";

/// Names what tells of all devices of a user. It is no topic: no topic's name begins so.
#[must_use]
pub fn devices_of(user: &str) -> String {
    format!("{DEVICES_OF}{user}")
}
