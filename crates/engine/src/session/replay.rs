//! Reading the log for a client that missed events.
//!
//! While the log is read nothing comes live: the listener lets go by what the log has. A client that comes back, and a
//! listener that was not told of something, move the listener's own place; a replay that is asked for on an open
//! connection has a place of its own, and behind it the listener catches up with what went by meanwhile.

use driftline_model::Epoch;
use driftline_protocol::{ErrorCode, EventPlace, Fault, Outbound, ReplayComplete, ReplayRequest, event_id};
use driftline_realtime::Log;
use std::collections::VecDeque;

use super::{Output, Session};
use crate::fanout::{Heard, Listener};
use crate::service::{Missed, MissedPage};
use crate::work::Work;

/// Replays of one connection that may wait for their turn.
const REPLAYS_MAX: usize = 4;

/// Replays of one connection that are remembered until it has caught up.
const SENT_MAX: usize = 16;

/// After so many milliseconds a log that was away is asked again.
const RETRY_MS: u64 = 1_000;

/// Where a client finds what the log does not have any more.
const SNAPSHOT: &str = "/api/v1/changes";

/// What is being read of the log, and what waits to be.
#[derive(Debug, Default)]
pub(super) struct Replays {
    current: Option<Replay>,
    queue: VecDeque<Replay>,
    /// What replays of this connection have sent, so that catching up does not send it again.
    sent: Vec<Sent>,
    /// Whether the next page may be asked for, once the client has taken what was sent.
    ready: bool,
    /// When the log that was away is asked again, in Unix milliseconds.
    retry_ms: Option<u64>,
    /// Counts replays whose topics had to be granted first.
    announced: u64,
}

#[derive(Debug)]
struct Sent {
    /// On these topics; none: on all.
    topics: Option<Vec<Box<str>>>,
    from: u64,
    through: u64,
}

#[derive(Debug)]
struct Replay {
    aim: Aim,
    /// Tells one that waits for its topics from the others.
    number: u64,
    reply_to: Option<String>,
    topics: Option<Vec<Box<str>>>,
    asked: EventPlace,
    limit: Option<u64>,
    begun: Option<Log>,
    from: u64,
    after: u64,
    count: u64,
    reason: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aim {
    /// The client asked for it and is told of its end.
    Asked,
    /// The client waits for its topics to be granted.
    Waiting,
    /// The client came back and is told of the end; the listener's own place moves.
    Resume,
    /// The listener catches up.
    CatchUp,
}

impl Replay {
    fn new(aim: Aim, asked: EventPlace) -> Self {
        Self {
            aim,
            number: 0,
            reply_to: None,
            topics: None,
            asked,
            limit: None,
            begun: None,
            from: asked.id,
            after: asked.id,
            count: 0,
            reason: None,
        }
    }

    /// Tells whether the listener's own place moves.
    fn moves(&self) -> bool {
        matches!(self.aim, Aim::Resume | Aim::CatchUp)
    }

    fn next(&self) -> Missed {
        let epoch = self.begun.as_ref().map(|log| log.epoch);
        let after = match epoch {
            None => self.asked,
            epoch => EventPlace { epoch, id: self.after },
        };
        let limit = self.limit.map(|limit| limit.saturating_sub(self.count).max(1));
        Missed { topics: self.topics.clone(), after, begun: self.begun, limit }
    }
}

impl Replays {
    fn make_room(&mut self) -> Result<(), Fault> {
        if self.queue.len() >= REPLAYS_MAX {
            return Err(Fault::new(
                ErrorCode::ValidationError,
                "wait for replay_complete before you ask for more",
            ));
        }
        Ok(())
    }

    pub(super) fn push(&mut self, request: ReplayRequest, reply_to: Option<String>) -> Result<(), Fault> {
        self.make_room()?;
        let ReplayRequest { after, topics, limit } = request;
        self.queue.push_back(Replay { reply_to, topics, limit, ..Replay::new(Aim::Asked, after) });
        Ok(())
    }

    /// Keeps the place of a replay whose topics are not granted yet.
    pub(super) fn announce(&mut self, since: EventPlace, reply_to: Option<String>) -> Result<u64, Fault> {
        self.make_room()?;
        self.announced += 1;
        let number = self.announced;
        self.queue.push_back(Replay { reply_to, number, ..Replay::new(Aim::Waiting, since) });
        Ok(number)
    }

    /// Takes the replays that wait and that the client asked for.
    fn take_asked(&mut self) -> VecDeque<Replay> {
        let (asked, rest) = self.queue.drain(..).partition(|replay| replay.aim == Aim::Asked);
        self.queue = rest;
        asked
    }

    fn waiting(&self, number: u64) -> Option<usize> {
        self.queue.iter().position(|replay| replay.aim == Aim::Waiting && replay.number == number)
    }

    pub(super) fn withdraw(&mut self, number: u64) {
        if let Some(at) = self.waiting(number) {
            self.queue.remove(at);
        }
    }

    pub(super) fn grant(&mut self, number: u64, topics: Vec<Box<str>>) {
        let Some(at) = self.waiting(number) else { return };
        if topics.is_empty() {
            self.queue.remove(at);
        } else if let Some(replay) = self.queue.get_mut(at) {
            (replay.aim, replay.topics) = (Aim::Asked, Some(topics));
        }
    }

    /// When the log is to be asked again that was away, in Unix milliseconds.
    pub(super) fn retry_ms(&self) -> Option<u64> {
        self.retry_ms
    }

    pub(super) fn go_on(&mut self) {
        (self.retry_ms, self.ready) = (None, true);
    }

    /// Tells whether an event was sent by a replay already.
    fn was_sent(&self, heard: &Heard) -> bool {
        let Some(id) = heard.event.id else { return false };
        self.sent.iter().any(|sent| {
            let on = |topics: &Vec<Box<str>>| heard.event.topics.iter().any(|topic| topics.contains(topic));
            id > sent.from && id <= sent.through && sent.topics.as_ref().is_none_or(on)
        })
    }
}

impl Session {
    /// Has a client that comes back get what it missed, before anything else.
    #[must_use]
    pub fn resuming(mut self, place: EventPlace) -> Self {
        if let Some(listener) = &self.listener {
            listener.resume(place.id);
            self.replays.queue.push_back(Replay::new(Aim::Resume, place));
            self.read_next();
        }
        self
    }

    /// Has the listener read the log, of which it was not told all.
    pub fn fill_hole(&mut self) {
        if let Some(listener) = self.listener.clone() {
            self.read_log(&listener);
            self.read_next();
        }
    }

    /// Has the listener read the log behind what waits, which is handed over first.
    fn read_log(&mut self, listener: &Listener) {
        let mut heard = Vec::new();
        listener.read_on(&mut heard);
        if !heard.is_empty() && !self.closed {
            self.outputs.push_back(Output::Events(heard));
        }
    }

    /// Asks for the next page of the log, if one is wanted: the client has taken what was sent.
    pub fn read_on(&mut self) {
        if std::mem::take(&mut self.replays.ready) {
            self.ask_for_page();
        }
    }

    /// Tells whether a page of the log is wanted as soon as the client has taken what was sent.
    #[must_use]
    pub fn wants_page(&self) -> bool {
        self.replays.ready
    }

    /// Begins the next replay, if none is under way.
    pub(super) fn read_next(&mut self) {
        let Some(listener) = self.listener.clone() else { return };
        if self.replays.current.is_some() {
            return;
        }
        let granted = self.replays.queue.front().is_some_and(|replay| replay.aim != Aim::Waiting);
        let next = if granted {
            self.replays.queue.pop_front()
        } else if listener.is_reading() {
            let place = EventPlace { epoch: None, id: listener.position() };
            Some(Replay::new(Aim::CatchUp, place))
        } else {
            self.replays.sent.clear();
            None
        };
        let Some(replay) = next else { return };
        if !listener.is_reading() {
            self.read_log(&listener);
        }
        self.replays.current = Some(replay);
        self.replays.ready = true;
    }

    fn ask_for_page(&mut self) {
        let (Some(listener), Some(replay)) = (self.listener.clone(), &self.replays.current) else { return };
        let missed = replay.next();
        self.ask(None, None, Work::Missed { listener, missed });
    }

    pub(super) fn missed(&mut self, page: Result<Box<MissedPage>, Fault>, now_ms: u64) {
        let Some(mut replay) = self.replays.current.take() else { return };
        let Some(listener) = self.listener.clone() else { return };
        let mut page = match page {
            Ok(page) => *page,
            Err(fault) if replay.moves() => {
                // Nothing comes live before the log could be read: that would be a silent gap.
                self.replays.retry_ms = Some(now_ms + RETRY_MS);
                self.replays.current = Some(replay);
                // Who asked is not kept waiting for a log that is away.
                for asked in self.replays.take_asked() {
                    self.error(&fault, asked.reply_to, now_ms);
                }
                return;
            }
            Err(fault) => {
                self.error(&fault, replay.reply_to, now_ms);
                return self.read_next();
            }
        };
        if replay.begun.is_none() {
            (replay.begun, replay.from) = (Some(page.log), page.from);
        }
        replay.reason = page.reason.or(replay.reason);
        if replay.aim == Aim::CatchUp {
            page.heard.retain(|heard| !self.replays.was_sent(heard));
        }
        replay.count += page.heard.len() as u64;
        replay.after = page.through;
        let last = page.heard.last().and_then(|heard| heard.event.id);
        if !page.heard.is_empty() && !self.closed {
            self.outputs.push_back(Output::Events(std::mem::take(&mut page.heard)));
        }
        let full = replay.limit.is_some_and(|limit| replay.count >= limit) && page.more;
        if full {
            replay.reason = Some("limit");
        }
        let done = if replay.moves() { listener.read(page.through, page.more) } else { full || !page.more };
        if !done {
            self.replays.current = Some(replay);
            self.replays.ready = true;
            return;
        }
        let to = if full { last.unwrap_or(page.through) } else { page.through };
        self.finish_replay(replay, page.log.epoch, to, now_ms);
        self.read_next();
    }

    fn finish_replay(&mut self, replay: Replay, epoch: Epoch, to: u64, now_ms: u64) {
        // A client that asked for nothing is told only if it misses something all the same.
        if replay.aim == Aim::CatchUp && replay.reason.is_none() {
            return;
        }
        if replay.aim == Aim::Asked {
            // Of very many in a row the first are forgotten, and come twice at worst.
            if self.replays.sent.len() == SENT_MAX {
                self.replays.sent.remove(0);
            }
            self.replays.sent.push(Sent { topics: replay.topics, from: replay.from, through: to });
        }
        let complete = replay.reason.is_none();
        let told = ReplayComplete {
            from: event_id(epoch, replay.from),
            to: event_id(epoch, to),
            count: replay.count,
            complete,
            reason: replay.reason.map(str::to_owned),
            snapshot: (!complete && replay.reason != Some("limit")).then(|| SNAPSHOT.to_owned()),
        };
        let head = self.head(now_ms, replay.reply_to, None);
        self.send(&Outbound::ReplayComplete(Box::new(told)), &head);
    }
}
