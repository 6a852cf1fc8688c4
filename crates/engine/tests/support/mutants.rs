//! Planted faults around the plan: each breaks one law, and the check of that law has to notice.

use std::cell::Cell;
use std::collections::BTreeSet;

use driftline_conflict::Op;
use driftline_engine::{GroupState, PlanEnv, Planned, Row, Submission, SubmissionResult, Task, plan};
use driftline_model::Seq;
use driftline_protocol::{ItemClass, ItemCode};

use super::history::key;

/// Remembers no answer.
pub(crate) fn forgetful(group: &[Submission], state: &mut GroupState, env: &PlanEnv<'_>) -> Planned {
    state.by_n.clear();
    state.by_op.clear();
    plan(group, state, env)
}

/// Remembers answers by number only.
pub(crate) fn nameless(group: &[Submission], state: &mut GroupState, env: &PlanEnv<'_>) -> Planned {
    state.by_op.clear();
    plan(group, state, env)
}

/// Remembers between calls: every seventh group is stored with another number.
pub(crate) fn hidden_counter() -> impl Fn(&[Submission], &mut GroupState, &PlanEnv<'_>) -> Planned {
    let calls = Cell::new(0_u64);
    move |group, state, env| {
        calls.set(calls.get() + 1);
        let planned = plan(group, state, env);
        if calls.get().is_multiple_of(7)
            && let Some(Some(row)) = planned.writes.rows.first().and_then(|key| state.rows.get_mut(key))
        {
            row.record.live.n += calls.get();
        }
        planned
    }
}

/// Decides the batches of a group in the wrong order.
pub(crate) fn backwards(group: &[Submission], state: &mut GroupState, env: &PlanEnv<'_>) -> Planned {
    let turned: Vec<Submission> = group.iter().rev().cloned().collect();
    let mut planned = plan(&turned, state, env);
    planned.receipts.reverse();
    planned
}

fn move_head(state: &mut GroupState, planned: &mut Planned, to: impl Fn(Seq) -> Seq) {
    for (tenant, head) in &mut planned.writes.heads {
        head.seq = to(head.seq);
        state.heads.insert(*tenant, *head);
    }
    for commit in &mut planned.commits {
        commit.seq = to(commit.seq);
    }
}

/// Leaves out a place after every group.
pub(crate) fn skipping(group: &[Submission], state: &mut GroupState, env: &PlanEnv<'_>) -> Planned {
    let mut planned = plan(group, state, env);
    move_head(state, &mut planned, Seq::next);
    planned
}

/// Gives the last place of a group again.
pub(crate) fn repeating(group: &[Submission], state: &mut GroupState, env: &PlanEnv<'_>) -> Planned {
    let mut planned = plan(group, state, env);
    move_head(state, &mut planned, |seq| Seq::new(seq.number() - 1));
    planned
}

/// Loses the places of what a failed group took back.
pub(crate) fn wasteful(group: &[Submission], state: &mut GroupState, env: &PlanEnv<'_>) -> Planned {
    let mut planned = plan(group, state, env);
    let failed = planned
        .receipts
        .iter()
        .any(|receipt| receipt.results.iter().any(|result| result.code == ItemCode::DependencyFailed));
    if failed {
        move_head(state, &mut planned, Seq::next);
    }
    planned
}

/// Tells that a group failed, and leaves what it did.
pub(crate) fn half_done(group: &[Submission], state: &mut GroupState, env: &PlanEnv<'_>) -> Planned {
    let mut bare = group.to_vec();
    for entry in bare.iter_mut().flat_map(|submission| &mut submission.entries) {
        entry.group = None;
    }
    let mut planned = plan(&bare, state, env);
    for (submission, receipt) in group.iter().zip(&mut planned.receipts) {
        let failed: BTreeSet<&str> = submission
            .entries
            .iter()
            .zip(&receipt.results)
            .filter(|(_, result)| result.code.class() != ItemClass::Done)
            .filter_map(|(entry, _)| entry.group.as_deref())
            .collect();
        for (entry, result) in submission.entries.iter().zip(&mut receipt.results) {
            let in_failed = entry.group.as_deref().is_some_and(|label| failed.contains(label));
            if in_failed && result.code.class() == ItemClass::Done && !result.duplicate {
                *result = SubmissionResult::of(ItemCode::DependencyFailed);
            }
        }
    }
    planned
}

/// Makes records of patches.
pub(crate) fn patch_creates(group: &[Submission], state: &mut GroupState, env: &PlanEnv<'_>) -> Planned {
    let mut group = group.to_vec();
    for entry in group.iter_mut().flat_map(|submission| &mut submission.entries) {
        if let Task::Apply(apply) = &mut entry.task
            && apply.op == Op::Patch
            && state.rows.get(&key(apply.id.as_str())).is_none_or(Option::is_none)
        {
            apply.op = Op::Create;
        }
    }
    plan(&group, state, env)
}

/// Forgets to write a row.
pub(crate) fn unwritten(group: &[Submission], state: &mut GroupState, env: &PlanEnv<'_>) -> Planned {
    let mut planned = plan(group, state, env);
    if planned.writes.rows.len() > 1 {
        planned.writes.rows.pop();
    }
    planned
}

/// Forgets to account for decisions.
pub(crate) fn silent(group: &[Submission], state: &mut GroupState, env: &PlanEnv<'_>) -> Planned {
    let mut planned = plan(group, state, env);
    planned.writes.audits.clear();
    planned
}

/// Hides from a device that its record was taken by somebody else.
pub(crate) fn trespassing(group: &[Submission], state: &mut GroupState, env: &PlanEnv<'_>) -> Planned {
    let mut group = group.to_vec();
    for submission in &mut group {
        let scopes = state.rows.values().flatten().map(|row: &Row| row.scope.clone());
        submission.scopes.extend(scopes);
    }
    plan(&group, state, env)
}
