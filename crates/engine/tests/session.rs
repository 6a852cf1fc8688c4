//! The session machine: which messages it takes when, what it answers and when it lets go.

mod support;

use driftline_engine::{Catalogue, Committed, KindRule, Store};
use driftline_model::{Hlc, Limits, Seq};
use driftline_protocol::{CloseCode, ServerMessage};
use driftline_testkit::block_on;

use support::desk::{Desk, Frame, Office, SYNC, kinds};

const DAY_MS: u64 = 24 * 3_600_000;
const OTHER: &str = "00000000-0000-4000-8000-00000000000b";

fn office() -> Office {
    Office::new(Limits::default(), 64)
}

fn one(frames: Vec<Frame>) -> Frame {
    let [frame] = <[Frame; 1]>::try_from(frames).expect("one frame");
    frame
}

#[track_caller]
fn check_error(frames: Vec<Frame>, code: &str, reply_to: Option<&str>) {
    let frame = one(frames);
    assert_eq!(frame.error_code().as_deref(), Some(code), "{}", frame.text);
    assert_eq!(frame.reply_to.as_deref(), reply_to);
}

#[track_caller]
fn check_closed(desk: &Desk<'_>, code: u16) {
    assert_eq!(desk.closed.map(|close| close.code), Some(CloseCode(code)));
    assert!(!desk.session.wants_input(), "a closed session takes nothing");
}

fn sync_data(id: &str, batch_seq: u64, items: &str) -> String {
    format!(
        r#"{{"type":"sync_data","id":"{id}","sync_id":"{SYNC}","payload":{{"batch_seq":{batch_seq},"batch":[{items}]}}}}"#
    )
}

fn create(n: u64) -> String {
    format!(r#"{{"n":{n},"kind":"note","id":"x{n}","op":"create","fields":{{"a":1}}}}"#)
}

#[test]
fn a_connection_is_greeted() {
    let office = office();
    let mut desk = office.desk("ada", "phone");
    let greeting = one(desk.take());
    let ServerMessage::ConnectionEstablished(greeting) = greeting.message() else { panic!("{greeting:?}") };
    let head = block_on(office.engine.head(&desk.identity)).expect("a head");
    assert_eq!((greeting.connection_id.as_str(), greeting.tenant.as_str()), ("c1", "acme"));
    assert_eq!((greeting.user_id.to_string().as_str(), greeting.device_id.as_str()), ("ada", "phone"));
    assert_eq!(
        (greeting.role.as_str(), greeting.roles.as_slice()),
        ("staff", ["staff".to_owned()].as_slice())
    );
    assert_eq!((greeting.heartbeat_interval_s, greeting.heartbeat_timeout_s), (25, 50));
    assert_eq!((greeting.features.max_batch_items, greeting.features.max_message_bytes), (100, 1 << 20));
    assert_eq!((greeting.epoch, greeting.hlc), (head.epoch.to_string(), head.hlc.to_string()));
    assert!(desk.session.wants_input() && !desk.session.is_syncing());
}

#[test]
fn a_sync_session_has_the_clients_name_or_gets_one() {
    let office = office();
    let mut desk = office.desk("ada", "phone");
    desk.take();
    let frame = one(desk.ask(&format!(r#"{{"type":"start_sync","id":"m1","sync_id":"{SYNC}"}}"#)));
    assert_eq!((frame.kind.as_str(), frame.reply_to.as_deref()), ("sync_session_started", Some("m1")));
    assert_eq!(frame.sync_id.as_deref(), Some(SYNC));
    let ServerMessage::SyncSessionStarted(started) = frame.message() else { panic!("{frame:?}") };
    assert_eq!((started.session_info.sync_id.as_str(), started.session_info.seq), (SYNC, 0));
    assert_eq!(started.session_info.acked_batches, [0; 0]);
    assert!(desk.session.is_syncing());

    let mut made = Vec::new();
    for _ in 0..3 {
        let frame = one(desk.ask(r#"{"type":"start_sync"}"#));
        let ServerMessage::SyncSessionStarted(started) = frame.message() else { panic!("{frame:?}") };
        assert_eq!(frame.sync_id.as_ref(), Some(&started.session_info.sync_id));
        made.push(started.session_info.sync_id);
    }
    for name in &made {
        assert_eq!((name.len(), name.as_bytes()[14], name.as_bytes()[8]), (36, b'4', b'-'), "a UUID: {name}");
    }
    made.sort();
    made.dedup();
    assert_eq!(made.len(), 3, "a name of its own for every session");
    // The last name is the open session.
    check_error(desk.ask(&format!(r#"{{"type":"end_sync","sync_id":"{SYNC}"}}"#)), "UNKNOWN_SYNC_ID", None);
}

#[test]
fn a_resumed_session_knows_its_batches() {
    let office = office();
    let mut desk = office.desk("ada", "phone").start("");
    for (batch, n) in [(2, 1), (1, 2)] {
        desk.ask(&sync_data("m", batch, &create(n)));
    }
    let resume = format!(r#"{{"type":"start_sync","sync_id":"{SYNC}","resume":true}}"#);
    let acked = |frames: Vec<Frame>| match one(frames).message() {
        ServerMessage::SyncSessionStarted(started) => started.session_info.acked_batches,
        other => panic!("{other:?}"),
    };
    let mut again = office.desk("ada", "phone");
    again.take();
    assert_eq!(acked(again.ask(&resume)), [1, 2]);
    let mut other = office.desk("ada", "tablet");
    other.take();
    assert_eq!(acked(other.ask(&resume)), [0; 0], "another device has batches of its own");

    again.wait(DAY_MS);
    assert_eq!(acked(again.ask(&resume)), [1, 2]);
    again.wait(1);
    check_error(again.ask(&resume), "SYNC_SESSION_EXPIRED", None);
    assert!(!again.session.is_syncing() && again.session.wants_input(), "another one may be started");
    assert_eq!(acked(again.ask(&resume.replace("true", "false"))), [0; 0]);
}

#[test]
fn session_scoped_messages_need_the_open_session() {
    let office = office();
    for kind in ["sync_data", "request_server_data", "end_sync"] {
        let frame = |sync_id: Option<&str>| {
            let sync_id = sync_id.map_or(String::new(), |sync_id| format!(r#","sync_id":"{sync_id}""#));
            format!(r#"{{"type":"{kind}","id":"m1"{sync_id},"payload":{{"batch":[]}}}}"#)
        };
        let mut desk = office.desk("ada", "phone");
        desk.take();
        check_error(desk.ask(&frame(None)), "MISSING_SYNC_ID", Some("m1"));
        check_error(desk.ask(&frame(Some(SYNC))), "UNKNOWN_SYNC_ID", Some("m1"));
        let mut desk = desk.start("");
        check_error(desk.ask(&frame(None)), "MISSING_SYNC_ID", Some("m1"));
        check_error(desk.ask(&frame(Some(OTHER))), "UNKNOWN_SYNC_ID", Some("m1"));
        check_error(desk.ask(&frame(Some("nonsense"))), "VALIDATION_ERROR", Some("m1"));
        assert_eq!((desk.waiting(), desk.closed), (0, None), "{kind}");
        // The name counts whatever its case.
        assert!(one(desk.ask(&frame(Some(&SYNC.to_uppercase())))).error_code().is_none());
    }
}

#[test]
fn an_idle_session_expires_and_use_keeps_it() {
    let office = office();
    let mut desk = office.desk("ada", "phone").start("");
    let pull = format!(r#"{{"type":"request_server_data","sync_id":"{SYNC}"}}"#);
    for _ in 0..3 {
        desk.wait(DAY_MS);
        assert_eq!(kinds(&desk.ask(&pull)), ["server_data"]);
    }
    desk.wait(DAY_MS - 1);
    // A ping is no use of the session.
    desk.ask(r#"{"type":"ping"}"#);
    desk.wait(2);
    check_error(desk.ask(&pull), "SYNC_SESSION_EXPIRED", None);
    check_error(desk.ask(&pull), "UNKNOWN_SYNC_ID", None);
    let mut desk = desk.start("");
    assert_eq!(kinds(&desk.ask(&pull)), ["server_data"]);
}

#[test]
fn a_ping_gets_its_number_back() {
    let office = office();
    let mut desk = office.desk("ada", "phone");
    desk.take();
    for number in ["123", "-7", "1763692496007", "0.5", "1e+30"] {
        let frame = one(desk.ask(&format!(r#"{{"type":"ping","id":"p","timestamp":{number}}}"#)));
        assert_eq!((frame.kind.as_str(), frame.reply_to.as_deref()), ("pong", Some("p")));
        assert!(frame.text.ends_with(&format!(r#","timestamp":{number}}}"#)), "{}", frame.text);
    }
    let bare = one(desk.ask(r#"{"type":"ping"}"#));
    assert!(!bare.text.contains("timestamp") && bare.reply_to.is_none(), "{}", bare.text);
    check_error(desk.ask(r#"{"type":"ping","timestamp":{}}"#), "VALIDATION_ERROR", None);
}

#[test]
fn a_heartbeat_tells_how_far_the_device_is_behind() {
    let office = office();
    let bob = office.author("bob", "phone");
    let mut desk = office.desk("ada", "phone");
    desk.take();
    let beat = |desk: &mut Desk<'_>, last_seq: &str| {
        let frames = desk.ask(&format!(r#"{{"type":"heartbeat","id":"h"{last_seq}}}"#));
        let frame = frames.into_iter().find(|frame| frame.kind == "heartbeat_ack").expect("an answer");
        assert_eq!(frame.reply_to.as_deref(), Some("h"));
        let ServerMessage::HeartbeatAck(ack) = frame.message() else { panic!("{frame:?}") };
        (ack.server_seq, ack.behind)
    };
    assert_eq!(beat(&mut desk, ""), (0, 0));
    let mut desk = desk.start("");
    office.push(&bob, [driftline_testkit::create("a", "{}"), driftline_testkit::create("b", "{}")]);
    desk.hear();
    assert_eq!(beat(&mut desk, r#","last_seq":0"#), (2, 2));
    assert_eq!(beat(&mut desk, r#","last_seq":2"#), (2, 0));
    // Its own writes do not put a device behind.
    desk.ask(&sync_data("m", 1, &create(1)));
    assert_eq!(beat(&mut desk, r#","last_seq":2"#), (3, 0));
}

#[test]
fn silence_for_two_intervals_closes() {
    let office = office();
    let mut desk = office.desk("ada", "phone");
    desk.take();
    let begin = desk.now_ms;
    assert_eq!(desk.session.deadline_ms(), begin + 50_000);
    for heard in [r#"{"type":"heartbeat"}"#, r#"{"type":"ping"}"#, "nonsense"] {
        desk.wait(49_999);
        desk.session.handle_time(desk.now_ms);
        desk.poll();
        assert_eq!((desk.closed, desk.take()), (None, vec![]), "before {heard}");
        desk.ask(heard);
        assert_eq!(desk.session.deadline_ms(), desk.now_ms + 50_000, "{heard} was heard");
    }
    // While the shell does not read, because what it sent is not taken, the silence is its own.
    for _ in 0..3 {
        desk.wait(40_000);
        desk.session.excuse_silence(desk.now_ms);
        desk.session.handle_time(desk.now_ms);
        desk.poll();
        assert_eq!((desk.closed, desk.take()), (None, vec![]));
    }
    // Work and commits are the server's own doing.
    desk.wait(50_000);
    desk.hear();
    desk.session.handle_time(desk.now_ms);
    desk.poll();
    check_error(desk.take(), "HEARTBEAT_TIMEOUT", None);
    check_closed(&desk, 4009);
    desk.session.handle_time(desk.now_ms + 1);
    desk.poll();
}

#[test]
fn decode_errors_in_a_row_close() {
    let office = office();
    let mut desk = office.desk("ada", "phone");
    desk.take();
    let bad = ["{", "[]", "7", "", "\u{0}", r#"{"type":}"#, "nul", "[[", "}", "tru"];
    for frame in &bad[..9] {
        check_error(desk.ask(frame), "JSON_DECODE_ERROR", None);
    }
    // One good message, even one that is refused, begins the row anew.
    for good in [r#"{"type":"ping"}"#, r#"{"type":"fly"}"#] {
        desk.ask(good);
        for frame in &bad[..9] {
            check_error(desk.ask(frame), "JSON_DECODE_ERROR", None);
            assert_eq!(desk.closed, None);
        }
    }
    check_error(desk.ask(bad[9]), "JSON_DECODE_ERROR", None);
    check_closed(&desk, 1007);
}

#[test]
fn refused_messages_leave_the_connection_open() {
    let office = office();
    let mut desk = office.desk("ada", "phone").start("");
    let deep = format!(r#"{{"type":"ping","x":{}1{}}}"#, "[".repeat(70), "]".repeat(70));
    let many = vec![r#"{"kind":"k","id":"i","op":"create"}"#; 101].join(",");
    let table = [
        (r#"{"type":"fly","id":"m"}"#.to_owned(), "UNKNOWN_MESSAGE_TYPE", Some("m")),
        (r#"{"type":"subscribe_events","id":"m"}"#.to_owned(), "VALIDATION_ERROR", Some("m")),
        (r#"{"id":"m"}"#.to_owned(), "VALIDATION_ERROR", Some("m")),
        (r#"{"type":7,"id":"m"}"#.to_owned(), "VALIDATION_ERROR", Some("m")),
        (r#"{"type":"ping","id":7}"#.to_owned(), "VALIDATION_ERROR", None),
        (r#"{"type":"ping","id":"m","payload":[]}"#.to_owned(), "VALIDATION_ERROR", Some("m")),
        (deep, "JSON_DECODE_ERROR", None),
        (sync_data("m", 1, &many), "BATCH_TOO_LARGE", Some("m")),
        (sync_data("m", 1, "").replace("[]", "{}"), "VALIDATION_ERROR", Some("m")),
        (sync_data("m", 1, "").replace(r#""batch":[]"#, r#""x":1"#), "VALIDATION_ERROR", Some("m")),
        (r#"{"type":"start_sync","id":"m","epoch":"xyz"}"#.to_owned(), "VALIDATION_ERROR", Some("m")),
    ];
    for (frame, code, reply_to) in table {
        check_error(desk.ask(&frame), code, reply_to);
        assert_eq!((desk.closed, desk.session.wants_input()), (None, true), "{frame}");
    }
    assert!(desk.session.is_syncing(), "the session survives them all");
    assert_eq!(block_on(office.engine.head(&desk.identity)).expect("a head").seq.number(), 0);
}

#[test]
fn errors_have_names_of_their_own() {
    let office = office();
    let mut desk = office.desk("ada", "phone");
    desk.take();
    let name = |desk: &mut Desk<'_>| match one(desk.ask(r#"{"type":"fly"}"#)).message() {
        ServerMessage::Error(error) => (error.correlation_id, desk.session.correlation_id(), error.retryable),
        other => panic!("{other:?}"),
    };
    let (first, second) = (name(&mut desk), name(&mut desk));
    assert_ne!(first.0, second.0);
    assert_eq!((first.0, first.2), (first.1, false), "the log finds it under the same name");
}

#[test]
fn a_message_that_is_too_large_closes() {
    let office = office();
    let mut desk = office.desk("ada", "phone");
    desk.take();
    let frame = format!(r#"{{"type":"ping","x":"{}"}}"#, "x".repeat(1 << 20));
    check_error(desk.ask(&frame), "MESSAGE_TOO_LARGE", None);
    check_closed(&desk, 1009);
}

#[test]
fn four_batches_may_wait() {
    let office = office();
    let mut desk = office.desk("ada", "phone").start("");
    for n in 1..=4 {
        assert!(desk.session.wants_input(), "before batch {n}");
        desk.feed(&sync_data(&format!("m{n}"), n, &create(n)));
    }
    assert!(!desk.session.wants_input());
    assert_eq!((desk.waiting(), desk.take()), (4, vec![]));
    let done = desk.perform();
    assert!(!desk.session.wants_input(), "not before it is answered");
    desk.report(done);
    assert!(desk.session.wants_input());
    desk.feed(&sync_data("m5", 5, &create(5)));
    assert!(!desk.session.wants_input());
    desk.settle();
    assert!(desk.session.wants_input());
    assert_eq!(desk.take().len(), 5);
}

#[test]
fn nothing_is_taken_while_a_session_starts() {
    let office = office();
    let mut desk = office.desk("ada", "phone");
    desk.feed(&format!(r#"{{"type":"start_sync","sync_id":"{SYNC}"}}"#));
    assert!(!desk.session.wants_input());
    desk.settle();
    assert!(desk.session.wants_input());
}

#[test]
fn pulls_that_wait_are_bounded() {
    let office = office();
    let mut desk = office.desk("ada", "phone").start("");
    let mut fed = 0;
    while desk.session.wants_input() {
        desk.feed(&format!(r#"{{"type":"request_server_data","sync_id":"{SYNC}"}}"#));
        fed += 1;
    }
    assert_eq!(fed, 2);
    desk.settle();
    assert!(desk.session.wants_input());
}

#[test]
fn answers_come_in_the_order_of_the_questions() {
    let office = office();
    let mut desk = office.desk("ada", "phone").start("");
    desk.feed(&sync_data("m1", 1, &create(1)));
    desk.feed(&format!(r#"{{"type":"request_server_data","id":"m2","sync_id":"{SYNC}"}}"#));
    desk.feed(&sync_data("m3", 2, &format!("{},{{}},{}", create(2), create(1))));
    desk.feed(r#"{"type":"ping","id":"m4"}"#);
    desk.settle();
    let frames = desk.take();
    let answered: Vec<_> =
        frames.iter().map(|frame| (frame.kind.as_str(), frame.reply_to.as_deref())).collect();
    // What needs no work is answered at once.
    let wanted =
        [("pong", Some("m4")), ("ack", Some("m1")), ("server_data", Some("m2")), ("ack", Some("m3"))];
    assert_eq!(answered, wanted);
    assert!(frames[1..].iter().all(|frame| frame.sync_id.as_deref() == Some(SYNC)));
    let ServerMessage::Ack(ack) = frames[3].message() else { panic!("{:?}", frames[3]) };
    assert_eq!(
        (ack.of.as_str(), ack.batch_seq, ack.synced, ack.failed, ack.seq),
        ("sync_data", Some(2), 2, 1, 2)
    );
    let results: Vec<_> =
        ack.results.iter().map(|result| (result.index, result.code.as_str(), result.duplicate)).collect();
    assert_eq!(results, [(0, "applied", false), (1, "invalid", false), (2, "applied", true)]);
}

#[test]
fn the_end_tells_the_totals() {
    let office = office();
    let bob = office.author("bob", "phone");
    let mut desk = office.desk("ada", "phone").start("");
    // A field called change is no row.
    let drafts = (0..5).map(|at| driftline_testkit::create(&format!("b{at}"), r#"{"change":"x"}"#));
    office.push(&bob, drafts);
    let pull = format!(r#"{{"type":"request_server_data","sync_id":"{SYNC}"}}"#);
    desk.ask(&pull);
    desk.ask(&sync_data("m", 1, &format!("{},{}", create(1), create(2))));
    let clash =
        r#"{"n":3,"kind":"note","id":"b0","op":"patch","fields":{"change":"y"},"hlc":"000000000001-0000"}"#;
    desk.ask(&sync_data("m", 2, &format!("{clash},{{}}")));
    let frame = one(desk.ask(&format!(r#"{{"type":"end_sync","id":"e","sync_id":"{SYNC}"}}"#)));
    assert_eq!((frame.reply_to.as_deref(), frame.sync_id.as_deref()), (Some("e"), Some(SYNC)));
    let ServerMessage::SyncSessionEnded(ended) = frame.message() else { panic!("{frame:?}") };
    let totals = ended.totals;
    assert_eq!((totals.batches, totals.items, totals.synced, totals.failed), (2, 4, 3, 1));
    assert_eq!((totals.conflicts, totals.pulled), (1, 5));
    assert!(!desk.session.is_syncing());
    check_error(desk.ask(&pull), "UNKNOWN_SYNC_ID", None);
}

#[test]
fn draining_says_so_and_closes() {
    let office = office();
    let mut desk = office.desk("ada", "phone").start("");
    desk.feed(&sync_data("m", 1, &create(1)));
    let done = desk.perform();
    desk.session.drain(1_500, desk.now_ms);
    desk.poll();
    let frame = one(desk.take());
    let ServerMessage::ServerDraining(draining) = frame.message() else { panic!("{frame:?}") };
    assert_eq!(draining.reconnect_after_ms, 1_500);
    check_closed(&desk, 1012);
    // What comes late has nobody to go to.
    desk.report(done);
    desk.session.drain(1_500, desk.now_ms);
    desk.hear();
    assert_eq!(desk.take(), []);
}

#[test]
fn a_session_is_ended_with_a_reason() {
    use driftline_protocol::ErrorCode;
    for (code, close) in [(ErrorCode::Replaced, 4510), (ErrorCode::SlowConsumer, 4008)] {
        let office = office();
        let mut desk = office.desk("ada", "phone").start("");
        desk.session.end(code, "because", desk.now_ms);
        desk.poll();
        check_error(desk.take(), code.as_str(), None);
        check_closed(&desk, close);
    }
}

#[test]
fn a_useless_cursor_asks_for_a_resync() {
    let office = office();
    let bob = office.author("bob", "phone");
    office.push(&bob, [driftline_testkit::create("a", "{}")]);
    let mut desk = office.desk("ada", "phone").start("");
    let pull = |cursor: &str| {
        format!(
            r#"{{"type":"request_server_data","id":"p","sync_id":"{SYNC}","payload":{{"cursor":"{cursor}"}}}}"#
        )
    };
    let resync = |frames: &[Frame], code: &str| {
        assert_eq!(kinds(frames), ["error", "resync_required"], "{frames:#?}");
        assert_eq!(frames[0].error_code().as_deref(), Some(code));
        assert_eq!((frames[0].reply_to.as_deref(), frames[1].reply_to.as_deref()), (Some("p"), None));
        let ServerMessage::ResyncRequired(resync) = frames[1].message() else { panic!("{frames:?}") };
        assert!(resync.keep_queue);
        resync
    };
    let first = resync(&desk.ask(&pull("AAAA")), "CURSOR_INVALID").first;
    assert_eq!(first, "queue");

    let frames = desk.ask(&pull("").replace(r#""cursor":"""#, r#""limit":1"#));
    let ServerMessage::Page(page) = frames[0].message() else { panic!("{frames:?}") };
    block_on(office.engine.store().begin_epoch(desk.identity.tenant, desk_epoch(&office, &desk)))
        .expect("an epoch");
    // Batches of the old epoch are not applied until the device knows.
    let frames = desk.ask(&sync_data("m", 1, &create(1)));
    assert!(frames[0].text.contains("epoch_changed"), "{frames:?}");
    let required = resync(&desk.ask(&pull(&page.cursor)), "CURSOR_INVALID");
    let epoch = desk_epoch(&office, &desk);
    assert_eq!((required.first.as_str(), required.epoch), ("snapshot", epoch.to_string()));
    // Bases of the old life do not fit before a snapshot has replaced them.
    let frames = desk.ask(&sync_data("m", 2, &create(1)));
    assert!(frames[0].text.contains("epoch_changed"), "{frames:?}");
    // Cursors of deltas belong to the new epoch.
    desk.ask(&pull("").replace(r#""cursor":"""#, r#""limit":500"#));
    let frames = desk.ask(&sync_data("m", 3, &create(1)));
    assert!(frames[0].text.contains("applied"), "{frames:?}");
    office.push(&bob, [driftline_testkit::create("b", "{}")]);
    desk.hear();
    let frame = one(desk.take());
    let ServerMessage::Delta { rows, .. } = frame.message() else { panic!("{frame:?}") };
    assert_eq!(kinds(&desk.ask(&pull(&rows.cursor))), ["server_data"]);
}

fn desk_epoch(office: &Office, desk: &Desk<'_>) -> driftline_model::Epoch {
    block_on(office.engine.head(&desk.identity)).expect("a head").epoch
}

#[test]
fn a_session_that_starts_with_another_epoch_is_told() {
    let office = office();
    let mut desk = office.desk("ada", "phone");
    desk.take();
    let epoch = desk_epoch(&office, &desk).to_string();
    let start = |rest: &str| format!(r#"{{"type":"start_sync","id":"s","sync_id":"{SYNC}"{rest}}}"#);
    assert_eq!(kinds(&desk.ask(&start(&format!(r#","epoch":"{epoch}""#)))), ["sync_session_started"]);
    for rest in [r#","epoch":"00000000""#, r#","cursor":"AAAA""#] {
        let frames = desk.ask(&start(rest));
        assert_eq!(kinds(&frames), ["sync_session_started", "resync_required"], "{rest}");
        assert_eq!((frames[0].reply_to.as_deref(), frames[1].reply_to.as_deref()), (Some("s"), None));
        assert!(desk.session.is_syncing(), "the session is open all the same");
    }
}

#[test]
fn kinds_are_those_asked_for_and_allowed() {
    let rule = |role: &str| KindRule { read: vec![role.into()], ..KindRule::default() };
    let kind = |name: &str| driftline_model::KindName::new(name).expect("a kind");
    let catalogue =
        Catalogue::new([(kind("note"), KindRule::default()), (kind("secret"), rule("boss"))].into());
    let office = Office::with(Limits::default(), 64, catalogue);
    let boss = office.author("eve", "phone");
    let drafts = [driftline_testkit::create("a", "{}"), driftline_testkit::create("b", "{}").kind("secret")];
    office.push(&boss, drafts);
    for (asked, rows) in [("[]", 1), (r#"["note"]"#, 1), (r#"["secret","note"]"#, 1), (r#"["secret"]"#, 0)] {
        let mut desk = office.desk("ada", "phone").start(&format!(r#","data_types":{asked}"#));
        let pull = format!(
            r#"{{"type":"request_server_data","sync_id":"{SYNC}","payload":{{"data_types":{asked}}}}}"#
        );
        let frame = one(desk.ask(&pull));
        let ServerMessage::Page(page) = frame.message() else { panic!("{frame:?}") };
        assert_eq!((page.changes.len(), page.has_more), (rows, false), "{asked}");
    }
}

#[test]
fn a_bad_element_takes_no_number_from_a_good_one() {
    let office = office();
    let mut desk = office.desk("ada", "phone").start("");
    let good = r#"{"op_id":"good","n":1,"kind":"k","id":"g","op":"create","fields":{"v":1}}"#;
    for (seq, bad) in [(1, "7"), (2, r#"{"n":"x"}"#), (3, r#"{"kind":"k","op":"create"}"#)] {
        let frames = desk.ask(&sync_data("m", seq, &format!("{bad},{good}")));
        let ServerMessage::Ack(ack) = frames[0].message() else { panic!("{frames:?}") };
        let codes: Vec<&str> = ack.results.iter().map(|result| result.code.as_str()).collect();
        assert_eq!(codes, ["invalid", "applied"], "{bad}");
        assert_eq!(ack.results[1].duplicate, seq > 1);
    }
}

#[test]
fn the_end_waits_for_the_answers_before_it() {
    let office = office();
    let mut desk = office.desk("ada", "phone").start("");
    desk.feed(&sync_data("m", 1, &create(1)));
    desk.feed(&format!(r#"{{"type":"end_sync","id":"e","sync_id":"{SYNC}"}}"#));
    assert!(!desk.session.wants_input());
    desk.settle();
    let frames = desk.take();
    assert_eq!(kinds(&frames), ["ack", "sync_session_ended"], "{frames:#?}");
    let ServerMessage::SyncSessionEnded(ended) = frames[1].message() else { panic!("{frames:?}") };
    assert_eq!((ended.totals.batches, ended.totals.synced), (1, 1));
}

#[test]
fn a_commit_while_a_session_opens_sends_the_client_to_pull() {
    let office = office();
    let mut desk = office.desk("ada", "phone");
    desk.feed(&format!(r#"{{"type":"start_sync","sync_id":"{SYNC}"}}"#));
    let tenant = desk.identity.tenant;
    let committed = Committed::new(tenant, Seq::new(6), Seq::new(7), Hlc::ZERO, Some(Vec::new()));
    desk.session.handle_commit(&committed, 0);
    desk.settle();
    let frames = desk.take();
    let ServerMessage::Delta { prev_seq, rows } = frames.last().expect("frames").message() else {
        panic!("{frames:#?}")
    };
    assert_eq!(
        (prev_seq, rows.seq, rows.changes.len()),
        (Seq::new(7), Seq::new(7), 0),
        "it is not at the client's place"
    );
}
