//! `load sync`: devices push batches of records; half of the items are new, half touch an earlier one.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use super::device::{Device, Profile, Row};
use super::dialect::{Door, Session};
use super::drive::{Exchange, Pace, Plan, Settled, drive};
use super::now::now;
use super::options::{Common, Dialect};
use super::records::Bodies;
use super::report::{Report, Unit};
use super::socket::{Incoming, Socket};
use super::tally::Codes;
use super::window::{Window, observe};
use crate::rng::Rng;

/// Bodies made before the run; as many are enough that no cache of a server helps.
const BODIES: usize = 4_096;
/// Records that a pair of devices contests.
const CONTESTED: usize = 1_000;
/// Unanswered batches when an open loop leaves it to the tool: as many as the protocol allows.
const PIPELINE_OPEN: u8 = 4;

/// Options of `load sync`.
#[derive(Debug, Args, Serialize)]
pub(crate) struct Options {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) common: Common,
    /// Connections, each one device.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Items in a batch.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    items: u16,
    /// Ends the run after this many batches, shared by the connections.
    #[arg(long)]
    batches: Option<u64>,
    /// Batches a second over all connections (open loop; latency counts from the intended send time).
    #[arg(long)]
    rate: Option<f64>,
    /// Batches that a connection may have unanswered [default: 1 in a closed loop, 4 in an open one].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=4))]
    pipeline: Option<u8>,
    /// Share of the items that patch a record which another device has changed since the item's base version.
    #[arg(long, default_value_t = 0.0)]
    conflict_share: f64,
    /// Kinds that the records are spread over; connections see the live changes of their own kind
    /// [default: one to each connection or contesting pair].
    #[arg(long)]
    kinds: Option<u16>,
}

/// Pushes for the length of the window.
pub(crate) async fn run(options: &Options) -> Result<Report> {
    let connections = usize::from(options.connections);
    ensure!((0.0..=1.0).contains(&options.conflict_share), "--conflict-share is between 0 and 1");
    ensure!(
        options.conflict_share == 0.0 || connections.is_multiple_of(2),
        "conflicts need devices in pairs: an even number of --connections"
    );
    ensure!(options.rate.is_none_or(|rate| rate > 0.0), "--rate must be positive");
    let devices = prepare(options).await?;
    let window = Window::open(&options.common)?;
    let default_pipeline = if options.rate.is_some() { PIPELINE_OPEN } else { 1 };
    let mut tasks = JoinSet::new();
    for (index, (device, socket)) in devices.into_iter().enumerate() {
        let plan = Plan {
            window,
            pace: Pace::new(options.rate, index, connections),
            pipeline: usize::from(options.pipeline.unwrap_or(default_pipeline)),
            requests_max: options.batches.map(|all| share_of(all, index, connections)),
        };
        tasks.spawn(drive(device, socket, plan));
    }
    let (seen, tally) = observe(window, &options.common.pid, tasks).await?;
    Report::new(("sync", Unit::Items), (options, &options.common), &seen, tally)
}

/// Connects all devices, starts their sessions and lets every pair create what it will contest.
async fn prepare(options: &Options) -> Result<Vec<(Device, Socket)>> {
    let door = Door::new(&options.common).await?;
    let bodies = Arc::new(Bodies::new(options.common.seed, BODIES));
    let paired = options.conflict_share > 0.0;
    let mut devices = Vec::new();
    let mut contested: Arc<[Row]> = Arc::new([]);
    for index in 0..usize::from(options.connections) {
        let group = if paired { index / 2 } else { index };
        let kind = format!("load_{}", options.kinds.map_or(group, |kinds| group % usize::from(kinds.max(1))));
        let mut socket = door.enter(index, None).await?;
        let session = match options.common.dialect {
            Dialect::Driftline => door.start_sync(index, &mut socket, std::slice::from_ref(&kind)).await?,
            Dialect::Plain => Session { sync_id: String::new(), batch_items_max: None },
        };
        let items = usize::from(options.items);
        if let Some(max) = session.batch_items_max {
            ensure!(items <= max, "the server takes at most {max} items in a batch");
        }
        let profile = Profile {
            dialect: options.common.dialect,
            kind,
            sync_id: session.sync_id,
            items,
            bodies: Arc::clone(&bodies),
        };
        // Ids must be new in each run, what is drawn besides them need not: both come from this stream.
        let rng = Rng::new(options.common.seed ^ door.run(), index as u64);
        let mut device = Device::new(profile, rng);
        if paired && index.is_multiple_of(2) {
            contested = found(&mut device, &mut socket).await?;
        }
        device.mix(Arc::clone(&contested), options.conflict_share);
        devices.push((device, socket));
    }
    Ok(devices)
}

/// Creates the records that a pair will contest.
async fn found(device: &mut Device, socket: &mut Socket) -> Result<Arc<[Row]>> {
    let deadline = now() + std::time::Duration::from_secs(60);
    let mut out = Vec::new();
    let (mut created, mut codes) = (0, Codes::default());
    while created < CONTESTED as u64 {
        out.clear();
        device.request(now(), &mut out);
        socket.send(&out).await?;
        while device.in_flight() > 0 {
            let incoming = timeout_at(deadline, socket.next()).await.context("no answer for 60 s")??;
            let Incoming::Message(text) = incoming else { bail!("closed while records were created") };
            match device.answer(text, &mut codes)? {
                Settled::Done { items: 0, .. } => bail!("no record could be created: {codes:?}"),
                Settled::Done { items, .. } => created += items,
                Settled::Refused { code, .. } => bail!("refused with {code} while records were created"),
                Settled::Nothing => {}
            }
        }
    }
    Ok(device.take_rows())
}

/// The part of `all` that connection `index` of `connections` takes.
fn share_of(all: u64, index: usize, connections: usize) -> u64 {
    let (index, connections) = (index as u64, connections as u64);
    all / connections + u64::from(index < all % connections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for (all, connections) in [(0, 3), (7, 3), (9, 3), (1, 8)] {
            let shares: Vec<u64> = (0..connections).map(|index| share_of(all, index, connections)).collect();
            assert_eq!(shares.iter().sum::<u64>(), all, "{shares:?}");
            assert!(shares.iter().max() <= shares.iter().min().map(|min| min + 1).as_ref(), "{shares:?}");
        }
    }
}
