//! What the author of an edit had before the eyes.

use driftline_model::Object;
use driftline_protocol::{Item, ItemOp};

use crate::intents::object;
use crate::policies::{Rules, rank};

/// Larger values are not told: a reviewer does without them, and those of an ordered field are short.
const PREVIOUS_BYTES_MAX: usize = 4_096;

/// Per field that an edit writes, the values that its author saw.
///
/// They are taken when the edit is made, whatever the policies say then; whether they are sent is known only when the
/// edit is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    fields: Box<[SeenField]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct SeenField {
    name: Box<str>,
    /// The server's value.
    pulled: Option<Box<str>>,
    /// The device's own value on top of it, if one waited.
    own: Option<Box<str>>,
    /// Whether others changed the field after the own value was written.
    moved: bool,
}

/// An own change that waits, as later edits see it.
pub(crate) struct Earlier<'a> {
    pub(crate) op: ItemOp,
    pub(crate) fields: &'a Object,
    pub(crate) seen: Option<&'a Seen>,
}

impl Seen {
    /// Notes what the author of a write of `fields` sees: the server's fields and own changes on top, oldest first.
    pub(crate) fn at_edit(fields: &Object, body: Option<&Object>, own: &[Earlier<'_>]) -> Self {
        let field = |(name, _): (&str, &str)| {
            let pulled = body.and_then(|body| body.get(name));
            let last = own.iter().rev().find_map(|earlier| {
                let value = earlier.fields.get(name).filter(|_| earlier.op != ItemOp::Delete)?;
                Some((value, earlier.seen))
            });
            let moved = |seen: &Self| seen.field(name).is_some_and(|field| !field.shows(pulled));
            SeenField {
                name: name.into(),
                pulled: pulled.map(Box::from),
                own: last.map(|(value, _)| value.into()),
                moved: last.and_then(|(_, seen)| seen).is_some_and(moved),
            }
        };
        Self { fields: fields.iter().map(field).collect() }
    }

    /// The bytes that the values can take in a message.
    pub(crate) fn bytes(&self) -> usize {
        self.fields.iter().map(SeenField::bytes).sum()
    }

    fn field(&self, name: &str) -> Option<&SeenField> {
        self.fields.iter().find(|field| *field.name == *name)
    }

    /// The rank of the highest value that the author saw in an ordered field.
    pub(crate) fn highest(&self, name: &str, order: &[Box<str>]) -> Option<usize> {
        let field = self.field(name)?;
        rank(order, field.pulled.as_deref()).max(rank(order, field.own.as_deref()))
    }

    /// Tells the values that the server wants to know of beside those that an edit writes.
    pub(crate) fn previous(&self, item: &Item, rules: &Rules) -> Object {
        let mut previous = Vec::new();
        if matches!(item.op, ItemOp::Patch | ItemOp::Restore) {
            for field in &self.fields {
                let ordered = rules.order(&field.name).is_some();
                match field.value(rules) {
                    Some(value) if rules.wants_previous(&field.name) && value.len() <= PREVIOUS_BYTES_MAX => {
                        previous.push((&*field.name, value));
                    }
                    // A field that was never written had no value, which is one as well.
                    None if ordered => previous.push((&*field.name, "null")),
                    _ => {}
                }
            }
        }
        object(previous)
    }
}

impl SeenField {
    /// The bytes that the field can take among the previous values.
    fn bytes(&self) -> usize {
        let longer = [&self.pulled, &self.own].into_iter().flatten().map(|value| value.len()).max();
        self.name.len() + longer.unwrap_or(0).min(PREVIOUS_BYTES_MAX) + 8
    }

    /// Whether the author saw this value of the server, or wrote it.
    fn shows(&self, pulled: Option<&str>) -> bool {
        self.pulled.as_deref() == pulled || self.own.as_deref() == pulled
    }

    /// The pending value if one waited; the higher of pulled and pending if others changed the field after that.
    fn value(&self, rules: &Rules) -> Option<&str> {
        let (pulled, own) = (self.pulled.as_deref(), self.own.as_deref());
        match (own, rules.order(&self.name)) {
            (None, _) => pulled,
            (Some(_), Some(order)) if self.moved && rank(order, pulled) > rank(order, own) => pulled,
            (Some(_), _) => own,
        }
    }
}
