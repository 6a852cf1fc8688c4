//! The laws of merging, over thousands of random histories. `mutants.rs` shows that each of them can fail.

mod support;

use std::collections::HashSet;

use driftline_conflict::{Outcome, ReviewReason, Rule, Winner, apply};

use support::laws::LAWS;
use support::{over_seeds, wild};

/// `LAWS_HISTORIES` asks for more of them.
const HISTORIES: u64 = 2_000;

fn holds(name: &str) {
    let asked = std::env::var("LAWS_HISTORIES").ok().and_then(|count| count.parse().ok());
    let (_, law) = LAWS.iter().find(|(known, _)| *known == name).expect("a law");
    match over_seeds(&apply, asked.unwrap_or(HISTORIES), *law) {
        Ok(report) => report.assert_bites(),
        Err(broken) => panic!("{broken}"),
    }
}

#[test]
fn a_replay_gives_equal_bytes() {
    holds("replay");
}

#[test]
fn versions_rise_without_a_gap() {
    holds("versions");
}

#[test]
fn every_order_gives_the_same_state() {
    holds("orders");
}

#[test]
fn a_patch_never_creates() {
    holds("gates");
}

#[test]
fn no_clock_runs_ahead() {
    holds("clocks");
}

#[test]
fn nothing_is_lost_silently() {
    holds("account");
}

#[test]
fn every_conflict_is_told() {
    holds("told");
}

#[test]
fn each_rule_decides_by_the_table() {
    holds("table");
}

#[test]
fn no_ordered_field_falls_through_a_stale_edit() {
    holds("ladder");
}

#[test]
fn histories_reach_every_outcome_rule_and_review() {
    let (mut outcomes, mut rules, mut reviews) = (HashSet::new(), HashSet::new(), HashSet::new());
    for seed in 0..2_000 {
        for step in wild::play(&apply, seed).steps {
            outcomes.insert(step.decision.outcome);
            let audit = step.decision.audit.iter();
            rules.extend(
                audit.clone().flat_map(|audit| &audit.fields).map(|field| (field.rule.name(), field.winner)),
            );
            rules.extend(
                audit.filter_map(|audit| audit.existence).map(|made| (made.rule.name(), made.winner)),
            );
            reviews.extend(step.decision.review.map(|review| review.reason));
        }
    }
    for outcome in [
        Outcome::Applied,
        Outcome::Merged,
        Outcome::Noop,
        Outcome::Superseded,
        Outcome::Gone,
        Outcome::ClientAhead,
        Outcome::ConflictPending,
        Outcome::Invalid,
        Outcome::Forbidden,
    ] {
        assert!(outcomes.contains(&outcome), "no {outcome:?}");
    }
    let (client, server, merged, held) = (Winner::Client, Winner::Server, Winner::Merged, Winner::Held);
    for (rule, winner) in [
        (Rule::OwnNewer, server),
        (Rule::ClientWins, client),
        (Rule::ServerWins, server),
        (Rule::MostRecent, client),
        (Rule::MostRecent, server),
        (Rule::Max, client),
        (Rule::Max, server),
        (Rule::Min, client),
        (Rule::Min, server),
        (Rule::Counter, merged),
        (Rule::Set, merged),
        (Rule::Append, merged),
        (Rule::Immutable, server),
        (Rule::ServerOnly, server),
        (Rule::Manual, held),
        (Rule::Escalation, client),
        (Rule::Escalation, server),
        (Rule::Escalation, held),
        (Rule::UpdateWins, client),
        (Rule::UpdateWins, server),
        (Rule::DeleteWins, client),
        (Rule::DeleteWins, server),
        (Rule::Custom("sway"), client),
        (Rule::Custom("sway"), server),
        (Rule::Custom("sway"), merged),
        (Rule::Custom("sway"), held),
    ] {
        assert!(rules.contains(&(rule.name(), winner)), "no {rule:?} with {winner:?}");
    }
    for reason in ReviewReason::ALL {
        assert!(reviews.contains(&reason), "no {reason:?}");
    }
}
