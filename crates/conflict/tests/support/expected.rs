//! What each rule makes of one change of a live record, said once more: field by field, from the table of strategies.

use driftline_conflict::{
    Change, DeletedRecord, FieldRule, Granularity, Mark, Op, Outcome, Record, Strategy, Winner,
};
use driftline_model::{Hlc, Seq};

use super::policies::Content;
use super::seen::{entry, every_mark, touched};
use super::story::story;
use super::wild::{Run, Step};

/// Whose value has to stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stands {
    Arriving,
    Stored,
}

/// Checks every patch and every delete of a live record against the table.
pub(crate) fn table_of(run: &Run) -> Result<(), String> {
    for (at, step) in run.steps.iter().enumerate() {
        let after = step.after.as_ref().is_some_and(|record| record.is_deleted(&run.devices));
        let change = &step.input.change;
        if step.decision.outcome == Outcome::Applied && after != (change.op == Op::Delete) {
            return Err(format!(
                "{change:?} is applied, and deleted is {after}\n{}",
                story(run, step.input.key)
            ));
        }
        let Some(before) = step.before.as_ref().filter(|record| !record.is_deleted(&run.devices)) else {
            continue;
        };
        let scene = Scene { run, step, before, change: &step.input.change };
        let checked = match (step.input.change.op, step.decision.outcome) {
            (_, Outcome::Gone | Outcome::ClientAhead | Outcome::Invalid | Outcome::Forbidden) => continue,
            (Op::Patch, _) => scene.patch(),
            (Op::Delete, _) => scene.delete(&run.steps[..at]),
            (Op::Create | Op::Restore, _) => continue,
        };
        checked.map_err(|broken| {
            format!("{broken} at step {at} under {:?}\n{}", run.policy, story(run, step.input.key))
        })?;
    }
    Ok(())
}

struct Scene<'a> {
    run: &'a Run,
    step: &'a Step,
    before: &'a Record,
    change: &'a Change,
}

impl Scene<'_> {
    fn patch(&self) -> Result<(), String> {
        let strategy = &self.run.policy.strategy;
        let pending = self.step.decision.outcome == Outcome::ConflictPending;
        if *strategy == Strategy::Manual {
            let clash = self.change.fields.iter().any(|(name, value)| self.clashes(name, value));
            if pending != clash || (pending && self.step.decision.record.is_some()) {
                return Err(format!("a clash {clash} is pending {pending}"));
            }
            if pending {
                return Ok(());
            }
        }
        self.conflict()?;
        for (name, value) in self.change.fields.iter() {
            let Some(stands) = self.stands(name, value) else { continue };
            let after = self.step.after.as_ref().and_then(|record| record.fields.get(name));
            let wanted = match stands {
                Stands::Arriving => Some(value),
                Stands::Stored => self.before.fields.get(name),
            };
            if after != wanted {
                return Err(format!("{name} is {after:?}, not {wanted:?}"));
            }
            self.winner(name, value, stands)?;
            // An equal value with an older clock changes nothing.
            if !self.equal_and_concurrent(name, value)
                || self.before.mark(name).is_some_and(|mark| self.is_later(mark))
            {
                self.mark(name, stands)?;
            }
        }
        Ok(())
    }

    /// The account names the side that stands.
    fn winner(&self, name: &str, value: &str, stands: Stands) -> Result<(), String> {
        let entry = entry(self.step.decision.audit.as_ref(), name);
        let loses = stands == Stands::Stored && self.before.fields.get(name) != Some(value);
        match entry.map(|entry| entry.winner) {
            None if loses => Err(format!("{name}={value} lost without an account")),
            Some(Winner::Client) if stands == Stands::Stored => Err(format!("{name} did not win")),
            Some(Winner::Server | Winner::Held) if stands == Stands::Arriving => {
                Err(format!("{name} did not lose"))
            }
            _ => Ok(()),
        }
    }

    /// A write that stands moves the mark, with another value or with the same.
    fn mark(&self, name: &str, stands: Stands) -> Result<(), String> {
        let mark = self.step.after.as_ref().and_then(|record| record.mark(name));
        let own = mark.is_some_and(|mark| {
            (mark.device, mark.n, mark.fv) == (self.change.device, self.change.n, self.step.next)
        });
        let plain = Content::of(&self.run.policy.strategy, name) == Content::Plain;
        if stands == Stands::Arriving && plain && !own {
            return Err(format!("{name} stands without its mark: {mark:?}"));
        }
        Ok(())
    }

    /// Two devices touched one field; with the granularity of a record, two devices touched it at all.
    fn conflict(&self) -> Result<(), String> {
        let told = self.step.decision.conflict;
        if self.granularity() == Granularity::Record {
            let concurrent = self.concurrent_anywhere();
            if told != concurrent {
                return Err(format!("concurrent {concurrent}, a conflict {told}"));
            }
        }
        let contested = self.change.fields.iter().any(|(name, value)| {
            let plain = Content::of(&self.run.policy.strategy, name) == Content::Plain;
            plain && self.clashes(name, value)
        });
        if contested && !told {
            return Err("a conflict that is none".to_owned());
        }
        let open = Content::of(&self.run.policy.strategy, "a") == Content::Open;
        let touched = touched(self.change);
        let met = self.before.fields().any(|(name, _, _)| touched.contains(&name));
        if told && self.alone() && (met || !open) {
            return Err("a conflict of one device with itself".to_owned());
        }
        Ok(())
    }

    fn delete(&self, earlier: &[Step]) -> Result<(), String> {
        let overtaken = earlier.iter().any(|other| {
            let change = &other.input.change;
            other.input.key == self.step.input.key
                && change.device == self.change.device
                && change.n > self.change.n
        });
        let concurrent = self.concurrent_anywhere();
        let deleted = self.step.after.as_ref().is_some_and(|record| record.is_deleted(&self.run.devices));
        let wanted = match &self.run.policy.strategy {
            _ if overtaken => return Ok(()),
            Strategy::ClientWins { .. } => true,
            Strategy::ServerWins { .. } | Strategy::Manual => !concurrent,
            _ => return Ok(()),
        };
        if deleted == wanted { Ok(()) } else { Err(format!("deleted {deleted}, not {wanted}")) }
    }

    /// Whose value stands by the table; nothing where the table says more than two sides could.
    fn stands(&self, name: &str, value: &str) -> Option<Stands> {
        let stored = self.before.fields.get(name);
        let mark = self.before.mark(name);
        let strategy = &self.run.policy.strategy;
        match strategy.rule(name) {
            Some(FieldRule::Max) => {
                return Some(side(stored.is_none_or(|stored| number(value) >= number(stored))));
            }
            Some(FieldRule::Min) => {
                return Some(side(stored.is_none_or(|stored| number(value) <= number(stored))));
            }
            _ if Content::of(strategy, name) != Content::Plain => return None,
            _ => {}
        }
        if mark.is_some_and(|mark| mark.device == self.change.device && mark.n > self.change.n) {
            return Some(Stands::Stored);
        }
        match strategy.rule(name) {
            Some(FieldRule::Immutable) => return Some(side(stored.is_none())),
            Some(FieldRule::ServerOnly) if !self.step.input.rights.service => return Some(Stands::Stored),
            Some(FieldRule::Manual) => return Some(side(!self.clashes(name, value))),
            _ => {}
        }
        match strategy {
            Strategy::ClientWins {
                deleted: DeletedRecord::Restored | DeletedRecord::StaysDeleted, ..
            } => Some(Stands::Arriving),
            Strategy::ServerWins { granularity: Granularity::Record } => {
                Some(side(!self.concurrent_anywhere()))
            }
            Strategy::ServerWins { granularity: Granularity::Field } => {
                (!self.equal_and_concurrent(name, value)).then(|| side(!self.clashes(name, value)))
            }
            Strategy::Custom(_) => (!self.is_concurrent(name)).then_some(Stands::Arriving),
            _ => Some(side(!self.is_concurrent(name) || mark.is_none_or(|mark| self.is_later(mark)))),
        }
    }

    fn equal_and_concurrent(&self, name: &str, value: &str) -> bool {
        self.is_concurrent(name) && self.before.fields.get(name) == Some(value)
    }

    fn clashes(&self, name: &str, value: &str) -> bool {
        self.is_concurrent(name) && self.before.fields.get(name) != Some(value)
    }

    /// Whether another device wrote the field, unseen.
    fn is_concurrent(&self, name: &str) -> bool {
        self.before.mark(name).is_some_and(|mark| self.is_unseen(mark))
    }

    fn is_unseen(&self, mark: Mark) -> bool {
        mark.device != self.change.device && mark.fv > self.change.base
    }

    /// Whether another device wrote any field, deleted or revived the record, unseen.
    fn concurrent_anywhere(&self) -> bool {
        let fields = self.before.fields().map(|(_, _, mark)| mark);
        fields.chain(self.before.del).chain([self.before.live]).any(|mark| self.is_unseen(mark))
    }

    fn alone(&self) -> bool {
        let own = every_mark(self.before).iter().all(|mark| mark.device == self.change.device);
        own && self.before.states.iter().all(|(_, state)| state.others == Seq::ZERO)
    }

    fn granularity(&self) -> Granularity {
        match self.run.policy.strategy {
            Strategy::ClientWins { granularity, .. } | Strategy::ServerWins { granularity } => granularity,
            _ => Granularity::Field,
        }
    }

    /// Whether the change is later than a stored write, by (clock, device, number).
    fn is_later(&self, mark: Mark) -> bool {
        let devices = &self.run.devices;
        let own =
            Mark { fv: self.step.next, hlc: self.clock(), device: self.change.device, n: self.change.n };
        own.order(&mark, devices).is_gt()
    }

    fn clock(&self) -> Hlc {
        let input = &self.step.input;
        self.change.hlc.unwrap_or(input.received).min(input.latest())
    }
}

fn side(arriving: bool) -> Stands {
    if arriving { Stands::Arriving } else { Stands::Stored }
}

fn number(text: &str) -> f64 {
    text.parse().unwrap_or(f64::NAN)
}
