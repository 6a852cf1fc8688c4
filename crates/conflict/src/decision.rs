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
    /// Set aside for a reviewer; what is stored stays as it is.
    ConflictPending,
    /// It breaks the rules of its kind; the errors say how.
    Invalid,
    /// It needs a right that its author lacks.
    Forbidden,
}

/// The side whose value stands after a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Winner {
    /// The incoming change.
    Client,
    /// What was stored.
    Server,
    /// A value made of both.
    Merged,
    /// What was stored, until a reviewer has decided.
    Held,
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
    /// The larger number stands.
    Max,
    /// The smaller number stands.
    Min,
    /// Increments add up.
    Counter,
    /// Sets unite.
    Set,
    /// Lists grow.
    Append,
    /// The first value stays.
    Immutable,
    /// Services alone write it.
    ServerOnly,
    /// A reviewer decides.
    Manual,
    /// An ordered field does not drop through a stale edit.
    Escalation,
    /// An update wins over a delete that had not seen it.
    UpdateWins,
    /// A delete wins over every update until it is restored.
    DeleteWins,
    /// A strategy of the embedding service.
    Custom(&'static str),
}

impl Rule {
    /// Returns the name used in the audit.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OwnNewer => "own_newer",
            Self::ClientWins => "client_wins",
            Self::ServerWins => "server_wins",
            Self::MostRecent => "most_recent",
            Self::Max => "max",
            Self::Min => "min",
            Self::Counter => "counter",
            Self::Set => "set",
            Self::Append => "append",
            Self::Immutable => "immutable",
            Self::ServerOnly => "server_only",
            Self::Manual => "manual",
            Self::Escalation => "escalation",
            Self::UpdateWins => "update_wins",
            Self::DeleteWins => "delete_wins",
            Self::Custom(name) => name,
        }
    }
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
    /// The value the change carried, if it carried one; of an intent, what it asked for.
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
    /// What is set aside for a reviewer, if anything.
    pub review: Option<Review>,
    /// What is wrong with the change.
    pub errors: Vec<ChangeError>,
    /// Whether the assertions of an ordered field were cut to their limit.
    pub collapsed: bool,
}

/// What of a change is set aside for a reviewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Review {
    /// Why.
    pub reason: ReviewReason,
    /// The fields, in canonical order; none: the whole change.
    pub fields: Vec<Box<str>>,
}

/// Why something is set aside for a reviewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReviewReason {
    /// The policy leaves conflicts to a reviewer.
    Manual,
    /// An ordered field was to be lowered by an edit that did not say so.
    DeescalationHeld,
    /// An urgent record was to be deleted by somebody who had not seen that it is.
    DeleteHeld,
}

impl ReviewReason {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Manual, Self::DeescalationHeld, Self::DeleteHeld];

    /// Returns the name used on the wire and in the store.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::DeescalationHeld => "deescalation_held",
            Self::DeleteHeld => "delete_held",
        }
    }

    /// Finds a reason by its name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

/// Something wrong with a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeError {
    /// Which part of the change.
    pub part: Part,
    /// The field, canonical JSON text.
    pub field: Box<str>,
    /// What is wrong.
    pub message: &'static str,
}

/// A part of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The whole values.
    Fields,
    /// What the author saw before.
    Previous,
    /// Increments of counters.
    Increments,
    /// Elements to add.
    Add,
    /// Elements to take out.
    Remove,
}

impl Part {
    /// Returns the member of an item that carries the part.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fields => "fields",
            Self::Previous => "previous",
            Self::Increments => "increments",
            Self::Add => "add",
            Self::Remove => "remove",
        }
    }
}

impl Decision {
    pub(crate) fn refused(outcome: Outcome) -> Self {
        Self {
            outcome,
            record: None,
            audit: None,
            conflict: false,
            review: None,
            errors: Vec::new(),
            collapsed: false,
        }
    }

    pub(crate) fn invalid(errors: Vec<ChangeError>) -> Self {
        Self { errors, ..Self::refused(Outcome::Invalid) }
    }

    /// Goes through the fields that a strategy decided, with their winners.
    pub fn winners(&self) -> impl Iterator<Item = (&str, Winner)> {
        self.audit.iter().flat_map(|audit| &audit.fields).filter_map(|field| {
            field.client.as_ref()?;
            Some((&*field.name, field.winner))
        })
    }
}
