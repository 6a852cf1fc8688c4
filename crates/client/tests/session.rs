//! The session: start, reconnect, resync, errors, and what is sent when.

mod common;

use common::{Device, SYNC_ID, create, patch, put, result};
use driftline_client::{Event, ItemCode};

#[test]
fn a_first_sync_pulls_pages_while_edits_go_out() {
    let mut device = Device::new();
    device.edit(create("mine", r#"{"a":1}"#));
    let start = device.connect("00000001", 7);
    assert_eq!(
        start,
        format!(
            r#"{{"type":"start_sync","id":"s","sync_id":"{SYNC_ID}","data_types":[],"total_items":1,"acked_n":0}}"#
        )
    );
    let sent = device.sent();
    assert_eq!(
        sent[0],
        format!(r#"{{"type":"request_server_data","id":"p1","sync_id":"{SYNC_ID}","data_types":[]}}"#)
    );
    assert_eq!(
        sent[1],
        format!(
            r#"{{"type":"sync_data","id":"b1","sync_id":"{SYNC_ID}","batch":[{{"kind":"note","id":"mine","op":"create","op_id":"op1","n":9,"base_version":0,"hlc":"0000000003e8-0000","fields":{{"a":1}}}}],"batch_seq":1,"acked_n":0}}"#
        )
    );
    assert_eq!(sent.len(), 2);

    device.page_with_more(&put("x", 3, r#"{"a":1}"#), 7, "half");
    assert_eq!((device.replica.seq().number(), device.replica.cursor()), (0, Some("half")));
    assert!(device.one().contains(r#""cursor":"half""#));
    device.ack(1, 8, &result(0, "applied", 8, ""));
    device.page(&put("mine", 8, r#"{"a":1}"#), 8, "c8");
    device.nothing_sent();
    assert!(device.replica.is_settled());
    assert_eq!((device.replica.seq().number(), device.replica.acked_n()), (8, 9));
    assert_eq!(device.replica.views().count(), 2);
}

#[test]
fn a_device_that_is_caught_up_pulls_nothing_and_says_where_it_stands() {
    let mut device = Device::synced("");
    device.replica.handle_disconnected();
    assert!(!device.replica.is_settled(), "who knows what happens meanwhile");
    let start = device.connect("00000001", 10);
    assert!(start.contains(r#""cursor":"c10","epoch":"00000001""#), "{start}");
    device.nothing_sent();
    assert!(device.replica.is_settled());

    device.replica.handle_disconnected();
    device.connect("00000001", 11);
    assert!(device.one().contains("request_server_data"));
}

#[test]
fn what_was_not_answered_is_sent_again_unchanged_after_a_reconnect() {
    let mut device = Device::synced(&put("x", 3, r#"{"a":1}"#));
    device.edit(patch("x", r#"{"a":2}"#));
    let first = device.one();
    device.replica.handle_disconnected();
    device.connect("00000001", 11);
    let sent = device.sent();
    let batch =
        |text: &str| text[text.find("\"batch\"").unwrap()..text.find("\"batch_seq\"").unwrap()].to_owned();
    assert_eq!(batch(&sent[1]), batch(&first), "the same op_id, n, base and clock");

    // The first send had been taken: the page brings it, the answer repeats the first result.
    device.page(&put("x", 11, r#"{"a":2}"#), 11, "c11");
    device.ack(2, 11, &result(0, "applied", 11, r#","duplicate":true"#));
    assert!(device.replica.is_settled());
    assert_eq!((device.shown("x").as_deref(), device.version("x")), (Some(r#"{"a":2}"#), 11));
}

#[test]
fn at_most_four_batches_wait_for_their_answer() {
    let mut device = Device::new();
    for n in 0..12 {
        device.edit(create(&format!("r{n}"), "{}"));
    }
    device.greet("00000001");
    device.sent();
    device.started_with("00000001", 0, 2);
    let batches = |sent: Vec<String>| sent.iter().filter(|text| text.contains("sync_data")).count();
    assert_eq!(batches(device.sent()), 4);
    let second = device.replica.queue().nth(1).and_then(|item| item.n);
    let both = format!("{},{}", result(0, "applied", 1, ""), result(1, "applied", 2, ""));
    device.ack(1, 2, &both);
    assert_eq!(batches(device.sent()), 1);
    assert_eq!(Some(device.replica.acked_n()), second);
}

#[test]
fn a_group_stays_in_one_batch() {
    let mut device = Device::new();
    device.edit(create("a", "{}"));
    device.group(vec![create("b", "{}"), create("c", "{}")]);
    device.edit(create("d", "{}"));
    device.greet("00000001");
    device.sent();
    device.started_with("00000001", 0, 2);
    let ids: Vec<Vec<char>> = device
        .sent()
        .iter()
        .filter(|text| text.contains("sync_data"))
        .map(|text| "abcd".chars().filter(|id| text.contains(&format!(r#""id":"{id}""#))).collect())
        .collect();
    assert_eq!(ids, [vec!['a'], vec!['b', 'c'], vec!['d']]);
}

#[test]
fn a_group_is_sent_again_whole_when_its_culprit_may_be() {
    let mut device = Device::synced("");
    device.group(vec![create("a", "{}"), create("b", "{}")]);
    device.sent();
    let busy = format!(
        r#"{},{{"index":1,"code":"busy","retry_after_ms":50}}"#,
        r#"{"index":0,"code":"dependency_failed"}"#
    );
    device.ack(1, 10, &busy);
    assert_eq!((device.replica.queue_len(), device.replica.dead_letters().len()), (2, 0));
    device.nothing_sent();
    device.now_ms += 50;
    device.replica.handle_timeout(device.now_ms);
    device.nothing_sent();
    device.now_ms += 1_000;
    device.replica.handle_timeout(device.now_ms);
    let again = device.one();
    assert!(again.contains(r#""op_id":"op1""#) && again.contains(r#""op_id":"op2""#), "{again}");

    let refused = r#"{"index":0,"code":"dependency_failed"},{"index":1,"code":"forbidden"}"#;
    device.ack(2, 10, refused);
    let codes: Vec<_> = device.replica.dead_letters().iter().map(|letter| letter.code).collect();
    assert_eq!(codes, [ItemCode::DependencyFailed, ItemCode::Forbidden]);
}

#[test]
fn an_expired_cursor_sends_the_queue_first_and_then_pulls_a_snapshot() {
    let mut device = Device::synced(&format!("{},{}", put("kept", 3, "{}"), put("purged", 4, r#"{"a":1}"#)));
    device.replica.handle_disconnected();
    device.edit(patch("kept", r#"{"a":2}"#));
    device.greet("00000001");
    device.sent();
    device.frame(
        r#"{"type":"resync_required","reason":"cursor_expired","keep_queue":true,"first":"queue","epoch":"00000001"}"#,
    );
    let start = device.one();
    assert!(start.contains("start_sync") && !start.contains("cursor"), "{start}");
    device.started("00000001", 90);
    let push = device.one();
    assert!(push.contains(r#""base_version":3"#), "{push}");
    device.ack(1, 91, &result(0, "applied", 91, ""));
    let pull = device.one();
    assert!(pull.contains("request_server_data") && !pull.contains("cursor"), "{pull}");

    device.page_with_more("", 91, "half");
    assert!(device.shown("purged").is_some(), "a snapshot is whole or says nothing of what is missing");
    device.sent();
    device.page(&put("kept", 91, r#"{"a":2}"#), 91, "c91");
    assert_eq!((device.shown("kept").as_deref(), device.shown("purged")), (Some(r#"{"a":2}"#), None));
    assert!(device.replica.is_settled());
}

#[test]
fn another_epoch_pulls_a_snapshot_first_and_the_queue_counts_as_base_0() {
    let rows = [put("same", 3, r#"{"a":1}"#), put("lost", 4, "{}"), put("edited", 5, r#"{"a":1}"#)].join(",");
    let mut device = Device::synced(&rows);
    device.replica.handle_disconnected();
    device.edit(patch("edited", r#"{"a":2}"#));
    device.greet("00000002");
    device.sent();
    device.frame(
        r#"{"type":"resync_required","reason":"epoch_changed","keep_queue":true,"first":"snapshot","epoch":"00000002"}"#,
    );
    let start = device.one();
    assert!(start.contains(r#""epoch":"00000002""#) && !start.contains("cursor"), "{start}");
    device.started("00000002", 2);
    assert!(device.one().contains("request_server_data"), "nothing is pushed before the snapshot");
    assert_eq!(device.shown("edited").as_deref(), Some(r#"{"a":2}"#), "the user sees no gap");

    // Lower versions than the old epoch's, and other values.
    let snapshot = format!("{},{}", put("same", 1, r#"{"a":9}"#), put("edited", 2, r#"{"a":7,"b":7}"#));
    device.page(&snapshot, 2, "c2");
    // What the server lost is given back, and shows.
    assert_eq!(
        (device.shown("same").as_deref(), device.shown("lost").as_deref()),
        (Some(r#"{"a":1}"#), Some("{}"))
    );
    assert_eq!(device.shown("edited").as_deref(), Some(r#"{"a":2,"b":7}"#));
    let push = device.one();
    assert_eq!(push.matches(r#""base_version":0"#).count(), 4, "{push}");
    let place = |text: &str| push.find(text).unwrap_or_else(|| panic!("{text} in {push}"));
    assert!(place(r#""id":"lost","op":"create""#) < place(r#""id":"same","op":"patch""#));
    assert!(place(r#""id":"same""#) < place(r#""op_id":"op1""#), "edits come after that");
    let merged = result(3, "merged", 6, r#","record":{"version":6,"deleted":false,"fields":{"a":2,"b":7}}"#);
    let given = [0, 1, 2].map(|at| result(at, "applied", at + 3, "")).join(",");
    device.ack(1, 6, &format!("{given},{merged}"));
    assert!(device.replica.is_settled());
    assert_eq!(
        (device.shown("same").as_deref(), device.shown("lost").as_deref()),
        (Some(r#"{"a":1}"#), Some("{}"))
    );
    assert!(device.events().iter().any(|event| matches!(event, Event::Resync(_))));
}

#[test]
fn an_epoch_that_nobody_announced_is_noticed() {
    let mut device = Device::synced(&put("x", 3, "{}"));
    device.replica.handle_disconnected();
    device.edit(patch("x", r#"{"a":2}"#));
    device.connect("00000002", 10);
    let pull = device.one();
    assert!(pull.contains("request_server_data") && !pull.contains("cursor"), "{pull}");
    device.page("", 10, "d10");
    assert_eq!(device.one().matches(r#""base_version":0"#).count(), 2);
    // A server that takes no record back refuses its patch too; nothing of the record is left then.
    device.ack(1, 10, r#"{"index":0,"code":"forbidden"},{"index":1,"code":"gone"}"#);
    assert_eq!((device.shown("x"), device.replica.body("note", "x")), (None, None));
    assert_eq!(device.replica.dead_letters().len(), 1);
}

#[test]
fn a_resync_after_the_start_of_a_session_is_obeyed_once() {
    let mut device = Device::synced(&put("x", 3, "{}"));
    device.replica.handle_disconnected();
    device.edit(patch("x", r#"{"a":2}"#));
    device.connect("00000001", 90);
    let sent = device.sent();
    assert!(sent[0].contains(r#""id":"p2""#) && sent[0].contains("c10"), "{sent:?}");
    let resync = r#"{"type":"resync_required","reason":"cursor_expired","keep_queue":true,"first":"queue","epoch":"00000001"}"#;
    device.frame(resync);
    device.frame(
        r#"{"type":"error","code":"CURSOR_EXPIRED","message":"","correlation_id":"","reply_to":"p2","retryable":false}"#,
    );
    device.frame(resync);
    device.nothing_sent();
    device.ack(1, 91, &result(0, "applied", 91, ""));
    let pull = device.one();
    assert!(pull.contains(r#""id":"p3""#) && !pull.contains("cursor"), "{pull}");
    device.frame(resync);
    device.page(&put("x", 91, r#"{"a":2}"#), 91, "c91");
    device.nothing_sent();
    assert!(device.replica.is_settled());
}

#[test]
fn a_refused_message_waits_and_is_sent_again() {
    let mut device = Device::synced("");
    device.edit(create("x", "{}"));
    device.one();
    let error = |code: &str, reply_to: &str, retry: &str| {
        format!(
            r#"{{"type":"error","code":"{code}","message":"","correlation_id":"","reply_to":"{reply_to}",
                "retryable":true{retry}}}"#
        )
    };
    device.frame(&error("STORE_UNAVAILABLE", "b1", r#","retry_after_ms":300"#));
    device.nothing_sent();
    assert_eq!(device.replica.poll_timeout(), Some(device.now_ms + 300));
    device.now_ms += 300;
    device.replica.handle_timeout(device.now_ms);
    assert!(device.one().contains("sync_data"));

    // A session that the server forgot is started again, and the batch follows.
    device.frame(&error("UNKNOWN_SYNC_ID", "b2", ""));
    device.nothing_sent();
    device.now_ms += 1_000;
    device.replica.handle_timeout(device.now_ms);
    assert!(device.one().contains("start_sync"));
    device.started("00000001", 10);
    assert!(device.one().contains("sync_data"));

    // A pull that failed is asked for again.
    device.replica.request_pull();
    assert!(device.one().contains(r#""id":"p2""#));
    device.frame(&error("HANDLER_ERROR", "p2", ""));
    device.nothing_sent();
    device.now_ms += 1_000;
    device.replica.handle_timeout(device.now_ms);
    assert!(device.one().contains("request_server_data"));
    assert_eq!(device.replica.queue_len(), 1);
}

#[test]
fn a_batch_that_is_too_large_is_split_down_to_the_culprit() {
    let mut device = Device::synced("");
    for id in ["a", "b", "c"] {
        device.edit(create(id, "{}"));
    }
    device.one();
    let too_large = |reply_to: &str| {
        format!(
            r#"{{"type":"error","code":"BATCH_TOO_LARGE","message":"","correlation_id":"","reply_to":"{reply_to}",
                "retryable":false}}"#
        )
    };
    device.frame(&too_large("b1"));
    let sent = device.sent();
    assert_eq!(sent.len(), 2, "two and one: {sent:?}");
    device.frame(&too_large("b3"));
    assert_eq!(device.replica.dead_letters()[0].code, ItemCode::TooLarge);
    assert_eq!(device.replica.queue_len(), 2);
}

#[test]
fn heartbeats_and_the_end_of_a_session_wait_their_turn() {
    let mut device = Device::synced("");
    device.replica.request_heartbeat();
    assert_eq!(device.one(), r#"{"type":"heartbeat","last_seq":10,"queue_depth":0}"#);
    device.edit(create("x", "{}"));
    device.replica.end_session();
    assert!(device.one().contains("sync_data"), "the queue goes first");
    device.ack(1, 11, &result(0, "applied", 11, ""));
    assert!(device.one().contains("end_sync"));
    device.frame(
        r#"{"type":"sync_session_ended","totals":{"batches":1,"items":1,"synced":1,"failed":0,"conflicts":0,"pulled":0}}"#,
    );
    device.edit(create("y", "{}"));
    device.nothing_sent();
    assert!(
        device.events().iter().any(|event| matches!(event, Event::SessionEnded(totals) if totals.items == 1))
    );
}

#[test]
fn frames_that_are_no_messages_are_refused_and_unknown_ones_ignored() {
    let mut device = Device::synced("");
    for bad in ["", "nonsense", r#"{"type":"server_data"}"#, r#"{"type":"ack","of":"sync_data"}"#] {
        assert!(device.replica.handle_frame(bad.as_bytes(), 0).is_err(), "{bad:?}");
    }
    device.frame(r#"{"type":"weather","later":true}"#);
    assert!(device.replica.is_settled());
}
