//! The laws of merging, over thousands of random histories.
//!
//! Every check takes the function under test. Each law also has a planted fault that its check must notice
//! within the same number of histories: a check that finds nothing then has looked.

mod support;

use std::collections::HashSet;

use driftline_conflict::{Op, Outcome, Record, Rule, Winner, apply};
use driftline_model::Seq;

use support::rng::Rng;
use support::sane::{Freedom, World};
use support::wild::{self, Input, Server};
use support::{Apply, Report, SKEW_MS, accepted, account, mutants, orders, over_seeds};

const HISTORIES: u64 = 5_000;
/// Each history of this law is played in up to 120 orders, three times.
const HISTORIES_IN_ALL_ORDERS: u64 = 4_000;

fn holds(check: support::Check, histories: u64) -> Report {
    match over_seeds(&apply, histories, check) {
        Ok(report) => report,
        Err(broken) => panic!("{broken}"),
    }
}

fn catches(mutant: &Apply<'_>, check: support::Check, histories: u64) {
    assert!(over_seeds(mutant, histories, check).is_err(), "the planted fault went unnoticed");
}

// Replaying a recorded input list gives byte-equal state.

fn replay(apply: &Apply<'_>, seed: u64) -> Result<bool, String> {
    let run = wild::play(apply, seed);
    let inputs: Vec<Input> = run.steps.iter().map(|step| step.input.clone()).collect();
    let overlapping = wild::overlaps(&run);
    let mut again = Server::new(apply, run.policy, run.devices, run.records.len());
    for (step, input) in run.steps.iter().zip(&inputs) {
        let repeated = again.take(input);
        if repeated.decision != step.decision {
            return Err(format!("{input:?} gave {:?}, then {:?}", step.decision, repeated.decision));
        }
    }
    if format!("{:?}", again.records) == format!("{:?}", run.records) {
        Ok(overlapping)
    } else {
        Err(format!("{:?} became {:?}", run.records, again.records))
    }
}

#[test]
fn a_replay_gives_equal_bytes() {
    holds(replay, HISTORIES).assert_bites();
}

#[test]
fn a_replay_notices_hidden_state() {
    catches(&mutants::hidden_counter(), replay, HISTORIES);
}

// Versions rise with every change, and the sequence has no gap.

fn versions(apply: &Apply<'_>, seed: u64) -> Result<bool, String> {
    let run = wild::play(apply, seed);
    let mut used = Seq::ZERO;
    for step in &run.steps {
        let broken = |what: &str| Err(format!("{what} by {:?}: {:?}", step.input, step.decision));
        let outcome = step.decision.outcome;
        let Some(record) = &step.decision.record else {
            if matches!(outcome, Outcome::Applied | Outcome::Merged) {
                return broken("an effect without a change");
            }
            continue;
        };
        if matches!(outcome, Outcome::Noop | Outcome::Gone | Outcome::ClientAhead) {
            return broken("a change without an effect");
        }
        if record.version != used.next() {
            return broken("not the next version");
        }
        used = record.version;
        let before = step.before.as_ref();
        let old = before.map_or(Seq::ZERO, |before| before.version);
        if record.version <= old {
            return broken("the version does not rise");
        }
        if record.all_marks().any(|mark| mark.fv > old && mark.fv != record.version) {
            return broken("a mark of a version that never was");
        }
        if before.is_some_and(|before| *record == Record { version: used, ..before.clone() }) {
            return broken("a version used up for nothing");
        }
        let moved = before.is_some_and(|before| {
            before.fields().any(|(name, value, _)| {
                let mark = record.mark(name);
                record.fields.get(name) != Some(value) && mark.is_none_or(|mark| mark.fv != used)
            })
        });
        if moved {
            return broken("a value changed without its mark");
        }
    }
    Ok(wild::overlaps(&run))
}

#[test]
fn versions_rise_without_a_gap() {
    holds(versions, HISTORIES).assert_bites();
}

#[test]
fn versions_that_stand_still_are_noticed() {
    catches(&mutants::still_version, versions, HISTORIES);
}

#[test]
fn versions_used_up_for_nothing_are_noticed() {
    catches(&mutants::wasted_version, versions, HISTORIES);
}

// Every order of a set of concurrent changes gives the same state, which is that of the latest writes.

fn any_order(apply: &Apply<'_>, seed: u64) -> Result<bool, String> {
    let mut rng = Rng::new(seed);
    let freedom = if rng.percent(65) { Freedom::Any } else { Freedom::PerDevice };
    let mut world = World::new(&mut rng);
    let mut overlapping = false;
    for round in 0..3 {
        world.pull(&mut rng);
        let count = *rng.pick(&[2, 2, 3, 3, 3, 3, 4, 4, 5, 8]);
        let items = world.edits(&mut rng, count, freedom);
        overlapping |= World::overlaps(&items);
        let orders = orders::orders(&mut rng, &items, freedom);
        let first = world.outcome(apply, &orders[0]);
        let join = world.join(&items);
        if first != join {
            return Err(format!(
                "round {round}, {freedom:?}:\n{}  gives {first:?}\nbut the latest writes are {join:?}",
                world.story(&orders[0])
            ));
        }
        for order in &orders[1..] {
            let other = world.outcome(apply, order);
            if other != first {
                return Err(format!(
                    "round {round}, {freedom:?}:\n{}  gives {first:?}\nand\n{}  gives {other:?}",
                    world.story(&orders[0]),
                    world.story(order)
                ));
            }
        }
        let settled = rng.pick(&orders);
        world.settle(apply, settled);
    }
    Ok(overlapping)
}

#[test]
fn every_order_gives_the_same_state() {
    holds(any_order, HISTORIES_IN_ALL_ORDERS).assert_bites();
}

#[test]
fn an_old_write_that_wins_is_noticed() {
    catches(&mutants::smallest_clock, any_order, HISTORIES_IN_ALL_ORDERS);
}

#[test]
fn a_tie_by_number_is_noticed() {
    catches(&mutants::tie_by_number, any_order, HISTORIES_IN_ALL_ORDERS);
}

#[test]
fn the_last_arrival_is_noticed() {
    catches(&mutants::last_arrival, any_order, HISTORIES_IN_ALL_ORDERS);
}

#[test]
fn a_base_that_is_not_read_is_noticed() {
    catches(&mutants::nothing_concurrent, any_order, HISTORIES_IN_ALL_ORDERS);
}

#[test]
fn a_delete_without_a_clock_is_noticed() {
    catches(&mutants::deletes_win, any_order, HISTORIES_IN_ALL_ORDERS);
}

// A patch never creates.

fn no_creation(apply: &Apply<'_>, seed: u64) -> Result<bool, String> {
    let run = wild::play(apply, seed);
    for step in run.steps.iter().filter(|step| step.before.is_none()) {
        let made = step.after.is_some();
        let asked = step.input.change.op == Op::Create;
        if made != asked || (!asked && step.decision.outcome != Outcome::Gone) {
            return Err(format!("{:?} on nothing: {:?}", step.input, step.decision));
        }
    }
    let missed = run.steps.iter().any(|step| step.decision.outcome == Outcome::Gone);
    Ok(missed || wild::overlaps(&run))
}

#[test]
fn a_patch_never_creates() {
    holds(no_creation, HISTORIES).assert_bites();
}

#[test]
fn a_patch_that_creates_is_noticed() {
    catches(&mutants::patch_creates, no_creation, HISTORIES);
}

// No stored clock exceeds the time of receipt plus the allowed skew, and a clamp is told.

fn clocks(apply: &Apply<'_>, seed: u64) -> Result<bool, String> {
    let run = wild::play(apply, seed);
    for step in &run.steps {
        let latest_ms = step.input.received.millis() + SKEW_MS;
        let marks = step.after.iter().flat_map(Record::all_marks);
        if let Some(mark) = marks.into_iter().find(|mark| mark.hlc.millis() > latest_ms) {
            return Err(format!("{mark:?} is later than {latest_ms} ms after {:?}", step.input));
        }
        let clamped = step.input.change.hlc.is_some_and(|hlc| hlc > step.input.latest());
        let told = step.decision.audit.as_ref().is_some_and(|audit| audit.stamp.is_clamped());
        if clamped != told && accepted(step.decision.outcome) {
            return Err(format!("clamped {clamped}, told {told}: {:?}", step.input));
        }
    }
    Ok(wild::overlaps(&run))
}

#[test]
fn no_clock_runs_ahead() {
    holds(clocks, HISTORIES).assert_bites();
}

#[test]
fn a_clock_that_is_not_held_back_is_noticed() {
    catches(&mutants::no_clamp, clocks, HISTORIES);
}

// No accepted value disappears silently.

fn nothing_lost(apply: &Apply<'_>, seed: u64) -> Result<bool, String> {
    let run = wild::play(apply, seed);
    account::audit_of(&run)?;
    Ok(wild::overlaps(&run))
}

#[test]
fn nothing_is_lost_silently() {
    holds(nothing_lost, HISTORIES).assert_bites();
}

#[test]
fn a_missing_audit_is_noticed() {
    catches(&mutants::no_audit, nothing_lost, HISTORIES);
}

#[test]
fn a_delete_that_hides_silently_is_noticed() {
    catches(&mutants::silent_delete, nothing_lost, HISTORIES);
}

#[test]
fn an_overwrite_of_what_was_unseen_is_noticed() {
    catches(&mutants::nothing_concurrent, nothing_lost, HISTORIES);
}

// Every decision of a conflict has its account.

fn conflicts_told(apply: &Apply<'_>, seed: u64) -> Result<bool, String> {
    let run = wild::play(apply, seed);
    for step in run.steps.iter().filter(|step| step.decision.conflict) {
        if step.decision.audit.is_none() {
            return Err(format!("decided without an account: {:?}", step.input));
        }
    }
    Ok(wild::overlaps(&run))
}

#[test]
fn every_conflict_is_told() {
    holds(conflicts_told, HISTORIES).assert_bites();
}

#[test]
fn an_untold_conflict_is_noticed() {
    catches(&mutants::no_audit, conflicts_told, HISTORIES);
}

// The histories themselves.

#[test]
fn histories_reach_every_outcome_and_rule() {
    let (mut outcomes, mut rules) = (HashSet::new(), HashSet::new());
    for seed in 0..500 {
        for step in wild::play(&apply, seed).steps {
            outcomes.insert(step.decision.outcome);
            let audit = step.decision.audit.iter();
            rules.extend(
                audit.clone().flat_map(|audit| &audit.fields).map(|field| (field.rule, field.winner)),
            );
            rules.extend(audit.filter_map(|audit| audit.existence).map(|made| (made.rule, made.winner)));
        }
    }
    for outcome in [
        Outcome::Applied,
        Outcome::Merged,
        Outcome::Noop,
        Outcome::Superseded,
        Outcome::Gone,
        Outcome::ClientAhead,
    ] {
        assert!(outcomes.contains(&outcome), "no {outcome:?}");
    }
    for reached in [
        (Rule::OwnNewer, Winner::Server),
        (Rule::ClientWins, Winner::Client),
        (Rule::ServerWins, Winner::Server),
        (Rule::MostRecent, Winner::Client),
        (Rule::MostRecent, Winner::Server),
    ] {
        assert!(rules.contains(&reached), "no {reached:?}");
    }
}
