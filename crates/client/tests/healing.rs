//! A server that was restored to an older state gets back what its devices still hold.

mod common;
#[path = "common/server.rs"]
mod server;

use common::{Device, create, delete, note, page, patch, put, record, result, row};
use driftline_client::{Edit, Event, Object, elements};
use driftline_model::Hlc;
use server::Server;

/// A server and some devices with a perfect network.
struct Site {
    server: Server,
    devices: Vec<Device>,
}

impl Site {
    fn new(devices: usize) -> Self {
        Self { server: Server::new(devices, 0), devices: (0..devices).map(|_| Device::new()).collect() }
    }

    fn sync(&mut self, at: usize) {
        let device = &mut self.devices[at];
        if self.server.connections[at].is_none() {
            self.server.connect(at);
            device.greet(&self.server.epoch_text());
        }
        for round in 0..2_000 {
            if round == 1_000 {
                device.replica.request_pull();
            }
            let sent = device.sent();
            let Some(connection) = &mut self.server.connections[at] else { return };
            connection.up.extend(sent);
            self.server.receive(at);
            self.server.send_ack(at);
            self.server.send_delta(at, 9);
            let connection = self.server.connections[at].as_mut().expect("connected");
            connection.down.drain(..).collect::<Vec<_>>().iter().for_each(|text| device.frame(text));
        }
        assert!(device.replica.is_settled(), "{:?}", device.replica);
    }

    fn restore(&mut self, state: server::State) {
        self.server.restore(state);
        self.devices.iter_mut().for_each(|device| device.replica.handle_disconnected());
    }

    fn shown(&self, at: usize) -> Vec<(String, String)> {
        let views = self.devices[at].replica.views();
        views.map(|(_, id, view)| (id.to_string(), view.fields.as_str().to_owned())).collect()
    }
}

#[test]
fn a_phone_gives_back_a_hundred_rows_of_which_the_backup_has_forty_and_older_ones() {
    let mut site = Site::new(3);
    let id = |number: u32| format!("r{number:03}");
    for number in 0..40 {
        site.devices[0].edit(create(&id(number), r#"{"a":1,"b":1}"#));
    }
    site.sync(0);
    let backup = site.server.state.clone();
    for number in 0..100 {
        match number {
            0 => site.devices[0].edit(delete(&id(number))),
            1..40 => site.devices[0].edit(patch(&id(number), r#"{"a":2}"#)),
            _ => site.devices[0].edit(create(&id(number), r#"{"a":2,"b":1}"#)),
        };
    }
    site.sync(0);
    site.sync(1);
    let held = site.shown(1);
    assert_eq!((held.len(), site.shown(0)), (99, held.clone()));

    // The phone that comes back first only read the rows.
    site.restore(backup);
    site.sync(1);
    let healing = site.devices[1].events().into_iter().find_map(|event| match event {
        Event::Healing { rows } => Some(rows),
        _ => None,
    });
    assert_eq!(healing, Some(100));
    site.sync(0);
    site.sync(2);
    for at in 0..3 {
        assert_eq!(site.shown(at), held, "device {at}");
        assert_eq!(site.devices[at].replica.dead_letters(), []);
    }
}

/// A device that held the rows at seq 10 of epoch 1 and pulls the snapshot of epoch 2; returns what it gives back.
fn given_back(device: &mut Device, snapshot: &str, seq: u64) -> String {
    given_back_under("{}", device, snapshot, seq)
}

fn given_back_under(policies: &str, device: &mut Device, snapshot: &str, seq: u64) -> String {
    begin_anew(policies, device, seq);
    device.page(snapshot, seq, "c2");
    device.sent().concat()
}

/// As above, of a page as it is.
fn given_back_of(device: &mut Device, snapshot: &str, seq: u64) -> String {
    begin_anew("{}", device, seq);
    device.frame(snapshot);
    device.sent().concat()
}

fn begin_anew(policies: &str, device: &mut Device, seq: u64) {
    device.replica.handle_disconnected();
    device.greet("00000002");
    device.one();
    device.frame(
        r#"{"type":"resync_required","reason":"epoch_changed","keep_queue":true,"first":"snapshot","epoch":"00000002"}"#,
    );
    device.one();
    device.started_under("00000002", seq, 100, policies);
    device.one();
}

fn with_clock(rows: &str, clock: Hlc) -> Device {
    let mut device = Device::new();
    device.connect("00000001", 10);
    device.sent();
    device.frame(&page(rows, 10, "c10", false).replace("000000000000-0000", &clock.to_string()));
    device
}

#[test]
fn the_clock_is_the_bodys_where_the_loss_is_certain_and_below_all_others_where_it_is_not() {
    let clock = Hlc::new(0x1234, 5);
    // (held version, the row in the snapshot, the head of the snapshot, op and clock)
    let low = Hlc::from_bits(9);
    let older = put("x", 7, r#"{"a":0}"#);
    let table = [
        (9, "", 7, Some(("create", clock))),
        (9, "", 9, Some(("create", low))),
        (9, &*older, 7, Some(("patch", clock))),
        (9, &*older, 20, Some(("patch", clock))),
        (7, &*older, 20, None),
        (6, &*older, 20, None),
    ];
    for (at, (version, snapshot, seq, wanted)) in table.into_iter().enumerate() {
        let mut device = with_clock(&put("x", version, r#"{"a":1}"#), clock);
        let sent = given_back(&mut device, snapshot, seq);
        match wanted {
            None => assert_eq!(sent, "", "case {at}"),
            Some((op, clock)) => {
                let item = format!(r#""id":"x","op":"{op}","op_id":"heal-00000002-"#);
                assert!(sent.contains(&item) && sent.contains(r#""base_version":0"#), "case {at}: {sent}");
                assert!(
                    sent.contains(&format!(r#""hlc":"{clock}","fields":{{"a":1}}"#)),
                    "case {at}: {sent}"
                );
            }
        }
    }
}

#[test]
fn a_row_that_others_edited_after_the_restore_gets_back_what_is_missing() {
    let clock = Hlc::new(0x1234, 5);
    let edited = put("x", 12, r#"{"a":0,"b":7}"#);
    // (where the epoch began, as the snapshot says, and whether the held row of version 9 is lost)
    for (begun, lost) in [(Some(7), true), (Some(9), false), (None, false)] {
        let mut device = with_clock(&put("x", 9, r#"{"a":1,"b":7}"#), clock);
        let told = begun.map_or(String::new(), |begun| format!(r#""epoch_seq":{begun},"#));
        let snapshot = page(&edited, 20, "c2", false).replace(r#""cursor""#, &format!(r#"{told}"cursor""#));
        let sent = given_back_of(&mut device, &snapshot, 20);
        let wanted = format!(r#""hlc":"{clock}","fields":{{"a":1}}"#);
        assert_eq!(sent.contains(&wanted), lost, "{begun:?}: {sent}");
        assert_eq!(sent.is_empty(), !lost, "{begun:?}: {sent}");
    }
}

#[test]
fn a_gift_is_whole_and_older_than_the_edits_of_the_user_that_follow_it() {
    let rows = [put("x", 9, r#"{"a":1,"b":1}"#), put("y", 9, "{}"), row("z", 9, "delete", "{}")].join(",");
    let mut device = Device::synced(&rows);
    device.edit(patch("x", r#"{"a":2}"#));
    device.edit(delete("y"));
    let sent = given_back(&mut device, &put("z", 3, r#"{"a":1}"#), 5);
    // (n, op) as they are sent
    let of = |id: &str| -> Vec<(u64, String)> {
        let start = format!(r#""id":"{id}","#);
        let parts = sent.split(&start).skip(1);
        let value = |part: &str, name: &str| {
            let rest = part.split_once(&format!("\"{name}\":")).expect("it is there").1;
            rest.split([',', '}']).next().expect("a value").trim_matches('"').to_owned()
        };
        parts.map(|part| (value(part, "n").parse().expect("a number"), value(part, "op"))).collect()
    };
    // Its number makes it older than the edit, and younger than what the device sent before.
    assert_eq!(of("x"), [(1, "create".into()), (9, "patch".into())], "{sent}");
    assert_eq!(of("y"), [(10, "create".into()), (18, "delete".into())], "{sent}");
    assert!(sent.contains(r#""fields":{"a":1,"b":1}"#) && sent.contains(r#""fields":{"a":2}"#), "{sent}");
    assert!(sent.contains(r#""acked_n":0"#), "{sent}");
    assert!(sent.contains(r#""id":"z","op":"delete""#), "a deletion is given back as well: {sent}");
    assert_eq!((device.shown("x").as_deref(), device.shown("y")), (Some(r#"{"a":2,"b":1}"#), None));
}

const RULES: &str = r#"{"strategy":"preserve_escalation","fields":{"n":{"rule":"counter"},"s":{"rule":"set"},
    "l":{"rule":"append"},"f":{"rule":"immutable"},"p":{"rule":"ordered","order":["low","mid","high"]},
    "q":{"rule":"ordered","order":["low","mid","high"]}}}"#;

#[test]
fn every_rule_gets_back_what_it_can_take() {
    let policies = format!(r#"{{"note":{RULES}}}"#);
    let held = r#"{"f":1,"l":[{"id":1},{"id":2}],"n":30,"p":"high","q":"low","s":["a","b"],"t":1}"#;
    let mut device = Device::synced_under(RULES, &put("x", 3, r#"{"n":10}"#));
    // The device itself had added five, others fifteen.
    device.edit(Edit::patch(note(), record("x"), Object::empty()).increment("n", 5));
    device.one();
    device.ack(1, 11, &result(0, "applied", 11, ""));
    device.delta(11, 12, &row("x", 12, "patch", held));
    let restored = put("x", 7, r#"{"f":0,"l":[{"id":1}],"n":10,"p":"low","q":"high","s":["a","c"]}"#);
    let sent = given_back_under(&policies, &mut device, &restored, 7);
    let wanted = r#""fields":{"p":"high","t":1},"previous":{"p":"low"},"add":{"l":[{"id":2}],"s":["b"]},"increments":{"n":5}}"#;
    assert!(sent.contains(wanted), "{sent}");

    // A row that is gone is made again; counters begin with what this device knows that it had added.
    let mut device = Device::synced_under(RULES, "");
    device.edit(create("x", r#"{"s":["a"]}"#).increment("n", 5).add("s", &elements(r#"["b"]"#).unwrap()));
    device.one();
    device.ack(1, 11, &result(0, "applied", 11, ""));
    device.delta(11, 12, &row("x", 12, "patch", r#"{"n":30}"#));
    let sent = given_back_under(&policies, &mut device, "", 7);
    assert!(sent.contains(r#""op":"create""#), "{sent}");
    assert!(sent.contains(r#""fields":{"s":["a","b"]},"increments":{"n":5}}"#), "{sent}");
}

#[test]
fn what_the_device_may_not_give_back_goes_without_a_dead_letter() {
    for (code, letters) in [("forbidden", 0), ("gone", 0), ("unknown_kind", 0), ("invalid", 1)] {
        let mut device = Device::synced(&put("x", 9, "{}"));
        assert!(given_back(&mut device, "", 5).contains("heal-"));
        device.ack(1, 5, &format!(r#"{{"index":0,"code":"{code}"}}"#));
        assert_eq!(device.replica.dead_letters().len(), letters, "{code}");
        assert_eq!((device.shown("x"), device.replica.queue_len()), (None, 0), "{code}");
    }
}

#[test]
fn rows_of_the_servers_own_kinds_are_not_given_back() {
    let conflict = put("x", 9, "{}").replace("\"note\"", "\"$conflicts\"");
    let mut device = Device::synced(&conflict);
    assert_eq!(given_back(&mut device, "", 5), "");
    assert!(device.replica.body("$conflicts", "x").is_none());
}

#[test]
fn a_snapshot_that_is_cut_is_compared_when_it_is_whole() {
    let mut device = Device::synced(&format!("{},{}", put("x", 8, r#"{"a":1}"#), put("y", 9, r#"{"a":1}"#)));
    device.replica.handle_disconnected();
    device.connect("00000002", 5);
    device.one();
    device.page_with_more(&put("x", 5, r#"{"a":0}"#), 5, "half");
    device.replica.handle_disconnected();
    device.connect("00000002", 5);
    assert!(device.one().contains("\"half\""));
    device.page("", 5, "c5");
    let sent = device.one();
    assert!(
        sent.contains(r#""id":"x","op":"patch""#) && sent.contains(r#""id":"y","op":"create""#),
        "{sent}"
    );
    // Sent again, it has the same name and number.
    device.replica.handle_disconnected();
    device.connect("00000002", 5);
    let again = device.one();
    let batch =
        |text: &str| text[text.find("\"batch\"").unwrap()..text.find("\"batch_seq\"").unwrap()].to_owned();
    assert_eq!(batch(&again), batch(&sent));
}
