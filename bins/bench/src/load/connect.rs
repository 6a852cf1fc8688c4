//! `load connect`: how many connections a second a server takes, greets and lets go.

use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use super::dialect::Door;
use super::now::now;
use super::options::Common;
use super::report::{Report, Unit};
use super::tally::Tally;
use super::window::{Window, observe};

/// Devices that a worker connects as in turn: known to the server after the first round, and the previous
/// connection of each is gone before its next one.
const DEVICES: usize = 16;

/// Options of `load connect`.
#[derive(Debug, Args, Serialize)]
pub(crate) struct Options {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) common: Common,
    /// Workers, each with one connection at a time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
}

/// Connects for the length of the window.
pub(crate) async fn run(options: &Options) -> Result<Report> {
    let door = Arc::new(Door::new(&options.common).await?);
    // A first connection in peace: a refusal is an error of the run, not a count.
    door.enter(0, None).await?.close().await?;
    let window = Window::open(&options.common)?;
    let mut tasks = JoinSet::new();
    for worker in 0..usize::from(options.connections) {
        tasks.spawn(work(Arc::clone(&door), worker, window));
    }
    let (seen, tally) = observe(window, &options.common.pid, tasks).await?;
    Report::new(("connect", Unit::Operations), (options, &options.common), &seen, tally)
}

/// Connects and closes until the window ends. The latency is that of connecting, without the goodbye.
async fn work(door: Arc<Door>, worker: usize, window: Window) -> Tally {
    let mut tally = Tally::new(window);
    let mut turn = 0;
    while now() < window.until {
        let began = now();
        turn = (turn + 1) % DEVICES;
        let mut socket = match door.enter(worker * DEVICES + turn, None).await {
            Ok(socket) => socket,
            Err(fault) => {
                tally.errors.add("connect_failed", 1);
                eprintln!("a connection failed: {fault:#}");
                // A server that refuses at once must not be met with a busy loop of refusals.
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            }
        };
        let ended = now();
        tally.done(began, ended, 0);
        if window.counts(ended) {
            tally.bytes_in += socket.bytes_in;
            tally.bytes_out += socket.bytes_out;
        }
        socket.shrink();
        if !matches!(timeout_at(window.deadline, socket.close()).await, Ok(Ok(()))) {
            tally.errors.add("close_failed", 1);
        }
    }
    tally
}
