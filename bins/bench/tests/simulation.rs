//! Whole systems from seeds: nothing bad happens, everybody agrees in the end, and every planted fault is found.
//!
//! `SIM_SEEDS` sets how many seeds are played, `SIM_SEED` plays one of them alone and tells its story.

mod mutants;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use driftline_bench::simulate::{Counts, MemoryBackend, Mode, Outcome, Setup, SqliteBackend, play};
use driftline_testkit::TempFolder;
use mutants::{Fault, FaultyBackend};

/// Policies that the seeds take in turn.
const POLICIES: [Option<&str>; 12] = [
    None,
    Some(r#"{"strategy":"most_recent_wins"}"#),
    Some(r#"{"strategy":"client_wins"}"#),
    Some(r#"{"strategy":"server_wins"}"#),
    Some(r#"{"strategy":"client_wins","granularity":"field","options":{"on_delete":"stay_deleted"}}"#),
    Some(r#"{"strategy":"server_wins","granularity":"field"}"#),
    Some(MERGES),
    Some(ESCALATES),
    Some(r#"{"strategy":"manual"}"#),
    Some(
        r#"{"strategy":"field_merge","options":{"on_delete":"update_wins"},
            "fields":{"visits":{"rule":"counter"},"title":{"rule":"lww"}}}"#,
    ),
    Some(
        r#"{"strategy":"field_merge","options":{"on_delete":"delete_wins"},
            "fields":{"tags":{"rule":"set"},"title":{"rule":"lww"}}}"#,
    ),
    Some(r#"{"strategy":"field_merge","fields":{"title":{"rule":"manual"},"visits":{"rule":"counter"}}}"#),
];

/// Every rule that is a join, and one that is none.
const MERGES: &str = r#"{"strategy":"field_merge","fields":{
    "visits":{"rule":"counter"},"tags":{"rule":"set"},"log":{"rule":"append"},"best":{"rule":"max"},
    "least":{"rule":"min"},"serial":{"rule":"immutable"}}}"#;

/// Tickets whose urgent states do not get lost.
const ESCALATES: &str = r#"{"strategy":"preserve_escalation","fields":{
    "state":{"rule":"ordered","order":["closed","resolved","open","in_progress","escalated"],"urgent":"escalated"},
    "tags":{"rule":"set"}}}"#;

/// Everything that happens beside edits, by the names in the counts.
const FAULTS: [&str; 17] = [
    "a month and a clean-up",
    "app restart",
    "away",
    "blocked or unblocked",
    "clock jump",
    "copy",
    "cut",
    "cut with late messages",
    "lost answer",
    "lost request",
    "repeated request",
    "request",
    "restore",
    "review",
    "rollback found by a cursor",
    "server clock jump",
    "server restart",
];

fn setup(seed: u64) -> Setup {
    let turn = usize::try_from(seed).expect("a small number");
    Setup {
        seed,
        devices: 2 + turn % 3,
        records: 1 + turn % 5,
        steps: 100,
        hours: 24,
        mode: Mode::Liveness,
        policy: POLICIES[turn % POLICIES.len()].map(str::to_owned),
        tell: false,
    }
}

/// The seeds to play.
fn seeds(usual: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    match number("SIM_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("SIM_SEEDS").unwrap_or(usual)).collect(),
    }
}

/// Fails with the story of a run that broke a law.
fn expect_lawful(outcome: &Outcome, again: impl FnOnce(&Setup) -> Outcome) {
    if let Some(violation) = &outcome.violation {
        let told = again(&Setup { tell: true, ..setup(outcome.seed) });
        panic!(
            "{}\nseed {} at step {}: {violation}\nagain: SIM_SEED={}",
            told.story.join("\n"),
            outcome.seed,
            outcome.counts.steps,
            outcome.seed
        );
    }
}

fn in_memory(setup: &Setup) -> Outcome {
    play(setup, &mut MemoryBackend::default()).expect("the simulation goes on")
}

fn in_sqlite(setup: &Setup) -> Outcome {
    let folder = TempFolder::new();
    play(setup, &mut SqliteBackend::new(folder.path())).expect("the simulation goes on")
}

#[test]
fn systems_over_memory_keep_the_laws_and_agree() {
    let seeds = seeds(2_000);
    let mut total = Counts::default();
    let mut overlapping = 0;
    for &seed in &seeds {
        let outcome = in_memory(&setup(seed));
        expect_lawful(&outcome, in_memory);
        overlapping += usize::from(outcome.overlaps());
        total.add(&outcome.counts);
    }
    println!("{} seeds, {overlapping} with overlapping edits: {total:?}", seeds.len());
    if seeds.len() >= 100 {
        assert!(10 * overlapping >= 3 * seeds.len(), "{overlapping} of {} seeds bite", seeds.len());
        let missing: Vec<_> = FAULTS.iter().filter(|fault| !total.events.contains_key(*fault)).collect();
        assert!(missing.is_empty(), "never happened: {missing:?}");
        let codes = [
            "applied",
            "merged",
            "superseded",
            "noop",
            "gone",
            "dependency_failed",
            "duplicate",
            "conflict_pending",
            "invalid",
            "epoch_changed",
            "too_old",
        ];
        let missing: Vec<_> = codes.iter().filter(|code| !total.codes.contains_key(*code)).collect();
        assert!(missing.is_empty(), "never answered: {missing:?}");
        assert!(total.compared > 0 && total.audited > 0);
    }
}

#[test]
fn systems_over_sqlite_keep_the_laws_and_agree() {
    for seed in seeds(140).into_iter().step_by(14) {
        let outcome = in_sqlite(&setup(seed));
        expect_lawful(&outcome, in_sqlite);
    }
}

#[test]
fn a_seed_tells_the_same_story_again() {
    for seed in [3, 8, 9] {
        let setup = Setup { tell: true, ..setup(seed) };
        let first = in_memory(&setup);
        assert!(first.story.len() > 100);
        assert_eq!(first.story, in_memory(&setup).story);
        assert_eq!(in_sqlite(&setup).story, in_sqlite(&setup).story);
    }
}

#[test]
fn other_seeds_tell_other_stories() {
    let story = |seed| in_memory(&Setup { tell: true, ..setup(seed) }).story;
    assert_ne!(story(3), story(3 + 12 * 60), "policy, devices and records are the same");
}

/// Planted faults with the laws that may find them. `I4` is found by the verifier, `model` by the reference model.
const MUTANTS: &[(Fault, &[&str])] = &[
    (Fault::ForgetsAnswers, &["I1", "I4"]),
    (Fault::ForgetsTooEarly, &["I1"]),
    (Fault::AnswersBeforeCommit, &["I1", "I4", "I5", "I8"]),
    (Fault::ReusesASeq, &["I5"]),
    (Fault::SkipsASeq, &["I5"]),
    (Fault::PatchCreates, &["I9"]),
    (Fault::BelievesClocks, &["I11"]),
    (Fault::DropsAValue, &["I3", "I4"]),
    (Fault::DropsAnIncrement, &["I3", "I4"]),
    (Fault::DropsAnElement, &["I3", "I4"]),
    (Fault::LosesWhatWaits, &["I4"]),
    (Fault::LowersByTheClock, &["I10"]),
    (Fault::DropsAnAuditRow, &["I4"]),
    (Fault::SplitsGroups, &["group"]),
    (Fault::IgnoresTheEpoch, &["epoch"]),
    (Fault::KeepsTheEpoch, &["I3", "I5", "I8"]),
    (Fault::DeltaSkipsAChange, &["I3", "I8"]),
    (Fault::DeltaIgnoresScopes, &["I3"]),
    (Fault::PageSkipsARow, &["I8"]),
    (Fault::PageHidesTombstones, &["I8"]),
    (Fault::PageSaysThatIsAll, &["I8"]),
    (Fault::PageForgetsCreates, &["I3", "I8"]),
    (Fault::PageIgnoresScopes, &["I3"]),
    (Fault::SnapshotSkipsARow, &["I8"]),
    (Fault::ForgetsTheFloor, &["I3", "I8"]),
];

#[test]
fn every_planted_fault_is_found() {
    let mut table = String::new();
    let mut unfound = Vec::new();
    for (fault, laws) in MUTANTS {
        let found = (1..=500).find_map(|seed| {
            let outcome = play(&setup(seed), &mut FaultyBackend::new(*fault)).expect("it goes on");
            outcome.violation.map(|violation| (seed, violation))
        });
        match found {
            Some((seed, violation)) if laws.contains(&violation.law) => {
                let fault = format!("{fault:?}");
                writeln!(table, "{fault:<22} {:<6} seed {seed:>3}  {}", violation.law, violation.what)
                    .expect("a text grows");
            }
            other => unfound.push(format!("{fault:?}: {other:?}")),
        }
    }
    println!("{table}");
    assert!(unfound.is_empty(), "not found, or by another law:\n{}", unfound.join("\n"));
    let named: BTreeSet<_> = MUTANTS.iter().map(|(fault, _)| format!("{fault:?}")).collect();
    assert_eq!(named.len(), MUTANTS.len(), "each fault stands once in the table");
}

#[test]
fn a_store_without_a_fault_is_found_lawful() {
    for seed in 1..=20 {
        let outcome = play(&setup(seed), &mut FaultyBackend::new(Fault::Nothing)).expect("it goes on");
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
}
