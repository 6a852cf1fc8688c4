//! Faults in what the merge gives back.

use std::cell::Cell;

use driftline_conflict::{
    Change, Context, Decision, Life, Op, Outcome, Policy, Record, Strategy, Winner, apply,
};
use driftline_model::ObjectBuilder;

use super::Mutant;

/// The merge with another decision.
fn told(
    alter: impl Fn(&mut Decision, Option<&Record>, &Change, &Policy, &Context<'_>) + 'static,
) -> impl Fn(Option<&Record>, &Change, &Policy, &Context<'_>) -> Decision {
    move |current, change, policy, context| {
        let mut decision = apply(current, change, policy, context);
        alter(&mut decision, current, change, policy, context);
        decision
    }
}

pub(crate) fn all() -> Vec<Mutant> {
    [accounts(), records()].into_iter().flatten().collect()
}

fn accounts() -> Vec<Mutant> {
    vec![
        Mutant::new(
            "audit_dropped",
            "every decision has its account",
            "told",
            told(|decision, _, _, _, _| decision.audit = None),
        ),
        Mutant::new(
            "client_wins_silently",
            "the value that lost against the client goes to the audit",
            "account",
            told(|decision, _, _, policy, _| {
                if matches!(policy.strategy, Strategy::ClientWins { .. }) {
                    decision.audit.iter_mut().for_each(|audit| audit.fields.clear());
                }
            }),
        ),
        Mutant::new(
            "delete_hides_silently",
            "the unseen values that a delete hides go to the audit",
            "account",
            told(|decision, _, change, _, _| {
                if change.op == Op::Delete {
                    decision.audit.iter_mut().for_each(|audit| audit.fields.clear());
                }
            }),
        ),
        Mutant::new(
            "held_not_audited",
            "what is held goes to the audit",
            "account",
            told(|decision, _, _, _, _| {
                if let Some(audit) = &mut decision.audit {
                    audit.fields.retain(|entry| entry.winner != Winner::Held);
                }
            }),
        ),
        Mutant::new(
            "held_for_nobody",
            "what is held waits for a reviewer",
            "account",
            told(|decision, _, _, _, _| decision.review = None),
        ),
        Mutant::new(
            "lowering_not_audited",
            "an informed lowering is audited too",
            "ladder",
            told(|decision, _, _, _, _| {
                if decision.outcome == Outcome::Applied {
                    decision.audit = None;
                }
            }),
        ),
        Mutant::new(
            "clamp_not_told",
            "a clock that was held back is told",
            "clocks",
            told(|decision, _, _, _, _| {
                if let Some(audit) = &mut decision.audit {
                    audit.stamp.raw = Some(audit.stamp.effective);
                }
            }),
        ),
        Mutant::new(
            "winners_swapped",
            "the account names the side that stands",
            "table",
            told(|decision, _, _, _, _| {
                for entry in decision.audit.iter_mut().flat_map(|audit| &mut audit.fields) {
                    entry.winner = match entry.winner {
                        Winner::Client => Winner::Server,
                        Winner::Server => Winner::Client,
                        other => other,
                    };
                }
            }),
        ),
    ]
}

fn records() -> Vec<Mutant> {
    let calls = Cell::new(0_u64);
    vec![
        Mutant::new(
            "hidden_counter",
            "a replay gives the same bytes",
            "replay",
            told(move |decision, _, _, _, _| {
                calls.set(calls.get() + 1);
                if let Some(record) = decision.record.as_mut().filter(|_| calls.get().is_multiple_of(7)) {
                    record.live.n += calls.get();
                }
            }),
        ),
        Mutant::new(
            "version_stands_still",
            "versions rise",
            "versions",
            told(|decision, current, _, _, _| {
                if let (Some(record), Some(before)) = (&mut decision.record, current) {
                    record.version = before.version;
                }
            }),
        ),
        Mutant::new(
            "noop_bumps_version",
            "a noop uses up no version",
            "versions",
            told(|decision, current, _, _, context| {
                if decision.outcome == Outcome::Noop {
                    decision.record =
                        current.map(|record| Record { version: context.next, ..record.clone() });
                }
            }),
        ),
        Mutant::new(
            "life_of_another_policy_forgotten",
            "a record lives or not as the policy that wrote it left it",
            "policies",
            |current, change, policy, context| {
                let mut forgotten = current.cloned();
                if let Some(record) = &mut forgotten {
                    record.life = Life::Clocks;
                }
                apply(forgotten.as_ref(), change, policy, context)
            },
        ),
        Mutant::new(
            "value_without_its_mark",
            "a value that changes moves its mark",
            "versions",
            told(|decision, current, _, _, _| {
                if let (Some(record), Some(before)) = (&mut decision.record, current) {
                    record.marks.clone_from(&before.marks);
                    record.default_mark = before.default_mark;
                }
            }),
        ),
        Mutant::new(
            "counter_overwrites",
            "increments add up",
            "account",
            told(|decision, _, change, _, _| {
                let (Some(record), Some(intents)) = (&mut decision.record, &change.intents) else { return };
                for (counter, by) in &intents.increments {
                    let mut built = ObjectBuilder::with_capacity(64, record.fields.len());
                    for (name, value) in record.fields.iter() {
                        if name == &**counter {
                            built.push(name, &by.to_string());
                        } else {
                            built.push(name, value);
                        }
                    }
                    record.fields = built.finish();
                }
            }),
        ),
        Mutant::new(
            "applied_twice",
            "a change is applied once",
            "account",
            |current, change, policy, context| {
                let once = apply(current, change, policy, context);
                let Some(record) = &once.record else { return once };
                let again = apply(Some(record), change, policy, context);
                Decision { record: again.record.or_else(|| once.record.clone()), ..once }
            },
        ),
        Mutant::new(
            "refusal_writes",
            "what is refused has no effect",
            "versions",
            told(|decision, current, change, _, context| {
                if matches!(decision.outcome, Outcome::Invalid | Outcome::Forbidden)
                    && let Some(before) = current
                {
                    let mut record = Record { version: context.next, ..before.clone() };
                    record.live.n = change.n;
                    decision.record = Some(record);
                }
            }),
        ),
    ]
}
