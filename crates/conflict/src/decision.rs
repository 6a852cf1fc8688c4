//! What was decided, and the account of it.

use driftline_model::{Hlc, Seq};

use crate::record::{Mark, Record};

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It took effect on exactly the state its author had seen.
    Applied,
    /// It took effect, wholly or in part, beside another device's changes.
    Merged,
    /// Nothing had to change.
    Noop,
    /// All of it lost against what is stored.
    Superseded,
    /// There is no such record, or its author knew it deleted.
    Gone,
    /// Its author has seen a version that this server does not have.
    ClientAhead,
}

/// The side whose value stands after a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Winner {
    /// The incoming change.
    Client,
    /// What was stored.
    Server,
}

/// The rule that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// The same device had already written a later value.
    OwnNewer,
    /// The policy lets the client's value win.
    ClientWins,
    /// The policy keeps the server's value.
    ServerWins,
    /// The larger clock won; device and change number break ties.
    MostRecent,
}

/// The clock of a change, as sent and as used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// What the device sent.
    pub raw: Option<Hlc>,
    /// What counted.
    pub effective: Hlc,
}

impl Stamp {
    /// Tells whether the device's clock ran too far ahead and was held back.
    #[must_use]
    pub fn is_clamped(&self) -> bool {
        self.raw.is_some_and(|raw| raw > self.effective)
    }
}

/// A decision on one field. Names and values are canonical JSON texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldDecision {
    /// The field's name.
    pub name: Box<str>,
    /// The value the change carried, if it carried one.
    pub client: Option<Box<str>>,
    /// The value that was stored.
    pub server: Box<str>,
    /// Who had stored it, and when.
    pub server_mark: Mark,
    /// Whose value stands.
    pub winner: Winner,
    /// Why.
    pub rule: Rule,
}

/// A decision on whether the record exists: an update met a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Existence {
    /// The clock of the other side: of the delete for an update, of the last write for a delete.
    pub server_mark: Mark,
    /// Whose wish stands.
    pub winner: Winner,
    /// Why.
    pub rule: Rule,
    /// Whether the record is deleted afterwards.
    pub deleted: bool,
}

/// The account of one decision: what was weighed, what won and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// The clock of the change.
    pub stamp: Stamp,
    /// The version before the change; zero: there was no record.
    pub version_before: Seq,
    /// Decisions on single fields, in canonical order of their names.
    pub fields: Vec<FieldDecision>,
    /// The decision on the record's existence, if there was one to make.
    pub existence: Option<Existence>,
}

/// The result of applying one change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What became of the change.
    pub outcome: Outcome,
    /// The record afterwards, if it changed; its version is the context's `next`.
    pub record: Option<Record>,
    /// The account, when there was anything to decide or a clock was held back.
    pub audit: Option<Audit>,
    /// Whether two devices touched the same field or an update met a delete.
    pub conflict: bool,
}

impl Decision {
    pub(crate) fn refused(outcome: Outcome) -> Self {
        Self { outcome, record: None, audit: None, conflict: false }
    }

    /// Goes through the fields that a strategy decided, with their winners.
    pub fn winners(&self) -> impl Iterator<Item = (&str, Winner)> {
        self.audit.iter().flat_map(|audit| &audit.fields).filter_map(|field| {
            field.client.as_ref()?;
            Some((&*field.name, field.winner))
        })
    }
}
