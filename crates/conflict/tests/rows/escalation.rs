//! `preserve_escalation`: ordered fields, and deletes of what is urgent.

use driftline_conflict::{DeviceTable, FieldRule, Order, Parts, Policy, Strategy, apply};
use driftline_model::{DeviceNo, Hlc, Intents, Object, Seq};

use super::script::row;

fn escalating() -> Policy {
    let values = ["closed", "open", "urgent"].map(|value| format!("\"{value}\"").into()).to_vec();
    let ordered = FieldRule::Ordered(Order { values, urgent: Some(2) });
    Policy { strategy: Strategy::PreserveEscalation { fields: vec![("s".into(), ordered)] }, version: 0 }
}

fn rows(rows: &[(&[&str], &str)]) {
    for (steps, wanted) in rows {
        row(&escalating(), Some("ada 1 create 0 s=\"open\" @10"), steps, wanted);
    }
}

#[test]
fn a_raise_always_shows() {
    rows(&[
        (&["bob 1 patch 1 s=\"urgent\" was:s=\"open\" @20"], "applied s=\"urgent\""),
        (
            &[
                "sue 1 patch 1 s=\"closed\" was:s=\"open\" lower @30",
                "bob 1 patch 1 s=\"urgent\" was:s=\"open\" @20",
            ],
            "merged s=\"urgent\" | conflict s:client:escalation(\"closed\")",
        ),
        (&["bob 1 patch 1 s=\"open\" was:s=\"open\" @20"], "applied s=\"open\""),
    ]);
}

#[test]
fn a_lowering_says_so_and_has_the_right() {
    rows(&[
        (
            &["bob 1 patch 1 s=\"closed\" t=1 was:s=\"open\" @20"],
            "merged s=\"open\" t=1 | s:held:escalation(\"closed\") review:deescalation_held[s]",
        ),
        (
            &["bob 1 patch 1 s=\"closed\" was:s=\"open\" @20"],
            "merged s=\"open\" | s:held:escalation(\"closed\") review:deescalation_held[s]",
        ),
        (&["bob 1 patch 1 s=\"closed\" t=1 was:s=\"open\" lower @20"], "forbidden s=\"open\""),
        // What lowers nothing needs no right.
        (&["bob 1 patch 1 t=1 lower @20"], "applied s=\"open\" t=1"),
        (
            &["sue 1 patch 1 s=\"closed\" was:s=\"open\" lower @20"],
            "applied s=\"closed\" | s:client:escalation(\"open\")",
        ),
        // It shows only over what its author had seen.
        (
            &[
                "bob 1 patch 1 s=\"urgent\" was:s=\"open\" @20",
                "sue 1 patch 1 s=\"closed\" was:s=\"open\" lower @30",
            ],
            "merged s=\"urgent\" | conflict s:server:escalation(\"closed\")",
        ),
        (
            &[
                "bob 1 patch 1 s=\"urgent\" was:s=\"open\" @20",
                "sue 1 patch 2 s=\"closed\" was:s=\"urgent\" lower @30",
            ],
            "applied s=\"closed\" | s:client:escalation(\"urgent\")",
        ),
    ]);
}

#[test]
fn what_a_device_saw_or_made_is_not_lowered_unsaid() {
    rows(&[
        // Bob says to have seen the lower value; he had made the higher one himself.
        (
            &["bob 1 patch 1 s=\"urgent\" was:s=\"open\" @20", "bob 2 patch 1 s=\"open\" was:s=\"open\" @25"],
            "merged s=\"urgent\" | s:held:escalation(\"open\") review:deescalation_held[s]",
        ),
        // He had seen it by his base.
        (
            &["ada 2 patch 1 s=\"urgent\" was:s=\"open\" @20", "bob 1 patch 2 s=\"open\" was:s=\"open\" @25"],
            "merged s=\"urgent\" | s:held:escalation(\"open\") review:deescalation_held[s]",
        ),
        // He had not, and keeps what he saw: it shows when the higher one goes.
        (
            &["ada 2 patch 1 s=\"urgent\" was:s=\"open\" @20", "bob 1 patch 1 s=\"open\" was:s=\"open\" @25"],
            "merged s=\"urgent\" | conflict s:server:escalation(\"open\")",
        ),
        (
            &[
                "ada 2 patch 1 s=\"urgent\" was:s=\"open\" @20",
                "bob 1 patch 1 s=\"open\" was:s=\"open\" @25",
                "sue 1 patch 2 s=\"closed\" was:s=\"urgent\" lower @30",
            ],
            "merged s=\"open\" | conflict s:server:escalation(\"closed\")",
        ),
        // A later write of the same device stands.
        (
            &["bob 2 patch 1 s=\"urgent\" was:s=\"open\" @25", "bob 1 patch 1 s=\"open\" was:s=\"open\" @20"],
            "superseded s=\"urgent\" | s:server:own_newer(\"open\")",
        ),
    ]);
}

#[test]
fn ordered_fields_say_what_was_seen() {
    let missing = "an ordered field needs the value that its author saw";
    rows(&[
        (&["bob 1 patch 1 s=\"urgent\" @20"], &format!("invalid s=\"open\" | previous/s: {missing}")),
        (
            &["bob 1 patch 1 s=\"blue\" was:s=\"open\" @20"],
            "invalid s=\"open\" | fields/s: is not among the field's values",
        ),
        (
            &["bob 1 patch 1 s=\"urgent\" was:s=\"blue\" @20"],
            // What is not declared (any more) counts as below all.
            "applied s=\"urgent\"",
        ),
    ]);
    // A record that had none yet.
    row(
        &escalating(),
        Some("ada 1 create 0 t=1 @10"),
        &["bob 1 patch 1 s=\"open\" was:s=null @20"],
        "applied s=\"open\" t=1",
    );
    // A create needs no previous value, also where it meets a record.
    row(
        &escalating(),
        Some("ada 1 create 0 s=\"open\" @10"),
        &["bob 1 create 0 s=\"urgent\" @20"],
        "merged s=\"urgent\" | conflict s:client:escalation(\"open\")",
    );
}

#[test]
fn a_delete_of_what_is_urgent_is_held() {
    let raise = "ada 2 patch 1 s=\"urgent\" was:s=\"open\" @20";
    rows(&[
        (
            &[raise, "bob 1 delete 1 @30"],
            "merged s=\"urgent\" | conflict exists:held:escalation review:delete_held[]",
        ),
        // By whatever clock, and whichever arrives first.
        (&["bob 1 delete 1 @30", raise], "merged s=\"urgent\" | conflict exists:client:escalation"),
        (&[raise, "bob 1 delete 2 @30"], "applied deleted s=\"urgent\""),
        (
            &["ada 2 patch 1 s=\"open\" was:s=\"open\" @20", "bob 1 delete 1 @15"],
            "superseded s=\"open\" | conflict exists:server:most_recent",
        ),
        // Sue lowers the urgency without having seen the delete: the clocks decide.
        (
            &[raise, "bob 1 delete 1 @90", "sue 1 patch 2 s=\"open\" was:s=\"urgent\" lower @40"],
            "superseded deleted s=\"open\" | conflict s:client:escalation(\"urgent\") exists:server:most_recent",
        ),
        // She had seen it: whoever writes with the delete before the eyes wants the record to live.
        (
            &[raise, "bob 1 delete 1 @90", "sue 1 patch 3 s=\"open\" was:s=\"urgent\" lower @40"],
            "applied s=\"open\" | s:client:escalation(\"urgent\")",
        ),
        // A reader who saw the record alive is not told that it knew better.
        (
            &[
                raise,
                "bob 1 delete 1 @90",
                "sue 1 patch 2 s=\"open\" was:s=\"urgent\" lower @40",
                "eve 1 patch 3 t=1 @95",
            ],
            "merged s=\"open\" t=1 | conflict exists:client:most_recent",
        ),
    ]);
}

#[test]
fn assertions_are_cut_to_their_limit() {
    let names: Vec<String> = (0..10).map(|at| format!("device {at}")).collect();
    let devices = DeviceTable::new(names.iter().map(String::as_str));
    let object = |value: &str| Object::from_canonical(format!("{{\"s\":\"{value}\"}}")).expect("canonical");
    let mut record = None;
    let mut collapsed = 0;
    for (at, device) in (0..10).map(|at| (u64::from(at), DeviceNo::new(at))) {
        let value = if at == 3 { "urgent" } else { "open" };
        let intents = Intents { previous: object("open"), ..Intents::default() };
        let change = driftline_conflict::Change {
            op: if at == 0 { driftline_conflict::Op::Create } else { driftline_conflict::Op::Patch },
            base: Seq::ZERO,
            fields: object(value),
            intents: Some(Box::new(intents)),
            hlc: Some(Hlc::new(10 + at, 0)),
            device,
            n: 1,
        };
        let context = driftline_conflict::Context {
            next: Seq::new(at + 1),
            received: Hlc::new(1_000, 0),
            latest: Hlc::new(2_000, 0),
            devices: &devices,
            rights: driftline_conflict::Rights::default(),
        };
        let decision = apply(record.as_ref(), &change, &escalating(), &context);
        collapsed += usize::from(decision.collapsed);
        record = decision.record.or(record);
        let state = record.as_ref().and_then(|record| record.state("s"));
        if let Some(Parts::Ordered(assertions)) = state.map(|state| &state.parts) {
            assert!(assertions.len() <= 8, "{assertions:?}");
        }
    }
    assert_eq!(collapsed, 1);
    assert_eq!(record.expect("a record").fields.as_str(), "{\"s\":\"urgent\"}");
}
