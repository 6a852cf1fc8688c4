//! One connection that publishes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};

use crate::load::dialect::Answer;
use crate::load::drive::Pace;
use crate::load::events::{Bodies, Number};
use crate::load::now::now;
use crate::load::options::Dialect;
use crate::load::socket::{Incoming, Socket};
use crate::load::tally::Tally;
use crate::load::window::Window;

/// Publishes of one session that may wait for their answer.
const UNANSWERED_MAX: u64 = 64;
/// The longest pause that a server's `retry_after_ms` can ask for.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A publisher of numbered events.
#[derive(Debug)]
pub(super) struct Publisher {
    pub(super) window: Window,
    pub(super) dialect: Dialect,
    /// Its number among the publishers.
    pub(super) number: u64,
    pub(super) bodies: Bodies,
    pub(super) topic: String,
    pub(super) subscribers: u32,
    /// A permit for each delivery that may still be under way.
    pub(super) room: Arc<Semaphore>,
    pub(super) pace: Pace,
}

/// What a publisher wakes up for.
enum Wake {
    /// The next event may go out.
    Due,
    /// A publish was taken.
    Taken,
    /// A publish was refused.
    Refused { code: String, pause: Option<Duration> },
    /// A message came that answers nothing.
    Other,
    /// The connection ended.
    Closed(u16),
    /// The time to publish, or to wait for answers, is over.
    Over,
}

impl Publisher {
    /// Publishes until the window ends, then waits for the answers that are missing. The plain dialect has none.
    pub(super) async fn publish(mut self, mut socket: Socket) -> Tally {
        let mut tally = Tally::new(self.window);
        if let Err(fault) = self.converse(&mut socket, &mut tally).await {
            eprintln!("a publisher failed: {fault:#}");
            tally.errors.add("connection_failed", 1);
        }
        self.count_unsent(&mut tally);
        tally
    }

    async fn converse(&mut self, socket: &mut Socket, tally: &mut Tally) -> Result<()> {
        let (mut count, mut unanswered) = (0, 0);
        let mut out = Vec::new();
        let end = sleep_until(self.window.until);
        tokio::pin!(end);
        loop {
            let over = now() >= self.window.until;
            if over && unanswered == 0 {
                return Ok(());
            }
            if over {
                end.as_mut().reset(self.window.deadline);
            }
            let wake = tokio::select! {
                biased;
                incoming = socket.next() => read(&incoming?)?,
                () = turn(&self.pace, &self.room, self.subscribers, self.window.until),
                    if !over && unanswered < UNANSWERED_MAX => Wake::Due,
                () = &mut end => Wake::Over,
            };
            match wake {
                Wake::Due => {
                    if self.pace.take(now()).is_none() {
                        // The window ended before the next event was due.
                        self.give_back();
                        continue;
                    }
                    let number = Number { publisher: self.number, count };
                    out.clear();
                    self.bodies.write_publish(self.dialect, &self.topic, number, &mut out);
                    let before = socket.bytes_out;
                    socket.send(&out).await?;
                    if self.window.counts(now()) {
                        tally.bytes_out += socket.bytes_out - before;
                    }
                    count += 1;
                    match self.dialect {
                        Dialect::Driftline => unanswered += 1,
                        Dialect::Plain => self.count(tally),
                    }
                }
                Wake::Taken => {
                    unanswered -= 1;
                    self.count(tally);
                }
                Wake::Refused { code, pause } => {
                    // Nobody gets the event, and everybody misses its number: the run does not count.
                    unanswered -= 1;
                    self.give_back();
                    tally.errors.add(&code, 1);
                    sleep(pause.unwrap_or_default().min(PAUSE_MAX)).await;
                }
                Wake::Other => tally.unsolicited += 1,
                Wake::Closed(code) => {
                    tally.errors.add(&format!("closed_{code}"), 1);
                    tally.unanswered += unanswered;
                    return Ok(());
                }
                Wake::Over if over => {
                    tally.unanswered += unanswered;
                    return Ok(());
                }
                Wake::Over => {}
            }
        }
    }

    fn count(&self, tally: &mut Tally) {
        if self.window.counts(now()) {
            tally.operations += 1;
        }
    }

    fn give_back(&self) {
        self.room.add_permits(usize::try_from(self.subscribers).unwrap_or(usize::MAX));
    }

    /// What the schedule asked for and there was no room for has waited until now, at least.
    fn count_unsent(&mut self, tally: &mut Tally) {
        if matches!(self.pace, Pace::Closed) {
            return;
        }
        let ended = now();
        while let Some(due) = self.pace.take(self.window.until).filter(|due| *due < self.window.until) {
            tally.unsent += 1;
            for _ in 0..self.subscribers {
                tally.waited(due, ended);
            }
        }
    }
}

/// Waits until the next event is due and takes room for its deliveries. Cancel-safe: a turn that is not taken to its
/// end takes no room.
async fn turn(pace: &Pace, room: &Semaphore, subscribers: u32, until: Instant) {
    pace.wait(until).await;
    // The room is never closed; who receives a delivery gives its permit back.
    if let Ok(permits) = room.acquire_many(subscribers).await {
        permits.forget();
    }
}

fn read(incoming: &Incoming<'_>) -> Result<Wake> {
    let text = match incoming {
        Incoming::Closed(code) => return Ok(Wake::Closed(*code)),
        Incoming::Message(text) => text,
    };
    let answer = Answer::parse(text)?;
    Ok(match &*answer.kind {
        "ack" => Wake::Taken,
        "error" => Wake::Refused {
            code: answer.fault().to_owned(),
            pause: answer.retry_after_ms.map(Duration::from_millis),
        },
        _ => Wake::Other,
    })
}
