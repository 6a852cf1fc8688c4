//! The loop of one connection: requests out when they are due, answers in, everything counted.

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep, sleep_until};

use super::now::now as clock_now;
use super::socket::{Incoming, Wire};
use super::tally::{Codes, Tally};
use super::window::Window;

/// The timer ticks in milliseconds; nearer than this, a due time is awaited by yielding.
const TIMER_SLACK: Duration = Duration::from_micros(1_500);
/// The longest pause that a server's `retry_after_ms` can ask of the load.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A conversation of requests and answers on one connection.
pub(crate) trait Exchange {
    /// Writes the next request, due at `due`, into the empty `out`.
    fn request(&mut self, due: Instant, out: &mut Vec<u8>);

    /// Requests that are not answered yet.
    fn in_flight(&self) -> usize;

    /// Reads a message of the server and counts its per-item codes in `results`.
    fn answer(&mut self, text: &[u8], results: &mut Codes) -> Result<Settled>;
}

/// What a message of the server means for the requests.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// A request ended well.
    Done {
        /// When it was due.
        due: Instant,
        /// Items of it that the server took.
        items: u64,
    },
    /// A request was refused, or an error came that belongs to none.
    Refused {
        /// When the request was due, if there was one.
        due: Option<Instant>,
        /// The error's code.
        code: String,
        /// How long the server asks to wait.
        pause: Option<Duration>,
    },
    /// The message answers nothing.
    Nothing,
}

/// When requests are due.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// The next request is due as soon as there is room for it (closed loop).
    Closed,
    /// Requests are due at fixed times, whatever the server does (open loop).
    Open {
        /// When the next request is due.
        next: Instant,
        /// The time between two requests.
        interval: Duration,
    },
}

impl Pace {
    /// Shares `rate` requests a second among `connections`, evenly staggered; without a rate, closed loop.
    pub(crate) fn new(rate: Option<f64>, connection: usize, connections: usize) -> Self {
        let Some(rate) = rate else { return Pace::Closed };
        let apart = Duration::from_secs_f64(1.0 / rate);
        Pace::Open {
            next: clock_now() + apart.mul_f64(connection as f64),
            interval: apart.mul_f64(connections as f64),
        }
    }

    /// Takes the due time of the next request if it has come.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Instant> {
        match self {
            Pace::Closed => Some(now),
            Pace::Open { next, interval } => {
                let due = (*next <= now).then_some(*next)?;
                *next += *interval;
                Some(due)
            }
        }
    }

    /// Waits until the next request is due.
    pub(crate) async fn wait(&self, until: Instant) {
        if let Pace::Open { next, .. } = self {
            let due = (*next).min(until);
            while let left = due.saturating_duration_since(clock_now())
                && !left.is_zero()
            {
                match left.checked_sub(TIMER_SLACK) {
                    Some(rest) if !rest.is_zero() => sleep(rest).await,
                    _ => tokio::task::yield_now().await,
                }
            }
        }
    }
}

/// How one connection is driven.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) window: Window,
    pub(crate) pace: Pace,
    /// The most requests that may be unanswered.
    pub(crate) pipeline: usize,
    /// The most requests to send; none for as many as the time allows.
    pub(crate) requests_max: Option<u64>,
}

/// Drives a connection to the end of its window and gives what was counted. Faults are counted, not returned.
pub(crate) async fn drive(mut exchange: impl Exchange, mut socket: impl Wire, mut plan: Plan) -> Tally {
    let mut tally = Tally::new(plan.window);
    if let Err(fault) = converse(&mut exchange, &mut socket, &mut plan, &mut tally).await {
        eprintln!("a connection failed: {fault:#}");
        tally.errors.add("connection_failed", 1);
    }
    tally.unanswered += exchange.in_flight() as u64;
    // What the schedule asked for and the server never let out has waited until now, at least.
    let ended = clock_now();
    if plan.requests_max.is_none() && matches!(plan.pace, Pace::Open { .. }) {
        while let Some(due) = plan.pace.take(plan.window.until).filter(|due| *due < plan.window.until) {
            tally.unsent += 1;
            tally.waited(due, ended);
        }
    }
    tally
}

async fn converse(
    exchange: &mut impl Exchange,
    socket: &mut impl Wire,
    plan: &mut Plan,
    tally: &mut Tally,
) -> Result<()> {
    let window = plan.window;
    let mut left = plan.requests_max.unwrap_or(u64::MAX);
    let mut out = Vec::new();
    let mut outside = Codes::default();
    let mut seen = socket.bytes();
    let deadline = sleep_until(window.deadline);
    tokio::pin!(deadline);
    let mut now = clock_now();
    loop {
        while now < window.until && left > 0 && exchange.in_flight() < plan.pipeline {
            let Some(due) = plan.pace.take(now) else { break };
            out.clear();
            exchange.request(due, &mut out);
            socket.send(&out).await?;
            left -= 1;
            if exchange.in_flight() < plan.pipeline {
                now = clock_now();
            }
        }
        let over = now >= window.until || left == 0;
        if over && exchange.in_flight() == 0 {
            return Ok(());
        }
        let scheduled = !over && exchange.in_flight() < plan.pipeline;
        let incoming = tokio::select! {
            biased;
            incoming = socket.next() => incoming?,
            () = plan.pace.wait(window.until), if scheduled => {
                now = clock_now();
                continue;
            }
            () = &mut deadline => return Ok(()),
        };
        let Incoming::Message(text) = incoming else {
            if let Incoming::Closed(code) = incoming {
                tally.errors.add(&format!("closed_{code}"), 1);
            }
            return Ok(());
        };
        now = clock_now();
        let counted = window.counts(now);
        let results = if counted { &mut tally.results } else { &mut outside };
        let settled = exchange.answer(text, results)?;
        let read = socket.bytes();
        let (bytes_in, bytes_out) = (read.0 - seen.0, read.1 - seen.1);
        seen = read;
        if counted {
            tally.bytes_in += bytes_in;
            tally.bytes_out += bytes_out;
        }
        match settled {
            Settled::Done { due, items } => tally.done(due, now, items),
            Settled::Nothing => tally.unsolicited += 1,
            Settled::Refused { due, code, pause } => {
                tally.errors.add(&code, 1);
                if let Some(due) = due {
                    tally.waited(due, now);
                }
                sleep(pause.unwrap_or_default().min(PAUSE_MAX)).await;
                now = clock_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_loop_is_always_due() {
        let now = clock_now();
        let mut pace = Pace::new(None, 0, 1);
        assert_eq!((pace.take(now), pace.take(now)), (Some(now), Some(now)));
    }

    #[test]
    fn an_open_loop_keeps_its_times_when_it_is_late() {
        let start = clock_now();
        let mut pace = Pace::Open { next: start, interval: Duration::from_millis(10) };
        let late = start + Duration::from_millis(25);
        let due: Vec<_> = std::iter::from_fn(|| pace.take(late)).map(|at| at - start).collect();
        assert_eq!(due, [0, 10, 20].map(Duration::from_millis));
    }

    #[test]
    fn connections_share_the_rate_and_are_staggered() {
        let interval_of = |pace| match pace {
            Pace::Open { next, interval } => (next, interval),
            Pace::Closed => unreachable!("a rate was given"),
        };
        let (first, interval) = interval_of(Pace::new(Some(100.0), 0, 4));
        let (third, _) = interval_of(Pace::new(Some(100.0), 2, 4));
        assert_eq!(interval, Duration::from_millis(40));
        assert!(third - first >= Duration::from_millis(20));
    }
}
