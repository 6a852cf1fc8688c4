//! What became of deletes.

use super::history::Op;
use super::ledger::{Claim, Fate, Ledger};

impl Ledger<'_> {
    /// Finds out where a delete went.
    pub(super) fn fate_of_delete(&self, claim: &Claim<'_>) -> Fate {
        let mut later = claim.at + 1..self.items.len();
        let own = &self.accounts[claim.at];
        if self.end.is_none() {
            Fate::Visible
        } else if let Some(fate) = self.reviewed(claim) {
            fate
        } else if later.clone().any(|at| self.begins_again(at, claim)) {
            Fate::Overwritten
        } else if own.stays && !own.waits || later.any(|at| self.accounts[at].revives) {
            Fate::Audited
        } else {
            Fate::Lost
        }
    }

    /// Whether an item made the record anew, or brought it back by somebody who had seen the delete.
    fn begins_again(&self, at: usize, delete: &Claim<'_>) -> bool {
        self.items[at].born || self.restores(at) && self.saw_value(at, delete)
    }

    /// Whether the record may live after an item, whatever was before.
    pub(super) fn lives_after(&self, at: usize) -> bool {
        self.items[at].born || self.restores(at) || self.accounts[at].revives
    }

    fn restores(&self, at: usize) -> bool {
        let item = self.items[at];
        let asks = matches!(item.op, Op::Create | Op::Restore) || !item.decides.is_empty();
        asks && item.op != Op::Delete && !self.accounts[at].hidden && !self.is_pending(at)
    }
}
