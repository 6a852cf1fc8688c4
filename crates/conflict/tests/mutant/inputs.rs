//! Faults in what the merge reads of a change, of what is stored, or of what surrounds them.

use driftline_conflict::{
    Change, Context, Decision, DeviceOrder, FieldRule, Op, Policy, Record, Rights, Strategy, apply,
};
use driftline_model::{DeviceNo, Hlc, Intents, Object, ObjectBuilder, Seq, elements};

use crate::support::seen::{every_mark, for_every_mark};

use super::Mutant;

pub(crate) fn all() -> Vec<Mutant> {
    [seen(), own(), clocks(), parts(), rights()].into_iter().flatten().collect()
}

/// The merge of another change than the one that was sent.
fn changed(
    alter: impl Fn(&mut Change, Option<&Record>, &Policy, &Context<'_>) + 'static,
) -> impl Fn(Option<&Record>, &Change, &Policy, &Context<'_>) -> Decision {
    move |current, change, policy, context| {
        let mut change = change.clone();
        alter(&mut change, current, policy, context);
        apply(current, &change, policy, context)
    }
}

fn intents(change: &mut Change) -> &mut Intents {
    change.intents.get_or_insert_default()
}

fn version(current: Option<&Record>) -> Seq {
    current.map_or(Seq::ZERO, |record| record.version)
}

/// What the author had seen.
fn seen() -> Vec<Mutant> {
    vec![
        Mutant::new(
            "base_ignored",
            "what the author had not seen is in conflict",
            "account",
            changed(|change, current, _, _| change.base = version(current)),
        ),
        Mutant::new(
            "base_of_the_future_taken",
            "a base above the version is refused",
            "gates",
            changed(|change, current, _, _| {
                if current.is_some() {
                    change.base = change.base.min(version(current));
                }
            }),
        ),
        Mutant::new(
            "create_restores_unseen_delete",
            "a create on a tombstone restores only what its author knew deleted",
            "orders",
            changed(|change, current, _, context| {
                if change.op == Op::Create && current.is_some_and(|record| record.is_deleted(context.devices))
                {
                    change.base = version(current);
                }
            }),
        ),
        Mutant::new(
            "patch_creates",
            "a patch never creates",
            "gates",
            changed(|change, current, _, _| {
                if current.is_none() && change.op == Op::Patch {
                    change.op = Op::Create;
                }
            }),
        ),
        Mutant::new(
            "known_tombstone_patched",
            "a patch of what its author knew deleted is gone",
            "gates",
            changed(|change, current, _, context| {
                if current.is_some_and(|record| record.is_deleted(context.devices)) {
                    change.base = Seq::ZERO;
                }
            }),
        ),
        Mutant::new(
            "remove_takes_unseen",
            "a remove takes only elements that its author had seen",
            "account",
            changed(|change, current, _, _| {
                if change.intents.as_ref().is_some_and(|intents| !intents.remove.is_empty()) {
                    change.base = version(current);
                }
            }),
        ),
        Mutant::new(
            "lowering_over_unseen_assertion",
            "a lowering shows only over what its author had seen",
            "ladder",
            changed(|change, current, _, _| {
                if change.intents.as_ref().is_some_and(|intents| intents.deescalate) {
                    change.base = version(current);
                }
            }),
        ),
    ]
}

/// What the author had done itself.
fn own() -> Vec<Mutant> {
    vec![
        Mutant::new(
            "own_newer_ignored",
            "a later write of the same device stands",
            "table",
            changed(|change, current, _, _| {
                let own = current.map(every_mark).unwrap_or_default().into_iter();
                let last = own.filter(|mark| mark.device == change.device).map(|mark| mark.n).max();
                change.n = change.n.max(last.map_or(0, |last| last + 1));
            }),
        ),
        Mutant::new(
            "own_newer_stops_increments",
            "a later write of the same device stops no increment",
            "account",
            changed(|change, current, _, _| {
                let (device, n) = (change.device, change.n);
                let overtaken = |name: &str| {
                    let mark = current.and_then(|record| record.mark(name));
                    mark.is_some_and(|mark| mark.device == device && mark.n > n)
                };
                if let Some(intents) = &mut change.intents {
                    intents.increments.retain(|(name, _)| !overtaken(name));
                }
            }),
        ),
        Mutant::new(
            "own_writes_are_concurrent",
            "a device is not in conflict with itself",
            "table",
            |current, change, policy, context| {
                let stranger = DeviceNo::new(7);
                let mut estranged = current.cloned();
                if let Some(record) = &mut estranged {
                    for_every_mark(record, |mark| {
                        if mark.device == change.device {
                            mark.device = stranger;
                        }
                    });
                }
                let mut decision = apply(estranged.as_ref(), change, policy, context);
                if let Some(record) = &mut decision.record {
                    for_every_mark(record, |mark| {
                        if mark.device == stranger {
                            mark.device = change.device;
                        }
                    });
                }
                decision
            },
        ),
    ]
}

/// Orders devices by the numbers they happened to get.
struct ByNumber([[u8; 4]; 8]);

impl DeviceOrder for ByNumber {
    fn bytes(&self, device: DeviceNo) -> &[u8] {
        &self.0[device.number() as usize]
    }
}

/// What the clocks say.
fn clocks() -> Vec<Mutant> {
    let arrival = |context: &Context<'_>| Hlc::from_bits(context.received.bits() + context.next.number());
    vec![
        Mutant::new(
            "tie_by_interned_number",
            "ties fall by the bytes of a device, never by its number",
            "orders",
            |current, change, policy, context| {
                let devices = ByNumber([0_u32, 1, 2, 3, 4, 5, 6, 7].map(u32::to_be_bytes));
                apply(current, change, policy, &Context { devices: &devices, ..*context })
            },
        ),
        Mutant::new(
            "last_arrival_wins",
            "the larger clock wins, whatever arrives last",
            "orders",
            changed(move |change, _, _, context| change.hlc = Some(arrival(context))),
        ),
        Mutant::new(
            "smallest_clock_wins",
            "the larger clock wins",
            "orders",
            |current, change, policy, context| {
                let end = Hlc::new(Hlc::MAX_MILLIS, u16::MAX);
                let hlc = change.hlc.map(|hlc| Hlc::from_bits(end.bits() - hlc.bits()));
                let context = Context { latest: end, ..*context };
                apply(current, &Change { hlc, ..change.clone() }, policy, &context)
            },
        ),
        Mutant::new(
            "list_by_arrival",
            "a list is read in the order of clocks",
            "orders",
            changed(move |change, _, policy, context| {
                let added = change.intents.iter().flat_map(|intents| intents.add.iter());
                let mut names = change.fields.iter().chain(added).map(|(name, _)| name);
                if names.any(|name| policy.strategy.rule(name) == Some(&FieldRule::Append)) {
                    change.hlc = Some(arrival(context));
                }
            }),
        ),
        Mutant::new(
            "delete_beats_every_clock",
            "a delete is weighed against the clock of the last write",
            "orders",
            changed(|change, _, _, context| {
                if change.op == Op::Delete {
                    change.hlc = Some(context.latest);
                }
            }),
        ),
        Mutant::new(
            "clamp_missing",
            "no stored clock exceeds the time of receipt plus the allowed skew",
            "clocks",
            |current, change, policy, context| {
                let latest = Hlc::new(Hlc::MAX_MILLIS, 0);
                apply(current, change, policy, &Context { latest, ..*context })
            },
        ),
    ]
}

/// What the parts of a change say.
fn parts() -> Vec<Mutant> {
    vec![
        Mutant::new(
            "add_lost_on_concurrent_change",
            "of an add and a concurrent remove the add wins",
            "account",
            changed(|change, current, policy, _| {
                let Some(record) = current.filter(|record| change.base < record.version) else { return };
                let Some(intents) = &mut change.intents else { return };
                let mut kept = ObjectBuilder::with_capacity(32, intents.add.len());
                for (name, added) in intents.add.iter() {
                    let stored = record.fields.get(name).unwrap_or("[]");
                    let set = policy.strategy.rule(name) == Some(&FieldRule::Set);
                    kept.push(name, if set { stored } else { added });
                }
                intents.add = kept.finish();
            }),
        ),
        Mutant::new(
            "equal_value_keeps_its_mark",
            "the same value with a newer clock moves the mark",
            "table",
            changed(|change, current, _, _| {
                let stored = |name: &str| current.and_then(|record| record.fields.get(name));
                let other = |(name, value): &(&str, &str)| stored(name) != Some(value);
                change.fields = object(change.fields.iter().filter(other));
            }),
        ),
        Mutant::new(
            "increments_counted_twice",
            "an increment counts once",
            "account",
            changed(|change, _, _, _| {
                if let Some(intents) = &mut change.intents {
                    intents.increments.iter_mut().for_each(|(_, by)| *by *= 2);
                }
            }),
        ),
        Mutant::new(
            "later_elements_dropped",
            "every element that was sent is added",
            "account",
            changed(|change, _, _, _| {
                if let Some(intents) = &mut change.intents {
                    let first = |array: &str| match elements(array).unwrap_or_default().first() {
                        Some(first) => format!("[{first}]"),
                        None => array.to_owned(),
                    };
                    let firsts: Vec<_> =
                        intents.add.iter().map(|(name, array)| (name.to_owned(), first(array))).collect();
                    intents.add = object(firsts.iter().map(|(name, array)| (&**name, &**array)));
                }
            }),
        ),
        Mutant::new(
            "previous_ignored",
            "a write below its previous value is held",
            "ladder",
            changed(|change, _, _, _| {
                let fields = change.fields.clone();
                intents(change).previous = fields;
            }),
        ),
        Mutant::new(
            "raise_lost",
            "a raise always shows",
            "ladder",
            changed(|change, current, policy, _| {
                let lost = |(name, _): &(&str, &str)| {
                    let ordered = matches!(policy.strategy.rule(name), Some(FieldRule::Ordered(_)));
                    !ordered || change.base >= version(current) || change.op == Op::Create
                };
                change.fields = object(change.fields.iter().filter(lost));
            }),
        ),
        Mutant::new(
            "stale_lowering_applies",
            "a write below what its author saw is held",
            "ladder",
            |current, change, policy, context| {
                let mut change = change.clone();
                intents(&mut change).deescalate = true;
                let rights = Rights { deescalate: true, ..context.rights };
                apply(current, &change, policy, &Context { rights, ..*context })
            },
        ),
    ]
}

fn object<'a>(members: impl Iterator<Item = (&'a str, &'a str)>) -> Object {
    let mut built = ObjectBuilder::with_capacity(32, 4);
    for (name, value) in members {
        built.push(name, value);
    }
    built.finish()
}

/// What the author may do.
fn rights() -> Vec<Mutant> {
    vec![
        Mutant::new(
            "deescalation_without_right",
            "lowering needs the right",
            "ladder",
            |current, change, policy, context| {
                let rights = Rights { deescalate: true, ..context.rights };
                apply(current, change, policy, &Context { rights, ..*context })
            },
        ),
        Mutant::new(
            "server_only_written",
            "services alone write their fields",
            "table",
            |current, change, policy, context| {
                let rights = Rights { service: true, ..context.rights };
                apply(current, change, policy, &Context { rights, ..*context })
            },
        ),
        Mutant::new(
            "manual_ignores_the_base",
            "only what its author had not seen is set aside",
            "table",
            changed(|change, _, policy, _| {
                if policy.strategy == Strategy::Manual {
                    change.base = Seq::ZERO;
                }
            }),
        ),
    ]
}
