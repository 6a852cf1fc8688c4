//! What an item asks beside writing whole values.

use std::cmp::Ordering;

use driftline_model::{Intents, Object, ObjectBuilder, elements, key_cmp};

use crate::canonical::{canonical_object, pointer_segment};
use crate::envelope::{FieldError, add_error};
use crate::json::Node;
use crate::write::write_integer;

/// The most flags of one item.
const FLAGS_MAX: usize = 16;

/// The most bytes of one flag.
const FLAG_BYTES: usize = 64;

/// The members of an item that hold intents, as they came.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'d> {
    pub(crate) previous: Option<Node<'d>>,
    pub(crate) increments: Option<Node<'d>>,
    pub(crate) add: Option<Node<'d>>,
    pub(crate) append: Option<Node<'d>>,
    pub(crate) remove: Option<Node<'d>>,
    pub(crate) flags: Option<Node<'d>>,
}

impl Asked<'_> {
    /// Reads the intents; none when nothing is asked. What is wrong is added to `errors`.
    pub(crate) fn read(self, errors: &mut Vec<FieldError>) -> Option<Box<Intents>> {
        let Self { previous, increments, add, append, remove, flags } = self;
        let intents = Intents {
            previous: object(previous, "previous", errors),
            increments: numbers(&object(increments, "increments", errors), errors),
            add: merged(&arrays(add, "add", errors), &arrays(append, "append", errors), errors),
            remove: arrays(remove, "remove", errors),
            deescalate: deescalates(flags, errors),
        };
        (!intents.is_empty()).then(|| Box::new(intents))
    }
}

fn invalid(errors: &mut Vec<FieldError>, pointer: String, message: impl Into<String>) {
    add_error(errors, || FieldError::new("invalid", pointer, message));
}

fn object(node: Option<Node<'_>>, name: &str, errors: &mut Vec<FieldError>) -> Object {
    let Some(node) = node else { return Object::empty() };
    canonical_object(node).unwrap_or_else(|error| {
        invalid(errors, format!("/{name}{}", error.pointer), error.kind.to_string());
        Object::empty()
    })
}

fn numbers(object: &Object, errors: &mut Vec<FieldError>) -> Vec<(Box<str>, i64)> {
    let mut numbers = Vec::with_capacity(object.len());
    for (field, value) in object.iter() {
        // A canonical integer is within 2^53 and has no other spelling.
        match value.parse() {
            Ok(number) => numbers.push((Box::from(field), number)),
            Err(_) => invalid(errors, place("increments", field), "must be an integer within 2^53"),
        }
    }
    numbers
}

fn arrays(node: Option<Node<'_>>, name: &str, errors: &mut Vec<FieldError>) -> Object {
    let object = object(node, name, errors);
    for (field, value) in object.iter() {
        if elements(value).is_none() {
            invalid(errors, place(name, field), "must be an array");
        }
    }
    object
}

/// Joins `add` and `append`, which are two names of one thing.
fn merged(add: &Object, append: &Object, errors: &mut Vec<FieldError>) -> Object {
    if append.is_empty() {
        return add.clone();
    }
    let mut built =
        ObjectBuilder::with_capacity(add.as_str().len() + append.as_str().len(), add.len() + append.len());
    let (mut added, mut appended) = (add.iter().peekable(), append.iter().peekable());
    loop {
        let order = match (added.peek(), appended.peek()) {
            (Some((a, _)), Some((b, _))) => key_cmp(a, b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return built.finish(),
        };
        if order == Ordering::Equal {
            let field = added.next().map_or("", |(field, _)| field);
            invalid(errors, place("append", field), "stands in add as well");
        }
        let next = if order == Ordering::Less { added.next() } else { appended.next() };
        if let Some((field, value)) = next {
            built.push(field, value);
        }
    }
}

fn deescalates(node: Option<Node<'_>>, errors: &mut Vec<FieldError>) -> bool {
    let Some(node) = node else { return false };
    if !node.is_array() || node.elements().count() > FLAGS_MAX {
        invalid(errors, "/flags".into(), "must be an array of at most 16 strings");
        return false;
    }
    let mut deescalate = false;
    for (at, flag) in node.elements().enumerate() {
        let text = flag.as_str().filter(|text| !text.is_empty() && text.len() <= FLAG_BYTES);
        match text {
            Some(text) => deescalate |= text == "deescalate",
            None => invalid(errors, format!("/flags/{at}"), "must be a string of 1 to 64 bytes"),
        }
    }
    deescalate
}

/// Makes the JSON Pointer to a field of an intent.
fn place(name: &str, field: &str) -> String {
    format!("/{name}{}", pointer_segment(field))
}

/// Appends increments as a canonical JSON object.
pub(crate) fn write_increments(out: &mut String, increments: &[(Box<str>, i64)]) {
    out.push('{');
    for (at, (field, number)) in increments.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        out.push('"');
        out.push_str(field);
        out.push_str("\":");
        write_integer(out, *number);
    }
    out.push('}');
}

/// Appends what identifies the intents. The value that the author saw is no part of it: like the base version it may
/// be told anew when the change is rebased.
pub(crate) fn write_identity(out: &mut String, intents: &Intents) {
    if !intents.increments.is_empty() {
        out.push_str("\u{0}increments");
        write_increments(out, &intents.increments);
    }
    for (name, asked) in [("\u{0}add", &intents.add), ("\u{0}remove", &intents.remove)] {
        if !asked.is_empty() {
            out.push_str(name);
            out.push_str(asked.as_str());
        }
    }
    if intents.deescalate {
        out.push_str("\u{0}deescalate");
    }
}

#[cfg(test)]
mod tests {
    use crate::item::Item;
    use crate::json::Document;

    fn read(op: &str, rest: &str) -> Result<Item, Vec<String>> {
        let text = format!(r#"{{"kind":"k","id":"i","op":"{op}",{rest}}}"#);
        let document = Document::parse(text.as_bytes(), 64).expect("JSON");
        Item::read(document.root()).map_err(|bad| bad.errors.into_iter().map(|error| error.pointer).collect())
    }

    #[test]
    fn intents_are_read_in_canonical_form() {
        let item = read(
            "patch",
            r#""previous":{"priority":"low"},"increments":{"visits":1,"calls":-2.0},"add":{"tags":["roof",1.0]},
               "append":{"log":[{"id":"l1","a":2}],"a":[]},"remove":{"tags":["old"]},"flags":["later","deescalate"]"#,
        )
        .unwrap();
        let intents = item.intents.expect("something is asked");
        assert_eq!(intents.previous.as_str(), r#"{"priority":"low"}"#);
        assert_eq!(intents.increments, [("calls".into(), -2), ("visits".into(), 1)]);
        assert_eq!(intents.add.as_str(), r#"{"a":[],"log":[{"a":2,"id":"l1"}],"tags":["roof",1]}"#);
        assert_eq!(intents.remove.as_str(), r#"{"tags":["old"]}"#);
        assert!(intents.deescalate);
    }

    #[test]
    fn nothing_asked_is_none() {
        for rest in [
            r#""fields":{}"#,
            r#""previous":null,"increments":null,"add":null,"append":null,"remove":null,"flags":null"#,
            r#""previous":{},"increments":{},"add":{},"append":{},"remove":{},"flags":[]"#,
            r#""flags":["urgent"]"#,
        ] {
            assert_eq!(read("patch", rest).unwrap().intents, None, "{rest}");
        }
        assert_eq!(read("delete", r#""increments":{"v":1}"#).unwrap().intents, None);
    }

    #[test]
    fn every_fault_has_its_place() {
        let seventeen = format!(r#""flags":[{}]"#, vec![r#""f""#; 17].join(","));
        let long = format!(r#""flags":["{}"]"#, "f".repeat(65));
        let table: [(&str, &[&str]); 19] = [
            (r#""increments":{"visits":1.5}"#, &["/increments/visits"]),
            (r#""increments":{"a":"1","b":1e20,"c":2}"#, &["/increments/b"]),
            (
                r#""increments":{"a":"1","b":1e21,"c":null}"#,
                &["/increments/a", "/increments/b", "/increments/c"],
            ),
            (r#""increments":{"v":9007199254740993}"#, &["/increments/v"]),
            (r#""increments":[1]"#, &["/increments"]),
            (r#""previous":7"#, &["/previous"]),
            (r#""previous":{"a":{"b":1,"b":2}}"#, &["/previous/a/b"]),
            (r#""add":{"tags":"roof","x/y":{}}"#, &["/add/tags", "/add/x~1y"]),
            (r#""add":{"tags":["\u0000"]}"#, &["/add/tags/0"]),
            (r#""remove":{"tags":null}"#, &["/remove/tags"]),
            (r#""append":{"log":1}"#, &["/append/log"]),
            (r#""add":{"a":[],"tags":[1]},"append":{"tags":[1]}"#, &["/append/tags"]),
            (r#""add":{},"add":{}"#, &["/add"]),
            (r#""flags":"deescalate""#, &["/flags"]),
            (r#""flags":["deescalate",1,""]"#, &["/flags/1", "/flags/2"]),
            (&seventeen, &["/flags"]),
            (&long, &["/flags/0"]),
            (r#""increments":{"v":1.5},"remove":{"t":1}"#, &["/increments/v", "/remove/t"]),
            (r#""append":{"":{}}"#, &["/append/"]),
        ];
        for (rest, wanted) in table {
            assert_eq!(read("patch", rest).unwrap_err(), wanted, "{rest}");
            assert_eq!(read("delete", rest).unwrap_err(), wanted, "{rest}");
        }
    }

    #[test]
    fn the_hash_covers_what_is_asked_but_not_what_was_seen() {
        let hash = |rest: &str| read("patch", rest).unwrap().hash;
        let bare = hash(r#""fields":{}"#);
        assert_eq!(hash(r#""previous":{"a":1},"increments":{}"#), bare);
        let asked = [
            r#""increments":{"a":1}"#,
            r#""increments":{"a":2}"#,
            r#""add":{"a":[1]}"#,
            r#""remove":{"a":[1]}"#,
            r#""flags":["deescalate"]"#,
        ];
        let mut hashes: Vec<u64> = asked.into_iter().map(hash).chain([bare]).collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), asked.len() + 1);
        assert_eq!(hash(r#""add":{"b":[2]},"append":{"a":[1]}"#), hash(r#""append":{"b":[2.0],"a":[1]}"#));
    }
}
