//! One turn of a courier: what is due now is done, then it waits.

use std::io;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::client::{ClientError, IDLE_MAX_MS};
use crate::socket::Incoming;
use crate::world::{Clock, Connector, Random};

use super::doors::{Answer, Opened, dial, post};
use super::line::Line;
use super::shell::{Courier, CourierError};

/// What a courier waits for.
enum Happening {
    Heard(Option<Incoming>),
    Dialed(Result<Opened, ClientError>),
    Posted(Result<Answer, ClientError>),
}

impl<C: Connector, K: Clock, R: Random> Courier<C, K, R> {
    pub(super) async fn turn(&mut self) -> Result<(), CourierError> {
        self.turn_ms = self.world.now_ms();
        let now_ms = self.turn_ms;
        if self.window_ms().is_some_and(|due_ms| due_ms <= now_ms) {
            // A full buffer leaves the window open; it is closed when there is room.
            let _ = self.telemetry.close_window(now_ms);
        }
        self.check_line(now_ms);
        let posts = self.stop.is_none() && self.may_post && self.posts.is_empty();
        let posts = posts && self.line.is_none() && self.http_door.not_before_ms <= now_ms;
        if self.line.is_some() || posts {
            let world = self.world.clone();
            self.telemetry.cut(now_ms, &mut || world.draw());
        }
        let waiting = (self.telemetry.len(), self.telemetry.refused().len());
        self.show(|status| (status.waiting, status.refused) = waiting);
        self.keep().await?;
        if let Some(stop) = &self.stop {
            return Err(stop.error());
        }
        if let Some(line) = &mut self.line {
            line.send_all(now_ms, || self.telemetry.poll_transmit(now_ms));
            line.ping_if_due(now_ms);
        }
        if posts && let Some(body) = self.telemetry.http_request(now_ms) {
            let within = Duration::from_millis(self.options.answer_ms_max);
            self.posts.spawn(post(self.world.clone(), self.endpoint.clone(), body, within));
        }
        let dials = self.line.is_none() && self.dials.is_empty() && !self.is_failed();
        if dials && self.socket_door.not_before_ms <= now_ms {
            self.dials.spawn(dial(self.world.clone(), self.endpoint.clone()));
        }
        Ok(())
    }

    /// Keeps what is new. Cancel-safe: what was not kept to the end is kept again.
    pub(super) async fn keep(&mut self) -> Result<(), CourierError> {
        let revision = self.telemetry.revision();
        if let Some(keeper) = &mut self.keeper
            && self.kept != Some(revision)
        {
            keeper(self.telemetry.to_json()).await.map_err(CourierError::Keep)?;
            self.kept = Some(revision);
        }
        Ok(())
    }

    /// Gives up a connection on which an answer or any sign of life is overdue.
    pub(super) fn check_line(&mut self, now_ms: u64) {
        let dead_ms = self.line.as_ref().and_then(Line::dead_ms);
        let overdue = [dead_ms, self.answer_ms()].into_iter().flatten().any(|due_ms| due_ms <= now_ms);
        if overdue && self.line.is_some() {
            self.lose(None, "no answer", 0);
        }
    }

    /// Waits until something happens or is due, and takes it in. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        let world = self.world.clone();
        let pause = Duration::from_millis(self.until_due_ms());
        let happening = tokio::select! {
            happening = happening(&mut self.line, &mut self.dials, &mut self.posts) => happening,
            () = world.clock.sleep(pause) => return,
        };
        let now_ms = self.world.now_ms();
        match happening {
            Happening::Heard(incoming) => self.hear(incoming, now_ms),
            Happening::Dialed(Ok(opened)) => self.open(opened, now_ms),
            Happening::Dialed(Err(error)) => self.fail_dial(&error, now_ms),
            Happening::Posted(answer) => self.take_answer(answer, now_ms),
        }
    }

    pub(super) fn is_failed(&self) -> bool {
        let used_up = self.options.attempts_max.is_some_and(|max| self.socket_door.failures >= max);
        self.stop.is_some() || used_up
    }

    pub(super) fn window_ms(&self) -> Option<u64> {
        Some(self.telemetry.window().from_ms()?.saturating_add(self.options.window_ms))
    }

    pub(super) fn answer_ms(&self) -> Option<u64> {
        Some(self.telemetry.unanswered_since_ms()?.saturating_add(self.options.answer_ms_max))
    }

    pub(super) fn until_due_ms(&self) -> u64 {
        let line = self.line.as_ref();
        let doors = [&self.socket_door, &self.http_door].map(|door| Some(door.not_before_ms));
        let line = [line.and_then(Line::ping_ms), line.and_then(Line::dead_ms)];
        let others = [self.answer_ms(), self.window_ms(), self.telemetry.poll_timeout()];
        let times = doors.into_iter().chain(line).chain(others).flatten();
        // What was due in this turn is done, or waits for something that happens.
        let next_ms = times.filter(|due_ms| *due_ms > self.turn_ms).min();
        next_ms.map_or(IDLE_MAX_MS, |next_ms| (next_ms - self.turn_ms).min(IDLE_MAX_MS))
    }
}

/// Waits for what happens at either door. Cancel-safe.
async fn happening(
    line: &mut Option<Line>,
    dials: &mut JoinSet<Result<Opened, ClientError>>,
    posts: &mut JoinSet<Result<Answer, ClientError>>,
) -> Happening {
    let heard = async {
        match line {
            Some(line) => line.socket.incoming.recv().await,
            None => std::future::pending().await,
        }
    };
    let ended = |error: tokio::task::JoinError| ClientError::Network(io::Error::other(error));
    tokio::select! {
        incoming = heard => Happening::Heard(incoming),
        Some(dialed) = dials.join_next() => Happening::Dialed(dialed.unwrap_or_else(|error| Err(ended(error)))),
        Some(posted) = posts.join_next() => Happening::Posted(posted.unwrap_or_else(|error| Err(ended(error)))),
    }
}
