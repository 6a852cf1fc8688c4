//! Schemas of record kinds: what they may say, and what they make of a change.

use driftline_model::Object;
use driftline_protocol::{Document, FieldError, Item, KindSchema, Whole, object_of_text};

const TICKET: &str = r##"{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "$id": "https://driftline.example/ticket",
  "title": "Ticket",
  "type": "object",
  "required": ["title", "visits"],
  "additionalProperties": false,
  "$defs": {"tag": {"type": "string", "pattern": "^[a-z]+$"}},
  "properties": {
    "title": {"type": "string", "maxLength": 8},
    "priority": {"enum": ["low", "high"]},
    "visits": {"type": "integer", "minimum": 0},
    "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
    "place": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
    "due": {"type": "string", "format": "date-time"},
    "never": false,
    "a b/%~é": {"type": "array", "items": {"type": "integer"}}
  }
}"##;

fn object(text: &str) -> Object {
    object_of_text(text, 64).expect("JSON").expect("a good object")
}

fn places(faults: &[FieldError]) -> Vec<(&str, &str)> {
    faults.iter().map(|fault| (&*fault.code, &*fault.pointer)).collect()
}

#[test]
fn a_field_is_judged_by_its_own_schema() {
    let ticket = KindSchema::compile(TICKET).expect("a schema");
    let table: [(&str, &[(&str, &str)]); 12] = [
        ("{}", &[]),
        (r#"{"title":"roof","priority":"low","visits":0,"tags":["a","b"],"place":{"lat":1.5}}"#, &[]),
        (r#"{"title":"too long a title"}"#, &[("maxLength", "/fields/title")]),
        (r#"{"priority":"medium"}"#, &[("enum", "/fields/priority")]),
        (r#"{"priority":null}"#, &[("enum", "/fields/priority")]),
        (r#"{"visits":-1.5}"#, &[("minimum", "/fields/visits"), ("type", "/fields/visits")]),
        (r#"{"tags":["a","B"]}"#, &[("pattern", "/fields/tags/1")]),
        (r#"{"place":{}}"#, &[("required", "/fields/place")]),
        (r#"{"due":"tomorrow"}"#, &[("format", "/fields/due")]),
        (r#"{"never":1}"#, &[("falseSchema", "/fields/never")]),
        (r#"{"a b/%~é":[1,"2"]}"#, &[("type", "/fields/a b~1%~0é/1")]),
        (r#"{"x/y":1}"#, &[("additionalProperties", "/fields/x~1y")]),
    ];
    for (fields, wanted) in table {
        let faults = ticket.check(&object(fields), Whole::Patch);
        let mut found = places(&faults);
        found.sort_unstable();
        assert_eq!(found, wanted, "{fields}");
    }
}

#[test]
fn only_a_new_record_needs_all_that_is_required() {
    let ticket = KindSchema::compile(TICKET).expect("a schema");
    let fields = object(r#"{"title":"roof"}"#);
    assert_eq!(ticket.check(&fields, Whole::Patch), []);
    let faults = ticket.check(&fields, Whole::Create);
    assert_eq!(places(&faults), [("required", "/fields/visits")]);
}

#[test]
fn elements_are_judged_by_the_schema_of_elements() {
    let ticket = KindSchema::compile(TICKET).expect("a schema");
    let table: [(&str, &[(&str, &str)]); 7] = [
        ("{}", &[]),
        (r#"{"tags":["a","b","c"]}"#, &[]),
        (r#"{"tags":["a",1,"B"]}"#, &[("pattern", "/add/tags/2"), ("type", "/add/tags/1")]),
        (r#"{"a b/%~é":["1"]}"#, &[("type", "/add/a b~1%~0é/0")]),
        (r#"{"title":["anything"]}"#, &[]),
        (r#"{"tags":"a"}"#, &[("type", "/add/tags")]),
        (r#"{"others":[1]}"#, &[("additionalProperties", "/add/others")]),
    ];
    for (add, wanted) in table {
        let faults = ticket.check_elements(&object(add));
        let mut found = places(&faults);
        found.sort_unstable();
        assert_eq!(found, wanted, "{add}");
    }
}

#[test]
fn an_item_is_judged_with_all_that_it_asks() {
    let ticket = KindSchema::compile(TICKET).expect("a schema");
    let table: [(&str, &[(&str, &str)]); 6] = [
        (r#""op":"create","fields":{"title":"roof"},"increments":{"visits":1},"add":{"tags":["a"]}"#, &[]),
        (r#""op":"create","fields":{"title":"roof"}"#, &[("required", "/fields/visits")]),
        (r#""op":"patch","fields":{"title":1}"#, &[("type", "/fields/title")]),
        (
            r#""op":"patch","increments":{"calls":1},"add":{"tags":["A"]},"remove":{"marks":[1]}"#,
            &[
                ("pattern", "/add/tags/0"),
                ("additionalProperties", "/increments/calls"),
                ("additionalProperties", "/remove/marks"),
            ],
        ),
        // What is taken out may be what an older schema let in.
        (r#""op":"patch","remove":{"tags":["A"]}"#, &[]),
        (r#""op":"delete","fields":{"title":1}"#, &[]),
    ];
    for (rest, wanted) in table {
        let text = format!(r#"{{"kind":"ticket","id":"t-1",{rest}}}"#);
        let document = Document::parse(text.as_bytes(), 64).expect("JSON");
        let item = Item::read(document.root()).expect("an item");
        assert_eq!(places(&ticket.check_item(&item)), wanted, "{rest}");
    }
}

#[test]
fn values_do_not_stand_in_what_is_told() {
    let ticket = KindSchema::compile(TICKET).expect("a schema");
    let secret = r#"{"title":"a secret of some length","priority":"secret","visits":"secret","due":"secret","tags":["secret 1"]}"#;
    let faults = ticket.check(&object(secret), Whole::Patch);
    assert_eq!(faults.len(), 5);
    for fault in faults {
        assert!(!fault.message.contains("secret"), "{}", fault.message);
    }
}

#[test]
fn what_is_told_is_bounded() {
    let ticket = KindSchema::compile(TICKET).expect("a schema");
    let tags = vec!["1"; 10_000].join(",");
    assert_eq!(ticket.check(&object(&format!(r#"{{"tags":[{tags}]}}"#)), Whole::Create).len(), 32);
    assert_eq!(ticket.check_elements(&object(&format!(r#"{{"tags":[{tags}]}}"#))).len(), 32);
}

#[test]
fn a_pattern_takes_no_time_to_speak_of() {
    let schema = KindSchema::compile(r#"{"properties":{"a":{"pattern":"^(a+)+$"}}}"#).expect("a schema");
    let fields = object(&format!(r#"{{"a":"{}!"}}"#, "a".repeat(100_000)));
    assert_eq!(places(&schema.check(&fields, Whole::Patch)), [("pattern", "/fields/a")]);
}

#[test]
fn without_properties_everything_is_taken() {
    let schema = KindSchema::compile(r#"{"required":["a"]}"#).expect("a schema");
    assert_eq!(schema.check(&object(r#"{"b":[{}]}"#), Whole::Patch), []);
    assert_eq!(schema.check_elements(&object(r#"{"b":[{}]}"#)), []);
    assert_eq!(places(&schema.check(&object("{}"), Whole::Create)), [("required", "/fields/a")]);
}

#[test]
fn what_ties_fields_together_is_refused() {
    let words = [
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "minProperties",
        "maxProperties",
        "propertyNames",
        "patternProperties",
        "unevaluatedProperties",
        "const",
        "enum",
        "$ref",
        "$dynamicRef",
        "format",
        "x-mine",
    ];
    for word in words {
        let refused = KindSchema::compile(&format!(r#"{{"type":"object","{word}":{{}}}}"#));
        assert_eq!(refused.expect_err(word).pointer, format!("/{word}"));
    }
    // Inside one field everything is allowed.
    let inside =
        r#"{"properties":{"a":{"oneOf":[{"type":"string"},{"minProperties":1,"not":{"required":["b"]}}]}}}"#;
    let schema = KindSchema::compile(inside).expect("a schema");
    assert_eq!(schema.check(&object(r#"{"a":{"c":1}}"#), Whole::Patch), []);
    assert_eq!(places(&schema.check(&object(r#"{"a":{"b":1}}"#), Whole::Patch)), [("oneOf", "/fields/a")]);
}

#[test]
fn a_bad_schema_is_refused_with_its_place() {
    let table = [
        ("", ""),
        ("[]", ""),
        ("true", ""),
        (r#"{"title":"a","title":"b"}"#, "/title"),
        (r#"{"type":"array"}"#, "/type"),
        (r#"{"type":["object","null"]}"#, "/type"),
        (r#"{"properties":[]}"#, "/properties"),
        (r#"{"properties":{"a":{"type":"text"}}}"#, "/properties/a/type"),
        (r#"{"properties":{"a":{"minLength":-1}}}"#, "/properties/a/minLength"),
        (r#"{"properties":{"a":7}}"#, "/properties/a"),
        (r#"{"additionalProperties":{"type":"string"}}"#, "/additionalProperties"),
        (r#"{"required":"a"}"#, "/required"),
        (r#"{"required":["a",1]}"#, "/required/1"),
        (r#"{"properties":{"a":{}},"required":["a","b"],"additionalProperties":false}"#, "/required/1"),
        (r#"{"properties":{"a":{"$ref":"https://driftline.example/a.json"}}}"#, "/properties/a/$ref"),
        (r#"{"properties":{"a":{"$ref":"a.json#/b"}}}"#, "/properties/a/$ref"),
        (r#"{"properties":{"a":{"items":[{"$ref":"file:///etc/passwd"}]}}}"#, "/properties/a/items/0/$ref"),
        (r##"{"properties":{"a":{"$ref":"#"}}}"##, "/properties/a/$ref"),
        (r##"{"properties":{"a":{"$ref":"#/$defs/b"}}}"##, "/properties/a/$ref"),
        (r#"{"$defs":{"b":{"$ref":"https://driftline.example/b"}}}"#, "/$defs/b/$ref"),
    ];
    for (text, pointer) in table {
        assert_eq!(KindSchema::compile(text).expect_err(text).pointer, pointer, "{text}");
    }
    for text in [
        r#"{"properties":{"a":{"pattern":"("}}}"#,
        r#"{"properties":{"a":{"pattern":"(?=a)"}}}"#,
        r#"{"properties":{"a":{"format":"no-such-format"}}}"#,
        r##"{"properties":{"a":{"$ref":"#nowhere"}}}"##,
        r#"{"$schema":"https://driftline.example/own-draft"}"#,
    ] {
        assert!(KindSchema::compile(text).is_err(), "{text}");
    }
}

#[test]
fn a_reference_that_is_a_value_is_none() {
    let text = r#"{"properties":{"$ref":{"const":{"$ref":"https://driftline.example/a"}},"enum":{"type":"string"}}}"#;
    let schema = KindSchema::compile(text).expect("a schema");
    assert_eq!(schema.check(&object(r#"{"$ref":{"$ref":"https://driftline.example/a"}}"#), Whole::Patch), []);
    assert_eq!(places(&schema.check(&object(r#"{"enum":1}"#), Whole::Patch)), [("type", "/fields/enum")]);
}

#[test]
fn older_drafts_are_read_by_their_own_rules() {
    let text = r#"{"$schema":"http://json-schema.org/draft-07/schema#",
                   "properties":{"a":{"items":[{"type":"string"}],"additionalItems":false}}}"#;
    let schema = KindSchema::compile(text).expect("a schema");
    assert_eq!(schema.check(&object(r#"{"a":["x"]}"#), Whole::Patch), []);
    assert_eq!(schema.check(&object(r#"{"a":[1,2]}"#), Whole::Patch).len(), 2);
    assert_eq!(schema.check_elements(&object(r#"{"a":[1]}"#)), []);
}
