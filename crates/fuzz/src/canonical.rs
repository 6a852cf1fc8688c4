//! JSON texts and their canonical form.

use driftline_model::{Limits, Object};
use driftline_protocol::{Document, JsonError, Node, ValueError, canonical_object, canonical_value};
use serde_json::value::RawValue;

use crate::target::Verdict;

/// Parses a text and canonicalises it.
pub(crate) fn run(input: &[u8]) -> Verdict {
    let depth = Limits::default().depth;
    let parsed = Document::parse(input, depth);
    grammar(input, parsed.as_ref().map(|_| ()).map_err(|error| *error));
    let Ok(document) = parsed else { return Verdict::Refused };
    let canonical = text(document.root());
    twin(&document, depth, &canonical);
    let Ok(canonical) = canonical else { return Verdict::Refused };
    fixed_point(&canonical);
    if document.root().is_object() {
        let object = canonical_object(document.root()).expect("an object with a canonical form");
        assert_eq!(object.as_str(), canonical, "both ways to canonicalise an object agree");
        assert_object(&object);
    }
    Verdict::Accepted
}

/// Asserts what holds of every object that came through the canonicaliser.
pub(crate) fn assert_object(object: &Object) {
    fixed_point(object.as_str());
    let taken =
        Object::from_canonical(object.as_str().to_owned()).expect("canonical text is taken as it stands");
    assert_eq!(&taken, object, "the members of canonical text are found again");
    for (name, value) in object.iter() {
        assert_eq!(object.get(name), Some(value), "a member is found by its name");
        fixed_point(value);
    }
}

/// Canonical text is its own canonical form.
fn fixed_point(canonical: &str) {
    let document = Document::parse(canonical.as_bytes(), usize::MAX).expect("canonical text is JSON");
    assert_eq!(text(document.root()).as_deref(), Ok(canonical), "canonical text is its own canonical form");
}

/// Another parser accepts what this one accepts, and the other way round but for what is looser there.
fn grammar(input: &[u8], parsed: Result<(), JsonError>) {
    let other = serde_json::from_slice::<&RawValue>(input).is_ok();
    match parsed {
        Ok(()) => assert!(other, "what is accepted is JSON"),
        Err(JsonError::Depth { .. }) => {}
        // The other parser does not look at surrogates in a text that it skips.
        Err(error) => {
            let escapes = input.windows(2).any(|pair| pair == b"\\u");
            assert!(!other || escapes, "JSON is refused: {error}");
        }
    }
}

/// The same document in MessagePack has the same canonical form, or the same fault at the same place.
fn twin(document: &Document<'_>, depth: usize, canonical: &Result<String, ValueError>) {
    let packed = document.to_msgpack();
    match Document::parse_msgpack(&packed, depth) {
        Ok(twin) => {
            assert_eq!(&text(twin.root()), canonical, "both encodings have one canonical form");
            assert_eq!(twin.to_msgpack(), packed, "MessagePack is written as it was read");
        }
        // A number beyond what a double holds has no place in MessagePack.
        Err(_) => assert!(canonical.is_err(), "what MessagePack cannot hold has no canonical form"),
    }
}

fn text(node: Node<'_>) -> Result<String, ValueError> {
    let mut out = String::new();
    canonical_value(node, &mut out).map(|()| out)
}
