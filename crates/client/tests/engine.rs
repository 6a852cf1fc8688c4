//! Replicas against the real engine: intents under every rule, and a server that is restored from a backup.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::sync::Arc;

use driftline_client::{Edit, KindName, Object, OpId, RecordId, Replica, SyncId, elements, fields};
use driftline_engine::{
    Catalogue, Clock, Engine, Hub, Identity, KindRule, NullObserver, Output, ScopeRule, Session, Store,
    Subscription, policy_of_doc,
};
use driftline_model::{DeviceId, Limits, TenantId, UserId};
use driftline_protocol::{Change, ChangeKind, Encoding, PolicyDoc, ServerMessage, decode};
use driftline_storage::MemoryStore;
use driftline_testkit::{FixedClock, Rng, SeededRandom, World, block_on};

const POLICIES: [(&str, &str); 3] = [
    ("note", r#"{"strategy":"most_recent_wins"}"#),
    (
        "site",
        r#"{"strategy":"field_merge","fields":{"n":{"rule":"counter"},"s":{"rule":"set"},"l":{"rule":"append"}}}"#,
    ),
    (
        "ticket",
        r#"{"strategy":"preserve_escalation","fields":{"p":{"rule":"ordered","order":["low","mid","high"],"urgent":"high"}}}"#,
    ),
];

fn kind(name: &str) -> KindName {
    KindName::new(name).unwrap()
}

fn record(id: &str) -> RecordId {
    RecordId::new(id).unwrap()
}

struct Office {
    engine: Engine<MemoryStore, NullObserver>,
    clock: Arc<FixedClock>,
}

impl Office {
    fn new() -> Self {
        let clock = Arc::new(FixedClock::new(World::BEGIN_MS));
        let hub = Arc::new(Hub::new(1_024));
        let store =
            MemoryStore::new(clock.clone(), Arc::new(SeededRandom::new(1)), hub.clone(), Limits::default());
        Self::over(store, hub, clock)
    }

    fn over(store: MemoryStore, hub: Arc<Hub>, clock: Arc<FixedClock>) -> Self {
        let rule = |(name, doc): (&str, &str)| {
            let policy = Arc::new(policy_of_doc(&PolicyDoc::parse(doc).unwrap(), 1).unwrap());
            (kind(name), KindRule { policy, ..KindRule::default() })
        };
        let mut kinds: BTreeMap<_, _> = POLICIES.into_iter().map(rule).collect();
        let of_team = KindRule { scope: ScopeRule::Group("team".into()), ..KindRule::default() };
        kinds.insert(kind("case"), of_team);
        let catalogue = Catalogue::new(kinds);
        Self { engine: Engine::new(store, hub, catalogue, Limits::default().lifted(), NullObserver), clock }
    }

    fn backup(&self) -> MemoryStore {
        self.engine.store().fork(Arc::new(Hub::new(1)))
    }

    /// Puts a server in this one's place that knows no more than the backup.
    fn restore(&mut self, backup: &MemoryStore) {
        let hub = Arc::new(Hub::new(1_024));
        let store = backup.fork(hub.clone());
        let tenant = block_on(store.tenant(&TenantId::new("acme").unwrap())).unwrap();
        let left = block_on(store.head(tenant)).unwrap().epoch;
        block_on(store.begin_epoch(tenant, left)).unwrap();
        *self = Self::over(store, hub, self.clock.clone());
    }

    fn identity(&self, device: &str, teams: &[&str]) -> Identity {
        let groups: Vec<_> = teams.iter().map(|team| ("team".into(), Box::from(*team))).collect();
        let (tenant, user) = (TenantId::new("acme").unwrap(), UserId::text("u").unwrap());
        let device = Some(DeviceId::new(device).unwrap());
        block_on(self.engine.identify(tenant, user, device, vec!["staff".into()], &groups)).unwrap()
    }
}

struct Phone {
    name: String,
    teams: Vec<&'static str>,
    replica: Replica,
    ops: u64,
    line: Option<Line>,
    /// What the server said, oldest first.
    heard: Vec<String>,
}

struct Line {
    session: Session,
    identity: Identity,
    inbox: Subscription,
}

impl Phone {
    fn new(name: &str) -> Self {
        let (teams, replica, heard) = (Vec::new(), Replica::default(), Vec::new());
        Self { name: name.into(), teams, replica, ops: 0, line: None, heard }
    }

    fn edit(&mut self, edit: Edit, office: &Office) {
        self.ops += 1;
        let op_id = OpId::new(&format!("{}-{}", self.name, self.ops)).unwrap();
        office.clock.advance(7);
        self.replica.edit(edit, op_id, office.clock.now_ms()).unwrap();
    }

    fn connect(&mut self, office: &Office) {
        let identity = office.identity(&self.name, &self.teams);
        let head = block_on(office.engine.head(&identity)).unwrap();
        let inbox = office.engine.subscribe(&identity);
        let (shared, now_ms) = (Arc::new(identity.clone()), office.clock.now_ms());
        let limits = Arc::clone(office.engine.limits());
        let meter = office.engine.meter(&identity.tenant_id, &identity.user, now_ms);
        let session = Session::new(shared, limits, meter, &head, "c".into(), 7 << 64, now_ms);
        self.replica.handle_connected(SyncId::new("00000000-0000-4000-8000-00000000000a").unwrap());
        self.line = Some(Line { session, identity, inbox });
    }

    fn cut(&mut self) {
        self.line = None;
        self.replica.handle_disconnected();
    }

    /// Exchanges messages until nobody has anything to say.
    fn pump(&mut self, office: &Office) {
        let Some(line) = &mut self.line else { return };
        let now_ms = office.clock.now_ms();
        loop {
            let mut quiet = true;
            while let Some(text) = self.replica.poll_transmit() {
                line.session
                    .handle_message(decode(Encoding::Json, text.as_bytes(), &Limits::default()), now_ms);
                quiet = false;
            }
            while let Some(committed) = line.inbox.try_next() {
                line.session.handle_commit(&committed, now_ms);
            }
            while let Some(output) = line.session.poll_output() {
                quiet = false;
                match output {
                    Output::Send(text) => {
                        self.replica.handle_frame(text.as_bytes(), now_ms).unwrap();
                        self.heard.push(text);
                    }
                    Output::Work(work) => {
                        let done = block_on(office.engine.perform(&line.identity, *work, now_ms, "test"));
                        line.session.handle_done(done, now_ms);
                    }
                    other => panic!("{other:?}"),
                }
            }
            if quiet {
                return;
            }
        }
    }

    /// Pushes and pulls everything.
    fn sync(&mut self, office: &Office) {
        if self.line.is_none() {
            self.connect(office);
        }
        self.pump(office);
        self.replica.request_pull();
        self.pump(office);
        assert!(self.replica.is_settled(), "{}: {:?}", self.name, self.replica);
    }

    fn shown(&self) -> BTreeMap<String, String> {
        let views = self.replica.views();
        views.map(|(kind, id, view)| (format!("{kind}/{id}"), view.fields.as_str().to_owned())).collect()
    }
}

/// The fields of the rows that the last page or delta told of, by kind of change.
fn told(phone: &Phone) -> Vec<(ChangeKind, String)> {
    let last = phone.heard.iter().rev().find_map(|text| {
        match ServerMessage::decode(Encoding::Json, text.as_bytes()).unwrap() {
            ServerMessage::Page(rows) | ServerMessage::Delta { rows, .. } if !rows.changes.is_empty() => {
                Some(rows)
            }
            _ => None,
        }
    });
    let row = |change: &Change| (change.change, change.fields.as_str().to_owned());
    last.unwrap().changes.iter().map(row).collect()
}

#[test]
fn only_changed_fields_go_down_to_who_has_the_record() {
    let ten = r#"{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"j":10}"#;
    let office = Office::new();
    let (mut writer, mut live, mut away) = (Phone::new("writer"), Phone::new("live"), Phone::new("away"));
    writer.edit(Edit::create(kind("note"), record("x"), fields(ten).unwrap()), &office);
    for phone in [&mut writer, &mut live, &mut away] {
        phone.sync(&office);
    }
    assert_eq!(told(&live), [(ChangeKind::Put, ten.to_owned())], "a first sync brings the whole record");
    away.cut();
    writer.edit(Edit::patch(kind("note"), record("x"), fields(r#"{"d":40}"#).unwrap()), &office);
    writer.pump(&office);
    live.pump(&office);
    assert!(live.heard.last().unwrap().starts_with(r#"{"type":"server_delta""#));
    assert_eq!(told(&live), [(ChangeKind::Patch, r#"{"d":40}"#.to_owned())]);

    // Several edits of others, of which a device that was away hears the sum.
    writer.edit(Edit::patch(kind("note"), record("x"), fields(r#"{"d":41,"e":50}"#).unwrap()), &office);
    writer.sync(&office);
    away.sync(&office);
    assert_eq!(told(&away), [(ChangeKind::Patch, r#"{"d":41,"e":50}"#.to_owned())]);
    live.pump(&office);
    let all = ten.replace(":4,", ":41,").replace(":5,", ":50,");
    for phone in [&writer, &live, &away] {
        assert_eq!(phone.shown()["note/x"], all, "{}", phone.name);
    }
}

fn site(id: &str) -> Edit {
    Edit::patch(kind("site"), record(id), Object::empty())
}

#[test]
fn a_restored_server_loses_nothing_that_phones_still_held() {
    let mut office = Office::new();
    let (mut author, mut reader, mut third) = (Phone::new("a"), Phone::new("b"), Phone::new("c"));
    for number in 0..40 {
        let text = fields(r#"{"a":1,"b":1}"#).unwrap();
        author.edit(Edit::create(kind("note"), record(&format!("n{number:02}")), text), &office);
    }
    author.edit(Edit::create(kind("site"), record("s"), fields(r#"{"s":["x"]}"#).unwrap()), &office);
    author.edit(Edit::create(kind("ticket"), record("t"), fields(r#"{"p":"low"}"#).unwrap()), &office);
    author.sync(&office);
    reader.sync(&office);
    let backup = office.backup();

    for number in 0..99 {
        let (id, text) = (record(&format!("n{number:02}")), fields(r#"{"a":2}"#).unwrap());
        let edit = match number {
            0..40 => Edit::patch(kind("note"), id, text),
            _ => Edit::create(kind("note"), id, text),
        };
        author.edit(edit, &office);
    }
    author.edit(Edit::patch(kind("ticket"), record("t"), fields(r#"{"p":"high"}"#).unwrap()), &office);
    author.edit(site("s").increment("n", 3).add("s", &elements(r#"["y"]"#).unwrap()), &office);
    reader.edit(site("s").increment("n", 4).add("l", &elements(r#"[{"id":1}]"#).unwrap()), &office);
    author.sync(&office);
    reader.sync(&office);
    author.sync(&office);
    let held = author.shown();
    assert_eq!((held.len(), &held), (101, &reader.shown()));
    assert_eq!(held["site/s"], r#"{"l":[{"id":1}],"n":7,"s":["x","y"]}"#);

    // The phones come back one after the other; the first one has an edit that it never sent.
    office.restore(&backup);
    [&mut author, &mut reader].into_iter().for_each(Phone::cut);
    let edit = Edit::patch(kind("note"), record("n50"), fields(r#"{"c":5}"#).unwrap());
    reader.edit(edit, &office);
    for _ in 0..2 {
        [&mut reader, &mut author, &mut third].into_iter().for_each(|phone| phone.sync(&office));
    }
    let mut wanted = held;
    wanted.insert("note/n50".into(), r#"{"a":2,"c":5}"#.into());
    for phone in [&author, &reader, &third] {
        assert_eq!(phone.shown(), wanted, "{}", phone.name);
        assert_eq!(phone.replica.dead_letters(), []);
        assert_eq!(phone.replica.repairs(), 0);
    }
}

#[test]
fn the_newest_body_and_the_users_later_edit_win() {
    let mut office = Office::new();
    let note = |text: &str| Edit::patch(kind("note"), record("x"), fields(text).unwrap());
    let (mut old, mut new, mut user) = (Phone::new("z"), Phone::new("a"), Phone::new("m"));
    old.edit(Edit::create(kind("note"), record("x"), fields(r#"{"a":1,"b":1,"c":1}"#).unwrap()), &office);
    old.sync(&office);
    let backup = office.backup();
    old.edit(note(r#"{"a":2,"b":2,"c":2}"#), &office);
    old.sync(&office);
    old.cut();
    new.sync(&office);
    new.edit(note(r#"{"a":3,"c":3}"#), &office);
    new.sync(&office);
    new.cut();
    office.restore(&backup);
    // A user writes to the restored server before anybody gives anything back.
    user.sync(&office);
    user.edit(note(r#"{"c":9}"#), &office);
    user.sync(&office);
    for _ in 0..2 {
        [&mut old, &mut new, &mut user].into_iter().for_each(|phone| phone.sync(&office));
    }
    for phone in [&old, &new, &user] {
        assert_eq!(phone.replica.dead_letters(), []);
        assert_eq!(phone.shown()["note/x"], r#"{"a":3,"b":2,"c":9}"#, "{}", phone.name);
    }
}

#[test]
fn a_phone_that_is_revoked_a_scope_ends_without_its_rows() {
    let office = Office::new();
    let (mut author, mut phone) = (Phone::new("a"), Phone::new("b"));
    author.teams = vec!["red", "blue"];
    phone.teams = vec!["red", "blue"];
    let case = |id: &str, text: &str| Edit::create(kind("case"), record(id), fields(text).unwrap());
    author.edit(case("r", r#"{"team":"red","v":1}"#), &office);
    author.edit(case("b", r#"{"team":"blue","v":1}"#), &office);
    author.edit(case("m", r#"{"team":"red","v":1}"#), &office);
    author.sync(&office);
    phone.sync(&office);
    assert_eq!(phone.shown().len(), 3);

    // The rights go, and a row of the team that is left moves to the other one.
    phone.cut();
    phone.teams = vec!["red"];
    let moved = Edit::patch(kind("case"), record("m"), fields(r#"{"team":"blue"}"#).unwrap());
    author.edit(moved, &office);
    author.sync(&office);
    phone.edit(Edit::patch(kind("case"), record("b"), fields(r#"{"v":2}"#).unwrap()), &office);
    phone.sync(&office);
    assert_eq!(phone.shown().into_keys().collect::<Vec<_>>(), ["case/r"]);
    assert_eq!(
        phone.replica.dead_letters().len(),
        1,
        "what was written without the right comes back as refused"
    );
    assert!(phone.replica.body("case", "b").is_none() && phone.replica.body("case", "m").is_none());

    // The rights come back, and with them rows that did not change meanwhile.
    phone.cut();
    phone.teams = vec!["red", "blue"];
    phone.sync(&office);
    assert_eq!(phone.shown(), author.shown());
    assert_eq!((phone.shown().len(), phone.replica.repairs()), (3, 0));
}

/// A random edit of what a phone sees.
fn random_edit(rng: &mut Rng, phone: &Phone, step: u64) -> Edit {
    let (kind_name, _) = POLICIES[usize::try_from(rng.below(3)).unwrap()];
    let id = format!("r{}", rng.below(2));
    let live = phone.replica.view(kind_name, &id).is_some();
    let (kind, id) = (kind(kind_name), record(&id));
    let level = ["low", "mid", "high"][usize::try_from(rng.below(3)).unwrap()];
    let text = match kind_name {
        "ticket" => format!(r#"{{"f{}":{step},"p":"{level}"}}"#, rng.below(2)),
        "site" => format!(r#"{{"s":["e{}"]}}"#, rng.below(4)),
        _ => format!(r#"{{"f{}":{step}}}"#, rng.below(3)),
    };
    let written = fields(&text).unwrap();
    let edit = match (live, rng.below(8)) {
        (true, 0) => return Edit::delete(kind, id),
        (true, _) => Edit::patch(kind, id, written),
        (false, _) => Edit::create(kind, id, written),
    };
    match (kind_name, rng.below(4)) {
        ("site", 0) => edit.increment("n", i64::try_from(step).unwrap()),
        ("site", 1) => edit.add("l", &elements(&format!(r#"[{{"id":{step}}}]"#)).unwrap()),
        ("site", 2) => edit.remove("s", &elements(r#"["e0","e1"]"#).unwrap()),
        ("ticket", 0) => edit.deescalate(),
        _ => edit,
    }
}

#[test]
fn phones_agree_with_the_server_and_with_a_restored_one() {
    for seed in 0..300 {
        let restores = seed % 3 == 0;
        let mut office = Office::new();
        let mut backup = office.backup();
        let mut rng = Rng::new(seed);
        let mut phones: Vec<Phone> = ["a", "b", "c"].map(Phone::new).into();
        for step in 1..60_u64 {
            let at = usize::try_from(rng.below(3)).unwrap();
            match rng.below(8) {
                0 => phones[at].sync(&office),
                1 => phones[at].cut(),
                2..4 => phones[at].pump(&office),
                4 if restores && step.is_multiple_of(3) => backup = office.backup(),
                4 if restores && step.is_multiple_of(7) => {
                    office.restore(&backup);
                    phones.iter_mut().for_each(Phone::cut);
                }
                _ => {
                    let edit = random_edit(&mut rng, &phones[at], step);
                    phones[at].edit(edit, &office);
                }
            }
        }
        for _ in 0..2 {
            phones.iter_mut().for_each(|phone| phone.sync(&office));
        }
        let mut fresh = Phone::new("fresh");
        fresh.sync(&office);
        for phone in &phones {
            assert_eq!(phone.shown(), fresh.shown(), "seed {seed}, phone {}", phone.name);
            assert_eq!(phone.replica.repairs(), 0, "seed {seed}, phone {}", phone.name);
            let invalid = phone.replica.dead_letters().iter().find(|letter| !letter.errors.is_empty());
            assert_eq!(invalid, None, "seed {seed}");
        }
    }
}
