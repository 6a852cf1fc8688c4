//! The laws: each checks one history of a seed, and says whether edits overlapped in it.

use driftline_conflict::{Life, Mark, Op, Outcome, Record};
use driftline_model::Seq;

use super::rng::Rng;
use super::sane::{Freedom, World};
use super::seen::every_mark;
use super::wild::{self, Input, Run, Server, Step};
use super::{Apply, Check, SKEW_MS, accepted, account, expected, ladder, orders};

/// Every law by its name.
pub(crate) const LAWS: [(&str, Check); 10] = [
    ("replay", replay),
    ("versions", versions),
    ("policies", policies_change),
    ("orders", orders_agree),
    ("gates", gates),
    ("clocks", clocks),
    ("account", nothing_lost),
    ("told", conflicts_told),
    ("table", rules_decide),
    ("ladder", nothing_falls),
];

/// I2: replaying a recorded input list gives byte-equal state.
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

/// I5: versions rise with every change, and the sequence has no gap.
fn versions(apply: &Apply<'_>, seed: u64) -> Result<bool, String> {
    versions_rise(&wild::play(apply, seed))
}

/// A record that another policy has left is a record like any other, and lives or not as it did before.
fn policies_change(apply: &Apply<'_>, seed: u64) -> Result<bool, String> {
    let run = wild::play_with_changing_policies(apply, seed);
    for step in &run.steps {
        let deleted = |record: Option<&Record>| record.is_some_and(|record| record.is_deleted(&run.devices));
        let (before, after) = (deleted(step.before.as_ref()), deleted(step.after.as_ref()));
        let told = step.decision.audit.as_ref().and_then(|audit| audit.existence);
        let asked = match step.input.change.op {
            Op::Delete => after,
            Op::Create | Op::Patch | Op::Restore => !after,
        };
        if before != after && !asked && told.is_none() {
            return Err(format!("deleted {after} all at once: {:?} {:?}", step.before, step.input));
        }
        let revived = step.input.change.op != Op::Delete && told.is_some_and(|made| !made.deleted);
        if revived && step.before.is_some() && !before {
            return Err(format!("brought back what lived: {:?} {:?}", step.before, step.input));
        }
    }
    versions_rise(&run)
}

fn versions_rise(run: &Run) -> Result<bool, String> {
    let mut used = Seq::ZERO;
    for step in &run.steps {
        let broken =
            |what: &str| Err(format!("{what} by {:?}: {:?} {:?}", step.input, step.before, step.decision));
        let outcome = step.decision.outcome;
        let Some(record) = &step.decision.record else {
            let only_held = outcome == Outcome::Merged && step.decision.review.is_some();
            if matches!(outcome, Outcome::Applied | Outcome::Merged) && !only_held {
                return broken("an effect without a change");
            }
            continue;
        };
        if outcome == Outcome::Noop || !accepted(outcome) {
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
        if every_mark(record).iter().any(|mark| mark.fv > old && mark.fv != record.version) {
            return broken("a mark of a version that never was");
        }
        if before.is_some_and(|before| *record == Record { version: used, ..before.clone() }) {
            return broken("a version used up for nothing");
        }
        if before.is_some_and(|before| moved_without_mark(before, record)) {
            return broken("a value changed without its mark");
        }
    }
    Ok(wild::overlaps(run))
}

fn moved_without_mark(before: &Record, record: &Record) -> bool {
    record
        .fields()
        .any(|(name, value, mark)| before.fields.get(name) != Some(value) && mark.fv != record.version)
        || before.fields().any(|(name, _, _)| record.fields.get(name).is_none())
}

/// I6: every order of a set of concurrent changes gives the same state, which is the one that the set comes to.
fn orders_agree(apply: &Apply<'_>, seed: u64) -> Result<bool, String> {
    let mut rng = Rng::new(seed);
    let freedom = if rng.percent(25) { Freedom::Any } else { Freedom::PerDevice };
    let mut world = World::new(&mut rng, freedom);
    let mut overlapping = false;
    for round in 0..3 {
        world.pull(&mut rng);
        let count = *rng.pick(&[2, 2, 3, 3, 3, 3, 4, 4, 5, 8]);
        let items = world.edits(&mut rng, count, freedom);
        overlapping |= World::overlaps(&items);
        let wanted = world.model(&items);
        let orders = orders::orders(&mut rng, &items, freedom);
        for order in &orders {
            let state = world.outcome(apply, order);
            if state != wanted {
                return Err(format!(
                    "round {round}, {freedom:?}:\n{}  gives {state:?}\nbut together they are {wanted:?}",
                    world.story(order)
                ));
            }
        }
        let settled = rng.pick(&orders);
        world.settle(apply, settled);
    }
    Ok(overlapping)
}

/// I9 and the gates of §2: a patch never creates, what its author knew deleted is gone, and nobody is ahead.
fn gates(apply: &Apply<'_>, seed: u64) -> Result<bool, String> {
    let run = wild::play(apply, seed);
    for step in &run.steps {
        let change = &step.input.change;
        let outcome = step.decision.outcome;
        let broken = |what: &str| Err(format!("{what}: {:?} {:?} {outcome:?}", step.input, step.before));
        if outcome == Outcome::Invalid {
            if step.decision.errors.is_empty() || step.decision.record.is_some() {
                return broken("invalid without an error, or with an effect");
            }
            continue;
        }
        let Some(before) = &step.before else {
            let asked = change.op == Op::Create && outcome != Outcome::Forbidden;
            let refused = matches!(outcome, Outcome::Gone | Outcome::Forbidden);
            if step.after.is_some() != asked || (change.op != Op::Create && !refused) {
                return broken("on nothing");
            }
            continue;
        };
        let ahead = change.base > before.version;
        if ahead != (outcome == Outcome::ClientAhead) && (!ahead || outcome != Outcome::Forbidden) {
            return broken("ahead or not");
        }
        let held = run.policy.strategy.name() == "preserve_escalation";
        let gone =
            change.op == Op::Patch && before.is_deleted(&run.devices) && knew_deleted(step, before, held);
        if gone && !matches!(outcome, Outcome::Gone | Outcome::ClientAhead | Outcome::Forbidden) {
            return broken("known to be deleted");
        }
        if outcome == Outcome::Gone && !before.is_deleted(&run.devices) {
            return broken("not deleted");
        }
    }
    let missed = run.steps.iter().any(|step| step.decision.outcome == Outcome::Gone);
    Ok(missed || wild::overlaps(&run))
}

fn knew_deleted(step: &Step, before: &Record, held: bool) -> bool {
    let change = &step.input.change;
    let knew = |del: &Mark| match del.device == change.device {
        true => del.n < change.n,
        false => del.fv <= change.base,
    };
    match &before.life {
        // Its author saw that it was held up, and not that it took effect.
        Life::Deletes(fallen) if held && fallen.iter().all(|fallen| fallen.fv > change.base) => {
            before.del.is_some_and(|del| knew(&del) && del.fv > change.base)
        }
        Life::Deletes(standing) => standing.iter().any(knew),
        Life::Clocks | Life::Urgent | Life::Writes(_) => before.del.as_ref().is_some_and(knew),
    }
}

/// I11: no stored clock exceeds the time of receipt plus the allowed skew, and a clamp is told.
fn clocks(apply: &Apply<'_>, seed: u64) -> Result<bool, String> {
    let run = wild::play(apply, seed);
    for step in &run.steps {
        let latest_ms = step.input.received.millis() + SKEW_MS;
        let marks = step.after.iter().flat_map(every_mark);
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

/// I4: no accepted value disappears silently.
fn nothing_lost(apply: &Apply<'_>, seed: u64) -> Result<bool, String> {
    let run = wild::play(apply, seed);
    account::audit_of(&run)?;
    Ok(wild::overlaps(&run))
}

/// Every decision of a conflict has its account, and whatever waits for a reviewer too.
fn conflicts_told(apply: &Apply<'_>, seed: u64) -> Result<bool, String> {
    let run = wild::play(apply, seed);
    for step in &run.steps {
        let decision = &step.decision;
        let review = decision.review.is_some();
        if (decision.conflict || review) && decision.audit.is_none() {
            return Err(format!("decided without an account: {:?}", step.input));
        }
        if review && !run.policy.may_review() {
            return Err(format!("a review under {:?}", run.policy));
        }
        let pending = decision.outcome == Outcome::ConflictPending;
        if pending && !review {
            return Err(format!("pending without a review: {:?}", step.input));
        }
    }
    Ok(wild::overlaps(&run))
}

/// Each rule decides as the table says.
fn rules_decide(apply: &Apply<'_>, seed: u64) -> Result<bool, String> {
    let run = wild::play(apply, seed);
    expected::table_of(&run)?;
    Ok(wild::overlaps(&run))
}

/// I10: no ordered field falls without an audited, authorised, informed lowering.
fn nothing_falls(apply: &Apply<'_>, seed: u64) -> Result<bool, String> {
    let run = wild::play_under(apply, seed, |policy| policy.strategy.name() == "preserve_escalation");
    ladder::falls_of(&run)?;
    Ok(wild::overlaps(&run))
}
