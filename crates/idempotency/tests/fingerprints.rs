//! Fingerprints: what changes them, and what does not.

use std::collections::HashMap;

use driftline_idempotency::{Fingerprint, RequestParts};

const BASE: RequestParts<'static> = RequestParts {
    version: "v1",
    route: "POST /a/{b}",
    path: &["1", "2"],
    query: &[("x", "1"), ("y", "2")],
    content_type: Some("application/json"),
    body: b"{}",
};

#[track_caller]
fn all_differ(table: &[(&str, Fingerprint)]) {
    let mut seen = HashMap::new();
    for (name, fingerprint) in table {
        if let Some(other) = seen.insert(*fingerprint, *name) {
            panic!("{name} and {other} have one fingerprint");
        }
    }
}

#[test]
fn every_part_of_a_request_counts_and_none_moves_into_another() {
    let request = |parts: RequestParts<'_>| Fingerprint::request(&parts);
    all_differ(&[
        ("base", request(BASE)),
        ("version", request(RequestParts { version: "v2", ..BASE })),
        ("route", request(RequestParts { route: "POST /a/{c}", ..BASE })),
        ("method", request(RequestParts { route: "PATCH /a/{b}", ..BASE })),
        ("version and route shifted", request(RequestParts { version: "v1P", route: "OST /a/{b}", ..BASE })),
        ("version in route", request(RequestParts { version: "", route: "v1POST /a/{b}", ..BASE })),
        ("path order", request(RequestParts { path: &["2", "1"], ..BASE })),
        ("path joined", request(RequestParts { path: &["12"], ..BASE })),
        ("path shifted", request(RequestParts { path: &["12", ""], ..BASE })),
        ("path with an empty one", request(RequestParts { path: &["1", "2", ""], ..BASE })),
        ("no path", request(RequestParts { path: &[], ..BASE })),
        (
            "path into query",
            request(RequestParts { path: &[], query: &[("1", "2"), ("x", "1"), ("y", "2")], ..BASE }),
        ),
        (
            "query into path",
            request(RequestParts { path: &["1", "2", "x", "1", "y", "2"], query: &[], ..BASE }),
        ),
        ("query value", request(RequestParts { query: &[("x", "1"), ("y", "3")], ..BASE })),
        ("query name", request(RequestParts { query: &[("x", "1"), ("z", "2")], ..BASE })),
        ("query shifted", request(RequestParts { query: &[("x1", ""), ("y", "2")], ..BASE })),
        ("query pairs shifted", request(RequestParts { query: &[("x", "1y"), ("", "2")], ..BASE })),
        ("query values exchanged", request(RequestParts { query: &[("x", "2"), ("y", "1")], ..BASE })),
        ("query twice", request(RequestParts { query: &[("x", "1"), ("x", "2"), ("y", "2")], ..BASE })),
        (
            "query twice, exchanged",
            request(RequestParts { query: &[("x", "2"), ("x", "1"), ("y", "2")], ..BASE }),
        ),
        ("no query", request(RequestParts { query: &[], ..BASE })),
        ("another type", request(RequestParts { content_type: Some("application/msgpack"), ..BASE })),
        ("empty type", request(RequestParts { content_type: Some(""), ..BASE })),
        ("no type", request(RequestParts { content_type: None, ..BASE })),
        ("type in body", request(RequestParts { content_type: None, body: b"application/json{}", ..BASE })),
        (
            "body in type",
            request(RequestParts { content_type: Some("application/json{}"), body: b"", ..BASE }),
        ),
        ("body by a space", request(RequestParts { body: b"{} ", ..BASE })),
        ("no body", request(RequestParts { body: b"", ..BASE })),
        ("body with a zero", request(RequestParts { body: b"{}\0", ..BASE })),
    ]);
}

#[test]
fn what_does_not_count() {
    let base = Fingerprint::request(&BASE);
    for same in [
        RequestParts { query: &[("y", "2"), ("x", "1")], ..BASE },
        RequestParts { content_type: Some("Application/JSON; charset=utf-8"), ..BASE },
    ] {
        assert_eq!(Fingerprint::request(&same), base, "{same:?}");
    }
}

#[test]
fn every_part_of_an_envelope_counts_and_none_moves_into_another() {
    let id = Some("s1");
    all_differ(&[
        ("base", Fingerprint::envelope("push", id, b"{}")),
        ("kind", Fingerprint::envelope("pull", id, b"{}")),
        ("session", Fingerprint::envelope("push", Some("s2"), b"{}")),
        ("empty session", Fingerprint::envelope("push", Some(""), b"{}")),
        ("no session", Fingerprint::envelope("push", None, b"{}")),
        ("payload", Fingerprint::envelope("push", id, b"{\"a\":1}")),
        ("kind and session shifted", Fingerprint::envelope("pushs", Some("1"), b"{}")),
        ("session and payload shifted", Fingerprint::envelope("push", Some("s"), b"1{}")),
        ("session in payload", Fingerprint::envelope("push", None, b"s1{}")),
        ("all in kind", Fingerprint::envelope("pushs1{}", None, b"")),
        ("a request", Fingerprint::request(&BASE)),
    ]);
}

#[test]
fn every_part_of_a_built_one_counts_with_its_kind() {
    let builder = || Fingerprint::builder("d");
    all_differ(&[
        ("nothing", builder().finish()),
        ("another domain", Fingerprint::builder("e").finish()),
        ("domain and text shifted", Fingerprint::builder("").text("d").finish()),
        ("text", builder().text("ab").finish()),
        ("bytes", builder().bytes(b"ab").finish()),
        ("two texts", builder().text("a").text("b").finish()),
        ("an empty text", builder().text("").finish()),
        ("two empty texts", builder().text("").text("").finish()),
        ("no text", builder().optional(None).finish()),
        ("number", builder().number(7).finish()),
        ("count", builder().count(7).finish()),
        ("the bytes of a number", builder().bytes(&7u64.to_be_bytes()).finish()),
        ("the text of a number", builder().text("7").finish()),
    ]);
    assert_eq!(builder().optional(Some("a")).finish(), builder().text("a").finish());
    let mut kept = builder();
    let before = kept.text("a").finish();
    assert_eq!(kept.finish(), before, "a finished builder goes on");
    assert_eq!(kept.text("b").finish(), builder().text("a").text("b").finish());
}
