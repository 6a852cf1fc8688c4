//! A stored record with its marks.

use std::borrow::Cow;
use std::cmp::Ordering;

use driftline_model::{DeviceNo, Hlc, Object, ObjectBuilder, Seq, key_cmp};

use crate::change::DeviceOrder;

/// Who wrote a field (or deleted, or revived a record), when, and as which version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark {
    /// The version in which the field last changed.
    pub fv: Seq,
    /// The clock of the write.
    pub hlc: Hlc,
    /// The writer.
    pub device: DeviceNo,
    /// The writer's own number of the change.
    pub n: u64,
}

impl Mark {
    /// Orders two writes: by clock, then by the device's bytes, then by the device's own number.
    #[must_use]
    pub fn order(&self, other: &Self, devices: &dyn DeviceOrder) -> Ordering {
        self.hlc.cmp(&other.hlc).then_with(|| {
            if self.device == other.device {
                return self.n.cmp(&other.n);
            }
            devices.bytes(self.device).cmp(devices.bytes(other.device)).then(self.n.cmp(&other.n))
        })
    }
}

/// A record as it is stored, deleted or not. A deleted record keeps its fields and marks until purged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The tenant's sequence number of the last change.
    pub version: Seq,
    /// The fields.
    pub fields: Object,
    /// The mark of every field that has none of its own.
    pub default_mark: Mark,
    /// Marks of single fields, in canonical order of their names.
    pub marks: Vec<(Box<str>, Mark)>,
    /// The delete with the largest clock, if the record was ever deleted.
    pub del: Option<Mark>,
    /// The write with the largest clock.
    pub live: Mark,
    /// What decides beside the clocks whether the record is deleted.
    pub life: Life,
    /// What fields that merge remember beside value and mark, in canonical order of their names. A field that is not
    /// among them is as one write at its mark left it.
    pub states: Vec<(Box<str>, FieldState)>,
}

/// What decides whether a record is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Life {
    /// The larger of the two clocks.
    #[default]
    Clocks,
    /// An urgent value that no delete had seen: the record lives, whatever the clocks say.
    Urgent,
    /// Writes that no delete had seen: the record lives while there are any.
    Writes(Vec<Mark>),
    /// Deletes that no restore had seen: the record is deleted while there are any. Where urgent values hold deletes up,
    /// the one that has taken effect since, dated by the version in which it did.
    Deletes(Vec<Mark>),
}

/// What a field that merges remembers beside its value and its mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldState {
    /// The last version in which another device than that of the field's mark changed the field; zero: none.
    pub others: Seq,
    /// What its rule needs.
    pub parts: Parts,
}

/// What the rule of a field needs to know of its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parts {
    /// A counter needs nothing.
    Counter,
    /// Per element of the set, in the order of the stored array: who added it, each device at most once.
    Set(Vec<Vec<Mark>>),
    /// Per element of the list, in the order of the stored array: who appended it.
    List(Vec<Mark>),
    /// The values of an ordered field that nobody has replaced.
    Ordered(Vec<Assertion>),
}

/// A value of an ordered field that nobody who had seen it has replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assertion {
    /// The value, canonical JSON.
    pub value: Box<str>,
    /// Who wrote it.
    pub mark: Mark,
    /// Whether a delete had seen it.
    pub covered: bool,
}

impl FieldState {
    /// Tells whether the state says no more than that one write made the field what it is.
    pub(crate) fn is_as_written(&self, mark: &Mark) -> bool {
        let parts = match &self.parts {
            Parts::Counter => true,
            Parts::Set(elements) => elements.iter().all(|marks| marks[..] == [*mark]),
            Parts::List(marks) => marks.iter().all(|known| known == mark),
            Parts::Ordered(assertions) => {
                matches!(&assertions[..], [only] if only.mark == *mark && !only.covered)
            }
        };
        parts && self.others == Seq::ZERO
    }

    fn marks(&self) -> Vec<Mark> {
        match &self.parts {
            Parts::Counter => Vec::new(),
            Parts::Set(elements) => elements.iter().flatten().copied().collect(),
            Parts::List(marks) => marks.clone(),
            Parts::Ordered(assertions) => assertions.iter().map(|assertion| assertion.mark).collect(),
        }
    }
}

impl Record {
    /// Makes a new record of one write.
    #[must_use]
    pub fn created(fields: Object, mark: Mark) -> Self {
        Self {
            version: mark.fv,
            fields,
            default_mark: mark,
            marks: Vec::new(),
            del: None,
            live: mark,
            life: Life::Clocks,
            states: Vec::new(),
        }
    }

    /// Tells whether the record is deleted: its delete has a larger clock than its last write, unless its policy
    /// decides by what the one had seen of the other.
    #[must_use]
    pub fn is_deleted(&self, devices: &dyn DeviceOrder) -> bool {
        match &self.life {
            Life::Clocks => self.del_is_newer(devices),
            Life::Urgent => false,
            Life::Writes(unseen) => unseen.is_empty(),
            Life::Deletes(standing) => !standing.is_empty(),
        }
    }

    pub(crate) fn del_is_newer(&self, devices: &dyn DeviceOrder) -> bool {
        self.del.is_some_and(|del| del.order(&self.live, devices) == Ordering::Greater)
    }

    /// Finds what a field that merges remembers, if it remembers anything.
    #[must_use]
    pub fn state(&self, field: &str) -> Option<&FieldState> {
        let found = self.states.binary_search_by(|(name, _)| key_cmp(name, field));
        found.ok().map(|at| &self.states[at].1)
    }

    /// Returns a field's mark, or nothing when the record has no such field.
    #[must_use]
    pub fn mark(&self, field: &str) -> Option<Mark> {
        self.fields.get(field)?;
        Some(self.mark_or_default(field))
    }

    /// Goes through the fields with their marks, in canonical order.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str, Mark)> {
        let mut marks = self.marks.iter().peekable();
        self.fields.iter().map(move |(name, value)| {
            while marks.peek().is_some_and(|(marked, _)| key_cmp(marked, name) == Ordering::Less) {
                marks.next();
            }
            let mark = marks.peek().filter(|(marked, _)| **marked == *name).map(|(_, mark)| *mark);
            (name, value, mark.unwrap_or(self.default_mark))
        })
    }

    /// Goes through every mark in use: of fields, of the delete and of the last write.
    pub fn all_marks(&self) -> impl Iterator<Item = Mark> {
        let default = (self.marks.len() < self.fields.len()).then_some(self.default_mark);
        self.marks.iter().map(|(_, mark)| *mark).chain(default).chain(self.del).chain([self.live])
    }

    /// Goes through every device that stands in a mark of the record, some of them more than once.
    pub fn devices(&self) -> impl Iterator<Item = DeviceNo> {
        let life = match &self.life {
            Life::Writes(marks) | Life::Deletes(marks) => &marks[..],
            Life::Clocks | Life::Urgent => &[],
        };
        let states = self.states.iter().flat_map(|(_, state)| state.marks());
        self.all_marks().chain(life.iter().copied()).chain(states).map(|mark| mark.device)
    }

    fn mark_or_default(&self, field: &str) -> Mark {
        let found = self.marks.binary_search_by(|(name, _)| key_cmp(name, field));
        found.map_or(self.default_mark, |at| self.marks[at].1)
    }

    /// Replaces what a field that merges remembers.
    pub(crate) fn remember(&mut self, field: &str, state: FieldState) {
        match self.states.binary_search_by(|(name, _)| key_cmp(name, field)) {
            Ok(at) => self.states[at].1 = state,
            Err(at) => self.states.insert(at, (Box::from(field), state)),
        }
    }

    /// Gives the record with fields written; a write without a value only moves the mark. Writes and states are in
    /// canonical order.
    pub(crate) fn written(&self, writes: &[Write<'_>], states: &[(&str, Option<FieldState>)]) -> Self {
        let changes = writes.iter().any(|write| write.value.is_some());
        let fields = if changes { merged(&self.fields, writes) } else { self.fields.clone() };
        let (default_mark, marks) = match writes.first() {
            Some(first) if writes.len() == fields.len() && writes.iter().all(|w| w.mark == first.mark) => {
                (first.mark, Vec::new())
            }
            _ => (self.default_mark, marked(&self.marks, writes)),
        };
        Self {
            version: self.version,
            fields,
            default_mark,
            marks,
            del: self.del,
            live: self.live,
            life: self.life.clone(),
            states: stated(&self.states, states),
        }
    }
}

/// Merges two sorted lists of marks into one.
fn marked(old: &[(Box<str>, Mark)], writes: &[Write<'_>]) -> Vec<(Box<str>, Mark)> {
    let mut built = Vec::with_capacity(old.len() + writes.len());
    let mut writes = writes.iter().peekable();
    for (name, mark) in old {
        while let Some(write) = writes.next_if(|write| key_cmp(write.name, name) == Ordering::Less) {
            built.push((Box::from(write.name), write.mark));
        }
        let mark = writes.next_if(|write| *write.name == **name).map_or(*mark, |write| write.mark);
        built.push((name.clone(), mark));
    }
    built.extend(writes.map(|write| (Box::from(write.name), write.mark)));
    built
}

/// Replaces states of fields; a field without one needs none any more.
fn stated(
    old: &[(Box<str>, FieldState)],
    changes: &[(&str, Option<FieldState>)],
) -> Vec<(Box<str>, FieldState)> {
    let mut built: Vec<_> = old.to_vec();
    for (name, state) in changes {
        match (built.binary_search_by(|(known, _)| key_cmp(known, name)), state) {
            (Ok(at), Some(state)) => built[at].1 = state.clone(),
            (Ok(at), None) => drop(built.remove(at)),
            (Err(at), Some(state)) => built.insert(at, (Box::from(*name), state.clone())),
            (Err(_), None) => {}
        }
    }
    built
}

/// One field to be written.
#[derive(Debug, Clone)]
pub(crate) struct Write<'a> {
    pub(crate) name: &'a str,
    /// The new value; none: the stored one stays and only the mark moves.
    pub(crate) value: Option<Cow<'a, str>>,
    pub(crate) mark: Mark,
}

/// Merges two sorted member lists into one object.
fn merged(old: &Object, writes: &[Write<'_>]) -> Object {
    let room = old.as_str().len()
        + writes
            .iter()
            .map(|w| w.name.len() + w.value.as_ref().map_or(0, |value| value.len()) + 4)
            .sum::<usize>();
    let mut built = ObjectBuilder::with_capacity(room, old.len() + writes.len());
    let mut writes = writes.iter().peekable();
    for (name, value) in old.iter() {
        while let Some(write) = writes.next_if(|write| key_cmp(write.name, name) == Ordering::Less) {
            built.push(write.name, write.value.as_deref().unwrap_or("null"));
        }
        match writes.next_if(|write| write.name == name) {
            Some(write) => built.push(name, write.value.as_deref().unwrap_or(value)),
            None => built.push(name, value),
        }
    }
    for write in writes {
        built.push(write.name, write.value.as_deref().unwrap_or("null"));
    }
    built.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(fv: u64) -> Mark {
        Mark { fv: Seq::new(fv), hlc: Hlc::new(fv, 0), device: DeviceNo::new(0), n: fv }
    }

    fn object(text: &str) -> Object {
        Object::from_canonical(text.to_owned()).unwrap()
    }

    #[test]
    fn writes_merge_in_order_and_keep_exceptions_only() {
        let record = Record::created(object(r#"{"b":1,"d":2}"#), mark(1));
        let writes = [("a", Some("0")), ("b", Some("9")), ("e", Some("5"))];
        let writes = writes.map(|(name, value): (_, Option<&'static str>)| Write {
            name,
            value: value.map(Cow::Borrowed),
            mark: mark(2),
        });
        let record = record.written(&writes, &[]);
        assert_eq!(record.fields.as_str(), r#"{"a":0,"b":9,"d":2,"e":5}"#);
        assert_eq!(record.marks.len(), 3);
        assert_eq!(record.mark("d"), Some(mark(1)));
        assert_eq!(record.mark("e"), Some(mark(2)));
        assert_eq!(record.mark("z"), None);
        let listed: Vec<_> = record.fields().map(|(name, _, mark)| (name, mark.n)).collect();
        assert_eq!(listed, [("a", 2), ("b", 2), ("d", 1), ("e", 2)]);
    }

    #[test]
    fn rewriting_every_field_makes_one_default_mark() {
        let mut record = Record::created(object(r#"{"a":1,"b":2}"#), mark(1));
        record = record.written(&[Write { name: "a", value: Some("7".into()), mark: mark(2) }], &[]);
        let both = ["a", "b"].map(|name| Write { name, value: Some("8".into()), mark: mark(3) });
        record = record.written(&both, &[]);
        assert_eq!((record.marks.len(), record.default_mark), (0, mark(3)));
    }
}
