//! Tells histories, for the report of a failure.

use driftline_conflict::Audit;

use super::wild::Run;

/// Tells what happened to one record.
pub(crate) fn story(run: &Run, key: usize) -> String {
    let mut told = String::new();
    for step in run.steps.iter().filter(|step| step.input.key == key) {
        let change = &step.input.change;
        let fields = step.after.as_ref().map_or("-", |record| record.fields.as_str());
        let deleted = step.after.as_ref().is_some_and(|record| record.is_deleted(&run.devices));
        let clock = change.hlc.map_or("none".to_owned(), |hlc| hlc.to_string());
        let account = |audit: &Audit| {
            let fields = audit.fields.iter();
            let fields: Vec<_> = fields
                .map(|entry| (&entry.name, &entry.client, &entry.server, entry.winner, entry.rule))
                .collect();
            format!("{fields:?} {:?}", audit.existence)
        };
        told.push_str(&format!(
            "  offered {} device {} n {} {:?} base {} {} {:?} clock {clock} -> {:?} {fields}{} audit {:?} {:?}\n",
            step.next,
            change.device,
            change.n,
            change.op,
            change.base,
            change.fields.as_str(),
            change.intents,
            step.decision.outcome,
            if deleted { " (deleted)" } else { "" },
            step.decision.audit.as_ref().map(account),
            step.decision.review,
        ));
    }
    told
}
