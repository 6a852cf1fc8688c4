//! What the live records add up to, per kind and scope.

use std::collections::BTreeMap;

use driftline_model::{KindName, RecordId, ScopeName};
use driftline_protocol::row_sum;

use crate::record::Record;

/// How many live rows there are, and the wrapping sum of their [`row_sum`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sum {
    pub(crate) count: u64,
    pub(crate) sum: u64,
}

impl Sum {
    pub(crate) fn add(self, other: Self) -> Self {
        Self { count: self.count.wrapping_add(other.count), sum: self.sum.wrapping_add(other.sum) }
    }

    fn take(self, other: Self) -> Self {
        Self { count: self.count.wrapping_sub(other.count), sum: self.sum.wrapping_sub(other.sum) }
    }
}

/// The sums of all kinds and scopes, kept up to date with every change of a body.
///
/// Rows that only acks have told of have no scope yet; they are summed up apart.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sums(BTreeMap<(KindName, Option<ScopeName>), Sum>);

/// What one record adds to the sums.
pub(crate) type Share = Option<(Option<ScopeName>, Sum)>;

impl Sums {
    /// What a record adds to the sums now.
    pub(crate) fn share(kind: &KindName, id: &RecordId, record: &Record) -> Share {
        let body = record.body().filter(|body| body.is_row())?;
        Some((body.scope.clone(), Sum { count: 1, sum: row_sum(kind, id, body.version) }))
    }

    /// Replaces what a record added by what it adds now.
    pub(crate) fn move_share(&mut self, kind: &KindName, before: Share, after: Share) {
        if before == after {
            return;
        }
        if let Some((scope, share)) = before {
            let key = (kind.clone(), scope);
            let left = self.0.get(&key).copied().unwrap_or_default().take(share);
            if left == Sum::default() {
                self.0.remove(&key);
            } else {
                self.0.insert(key, left);
            }
        }
        if let Some((scope, share)) = after {
            let sum = self.0.entry((kind.clone(), scope)).or_default();
            *sum = sum.add(share);
        }
    }

    /// Goes through the kinds and scopes that have rows.
    pub(crate) fn scopes(&self) -> impl Iterator<Item = (&KindName, Option<&ScopeName>)> {
        self.0.keys().map(|(kind, scope)| (kind, scope.as_ref()))
    }

    /// The sum of a kind's rows in one scope, or in none that is known.
    pub(crate) fn of(&self, kind: &KindName, scope: Option<&ScopeName>) -> Sum {
        self.0.get(&(kind.clone(), scope.cloned())).copied().unwrap_or_default()
    }

    /// The sum of all rows of a kind.
    pub(crate) fn of_kind(&self, kind: &KindName) -> Sum {
        self.0
            .range((kind.clone(), None)..)
            .take_while(|((known, _), _)| known == kind)
            .fold(Sum::default(), |sum, (_, share)| sum.add(*share))
    }
}
