//! What it takes to know a request that came before: by memory, by the database, and not at all.
//!
//! The real engine runs over SQLite with full durability, in this process and without a network. Requests bring one
//! sample each.
//!
//! | what | how it is measured |
//! |---|---|
//! | known, in memory | a request that was answered by this engine comes again: all of its answer |
//! | known, in the database | the file was opened anew, and a request of before comes for the first time since |
//! | unknown, the look-up | a key that nobody used is looked for in the database |
//! | unknown, the request | a request under a new key: looked for, carried out, remembered, committed and synced |
//! | without a key | the same request without one, in turns with the former |
//!
//! What a key adds to a request that is new is the difference of the last two, percentile by percentile.

mod bench;
mod report;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use bench::Bench;
pub use report::{Report, Row};

/// What is to be measured.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Keys that the database holds before anything is measured
    #[arg(long, default_value_t = 20_000)]
    keys: u64,
    /// Requests of each sort
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..))]
    requests: u64,
    /// The folder for the database, which is made in it and removed [default: the system's folder for temporary files]
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// Prints one JSON object on stdout and a Markdown table on stderr.
pub(crate) fn command(arguments: &Arguments) -> Result<()> {
    let folder = arguments.folder.clone().unwrap_or_else(std::env::temp_dir);
    let report = measure(&folder, arguments.keys, arguments.requests)?;
    eprint!("{}", report.table());
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Measures with so many keys in the database and so many requests of each sort.
///
/// # Errors
/// When the folder is not writable, or a request is not answered as it must be.
pub fn measure(folder: &std::path::Path, keys: u64, requests: u64) -> Result<Report> {
    let mut bench = Bench::open(folder)?;
    let known = keys.max(requests);
    bench.fill(known)?;
    let mut rows = vec![("known, in memory", bench.again(known - requests.min(known)..known)?)];
    bench.reopen()?;
    // Spread over all keys, so that they lie on many pages.
    let step = known / requests;
    rows.push(("known, in the database", bench.again_by_step(step, requests)?));
    rows.push(("unknown, the look-up", bench.look_up(requests)?));
    let (with, without) = bench.fresh(known, requests)?;
    rows.push(("unknown, the request", with));
    rows.push(("the same without a key", without));
    Ok(Report::new(known, requests, rows))
}
