//! The options of `replay`, and its way from published events to a report.

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;
use tokio::task::JoinSet;

use super::fill::fill;
use super::read::{Wanted, replays};
use crate::load::dialect::Door;
use crate::load::options::{Common, Dialect};
use crate::load::report::{Report, Unit};
use crate::load::window::{Window, observe};

/// Options of `replay`.
#[derive(Debug, Args, Serialize)]
pub(crate) struct Options {
    #[command(flatten)]
    #[serde(flatten)]
    pub(super) common: Common,
    /// Events that there are, over all topics in turn.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) events: u32,
    /// Topics that there are.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub(super) topics: u16,
    /// Topics that the client sees.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    visible: u16,
    /// Bytes of the body of an event.
    #[arg(long, default_value_t = 256)]
    pub(super) bytes: usize,
    /// What the names of the topics begin with.
    #[arg(long, default_value = "replay")]
    prefix: String,
    /// Connections that publish the events beforehand, each of which publishes as many.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=99))]
    pub(super) publishers: u8,
    /// The events are there already, from an earlier run with the same options.
    #[arg(long)]
    filled: bool,
}

impl Options {
    /// The names of all topics.
    pub(super) fn names(&self) -> Vec<String> {
        (0..self.topics).map(|topic| format!("{}.{topic}", self.prefix)).collect()
    }

    /// Events that each publisher publishes; the plain program makes all of them by itself.
    pub(super) fn events_each(&self) -> u64 {
        u64::from(self.events) / self.publishers()
    }

    fn publishers(&self) -> u64 {
        match self.common.dialect {
            Dialect::Driftline => u64::from(self.publishers),
            Dialect::Plain => 1,
        }
    }

    /// Events on the topics that the client sees: each publisher takes the topics in turn, beginning with the first.
    fn visible_events(&self) -> u64 {
        let (topics, each) = (u64::from(self.topics), self.events_each());
        let seen = |topic: u64| (each + topics - 1 - topic) / topics;
        (0..u64::from(self.visible)).map(seen).sum::<u64>() * self.publishers()
    }
}

/// Publishes the events, then reads them for the length of the window: connected anew each time, from the first one on.
///
/// # Errors
/// When the server cannot be reached or refuses, and when an event was missing, doubled or out of order: the figures were
/// printed then, and do not count.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let common = &options.common;
    ensure!(options.visible <= options.topics, "--visible must not be more than --topics");
    let door = Door::new(common).await?;
    if common.dialect == Dialect::Driftline && !options.filled {
        fill(&door, options).await?;
    }
    let wanted = Wanted {
        topics: options.names().into_iter().take(usize::from(options.visible)).collect(),
        events: options.visible_events(),
    };
    let window = Window::open(common)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(replays(door, common.dialect, wanted, window));
    let (seen, tally) = observe(window, &common.pid, tasks).await?;
    let report = Report::new(("replay", Unit::Items), (options, common), &seen, tally)?;
    report.print()?;
    report.ensure_clean()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::path::Path;

    use clap::Parser;

    use super::super::rows::Rows;
    use super::super::serve::listen;
    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    /// Replays what a plain program has.
    fn replayed(events: u32, topics: u16, visible: &str) -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("ws://{}", listener.local_addr()?);
        // Before the window opens.
        let names: Vec<String> = (0..topics).map(|topic| format!("replay.{topic}")).collect();
        let mut rows = Rows::create(Path::new(":memory:"), events, &names, 256)?;
        std::thread::spawn(move || listen(&mut rows, &listener));
        let line = ["x", "--dialect", "plain", "--url", &url, "--seconds", "2", "--topics", "3"];
        let line = line.into_iter().chain(["--events", "1000", "--visible", visible]);
        let options = Line::try_parse_from(line)?.options;
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(&options))
    }

    #[test]
    fn whole_replays_pass_and_a_missing_event_is_found() {
        replayed(1_000, 3, "1").expect("one topic");
        replayed(1_000, 3, "3").expect("all topics");
        let found = replayed(999, 3, "1").expect_err("found").to_string();
        assert!(found.contains("no operation"), "{found}");
    }

    #[test]
    fn the_events_of_the_visible_topics_are_counted() {
        let visible = |events: &str, topics: &str, visible: &str, dialect: &str| {
            let line = ["x", "--url", "ws://h", "--publishers", "2", "--events", events, "--topics", topics];
            let line = line.into_iter().chain(["--visible", visible, "--dialect", dialect]);
            Line::try_parse_from(line).expect("valid").options.visible_events()
        };
        assert_eq!(visible("100", "10", "1", "driftline"), 10);
        assert_eq!(visible("100", "10", "10", "plain"), 100);
        // Two publishers of 7 events over 3 topics: 3, 2 and 2 each.
        assert_eq!(visible("14", "3", "1", "driftline"), 6);
        assert_eq!(visible("14", "3", "2", "driftline"), 10);
        assert_eq!(visible("14", "3", "1", "plain"), 5);
    }
}
