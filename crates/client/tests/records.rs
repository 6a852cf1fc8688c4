//! The records: bases, acks, the version gate, deltas and pages.

mod common;

use common::{Device, create, delete, page, patch, put, result, row};
use driftline_client::{Edit, Event, ItemCode, Replica, Seq, fields};
use driftline_model::Hlc;

#[test]
fn an_edit_shows_at_once_and_takes_the_base_that_its_author_saw() {
    let mut device = Device::synced(&put("x", 3, r#"{"a":1,"b":1}"#));
    device.edit(patch("x", r#"{"a":2}"#));
    // Another device's change comes in before the edit is answered, and another edit after that.
    device.one();
    device.delta(10, 11, &row("x", 11, "patch", r#"{"b":5}"#));
    device.edit(patch("x", r#"{"a":3}"#));
    device.edit(create("new", r#"{"c":1}"#));
    let bases: Vec<u64> = device.replica.queue().map(|item| item.base_version.number()).collect();
    assert_eq!(bases, [3, 3, 0], "the delta waits for the answer to what was sent before it");
    assert_eq!(device.shown("x").as_deref(), Some(r#"{"a":3,"b":1}"#));

    device.ack(1, 12, &result(0, "applied", 12, ""));
    assert_eq!(device.shown("x").as_deref(), Some(r#"{"a":3,"b":5}"#));
    device.edit(patch("x", r#"{"a":4}"#));
    let last = device.replica.queue().last().map(|item| item.base_version.number());
    assert_eq!(last, Some(11), "the delta is seen, the bare ack moves no base");
    assert_eq!(device.replica.view("note", "x").map(|view| view.pending), Some(2));
}

#[test]
fn clocks_rise_above_everything_that_was_seen() {
    let mut device = Device::new();
    device.connect("00000001", 0);
    device.sent();
    device.frame(&page("", 0, "c0", false).replace("000000000000-0000", "000000ffffff-0007"));
    device.edit(create("x", "{}"));
    device.now_ms = 0x0100_0000;
    device.edit(create("y", "{}"));
    device.now_ms = 5;
    device.edit(create("z", "{}"));
    let clocks: Vec<_> = device.replica.queue().map(|item| item.hlc.unwrap()).collect();
    assert_eq!(clocks, [Hlc::new(0x00ff_ffff, 8), Hlc::new(0x0100_0000, 0), Hlc::new(0x0100_0000, 1)]);
}

#[test]
fn the_version_gate_and_the_kinds_of_change() {
    let table = [
        // (change, shown afterwards, version afterwards)
        (put("x", 4, r#"{"b":1}"#), Some(r#"{"b":1}"#), 4),
        (row("x", 4, "patch", r#"{"b":1}"#), Some(r#"{"a":1,"b":1}"#), 4),
        (row("x", 4, "delete", "{}"), None, 4),
        (put("x", 3, r#"{"b":1}"#), Some(r#"{"a":1}"#), 3),
        (row("x", 2, "delete", "{}"), Some(r#"{"a":1}"#), 3),
    ];
    for (change, shown, version) in table {
        let mut device = Device::synced(&put("x", 3, r#"{"a":1}"#));
        device.delta(10, 11, &change);
        assert_eq!((device.shown("x").as_deref(), device.version("x")), (shown, version), "{change}");
    }
}

#[test]
fn a_bare_ack_stays_on_top_until_a_page_or_a_delta_covers_it() {
    let acked = || {
        let mut device = Device::synced(&put("x", 3, r#"{"a":1,"b":1}"#));
        device.edit(patch("x", r#"{"a":2}"#));
        device.one();
        device.ack(1, 11, &result(0, "applied", 11, ""));
        assert_eq!((device.shown("x").as_deref(), device.version("x")), (Some(r#"{"a":2,"b":1}"#), 3));
        assert_eq!((device.replica.seq(), device.replica.cursor()), (Seq::new(10), Some("c10")));
        assert!(device.replica.is_settled(), "only own writes lie between");
        device
    };
    // (what comes, shown, version of the body)
    type Coming = fn(&mut Device);
    let table: [(Coming, &str, u64); 5] = [
        (|device| device.delta(11, 12, &put("y", 12, "{}")), r#"{"a":2,"b":1}"#, 11),
        (|device| device.delta(11, 12, &row("x", 12, "patch", r#"{"b":7}"#)), r#"{"a":2,"b":7}"#, 12),
        (|device| device.delta(11, 12, &row("x", 12, "patch", r#"{"a":7}"#)), r#"{"a":7,"b":1}"#, 12),
        (|device| pull(device, &row("x", 11, "patch", r#"{"a":2}"#), 11), r#"{"a":2,"b":1}"#, 11),
        (|device| pull(device, &row("x", 14, "patch", r#"{"b":8}"#), 14), r#"{"a":2,"b":8}"#, 14),
    ];
    for (at, (coming, shown, version)) in table.into_iter().enumerate() {
        let mut device = acked();
        coming(&mut device);
        assert_eq!((device.shown("x").as_deref(), device.version("x")), (Some(shown), version), "case {at}");
        assert!(device.replica.is_settled(), "case {at}");
    }
}

fn pull(device: &mut Device, rows: &str, seq: u64) {
    device.replica.request_pull();
    device.one();
    device.page(rows, seq, "later");
}

#[test]
fn a_page_that_is_not_the_last_moves_no_place() {
    let mut device = Device::synced(&put("x", 3, r#"{"a":1}"#));
    device.edit(patch("x", r#"{"a":2}"#));
    device.one();
    device.ack(1, 11, &result(0, "applied", 11, ""));
    device.replica.request_pull();
    device.one();
    device.page_with_more(&put("y", 5, "{}"), 12, "half");
    assert_eq!((device.version("x"), device.replica.seq()), (3, Seq::new(10)));
    device.one();
    device.page(&row("x", 11, "patch", r#"{"a":2}"#), 12, "c12");
    assert_eq!((device.version("x"), device.replica.seq()), (11, Seq::new(12)));
}

#[test]
fn the_record_of_a_result_replaces_the_body() {
    let cases = [
        (r#"{"version":12,"deleted":false,"fields":{"a":9}}"#, Some(r#"{"a":9}"#), 12),
        (r#"{"version":12,"deleted":true,"fields":{}}"#, None, 12),
        // A page had brought something newer before.
        (r#"{"version":2,"deleted":false,"fields":{"a":0}}"#, Some(r#"{"a":1}"#), 3),
    ];
    for (record, shown, version) in cases {
        let mut device = Device::synced(&put("x", 3, r#"{"a":1}"#));
        device.edit(patch("x", r#"{"a":2}"#));
        device.one();
        device.ack(1, 12, &result(0, "superseded", version, &format!(r#","record":{record}"#)));
        assert_eq!((device.shown("x").as_deref(), device.version("x")), (shown, version), "{record}");
        assert_eq!(device.replica.queue_len(), 0);
    }
}

#[test]
fn codes_do_what_their_class_says() {
    for code in ItemCode::ALL {
        use driftline_protocol::ItemClass::{Done, Resync, Retry, Terminal};
        let mut device = Device::synced(&put("x", 3, r#"{"a":1}"#));
        let n = device.edit(patch("x", r#"{"a":2}"#));
        device.one();
        device.ack(1, 11, &result(0, code.as_str(), 11, ""));
        let (queue, dead) = (device.replica.queue_len(), device.replica.dead_letters().len());
        let wanted = match code.class() {
            Done => (0, 0),
            Terminal => (0, 1),
            Retry | Resync => (1, 0),
        };
        assert_eq!((queue, dead), wanted, "{code}");
        let shows_edit = device.shown("x").as_deref() == Some(r#"{"a":2}"#);
        let keeps = matches!(code.class(), Retry | Resync)
            || matches!(code, ItemCode::Applied | ItemCode::Merged | ItemCode::Noop);
        assert_eq!(shows_edit, keeps, "{code}");
        let letters = device.events().iter().filter(|event| matches!(event, Event::DeadLetter(_))).count();
        assert_eq!(letters, dead, "{code}");
        let decided = if wanted.0 == 0 { n } else { 0 };
        assert_eq!(device.replica.acked_n(), decided, "{code}");
    }
}

#[test]
fn a_code_of_the_future_is_sent_again_later() {
    let mut device = Device::synced("");
    device.edit(create("x", "{}"));
    device.edit(patch("x", r#"{"a":1}"#));
    device.edit(create("y", "{}"));
    let first = device.one();
    device.ack(
        1,
        12,
        &format!(
            r#"{{"index":0,"code":"ask_mother","retry_after_ms":70}},{},{}"#,
            result(1, "applied", 11, ""),
            result(2, "applied", 12, "")
        ),
    );
    device.edit(patch("x", r#"{"a":2}"#));
    device.edit(patch("y", r#"{"a":2}"#));
    let other = device.one();
    assert!(!other.contains(r#""id":"x""#), "a record's edits keep their order: {other}");
    assert_eq!(device.replica.poll_timeout(), Some(device.now_ms + 70));
    device.now_ms += 70;
    device.replica.handle_timeout(device.now_ms);
    let again = device.one();
    let item = |text: &str| text[text.find(r#"{"kind""#).unwrap()..=text.find('}').unwrap()].to_owned();
    assert_eq!(item(&again), item(&first));
}

#[test]
fn client_ahead_pulls_and_takes_the_pulled_base() {
    let mut device = Device::synced(&put("x", 3, r#"{"a":1}"#));
    device.edit(patch("x", r#"{"a":2}"#));
    device.one();
    device.ack(1, 14, &result(0, "client_ahead", 14, ""));
    assert!(device.one().contains("request_server_data"));
    device.page(&row("x", 14, "patch", r#"{"b":1}"#), 14, "c14");
    let again = device.one();
    assert!(again.contains(r#""base_version":14"#) && again.contains(r#""op_id":"op1""#), "{again}");

    // A server that knows none of the versions gets the edit without a base in the end.
    for batch in 2..4 {
        device.ack(batch, 14, &result(0, "client_ahead", 14, ""));
        device.one();
        device.page("", 14, "c14");
        let again = device.one();
        assert_eq!(again.contains(r#""base_version":0"#), batch == 3, "{again}");
    }
}

#[test]
fn an_epoch_that_an_item_tells_of_starts_the_session_again() {
    let mut device = Device::synced(&put("x", 3, r#"{"a":1}"#));
    device.edit(patch("x", r#"{"a":2}"#));
    device.edit(patch("x", r#"{"a":3}"#));
    device.one();
    device.ack(1, 10, r#"{"index":0,"code":"epoch_changed"},{"index":1,"code":"epoch_changed"}"#);
    device.nothing_sent();
    device.now_ms += 1_000;
    device.replica.handle_timeout(device.now_ms);
    let start = device.one();
    assert!(start.contains(r#""epoch":"00000001""#), "{start}");
    device.started("00000002", 2);
    let pull = device.one();
    assert!(pull.contains("request_server_data") && !pull.contains("cursor"), "{pull}");
    // The server says it too, which changes nothing.
    device.frame(
        r#"{"type":"resync_required","reason":"epoch_changed","keep_queue":true,"first":"snapshot","epoch":"00000002"}"#,
    );
    device.nothing_sent();
    device.page(&put("x", 1, r#"{"a":1}"#), 2, "d2");
    assert_eq!(device.one().matches(r#""base_version":0"#).count(), 2);
}

#[test]
fn a_record_made_again_is_pulled_even_if_no_page_ever_showed_it() {
    let mut device = Device::synced("");
    device.edit(create("x", r#"{"a":1}"#));
    device.edit(delete("x"));
    device.edit(create("x", r#"{"b":2}"#));
    device.one();
    let results: Vec<_> = (0..3).map(|at| result(at, "applied", 11 + at, "")).collect();
    device.ack(1, 13, &results.join(","));
    assert!(device.one().contains("request_server_data"));
    // The delete kept the fields on the server.
    device.page(&put("x", 13, r#"{"a":1,"b":2}"#), 13, "c13");
    assert_eq!(device.shown("x").as_deref(), Some(r#"{"a":1,"b":2}"#));
}

#[test]
fn deltas_apply_only_where_the_device_stands() {
    // (prev_seq, seq, applied, then pulls)
    let table = [
        (10, 12, true, false),
        (9, 12, false, true),
        (11, 12, false, true),
        // Written by another node of the server: where the place before was is not told.
        (12, 12, false, true),
        (8, 10, false, false),
        (3, 9, false, false),
    ];
    for (prev_seq, seq, applied, pulls) in table {
        let mut device = Device::synced("");
        device.delta(prev_seq, seq, &put("x", seq, "{}"));
        assert_eq!(device.shown("x").is_some(), applied, "{prev_seq}-{seq}");
        assert_eq!(device.sent().len(), usize::from(pulls), "{prev_seq}-{seq}");
        let stands = if applied { ("c12", 12) } else { ("c10", 10) };
        assert_eq!((device.replica.cursor().unwrap(), device.replica.seq().number()), stands);
    }
}

#[test]
fn only_own_writes_bridge_the_gap_before_a_delta() {
    for (prev_seq, applied) in [(10, true), (11, true), (12, true), (13, false), (14, false)] {
        let mut device = Device::synced("");
        device.edit(create("x", "{}"));
        device.edit(create("y", "{}"));
        device.one();
        let results = format!("{},{}", result(0, "applied", 11, ""), result(1, "applied", 12, ""));
        device.ack(1, 12, &results);
        device.delta(prev_seq, 14, &put("z", 14, "{}"));
        assert_eq!(device.shown("z").is_some(), applied, "{prev_seq}");
        assert_eq!(device.sent().len(), usize::from(!applied), "{prev_seq}");
    }
    // The version of a change that did nothing is another's.
    let mut device = Device::synced("");
    device.edit(create("x", "{}"));
    device.one();
    device.ack(1, 11, &result(0, "noop", 11, ""));
    device.delta(11, 12, &put("z", 12, "{}"));
    assert_eq!(device.shown("z"), None);
}

#[test]
fn answers_that_are_long_past_bring_nothing_back() {
    // The edit had been applied, another device deleted the record, and the tombstone is gone.
    let results = [
        result(0, "applied", 9, r#","duplicate":true"#),
        result(
            0,
            "merged",
            9,
            r#","duplicate":true,"record":{"version":9,"deleted":false,"fields":{"a":1}}"#,
        ),
    ];
    for result in &results {
        let mut device = Device::synced("");
        device.edit(create("x", r#"{"a":1}"#));
        device.one();
        device.ack(1, 12, result);
        assert_eq!((device.shown("x"), device.replica.body("note", "x")), (None, None), "{result}");

        // The same while the first snapshot is under way.
        let mut device = Device::new();
        device.edit(create("x", r#"{"a":1}"#));
        device.connect("00000001", 10);
        device.sent();
        device.ack(1, 10, result);
        device.page("", 10, "c10");
        assert_eq!((device.shown("x"), device.replica.body("note", "x")), (None, None), "{result}");
    }
}

#[test]
fn an_answer_that_is_newer_than_the_snapshot_stays() {
    let mut device = Device::new();
    device.edit(create("x", r#"{"a":1}"#));
    device.connect("00000001", 10);
    device.sent();
    let record = r#","record":{"version":12,"deleted":false,"fields":{"a":1,"b":1}}"#;
    device.ack(1, 12, &result(0, "merged", 12, record));
    device.page("", 10, "c10");
    assert_eq!(device.shown("x").as_deref(), Some(r#"{"a":1,"b":1}"#));
}

#[test]
fn deltas_between_pages_are_left_to_the_pull() {
    let mut device = Device::synced("");
    device.replica.request_pull();
    device.one();
    device.delta(10, 11, &put("x", 11, "{}"));
    assert_eq!(device.shown("x"), None);
    device.page_with_more("", 11, "half");
    device.one();
    device.delta(11, 13, &put("y", 13, "{}"));
    // The page was read before the second delta: one more pull.
    device.page(&put("x", 11, "{}"), 12, "c12");
    assert!(device.one().contains("request_server_data"));
    device.page(&put("y", 13, "{}"), 13, "c13");
    device.nothing_sent();
    assert!(device.replica.is_settled());
}

#[test]
fn a_page_that_nobody_asked_for_or_of_an_older_question_is_ignored() {
    let mut device = Device::synced("");
    device.page(&put("x", 12, "{}"), 12, "c12");
    assert_eq!(device.replica.seq(), Seq::new(10));
    device.replica.request_pull();
    device.one();
    let older =
        page(&put("x", 12, "{}"), 12, "c12", false).replace("\"changes\"", "\"reply_to\":\"p1\",\"changes\"");
    device.frame(&older);
    assert_eq!(device.replica.seq(), Seq::new(10));
    device.frame(&older.replace("\"p1\"", "\"p2\""));
    assert_eq!(device.replica.seq(), Seq::new(12));
}

#[test]
fn a_server_that_is_ahead_is_caught_up_with_on_demand() {
    let mut device = Device::synced("");
    device.edit(create("x", "{}"));
    device.one();
    device.ack(1, 13, &result(0, "applied", 13, ""));
    assert!(!device.replica.is_settled(), "11 and 12 are another's");
    device.nothing_sent();
    device.replica.catch_up();
    assert!(device.one().contains("request_server_data"));
    device.page(&put("x", 13, "{}"), 13, "c13");
    assert!(device.replica.is_settled());
    device.replica.catch_up();
    device.nothing_sent();
}

#[test]
fn what_only_the_server_can_know_is_pulled() {
    // A restored record has its old fields again, which the device dropped with the delete.
    let mut device = Device::synced(&row("x", 3, "delete", "{}"));
    device.edit(Edit::restore(common::note(), common::record("x"), fields(r#"{"b":1}"#).unwrap()));
    assert_eq!(device.shown("x").as_deref(), Some(r#"{"b":1}"#));
    device.one();
    device.ack(1, 11, &result(0, "applied", 11, ""));
    assert!(device.one().contains("request_server_data"));
    device.delta(11, 12, &put("y", 12, "{}"));
    device.page(&format!("{},{}", put("x", 11, r#"{"a":1,"b":1}"#), put("y", 12, "{}")), 12, "c12");
    assert_eq!(device.shown("x").as_deref(), Some(r#"{"a":1,"b":1}"#));
    assert!(device.replica.is_settled());
}

#[test]
fn deleted_records_and_patches_on_them() {
    let mut device = Device::synced(&put("x", 3, r#"{"a":1}"#));
    device.edit(delete("x"));
    assert_eq!(device.shown("x"), None);
    device.edit(patch("x", r#"{"a":2}"#));
    assert_eq!(device.shown("x"), None, "a patch never makes a record");
    device.edit(create("x", r#"{"a":3}"#));
    assert_eq!(device.shown("x").as_deref(), Some(r#"{"a":3}"#));
}

#[test]
fn limits_of_edits() {
    use driftline_client::{EditError, OpId};
    let mut replica = Replica::default();
    let big = format!(r#"{{"a":"{}"}}"#, "x".repeat(1 << 20));
    let op = OpId::new("o").unwrap();
    let refused = replica.edit(create("x", &big), op.clone(), 0);
    assert!(matches!(refused, Err(EditError::TooLarge { .. })), "{refused:?}");
    let group = (0..101).map(|n| create(&n.to_string(), "{}")).collect();
    let refused = replica.edit_group(group, || op.clone(), 0);
    assert_eq!(refused, Err(EditError::GroupTooLarge { items: 101, max: 100 }));
    assert_eq!(replica.queue_len(), 0);
    assert!(fields("[]").is_err() && fields(r#"{"a":1,"a":2}"#).is_err());
}
