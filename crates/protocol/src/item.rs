//! The items of a batch.

use driftline_model::{Hlc, Intents, KindName, Object, OpId, RecordId, Seq};
use twox_hash::XxHash3_64;

use crate::element::Element;
use crate::envelope::FieldError;
use crate::intents::write_identity;
use crate::json::Node;
use crate::telemetry::Sample;

/// What an item wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemOp {
    /// Make the record.
    Create,
    /// Write fields.
    Patch,
    /// Delete the record.
    Delete,
    /// Bring it back.
    Restore,
}

impl ItemOp {
    /// Returns the name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::Restore => "restore",
        }
    }

    pub(crate) fn from_text(text: &str) -> Option<Self> {
        [Self::Create, Self::Patch, Self::Delete, Self::Restore].into_iter().find(|op| op.as_str() == text)
    }
}

/// One change of a record, as a device sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The device's name for the change.
    pub op_id: Option<OpId>,
    /// The device's number of the change.
    pub n: Option<u64>,
    /// The record's kind.
    pub kind: KindName,
    /// The record.
    pub id: RecordId,
    /// What to do.
    pub op: ItemOp,
    /// The version of the record that the author had seen.
    pub base_version: Seq,
    /// The fields to write, canonical.
    pub fields: Object,
    /// What is asked beside writing the fields; none: nothing.
    pub intents: Option<Box<Intents>>,
    /// The author's clock.
    pub hlc: Option<Hlc>,
    /// The schema version the item was made for.
    pub schema_version: u32,
    /// Items of one group apply together or not at all.
    pub group: Option<Box<str>>,
    /// Identifies the intent: everything but `op_id`, `n`, `base_version` and `previous`.
    pub hash: u64,
}

/// An element of a batch that is no item, with as much as could be read for its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadItem {
    /// The device's name for the change, if readable.
    pub op_id: Option<OpId>,
    /// The device's number, if readable.
    pub n: Option<u64>,
    /// The kind, if readable.
    pub kind: Option<KindName>,
    /// The record, if readable.
    pub id: Option<RecordId>,
    /// The group, if readable.
    pub group: Option<Box<str>>,
    /// Identifies the element, whichever encoding it came in.
    pub hash: u64,
    /// Everything that is wrong.
    pub errors: Vec<FieldError>,
    /// What the element is if its kind is one of telemetry: then there is nothing wrong with it.
    pub sample: Option<Box<Sample>>,
}

impl BadItem {
    /// Makes an element of which nothing could be read.
    pub(crate) fn of_text(text: &str, errors: Vec<FieldError>) -> Self {
        Self {
            op_id: None,
            n: None,
            kind: None,
            id: None,
            group: None,
            hash: XxHash3_64::oneshot(text.as_bytes()),
            errors,
            sample: None,
        }
    }
}

impl Item {
    /// Reads an element of a batch.
    ///
    /// # Errors
    /// [`BadItem`] lists everything that is wrong with it.
    pub fn read(node: Node<'_>) -> Result<Self, Box<BadItem>> {
        let mut reader = Element::default();
        let parts = reader.read(node);
        match parts {
            Some((kind, id, op, fields)) if reader.errors.is_empty() => {
                let mut item = Self {
                    op_id: reader.op_id,
                    n: reader.n,
                    kind,
                    id,
                    op,
                    base_version: reader.base_version,
                    fields,
                    // A delete asks for nothing else.
                    intents: reader.intents.filter(|_| op != ItemOp::Delete),
                    hlc: reader.hlc,
                    schema_version: reader.schema_version,
                    group: reader.group,
                    hash: 0,
                };
                item.hash = item.intent();
                Ok(item)
            }
            parts => {
                let (kind, id) =
                    parts.map_or((reader.kind, reader.id), |(kind, id, ..)| (Some(kind), Some(id)));
                let mut text = String::new();
                node.write_json(&mut text);
                let sample = reader.sample.take();
                let bad = BadItem::of_text(&text, reader.errors);
                Err(Box::new(BadItem {
                    op_id: reader.op_id,
                    n: reader.n,
                    kind,
                    id,
                    group: reader.group,
                    sample,
                    ..bad
                }))
            }
        }
    }

    fn intent(&self) -> u64 {
        let mut text = String::with_capacity(self.fields.as_str().len() + 128);
        for part in
            [self.kind.as_str(), self.id.as_str(), self.op.as_str(), self.group.as_deref().unwrap_or("")]
        {
            text.push_str(part);
            text.push('\u{0}');
        }
        for number in [self.hlc.map_or(0, |hlc| hlc.bits() + 1), u64::from(self.schema_version)] {
            crate::write::write_number(&mut text, number);
            text.push('\u{0}');
        }
        text.push_str(self.fields.as_str());
        if let Some(intents) = &self.intents {
            write_identity(&mut text, intents);
        }
        XxHash3_64::oneshot(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Document;

    fn read(text: &str) -> Result<Item, Vec<String>> {
        let document = Document::parse(text.as_bytes(), 64).expect("JSON");
        Item::read(document.root()).map_err(|bad| bad.errors.into_iter().map(|error| error.pointer).collect())
    }

    #[test]
    fn an_item_is_read_whole() {
        let item = read(
            r#"{"op_id":"o1","n":41,"kind":"ticket","id":"t-17","op":"patch","base_version":5120,
               "fields":{"z":1,"priority":"high"},"hlc":"0192f3a1b2c3-0001","schema_version":3,"group":"g1","later":1}"#,
        )
        .unwrap();
        assert_eq!(item.fields.as_str(), r#"{"priority":"high","z":1}"#);
        assert_eq!((item.n, item.base_version, item.schema_version), (Some(41), Seq::new(5120), 3));
    }

    #[test]
    fn the_hash_is_of_the_intent() {
        let with =
            |rest: &str| read(&format!(r#"{{"kind":"k","id":"i","op":"patch",{rest}}}"#)).unwrap().hash;
        assert_eq!(
            with(r#""fields":{"a":1,"b":2},"base_version":1,"n":1"#),
            with(r#""fields":{"b":2.0,"a":1},"base_version":9"#)
        );
        assert_ne!(with(r#""fields":{"a":1}"#), with(r#""fields":{"a":2}"#));
    }

    #[test]
    fn an_answer_does_not_outgrow_what_it_answers() {
        let twice = r#""":0,"#.repeat(50_000);
        let long = "x".repeat(10_000);
        let many: String = (0..10_000).map(|n| format!("\"{n}\":0.5,")).collect();
        for item in [
            format!(r#"{{{twice}"kind":"k","id":"i","op":"patch"}}"#),
            format!(r#"{{"kind":"k","id":"i","op":"patch","increments":{{{many}"z":0.5}}}}"#),
            format!(r#"{{"kind":"k","id":"i","op":"patch","fields":{{"{long}":[1e999]}}}}"#),
        ] {
            let pointers = read(&item).unwrap_err();
            assert!((1..=32).contains(&pointers.len()), "{}", pointers.len());
            assert!(pointers.iter().all(|pointer| pointer.len() <= 260));
        }
    }

    #[test]
    fn everything_wrong_is_listed() {
        let table: [(&str, &[&str]); 8] = [
            ("7", &[""]),
            (r#"{"op":"patch"}"#, &["/kind", "/id"]),
            (r#"{"kind":"k","id":"","op":"fly"}"#, &["/id", "/op"]),
            (
                r#"{"kind":"k","id":"i","op":"patch","n":-1,"base_version":"5","hlc":"now"}"#,
                &["/n", "/base_version", "/hlc"],
            ),
            (r#"{"kind":"k","id":"i","op":"patch","fields":{"a":{"b":9007199254740993}}}"#, &["/fields/a/b"]),
            (r#"{"kind":"k","id":"i","op":"patch","fields":[]}"#, &["/fields"]),
            (r#"{"kind":"k","id":"i","op":"patch","increments":{"v":1.5}}"#, &["/increments/v"]),
            (r#"{"kind":"k","kind":"l","id":"i","op":"patch"}"#, &["/kind"]),
        ];
        for (text, wanted) in table {
            assert_eq!(read(text).unwrap_err(), wanted, "{text}");
        }
    }
}
