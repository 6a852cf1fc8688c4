//! The laws of the plan, over thousands of random histories.
//!
//! Every check takes the function under test. Each law also has planted faults that its check must notice within the
//! same number of histories: a check that finds nothing then has looked. `LAWS_SEED=17` runs one history alone.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use driftline_conflict::Op;
use driftline_engine::{Entry, Planned, Receipt, Row, RowKey, Submission, SubmissionResult, Task, plan};
use driftline_model::{DeviceNo, Seq};
use driftline_protocol::{ItemClass, ItemCode};
use driftline_testkit::Rng;

use support::history::{Group, history, key, told};
use support::tiny::{Plan, TENANT, Tiny};
use support::{mutants, over_seeds};

const HISTORIES: u64 = 2_000;

type Check = fn(&Plan<'_>, u64) -> Result<(), String>;

fn holds(check: Check) {
    if let Err(broken) = over_seeds(&plan as &Plan<'_>, HISTORIES, &check) {
        panic!("{broken}");
    }
}

fn catches(mutant: &Plan<'_>, check: Check) {
    assert!(over_seeds(mutant, HISTORIES, &check).is_err(), "the planted fault went unnoticed");
}

fn pairs<'a>(
    submissions: &'a [Submission],
    receipts: &'a [Receipt],
) -> impl Iterator<Item = (&'a Submission, &'a Entry, &'a SubmissionResult)> {
    submissions.iter().zip(receipts).flat_map(|(submission, receipt)| {
        submission
            .entries
            .iter()
            .zip(&receipt.results)
            .map(move |(entry, result)| (submission, entry, result))
    })
}

// Applying any prefix twice is applying it once.

/// Whether this answer was kept: a resend is recognised.
fn kept(planned: &Planned, device: DeviceNo, entry: &Entry, result: &SubmissionResult) -> bool {
    planned.writes.results.iter().any(|written| {
        let known = &written.known;
        let same_name = entry.op_id.is_some() && known.op_id == entry.op_id;
        let named = written.device == device && (same_name || entry.n == Some(known.n));
        named && known.hash == entry.hash && known.code == result.code && !result.duplicate
    })
}

fn prefix_twice(plan: &Plan<'_>, seed: u64) -> Result<(), String> {
    let groups = history(seed);
    let mut rng = Rng::new(seed ^ 0xabcd);
    let prefix = &groups[..rng.place(groups.len()) + 1];
    let mut server = Tiny::new(plan);
    let mut resends: Vec<(Submission, Vec<SubmissionResult>)> = Vec::new();
    for group in prefix {
        let planned = server.play(group);
        for (submission, receipt) in group.submissions.iter().zip(&planned.receipts) {
            let mut resend = Submission { entries: Vec::new(), acked_n: None, ..submission.clone() };
            let mut firsts = Vec::new();
            for (entry, result) in submission.entries.iter().zip(&receipt.results) {
                if kept(&planned, submission.device, entry, result) {
                    // What was decided stays so, whatever becomes of the rest of its group.
                    resend.entries.push(Entry { group: None, ..entry.clone() });
                    firsts.push(result.clone());
                }
            }
            resends.push((resend, firsts));
        }
    }
    let before = server.text();
    let now_ms = prefix.last().map_or(0, |group| group.now_ms);
    for (resend, firsts) in resends {
        let planned = server.plan(now_ms + 1, std::slice::from_ref(&resend));
        let heard = server.state.devices.get(&resend.device).map_or(0, |device| device.acked_n);
        for ((_, entry, again), first) in pairs(std::slice::from_ref(&resend), &planned.receipts).zip(&firsts)
        {
            // A careless device has used the name again since it heard the answer.
            let refused = matches!(again.code, ItemCode::TooOld | ItemCode::DeviceIdReused);
            let old = entry.n.is_some_and(|n| n <= heard) && refused;
            let same = again.duplicate && (again.code, again.version) == (first.code, first.version);
            if !old && !same {
                return Err(format!("{entry:?} got {first:?}, then {again:?}"));
            }
        }
        if !planned.commits.is_empty() || !planned.writes.audits.is_empty() {
            return Err(format!("{resend:?} had an effect: {:?}", planned.commits));
        }
    }
    let after = server.text();
    if before == after { Ok(()) } else { Err(format!("{before} became {after}")) }
}

#[test]
fn a_prefix_applied_twice_is_applied_once() {
    holds(prefix_twice);
}

#[test]
fn forgotten_answers_are_noticed() {
    catches(&mutants::forgetful, prefix_twice);
    catches(&mutants::nameless, prefix_twice);
}

// Replaying a recorded input list gives byte-equal state.

fn replay(plan: &Plan<'_>, seed: u64) -> Result<(), String> {
    let groups = history(seed);
    let (mut once, mut again) = (Tiny::new(plan), Tiny::new(plan));
    let first: Vec<Planned> = groups.iter().map(|group| once.play(group)).collect();
    for (group, first) in groups.iter().zip(&first) {
        let second = again.play(group);
        if format!("{first:?}") != format!("{second:?}") {
            return Err(format!("{group:?} gave {first:?}, then {second:?}"));
        }
    }
    let (once, again) = (once.text(), again.text());
    if once == again { Ok(()) } else { Err(format!("{once} became {again}")) }
}

#[test]
fn a_replay_gives_equal_bytes() {
    holds(replay);
}

#[test]
fn hidden_state_is_noticed() {
    catches(&mutants::hidden_counter(), replay);
}

// A commit group is its batches one by one: what queued together is nobody's business.

fn grouping(plan: &Plan<'_>, seed: u64) -> Result<(), String> {
    let (mut together, mut singly) = (Tiny::new(plan), Tiny::new(plan));
    for group in history(seed) {
        let planned = together.play(&group);
        let receipts = singly.play_singly(&group);
        for ((_, entry, one), (_, _, other)) in
            pairs(&group.submissions, &planned.receipts).zip(pairs(&group.submissions, &receipts))
        {
            if one != other {
                return Err(format!("{entry:?}: {one:?} together, {other:?} alone"));
            }
        }
        if together.head() != singly.head() {
            return Err(format!("{:?} together, {:?} alone", together.head(), singly.head()));
        }
    }
    let (together, singly) = (together.text(), singly.text());
    if together == singly { Ok(()) } else { Err(format!("{together} became {singly}")) }
}

#[test]
fn a_group_is_its_batches_one_by_one() {
    holds(grouping);
}

#[test]
fn another_order_within_a_group_is_noticed() {
    catches(&mutants::backwards, grouping);
}

// The sequence rises with every change and has no gap.

fn sequence(plan: &Plan<'_>, seed: u64) -> Result<(), String> {
    let mut server = Tiny::new(plan);
    let mut last = Seq::ZERO;
    let mut used = BTreeSet::new();
    for group in history(seed) {
        let head = server.head();
        let planned = server.play(&group);
        for commit in &planned.commits {
            if commit.prev_seq != last || commit.seq <= last {
                return Err(format!("{:?} to {:?} after {last}", commit.prev_seq, commit.seq));
            }
            last = commit.seq;
        }
        for version in told(&planned) {
            if !used.insert(version) {
                return Err(format!("{version} was given twice"));
            }
        }
        let count = Seq::new(used.len() as u64);
        if server.head().seq != last || last != count || used.last().is_some_and(|last| *last != count) {
            return Err(format!("{:?} with {count} changes, told up to {last}", server.head()));
        }
        if server.head().hlc < head.hlc {
            return Err(format!("the highest clock fell from {} to {}", head.hlc, server.head().hlc));
        }
        let mut seq = head.seq;
        for receipt in &planned.receipts {
            let ahead = receipt.results.iter().filter_map(|result| result.version).any(|v| v > receipt.seq);
            if receipt.seq < seq || ahead {
                return Err(format!("{receipt:?} after {seq}"));
            }
            seq = receipt.seq;
        }
    }
    Ok(())
}

#[test]
fn the_sequence_rises_without_a_gap() {
    holds(sequence);
}

#[test]
fn gaps_and_repeats_are_noticed() {
    catches(&mutants::skipping, sequence);
    catches(&mutants::repeating, sequence);
    catches(&mutants::wasteful, sequence);
}

// A group applies whole or leaves nothing, wherever it stands.

fn groups_whole(plan: &Plan<'_>, seed: u64) -> Result<(), String> {
    let (mut server, mut without) = (Tiny::new(plan), Tiny::new(plan));
    for group in history(seed) {
        for submission in &group.submissions {
            let planned = server.plan(group.now_ms, std::slice::from_ref(submission));
            let receipt = &planned.receipts[0];
            let failed = failed_labels(submission, receipt);
            for (entry, result) in submission.entries.iter().zip(&receipt.results) {
                let in_failed = entry.group.as_deref().is_some_and(|label| failed.contains(label));
                let done = result.code.class() == ItemClass::Done;
                if in_failed && done && !result.duplicate {
                    return Err(format!("{entry:?} of a failed group got {result:?}"));
                }
                let known = result.version.is_none_or(|version| version <= receipt.seq);
                if !known
                    || result.record.as_ref().is_some_and(|record| record.version > receipt.seq.number())
                {
                    return Err(format!("{result:?} tells of what was taken back"));
                }
            }
            // The same batch without its failed groups ends in the same state.
            let mut rest = submission.clone();
            rest.entries.retain(|entry| entry.group.as_deref().is_none_or(|label| !failed.contains(label)));
            without.plan(group.now_ms, &[rest]);
            let (with, without) = (server.text(), without.text());
            if with != without {
                return Err(format!("{submission:?} left {with} instead of {without}"));
            }
        }
    }
    Ok(())
}

/// The labels of groups with an item that is not done.
fn failed_labels<'a>(submission: &'a Submission, receipt: &Receipt) -> BTreeSet<&'a str> {
    let answers = submission.entries.iter().zip(&receipt.results);
    let failed = answers.filter(|(_, result)| result.code.class() != ItemClass::Done);
    failed.filter_map(|(entry, _)| entry.group.as_deref()).collect()
}

#[test]
fn a_group_applies_whole_or_leaves_nothing() {
    holds(groups_whole);
}

#[test]
fn half_a_group_is_noticed() {
    catches(&mutants::half_done, groups_whole);
}

// A patch never creates, and a purged id returns by a create alone.

fn creations(plan: &Plan<'_>, seed: u64) -> Result<(), String> {
    let mut server = Tiny::new(plan);
    for mut group in history(seed) {
        for submission in std::mem::take(&mut group.submissions) {
            for entry in &submission.entries {
                let Task::Apply(apply) = &entry.task else { continue };
                let key = key(apply.id.as_str());
                let existed = server.row(&key).is_some();
                let alone = Submission { entries: vec![entry.clone()], ..submission.clone() };
                let one = Group { submissions: vec![alone], ..group.clone() };
                server.play(&one);
                let purged = group.purge;
                if !existed && !purged && server.row(&key).is_some() && apply.op != Op::Create {
                    return Err(format!("{entry:?} made a record"));
                }
                group.purge = false;
            }
        }
    }
    Ok(())
}

#[test]
fn only_a_create_creates() {
    holds(creations);
}

#[test]
fn a_patch_that_creates_is_noticed() {
    catches(&mutants::patch_creates, creations);
}

// What a store is told to write is everything that changed.

fn writes(plan: &Plan<'_>, seed: u64) -> Result<(), String> {
    let mut server = Tiny::new(plan);
    let mut rows: BTreeMap<RowKey, Row> = BTreeMap::new();
    for group in history(seed) {
        if group.purge {
            rows.retain(|_, row| !row.deleted);
        }
        let planned = server.play(&group);
        for key in &planned.writes.rows {
            match server.row(key) {
                Some(row) => drop(rows.insert(key.clone(), row.clone())),
                None => return Err(format!("{key:?} is to be written and not there")),
            }
        }
        let kept: BTreeMap<RowKey, Row> =
            server.state.rows.iter().filter_map(|(key, row)| Some((key.clone(), row.clone()?))).collect();
        if kept != rows {
            return Err(format!("written {rows:#?}, but there is {kept:#?}"));
        }
        if let Some((_, head)) = planned.writes.heads.iter().find(|(tenant, _)| *tenant == TENANT)
            && *head != server.head()
        {
            return Err(format!("written {head:?}, but there is {:?}", server.head()));
        }
        for write in &planned.writes.devices {
            if server.state.devices.get(&write.device) != Some(&write.state) {
                return Err(format!("written {write:?}, but there is {:?}", server.state.devices));
            }
        }
        accounts(&group, &planned)?;
    }
    Ok(())
}

/// Every decision of a strategy that stands has its account.
fn accounts(group: &Group, planned: &Planned) -> Result<(), String> {
    for (submission, entry, result) in pairs(&group.submissions, &planned.receipts) {
        let decided = result.strategy.is_some() && result.code.class() == ItemClass::Done;
        let accounted = planned.writes.audits.iter().any(|audit| {
            audit.device == submission.device
                && audit.op_id == entry.op_id
                && entry.n.is_none_or(|n| n == audit.n)
        });
        if decided && !result.duplicate && !accounted {
            return Err(format!("{entry:?} got {result:?} without an account"));
        }
    }
    Ok(())
}

#[test]
fn everything_that_changed_is_written() {
    holds(writes);
}

#[test]
fn what_is_not_written_is_noticed() {
    catches(&mutants::unwritten, writes);
    catches(&mutants::silent, writes);
}

// Nobody touches, or learns of, a record in a scope of somebody else.

fn scopes(plan: &Plan<'_>, seed: u64) -> Result<(), String> {
    let mut server = Tiny::new(plan);
    for group in history(seed) {
        for submission in &group.submissions {
            let foreign: BTreeMap<RowKey, Row> = server
                .state
                .rows
                .iter()
                .filter_map(|(key, row)| Some((key.clone(), row.clone()?)))
                .filter(|(_, row)| !submission.scopes.contains(&row.scope))
                .collect();
            let planned = server.plan(group.now_ms, std::slice::from_ref(submission));
            for (key, row) in &foreign {
                if server.row(key) != Some(row) {
                    return Err(format!("{submission:?} touched {row:?}"));
                }
            }
            for (_, entry, result) in pairs(std::slice::from_ref(submission), &planned.receipts) {
                let Task::Apply(apply) = &entry.task else { continue };
                if foreign.contains_key(&key(apply.id.as_str())) && result.record.is_some() {
                    return Err(format!("{entry:?} learns {result:?}"));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn scopes_are_kept() {
    holds(scopes);
}

#[test]
fn trespassing_is_noticed() {
    catches(&mutants::trespassing, scopes);
}

// Histories that never meet a rule show nothing about it.

#[test]
fn the_histories_bite() {
    let mut codes: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut overlapping, mut duplicates) = (0, 0);
    for seed in 0..HISTORIES {
        let mut server = Tiny::new(&plan);
        let mut clash = false;
        for group in history(seed) {
            let planned = server.play(&group);
            for (_, _, result) in pairs(&group.submissions, &planned.receipts) {
                *codes.entry(result.code.as_str()).or_default() += 1;
                clash |= result.strategy.is_some();
                duplicates += u64::from(result.duplicate);
            }
        }
        overlapping += u64::from(clash);
    }
    for code in [
        ItemCode::Applied,
        ItemCode::Merged,
        ItemCode::Noop,
        ItemCode::Superseded,
        ItemCode::Invalid,
        ItemCode::Forbidden,
        ItemCode::Gone,
        ItemCode::TooLarge,
        ItemCode::DependencyFailed,
        ItemCode::DeviceIdReused,
        ItemCode::TooOld,
        ItemCode::ClientAhead,
        ItemCode::EpochChanged,
    ] {
        let times = codes.get(code.as_str()).copied().unwrap_or_default();
        assert!(times > HISTORIES / 10, "{code} came {times} times: {codes:?}");
    }
    assert!(duplicates > HISTORIES, "{duplicates} resends");
    assert!(overlapping * 100 >= HISTORIES * 30, "{overlapping} of {HISTORIES} histories have conflicts");
}
