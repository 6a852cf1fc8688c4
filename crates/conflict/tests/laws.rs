//! The laws of merging, over thousands of random histories. `mutants.rs` shows that each of them can fail.

mod support;

use std::collections::HashSet;

use driftline_conflict::{Outcome, ReviewReason, Rule, Winner, apply};

use support::laws::LAWS;
use support::{Check, wild};

/// `LAWS_HISTORIES` asks for more of them.
const HISTORIES: u64 = 2_000;

/// Checks a law over many seeds. A failure names the seed and how to run it alone.
fn holds(name: &str) {
    let asked = |variable: &str| std::env::var(variable).ok().and_then(|number| number.parse::<u64>().ok());
    let histories = asked("LAWS_HISTORIES").unwrap_or(HISTORIES);
    let alone = asked("LAWS_SEED");
    let (_, law): &(_, Check) = LAWS.iter().find(|(known, _)| *known == name).expect("a law");
    let mut overlapping = 0;
    for seed in alone.map_or(0..histories, |seed| seed..seed + 1) {
        match law(&apply, seed) {
            Ok(overlaps) => overlapping += u64::from(overlaps),
            Err(broken) => panic!("seed {seed} (LAWS_SEED={seed} runs it alone): {broken}"),
        }
    }
    // A law that hardly ever meets two devices on one field shows nothing.
    let bites = alone.is_some() || overlapping * 100 >= histories * 30;
    assert!(bites, "only {overlapping} of {histories} histories have overlapping edits");
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
fn a_policy_may_change() {
    holds("policies");
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
