//! `load batches`: the batches of `load sync` as lines of a file, for programs that write to a database without a server.

use std::io::{BufWriter, Write as _};

use anyhow::Result;
use clap::Args;

use super::clock::{Clock, Uuid};
use super::now::unix_ms;
use super::records::Bodies;
use crate::rng::Rng;

/// Options of `load batches`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Items in a batch.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    items: u16,
    /// Batches to write.
    #[arg(long, default_value_t = 1_000)]
    batches: u64,
    /// Seed of everything that is drawn.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Bodies made beforehand, as many as `load sync` makes.
const BODIES: usize = 4_096;

/// Writes the batches to standard output: each line is a JSON array, half of whose items are new records and half
/// touch an earlier one.
pub(crate) fn write(options: &Options) -> Result<()> {
    let bodies = Bodies::new(options.seed, BODIES);
    let mut rng = Rng::new(options.seed, 0);
    let mut clock = Clock::default();
    let mut rows: Vec<Uuid> = Vec::new();
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut line = Vec::new();
    let touches = usize::from(options.items) / 2;
    for _ in 0..options.batches {
        line.clear();
        // No record twice in one batch: a statement that upserts the whole batch refuses that.
        let (earlier, first) = (rows.len(), rng.below(usize::MAX / 2));
        for item in 0..usize::from(options.items) {
            let stamp = clock.tick(unix_ms());
            let id = if item % 2 == 0 || earlier < touches {
                rows.push(Uuid::new(stamp, &mut rng));
                rows[rows.len() - 1]
            } else {
                rows[(first + item / 2 * (earlier / touches)) % earlier]
            };
            line.extend_from_slice(if item == 0 { br#"[{"id":""# } else { br#",{"id":""# });
            id.write(&mut line);
            let body = bodies.at(rng.below(usize::MAX));
            let updated_at = stamp >> 16;
            write!(line, r#"","collection":"load","ver":{stamp},"updated_at":{updated_at},"data":{body}}}"#)?;
        }
        line.extend_from_slice(b"]\n");
        out.write_all(&line)?;
    }
    Ok(out.flush()?)
}
