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
pub(crate) mod story;
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

/// Checks one history: whether edits overlapped in it, or what it breaks.
pub(crate) type Check = fn(&Apply<'_>, u64) -> Result<bool, String>;
