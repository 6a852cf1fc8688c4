//! Planted faults: each breaks one law, and the check of that law has to notice.

use std::cell::Cell;

use driftline_conflict::{
    Change, Context, Decision, DeviceOrder, Op, Outcome, Policy, Record, Strategy, apply,
};
use driftline_model::{DeviceNo, Hlc, Seq};

/// Remembers between calls: every seventh change is stored with another number.
pub(crate) fn hidden_counter() -> impl Fn(Option<&Record>, &Change, &Policy, &Context<'_>) -> Decision {
    let calls = Cell::new(0_u64);
    move |current, change, policy, context| {
        calls.set(calls.get() + 1);
        let mut decision = apply(current, change, policy, context);
        if let Some(record) = decision.record.as_mut().filter(|_| calls.get().is_multiple_of(7)) {
            record.live.n += calls.get();
        }
        decision
    }
}

/// Keeps the old version.
pub(crate) fn still_version(
    current: Option<&Record>,
    change: &Change,
    policy: &Policy,
    context: &Context<'_>,
) -> Decision {
    let mut decision = apply(current, change, policy, context);
    if let (Some(record), Some(before)) = (&mut decision.record, current) {
        record.version = before.version;
    }
    decision
}

/// Uses up a version where nothing changed.
pub(crate) fn wasted_version(
    current: Option<&Record>,
    change: &Change,
    policy: &Policy,
    context: &Context<'_>,
) -> Decision {
    let mut decision = apply(current, change, policy, context);
    if decision.outcome == Outcome::Noop {
        decision.record = current.map(|record| Record { version: context.next, ..record.clone() });
    }
    decision
}

/// Takes every author for one who has seen everything.
pub(crate) fn nothing_concurrent(
    current: Option<&Record>,
    change: &Change,
    policy: &Policy,
    context: &Context<'_>,
) -> Decision {
    let base = current.map_or(Seq::ZERO, |record| record.version);
    let op = if change.op == Op::Create && current.is_some() { Op::Patch } else { change.op };
    apply(current, &Change { base, op, ..change.clone() }, policy, context)
}

/// Forgets the account.
pub(crate) fn no_audit(
    current: Option<&Record>,
    change: &Change,
    policy: &Policy,
    context: &Context<'_>,
) -> Decision {
    Decision { audit: None, ..apply(current, change, policy, context) }
}

/// Forgets to account for the values that a delete hides.
pub(crate) fn silent_delete(
    current: Option<&Record>,
    change: &Change,
    policy: &Policy,
    context: &Context<'_>,
) -> Decision {
    let mut decision = apply(current, change, policy, context);
    if let Some(audit) = decision.audit.as_mut().filter(|_| change.op == Op::Delete) {
        audit.fields.clear();
    }
    decision
}

/// Orders devices by the numbers they happened to get.
struct ByNumber([[u8; 4]; 8]);

impl DeviceOrder for ByNumber {
    fn bytes(&self, device: DeviceNo) -> &[u8] {
        &self.0[device.number() as usize]
    }
}

/// Lets the interned number decide between equal clocks.
pub(crate) fn tie_by_number(
    current: Option<&Record>,
    change: &Change,
    policy: &Policy,
    context: &Context<'_>,
) -> Decision {
    let order = ByNumber([0_u32, 1, 2, 3, 4, 5, 6, 7].map(u32::to_be_bytes));
    apply(current, change, policy, &Context { devices: &order, ..*context })
}

/// Lets arrival decide between concurrent writes.
pub(crate) fn last_arrival(
    current: Option<&Record>,
    change: &Change,
    policy: &Policy,
    context: &Context<'_>,
) -> Decision {
    let received = Hlc::new(context.received.millis() + context.next.number(), 0);
    let context = Context { received, ..*context };
    apply(current, &Change { hlc: None, ..change.clone() }, policy, &context)
}

/// Lets a delete win over any update.
pub(crate) fn deletes_win(
    current: Option<&Record>,
    change: &Change,
    policy: &Policy,
    context: &Context<'_>,
) -> Decision {
    let strategy = match change.op {
        Op::Delete => Strategy::ClientWins {
            granularity: driftline_conflict::Granularity::Field,
            deleted: driftline_conflict::DeletedRecord::Restored,
        },
        Op::Create | Op::Patch | Op::Restore => policy.strategy.clone(),
    };
    apply(current, change, &Policy { strategy, version: 0 }, context)
}

/// Makes a record of a patch.
pub(crate) fn patch_creates(
    current: Option<&Record>,
    change: &Change,
    policy: &Policy,
    context: &Context<'_>,
) -> Decision {
    let op = if current.is_none() && change.op == Op::Patch { Op::Create } else { change.op };
    apply(current, &Change { op, ..change.clone() }, policy, context)
}

/// Takes every clock at its word.
pub(crate) fn no_clamp(
    current: Option<&Record>,
    change: &Change,
    policy: &Policy,
    context: &Context<'_>,
) -> Decision {
    let latest = Hlc::new(Hlc::MAX_MILLIS, 0);
    apply(current, change, policy, &Context { latest, ..*context })
}

/// Reads clocks backwards: as free of order as the real thing, and wrong.
pub(crate) fn smallest_clock(
    current: Option<&Record>,
    change: &Change,
    policy: &Policy,
    context: &Context<'_>,
) -> Decision {
    let turn = |hlc: Hlc| Hlc::from_bits(Hlc::new(Hlc::MAX_MILLIS, u16::MAX).bits() - hlc.bits());
    let hlc = change.hlc.map(turn);
    let latest = Hlc::new(Hlc::MAX_MILLIS, u16::MAX);
    apply(current, &Change { hlc, ..change.clone() }, policy, &Context { latest, ..*context })
}
