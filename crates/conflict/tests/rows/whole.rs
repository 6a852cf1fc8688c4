//! Whole values and deletes, under every strategy that decides by the two sides alone.

use driftline_conflict::{DeletedRecord, FieldRule, Granularity, OnDelete, Policy, Strategy};

use super::script::{CREATED, play, show};

const EVERY: &str = "client_wins client_wins/stays client_wins/field server_wins server_wins/field \
                     most_recent_wins field_merge";
const CLIENT: &str = "client_wins client_wins/stays client_wins/field";
const RESTORING: &str = "client_wins client_wins/field";
const SERVER: &str = "server_wins server_wins/field";
const RECENT: &str = "most_recent_wins field_merge";

fn policy(name: &str) -> Policy {
    let strategy = match name {
        "client_wins" => {
            Strategy::ClientWins { granularity: Granularity::Record, deleted: DeletedRecord::Restored }
        }
        "client_wins/stays" => {
            Strategy::ClientWins { granularity: Granularity::Record, deleted: DeletedRecord::StaysDeleted }
        }
        "client_wins/field" => {
            Strategy::ClientWins { granularity: Granularity::Field, deleted: DeletedRecord::Restored }
        }
        "server_wins" => Strategy::ServerWins { granularity: Granularity::Record },
        "server_wins/field" => Strategy::ServerWins { granularity: Granularity::Field },
        "most_recent_wins" => Strategy::MostRecentWins,
        "field_merge" => Strategy::FieldMerge {
            fields: vec![("a".into(), FieldRule::Lww)],
            on_delete: OnDelete::MostRecent,
        },
        other => panic!("no policy {other}"),
    };
    Policy { strategy, version: 0 }
}

/// Checks a scenario: for every policy, what becomes of its last step.
fn check(first: Option<&str>, steps: &[&str], rows: &[(&str, &str)]) {
    let mut seen = Vec::new();
    for (policies, wanted) in rows {
        for name in policies.split_whitespace() {
            let (decision, record) = play(&policy(name), first, steps);
            let shown = show(&decision, record.as_ref());
            assert_eq!(shown, *wanted, "{name}: {steps:?}");
            seen.push(name);
        }
    }
    let mut all: Vec<&str> = EVERY.split_whitespace().collect();
    all.sort_unstable();
    seen.sort_unstable();
    assert_eq!(seen, all, "every policy has its row: {steps:?}");
}

#[test]
fn both_edited_the_same_field() {
    check(
        CREATED,
        &["ada 2 patch 1 a=2 @20", "bob 1 patch 1 a=3 @25"],
        &[
            (CLIENT, "merged a=3 b=1 | conflict a:client:client_wins(2)"),
            (SERVER, "superseded a=2 b=1 | conflict a:server:server_wins(3)"),
            (RECENT, "merged a=3 b=1 | conflict a:client:most_recent(2)"),
        ],
    );
    check(
        CREATED,
        &["ada 2 patch 1 a=2 @20", "bob 1 patch 1 a=3 @15"],
        &[
            (CLIENT, "merged a=3 b=1 | conflict a:client:client_wins(2)"),
            (SERVER, "superseded a=2 b=1 | conflict a:server:server_wins(3)"),
            (RECENT, "superseded a=2 b=1 | conflict a:server:most_recent(3)"),
        ],
    );
    // Equal clocks: the device with the larger bytes.
    check(
        CREATED,
        &["ada 2 patch 1 a=2 @20", "bob 1 patch 1 a=3 @20"],
        &[
            (CLIENT, "merged a=3 b=1 | conflict a:client:client_wins(2)"),
            (SERVER, "superseded a=2 b=1 | conflict a:server:server_wins(3)"),
            (RECENT, "merged a=3 b=1 | conflict a:client:most_recent(2)"),
        ],
    );
    check(
        CREATED,
        &["bob 1 patch 1 a=3 @20", "ada 2 patch 1 a=2 @20"],
        &[
            (CLIENT, "merged a=2 b=1 | conflict a:client:client_wins(3)"),
            (SERVER, "superseded a=3 b=1 | conflict a:server:server_wins(2)"),
            (RECENT, "superseded a=3 b=1 | conflict a:server:most_recent(2)"),
        ],
    );
}

#[test]
fn both_edited_different_fields() {
    check(
        CREATED,
        &["ada 2 patch 1 a=2 @20", "bob 1 patch 1 b=3 @15"],
        &[
            ("client_wins client_wins/stays", "merged a=2 b=3 | conflict"),
            ("client_wins/field server_wins/field most_recent_wins field_merge", "merged a=2 b=3"),
            ("server_wins", "superseded a=2 b=1 | conflict b:server:server_wins(3)"),
        ],
    );
    check(
        CREATED,
        &["ada 2 patch 1 a=2 @20", "bob 1 patch 1 a=3 b=3 @15"],
        &[
            (CLIENT, "merged a=3 b=3 | conflict a:client:client_wins(2)"),
            ("server_wins", "superseded a=2 b=1 | conflict a:server:server_wins(3) b:server:server_wins(3)"),
            ("server_wins/field", "merged a=2 b=3 | conflict a:server:server_wins(3)"),
            (RECENT, "merged a=2 b=3 | conflict a:server:most_recent(3)"),
        ],
    );
    check(
        CREATED,
        &["ada 2 patch 1 a=2 @20", "bob 1 patch 1 c=3 @15"],
        &[
            ("client_wins client_wins/stays", "merged a=2 b=1 c=3 | conflict"),
            ("client_wins/field server_wins/field most_recent_wins field_merge", "merged a=2 b=1 c=3"),
            ("server_wins", "superseded a=2 b=1 | conflict c:server:server_wins(3)"),
        ],
    );
}

#[test]
fn an_update_meets_a_delete() {
    check(
        CREATED,
        &["ada 2 delete 1 @20", "bob 1 patch 1 a=3 @25"],
        &[
            (RESTORING, "merged a=3 b=1 | conflict exists:client:client_wins"),
            (
                "client_wins/stays",
                "superseded deleted a=3 b=1 | conflict a:server:server_wins(3) exists:server:server_wins",
            ),
            (
                SERVER,
                "superseded deleted a=1 b=1 | conflict a:server:server_wins(3) exists:server:server_wins",
            ),
            (RECENT, "merged a=3 b=1 | conflict exists:client:most_recent"),
        ],
    );
    check(
        CREATED,
        &["ada 2 delete 1 @20", "bob 1 patch 1 a=3 @15"],
        &[
            (RESTORING, "merged a=3 b=1 | conflict exists:client:client_wins"),
            (
                "client_wins/stays",
                "superseded deleted a=3 b=1 | conflict a:server:server_wins(3) exists:server:server_wins",
            ),
            (
                SERVER,
                "superseded deleted a=1 b=1 | conflict a:server:server_wins(3) exists:server:server_wins",
            ),
            (
                RECENT,
                "superseded deleted a=3 b=1 | conflict a:server:most_recent(3) exists:server:most_recent",
            ),
        ],
    );
}

#[test]
fn a_delete_meets_an_update() {
    check(
        CREATED,
        &["ada 2 patch 1 a=2 @20", "bob 1 delete 1 @25"],
        &[
            (CLIENT, "merged deleted a=2 b=1 | conflict a:client:client_wins(2) exists:client:client_wins"),
            (SERVER, "superseded a=2 b=1 | conflict exists:server:server_wins"),
            (RECENT, "merged deleted a=2 b=1 | conflict a:client:most_recent(2) exists:client:most_recent"),
        ],
    );
    check(
        CREATED,
        &["ada 2 patch 1 a=2 @20", "bob 1 delete 1 @15"],
        &[
            (CLIENT, "merged deleted a=2 b=1 | conflict a:client:client_wins(2) exists:client:client_wins"),
            (SERVER, "superseded a=2 b=1 | conflict exists:server:server_wins"),
            (RECENT, "superseded a=2 b=1 | conflict exists:server:most_recent"),
        ],
    );
    check(CREATED, &["ada 2 patch 1 a=2 @20", "bob 1 delete 2 @25"], &[(EVERY, "applied deleted a=2 b=1")]);
}

#[test]
fn a_delete_meets_a_delete() {
    check(CREATED, &["ada 2 delete 1 @20", "bob 1 delete 1 @25"], &[(EVERY, "merged deleted a=1 b=1")]);
    check(CREATED, &["ada 2 delete 1 @20", "bob 1 delete 1 @15"], &[(EVERY, "noop deleted a=1 b=1")]);
}

#[test]
fn a_create_meets_a_record() {
    check(
        CREATED,
        &["bob 1 create 0 a=3 c=3 @15"],
        &[
            (CLIENT, "merged a=3 b=1 c=3 | conflict a:client:client_wins(1)"),
            ("server_wins", "superseded a=1 b=1 | conflict a:server:server_wins(3) c:server:server_wins(3)"),
            ("server_wins/field", "merged a=1 b=1 c=3 | conflict a:server:server_wins(3)"),
            (RECENT, "merged a=3 b=1 c=3 | conflict a:client:most_recent(1)"),
        ],
    );
    check(
        CREATED,
        &["bob 1 create 0 a=3 c=3 @5"],
        &[
            (CLIENT, "merged a=3 b=1 c=3 | conflict a:client:client_wins(1)"),
            ("server_wins", "superseded a=1 b=1 | conflict a:server:server_wins(3) c:server:server_wins(3)"),
            ("server_wins/field", "merged a=1 b=1 c=3 | conflict a:server:server_wins(3)"),
            (RECENT, "merged a=1 b=1 c=3 | conflict a:server:most_recent(3)"),
        ],
    );
    check(
        CREATED,
        &["bob 1 create 0 @15"],
        &[
            ("client_wins client_wins/stays", "merged a=1 b=1 | conflict"),
            ("client_wins/field server_wins/field most_recent_wins field_merge", "merged a=1 b=1"),
            ("server_wins", "superseded a=1 b=1 | conflict"),
        ],
    );
}

#[test]
fn a_create_meets_a_tombstone() {
    check(CREATED, &["ada 2 delete 1 @20", "bob 1 create 2 a=3 @25"], &[(EVERY, "applied a=3 b=1")]);
    check(
        CREATED,
        &["ada 2 delete 1 @20", "bob 1 create 0 a=3 @25"],
        &[
            (RESTORING, "merged a=3 b=1 | conflict a:client:client_wins(1) exists:client:client_wins"),
            (
                "client_wins/stays",
                "superseded deleted a=3 b=1 | conflict a:server:server_wins(3) exists:server:server_wins",
            ),
            (
                SERVER,
                "superseded deleted a=1 b=1 | conflict a:server:server_wins(3) exists:server:server_wins",
            ),
            (RECENT, "merged a=3 b=1 | conflict a:client:most_recent(1) exists:client:most_recent"),
        ],
    );
    check(
        CREATED,
        &["ada 2 delete 1 @20", "bob 1 create 0 a=3 @15"],
        &[
            (RESTORING, "merged a=3 b=1 | conflict a:client:client_wins(1) exists:client:client_wins"),
            (
                "client_wins/stays",
                "superseded deleted a=3 b=1 | conflict a:server:server_wins(3) exists:server:server_wins",
            ),
            (
                SERVER,
                "superseded deleted a=1 b=1 | conflict a:server:server_wins(3) exists:server:server_wins",
            ),
            (
                RECENT,
                "superseded deleted a=3 b=1 | conflict a:server:most_recent(3) exists:server:most_recent",
            ),
        ],
    );
    check(CREATED, &["ada 2 delete 1 @20", "ada 3 create 1 a=3 @25"], &[(EVERY, "applied a=3 b=1")]);
}

#[test]
fn a_restore_brings_back_what_its_author_saw_deleted() {
    check(CREATED, &["ada 2 delete 1 @20", "bob 1 restore 2 a=3 @25"], &[(EVERY, "applied a=3 b=1")]);
    check(CREATED, &["ada 2 delete 1 @20", "bob 1 restore 2 @15"], &[(EVERY, "applied a=1 b=1")]);
    check(
        CREATED,
        &["ada 2 delete 1 @20", "bob 1 restore 1 @25"],
        &[
            (RESTORING, "merged a=1 b=1 | conflict exists:client:client_wins"),
            (
                "client_wins/stays server_wins server_wins/field",
                "superseded deleted a=1 b=1 | conflict exists:server:server_wins",
            ),
            (RECENT, "merged a=1 b=1 | conflict exists:client:most_recent"),
        ],
    );
    check(CREATED, &["bob 1 restore 1 a=3 @15"], &[(EVERY, "applied a=3 b=1")]);
}

#[test]
fn a_later_change_of_the_same_device_stands() {
    check(
        CREATED,
        &["bob 2 patch 1 a=3 @25", "bob 1 patch 1 a=2 @20"],
        &[(EVERY, "superseded a=3 b=1 | a:server:own_newer(2)")],
    );
    check(
        CREATED,
        &["bob 2 patch 1 a=3 @25", "bob 1 patch 1 a=2 b=2 @20"],
        &[(EVERY, "merged a=3 b=2 | a:server:own_newer(2)")],
    );
    check(
        CREATED,
        &["bob 2 delete 1 @25", "bob 1 patch 1 a=2 @20"],
        &[(EVERY, "superseded deleted a=2 b=1")],
    );
    check(
        CREATED,
        &["bob 2 patch 1 a=3 @25", "bob 1 delete 1 @20"],
        &[(EVERY, "superseded a=3 b=1 | exists:server:own_newer")],
    );
    // The clock of the device went back in between, or it has none.
    check(
        CREATED,
        &["bob 2 patch 1 a=3 @25", "bob 1 delete 1 @30"],
        &[(EVERY, "superseded a=3 b=1 | exists:server:own_newer")],
    );
    check(
        CREATED,
        &["bob 2 patch 1 a=3", "bob 1 delete 1"],
        &[(EVERY, "superseded a=3 b=1 | exists:server:own_newer")],
    );
    check(
        CREATED,
        &["bob 2 delete 1 @25", "bob 1 patch 1 a=2 @30"],
        &[(EVERY, "superseded deleted a=2 b=1")],
    );
    // In its own order a device needs no base to follow itself.
    check(CREATED, &["bob 1 patch 1 a=2 @20", "bob 2 patch 1 a=3 @25"], &[(EVERY, "applied a=3 b=1")]);
}

#[test]
fn a_base_from_the_future_is_refused() {
    check(CREATED, &["bob 1 patch 2 a=3 @25"], &[(EVERY, "client_ahead a=1 b=1")]);
}

#[test]
fn what_does_not_exist_is_gone() {
    check(None, &["bob 1 patch 0 a=3 @25"], &[(EVERY, "gone nothing")]);
    check(None, &["bob 1 delete 0 @25"], &[(EVERY, "gone nothing")]);
    check(None, &["bob 1 restore 0 a=3 @25"], &[(EVERY, "gone nothing")]);
    check(CREATED, &["ada 2 delete 1 @20", "bob 1 patch 2 a=3 @25"], &[(EVERY, "gone deleted a=1 b=1")]);
    check(CREATED, &["ada 2 delete 1 @20", "ada 3 patch 1 a=3 @25"], &[(EVERY, "gone deleted a=1 b=1")]);
}

#[test]
fn an_equal_value_is_a_write_too() {
    check(CREATED, &["bob 1 patch 1 a=1 @20"], &[(EVERY, "applied a=1 b=1")]);
    check(
        CREATED,
        &["ada 2 patch 1 a=2 @20", "bob 1 patch 1 a=2 @25"],
        &[
            ("client_wins client_wins/stays", "merged a=2 b=1 | conflict"),
            ("client_wins/field server_wins/field most_recent_wins field_merge", "merged a=2 b=1"),
            ("server_wins", "superseded a=2 b=1 | conflict"),
        ],
    );
    check(
        CREATED,
        &["ada 2 patch 1 a=2 @20", "bob 1 patch 1 a=2 @15"],
        &[
            ("client_wins client_wins/stays", "noop a=2 b=1 | conflict"),
            ("client_wins/field server_wins/field most_recent_wins field_merge", "noop a=2 b=1"),
            ("server_wins", "superseded a=2 b=1 | conflict"),
        ],
    );
    check(CREATED, &["bob 1 patch 1 @20"], &[(EVERY, "noop a=1 b=1")]);
}

#[test]
fn a_clock_too_far_ahead_is_held_back_and_told() {
    check(None, &["bob 1 create 0 a=3 @2001"], &[(EVERY, "applied a=3 | clamped")]);
    check(CREATED, &["bob 1 patch 1 a=3 @2001"], &[(EVERY, "applied a=3 b=1 | clamped")]);
    check(CREATED, &["bob 1 patch 1 a=3 @2000"], &[(EVERY, "applied a=3 b=1")]);
    check(
        CREATED,
        &["ada 2 patch 1 a=2 @2500", "bob 1 patch 1 a=3 @9000"],
        &[
            (CLIENT, "merged a=3 b=1 | conflict clamped a:client:client_wins(2)"),
            (SERVER, "superseded a=2 b=1 | conflict clamped a:server:server_wins(3)"),
            (RECENT, "merged a=3 b=1 | conflict clamped a:client:most_recent(2)"),
        ],
    );
}

#[test]
fn without_a_clock_arrival_counts() {
    check(
        CREATED,
        &["ada 2 patch 1 a=2 @20", "bob 1 patch 1 a=3"],
        &[
            (CLIENT, "merged a=3 b=1 | conflict a:client:client_wins(2)"),
            (SERVER, "superseded a=2 b=1 | conflict a:server:server_wins(3)"),
            (RECENT, "merged a=3 b=1 | conflict a:client:most_recent(2)"),
        ],
    );
    check(
        CREATED,
        &["ada 2 patch 1 a=2 @1500", "bob 1 patch 1 a=3"],
        &[
            (CLIENT, "merged a=3 b=1 | conflict a:client:client_wins(2)"),
            (SERVER, "superseded a=2 b=1 | conflict a:server:server_wins(3)"),
            (RECENT, "superseded a=2 b=1 | conflict a:server:most_recent(3)"),
        ],
    );
}
