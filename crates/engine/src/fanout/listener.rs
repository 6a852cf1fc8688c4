//! A connection's ear.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use driftline_model::{Epoch, TenantNo};
use driftline_realtime::{Filter, Follow};

use super::mailbox::{Ear, Heard, Mailbox, Ring, State, Waiting};
use super::{DEVICE_TOPIC, Follower, devices_of};
use crate::events::{Event, EventDraft};
use crate::hub::Hub;
use crate::rules::EventRules;

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribed {
    /// The topic.
    pub topic: Box<str>,
    /// Which of its events are wanted; none: all.
    pub filter: Option<Arc<Filter>>,
}

/// A connection's ear: what it listens to, and what waits for it. It listens no more when it is dropped.
#[derive(Debug)]
pub struct Listener {
    hub: Arc<Hub>,
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
        hub: &Arc<Hub>,
        rules: &Arc<EventRules>,
        tenant: TenantNo,
        ear: Ear,
        bytes_max: usize,
    ) -> Self {
        let fanout = hub.fanout();
        let number = fanout.next.fetch_add(1, Ordering::Relaxed);
        let mailbox = Arc::new(Mailbox::new(ear, bytes_max));
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
        let guarded = topic.starts_with('~') || self.rules.device_of(topic).is_some();
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
            let at = inside.follow.position().max(head);
            match inside.follow.is_live() {
                true => inside.follow = Follow::live(at),
                // Of what was not told meanwhile the log is read.
                false => inside.follow.read_from(at),
            }
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
    fn a_hole_before_the_log_is_known_is_filled() {
        let hub = Arc::new(Hub::new(4));
        let listener = Listener::new(&hub, &Arc::default(), TENANT, Ear::default(), 1 << 20);
        listener.join("all");
        hub.fanout().tell(TENANT, 0, 13, &[]);
        listener.start(12);
        hub.fanout().tell(TENANT, 13, 14, &[event(14)]);
        let mut heard = Vec::new();
        assert_eq!((ring(&listener), listener.read_on(&mut heard)), (Poll::Ready(Ring::Hole), 12));
        assert!(heard.is_empty() && listener.is_reading());
        assert!(!listener.read(13, false) && listener.read(14, false));
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
