//! One connection that receives, and what it makes of every event.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::load::bulk::{Chunk, Stream};
use crate::load::dialect::Answer;
use crate::load::drive::Pace;
use crate::load::events::{Finder, Number, Order, Place};
use crate::load::options::Dialect;
use crate::load::tally::Tally;
use crate::load::window::Window;

/// What a subscriber knows and counts.
#[derive(Debug)]
pub(super) struct Subscriber {
    window: Window,
    dialect: Dialect,
    /// When the events of each publisher were due.
    paces: Vec<Pace>,
    room: Arc<Semaphore>,
    finder: Finder,
    order: Order,
    tally: Tally,
}

impl Subscriber {
    /// Begins before the first event.
    pub(super) fn new(window: Window, dialect: Dialect, paces: Vec<Pace>, room: Arc<Semaphore>) -> Self {
        Subscriber {
            window,
            dialect,
            order: Order::new(paces.len()),
            paces,
            room,
            finder: Finder::new(),
            tally: Tally::new(window),
        }
    }

    /// Takes a message that was there at `at`; tells how many deliveries that were owed are settled by it. Those that
    /// it shows to be lost are errors, and settled too: nothing waits for them.
    fn take(&mut self, text: &[u8], at: Instant) -> u64 {
        let Some(number) = self.finder.number(text) else {
            self.take_other(text);
            return 0;
        };
        let id = match self.dialect {
            Dialect::Driftline => self.finder.id(text),
            Dialect::Plain => None,
        };
        if self.dialect == Dialect::Driftline && id.is_none() {
            self.tally.errors.add("event_without_id", 1);
        }
        let lost = match self.order.place(number, id) {
            Place::Next => 0,
            Place::Gap(missed) => {
                self.tally.errors.add("gap", missed);
                missed
            }
            Place::Disordered => {
                self.tally.errors.add("disorder", 1);
                return 0;
            }
            Place::IdFell => {
                self.tally.errors.add("id_fell", 1);
                return 0;
            }
        };
        if self.window.counts(at) {
            self.tally.items += 1;
        }
        if let Some(due) = self.due(number) {
            self.tally.waited(due, at);
        }
        1 + lost
    }

    /// When an event was due; none in a closed loop.
    fn due(&self, number: Number) -> Option<Instant> {
        let pace = self.paces.get(usize::try_from(number.publisher).ok()?)?;
        match *pace {
            Pace::Closed => None,
            Pace::Open { next, interval } => {
                let nanos = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
                Some(next + Duration::from_nanos(nanos.saturating_mul(number.count)))
            }
        }
    }

    fn take_other(&mut self, text: &[u8]) {
        match Answer::parse(text) {
            Ok(answer) if answer.kind == "error" => self.tally.errors.add(answer.fault(), 1),
            _ => self.tally.unsolicited += 1,
        }
    }
}

/// Reads until it is told to stop or the connection ends, and gives what was counted.
pub(super) async fn follow(
    mut subscriber: Subscriber,
    mut stream: Stream,
    chunk: Arc<Chunk>,
    mut stopped: watch::Receiver<bool>,
) -> Tally {
    let stop = stopped.wait_for(|stopped| *stopped);
    tokio::pin!(stop);
    loop {
        let (mut taken, mut came, before) = (0, None, stream.bytes_in);
        let visit = |text: &[u8], at: Instant| {
            taken += subscriber.take(text, at);
            came = Some(at);
        };
        let read = tokio::select! {
            biased;
            read = stream.read(&chunk, visit) => read,
            _ = &mut stop => break,
        };
        subscriber.room.add_permits(usize::try_from(taken).unwrap_or(0));
        if came.is_some_and(|at| subscriber.window.counts(at)) {
            subscriber.tally.bytes_in += stream.bytes_in - before;
        }
        match read {
            Ok(None) => {}
            Ok(Some(code)) => {
                subscriber.tally.errors.add(&format!("closed_{code}"), 1);
                break;
            }
            Err(fault) => {
                eprintln!("a subscriber failed: {fault:#}");
                subscriber.tally.errors.add("connection_failed", 1);
                break;
            }
        }
    }
    subscriber.tally
}
