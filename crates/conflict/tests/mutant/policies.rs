//! Faults in what a policy says: one rule is taken for another.

use driftline_conflict::{
    Change, Context, Decision, DeletedRecord, FieldRule, Granularity, OnDelete, Policy, Record, Strategy,
    apply,
};

use super::Mutant;

/// The merge under another strategy than the declared one.
fn under(
    alter: impl Fn(&mut Strategy) + 'static,
) -> impl Fn(Option<&Record>, &Change, &Policy, &Context<'_>) -> Decision {
    move |current, change, policy, context| {
        let mut policy = policy.clone();
        alter(&mut policy.strategy);
        apply(current, change, &policy, context)
    }
}

/// The merge with another rule for some fields.
fn ruled(
    alter: impl Fn(&mut FieldRule) + 'static,
) -> impl Fn(Option<&Record>, &Change, &Policy, &Context<'_>) -> Decision {
    under(move |strategy| match strategy {
        Strategy::FieldMerge { fields, .. } | Strategy::PreserveEscalation { fields } => {
            fields.iter_mut().for_each(|(_, rule)| alter(rule));
        }
        _ => {}
    })
}

fn instead(wrong: FieldRule, of: FieldRule) -> impl Fn(&mut FieldRule) {
    move |rule| {
        if *rule == of {
            *rule = wrong.clone();
        }
    }
}

fn by_clock(instead_of: OnDelete) -> impl Fn(&mut Strategy) {
    move |strategy| match strategy {
        Strategy::FieldMerge { on_delete, .. } if *on_delete == instead_of => {
            *on_delete = OnDelete::MostRecent;
        }
        _ => {}
    }
}

fn client_wins() -> Strategy {
    Strategy::ClientWins { granularity: Granularity::Field, deleted: DeletedRecord::Restored }
}

pub(crate) fn all() -> Vec<Mutant> {
    let mut all = vec![
        Mutant::new(
            "record_granularity_as_field",
            "with the granularity of a record any unseen change is a conflict",
            "table",
            under(|strategy| match strategy {
                Strategy::ClientWins { granularity, .. } | Strategy::ServerWins { granularity } => {
                    *granularity = Granularity::Field;
                }
                _ => {}
            }),
        ),
        Mutant::new(
            "field_granularity_as_record",
            "with the granularity of a field other fields are no conflict",
            "table",
            under(|strategy| {
                if let Strategy::ServerWins { granularity } = strategy {
                    *granularity = Granularity::Record;
                }
            }),
        ),
        Mutant::new(
            "server_wins_writes",
            "the server's value stays",
            "table",
            under(|strategy| {
                if matches!(strategy, Strategy::ServerWins { .. }) {
                    *strategy = client_wins();
                }
            }),
        ),
        Mutant::new(
            "client_wins_keeps",
            "the client's value wins",
            "table",
            under(|strategy| {
                if let Strategy::ClientWins { granularity, .. } = *strategy {
                    *strategy = Strategy::ServerWins { granularity };
                }
            }),
        ),
        Mutant::new(
            "manual_strategy_applies",
            "a conflict is set aside for a reviewer",
            "table",
            under(|strategy| {
                if *strategy == Strategy::Manual {
                    *strategy = client_wins();
                }
            }),
        ),
        Mutant::new(
            "update_wins_by_clock",
            "an update that no delete had seen keeps the record alive",
            "orders",
            under(by_clock(OnDelete::UpdateWins)),
        ),
        Mutant::new(
            "delete_wins_by_clock",
            "a delete that no restore had seen stands",
            "orders",
            under(by_clock(OnDelete::DeleteWins)),
        ),
    ];
    all.extend(of_fields());
    all
}

fn of_fields() -> Vec<Mutant> {
    vec![
        Mutant::new(
            "max_takes_the_last",
            "the larger number stands",
            "orders",
            ruled(instead(FieldRule::Lww, FieldRule::Max)),
        ),
        Mutant::new(
            "min_takes_the_largest",
            "the smaller number stands",
            "table",
            ruled(instead(FieldRule::Max, FieldRule::Min)),
        ),
        Mutant::new(
            "counter_written_as_a_whole",
            "a counter takes increments only",
            "account",
            ruled(instead(FieldRule::Lww, FieldRule::Counter)),
        ),
        Mutant::new(
            "list_as_a_set",
            "a list keeps the order of its entries, and one entry of each id",
            "orders",
            ruled(instead(FieldRule::Set, FieldRule::Append)),
        ),
        Mutant::new(
            "immutable_overwritten",
            "the first value stays",
            "table",
            ruled(instead(FieldRule::Lww, FieldRule::Immutable)),
        ),
        Mutant::new(
            "manual_rule_applies",
            "a conflicting value is held",
            "table",
            ruled(instead(FieldRule::Lww, FieldRule::Manual)),
        ),
        Mutant::new(
            "ordered_as_most_recent",
            "an ordered field does not drop through a stale edit",
            "ladder",
            ruled(|rule| {
                if matches!(rule, FieldRule::Ordered(_)) {
                    *rule = FieldRule::Lww;
                }
            }),
        ),
        Mutant::new(
            "urgent_delete_applies",
            "a delete that had not seen the urgency is held",
            "ladder",
            ruled(|rule| {
                if let FieldRule::Ordered(order) = rule {
                    order.urgent = None;
                }
            }),
        ),
        Mutant::new(
            "order_upside_down",
            "the most urgent value shows",
            "ladder",
            ruled(|rule| {
                if let FieldRule::Ordered(order) = rule {
                    order.values.reverse();
                }
            }),
        ),
    ]
}
