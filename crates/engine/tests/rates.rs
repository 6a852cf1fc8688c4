//! How often a session lets its client speak.

mod support;

use driftline_model::{Limits, Rate};
use driftline_protocol::{CloseCode, ServerMessage};
use driftline_testkit::create;

use support::desk::{Desk, Frame, Office, SYNC, kinds};

const PING: &str = r#"{"type":"ping","id":"p"}"#;

/// Limits that nobody reaches, but for what is changed.
fn office(change: impl FnOnce(&mut Limits)) -> Office {
    let mut limits = Limits::default().lifted();
    change(&mut limits);
    Office::new(limits, 16)
}

fn rate(per_s: u32, burst: u32) -> Rate {
    Rate { per_s, burst }
}

fn batch(n: u64) -> String {
    format!(
        r#"{{"type":"sync_data","id":"b{n}","sync_id":"{SYNC}","payload":{{"batch":[
           {{"op_id":"op-{n}","n":{n},"kind":"note","id":"n-{n}","op":"create","fields":{{}}}}]}}}}"#
    )
}

/// What a refusal says: scope, limit and the wait.
fn refusal(frame: &Frame) -> (String, String, u64) {
    let ServerMessage::Error(error) = frame.message() else { panic!("{frame:?}") };
    assert_eq!((error.code.as_str(), error.retryable), ("RATE_LIMITED", true));
    assert!(error.message.contains("back off exponentially with jitter"), "{}", error.message);
    let details = error.details.expect("details");
    (details.scope.expect("a scope"), details.limit.expect("a limit"), error.retry_after_ms.expect("a wait"))
}

/// Asks for something that is refused.
fn refused(desk: &mut Desk<'_>, frame: &str) -> (String, String, u64) {
    let frames = desk.ask(frame);
    let [frame] = frames.as_slice() else { panic!("{frames:#?}") };
    assert!(frame.reply_to.is_some());
    refusal(frame)
}

fn passes(desk: &mut Desk<'_>, frame: &str, answer: &str) {
    let frames = desk.ask(frame);
    assert_eq!(kinds(&frames), [answer], "{frames:#?}");
}

#[test]
fn a_connection_speaks_in_bursts_and_then_at_its_rate() {
    let office = office(|limits| limits.message_rate = rate(50, 100));
    let (mut desk, mut other) = (office.desk("ada", "phone"), office.desk("ada", "tablet"));
    desk.take();
    other.take();
    for _ in 0..100 {
        passes(&mut desk, PING, "pong");
    }
    assert_eq!(refused(&mut desk, PING), ("connection".into(), "50/s, burst 100".into(), 20));
    passes(&mut other, PING, "pong");
    desk.wait(19);
    assert_eq!(refused(&mut desk, PING).2, 1, "a refusal does not make the wait longer");
    desk.wait(1);
    passes(&mut desk, PING, "pong");
    assert_eq!(refused(&mut desk, PING).2, 20);
}

#[test]
fn what_cannot_be_decoded_counts_and_what_is_refused_is_no_decode_error() {
    let office = office(|limits| limits.message_rate = rate(1, 3));
    let mut desk = office.desk("ada", "phone");
    desk.take();
    for (frame, code) in [("{", "JSON_DECODE_ERROR"), (r#"{"type":"dance"}"#, "UNKNOWN_MESSAGE_TYPE")] {
        assert_eq!(desk.ask(frame)[0].error_code().as_deref(), Some(code));
    }
    passes(&mut desk, PING, "pong");
    for frame in ["{", r#"{"type":"dance","id":"d"}"#].into_iter().cycle().take(20) {
        assert_eq!(desk.ask(frame)[0].error_code().as_deref(), Some("RATE_LIMITED"));
    }
    assert_eq!(desk.closed, None);
}

#[test]
fn a_user_shares_a_rate_over_all_connections() {
    let office = office(|limits| limits.user_rate = rate(10, 4));
    let (mut phone, mut tablet) = (office.desk("ada", "phone"), office.desk("ada", "tablet"));
    let mut stranger = office.desk("bob", "phone");
    for desk in [&mut phone, &mut tablet, &mut stranger] {
        desk.take();
    }
    for _ in 0..2 {
        passes(&mut phone, PING, "pong");
        passes(&mut tablet, PING, "pong");
    }
    for desk in [&mut phone, &mut tablet] {
        assert_eq!(refused(desk, PING), ("user".into(), "10/s, burst 4".into(), 100));
    }
    passes(&mut stranger, PING, "pong");
    // What comes back is there once, for whoever asks first.
    phone.wait(100);
    tablet.wait(100);
    passes(&mut tablet, PING, "pong");
    assert_eq!(refused(&mut phone, PING).2, 100);
}

#[test]
fn a_type_has_a_rate_of_its_own_and_nothing_of_a_refused_batch_is_applied() {
    let office = office(|limits| limits.type_rates = vec![("sync_data".into(), rate(20, 2))]);
    let mut desk = office.desk("ada", "phone").start("");
    for n in 1..=2 {
        passes(&mut desk, &batch(n), "ack");
    }
    assert_eq!(refused(&mut desk, &batch(3)), ("type".into(), "20/s, burst 2".into(), 50));
    assert_eq!(desk.waiting(), 0, "the engine hears nothing of it");
    passes(&mut desk, PING, "pong");
    // The session goes on, and its live deltas with it.
    assert!(desk.session.is_syncing());
    office.push(&office.author("bob", "laptop"), [create("other", "{}")]);
    desk.hear();
    assert_eq!(kinds(&desk.take()), ["server_delta"]);

    desk.wait(50);
    let ServerMessage::Ack(ack) = desk.ask(&batch(3))[0].message() else { panic!("no ack") };
    assert_eq!((ack.synced, ack.results[0].duplicate), (1, false), "the first time that it is applied");
}

#[test]
fn persistent_abuse_is_closed() {
    let office = office(|limits| (limits.message_rate, limits.rate_refusals) = (rate(10, 1), 5));
    let mut desk = office.desk("ada", "phone");
    desk.take();
    passes(&mut desk, PING, "pong");
    for _ in 0..4 {
        refused(&mut desk, PING);
    }
    // A message that passes makes good for one that was refused, and for one only.
    for _ in 0..3 {
        desk.wait(100);
        passes(&mut desk, PING, "pong");
        assert_eq!(desk.closed, None);
        refused(&mut desk, PING);
    }
    refused(&mut desk, PING);
    let close = desk.closed.expect("it is closed");
    assert_eq!((close.code, close.reason), (CloseCode(1008), "RATE_LIMITED"));
    assert!(desk.session.is_closed() && !desk.session.wants_input());
}

#[test]
fn control_frames_count_for_the_connection_alone() {
    let office = office(|limits| {
        (limits.message_rate, limits.user_rate, limits.rate_refusals) = (rate(10, 3), rate(1, 1), 4);
    });
    let mut desk = office.desk("ada", "phone");
    desk.take();
    for _ in 0..2 {
        assert!(desk.session.handle_control(desk.now_ms));
    }
    passes(&mut desk, PING, "pong");
    assert!(!desk.session.handle_control(desk.now_ms));
    assert_eq!(refused(&mut desk, PING).0, "connection");
    assert!(!desk.session.handle_control(desk.now_ms));
    assert_eq!((desk.closed, desk.take().len()), (None, 0), "a refused control frame is not answered");
    assert!(!desk.session.handle_control(desk.now_ms));
    desk.poll();
    let close = desk.closed.expect("it is closed");
    assert_eq!((close.code, close.reason), (CloseCode(1008), "RATE_LIMITED"));
    assert!(!desk.session.handle_control(desk.now_ms + 10_000), "nothing is answered after the end");
}

#[test]
fn a_clock_that_is_set_back_locks_no_session_out() {
    let office = office(|limits| limits.message_rate = rate(50, 100));
    let mut desk = office.desk("ada", "phone");
    desk.take();
    for _ in 0..100 {
        passes(&mut desk, PING, "pong");
    }
    desk.now_ms -= 3_600_000;
    // Every bucket that the later clock has used counts as empty, and has a token as soon as its rate gives one.
    for (scope, wait_ms) in [("connection", 20), ("user", 1)] {
        let refusal = refused(&mut desk, PING);
        assert_eq!((refusal.0.as_str(), refusal.2), (scope, wait_ms));
        desk.wait(wait_ms);
    }
    desk.wait(19);
    passes(&mut desk, PING, "pong");
}

#[test]
fn lifted_limits_are_reached_by_nobody_and_counted_all_the_same() {
    let office = office(|_| {});
    let mut desk = office.desk("ada", "phone").start("");
    for n in 1..=500 {
        passes(&mut desk, &batch(n), "ack");
    }
    let meter = office.engine.meter(&desk.identity.tenant_id, &desk.identity.user, desk.now_ms);
    let used = u64::from(Rate::LIFTED.burst) - meter.level(desk.now_ms).remaining;
    assert_eq!(used, 501, "the start and the batches");
    assert!(meter.connect().is_ok());
}
