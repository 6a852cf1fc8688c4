//! Reads steps, plays them and shows what came out.

use driftline_conflict::{
    Change, Context, Decision, DeviceTable, FieldDecision, Op, Outcome, Policy, Record, Rights, Winner, apply,
};
use driftline_model::{DeviceNo, Hlc, Intents, Object, ObjectBuilder, Seq};

/// Sue may lower ordered fields, and the hub writes the fields of services.
const DEVICES: [&str; 5] = ["ada", "bob", "eve", "sue", "hub"];
const RECEIVED_MS: u64 = 1_000;
const LATEST_MS: u64 = 2_000;

pub(super) const CREATED: Option<&str> = Some("ada 1 create 0 a=1 b=1 @10");

/// Checks one row: what becomes of the last step.
pub(super) fn row(policy: &Policy, first: Option<&str>, steps: &[&str], wanted: &str) {
    let (decision, record) = play(policy, first, steps);
    assert_eq!(show(&decision, record.as_ref()), wanted, "{steps:?} under {policy:?}");
}

/// Plays the steps; gives the last decision, and the record after it.
pub(super) fn play(policy: &Policy, first: Option<&str>, steps: &[&str]) -> (Decision, Option<Record>) {
    let devices = DeviceTable::new(DEVICES);
    let mut record: Option<Record> = None;
    let mut decision = None;
    for step in first.iter().chain(steps) {
        let made: u64 = record.as_ref().map_or(0, |record| record.version.number());
        let device = step.split_whitespace().next().expect("a device");
        let context = Context {
            next: Seq::new(made + 1),
            received: Hlc::new(RECEIVED_MS, 0),
            latest: Hlc::new(LATEST_MS, 0),
            devices: &devices,
            rights: Rights { deescalate: device == "sue", service: device == "hub" },
        };
        let decided = apply(record.as_ref(), &change(step), policy, &context);
        record = decided.record.clone().or(record);
        decision = Some(decided);
    }
    (decision.expect("at least one step"), record)
}

fn change(step: &str) -> Change {
    let words: Vec<&str> = step.split_whitespace().collect();
    let [device, n, op, base, rest @ ..] = &words[..] else { panic!("a step has four words: {step}") };
    let (clock, parts): (Vec<&str>, Vec<&str>) = rest.iter().partition(|word| word.starts_with('@'));
    let device = (0..).zip(DEVICES).find(|(_, name)| name == device).expect("a device").0;
    let intents = Intents {
        previous: object(&parts, "was:"),
        increments: increments(&parts),
        add: object(&parts, "add:"),
        remove: object(&parts, "remove:"),
        deescalate: parts.contains(&"lower"),
    };
    Change {
        op: match *op {
            "create" => Op::Create,
            "patch" => Op::Patch,
            "delete" => Op::Delete,
            "restore" => Op::Restore,
            other => panic!("no operation {other}"),
        },
        base: Seq::new(base.parse().expect("a base")),
        fields: object(&parts, ""),
        intents: (!intents.is_empty()).then(|| Box::new(intents)),
        hlc: clock.first().map(|clock| Hlc::new(clock[1..].parse().expect("a clock"), 0)),
        device: DeviceNo::new(device),
        n: n.parse().expect("a number"),
    }
}

/// The members that stand under a prefix, in the order of the step, which is the canonical one.
fn object(parts: &[&str], prefix: &str) -> Object {
    let mut built = ObjectBuilder::with_capacity(32, parts.len());
    for part in parts {
        let Some((name, value)) = part.strip_prefix(prefix).and_then(|part| part.split_once('=')) else {
            continue;
        };
        if !name.contains(':') {
            built.push(name, value);
        }
    }
    built.finish()
}

fn increments(parts: &[&str]) -> Vec<(Box<str>, i64)> {
    let found = object(parts, "inc:");
    found.iter().map(|(name, by)| (name.into(), by.parse().expect("an integer"))).collect()
}

pub(super) fn show(decision: &Decision, record: Option<&Record>) -> String {
    let devices = DeviceTable::new(DEVICES);
    let mut shown = word(decision.outcome).to_owned();
    match record {
        None => shown.push_str(" nothing"),
        Some(record) => {
            shown.push_str(if record.is_deleted(&devices) { " deleted" } else { "" });
            shown.extend(record.fields.iter().map(|(name, value)| format!(" {name}={value}")));
        }
    }
    for error in &decision.errors {
        shown.push_str(&format!(" | {}/{}: {}", error.part.name(), error.field, error.message));
    }
    let Some(audit) = &decision.audit else {
        assert!(decision.review.is_none(), "a review without an account");
        return shown;
    };
    shown.push_str(" |");
    if decision.conflict {
        shown.push_str(" conflict");
    }
    if audit.stamp.is_clamped() {
        shown.push_str(" clamped");
    }
    shown.extend(audit.fields.iter().map(field));
    if let Some(existence) = audit.existence {
        shown.push_str(&format!(" exists:{}:{}", side(existence.winner), existence.rule.name()));
        assert_eq!(existence.deleted, record.is_some_and(|record| record.is_deleted(&devices)));
    }
    if let Some(review) = &decision.review {
        shown.push_str(&format!(" review:{}[{}]", review.reason.name(), review.fields.join(",")));
    }
    shown
}

fn field(entry: &FieldDecision) -> String {
    let FieldDecision { name, winner, rule, server, .. } = entry;
    let client = entry.client.as_deref().unwrap_or("-");
    let loser = match winner {
        Winner::Client => server.to_string(),
        Winner::Server | Winner::Held => client.to_owned(),
        Winner::Merged => format!("{server}&{client}"),
    };
    format!(" {name}:{}:{}({loser})", side(*winner), rule.name())
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Applied => "applied",
        Outcome::Merged => "merged",
        Outcome::Noop => "noop",
        Outcome::Superseded => "superseded",
        Outcome::Gone => "gone",
        Outcome::ClientAhead => "client_ahead",
        Outcome::ConflictPending => "conflict_pending",
        Outcome::Invalid => "invalid",
        Outcome::Forbidden => "forbidden",
    }
}

fn side(winner: Winner) -> &'static str {
    match winner {
        Winner::Client => "client",
        Winner::Server => "server",
        Winner::Merged => "merged",
        Winner::Held => "held",
    }
}
