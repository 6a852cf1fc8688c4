//! What audit rows account for.

use serde_json::Value;

use super::account::Entry;
use super::ledger::{Claim, Ledger, What};

impl Ledger<'_> {
    /// Whether an audit row accounts for a value that is gone: the row of its own item, or that of the item that took
    /// its place.
    pub(super) fn is_audited(&self, claim: &Claim<'_>) -> bool {
        let own = &self.accounts[claim.at];
        if own.hidden {
            return true;
        }
        let told = own.entry(claim.field).is_some_and(|entry| {
            // A value that went into another one is gone. What came beside others is not: such a row is no excuse.
            let made = entry.winner == "merged" && !entry.joins() && matches!(claim.what, What::Value(_));
            // What waits has to be where reviewers look.
            let lost = entry.refused() && !entry.held() || made || displaces(entry, claim, true);
            lost && carries(&entry.client, &claim.what)
        });
        told || (claim.at + 1..self.items.len()).any(|at| {
            let entry = self.accounts[at].entry(claim.field);
            entry.is_some_and(|entry| {
                let gone = entry.replaces() || displaces(entry, claim, false);
                gone && self.met(at, &entry.server, claim)
            })
        })
    }

    /// Whether what an item met, as its row tells it, is or holds what was claimed.
    fn met(&self, at: usize, server: &Value, claim: &Claim<'_>) -> bool {
        match claim.what {
            // An equal value that was gone before, or came later, is another one.
            What::Value(value) => server == value && self.met.contains(&(at, claim.group)),
            What::Element(element) => server.as_array().is_some_and(|elements| elements.contains(element)),
            // The sum that the row names holds every increment before it.
            What::Increment(_) => server.is_number() && (self.deletes(at) || self.writes(at, claim.field)),
            What::Delete => false,
        }
    }
}

/// Whether an element of a list gave way to another one with its id. `own`: the element came with the row's item.
fn displaces(entry: &Entry, claim: &Claim<'_>, own: bool) -> bool {
    let What::Element(element) = claim.what else { return false };
    let Some(id) = element.get("id").filter(|_| entry.joins() && entry.rule == "append") else {
        return false;
    };
    let client = [&entry.client["add"], &entry.client["fields"]];
    let server = own.then_some(&entry.server);
    let others = client.into_iter().chain(server).filter_map(Value::as_array).flatten();
    others.filter(|other| *other != element).any(|other| other.get("id") == Some(id))
}

/// Whether what an item asked of a field, as an audit row or a conflict tells it, is or holds what was claimed.
pub(super) fn carries(told: &Value, what: &What<'_>) -> bool {
    let holds = |elements: &Value, wanted: &Value| {
        elements.as_array().is_some_and(|elements| elements.contains(wanted))
    };
    match what {
        What::Value(value) => told == *value,
        What::Increment(by) => told.as_i64() == Some(*by),
        What::Element(element) => {
            holds(told, element) || holds(&told["add"], element) || holds(&told["fields"], element)
        }
        What::Delete => false,
    }
}
