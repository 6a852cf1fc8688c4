//! What the laws are checked with: random histories, a tiny store around the plan, readers and planted faults.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod desk;
pub(crate) mod faulty;
pub(crate) mod history;
pub(crate) mod mutants;
pub(crate) mod reader;
pub(crate) mod tiny;

/// Runs a check over many seeds; the error names the seed and how to run it alone.
pub(crate) fn over_seeds<T: ?Sized>(
    subject: &T,
    histories: u64,
    check: &dyn Fn(&T, u64) -> Result<(), String>,
) -> Result<(), String> {
    let only = std::env::var("LAWS_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let seeds = only.map_or(0..histories, |seed| seed..seed + 1);
    for seed in seeds {
        check(subject, seed)
            .map_err(|broken| format!("seed {seed} (LAWS_SEED={seed} runs it alone): {broken}"))?;
    }
    Ok(())
}
