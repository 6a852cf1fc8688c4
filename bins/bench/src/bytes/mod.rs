//! Bytes on the wire: what messages take in every form, with changed fields only and with whole records.
//!
//! Two real devices, the real engine and the real encoders exchange the messages; whole WebSocket frames are counted,
//! with their heads and, from the client, their masks. Records have ten fields and about 310 bytes, an edit changes
//! one of them, ids are random UUIDs. Nothing but the seed decides the figures.
//!
//! ```
//! let report = driftline_bench::bytes::measure(1)?;
//! assert!(report.p15_batch_up < 0.24);
//! # Ok::<(), anyhow::Error>(())
//! ```

mod office;
mod report;

use anyhow::Result;
use clap::Args;

use office::{Exchange, Fields, Office};
pub use report::{Count, Message, Report, Row};

/// Edits that a full batch holds.
const BATCH: usize = 100;

/// Single edits that are made, each of another field.
const SINGLES: usize = 10;

/// How far apart the edits of a user are who works on.
const WORK_MS: u64 = 30_000;

/// Which figures are wanted.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Decides ids, values and times
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Prints one JSON object on stdout and a Markdown table on stderr.
pub(crate) fn command(arguments: &Arguments) -> Result<()> {
    let report = measure(arguments.seed)?;
    eprint!("{}", report.table());
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Measures every message.
///
/// # Errors
/// When the devices and the server do not come to an end, which is a mistake of this program.
pub fn measure(seed: u64) -> Result<Report> {
    let mut rows = Vec::new();
    for (spacing, gap_ms) in [("at once", 0), ("30 s apart", WORK_MS)] {
        let whole = [batch(seed, gap_ms, Fields::All)?];
        let changed = [batch(seed, gap_ms, Fields::Changed)?];
        rows.extend(rows_of(&format!("{BATCH} edits {spacing}"), BATCH, &whole, &changed));
    }
    let (whole, changed) = (singles(seed, Fields::All)?, singles(seed, Fields::Changed)?);
    rows.extend(rows_of("one edit", 1, &whole, &changed));
    Ok(Report::new(seed, rows))
}

/// The rows of the three messages of an exchange; means over several of them.
fn rows_of(what: &str, items: usize, whole: &[Exchange], changed: &[Exchange]) -> [Row; 3] {
    let texts = |exchanges: &[Exchange], message| -> Vec<String> {
        exchanges.iter().map(|exchange| exchange.text(message).to_owned()).collect()
    };
    let row = |message| Row::new((message, what, items), &texts(whole, message), &texts(changed, message));
    [row(Message::SyncData), row(Message::ServerDelta), row(Message::Ack)]
}

/// One batch of edits that are so far apart.
fn batch(seed: u64, gap_ms: u64, fields: Fields) -> Result<Exchange> {
    let mut office = Office::new(seed, BATCH)?;
    for at in 0..BATCH {
        office.edit(at, fields, gap_ms)?;
    }
    office.exchange()
}

/// Edits that are sent one by one.
fn singles(seed: u64, fields: Fields) -> Result<Vec<Exchange>> {
    let mut office = Office::new(seed, SINGLES)?;
    let mut exchanges = Vec::new();
    for at in 0..SINGLES {
        office.edit(at, fields, WORK_MS)?;
        exchanges.push(office.exchange()?);
    }
    Ok(exchanges)
}
