//! `load echo`: small requests and their answers; `ping` and `pong` in our dialect.

use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::dialect::{Answer, Door};
use super::drive::{Exchange, Pace, Plan, Settled, drive};
use super::options::{Common, Dialect};
use super::report::{Report, Unit};
use super::tally::Codes;
use super::window::{Window, observe};

/// Unanswered requests of an open loop when it is left to the tool.
const PIPELINE_OPEN: u16 = 64;

/// Options of `load echo`.
#[derive(Debug, Args, Serialize)]
pub(crate) struct Options {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) common: Common,
    /// Connections.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Requests a second over all connections (open loop; latency counts from the intended send time).
    #[arg(long)]
    rate: Option<f64>,
    /// Requests that a connection may have unanswered [default: 1 in a closed loop, 64 in an open one].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pipeline: Option<u16>,
}

/// Asks for the length of the window.
pub(crate) async fn run(options: &Options) -> Result<Report> {
    ensure!(options.rate.is_none_or(|rate| rate > 0.0), "--rate must be positive");
    let connections = usize::from(options.connections);
    let door = Door::new(&options.common).await?;
    let mut sockets = Vec::new();
    for index in 0..connections {
        sockets.push(door.enter(index, None).await?);
    }
    let window = Window::open(&options.common)?;
    let default_pipeline = if options.rate.is_some() { PIPELINE_OPEN } else { 1 };
    let mut tasks = JoinSet::new();
    for (index, socket) in sockets.into_iter().enumerate() {
        let plan = Plan {
            window,
            pace: Pace::new(options.rate, index, connections),
            pipeline: usize::from(options.pipeline.unwrap_or(default_pipeline)),
            requests_max: None,
        };
        tasks.spawn(drive(Pings::new(options.common.dialect), socket, plan));
    }
    let (seen, tally) = observe(window, &options.common.pid, tasks).await?;
    Report::new(("echo", Unit::Operations), (options, &options.common), &seen, tally)
}

/// Numbered requests; the answer must bring the number back.
#[derive(Debug)]
struct Pings {
    dialect: Dialect,
    last: u64,
    in_flight: VecDeque<(u64, Instant)>,
    needle: Vec<u8>,
}

impl Pings {
    fn new(dialect: Dialect) -> Self {
        Pings { dialect, last: 0, in_flight: VecDeque::new(), needle: Vec::new() }
    }

    /// Tells whether `text` brings back the number of the oldest request; a search is cheaper than a parse.
    fn answers_oldest(&mut self, text: &[u8]) -> bool {
        let Some((number, _)) = self.in_flight.front() else { return false };
        self.needle.clear();
        // Writing to memory does not fail.
        let _ = write!(self.needle, "\"timestamp\":{number}");
        let found = text.windows(self.needle.len()).position(|part| part == self.needle);
        found.is_some_and(|at| !text.get(at + self.needle.len()).is_some_and(u8::is_ascii_digit))
    }
}

impl Exchange for Pings {
    fn request(&mut self, due: Instant, out: &mut Vec<u8>) {
        self.last += 1;
        let number = self.last;
        // Writing to memory does not fail.
        let _ = match self.dialect {
            Dialect::Driftline => write!(out, r#"{{"type":"ping","timestamp":{number}}}"#),
            Dialect::Plain => {
                write!(out, r#"{{"type":"echo","sync_id":"e","payload":{{"timestamp":{number}}},"ts":1}}"#)
            }
        };
        self.in_flight.push_back((number, due));
    }

    fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn answer(&mut self, text: &[u8], _results: &mut Codes) -> Result<Settled> {
        if self.answers_oldest(text)
            && let Some((_, due)) = self.in_flight.pop_front()
        {
            return Ok(Settled::Done { due, items: 0 });
        }
        let answer = Answer::parse(text)?;
        if answer.kind != "error" {
            return Ok(Settled::Nothing);
        }
        Ok(Settled::Refused {
            due: self.in_flight.pop_front().map(|(_, due)| due),
            code: answer.fault().to_owned(),
            pause: answer.retry_after_ms.map(Duration::from_millis),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::now::now;
    use super::*;

    fn asked(count: u64) -> Pings {
        let mut pings = Pings::new(Dialect::Driftline);
        for _ in 0..count {
            pings.request(now(), &mut Vec::new());
        }
        pings
    }

    #[test]
    fn a_pong_answers_only_its_own_number() {
        let mut pings = asked(1);
        let mut answer = |text: &str| pings.answer(text.as_bytes(), &mut Codes::default()).expect("read");
        assert_eq!(answer(r#"{"type":"pong","timestamp":10}"#), Settled::Nothing);
        assert!(matches!(answer(r#"{"type":"pong","timestamp":1,"x":0}"#), Settled::Done { .. }));
        assert_eq!(answer(r#"{"type":"pong","timestamp":1}"#), Settled::Nothing);
    }

    #[test]
    fn an_error_settles_the_oldest_request() {
        let mut pings = asked(2);
        let error = br#"{"type":"error","code":"RATE_LIMITED"}"#;
        let settled = pings.answer(error, &mut Codes::default()).expect("read");
        assert!(matches!(settled, Settled::Refused { due: Some(_), .. }), "{settled:?}");
        assert_eq!(pings.in_flight(), 1);
    }

    #[test]
    fn requests_of_both_dialects_are_json() {
        for (dialect, pointer) in [(Dialect::Driftline, "/timestamp"), (Dialect::Plain, "/payload/timestamp")]
        {
            let mut out = Vec::new();
            Pings::new(dialect).request(now(), &mut out);
            let value: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
            assert_eq!(value.pointer(pointer), Some(&serde_json::json!(1)));
        }
    }
}
