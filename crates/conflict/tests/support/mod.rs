//! What the laws are checked with: random histories, and an account, a model and expectations that share no code with
//! the merge.

pub(crate) mod account;
pub(crate) mod claims;
pub(crate) mod expected;
pub(crate) mod ladder;
pub(crate) mod laws;
pub(crate) mod model;
pub(crate) mod orders;
pub(crate) mod parts;
pub(crate) mod policies;
pub(crate) mod rng;
pub(crate) mod sane;
pub(crate) mod seen;
pub(crate) mod wild;

use driftline_conflict::{Change, Context, Decision, Outcome, Policy, Record};

/// The function under test: the real one, or a planted fault around it.
pub(crate) type Apply<'a> = dyn Fn(Option<&Record>, &Change, &Policy, &Context<'_>) -> Decision + 'a;

/// Milliseconds that a device's clock may run ahead.
pub(crate) const SKEW_MS: u64 = 60_000;

/// Names of fields without a rule.
pub(crate) const FIELDS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Whether the change was taken, at least as far as its account goes.
pub(crate) fn accepted(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Applied
        | Outcome::Merged
        | Outcome::Noop
        | Outcome::Superseded
        | Outcome::ConflictPending => true,
        Outcome::Gone | Outcome::ClientAhead | Outcome::Invalid | Outcome::Forbidden => false,
    }
}

/// How many histories a law saw, and in how many of them edits overlapped.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Report {
    pub(crate) histories: usize,
    pub(crate) overlapping: usize,
}

impl Report {
    /// A law that hardly ever meets two devices on one field shows nothing.
    pub(crate) fn assert_bites(&self) {
        assert!(
            self.overlapping * 100 >= self.histories * 30,
            "only {} of {} histories have overlapping edits",
            self.overlapping,
            self.histories
        );
    }
}

/// Checks one history: whether edits overlapped in it, or what it breaks.
pub(crate) type Check = fn(&Apply<'_>, u64) -> Result<bool, String>;

/// Runs a check over many seeds; the error names the seed and how to run it alone.
pub(crate) fn over_seeds(apply: &Apply<'_>, histories: u64, check: Check) -> Result<Report, String> {
    let mut report = Report::default();
    let only = std::env::var("LAWS_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let seeds = only.map_or(0..histories, |seed| seed..seed + 1);
    for seed in seeds {
        let overlapping = check(apply, seed)
            .map_err(|broken| format!("seed {seed} (LAWS_SEED={seed} runs it alone): {broken}"))?;
        report.histories += 1;
        report.overlapping += usize::from(overlapping);
    }
    Ok(report)
}
