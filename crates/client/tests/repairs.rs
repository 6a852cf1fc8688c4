//! Rows that leave the reader's scopes, sums that differ, and conflicts that wait for a reviewer.

mod common;

use common::{Device, create, delete, note, page_with_sums, patch, put, record, result, row};
use driftline_client::{ConflictId, Event, Object, Resolution, ScopeName, Seq, WinnerName, fields};
use driftline_protocol::row_sum;

fn evict(id: &str, version: u64) -> String {
    row(id, version, "evict", "{}")
}

#[test]
fn a_row_that_left_the_scopes_is_forgotten_and_a_grant_brings_any_version() {
    let mut device = Device::synced(&format!("{},{}", put("x", 3, r#"{"a":1}"#), put("y", 4, "{}")));
    device.edit(patch("x", r#"{"a":2}"#));
    device.delta(10, 11, &evict("x", 11));
    assert!(device.events().contains(&Event::Evicted { kind: note(), id: record("x") }));
    assert_eq!((device.shown("x"), device.replica.body("note", "x")), (None, None));
    assert_eq!(device.replica.queue_len(), 1, "edits stay until the server has decided them");

    device.one();
    device.ack(1, 11, r#"{"index":0,"code":"forbidden"}"#);
    assert_eq!(device.replica.dead_letters().len(), 1);
    device.delta(11, 12, &put("x", 3, r#"{"a":1}"#));
    assert_eq!((device.shown("x").as_deref(), device.version("x")), (Some(r#"{"a":1}"#), 3));
    // What the body is newer than is no news.
    device.delta(12, 13, &evict("x", 2));
    assert!(device.shown("x").is_some());
}

#[test]
fn own_changes_of_a_row_that_left_go_with_it() {
    let mut device = Device::synced(&put("x", 3, r#"{"a":1}"#));
    device.edit(patch("x", r#"{"a":2}"#));
    device.one();
    device.ack(1, 11, &result(0, "applied", 11, ""));
    device.delta(11, 12, &evict("x", 12));
    assert_eq!((device.shown("x"), device.replica.views().count()), (None, 0));
    assert!(device.replica.is_settled());
}

/// A checksum of rows of the kind `note` in the scope `tenant`.
fn sum(rows: &[(&str, u64)]) -> (usize, u64) {
    let sums = rows.iter().map(|(id, version)| row_sum(&note(), &record(id), Seq::new(*version)));
    (rows.len(), sums.fold(0, u64::wrapping_add))
}

fn checksum(rows: &[(&str, u64)]) -> String {
    let (count, sum) = sum(rows);
    format!(r#"{{"scope":"tenant","kind":"note","count":{count},"sum":"{sum:016x}"}}"#)
}

fn pull_with_sums(device: &mut Device, rows: &[(&str, u64)]) {
    device.replica.request_pull();
    let asked = device.one();
    assert!(asked.contains("request_server_data"), "{asked}");
    device.frame(&page_with_sums("", 10, "c10", &checksum(rows)));
}

fn id_of(message: &str) -> String {
    let from = message.find(r#""id":""#).expect("an id") + 6;
    message[from..].split('"').next().expect("an id").to_owned()
}

/// A part of a range: after, until, and the rows with their versions.
type Part<'a> = (Option<&'a str>, Option<&'a str>, &'a [(&'a str, u64)]);

/// The answer to a question for sums: one part per range of ids.
fn parts(device: &mut Device, asked: &str, parts: &[Part<'_>]) {
    assert!(asked.contains("request_checksums"), "{asked}");
    let bound = |name: &str, id: Option<&str>| id.map_or(String::new(), |id| format!(r#""{name}":"{id}","#));
    let part = |(after, until, rows): &Part<'_>| {
        let (count, sum) = sum(rows);
        let (after, until) = (bound("after", *after), bound("until", *until));
        format!(r#"{{{after}{until}"count":{count},"sum":"{sum:016x}"}}"#)
    };
    let parts: Vec<_> = parts.iter().map(part).collect();
    device.frame(&format!(
        r#"{{"type":"checksums","reply_to":"{}","seq":10,"range":{{"kind":"note","scope":"tenant"}},"parts":[{}]}}"#,
        id_of(asked),
        parts.join(",")
    ));
}

/// The answer to a question for the rows of a range.
fn rows_of(device: &mut Device, asked: &str, seq: u64, rows: &str, has_more: bool) {
    let range = &asked[asked.find("\"range\":").expect("a range")..asked.len() - 1];
    device.frame(&format!(
        r#"{{"type":"server_data","reply_to":"{}","changes":[{rows}],"cursor":"other","seq":{seq},
            "hlc":"000000000000-0000","has_more":{has_more},{range}}}"#,
        id_of(asked)
    ));
}

#[test]
fn equal_sums_are_left_alone() {
    let rows = [put("a", 3, "{}"), put("b", 4, "{}"), row("c", 5, "delete", "{}")].join(",");
    let mut device = Device::synced(&rows);
    pull_with_sums(&mut device, &[("a", 3), ("b", 4)]);
    device.nothing_sent();
    assert!(device.replica.is_settled());
    // An own write that deltas passed by has no scope here; the sum of the kind is equal all the same.
    device.edit(create("d", "{}"));
    device.edit(delete("a"));
    device.one();
    device.ack(1, 12, &format!("{},{}", result(0, "applied", 11, ""), result(1, "applied", 12, "")));
    device.delta(12, 13, &put("e", 13, "{}"));
    assert_eq!(device.replica.body("note", "d").map(|body| body.scope.clone()), Some(None));
    pull_with_sums(&mut device, &[("b", 4), ("d", 11), ("e", 13)]);
    device.nothing_sent();
    assert_eq!(device.replica.repairs(), 0);
}

#[test]
fn a_difference_is_found_by_parts_and_replaced() {
    let ids: Vec<String> = (0..200).map(|number| format!("r{number:03}")).collect();
    let rows: Vec<_> = ids.iter().map(|id| put(id, 3, r#"{"a":1}"#)).collect();
    let mut device = Device::synced(&rows.join(","));
    // The server never heard of r010, has another r020 and one that is missing here.
    let theirs: Vec<(&str, u64)> = ids
        .iter()
        .map(|id| (id.as_str(), if id == "r020" { 5 } else { 3 }))
        .filter(|(id, _)| *id != "r010")
        .chain([("s", 7)])
        .collect();
    pull_with_sums(&mut device, &theirs);
    assert!(!device.replica.is_settled(), "a repair is under way");
    let asked = device.one();
    assert!(asked.contains(r#""kind":"note","scope":"tenant","parts":16"#), "{asked}");
    parts(
        &mut device,
        &asked,
        &[
            (None, Some("r099"), &theirs[..99]),
            (Some("r099"), Some("r149"), &theirs[99..149]),
            (Some("r149"), None, &theirs[149..]),
        ],
    );
    // The first part is too large to be sent whole.
    let asked = device.one();
    assert!(asked.contains(r#""until":"r099","parts":16"#), "{asked}");
    parts(
        &mut device,
        &asked,
        &[(None, Some("r049"), &theirs[..49]), (Some("r049"), Some("r099"), &theirs[49..99])],
    );
    let asked = device.one();
    assert!(asked.contains("request_server_data") && asked.contains(r#""until":"r049""#), "{asked}");
    let row_of = |(id, version): &(&str, u64)| put(id, *version, &format!(r#"{{"a":{version}}}"#));
    let first: Vec<_> = theirs[..30].iter().map(row_of).collect();
    rows_of(&mut device, &asked, 10, &first.join(","), true);
    let asked = device.one();
    assert!(asked.contains(r#""after":"r030","until":"r049""#), "the rest of the page: {asked}");
    let rest: Vec<_> = theirs[30..49].iter().map(row_of).collect();
    rows_of(&mut device, &asked, 10, &rest.join(","), false);
    let asked = device.one();
    assert!(asked.contains(r#""after":"r149""#), "{asked}");
    let last: Vec<_> = theirs[149..].iter().map(row_of).collect();
    rows_of(&mut device, &asked, 10, &last.join(","), false);

    assert_eq!(device.shown("r010"), None);
    assert_eq!((device.shown("r020").as_deref(), device.version("r020")), (Some(r#"{"a":5}"#), 5));
    assert_eq!(device.shown("s").as_deref(), Some(r#"{"a":7}"#));
    assert_eq!(device.replica.repairs(), 3);
    assert_eq!((device.replica.cursor(), device.replica.seq()), (Some("c10"), Seq::new(10)));
    let repaired = |event: &Event| match event {
        Event::Repaired { scope, rows, .. } if *scope == ScopeName::tenant() => *rows,
        _ => 0,
    };
    assert_eq!(device.events().iter().map(repaired).sum::<u64>(), 3);

    // Whether it was enough is asked at once.
    assert!(device.one().contains("request_server_data"));
    device.frame(&page_with_sums("", 10, "c10", &checksum(&theirs)));
    device.nothing_sent();
    assert!(device.replica.is_settled());
}

#[test]
fn what_is_newer_than_the_answer_stays() {
    let mut device = Device::synced(&format!("{},{}", put("a", 3, "{}"), put("b", 4, "{}")));
    pull_with_sums(&mut device, &[("z", 9)]);
    let asked = device.one();
    parts(&mut device, &asked, &[(None, None, &[("z", 9)])]);
    let asked = device.one();
    device.delta(10, 12, &row("a", 12, "patch", r#"{"a":12}"#));
    device.edit(patch("b", r#"{"b":1}"#));
    device.sent();
    device.ack(1, 13, &result(0, "applied", 13, ""));
    rows_of(&mut device, &asked, 11, &put("z", 9, "{}"), false);
    assert_eq!(device.shown("a").as_deref(), Some(r#"{"a":12}"#));
    assert_eq!(device.shown("b").as_deref(), Some(r#"{"b":1}"#));
    assert!(device.shown("z").is_some());
}

#[test]
fn a_server_that_keeps_disagreeing_is_pulled_anew_once_and_then_left_alone() {
    let mut device = Device::synced(&put("a", 3, "{}"));
    pull_with_sums(&mut device, &[("b", 4)]);
    for _ in 0..3 {
        let asked = device.one();
        parts(&mut device, &asked, &[(None, None, &[("b", 4)])]);
        let asked = device.one();
        rows_of(&mut device, &asked, 10, &put("a", 3, "{}"), false);
        assert!(device.one().contains("request_server_data"));
        device.frame(&page_with_sums("", 10, "c10", &checksum(&[("b", 4)])));
    }
    let snapshot = device.one();
    assert!(snapshot.contains("request_server_data") && !snapshot.contains("cursor"), "{snapshot}");
    device.frame(&page_with_sums(&put("a", 2, r#"{"a":2}"#), 10, "c10", &checksum(&[("b", 4)])));
    assert_eq!(device.shown("a").as_deref(), Some(r#"{"a":2}"#), "even an older version is believed");
    device.nothing_sent();
    pull_with_sums(&mut device, &[("b", 4)]);
    device.nothing_sent();
    assert!(device.replica.is_settled());
    // Once they have agreed, a difference is looked into again.
    pull_with_sums(&mut device, &[("a", 2)]);
    pull_with_sums(&mut device, &[("b", 4)]);
    assert!(device.one().contains("request_checksums"));
}

#[test]
fn nothing_is_compared_while_own_changes_are_under_way() {
    let mut device = Device::synced(&put("a", 3, "{}"));
    device.edit(patch("a", r#"{"a":1}"#));
    device.one();
    pull_with_sums(&mut device, &[("b", 4)]);
    device.nothing_sent();
    device.ack(1, 11, &result(0, "applied", 11, ""));
    pull_with_sums(&mut device, &[("b", 4)]);
    device.nothing_sent();
}

#[test]
fn a_repair_ends_with_its_connection_and_with_an_error() {
    for cut in [true, false] {
        let mut device = Device::synced(&put("a", 3, "{}"));
        pull_with_sums(&mut device, &[("b", 4)]);
        let asked = device.one();
        if cut {
            device.replica.handle_disconnected();
            device.connect("00000001", 10);
        } else {
            let id = id_of(&asked);
            device.frame(&format!(
                r#"{{"type":"error","code":"RATE_LIMITED","message":"","correlation_id":"","reply_to":"{id}","retryable":true}}"#
            ));
        }
        device.nothing_sent();
        assert!(device.replica.is_settled());
        parts(&mut device, &asked, &[(None, None, &[])]);
        device.nothing_sent();
    }
}

const CONFLICT: &str = r#""conflict_id":"c-1","kind":"note","id":"x","status":"open","reason":"manual","device_id":"d",
    "user_id":"u","op":"patch","n":1,"fields":["a"],"base_version":3,"base":{"a":1},"client":{"a":2},"server":{"a":9},
    "version":12,"policy_version":1,"opened_at":"2026-01-01T00:00:00.000Z""#;

#[test]
fn an_edit_in_review_is_decided_and_shows_no_more() {
    let mut device = Device::synced_under(r#"{"strategy":"manual"}"#, &put("x", 3, r#"{"a":1}"#));
    device.edit(patch("x", r#"{"a":2}"#));
    device.one();
    let pending = r#","conflict_id":"c-1","winners":{"a":"held"},"record":{"version":12,"deleted":false,"fields":{"a":9}}"#;
    device.ack(1, 12, &result(0, "conflict_pending", 12, pending));
    device.frame(&format!(r#"{{"type":"conflict",{CONFLICT}}}"#));
    assert_eq!(device.shown("x").as_deref(), Some(r#"{"a":9}"#));
    assert_eq!(device.replica.queue_len(), 0);
    let events = device.events();
    let told = events.iter().find_map(|event| match event {
        Event::Acknowledged(told) => Some((told.conflict_id.as_deref(), told.winners.get("a").copied())),
        _ => None,
    });
    assert_eq!(told, Some((Some("c-1"), Some(WinnerName::Held))));
    assert!(
        events.iter().any(|event| matches!(event, Event::ConflictOpened(doc) if doc.conflict_id == "c-1"))
    );
}

#[test]
fn a_field_that_is_held_shows_the_servers_value_beside_those_that_stand() {
    let mut device = Device::synced(&put("x", 3, r#"{"a":1,"b":1}"#));
    device.edit(patch("x", r#"{"a":2,"b":2}"#));
    device.one();
    device.ack(1, 11, &result(0, "merged", 11, r#","conflict_id":"c-1","winners":{"a":"held"}"#));
    assert_eq!(device.shown("x").as_deref(), Some(r#"{"a":1,"b":2}"#));
    assert!(device.one().contains("request_server_data"), "the server knows the rest");
}

#[test]
fn a_reviewer_decides_and_hears_what_became_of_it() {
    let mut device = Device::synced(&put("x", 9, r#"{"a":9}"#));
    let id = || ConflictId::new("c-1").unwrap();
    device.replica.resolve(id(), Resolution::Merged, fields(r#"{"a":5}"#).unwrap(), Some(Seq::new(9)));
    let sent = device.one();
    let wanted = r#""conflict_id":"c-1","resolution":"merged","fields":{"a":5},"version":9}"#;
    assert!(sent.starts_with(r#"{"type":"resolve_conflict","#) && sent.ends_with(wanted), "{sent}");

    // The answer is lost: the decision is sent again.
    device.replica.handle_disconnected();
    device.connect("00000001", 10);
    let sent = device.one();
    assert!(sent.ends_with(wanted), "{sent}");
    let resolved = CONFLICT.replace("open\"", "resolved\"");
    device.frame(&format!(
        r#"{{"type":"conflict_resolved","reply_to":"{}",{resolved},"resolution":"merged",
            "record":{{"version":11,"deleted":false,"fields":{{"a":5}}}}}}"#,
        id_of(&sent)
    ));
    assert_eq!((device.shown("x").as_deref(), device.version("x")), (Some(r#"{"a":5}"#), 11));
    assert!(device.events().iter().any(|event| matches!(event, Event::ConflictResolved(_))));
    device.nothing_sent();
}

#[test]
fn a_lost_decision_comes_with_the_record() {
    let mut device = Device::synced(&put("x", 9, "{}"));
    device.replica.resolve(ConflictId::new("c-1").unwrap(), Resolution::Client, Object::empty(), None);
    let refused = |code: &str, reply_to: &str, retryable: bool| {
        format!(
            r#"{{"type":"error","code":"{code}","message":"","correlation_id":"","reply_to":"{reply_to}",
                "retryable":{retryable},"details":{{"record":{{"version":12,"deleted":false,"fields":{{}}}}}}}}"#
        )
    };
    // What may be tried again is.
    let sent = device.one();
    device.frame(&refused("STORE_UNAVAILABLE", &id_of(&sent), true));
    device.nothing_sent();
    device.now_ms += 1_000;
    device.replica.handle_timeout(device.now_ms);
    let sent = device.one();
    device.frame(&refused("CONFLICT_STALE", &id_of(&sent), false));
    let told = device.events().into_iter().find_map(|event| match event {
        Event::ResolutionRefused { conflict_id, error } => Some((conflict_id, error)),
        _ => None,
    });
    let (conflict_id, error) = told.expect("a refusal");
    assert_eq!((conflict_id.as_str(), error.code.as_str()), ("c-1", "CONFLICT_STALE"));
    assert_eq!(error.details.and_then(|details| details.record).map(|record| record.version), Some(12));
    device.nothing_sent();
}
