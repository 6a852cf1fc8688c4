//! Reading an element of a batch.

use std::borrow::Cow;

use driftline_model::{Hlc, IdError, Intents, KindName, Object, OpId, RecordId, Seq};

use crate::canonical::{canonical_object, canonical_value, segment};
use crate::envelope::{FieldError, add_error};
use crate::intents::Asked;
use crate::item::ItemOp;
use crate::json::Node;
use crate::telemetry::{Sample, rest};
use crate::time::parse_time;

/// An element of a batch while it is read: what could be read of it, and everything that is wrong.
#[derive(Default)]
pub(crate) struct Element {
    pub(crate) op_id: Option<OpId>,
    pub(crate) n: Option<u64>,
    pub(crate) kind: Option<KindName>,
    pub(crate) id: Option<RecordId>,
    pub(crate) base_version: Seq,
    pub(crate) intents: Option<Box<Intents>>,
    pub(crate) hlc: Option<Hlc>,
    pub(crate) schema_version: u32,
    pub(crate) group: Option<Box<str>>,
    pub(crate) errors: Vec<FieldError>,
    /// What the element is if its kind is one of telemetry.
    pub(crate) sample: Option<Box<Sample>>,
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

// The places among the keys. `type` is known so that it is not counted among the unknown, and ignored.
const OP_ID: usize = 0;
const N: usize = 1;
const KIND: usize = 2;
const ID: usize = 3;
const OP: usize = 4;
const BASE_VERSION: usize = 5;
const CLIENT_VERSION: usize = 6;
const FIELDS: usize = 7;
const PREVIOUS: usize = 8;
const INCREMENTS: usize = 9;
const ADD: usize = 10;
const REMOVE: usize = 11;
const HLC: usize = 12;
const TS: usize = 13;
const FLAGS: usize = 14;
const SCHEMA_VERSION: usize = 15;
const GROUP: usize = 16;
const APPEND: usize = 18;

/// The known members of an item.
struct Members<'d>([Option<Node<'d>>; KEYS.len()]);

impl<'d> Members<'d> {
    /// Returns a member; an explicit null counts as absent.
    fn get(&self, slot: usize) -> Option<Node<'d>> {
        self.0[slot].filter(|node| !node.is_null())
    }
}

/// Members of an item that this version does not know.
const UNKNOWN_MAX: usize = 64;

impl Element {
    fn wrong(&mut self, pointer: &str, message: impl Into<String>) {
        add_error(&mut self.errors, || FieldError::new("invalid", pointer, message));
    }

    pub(crate) fn read(&mut self, node: Node<'_>) -> Option<(KindName, RecordId, ItemOp, Object)> {
        if !node.is_object() {
            self.wrong("", "an item must be an object");
            return None;
        }
        let members = self.members(node);
        self.op_id = self.text(members.get(OP_ID), "/op_id", OpId::new);
        self.kind = self.text(members.get(KIND), "/kind", KindName::new);
        self.id = self.text(members.get(ID), "/id", RecordId::new);
        self.n = self.place(members.get(N));
        let base = members.get(BASE_VERSION).or(members.get(CLIENT_VERSION));
        self.base_version = self.number(base, "/base_version").map_or(Seq::ZERO, Seq::new);
        self.group = self.group(members.get(GROUP));
        self.schema_version = self.schema_version(members.get(SCHEMA_VERSION));
        self.hlc = self.clock(members.get(HLC), members.get(TS));
        self.intents = self.intents(&members);
        if members.get(OP).is_none() && self.errors.is_empty() && self.kind.is_some() {
            self.sample = self.sample(node, &members);
        }
        let op = members.get(OP).and_then(|node| node.as_str()).and_then(|op| ItemOp::from_text(&op));
        if op.is_none() {
            self.wrong("/op", "must be create, patch, delete or restore");
        }
        let fields = self.fields(members.get(FIELDS));
        for (missing, pointer) in [(self.kind.is_none(), "/kind"), (self.id.is_none(), "/id")] {
            if missing && !self.errors.iter().any(|error| error.pointer == pointer) {
                self.wrong(pointer, "is required");
            }
        }
        Some((self.kind.clone()?, self.id.clone()?, op?, fields?))
    }

    /// Finds the members in one pass, each known key once.
    fn members<'d>(&mut self, node: Node<'d>) -> Members<'d> {
        let mut found = [None; KEYS.len()];
        let mut scratch = String::new();
        let mut unknown: Vec<Cow<'_, str>> = Vec::new();
        for (key, value) in node.members() {
            let slot = KEYS.iter().position(|name| key.is_str(name));
            // What is ignored must be acceptable as well: the verdict on an element is one on all of it.
            if !matches!(slot, Some(FIELDS..=REMOVE | APPEND)) {
                scratch.clear();
                if let Err(error) = canonical_value(value, &mut scratch) {
                    let name = key.as_str().unwrap_or_default();
                    self.wrong(&format!("{}{}", segment(&name), error.pointer), error.kind.to_string());
                }
            }
            match slot {
                Some(slot) if found[slot].replace(value).is_some() => {
                    self.wrong(&format!("/{}", KEYS[slot]), "the key stands twice");
                }
                Some(_) => {}
                None => self.unknown(key, &mut unknown),
            }
        }
        Members(found)
    }

    /// Reads an element without `op`: its `fields`, else all members but the reserved ones.
    fn sample(&self, node: Node<'_>, members: &Members<'_>) -> Option<Box<Sample>> {
        let fields = match members.get(FIELDS) {
            Some(fields) => canonical_object(fields).ok()?,
            None => rest(node, &KEYS, &mut Vec::new())?,
        };
        let at_ms = self.hlc.map(Hlc::millis);
        Some(Box::new(Sample::new(self.id.clone(), fields, at_ms)))
    }

    fn unknown<'d>(&mut self, key: Node<'d>, unknown: &mut Vec<Cow<'d, str>>) {
        let name = key.as_str().unwrap_or_default();
        if name.contains('\u{0}') || unknown.contains(&name) {
            self.wrong("", "a key stands twice or holds U+0000");
        } else if unknown.len() < UNKNOWN_MAX {
            unknown.push(name);
        } else {
            self.wrong("", "the item has too many members");
        }
    }

    fn place(&mut self, node: Option<Node<'_>>) -> Option<u64> {
        let n = self.number(node, "/n");
        if n == Some(0) {
            self.wrong("/n", "must be at least 1");
        }
        n.filter(|&n| n > 0)
    }

    fn group(&mut self, node: Option<Node<'_>>) -> Option<Box<str>> {
        let text = node?.as_str().filter(|text| !text.is_empty() && text.len() <= 64);
        if text.is_none() {
            self.wrong("/group", "must be a string of 1 to 64 bytes");
        }
        text.map(|text| Box::from(&*text))
    }

    fn schema_version(&mut self, node: Option<Node<'_>>) -> u32 {
        let version = self.number(node, "/schema_version").map_or(Ok(0), u32::try_from);
        version.unwrap_or_else(|_| {
            self.wrong("/schema_version", "must be below 2^32");
            0
        })
    }

    fn intents(&mut self, members: &Members<'_>) -> Option<Box<Intents>> {
        if [PREVIOUS, INCREMENTS, ADD, REMOVE, FLAGS, APPEND].iter().all(|slot| members.0[*slot].is_none()) {
            return None;
        }
        let asked = Asked {
            previous: members.get(PREVIOUS),
            increments: members.get(INCREMENTS),
            add: members.get(ADD),
            append: members.get(APPEND),
            remove: members.get(REMOVE),
            flags: members.get(FLAGS),
        };
        asked.read(&mut self.errors)
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
