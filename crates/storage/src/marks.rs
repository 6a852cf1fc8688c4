//! The marks of a record.

use driftline_conflict::{Life, Mark, Parts, Record};

/// Goes through every mark that a record holds, those of its life and its states included: their devices decide ties.
pub(crate) fn every_mark(record: &Record) -> impl Iterator<Item = Mark> {
    let life = match &record.life {
        Life::Clocks | Life::Urgent => &[][..],
        Life::Writes(marks) | Life::Deletes(marks) => marks,
    };
    let parts = record.states.iter().flat_map(|(_, state)| match &state.parts {
        Parts::Counter => Vec::new(),
        Parts::Set(elements) => elements.concat(),
        Parts::List(marks) => marks.clone(),
        Parts::Ordered(assertions) => assertions.iter().map(|assertion| assertion.mark).collect(),
    });
    record.all_marks().chain(life.iter().copied()).chain(parts)
}

#[cfg(test)]
mod tests {
    use driftline_conflict::{Assertion, FieldState};
    use driftline_model::{DeviceNo, Hlc, Object, Seq};

    use super::*;

    #[test]
    fn every_mark_of_a_record_is_found() {
        let first = Mark { fv: Seq::new(1), hlc: Hlc::ZERO, device: DeviceNo::new(1), n: 1 };
        let mut record = Record::created(Object::empty(), first);
        assert_eq!(every_mark(&record).collect::<Vec<_>>(), [first]);
        let other = |n| Mark { n, ..first };
        record.life = Life::Deletes(vec![other(100)]);
        let states = [
            Parts::Set(vec![vec![other(101), other(102)], vec![]]),
            Parts::List(vec![other(103)]),
            Parts::Ordered(vec![Assertion { value: "1".into(), mark: other(104), covered: false }]),
            Parts::Counter,
        ];
        record.states = states
            .map(|parts| (Box::from("a"), FieldState { others: Seq::ZERO, parts }))
            .into_iter()
            .collect();
        let found: Vec<u64> = every_mark(&record).map(|mark| mark.n).filter(|n| *n >= 100).collect();
        assert_eq!(found, [100, 101, 102, 103, 104]);
    }
}
