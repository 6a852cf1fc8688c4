//! Uploads that somebody has to look after.

use driftline_engine::{ChunkReceipt, Joining, Store, StreamReceipt, UploadRow, UploadTurn};
use driftline_uploads::{State, Upload, UploadId};

use super::super::Bed;
use super::{Yard, at, chunk, chunks, id_of, part, shown, stream, turn};
use crate::wait::block_on;

fn ids(rows: &[UploadRow]) -> Vec<UploadId> {
    rows.iter().map(|row| row.id).collect()
}

/// The names of some numbers, in the order of these.
fn named(numbers: &[u64]) -> Vec<UploadId> {
    numbers.iter().map(|number| id_of(*number)).collect()
}

pub(in super::super) fn overdue_uploads_are_listed<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let until = |number, expires: u64| {
        let row = yard.row(number, chunks(4));
        UploadRow { upload: Upload { expires_ms: at(expires), ..row.upload }, ..row }
    };
    for (number, expires) in [(1, 300), (2, 100), (3, 200), (4, 100), (5, 150), (6, 50), (7, 400)] {
        yard.open_row(&until(number, expires));
    }
    yard.open_row(&UploadRow { tenant: yard.other, ..until(8, 120) });
    let overdue = |now, rows| ids(&block_on(yard.rows().overdue_uploads(at(now), rows)).expect("a list"));
    // Who has the same time stands in the order of the names, which begin with the low bytes of the numbers.
    assert_eq!(overdue(1000, 100), named(&[6, 2, 4, 8, 5, 3, 1, 7]));
    assert_eq!(overdue(150, 100), named(&[6, 2, 4, 8, 5]), "one whose time is over now is over");
    assert_eq!((overdue(149, 100), overdue(49, 100)), (named(&[6, 2, 4, 8]), vec![]));
    assert_eq!((overdue(1000, 3), overdue(1000, 0)), (named(&[6, 2, 4]), vec![]));
    yard.bring(id_of(6), State::Finalizing);
    yard.bring(id_of(2), State::Expired);
    yard.bring(id_of(8), State::Done);
    yard.keep(ChunkReceipt { expires_ms: at(900), ..chunk(id_of(4), 0, 4) });
    assert_eq!(overdue(899, 100), named(&[5, 3, 1, 7]));
    assert_eq!(overdue(900, 100), named(&[5, 3, 1, 7, 4]));
    let listed = block_on(yard.rows().overdue_uploads(at(150), 100)).expect("a list");
    assert_eq!(shown(&listed[0]), shown(&yard.read(id_of(5))), "whole rows");
}

pub(in super::super) fn unfinished_uploads_are_listed<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let begin = |number: u64, ms| {
        let begin = turn(id_of(number), State::Open, State::Finalizing);
        assert!(yard.turn(UploadTurn { at_ms: at(ms), ..begin }));
    };
    for (number, ms) in [(1, 30), (2, 10), (3, 20), (4, 10), (5, 15)] {
        yard.open(number, chunks(4));
        begin(number, ms);
    }
    yard.open(6, chunks(4));
    let unfinished = |ms, rows| ids(&block_on(yard.rows().unfinished_uploads(at(ms), rows)).expect("a list"));
    assert_eq!(unfinished(100, 100), named(&[2, 4, 5, 3, 1]));
    assert_eq!((unfinished(20, 100), unfinished(10, 100)), (named(&[2, 4, 5]), vec![]));
    assert_eq!(unfinished(100, 2), named(&[2, 4]));
    for (number, to) in [(2, State::Done), (4, State::Open), (3, State::Cancelled)] {
        assert!(yard.turn(turn(id_of(number), State::Finalizing, to)));
    }
    assert_eq!(unfinished(100, 100), named(&[5, 1]));
    begin(4, 12);
    // Streams of which everything is there, unless they are parts of something.
    for (number, joining, to) in
        [(7, Joining::Alone, 4), (8, Joining::Part, 4), (9, Joining::Whole, 4), (10, Joining::Alone, 3)]
    {
        let id = yard.open_row(&UploadRow { joining, ..yard.row(number, stream(Some(4))) });
        yard.go_on(StreamReceipt { at_ms: at(50), ..part(id, 0, to) });
    }
    let empty = yard.open_row(&UploadRow { changed_ms: at(49), ..yard.row(11, stream(Some(0))) });
    assert_eq!(unfinished(100, 100), [named(&[4, 5, 1]), vec![empty], named(&[7, 9])].concat());
    assert_eq!(unfinished(50, 100), [named(&[4, 5, 1]), vec![empty]].concat());
    let listed = block_on(yard.rows().unfinished_uploads(at(100), 1)).expect("a list");
    assert_eq!(shown(&listed[0]), shown(&yard.read(id_of(4))));
}

pub(in super::super) fn states_are_told<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    for (number, state) in (1..).zip(State::ALL) {
        yard.bring(yard.open(number, chunks(4)), state);
    }
    yard.open_row(&UploadRow { tenant: yard.other, ..yard.row(6, chunks(4)) });
    let states = |numbers: &[u64]| block_on(yard.rows().upload_states(named(numbers))).expect("a list");
    let wanted = |numbers: &[u64]| -> Vec<(UploadId, State)> {
        let place = |number: u64| usize::try_from(number - 1).expect("few");
        let state = |number| State::ALL.get(place(number)).copied().unwrap_or(State::Open);
        numbers.iter().map(|number| (id_of(*number), state(*number))).collect()
    };
    assert_eq!(states(&[5, 4, 99, 3, 6, 2, 1]), wanted(&[5, 4, 3, 6, 2, 1]));
    assert_eq!((states(&[]), states(&[99])), (vec![], vec![]));
    let many: Vec<u64> = (1..3000).collect();
    assert_eq!(states(&many), wanted(&[1, 2, 3, 4, 5, 6]));
}

pub(in super::super) fn untold_uploads_are_listed<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let joinings = [Joining::Alone, Joining::Whole, Joining::Part, Joining::Alone, Joining::Alone];
    for ((number, joining), ms) in (1..).zip(joinings).zip([30, 20, 10, 20, 40]) {
        let id = yard.open_row(&UploadRow { joining, ..yard.row(number, chunks(4)) });
        assert!(yard.turn(turn(id, State::Open, State::Finalizing)));
        assert!(yard.turn(UploadTurn { at_ms: at(ms), ..turn(id, State::Finalizing, State::Done) }));
    }
    for (number, state) in
        [(6, State::Open), (7, State::Finalizing), (8, State::Cancelled), (9, State::Expired)]
    {
        yard.bring(yard.open(number, chunks(4)), state);
    }
    let untold = |rows| ids(&block_on(yard.rows().untold_uploads(rows)).expect("a list"));
    let tell = |number| block_on(yard.rows().upload_told(id_of(number))).expect("an answer");
    assert_eq!((untold(100), untold(2)), (named(&[2, 4, 1, 5]), named(&[2, 4])));
    let listed = block_on(yard.rows().untold_uploads(1)).expect("a list");
    assert_eq!(shown(&listed[0]), shown(&yard.read(id_of(2))));
    let before = shown(&yard.read(id_of(4)));
    tell(4);
    tell(4);
    tell(99);
    assert_eq!((untold(100), shown(&yard.read(id_of(4)))), (named(&[2, 1, 5]), before));
    assert_eq!(block_on(yard.rows().remove_file_row(id_of(1))), Ok(true));
    assert_eq!(untold(100), named(&[2, 5]));
}

pub(in super::super) fn what_is_over_is_forgotten<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    for (number, state, ms) in [
        (1, State::Cancelled, 10),
        (2, State::Expired, 20),
        (3, State::Cancelled, 30),
        (4, State::Finalizing, 1),
    ] {
        let id = yard.open(number, chunks(4));
        yard.keep(ChunkReceipt { at_ms: at(0), ..chunk(id, 0, 4) });
        assert!(yard.turn(UploadTurn { at_ms: at(ms), ..turn(id, State::Open, state) }));
    }
    yard.open(5, chunks(4));
    yard.bring(yard.open(6, chunks(4)), State::Done);
    let forget = |ms| {
        let forgotten = block_on(yard.rows().forget_uploads(at(ms), at(0))).expect("an answer");
        yard.check_sums();
        forgotten
    };
    let there = || (1..7).filter(|number| yard.find(id_of(*number)).is_some()).collect::<Vec<u64>>();
    assert_eq!((forget(10), there()), (0, vec![1, 2, 3, 4, 5, 6]), "before the time");
    assert_eq!((forget(21), there()), (2, vec![3, 4, 5, 6]));
    assert_eq!((forget(21), forget(1000), there()), (0, 1, vec![4, 5, 6]));
    // Of those that come after it under the same names nothing is there.
    yard.open(1, chunks(4));
    assert_eq!(yard.received(id_of(1)), [0; 0]);
}

pub(in super::super) fn what_is_staged_is_remembered<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let over = [State::Cancelled, State::Expired];
    for ((number, state), ms) in (1..).zip(over.into_iter().cycle().take(4)).zip([30, 10, 20, 10]) {
        let staged = Some(format!("name {number}").into());
        let id = yard.open_row(&UploadRow { staged, ..yard.row(number, chunks(4)) });
        assert!(yard.turn(UploadTurn { at_ms: at(ms), ..turn(id, State::Open, state) }));
    }
    // Where there is no name, and where it is not over.
    yard.bring(yard.open(5, chunks(4)), State::Cancelled);
    for (number, state) in [(6, State::Open), (7, State::Finalizing), (8, State::Done)] {
        let staged = Some("name".into());
        yard.bring(yard.open_row(&UploadRow { staged, ..yard.row(number, chunks(4)) }), state);
    }
    let left = |rows| ids(&block_on(yard.rows().undiscarded_uploads(rows)).expect("a list"));
    let discard = |number| block_on(yard.rows().upload_discarded(id_of(number))).expect("an answer");
    assert_eq!((left(100), left(3), left(0)), (named(&[1, 3, 4, 2]), named(&[1, 3, 4]), vec![]));
    let listed = block_on(yard.rows().undiscarded_uploads(1)).expect("a list");
    assert_eq!(shown(&listed[0]), shown(&yard.read(id_of(1))));
    // Those of which something is left have a time of their own.
    let forget = |ms| block_on(yard.rows().forget_uploads(at(1000), at(ms))).expect("an answer");
    assert_eq!((forget(10), left(100)), (1, named(&[1, 3, 4, 2])));
    for number in [4, 4, 6, 7, 8, 99] {
        discard(number);
    }
    assert_eq!((left(100), yard.read(id_of(4)).staged), (named(&[1, 3, 2]), None));
    assert!([6, 7, 8].into_iter().all(|number| yard.read(id_of(number)).staged.is_some()));
    assert_eq!((forget(10), left(100)), (1, named(&[1, 3, 2])));
    assert_eq!((forget(30), left(100)), (2, named(&[1])));
    yard.check_sums();
}

/// More than one transaction takes.
pub(in super::super) fn many_are_forgotten<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    for number in 0..2_001 {
        let row = yard.row(number, chunks(0));
        let row = UploadRow { upload: Upload { state: State::Cancelled, ..row.upload }, ..row };
        block_on(yard.rows().open_upload(row, super::PLENTY, None)).expect("an answer");
    }
    assert_eq!(block_on(yard.rows().forget_uploads(at(0), at(0))), Ok(0));
    assert_eq!(block_on(yard.rows().forget_uploads(at(1), at(1))), Ok(2_001));
    assert!(yard.find(id_of(0)).is_none());
}
