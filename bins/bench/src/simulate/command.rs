//! The `simulate` command.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use super::backend::{MemoryBackend, SqliteBackend};
use super::report::{Counts, Outcome};
use super::run::play;
use super::setup::{Mode, Setup};
use crate::load::now;

/// Which store the server has.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum StoreName {
    /// A store in memory.
    Memory,
    /// A file in a temporary folder.
    Sqlite,
}

/// What to simulate.
#[derive(Debug, Args)]
#[command(after_help = "\
A run is decided by its seed alone: `--seed 17` repeats the 17th of `--seed 1 --runs 100`.
A violated law ends the command with status 1, after the seed, the step and the whole story.

Examples:
  driftline-bench simulate --runs 500
  driftline-bench simulate --seed 17 --mode liveness --store sqlite
  echo '{\"strategy\":\"server_wins\"}' > policy.json && driftline-bench simulate --policy policy.json")]
pub struct Arguments {
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seeds to run, one after the other
    #[arg(long, default_value_t = 1, value_name = "K", value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// Devices; the first two belong to one user
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    devices: u64,
    /// Records that all devices write to; fewer collide more
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    records: u64,
    /// Actions per run: edits, pulls, cuts, restarts, restores, clock jumps
    #[arg(long, default_value_t = 200)]
    steps: u64,
    /// Virtual hours over which the actions of a run are spread
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    hours: u64,
    /// A conflict policy, a JSON document as `PUT /api/v1/policies/{kind}` takes it [default: the server's]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The server's store
    #[arg(long, value_enum, default_value = "memory")]
    store: StoreName,
    /// What has to be shown
    #[arg(long, value_enum, default_value = "safety")]
    mode: Mode,
}

/// Runs the simulations and prints what came of them.
///
/// # Errors
/// A policy that cannot be read or is refused, and a store that cannot be opened.
pub(crate) fn command(arguments: &Arguments) -> Result<ExitCode> {
    let seeds = arguments.seeds()?;
    let setup = arguments.setup()?;
    setup.check()?;
    println!("seed {}", setup.seed);
    let begun = now::now();
    let mut total = Counts::default();
    for seed in seeds {
        let outcome = arguments.play(&Setup { seed, ..setup.clone() })?;
        total.add(&outcome.counts);
        if let Some(violation) = &outcome.violation {
            // The same seed again, this time in words.
            let told = arguments.play(&Setup { seed, tell: true, ..setup.clone() })?;
            println!("{}", failure(&told));
            eprintln!("error: seed {seed} broke {violation}");
            return Ok(ExitCode::FAILURE);
        }
    }
    println!("{}", table(&total, arguments.runs, begun.elapsed().as_secs_f64()));
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    /// The seeds to play, of which there is at least one.
    fn seeds(&self) -> Result<RangeInclusive<u64>> {
        let last = self.runs.checked_sub(1).context("--runs 0 would play nothing")?;
        let last = self.seed.checked_add(last).with_context(|| {
            format!("--seed {} --runs {} goes beyond the largest seed, {}", self.seed, self.runs, u64::MAX)
        })?;
        Ok(self.seed..=last)
    }

    fn setup(&self) -> Result<Setup> {
        let policy = self.policy.as_ref().map(|file| {
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
        });
        Ok(Setup {
            seed: self.seed,
            devices: usize::try_from(self.devices)?,
            records: usize::try_from(self.records)?,
            steps: self.steps,
            hours: self.hours,
            mode: self.mode,
            policy: policy.transpose()?,
            tell: false,
        })
    }

    fn play(&self, setup: &Setup) -> Result<Outcome> {
        match self.store {
            StoreName::Memory => play(setup, &mut MemoryBackend::default()),
            StoreName::Sqlite => {
                let folder = std::env::temp_dir().join(format!(
                    "driftline-simulate-{}-{}",
                    std::process::id(),
                    setup.seed
                ));
                std::fs::create_dir_all(&folder)
                    .with_context(|| format!("cannot make {}", folder.display()))?;
                let outcome = play(setup, &mut SqliteBackend::new(&folder));
                std::fs::remove_dir_all(&folder)
                    .with_context(|| format!("cannot remove {}", folder.display()))?;
                outcome
            }
        }
    }
}

/// The story of a run that broke a law.
fn failure(outcome: &Outcome) -> String {
    let mut text = outcome.story.join("\n");
    if let Some(violation) = &outcome.violation {
        let step = outcome.counts.steps;
        text.push_str(&format!("\n\nseed {} broke a law at step {step}\n{violation}", outcome.seed));
    }
    text
}

/// A short table of what happened.
fn table(counts: &Counts, runs: u64, seconds: f64) -> String {
    let hours = counts.device_ms as f64 / 3_600_000.0;
    let rows = [
        ("runs", runs.to_string()),
        ("steps", counts.steps.to_string()),
        ("edits", counts.edits.to_string()),
        ("conflicts", counts.conflicts.to_string()),
        ("auto-merged", counts.merged.to_string()),
        ("silent losses", counts.silent.to_string()),
        ("audited losses", counts.audited.to_string()),
        ("messages", counts.messages.to_string()),
        ("simulated client-hours", format!("{hours:.0}")),
        ("wall seconds", format!("{seconds:.2}")),
        ("simulated client-hours per minute", format!("{:.0}", hours * 60.0 / seconds.max(1e-9))),
    ];
    rows.map(|(name, value)| format!("{name:<34}{value:>14}")).join("\n")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn line(words: &[&str]) -> Result<Line, clap::Error> {
        Line::try_parse_from([&["simulate"], words].concat())
    }

    #[test]
    fn no_runs_are_refused() {
        let error = line(&["--runs", "0"]).expect_err("nothing would be played").to_string();
        assert!(error.contains("'0' for '--runs <K>'"), "{error}");
    }

    #[test]
    fn seeds_beyond_the_largest_are_refused() {
        let seeds = |runs: &str| {
            let line = line(&["--seed", "18446744073709551615", "--runs", runs]).expect("numbers");
            line.arguments.seeds()
        };
        assert_eq!(seeds("1").expect("the last one"), u64::MAX..=u64::MAX);
        let error = seeds("2").expect_err("there is no second one").to_string();
        assert!(error.contains("goes beyond the largest seed"), "{error}");
        assert!(
            command(&line(&["--seed", "18446744073709551615", "--runs", "2"]).expect("numbers").arguments)
                .is_err()
        );
    }
}
