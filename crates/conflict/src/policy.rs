//! Conflict policies.

use std::fmt;
use std::sync::Arc;

use crate::custom::CustomStrategy;

/// How the conflicts of one kind are decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The strategy.
    pub strategy: Strategy,
    /// Rises with every change of the policy; the audit names it. Zero: the built-in or configured one.
    pub version: u64,
}

impl Policy {
    /// The default: per field, the most recent write wins; every intent is accepted on every field.
    #[must_use]
    pub const fn field_merge() -> Self {
        Self {
            strategy: Strategy::FieldMerge { fields: Vec::new(), on_delete: OnDelete::MostRecent },
            version: 0,
        }
    }

    /// Tells whether a change may be set aside for a reviewer.
    #[must_use]
    pub fn may_review(&self) -> bool {
        self.strategy.may_review()
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
    /// Per field by the field's own rule.
    FieldMerge {
        /// Rules of single fields; the others follow [`FieldRule::Lww`]. Without any rule every intent is accepted on
        /// every field.
        fields: Vec<(Box<str>, FieldRule)>,
        /// What a delete against an update comes to.
        on_delete: OnDelete,
    },
    /// Ordered fields never drop through a stale edit, and an urgent record is not deleted by one.
    PreserveEscalation {
        /// Rules of single fields, at least one of them [`FieldRule::Ordered`]; the others follow [`FieldRule::Lww`].
        fields: Vec<(Box<str>, FieldRule)>,
    },
    /// Every conflict is set aside for a reviewer; the stored record stays as it is until then.
    Manual,
    /// An embedding service decides.
    Custom(Custom),
}

impl Strategy {
    /// Returns the name used in configuration, on the wire and in the audit.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ClientWins { .. } => "client_wins",
            Self::ServerWins { .. } => "server_wins",
            Self::MostRecentWins => "most_recent_wins",
            Self::FieldMerge { .. } => "field_merge",
            Self::PreserveEscalation { .. } => "preserve_escalation",
            Self::Manual => "manual",
            Self::Custom(custom) => custom.0.name(),
        }
    }

    /// Returns the rules of single fields.
    #[must_use]
    pub fn fields(&self) -> &[(Box<str>, FieldRule)] {
        match self {
            Self::FieldMerge { fields, .. } | Self::PreserveEscalation { fields } => fields,
            _ => &[],
        }
    }

    /// Finds the rule that is declared for a field.
    #[must_use]
    pub fn rule(&self, field: &str) -> Option<&FieldRule> {
        self.fields().iter().find(|(name, _)| **name == *field).map(|(_, rule)| rule)
    }

    /// Tells whether a change may be set aside for a reviewer.
    fn may_review(&self) -> bool {
        match self {
            Self::Manual | Self::PreserveEscalation { .. } | Self::Custom(_) => true,
            Self::FieldMerge { fields, .. } => fields.iter().any(|(_, rule)| *rule == FieldRule::Manual),
            Self::ClientWins { .. } | Self::ServerWins { .. } | Self::MostRecentWins => false,
        }
    }

    /// Tells whether every intent is accepted on every field, because no rule is declared for any.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Self::FieldMerge { fields, .. } if fields.is_empty())
    }

    pub(crate) const fn granularity(&self) -> Granularity {
        match self {
            Self::ClientWins { granularity, .. } | Self::ServerWins { granularity } => *granularity,
            _ => Granularity::Field,
        }
    }
}

/// A strategy of an embedding service. Two are equal when they are the same object.
#[derive(Clone)]
pub struct Custom(pub Arc<dyn CustomStrategy>);

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Custom").field(&self.0.name()).finish()
    }
}

impl PartialEq for Custom {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Custom {}

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

/// What a delete against an update comes to under [`Strategy::FieldMerge`], in whatever order they arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDelete {
    /// The larger clock wins.
    #[default]
    MostRecent,
    /// The record lives as long as there is an update that no delete had seen.
    UpdateWins,
    /// The record is deleted as long as there is a delete that no restore had seen.
    DeleteWins,
}

/// How one field merges under [`Strategy::FieldMerge`] and [`Strategy::PreserveEscalation`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FieldRule {
    /// The last writer wins, by (clock, device, number).
    Lww,
    /// The larger number stands.
    Max,
    /// The smaller number stands.
    Min,
    /// An integer that changes only by increments, which add up.
    Counter,
    /// A set of values: what was added and not removed by somebody who had seen it.
    Set,
    /// A list of objects with an `id` each, which only grows; ordered by (clock, device, number).
    Append,
    /// Keeps its first value.
    Immutable,
    /// Written by services only.
    ServerOnly,
    /// A conflict is set aside for a reviewer.
    Manual,
    /// One of ordered values, the most urgent of which shows.
    Ordered(Order),
}

impl FieldRule {
    /// Returns the name used in configuration, on the wire and in the audit.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Lww => "lww",
            Self::Max => "max",
            Self::Min => "min",
            Self::Counter => "counter",
            Self::Set => "set",
            Self::Append => "append",
            Self::Immutable => "immutable",
            Self::ServerOnly => "server_only",
            Self::Manual => "manual",
            Self::Ordered(_) => "ordered",
        }
    }
}

/// The values of an ordered field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Canonical JSON values by rising urgency.
    pub values: Vec<Box<str>>,
    /// The place among them from which on a value is urgent: a stale delete does not remove an urgent record.
    pub urgent: Option<usize>,
}

impl Order {
    /// Returns a value's place; nothing for a value that is not declared.
    #[must_use]
    pub fn rank(&self, value: &str) -> Option<usize> {
        self.values.iter().position(|known| **known == *value)
    }

    pub(crate) fn is_urgent(&self, value: &str) -> bool {
        self.urgent.is_some_and(|urgent| self.rank(value).is_some_and(|rank| rank >= urgent))
    }
}
