//! Counters, sets and lists: fields whose changes add up.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use driftline_model::{Seq, elements, key_cmp};

use crate::decision::{ChangeError, Part, Rule, Winner};
use crate::policy::FieldRule;
use crate::record::{FieldState, Mark, Parts, Write};

use super::Merge;
use super::account::Contest;
use super::check::element_id;

/// The largest integer that every client can hold exactly.
const INTEGER_MAX: i64 = 1 << 53;

/// What a change asks of one field that merges.
#[derive(Clone, Copy)]
struct Asked<'a> {
    name: &'a str,
    /// A whole value, whose elements unite with the stored ones.
    whole: Option<&'a str>,
    increment: Option<i64>,
    add: Option<&'a str>,
    remove: Option<&'a str>,
}

/// A field that is being merged.
struct Merged {
    value: String,
    parts: Parts,
    changed: bool,
    /// Whether something that was asked for does not stand.
    lost: bool,
}

impl<'a> Merge<'a> {
    /// Merges every counter, set and list that the change names.
    pub(super) fn write_merging(&mut self) {
        for asked in self.all_asked() {
            self.touched = true;
            if asked.increment.is_some() {
                self.count(asked);
            } else if matches!(self.policy.strategy.rule(asked.name), Some(FieldRule::Append)) {
                self.grow(asked);
            } else {
                self.unite(asked);
            }
        }
    }

    fn all_asked(&self) -> Vec<Asked<'a>> {
        let change = self.change;
        let merging =
            |name: &str| matches!(self.policy.strategy.rule(name), Some(FieldRule::Set | FieldRule::Append));
        let mut names: Vec<&'a str> =
            change.fields.iter().map(|(name, _)| name).filter(|name| merging(name)).collect();
        if let Some(intents) = &change.intents {
            names.extend(intents.increments.iter().map(|(name, _)| &**name));
            names.extend(intents.add.iter().chain(intents.remove.iter()).map(|(name, _)| name));
        }
        names.sort_by(|a, b| key_cmp(a, b));
        names.dedup();
        names.into_iter().map(|name| self.asked_of(name)).collect()
    }

    fn asked_of(&self, name: &'a str) -> Asked<'a> {
        let change = self.change;
        let intents = change.intents.as_deref();
        let increments = intents.map_or(&[][..], |intents| &intents.increments);
        Asked {
            name,
            whole: change.fields.get(name),
            increment: increments
                .binary_search_by(|(other, _)| key_cmp(other, name))
                .ok()
                .map(|at| increments[at].1),
            add: intents.and_then(|intents| intents.add.get(name)),
            remove: intents.and_then(|intents| intents.remove.get(name)),
        }
    }

    /// Tells what the change asked of a field that merges, as it stands in the account.
    pub(super) fn asked(&self, name: &str) -> Option<Cow<'a, str>> {
        let all = self.all_asked();
        all.iter().find(|asked| asked.name == name).map(|asked| Cow::Owned(told(asked)))
    }

    fn wrong(&mut self, part: Part, name: &str, message: &'static str) {
        self.errors.push(ChangeError { part, field: name.into(), message });
    }

    // Counters.

    fn count(&mut self, asked: Asked<'a>) {
        let by = asked.increment.unwrap_or(0);
        let Some(stored) = self.record.fields.get(asked.name) else {
            let value = Some(Cow::Owned(by.to_string()));
            return self.writes.push(Write { name: asked.name, value, mark: self.mark });
        };
        let Ok(count) = stored.parse::<i64>() else {
            return self.wrong(Part::Increments, asked.name, "the stored value is not an integer");
        };
        let sum = count.checked_add(by).filter(|sum| (-INTEGER_MAX..=INTEGER_MAX).contains(sum));
        let Some(sum) = sum else {
            return self.wrong(Part::Increments, asked.name, "the sum would go beyond 2^53");
        };
        let merged = Merged { value: sum.to_string(), parts: Parts::Counter, changed: by != 0, lost: false };
        self.merge_field(asked, merged, Rule::Counter);
    }

    // Sets.

    fn unite(&mut self, asked: Asked<'a>) {
        let stored = self.record.fields.get(asked.name).unwrap_or("[]");
        let Some(old) = elements(stored) else {
            return self.wrong(Part::Add, asked.name, "the stored value is not a set");
        };
        let marks = match self.record.state(asked.name).map(|state| &state.parts) {
            Some(Parts::Set(marks)) if marks.len() == old.len() => marks.clone(),
            _ => {
                let mark = self.record.mark(asked.name).unwrap_or(self.mark);
                vec![vec![mark]; old.len()]
            }
        };
        // Elements of a value that came to be under another policy may be in any order.
        let mut set: BTreeMap<&str, Vec<Mark>> = BTreeMap::new();
        for (element, marks) in old.into_iter().zip(marks) {
            set.entry(element).or_default().extend(marks);
        }
        let before = set.clone();
        let added: BTreeSet<&str> =
            [asked.whole, asked.add].into_iter().flatten().flat_map(parts_of).collect();
        if added.is_empty() && self.record.fields.get(asked.name).is_none() && asked.whole.is_none() {
            return;
        }
        let mut lost = false;
        for element in asked.remove.into_iter().flat_map(parts_of) {
            if added.contains(element) {
                continue;
            }
            if let Some(marks) = set.get_mut(element) {
                marks.retain(|mark| !self.seen(mark));
                if marks.is_empty() {
                    set.remove(element);
                } else {
                    lost = true;
                }
            }
        }
        for element in added {
            self.assert_element(set.entry(element).or_default());
        }
        let changed = set != before || self.record.fields.get(asked.name).is_none();
        let value = array(set.keys().copied());
        let parts = Parts::Set(set.into_values().collect());
        self.merge_field(asked, Merged { value, parts, changed, lost }, Rule::Set);
    }

    /// Adds the author to those who added an element; what the author had seen gives way.
    fn assert_element(&self, marks: &mut Vec<Mark>) {
        if marks.iter().any(|mark| self.own_newer(mark)) {
            return;
        }
        marks.retain(|mark| !self.seen(mark));
        marks.push(self.mark);
        // The order of the marks must not depend on that of their arrival.
        marks.sort_by(|a, b| a.order(b, self.context.devices));
    }

    // Lists.

    fn grow(&mut self, asked: Asked<'a>) {
        let stored = self.record.fields.get(asked.name).unwrap_or("[]");
        let Some(old) = elements(stored) else {
            return self.wrong(Part::Add, asked.name, "the stored value is not a list");
        };
        let marks = match self.record.state(asked.name).map(|state| &state.parts) {
            Some(Parts::List(marks)) if marks.len() == old.len() => marks.clone(),
            _ => vec![self.record.mark(asked.name).unwrap_or(self.mark); old.len()],
        };
        let before: Vec<(&str, Mark)> = old.into_iter().zip(marks).collect();
        let mark = self.mark_of_elements(asked.name, &before);
        let mut list = List::of(&before);
        let mut lost = false;
        for element in [asked.whole, asked.add].into_iter().flatten().flat_map(parts_of) {
            lost |= list.append(element, mark, |a, b| self.newer(a, b));
        }
        let mut list = list.finish();
        // A stable order: elements of one change stay as they were sent.
        list.sort_by(|a, b| a.1.order(&b.1, self.context.devices));
        let changed = list != before || self.record.fields.get(asked.name).is_none();
        let value = array(list.iter().map(|(element, _)| *element));
        let parts = Parts::List(list.into_iter().map(|(_, mark)| mark).collect());
        self.merge_field(asked, Merged { value, parts, changed, lost }, Rule::Append);
    }

    /// Elements of an author who had seen all others come after them.
    fn mark_of_elements(&self, name: &str, list: &[(&str, Mark)]) -> Mark {
        let field = self.record.mark(name);
        let concurrent = field.is_some_and(|mark| self.concurrent_field(name, &mark));
        let latest = list
            .iter()
            .map(|(_, mark)| mark)
            .filter(|mark| !self.own_newer(mark))
            .max_by_key(|mark| mark.hlc);
        match latest {
            Some(latest) if !concurrent => self.after(latest),
            _ => self.mark,
        }
    }

    // All of them.

    fn merge_field(&mut self, asked: Asked<'a>, merged: Merged, rule: Rule) {
        let name = asked.name;
        let stored = self.record.fields.get(name).zip(self.record.mark(name));
        let Some((server, mark)) = stored else {
            if merged.lost {
                let mark = self.record.live;
                let contest = Contest { name, client: Some(&told(&asked)), server: "null", mark };
                self.account(&contest, Winner::Merged, rule);
            }
            // Every element has the mark of the field, or the record would have the field.
            return self.writes.push(Write { name, value: Some(Cow::Owned(merged.value)), mark: self.mark });
        };
        let concurrent = self.concurrent_field(name, &mark);
        if merged.lost || concurrent && merged.changed {
            self.conflict |= concurrent;
            self.lost |= merged.lost;
            let winner = if merged.changed { Winner::Merged } else { Winner::Server };
            let client = told(&asked);
            self.account(&Contest { name, client: Some(&client), server, mark }, winner, rule);
        }
        if !merged.changed {
            return;
        }
        let mut written = if concurrent { self.mark } else { self.after(&mark) };
        written.n = if self.own_newer(&mark) { mark.n } else { written.n };
        let others = match self.record.state(name) {
            _ if mark.device != self.change.device => mark.fv,
            Some(state) => state.others,
            None => Seq::ZERO,
        };
        let value = (merged.value != server).then_some(Cow::Owned(merged.value));
        self.writes.push(Write { name, value, mark: written });
        let state = FieldState { others, parts: merged.parts };
        let needed = !state.is_as_written(&written);
        if needed || self.record.state(name).is_some() {
            self.states.push((name, needed.then_some(state)));
        }
    }
}

/// A list that grows.
struct List<'e> {
    /// Elements that gave way leave their places empty.
    elements: Vec<Option<(&'e str, Mark)>>,
    /// The place of every id.
    ids: HashMap<String, usize>,
}

impl<'e> List<'e> {
    fn of(before: &[(&'e str, Mark)]) -> Self {
        let places = before.iter().enumerate();
        let ids = places.filter_map(|(at, (element, _))| Some((element_id(element)?, at))).collect();
        Self { elements: before.iter().copied().map(Some).collect(), ids }
    }

    /// Appends an element, unless an earlier one has its id; tells whether one of the two gave way.
    fn append(&mut self, element: &'e str, mark: Mark, newer: impl Fn(&Mark, &Mark) -> bool) -> bool {
        let id = element_id(element).unwrap_or_default();
        let known = self.ids.get(&id).and_then(|at| Some((*at, self.elements[*at]?)));
        if let Some((at, (same, stands))) = known {
            if newer(&stands, &mark) {
                // It comes after what the same change has appended before it.
                self.elements[at] = None;
                self.ids.insert(id, self.elements.len());
                self.elements.push(Some((element, mark)));
            }
            return same != element;
        }
        self.ids.insert(id, self.elements.len());
        self.elements.push(Some((element, mark)));
        false
    }

    fn finish(self) -> Vec<(&'e str, Mark)> {
        self.elements.into_iter().flatten().collect()
    }
}

fn parts_of(array: &str) -> Vec<&str> {
    elements(array).unwrap_or_default()
}

fn array<'e>(elements: impl Iterator<Item = &'e str>) -> String {
    let mut out = String::from("[");
    for element in elements {
        if out.len() > 1 {
            out.push(',');
        }
        out.push_str(element);
    }
    out.push(']');
    out
}

/// What was asked, as it stands in the account: an increment as its number, elements as an object.
fn told(asked: &Asked<'_>) -> String {
    if let Some(by) = asked.increment {
        return by.to_string();
    }
    let mut out = String::from("{");
    for (name, array) in [("add", asked.add), ("fields", asked.whole), ("remove", asked.remove)] {
        if let Some(array) = array {
            if out.len() > 1 {
                out.push(',');
            }
            out.push_str(&format!("\"{name}\":{array}"));
        }
    }
    out.push('}');
    out
}
