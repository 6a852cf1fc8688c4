//! The items of a batch.

use driftline_model::{Hlc, IdError, Intents, KindName, Object, OpId, RecordId, Seq};
use twox_hash::XxHash3_64;

use crate::canonical::{canonical_object, canonical_value};
use crate::envelope::FieldError;
use crate::intents::{Asked, write_identity};
use crate::json::Node;
use crate::time::parse_time;

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

    fn from_text(text: &str) -> Option<Self> {
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
    /// Identifies the element's bytes.
    pub hash: u64,
    /// Everything that is wrong.
    pub errors: Vec<FieldError>,
}

impl Item {
    /// Reads an element of a batch.
    ///
    /// # Errors
    /// [`BadItem`] lists everything that is wrong with it.
    pub fn read(node: Node<'_>) -> Result<Self, Box<BadItem>> {
        let mut reader = Reader::default();
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
                Err(Box::new(BadItem {
                    op_id: reader.op_id,
                    n: reader.n,
                    kind,
                    id,
                    group: reader.group,
                    hash: XxHash3_64::oneshot(node.source().as_bytes()),
                    errors: reader.errors,
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

#[derive(Default)]
struct Reader {
    op_id: Option<OpId>,
    n: Option<u64>,
    kind: Option<KindName>,
    id: Option<RecordId>,
    base_version: Seq,
    intents: Option<Box<Intents>>,
    hlc: Option<Hlc>,
    schema_version: u32,
    group: Option<Box<str>>,
    errors: Vec<FieldError>,
}

const KEYS: [&str; 19] = [
    "op_id",
    "n",
    "kind",
    "id",
    "op",
    "base_version",
    "client_version",
    "fields",
    "previous",
    "increments",
    "add",
    "remove",
    "hlc",
    "ts",
    "flags",
    "schema_version",
    "group",
    "type",
    "append",
];

// The places among the keys of what is kept as an object.
const FIELDS: usize = 7;
const PREVIOUS: usize = 8;
const INCREMENTS: usize = 9;
const ADD: usize = 10;
const REMOVE: usize = 11;
const FLAGS: usize = 14;
const APPEND: usize = 18;

/// Members of an item that this version does not know.
const UNKNOWN_MAX: usize = 64;

impl Reader {
    fn wrong(&mut self, pointer: &str, message: impl Into<String>) {
        self.errors.push(FieldError::new("invalid", pointer, message));
    }

    fn read(&mut self, node: Node<'_>) -> Option<(KindName, RecordId, ItemOp, Object)> {
        if !node.is_object() {
            self.wrong("", "an item must be an object");
            return None;
        }
        // One pass over the members, each known key once.
        let mut found: [Option<Node<'_>>; KEYS.len()] = [None; KEYS.len()];
        let mut scratch = String::new();
        let mut unknown: Vec<std::borrow::Cow<'_, str>> = Vec::new();
        for (key, value) in node.members() {
            let slot = KEYS.iter().position(|name| key.is_str(name));
            // What is ignored must be acceptable as well: the verdict on an element is one on all of it.
            if !matches!(slot, Some(FIELDS..=REMOVE | APPEND)) {
                scratch.clear();
                if let Err(error) = canonical_value(value, &mut scratch) {
                    let name = key.as_str().unwrap_or_default();
                    self.wrong(&format!("/{name}{}", error.pointer), error.kind.to_string());
                }
            }
            let Some(slot) = slot else {
                let name = key.as_str().unwrap_or_default();
                if name.contains('\u{0}') || unknown.contains(&name) {
                    self.wrong("", "a key stands twice or holds U+0000");
                } else if unknown.len() < UNKNOWN_MAX {
                    unknown.push(name);
                } else {
                    self.wrong("", "the item has too many members");
                }
                continue;
            };
            if found[slot].replace(value).is_some() {
                self.wrong(&format!("/{}", KEYS[slot]), "the key stands twice");
            }
        }
        let get = |name: &str| {
            let slot = KEYS.iter().position(|key| *key == name)?;
            found[slot].filter(|node| !node.is_null())
        };
        self.op_id = self.text(get("op_id"), "/op_id", OpId::new);
        self.kind = self.text(get("kind"), "/kind", KindName::new);
        self.id = self.text(get("id"), "/id", RecordId::new);
        self.n = self.number(get("n"), "/n").filter(|&n| n > 0);
        if self.n.is_none() && get("n").is_some_and(|n| n.as_u64() == Some(0)) {
            self.wrong("/n", "must be at least 1");
        }
        let base = get("base_version").or(get("client_version"));
        self.base_version = self.number(base, "/base_version").map_or(Seq::ZERO, Seq::new);
        self.group = get("group").and_then(|group| {
            let text = group.as_str().filter(|text| !text.is_empty() && text.len() <= 64);
            if text.is_none() {
                self.wrong("/group", "must be a string of 1 to 64 bytes");
            }
            text.map(|text| Box::from(&*text))
        });
        self.schema_version = self.number(get("schema_version"), "/schema_version").map_or(0, |version| {
            u32::try_from(version).unwrap_or_else(|_| {
                self.wrong("/schema_version", "must be below 2^32");
                0
            })
        });
        self.hlc = self.clock(get("hlc"), get("ts"));
        let present = |slot: usize| found[slot].filter(|node| !node.is_null());
        if [PREVIOUS, INCREMENTS, ADD, REMOVE, FLAGS, APPEND].into_iter().any(|slot| present(slot).is_some())
        {
            let asked = Asked {
                previous: present(PREVIOUS),
                increments: present(INCREMENTS),
                add: present(ADD),
                append: present(APPEND),
                remove: present(REMOVE),
                flags: present(FLAGS),
            };
            self.intents = asked.read(&mut self.errors);
        }
        let op = match get("op").and_then(|node| node.as_str()) {
            Some(op) => ItemOp::from_text(&op),
            None => None,
        };
        if op.is_none() {
            self.wrong("/op", "must be create, patch, delete or restore");
        }
        let fields = self.fields(get("fields"));
        for (missing, pointer) in [(self.kind.is_none(), "/kind"), (self.id.is_none(), "/id")] {
            if missing && !self.errors.iter().any(|error| error.pointer == pointer) {
                self.wrong(pointer, "is required");
            }
        }
        Some((self.kind.clone()?, self.id.clone()?, op?, fields?))
    }

    fn text<T>(
        &mut self,
        node: Option<Node<'_>>,
        pointer: &str,
        parse: fn(&str) -> Result<T, IdError>,
    ) -> Option<T> {
        let Some(text) = node?.as_str() else {
            self.wrong(pointer, "must be a string");
            return None;
        };
        parse(&text).map_err(|error| self.wrong(pointer, error.to_string())).ok()
    }

    fn number(&mut self, node: Option<Node<'_>>, pointer: &str) -> Option<u64> {
        let number = node?.as_u64();
        if number.is_none() {
            self.wrong(pointer, "must be an integer from 0 to 2^53");
        }
        number
    }

    fn clock(&mut self, hlc: Option<Node<'_>>, ts: Option<Node<'_>>) -> Option<Hlc> {
        if let Some(node) = hlc {
            let hlc = node.as_str().and_then(|text| text.parse().ok());
            if hlc.is_none() {
                self.wrong("/hlc", "must be 12 hexadecimal digits, a hyphen and 4 hexadecimal digits");
            }
            return hlc;
        }
        let millis = parse_time(ts?);
        if millis.is_none() {
            self.wrong("/ts", "must be RFC 3339 or Unix milliseconds");
        }
        millis.map(|millis| Hlc::new(millis, 0))
    }

    fn fields(&mut self, node: Option<Node<'_>>) -> Option<Object> {
        let Some(node) = node else { return Some(Object::empty()) };
        match canonical_object(node) {
            Ok(fields) => Some(fields),
            Err(error) => {
                self.wrong(&format!("/fields{}", error.pointer), error.kind.to_string());
                None
            }
        }
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
