//! Rights to write.

use driftline_engine::{LeaseKey, LeaseSlot, Leased, Renewed, Store};

use super::super::Bed;
use super::{Yard, at, id_of};
use crate::wait::block_on;

const ADA: u64 = 1;
/// Above what a signed number holds.
const BOB: u64 = u64::MAX - 1;

fn key(number: u64, slot: LeaseSlot) -> LeaseKey {
    LeaseKey { id: id_of(number), slot }
}

/// Asks for rights and holds on to them, at so many milliseconds after the beginning.
struct Desk<'a, S>(Yard<'a, S>);

impl<S: Store> Desk<'_, S> {
    fn ask(&self, key: LeaseKey, holder: u64, (now, until): (u64, u64), evict: bool) -> Leased {
        block_on(self.0.rows().lease(key, holder, at(now), at(until), evict)).expect("an answer")
    }

    fn take(&self, key: LeaseKey, holder: u64, times: (u64, u64)) -> Leased {
        self.ask(key, holder, times, false)
    }

    fn renew(&self, key: LeaseKey, holder: u64, (now, until): (u64, u64)) -> Renewed {
        block_on(self.0.rows().renew(key, holder, at(now), at(until))).expect("an answer")
    }

    fn release(&self, key: LeaseKey, holder: u64) {
        block_on(self.0.rows().release(key, holder)).expect("an answer");
    }
}

fn busy(until: u64) -> Leased {
    Leased::Busy { until_ms: at(until) }
}

pub(in super::super) fn a_right_is_one_holders<S: Store>(bed: &Bed<S>) {
    let desk = Desk(Yard::new(bed));
    let one = key(1, LeaseSlot::Chunk(0));
    assert_eq!(desk.take(one, ADA, (0, 100)), Leased::Held);
    assert_eq!((desk.take(one, BOB, (0, 500)), desk.take(one, BOB, (99, 500))), (busy(100), busy(100)));
    assert_eq!(desk.take(one, ADA, (50, 120)), Leased::Held, "it is its own");
    assert_eq!(desk.take(one, BOB, (119, 500)), busy(120));
    assert_eq!(desk.renew(one, ADA, (110, 200)), Renewed::Held);
    assert_eq!(desk.take(one, BOB, (150, 500)), busy(200));
    assert_eq!(desk.renew(one, BOB, (150, 500)), Renewed::Lost);
    desk.release(one, BOB);
    assert_eq!(desk.renew(one, ADA, (150, 300)), Renewed::Held, "who does not have it cannot give it back");
    desk.release(one, ADA);
    assert_eq!(desk.renew(one, ADA, (160, 300)), Renewed::Lost);
    assert_eq!(desk.take(one, BOB, (160, 500)), Leased::Held);
    desk.release(one, ADA);
    assert_eq!(
        (desk.take(one, ADA, (161, 500)), desk.renew(one, BOB, (161, 501))),
        (busy(500), Renewed::Held)
    );
}

pub(in super::super) fn every_place_has_a_right_of_its_own<S: Store>(bed: &Bed<S>) {
    let desk = Desk(Yard::new(bed));
    let slots = [
        LeaseSlot::Chunk(0),
        LeaseSlot::Chunk(1),
        LeaseSlot::Chunk((1 << 53) - 1),
        LeaseSlot::Stream,
        LeaseSlot::Finalize,
    ];
    let keys: Vec<LeaseKey> = (1..3).flat_map(|number| slots.map(|slot| key(number, slot))).collect();
    for (at, one) in (0..).zip(&keys) {
        assert_eq!(desk.take(*one, ADA, (0, 100 + at)), Leased::Held);
    }
    for (at, one) in (0..).zip(&keys) {
        assert_eq!(desk.take(*one, BOB, (1, 500)), busy(100 + at));
    }
    desk.release(keys[3], ADA);
    let free: Vec<usize> =
        (0..keys.len()).filter(|at| desk.take(keys[*at], BOB, (2, 500)) == Leased::Held).collect();
    assert_eq!(free, [3]);
}

pub(in super::super) fn a_right_that_ended_is_lost<S: Store>(bed: &Bed<S>) {
    let desk = Desk(Yard::new(bed));
    let one = key(1, LeaseSlot::Stream);
    assert_eq!(desk.take(one, ADA, (0, 100)), Leased::Held);
    assert_eq!(desk.renew(one, ADA, (100, 200)), Renewed::Lost, "to the millisecond");
    assert_eq!(desk.take(one, BOB, (100, 200)), Leased::TakenOver, "Ada's bytes may still come");
    assert_eq!(desk.take(one, BOB, (100, 200)), Leased::TakenOver);
    assert_eq!(
        (desk.renew(one, ADA, (101, 300)), desk.take(one, ADA, (101, 300))),
        (Renewed::Lost, busy(200))
    );
    desk.release(one, ADA);
    assert_eq!(desk.renew(one, BOB, (150, 200)), Renewed::Held);
    // Who lost it may take it again like everybody else.
    assert_eq!(desk.take(one, BOB, (200, 300)), Leased::Held, "it was its own");
    assert_eq!(desk.take(one, ADA, (300, 400)), Leased::TakenOver);
    assert_eq!(desk.renew(one, ADA, (399, 500)), Renewed::Held);
    // Giving it back does not bring the bytes home that may still come, however often it changes hands.
    desk.release(one, ADA);
    assert_eq!(desk.renew(one, ADA, (400, 500)), Renewed::Lost);
    for (holder, at) in [(BOB, 401), (BOB, 402), (ADA, 403)] {
        assert_eq!(desk.take(one, holder, (at, 600)), Leased::TakenOver);
        desk.release(one, holder);
    }
    assert_eq!(desk.take(key(2, LeaseSlot::Stream), BOB, (403, 600)), Leased::Held, "another place");
}

pub(in super::super) fn a_holder_is_asked_to_let_go<S: Store>(bed: &Bed<S>) {
    let desk = Desk(Yard::new(bed));
    let one = key(1, LeaseSlot::Chunk(7));
    assert_eq!(desk.ask(one, ADA, (0, 100), true), Leased::Held);
    assert_eq!(desk.ask(one, ADA, (1, 100), true), Leased::Held);
    assert_eq!(desk.renew(one, ADA, (2, 100)), Renewed::Held, "nobody asks himself");
    assert_eq!((desk.take(one, BOB, (3, 100)), desk.renew(one, ADA, (4, 100))), (busy(100), Renewed::Held));
    assert_eq!(desk.ask(one, BOB, (5, 300), true), busy(100));
    assert_eq!(desk.renew(one, ADA, (6, 150)), Renewed::Wanted);
    assert_eq!((desk.take(one, BOB, (7, 300)), desk.renew(one, ADA, (8, 160))), (busy(150), Renewed::Wanted));
    // Taking it again does not make it forget, and it is still its own.
    assert_eq!(desk.take(one, ADA, (9, 170)), Leased::Held);
    assert_eq!(desk.renew(one, ADA, (10, 180)), Renewed::Wanted);
    desk.release(one, ADA);
    assert_eq!(desk.take(one, BOB, (11, 300)), Leased::Held);
    assert_eq!(desk.renew(one, BOB, (12, 300)), Renewed::Held, "nobody waits for the new one");
    // Who was asked and did not hear is followed by somebody whom nobody asked.
    assert_eq!(desk.ask(one, ADA, (13, 400), true), busy(300));
    assert_eq!(desk.take(one, ADA, (300, 400)), Leased::TakenOver);
    assert_eq!(desk.renew(one, ADA, (301, 400)), Renewed::Held);
    // Of the same holder too.
    assert_eq!(desk.ask(one, BOB, (302, 500), true), busy(400));
    assert_eq!(desk.take(one, ADA, (400, 500)), Leased::Held);
    assert_eq!(desk.renew(one, ADA, (401, 500)), Renewed::Held);
}
