//! Live deltas: who is told what, and how a client sees that it missed something.

mod support;

use driftline_engine::{Catalogue, Committed, KindRule, ScopeRule};
use driftline_model::{Hlc, KindName, Limits, Object, Seq};
use driftline_protocol::{Change, ChangeKind, ItemCode, Rows, ServerMessage};
use driftline_testkit::{Rng, World, create, delete, patch};

use support::desk::{Desk, Frame, Office, SYNC, kinds};
use support::over_seeds;
use support::reader::Reader;

fn office() -> Office {
    Office::new(Limits::default(), 64)
}

/// A delta as `(prev_seq, seq, ids)`.
fn delta(frame: &Frame) -> (u64, u64, Vec<String>) {
    let ServerMessage::Delta { prev_seq, rows } = frame.message() else { panic!("{frame:?}") };
    assert_eq!((frame.sync_id.as_deref(), frame.reply_to.as_deref()), (Some(SYNC), None));
    let ids = rows.changes.iter().map(|change| change.id.to_string()).collect();
    (prev_seq.number(), rows.seq.number(), ids)
}

fn deltas(desk: &mut Desk<'_>) -> Vec<(u64, u64, Vec<String>)> {
    desk.hear();
    desk.take().iter().map(delta).collect()
}

fn told(prev_seq: u64, seq: u64, ids: &[&str]) -> (u64, u64, Vec<String>) {
    (prev_seq, seq, ids.iter().map(|id| (*id).to_owned()).collect())
}

fn pull(rest: &str) -> String {
    format!(r#"{{"type":"request_server_data","sync_id":"{SYNC}","payload":{{{rest}}}}}"#)
}

#[test]
fn changes_of_others_are_told_as_they_are_committed() {
    let office = office();
    let bob = office.author("bob", "phone");
    office.push(&bob, [create("before", "{}")]);
    let mut desk = office.desk("ada", "phone").start("");
    assert_eq!(deltas(&mut desk), [], "what was before the session is for a pull");
    office.push(&bob, [create("a", r#"{"x":1}"#), patch("a", 2, r#"{"y":2}"#)]);
    office.push(&bob, [delete("a", 3)]);
    desk.hear();
    let frames = desk.take();
    let ServerMessage::Delta { rows, .. } = frames[0].message() else { panic!("{frames:?}") };
    let changes: Vec<_> =
        rows.changes.iter().map(|row| (row.change, row.version.number(), row.fields.as_str())).collect();
    assert_eq!(changes, [(ChangeKind::Put, 2, r#"{"x":1}"#), (ChangeKind::Patch, 3, r#"{"y":2}"#)]);
    let seen: Vec<_> = frames.iter().map(delta).collect();
    assert_eq!(seen, [told(1, 3, &["a", "a"]), told(3, 4, &["a"])]);
}

#[test]
fn nobody_is_told_before_a_session_is_open_or_after_it_ended() {
    let office = office();
    let bob = office.author("bob", "phone");
    let mut desk = office.desk("ada", "phone");
    desk.take();
    office.push(&bob, [create("a", "{}")]);
    assert_eq!(deltas(&mut desk), []);
    let mut desk = desk.start("");
    desk.ask(&format!(r#"{{"type":"end_sync","sync_id":"{SYNC}"}}"#));
    office.push(&bob, [create("b", "{}")]);
    assert_eq!(deltas(&mut desk), []);
}

#[test]
fn own_writes_are_not_told_and_leave_no_hole() {
    let office = office();
    let (bob, phone, tablet) =
        (office.author("bob", "phone"), office.author("ada", "phone"), office.author("ada", "tablet"));
    let mut desk = office.desk("ada", "phone").start("");
    office.push(&phone, [create("own", "{}")]);
    assert_eq!(deltas(&mut desk), [], "by whatever door they came");
    office.push(&tablet, [create("hers", "{}")]);
    office.push(&phone, [create("own2", "{}")]);
    office.push(&bob, [create("his", "{}")]);
    assert_eq!(deltas(&mut desk), [told(0, 2, &["hers"]), told(2, 4, &["his"])]);
}

#[test]
fn scopes_and_kinds_are_kept() {
    let kind = |name: &str| KindName::new(name).expect("a kind");
    let staff = KindRule { read: vec!["boss".into()], ..KindRule::default() };
    let own = KindRule { scope: ScopeRule::Owner, ..KindRule::default() };
    let declared = [
        (kind("note"), KindRule::default()),
        (kind("car"), KindRule::default()),
        (kind("diary"), own),
        (kind("secret"), staff),
    ];
    let office = Office::with(Limits::default(), 64, Catalogue::new(declared.into()));
    let (bob, tablet) = (office.author("bob", "phone"), office.author("ada", "tablet"));
    let mut all = office.desk("ada", "phone").start("");
    let mut cars = office.desk("ada", "watch").start(r#","data_types":["car","secret"]"#);
    let mut none = office.desk("ada", "ring").start(r#","data_types":["secret"]"#);
    office
        .push(&bob, [create("n1", "{}"), create("c1", "{}").kind("car"), create("s1", "{}").kind("secret")]);
    office.push(&bob, [create("d1", "{}").kind("diary").owned(), create("s2", "{}").kind("secret")]);
    office.push(&tablet, [create("d2", "{}").kind("diary").owned()]);
    office.push(&bob, [create("c2", "{}").kind("car")]);
    assert_eq!(deltas(&mut all), [told(0, 3, &["n1", "c1"]), told(3, 6, &["d2"]), told(6, 7, &["c2"])]);
    assert_eq!(
        deltas(&mut cars),
        [told(0, 3, &["c1"]), told(3, 7, &["c2"])],
        "what is filtered leaves no hole"
    );
    assert_eq!(deltas(&mut none), []);
}

#[test]
fn a_pull_moves_the_place() {
    let office = office();
    let bob = office.author("bob", "phone");
    let mut desk = office.desk("ada", "phone").start("");
    office.push(&bob, [create("a", "{}"), create("b", "{}")]);
    // The page has it all before the commit is heard.
    let frames = desk.ask(&pull(""));
    assert_eq!(kinds(&frames), ["server_data"], "and then it is not told again");
    office.push(&bob, [create("c", "{}")]);
    assert_eq!(deltas(&mut desk), [told(2, 3, &["c"])]);

    // A page with more behind it moves nothing.
    office.push(&bob, [create("d", "{}"), create("e", "{}")]);
    desk.feed(&pull(r#""limit":1"#));
    desk.settle();
    desk.take();
    assert_eq!(deltas(&mut desk), [told(3, 5, &["d", "e"])]);
}

#[test]
fn a_delta_between_a_page_and_its_answer_comes_first() {
    let office = office();
    let bob = office.author("bob", "phone");
    let mut desk = office.desk("ada", "phone").start("");
    desk.feed(&pull(""));
    let page = desk.perform();
    office.push(&bob, [create("a", "{}")]);
    desk.hear();
    desk.report(page);
    let frames = desk.take();
    assert_eq!(kinds(&frames), ["server_delta", "server_data"]);
    assert_eq!(delta(&frames[0]), told(0, 1, &["a"]));
    let ServerMessage::Page(page) = frames[1].message() else { panic!("{frames:?}") };
    assert_eq!((page.seq, page.changes.len()), (Seq::ZERO, 0), "the page is of the time before");
    // A client that took the delta goes on; one that took the older page last sees another number and pulls.
    office.push(&bob, [create("b", "{}")]);
    assert_eq!(deltas(&mut desk), [told(1, 2, &["b"])]);
}

#[test]
fn a_lost_commit_shows() {
    let office = office();
    let bob = office.author("bob", "phone");
    let mut desk = office.desk("ada", "phone").start("");
    office.push(&bob, [create("a", "{}")]);
    assert_eq!(deltas(&mut desk), [told(0, 1, &["a"])]);
    office.push(&bob, [create("b", "{}")]);
    desk.lose();
    office.push(&bob, [create("c", "{}")]);
    let (prev_seq, seq, _) = deltas(&mut desk).remove(0);
    assert_ne!(prev_seq, 1, "the client stands at 1 and must not take this for the next one");
    assert_eq!(seq, 3);
    // It must not trust what follows either, until it has pulled.
    office.push(&bob, [create("d", "{}")]);
    let (prev_seq, _, _) = deltas(&mut desk).remove(0);
    assert_ne!(prev_seq, 1);
    desk.ask(&pull(""));
    office.push(&bob, [create("e", "{}")]);
    assert_eq!(deltas(&mut desk), [told(4, 5, &["e"])]);
}

#[test]
fn a_commit_of_another_node_sends_the_client_to_pull() {
    let office = office();
    let bob = office.author("bob", "phone");
    let mut desk = office.desk("ada", "phone").start("");
    // What another node commits reaches this one as the head alone.
    office.push(&bob, [create("a", "{}"), create("b", "{}")]);
    desk.lose();
    let elsewhere = |prev_seq, seq| {
        let (prev_seq, seq) = (Seq::new(prev_seq), Seq::new(seq));
        Committed::new(desk.identity.tenant, prev_seq, seq, Hlc::ZERO, None)
    };
    let (heard, late) = (elsewhere(0, 2), elsewhere(1, 2));
    desk.session.handle_commit(&heard, desk.now_ms);
    desk.poll();
    assert_eq!(deltas(&mut desk), [told(2, 2, &[])], "the client stands at 0, so that it pulls");
    // Told again, or late, it is no news.
    desk.session.handle_commit(&late, desk.now_ms);
    desk.poll();
    assert_eq!(deltas(&mut desk), []);

    let frames = desk.ask(&pull(""));
    let [frame] = &frames[..] else { panic!("{frames:?}") };
    let ServerMessage::Page(page) = frame.message() else { panic!("{frame:?}") };
    assert_eq!((page.seq, page.changes.len()), (Seq::new(2), 2));
    office.push(&bob, [create("c", "{}")]);
    assert_eq!(deltas(&mut desk), [told(2, 3, &["c"])], "what this node commits follows as before");
}

#[test]
fn a_lost_commit_of_nobodys_interest_shows_too() {
    let office = office();
    let bob = office.author("bob", "phone");
    let mut desk = office.desk("ada", "phone").start("");
    office.push(&bob, [create("a", "{}")]);
    desk.lose();
    // Nothing of this one is for the reader, but only it can tell of the hole.
    office.push(&bob, [create("b", "{}").owned()]);
    let (prev_seq, seq, ids) = deltas(&mut desk).remove(0);
    assert_ne!(prev_seq, 0);
    assert_eq!((seq, ids.len()), (2, 0));
}

#[test]
fn a_pull_of_some_kinds_does_not_stand_for_all() {
    let office = office();
    let bob = office.author("bob", "phone");
    office.push(&bob, [create("a", "{}"), create("b", "{}").kind("car")]);
    let mut desk = office.desk("ada", "phone").start("");
    office.push(&bob, [create("c", "{}")]);
    desk.lose();
    let frames = desk.ask(&pull(r#""data_types":["car"]"#));
    let ServerMessage::Page(page) = frames[0].message() else { panic!("{frames:?}") };
    office.push(&bob, [create("d", "{}")]);
    let (prev_seq, ..) = deltas(&mut desk).remove(0);
    assert_ne!(prev_seq, page.seq.number(), "its cursor would cover notes that were never told");
}

#[test]
fn the_last_commit_is_never_lost_by_a_slow_session() {
    let office = Office::new(Limits::default(), 1);
    let bob = office.author("bob", "phone");
    let mut desk = office.desk("ada", "phone").start("");
    for at in 0..10 {
        office.push(&bob, [create(&format!("x{at}"), "{}")]);
    }
    let heard = deltas(&mut desk);
    let (prev_seq, seq, _) = heard.last().expect("deltas");
    assert_eq!(*seq, 10, "nothing comes after it, and still the client sees that it must pull");
    assert!(heard[..heard.len() - 1].iter().all(|(_, before, _)| before != prev_seq));
}

// A client that follows the rules ends with what the server has, whatever is lost on the way.

/// What a rule-abiding client does wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// It takes deltas whatever they follow.
    IgnoresHoles,
    /// It takes a page that has more behind it for the whole.
    StopsEarly,
    /// It takes a patch for the whole record.
    PatchesArePuts,
}

struct Client<'a> {
    desk: Desk<'a>,
    reader: Reader,
    fault: Fault,
    /// Where it stands; nothing while it is not caught up.
    at: Option<Seq>,
    n: u64,
}

impl Client<'_> {
    fn feed(&mut self, frame: &str) -> Result<(), String> {
        self.desk.feed(frame);
        self.desk.settle();
        self.read()
    }

    fn read(&mut self) -> Result<(), String> {
        for frame in self.desk.take() {
            match frame.message() {
                ServerMessage::Page(page) => {
                    self.take(&page)?;
                    let whole = !page.has_more || self.fault == Fault::StopsEarly;
                    (self.at, self.reader.cursor) = (whole.then_some(page.seq), Some(page.cursor));
                }
                ServerMessage::Delta { prev_seq, rows } => {
                    let next =
                        self.at == Some(prev_seq) || self.at.is_some() && self.fault == Fault::IgnoresHoles;
                    if next {
                        self.take(&rows)?;
                        (self.at, self.reader.cursor) = (Some(rows.seq), Some(rows.cursor));
                    } else {
                        self.at = None;
                    }
                }
                ServerMessage::Ack(ack) => {
                    for result in ack.results {
                        self.take_own(&result)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn take(&mut self, rows: &Rows) -> Result<(), String> {
        for change in &rows.changes {
            let change = match self.fault {
                Fault::PatchesArePuts if change.change == ChangeKind::Patch => {
                    Change { change: ChangeKind::Put, ..change.clone() }
                }
                _ => change.clone(),
            };
            self.reader.take(&change)?;
        }
        Ok(())
    }

    /// Takes over what became of an own write: the record in the answer, or what was sent.
    fn take_own(&mut self, result: &driftline_protocol::ItemResult) -> Result<(), String> {
        let (Some(version), Some(id)) = (result.version, &result.id) else { return Ok(()) };
        let (fields, deleted) = match &result.record {
            Some(record) => (record.fields.clone(), record.deleted),
            None if result.code == ItemCode::Applied => (own_fields(), false),
            None => return Ok(()),
        };
        self.reader.take(&Change {
            kind: KindName::new("note").map_err(|error| error.to_string())?,
            id: id.parse().map_err(|_| "an id".to_owned())?,
            scope: driftline_model::ScopeName::tenant(),
            version: Seq::new(version),
            change: if deleted { ChangeKind::Delete } else { ChangeKind::Put },
            fields,
        })
    }

    fn pull(&mut self) -> Result<(), String> {
        let cursor = self.reader.cursor.as_ref().map(|cursor| format!(r#""cursor":"{cursor}""#));
        self.feed(&pull(&cursor.unwrap_or_default()))
    }

    fn check(&self) -> Result<(), String> {
        self.reader.check_equal(self.desk.office.engine.store())
    }
}

fn own_fields() -> Object {
    driftline_testkit::object(r#"{"o":1}"#)
}

fn live_clients_keep_up(fault: &Fault, seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let page_rows = usize::try_from(rng.between(1, 4)).expect("small");
    let office = Office::new(Limits { page_rows, ..Limits::default() }, 2);
    let bob = office.author("bob", "phone");
    let desk = office.desk("ada", "phone").start("");
    let mut client = Client {
        reader: Reader::new((*desk.identity).clone(), Vec::new()),
        desk,
        fault: *fault,
        at: None,
        n: 0,
    };
    for step in 0..rng.between(10, 60) {
        match rng.below(20) {
            0..8 => {
                let id = format!("x{}", rng.below(5));
                let base = rng.below(step * 2 + 1);
                let fields = format!(r#"{{"{}":{step}}}"#, ["a", "b"][rng.place(2)]);
                let draft = match rng.below(5) {
                    0 => create(&id, &fields),
                    1 => delete(&id, base),
                    _ => patch(&id, base, &fields),
                };
                office.push(&bob, [if rng.percent(20) { draft.owned() } else { draft }]);
            }
            8 => {
                client.n += 1;
                let id = format!("own{}", client.n);
                let item = format!(
                    r#"{{"n":{},"kind":"note","id":"{id}","op":"create","fields":{{"o":1}}}}"#,
                    client.n
                );
                client.feed(&format!(
                    r#"{{"type":"sync_data","sync_id":"{SYNC}","payload":{{"batch":[{item}]}}}}"#
                ))?;
            }
            9 => client.desk.lose(),
            10..13 => client.pull()?,
            13 => {
                // The connection breaks; the next one begins with what the client has.
                client.desk = office.desk("ada", "phone").start("");
            }
            14 => {
                // A page is read, then commits are heard, then the page is answered.
                let cursor = client.reader.cursor.as_ref().map(|cursor| format!(r#""cursor":"{cursor}""#));
                client.desk.feed(&pull(&cursor.unwrap_or_default()));
                let page = client.desk.perform();
                office.push(&bob, [patch("x0", step, &format!(r#"{{"a":{step}}}"#)), create("x1", "{}")]);
                client.desk.hear();
                client.desk.report(page);
                client.read()?;
            }
            _ => {
                client.desk.hear();
                client.read()?;
                let head = driftline_testkit::block_on(office.engine.head(&client.desk.identity));
                if client.at == head.ok().map(|head| head.seq) {
                    client.check()?;
                }
            }
        }
    }
    client.desk.hear();
    client.read()?;
    while client.at.is_none() || rng.percent(30) {
        client.pull()?;
    }
    // A client that stands somewhere knows everything up to there; a last change shows whether it stands at the end.
    office.clock.set(World::BEGIN_MS);
    office.push(&bob, [create("last", "{}")]);
    client.desk.hear();
    client.read()?;
    while client.at.is_none() {
        client.pull()?;
    }
    client.check()
}

#[test]
fn live_clients_are_given_everything() {
    if let Err(broken) = over_seeds(&Fault::Nothing, 1_500, &live_clients_keep_up) {
        panic!("{broken}");
    }
}

#[test]
fn a_client_that_breaks_the_rules_is_noticed() {
    for fault in [Fault::IgnoresHoles, Fault::StopsEarly, Fault::PatchesArePuts] {
        assert!(over_seeds(&fault, 1_500, &live_clients_keep_up).is_err(), "{fault:?} went unnoticed");
    }
}
