//! Publishing the events that are read afterwards.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::command::Options;
use crate::load::dialect::{Answer, Door};
use crate::load::drive::{Exchange, Pace, Plan, Settled, drive};
use crate::load::events::{Bodies, Number};
use crate::load::now::now;
use crate::load::options::Dialect;
use crate::load::tally::Codes;
use crate::load::window::Window;

/// Publishes of one session that may wait for their answer.
const PIPELINE: usize = 64;
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Publishes the events, over all topics in turn.
///
/// # Errors
/// When one of them was refused or not answered within 10 minutes.
pub(super) async fn fill(door: &Door, options: &Options) -> Result<()> {
    let began = now();
    let until = began + PATIENCE;
    let window = Window { from: began, until, deadline: until };
    let mut tasks = JoinSet::new();
    for publisher in 0..options.publishers {
        // Client 0 is the one that reads.
        let socket = door.enter_topics(1 + usize::from(publisher), "", None).await?;
        let publishes = Publishes {
            publisher: u64::from(publisher),
            bodies: Bodies::new(options.bytes)?,
            topics: options.names(),
            sent: 0,
            answered: 0,
        };
        let requests_max = Some(options.events_each());
        tasks.spawn(drive(
            publishes,
            socket,
            Plan { window, pace: Pace::Closed, pipeline: PIPELINE, requests_max },
        ));
    }
    let mut taken = 0;
    while let Some(joined) = tasks.join_next().await {
        let tally = joined.context("a publisher failed")?;
        let (answered, errors) = (tally.operations, tally.errors.into_map());
        ensure!(errors.is_empty() && tally.unanswered == 0, "not all events were taken: {errors:?}");
        taken += answered;
    }
    let seconds = began.elapsed().as_secs_f64();
    eprintln!("{taken} events are published, {:.0} a second", taken as f64 / seconds.max(1e-9));
    Ok(())
}

/// One publisher's events and their answers.
#[derive(Debug)]
struct Publishes {
    publisher: u64,
    bodies: Bodies,
    topics: Vec<String>,
    sent: u64,
    answered: u64,
}

impl Exchange for Publishes {
    fn request(&mut self, _due: Instant, out: &mut Vec<u8>) {
        let number = Number { publisher: self.publisher, count: self.sent };
        let turn = usize::try_from(self.sent % self.topics.len() as u64).unwrap_or(0);
        self.bodies.write_publish(Dialect::Driftline, &self.topics[turn], number, out);
        self.sent += 1;
    }

    fn in_flight(&self) -> usize {
        usize::try_from(self.sent - self.answered).unwrap_or(usize::MAX)
    }

    fn answer(&mut self, text: &[u8], _results: &mut Codes) -> Result<Settled> {
        let answer = Answer::parse(text)?;
        Ok(match &*answer.kind {
            "ack" => {
                self.answered += 1;
                Settled::Done { due: now(), items: 1 }
            }
            "error" => {
                self.answered += 1;
                let pause = answer.retry_after_ms.map(Duration::from_millis);
                Settled::Refused { due: None, code: answer.fault().to_owned(), pause }
            }
            _ => Settled::Nothing,
        })
    }
}
