//! One connection on a node: what the crate decides, and what a careful caller does around it.

use driftline_realtime::{Asked, Follow, Log, Offer, Pushed, Queue, Recovery, recover, recover_page};

use super::subscriber::Message;
use super::support::Met;
use super::support::rng::Rng;
use super::world::{Seen, World};

const QUEUE_BYTES: usize = 60;
const EVENT_BYTES: usize = 5;
const PAGE: usize = 4;

pub(crate) struct Connection {
    follow: Follow,
    pub(crate) queue: Queue<Message>,
    seen: Seen,
    /// What the log was when the recovery began.
    begun: Log,
    page: Option<Page>,
    /// The last id that was handed on; only a recovery goes back.
    handed_on: u64,
}

/// What was read and not handed on yet.
struct Page {
    from: Recovery,
    asked: u64,
    events: Vec<u64>,
    through: u64,
    is_full: bool,
    log: Log,
}

impl Connection {
    /// Joins the fan-out, which offers everything behind `at`.
    pub(crate) fn new(world: &World, seen: Seen, at: u64) -> Self {
        let follow = Follow::live(at);
        let queue = Queue::new(QUEUE_BYTES);
        Self { follow, queue, seen, begun: world.log(seen), page: None, handed_on: at }
    }

    pub(crate) fn position(&self) -> u64 {
        self.follow.position()
    }

    pub(crate) fn is_live(&self) -> bool {
        self.follow.is_live()
    }

    pub(crate) fn has_page(&self) -> bool {
        self.page.is_some()
    }

    /// Begins to recover behind a position.
    pub(crate) fn recover(&mut self, world: &World, asked: &Asked, met: &mut Met) {
        met.count(match (self.is_live(), self.has_page()) {
            (true, _) => "a recovery begins live",
            (false, false) => "a recovery begins while another one reads",
            (false, true) => "a recovery begins with a page under way",
        });
        self.begun = world.log(self.seen);
        self.page = None;
        let answer = recover(asked, &self.begun);
        if let (Recovery::Complete { from }, floor) = (answer, self.begun.floor) {
            met.count(if from == 0 && floor > 0 {
                "everything retained of a trimmed log"
            } else {
                "complete"
            });
        }
        let from = self.tell(answer, asked.id, met);
        self.follow.read_from(from);
        self.handed_on = from;
    }

    /// Looks at the log and reads a page of it; handing it on is another step.
    pub(crate) fn read(&mut self, world: &World) {
        let asked = self.follow.position();
        let log = world.log(self.seen);
        let from = recover_page(asked, &self.begun, &log);
        let (Recovery::Complete { from: after } | Recovery::Incomplete { from: after, .. }) = from;
        let mut events = world.published(self.seen, after, log.head);
        events.retain(|id| world.is_retained(*id));
        let is_full = events.len() >= PAGE;
        events.truncate(PAGE);
        let through = if is_full { events[PAGE - 1] } else { log.head };
        self.page = Some(Page { from, asked, events, through, is_full, log });
    }

    /// Hands the page on, and goes live when nothing went by that it does not hold.
    pub(crate) fn hand_on(&mut self, rng: &mut Rng, met: &mut Met) {
        let Some(page) = self.page.take() else { return };
        if let Recovery::Incomplete { .. } = page.from {
            met.count("a page notices a hole");
            self.begun = page.log;
            let from = self.tell(page.from, page.asked, met);
            self.follow.read_from(from);
        }
        for id in page.events {
            self.push(Message::Event(id), met);
        }
        let is_live = if page.is_full && rng.percent(50) {
            self.follow.read_page(page.through)
        } else {
            self.follow.read(page.through)
        };
        met.count(match (page.is_full, is_live) {
            (true, true) => "a full page goes live, the rest is still to be offered",
            (true, false) => "a full page is followed by another one",
            (false, true) => "the head was read, live",
            (false, false) => "an event went by since the head was read",
        });
        if is_live || rng.percent(30) {
            self.push(Message::Through(page.through), met);
        }
    }

    /// The fan-out offers an event of a topic that is seen.
    pub(crate) fn offer(&mut self, id: u64, met: &mut Met) {
        match self.follow.offer(id) {
            Offer::Deliver => {
                met.count("delivered live");
                self.push(Message::Event(id), met);
            }
            Offer::Seen => met.count("offered, but past it"),
            Offer::Missed => met.count("went by while reading"),
        }
    }

    fn tell(&mut self, answer: Recovery, asked: u64, met: &mut Met) -> u64 {
        match answer {
            Recovery::Complete { from } => from,
            Recovery::Incomplete { reason, from } => {
                met.count(reason.as_str());
                self.push(Message::Told { reason, epoch: self.begun.epoch, asked, from }, met);
                from
            }
        }
    }

    fn push(&mut self, message: Message, met: &mut Met) {
        let mut bytes = 1;
        if let Message::Event(id) = message {
            assert!(id > self.handed_on, "{id} is handed on behind {}", self.handed_on);
            self.handed_on = id;
            bytes = EVENT_BYTES;
        }
        let was_closed = self.queue.is_closed();
        if self.queue.push(message, bytes, None) == Pushed::Overflow && !was_closed {
            met.count("a slow subscriber is cut");
        }
    }
}
