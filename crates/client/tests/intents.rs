//! Edits that say what they mean: increments, sets, lists, and the values that their authors saw.

mod common;

use common::{Device, create, note, patch, put, record, result, row};
use driftline_client::{Edit, Object, elements, fields};

const MERGING: &str = r#"{"strategy":"field_merge","fields":{"n":{"rule":"counter"},"s":{"rule":"set"},
    "l":{"rule":"append"}}}"#;

const ESCALATING: &str = r#"{"strategy":"preserve_escalation","fields":{"p":{"rule":"ordered",
    "order":["low","mid","high"],"urgent":"high"}}}"#;

fn touch(id: &str) -> Edit {
    Edit::patch(note(), record(id), Object::empty())
}

fn p(value: &str) -> String {
    format!(r#"{{"p":"{value}"}}"#)
}

/// The intents of the one item that is sent now, as JSON text.
#[track_caller]
fn sent_intents(device: &mut Device) -> String {
    let text = device.one();
    let from = text.find(r#","fields""#).expect("an item");
    let until = text.find(r#"],"batch_seq""#).expect("a batch");
    text[from + 1..until].to_owned()
}

#[test]
fn increments_and_elements_show_at_once_and_are_sent_as_they_were_meant() {
    let mut device = Device::synced_under(MERGING, &put("x", 3, r#"{"l":[{"id":1}],"n":4,"s":["a","c"]}"#));
    let edit = touch("x")
        .increment("n", 2)
        .increment("n", 1)
        .add("s", &elements(r#"["b"]"#).unwrap())
        .remove("s", &elements(r#"["c", "none"]"#).unwrap())
        .add("l", &elements(r#"[{"id":2}]"#).unwrap());
    device.edit(edit);
    let wanted = r#"{"l":[{"id":1},{"id":2}],"n":7,"s":["a","b"]}"#;
    assert_eq!(device.shown("x").as_deref(), Some(wanted));
    assert_eq!(
        sent_intents(&mut device),
        r#""fields":{},"add":{"l":[{"id":2}],"s":["b"]},"remove":{"s":["c","none"]},"increments":{"n":3}}"#
    );

    // Another device counted as well; the own increment lies on top of that, before and after the ack.
    device.ack(1, 11, &result(0, "applied", 11, ""));
    assert_eq!(device.shown("x").as_deref(), Some(wanted));
    device.delta(11, 12, &row("x", 12, "patch", r#"{"n":17}"#));
    assert_eq!(device.shown("x").as_deref(), Some(r#"{"l":[{"id":1},{"id":2}],"n":17,"s":["a","b"]}"#));
    assert!(device.replica.is_settled());
}

#[test]
fn an_increment_stays_on_top_of_what_others_count() {
    let mut device = Device::synced_under(MERGING, &put("x", 3, r#"{"n":4}"#));
    device.edit(touch("x").increment("n", 1));
    device.delta(10, 11, &row("x", 11, "patch", r#"{"n":9}"#));
    assert_eq!(device.shown("x").as_deref(), Some(r#"{"n":10}"#));
    device.edit(touch("x").increment("n", 5));
    assert_eq!(device.shown("x").as_deref(), Some(r#"{"n":15}"#));
}

#[test]
fn a_record_is_made_with_counts_and_elements() {
    let mut device = Device::synced_under(MERGING, "");
    device.edit(create("x", r#"{"s":["b","a"]}"#).increment("n", 2));
    assert_eq!(device.shown("x").as_deref(), Some(r#"{"n":2,"s":["a","b"]}"#));
    device.edit(touch("nowhere").increment("n", 2));
    assert_eq!(device.shown("nowhere"), None, "a patch makes nothing of nothing");
}

#[test]
fn where_elements_met_with_others_only_the_server_knows() {
    for (code, pulls) in [("applied", false), ("merged", true)] {
        let mut device = Device::synced_under(MERGING, &put("x", 3, r#"{"s":["a"]}"#));
        device.edit(touch("x").add("s", &elements(r#"["b"]"#).unwrap()));
        device.one();
        device.ack(1, 11, &result(0, code, 11, ""));
        let pulled = device.sent().iter().any(|text| text.contains("request_server_data"));
        assert_eq!(pulled, pulls, "{code}");
    }
}

#[test]
fn what_the_author_saw_is_told_for_ordered_fields_only() {
    let rows = put("x", 3, r#"{"a":1,"p":"low"}"#);
    let mut device = Device::synced_under(ESCALATING, &rows);
    device.edit(patch("x", r#"{"a":2,"p":"mid"}"#));
    assert_eq!(sent_intents(&mut device), r#""fields":{"a":2,"p":"mid"},"previous":{"p":"low"}}"#);
    // The pending value is what the next author sees.
    device.edit(patch("x", &p("high")));
    assert_eq!(sent_intents(&mut device), r#""fields":{"p":"high"},"previous":{"p":"mid"}}"#);
    // A record that is made has no past, and a field that was never written had no value.
    device.edit(create("y", &p("low")));
    assert_eq!(sent_intents(&mut device), r#""fields":{"p":"low"}}"#);
    device.ack(1, 11, &result(0, "applied", 11, ""));
    device.ack(2, 12, &result(0, "applied", 12, ""));
    device.ack(3, 13, &result(0, "applied", 13, ""));
    let mut device = Device::synced_under(ESCALATING, &put("x", 3, r#"{"a":1}"#));
    device.edit(patch("x", &p("mid")));
    assert_eq!(sent_intents(&mut device), r#""fields":{"p":"mid"},"previous":{"p":null}}"#);
}

#[test]
fn the_higher_of_pulled_and_pending_is_told_if_others_changed_it_meanwhile() {
    // (pulled after the first edit, what the second edit tells)
    for (pulled, previous) in [("low", "mid"), ("mid", "mid"), ("high", "high")] {
        let mut device = Device::synced_under(ESCALATING, &put("x", 3, &p("low")));
        device.edit(patch("x", &p("mid")));
        device.delta(10, 11, &row("x", 11, "patch", &p(pulled)));
        device.edit(patch("x", &p("high")));
        let sent = device.one();
        assert!(sent.contains(r#""fields":{"p":"mid"},"previous":{"p":"low"}"#), "{sent}");
        assert!(
            sent.contains(&format!(r#""fields":{{"p":"high"}},"previous":{{"p":"{previous}"}}"#)),
            "{sent}"
        );
    }
}

#[test]
fn own_changes_are_no_changes_of_others() {
    let mut device = Device::synced_under(ESCALATING, &put("x", 3, &p("low")));
    device.edit(patch("x", &p("high")));
    device.edit(patch("x", &p("low")).deescalate());
    device.one();
    // The first is answered and part of the body, the second waits on.
    let results = format!(r#"{},{{"index":1,"code":"busy"}}"#, result(0, "applied", 11, ""));
    device.ack(1, 11, &results);
    device.delta(11, 12, &put("y", 12, "{}"));
    assert_eq!(device.version("x"), 11);
    assert_eq!(device.shown("x").as_deref(), Some(r#"{"p":"low"}"#));
    device.edit(patch("x", &p("mid")));
    device.now_ms += 60_000;
    device.replica.handle_timeout(device.now_ms);
    let sent = device.one();
    assert!(sent.contains(r#""fields":{"p":"mid"},"previous":{"p":"low"}"#), "{sent}");
}

#[test]
fn an_ordered_field_shows_the_higher_of_pulled_and_pending() {
    // (pulled at first, edit, lowers, pulled later, shown)
    let table = [
        ("low", "mid", false, None, "mid"),
        ("high", "mid", false, None, "high"),
        ("high", "mid", true, None, "mid"),
        ("low", "mid", false, Some("high"), "high"),
        // The lowering is of "mid"; its author never saw "high".
        ("mid", "low", true, Some("high"), "high"),
        ("high", "low", true, Some("mid"), "low"),
    ];
    for (at, (pulled, edit, lowers, later, shown)) in table.into_iter().enumerate() {
        let mut device = Device::synced_under(ESCALATING, &put("x", 3, &p(pulled)));
        let edit = patch("x", &p(edit));
        device.edit(if lowers { edit.deescalate() } else { edit });
        if let Some(later) = later {
            device.delta(10, 11, &row("x", 11, "patch", &p(later)));
        }
        assert_eq!(device.shown("x"), Some(p(shown)), "case {at}");
    }
}

#[test]
fn an_edit_made_before_the_policies_are_known_tells_what_its_author_saw() {
    let mut device = Device::synced_under(ESCALATING, &put("x", 3, &p("low")));
    // The same device before its first session, as far as policies go.
    let mut fresh = Device::synced(&put("x", 3, &p("low")));
    for device in [&mut device, &mut fresh] {
        device.replica.handle_disconnected();
        device.edit(patch("x", &p("mid")));
        device.edit(patch("x", &p("high")));
        device.greet("00000001");
        device.sent();
        device.started_under("00000001", 10, 100, &format!(r#"{{"note":{ESCALATING}}}"#));
        let sent = device.one();
        for previous in ["low", "mid"] {
            assert!(sent.contains(&format!(r#""previous":{{"p":"{previous}"}}"#)), "{sent}");
        }
    }
    // Over HTTP nobody tells of policies, so that everything is told.
    let mut device = Device::new();
    device.replica.http_request();
    let answer = common::page(&put("x", 3, r#"{"a":1,"b":2}"#), 3, "c3", false);
    device.replica.handle_http(200, format!(r#"{{"data":{answer}}}"#).as_bytes(), 0).unwrap();
    device.edit(patch("x", r#"{"a":5}"#));
    let post = device.replica.http_request().expect("a request");
    assert!(post.contains(r#""previous":{"a":1}"#), "{post}");
}

#[test]
fn reviewers_are_told_the_base_of_every_field() {
    let mut device = Device::synced_under(r#"{"strategy":"manual"}"#, &put("x", 3, r#"{"a":1,"b":2}"#));
    device.edit(patch("x", r#"{"a":5,"c":6}"#));
    assert_eq!(sent_intents(&mut device), r#""fields":{"a":5,"c":6},"previous":{"a":1}}"#);
}

#[test]
fn edits_that_are_too_large_are_refused_with_their_intents() {
    use driftline_client::{EditError, OpId, Replica};
    let mut replica = Replica::default();
    let big = elements(&format!(r#"["{}"]"#, "x".repeat(1 << 20))).unwrap();
    let refused = replica.edit(touch("x").add("s", &big), OpId::new("o").unwrap(), 0);
    assert!(matches!(refused, Err(EditError::TooLarge { .. })), "{refused:?}");
    assert!(elements("[1,").is_err() && elements(r#"["\u0000"]"#).is_err() && fields("[]").is_err());
}
