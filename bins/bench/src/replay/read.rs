//! The client that comes back: it connects, asks for everything, and reads to the end.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::time::{Instant, timeout_at};

use crate::load::bulk::{Chunk, Stream};
use crate::load::dialect::{Answer, Door};
use crate::load::events::Finder;
use crate::load::now::now;
use crate::load::options::Dialect;
use crate::load::socket::Socket;
use crate::load::tally::Tally;
use crate::load::window::Window;

/// How long after the window the last replay may go on.
const PATIENCE: Duration = Duration::from_secs(30);
/// Everything that is retained.
const FROM_THE_FIRST: &[u8] = br#"{"type":"replay_request","id":"r","payload":{"last_event_id":0}}"#;

/// What a replay must bring.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) topics: Vec<String>,
    /// Events on these topics.
    pub(super) events: u64,
}

/// Replays one after the other until the window ends, and gives what was counted.
pub(super) async fn replays(door: Door, dialect: Dialect, wanted: Wanted, window: Window) -> Tally {
    let chunk = Chunk::new();
    let (finder, tally) = (Finder::new(), Tally::new(window));
    let mut replay = Replay { window, wanted, finder, last: 0, count: 0, tally };
    while now() < window.until {
        let began = now();
        let work = async {
            let socket = enter(&door, dialect, &replay.wanted).await?;
            replay.read(&chunk, Stream::new(socket)).await
        };
        let done = timeout_at(window.until + PATIENCE, work).await.context("a replay does not end");
        match done.and_then(|done| done) {
            Ok(()) => replay.tally.done(began, now(), 0),
            Err(fault) => {
                eprintln!("a replay failed: {fault:#}");
                replay.tally.errors.add("replay_failed", 1);
                break;
            }
        }
    }
    replay.tally
}

/// Connects and asks for everything. The plain program is asked by its path.
async fn enter(door: &Door, dialect: Dialect, wanted: &Wanted) -> Result<Socket> {
    match dialect {
        Dialect::Driftline => {
            let mut socket = door.enter_topics(0, "", None).await?;
            door.subscribe(&mut socket, &wanted.topics).await?;
            socket.send(FROM_THE_FIRST).await?;
            Ok(socket)
        }
        Dialect::Plain => door.enter_path(&format!("/rows?topics={}", wanted.topics.join(","))).await,
    }
}

/// One replay after the other, and what was counted.
#[derive(Debug)]
struct Replay {
    window: Window,
    wanted: Wanted,
    finder: Finder,
    /// The id of the last event of this replay; 0 before the first.
    last: u64,
    /// Events of this replay.
    count: u64,
    tally: Tally,
}

impl Replay {
    /// Reads events until the replay is complete.
    ///
    /// # Errors
    /// When events are missing or out of order, when the server says that its answer is not complete, and when the
    /// connection ends before.
    async fn read(&mut self, chunk: &Chunk, mut stream: Stream) -> Result<()> {
        (self.last, self.count) = (0, 0);
        let mut end = None;
        while end.is_none() {
            let before = stream.bytes_in;
            let mut counted = false;
            let visit = |text: &[u8], at: Instant| match self.take(text, at) {
                Ok(Step::Event { in_window }) => counted = in_window,
                Ok(Step::Other) => {}
                Ok(Step::Complete) => end = end.take().or(Some(Ok(()))),
                Err(fault) => end = end.take().or(Some(Err(fault))),
            };
            let closed = stream.read(chunk, visit).await?;
            if counted {
                self.tally.bytes_in += stream.bytes_in - before;
            }
            if let (Some(code), None) = (closed, &end) {
                bail!("closed with {code} after {} events", self.count);
            }
        }
        stream.say_goodbye();
        end.unwrap_or(Ok(()))?;
        ensure!(self.count == self.wanted.events, "{} events instead of {}", self.count, self.wanted.events);
        Ok(())
    }

    fn take(&mut self, text: &[u8], at: Instant) -> Result<Step> {
        let Some(id) = self.finder.number(text).and_then(|_| self.finder.id(text)) else {
            return take_other(text);
        };
        ensure!(id > self.last, "event {id} came after {}", self.last);
        self.last = id;
        self.count += 1;
        let in_window = self.window.counts(at);
        self.tally.items += u64::from(in_window);
        Ok(Step::Event { in_window })
    }
}

/// What a message means for a replay.
enum Step {
    Event { in_window: bool },
    Complete,
    Other,
}

fn take_other(text: &[u8]) -> Result<Step> {
    let answer = Answer::parse(text)?;
    ensure!(answer.kind != "error", "refused with {}", answer.fault());
    if answer.kind != "replay_complete" {
        return Ok(Step::Other);
    }
    let said = String::from_utf8_lossy(text);
    ensure!(!said.contains(r#""complete":false"#), "not complete: {said}");
    Ok(Step::Complete)
}
