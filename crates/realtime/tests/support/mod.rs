//! What the random tests share: histories from seeds, and a count of what they met.

// Each test uses its part.
#![allow(dead_code)]

use std::collections::BTreeMap;

pub(crate) mod rng;

use rng::Rng;

/// How often each branch was met.
#[derive(Default)]
pub(crate) struct Met(BTreeMap<&'static str, u64>);

impl Met {
    pub(crate) fn count(&mut self, branch: &'static str) {
        *self.0.entry(branch).or_default() += 1;
    }

    /// Shows all counts, and fails when one of these branches was never met or another one is counted.
    pub(crate) fn require(&self, branches: &[&str]) {
        for (branch, times) in &self.0 {
            println!("{times:>9}  {branch}");
        }
        let unmet: Vec<_> = branches.iter().filter(|branch| !self.0.contains_key(**branch)).collect();
        assert!(unmet.is_empty(), "never met: {unmet:?}");
        let unknown: Vec<_> = self.0.keys().filter(|branch| !branches.contains(branch)).collect();
        assert!(unknown.is_empty(), "not required: {unknown:?}");
    }
}

/// Plays histories, each from its seed; a failure prints the seed.
///
/// `MODEL_SEED=<seed>` plays that history alone, without the required branches; `MODEL_HISTORIES` says how many are played
/// instead of `histories`.
pub(crate) fn play(histories: u64, branches: &[&str], history: impl Fn(Rng, &mut Met)) {
    let mut met = Met::default();
    if let Some(seed) = asked("MODEL_SEED") {
        return history(Rng::new(seed), &mut met);
    }
    for seed in 0..asked("MODEL_HISTORIES").unwrap_or(histories) {
        let failing = Failing { seed };
        history(Rng::new(seed), &mut met);
        std::mem::forget(failing);
    }
    met.require(branches);
}

/// Prints the seed when it is dropped, which happens only while a failed history unwinds.
struct Failing {
    seed: u64,
}

impl Drop for Failing {
    fn drop(&mut self) {
        println!("MODEL_SEED={} plays the history that failed", self.seed);
    }
}

fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}
