//! The fan-out: events on their way to the connections that listen to their topics.
//!
//! Who listens to what stands in shards, by topic: an event looks at its topics and at nobody else. Each connection has a
//! mailbox, bounded in bytes; the connection takes what waits there in one go. Whoever reads the log is offered nothing
//! that the log has: the log is the truth, and the mailbox only rings.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use driftline_model::{DeviceKey, Epoch, TenantNo};
use driftline_realtime::{Filter, Follow, Offer, Pushed, Queue};
use futures_util::task::AtomicWaker;

use crate::events::{Event, EventDraft};
use crate::rules::EventRules;

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
    /// Whether events of devices are heard by this topic only by the device's owner and by staff.
    guarded: bool,
}

#[derive(Debug, Default)]
struct Audience {
    mailboxes: BTreeMap<u64, Weak<Mailbox>>,
    /// The last event that was told; none: nothing was told since the first of them came.
    told: Option<u64>,
}

/// Who listens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ear {
    /// The user.
    pub user: Box<str>,
    /// Whether events of everybody's devices may be heard, and not only of the own ones.
    pub staff: bool,
    /// Only events of this device are wanted.
    pub device: Option<DeviceKey>,
}

impl Ear {
    /// Makes the ear of an identity.
    #[must_use]
    pub fn of(identity: &crate::ports::Identity) -> Self {
        let staff = crate::catalogue::STAFF_ROLES.iter().any(|role| identity.has_role(role));
        // Whoever brings no token owns nothing, whatever other users are called.
        let anonymous = identity.has_role(crate::rules::ANONYMOUS_ROLE);
        let user = if anonymous { "".into() } else { identity.user.to_string().into() };
        Self { user, staff: staff && !anonymous, device: None }
    }

    /// Tells whether an event may be heard by a topic, which may be guarded: of a device, whose owner alone hears of it
    /// beside staff.
    pub(crate) fn may(&self, event: &Event, guarded: bool) -> bool {
        match &event.owner {
            Some(owner) if self.device.as_ref().is_some_and(|device| device != owner) => false,
            _ if !guarded || self.staff => true,
            Some(owner) => *owner.user() == *self.user,
            // Of a device that is nobody's, or of one whose owner is not known, only staff hears.
            None => false,
        }
    }
}

/// What waits for one connection.
#[derive(Debug)]
struct Mailbox {
    ear: Ear,
    /// The lock is held for one event, or while what waits is taken.
    inside: Mutex<Inside>,
    waker: AtomicWaker,
}

#[derive(Debug)]
struct Inside {
    queue: Queue<Waiting>,
    follow: Follow,
    /// The last event that was looked at.
    serial: u64,
    /// Whether it is known where the log stood when the listener came.
    started: bool,
    /// The last event that was taken.
    taken: u64,
    /// Filters, by the topic that they were set for.
    filters: Vec<(Box<str>, Arc<Filter>)>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// An event was not told: the log has to be read.
    Hole,
    /// The connection did not take what came: it is to end, and resumes where it stood.
    Slow,
    /// The tenant's number was voided.
    Voided,
}

#[derive(Debug)]
struct Waiting {
    event: Arc<Event>,
    topic: u16,
}

/// An event with the place of the listener's topic among its own.
#[derive(Debug, Clone)]
pub struct Heard {
    /// The event.
    pub event: Arc<Event>,
    /// Which of its topics the listener listens to.
    pub topic: usize,
}

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribed {
    /// The topic.
    pub topic: Box<str>,
    /// Which of its events are wanted; none: all.
    pub filter: Option<Arc<Filter>>,
}

/// What a listener is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ring {
    /// Events wait: take them.
    Events,
    /// An event was not told: read the log.
    Hole,
    /// What came was not taken: end, and let the client resume.
    Slow,
    /// The tenant's number was voided: end.
    Voided,
}

impl Mailbox {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an event in; tells whether it reaches the connection, and whether nothing waited before.
    fn offer(&self, event: &Arc<Event>, (topic, guarded): (usize, bool), serial: u64) -> (bool, bool) {
        if !self.ear.may(event, guarded) {
            return (false, false);
        }
        let mut inside = self.inside();
        if inside.serial == serial || inside.state == State::Slow || inside.state == State::Voided {
            return (false, false);
        }
        if !inside.passes(event, topic) {
            // Of several topics another one may let it through; else it is passed over.
            if let Some(id) = event.id.filter(|_| event.topics.len() == 1) {
                inside.follow.offer(id);
            }
            return (false, false);
        }
        inside.serial = serial;
        if let Some(id) = event.id {
            match inside.follow.offer(id) {
                Offer::Deliver => {}
                Offer::Seen => return (false, false),
                Offer::Missed => return (true, false),
            }
        }
        let ring = inside.queue.is_empty();
        let waiting = Waiting { event: Arc::clone(event), topic: u16::try_from(topic).unwrap_or(u16::MAX) };
        match inside.queue.push(waiting, event.bytes(), event.conflate) {
            Pushed::Queued | Pushed::Replaced => (true, ring),
            Pushed::Dropped => (false, false),
            Pushed::Overflow => {
                inside.state = State::Slow;
                (false, true)
            }
        }
    }

    fn end(&self, state: State) {
        self.inside().state = state;
        self.waker.wake();
    }
}

impl Inside {
    fn read_from(&mut self, from: u64) {
        self.follow.read_from(from);
        if self.state == State::Hole {
            self.state = State::Open;
        }
    }

    /// Tells whether an event passes the filter of one of its topics.
    fn passes(&self, event: &Event, topic: usize) -> bool {
        if self.filters.is_empty() {
            return true;
        }
        let name = event.topics.get(topic);
        let Some((_, filter)) = self.filters.iter().find(|(of, _)| Some(of) == name) else { return true };
        let fields = if filter.fields.is_empty() { None } else { event.fields() };
        filter.passes(&event.kind, |name| fields.and_then(|fields| fields.get(name)))
    }

    /// Forgets events that wait and that the log has, up to one of them.
    fn forget_logged(&mut self, through: u64) {
        let waiting: Vec<Waiting> = self.queue.drain().collect();
        for waiting in waiting {
            if waiting.event.id.is_none_or(|id| id > through) {
                let (bytes, conflate) = (waiting.event.bytes(), waiting.event.conflate);
                self.queue.push(waiting, bytes, conflate);
            }
        }
    }
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

/// A connection's ear: what it listens to, and what waits for it. It listens no more when it is dropped.
#[derive(Debug)]
pub struct Listener {
    hub: Arc<crate::hub::Hub>,
    rules: Arc<EventRules>,
    tenant: TenantNo,
    number: u64,
    mailbox: Arc<Mailbox>,
    /// The topics. The lock is held for one look-up or change.
    topics: Mutex<BTreeMap<Box<str>, Held>>,
}

/// A topic that is listened to.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// Whether the client asked for it.
    asked: bool,
    guarded: bool,
}

impl Listener {
    /// Begins to listen to a tenant, to nothing yet; so many bytes may wait.
    pub(crate) fn new(
        hub: &Arc<crate::hub::Hub>,
        rules: &Arc<EventRules>,
        tenant: TenantNo,
        ear: Ear,
        bytes_max: usize,
    ) -> Self {
        let fanout = hub.fanout();
        let number = fanout.next.fetch_add(1, Ordering::Relaxed);
        let inside = Inside {
            queue: Queue::new(bytes_max),
            follow: Follow::live(0),
            serial: 0,
            started: false,
            taken: 0,
            filters: Vec::new(),
            state: State::Open,
        };
        let mailbox = Arc::new(Mailbox { ear, inside: Mutex::new(inside), waker: AtomicWaker::new() });
        let mut tenants = fanout.tenants();
        tenants.entry(tenant).or_default().mailboxes.insert(number, Arc::downgrade(&mailbox));
        drop(tenants);
        let (hub, rules) = (Arc::clone(hub), Arc::clone(rules));
        Self { hub, rules, tenant, number, mailbox, topics: Mutex::default() }
    }

    fn topics_mut(&self) -> MutexGuard<'_, BTreeMap<Box<str>, Held>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens to a topic from now on, to all of its events or to those that pass the filter.
    pub(crate) fn subscribe(&self, topic: &str, filter: Option<Arc<Filter>>) {
        self.add(topic, filter, true);
    }

    fn add(&self, topic: &str, filter: Option<Arc<Filter>>, asked: bool) {
        let mut inside = self.mailbox.inside();
        inside.filters.retain(|(of, _)| **of != *topic);
        if let Some(filter) = filter {
            inside.filters.push((topic.into(), filter));
        }
        drop(inside);
        let new = !self.has(topic);
        let guarded = self.rules.is_guarded(topic);
        self.topics_mut().entry(topic.into()).or_insert(Held { asked, guarded });
        if new {
            let mut shard = self.hub.fanout().shard(self.tenant, topic);
            let topics = shard.entry(self.tenant).or_default();
            let follower = Follower { mailbox: Arc::clone(&self.mailbox), guarded };
            topics.entry(topic.into()).or_default().insert(self.number, follower);
        }
    }

    /// Listens to a topic that the route or the server gives: it counts toward no bound.
    pub fn join(&self, topic: &str) {
        self.add(topic, None, false);
    }

    /// Returns how many topics were asked for, beside those that the server joined.
    pub(crate) fn asked(&self) -> usize {
        self.topics_mut().values().filter(|held| held.asked).count()
    }

    /// Listens to a topic no more; tells whether it did.
    pub(crate) fn unsubscribe(&self, topic: &str) -> bool {
        let was = self.topics_mut().remove(topic).is_some();
        if was {
            self.leave(topic);
            self.mailbox.inside().filters.retain(|(of, _)| **of != *topic);
        }
        was
    }

    fn leave(&self, topic: &str) {
        let mut shard = self.hub.fanout().shard(self.tenant, topic);
        let Some(topics) = shard.get_mut(&self.tenant) else { return };
        if let Some(mailboxes) = topics.get_mut(topic) {
            mailboxes.remove(&self.number);
            if mailboxes.is_empty() {
                topics.remove(topic);
            }
        }
        if topics.is_empty() {
            shard.remove(&self.tenant);
        }
    }

    /// Returns the topics.
    #[must_use]
    pub fn topics(&self) -> Vec<Box<str>> {
        self.topics_mut().keys().cloned().collect()
    }

    /// Returns the topics that the client did not ask for: those that the route or the server gave.
    #[must_use]
    pub fn joined(&self) -> Vec<Box<str>> {
        let topics = self.topics_mut();
        topics.iter().filter(|(_, held)| !held.asked).map(|(topic, _)| topic.clone()).collect()
    }

    /// Returns what the client asked for: topics with their filters.
    #[must_use]
    pub fn subscriptions(&self) -> Vec<Subscribed> {
        let filters = self.filters();
        let filter =
            |topic: &str| filters.iter().find(|(of, _)| **of == *topic).map(|(_, filter)| Arc::clone(filter));
        let topics = self.topics_mut();
        let asked = topics.iter().filter(|(_, held)| held.asked);
        asked.map(|(topic, _)| Subscribed { topic: topic.clone(), filter: filter(topic) }).collect()
    }

    /// Returns the filters, by topic.
    #[must_use]
    pub fn filters(&self) -> Vec<(Box<str>, Arc<Filter>)> {
        self.mailbox.inside().filters.clone()
    }

    /// Tells whether a topic is listened to.
    #[must_use]
    pub fn has(&self, topic: &str) -> bool {
        self.topics_mut().contains_key(topic)
    }

    /// Takes an end of the log for the past: later events come.
    pub(crate) fn start(&self, head: u64) {
        let mut inside = self.mailbox.inside();
        // Later on, what was committed and is not told yet lies before the head and still has to come.
        if !std::mem::replace(&mut inside.started, true) {
            inside.follow = Follow::live(inside.follow.position().max(head));
            inside.forget_logged(head);
        }
        drop(inside);
        // A later event that does not follow on this one leaves a hole.
        if let Some(audience) = self.hub.fanout().tenants().get_mut(&self.tenant) {
            audience.told.get_or_insert(head);
        }
    }

    /// Returns the last event that was handed on, or up to which the log was read.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.mailbox.inside().follow.position()
    }

    /// Returns the last event that was taken.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.mailbox.inside().taken
    }

    /// Tells whether the log is being read.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        !self.mailbox.inside().follow.is_live()
    }

    /// Begins to read the log behind an event that a client names who comes back, or behind the last one that was handed
    /// on if that comes first: until it is read, nothing is taken. What waits of the log is read there.
    pub fn resume(&self, from: u64) {
        let mut inside = self.mailbox.inside();
        inside.forget_logged(u64::MAX);
        let from = from.min(inside.follow.position());
        inside.read_from(from);
    }

    /// Takes note that the log was read: through a page that was cut short, or through its end. Tells whether events
    /// come live from now on.
    pub fn read(&self, through: u64, more: bool) -> bool {
        let mut inside = self.mailbox.inside();
        let live = if more { inside.follow.read_page(through) } else { inside.follow.read(through) };
        // What was not told lies before the end of what was read.
        if live && inside.state == State::Hole {
            inside.state = State::Open;
        }
        let waits = live && !inside.queue.is_empty();
        drop(inside);
        if waits {
            self.mailbox.waker.wake();
        }
        live
    }

    /// Finds the listener's topic among those of an event of the log; nothing if the event is none for it.
    #[must_use]
    pub fn hears(&self, event: &Event) -> Option<usize> {
        let ear = &self.mailbox.ear;
        let topics = self.topics_mut();
        let inside = self.mailbox.inside();
        let own = |at: &usize| {
            let held = topics.get(&event.topics[*at]);
            held.is_some_and(|held| ear.may(event, held.guarded)) && inside.passes(event, *at)
        };
        let found = (0..event.topics.len()).find(own);
        let follows = || {
            let owner = event.owner.as_ref().filter(|_| ear.may(event, true))?;
            topics.get(&*devices_of(owner.user()))?;
            event.topics.iter().position(|topic| topic.starts_with(DEVICE_TOPIC))
        };
        found.or_else(follows)
    }

    /// Waits until there is something to do: `events` says whether events are, which the shell has room for. Dropping what
    /// polls this loses nothing.
    pub fn poll_ring(&self, events: bool, context: &mut Context<'_>) -> Poll<Ring> {
        self.mailbox.waker.register(context.waker());
        let inside = self.mailbox.inside();
        match inside.state {
            State::Slow => Poll::Ready(Ring::Slow),
            State::Voided => Poll::Ready(Ring::Voided),
            State::Hole => Poll::Ready(Ring::Hole),
            State::Open if events && inside.follow.is_live() && !inside.queue.is_empty() => {
                Poll::Ready(Ring::Events)
            }
            State::Open => Poll::Pending,
        }
    }

    /// Takes what waits, up to about so many bytes; nothing while the log is being read.
    pub fn take(&self, bytes_max: usize, heard: &mut Vec<Heard>) {
        let mut inside = self.mailbox.inside();
        if !inside.follow.is_live() || inside.state != State::Open {
            return;
        }
        let mut bytes = 0;
        while bytes < bytes_max {
            let Some(Waiting { event, topic }) = inside.queue.pop() else { break };
            bytes += event.bytes();
            inside.taken = event.id.unwrap_or(inside.taken);
            heard.push(Heard { event, topic: usize::from(topic) });
        }
    }

    /// Has an event wait that only this listener is told of, by the first of its topics.
    pub fn hear(&self, draft: &EventDraft) {
        let event = Arc::new(draft.event(Epoch::new(0), None));
        let serial = self.hub.fanout().serial.fetch_add(1, Ordering::Relaxed);
        let (_, ring) = self.mailbox.offer(&event, (0, false), serial);
        if ring {
            self.mailbox.waker.wake();
        }
    }

    /// Takes everything that waits, and begins to read the log behind it: what waits comes before what is read. Returns
    /// the place behind which the log is read.
    pub fn read_on(&self, heard: &mut Vec<Heard>) -> u64 {
        let mut inside = self.mailbox.inside();
        while let Some(Waiting { event, topic }) = inside.queue.pop() {
            inside.taken = event.id.unwrap_or(inside.taken);
            heard.push(Heard { event, topic: usize::from(topic) });
        }
        let from = inside.follow.position();
        inside.read_from(from);
        from
    }

    /// Returns how many bytes wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.mailbox.inside().queue.bytes()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        for topic in self.topics() {
            self.leave(&topic);
        }
        let mut tenants = self.hub.fanout().tenants();
        if let Some(audience) = tenants.get_mut(&self.tenant) {
            audience.mailboxes.remove(&self.number);
            if audience.mailboxes.is_empty() {
                tenants.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Hub;

    const TENANT: TenantNo = TenantNo::new(1);

    fn event(id: u64) -> Arc<Event> {
        let draft = EventDraft::new("message", vec!["all".into()], format!("{{\"n\":{id}}}").into(), 1);
        Arc::new(draft.event(Epoch::new(7), Some(id)))
    }

    fn listener(hub: &Arc<Hub>) -> Listener {
        let listener = Listener::new(hub, &Arc::default(), TENANT, Ear::default(), 1 << 20);
        listener.join("all");
        listener.start(0);
        listener
    }

    fn ring(listener: &Listener) -> Poll<Ring> {
        listener.poll_ring(true, &mut Context::from_waker(std::task::Waker::noop()))
    }

    fn ids(heard: &[Heard]) -> Vec<u64> {
        heard.iter().filter_map(|heard| heard.event.id).collect()
    }

    #[test]
    fn what_waits_comes_before_what_is_read_behind_a_hole() {
        let hub = Arc::new(Hub::new(4));
        let listener = listener(&hub);
        hub.fanout().tell(TENANT, 0, 2, &[event(1), event(2)]);
        assert_eq!(ring(&listener), Poll::Ready(Ring::Events));
        // Events 3 and 4 are not told.
        hub.fanout().tell(TENANT, 4, 5, &[event(5)]);
        assert_eq!(ring(&listener), Poll::Ready(Ring::Hole));
        let mut heard = Vec::new();
        listener.take(usize::MAX, &mut heard);
        assert!(heard.is_empty(), "nothing is taken beside the log");
        assert_eq!((listener.read_on(&mut heard), ids(&heard)), (2, vec![1, 2]));
        assert!(listener.is_reading() && ring(&listener).is_pending());
        assert!(!listener.read(4, false), "event 5 is known");
        assert!(listener.read(5, false));
        hub.fanout().tell(TENANT, 5, 6, &[event(6)]);
        heard.clear();
        listener.take(usize::MAX, &mut heard);
        assert_eq!(ids(&heard), [6]);
    }

    #[test]
    fn who_comes_back_reads_what_waited_from_the_log() {
        let hub = Arc::new(Hub::new(4));
        let listener = listener(&hub);
        let live =
            Arc::new(EventDraft::new("live", vec!["all".into()], "{}".into(), 1).event(Epoch::new(7), None));
        hub.fanout().tell(TENANT, 0, 2, &[event(1), event(2)]);
        hub.fanout().tell_now(TENANT, &live);
        listener.resume(0);
        assert!(!listener.read(1, false), "event 2 was handed on");
        assert!(listener.read(2, false));
        hub.fanout().tell(TENANT, 2, 3, &[event(3)]);
        let mut heard = Vec::new();
        listener.take(usize::MAX, &mut heard);
        let kinds: Vec<&str> = heard.iter().map(|heard| &*heard.event.kind).collect();
        assert_eq!((kinds, ids(&heard)), (vec!["live", "message"], vec![3]));
    }

    #[test]
    fn what_the_greeting_names_as_past_does_not_come() {
        let hub = Arc::new(Hub::new(4));
        let listener = Listener::new(&hub, &Arc::default(), TENANT, Ear::default(), 1 << 20);
        listener.join("all");
        // Told before it is known where the log stands, which is behind the second of them.
        hub.fanout().tell(TENANT, 10, 13, &[event(11), event(12), event(13)]);
        listener.start(12);
        let mut heard = Vec::new();
        listener.take(usize::MAX, &mut heard);
        assert_eq!(ids(&heard), [13]);
    }

    #[test]
    fn voided_numbers_end_whoever_listens() {
        let hub = Arc::new(Hub::new(4));
        let (before, mut heard) = (listener(&hub), Vec::new());
        hub.fanout().tell(TENANT, 0, 1, &[event(1)]);
        hub.fanout().void();
        assert_eq!(ring(&before), Poll::Ready(Ring::Voided));
        before.take(usize::MAX, &mut heard);
        assert!(heard.is_empty());
        let later = listener(&hub);
        assert!(ring(&later).is_pending(), "who comes afterwards listens");
    }
}
