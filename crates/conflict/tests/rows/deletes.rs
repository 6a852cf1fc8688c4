//! Updates against deletes under each `on_delete` of `field_merge`. Whichever arrives first, the record ends the same.

use driftline_conflict::{FieldRule, OnDelete, Policy, Strategy};

use super::script::{CREATED, play, row};

fn merging(on_delete: OnDelete) -> Policy {
    let strategy = Strategy::FieldMerge { fields: vec![("a".into(), FieldRule::Lww)], on_delete };
    Policy { strategy, version: 0 }
}

#[test]
fn most_recent_goes_by_the_clocks() {
    let policy = merging(OnDelete::MostRecent);
    for (steps, wanted) in [
        (
            &["ada 2 delete 1 @20", "bob 1 patch 1 b=3 @25"][..],
            "merged a=1 b=3 | conflict exists:client:most_recent",
        ),
        (
            &["ada 2 delete 1 @20", "bob 1 patch 1 b=3 @15"],
            "superseded deleted a=1 b=3 | conflict b:server:most_recent(3) exists:server:most_recent",
        ),
        (
            &["bob 1 patch 1 b=3 @15", "ada 2 delete 1 @20"],
            "merged deleted a=1 b=3 | conflict b:client:most_recent(3) exists:client:most_recent",
        ),
        (
            &["bob 1 patch 1 b=3 @25", "ada 2 delete 1 @20"],
            "superseded a=1 b=3 | conflict exists:server:most_recent",
        ),
    ] {
        row(&policy, CREATED, steps, wanted);
    }
}

#[test]
fn an_update_that_no_delete_had_seen_keeps_the_record() {
    let policy = merging(OnDelete::UpdateWins);
    for (steps, wanted) in [
        // The clocks say the opposite.
        (
            &["ada 2 delete 1 @20", "bob 1 patch 1 b=3 @15"][..],
            "merged a=1 b=3 | conflict exists:client:update_wins",
        ),
        (
            &["bob 1 patch 1 b=3 @15", "ada 2 delete 1 @20"],
            "superseded a=1 b=3 | conflict exists:server:update_wins",
        ),
        // A delete that had seen every update deletes.
        (&["bob 1 patch 1 b=3 @15", "ada 2 delete 2 @20"], "applied deleted a=1 b=3"),
        (&["bob 1 patch 1 b=3 @15", "ada 2 delete 1 @20", "eve 1 delete 3 @30"], "applied deleted a=1 b=3"),
        // An update that lost its field is an update all the same.
        (
            &["ada 2 patch 1 a=2 @20", "bob 1 patch 1 a=3 @15", "eve 1 delete 2 @30"],
            "superseded a=2 b=1 | conflict exists:server:update_wins",
        ),
    ] {
        row(&policy, CREATED, steps, wanted);
    }
}

#[test]
fn a_delete_that_no_restore_had_seen_stands() {
    let policy = merging(OnDelete::DeleteWins);
    for (steps, wanted) in [
        // The clocks say the opposite.
        (
            &["ada 2 delete 1 @20", "bob 1 patch 1 b=3 @25"][..],
            "superseded deleted a=1 b=3 | conflict b:server:delete_wins(3) exists:server:delete_wins",
        ),
        (
            &["bob 1 patch 1 b=3 @25", "ada 2 delete 1 @20"],
            "merged deleted a=1 b=3 | conflict b:client:delete_wins(3) exists:client:delete_wins",
        ),
        (&["ada 2 delete 1 @20", "bob 1 restore 2 @15"], "applied a=1 b=1"),
        (&["ada 2 delete 1 @20", "bob 1 create 2 b=3 @25"], "applied a=1 b=3"),
        // Eve's delete was not seen by Bob, who restores after Ada's.
        (
            &["ada 2 delete 1 @20", "eve 1 delete 1 @15", "bob 1 restore 2 b=3 @25"],
            "superseded deleted a=1 b=3 | conflict b:server:delete_wins(3) exists:server:delete_wins",
        ),
        (&["ada 2 delete 1 @20", "bob 1 patch 2 b=3 @25"], "gone deleted a=1 b=1"),
    ] {
        row(&policy, CREATED, steps, wanted);
    }
}

#[test]
fn either_arrival_ends_the_same() {
    for on_delete in [OnDelete::MostRecent, OnDelete::UpdateWins, OnDelete::DeleteWins] {
        for clock in ["@15", "@25"] {
            let update = format!("bob 1 patch 1 b=3 {clock}");
            let steps = ["ada 2 delete 1 @20", &update];
            let ends = |steps: &[&str]| {
                let (_, record) = play(&merging(on_delete), CREATED, steps);
                let record = record.expect("a record");
                let devices = driftline_conflict::DeviceTable::new(["ada", "bob"]);
                (record.is_deleted(&devices), record.fields.as_str().to_owned())
            };
            assert_eq!(ends(&steps), ends(&[steps[1], steps[0]]), "{on_delete:?} {clock}");
        }
    }
}

#[test]
fn increments_and_elements_wait_in_the_hidden_body() {
    let fields = vec![("k".into(), FieldRule::Counter), ("s".into(), FieldRule::Set)];
    let strategy = Strategy::FieldMerge { fields, on_delete: OnDelete::DeleteWins };
    let policy = Policy { strategy, version: 0 };
    let first = Some("ada 1 create 0 inc:k=1 @10");
    row(
        &policy,
        first,
        &["ada 2 delete 1 @20", "bob 1 patch 1 inc:k=2 add:s=[\"x\"] @25"],
        "superseded deleted k=3 s=[\"x\"] | conflict k:server:delete_wins(2) \
         s:server:delete_wins({\"add\":[\"x\"]}) exists:server:delete_wins",
    );
    row(
        &policy,
        first,
        &["ada 2 delete 1 @20", "bob 1 patch 1 inc:k=2 @25", "eve 1 restore 3 inc:k=4 @30"],
        "applied k=7",
    );
}
