//! What waits for a reviewer, and what became of it once it was decided.

use super::excuse::carries;
use super::history::{Conflict, Op, Resolution};
use super::ledger::{Claim, Fate, Ledger, What};

impl Ledger<'_> {
    /// Tells where something that was set aside went, if that is known.
    pub(super) fn reviewed(&self, claim: &Claim<'_>) -> Option<Fate> {
        if !self.was_set_aside(claim) {
            return None;
        }
        if self.gave_way(claim) {
            return Some(Fate::Held);
        }
        let item = self.items[claim.at];
        let rows = self.conflicts.iter().filter(|row| row.device == item.device && row.id == item.conflict);
        rows.filter(|row| holds(row, claim, item.n)).find_map(|row| self.decided(row, claim))
    }

    /// Whether something waits or waited for a reviewer.
    pub(super) fn was_set_aside(&self, claim: &Claim<'_>) -> bool {
        match claim.what {
            What::Delete => self.is_pending(claim.at) || self.accounts[claim.at].waits,
            _ => self.waits(claim.at, claim.field),
        }
    }

    /// Whether a later change of the device joined the conflict and took the place of what waited. It is itself
    /// looked for.
    fn gave_way(&self, claim: &Claim<'_>) -> bool {
        let own = self.items[claim.at];
        (0..self.items.len()).any(|at| {
            let item = self.items[at];
            let later = item.device == own.device && item.n > own.n && item.conflict == own.conflict;
            let deletes = item.op == Op::Delete && (self.is_pending(at) || self.accounts[at].waits);
            let takes_place = match claim.what {
                What::Delete => self.is_pending(at) || item.fields.keys().any(|field| self.waits(at, field)),
                _ => item.fields.contains_key(claim.field) && self.waits(at, claim.field),
            };
            later && (deletes || takes_place)
        })
    }

    /// Where a conflict's decision took what waited in it.
    fn decided(&self, row: &Conflict, claim: &Claim<'_>) -> Option<Fate> {
        let resolution = match row.resolution.or_else(|| self.told_resolution(row)) {
            None => return Some(Fate::Held),
            Some(resolution) => resolution,
        };
        match resolution {
            Resolution::Server => self.tells(row, claim).then_some(Fate::Audited),
            // What was written is looked for like every other value.
            Resolution::Client => self.is_written(row, claim).then_some(Fate::Held),
            Resolution::Merged => {
                let written = self.items.iter().any(|item| decides(&item.decides, row));
                (written && self.tells(row, claim)).then_some(Fate::Audited)
            }
        }
    }

    /// How a conflict was decided, as the audit tells it.
    fn told_resolution(&self, row: &Conflict) -> Option<Resolution> {
        let told = self.decisions.iter().find(|audit| names(&audit.detail["conflict_id"], row))?;
        serde_json::from_value(told.detail["resolution"].clone()).ok()
    }

    /// Whether the audit row of the decision names what waited.
    fn tells(&self, row: &Conflict, claim: &Claim<'_>) -> bool {
        let mut told = self.decisions.iter().filter(|audit| names(&audit.detail["conflict_id"], row));
        told.any(|audit| match claim.what {
            What::Delete => audit.detail["wanted"] == "delete",
            _ => {
                let entry = &audit.detail["fields"][claim.field];
                entry.is_object() && carries(&entry["client"], &claim.what)
            }
        })
    }

    /// Whether the decision wrote what waited.
    fn is_written(&self, row: &Conflict, claim: &Claim<'_>) -> bool {
        let mut written = self.items.iter().filter(|item| decides(&item.decides, row));
        written.any(|item| match claim.what {
            What::Delete => item.op == Op::Delete,
            _ => item.fields.get(claim.field).is_some_and(|value| carries(value, &claim.what)),
        })
    }
}

/// Whether a conflict holds what an item with this number claims.
fn holds(row: &Conflict, claim: &Claim<'_>, n: u64) -> bool {
    let numbered = row.ns.get(claim.field).is_none_or(|known| *known == n);
    match claim.what {
        What::Delete => row.deletes,
        _ => numbered && row.client.get(claim.field).is_some_and(|waits| carries(waits, &claim.what)),
    }
}

/// Whether a reviewer's item is the decision of a conflict. An item of somebody else names none.
fn decides(named: &str, row: &Conflict) -> bool {
    !named.is_empty() && named == row.id
}

fn names(told: &serde_json::Value, row: &Conflict) -> bool {
    told.as_str().unwrap_or_default() == row.id
}
