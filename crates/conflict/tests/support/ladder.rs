//! The ledger of ordered fields: no value falls without an audited, authorised, informed lowering, and an urgent record
//! does not disappear behind the back of whoever made it urgent.

use std::collections::BTreeMap;

use driftline_conflict::{Change, FieldRule, Op, Order, Outcome, Record, Rule, Strategy, Winner};
use driftline_model::Seq;

use super::seen::entry;
use super::story::story;
use super::wild::{Run, Step};

/// A value that nobody has replaced who had seen it.
struct Standing {
    rank: usize,
    version: Seq,
    device: u32,
    n: u64,
    /// Whether a delete had seen it.
    covered: bool,
}

impl Standing {
    fn was_seen_by(&self, change: &Change) -> bool {
        (self.device == change.device.number() && self.n < change.n) || self.version <= change.base
    }
}

#[derive(Default)]
struct Ledger {
    fields: BTreeMap<String, Vec<Standing>>,
    /// Deletes that were accepted: device and number.
    deletes: Vec<(u32, u64)>,
}

/// Finds ordered values that fell, or urgent records that were deleted, against the rule.
pub(crate) fn falls_of(run: &Run) -> Result<(), String> {
    let Strategy::PreserveEscalation { fields } = &run.policy.strategy else { return Ok(()) };
    let orders: Vec<(&str, &Order)> = fields
        .iter()
        .filter_map(|(name, rule)| match rule {
            FieldRule::Ordered(order) => Some((&**name, order)),
            _ => None,
        })
        .collect();
    let mut ledgers: BTreeMap<usize, Ledger> = BTreeMap::new();
    for (at, step) in run.steps.iter().enumerate() {
        let ledger = ledgers.entry(step.input.key).or_default();
        ledger
            .enter(run, step, &orders)
            .map_err(|broken| format!("{broken} at step {at}\n{}", story(run, step.input.key)))?;
    }
    Ok(())
}

impl Ledger {
    fn enter(&mut self, run: &Run, step: &Step, orders: &[(&str, &Order)]) -> Result<(), String> {
        let change = &step.input.change;
        let ordered = orders.iter().any(|(name, _)| change.fields.get(name).is_some());
        let flagged = change.intents.as_ref().is_some_and(|intents| intents.deescalate);
        match step.decision.outcome {
            Outcome::Gone | Outcome::ClientAhead | Outcome::Invalid => return Ok(()),
            Outcome::Forbidden if step.decision.record.is_some() => {
                return Err("forbidden with an effect".into());
            }
            Outcome::Forbidden => return Ok(()),
            _ if change.op == Op::Delete => self.deleted(step),
            _ if flagged && ordered && !step.input.rights.deescalate => {
                return Err("lowering without the right".to_owned());
            }
            _ => {
                for (name, order) in orders {
                    self.written(step, name, order)?;
                }
            }
        }
        let urgent = orders.iter().any(|(name, order)| {
            let standing = self.fields.get(*name).into_iter().flatten();
            order
                .urgent
                .is_some_and(|urgent| standing.into_iter().any(|one| one.rank >= urgent && !one.covered))
        });
        let deleted = step.after.as_ref().is_some_and(|record| record.is_deleted(&run.devices));
        if urgent && deleted { Err("an urgent record is deleted".to_owned()) } else { Ok(()) }
    }

    fn deleted(&mut self, step: &Step) {
        let change = &step.input.change;
        let existence = step.decision.audit.as_ref().and_then(|audit| audit.existence);
        if existence.is_some_and(|made| made.rule == Rule::OwnNewer) {
            return;
        }
        self.deletes.push((change.device.number(), change.n));
        for standing in self.fields.values_mut().flatten() {
            standing.covered |= standing.was_seen_by(change);
        }
    }

    fn written(&mut self, step: &Step, name: &str, order: &Order) -> Result<(), String> {
        let rank_in = |record: Option<&Record>| order.rank(record?.fields.get(name)?);
        let (before, after) = (rank_in(step.before.as_ref()), rank_in(step.after.as_ref()));
        let change = &step.input.change;
        let entry = entry(step.decision.audit.as_ref(), name);
        let flagged = change.intents.as_ref().is_some_and(|intents| intents.deescalate);
        if let Some(value) = change.fields.get(name) {
            let rank = order.rank(value).ok_or("a value that is not declared")?;
            let overtaken =
                entry.is_some_and(|entry| entry.rule == Rule::OwnNewer) || self.is_overtaken(change, name);
            let held = entry.is_some_and(|entry| entry.winner == Winner::Held);
            let lowers = before.is_some() && self.lowers(change, name, order, rank);
            if !overtaken && held != (lowers && !flagged) {
                return Err(format!("{name}={value} lowers {lowers}, flagged {flagged}, held {held}"));
            }
            if !overtaken && !held {
                self.asserted(change, name, rank, step.next);
            }
        }
        let standing = self.fields.get(name).into_iter().flatten().map(|one| one.rank).max();
        if after != standing {
            return Err(format!("{name} shows {after:?} where {standing:?} stands"));
        }
        if after < before && (!flagged || entry.is_none()) {
            return Err(format!("{name} fell without an account"));
        }
        Ok(())
    }

    /// Whether a later write of the same device stands already.
    fn is_overtaken(&self, change: &Change, name: &str) -> bool {
        let mut standing = self.fields.get(name).into_iter().flatten();
        standing.any(|one| one.device == change.device.number() && one.n > change.n)
    }

    /// Whether a write is below what its author says to have seen, or has seen or made.
    fn lowers(&self, change: &Change, name: &str, order: &Order, rank: usize) -> bool {
        let previous = change.intents.as_ref().and_then(|intents| intents.previous.get(name));
        let below_previous =
            previous.and_then(|previous| order.rank(previous)).is_some_and(|seen| rank < seen);
        let standing = self.fields.get(name).into_iter().flatten();
        let mut seen = standing.filter(|one| one.was_seen_by(change));
        below_previous || seen.any(|one| rank < one.rank)
    }

    fn asserted(&mut self, change: &Change, name: &str, rank: usize, version: Seq) {
        let (device, n) = (change.device.number(), change.n);
        let covered = self.deletes.iter().any(|(deleter, number)| *deleter == device && *number > n);
        let standing = self.fields.entry(name.to_owned()).or_default();
        standing.retain(|one| !one.was_seen_by(change));
        standing.push(Standing { rank, version, device, n, covered });
    }
}
