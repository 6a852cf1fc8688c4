//! `manual`, and strategies of embedding services.

use std::sync::Arc;

use driftline_conflict::{
    Clash, Contested, Custom, CustomStrategy, Policy, Promises, Side, Strategy, Verdict,
};

use super::script::{CREATED, row};

fn rows(strategy: &Strategy, rows: &[(&[&str], &str)]) {
    let policy = Policy { strategy: strategy.clone(), version: 0 };
    for (steps, wanted) in rows {
        row(&policy, CREATED, steps, wanted);
    }
}

#[test]
fn manual_sets_the_whole_change_aside() {
    rows(
        &Strategy::Manual,
        &[
            (&["bob 1 patch 1 a=2 @20"], "applied a=2 b=1"),
            (&["ada 2 patch 1 a=2 @20", "bob 1 patch 1 b=3 @25"], "merged a=2 b=3"),
            (&["ada 2 patch 1 a=2 @20", "bob 1 patch 1 a=2 @25"], "merged a=2 b=1"),
            (
                &["ada 2 patch 1 a=2 @20", "bob 1 patch 1 a=3 @25"],
                "conflict_pending a=2 b=1 | conflict a:held:manual(3) review:manual[]",
            ),
            // What is set aside is set aside as a whole.
            (
                &["ada 2 patch 1 a=2 @20", "bob 1 patch 1 a=3 b=3 @25"],
                "conflict_pending a=2 b=1 | conflict a:held:manual(3) b:held:manual(3) review:manual[]",
            ),
            (
                &["bob 2 patch 1 a=2 @20", "bob 1 patch 1 a=3 @15"],
                "superseded a=2 b=1 | a:server:own_newer(3)",
            ),
        ],
    );
}

#[test]
fn manual_queues_updates_against_deletes() {
    rows(
        &Strategy::Manual,
        &[
            (
                &["ada 2 delete 1 @20", "bob 1 patch 1 a=3 @25"],
                "conflict_pending deleted a=1 b=1 | conflict a:held:manual(3) exists:held:manual review:manual[]",
            ),
            (
                &["ada 2 patch 1 a=2 @20", "bob 1 delete 1 @25"],
                "conflict_pending a=2 b=1 | conflict exists:held:manual review:manual[]",
            ),
            (&["ada 2 patch 1 a=2 @20", "bob 1 delete 2 @25"], "applied deleted a=2 b=1"),
            (&["ada 2 delete 1 @20", "bob 1 delete 1 @25"], "merged deleted a=1 b=1"),
        ],
    );
}

/// Puts both values side by side, leaves `b` to a reviewer, and keeps what was updated.
#[derive(Debug)]
struct Both;

impl CustomStrategy for Both {
    fn name(&self) -> &'static str {
        "both"
    }

    fn promises(&self) -> Promises {
        Promises::default()
    }

    fn decide(&self, field: &Contested<'_>) -> Verdict {
        match (field.name, field.client) {
            ("b", _) => Verdict::Held,
            (_, "7") => Verdict::Client,
            (_, "8") => Verdict::Server,
            _ => Verdict::Merged(format!("[{},{}]", field.server, field.client)),
        }
    }

    fn existence(&self, clash: &Clash) -> Side {
        clash.of_update()
    }
}

#[test]
fn a_custom_strategy_is_asked_only_about_conflicts() {
    let both = Strategy::Custom(Custom(Arc::new(Both)));
    rows(
        &both,
        &[
            (&["bob 1 patch 1 a=2 b=2 @20"], "applied a=2 b=2"),
            (
                &["ada 2 patch 1 a=2 @20", "bob 1 patch 1 a=3 @15"],
                "merged a=[2,3] b=1 | conflict a:merged:both(2&3)",
            ),
            (
                &["ada 2 patch 1 a=2 @20", "bob 1 patch 1 a=7 @15"],
                "merged a=7 b=1 | conflict a:client:both(2)",
            ),
            (
                &["ada 2 patch 1 a=2 @20", "bob 1 patch 1 a=8 @25"],
                "superseded a=2 b=1 | conflict a:server:both(8)",
            ),
            (
                &["ada 2 patch 1 b=2 @20", "bob 1 patch 1 b=3 @25"],
                "conflict_pending a=1 b=2 | conflict b:held:both(3) review:manual[b]",
            ),
            (
                &["ada 2 patch 1 b=2 @20", "bob 1 patch 1 a=3 b=3 @25"],
                "merged a=3 b=2 | conflict b:held:both(3) review:manual[b]",
            ),
            (
                &["bob 2 patch 1 a=2 @20", "bob 1 patch 1 a=3 @25"],
                "superseded a=2 b=1 | a:server:own_newer(3)",
            ),
            (&["bob 1 patch 1 add:a=[1] @20"], "invalid a=1 b=1 | add/a: the field is not a set"),
        ],
    );
}

#[test]
fn a_custom_strategy_decides_about_existence() {
    let both = Strategy::Custom(Custom(Arc::new(Both)));
    rows(
        &both,
        &[
            (
                &["ada 2 delete 1 @20", "bob 1 patch 1 a=3 @15"],
                "merged a=3 b=1 | conflict exists:client:both",
            ),
            (
                &["ada 2 patch 1 a=2 @20", "bob 1 delete 1 @25"],
                "superseded a=2 b=1 | conflict exists:server:both",
            ),
        ],
    );
}
