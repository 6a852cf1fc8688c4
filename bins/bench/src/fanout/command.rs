//! The options of `fanout`, and its way from connections to a report.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde::Serialize;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use super::publish::Publisher;
use super::subscribe::{Subscriber, follow};
use crate::load::bulk::{Chunk, Stream};
use crate::load::dialect::Door;
use crate::load::drive::Pace;
use crate::load::events::{Bodies, PUBLISHERS_MAX};
use crate::load::options::Common;
use crate::load::process::ensure_connections;
use crate::load::report::{Report, Unit};
use crate::load::socket::Socket;
use crate::load::tally::Tally;
use crate::load::window::{Window, observe};

/// Options of `fanout`.
#[derive(Debug, Args, Serialize)]
pub(crate) struct Options {
    #[command(flatten)]
    #[serde(flatten)]
    common: Common,
    /// Subscribers, each one connection; the tokens are used in turn.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..))]
    subscribers: u16,
    /// Connections that publish.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=PUBLISHERS_MAX as i64))]
    publishers: u8,
    /// Bytes of the body of an event.
    #[arg(long, default_value_t = 256)]
    bytes: usize,
    /// Events under way at the most: so many times the subscribers may be owed a delivery before publishing pauses.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    outstanding: u16,
    /// Events a second over all publishers (open loop; latency counts from the intended moment of publishing to each
    /// receipt). Without it, as many as are taken.
    #[arg(long)]
    rate: Option<f64>,
    /// Topic of the events [default: one that no other run has].
    #[arg(long)]
    topic: Option<String>,
}

/// Publishes for the length of the window and follows every delivery.
///
/// # Errors
/// When the server cannot be reached or refuses, and when a delivery was missing, doubled or out of order: the figures
/// were printed then, and do not count.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let common = &options.common;
    ensure!(options.rate.is_none_or(|rate| rate > 0.0), "--rate must be positive");
    ensure_connections(u64::from(options.subscribers) + u64::from(options.publishers))?;
    let bodies = Bodies::new(options.bytes)?;
    let door = Door::new(common).await?;
    let topic = options.topic.clone().unwrap_or_else(|| format!("fanout.{:x}", door.run()));
    let streams = subscribe(&door, usize::from(options.subscribers), &topic).await?;
    let sockets = enter_publishers(&door, options).await?;
    let window = Window::open(common)?;
    let paces: Vec<Pace> = (0..sockets.len()).map(|at| Pace::new(options.rate, at, sockets.len())).collect();
    let room = Arc::new(Semaphore::new(usize::from(options.outstanding) * usize::from(options.subscribers)));
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let chunk = Arc::new(Chunk::new());
    for stream in streams {
        let subscriber = Subscriber::new(window, common.dialect, paces.clone(), Arc::clone(&room));
        tasks.spawn(follow(subscriber, stream, Arc::clone(&chunk), stopped.clone()));
    }
    let mut publishing = JoinSet::new();
    for ((number, socket), pace) in sockets.into_iter().enumerate().zip(paces) {
        let publisher = Publisher {
            window,
            dialect: common.dialect,
            number: number as u64,
            bodies: bodies.clone(),
            topic: topic.clone(),
            subscribers: u32::from(options.subscribers),
            room: Arc::clone(&room),
            pace,
        };
        publishing.spawn(publisher.publish(socket));
    }
    tasks.spawn(settle(window, publishing, Arc::clone(&room), options.in_flight_max(), stop));
    let (seen, tally) = observe(window, &common.pid, tasks).await?;
    let report = Report::new(("fanout", Unit::Items), (options, common), &seen, tally)?;
    report.print()?;
    report.ensure_clean()
}

impl Options {
    /// Deliveries under way at the most.
    fn in_flight_max(&self) -> u32 {
        u32::from(self.outstanding) * u32::from(self.subscribers)
    }
}

/// Connects the subscribers, one after the other, so that none meets a limit on connects.
async fn subscribe(door: &Door, subscribers: usize, topic: &str) -> Result<Vec<Stream>> {
    let mut streams = Vec::with_capacity(subscribers);
    for client in 0..subscribers {
        let mut socket = door.enter_topics(client, "", None).await?;
        let subscribed = door.subscribe(&mut socket, &[topic.to_owned()]).await;
        subscribed.with_context(|| format!("subscriber {client}"))?;
        streams.push(Stream::new(socket));
    }
    eprintln!("{subscribers} subscribers are connected");
    Ok(streams)
}

async fn enter_publishers(door: &Door, options: &Options) -> Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for number in 0..usize::from(options.publishers) {
        sockets.push(door.enter_topics(usize::from(options.subscribers) + number, "", None).await?);
    }
    Ok(sockets)
}

/// Waits until all publishers are done and all that they published was delivered, then stops the subscribers.
async fn settle(
    window: Window,
    mut publishing: JoinSet<Tally>,
    room: Arc<Semaphore>,
    in_flight_max: u32,
    stop: watch::Sender<bool>,
) -> Tally {
    let mut tally = Tally::new(window);
    while let Some(joined) = publishing.join_next().await {
        match joined {
            Ok(published) => tally.merge(published),
            Err(fault) => {
                eprintln!("a publisher failed: {fault}");
                tally.errors.add("publisher_failed", 1);
            }
        }
    }
    // With nothing under way, all of the room is free.
    if timeout_at(window.deadline, room.acquire_many(in_flight_max)).await.is_err() {
        let free = u32::try_from(room.available_permits()).unwrap_or(u32::MAX);
        tally.unanswered += u64::from(in_flight_max.saturating_sub(free));
    }
    // Without a subscriber left, nobody has to be told.
    let _ = stop.send(true);
    tally
}
