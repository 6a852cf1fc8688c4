//! What can be said of a change without the record.

use driftline_model::{Intents, Object, elements};

use crate::change::{Change, Context, Op};
use crate::decision::{ChangeError, Decision, Outcome, Part};
use crate::policy::{FieldRule, Order, Policy};

/// Checks a change against its policy.
///
/// What is accepted depends on nothing that is stored, so that it does not depend on the order of arrival either.
pub(super) fn check(change: &Change, policy: &Policy, context: &Context<'_>) -> Result<(), Box<Decision>> {
    if change.op == Op::Delete || change.intents.is_none() && policy.strategy.fields().is_empty() {
        return Ok(());
    }
    let mut check = Check { change, policy, errors: Vec::new(), lowers: false };
    check.fields();
    if let Some(intents) = &change.intents {
        check.intents(intents);
    }
    if !check.errors.is_empty() {
        return Err(Box::new(Decision::invalid(check.errors)));
    }
    if check.lowers && !context.rights.deescalate {
        return Err(Box::new(Decision::refused(Outcome::Forbidden)));
    }
    Ok(())
}

struct Check<'a> {
    change: &'a Change,
    policy: &'a Policy,
    errors: Vec<ChangeError>,
    /// Whether the change says that it lowers an ordered field.
    lowers: bool,
}

impl Check<'_> {
    fn wrong(&mut self, part: Part, field: &str, message: &'static str) {
        self.errors.push(ChangeError { part, field: field.into(), message });
    }

    fn fields(&mut self) {
        let rules = self.policy.strategy.fields();
        if rules.is_empty() {
            return;
        }
        for (name, value) in self.change.fields.iter() {
            match self.policy.strategy.rule(name) {
                Some(FieldRule::Max | FieldRule::Min) if number(value).is_none() => {
                    self.wrong(Part::Fields, name, "must be a number");
                }
                Some(FieldRule::Counter) => {
                    self.wrong(Part::Fields, name, "a counter changes by increments only");
                }
                Some(FieldRule::Set) if elements(value).is_none() => {
                    self.wrong(Part::Fields, name, "must be an array");
                }
                Some(FieldRule::Append) => self.list(Part::Fields, name, value),
                Some(FieldRule::Ordered(order)) => self.ordered(name, value, order),
                _ => {}
            }
        }
    }

    fn ordered(&mut self, name: &str, value: &str, order: &Order) {
        if order.rank(value).is_none() {
            self.wrong(Part::Fields, name, "is not among the field's values");
        }
        let intents = self.change.intents.as_deref();
        self.lowers |= intents.is_some_and(|intents| intents.deescalate);
        // A value that is not declared (any more) counts as below all: its author saw what is stored all the same.
        let said = intents.and_then(|intents| intents.previous.get(name));
        if said.is_none() && self.change.op != Op::Create {
            self.wrong(Part::Previous, name, "an ordered field needs the value that its author saw");
        }
    }

    fn intents(&mut self, intents: &Intents) {
        let open = self.policy.strategy.is_open();
        for (name, _) in &intents.increments {
            match self.policy.strategy.rule(name) {
                Some(FieldRule::Counter) => {}
                None if open => self.alone(intents, Part::Increments, name),
                _ => self.wrong(Part::Increments, name, "the field is not a counter"),
            }
        }
        for (part, elements) in [(Part::Add, &intents.add), (Part::Remove, &intents.remove)] {
            for (name, value) in elements.iter() {
                self.elements(part, name, value, open, intents);
            }
        }
    }

    fn elements(&mut self, part: Part, name: &str, value: &str, open: bool, intents: &Intents) {
        match self.policy.strategy.rule(name) {
            _ if elements(value).is_none() => self.wrong(part, name, "must be an array"),
            Some(FieldRule::Set) => {}
            Some(FieldRule::Append) if part == Part::Add => self.list(part, name, value),
            Some(FieldRule::Append) => self.wrong(part, name, "a list only grows"),
            None if open => self.alone(intents, part, name),
            _ => self.wrong(part, name, "the field is not a set"),
        }
    }

    /// Where no rule says what a field is, one change may treat it in one way only.
    fn alone(&mut self, intents: &Intents, part: Part, name: &str) {
        let counted = intents.increments.iter().any(|(other, _)| **other == *name);
        let gathered = [&intents.add, &intents.remove].into_iter().any(|set| set.get(name).is_some());
        if self.change.fields.get(name).is_some() || counted && gathered {
            self.wrong(part, name, "the same change treats the field in another way as well");
        }
    }

    fn list(&mut self, part: Part, name: &str, value: &str) {
        let identified = |element: &str| element_id(element).is_some();
        if !elements(value).is_some_and(|elements| elements.into_iter().all(identified)) {
            self.wrong(part, name, "must be an array of objects with an id each");
        }
    }
}

/// Reads a canonical JSON number.
pub(super) fn number(value: &str) -> Option<f64> {
    value.as_bytes().first().filter(|first| matches!(first, b'-' | b'0'..=b'9'))?;
    value.parse().ok()
}

/// Finds the id of a list's element, canonical JSON.
pub(super) fn element_id(element: &str) -> Option<String> {
    let object = Object::from_canonical(element.to_owned()).ok()?;
    object.get("id").map(str::to_owned)
}
