//! The scenarios and the way from the command line to the printed report.

use anyhow::Result;
use clap::Subcommand;

use super::{batches, connect, echo, idle, sync, telemetry, upload};

/// A kind of load.
#[derive(Debug, Subcommand)]
pub(crate) enum Scenario {
    /// Pushes batches of records and waits for their acknowledgements.
    Sync(sync::Options),
    /// Sends messages of new samples, each under a key of its own, and waits for their acknowledgements.
    Telemetry(telemetry::Options),
    /// Uploads files in chunks with their SHA-256.
    Upload(upload::Options),
    /// Sends small requests and waits for their answers.
    Echo(echo::Options),
    /// Opens many connections and holds them without traffic.
    Idle(idle::Options),
    /// Connects, waits until the server greets, closes, and begins again.
    Connect(connect::Options),
    /// Prints the batches that `sync` would push, for programs that write to a database without a server.
    Batches(batches::Options),
}

/// Runs a scenario and prints its report.
///
/// # Errors
/// When the server cannot be reached, when a `--pid` is not a live process, and when nothing succeeded.
pub(crate) async fn run(scenario: &Scenario) -> Result<()> {
    let report = match scenario {
        Scenario::Sync(options) => sync::run(options).await?,
        Scenario::Telemetry(options) => telemetry::run(options).await?,
        Scenario::Upload(options) => upload::run(options).await?,
        Scenario::Echo(options) => echo::run(options).await?,
        Scenario::Idle(options) => idle::run(options).await?,
        Scenario::Connect(options) => connect::run(options).await?,
        Scenario::Batches(options) => return batches::write(options),
    };
    report.print()
}
