//! What somebody was promised: a value, an element or a share of a total, until it is accounted for.

use std::collections::BTreeMap;

use driftline_conflict::{Change, Record};
use driftline_model::Seq;

use super::seen::holds;
use super::wild::Run;

/// What of a change was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Promise {
    /// The field has this value.
    Whole(String),
    /// The field's array has this element.
    Element(String),
    /// The field's number has this increment in it.
    Share(i64),
}

/// A promise to one device about one field.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) field: String,
    pub(crate) promise: Promise,
    pub(crate) device: u32,
    pub(crate) n: u64,
    /// The version of the record with the promise kept.
    pub(crate) version: Seq,
    /// A value written over an equal one is the same value, seen by whoever saw or wrote either.
    pub(crate) group: usize,
    pub(crate) settled: bool,
}

impl Claim {
    pub(crate) fn is_own_of(&self, change: &Change) -> bool {
        self.device == change.device.number() && self.n < change.n
    }

    /// Whether the author of a change had seen what the claim is about, or made it.
    pub(crate) fn was_seen_by(&self, change: &Change) -> bool {
        self.is_own_of(change) || self.version <= change.base
    }

    /// Whether a reader finds the promise kept. Shares are checked by their sum.
    pub(crate) fn is_kept(&self, value: Option<&str>) -> bool {
        match (&self.promise, value) {
            (_, None) => false,
            (Promise::Whole(wanted), Some(value)) => wanted == value,
            (Promise::Element(element), Some(value)) => holds(value, element),
            (Promise::Share(_), Some(_)) => true,
        }
    }

    /// Whether an account that names the value names what the claim is about.
    pub(crate) fn is_told_by(&self, value: &str) -> bool {
        match &self.promise {
            Promise::Whole(wanted) => wanted == value,
            Promise::Element(element) => holds(value, element),
            // The stored number, which had the increment in it.
            Promise::Share(_) => true,
        }
    }
}

/// What a reader sees of a record.
pub(crate) struct Visible {
    pub(crate) deleted: bool,
    pub(crate) body: BTreeMap<String, String>,
}

impl Visible {
    pub(crate) fn of(run: &Run, record: Option<&Record>) -> Self {
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            deleted: record.is_some_and(|record| record.is_deleted(&run.devices)),
            body: record.map(|record| record.fields.iter().map(own).collect()).unwrap_or_default(),
        }
    }

    /// The value that a reader sees.
    pub(crate) fn value(&self, field: &str) -> Option<&str> {
        if self.deleted { None } else { self.stored(field) }
    }

    /// The value that is stored, deleted or not.
    pub(crate) fn stored(&self, field: &str) -> Option<&str> {
        self.body.get(field).map(String::as_str)
    }
}
