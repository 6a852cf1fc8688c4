//! What a simulation found.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Error;

/// A law that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The law's name, such as `I3`.
    pub law: &'static str,
    /// What was seen.
    pub what: String,
}

impl Violation {
    pub(super) fn new(law: &'static str, what: impl Into<String>) -> Self {
        Self { law, what: what.into() }
    }

    pub(super) fn of(mut self, whom: &str) -> Self {
        self.what = format!("{whom}: {}", self.what);
        self
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.law, self.what)
    }
}

/// Why a run stopped before its end.
#[derive(Debug)]
pub(super) enum Stop {
    Violation(Violation),
    /// The simulation itself could not go on.
    Broken(Error),
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

/// What happened in a run, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Actions of the schedule.
    pub steps: u64,
    /// Edits that users made.
    pub edits: u64,
    /// Items that a strategy decided.
    pub conflicts: u64,
    /// Items that took effect beside other devices' changes.
    pub merged: u64,
    /// Values that stand nowhere but in an audit row.
    pub audited: u64,
    /// Values that disappeared without a trace.
    pub silent: u64,
    /// Records that the model had an opinion on.
    pub compared: u64,
    /// Batches that the store took.
    pub commits: u64,
    /// Messages that arrived.
    pub messages: u64,
    /// Virtual milliseconds, each counted once per device.
    pub device_ms: u64,
    /// Faults and other events by their names.
    pub events: BTreeMap<&'static str, u64>,
    /// Answers by their codes.
    pub codes: BTreeMap<&'static str, u64>,
}

impl Counts {
    pub(super) fn event(&mut self, name: &'static str) {
        *self.events.entry(name).or_default() += 1;
    }

    pub(super) fn code(&mut self, name: &'static str) {
        *self.codes.entry(name).or_default() += 1;
    }

    /// Adds another run's counts.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.edits += other.edits;
        self.conflicts += other.conflicts;
        self.merged += other.merged;
        self.audited += other.audited;
        self.silent += other.silent;
        self.compared += other.compared;
        self.commits += other.commits;
        self.messages += other.messages;
        self.device_ms += other.device_ms;
        for (name, count) in &other.events {
            *self.events.entry(name).or_default() += count;
        }
        for (name, count) in &other.codes {
            *self.codes.entry(name).or_default() += count;
        }
    }
}

/// What came of one seed.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What happened.
    pub counts: Counts,
    /// The law that was broken, if one was.
    pub violation: Option<Violation>,
    /// What happened in words, if it was asked for.
    pub story: Vec<String>,
}

impl Outcome {
    /// Whether devices wrote the same fields without knowing of each other.
    #[must_use]
    pub fn overlaps(&self) -> bool {
        self.counts.conflicts > 0
    }
}

/// A story as it is told; nothing is put into words that nobody reads.
#[derive(Debug)]
pub(super) struct Story {
    pub(super) lines: Option<Vec<String>>,
}

impl Story {
    pub(super) fn tell(&mut self, at_ms: u64, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            let (s, ms) = (at_ms / 1000, at_ms % 1000);
            lines.push(format!("{:>4}:{:02}:{:02}.{ms:03} {}", s / 3600, s / 60 % 60, s % 60, line()));
        }
    }
}
