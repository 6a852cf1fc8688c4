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
        } else if later.clone().any(|at| self.begins_again(at, claim.at)) {
            Fate::Overwritten
        } else if let Some(fate) = self.reviewed(claim) {
            fate
        } else if own.stays && !own.waits || later.any(|at| self.accounts[at].revives) {
            Fate::Audited
        } else {
            Fate::Lost
        }
    }

    /// Whether an item made the record anew, or brought it back by somebody who had seen the delete.
    fn begins_again(&self, at: usize, delete: usize) -> bool {
        let item = self.items[at];
        let restores = matches!(item.op, Op::Create | Op::Restore) || !item.decides.is_empty();
        item.born || restores && item.op != Op::Delete && !self.is_pending(at) && self.saw(at, delete)
    }
}
