//! What is written by a right, and by one that is somebody else's by now.

use driftline_engine::{
    ChunkReceipt, Kept, LeaseKey, LeaseSlot, Leased, Renewed, Store, StreamReceipt, UploadTurn,
};
use driftline_uploads::{Digest, State, UploadId};

use super::super::Bed;
use super::{QUOTA, Yard, at, chunk, chunks, id_of, part, running, shown, stream, turn};
use crate::wait::block_on;

const ADA: u64 = 1;
/// Above what a signed number holds.
const BOB: u64 = u64::MAX - 1;

const fn kept(received: u64) -> Kept {
    Kept::Kept { received }
}

/// Takes rights, and writes by them or without.
struct Desk<'a, S>(Yard<'a, S>);

impl<S: Store> Desk<'_, S> {
    fn take(&self, id: UploadId, slot: LeaseSlot, holder: u64, (now, until): (u64, u64)) -> Leased {
        let key = LeaseKey { id, slot };
        block_on(self.0.rows().lease(key, holder, at(now), at(until), false)).expect("an answer")
    }

    fn release(&self, id: UploadId, slot: LeaseSlot, holder: u64) {
        block_on(self.0.rows().release(LeaseKey { id, slot }, holder)).expect("an answer");
    }

    fn keep(&self, id: UploadId, index: u64, holder: u64) -> Kept {
        let running = Some(running(usize::try_from(index).expect("few") * 4 + 4));
        let receipt = ChunkReceipt { holder, running, at_ms: at(50), ..chunk(id, index, 4) };
        let kept = block_on(self.0.rows().keep_chunk(receipt)).expect("an answer");
        self.0.check_sums();
        kept
    }

    fn go_on(&self, id: UploadId, (from, to): (u64, u64), holder: u64, quota_bytes: u64) -> Kept {
        let receipt = StreamReceipt { holder, quota_bytes, at_ms: at(50), ..part(id, from, to) };
        let kept = block_on(self.0.rows().keep_stream(receipt)).expect("an answer");
        self.0.check_sums();
        kept
    }

    fn seen(&self, id: UploadId) -> (String, Vec<u64>) {
        (shown(&self.0.read(id)), self.0.received(id))
    }
}

pub(in super::super) fn a_chunk_is_kept_by_right<S: Store>(bed: &Bed<S>) {
    let desk = Desk(Yard::new(bed));
    let (id, beside) = (desk.0.open(1, chunks(40)), desk.0.open(2, chunks(40)));
    let before = desk.seen(id);
    assert_eq!(desk.keep(id, 0, ADA), Kept::Lost, "who never had it");
    // The rights to other places, and those of others to this one, are of no use.
    desk.take(id, LeaseSlot::Chunk(1), ADA, (0, 100));
    desk.take(id, LeaseSlot::Stream, ADA, (0, 100));
    desk.take(id, LeaseSlot::Finalize, ADA, (0, 100));
    desk.take(beside, LeaseSlot::Chunk(0), ADA, (0, 100));
    assert_eq!(desk.keep(id, 0, ADA), Kept::Lost);
    desk.take(id, LeaseSlot::Chunk(0), BOB, (0, 100));
    assert_eq!((desk.keep(id, 0, ADA), desk.keep(id, 1, BOB)), (Kept::Lost, Kept::Lost));
    assert_eq!(desk.seen(id), before);
    assert_eq!(desk.keep(id, 0, BOB), kept(4));
    // What is there already is told to whoever asks, by right or without.
    assert_eq!((desk.keep(id, 0, BOB), desk.keep(id, 0, ADA)), (Kept::Overtaken, Kept::Overtaken));
    // A right that was given back is none.
    desk.release(id, LeaseSlot::Chunk(1), ADA);
    let before = desk.seen(id);
    assert_eq!((desk.keep(id, 1, ADA), desk.seen(id)), (Kept::Lost, before));
    // One that ended long ago, and that nobody took, is still its holder's.
    desk.take(id, LeaseSlot::Chunk(2), ADA, (0, 10));
    assert_eq!(desk.keep(id, 2, ADA), kept(8));
    // Unless it was forgotten.
    desk.take(id, LeaseSlot::Chunk(4), ADA, (0, 10));
    desk.take(id, LeaseSlot::Chunk(5), ADA, (0, 11));
    assert_eq!(block_on(desk.0.rows().forget_uploads(at(11), at(11))), Ok(0));
    assert_eq!((desk.keep(id, 4, ADA), desk.keep(id, 5, ADA)), (Kept::Lost, kept(12)));
    // That the upload is not open is said first.
    desk.0.bring(id, State::Finalizing);
    for (index, holder) in [(0, ADA), (1, ADA), (2, ADA), (3, BOB)] {
        assert_eq!(desk.keep(id, index, holder), Kept::NotOpen(Some(State::Finalizing)));
    }
    assert_eq!(desk.keep(id_of(9), 0, ADA), Kept::NotOpen(None));
}

pub(in super::super) fn a_stream_goes_on_by_right<S: Store>(bed: &Bed<S>) {
    let desk = Desk(Yard::new(bed));
    let id = desk.0.open(1, stream(None));
    let before = desk.seen(id);
    assert_eq!(desk.go_on(id, (0, 5), ADA, QUOTA), Kept::Lost);
    desk.take(id, LeaseSlot::Chunk(0), ADA, (0, 100));
    assert_eq!(desk.go_on(id, (0, 5), ADA, QUOTA), Kept::Lost);
    desk.take(id, LeaseSlot::Stream, BOB, (0, 10));
    assert_eq!((desk.go_on(id, (0, 5), ADA, QUOTA), desk.seen(id)), (Kept::Lost, before));
    // Its time is over, and nobody took it.
    assert_eq!(desk.go_on(id, (0, 5), BOB, QUOTA), kept(5));
    // Where it ended is said first, then the right, then the room.
    assert_eq!(desk.go_on(id, (4, 9), ADA, 0), Kept::Overtaken);
    assert_eq!(desk.go_on(id, (5, 9), ADA, 0), Kept::Lost);
    assert_eq!(desk.go_on(id, (5, 9), BOB, 0), Kept::NoRoom);
    desk.take(id, LeaseSlot::Stream, ADA, (20, 30));
    let before = desk.seen(id);
    assert_eq!((desk.go_on(id, (5, 9), BOB, QUOTA), desk.seen(id)), (Kept::Lost, before));
    assert_eq!(desk.go_on(id, (5, 9), ADA, QUOTA), kept(9));
    desk.release(id, LeaseSlot::Stream, ADA);
    assert_eq!(desk.go_on(id, (9, 9), ADA, QUOTA), Kept::Lost);
    desk.0.bring(id, State::Finalizing);
    assert_eq!(desk.go_on(id, (9, 9), ADA, QUOTA), Kept::NotOpen(Some(State::Finalizing)));
}

pub(in super::super) fn who_was_taken_over_from_keeps_nothing<S: Store>(bed: &Bed<S>) {
    let desk = Desk(Yard::new(bed));
    let id = desk.0.open(1, chunks(40));
    let slot = LeaseSlot::Chunk;
    // Ada wrote, and was paused before she could say so. Bob is given the right once its time is over.
    for index in [0, 1] {
        assert_eq!(desk.take(id, slot(index), ADA, (0, 100)), Leased::Held);
        assert_eq!(desk.take(id, slot(index), BOB, (99, 200)), Leased::Busy { until_ms: at(100) });
        assert_eq!(desk.take(id, slot(index), BOB, (100, 200)), Leased::TakenOver);
    }
    let before = desk.seen(id);
    assert_eq!((desk.keep(id, 0, ADA), desk.seen(id)), (Kept::Lost, before));
    assert_eq!((desk.keep(id, 0, BOB), desk.keep(id, 1, BOB)), (kept(4), kept(8)));
    let after = desk.seen(id);
    assert_eq!((desk.keep(id, 0, ADA), desk.keep(id, 1, ADA)), (Kept::Overtaken, Kept::Overtaken));
    assert_eq!(desk.seen(id), after, "it counts once");
    // What Ada gives back is not hers, and she may take it over again.
    assert_eq!(desk.take(id, slot(2), ADA, (0, 100)), Leased::Held);
    assert_eq!(desk.take(id, slot(2), BOB, (100, 200)), Leased::TakenOver);
    desk.release(id, slot(2), ADA);
    let key = LeaseKey { id, slot: slot(2) };
    assert_eq!(block_on(desk.0.rows().renew(key, BOB, at(150), at(160))), Ok(Renewed::Held));
    assert_eq!(desk.take(id, slot(2), ADA, (160, 200)), Leased::TakenOver);
    assert_eq!((desk.keep(id, 2, BOB), desk.keep(id, 2, ADA)), (Kept::Lost, kept(12)));
}

pub(in super::super) fn a_turn_is_made_by_right<S: Store>(bed: &Bed<S>) {
    let desk = Desk(Yard::new(bed));
    let id = desk.0.open(1, chunks(4));
    desk.0.keep(chunk(id, 0, 4));
    let by = |holder, from, to| {
        let digest = Some(Digest::hash(b"whole"));
        desk.0.turn(UploadTurn { holder, digest, missing: vec![(0, 4)], ..turn(id, from, to) })
    };
    let refused = |holder, from, to| {
        let before = desk.seen(id);
        assert!(!by(Some(holder), from, to));
        assert_eq!(desk.seen(id), before);
    };
    refused(ADA, State::Open, State::Finalizing);
    desk.take(id, LeaseSlot::Chunk(0), ADA, (0, 100));
    desk.take(id, LeaseSlot::Stream, ADA, (0, 100));
    refused(ADA, State::Open, State::Finalizing);
    desk.take(id, LeaseSlot::Finalize, ADA, (0, 10));
    refused(BOB, State::Open, State::Finalizing);
    assert!(by(Some(ADA), State::Open, State::Finalizing), "its time is over, and nobody took it");
    desk.take(id, LeaseSlot::Finalize, BOB, (10, 20));
    for to in [State::Done, State::Open, State::Cancelled] {
        refused(ADA, State::Finalizing, to);
    }
    desk.release(id, LeaseSlot::Finalize, BOB);
    refused(BOB, State::Finalizing, State::Done);
    desk.take(id, LeaseSlot::Finalize, ADA, (20, 30));
    // The right is not enough where the state is another one.
    refused(ADA, State::Open, State::Finalizing);
    assert!(by(Some(ADA), State::Finalizing, State::Open));
    assert_eq!(desk.0.received(id), [0; 0]);
    // Nobody has to have it where nobody is named.
    assert!(by(None, State::Open, State::Finalizing) && by(None, State::Finalizing, State::Done));
}
