//! `load idle`: many connections that are open and silent: synced, or subscribed to a topic.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::dialect::Door;
use super::now::now;
use super::options::{Common, Dialect};
use super::process::{ensure_connections, usage_of};
use super::report::{IdleUse, Report, Unit, rounded};
use super::socket::{Incoming, Socket};
use super::tally::Tally;
use super::window::{Window, observe};

/// Connections that are opened at the same time.
const OPENERS: usize = 64;
/// Connections from one source address: below the usual 28,000 ephemeral ports.
const PER_SOURCE: usize = 25_000;
/// How long the server settles before the window, and the connections stay behind it.
const SETTLE: Duration = Duration::from_secs(1);

/// Options of `load idle`.
#[derive(Debug, Args, Serialize)]
pub(crate) struct Options {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) common: Common,
    /// Connections.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Seconds between the heartbeats of a connection; without it they say nothing at all.
    #[arg(long)]
    heartbeat_s: Option<f64>,
    /// Topic to which each connection subscribes, on the route for topics and without a sync session; `{n}` in it is
    /// replaced by the number of the connection.
    #[arg(long)]
    topic: Option<String>,
}

/// Opens all connections, holds them for the length of the window and measures what they cost.
pub(crate) async fn run(options: &Options) -> Result<Report> {
    let common = &options.common;
    let connections = usize::try_from(options.connections)?;
    ensure_connections(u64::from(options.connections))?;
    let heartbeat = options.heartbeat_s.map(Duration::try_from_secs_f64).transpose()?;
    ensure!(heartbeat.is_none_or(|every| !every.is_zero()), "--heartbeat-s must be positive");
    let door = Arc::new(Door::new(common).await?);
    let before = if common.pid.is_empty() { None } else { Some(usage_of(&common.pid)?) };
    let sockets = open(&door, options, connections).await?;
    eprintln!("{} connections are open", sockets.len());
    sleep(SETTLE).await;
    let window = Window::open(common)?;
    let mut tasks = JoinSet::new();
    for (index, socket) in sockets.into_iter().enumerate() {
        // Heartbeats are spread evenly, as those of devices that connected at different times are.
        let heartbeat =
            heartbeat.map(|every| (now() + every.mul_f64(index as f64 / connections as f64), every));
        tasks.spawn(hold(socket, window, heartbeat));
    }
    let (seen, tally) = observe(window, &common.pid, tasks).await?;
    let open = tally.operations;
    let mut report = Report::new(("idle", Unit::Held), (options, common), &seen, tally)?;
    let grown = before.zip(seen.end).map(|(before, end)| end.rss_bytes as f64 - before.rss_bytes as f64);
    report.idle = Some(IdleUse {
        open,
        rss_before_bytes: before.map(|usage| usage.rss_bytes),
        bytes_per_connection: grown.map(|bytes| rounded(bytes / connections as f64)),
    });
    Ok(report)
}

/// Opens the connections, a few at a time; one that fails ends the run.
async fn open(door: &Arc<Door>, options: &Options, connections: usize) -> Result<Vec<Socket>> {
    let dialect = options.common.dialect;
    let mut openers = JoinSet::new();
    for opener in 0..OPENERS.min(connections) {
        let (door, topic) = (Arc::clone(door), options.topic.clone());
        openers.spawn(async move {
            let mut sockets = Vec::new();
            for index in (opener..connections).step_by(OPENERS) {
                let source = source(index, connections);
                let mut socket = if let Some(topic) = &topic {
                    let topic = topic.replace("{n}", &index.to_string());
                    let mut socket = door.enter_topics(index, "", source).await?;
                    door.subscribe(&mut socket, &[topic]).await?;
                    socket
                } else {
                    door.enter(index, source).await?
                };
                if dialect == Dialect::Driftline && topic.is_none() {
                    door.start_sync(index, &mut socket, &[]).await?;
                }
                socket.shrink();
                sockets.push(socket);
            }
            Ok::<_, anyhow::Error>(sockets)
        });
    }
    let mut sockets = Vec::with_capacity(connections);
    while let Some(opened) = openers.join_next().await {
        sockets.extend(opened??);
    }
    Ok(sockets)
}

/// The source address of a connection: none while one address has ports enough, else 127.0.0.2 and so on.
fn source(index: usize, connections: usize) -> Option<Ipv4Addr> {
    if connections <= PER_SOURCE {
        return None;
    }
    let host = u8::try_from(2 + index / PER_SOURCE).unwrap_or(u8::MAX);
    Some(Ipv4Addr::new(127, 0, 0, host))
}

/// Holds a connection until the window ends and counts it as one operation if it is still open then.
async fn hold(mut socket: Socket, window: Window, mut heartbeat: Option<(Instant, Duration)>) -> Tally {
    let mut tally = Tally::new(window);
    let (bytes_in, bytes_out) = (socket.bytes_in, socket.bytes_out);
    loop {
        let wake = heartbeat.map_or(window.until, |(at, _)| at.min(window.until));
        let fault = tokio::select! {
            incoming = socket.next() => match incoming {
                Ok(Incoming::Message(_)) => {
                    tally.unsolicited += 1;
                    continue;
                }
                Ok(Incoming::Closed(code)) => format!("closed_{code}"),
                Err(_) => "connection_failed".to_owned(),
            },
            () = sleep_until(wake) => {
                if wake >= window.until {
                    tally.operations = 1;
                    // The server's memory is read now; it must not see the connections go before.
                    sleep(SETTLE).await;
                    break;
                }
                if let Some((at, every)) = &mut heartbeat {
                    *at += *every;
                }
                if socket.send(br#"{"type":"heartbeat"}"#).await.is_ok() {
                    continue;
                }
                "connection_failed".to_owned()
            }
        };
        tally.errors.add(&fault, 1);
        break;
    }
    tally.bytes_in = socket.bytes_in - bytes_in;
    tally.bytes_out = socket.bytes_out - bytes_out;
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_is_enough_until_its_ports_run_out() {
        assert_eq!(source(24_999, 25_000), None);
        assert_eq!(source(0, 60_000), Some(Ipv4Addr::new(127, 0, 0, 2)));
        assert_eq!(source(59_999, 60_000), Some(Ipv4Addr::new(127, 0, 0, 4)));
    }
}
