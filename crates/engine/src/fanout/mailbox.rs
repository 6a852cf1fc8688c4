//! What waits for one connection, and what it may hear.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use driftline_model::DeviceKey;
use driftline_realtime::{Filter, Follow, Offer, Pushed, Queue};
use futures_util::task::AtomicWaker;

use crate::events::Event;

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

    /// Tells whether an event may be heard by a topic, which may be guarded: it is a device's.
    pub(crate) fn may(&self, event: &Event, guarded: bool) -> bool {
        match &event.owner {
            Some(owner) if self.device.as_ref().is_some_and(|device| device != owner) => false,
            Some(owner) => self.staff || *owner.user() == *self.user,
            // Of a device that is nobody's, or of one whose owner is not known, only staff hears.
            None => self.staff || !guarded,
        }
    }
}

/// What waits for one connection.
#[derive(Debug)]
pub(super) struct Mailbox {
    pub(super) ear: Ear,
    /// The lock is held for one event, or while what waits is taken.
    inside: Mutex<Inside>,
    pub(super) waker: AtomicWaker,
}

#[derive(Debug)]
pub(super) struct Inside {
    pub(super) queue: Queue<Waiting>,
    pub(super) follow: Follow,
    /// The last event that was looked at.
    serial: u64,
    /// Whether it is known where the log stood when the listener came.
    pub(super) started: bool,
    /// The last event that was taken.
    pub(super) taken: u64,
    /// Filters, by the topic that they were set for.
    pub(super) filters: Vec<(Box<str>, Arc<Filter>)>,
    pub(super) state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// An event was not told: the log has to be read.
    Hole,
    /// The connection did not take what came: it is to end, and resumes where it stood.
    Slow,
    /// The tenant's number was voided.
    Voided,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) event: Arc<Event>,
    pub(super) topic: u16,
}

/// An event with the place of the listener's topic among its own.
#[derive(Debug, Clone)]
pub struct Heard {
    /// The event.
    pub event: Arc<Event>,
    /// Which of its topics the listener listens to.
    pub topic: usize,
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
    /// Makes one for an ear in which so many bytes may wait; it is not known yet where the log stands.
    pub(super) fn new(ear: Ear, bytes_max: usize) -> Self {
        let inside = Inside {
            queue: Queue::new(bytes_max),
            follow: Follow::live(0),
            serial: 0,
            started: false,
            taken: 0,
            filters: Vec::new(),
            state: State::Open,
        };
        Self { ear, inside: Mutex::new(inside), waker: AtomicWaker::new() }
    }

    pub(super) fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an event in; tells whether it reaches the connection, and whether nothing waited before.
    pub(super) fn offer(
        &self,
        event: &Arc<Event>,
        (topic, guarded): (usize, bool),
        serial: u64,
    ) -> (bool, bool) {
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

    pub(super) fn end(&self, state: State) {
        self.inside().state = state;
        self.waker.wake();
    }
}

impl Inside {
    pub(super) fn read_from(&mut self, from: u64) {
        self.follow.read_from(from);
        if self.state == State::Hole {
            self.state = State::Open;
        }
    }

    /// Tells whether an event passes the filter of one of its topics.
    pub(super) fn passes(&self, event: &Event, topic: usize) -> bool {
        if self.filters.is_empty() {
            return true;
        }
        let name = event.topics.get(topic);
        let Some((_, filter)) = self.filters.iter().find(|(of, _)| Some(of) == name) else { return true };
        let fields = if filter.fields.is_empty() { None } else { event.fields() };
        filter.passes(&event.kind, |name| fields.and_then(|fields| fields.get(name)))
    }

    /// Forgets events that wait and that the log has, up to one of them.
    pub(super) fn forget_logged(&mut self, through: u64) {
        let waiting: Vec<Waiting> = self.queue.drain().collect();
        for waiting in waiting {
            if waiting.event.id.is_none_or(|id| id > through) {
                let (bytes, conflate) = (waiting.event.bytes(), waiting.event.conflate);
                self.queue.push(waiting, bytes, conflate);
            }
        }
    }
}
