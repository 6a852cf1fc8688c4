//! Conflict policies.

/// How the conflicts of one kind are decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The strategy.
    pub strategy: Strategy,
    /// Rises with every change of the policy; the audit names it. Zero: the built-in or configured one.
    pub version: u64,
}

impl Policy {
    /// The default: per field, the most recent write wins.
    #[must_use]
    pub const fn field_merge() -> Self {
        Self { strategy: Strategy::FieldMerge { fields: Vec::new() }, version: 0 }
    }
}

/// What decides a conflict.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Strategy {
    /// The arriving change wins; the stored value goes to the audit.
    ClientWins {
        /// What counts as a conflict.
        granularity: Granularity,
        /// What an update does to a record that another device deleted meanwhile.
        deleted: DeletedRecord,
    },
    /// The stored value stays; the arriving one goes to the audit.
    ServerWins {
        /// What counts as a conflict.
        granularity: Granularity,
    },
    /// Per field the larger (clock, device, number) wins. Free of arrival order for honest clocks.
    MostRecentWins,
    /// Per field by the field's own rule; a delete against an update by the most recent.
    FieldMerge {
        /// Rules of single fields; the others follow [`FieldRule::Lww`].
        fields: Vec<(Box<str>, FieldRule)>,
    },
}

impl Strategy {
    /// Returns the name used in configuration, on the wire and in the audit.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ClientWins { .. } => "client_wins",
            Self::ServerWins { .. } => "server_wins",
            Self::MostRecentWins => "most_recent_wins",
            Self::FieldMerge { .. } => "field_merge",
        }
    }

    pub(crate) const fn granularity(&self) -> Granularity {
        match self {
            Self::ClientWins { granularity, .. } | Self::ServerWins { granularity } => *granularity,
            Self::MostRecentWins | Self::FieldMerge { .. } => Granularity::Field,
        }
    }
}

/// What counts as a conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Granularity {
    /// Any change of the record by another device that the author had not seen.
    #[default]
    Record,
    /// Only a different value in one of the touched fields, or an update against a delete.
    Field,
}

/// What an update does, under `client_wins`, to a record that another device deleted meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeletedRecord {
    /// The update brings it back.
    #[default]
    Restored,
    /// It stays deleted; the update is kept in the hidden body and in the audit.
    StaysDeleted,
}

/// How one field merges under [`Strategy::FieldMerge`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FieldRule {
    /// The last writer wins, by (clock, device, number).
    Lww,
}
