//! What can be read off changes and records, without deciding anything.

use driftline_conflict::{Audit, Change, FieldDecision, Life, Mark, Op, Parts, Record};
use driftline_model::{Object, elements};

/// Every mark that a record holds, for whatever purpose.
pub(crate) fn every_mark(record: &Record) -> Vec<Mark> {
    let mut marks: Vec<Mark> = record.all_marks().collect();
    marks.extend(record.marks.iter().map(|(_, mark)| *mark));
    match &record.life {
        Life::Clocks | Life::Urgent => {}
        Life::Writes(held) | Life::Deletes(held) => marks.extend(held),
    }
    for (_, state) in &record.states {
        match &state.parts {
            Parts::Counter => {}
            Parts::Set(adders) => marks.extend(adders.iter().flatten()),
            Parts::List(writers) => marks.extend(writers),
            Parts::Ordered(assertions) => marks.extend(assertions.iter().map(|assertion| assertion.mark)),
        }
    }
    marks
}

/// Changes every mark that a record holds.
pub(crate) fn for_every_mark(record: &mut Record, mut change: impl FnMut(&mut Mark)) {
    change(&mut record.default_mark);
    change(&mut record.live);
    record.del.iter_mut().for_each(&mut change);
    record.marks.iter_mut().for_each(|(_, mark)| change(mark));
    match &mut record.life {
        Life::Clocks | Life::Urgent => {}
        Life::Writes(held) | Life::Deletes(held) => held.iter_mut().for_each(&mut change),
    }
    for (_, state) in &mut record.states {
        match &mut state.parts {
            Parts::Counter => {}
            Parts::Set(adders) => adders.iter_mut().flatten().for_each(&mut change),
            Parts::List(writers) => writers.iter_mut().for_each(&mut change),
            Parts::Ordered(assertions) => {
                assertions.iter_mut().for_each(|assertion| change(&mut assertion.mark));
            }
        }
    }
}

/// The names of the fields that a change touches.
pub(crate) fn touched(change: &Change) -> Vec<&str> {
    if change.op == Op::Delete {
        return Vec::new();
    }
    let mut names: Vec<&str> = change.fields.iter().map(|(name, _)| name).collect();
    if let Some(intents) = &change.intents {
        names.extend(intents.increments.iter().map(|(name, _)| &**name));
        names.extend(intents.add.iter().chain(intents.remove.iter()).map(|(name, _)| name));
    }
    names
}

/// Whether a delete meets something else, or two changes touch one field.
pub(crate) fn clash(one: &Change, two: &Change) -> bool {
    let names = touched(two);
    (one.op == Op::Delete) != (two.op == Op::Delete)
        || touched(one).into_iter().any(|name| names.contains(&name))
}

/// The decision on a field, if its account has one.
pub(crate) fn entry<'a>(audit: Option<&'a Audit>, field: &str) -> Option<&'a FieldDecision> {
    audit?.fields.iter().find(|entry| *entry.name == *field)
}

/// Whether a text is the value, an array with the value in it, or an account of arrays with the value in one.
pub(crate) fn holds(text: &str, value: &str) -> bool {
    let within = |array: &str| elements(array).is_some_and(|elements| elements.contains(&value));
    let asked = Object::from_canonical(text.to_owned()).ok();
    text == value || within(text) || asked.is_some_and(|asked| asked.iter().any(|(_, array)| within(array)))
}

/// A canonical integer; what is no integer counts as nothing.
pub(crate) fn integer(text: Option<&str>) -> i64 {
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}
