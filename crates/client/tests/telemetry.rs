//! The buffer of telemetry: bounds, messages, answers, and what is kept over a restart.
#![allow(clippy::unwrap_used, reason = "a test and its helpers")]

use driftline_client::{
    Backoff, Heard, KindName, RecordError, Telemetry, TelemetryGreeting, TelemetryLimits, fields,
};
use proptest::prelude::*;

fn kind(name: &str) -> KindName {
    KindName::new(name).unwrap()
}

fn record(telemetry: &mut Telemetry, name: &str, json: &str) {
    telemetry.record(kind(name), &fields(json).unwrap(), 5).unwrap();
}

/// A buffer with a connection.
fn connected(limits: TelemetryLimits) -> Telemetry {
    let mut telemetry = Telemetry::new(limits);
    telemetry.handle_connected(&TelemetryGreeting::default());
    telemetry
}

/// Cuts with the keys `00..`, `00..01` and so on, and takes everything that may go out.
fn sent(telemetry: &mut Telemetry, now_ms: u64) -> Vec<String> {
    let mut next = 0;
    telemetry.cut(now_ms, &mut || {
        next += 1;
        next / 2
    });
    std::iter::from_fn(|| telemetry.poll_transmit(now_ms)).collect()
}

fn hear(telemetry: &mut Telemetry, now_ms: u64, frame: &str) -> Heard {
    telemetry.handle_frame(frame.as_bytes(), now_ms, &mut || 500).unwrap()
}

fn error(id: &str, code: &str, rest: &str) -> String {
    format!(
        r#"{{"type":"error","reply_to":"{id}","code":"{code}","message":"m","correlation_id":"",{rest}}}"#
    )
}

#[test]
fn samples_of_a_kind_share_a_message_and_the_next_waits_for_its_answer() {
    let mut telemetry = connected(TelemetryLimits::default());
    record(&mut telemetry, "voice", r#"{"a":1}"#);
    record(&mut telemetry, "voice", r#"{"a":2,"id":"x","ts":"2026-01-01T00:00:00Z"}"#);
    record(&mut telemetry, "location", "{}");
    let messages = sent(&mut telemetry, 9);
    assert_eq!(
        messages,
        [
            r#"{"type":"location","id":"t1","idempotency_key":"00000000000000000000000000000001","ts":9,"payload":{"items":[{"ts":5}]}}"#,
            r#"{"type":"voice","id":"t2","idempotency_key":"00000000000000010000000000000002","ts":9,"payload":{"items":[{"a":1,"ts":5},{"a":2,"id":"x","ts":"2026-01-01T00:00:00Z"}]}}"#,
        ]
    );
    record(&mut telemetry, "voice", r#"{"a":3}"#);
    assert_eq!(sent(&mut telemetry, 10), [""; 0], "in order per kind");
    let ack = r#"{"type":"ack","server_time":"","reply_to":"t2","of":"voice","replayed":false,"accepted":2,"duplicates":0,"rejected":[]}"#;
    hear(&mut telemetry, 11, ack);
    assert_eq!(telemetry.len(), 2);
    let next = sent(&mut telemetry, 12);
    assert!(
        next.len() == 1 && next[0].contains(r#""id":"t3""#) && next[0].contains(r#"{"a":3,"#),
        "{next:?}"
    );
    hear(&mut telemetry, 13, ack);
    assert_eq!((telemetry.len(), telemetry.totals().accepted), (2, 2), "a late twin of an ack says nothing");
}

#[test]
fn at_most_four_messages_are_under_way() {
    let mut telemetry = connected(TelemetryLimits::default());
    for name in ["a", "b", "c", "d", "e", "f"] {
        record(&mut telemetry, name, "{}");
    }
    assert_eq!(sent(&mut telemetry, 0).len(), Telemetry::IN_FLIGHT_MAX);
    assert_eq!(telemetry.unanswered_since_ms(), Some(0));
    hear(&mut telemetry, 1, r#"{"type":"ack","reply_to":"t3","of":"c","accepted":1}"#);
    let fifth = sent(&mut telemetry, 2);
    assert!(fifth.len() == 1 && fifth[0].starts_with(r#"{"type":"e""#), "{fifth:?}");
}

#[test]
fn a_message_is_the_same_each_time_through_both_doors_and_after_a_restart() {
    let mut telemetry = connected(TelemetryLimits::default());
    record(&mut telemetry, "voice", r#"{"text":"é\"\\ ","n":1.5}"#);
    let first = sent(&mut telemetry, 1);
    assert_eq!(telemetry.http_request(1), None, "it is under way already");
    telemetry.handle_disconnected();
    record(&mut telemetry, "voice", r#"{"later":true}"#);
    assert_eq!(telemetry.http_request(2).as_ref(), first.first());
    assert_eq!(telemetry.http_request(2), None, "one at a time");
    telemetry.handle_http_lost();
    let mut telemetry = Telemetry::from_json(&telemetry.to_json(), TelemetryLimits::default()).unwrap();
    assert_eq!(telemetry.http_request(3).as_ref(), first.first());
    let captive = telemetry.handle_http(200, b"<html>please log in</html>", 3, &mut || 0);
    assert!(captive.is_err() && telemetry.len() == 2, "what is no answer settles nothing");
    telemetry.handle_connected(&TelemetryGreeting::default());
    assert_eq!(sent(&mut telemetry, 4), first);
    assert_eq!(telemetry.totals().resends, 2);
}

#[test]
fn a_full_buffer_refuses_the_newest() {
    let limits = TelemetryLimits { samples: 2, bytes: 1_000 };
    let mut telemetry = connected(limits);
    record(&mut telemetry, "a", r#"{"n":1}"#);
    let long = fields(&format!(r#"{{"x":"{}"}}"#, "x".repeat(990))).unwrap();
    let full = telemetry.record(kind("a"), &long, 0);
    assert!(matches!(full, Err(RecordError::Full { samples: 1, .. })), "{full:?}");
    record(&mut telemetry, "b", "{}");
    let full = telemetry.record(kind("a"), &fields("{}").unwrap(), 0);
    assert!(matches!(full, Err(RecordError::Full { samples: 2, .. })), "{full:?}");
    telemetry.count("taps", 1, 0).unwrap();
    assert!(telemetry.close_window(1).is_err());
    assert_eq!(telemetry.window().from_ms(), Some(0), "the window stays open");
    assert_eq!(sent(&mut telemetry, 0).len(), 2);

    // What was refused takes room until the app has taken it over.
    let bad = r#"{"type":"ack","reply_to":"t1","of":"a","accepted":0,"duplicates":0,"rejected":[{"index":0,"id":null,"code":"range","pointer":"/n","message":"m"}]}"#;
    hear(&mut telemetry, 0, bad);
    assert!(telemetry.record(kind("a"), &fields("{}").unwrap(), 0).is_err());
    let refused = telemetry.take_refused();
    assert_eq!((refused[0].item.as_deref(), &*refused[0].pointer), (Some(r#"{"n":1,"ts":5}"#), "/n"));
    record(&mut telemetry, "a", "{}");

    let huge = fields(&format!(r#"{{"x":"{}"}}"#, "x".repeat(1 << 20))).unwrap();
    let refused = Telemetry::default().record(kind("a"), &huge, 0);
    assert!(matches!(refused, Err(RecordError::TooLarge { .. })), "{refused:?}");
    for name in ["device_status", "ping"] {
        let own = telemetry.record(kind(name), &fields("{}").unwrap(), 0);
        assert_eq!(own, Err(RecordError::Reserved(kind(name))));
    }
}

#[test]
fn messages_keep_to_the_limits_that_the_server_announced() {
    let mut telemetry = connected(TelemetryLimits::default());
    for _ in 0..250 {
        record(&mut telemetry, "a", "{}");
    }
    let items = |message: &str| message.matches(r#"{"ts":5}"#).count();
    assert_eq!(items(&sent(&mut telemetry, 0)[0]), 100);
    hear(&mut telemetry, 0, r#"{"type":"ack","reply_to":"t1","of":"a","accepted":100}"#);
    let greeting = TelemetryGreeting { max_batch_items: Some(7), ..TelemetryGreeting::default() };
    telemetry.handle_connected(&greeting);
    assert_eq!(items(&sent(&mut telemetry, 0)[0]), 7);
    hear(&mut telemetry, 0, r#"{"type":"ack","reply_to":"t2","of":"a","accepted":7}"#);
    // 1 KiB stays free for what stands around the items.
    let greeting = TelemetryGreeting { max_message_bytes: Some(1_024 + 27), ..greeting };
    telemetry.handle_connected(&greeting);
    assert_eq!(items(&sent(&mut telemetry, 0)[0]), 3);
}

#[test]
fn what_is_too_large_is_sent_in_halves() {
    let mut telemetry = connected(TelemetryLimits::default());
    for at in 0..3 {
        record(&mut telemetry, "a", &format!(r#"{{"n":{at}}}"#));
    }
    sent(&mut telemetry, 0);
    hear(&mut telemetry, 0, &error("t1", "BATCH_TOO_LARGE", r#""retryable":false"#));
    let first = sent(&mut telemetry, 0);
    assert!(first.len() == 1 && first[0].contains(r#"{"items":[{"n":0,"ts":5}]}"#), "{first:?}");
    hear(&mut telemetry, 0, &error("t3", "MESSAGE_TOO_LARGE", r#""retryable":false"#));
    assert_eq!(telemetry.refused().len(), 1, "a single sample cannot be halved");
    let second = sent(&mut telemetry, 0);
    assert!(second[0].contains(r#"[{"n":1,"ts":5},{"n":2,"ts":5}]"#), "{second:?}");
}

/// (code, whether the server says that it may come again, what becomes of it)
#[test]
fn errors_are_final_or_not() {
    for (code, retryable, kept) in [
        ("RATE_LIMITED", true, true),
        ("STORE_UNAVAILABLE", true, true),
        ("IDEMPOTENCY_IN_PROGRESS", true, true),
        ("A_CODE_OF_THE_FUTURE", true, true),
        ("VALIDATION_ERROR", false, false),
        ("IDEMPOTENCY_KEY_REUSED", false, false),
        ("A_CODE_OF_THE_FUTURE", false, false),
    ] {
        let mut telemetry = connected(TelemetryLimits::default());
        record(&mut telemetry, "a", "{}");
        record(&mut telemetry, "a", "{}");
        sent(&mut telemetry, 0);
        hear(&mut telemetry, 0, &error("t1", code, &format!(r#""retryable":{retryable}"#)));
        assert_eq!(telemetry.len(), if kept { 2 } else { 0 }, "{code}");
        assert_eq!(telemetry.refused().len(), if kept { 0 } else { 2 }, "{code}");
        assert!(telemetry.refused().iter().all(|letter| letter.code == code && letter.item.is_some()));
    }
}

#[test]
fn a_refused_token_stops_everything_and_loses_nothing() {
    let mut telemetry = connected(TelemetryLimits::default());
    record(&mut telemetry, "a", "{}");
    sent(&mut telemetry, 0);
    let told =
        r#"{"type":"error","code":"UNAUTHORIZED","message":"m","correlation_id":"","retryable":false}"#;
    assert!(matches!(hear(&mut telemetry, 0, told), Heard::Unauthorized(_)));
    telemetry.handle_disconnected();
    for status in [401, 403] {
        assert!(telemetry.http_request(0).is_some());
        let heard = telemetry.handle_http(status, b"", 0, &mut || 0).unwrap();
        assert!(matches!(heard, Heard::Unauthorized(_)), "{status}");
    }
    assert_eq!(telemetry.len(), 1);
}

#[test]
fn a_busy_server_is_left_alone_for_longer_and_longer() {
    let mut telemetry = connected(TelemetryLimits::default());
    telemetry = telemetry.with_backoff(Backoff { first_ms: 1_000, max_ms: 4_000 });
    record(&mut telemetry, "a", "{}");
    let busy = error("t1", "RATE_LIMITED", r#""retryable":true,"retry_after_ms":40"#);
    let mut now_ms = 0;
    // Every draw is the longest wait.
    for wait_ms in [1_000, 2_000, 4_000, 4_000] {
        assert_eq!(sent(&mut telemetry, now_ms).len(), 1);
        telemetry.handle_frame(busy.as_bytes(), now_ms, &mut || wait_ms).unwrap();
        assert_eq!(telemetry.poll_timeout(), Some(now_ms + 40 + wait_ms));
        assert_eq!(sent(&mut telemetry, now_ms + 39 + wait_ms), [""; 0]);
        now_ms += 40 + wait_ms;
    }
    assert_eq!(sent(&mut telemetry, now_ms).len(), 1);
    assert_eq!(telemetry.poll_timeout(), None, "it is under way");
}

#[test]
fn over_http_the_same_answers_count() {
    let mut telemetry = Telemetry::default();
    let problem = |status: u16, code: &str, retryable: bool| {
        format!(
            r#"{{"type":"","title":"","status":{status},"detail":"d","code":"{code}","correlation_id":"","retryable":{retryable}}}"#
        )
    };
    for (status, body, kept) in [
        (503, problem(503, "STORE_UNAVAILABLE", true), true),
        (409, problem(409, "IDEMPOTENCY_IN_PROGRESS", true), true),
        (429, "slow down".into(), true),
        (502, "<html>".into(), true),
        (404, problem(404, "NOT_FOUND", false), true),
        (405, problem(405, "METHOD_NOT_ALLOWED", false), true),
        (408, String::new(), true),
        (422, problem(422, "VALIDATION_ERROR", false), false),
    ] {
        record(&mut telemetry, "a", "{}");
        telemetry.cut(0, &mut || 1);
        assert!(telemetry.http_request(u64::MAX).is_some(), "{status}");
        assert_eq!(telemetry.handle_http(status, body.as_bytes(), 0, &mut || 0), Ok(Heard::Nothing));
        assert_eq!(!telemetry.is_empty(), kept, "{status}");
        telemetry = Telemetry::default();
    }
    record(&mut telemetry, "a", "{}");
    telemetry.cut(0, &mut || 1);
    telemetry.http_request(0).unwrap();
    let answer = br#"{"server_time":"","of":"a","replayed":true,"accepted":1,"duplicates":0,"rejected":[],"resend_recognised":false}"#;
    telemetry.handle_http(200, answer, 0, &mut || 0).unwrap();
    let totals = telemetry.totals();
    assert_eq!((telemetry.len(), totals.accepted, totals.replayed, totals.unrecognised), (0, 1, 1, 1));
}

#[test]
fn of_several_reports_the_newest_is_sent_and_windows_one_by_one() {
    let mut telemetry = connected(TelemetryLimits::default());
    for battery in [80, 81] {
        telemetry.report(&fields(&format!(r#"{{"battery":{battery}}}"#)).unwrap(), 5).unwrap();
    }
    assert_eq!(telemetry.len(), 1);
    for now_ms in [6, 7] {
        telemetry.count("taps", 2, now_ms).unwrap();
        telemetry.observe("load", 1.5, now_ms).unwrap();
        telemetry.close_window(now_ms + 1).unwrap();
        telemetry.close_window(now_ms + 1).unwrap();
    }
    let messages = sent(&mut telemetry, 9);
    assert_eq!(
        messages,
        [
            r#"{"type":"analytics_batch","id":"t1","idempotency_key":"00000000000000000000000000000001","ts":9,"payload":{"from":6,"to":7,"counters":{"taps":2},"histograms":{"load":[[1.5,1]]}}}"#,
            r#"{"type":"device_status","id":"t2","ts":9,"payload":{"battery":81,"ts":5}}"#,
        ]
    );
    for (id, of) in [("t1", "analytics_batch"), ("t2", "device_status")] {
        hear(
            &mut telemetry,
            9,
            &format!(r#"{{"type":"ack","server_time":"","reply_to":"{id}","of":"{of}"}}"#),
        );
    }
    assert_eq!(telemetry.len(), 1);
    assert!(sent(&mut telemetry, 9)[0].contains(r#""from":7,"to":8"#));
}

/// A buffer with something of everything.
fn full_of_all() -> Telemetry {
    let mut telemetry = connected(TelemetryLimits::default());
    record(&mut telemetry, "a", r#"{"n":[1,{"x":null}]}"#);
    record(&mut telemetry, "a", r#"{"n":2}"#);
    telemetry.report(&fields(r#"{"battery":81}"#).unwrap(), 5).unwrap();
    sent(&mut telemetry, 6);
    let bad = r#"{"type":"ack","reply_to":"t1","of":"a","rejected":[{"index":1,"code":"c","pointer":"/n","message":"é",
        "errors":[{"code":"c","pointer":"/n","message":"m"}]},{"index":9,"code":"d"}]}"#;
    hear(&mut telemetry, 7, bad);
    record(&mut telemetry, "b", r#"{"n":3}"#);
    telemetry.count("taps", 2, 8).unwrap();
    telemetry.observe("load", 2.5, 8).unwrap();
    telemetry
}

#[test]
fn everything_is_kept_over_a_restart() {
    let telemetry = full_of_all();
    let saved = telemetry.to_json();
    let mut loaded = Telemetry::from_json(&saved, TelemetryLimits::default()).unwrap();
    assert_eq!(loaded.to_json(), saved);
    assert_eq!((loaded.len(), loaded.refused()), (telemetry.len(), telemetry.refused()));
    assert_eq!((loaded.refused()[1].index, &loaded.refused()[1].item), (9, &None));
    assert_eq!(loaded.window().from_ms(), Some(8));
    loaded.handle_connected(&TelemetryGreeting::default());
    assert_eq!(sent(&mut loaded, 9).len(), 2);

    for bad in [
        "",
        "{}",
        r#"{"form":2}"#,
        r#"{"form":1}"#,
        r#"{"form":1,"next":1,"waiting":[],"envelopes":[1],"refused":[]}"#,
    ] {
        assert!(Telemetry::from_json(bad, TelemetryLimits::default()).is_err(), "{bad}");
    }
    let twice = r#"{"number":1,"kind":"a","cut_ms":1,"sent":0,"items":[]}"#;
    let text = format!(r#"{{"form":1,"next":2,"waiting":[],"envelopes":[{twice},{twice}],"refused":[]}}"#);
    assert!(Telemetry::from_json(&text, TelemetryLimits::default()).is_err(), "one number, two messages");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_save_or_frame_is_an_error_and_no_panic(at in 0..2_000_usize, byte: u8, end in 0..2_000_usize) {
        let mut saved = full_of_all().to_json().into_bytes();
        saved.truncate(end.max(1));
        let length = saved.len();
        saved[at % length] = byte;
        let text = String::from_utf8_lossy(&saved);
        if let Ok(mut loaded) = Telemetry::from_json(&text, TelemetryLimits::default()) {
            loaded.handle_connected(&TelemetryGreeting::default());
            sent(&mut loaded, 9);
            loaded.take_refused();
            prop_assert!(Telemetry::from_json(&loaded.to_json(), TelemetryLimits::default()).is_ok());
        }
        let _ = full_of_all().handle_frame(&saved, 0, &mut || 0);
        let _ = full_of_all().handle_http(200, &saved, 0, &mut || 0);
    }
}
