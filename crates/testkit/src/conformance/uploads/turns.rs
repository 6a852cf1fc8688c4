//! How uploads come into other states.

use driftline_engine::{ChunkReceipt, Joining, Kept, Store, UploadRow, UploadTurn};
use driftline_uploads::{Digest, State};

use super::super::Bed;
use super::{Yard, at, chunk, chunks, id_of, part, running, shown, stream, turn};
use crate::wait::block_on;

pub(in super::super) fn uploads_turn_as_their_states_allow<S: Store>(bed: &Bed<S>) {
    use State::{Cancelled, Done, Expired, Finalizing, Open};
    let yard = Yard::new(bed);
    let legal = [
        (Open, Finalizing),
        (Open, Cancelled),
        (Open, Expired),
        (Finalizing, Open),
        (Finalizing, Done),
        (Finalizing, Cancelled),
    ];
    let mut number = 0;
    let mut turned = 0;
    for is in State::ALL {
        for from in State::ALL {
            for to in State::ALL {
                number += 1;
                let id = yard.open(number, chunks(10));
                yard.keep(chunk(id, 0, 4));
                yard.bring(id, is);
                let (before, chunks) = (shown(&yard.read(id)), yard.received(id));
                let may = is == from && legal.contains(&(from, to));
                assert_eq!(yard.turn(turn(id, from, to)), may, "{is:?}: from {from:?} to {to:?}");
                if !may {
                    assert_eq!((shown(&yard.read(id)), yard.received(id)), (before, chunks));
                    continue;
                }
                turned += 1;
                let over = matches!(to, Cancelled | Expired);
                let row = yard.read(id);
                assert_eq!((row.upload.state, row.reserved), (to, if over { 0 } else { 10 }));
                let forgets = over || to == Done;
                assert_eq!(yard.received(id), if forgets { vec![] } else { vec![0] });
                assert_eq!(block_on(yard.rows().chunk(id, 0)).expect("a read").is_none(), forgets);
                assert_eq!((row.upload.received, row.changed_ms), (4, at(2)));
            }
        }
        // What came is gone before the next state, so that the sums stay quickly added up.
        block_on(yard.rows().forget_uploads(u64::MAX, u64::MAX)).expect("an answer");
        yard.check_sums();
    }
    assert_eq!(turned, legal.len());
    assert!(!yard.turn(turn(id_of(1 << 40), Open, Cancelled)), "there is none");
}

pub(in super::super) fn only_what_is_overdue_expires_as_overdue<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let id = yard.open(1, chunks(4));
    let ends_ms = yard.read(id).upload.expires_ms;
    let expire = |at_ms| UploadTurn { overdue: true, at_ms, ..turn(id, State::Open, State::Expired) };
    assert!(!yard.turn(expire(ends_ms - 1)), "its time is not over");
    // A chunk that came moves the end, and whoever saw the old one comes too early.
    let moved = ends_ms + 1000;
    yard.keep(ChunkReceipt { expires_ms: moved, ..chunk(id, 0, 4) });
    assert!(!yard.turn(expire(ends_ms)) && !yard.turn(expire(moved - 1)));
    assert_eq!(yard.read(id).upload.state, State::Open);
    assert!(yard.turn(expire(moved)));
    yard.check_sums();
}

pub(in super::super) fn a_turn_says_what_it_says<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let (id, beside) = (yard.open(1, chunks(4)), yard.open(2, chunks(4)));
    yard.keep(chunk(id, 0, 4));
    yard.keep(chunk(beside, 0, 4));
    let untouched = shown(&yard.read(beside));
    let told = |turned: UploadTurn| {
        assert!(yard.turn(turned));
        let row = yard.read(id);
        (row.digest, row.fault, row.changed_ms)
    };
    let (begin, back) = (turn(id, State::Open, State::Finalizing), turn(id, State::Finalizing, State::Open));
    assert_eq!(told(UploadTurn { whole: true, at_ms: at(10), ..begin.clone() }), (None, None, at(10)));
    let failed = UploadTurn { fault: Some("no \u{0} room".into()), at_ms: at(20), ..back.clone() };
    assert_eq!(told(failed), (None, Some("no \u{0} room".into()), at(20)));
    // A fault is that of the last time; a digest stays when none is said.
    let digest = Some(Digest::hash(b"whole"));
    assert_eq!(told(UploadTurn { digest, at_ms: at(30), ..begin }), (digest, None, at(30)));
    assert_eq!(told(UploadTurn { at_ms: at(40), ..back }), (digest, None, at(40)));
    assert_eq!(told(turn(id, State::Open, State::Finalizing)), (digest, None, at(2)), "whatever the time is");
    let other = Some(Digest::hash(b"other"));
    let done = UploadTurn { digest: other, ..turn(id, State::Finalizing, State::Done) };
    assert_eq!(told(done), (other, None, at(2)));
    assert_eq!((shown(&yard.read(beside)), yard.received(beside)), (untouched, vec![0]));
}

pub(in super::super) fn chunks_that_are_missing_are_taken_back<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let (id, beside) = (yard.open(1, chunks(18)), yard.open(2, chunks(18)));
    for of in [id, beside] {
        for (index, bytes) in [(0, 4), (1, 4), (2, 4), (4, 2)] {
            yard.keep(ChunkReceipt { running: Some(running(4)), ..chunk(of, index, bytes) });
        }
    }
    let untouched = shown(&yard.read(beside));
    let back = |missing: &[(u64, u64)]| {
        assert!(yard.turn(turn(id, State::Open, State::Finalizing)));
        let back = turn(id, State::Finalizing, State::Open);
        assert!(yard.turn(UploadTurn { missing: missing.to_vec(), ..back }));
        let row = yard.read(id);
        (row.upload.received, yard.received(id), row.running.map(|running| running.through()))
    };
    assert_eq!(back(&[]), (14, vec![0, 1, 2, 4], Some(4)), "nothing is missing");
    // One that is not there does not count, and one that is there counts once.
    assert_eq!(back(&[(4, 2), (3, 4), (1, 4), (4, 2), (1 << 40, 4)]), (8, vec![0, 2], None));
    assert_eq!((yard.read(id).reserved, yard.read(id).upload.state), (18, State::Open));
    assert_eq!(block_on(yard.rows().chunk(id, 1)), Ok(None));
    // They can come again, as other bytes too, and the hash begins anew.
    let other = Digest::hash(b"other");
    let again = ChunkReceipt { digest: other, running: Some(running(2)), ..chunk(id, 1, 4) };
    assert_eq!(yard.keep(again), Kept::Kept { received: 12 });
    assert_eq!(block_on(yard.rows().chunk(id, 1)), Ok(Some(other)));
    assert_eq!(yard.read(id).running.map(|running| running.through()), Some(2));
    assert_eq!(yard.keep(chunk(id, 4, 2)), Kept::Kept { received: 14 });
    assert_eq!(back(&[(3, 4)]), (14, vec![0, 1, 2, 4], None));
    assert_eq!(back(&[(0, 40)]), (0, vec![1, 2, 4], None), "never below nothing");
    // A turn that is not made takes nothing back, and none but this one does.
    let (begin, missing) = (turn(id, State::Open, State::Finalizing), vec![(1, 4)]);
    assert!(!yard.turn(UploadTurn { missing: missing.clone(), whole: true, ..begin.clone() }));
    assert!(yard.turn(UploadTurn { missing, ..begin }));
    assert_eq!(yard.received(id), [1, 2, 4]);
    assert_eq!((shown(&yard.read(beside)), yard.received(beside)), (untouched, vec![0, 1, 2, 4]));
}

pub(in super::super) fn only_what_is_whole_is_begun<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let begin = |id| yard.turn(UploadTurn { whole: true, ..turn(id, State::Open, State::Finalizing) });
    let id = yard.open(1, chunks(10));
    yard.keep(chunk(id, 0, 4));
    yard.keep(chunk(id, 1, 4));
    assert!(!begin(id));
    assert_eq!(yard.read(id).upload.state, State::Open);
    yard.keep(chunk(id, 2, 2));
    assert!(begin(id) && !begin(id), "once");
    let (flow, empty) = (yard.open(2, stream(None)), yard.open(3, chunks(0)));
    yard.go_on(part(flow, 0, 10));
    assert!(!begin(flow), "nobody has told how long it is");
    yard.go_on(driftline_engine::StreamReceipt { size: Some(10), ..part(flow, 10, 10) });
    assert!(begin(flow) && begin(empty));
    // A turn that does not ask is made, and a file takes what it is long.
    let half = yard.open(4, stream(None));
    yard.go_on(part(half, 0, 3));
    yard.bring(half, State::Done);
    let row = UploadRow { reserved: 3, ..yard.row(5, stream(Some(8))) };
    yard.bring(yard.open_row(&row), State::Done);
    assert_eq!((yard.read(half).reserved, yard.read(id_of(5)).reserved), (3, 8));
}

pub(in super::super) fn a_file_is_removed<S: Store>(bed: &Bed<S>) {
    let yard = Yard::new(bed);
    let remove = |id| {
        let removed = block_on(yard.rows().remove_file_row(id)).expect("an answer");
        yard.check_sums();
        removed
    };
    for (number, state) in (1..).zip(State::ALL) {
        let id = yard.open(number, chunks(10));
        yard.keep(chunk(id, 0, 4));
        yard.bring(id, state);
        assert_eq!(remove(id), state == State::Done, "{state:?}");
        assert_eq!(yard.find(id).is_some(), state != State::Done);
    }
    let done = id_of(3);
    assert!(!remove(done) && !remove(id_of(99)));
    // Of another upload of its name nothing is there before it comes.
    yard.open(3, chunks(10));
    assert_eq!((yard.received(done), block_on(yard.rows().chunk(done, 0))), (vec![], Ok(None)));
    // What somebody else has is not touched.
    let other = UploadRow { tenant: yard.other, joining: Joining::Part, ..yard.row(20, chunks(7)) };
    yard.bring(yard.open_row(&other), State::Done);
    yard.bring(done, State::Done);
    assert!(remove(done));
    assert_eq!((yard.used(yard.other), yard.read(id_of(20)).upload.state), (7, State::Done));
}
