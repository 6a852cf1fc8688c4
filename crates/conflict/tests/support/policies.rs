//! The policies that the histories run under.

use std::sync::Arc;

use driftline_conflict::{
    Contested, Custom, CustomStrategy, DeletedRecord, FieldRule, Granularity, OnDelete, Order, Policy,
    Promises, Strategy, Verdict,
};

/// The ordered values of `state`, by rising urgency; the last one is urgent.
pub(crate) const LADDER: [&str; 5] =
    ["\"closed\"", "\"resolved\"", "\"open\"", "\"in_progress\"", "\"escalated\""];

/// Ordered values of `level`, none of which is urgent.
pub(crate) const LEVELS: [&str; 3] = ["1", "2", "3"];

const ON_DELETE: [OnDelete; 3] = [OnDelete::MostRecent, OnDelete::UpdateWins, OnDelete::DeleteWins];

/// What may be written to a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Plain,
    Number,
    Counter,
    Set,
    List,
    Ordered,
    /// Whatever the author likes: the policy declares no rule at all.
    Open,
}

impl Content {
    pub(crate) fn of(strategy: &Strategy, field: &str) -> Self {
        match strategy.rule(field) {
            Some(FieldRule::Max | FieldRule::Min) => Self::Number,
            Some(FieldRule::Counter) => Self::Counter,
            Some(FieldRule::Set) => Self::Set,
            Some(FieldRule::Append) => Self::List,
            Some(FieldRule::Ordered(_)) => Self::Ordered,
            Some(_) => Self::Plain,
            None if is_open(strategy) => Self::Open,
            None => Self::Plain,
        }
    }
}

/// Whether every intent is accepted on every field.
pub(crate) fn is_open(strategy: &Strategy) -> bool {
    matches!(strategy, Strategy::FieldMerge { fields, .. } if fields.is_empty())
}

/// The order of an ordered field.
pub(crate) fn order<'a>(strategy: &'a Strategy, field: &str) -> Option<&'a Order> {
    match strategy.rule(field) {
        Some(FieldRule::Ordered(order)) => Some(order),
        _ => None,
    }
}

/// The fields that changes under a policy touch.
pub(crate) fn names(strategy: &Strategy) -> Vec<&str> {
    let declared = strategy.fields();
    if declared.is_empty() {
        return super::FIELDS.to_vec();
    }
    let mut names: Vec<&str> = declared.iter().map(|(name, _)| &**name).collect();
    names.extend(["a", "b"].iter().filter(|plain| strategy.rule(plain).is_none()));
    names
}

fn rules<const N: usize>(rules: [(&str, FieldRule); N]) -> Vec<(Box<str>, FieldRule)> {
    rules.into_iter().map(|(name, rule)| (name.into(), rule)).collect()
}

fn ladder() -> FieldRule {
    FieldRule::Ordered(Order { values: LADDER.map(Box::from).to_vec(), urgent: Some(4) })
}

fn levels() -> FieldRule {
    FieldRule::Ordered(Order { values: LEVELS.map(Box::from).to_vec(), urgent: None })
}

/// The rules that promise the same state for every order of arrival.
fn joins() -> Vec<(Box<str>, FieldRule)> {
    rules([
        ("high", FieldRule::Max),
        ("log", FieldRule::Append),
        ("low", FieldRule::Min),
        ("tags", FieldRule::Set),
        ("visits", FieldRule::Counter),
    ])
}

fn escalation() -> Strategy {
    let mut fields = rules([("level", levels()), ("state", ladder())]);
    fields.extend(rules([("tags", FieldRule::Set), ("visits", FieldRule::Counter)]));
    Strategy::PreserveEscalation { fields }
}

fn policy(strategy: Strategy) -> Policy {
    Policy { strategy, version: 0 }
}

/// Every strategy with every option and every rule.
pub(crate) fn every_policy() -> Vec<Policy> {
    let mut strategies = vec![
        Strategy::MostRecentWins,
        Strategy::FieldMerge { fields: Vec::new(), on_delete: OnDelete::MostRecent },
        escalation(),
        escalation(),
        Strategy::Manual,
        Strategy::Custom(Custom(Arc::new(Sway))),
    ];
    for granularity in [Granularity::Record, Granularity::Field] {
        strategies.push(Strategy::ServerWins { granularity });
        for deleted in [DeletedRecord::Restored, DeletedRecord::StaysDeleted] {
            strategies.push(Strategy::ClientWins { granularity, deleted });
        }
    }
    let mut every_rule = joins();
    every_rule.extend(rules([
        ("fixed", FieldRule::Immutable),
        ("judged", FieldRule::Manual),
        ("owned", FieldRule::ServerOnly),
        ("plain", FieldRule::Lww),
    ]));
    for on_delete in ON_DELETE {
        strategies.push(Strategy::FieldMerge { fields: joins(), on_delete });
        strategies.push(Strategy::FieldMerge { fields: every_rule.clone(), on_delete });
    }
    strategies.into_iter().map(policy).collect()
}

/// Policies under which every arrival gives the same record, to the last mark.
pub(crate) fn clocked_policies() -> Vec<Policy> {
    let lww = rules([("b", FieldRule::Lww)]);
    vec![
        policy(Strategy::MostRecentWins),
        policy(Strategy::FieldMerge { fields: lww, on_delete: OnDelete::MostRecent }),
    ]
}

/// Policies under which every arrival that keeps each device's own order gives the same visible state.
pub(crate) fn joining_policies() -> Vec<Policy> {
    let mut strategies = vec![escalation(), escalation(), escalation()];
    for on_delete in ON_DELETE {
        strategies.push(Strategy::FieldMerge { fields: joins(), on_delete });
        strategies.push(Strategy::FieldMerge { fields: rules([("b", FieldRule::Lww)]), on_delete });
    }
    strategies.into_iter().map(policy).collect()
}

/// A strategy of an embedding service that gives every verdict there is.
#[derive(Debug)]
pub(crate) struct Sway;

impl CustomStrategy for Sway {
    fn name(&self) -> &'static str {
        "sway"
    }

    fn promises(&self) -> Promises {
        Promises { order_free: false }
    }

    fn decide(&self, field: &Contested<'_>) -> Verdict {
        let bytes = field.client.bytes().chain(field.server.bytes());
        match bytes.map(u32::from).sum::<u32>() % 4 {
            0 => Verdict::Client,
            1 => Verdict::Server,
            2 => Verdict::Merged(format!("[{},{}]", field.client, field.server)),
            _ => Verdict::Held,
        }
    }
}
