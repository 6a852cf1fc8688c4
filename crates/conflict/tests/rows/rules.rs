//! The rules of single fields under `field_merge`.

use driftline_conflict::{FieldRule, OnDelete, Policy, Strategy};

use super::script::{CREATED, row};

fn merging(rule: FieldRule) -> Policy {
    let strategy = Strategy::FieldMerge { fields: vec![("f".into(), rule)], on_delete: OnDelete::MostRecent };
    Policy { strategy, version: 0 }
}

/// Checks rows that start from Ada's record with `f` as given.
fn rows(rule: &FieldRule, made: &str, rows: &[(&[&str], &str)]) {
    let first = format!("ada 1 create 0 {made} @10");
    for (steps, wanted) in rows {
        row(&merging(rule.clone()), Some(&first), steps, wanted);
    }
}

#[test]
fn lww_takes_the_larger_clock() {
    rows(
        &FieldRule::Lww,
        "f=1",
        &[
            (
                &["ada 2 patch 1 f=2 @20", "bob 1 patch 1 f=3 @15"],
                "superseded f=2 | conflict f:server:most_recent(3)",
            ),
            (
                &["ada 2 patch 1 f=2 @20", "bob 1 patch 1 f=3 @25"],
                "merged f=3 | conflict f:client:most_recent(2)",
            ),
            (&["ada 2 patch 1 f=2 @20", "bob 1 patch 2 f=3 @15"], "applied f=3"),
            (&["bob 2 patch 1 f=2 @20", "bob 1 patch 1 f=3 @25"], "superseded f=2 | f:server:own_newer(3)"),
            (&["bob 1 patch 1 inc:f=1 @20"], "invalid f=1 | increments/f: the field is not a counter"),
            (&["bob 1 patch 1 add:f=[1] @20"], "invalid f=1 | add/f: the field is not a set"),
        ],
    );
}

#[test]
fn max_keeps_the_larger_number() {
    rows(
        &FieldRule::Max,
        "f=9",
        &[
            // As numbers, not as texts; by whatever clock.
            (&["bob 1 patch 1 f=10 @5"], "applied f=10"),
            (
                &["ada 2 patch 1 f=20 @20", "bob 1 patch 1 f=100 @15"],
                "merged f=100 | conflict f:client:max(20)",
            ),
            (
                &["ada 2 patch 1 f=20 @20", "bob 1 patch 1 f=15 @25"],
                "superseded f=20 | conflict f:server:max(15)",
            ),
            // A lower value never stands, seen or own or not.
            (&["bob 1 patch 1 f=-10 @20"], "superseded f=9 | f:server:max(-10)"),
            (&["ada 2 patch 1 f=8.5 @20"], "superseded f=9 | f:server:max(8.5)"),
            (&["ada 3 patch 1 f=11 @30", "ada 2 patch 1 f=1e+21 @20"], "applied f=1e+21 | f:client:max(11)"),
            (&["ada 3 patch 1 f=11 @30", "ada 2 patch 1 f=10 @20"], "superseded f=11 | f:server:max(10)"),
            (&["bob 1 patch 1 f=9 @20"], "applied f=9"),
            (&["ada 2 patch 1 f=11 @20", "bob 1 patch 1 f=11 @25"], "merged f=11"),
            (&["bob 1 patch 1 f=\"10\" @20"], "invalid f=9 | fields/f: must be a number"),
            (&["bob 1 patch 1 f=null @20"], "invalid f=9 | fields/f: must be a number"),
        ],
    );
}

#[test]
fn min_keeps_the_smaller_number() {
    rows(
        &FieldRule::Min,
        "f=10",
        &[
            (&["bob 1 patch 1 f=9 @5"], "applied f=9"),
            (&["ada 2 patch 1 f=2 @20", "bob 1 patch 1 f=-1 @15"], "merged f=-1 | conflict f:client:min(2)"),
            (
                &["ada 2 patch 1 f=2 @20", "bob 1 patch 1 f=3 @25"],
                "superseded f=2 | conflict f:server:min(3)",
            ),
            (&["bob 1 patch 1 f=11 @20"], "superseded f=10 | f:server:min(11)"),
            (&["bob 1 patch 1 f=[1] @20"], "invalid f=10 | fields/f: must be a number"),
        ],
    );
}

#[test]
fn a_counter_adds_up() {
    let first = "inc:f=5";
    rows(
        &FieldRule::Counter,
        first,
        &[
            (&["bob 1 patch 1 inc:f=-2 @20"], "applied f=3"),
            (
                &["ada 2 patch 1 inc:f=1 @20", "bob 1 patch 1 inc:f=2 @15"],
                "merged f=8 | conflict f:merged:counter(6&2)",
            ),
            // A later increment of the same device stops none.
            (&["bob 2 patch 1 inc:f=1 @20", "bob 1 patch 1 inc:f=2 @15"], "applied f=8"),
            (&["bob 1 patch 1 f=7 @20"], "invalid f=5 | fields/f: a counter changes by increments only"),
            (
                &["ada 2 patch 1 inc:f=9007199254740987 @20", "bob 1 patch 2 inc:f=1 @25"],
                "invalid f=9007199254740992 | increments/f: the sum would go beyond 2^53",
            ),
        ],
    );
    row(&merging(FieldRule::Counter), CREATED, &["bob 1 patch 1 inc:f=2 @20"], "applied a=1 b=1 f=2");
    let whole = "invalid nothing | fields/f: a counter changes by increments only";
    row(&merging(FieldRule::Counter), None, &["bob 1 create 0 f=2 @20"], whole);
}

#[test]
fn a_set_unites_and_an_add_wins() {
    rows(
        &FieldRule::Set,
        "f=[\"y\",\"x\"]",
        &[
            (&[], "applied f=[\"x\",\"y\"]"),
            (&["bob 1 patch 1 add:f=[\"z\"] @20"], "applied f=[\"x\",\"y\",\"z\"]"),
            (&["bob 1 patch 1 f=[\"a\"] @20"], "applied f=[\"a\",\"x\",\"y\"]"),
            (&["bob 1 patch 1 remove:f=[\"x\",\"q\"] @20"], "applied f=[\"y\"]"),
            (
                &["ada 2 patch 1 add:f=[\"z\"] @20", "bob 1 patch 1 add:f=[\"a\"] @15"],
                "merged f=[\"a\",\"x\",\"y\",\"z\"] | conflict f:merged:set([\"x\",\"y\",\"z\"]&{\"add\":[\"a\"]})",
            ),
            // Ada adds it again, and Bob takes out only what he had seen.
            (
                &["ada 2 patch 1 add:f=[\"x\"] @20", "bob 1 patch 1 remove:f=[\"x\",\"y\"] @25"],
                "merged f=[\"x\"] | conflict f:merged:set([\"x\",\"y\"]&{\"remove\":[\"x\",\"y\"]})",
            ),
            (
                &["bob 1 patch 1 remove:f=[\"x\"] @25", "ada 2 patch 1 add:f=[\"x\"] @20"],
                "merged f=[\"x\",\"y\"] | conflict f:merged:set([\"y\"]&{\"add\":[\"x\"]})",
            ),
            (&["bob 1 patch 1 f=1 @20"], "invalid f=[\"x\",\"y\"] | fields/f: must be an array"),
            (
                &["bob 1 patch 1 inc:f=1 @20"],
                "invalid f=[\"x\",\"y\"] | increments/f: the field is not a counter",
            ),
        ],
    );
}

#[test]
fn a_list_grows_in_the_order_of_clocks() {
    rows(
        &FieldRule::Append,
        r#"add:f=[{"id":"m"}]"#,
        &[
            (&[r#"bob 1 patch 1 add:f=[{"id":"a"},{"id":"0"}] @20"#], r#"applied f=[{"id":"m"},{"id":"a"},{"id":"0"}]"#),
            (
                &[r#"ada 2 patch 1 add:f=[{"id":"n"}] @30"#, r#"bob 1 patch 1 f=[{"id":"a"}] @20"#],
                r#"merged f=[{"id":"m"},{"id":"a"},{"id":"n"}] | conflict f:merged:append([{"id":"m"},{"id":"n"}]&{"fields":[{"id":"a"}]})"#,
            ),
            // Of two elements with one id the earlier one stays, whichever arrives first.
            (
                &[r#"ada 2 patch 1 add:f=[{"id":"n","by":1}] @30"#.replace("\"id\":\"n\",\"by\":1", "\"by\":1,\"id\":\"n\"").as_str(),
                  r#"bob 1 patch 1 add:f=[{"by":2,"id":"n"}] @20"#],
                r#"merged f=[{"id":"m"},{"by":2,"id":"n"}] | conflict f:merged:append([{"id":"m"},{"by":1,"id":"n"}]&{"add":[{"by":2,"id":"n"}]})"#,
            ),
            (
                &[r#"ada 2 patch 1 add:f=[{"by":1,"id":"n"}] @20"#, r#"bob 1 patch 1 add:f=[{"by":2,"id":"n"}] @30"#],
                r#"superseded f=[{"id":"m"},{"by":1,"id":"n"}] | conflict f:server:append({"add":[{"by":2,"id":"n"}]})"#,
            ),
            (&[r#"bob 1 patch 1 remove:f=[{"id":"m"}] @20"#], r#"invalid f=[{"id":"m"}] | remove/f: a list only grows"#),
            (
                &["bob 1 patch 1 add:f=[1] @20"],
                r#"invalid f=[{"id":"m"}] | add/f: must be an array of objects with an id each"#,
            ),
        ],
    );
}

#[test]
fn an_immutable_field_keeps_its_first_value() {
    rows(
        &FieldRule::Immutable,
        "f=1",
        &[
            (&["ada 2 patch 1 f=2 @20"], "superseded f=1 | f:server:immutable(2)"),
            (&["bob 1 patch 0 f=2 @20"], "superseded f=1 | conflict f:server:immutable(2)"),
            (&["bob 1 patch 1 b=1 f=2 @20"], "merged b=1 f=1 | f:server:immutable(2)"),
            (&["bob 1 patch 1 f=1 @20"], "applied f=1"),
        ],
    );
    row(&merging(FieldRule::Immutable), CREATED, &["bob 1 patch 1 f=2 @20"], "applied a=1 b=1 f=2");
}

#[test]
fn services_alone_write_a_server_only_field() {
    rows(
        &FieldRule::ServerOnly,
        "a=1",
        &[
            (&["bob 1 patch 1 f=2 @20"], "superseded a=1 | f:server:server_only(2)"),
            (&["hub 1 patch 1 f=2 @20"], "applied a=1 f=2"),
            (
                &["hub 1 patch 1 f=2 @20", "bob 1 patch 1 a=2 f=3 @25"],
                "merged a=2 f=2 | conflict f:server:server_only(3)",
            ),
            (&["hub 1 patch 1 f=2 @20", "hub 2 patch 1 f=3 @25"], "applied a=1 f=3"),
        ],
    );
    let made = "merged a=1 | f:server:server_only(2)";
    row(&merging(FieldRule::ServerOnly), None, &["bob 1 create 0 a=1 f=2 @20"], made);
}

#[test]
fn a_manual_field_waits_for_a_reviewer() {
    rows(
        &FieldRule::Manual,
        "f=1",
        &[
            (&["bob 1 patch 1 f=2 @20"], "applied f=2"),
            (
                &["ada 2 patch 1 f=2 @20", "bob 1 patch 1 f=3 @25"],
                "conflict_pending f=2 | conflict f:held:manual(3) review:manual[f]",
            ),
            (
                &["ada 2 patch 1 f=2 @20", "bob 1 patch 1 a=3 f=3 @25"],
                "merged a=3 f=2 | conflict f:held:manual(3) review:manual[f]",
            ),
            (&["ada 2 patch 1 f=2 @20", "bob 1 patch 1 f=2 @25"], "merged f=2"),
            (&["bob 2 patch 1 f=2 @20", "bob 1 patch 1 f=3 @25"], "superseded f=2 | f:server:own_newer(3)"),
        ],
    );
}

#[test]
fn without_rules_every_intent_is_accepted() {
    let open = Policy::field_merge();
    let tagged = Some("ada 1 create 0 f=1 g=[\"x\"] h=\"t\" @10");
    for (steps, wanted) in [
        (&["bob 1 patch 1 inc:f=2 inc:k=3 @20"][..], "applied f=3 g=[\"x\"] h=\"t\" k=3"),
        (&["bob 1 patch 1 add:g=[\"y\"] @20"], "applied f=1 g=[\"x\",\"y\"] h=\"t\""),
        (&["bob 1 patch 1 remove:g=[\"x\"] @20"], "applied f=1 g=[] h=\"t\""),
        (&["bob 1 patch 1 add:s=[\"y\"] @20"], "applied f=1 g=[\"x\"] h=\"t\" s=[\"y\"]"),
        (
            &["ada 2 patch 1 f=5 @20", "bob 1 patch 1 inc:f=2 @15"],
            "merged f=7 g=[\"x\"] h=\"t\" | conflict f:merged:counter(5&2)",
        ),
        (
            &["bob 1 patch 1 inc:h=2 @20"],
            "invalid f=1 g=[\"x\"] h=\"t\" | increments/h: the stored value is not an integer",
        ),
        (
            &["bob 1 patch 1 add:f=[1] @20"],
            "invalid f=1 g=[\"x\"] h=\"t\" | add/f: the stored value is not a set",
        ),
    ] {
        row(&open, tagged, steps, wanted);
    }
}

#[test]
fn strategies_of_whole_values_take_no_intents() {
    let recent = Policy { strategy: Strategy::MostRecentWins, version: 0 };
    let manual = Policy { strategy: Strategy::Manual, version: 0 };
    for policy in [recent, manual] {
        row(
            &policy,
            CREATED,
            &["bob 1 patch 1 inc:a=1 @20"],
            "invalid a=1 b=1 | increments/a: the field is not a counter",
        );
        row(
            &policy,
            CREATED,
            &["bob 1 patch 1 remove:a=[1] @20"],
            "invalid a=1 b=1 | remove/a: the field is not a set",
        );
    }
}
